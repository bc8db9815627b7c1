"""What came out: one MLflow run per stage, and the models in its registry."""

import hashlib
import json
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ixc.metrics import Lineage

EXPERIMENT = "ixc"
FLUSH_S = 10.0
"""A curve point waits at most this long, seconds: one request per point would cost 10-50 ms each."""


class Terminated(BaseException):
    """The stage has to stop (SIGTERM)."""


class Run:
    """An MLflow run that is FINISHED, FAILED or KILLED when the block ends; after kill -9, when the stage next starts.

    A tracking server that goes away in the middle costs a warning, not the training.
    """

    def __init__(self, stage: str, section: Any, root: Path = Path()) -> None:
        self.client = client(root)
        self.experiment = experiment(self.client, root)
        self.stage = stage
        self.tags = tags(stage, root)
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
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if issubclass(kind, Terminated | KeyboardInterrupt) else "FAILED"
        try:
            self.client.set_terminated(self.id, status)
        except Exception as failure:
            warnings.warn(f"MLflow: run {self.id} is not marked {status}: {failure}", stacklevel=2)

    def _mark_killed(self) -> None:
        """Runs of this stage whose process, on this machine, is gone without a word."""
        host = socket.gethostname()
        here = f"tags.stage = '{self.stage}' and tags.host = '{host}'"
        running = f"{here} and attributes.status = 'RUNNING'"
        try:
            for run in self.client.search_runs([self.experiment], running):
                if not Path("/proc", run.data.tags["pid"]).exists():
                    self.client.set_terminated(run.info.run_id, "KILLED")
        except Exception as failure:
            runs = f"runs of {self.stage} that were killed"
            warnings.warn(f"MLflow: {runs} are not marked: {failure}", stacklevel=2)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Numbers of one step of a curve."""
        self.points.append((metrics, step, time.time_ns() // 1_000_000))
        if time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Send the points that wait."""
        from mlflow.entities import Metric

        points = []
        for metrics, step, time_ms in self.points:
            for name, value in metrics.items():
                points.append(Metric(name, float(value), time_ms, step))
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

    def _send(
        self,
        metrics: Sequence[Any] = (),
        params: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        from mlflow.entities import Param

        pairs = [Param(key, value) for key, value in params.items()]
        try:
            # In pieces: the server has limits per request.
            for start in range(0, len(pairs), 100):
                self.client.log_batch(self.id, params=pairs[start : start + 100])
            for start in range(0, len(metrics), 1000):
                self.client.log_batch(self.id, metrics=metrics[start : start + 1000])
        except Exception as failure:
            warnings.warn(f"MLflow: run {self.id}: numbers lost: {failure}", stacklevel=2)


def client(root: Path = Path()) -> Any:
    """A client of MLFLOW_TRACKING_URI; without one, of `mlflow.db` in the main checkout."""
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{home(root) / 'mlflow.db'}")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # The default waits for minutes on a dead server.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.tracking import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def experiment(client: Any, root: Path = Path()) -> str:
    """The id of our experiment; a local one has its artefacts in the main checkout, wherever we are."""
    known = client.get_experiment_by_name(EXPERIMENT)
    if known:
        return known.experiment_id
    artifacts = None
    if os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:"):
        artifacts = str(home(root) / "mlartifacts")
    return client.create_experiment(EXPERIMENT, artifacts)


def home(root: Path = Path()) -> Path:
    """The main checkout, also when `root` is a worktree of it."""
    common = git("rev-parse", "--path-format=absolute", "--git-common-dir", root=root)
    return Path(common).parent if common else root.resolve()


def git(*arguments: str, root: Path = Path()) -> str:
    """What git says, or nothing where there is no repository."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def tags(stage: str, root: Path = Path()) -> dict[str, str]:
    """Where a run's numbers come from: code, data, process, and the flow that started it."""
    revision = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", root=root)
    described = {
        "stage": stage,
        "git": revision,
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
    }
    for path, md5 in data_md5s(stage, root).items():
        described[f"dvc/{path}"] = md5
    # Outside of a flow there is none.
    flow_run = os.environ.get("IXC_FLOW_RUN_ID", "")
    if flow_run:
        described["prefect.flow_run_id"] = flow_run
    return described


def data_md5s(stage: str, root: Path = Path()) -> dict[str, str]:
    """DVC's md5 of every input that another stage made, by path; `dvc.lock` has them already."""
    lock = root / "dvc.lock"
    if not (root / "dvc.yaml").exists() or not lock.exists():
        return {}
    deps = _deps(stage, root)
    md5s = {}
    for each in yaml.safe_load(lock.read_text())["stages"].values():
        for out in each.get("outs", []):
            if out["path"] in deps:
                md5s[out["path"]] = out["md5"]
    return md5s


def _deps(stage: str, root: Path) -> list[str]:
    """What a stage reads, as `dvc.yaml` has it; nothing without such a file."""
    graph = root / "dvc.yaml"
    if not graph.exists():
        return []
    stages = yaml.safe_load(graph.read_text(encoding="utf-8"))["stages"]
    return stages.get(stage, {}).get("deps", [])


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
    hashes = data_md5s(stage, root)
    for dep in _deps(stage, root):
        path = root / dep
        if dep in hashes or not path.exists():  # `${...}` is a name and no path
            continue
        hashes[dep] = folder_md5(path) if path.is_dir() else _md5(path)
    if hashes:
        return hashes
    files = [path for path in paths if (root / path).is_file()]
    return {path.as_posix(): _md5(root / path) for path in files}


def folder_md5(folder: Path) -> str:
    """What DVC will call this folder in `dvc.lock`, before it has seen it.

    DVC: the md5 of the JSON list of its files' md5s and paths, plus ".dir".
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = []
    for path in files:
        entries.append({"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    def md5() -> Any:
        return hashlib.md5(usedforsecurity=False)

    with path.open("rb") as file:
        return hashlib.file_digest(file, md5).hexdigest()


def register(run: Run, name: str, folder: Path) -> str:
    """Store a model folder in MLflow as a new version of `name`, alias `candidate`; the version's number."""
    from mlflow.exceptions import MlflowException

    run.client.log_artifacts(run.id, str(folder), "model")
    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{run.client.get_run(run.id).info.artifact_uri}/model"
    tags = {
        "git": run.tags["git"],
        "dvc_md5": folder_md5(folder),
        "dvc_path": folder.as_posix(),
    }
    version = run.client.create_model_version(name, source, run.id, tags=tags).version
    # Promotion measures it first (`tasks.promote`).
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
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
