"""What every training loop here shares: seeds, an optimizer with its schedule, precision, saving."""

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from ixc import distributed
from ixc.files import replacing_folder
from ixc.model import IXCPreTrainedModel, IXCProcessor


def seed_everything(seed: int) -> random.Random:
    """Seed torch, and return a generator for everything else."""
    torch.manual_seed(seed)
    return random.Random(seed)


class Diverged(ValueError):
    """A loss that is no number."""


class Optimizer:
    """AdamW over the trainable parameters, with warm-up, cosine decay, accumulation and clipping.

    Weight matrices can be Muon's instead (Jordan et al. 2024; arXiv:2502.16982 for the scale that lets both share one
    learning rate): training from nothing needs a fraction of the steps.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        steps: int,
        warmup: float = 0.05,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        beta2: float = 0.98,
        final_rate: float = 0.1,
        shard: bool = False,
        matrices: Sequence[nn.Parameter] = (),
    ) -> None:
        """`warmup` is a share of the steps, `final_rate` of the learning rate; `shard`: each process keeps a part of
        AdamW's moments, and updates that part of the weights (ZeRO-1, arXiv:1910.02054); `matrices` are Muon's."""
        self.parameters = [p for p in parameters if p.requires_grad]
        self.max_grad_norm = max_grad_norm
        given: dict[str, Any] = {"betas": (0.9, beta2), "weight_decay": weight_decay, "fused": True}
        rest = [p for p in self.parameters if id(p) not in set(map(id, matrices))]
        if shard and distributed.together():
            self.adamw = ZeroRedundancyOptimizer(rest, torch.optim.AdamW, lr=learning_rate, **given)
        else:
            self.adamw = torch.optim.AdamW(rest, learning_rate, **given)
        self.parts: dict[str, torch.optim.Optimizer] = {"adamw": self.adamw}
        if matrices:
            self.parts["muon"] = torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
        rise = max(1, round(warmup * steps))
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(part, lambda step: rate(step, rise, steps, final_rate))
            for part in self.parts.values()
        ]

    def step(self, loss: torch.Tensor) -> dict[str, float]:
        """One update by one loss; see `backward` and `update`."""
        self.backward(loss)
        return self.update()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients to those of the step.

        Raises:
            Diverged: the loss is not finite; nothing has been updated.
        """
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()!r}: lower the learning rate, or look for a bad batch")
        loss.backward()

    def update(self) -> dict[str, float]:
        """Sum the gradients over all processes, clip, update; the norm before clipping and the learning rate.

        Raises:
            Diverged: a gradient is not finite; nothing has been updated.
        """
        distributed.sum_gradients(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm!r}: lower the learning rate, or look for a bad batch")
        learning_rate = float(self.schedules[0].get_last_lr()[0])
        for part, schedule in zip(self.parts.values(), self.schedules, strict=True):
            part.step()
            part.zero_grad()
            schedule.step()
        return {"grad_norm": norm, "learning_rate": learning_rate}

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, weights aside.

        Where moments are sharded, all processes call this, and the first gets them.
        """
        if isinstance(self.adamw, ZeroRedundancyOptimizer):
            self.adamw.consolidate_state_dict(to=0)
            if distributed.rank():
                return {}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {**parts, "schedules": [schedule.state_dict() for schedule in self.schedules]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for schedule, kept in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(kept)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon trains: the weight matrices of layers and projector that are trained at all.

    Not Partial LoRA, which starts from nothing.
    """
    inside = ((name, p) for name, p in model.named_parameters() if "layers." in name or "vision_proj." in name)
    return [p for name, p in inside if p.ndim == 2 and p.requires_grad and "Plora_" not in name]


def rate(step: int, rise: int, steps: int, final: float) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to `final`.

    >>> [round(rate(step, 2, 6, 0.0), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < rise:
        return (step + 1) / rise
    return final + (1 - final) / 2 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def compute_in_bf16(model: IXCPreTrainedModel) -> None:
    """Let tower and language model compute in bfloat16, activations included; weights and heads stay as they are."""
    reduced = torch.autocast(model.device.type, torch.bfloat16)
    model.model.forward = reduced(model.model.forward)
    model.encode_pictures = reduced(model.encode_pictures)
    model.get_input_embeddings().register_forward_hook(lambda _, __, embedded: embedded.bfloat16())


def save(model: IXCPreTrainedModel, processor: IXCProcessor, folder: Path) -> None:
    """Write weights, config and processor; the folder appears whole."""
    with replacing_folder(folder) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
