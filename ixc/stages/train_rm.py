"""Bradley-Terry training of the reward model; vision tower and projector stay frozen (paper, section 3)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from ixc.data.samples import Sample, read_pairs
from ixc.engine import distributed
from ixc.engine.batching import Plan, prefetch
from ixc.engine.checkpoints import Checkpoints, History, digest, digest_of
from ixc.engine.lora import adapter_of, add_lora, merge_lora
from ixc.engine.losses import bradley_terry_loss, centering_loss
from ixc.engine.optim import Optimizer, seed_everything
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
from ixc.engine.trainer import Learner, Share, Trainer, make_optimizer, share, update
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import Lineage, Log, Metrics, ignore
from ixc.models import save, scorer_from
from ixc.models.base import Processor, ScoringModel
from ixc.models.kernels import refuse_attention, use_attention
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


def run(
    params: TrainRMParams,
    pairs: Path,
    media: Path,
    base: Path,
    reward: Path,
    *,
    log: Log = ignore,
    lineage: Lineage | None = None,
) -> Metrics:
    """Train on the pairs, starting from the base model with a new score head, or where a killed run had come to."""
    with distributed.joined(alone=params.zero >= 2):
        seed_everything(params.seed)
        samples = read_pairs(pairs)
        model, processor = ready(params, base)
        folder = reward.with_name(f".{reward.name}.checkpoints")
        checkpoints = Checkpoints(folder, about(params, samples, base), lineage)
        vision_cache = VisionCache(model, processor, media, params.vision_cache)

        with checkpoints:
            checkpoints.reserve(sum(value.nbytes for value in model.state_dict().values()))
            history, waste = train(params, model, vision_cache, samples, log, checkpoints)

        # One process writes the model; until it is on disk, the last state stays.
        if distributed.rank() == 0:
            print(f"train_rm: {waste.waiting:.1%} of the time was spent waiting for data")
            adapter = adapter_of(model, base)
            merge_lora(model)
            with checkpoints.saving(reward):
                save(model, processor, reward)
                if adapter is not None:
                    adapter.save(reward / "adapter")
        checkpoints.remove()
    last = history[-max(1, len(history) // 10) :]
    return {
        "pairs": len(samples),
        "steps": len(history),
        "loss": sum(step["loss"] for step in last) / len(last),
        "accuracy": sum(step["accuracy"] for step in last) / len(last),
        "padding_share": waste.padding,
    }


def ready(params: TrainRMParams, base: Path) -> tuple[ScoringModel, Processor]:
    """The base model with a score head, as it will be trained, and its processor."""
    refuse_attention(params.attention, distributed.device())
    model, processor = scorer_from(base)
    model.pooling = params.pooling
    model.freeze_vision()
    model.to(distributed.device())
    if params.precision == "bf16":
        model.compute_in_bf16()
    computed_in = torch.bfloat16 if params.precision == "bf16" else torch.float32
    use_attention(model, params.attention, computed_in)
    if params.lora is not None:
        add_lora(model, params.lora.rank, params.lora.alpha)
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def about(params: TrainRMParams, samples: Sequence[Sample], base: Path) -> dict[str, object]:
    """What a checkpoint must agree in: all that the losses depend on."""
    fixed = {key: value for key, value in asdict(params).items() if key not in FREE}
    return {**fixed, "pairs": digest(*samples), "base": digest_of(base)}


def train(
    params: TrainRMParams,
    model: ScoringModel,
    vision_cache: VisionCache,
    samples: Sequence[Sample],
    log: Log,
    checkpoints: Checkpoints,
) -> tuple[History, "Waste"]:
    """Each prompt once, its answers beside it.

    Returns:
        The numbers of all steps, those of a killed run included; and what was spent in vain.
    """
    # A row is a prompt with its answers; some rows are held out, to stop early by.
    samples_to_learn, samples_held_out = split(samples, params.held_out, params.seed)
    training = preference_groups(samples_to_learn, params.by_prompt)
    held_out = preference_groups(samples_held_out, params.by_prompt)
    vision_cache.prepare(samples)
    lengths = measured(vision_cache, training, params.max_tokens_per_microbatch)
    held_out_lengths = measured(vision_cache, held_out, params.max_tokens_per_microbatch)

    # The steps follow from the seed; the trainer knows which of them a killed run has done.
    plan = planned(params, training, lengths)
    optimizer = optimizer_of(params, model, len(plan))
    learner = Learner(model, optimizer)
    trainer = Trainer(
        "train_rm",
        {"reward": learner},
        len(plan),
        checkpoints,
        log,
        checkpoint_every=params.checkpoint_every,
    )
    trainer.resume()
    model.train()

    # Threads read rows and images ahead, in the order in which steps will want them.
    microbatches = prefetch(
        my_rows(params, plan.steps(trainer.num_done), lengths),
        lambda rows: read(vision_cache, [training[i] for i in rows]),
    )
    microbatches = vision_cache.timed(microbatches)
    tally = Tally(vision_cache)

    remaining = plan.steps(trainer.num_done)
    for step, rows in zip(trainer.steps(), remaining, strict=True):
        if trainer.has_stalled("held_out_loss", params.patience):
            break

        # Every process learns from its share of the step's rows.
        mine = share_of(params, rows, lengths)
        batches = tally.take(microbatches, mine, lengths)
        pairs = num_pairs(training[i] for i in rows)
        numbers = learn(params, model, vision_cache, optimizer, batches, pairs, mine.counted)

        # Now and then the held-out pairs are looked at, and the best weights kept.
        last = step + 1 == len(plan)
        if held_out and (last or (step + 1) % params.validate_every == 0):
            numbers |= validate(params, model, vision_cache, optimizer, held_out, held_out_lengths)
            trainer.keep_if_best("reward", "held_out_loss", numbers["held_out_loss"])
        trainer.finish_step(numbers)

    # What is left to the first process is an ordinary model, the best there was.
    waste = tally.waste()
    optimizer.close(model)
    if held_out and distributed.rank() == 0:
        trainer.restore_best("reward")
    return trainer.history, waste


def optimizer_of(params: TrainRMParams, model: ScoringModel, steps: int) -> Optimizer:
    """AdamW, alone or shared out as `params.zero` says, or Muon."""
    return make_optimizer(
        model,
        params.learning_rate,
        steps,
        kind=params.optimizer,
        zero=params.zero,
        offload=params.offload,
        warmup=params.warmup,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        beta2=params.beta2,
        final_rate=params.final_rate,
    )


def share_of(params: TrainRMParams, rows: Sequence[int], lengths: Sequence[int]) -> Share:
    """This process's share of some rows."""
    return share(rows, lengths, params.max_tokens_per_microbatch, in_step=params.zero >= 2)


def my_rows(
    params: TrainRMParams, steps: Iterable[Sequence[int]], lengths: Sequence[int]
) -> Iterator[list[int]]:
    """The rows of this process's microbatches, step after step."""
    for rows in steps:
        yield from share_of(params, rows, lengths).microbatches


class Waste(NamedTuple):
    """What a loop spent in vain, over all processes."""

    padding: float
    """Share of the computed tokens without use, be they padding or for company."""
    waiting: float
    """Share of the wall time that went by while a microbatch or its images were still being read or put together; no
    metric, for those are the same in every run of a seed."""


class Tally:
    """What a loop computes and waits for in vain."""

    def __init__(self, vision_cache: VisionCache) -> None:
        self.vision_cache = vision_cache
        self.start = perf_counter()
        self.waited = vision_cache.waited
        self.computed = self.needed = 0

    def take(
        self, microbatches: Iterator[MicroBatch], mine: Share, lengths: Sequence[int]
    ) -> Iterator[MicroBatch]:
        """The microbatches of a step, one by one."""
        for number, rows in enumerate(mine.microbatches):
            batch = next(microbatches)
            self.computed += batch.packed.input_ids.numel()
            if number < mine.counted:
                self.needed += sum(lengths[i] for i in rows)
            yield batch

    def waste(self) -> Waste:
        """So far; all processes call this."""
        waited = self.vision_cache.waited - self.waited
        seconds = perf_counter() - self.start
        needed = sum(distributed.gathered(self.needed))
        computed = sum(distributed.gathered(self.computed))
        return Waste(
            padding=1 - needed / max(1, computed),
            waiting=sum(distributed.gathered(waited)) / sum(distributed.gathered(seconds)),
        )


def learn(
    params: TrainRMParams,
    model: ScoringModel,
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
    ids: list[list[str]] = []
    for number, batch in enumerate(batches):
        # Rewards of both answers of every pair; each answer is read once.
        chosen, rejected = optimizer.forward(
            lambda batch=batch: compare(model, vision_cache, batch)
        )
        loss = bradley_terry_loss(
            chosen, rejected, params.margin, params.label_smoothing, params.focal
        )

        # Every pair of the step weighs the same, in however many microbatches.
        weight = len(chosen) / pairs if number < counted else 0.0
        optimizer.backward(weight * (loss + params.centering * centering_loss(chosen, rejected)))

        # The host reads the numbers once, when the step is done.
        accuracy = (chosen > rejected).float().mean()
        totals += weight * torch.stack([loss, accuracy, (chosen - rejected).mean()]).detach()
        ids.append([group.sample.id for group in batch.preference_groups])
    rates = update(optimizer, ids)
    loss, accuracy, margin = distributed.summed(totals).tolist()
    return {"loss": loss, "accuracy": accuracy, "margin": margin, **rates}


@torch.no_grad()
def validate(
    params: TrainRMParams,
    model: ScoringModel,
    vision_cache: VisionCache,
    optimizer: Optimizer,
    rows: Sequence[PreferenceGroup],
    lengths: Sequence[int],
) -> dict[str, float]:
    """Loss, by eq. 1, and accuracy of pairs that are not trained on."""
    model.eval()
    margins: list[float] = []
    mine = share_of(params, range(len(rows)), lengths)
    batches = prefetch(
        mine.microbatches, lambda batch: read(vision_cache, [rows[i] for i in batch])
    )
    for number, batch in enumerate(vision_cache.timed(batches)):
        chosen, rejected = optimizer.forward(
            lambda batch=batch: compare(model, vision_cache, batch)
        )
        if number < mine.counted:
            margins += (chosen - rejected).tolist()
    model.train()

    # All processes see all margins, and so agree on whether this is the best.
    everyones: list[float] = []
    for part in distributed.gathered(margins):
        everyones += part
    lead = torch.tensor(everyones)
    loss = bradley_terry_loss(lead, torch.zeros_like(lead))
    accuracy = (lead > 0).float().mean()
    return {"held_out_loss": loss.item(), "held_out_accuracy": accuracy.item()}


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
