"""What every training loop here shares: seeds, an optimizer with its schedule."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ixc.engine import distributed
from ixc.engine.batching import shared_out
from ixc.models.base import VisionLanguageModel

T = TypeVar("T")


def seed_everything(seed: int) -> random.Random:
    """Seed torch, and return a generator for everything else."""
    torch.manual_seed(seed)
    return random.Random(seed)


class Diverged(ValueError):
    """A loss or a gradient that is no number."""

    def __init__(self, message: str, backwards: Sequence[int] = ()) -> None:
        """`backwards`: which of the step's calls of `backward` had such a loss; none: only their gradients are so."""
        super().__init__(message)
        self.backwards = backwards


class Optimizer:
    """AdamW over the trainable parameters, with warm-up, cosine decay, accumulation and clipping.

    A step is any number of `forward` and `backward`, then one `update`.
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
    ) -> None:
        """`warmup` is a share of the steps, `final_rate` of the learning rate; `shard`: each process keeps a part of
        AdamW's moments, and updates that part of the weights (ZeRO-1, arXiv:1910.02054)."""
        self.parameters = [p for p in parameters if p.requires_grad]
        self.max_grad_norm = max_grad_norm
        self.losses: list[Tensor] = []
        """Those of the step so far."""
        adamw_options = {
            "lr": learning_rate,
            "betas": (0.9, beta2),
            "weight_decay": weight_decay,
            "fused": True,
        }
        # A process that works alone has nobody to share moments with.
        shard = shard and distributed.is_distributed()
        self.adamw = self._adamw(self.parameters, shard, adamw_options)
        rise = max(1, round(warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adamw, lambda step: rate(step, rise, steps, final_rate)
        )

    def step(self, loss: Tensor) -> dict[str, float]:
        """One update by one loss; see `backward` and `update`."""
        self.backward(loss)
        return self.update()

    def forward(self, compute: Callable[[], T]) -> T:
        """The tensors that `compute` makes of the model: all use of trained weights happens in here."""
        return compute()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the step; whether it is finite is asked in `update`, once for all."""
        self.losses.append(loss.detach())
        self._backward(loss)

    def update(self) -> dict[str, float]:
        """Sum the gradients over all processes, clip, update; the norm before clipping and the learning rate.

        Raises:
            Diverged: a loss or a gradient is not finite; nothing has been updated.
        """
        # The host waits for the device twice: for the losses, and for the norm.
        self._check_losses()
        learning_rate = float(self.schedule.get_last_lr()[0])
        norm = self._update()
        if not math.isfinite(norm):
            raise Diverged(
                f"the gradient's norm is {norm!r}: lower the learning rate, or look for a bad batch"
            )
        self.schedule.step()
        return {"grad_norm": norm, "learning_rate": learning_rate}

    def _check_losses(self) -> None:
        losses = torch.stack(self.losses).tolist() if self.losses else []
        self.losses.clear()
        if bad := [number for number, loss in enumerate(losses) if not math.isfinite(loss)]:
            raise Diverged(
                f"the loss is {losses[bad[0]]!r}: lower the learning rate, or look for a bad batch",
                bad,
            )

    def _adamw(
        self, parameters: Sequence[nn.Parameter], shard: bool, options: dict[str, Any]
    ) -> torch.optim.Optimizer:
        if shard:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # here: a second of imports

            return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **options)
        return torch.optim.AdamW(parameters, **options)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> float:
        """The gradient's norm; if that is no number, no weight has changed."""
        # Every process gets the whole gradient, and so the same norm.
        distributed.sum_gradients(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if math.isfinite(norm):
            self.adamw.step()
            self.adamw.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, weights aside; in one form, however it is shared out.

        All processes call this, and the first gets it.
        """
        # Only ZeRO-1's AdamW has to bring its state together.
        if consolidate := getattr(self.adamw, "consolidate_state_dict", None):
            consolidate(to=0)
            if distributed.rank():
                return {}
        return {"adamw": self.adamw.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.adamw.load_state_dict(state["adamw"])
        self.schedule.load_state_dict(state["schedule"])

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The trained weights by name, copied to main memory; all processes call this, and the first gets them."""
        return {} if distributed.rank() else {name: copied(p) for name, p in trained(model).items()}

    @torch.no_grad()
    def restore(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Put trained weights back; all processes call this."""
        for name, value in weights.items():
            model.get_parameter(name).copy_(value)

    def close(self, model: nn.Module) -> None:
        """Training is over: leave an ordinary model to the first process."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), its steps scaled to the size of AdamW's (arXiv:2502.16982, eq. 4).

    `torch.optim.Muon` is the same but always computes in bfloat16, which a CPU without instructions for it emulates:
    15 to 45 times the time of fp32. This one takes fp32 on a CPU, bfloat16 on a GPU.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        """`momentum` is Nesterov's; `weight_decay` is decoupled, as AdamW's."""
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix that has a gradient; the processes, whose gradients are equal, share the work out."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            directions = [self._direction(matrix, group["momentum"]) for matrix in matrices]
            updates = orthogonalized_together(directions)
            for matrix, update in zip(matrices, updates, strict=True):
                # An orthogonal matrix has entries of root mean square 1 / sqrt(its longer side); AdamW's, about 0.2.
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def _direction(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        # Nesterov's: the gradient, and how it has been of late.
        assert matrix.grad is not None
        if not self.state[matrix]:
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffer = self.state[matrix]["momentum_buffer"]
        buffer.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(buffer, momentum)


def orthogonalized_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each of the matrices, which all processes have, made orthogonal by one of them for all."""
    if not distributed.is_distributed():
        return [orthogonalized(matrix) for matrix in matrices]
    # The work on a matrix grows with its size times its shorter side.
    work = [matrix.numel() * min(matrix.shape) for matrix in matrices]
    owners = shared_out(work, distributed.world_size())
    for matrix, owner in zip(matrices, owners, strict=True):
        if owner == distributed.rank():
            matrix.copy_(orthogonalized(matrix))
    distributed.exchange(matrices, owners)
    return list(matrices)


def orthogonalized(matrix: Float[Tensor, "M N"], steps: int = 5) -> Float[Tensor, "M N"]:
    """Near the closest matrix with orthonormal rows or columns: its singular values lie between 0.5 and 1.5.

    Muon's quintic Newton-Schulz iteration, https://kellerjordan.github.io/posts/muon/.
    """
    # The coefficients of the quintic are the reference's; it needs a wide matrix, of norm 1 at most.
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide if matrix.device.type == "cpu" else wide.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrix else x.T).to(matrix.dtype)


class MuonOptimizer(Optimizer):
    """Muon for the weight matrices, AdamW for the rest, with one learning rate: a fraction of AdamW's steps where much
    is to be learned."""

    def __init__(self, model: VisionLanguageModel, *schedule: int | float, **options: Any) -> None:
        """`schedule` and `options` are those of `Optimizer`."""
        self.matrices = model.muon_matrices()
        super().__init__(model.parameters(), *schedule, **options)  # pyright: ignore[reportArgumentType]
        self.muon_schedule = torch.optim.lr_scheduler.LambdaLR(
            self.muon, self.schedule.lr_lambdas[0]
        )

    def _adamw(
        self, parameters: Sequence[nn.Parameter], shard: bool, options: dict[str, Any]
    ) -> torch.optim.Optimizer:
        # What is no matrix of a layer stays AdamW's.
        self.muon = Muon(self.matrices, options["lr"], options["weight_decay"])
        own = {id(matrix) for matrix in self.matrices}
        rest = [parameter for parameter in parameters if id(parameter) not in own]
        return super()._adamw(rest, shard, options)

    def _update(self) -> float:
        norm = super()._update()
        if math.isfinite(norm):
            self.muon.step()
            self.muon.zero_grad()
            self.muon_schedule.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Muon's momenta and schedule as well."""
        return {
            **super().state_dict(),
            "muon": self.muon.state_dict(),
            "muon_schedule": self.muon_schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state)
        self.muon.load_state_dict(state["muon"])
        self.muon_schedule.load_state_dict(state["muon_schedule"])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copied(tree: Any) -> Any:
    """The same with all tensors copied to main memory: what a later step cannot change."""
    match tree:
        case Tensor():
            return tree.detach().to("cpu", copy=True).contiguous()
        case dict():
            return {key: copied(value) for key, value in tree.items()}
        case list():
            return [copied(value) for value in tree]
        case _:
            return tree


def rate(step: int, rise: int, steps: int, final: float) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to `final`.

    >>> [round(rate(step, 2, 6, 0.0), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < rise:
        return (step + 1) / rise
    return final + (1 - final) / 2 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
