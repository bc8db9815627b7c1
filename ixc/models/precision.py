"""Which precision a device is fast in, and computing in another one than weights are stored in."""

import warnings
from typing import Any

import torch
from torch import nn


def warn_of_slow_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Half precision was asked of a processor that has no instructions for it: right, but 15 to 45 times as slow."""
    if (
        device.type == "cpu"
        and dtype in (torch.bfloat16, torch.float16)
        and not computes_fast_in_half()
    ):
        form = f"{str(dtype).removeprefix('torch.')} is emulated on this processor, at a small part of fp32's speed"
        warnings.warn(
            f"{form}; take fp32 (precision of the stage, dtype of the API, --dtype float32)",
            stacklevel=3,
        )


def computes_fast_in_half() -> bool:
    """Whether this processor has instructions for bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Autocast:
    """Whatever a module computes, it computes in bfloat16; by PyTorch's hooks, which leave its `forward` alone."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self.device = device
        self.open: list[Any] = []
        """The contexts of the calls that are not over."""
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.open.append(torch.autocast(self.device, torch.bfloat16))
        self.open[-1].__enter__()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.open.pop().__exit__(None, None, None)
