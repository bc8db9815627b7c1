"""The golden tests on another folder of the same form, whose numbers follow from those of the first.

Conversations have other names, one tail is gone, scores are pooled by the mean, and the vocabulary is in another order:
none of this changes a hidden state.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, arrays, derived, described, needs_golden, tokenizer_files
from safetensors.torch import load_file, save_file

from ixc.models.ixc25.tokenizers import read_pieces

ID_LISTS = (
    "ids",
    "tail_ids",
    "new_ids",
    "no_cache_argmax_ids",
    "text_ids",
    "target_ids",
    "eos_token_ids",
)
ID_ARRAYS = ("logits_ids", "logits_top20_ids")
OTHERS = ("cars", "preprocess.json", "video.json")
"""Photographs of the 7B, whose ids are of its vocabulary; geometry, which is the same in any form."""
MATRICES = ("model.tok_embeddings.weight", "output.weight")


def order_of(tokenizer: Path, moved: str) -> list[int]:
    """The old ids in a new order: `[UNUSED_TOKEN_...]`, which stood at the end, come after the three first."""
    pieces = read_pieces(tokenizer)
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
    return "|".join(
        [f"talk {case[::-1]}" if case in described("text").get("cases", {}) else case, *rest]
    )


def replaced(path: Path) -> bool:
    """Make room for a file in another form; false where the folder has no such file, and no such cases."""
    there = path.is_symlink()
    path.unlink(missing_ok=True)
    return there


def write(path: Path, told: Any) -> None:
    if replaced(path):
        path.write_text(json.dumps(told))


def write_arrays(path: Path, found: Iterable[tuple[str, torch.Tensor]]) -> None:
    if replaced(path):
        np.savez(
            path,
            allow_pickle=False,
            **{key: array.numpy() for key, array in found if "nonl" not in key.split("|")},
        )


def another(folder: Path, tokenizer: Path) -> None:
    """Fill a folder with the golden data in the other form.

    Args:
        tokenizer: the sentencepiece model of the golden data, which may lie elsewhere.
    """
    for path in GOLDEN.iterdir():
        if path.name not in OTHERS:
            (folder / path.name).symlink_to(path)
    order = order_of(tokenizer, "[UNUSED_TOKEN_")
    new = torch.tensor(order).argsort().tolist()
    replaced(folder / "tokenizer.model")
    (folder / "tokenizer.model").write_bytes(reordered(tokenizer.read_bytes(), order))
    write_weights(folder, order)
    write_rows(folder, new)
    for name in ("generation", "sft"):
        write(folder / f"{name}.json", mapped(described(name), new))
    write_arrays(folder / "rm_grads.npz", arrays("rm_grads").items())


def write_weights(folder: Path, order: list[int]) -> None:
    told = {name: value for name, value in described("config").items() if name != "derived_weights"}
    write(folder / "config.json", told | {"pooling": "mean"})
    weights = load_file(GOLDEN / "weights.safetensors")
    made = described("config").get("derived_weights", {})
    matrices = {
        name: (derived(name) if name in made else weights[name])[order] for name in MATRICES
    }
    if replaced(folder / "weights.safetensors"):
        save_file(weights | matrices, folder / "weights.safetensors")


def write_rows(folder: Path, new: list[int]) -> None:
    """Everything in which conversations have names, or tails."""
    texts = mapped(described("text"), new)
    write(
        folder / "text.json",
        texts | {"cases": {named(case): told for case, told in texts.get("cases", {}).items()}},
    )
    rows = mapped(described("forward"), new)
    cases = [told for told in rows.get("cases", ()) if "|nonl|" not in told["key"]]
    rows["cases"] = [told | {"key": named(told["key"])} for told in cases]
    extras = rows.get("rope_scaling_extras", ())
    rows["rope_scaling_extras"] = [told | {"input": named(told["input"])} for told in extras]
    for told in rows.get("api", {}).values():
        told["conversations"] = list(map(named, told["conversations"]))
    write(folder / "forward.json", rows)
    kept = (
        (key, torch.tensor(new)[a] if key.split("|")[-1] in ID_ARRAYS else a)
        for key, a in arrays("forward").items()
    )
    write_arrays(folder / "forward.npz", ((named(key), array) for key, array in kept))
    batches = [told for told in described("rm_loss").get("batches", ()) if told["tail"] == "nl"]
    write(
        folder / "rm_loss.json",
        {"batches": [told | {"grad_l2_norm": renumbered(told, new)} for told in batches]},
    )


def renumbered(told: dict[str, Any], new: list[int]) -> dict[str, float | None]:
    """Norms of the gradients, those of an embedding by its new number."""
    norms = told["grad_l2_norm"].items()
    return {
        re.sub(r"\[(\d+)\]$", lambda found: f"[{new[int(found[1])]}]", name): norm
        for name, norm in norms
    }


@pytest.mark.slow
@needs_golden
def test_another_folder_of_the_same_form_passes(tmp_path: Path):
    tokenizer = next((path for path in tokenizer_files() if path.name == "tokenizer.model"), None)
    if tokenizer is None:
        pytest.skip(
            f"{GOLDEN}: only a tokenizer.model can be put into another order, and it has a tokenizer.json alone"
        )
    another(tmp_path, tokenizer)
    where = os.environ | {"IXC_GOLDEN": str(tmp_path)}
    asked = [sys.executable, "-m", "pytest", "-q", "tests/test_golden.py", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        asked, env=where, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:]


@pytest.mark.slow
@needs_golden
def test_a_folder_without_a_tokenizer_or_a_file_of_cases_takes_the_other_form(tmp_path: Path):
    # what the test above does with any folder, without its arithmetic
    lacking, other = tmp_path / "lacking", tmp_path / "other"
    lacking.mkdir()
    for path in GOLDEN.iterdir():
        if path.name not in ("tokenizer.model", "generation.json", "rm_loss.json", "rm_grads.npz"):
            (lacking / path.name).symlink_to(path)
    made = (
        "from pathlib import Path; from golden import tokenizer_files; from test_golden_forms import another;"
        f"another(Path({str(other)!r}), *tokenizer_files())"
    )
    other.mkdir()
    where = os.environ | {
        "IXC_GOLDEN": str(lacking),
        "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path.cwd()}",
    }
    ran = subprocess.run(
        [sys.executable, "-c", made], env=where, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert (other / "tokenizer.model").is_file() and not (other / "generation.json").exists()
    assert len(read_pieces(other / "tokenizer.model")) == len(read_pieces(tokenizer_files()[0]))
