"""The attention kernels that packed rows are computed with: by name, and refused where a machine or model has none.

The frozen tower and padded rows are not concerned: they take what `attn_implementation` says.
"""

from collections.abc import Iterator
from typing import get_args

import torch

from ixc.models.base import VisionLanguageModel
from ixc.params import AttentionName

INSTALL = "pip install --no-build-isolation 'ixc[flash]'"
HALVES = (torch.bfloat16, torch.float16)


class NoAttention(ValueError):
    """A kernel that is asked for and cannot be used: why, and what to do."""


def refuse_attention(name: str, device: torch.device) -> None:
    """Check a name, one of `AttentionName`, against the machine, before any weight is read.

    Raises:
        NoAttention: there is no such kernel, or not here.
    """
    if name not in get_args(AttentionName):
        raise NoAttention(
            f"attention: {name!r}: unknown; one of {', '.join(get_args(AttentionName))}"
        )
    _refuse(name, list(_of_machine(name, device)))


def use_attention(model: VisionLanguageModel, name: str, dtype: torch.dtype | None = None) -> None:
    """Compute the model's packed rows with this kernel from now on; `auto`: FlexAttention on a GPU, SDPA elsewhere.

    Args:
        dtype: what the model computes in, where that is not what its weights are kept in.

    Raises:
        NoAttention: there is no such kernel, not here, or not for heads or numbers of this kind.
    """
    refuse_attention(name, model.device)
    _refuse(name, list(_of_model(name, model.head_dim, dtype or model.dtype)))
    model.set_attention(name)


def _refuse(name: str, objections: list[str]) -> None:
    if objections:
        raise NoAttention(f"attention: {name!r}: {'; '.join(objections)}; or set attention to auto")


def _of_machine(name: str, device: torch.device) -> Iterator[str]:
    if name not in ("flash_attention_2", "flex"):
        return
    if device.type != "cuda":
        yield f"needs a GPU, and the model is on {device.type!r}: run it where CUDA is"
    if name != "flash_attention_2":
        return
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        yield f"needs an Ampere GPU or a newer one, not {torch.cuda.get_device_name(device)}: set attention to flex"
    try:
        import flash_attn  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:  # not installed, or built against another torch
        yield f"needs the package flash-attn ({error}): {INSTALL}"


def _of_model(name: str, head_dim: int, dtype: torch.dtype) -> Iterator[str]:
    if name == "flash_attention_2" and dtype not in HALVES:
        yield f"computes in half precision only, and the model in {str(dtype).removeprefix('torch.')}: use bf16"
    if name == "flash_attention_2" and (head_dim > 256 or head_dim % 8):
        yield f"takes heads of 8, 16, ... 256 channels, not {head_dim}"
    if name == "flex" and head_dim < 16:
        yield f"takes heads of 16 channels at least, not {head_dim}"
