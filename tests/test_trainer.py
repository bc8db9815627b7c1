"""The one trainer: what it saves comes back, whoever is trained; and when it says that enough is enough."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ixc.engine.checkpoints import Checkpoints
from ixc.engine.optim import Diverged, Optimizer
from ixc.engine.trainer import Learner, Trainer, share, update
from ixc.metrics import ignore


class Count:
    """Running numbers: how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class Run:
    """Two models of one number each, which learn what a generator draws."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.models = {name: nn.Linear(1, 1, bias=False) for name in ("actor", "critic")}
        for model in self.models.values():
            nn.init.zeros_(model.weight)
        self.rng, self.count, self.logged = random.Random(0), Count(), list[float]()
        learners = {
            name: Learner(model, Optimizer(model.parameters(), 0.1, 9))
            for name, model in self.models.items()
        }
        self.trainer = Trainer(
            "test",
            learners,
            9,
            checkpoints,
            lambda numbers, step: self.logged.append(numbers["loss"]),
            checkpoint_every=2,
            rng=self.rng,
            statistics={"count": self.count},
        )

    def steps(self, until: int) -> None:
        """The steps that remain, up to one of that number."""
        self.trainer.resume()
        for step in self.trainer.steps():
            if step == until:
                return
            loss = 0.0
            for learner in self.trainer.learners.values():
                wanted = self.rng.random() + torch.rand(())
                error = (learner.model.weight - wanted).square().sum()  # pyright: ignore
                learner.optimizer.backward(error)
                update(learner.optimizer, [["row"]])
                loss += error.item()
            self.count.calls += 1
            self.trainer.finish_step({"loss": loss})


def test_models_generators_and_statistics_go_on_together(tmp_path: Path):
    torch.manual_seed(0)
    with Checkpoints(tmp_path / "whole", {}) as checkpoints:
        whole = Run(checkpoints)
        whole.steps(9)

    torch.manual_seed(0)
    with Checkpoints(tmp_path / "killed", {}) as checkpoints:
        Run(checkpoints).steps(5)
    torch.manual_seed(7)
    with Checkpoints(tmp_path / "killed", {}) as checkpoints:
        killed = Run(checkpoints)
        killed.steps(9)

    assert killed.logged == whole.logged and len(whole.logged) == 9
    assert killed.count.calls == 9
    for name, model in whole.models.items():
        assert torch.equal(killed.models[name].weight, model.weight)
    assert not torch.equal(whole.models["actor"].weight, whole.models["critic"].weight)


def test_a_metric_stalls_when_its_last_values_are_no_better_than_those_before(tmp_path: Path):
    trainer = Trainer("test", {}, 9, Checkpoints(tmp_path, {}), ignore)
    stalled: list[bool] = []
    for value in (3.0, 2.0, 2.5, 1.9, 1.9, 2.0):
        trainer.finish_step({"loss": 0.0, "held_out_loss": value})
        trainer.finish_step({"loss": 0.0})  # a step without a look
        stalled.append(trainer.has_stalled("held_out_loss", patience=2))
    # the last two against those before: none, none, 2.0 < 3, 1.9 < 2, 1.9 < 2, 1.9 = 1.9
    assert stalled == [False, False, False, False, False, True]
    assert not trainer.has_stalled("held_out_loss", patience=None)


@pytest.mark.parametrize(("bad", "names"), [(1, "c"), (None, "a, b, c")])
def test_a_divergence_names_its_rows(bad: int | None, names: str):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Optimizer([weight], 1.0, steps=1)
    for number in range(2):
        loss = weight.sum() * (float("nan") if number == bad else 1.0)
        optimizer.backward(loss if bad is not None else weight.sqrt().sum())
    with pytest.raises(Diverged, match=rf"^{names}: the (loss|gradient's norm) is (nan|inf)"):
        update(optimizer, [["a", "b"], ["c"]])


def test_in_step_the_shortest_row_keeps_others_company(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    # by length: 1, 2, 0; the other has rows 1 and 0, in two microbatches, this one has row 2
    mine = share([0, 1, 2], [5, 2, 3], max_tokens=5, in_step=True)
    assert (mine.microbatches, mine.counted) == ([[2], [1]], 1)
    assert share([0, 1, 2], [5, 2, 3], max_tokens=5, in_step=False).microbatches == [[2]]
