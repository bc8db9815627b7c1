"""A killed training goes on as if it had not been killed; one of another configuration is refused."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

from ixc.data.samples import write_samples
from ixc.engine.checkpoints import PARTS, Checkpoints, NotSaved, OtherRun
from ixc.engine.optim import Diverged, Optimizer
from ixc.engine.trainer import Learner, Trainer
from ixc.metrics import Lineage, ignore
from ixc.models.ixc25 import IXCForCausalLM, IXCForRewardModel
from ixc.models.ixc25.folder import save
from ixc.params import TrainRMParams
from ixc.stages.train_rm import History, learn, run

STEPS = 12


class Killed(BaseException):
    """What a kill is to the code."""


class Training:
    """A small training that can be killed after some step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.manual_seed(0)
        save(IXCForCausalLM(tiny.config(initializer_range=0.2)), tiny.processor(), root / "base")
        colours = {colour: tiny.image(root, colour) for colour in ("red", "blue")}
        samples = [tiny.pair(f"Number {i}?", "good", "bad" * (i % 5 + 1)) for i in range(8)]
        samples += [
            tiny.pair(f"Colour {i}?", c, "grey", [colours[c]]) for i in range(4) for c in colours
        ]
        write_samples(samples, root / "pairs.parquet")

    def __call__(
        self,
        kill_after: int | None = None,
        name: str = "reward",
        step_done: Callable[[], None] = lambda: None,
        lineage: Lineage | None = None,
        **options: Any,
    ) -> History:
        curve: History = []

        def log(numbers: dict[str, float], step: int) -> None:
            assert step == len(curve)
            curve.append(numbers)
            step_done()
            if step + 1 == kill_after:
                raise Killed

        params = TrainRMParams(
            **(
                {"epochs": 3, "batch_size": 4, "learning_rate": 5e-3, "checkpoint_every": 2}
                | options
            )
        )
        run(
            params,
            self.root / "pairs.parquet",
            self.root,
            self.root / "base",
            self.root / name,
            log=log,
            lineage=lineage,
        )
        return curve

    def killed_after(self, step: int, **options: Any) -> None:
        with pytest.raises(Killed):
            self(step, **options)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return IXCForRewardModel.from_pretrained(self.root / name).state_dict()

    def state(self) -> Path:
        [state] = (self.root / ".reward.checkpoints").glob("step-*")
        return state


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"held_out": 0.3, "validate_every": 2}, {"batch_size": None, "batch_tokens": 500}],
)
def test_a_killed_run_ends_in_exactly_the_numbers_and_weights_of_one_that_was_not(
    training: Training, options: dict[str, Any]
):
    whole = training(name="whole", **options)
    for step in (1, 3, len(whole) - 1):
        training.killed_after(step, **options)
    assert training(**options) == whole
    mine, wanted = training.weights("reward"), training.weights("whole")
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)
    assert not (training.root / ".reward.checkpoints").exists()


def test_only_the_newest_state_is_kept_and_it_names_its_run(training: Training):
    training.killed_after(7, lineage=Lineage("a run / of mine"))
    assert training.state().name == "step-00000006"
    assert json.loads((training.state() / "state.json").read_text())["run_id"] == "a run / of mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 1e-3},
            r"learning_rate was 0.005, is 0.001; set it back to go on, or delete",
        ),
        ({"seed": 1, "margin": 0.5}, r"margin was 0.0, is 0.5, seed was 0, is 1"),
    ],
)
def test_a_state_of_other_parameters_is_refused_and_kept(
    training: Training, change: dict[str, Any], message: str
):
    training.killed_after(3)
    with pytest.raises(OtherRun, match=message):
        training(**change)
    assert len(training()) == STEPS


def test_how_often_states_are_written_may_change(training: Training):
    whole = training(name="whole")
    training.killed_after(5)
    assert training(checkpoint_every=5) == whole


@pytest.mark.parametrize("what", ["pairs", "base"])
def test_a_state_of_other_data_or_another_base_is_refused(training: Training, what: str):
    training.killed_after(3)
    if what == "pairs":
        write_samples([tiny.pair("Other?", "good", "bad")], training.root / "pairs.parquet")
    else:
        save(tiny.causal(), tiny.processor(), training.root / "base")
    with pytest.raises(OtherRun, match=f"{what} was '"):
        training()


@pytest.mark.parametrize("writer", ["save_file", "torch.save"])
def test_a_disk_without_room_leaves_the_last_state(
    training: Training, monkeypatch: pytest.MonkeyPatch, writer: str
):
    whole = training(name="whole")
    training.killed_after(3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"ixc.engine.checkpoints.{writer}", full)
        with pytest.raises(
            NotSaved, match=r"step-00000004: .*No space left.*goes on from .*step-00000002"
        ):
            training()
    assert training.state().name == "step-00000002"
    assert training() == whole


def test_a_disk_without_room_for_the_best_weights_is_told_too(
    training: Training, monkeypatch: pytest.MonkeyPatch
):
    options: dict[str, Any] = {"held_out": 0.3, "validate_every": 1}
    whole = training(name="whole", **options)
    training.killed_after(3, **options)
    with monkeypatch.context() as patch:
        patch.setattr(
            "ixc.engine.checkpoints.save_file",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")),
        )
        with pytest.raises(NotSaved, match=r"No space left; make room"):
            training(**options)
    assert training(**options) == whole


def test_what_goes_wrong_with_the_last_state_is_told_in_the_end(
    training: Training, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(
            "ixc.engine.checkpoints.save_file",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")),
        )
        with pytest.raises(NotSaved, match="goes on from the beginning"):
            training(checkpoint_every=STEPS)
    assert len(training()) == STEPS


def test_training_goes_on_while_a_state_is_written_but_one_at_a_time(
    training: Training, monkeypatch: pytest.MonkeyPatch
):
    done, writing, alone = threading.Semaphore(0), threading.Lock(), []

    def slow(weights: dict[str, torch.Tensor], path: Path) -> None:
        alone.append(writing.acquire(blocking=False))
        for _ in range(6):  # five steps come before each state, the sixth after it
            assert done.acquire(timeout=60), "training waits for the writer"
        save_file(weights, path)
        writing.release()

    whole = training(name="whole")
    monkeypatch.setattr("ixc.engine.checkpoints.save_file", slow)
    assert training(step_done=done.release, checkpoint_every=5) == whole
    assert alone == [True, True]


def test_a_loss_that_is_no_number_leaves_the_last_state(
    training: Training, monkeypatch: pytest.MonkeyPatch
):
    whole, steps = training(name="whole"), iter(range(1, STEPS))

    def broken(params: Any, model: Any, *more: Any) -> dict[str, float]:
        if next(steps) == 6:
            model.score.weight.data.fill_(float("nan"))
        return learn(params, model, *more)

    with monkeypatch.context() as patch:
        patch.setattr("ixc.stages.train_rm.learn", broken)
        with pytest.raises(Diverged, match=r"(Number|Colour) \d\?.*: the loss is nan"):
            training()
    assert training.state().name == "step-00000004"
    assert training() == whole


def test_a_half_written_state_is_none(training: Training):
    whole = training(name="whole")
    training.killed_after(3)
    half = training.state().with_name(".step-00000004.part")
    half.mkdir()
    (half / "state.json").write_text("{")
    assert training() == whole


def killed_while_it_deletes(patch: pytest.MonkeyPatch, gone: str) -> None:
    """The next folder with a state in it loses one file, then comes the kill."""

    def half(folder: Path, **_: object) -> None:
        if found := [*Path(folder).rglob(gone)]:
            found[0].unlink()
            raise Killed

    patch.setattr(shutil, "rmtree", half)


@pytest.mark.parametrize("gone", PARTS)
@pytest.mark.parametrize("when", [4, STEPS])
def test_a_kill_amid_the_tidying_leaves_a_state_to_go_on_from(
    training: Training, monkeypatch: pytest.MonkeyPatch, gone: str, when: int
):
    """Step 4: of the state before, when there is a new one; the last step: of all, when the run is done."""
    whole = training(name="whole")
    every: dict[str, Any] = {"checkpoint_every": 2 if when == 4 else 7}
    training.killed_after(3 if when == 4 else 8, **every)
    with monkeypatch.context() as patch:
        killed_while_it_deletes(patch, gone)
        with pytest.raises(Killed):
            training(**every)
    assert training(**every) == whole
    assert [path.name for path in training.root.iterdir() if "checkpoints" in path.name] == []


@pytest.mark.parametrize("gone", PARTS)
def test_a_state_that_lacks_a_file_is_none(training: Training, gone: str):
    whole = training(name="whole")
    training.killed_after(3)
    half = training.state().with_name("step-00000001")
    shutil.copytree(training.state(), half)
    (half / gone).unlink()
    training.killed_after(3)
    assert not half.exists()
    (training.state() / gone).unlink()
    assert training() == whole


def test_the_room_for_the_model_is_taken_before_the_training(
    training: Training, monkeypatch: pytest.MonkeyPatch
):
    def full(file: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            NotSaved, match=r"0.00 GB for the trained model: .*No space left.*make room"
        ):
            training()
    assert len(training()) == STEPS


def test_while_a_model_is_trained_its_room_is_kept(training: Training):
    reserved, sizes = training.root / ".reward.checkpoints" / "reserved", []
    training(step_done=lambda: sizes.append(reserved.stat().st_size))
    model = (training.root / "reward" / "model.safetensors").stat().st_size
    assert sizes == [pytest.approx(model, rel=0.2)] * STEPS
    assert not reserved.exists()


@pytest.mark.parametrize("every", [2, None])
def test_a_model_that_cannot_be_saved_says_what_to_do_and_leaves_the_last_state(
    training: Training, monkeypatch: pytest.MonkeyPatch, every: int | None
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole = training(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr("ixc.stages.train_rm.save", full)
        goes_on = "step-00000012" if every else "the beginning"
        with pytest.raises(
            NotSaved, match=rf"reward: .*No space left.*make room.*goes on from .*{goes_on}"
        ):
            training(checkpoint_every=every)
    assert training(checkpoint_every=every) == whole


def test_a_run_that_goes_on_names_the_one_whose_state_it_took(training: Training):
    first, second, third = Lineage("the first"), Lineage("the second"), Lineage("the third")
    training.killed_after(3, lineage=first)
    training.killed_after(5, lineage=second)
    training(lineage=third)
    assert first.resumed_from == ""
    assert second.resumed_from == "the first"
    assert third.resumed_from == "the second"


def test_only_the_first_process_copies_the_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, copies = tiny.reward(), []
    optimizer = Optimizer(model.parameters(), 1e-3, 2)
    optimizer.step(sum(p.square().sum() for p in model.parameters()))  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr("ixc.engine.checkpoints.copied", lambda tree: copies.append(tree) or tree)
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        with Checkpoints(tmp_path / "state", {}) as checkpoints:
            learners = {"model": Learner(model, optimizer)}
            trainer = Trainer("test", learners, 2, checkpoints, ignore, checkpoint_every=1)
            trainer.finish_step({})
        assert len(copies) == (rank == "0")
