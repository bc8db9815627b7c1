"""A folder of golden data: its files, its sizes, and the folder of the official form that it is the source of.

A file that a folder lacks has no cases: its tests are not there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ixc.models.ixc25 import IXCProcessor

DEFAULT = Path(__file__).parents[2] / "shared" / "golden"
GOLDEN = Path(os.environ.get("IXC_GOLDEN", DEFAULT)).resolve()
if "IXC_GOLDEN" in os.environ and not (GOLDEN / "config.json").is_file():
    raise FileNotFoundError(
        f"IXC_GOLDEN: {GOLDEN}: no config.json there; name a folder of golden data"
    )


def needs_golden(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test reads golden data, and is skipped where there are none: a clone alone has none."""
    absent = pytest.mark.skipif(
        not (GOLDEN / "config.json").is_file(), reason=f"{GOLDEN}: no golden data"
    )
    return pytest.mark.real(absent(test))


@cache
def described(name: str) -> dict[str, Any]:
    path = GOLDEN / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def cases(name: str, key: str = "cases") -> Any:
    """A file's cases, a list or by name; none where the file is not there."""
    return described(name).get(key, [])


@cache
def arrays(name: str) -> dict[str, Tensor]:
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


VISION = described("config").get("vision", {})
TILE, PATCH = VISION.get("image_size", 560), VISION.get("patch_size", 14)
SIDE = TILE // PATCH // 2
"""Tokens along one side of a tile."""


def tokenizer_files() -> list[Path]:
    """The tokenizer's files; a folder without a tokenizer of its own has that of the 7B."""
    own = [
        path for path in (GOLDEN / "tokenizer.model", GOLDEN / "tokenizer.json") if path.is_file()
    ]
    return own or [DEFAULT / "tokenizer.model"]


@cache
def official_folder() -> Path:
    """Config and tokenizer; the weights come later."""
    folder = Path(tempfile.mkdtemp(prefix="ixc-golden-"))
    for path in (GOLDEN / "config.json", *tokenizer_files()):
        shutil.copy(path, folder / path.name)
    return folder


@cache
def ids() -> dict[str, int]:
    """Ids of the control tokens in this folder's vocabulary."""
    return IXCProcessor.from_official(official_folder()).ids


def with_images(text_ids: Sequence[int], after: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Ids with our marker in the places of image tokens.

    Args:
        after: how many of the text's ids stand before each image.
        lengths: tokens of each image.
    """
    ends = [*after, len(text_ids)]
    whole = list(text_ids[: ends[0]])
    for length, start, end in zip(lengths, after, ends[1:], strict=True):
        whole += [ids()["image"]] * length + list(text_ids[start:end])
    return whole


def derived(name: str) -> Tensor:
    """A large matrix that is made, not stored."""
    told = described("config")["derived_weights"][name]
    uniform = np.random.RandomState(told["seed"]).random_sample(told["shape"])
    matrix = ((uniform * 2.0 - 1.0) * told["scale"]).astype(np.float32)
    assert hashlib.sha256(matrix.tobytes()).hexdigest() == told["sha256"]
    return torch.from_numpy(matrix)
