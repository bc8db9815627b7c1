"""One process or several: rank and world size, the device, and what all processes know together.

`torchrun` says so in RANK, WORLD_SIZE and LOCAL_RANK; without it one process is alone, and everything here is free.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**24
"""Numbers that are summed over the processes at once."""
T = TypeVar("T")


def rank() -> int:
    """Which of the processes this is."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """This process's GPU, or the CPU where there is none; with more processes than GPUs, several share one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def joined(alone: bool = False) -> Iterator[None]:
    """While it lasts, the processes can speak to each other: NCCL where each has a GPU of its own, else Gloo.

    Within another one it changes nothing. `alone`: also where there is but one.
    """
    if is_distributed() or (world_size() == 1 and not alone):
        yield
        return
    if (own := device()).type == "cuda":
        torch.cuda.set_device(own)

    # One process alone needs no address to meet others at.
    options: dict[str, Any] = {}
    if world_size() == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        options = {"store": store, "rank": 0, "world_size": 1}

    # NCCL refuses two processes on one GPU.
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    backend = "nccl" if local_world_size <= torch.cuda.device_count() else "gloo"
    dist.init_process_group(backend, **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether there are others to speak to."""
    return dist.is_available() and dist.is_initialized()


def summed(numbers: Tensor) -> Tensor:
    """The sum over all processes."""
    if is_distributed():
        dist.all_reduce(numbers)
    return numbers


def gathered(mine: T) -> list[T]:
    """What every process has, by rank."""
    if not is_distributed():
        return [mine]
    everyone: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def exchange(tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
    """Every process gets each tensor, in place, from the process that owns it; all have tensors of equal shapes."""
    for owner in sorted(set(owners)):
        # One message for all tensors of an owner.
        owned = [tensor for tensor, by in zip(tensors, owners, strict=True) if by == owner]
        flat = torch.cat([tensor.flatten() for tensor in owned])
        dist.broadcast(flat, owner)
        _copy_parts(flat, owned)


def _copy_parts(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """What tensors have become that were laid end to end."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Every process gets the sum of all gradients; a process that had nothing to do counts as 0."""
    if not is_distributed():
        return
    # Which parameters had a gradient anywhere; the optimizer skips the others, as it would alone.
    has_gradient = [float(parameter.grad is not None) for parameter in parameters]
    used = torch.tensor(has_gradient, device=parameters[0].device)

    # Small gradients travel together.
    bucket: list[Tensor] = []
    for parameter, users in zip(parameters, summed(used).tolist(), strict=True):
        if not users:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            _sum_bucket(bucket)
            bucket = []
    _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    if gradients:
        flat = summed(torch.cat([gradient.flatten() for gradient in gradients]))
        _copy_parts(flat, gradients)
