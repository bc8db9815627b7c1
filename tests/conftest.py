"""A small project with a graph of its own, so that the machinery is tested without the method."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

collect_ignore = ["train_with_trl.py"]
"""Runs in an environment of its own, which has TRL."""
REPOSITORY = Path(__file__).parents[1]

GRAPH = """
stages:
  collect:
    cmd: python collect.py data.txt
    deps: [collect.py]
    params: [collect]
    outs: [data.txt]
    metrics: [metrics/collect.json]
  judge:
    cmd: python judge.py data.txt judged
    deps: [judge.py, data.txt]
    params: [judge]
    outs: [judged]
    metrics: [metrics/judge.json]
    plots: [metrics/curves/judge.csv]
"""

COLLECT = """
from tasks.stage import main

def run(params, data, *, log):
    data.write_text("x" * len(params.sources))
    return {"sources": len(params.sources)}

main("collect", run)
"""

JUDGE = """
import os, signal, sys, time
from ixc.params import BadParams
from tasks.stage import main

def run(params, data, judged, *, log):
    open("tries", "a").write("x")
    match os.environ.get("MISHAP"):
        case "foreseen": raise BadParams("params.yaml: judge.seed: 3: unlucky; take another")
        case "bug": raise RuntimeError("out of memory")
        case "terminate": os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)
        case "hang": open("pid", "w").write(str(os.getpid())); time.sleep(60)
    log({"loss": 2.0, "accuracy": 0.5}, 0)
    log({"loss": 1.0}, 1)
    judged.mkdir(exist_ok=True)
    (judged / "pairs").write_text(data.read_text())
    (judged / "sub").mkdir(exist_ok=True)
    (judged / "sub" / "weights").write_text("w")
    return {"pairs": 2, "accuracy/all": 0.75}

main("judge", run, model=os.environ.get("MODEL"))
"""

FLOW = """
import sys
from prefect import flow
from tasks.stage import dvc_task
from tasks.workspace import workspace

collect, judge = dvc_task("collect"), dvc_task("judge")

@flow
def small():
    with workspace(None, sys.argv[1:], "other") as here:
        collect()
        judge()
        print("outcomes:", here.outcomes, "fresh:", sorted(here.fresh), "wall:", here.wall_s is not None)

small()
"""

IDENTITY = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Nothing of the user's settings, databases or caches is read or written."""
    home = tmp_path_factory.mktemp("home")
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "NO_PROXY": "localhost,127.0.0.1",
        "IXC_GRACE_S": "2",
        **dict.fromkeys(IDENTITY, "test@example.org"),
    }
    kept = {
        key: value for key, value in os.environ.items() if key in ("LANG", "PYTHONPATH", "TMPDIR")
    }
    return {**kept, **own}


@pytest.fixture
def call(environment: dict[str, str]) -> Call:
    """Run a Python command line in a folder: `call(folder, "-m", "dvc", "status", MISHAP="bug")`."""

    def run(folder: Path, *arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**environment, **extra},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def project(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A git and DVC repository with two stages and a flow."""
    root = tmp_path / "project"
    root.mkdir()
    files = {"dvc.yaml": GRAPH, "collect.py": COLLECT, "judge.py": JUDGE, "small.py": FLOW}
    files[".gitignore"] = "/.runs/\n/tries\n/pid\n/metrics/\n/reports/\n"
    for name, text in files.items():
        (root / name).write_text(text)
    shutil.copy(REPOSITORY / "infra" / "params" / "laptop.yaml", root / "params.yaml")
    dvc = f"{sys.executable} -m dvc"
    for command in ("git init -q", f"{dvc} init -q", "git add .", "git commit -qm x"):
        subprocess.run(command.split(), cwd=root, env=environment, check=True)
    return root


@pytest.fixture(scope="session")
def prefect_api(environment: dict[str, str]) -> Iterator[str]:
    """A real Prefect server, with an empty database, for as long as the tests last."""
    from flows.local import prefect_server

    with pytest.MonkeyPatch.context() as patch:
        for key in ("PREFECT_HOME", "DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED"):
            patch.setenv(key, environment[key])
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_server() as api:
            environment["PREFECT_API_URL"] = api
            yield api
