"""ZeRO-2 and 3 by DeepSpeed, which nothing else here needs."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ixc.engine import distributed
from ixc.engine.optim import Optimizer, copied, trained
from ixc.models.base import VisionLanguageModel

T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""


class ShardedOptimizer(Optimizer):
    """`Optimizer` of a model whose gradients (ZeRO-2) or gradients and weights (ZeRO-3, arXiv:1910.02054) are shared
    out among the processes, by DeepSpeed.

    All processes must compute as many microbatches in each step, and all of these use the same weights in the same
    order, those for images too. As alone, the latter rest in a step that has no image at all.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *schedule: int | float,
        stage: int,
        offload: str = "none",
        **options: float,
    ) -> None:
        """`schedule` and `options` are those of `Optimizer`.

        Args:
            stage: 2 or 3.
            offload: what is in main memory: `optimizer` the moments, and AdamW is computed there; `weights` those too.
        """
        self.stage, self.images_seen = stage, False
        self.for_images = set(map(id, model.image_only_parameters()))
        super().__init__(model.parameters(), *schedule, **options)  # pyright: ignore[reportArgumentType]
        self.deepspeed = import_deepspeed()
        config = self._config(offload, 10 * model.hidden_size)
        self.parts = _Trained(model)
        self.engine = self.deepspeed.initialize(
            model=self.parts, optimizer=self.adamw, config=config
        )[0]
        self._start()
        self.hooks = model.use_all_weights(self._note_image)

    def _config(self, offload: str, smallest: int) -> dict[str, Any]:
        # Small weights, such as norms, stay whole on every process.
        zero: dict[str, Any] = {"stage": self.stage, "stage3_param_persistence_threshold": smallest}
        memory = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if offload != "none":
            zero["offload_optimizer"] = memory
        if offload == "weights":
            zero["offload_param"] = memory

        # Accumulation and the optimizer are ours; DeepSpeed shares out and clips.
        return {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }

    def _adamw(
        self, parameters: Sequence[nn.Parameter], shard: bool, options: dict[str, Any]
    ) -> torch.optim.Optimizer:
        for_all = [p for p in parameters if id(p) not in self.for_images]
        for_images = [p for p in parameters if id(p) in self.for_images]
        groups = [{"params": part, "rest": False} for part in (for_all, for_images) if part]
        return RestingAdamW(groups, **options)

    def _start(self) -> None:
        """AdamW's state before the first step; DeepSpeed must know of it before any group has rested."""
        for shard in self._shards:
            moments = {key: torch.zeros_like(shard) for key in MOMENTS}
            self.adamw.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}
        if self.stage == 2:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _note_image(self) -> None:
        self.images_seen = True

    @property
    def _shards(self) -> list[Tensor]:
        """This process's weights, laid end to end: what AdamW's state is kept by."""
        zero = self.engine.optimizer
        return (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )

    def _group(self, number: int) -> int:
        """Which of AdamW's groups a shard belongs to."""
        return self.engine.optimizer.sub_group_to_group_id[number] if self.stage == 3 else number

    def forward(self, compute: Callable[[], T]) -> T:
        """Weights are brought together as they are used."""
        return self.engine(compute)

    def _backward(self, loss: Tensor) -> None:
        self.engine.backward(
            loss * distributed.world_size()
        )  # it takes the mean over the processes, we the sum

    def _update(self) -> float:
        """DeepSpeed, too, leaves all weights as they are where the norm is no number, and calls it infinite."""
        # Partial LoRA rests where no process had an image.
        seen = torch.tensor(float(self.images_seen), device=self.engine.device)
        images = distributed.summed(seen) > 0
        self.adamw.param_groups[-1]["rest"] = len(self.adamw.param_groups) > 1 and not images
        self.images_seen = False
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def state_dict(self) -> dict[str, Any]:
        """As a plain AdamW's, parameter by parameter; one that was never updated has none."""
        # DeepSpeed lays a group's weights end to end: steps are counted by group.
        steps = {
            self._group(i): self.adamw.state[shard]["step"].cpu()
            for i, shard in enumerate(self._shards)
        }
        state: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self.parameters):
            if (step := steps[self._group_of(parameter)]) > 0:
                moments = {key: self._moment(parameter, key) for key in MOMENTS}
                state[number] = {"step": step.clone(), **moments}
        # As one group, which is what an optimizer that works alone has.
        group = {key: value for key, value in self.adamw.param_groups[0].items() if key != "rest"}
        group["params"] = list(range(len(self.parameters)))
        return {
            "adamw": {"state": state, "param_groups": [group]},
            "schedule": _for_groups(self.schedule.state_dict(), 1),
        }

    def _group_of(self, parameter: nn.Parameter) -> int:
        return len(self.adamw.param_groups) - 1 if id(parameter) in self.for_images else 0

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
                self.deepspeed.utils.safe_set_full_optimizer_state(
                    self.parameters[number], each[key], key
                )
        for number, shard in enumerate(self._shards):
            self.adamw.state[shard]["step"].fill_(steps.get(self._group(number), 0))
        for group in self.adamw.param_groups:
            group["lr"] = state["adamw"]["param_groups"][0]["lr"]
        self.schedule.load_state_dict(_for_groups(state["schedule"], len(self.adamw.param_groups)))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Brought together one by one."""
        return self._whole(trained(model))

    def _whole(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            with self.deepspeed.zero.GatheredParameters([parameter]):
                if not distributed.rank():
                    whole[name] = copied(parameter)
        return whole

    @torch.no_grad()
    def restore(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Into what the model computes with, and into what AdamW updates."""
        for name, value in weights.items():
            parameter = model.get_parameter(name)
            with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)

    def close(self, model: nn.Module) -> None:
        """An ordinary model, its language model and head in main memory."""
        whole = self._whole(dict(self.parts.named_parameters()))
        self.engine.destroy()

        # The first process has the whole weights; the others' are of no use any more.
        for hook in self.hooks:
            hook.remove()
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
    return {
        key: value[:1] * groups if isinstance(value, list) else value
        for key, value in schedule.items()
    }


class _Trained(nn.Module):
    """What of a model its optimizer gets: not the frozen tower, which processes use as often as each needs."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        for name, part in model.named_children():
            if any(parameter.requires_grad for parameter in part.parameters()):
                self.add_module(name, part)

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
        raise NoDeepSpeed(
            f"train_rm.zero: 2 and 3 need DeepSpeed ({error}): pip install 'ixc[deepspeed]'"
        ) from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings(
        "ignore", "`torch.distributed.*deprecated", FutureWarning
    )  # it says so at every call
    os.environ.setdefault("LOCAL_RANK", "0")
    return deepspeed
