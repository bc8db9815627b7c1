"""What every training loop here shares: seeds, an optimizer with its schedule, precision, saving."""

import math
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from ixc import distributed
from ixc.files import replacing_folder
from ixc.model import IXCForRewardModel, IXCPreTrainedModel, IXCProcessor

T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""


def seed_everything(seed: int) -> random.Random:
    """Seed torch, and return a generator for everything else."""
    torch.manual_seed(seed)
    return random.Random(seed)


class Diverged(ValueError):
    """A loss that is no number."""


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
        given: dict[str, Any] = {"betas": (0.9, beta2), "weight_decay": weight_decay, "fused": True}
        if shard and distributed.together():
            self.adamw = ZeroRedundancyOptimizer(self.parameters, torch.optim.AdamW, lr=learning_rate, **given)
        else:
            self.adamw = torch.optim.AdamW(self.parameters, learning_rate, **given)
        rise = max(1, round(warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda step: rate(step, rise, steps, final_rate))

    def step(self, loss: Tensor) -> dict[str, float]:
        """One update by one loss; see `backward` and `update`."""
        self.backward(loss)
        return self.update()

    def forward(self, compute: Callable[[], T]) -> T:
        """The tensors that `compute` makes of the model: all use of trained weights happens in here."""
        return compute()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the step.

        Raises:
            Diverged: the loss is not finite; nothing has been updated.
        """
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()!r}: lower the learning rate, or look for a bad batch")
        self._backward(loss)

    def update(self) -> dict[str, float]:
        """Sum the gradients over all processes, clip, update; the norm before clipping and the learning rate.

        Raises:
            Diverged: a gradient is not finite; nothing has been updated.
        """
        learning_rate = float(self.schedule.get_last_lr()[0])
        norm = self._update()
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm!r}: lower the learning rate, or look for a bad batch")
        self.schedule.step()
        return {"grad_norm": norm, "learning_rate": learning_rate}

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> float:
        """The gradient's norm; if that is no number, no weight has changed."""
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
        if isinstance(self.adamw, ZeroRedundancyOptimizer):
            self.adamw.consolidate_state_dict(to=0)
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


class ShardedOptimizer(Optimizer):
    """`Optimizer` of a reward model whose gradients (ZeRO-2) or gradients and weights (ZeRO-3, arXiv:1910.02054) are
    shared out among the processes, by DeepSpeed.

    All processes must pass as often in each step, and each pass must use the same weights; see `use_every_weight`.
    Where no picture is in a whole step, Partial LoRA moves on by its momentum, while a plain `Optimizer` lets it rest.
    """

    def __init__(
        self, model: IXCForRewardModel, *schedule: float, stage: int, offload: str = "none", **options: float
    ) -> None:
        """`schedule` and `options` are those of `Optimizer`.

        Args:
            stage: 2 or 3.
            offload: what is in main memory: `optimizer` the moments, and AdamW is computed there; `weights` those too.
        """
        super().__init__(model.parameters(), *schedule, **options)  # pyright: ignore[reportArgumentType]
        deepspeed = import_deepspeed()
        zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 10 * model.config.hidden_size}
        if offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if offload == "weights":
            zero["offload_param"] = {"device": "cpu"}
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }
        self.engine = deepspeed.initialize(model=_Trained(model), optimizer=self.adamw, config=config)[0]
        self.gather = deepspeed.zero.GatheredParameters
        self.fragments = deepspeed.utils
        self.stage = stage

    def forward(self, compute: Callable[[], T]) -> T:
        """Weights are brought together as they are used."""
        return self.engine(compute)

    def _backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * distributed.world_size())  # it takes the mean over the processes, we the sum

    def _update(self) -> float:
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    @property
    def _shards(self) -> list[Tensor]:
        """This process's weights, laid end to end: what AdamW's state is kept by."""
        zero = self.engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def state_dict(self) -> dict[str, Any]:
        """As a plain AdamW's, parameter by parameter."""
        step = self.adamw.state[self._shards[0]]["step"].cpu()
        state = [{"step": step, **{key: self._moment(p, key) for key in MOMENTS}} for p in self.parameters]
        group = {**self.adamw.param_groups[0], "params": list(range(len(state)))}
        return {
            "adamw": {"state": dict(enumerate(state)), "param_groups": [group]},
            "schedule": self.schedule.state_dict(),
        }

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        whole = self.fragments.safe_get_full_optimizer_state(parameter, key)
        shape = getattr(parameter, "ds_shape", parameter.shape)
        return None if distributed.rank() else whole.view(shape).cpu()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take of each parameter's moments what is this process's."""
        states, [group] = state["adamw"]["state"], state["adamw"]["param_groups"]
        step = max(float(each["step"]) for each in states.values())
        for shard in self._shards:
            moments = {key: torch.zeros_like(shard) for key in MOMENTS}
            self.adamw.state[shard] = {"step": torch.tensor(step, device=shard.device), **moments}
        if self.stage == 2:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        for number, each in states.items():
            for key in MOMENTS:
                self.fragments.safe_set_full_optimizer_state(self.parameters[number], each[key], key)
        self.adamw.param_groups[0]["lr"] = group["lr"]
        self.schedule.load_state_dict(state["schedule"])

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Brought together one by one."""
        return self._whole(trained(model))

    def _whole(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            with self.gather([parameter]):
                if not distributed.rank():
                    found[name] = copied(parameter)
        return found

    @torch.no_grad()
    def restore(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Into what the model computes with, and into what AdamW updates."""
        for name, value in weights.items():
            parameter = model.get_parameter(name)
            with self.gather([parameter], modifier_rank=0):
                parameter.copy_(value)
            self.fragments.safe_set_full_fp32_param(parameter, value.to(parameter.device))

    def close(self, model: nn.Module) -> None:
        """An ordinary model, its language model and head in main memory."""
        whole = self._whole({name: p for name, p in model.named_parameters() if name.startswith(("model.", "score."))})
        self.engine.destroy()
        for name, value in whole.items():
            place, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(place), leaf, nn.Parameter(value))


class _Trained(nn.Module):
    """What of a reward model its optimizer gets: not the frozen tower, which processes use as often as each needs."""

    def __init__(self, model: IXCForRewardModel) -> None:
        super().__init__()
        self.model, self.score = model.model, model.score

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class NoDeepSpeed(ValueError):
    """ZeRO-2 and 3 without the package that does them."""


def import_deepspeed() -> Any:
    """DeepSpeed, set up so that it compiles nothing.

    Raises:
        NoDeepSpeed: it is not installed.
    """
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise NoDeepSpeed(f"train_rm.zero: 2 and 3 need DeepSpeed ({error}): pip install 'ixc[deepspeed]'") from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")
    return deepspeed


def use_every_weight(model: IXCPreTrainedModel) -> None:
    """Let a text, too, take the pictures' way through the layers, with no token on it.

    Every pass then has a gradient for every weight, if only 0: processes that share gradients or weights out must all
    want the same ones in the same order.
    """
    embed = model.model.embed

    def with_places(input_ids: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        x, places = embed(input_ids, features)
        return x, input_ids.new_empty(0) if places is None else places

    model.model.embed = with_places


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
