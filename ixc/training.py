"""What every training loop here shares: seeds, an optimizer with its schedule, batches of like length, saving."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ixc.files import replacing_folder
from ixc.model import IXCPreTrainedModel, IXCProcessor

T = TypeVar("T")


def seed_everything(seed: int) -> random.Random:
    """Seed torch, and return a generator for everything else."""
    torch.manual_seed(seed)
    return random.Random(seed)


class Diverged(ValueError):
    """A loss that is no number."""


class Optimizer:
    """AdamW over the trainable parameters, with warm-up, cosine decay to a tenth, and clipping."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        steps: int,
        warmup: float = 0.05,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.max_grad_norm = max_grad_norm
        self.adamw = torch.optim.AdamW(
            self.parameters, learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
        )
        rise = max(1, round(warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda step: _rate(step, rise, steps))

    def step(self, loss: torch.Tensor) -> dict[str, float]:
        """One update; returns the gradient norm before clipping and the learning rate.

        Raises:
            Diverged: the loss is not finite; nothing has been updated.
        """
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()!r}: lower the learning rate, or look for a bad batch")
        self.adamw.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.adamw.step()
        self.schedule.step()
        return {"grad_norm": float(norm), "learning_rate": learning_rate}


def _rate(step: int, rise: int, steps: int) -> float:
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def batches(items: Sequence[T], lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[T]]:
    """One epoch in random order, each batch of like length so that little is padding."""
    order = list(range(len(items)))
    rng.shuffle(order)
    window = size * 16
    chunks: list[list[int]] = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: lengths[i])
        chunks += [near[i : i + size] for i in range(0, len(near), size)]
    rng.shuffle(chunks)
    return ([items[i] for i in chunk] for chunk in chunks)


def save(model: IXCPreTrainedModel, processor: IXCProcessor, folder: Path) -> None:
    """Write weights, config and processor; the folder appears whole."""
    with replacing_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
