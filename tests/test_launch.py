"""Nothing that was started stays behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import launch

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write(f"{os.getpid()} ")
time.sleep(60)
''', sys.argv[1]], start_new_session=True)
open(sys.argv[1], "a").write(f"{os.getpid()} ")
time.sleep(60)
"""
"""Ignores TERM, and so does its child, which has a session of its own, like a rank of torchrun."""


def until(done: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return done()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def pids(notes: Path) -> list[int]:
    return [int(word) for word in notes.read_text().split()] if notes.exists() else []


@pytest.fixture
def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    monkeypatch.setenv("IXC_GRACE_S", "0.3")
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    return [sys.executable, str(script), str(tmp_path / "pids")], tmp_path / "pids"


def test_the_exit_code_passes_through():
    process = launch.popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert process.wait(timeout=20) == 3


def test_a_command_that_a_signal_killed_says_so_as_in_a_shell():
    process = launch.popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert process.wait(timeout=20) == 137


def test_a_closed_lifeline_ends_even_a_tree_that_ignores_term(stubborn: tuple[list[str], Path]):
    command, notes = stubborn
    process = launch.popen(command)
    assert until(lambda: len(pids(notes)) == 2)
    launch.stop(process)
    assert not any(map(alive, pids(notes)))


def test_term_ends_the_tree(stubborn: tuple[list[str], Path]):
    command, notes = stubborn
    process = launch.popen(command)
    assert until(lambda: len(pids(notes)) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 137
    assert not any(map(alive, pids(notes)))


def test_a_starter_killed_with_9_takes_the_tree_along(
    stubborn: tuple[list[str], Path], tmp_path: Path
):
    command, notes = stubborn
    starter = tmp_path / "starter.py"
    starter.write_text(
        textwrap.dedent(f"""
        import time
        from tasks import launch
        launch.popen({command!r})
        time.sleep(60)
        """)
    )
    process = subprocess.Popen([sys.executable, str(starter)], env={**os.environ})
    assert until(lambda: len(pids(notes)) == 2)
    process.kill()
    process.wait()
    assert until(lambda: not any(map(alive, pids(notes))))


def test_an_orphan_of_a_finished_command_is_ended_too(tmp_path: Path):
    notes = tmp_path / "pid"
    process = launch.popen(["sh", "-c", f"sleep 60 & echo $! > {notes}"])
    assert process.wait(timeout=20) == 0
    assert not any(map(alive, pids(notes)))


def test_a_command_is_stopped_when_its_time_is_over():
    started = time.monotonic()
    process = launch.popen(["sleep", "60"], timeout_s=0.5)
    assert process.wait(timeout=20) == launch.TIMED_OUT
    assert time.monotonic() - started < 15
