"""Which precision a device is fast in."""

import warnings

import torch


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
