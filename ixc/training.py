"""What every training loop here shares: seeds, an optimizer with its schedule, precision."""

import math
import os
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ixc import distributed
from ixc.model import IXCForRewardModel, IXCPreTrainedModel

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
        given = {"lr": learning_rate, "betas": (0.9, beta2), "weight_decay": weight_decay, "fused": True}
        self.adamw = self._adamw(self.parameters, shard and distributed.together(), given)
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

    def _adamw(self, parameters: Sequence[nn.Parameter], shard: bool, options: dict[str, Any]) -> torch.optim.Optimizer:
        if shard:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # here: a second of imports

            return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **options)
        return torch.optim.AdamW(parameters, **options)

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

    def close(self, model: IXCForRewardModel) -> None:
        """Training is over: leave an ordinary model to the first process."""


class MuonOptimizer(Optimizer):
    """Muon (Jordan et al. 2024) for the weight matrices, AdamW for the rest: a fraction of the steps where much is to
    be learned; scaled so that both share one learning rate (arXiv:2502.16982)."""

    def __init__(self, model: nn.Module, *schedule: int | float, **options: Any) -> None:
        """`schedule` and `options` are those of `Optimizer`."""
        self.matrices = matrices(model)
        super().__init__(model.parameters(), *schedule, **options)  # pyright: ignore[reportArgumentType]
        self.muon_schedule = torch.optim.lr_scheduler.LambdaLR(self.muon, self.schedule.lr_lambdas[0])

    def _adamw(self, parameters: Sequence[nn.Parameter], shard: bool, options: dict[str, Any]) -> torch.optim.Optimizer:
        given = options["lr"], options["weight_decay"]
        self.muon = torch.optim.Muon(self.matrices, *given, adjust_lr_fn="match_rms_adamw")
        own = set(map(id, self.matrices))
        return super()._adamw([p for p in parameters if id(p) not in own], shard, options)

    def _update(self) -> float:
        norm = super()._update()
        if math.isfinite(norm):
            self.muon.step()
            self.muon.zero_grad()
            self.muon_schedule.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Muon's momenta and schedule as well."""
        own = {"muon": self.muon.state_dict(), "muon_schedule": self.muon_schedule.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state)
        self.muon.load_state_dict(state["muon"])
        self.muon_schedule.load_state_dict(state["muon_schedule"])


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon trains: the weight matrices of layers and projector that are trained at all.

    Not Partial LoRA, which starts from nothing.
    """
    inside = ((name, p) for name, p in model.named_parameters() if "layers." in name or "vision_proj." in name)
    return [p for name, p in inside if p.ndim == 2 and p.requires_grad and "Plora_" not in name]


class ShardedOptimizer(Optimizer):
    """`Optimizer` of a reward model whose gradients (ZeRO-2) or gradients and weights (ZeRO-3, arXiv:1910.02054) are
    shared out among the processes, by DeepSpeed.

    All processes must pass as often in each step, and all their passes use the same weights in the same order: a text,
    too, takes the pictures' way through the layers, with no token on it. As alone, Partial LoRA rests in a step that
    has no picture at all.
    """

    def __init__(
        self, model: IXCForRewardModel, *schedule: int | float, stage: int, offload: str = "none", **options: float
    ) -> None:
        """`schedule` and `options` are those of `Optimizer`.

        Args:
            stage: 2 or 3.
            offload: what is in main memory: `optimizer` the moments, and AdamW is computed there; `weights` those too.
        """
        self.stage, self.seen = stage, False
        self.for_pictures = {id(p) for name, p in model.named_parameters() if ".Plora_" in name}
        super().__init__(model.parameters(), *schedule, **options)  # pyright: ignore[reportArgumentType]
        self.deepspeed = import_deepspeed()
        config = self._config(offload, 10 * model.config.hidden_size)
        self.engine = self.deepspeed.initialize(model=_Trained(model), optimizer=self.adamw, config=config)[0]
        self._start()
        self._look(model)

    def _config(self, offload: str, smallest: int) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "stage3_param_persistence_threshold": smallest}
        memory = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if offload != "none":
            zero["offload_optimizer"] = memory
        if offload == "weights":
            zero["offload_param"] = memory
        return {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }

    def _adamw(self, parameters: Sequence[nn.Parameter], shard: bool, options: dict[str, Any]) -> torch.optim.Optimizer:
        parts = [[p for p in parameters if (id(p) in self.for_pictures) is kind] for kind in (False, True)]
        return RestingAdamW([{"params": part, "rest": False} for part in parts if part], **options)

    def _start(self) -> None:
        """AdamW's state before the first step; DeepSpeed must know of it before any group has rested."""
        for shard in self._shards:
            moments = {key: torch.zeros_like(shard) for key in MOMENTS}
            self.adamw.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}
        if self.stage == 2:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _look(self, model: IXCForRewardModel) -> None:
        embed = model.model.embed

        def with_places(input_ids: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
            x, places = embed(input_ids, features)
            self.seen |= places is not None and torch.is_grad_enabled()
            return x, input_ids.new_empty(0) if places is None else places

        model.model.embed = with_places

    @property
    def _shards(self) -> list[Tensor]:
        """This process's weights, laid end to end: what AdamW's state is kept by."""
        zero = self.engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def _group(self, number: int) -> int:
        """Which of AdamW's groups a shard belongs to."""
        return self.engine.optimizer.sub_group_to_group_id[number] if self.stage == 3 else number

    def forward(self, compute: Callable[[], T]) -> T:
        """Weights are brought together as they are used."""
        return self.engine(compute)

    def _backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * distributed.world_size())  # it takes the mean over the processes, we the sum

    def _update(self) -> float:
        pictures = distributed.summed(torch.tensor(float(self.seen), device=self.engine.device)) > 0
        self.adamw.param_groups[-1]["rest"] = len(self.adamw.param_groups) > 1 and not pictures
        self.seen = False
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def state_dict(self) -> dict[str, Any]:
        """As a plain AdamW's, parameter by parameter; one that was never updated has none."""
        steps = {self._group(i): self.adamw.state[shard]["step"].cpu() for i, shard in enumerate(self._shards)}
        state = {
            number: {"step": step.clone(), **{key: self._moment(p, key) for key in MOMENTS}}
            for number, p in enumerate(self.parameters)
            if (step := steps[self._group_of(p)]) > 0
        }
        group = {key: value for key, value in self.adamw.param_groups[0].items() if key != "rest"}
        group["params"] = list(range(len(self.parameters)))
        return {
            "adamw": {"state": state, "param_groups": [group]},
            "schedule": _for_groups(self.schedule.state_dict(), 1),
        }

    def _group_of(self, parameter: nn.Parameter) -> int:
        return len(self.adamw.param_groups) - 1 if id(parameter) in self.for_pictures else 0

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        whole = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        shape = getattr(parameter, "ds_shape", parameter.shape)
        return None if distributed.rank() else whole.view(shape).cpu()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take of each parameter's moments what is this process's."""
        steps: dict[int, Tensor] = {}
        for number, each in state["adamw"]["state"].items():
            steps[self._group_of(self.parameters[number])] = each["step"]
            for key in MOMENTS:
                self.deepspeed.utils.safe_set_full_optimizer_state(self.parameters[number], each[key], key)
        for number, shard in enumerate(self._shards):
            self.adamw.state[shard]["step"].fill_(steps.get(self._group(number), 0))
        for group in self.adamw.param_groups:
            group["lr"] = state["adamw"]["param_groups"][0]["lr"]
        self.schedule.load_state_dict(_for_groups(state["schedule"], len(self.adamw.param_groups)))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Brought together one by one."""
        return self._whole(trained(model))

    def _whole(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            with self.deepspeed.zero.GatheredParameters([parameter]):
                if not distributed.rank():
                    found[name] = copied(parameter)
        return found

    @torch.no_grad()
    def restore(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Into what the model computes with, and into what AdamW updates."""
        for name, value in weights.items():
            parameter = model.get_parameter(name)
            with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)

    def close(self, model: IXCForRewardModel) -> None:
        """An ordinary model, its language model and head in main memory."""
        whole = self._whole({name: p for name, p in model.named_parameters() if name.startswith(("model.", "score."))})
        self.engine.destroy()
        del model.model.embed
        for name, value in whole.items():
            place, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(place), leaf, nn.Parameter(value))


class RestingAdamW(torch.optim.AdamW):
    """Groups that are marked `rest` are left as they are, as plain AdamW leaves a weight without a gradient."""

    def step(self, closure: Any = None) -> Any:
        """One update of the other groups."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["rest"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


def _for_groups(schedule: dict[str, Any], groups: int) -> dict[str, Any]:
    """A schedule's state for another number of groups, which all have the same rate."""
    return {key: value[:1] * groups if isinstance(value, list) else value for key, value in schedule.items()}


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
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)  # it says so at every call
    os.environ.setdefault("LOCAL_RANK", "0")
    return deepspeed


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
