"""A checkpoint's tensors on disk: names, shapes and types without the data, and the sizes of a model that they show."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ixc.models.base import BadCheckpoint, some

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LAYER = "model.layers.0."
VIT = "vit.vision_tower.vision_model."


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder of safetensors, by name, and where each lies."""

    folder: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    """As safetensors names them."""

    def tensors(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Read these, file by file."""
        for path in sorted({self.files[name] for name in names}):
            with _opened(path) as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys() if name in names)  # noqa: SIM118


def indexed(folder: Path) -> list[Path]:
    """The files of weights that Transformers would read: one, or those of the index.

    Raises:
        BadCheckpoint: the index is damaged.
    """
    one = folder / "model.safetensors"
    return [one] if one.is_file() else _indexed(folder / "model.safetensors.index.json")


def read_checkpoint(folder: Path, paths: Sequence[Path] | None = None) -> Checkpoint:
    """Names, shapes and types of a folder's tensors; the data stays on disk.

    Args:
        paths: the files to read; None: those of the index, or all.

    Raises:
        BadCheckpoint: no safetensors there, or one that the index names is missing or cut off.
    """
    index = sorted(folder.glob("*.safetensors.index.json"))
    paths = paths or (_indexed(index[0]) if index else sorted(folder.glob("*.safetensors")))
    if not paths:
        pickles = sorted(
            path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in folder.glob(suffix)
        )
        hint = (
            f"only {', '.join(pickles[:3])}, pickles, which are not read: save as safetensors"
            if pickles
            else ""
        )
        raise BadCheckpoint(
            f"{folder}: no *.safetensors; {hint or 'name the folder of a checkpoint'}"
        )
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                if name in files:
                    raise BadCheckpoint(
                        f"{path}: {name} is in {files[name].name} too; keep one checkpoint per folder"
                    )
                part = file.get_slice(name)
                files[name], shapes[name], types[name] = (
                    path,
                    tuple(part.get_shape()),
                    part.get_dtype(),
                )
    return Checkpoint(folder, files, shapes, types)


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, all of its folder."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if PurePath(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"{index}: no index of safetensors ({error!r}); fetch it again"
        ) from error
    if outside:
        raise BadCheckpoint(
            f"{index}: {some(outside)}: not a file of this folder; put it there and name it alone"
        )
    return [index.parent / name for name in names]


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise BadCheckpoint(f"{path}: the index names this file, but it is not there; fetch it")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise BadCheckpoint(
            f"{path}: cut off or no safetensors ({error}); fetch it again"
        ) from error


def stored_type(checkpoint: Checkpoint, names: Iterable[str]) -> torch.dtype:
    """The widest type among these tensors.

    Raises:
        BadCheckpoint: one is quantised.
    """
    names_by_type = {checkpoint.types[name]: name for name in names}
    for kind, name in names_by_type.items():
        if kind not in FLOATS:
            form = f"{name}: stored as {kind}; quantised weights are not read: use the bf16 or fp16 checkpoint"
            raise BadCheckpoint(f"{checkpoint.files[name]}: {form}")
    return reduce(torch.promote_types, (FLOATS[kind] for kind in names_by_type))


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What the shapes show."""
    vocab_size, hidden_size = shapes["model.tok_embeddings.weight"]
    vision_width, _, _, patch = shapes[f"{VIT}embeddings.patch_embedding.weight"]
    patches = shapes[f"{VIT}embeddings.position_embedding.weight"][0] - 1
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": shapes[f"{LAYER}feed_forward.w1.weight"][0],
        "num_hidden_layers": _count(shapes, r"model\.layers\.(\d+)\."),
        "tile_size": round(patches**0.5) * patch,
        "patch_size": patch,
        "vision_hidden_size": vision_width,
        "vision_intermediate_size": shapes[f"{VIT}encoder.layers.0.mlp.fc1.weight"][0],
        "vision_num_hidden_layers": _count(shapes, re.escape(VIT) + r"encoder\.layers\.(\d+)\."),
    }


def _count(names: Mapping[str, Any], pattern: str) -> int:
    matches = [re.match(pattern, name) for name in names]
    return len({match[1] for match in matches if match})
