"""A flow against a real server: what runs, what is skipped, what is tried again, and what is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Call
from test_launch import alive, pids, until

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_a_second_run_starts_nothing_and_a_lost_output_is_restored(project: Path, call: Call):
    first = call(project, "small.py")
    assert "outcomes: {'collect': 'Completed', 'judge': 'Completed'}" in first.stdout, first.stderr
    assert "wall: True" in first.stdout

    second = call(project, "small.py")
    assert "outcomes: {} fresh: ['collect', 'judge'] wall: False" in second.stdout, second.stderr
    assert "Running stage" not in second.stderr

    (project / "data.txt").unlink()
    third = call(project, "small.py")
    assert "outcomes: {'collect': 'Restored'}" in third.stdout, third.stderr
    assert (project / "data.txt").read_text() == "x"


@pytest.mark.slow
def test_overrides_have_a_workspace_of_their_own(project: Path, call: Call):
    source = project / "collect.py"
    source.write_text(source.read_text().replace('"x"', '"y"'))  # not committed
    before = (project / "params.yaml").read_bytes()
    ran = call(project, "small.py", "judge.pairs_per_prompt=1")
    assert "outcomes: {'collect': 'Completed', 'judge': 'Completed'}" in ran.stdout, ran.stderr
    other = project / ".runs" / "other"
    assert (other / "judged" / "pairs").read_text() == "y"
    assert (project / "params.yaml").read_bytes() == before
    assert not (project / "data.txt").exists()
    assert "other" in call(project, "-m", "dvc", "exp", "list").stdout

    again = call(project, "small.py", "judge.pairs_per_prompt=1")
    assert "outcomes: {}" in again.stdout, again.stderr


def test_a_bad_parameter_is_not_tried_again(project: Path, call: Call):
    ran = call(project, "small.py", MISHAP="foreseen")
    assert ran.returncode != 0
    assert (project / "tries").read_text() == "x"
    assert "BadParams: params.yaml: judge.seed: 3: unlucky; take another" in ran.stderr


@pytest.mark.slow
def test_a_crash_is_tried_once_more(project: Path, call: Call):
    ran = call(project, "small.py", MISHAP="bug")
    assert ran.returncode != 0
    assert (project / "tries").read_text() == "xx"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_flow_that_is_stopped_leaves_no_process(
    project: Path, environment: dict[str, str], number: int
):
    command = [sys.executable, "small.py"]
    env = {**environment, "MISHAP": "hang"}
    flow = subprocess.Popen(
        command, cwd=project, env=env, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert until(lambda: bool(pids(project / "pid")), 60)
    os.kill(flow.pid, number)
    flow.wait(timeout=60)
    assert until(lambda: not any(map(alive, pids(project / "pid"))))
