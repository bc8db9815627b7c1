"""Bradley-Terry training of the reward model; vision tower and projector stay frozen (paper, section 3)."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

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


def train(
    params: TrainRMParams,
    model: IXCForRewardModel,
    features: Features,
    samples: Sequence[Sample],
    rng: random.Random,
    log: Log,
) -> Iterator[tuple[float, float]]:
    """One row per pair: the prompt once, chosen and rejected beside it. Yields loss and accuracy of each step."""
    features.prepare(samples)
    answers = [(s.chosen[0].content, s.rejected[0].content) for s in samples]
    trees = [scoring_tree(features, s, pair) for s, pair in zip(samples, answers, strict=True)]
    lengths = [len(t.prefix) + sum(map(len, t.branches)) for t in trees]
    steps = math.ceil(params.epochs * math.ceil(len(samples) / params.batch_size))
    optimizer = Optimizer(
        model.parameters(),
        params.learning_rate,
        steps,
        params.warmup,
        params.weight_decay,
        params.max_grad_norm,
    )
    order = list(range(len(samples)))
    endless = (batch for _ in iter(int, 1) for batch in batches(order, lengths, params.batch_size, rng))
    model.train()
    for step, batch in enumerate(track(islice(endless, steps), "train_rm", steps)):
        rewards = rewards_of(model, features, [samples[i] for i in batch], [trees[i] for i in batch])
        chosen, rejected = rewards.unflatten(0, (-1, 2)).unbind(1)
        loss = bradley_terry_loss(chosen, rejected)
        rates = optimizer.step(loss + params.centering * centering_loss(chosen, rejected))

        accuracy = (chosen > rejected).float().mean().item()
        margin = (chosen - rejected).mean().item()
        log({"loss": loss.item(), "accuracy": accuracy, "margin": margin, **rates}, step)
        yield loss.item(), accuracy
