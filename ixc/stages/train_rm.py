"""Bradley-Terry training of the reward model; vision tower and projector stay frozen (paper, section 3)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from ixc.data.samples import Sample, read_pairs
from ixc.engine import distributed
from ixc.engine.batching import Plan, microbatches, prefetch
from ixc.engine.checkpoints import Checkpoints, digest, digest_of
from ixc.engine.lora import add_lora, merge_lora
from ixc.engine.losses import bradley_terry_loss, centering_loss
from ixc.engine.optim import (
    Diverged,
    MuonOptimizer,
    Optimizer,
    compute_in_bf16,
    seed_everything,
)
from ixc.engine.preference_groups import (
    MicroBatch,
    PreferenceGroup,
    compare,
    measured,
    num_pairs,
    preference_groups,
    read,
    split,
)
from ixc.engine.vision_cache import VisionCache
from ixc.engine.zero import ShardedOptimizer
from ixc.io.files import track
from ixc.metrics import Log, Metrics, ignore
from ixc.models.ixc25 import IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.folder import save
from ixc.models.ixc25.kernels import refuse_attention, use_attention
from ixc.params import TrainRMParams

FREE = (
    "attention",
    "checkpoint_every",
    "gradient_checkpointing",
    "offload",
    "max_tokens_per_microbatch",
    "processes",
    "vision_cache",
    "zero",
)
"""Parameters that change no number, and may therefore differ when a run goes on."""
History = list[dict[str, float]]
"""The numbers of every step."""


def run(
    params: TrainRMParams, pairs: Path, media: Path, base: Path, reward: Path, *, log: Log = ignore
) -> Metrics:
    """Train on the pairs, starting from the base model with a new score head, or where a killed run had come to."""
    with distributed.joined(alone=params.zero >= 2):
        seed_everything(params.seed)
        samples = read_pairs(pairs)
        model, processor = ready(params, base), IXCProcessor.from_pretrained(base)
        checkpoints = Checkpoints(
            reward.with_name(f".{reward.name}.checkpoints"), about(params, samples, base)
        )
        vision_cache = VisionCache(model, processor, media, params.vision_cache)
        with checkpoints:
            checkpoints.reserve(sum(value.nbytes for value in model.state_dict().values()))
            history, waste = train(params, model, vision_cache, samples, log, checkpoints)
        if distributed.rank() == 0:
            print(f"train_rm: {waste.waiting:.1%} of the time was spent waiting for data")
            with checkpoints.saving(reward):
                save(model, processor, reward)
        checkpoints.remove()
    last = history[-max(1, len(history) // 10) :]
    numbers = {name: sum(step[name] for step in last) / len(last) for name in ("loss", "accuracy")}
    return {"pairs": len(samples), "steps": len(history), **numbers, "padding_share": waste.padding}


def ready(params: TrainRMParams, base: Path) -> IXCForRewardModel:
    """The base model with a score head, as it will be trained."""
    refuse_attention(params.attention, distributed.device())
    model = IXCForRewardModel.from_pretrained(base, dtype=torch.float32)
    model.config.pooling = params.pooling
    model.freeze_vision()
    model.to(distributed.device())  # pyright: ignore[reportArgumentType]
    if params.precision == "bf16":
        compute_in_bf16(model)
    use_attention(
        model, params.attention, torch.bfloat16 if params.precision == "bf16" else torch.float32
    )
    if params.lora is not None:
        add_lora(model, params.lora.rank, params.lora.alpha)
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def about(params: TrainRMParams, samples: Sequence[Sample], base: Path) -> dict[str, object]:
    """What a checkpoint must agree in: all that the losses depend on."""
    told = {key: value for key, value in asdict(params).items() if key not in FREE}
    return {**told, "pairs": digest(*samples), "base": digest_of(base)}


def train(
    params: TrainRMParams,
    model: IXCForRewardModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    log: Log,
    checkpoints: Checkpoints,
) -> tuple[History, "Waste"]:
    """Each prompt once, its answers beside it.

    Returns:
        The numbers of all steps, those of a killed run included; and what was spent in vain.
    """
    training, held_out = (
        preference_groups(part, params.by_prompt)
        for part in split(samples, params.held_out, params.seed)
    )
    vision_cache.prepare(samples)
    lengths, held_out_lengths = (
        measured(vision_cache, rows, params.max_tokens_per_microbatch)
        for rows in (training, held_out)
    )
    plan = planned(params, training, lengths)
    optimizer = optimizer_of(params, model, len(plan))
    history = checkpoints.load(model, optimizer)
    for step, numbers in enumerate(history):
        log(numbers, step)

    model.train()
    start = len(history)
    coming = prefetch(
        (rows for step in plan.steps(start) for rows in share(params, step, lengths).microbatches),
        lambda rows: read(vision_cache, [training[i] for i in rows]),
    )
    tally, coming = Tally(vision_cache), vision_cache.timed(coming)
    for number, step in enumerate(
        track(plan.steps(start), "train_rm", len(plan) - start), start + 1
    ):
        if out_of_patience(params, history):
            break
        pairs = num_pairs(training[i] for i in step)
        mine = share(params, step, lengths)
        numbers = learn(
            params,
            model,
            vision_cache,
            optimizer,
            tally.take(coming, mine, lengths),
            pairs,
            mine.counted,
        )
        if held_out and (number % params.validate_every == 0 or number == len(plan)):
            numbers |= validate(params, model, vision_cache, optimizer, held_out, held_out_lengths)
            if numbers["held_out_loss"] < min(held_out_losses(history), default=math.inf):
                checkpoints.keep_best(model, optimizer)
        history.append(numbers)
        log(numbers, number - 1)
        if params.checkpoint_every and number % params.checkpoint_every == 0:
            checkpoints.save(model, optimizer, history)
    waste = tally.waste()
    optimizer.close(model)
    if distributed.rank() == 0:
        if held_out:
            checkpoints.restore_best(model)
        merge_lora(model)
    return history, waste


def optimizer_of(params: TrainRMParams, model: IXCForRewardModel, steps: int) -> Optimizer:
    """AdamW, alone or shared out as `params.zero` says, or Muon."""
    schedule = (params.learning_rate, steps, params.warmup, params.weight_decay)
    options = {
        "max_grad_norm": params.max_grad_norm,
        "beta2": params.beta2,
        "final_rate": params.final_rate,
    }
    if params.zero >= 2:
        return ShardedOptimizer(
            model, *schedule, stage=params.zero, offload=params.offload, **options
        )
    if params.optimizer == "muon":
        return MuonOptimizer(model, *schedule, **options, shard=params.zero == 1)
    return Optimizer(model.parameters(), *schedule, **options, shard=params.zero == 1)


class Share(NamedTuple):
    """What one process does of a step."""

    microbatches: list[list[int]]
    """The rows of each pass."""
    counted: int
    """Passes from the front whose rows are its own; the others are for company."""


def share(params: TrainRMParams, rows: Sequence[int], lengths: Sequence[int]) -> Share:
    """This process's share of some rows.

    Under ZeRO-2 and 3 every pass is made by all together; who has nothing left reads the shortest row once more.
    """
    world = range(distributed.world_size())
    everyones = [
        microbatches(rows, lengths, params.max_tokens_per_microbatch, rank, len(world))
        for rank in world
    ]
    mine = everyones[distributed.rank()]
    if params.zero < 2:
        return Share(mine, len(mine))
    missing = max(map(len, everyones)) - len(mine)
    return Share(mine + missing * [[min(rows, key=lengths.__getitem__)]], len(mine))


class Waste(NamedTuple):
    """What a loop spent in vain, over all processes."""

    padding: float
    """Share of the computed tokens without use, be they padding or for company."""
    waiting: float
    """Share of the wall time that went by while a pass or its pictures were still being read or put together; no
    metric, for those are the same in every run of a seed."""


class Tally:
    """What a loop computes and waits for in vain."""

    def __init__(self, vision_cache: VisionCache) -> None:
        self.vision_cache, self.start, self.waited = (
            vision_cache,
            perf_counter(),
            vision_cache.waited,
        )
        self.computed = self.needed = 0

    def take(
        self, coming: Iterator[MicroBatch], mine: Share, lengths: Sequence[int]
    ) -> Iterator[MicroBatch]:
        """The passes of a step as they are asked for."""
        for number, rows in enumerate(mine.microbatches):
            each = next(coming)
            self.computed += each.packed.input_ids.numel()
            self.needed += sum(lengths[i] for i in rows) if number < mine.counted else 0
            yield each

    def waste(self) -> Waste:
        """So far; all processes call this."""
        mine = (
            self.vision_cache.waited - self.waited,
            perf_counter() - self.start,
            self.needed,
            self.computed,
        )
        waited, seconds, needed, computed = map(sum, zip(*distributed.gathered(mine), strict=True))
        return Waste(1 - needed / max(1, computed), waited / seconds)


def learn(
    params: TrainRMParams,
    model: IXCForRewardModel,
    vision_cache: VisionCache,
    optimizer: Optimizer,
    batches: Iterable[MicroBatch],
    pairs: int,
    counted: int,
) -> dict[str, float]:
    """One optimizer step of so many pairs, the gradients summed over this process's batches and over all processes.

    Only the first `counted` batches weigh anything.
    """
    totals = torch.zeros(3, device=model.device)
    done: list[MicroBatch] = []
    for number, batch in enumerate(batches):
        chosen, rejected = optimizer.forward(
            lambda batch=batch: compare(model, vision_cache, batch)
        )
        loss = bradley_terry_loss(
            chosen, rejected, params.margin, params.label_smoothing, params.focal
        )
        weight = len(chosen) / pairs if number < counted else 0.0
        optimizer.backward(weight * (loss + params.centering * centering_loss(chosen, rejected)))
        accuracy = (chosen > rejected).float().mean()
        totals += weight * torch.stack([loss, accuracy, (chosen - rejected).mean()]).detach()
        done.append(batch)
    try:
        rates = optimizer.update()
    except Diverged as error:
        suspects = [done[number] for number in error.backwards] or done
        raise Diverged(f"{named(suspects)}: {error}", error.backwards) from error
    loss, accuracy, margin = distributed.summed(totals).tolist()
    return {"loss": loss, "accuracy": accuracy, "margin": margin, **rates}


def named(batches: Iterable[MicroBatch]) -> str:
    """The rows of some passes, the first eight, as an error names them."""
    ids = [
        preference_group.sample.id
        for batch in batches
        for preference_group in batch.preference_groups
    ]
    more = [f"and {len(ids) - 8} more"] if len(ids) > 8 else []
    return ", ".join([*ids[:8], *more]) or "rows of another process"


@torch.no_grad()
def validate(
    params: TrainRMParams,
    model: IXCForRewardModel,
    vision_cache: VisionCache,
    optimizer: Optimizer,
    rows: Sequence[PreferenceGroup],
    lengths: Sequence[int],
) -> dict[str, float]:
    """Loss, by eq. 1, and accuracy of pairs that are not trained on."""
    model.eval()
    margins: list[float] = []
    mine = share(params, range(len(rows)), lengths)
    coming = prefetch(mine.microbatches, lambda batch: read(vision_cache, [rows[i] for i in batch]))
    for number, batch in enumerate(vision_cache.timed(coming)):
        chosen, rejected = optimizer.forward(
            lambda batch=batch: compare(model, vision_cache, batch)
        )
        if number < mine.counted:
            margins += (chosen - rejected).tolist()
    model.train()
    everyones = torch.tensor([margin for part in distributed.gathered(margins) for margin in part])
    loss = bradley_terry_loss(everyones, torch.zeros_like(everyones))
    return {
        "held_out_loss": loss.item(),
        "held_out_accuracy": (everyones > 0).float().mean().item(),
    }


def out_of_patience(params: TrainRMParams, history: History) -> bool:
    """Whether the last `patience` looks at the held-out pairs found nothing better than those before."""
    losses = held_out_losses(history)
    if params.patience is None or len(losses) <= params.patience:
        return False
    return min(losses[-params.patience :]) >= min(losses[: -params.patience])


def held_out_losses(history: History) -> list[float]:
    """The loss of every look so far."""
    return [numbers["held_out_loss"] for numbers in history if "held_out_loss" in numbers]


def planned(params: TrainRMParams, rows: Sequence[PreferenceGroup], lengths: Sequence[int]) -> Plan:
    """The steps of the whole training."""
    return Plan(
        lengths,
        [num_pairs([row]) for row in rows],
        [row.sample.id for row in rows],
        epochs=params.epochs,
        batch_size=params.batch_size,
        batch_tokens=params.batch_tokens,
        seed=params.seed,
    )
