"""The golden tests on another folder of the same form, whose numbers follow from those of the first.

Conversations have other names, one tail is gone, scores are pooled by the mean, and the vocabulary is in another order:
none of this changes a hidden state.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, arrays, derived, described, needs_golden
from safetensors.torch import load_file, save_file

from ixc.model.tokenizers import read_pieces

ID_LISTS = ("ids", "tail_ids", "new_ids", "no_cache_argmax_ids", "text_ids", "target_ids", "eos_token_ids")
ID_ARRAYS = ("logits_ids", "logits_top20_ids")
OTHERS = ("cars", "preprocess.json", "video.json")
"""Photographs of the 7B, whose ids are of its vocabulary; geometry, which is the same in any form."""
MATRICES = ("model.tok_embeddings.weight", "output.weight")


def order_of(moved: str) -> list[int]:
    """The old ids in a new order: `[UNUSED_TOKEN_...]`, which stood at the end, come after the three first."""
    pieces = read_pieces(GOLDEN / "tokenizer.model")
    unused = [i for i, piece in enumerate(pieces) if piece.text.startswith(moved)]
    return [0, 1, 2, *unused, *(i for i in range(3, len(pieces)) if i not in set(unused))]


def varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def reordered(model: bytes, order: list[int]) -> bytes:
    """A sentencepiece model with its pieces, which stand at its beginning, in another order."""
    entries, at = [], 0
    while model[at] == 0x0A:  # field 1, a message
        size, shift, start = 0, 0, at + 1
        while model[start] & 0x80:
            size, shift, start = size | (model[start] & 0x7F) << shift, shift + 7, start + 1
        at = start + 1 + (size | model[start] << shift)
        entries.append(model[start + 1 : at])
    return b"".join(b"\x0a" + varint(len(entries[i])) + entries[i] for i in order) + model[at:]


def mapped(told: Any, new: list[int], key: str = "") -> Any:
    """A file with its ids in the new vocabulary, and one tail of two."""
    if isinstance(told, dict):
        return {name: mapped(value, new, name) for name, value in told.items() if name != "nonl"}
    if key in ID_LISTS:
        return [new[i] for i in told]
    return [mapped(value, new) for value in told] if isinstance(told, list) else told


def named(key: str) -> str:
    """A row's key with another name for its conversation."""
    case, *rest = key.split("|")
    return "|".join([f"talk {case[::-1]}" if case in described("text")["cases"] else case, *rest])


def write(path: Path, told: Any) -> None:
    path.unlink()
    path.write_text(json.dumps(told))


def write_arrays(path: Path, found: Iterable[tuple[str, torch.Tensor]]) -> None:
    path.unlink()
    np.savez(path, allow_pickle=False, **{key: array.numpy() for key, array in found if "nonl" not in key.split("|")})


def another(folder: Path) -> None:
    """Fill a folder with the golden data in the other form."""
    for path in GOLDEN.iterdir():
        if path.name not in OTHERS:
            (folder / path.name).symlink_to(path)
    order = order_of("[UNUSED_TOKEN_")
    new = torch.tensor(order).argsort().tolist()
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").write_bytes(reordered((GOLDEN / "tokenizer.model").read_bytes(), order))
    write_weights(folder, order)
    write_rows(folder, new)
    for name in ("generation", "sft"):
        write(folder / f"{name}.json", mapped(described(name), new))
    write_arrays(folder / "rm_grads.npz", arrays("rm_grads").items())


def write_weights(folder: Path, order: list[int]) -> None:
    told = {name: value for name, value in described("config").items() if name != "derived_weights"}
    write(folder / "config.json", told | {"pooling": "mean"})
    weights = load_file(GOLDEN / "weights.safetensors")
    (folder / "weights.safetensors").unlink()
    save_file(weights | {name: derived(name)[order] for name in MATRICES}, folder / "weights.safetensors")


def write_rows(folder: Path, new: list[int]) -> None:
    """Everything in which conversations have names, or tails."""
    texts = mapped(described("text"), new)
    write(folder / "text.json", texts | {"cases": {named(case): told for case, told in texts["cases"].items()}})
    rows = mapped(described("forward"), new)
    rows["cases"] = [told | {"key": named(told["key"])} for told in rows["cases"] if "|nonl|" not in told["key"]]
    rows["rope_scaling_extras"] = [told | {"input": named(told["input"])} for told in rows["rope_scaling_extras"]]
    for told in rows["api"].values():
        told["conversations"] = list(map(named, told["conversations"]))
    write(folder / "forward.json", rows)
    kept = (
        (key, torch.tensor(new)[a] if key.split("|")[-1] in ID_ARRAYS else a) for key, a in arrays("forward").items()
    )
    write_arrays(folder / "forward.npz", ((named(key), array) for key, array in kept))
    batches = [told for told in described("rm_loss")["batches"] if told["tail"] == "nl"]
    write(folder / "rm_loss.json", {"batches": [told | {"grad_l2_norm": renumbered(told, new)} for told in batches]})


def renumbered(told: dict[str, Any], new: list[int]) -> dict[str, float | None]:
    """Norms of the gradients, those of an embedding by its new number."""
    norms = told["grad_l2_norm"].items()
    return {name.replace("[92527]", f"[{new[92527]}]"): norm for name, norm in norms}


@pytest.mark.slow
@needs_golden
def test_another_folder_of_the_same_form_passes(tmp_path: Path):
    another(tmp_path)
    where = os.environ | {"IXC_GOLDEN": str(tmp_path)}
    asked = [sys.executable, "-m", "pytest", "-q", "tests/test_golden.py", "-p", "no:cacheprovider"]
    ran = subprocess.run(asked, env=where, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:]
