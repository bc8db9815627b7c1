"""What a stage leaves behind: numbers, curves, an MLflow run, a registered model, a readable error."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Call

from ixc.engine.checkpoints import NotSaved
from ixc.params import BadParams, load_params
from tasks.promote import NotPromoted, promote
from tasks.stage import StageFailed, failure, foreseen, outcome
from tasks.tracking import data_md5s, folder_md5
from tasks.workspace import BadOverride, override


@pytest.fixture
def client(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    from tasks import tracking

    for key in ("MLFLOW_TRACKING_URI", "HOME"):
        monkeypatch.setenv(key, environment[key])
    return tracking.client()


def newest_run(client: Any, stage: str) -> Any:
    from tasks.tracking import experiment

    order = ["attributes.start_time DESC"]
    return client.search_runs([experiment(client)], f"tags.stage = '{stage}'", order_by=order)[0]


def test_a_stage_leaves_numbers_everywhere_and_its_model_in_the_registry(
    project: Path, call: Call, client: Any
):
    assert call(project, "-m", "dvc", "repro", MODEL="ixc-test").returncode == 0

    assert json.loads((project / "metrics" / "judge.json").read_text()) == {
        "accuracy/all": 0.75,
        "pairs": 2,
    }
    with (project / "metrics" / "curves" / "judge.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"step": "0", "loss": "2.0", "accuracy": "0.5"},
            {"step": "1", "loss": "1.0", "accuracy": ""},
        ]

    run = newest_run(client, "judge")
    assert run.info.status == "FINISHED"
    params = load_params(project / "params.yaml").judge
    assert run.data.params["pairs_per_prompt"] == str(params.pairs_per_prompt)
    assert run.data.metrics == {"loss": 1.0, "accuracy": 0.5, "accuracy/all": 0.75, "pairs": 2.0}
    assert run.data.tags["dvc/data.txt"] == "9dd4e461268c8034f5c8564e155c67a6"  # md5 of "x"
    assert len(run.data.tags["git"].removesuffix("-dirty")) == 40

    # what is registered under the name of DVC's own md5 is what DVC has put into its lock file
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    [judged] = [out for out in lock["stages"]["judge"]["outs"] if out["path"] == "judged"]
    version = client.get_model_version_by_alias("ixc-test", "candidate")
    assert version.tags["dvc_md5"] == judged["md5"] == folder_md5(project / "judged")
    kept = {file.path for file in client.list_artifacts(version.run_id, "model")}
    assert kept == {"model/pairs", "model/sub"}

    with pytest.raises(NotPromoted, match=r"accuracy/all is 0.75, below 0.8"):
        promote(client, "ixc-test", "accuracy/all", 0.8)
    with pytest.raises(NotPromoted, match="no run has measured 'recall'"):
        promote(client, "ixc-test", "recall", 0.5)
    promote(client, "ixc-test", "accuracy/all", 0.7)
    assert client.get_model_version_by_alias("ixc-test", "champion").version == version.version


RESUME = """
from pathlib import Path
from tasks.stage import main

def run(params, data, *, log, lineage):
    Path("run.txt").write_text(lineage.run_id)
    lineage.resumed_from = data.read_text()
    log({"loss": 1.0}, 0)
    return {}

main("collect", run)
"""


@pytest.mark.parametrize("before", ["the killed run's id", ""])
def test_a_training_learns_its_run_and_names_the_one_that_it_goes_on_from(
    project: Path, call: Call, client: Any, before: str
):
    (project / "resume.py").write_text(RESUME)
    (project / "before.txt").write_text(before)
    assert call(project, "resume.py", "before.txt").returncode == 0
    newest = newest_run(client, "collect")
    assert (project / "run.txt").read_text() == newest.info.run_id
    assert newest.data.tags.get("resumed_from", "") == before


DIE_ONCE = """
import os, signal
from tasks.stage import main

def run(params, data, *, log):
    if not data.exists():
        data.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {}

main("collect", run)
"""


def test_a_run_that_was_killed_without_a_word_is_marked_by_the_next(
    project: Path, call: Call, client: Any
):
    (project / "die.py").write_text(DIE_ONCE)
    assert call(project, "die.py", "died.txt").returncode == -9
    assert newest_run(client, "collect").info.status == "RUNNING"
    assert call(project, "die.py", "died.txt").returncode == 0
    newest, before = client.search_runs(
        [newest_run(client, "collect").info.experiment_id], "tags.stage = 'collect'"
    )[:2]
    assert (newest.info.status, before.info.status) == ("FINISHED", "KILLED")


@pytest.mark.slow
def test_the_champion_so_far_stays_as_previous(project: Path, call: Call, client: Any):
    for _ in range(2):
        assert call(project, "-m", "dvc", "repro", "-f", MODEL="ixc-twice").returncode == 0
        promote(client, "ixc-twice", "accuracy/all", 0.5)
    aliases = client.get_registered_model("ixc-twice").aliases
    assert {name: str(number) for name, number in aliases.items()} == {
        "candidate": "2",
        "champion": "2",
        "previous": "1",
    }


def test_a_foreseen_error_is_one_line_and_the_run_has_failed(
    project: Path, call: Call, client: Any
):
    (project / "data.txt").write_text("x")
    ran = call(project, "judge.py", "data.txt", "judged", MISHAP="foreseen")
    assert ran.returncode == 1
    assert (
        ran.stderr.splitlines()[-1]
        == "BadParams: params.yaml: judge.seed: 3: unlucky; take another"
    )
    assert "Traceback" not in ran.stderr
    assert newest_run(client, "judge").info.status == "FAILED"


def test_any_other_error_has_its_traceback(project: Path, call: Call):
    ran = call(project, "judge.py", "data.txt", "judged", MISHAP="bug")
    assert ran.returncode == 70
    assert "Traceback" in ran.stderr and "RuntimeError: out of memory" in ran.stderr


def test_a_stage_told_to_stop_is_marked_killed(project: Path, call: Call, client: Any):
    ran = call(project, "judge.py", "data.txt", "judged", MISHAP="terminate")
    assert ran.returncode == 143
    assert newest_run(client, "judge").info.status == "KILLED"


def test_a_misspelt_parameter_names_its_key(project: Path, call: Call):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("judge:", "judge:\n  sead: 1"))
    ran = call(project, "judge.py", "data.txt", "judged")
    assert ran.returncode == 1
    assert "BadParams: params.yaml: judge.sead: unknown key" in ran.stderr


def test_too_few_paths_are_answered_with_the_right_command(project: Path, call: Call):
    ran = call(project, "judge.py", "data.txt")
    assert ran.returncode == 1
    assert "python -m tasks.judge DATA JUDGED: 'data.txt' was given" in ran.stderr


def test_only_our_own_errors_are_foreseen():
    assert foreseen(BadParams("x")) and foreseen(NotSaved("x"))
    assert not foreseen(OSError("x"))
    assert not foreseen(ValueError("x"))
    assert not foreseen(KeyError("x"))


def test_what_dvc_says_becomes_a_state():
    assert outcome("judge", ["Stage 'judge' didn't change, skipping"]) == "UpToDate"
    assert (
        outcome("judge", ["Stage 'judge' is cached - skipping run, checking out outputs"])
        == "Restored"
    )
    assert outcome("judge", ["Running stage 'judge':", "> python judge.py"]) == "Completed"


@pytest.mark.parametrize(
    ("own", "crashed"),
    [(1, False), (70, True), (137, True), (-9, True), (143, False), (-15, False), (124, False)],
)
def test_only_a_crash_is_worth_a_second_try(own: int, crashed: bool):
    lines = [
        f"ERROR: failed to reproduce 'judge': failed to run: python judge.py, exited with {own}"
    ]
    assert failure("judge", 255, lines).crashed is crashed


def test_a_failure_says_the_last_thing_the_stage_said():
    lines = [
        "Running stage 'judge':",
        "> python judge.py",
        "BadRecord: row 3",
        "ERROR: failed to reproduce 'judge'",
    ]
    assert str(failure("judge", 255, lines)) == "judge: exit code 255: BadRecord: row 3"
    assert isinstance(failure("judge", 255, []), StageFailed)


def test_an_override_reaches_one_key():
    tree = {"seed": 0, "judge": {"seed": 0, "llm": None}}
    override(tree, 'judge.llm.model="m"')
    override(tree, "judge.llm.base_url=http://a/b=c")
    override(tree, "judge.rate=2e-5")
    assert tree == {
        "seed": 0,
        "judge": {"seed": 0, "llm": {"model": "m", "base_url": "http://a/b=c"}, "rate": 0.00002},
    }


def test_the_seed_reaches_every_section():
    tree = {"seed": 0, "judge": {"seed": 0}, "clean": {"seed": 0}}
    override(tree, "seed=7")
    assert tree == {"seed": 7, "judge": {"seed": 7}, "clean": {"seed": 7}}


@pytest.mark.parametrize("text", ["judge.seed", "=3", "judge..seed=3"])
def test_an_override_of_another_form_is_refused(text: str):
    with pytest.raises(BadOverride, match="write section"):
        override({}, text)


def test_without_dvc_there_are_no_md5s(tmp_path: Path):
    assert data_md5s("judge", tmp_path) == {}
