"""Pairs as the reward model is trained on them: a prompt with its answers, and who beats whom."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.samples import Reply, Sample
from ixc.engine.batching import refuse_larger
from ixc.engine.scoring import rewards_of, scored_group
from ixc.engine.vision_cache import VisionCache
from ixc.models.base import ScoringModel
from ixc.packing.attention import to_device
from ixc.packing.layout import PackedBatch, PrefixGroup, collate


class NoPairs(ValueError):
    """Nothing to train on, or nothing to look at."""


class PreferenceGroup(NamedTuple):
    """A prompt with its different answers, and who beats whom among them."""

    sample: Sample
    """One with this prompt and these media."""
    answers: list[Reply]
    chosen: list[int]
    """The better answer of each pair; `rejected`, the other."""
    rejected: list[int]


class MicroBatch(NamedTuple):
    """What goes through the model together."""

    preference_groups: list[PreferenceGroup]
    packed: PackedBatch


def split(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Pairs to train on and pairs held out; those about one image, or of one prompt, stay together.

    Raises:
        NoPairs: one of the two is empty.
    """
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in samples:
        together = sample.media[0].sha256 if sample.media else repr(sample.prompt)
        parts[random.Random(f"{seed}/{together}").random() < share].append(sample)
    if not parts[0] or (share and not parts[1]):
        counts = f"{len(parts[0])} pairs to train on, {len(parts[1])} held out"
        raise NoPairs(
            f"train_rm.held_out: {share!r}: {counts}; change it, or look at what `validate` has left"
        )
    return parts


def preference_groups(samples: Sequence[Sample], by_prompt: bool) -> list[PreferenceGroup]:
    """A row for each pair, or for all pairs of a prompt."""
    groups: dict[object, list[Sample]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[(sample.prompt, sample.media) if by_prompt else i].append(sample)
    return [preference_group(group) for group in groups.values()]


def preference_group(samples: Sequence[Sample]) -> PreferenceGroup:
    """Pairs of one prompt as one row; an answer that is in several of them stands there once, with all its turns."""
    place: dict[Reply, int] = {}
    chosen = [place.setdefault(s.chosen, len(place)) for s in samples]
    rejected = [place.setdefault(s.rejected, len(place)) for s in samples]
    return PreferenceGroup(samples[0], list(place), chosen, rejected)


def prefix_group(vision_cache: VisionCache, row: PreferenceGroup) -> PrefixGroup:
    """The row as the model reads it."""
    return scored_group(vision_cache, row.sample, row.answers)


def measured(
    vision_cache: VisionCache, rows: Sequence[PreferenceGroup], max_tokens_per_microbatch: int
) -> list[int]:
    """Tokens of each row.

    Raises:
        OverBudget: one is longer than a pass may be.
    """
    lengths = [len(prefix_group(vision_cache, row)) for row in rows]
    names = [row.sample.id for row in rows]
    refuse_larger(
        lengths, names, max_tokens_per_microbatch, "tokens", "train_rm.max_tokens_per_microbatch"
    )
    return lengths


def read(vision_cache: VisionCache, rows: Sequence[PreferenceGroup]) -> MicroBatch:
    """Rows with their tokens, their images at hand."""
    vision_cache.load_ahead(row.sample for row in rows)
    return MicroBatch(list(rows), collate([prefix_group(vision_cache, row) for row in rows]))


def num_pairs(rows: Iterable[PreferenceGroup]) -> int:
    """Pairs of several rows."""
    return sum(len(row.chosen) for row in rows)


def compare(
    model: ScoringModel, vision_cache: VisionCache, batch: MicroBatch
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Rewards of the better and of the other answer of each pair; every answer is read once, however many its pairs."""
    samples = [group.sample for group in batch.preference_groups]
    rewards = rewards_of(model, vision_cache, samples, batch.packed)

    # a pair's answers are numbered within its group; rewards are those of all groups, one after another
    chosen: list[int] = []
    rejected: list[int] = []
    start = 0
    for group in batch.preference_groups:
        chosen += [start + i for i in group.chosen]
        rejected += [start + i for i in group.rejected]
        start += len(group.answers)
    chosen_at = to_device(torch.tensor(chosen), rewards.device)
    rejected_at = to_device(torch.tensor(rejected), rewards.device)
    return rewards[chosen_at], rewards[rejected_at]
