"""Scores of any number of answers to a prompt, which is read once."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.samples import Reply, Sample
from ixc.engine import distributed
from ixc.engine.batching import batched, my_share, pack_by_budget, prefetch
from ixc.engine.vision_cache import VisionCache
from ixc.io.files import track
from ixc.metrics import BadScore, non_finite
from ixc.models.ixc25 import IXCForRewardModel, PackedBatch, PrefixGroup, collate
from ixc.packing import MAX_TOKENS_PER_MICROBATCH


class Asked(NamedTuple):
    """A place in what was asked for: an answer of a sample."""

    sample: int
    answer: int


class Row(NamedTuple):
    """A prompt with as many of its different answers as one pass can take: nearly always all."""

    sample: int
    """Index of the first sample with this prompt."""
    responses: list[list[int]]
    """Ids of each answer with the tail that its score is read from."""
    places: list[list[Asked]]
    """Whose score each response's is; equal answers are one response."""
    prompt: int
    """Tokens of the prompt; `tokens`, of the whole row."""
    tokens: int


@torch.no_grad()
def score(
    model: IXCForRewardModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    answers: Sequence[Sequence[Reply]],
    batch_size: int,
    max_tokens_per_microbatch: int = MAX_TOKENS_PER_MICROBATCH,
) -> list[list[float]]:
    """Rewards of each sample's answers, unbounded; higher is better. Processes that work together share them out.

    Equal answers to equal prompts are read once, so that they get equal rewards: the same text in another batch would
    differ in its last digits.

    Args:
        answers: any number of texts, or of answers in turns, per sample.
        batch_size: prompts per forward pass at most.
        max_tokens_per_microbatch: tokens per forward pass at most; answers that do not fit into one are read apart.

    Raises:
        OverBudget: a prompt with a single answer has more.
        BadScore: a reward is no number.
    """
    vision_cache.prepare(samples)
    model.eval()
    rewards = [[float("nan")] * len(texts) for texts in answers]
    rows = rows_of(vision_cache, samples, answers, max_tokens_per_microbatch)
    names = [samples[row.sample].id for row in rows]
    tokens = [row.tokens for row in rows]
    batches = batched(
        [row.prompt for row in rows], tokens, names, batch_size, max_tokens_per_microbatch
    )
    mine = [batches[i] for i in my_share([sum(tokens[row] for row in batch) for batch in batches])]

    def read(batch: list[int]) -> tuple[list[Row], PackedBatch]:
        chosen = [rows[i] for i in batch]
        vision_cache.load_ahead(samples[row.sample] for row in chosen)
        return chosen, collate(
            [PrefixGroup(vision_cache.prompt(samples[row.sample]), row.responses) for row in chosen]
        )

    scored: list[tuple[list[Asked], float]] = []
    for batch, layout in track(prefetch(mine, read), "score", len(mine)):
        values = rewards_of(
            model, vision_cache, [samples[row.sample] for row in batch], layout
        ).tolist()
        places = [equal for row in batch for equal in row.places]
        scored += zip(places, values, strict=True)

    for equal, reward in chain.from_iterable(distributed.gathered(scored)):
        if objection := non_finite([reward]):
            raise BadScore(f"{samples[equal[0].sample].id}: {objection}")
        for sample, answer in equal:
            rewards[sample][answer] = reward
    return rewards


def rows_of(
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    answers: Sequence[Sequence[Reply]],
    max_tokens_per_microbatch: int,
) -> list[Row]:
    """What is to be scored: every prompt with its different answers, in one row as far as they fit into a pass."""
    groups: dict[object, dict[tuple[int, ...], list[Asked]]] = {}
    for i, (sample, replies) in enumerate(zip(samples, answers, strict=True)):
        group = groups.setdefault((sample.prompt, sample.media), {})
        for k, reply in enumerate(replies):
            group.setdefault(tuple(scored_ids(vision_cache, reply)), []).append(Asked(i, k))
    return [
        row
        for group in groups.values()
        for row in _rows(vision_cache, samples, group, max_tokens_per_microbatch)
    ]


def _rows(
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    group: dict[tuple[int, ...], list[Asked]],
    max_tokens_per_microbatch: int,
) -> Iterator[Row]:
    """The rows of one prompt; none if it has no answers."""
    responses, places = [list(ids) for ids in group], list(group.values())
    if not places:
        return
    sample = places[0][0].sample
    prompt, sizes = len(vision_cache.prompt(samples[sample])), [len(ids) for ids in responses]
    for part in pack_by_budget(range(len(sizes)), sizes, max_tokens_per_microbatch - prompt):
        tokens = prompt + sum(sizes[k] for k in part)
        yield Row(sample, [responses[k] for k in part], [places[k] for k in part], prompt, tokens)


def scored_group(
    vision_cache: VisionCache, sample: Sample, answers: Sequence[Reply]
) -> PrefixGroup:
    """A prompt with its answers, each with the tail that the score is read from."""
    return PrefixGroup(
        vision_cache.prompt(sample), [scored_ids(vision_cache, reply) for reply in answers]
    )


def scored_ids(vision_cache: VisionCache, reply: Reply) -> list[int]:
    """Ids of an answer with the tail that the score is read from."""
    return vision_cache.processor.scored(vision_cache.processor.answer(reply))


def rewards_of(
    model: IXCForRewardModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    batch: PackedBatch,
) -> Float[Tensor, " R"]:
    """One reward per response, group by group; `samples`: what the groups show. Gradients flow if they are on."""
    return model.response_scores(batch.to(model.device), vision_cache.concat_features(samples))
