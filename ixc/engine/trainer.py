"""The one trainer of `bootstrap`, `train_rm` and `train_ppo`: all that a run consists of, as one state.

A recipe holds it like a tool. It takes from it the steps that remain, and gives it the numbers of each; in between it
computes losses as it likes. Models, optimizers with their schedules, generators and running statistics are saved
together and restored together, so that a run that was killed goes on as if it had not been.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ixc.engine import distributed
from ixc.engine.batching import microbatches
from ixc.engine.checkpoints import Checkpoints, History, State
from ixc.engine.optim import Diverged, MuonOptimizer, Optimizer
from ixc.engine.zero import ShardedOptimizer
from ixc.io.files import track
from ixc.metrics import Log
from ixc.models.base import VisionLanguageModel

NAMED = 8
"""Rows that an error names."""


@dataclass(frozen=True)
class Learner:
    """A model that is trained, and what trains it."""

    model: nn.Module
    optimizer: Optimizer


@runtime_checkable
class Statistics(Protocol):
    """Running numbers that a run depends on."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class Trainer:
    """What a training run consists of, beside its data.

    The same on any number of processes: all of them call the same methods, and the first writes.
    """

    def __init__(
        self,
        stage: str,
        learners: Mapping[str, Learner],
        num_steps: int,
        checkpoints: Checkpoints,
        log: Log,
        *,
        checkpoint_every: int | None = None,
        rng: random.Random | None = None,
        statistics: Mapping[str, Statistics] | None = None,
    ) -> None:
        """What is to be trained, and what its state is made of.

        Args:
            stage: what the progress bar is called.
            learners: each model with its optimizer, by name.
            num_steps: of the whole run.
            log: gets the numbers of every step.
            checkpoint_every: steps between two states; None: there are none.
            rng: what the recipe draws from; torch's own generators are always part of the state.
            statistics: running numbers, by name.
        """
        self.stage, self.num_steps = stage, num_steps
        self.learners = dict(learners)
        self.checkpoints, self.checkpoint_every = checkpoints, checkpoint_every
        self.log, self.rng = log, rng
        self.statistics = dict(statistics or {})
        self.history: History = []

    @property
    def num_done(self) -> int:
        """Steps done, those of a killed run included."""
        return len(self.history)

    def resume(self) -> None:
        """Go on from the newest state, if there is one; its numbers are logged again."""
        if (state := self.checkpoints.load()) is None:
            return

        # The weights first: ZeRO's optimizers have a copy of them.
        for name, learner in self.learners.items():
            learner.optimizer.restore(learner.model, _of_model(name, state.weights))
            learner.optimizer.load_state_dict(state.progress["optimizers"][name])
        for name, statistics in self.statistics.items():
            statistics.load_state_dict(state.progress["statistics"][name])
        _set_random(state.progress["random"], self.rng)

        # A curve is whole in the run that ends it, whichever began it.
        self.history = state.history
        for step, numbers in enumerate(self.history):
            self.log(numbers, step)

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that remain, from 0, with a progress bar."""
        first = self.num_done
        yield from track(range(first, self.num_steps), self.stage, self.num_steps - first)

    def finish_step(self, numbers: dict[str, float]) -> None:
        """A step is done: its numbers go into history and log, and where a state is due, it is saved.

        Raises:
            NotSaved: the state before could not be written.
        """
        self.history.append(numbers)
        self.log(numbers, self.num_done - 1)
        if self.checkpoint_every and self.num_done % self.checkpoint_every == 0:
            self._save()

    def _save(self) -> None:
        """Begin to write the state of now; main memory never holds two."""
        self.checkpoints.wait()

        # What is shared out among the processes comes together in the first, whatever shares it out.
        weights, optimizers = {}, {}
        for name, learner in self.learners.items():
            for key, value in learner.optimizer.weights(learner.model).items():
                weights[f"{name}/{key}"] = value
            optimizers[name] = learner.optimizer.state_dict()
        statistics = {name: each.state_dict() for name, each in self.statistics.items()}
        progress = {
            "optimizers": optimizers,
            "statistics": statistics,
            "random": _random(self.rng),
        }
        self.checkpoints.save(State(weights, progress, self.history))

    def values(self, metric: str) -> list[float]:
        """A metric that not every step has, so far."""
        return [numbers[metric] for numbers in self.history if metric in numbers]

    def keep_if_best(self, name: str, metric: str, value: float) -> None:
        """Keep a model's weights where the metric, of which less is better, was never so low.

        Raises:
            NotSaved: they could not be written.
        """
        if value < min(self.values(metric), default=math.inf):
            learner = self.learners[name]
            self.checkpoints.save_best(learner.optimizer.weights(learner.model))

    @torch.no_grad()
    def restore_best(self, name: str) -> None:
        """Put the best weights into a model whose optimizer is closed."""
        model = self.learners[name].model
        for key, value in self.checkpoints.load_best().items():
            model.get_parameter(key).copy_(value)

    def has_stalled(self, metric: str, patience: int | None) -> bool:
        """Whether the metric's last `patience` values are no better than those before; None: it may never stall."""
        values = self.values(metric)
        if patience is None or len(values) <= patience:
            return False
        return min(values[-patience:]) >= min(values[:-patience])


def _of_model(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's own weights in those of all."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def make_optimizer(
    model: VisionLanguageModel,
    learning_rate: float,
    steps: int,
    *,
    kind: Literal["adamw", "muon"] = "adamw",
    zero: int = 0,
    offload: str = "none",
    **options: float,
) -> Optimizer:
    """AdamW, alone or shared out among the processes, or Muon.

    Args:
        steps: updates of the whole run.
        zero: what is shared out: 0 nothing, 1 the moments, 2 the gradients too, 3 the weights too.
        offload: as in `ShardedOptimizer`.
        options: those of `Optimizer`.
    """
    if zero >= 2:
        return ShardedOptimizer(model, learning_rate, steps, stage=zero, offload=offload, **options)
    if kind == "muon":
        return MuonOptimizer(model, learning_rate, steps, **options, shard=zero == 1)
    return Optimizer(model.parameters(), learning_rate, steps, **options, shard=zero == 1)


def update(optimizer: Optimizer, batches: Sequence[Sequence[str]]) -> dict[str, float]:
    """One update by the gradients of the step; what it reports, see `Optimizer.update`.

    Args:
        batches: ids of the rows behind each call of `backward`, in order.

    Raises:
        Diverged: a loss or a gradient is not finite; the error names the rows that it may come from.
    """
    try:
        return optimizer.update()
    except Diverged as error:
        # A bad loss has its microbatch; a bad gradient may be any one's.
        suspects = [batches[number] for number in error.backwards] or batches
        ids = [row for batch in suspects for row in batch]
        raise Diverged(f"{_names(ids)}: {error}", error.backwards) from error


def _names(ids: Sequence[str]) -> str:
    """The first rows, as an error names them."""
    if not ids:
        return "rows of another process"
    more = [f"and {len(ids) - NAMED} more"] if len(ids) > NAMED else []
    return ", ".join([*ids[:NAMED], *more])


@dataclass(frozen=True)
class Share:
    """What one process does of a step."""

    microbatches: list[list[int]]
    """The rows of each."""
    counted: int
    """Microbatches from the front whose rows are its own; the others are for company."""


def share(rows: Sequence[int], lengths: Sequence[int], max_tokens: int, in_step: bool) -> Share:
    """This process's share of some rows.

    Args:
        lengths: tokens of every row.
        max_tokens: of a microbatch.
        in_step: every microbatch is computed by all processes together, as under ZeRO-2 and 3; a process that has
            nothing left reads the shortest row once more.
    """
    # Every process can tell what the others have.
    world_size = distributed.world_size()
    everyones = [
        microbatches(rows, lengths, max_tokens, rank, world_size) for rank in range(world_size)
    ]
    mine = everyones[distributed.rank()]
    if not in_step:
        return Share(mine, len(mine))
    missing = max(map(len, everyones)) - len(mine)
    shortest = min(rows, key=lengths.__getitem__)
    return Share(mine + missing * [[shortest]], len(mine))


def _random(rng: random.Random | None) -> dict[str, Any]:
    """What all generators go on from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    python = rng.getstate() if rng is not None else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "python": python}


def _set_random(state: dict[str, Any], rng: random.Random | None) -> None:
    torch.set_rng_state(state["cpu"])
    # On a machine with other GPUs there is nothing to go on from.
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if rng is not None:
        rng.setstate(state["python"])
