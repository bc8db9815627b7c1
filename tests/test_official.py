"""Official checkpoints: what loads, what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from ixc.model import BadCheckpoint, IXCForCausalLM, IXCForRewardModel, IXCModel, from_official, to_official

NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny reward model in the official form."""
    to_official(tiny.reward(), tmp_path / "official")
    return tmp_path / "official"


def change(folder: Path, **settings: Any) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | settings))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def shard(folder: Path) -> None:
    """Two files and an index, as large checkpoints come."""
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_written_officially_is_read_back(folder: Path, sharded: bool):
    if sharded:
        shard(folder)
    wanted, got = tiny.reward(), from_official(folder)
    assert isinstance(got, IXCForRewardModel) and not got.training
    assert all(torch.equal(x, got.state_dict()[name]) for name, x in wanted.state_dict().items())
    ids = torch.tensor([[1, 30, 31, 2]])
    assert torch.equal(got(ids).logits, wanted(ids).logits)


def test_the_type_is_the_stored_one_or_the_asked_one(folder: Path):
    assert from_official(folder).dtype == torch.float32
    assert from_official(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_another_head_is_new_and_said_to_be(folder: Path):
    policy = from_official(folder, model_class=IXCForCausalLM)
    assert policy.load_report.new == ("output.weight",)
    assert policy.load_report.ignored == ("score.weight",)
    assert 0 < policy.output.weight.std() < 0.1


def test_without_a_head(folder: Path):
    assert from_official(folder, model_class=IXCModel).load_report.ignored == ("score.weight",)


def test_unused_tensors_are_ignored_and_listed(folder: Path):
    beside = ["vit.vision_tower.vision_model.post_layernorm.weight", "model.layers.0.attention.wo.lora_sft_A.weight"]
    weights = weights_of(folder) | {name: torch.ones(2, 2) for name in beside}
    save_file(weights, folder / "model.safetensors")
    assert set(from_official(folder).load_report.ignored) == set(beside)


def test_a_scaled_partial_lora_is_scaled(folder: Path):
    change(folder, plora_scaling=2.0)
    ids = torch.tensor([[1, tiny.processor().ids["image"], 30, 2]])
    picture = torch.ones(1, 16)
    single, double = tiny.reward(), from_official(folder)
    assert not torch.allclose(single(ids, features=picture).logits, double(ids, features=picture).logits)
    assert torch.equal(single(ids[:, 2:]).logits, double(ids[:, 2:]).logits)


def without(folder: Path, name: str) -> None:
    weights = weights_of(folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-2.safetensors").unlink()


def only_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: without(f, NORM), f"{NORM} missing"),
        (lambda f: without(f, "model.tok_embeddings.weight"), "not a whole IXC-2.5 checkpoint"),
        (lambda f: save_file(weights_of(f) | {NORM: torch.ones(7)}, f / "model.safetensors"), r"norm.*shape \[7\]"),
        (lambda f: save_file(weights_of(f) | {"abc": torch.ones(7)}, f / "model.safetensors"), "abc not of this"),
        (cut_off, "cut off"),
        (lose_a_shard, "model-2.safetensors: the index names"),
        (only_a_pickle, "pytorch_model.bin, pickles, which are not read"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors"),
        (lambda f: change(f, rope_scaling={"type": "yarn", "factor": 2.0}), "yarn.*one of default, linear, dynamic"),
        (lambda f: change(f, hidden_size=32), "hidden_size: 32, but the weights say 16"),
        (lambda f: change(f, bias=True), "bias: true"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, spoil: Any, message: str):
    spoil(folder)
    with pytest.raises(BadCheckpoint, match=message):
        from_official(folder)
