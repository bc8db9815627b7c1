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
from ixc.models.base import ScoringModel
from ixc.packing import MAX_TOKENS_PER_MICROBATCH
from ixc.packing.layout import PackedBatch, PrefixGroup, collate


class AnswerRef(NamedTuple):
    """An answer of a sample, by their numbers."""

    sample: int
    answer: int


class Row(NamedTuple):
    """A prompt with as many of its different answers as one pass can take: nearly always all."""

    sample: int
    """Index of the first sample with this prompt."""
    responses: list[list[int]]
    """Ids of each answer with the tail that its score is read from."""
    answers: list[list[AnswerRef]]
    """Whose score each response's is; equal answers are one response."""
    prompt: int
    """Tokens of the prompt; `tokens`, of the whole row."""
    tokens: int


@torch.no_grad()
def score(
    model: ScoringModel,
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

    # rows of like length together; every process takes its share of the batches
    rows = rows_of(vision_cache, samples, answers, max_tokens_per_microbatch)
    names = [samples[row.sample].id for row in rows]
    prompts, tokens = [row.prompt for row in rows], [row.tokens for row in rows]
    batches = batched(prompts, tokens, names, batch_size, max_tokens_per_microbatch)
    costs = [sum(tokens[row] for row in batch) for batch in batches]
    mine = [batches[number] for number in my_share(costs)]

    def read(batch: list[int]) -> tuple[list[Row], PackedBatch]:
        read_rows = [rows[i] for i in batch]
        vision_cache.load_ahead(samples[row.sample] for row in read_rows)
        groups = []
        for row in read_rows:
            groups.append(PrefixGroup(vision_cache.prompt(samples[row.sample]), row.responses))
        return read_rows, collate(groups)

    # the next batches are read while the model scores this one
    scored: list[tuple[list[AnswerRef], float]] = []
    for batch, packed in track(prefetch(mine, read), "score", len(mine)):
        about = [samples[row.sample] for row in batch]
        values = rewards_of(model, vision_cache, about, packed).tolist()
        equal_answers = [equal for row in batch for equal in row.answers]
        scored += zip(equal_answers, values, strict=True)

    # everyone gets all rewards; equal answers have the same one
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
    groups: dict[object, dict[tuple[int, ...], list[AnswerRef]]] = {}
    for i, (sample, replies) in enumerate(zip(samples, answers, strict=True)):
        group = groups.setdefault((sample.prompt, sample.media), {})
        for k, reply in enumerate(replies):
            ids = tuple(scored_ids(vision_cache, reply))
            group.setdefault(ids, []).append(AnswerRef(i, k))
    rows: list[Row] = []
    for group in groups.values():
        rows += _rows(vision_cache, samples, group, max_tokens_per_microbatch)
    return rows


def _rows(
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    group: dict[tuple[int, ...], list[AnswerRef]],
    max_tokens_per_microbatch: int,
) -> Iterator[Row]:
    """The rows of one prompt; none if it has no answers."""
    responses, answers = [list(ids) for ids in group], list(group.values())
    if not answers:
        return
    sample = answers[0][0].sample
    prompt, sizes = len(vision_cache.prompt(samples[sample])), [len(ids) for ids in responses]
    for part in pack_by_budget(range(len(sizes)), sizes, max_tokens_per_microbatch - prompt):
        tokens = prompt + sum(sizes[k] for k in part)
        yield Row(sample, [responses[k] for k in part], [answers[k] for k in part], prompt, tokens)


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
    model: ScoringModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    batch: PackedBatch,
) -> Float[Tensor, " R"]:
    """One reward per response, group by group; `samples`: what the groups show. Gradients flow if they are on."""
    return model.response_scores(batch.to(model.device), vision_cache.concat_features(samples))
