"""Pairs as the reward model is trained on them: a prompt with its answers, and who beats whom."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.samples import Reply, Sample
from ixc.engine.batching import refuse_larger
from ixc.engine.scoring import rewards_of, scoring_tree
from ixc.engine.vision_cache import Features
from ixc.models.ixc25 import Batch, IXCForRewardModel, Tree, collate
from ixc.packing.attention import placed


class NoPairs(ValueError):
    """Nothing to train on, or nothing to look at."""


class Contest(NamedTuple):
    """A prompt with its different answers, and who beats whom among them."""

    sample: Sample
    """One with this prompt and these media."""
    answers: list[Reply]
    chosen: list[int]
    """The better answer of each pair; `rejected`, the other."""
    rejected: list[int]


class Pass(NamedTuple):
    """What goes through the model together."""

    contests: list[Contest]
    layout: Batch


def split(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Pairs to train on and pairs held out; those about one picture, or of one prompt, stay together.

    Raises:
        NoPairs: one of the two is empty.
    """
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in samples:
        together = sample.media[0].sha256 if sample.media else repr(sample.prompt)
        parts[random.Random(f"{seed}/{together}").random() < share].append(sample)
    if not parts[0] or (share and not parts[1]):
        counts = f"{len(parts[0])} pairs to train on, {len(parts[1])} held out"
        raise NoPairs(f"train_rm.held_out: {share!r}: {counts}; change it, or look at what `validate` has left")
    return parts


def contests(samples: Sequence[Sample], by_prompt: bool) -> list[Contest]:
    """A row for each pair, or for all pairs of a prompt."""
    groups: dict[object, list[Sample]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[(sample.prompt, sample.media) if by_prompt else i].append(sample)
    return [contest(group) for group in groups.values()]


def contest(samples: Sequence[Sample]) -> Contest:
    """Pairs of one prompt as one row; an answer that is in several of them stands there once, with all its turns."""
    place: dict[Reply, int] = {}
    chosen = [place.setdefault(s.chosen, len(place)) for s in samples]
    rejected = [place.setdefault(s.rejected, len(place)) for s in samples]
    return Contest(samples[0], list(place), chosen, rejected)


def tree_of(features: Features, row: Contest) -> Tree:
    """The row as the model reads it."""
    return scoring_tree(features, row.sample, row.answers)


def measured(features: Features, rows: Sequence[Contest], pass_tokens: int) -> list[int]:
    """Tokens of each row.

    Raises:
        OverBudget: one is longer than a pass may be.
    """
    lengths = [len(tree_of(features, row)) for row in rows]
    names = [row.sample.id for row in rows]
    refuse_larger(lengths, names, pass_tokens, "tokens", "train_rm.pass_tokens")
    return lengths


def read(features: Features, rows: Sequence[Contest]) -> Pass:
    """Rows with their tokens, their pictures at hand."""
    features.load_ahead(row.sample for row in rows)
    return Pass(list(rows), collate([tree_of(features, row) for row in rows]))


def num_pairs(rows: Iterable[Contest]) -> int:
    """Pairs of several rows."""
    return sum(len(row.chosen) for row in rows)


def compare(
    model: IXCForRewardModel, features: Features, batch: Pass
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Rewards of the better and of the other answer of each pair; every answer is read once, however many its pairs."""
    rewards = rewards_of(model, features, [c.sample for c in batch.contests], batch.layout)
    starts = list(accumulate((len(c.answers) for c in batch.contests), initial=0))
    rows = list(zip(batch.contests, starts[:-1], strict=True))
    chosen = torch.tensor([start + i for contest, start in rows for i in contest.chosen])
    rejected = torch.tensor([start + i for contest, start in rows for i in contest.rejected])
    return rewards[placed(chosen, rewards.device)], rewards[placed(rejected, rewards.device)]
