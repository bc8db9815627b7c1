"""Scores of any number of answers to a prompt, which is read once."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ixc.data.samples import Reply, Sample
from ixc.engine import distributed
from ixc.engine.batching import ahead, batched, my_share, within
from ixc.engine.vision_cache import Features
from ixc.io.files import track
from ixc.metrics import BadScore, non_finite
from ixc.models.ixc25 import Batch, IXCForRewardModel, Tree, collate
from ixc.params import PASS_TOKENS


class Asked(NamedTuple):
    """A place in what was asked for: an answer of a sample."""

    sample: int
    answer: int


class Row(NamedTuple):
    """A prompt with as many of its different answers as one pass can take: nearly always all."""

    sample: int
    """Index of the first sample with this prompt."""
    branches: list[list[int]]
    """Ids of each answer with the tail that its score is read from."""
    places: list[list[Asked]]
    """Whose score each branch's is; equal answers are one branch."""
    prompt: int
    """Tokens of the prompt; `tokens`, of the whole row."""
    tokens: int


@torch.no_grad()
def score(
    model: IXCForRewardModel,
    features: Features,
    samples: Sequence[Sample],
    answers: Sequence[Sequence[Reply]],
    batch_size: int,
    pass_tokens: int = PASS_TOKENS,
) -> list[list[float]]:
    """Rewards of each sample's answers, unbounded; higher is better. Processes that work together share them out.

    Equal answers to equal prompts are read once, so that they get equal rewards: the same text in another batch would
    differ in its last digits.

    Args:
        answers: any number of texts, or of answers in turns, per sample.
        batch_size: prompts per forward pass at most.
        pass_tokens: tokens per forward pass at most; answers that do not fit beside each other are read apart.

    Raises:
        OverBudget: a prompt with a single answer has more.
        BadScore: a reward is no number.
    """
    features.prepare(samples)
    model.eval()
    rewards = [[float("nan")] * len(texts) for texts in answers]
    rows = rows_of(features, samples, answers, pass_tokens)
    names = [samples[row.sample].id for row in rows]
    tokens = [row.tokens for row in rows]
    batches = batched([row.prompt for row in rows], tokens, names, batch_size, pass_tokens)
    mine = [batches[i] for i in my_share([sum(tokens[row] for row in batch) for batch in batches])]

    def read(batch: list[int]) -> tuple[list[Row], Batch]:
        chosen = [rows[i] for i in batch]
        features.load_ahead(samples[row.sample] for row in chosen)
        return chosen, collate([Tree(features.prompt(samples[row.sample]), row.branches) for row in chosen])

    scored: list[tuple[list[Asked], float]] = []
    for batch, layout in track(ahead(mine, read), "score", len(mine)):
        values = rewards_of(model, features, [samples[row.sample] for row in batch], layout).tolist()
        places = [equal for row in batch for equal in row.places]
        scored += zip(places, values, strict=True)

    for equal, reward in chain.from_iterable(distributed.gathered(scored)):
        if objection := non_finite([reward]):
            raise BadScore(f"{samples[equal[0].sample].id}: {objection}")
        for sample, answer in equal:
            rewards[sample][answer] = reward
    return rewards


def rows_of(
    features: Features, samples: Sequence[Sample], answers: Sequence[Sequence[Reply]], pass_tokens: int
) -> list[Row]:
    """What is to be scored: every prompt with its different answers, in one row as far as they fit into a pass."""
    groups: dict[object, dict[tuple[int, ...], list[Asked]]] = {}
    for i, (sample, replies) in enumerate(zip(samples, answers, strict=True)):
        group = groups.setdefault((sample.prompt, sample.media), {})
        for k, reply in enumerate(replies):
            group.setdefault(tuple(scored_ids(features, reply)), []).append(Asked(i, k))
    return [row for group in groups.values() for row in _rows(features, samples, group, pass_tokens)]


def _rows(
    features: Features, samples: Sequence[Sample], group: dict[tuple[int, ...], list[Asked]], pass_tokens: int
) -> Iterator[Row]:
    """The rows of one prompt; none if it has no answers."""
    branches, places = [list(ids) for ids in group], list(group.values())
    if not places:
        return
    sample = places[0][0].sample
    prompt, sizes = len(features.prompt(samples[sample])), [len(ids) for ids in branches]
    for part in within(range(len(sizes)), sizes, pass_tokens - prompt):
        tokens = prompt + sum(sizes[k] for k in part)
        yield Row(sample, [branches[k] for k in part], [places[k] for k in part], prompt, tokens)


def scoring_tree(features: Features, sample: Sample, answers: Sequence[Reply]) -> Tree:
    """A prompt with its answers, each with the tail that the score is read from."""
    return Tree(features.prompt(sample), [scored_ids(features, reply) for reply in answers])


def scored_ids(features: Features, reply: Reply) -> list[int]:
    """Ids of an answer with the tail that the score is read from."""
    return features.processor.scored(features.processor.answer(reply))


def rewards_of(
    model: IXCForRewardModel, features: Features, samples: Sequence[Sample], batch: Batch
) -> Float[Tensor, " R"]:
    """One reward per branch, tree by tree; `samples`: what the trees show. Gradients flow if they are on."""
    return model.branch_scores(batch.to(model.device), features.together(samples))
