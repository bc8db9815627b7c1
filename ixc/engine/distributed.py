"""One process or several: who we are, on which device, and what all know together.

`torchrun` says so in RANK, WORLD_SIZE and LOCAL_RANK; without it we are alone, and everything here is free.
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
    store = dist.HashStore  # pyright: ignore[reportPrivateImportUsage]
    here: dict[str, Any] = (
        {"store": store(), "rank": 0, "world_size": 1} if world_size() == 1 else {}
    )
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    dist.init_process_group(
        "nccl" if local_world_size <= torch.cuda.device_count() else "gloo", **here
    )
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
        given = [tensor for tensor, by in zip(tensors, owners, strict=True) if by == owner]
        flat = torch.cat([tensor.flatten() for tensor in given])
        dist.broadcast(flat, owner)
        for tensor, part in zip(
            given, flat.split([tensor.numel() for tensor in given]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Every process gets the sum of all gradients; a process that had nothing to do counts as 0."""
    if not is_distributed():
        return
    used = torch.tensor(
        [p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device
    )
    bucket: list[Tensor] = []
    for parameter, users in zip(parameters, summed(used).tolist(), strict=True):
        if not users:  # as alone: the optimizer skips what took no part
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
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
