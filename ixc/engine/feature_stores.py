"""Where image features are stored: in memory, the last used ones, and on request on disk."""

import os
import sys
import tempfile
import time
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ixc.models.base import ImageSize

GB = 10**9
ABANDONED_S = 3600.0
"""Age of a half-written file, seconds, whose writer must be gone."""


class MemoryStore:
    """Tensors by key, up to so many bytes; what was not used for longest goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.tensors: OrderedDict[str, Tensor] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def get(self, key: str) -> Shaped[Tensor, "..."] | None:
        """The tensor, if it is still there."""
        if key in self.tensors:
            self.tensors.move_to_end(key)
        return self.tensors.get(key)

    def put(self, key: str, value: Shaped[Tensor, "..."]) -> None:
        """Store a tensor, unless it alone is larger than the store."""
        if key in self.tensors or value.nbytes > self.max_bytes:
            return
        self.tensors[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.max_bytes:
            self.bytes -= self.tensors.popitem(last=False)[1].nbytes


class DiskStore:
    """Tensors by key in a folder, a memory-mapped file each; any number of processes may share it.

    A file appears whole, holds its checksum, and counts as absent where that is wrong. A full store keeps what it has:
    images come round once an epoch, so that the least recently used one is the next to be needed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._look()

    def _look(self) -> None:
        """Ask the disk for what all processes have put there; sweep out what a killed one left half done."""
        self.bytes = self.unseen = 0
        for file in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process was quicker
                self.bytes += file.stat().st_size
                if file.name.endswith(".part") and time.time() - file.stat().st_mtime > ABANDONED_S:
                    Path(file).unlink()

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / f"{key}.safetensors"

    def others(self, suffix: str) -> int:
        """Bytes of the entries whose keys end otherwise."""
        files = [
            file for file in self.folder.glob("*.safetensors") if not file.stem.endswith(suffix)
        ]
        return sum(file.stat().st_size for file in files)

    def size(self, key: str) -> ImageSize | None:
        """Of the image, by its file's header, which says nothing about what follows it."""
        try:
            with safe_open(self.path(key), "pt") as file:
                grid = (file.metadata() or {}).get("grid")
                tokens = file.get_slice("tokens").get_shape()[0]
        except (OSError, SafetensorError):
            return None
        if grid is None:
            return ImageSize(tokens)
        frames, rows, columns = map(int, grid.split())
        return ImageSize(tokens, (frames, rows, columns))

    def get(self, key: str) -> Shaped[Tensor, "..."] | None:
        """The tensor, if its file is there and sound."""
        try:
            with safe_open(self.path(key), "pt") as file:
                value, metadata = file.get_tensor("tokens"), file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        return value if metadata.get("crc32") == _crc32(value) else None

    def put(
        self, key: str, value: Shaped[Tensor, "..."], grid: tuple[int, int, int] | None = None
    ) -> None:
        """Store a tensor while there is room; another process's additions are noticed after a hundredth of the store.

        Args:
            grid: of the image, where it has one.
        """
        if self.unseen > self.max_bytes / 100:
            self._look()
        if self.bytes + value.nbytes > self.max_bytes:
            return
        handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            metadata = {"crc32": _crc32(value)}
            if grid is not None:
                metadata["grid"] = " ".join(map(str, grid))
            save_file({"tokens": value.contiguous()}, part, metadata)
            size = Path(part).stat().st_size
            os.replace(part, self.path(key))
        except (OSError, SafetensorError) as error:
            Path(part).unlink(missing_ok=True)
            print(f"{self.folder}: {error}: nothing more is stored there", file=sys.stderr)
            self.max_bytes = 0
            return
        self.bytes += size
        self.unseen += size


def _crc32(value: Tensor) -> str:
    return str(
        zlib.crc32(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    )
