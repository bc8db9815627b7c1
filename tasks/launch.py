"""A command whose whole process tree ends with the one who started it.

`python -m tasks.launch [--timeout SECONDS] -- COMMAND` runs COMMAND in a session of its own. It ends every
descendant on a signal (TERM, INT, HUP), when the time is over, or when its standard input, the
lifeline, closes - which it does even if the starter is killed with -9. Every simpler way leaves processes
behind in some case: torchrun's ranks have their own sessions, and `dvc repro` leaves its command running.
Linux only.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE_S = 20.0
"""Between TERM and KILL, seconds: below 30, after which Prefect kills the flow's whole group."""
TIMED_OUT = 124
"""The exit code of coreutils' `timeout`."""

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def popen(
    command: Sequence[str], *, timeout_s: float | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start `command` under a supervisor; `stop` it, or just die: nothing of it stays.

    Options are `subprocess.Popen`'s; standard input is the lifeline.
    """
    limit = []
    if timeout_s is not None:
        limit = ["--timeout", str(timeout_s)]
    launcher = [sys.executable, "-m", "tasks.launch", *limit, "--", *command]
    return subprocess.Popen(launcher, stdin=subprocess.PIPE, text=True, **options)


def stop(process: subprocess.Popen[str]) -> int:
    """Let go of the lifeline and wait until the tree is gone; the exit code."""
    if process.stdin:
        process.stdin.close()
    return process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end, or to ours; its exit code, 128 + signal if one killed it."""
    parser = argparse.ArgumentParser(prog="tasks.launch", description=__doc__)
    parser.add_argument("--timeout", type=float, help="seconds")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)

    # Orphans below us become our children, so that we see all of them to the end.
    _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    threading.Thread(target=_watch_lifeline, args=(over,), daemon=True).start()

    child = subprocess.Popen(
        options.command,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - it calls the kernel only
    )
    timed_out = _wait(child, over, options.timeout)
    code = _end(child)
    if timed_out:
        return TIMED_OUT
    return code if code >= 0 else 128 - code


def descendants(root: int) -> list[int]:
    """Every living process below `root`, also those in a session of their own; zombies do not count."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # it ended while we looked
            continue
        # The name before the last bracket may hold anything, brackets and spaces too.
        state, parent = stat.rsplit(")", 1)[1].split()[:2]
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.name))

    below: list[int] = []
    todo = [root]
    while todo:
        next_level = children.get(todo.pop(), [])
        below += next_level
        todo += next_level
    return below


def _watch_lifeline(over: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    over.set()


def _die_with_parent() -> None:
    _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)


def _wait(child: subprocess.Popen[bytes], over: threading.Event, timeout_s: float | None) -> bool:
    """Until the child has ended or has to; whether the time ran out."""
    deadline = float("inf")
    if timeout_s is not None:
        deadline = time.monotonic() + timeout_s
    while child.poll() is None and not over.wait(0.05):
        if time.monotonic() > deadline:
            return True
    return False


def _end(child: subprocess.Popen[bytes]) -> int:
    """TERM, then KILL, for the child's group and whatever else descends from here."""
    grace_s = float(os.environ.get("IXC_GRACE_S", GRACE_S))
    # The group first: a stage then has the time to write its last state.
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        _until(lambda: child.poll() is not None, grace_s)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in descendants(os.getpid()):
            _kill(process, number)
        if _until(lambda: not descendants(os.getpid()), 2.0):
            break
    return child.wait()


def _until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (finished := done()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return finished


def _kill(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


if __name__ == "__main__":
    sys.exit(main())
