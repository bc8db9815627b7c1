"""A folder of golden data: its files, its sizes, and the folder of the official form that it is the source of.

A file that a folder lacks has no cases: its tests are not there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEFAULT = Path(__file__).parents[2] / "shared" / "golden"
GOLDEN = Path(os.environ.get("IXC_GOLDEN", DEFAULT)).resolve()
if "IXC_GOLDEN" in os.environ and not (GOLDEN / "config.json").is_file():
    raise FileNotFoundError(f"IXC_GOLDEN: {GOLDEN}: no config.json there; name a folder of golden data")


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


@cache
def official_folder() -> Path:
    """Config and tokenizer; the weights come later. The vocabulary is the same in every folder of this form."""
    folder = Path(tempfile.mkdtemp(prefix="ixc-golden-"))
    own = GOLDEN / "tokenizer.model"
    shutil.copy(GOLDEN / "config.json", folder / "config.json")
    shutil.copy(own if own.is_file() else DEFAULT / "tokenizer.model", folder / "tokenizer.model")
    return folder


def derived(name: str) -> Tensor:
    """A large matrix that is made, not stored."""
    told = described("config")["derived_weights"][name]
    uniform = np.random.RandomState(told["seed"]).random_sample(told["shape"])
    matrix = ((uniform * 2.0 - 1.0) * told["scale"]).astype(np.float32)
    assert hashlib.sha256(matrix.tobytes()).hexdigest() == told["sha256"]
    return torch.from_numpy(matrix)
