"""Where DVC, Prefect and MLflow meet: `main` is what `dvc.yaml` calls, `dvc_task` is what a flow calls."""

import csv
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ixc.metrics import Metrics, ignore
from ixc.params import load_params
from tasks import launch
from tasks.processes import in_processes
from tasks.report import refresh, write_json
from tasks.tracking import Run, Terminated, provenance, register
from tasks.workspace import current, tracked

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

BAD_INPUT, CRASH, TOLD_TO_STOP = 1, 70, 143
"""Exit codes: trying again cannot help; it may (sysexits.h: internal software error); 128 + SIGTERM."""

MACHINE = (OSError, RuntimeError, MemoryError)
"""What a full disk, a lost connection or a GPU raise."""

ADVICE = (
    "To track the changes",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
"""What DVC says after every stage."""

Points = list[tuple[dict[str, float], int]]


def main(
    stage: str, run: Callable[..., Metrics] | None = None, *, model: str | None = None
) -> None:
    """Run a stage on the paths of the command line: parameters in, metrics, curves and an MLflow run out.

    An error that our code foresaw is one line, any other has its traceback; the code says whether to retry.

    Args:
        stage: its name in `dvc.yaml` and in `params.yaml`.
        run: instead of `ixc.stages.<stage>.run`.
        model: register the last path, a model folder, under this name.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(stage, run, [Path(argument) for argument in sys.argv[1:]], model)
    except (Terminated, KeyboardInterrupt):
        sys.exit(TOLD_TO_STOP)
    except Exception as error:
        if foreseen(error):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.exit(CRASH if isinstance(error, MACHINE) else BAD_INPUT)


def foreseen(error: Exception) -> bool:
    """Whether the error is one of our own (BadParams, BadRecord, NotSaved, ...): its text says all."""
    ours = type(error).__module__.partition(".")[0] in ("ixc", "tasks")
    return ours and isinstance(error, ValueError | OSError)


def _run(
    stage: str, run: Callable[..., Metrics] | None, paths: Sequence[Path], model: str | None
) -> None:
    section = getattr(load_params(), stage)
    if (
        getattr(section, "processes", 1) > 1 and "RANK" not in os.environ
    ):  # before anything large is imported
        sys.exit(in_processes(["-m", f"tasks.{stage}", *map(str, paths)], section.processes))
    call: Callable[..., Metrics] = run or importlib.import_module(f"ixc.stages.{stage}").run
    _check_paths(stage, call, paths)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first rank speaks for all
        call(section, *paths, log=ignore)
        return
    points: Points = []
    with Run(stage, section) as record:
        # A training keeps the run's name in its states, and notes whose state it goes on from.
        takes = inspect.signature(call).parameters
        lineage = {"lineage": record.lineage} if "lineage" in takes else {}

        def log(metrics: dict[str, float], step: int) -> None:
            points.append((metrics, step))
            record.log(metrics, step)

        try:
            metrics = call(section, *paths, log=log, **lineage)
        except ValueError:  # the data are at fault, and a page may say how
            refresh()
            raise
        record.log(metrics, 0)
        write_json(metrics, Path("metrics") / f"{stage}.json")
        write_json(provenance(record, paths), Path("metrics", "provenance") / f"{stage}.json")
        _write_curves(stage, points)
        if model is not None:
            version = register(record, model, paths[-1])
            print(f"{paths[-1]} is {model} version {version}, alias candidate")
    refresh()


def _check_paths(stage: str, run: Callable[..., Metrics], paths: Sequence[Path]) -> None:
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [
        name for name, each in inspect.signature(run).parameters.items() if each.kind is positional
    ][1:]
    if len(names) != len(paths):
        given = " ".join(map(str, paths)) or "nothing"
        raise BadArguments(
            f"python -m tasks.{stage} {' '.join(names).upper()}: {given!r} was given"
        )


class BadArguments(ValueError):
    """A command line that does not fit the stage."""


def _write_curves(stage: str, points: Points) -> None:
    """`metrics/curves/<stage>.csv`, if `dvc.yaml` asks for it: a row per step, blank for no number."""
    path = Path("metrics", "curves", f"{stage}.csv")
    if not Path("dvc.yaml").exists():
        return
    plots = (
        yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
        .get(stage, {})
        .get("plots", [])
    )
    if path.as_posix() not in plots:
        return
    rows: dict[int, dict[str, float]] = {}
    for metrics, step in points:
        rows.setdefault(step, {}).update(metrics)
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", *columns])
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(rows.items()))


def _terminate(number: int, frame: object) -> None:
    raise Terminated


class StageFailed(RuntimeError):
    """A stage that did not end well; `code` is its own exit code, or DVC's where DVC itself gave up."""

    def __init__(self, stage: str, code: int, tail: Sequence[str]) -> None:
        super().__init__(f"{stage}: exit code {code}: {tail[0] if tail else ''}")
        self.code = code

    @property
    def crashed(self) -> bool:
        """Whether a second try makes sense: a traceback, or a signal other than TERM."""
        signalled = self.code < 0 or 128 < self.code < 128 + signal.NSIG
        return self.code == CRASH or (
            signalled and self.code not in (TOLD_TO_STOP, -signal.SIGTERM)
        )


def dvc_task(stage: str, timeout_s: float | None = None) -> Callable[[], None]:
    """What a flow calls: a Prefect task around `dvc repro -s <stage>`; the flow calls what comes before.

    Its state in the UI says UpToDate, Restored (from DVC's cache) or Completed (it really ran).
    """

    def call() -> None:
        _prefect_task(stage, timeout_s)()

    call.__name__ = stage
    return call


@cache
def _prefect_task(stage: str, timeout_s: float | None) -> "Task[[], Any]":
    from prefect import task  # here, for the stage's own process needs no Prefect
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Completed

    # DVC decides what is stale: with a second cache the two could disagree
    @task(
        name=stage,
        task_run_name=stage,
        cache_policy=NO_CACHE,
        retries=1,
        retry_delay_seconds=2,
        retry_condition_fn=_crashed,
    )
    def reproduce() -> "State[None]":
        here = current()
        how = "UpToDate" if stage in here.fresh else _reproduce(stage, here.root, timeout_s)
        if how != "UpToDate":
            here.changed(stage, how)
            _publish(stage, here.root)
        return Completed(name=how, message=f"{stage}: {how}")

    return reproduce


def _crashed(task: "Task[..., Any]", task_run: "TaskRun", state: "State[Any]") -> bool:
    try:
        state.result()  # pyright: ignore
    except StageFailed as failure:
        return failure.crashed
    except Exception:
        return False
    return False


def _reproduce(stage: str, root: Path, timeout_s: float | None) -> str:
    """Let DVC bring a stage up to date; what it took, as a state's name."""
    from prefect import get_run_logger
    from prefect.runtime import flow_run

    python = str(Path(sys.executable).parent)  # dvc.yaml says `python`, and means this one
    env = {
        **os.environ,
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "IXC_FLOW_RUN_ID": flow_run.get_id() or "",
    }
    process = launch.popen(
        [sys.executable, "-m", "dvc", "repro", "-s", *tracked(root), stage],
        timeout_s=timeout_s,
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=1,
    )
    lines: list[str] = []
    try:
        for line in process.stdout or ():
            if (text := line.strip()) and not text.startswith(ADVICE):
                get_run_logger().info(text)
                lines = [*lines[-199:], text]
    finally:
        code = launch.stop(process)
    if code:
        raise failure(stage, code, lines)
    return outcome(stage, lines)


def outcome(stage: str, lines: Sequence[str]) -> str:
    """What `dvc repro` says it did for a stage, as the name of a state.

    >>> outcome("judge", ["Stage 'judge' didn't change, skipping"]), outcome("judge", ["Running stage 'judge':"])
    ('UpToDate', 'Completed')
    """
    own = [line for line in lines if line.startswith(f"Stage '{stage}'")]
    if any("is cached - skipping run" in line for line in own):
        return "Restored"
    return "UpToDate" if any("didn't change, skipping" in line for line in own) else "Completed"


def failure(stage: str, code: int, lines: Sequence[str]) -> StageFailed:
    """The error of a failed `dvc repro`, with the stage's own exit code, which DVC only tells in words."""
    own = re.search(r"exited with (-?\d+)", "\n".join(lines))
    told = [
        line for line in lines if not line.startswith(("ERROR: failed to", "Running stage", "> "))
    ]
    return StageFailed(stage, int(own[1]) if own else code, told[-1:])


def _publish(stage: str, root: Path) -> None:
    """The stage's numbers as a table in Prefect's UI."""
    from prefect.artifacts import create_table_artifact

    with suppress(OSError):
        metrics = json.loads((root / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
        table = [{"metric": name, "value": value} for name, value in metrics.items()]
        create_table_artifact(
            table, key=stage.replace("_", "-"), description=f"`metrics/{stage}.json`"
        )  # pyright: ignore
