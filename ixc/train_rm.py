"""Bradley-Terry training of the reward model; vision tower and projector stay frozen (paper, section 3)."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ixc.features import Features
from ixc.files import track
from ixc.inference import rewards_of, scoring_tree
from ixc.losses import bradley_terry_loss, centering_loss
from ixc.metrics import Log, Metrics, ignore
from ixc.model import IXCForRewardModel, IXCProcessor
from ixc.params import TrainRMParams
from ixc.samples import Sample, read_samples
from ixc.training import Optimizer, batches, save, seed_everything


def run(params: TrainRMParams, pairs: Path, media: Path, base: Path, reward: Path, *, log: Log = ignore) -> Metrics:
    """Train on the pairs, starting from the base model with a new score head."""
    rng = seed_everything(params.seed)
    samples = list(read_samples(pairs))
    model = IXCForRewardModel.from_pretrained(base)
    model.config.pooling = params.pooling
    model.freeze_vision()
    processor = IXCProcessor.from_pretrained(base)
    history = list(train(params, model, Features(model, processor, media), samples, rng, log))
    save(model, processor, reward)
    last = history[-max(1, len(history) // 10) :]
    return {
        "pairs": len(samples),
        "loss": sum(loss for loss, _ in last) / len(last),
        "accuracy": sum(accuracy for _, accuracy in last) / len(last),
    }


class Question(NamedTuple):
    """A prompt with its answers, and which of them is better than which."""

    sample: Sample
    """Any of its pairs: prompt and media."""
    answers: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """(chosen, rejected) as indices of `answers`."""


def grouped(samples: Sequence[Sample]) -> list[Question]:
    """The pairs of the same prompt and media together, every answer once."""
    groups: dict[Any, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt, tuple(m.sha256 for m in sample.media)].append(sample)
    return [_question(group) for group in groups.values()]


def _question(group: Sequence[Sample]) -> Question:
    texts = [(s.chosen[0].content, s.rejected[0].content) for s in group]
    place = {text: i for i, text in enumerate(dict.fromkeys(text for pair in texts for text in pair))}
    return Question(group[0], tuple(place), tuple((place[chosen], place[rejected]) for chosen, rejected in texts))


def sides(questions: Sequence[Question]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Where the chosen and the rejected answers of all pairs are among all answers of a batch."""
    starts = accumulate((len(q.answers) for q in questions), initial=0)
    pairs = [(start + a, start + b) for q, start in zip(questions, starts, strict=False) for a, b in q.pairs]
    chosen, rejected = torch.tensor(pairs).unbind(1)
    return chosen, rejected


def train(
    params: TrainRMParams,
    model: IXCForRewardModel,
    features: Features,
    samples: Sequence[Sample],
    rng: random.Random,
    log: Log,
) -> Iterator[tuple[float, float]]:
    """One row per prompt: read once, the answers of all its pairs beside it. Yields loss and accuracy of each step."""
    features.prepare(samples)
    questions = grouped(samples)
    trees = [scoring_tree(features, q.sample, q.answers) for q in questions]
    lengths = [len(t.prefix) + sum(map(len, t.branches)) for t in trees]
    steps = math.ceil(params.epochs * math.ceil(len(questions) / params.batch_size))
    optimizer = Optimizer(
        model.parameters(),
        params.learning_rate,
        steps,
        params.warmup,
        params.weight_decay,
        params.max_grad_norm,
    )
    order = list(range(len(questions)))
    endless = (batch for _ in iter(int, 1) for batch in batches(order, lengths, params.batch_size, rng))
    model.train()
    for step, batch in enumerate(track(islice(endless, steps), "train_rm", steps)):
        asked = [questions[i] for i in batch]
        rewards = rewards_of(model, features, [q.sample for q in asked], [trees[i] for i in batch])
        chosen, rejected = (rewards[index] for index in sides(asked))
        loss = bradley_terry_loss(chosen, rejected)
        rates = optimizer.step(loss + params.centering * centering_loss(chosen, rejected))

        accuracy = (chosen > rejected).float().mean().item()
        margin = (chosen - rejected).mean().item()
        log({"loss": loss.item(), "accuracy": accuracy, "margin": margin, **rates}, step)
        yield loss.item(), accuracy
