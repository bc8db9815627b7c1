"""Ways of doing one thing beside each other: each alone in a fresh process with one thread."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

CASE = "IXC_BENCHMARK_CASE"
"""The environment variable that tells such a process what to measure."""
Run = dict[str, Any]
"""What was found out."""


def start(measure: Callable[..., Run], main: Callable[[], None]) -> None:
    """What a module does when it is run: `measure` its case, or, where it is given none, `main`."""
    if CASE not in os.environ:
        main()
        return
    torch.set_num_threads(1)
    print(json.dumps(measure(**json.loads(os.environ[CASE]))))


def side_by_side(module: str, ways: Iterable[str], trl: str = "", **case: Any) -> dict[str, Run]:
    """What the `measure` of a module finds out about each way.

    Args:
        trl: the interpreter for the way of that name.
        case: what else `measure` is told.
    """
    pythons = {way: trl if way == "trl" else sys.executable for way in ways}
    return {
        way: _in_its_own_process(python, module, {"way": way, **case})
        for way, python in pythons.items()
    }


def _in_its_own_process(python: str, module: str, case: dict[str, Any]) -> Run:
    ours = {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment = {**os.environ, **ours, CASE: json.dumps(case)}
    done = subprocess.run(
        [python, "-m", module], check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{module}: {case}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def agree(runs: Mapping[str, Run], key: str) -> None:
    """Check that all ways found the same numbers.

    Raises:
        AssertionError: they differ by more than 1e-5.
    """
    first, *others = (torch.tensor(run[key]) for run in runs.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-5)


def cpu_seconds(compute: Callable[[], Any]) -> float:
    """CPU time of one call, all threads."""
    start = time.process_time()
    compute()
    return time.process_time() - start


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mib(size: float) -> str:
    """Bytes as a whole number of MiB.

    >>> mib(3 * 2**20)
    '3'
    """
    return f"{size / 2**20:.0f}"


def head(*columns: str) -> None:
    """Begin a Markdown table."""
    row(*columns)
    print("|---" * len(columns) + "|")


def row(*cells: object) -> None:
    """A row of it, as soon as it is known."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
