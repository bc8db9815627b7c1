"""Where a model lies and where it computes: folders, devices and precisions by their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ixc.models.base import BadCheckpoint

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point type from torch's own, its name or its short name; `None` or "auto": none in particular.

    >>> as_dtype("bfloat16"), as_dtype("bf16"), as_dtype("auto")
    (torch.bfloat16, torch.bfloat16, None)
    """
    if dtype is None or dtype == "auto":
        return None
    name = _SHORT.get(dtype, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    resolved = getattr(torch, name, None) if isinstance(name, str) else name
    if resolved not in _FLOATS:
        raise ValueError(
            f'dtype: {dtype!r}: give "auto", "float32", "bfloat16" or "float16" ({", ".join(_SHORT)})'
        )
    return resolved


def as_device(device: torch.device | str) -> torch.device:
    """A device from torch's own or its name; "auto": the GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = f'device: {device!r}: give "auto", "cpu", "cuda" or "cuda:1"'
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(form) from error
    if resolved.type == "meta":  # which computes nothing
        raise ValueError(form)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f'device: {device!r}: no GPU that this torch can use; give "cpu", or install torch for CUDA'
        )
    return resolved


def stored(
    name: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of a model: itself, or a snapshot in the local cache of Hugging Face; nothing is fetched.

    Raises:
        BadCheckpoint: neither is there.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(name), revision=revision, cache_dir=cache_dir, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, HFValidationError) as error:
        form = "no such folder, and none of this name in the local cache of Hugging Face"
        raise BadCheckpoint(
            f"{name}: {form}; nothing is fetched here: `hf download {name}`"
        ) from error


def one_device(
    device_map: str | int | torch.device | Mapping[str, Any] | None,
) -> str | torch.device:
    """The device of a `device_map`.

    Raises:
        ValueError: it names several.
    """
    devices = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
    if len(devices) != 1:
        raise ValueError(f"device_map: {device_map!r}: a model lives on one device here; name it")
    [device] = devices
    return f"cuda:{device}" if isinstance(device, int) else device or "cpu"
