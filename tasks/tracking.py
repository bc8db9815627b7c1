"""What came out: one MLflow run per stage, and the models in its registry."""

import hashlib
import json
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ixc.metrics import Lineage

EXPERIMENT = "ixc"
FLUSH_S = 10.0
"""A curve point waits at most this long, seconds: one request per point would cost 10-50 ms each."""


class Terminated(BaseException):
    """The stage was told to stop (SIGTERM)."""


class Run:
    """An MLflow run that is FINISHED, FAILED or KILLED when the block ends; after kill -9, when the stage next starts.

    A tracking server that goes away in the middle costs a warning, not the training.
    """

    def __init__(self, stage: str, section: Any, root: Path = Path()) -> None:
        self.client = client(root)
        self.experiment = experiment(self.client, root)
        self.stage, self.tags = stage, tags(stage, root)
        self.params = flatten(asdict(section))
        self.points: list[tuple[dict[str, float], int, int]] = []
        self.flushed = time.monotonic()
        self.lineage = Lineage()
        """What a training and its run know of each other."""
        self.marked = ""
        """The run that this one is tagged as going on from."""

    def __enter__(self) -> "Run":
        self._mark_killed()
        run = self.client.create_run(self.experiment, tags=self.tags, run_name=self.stage)
        self.id = run.info.run_id
        self.lineage = Lineage(run_id=self.id)
        self._send(params=self.params)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.flush()
        killed = kind is not None and issubclass(kind, Terminated | KeyboardInterrupt)
        status = "KILLED" if killed else "FAILED" if kind else "FINISHED"
        try:
            self.client.set_terminated(self.id, status)
        except Exception as failure:
            warnings.warn(f"MLflow: run {self.id} is not marked {status}: {failure}", stacklevel=2)

    def _mark_killed(self) -> None:
        """Runs of this stage whose process, on this machine, is gone without a word."""
        here = f"tags.stage = '{self.stage}' and tags.host = '{socket.gethostname()}'"
        running = f"{here} and attributes.status = 'RUNNING'"
        try:
            for run in self.client.search_runs([self.experiment], running):
                if not Path("/proc", run.data.tags["pid"]).exists():
                    self.client.set_terminated(run.info.run_id, "KILLED")
        except Exception as failure:
            warnings.warn(
                f"MLflow: runs of {self.stage} that were killed are not marked: {failure}",
                stacklevel=2,
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Numbers of one step of a curve."""
        self.points.append((metrics, step, time.time_ns() // 1_000_000))
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Send the points that wait."""
        from mlflow.entities import Metric

        points = [
            Metric(k, float(v), at, step)
            for metrics, step, at in self.points
            for k, v in metrics.items()
        ]
        self.points.clear()
        self.flushed = time.monotonic()
        self._send(metrics=points)
        self._mark_resumed()

    def _mark_resumed(self) -> None:
        """Tag a training that goes on from the state of a killed run with that run, once."""
        before = self.lineage.resumed_from
        if not before or before == self.marked:
            return
        self.marked = before
        try:
            self.client.set_tag(self.id, "resumed_from", before)
        except Exception as failure:
            warnings.warn(
                f"MLflow: run {self.id}: not marked as going on from {before}: {failure}",
                stacklevel=2,
            )

    def _send(self, metrics: list[Any] | None = None, params: dict[str, str] | None = None) -> None:
        from mlflow.entities import Param

        pairs = [Param(key, value) for key, value in (params or {}).items()]
        try:
            for start in range(0, len(pairs), 100):  # the server's limits per request
                self.client.log_batch(self.id, params=pairs[start : start + 100])
            for start in range(0, len(metrics or []), 1000):
                self.client.log_batch(self.id, metrics=(metrics or [])[start : start + 1000])
        except Exception as failure:
            warnings.warn(f"MLflow: run {self.id}: numbers lost: {failure}", stacklevel=2)


def client(root: Path = Path()) -> Any:
    """A client of MLFLOW_TRACKING_URI; without one, of `mlflow.db` in the main checkout."""
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{home(root) / 'mlflow.db'}")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
    )  # the default waits for minutes on a dead server
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow.tracking import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def experiment(client: Any, root: Path = Path()) -> str:
    """The id of our experiment; a local one keeps its artefacts in the main checkout, wherever we are."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return found.experiment_id
    local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
    return client.create_experiment(EXPERIMENT, str(home(root) / "mlartifacts") if local else None)


def home(root: Path = Path()) -> Path:
    """The main checkout, also when `root` is a worktree of it."""
    common = git("rev-parse", "--path-format=absolute", "--git-common-dir", root=root)
    return Path(common).parent if common else root.resolve()


def git(*arguments: str, root: Path = Path()) -> str:
    """What git says, or nothing where there is no repository."""
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def tags(stage: str, root: Path = Path()) -> dict[str, str]:
    """Where a run's numbers come from: code, data, process, and the flow that asked for it."""
    revision = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", root=root)
    data = {f"dvc/{path}": md5 for path, md5 in data_md5s(stage, root).items()}
    flow = {"prefect.flow_run_id": os.environ.get("IXC_FLOW_RUN_ID", "")}
    process = {"host": socket.gethostname(), "pid": str(os.getpid())}
    return {
        "stage": stage,
        "git": revision,
        **process,
        **data,
        **{key: value for key, value in flow.items() if value},
    }


def data_md5s(stage: str, root: Path = Path()) -> dict[str, str]:
    """DVC's md5 of every input that another stage made, by path; `dvc.lock` has them already."""
    graph, lock = root / "dvc.yaml", root / "dvc.lock"
    if not (graph.exists() and lock.exists()):
        return {}
    deps = set(yaml.safe_load(graph.read_text())["stages"].get(stage, {}).get("deps", []))
    stages = yaml.safe_load(lock.read_text())["stages"].values()
    return {
        out["path"]: out["md5"]
        for each in stages
        for out in each.get("outs", [])
        if out["path"] in deps
    }


def provenance(run: Run, paths: Sequence[Path], root: Path = Path()) -> dict[str, Any]:
    """Where the numbers of a run come from: its id, the commit, the md5 of the data, and the command."""
    command = f"python -m tasks.{run.stage} {' '.join(map(str, paths))}".rstrip()
    data = data_hashes(run.stage, paths, root)
    return {
        "stage": run.stage,
        "run": run.id,
        "commit": run.tags["git"],
        "data": data,
        "command": command,
    }


def data_hashes(stage: str, paths: Sequence[Path], root: Path = Path()) -> dict[str, str]:
    """The md5 of all that a stage has read, by path; of its tables, where it reads nothing of ours, as `collect`.

    What DVC does not know, say because the stage runs without it, is computed.
    """
    graph, found = root / "dvc.yaml", data_md5s(stage, root)
    stages = yaml.safe_load(graph.read_text(encoding="utf-8"))["stages"] if graph.exists() else {}
    for dep in stages.get(stage, {}).get("deps", []):
        if dep not in found and (root / dep).exists():  # no `${...}`, which is a name and no path
            found[dep] = folder_md5(root / dep) if (root / dep).is_dir() else _md5(root / dep)
    return found or {
        path.as_posix(): _md5(root / path) for path in paths if (root / path).is_file()
    }


def folder_md5(folder: Path) -> str:
    """What DVC will call this folder in `dvc.lock`, before it has seen it.

    DVC: the md5 of the JSON list of its files' md5s and paths, plus ".dir".
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        {"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files
    ]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def register(run: Run, name: str, folder: Path) -> str:
    """Keep a model folder in MLflow as a new version of `name`, alias `candidate`; the version's number."""
    from mlflow.exceptions import MlflowException

    run.client.log_artifacts(run.id, str(folder), "model")
    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{run.client.get_run(run.id).info.artifact_uri}/model"
    tags = {"git": run.tags["git"], "dvc_md5": folder_md5(folder), "dvc_path": folder.as_posix()}
    version = run.client.create_model_version(name, source, run.id, tags=tags).version
    run.client.set_registered_model_alias(name, "candidate", version)
    return str(version)


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """A nested section as dotted keys.

    >>> flatten({"a": {"b": 1}, "c": [{"d": None}], "n": (1, 2)})
    {'a.b': '1', 'c.0.d': 'None', 'n.0': '1', 'n.1': '2'}
    """
    return {prefix + key: str(value) for key, value in _leaves(tree)}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list | tuple):
        yield path, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
