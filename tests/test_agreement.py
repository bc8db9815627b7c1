"""The parts of a folder belong together, and no configuration is absurd: said at load, before it costs time."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoProcessor

from ixc.models.ixc25 import (
    BadCheckpoint,
    IXCConfig,
    IXCForCausalLM,
    IXCForRewardModel,
    IXCProcessor,
    from_official,
    to_official,
)
from ixc.models.ixc25.folder import load, save
from ixc.models.ixc25.processing import BadProcessor, train_tokenizer
from ixc.models.ixc25.tiles import partition


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "reward"
    save(tiny.reward(), tiny.processor(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "reward"))


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def larger_tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog " * 3] * 9, 300)


DOORS = {
    "load": lambda folder: load(folder, IXCForRewardModel),
    "from_official": from_official,
    "from_pretrained": IXCForRewardModel.from_pretrained,
    "another head": IXCForCausalLM.from_pretrained,
    "auto": AutoModelForSequenceClassification.from_pretrained,
}
SIZES: dict[str, int] = {
    "num_hidden_layers": 1000,
    "hidden_size": 32,
    "intermediate_size": 25,
    "vocab_size": 300,
    "tile_size": 56,
    "patch_size": 7,
    "vision_hidden_size": 16,
    "vision_intermediate_size": 13,
    "vision_num_hidden_layers": 2,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_the_weights_have_not_is_refused_at_every_door(
    folder: Path, door: str, name: str
):
    change(folder / "config.json", **{name: SIZES[name]})
    with pytest.raises(
        BadCheckpoint,
        match=rf"config\.json: {name}: {SIZES[name]}, but the weights say \d+; correct",
    ):
        DOORS[door](folder)


ABSURD: dict[str, Any] = {
    "num_hidden_layers": 10**6,
    "vision_num_hidden_layers": 10**6,
    "hd_num": 10**9,
    "vocab_size": 10**12,
    "hidden_size": 10**9,
    "intermediate_size": 10**9,
    "num_attention_heads": 10**9,
    "num_key_value_heads": 0,
    "max_position_embeddings": 10**30,
    "plora_rank": 10**9,
    "plora_ranks": {"wqkv": 10**9},
    "tile_size": 28 * 10**6,
    "patch_size": -1,
    "rms_norm_eps": 10**400,
    "pad_token_id": 10**9,
    "num_labels": 10**9,
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_number_is_refused_by_name_before_it_costs_time(folder: Path, name: str):
    change(folder / "config.json", **{name: ABSURD[name]})
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"{name}(\.wqkv)?: "):
        IXCConfig(**{name: ABSURD[name]})
    for door in DOORS.values():
        with pytest.raises(ValueError, match=rf"{name}(\.wqkv)?: "):
            door(folder)
    assert time.process_time() - start < 2


def test_sizes_that_are_absurd_together_are_refused():
    with pytest.raises(ValueError, match=r"6e\+13 weights, more than 1e\+12"):
        IXCConfig(
            hidden_size=65536,
            intermediate_size=2**18,
            num_hidden_layers=1000,
            num_attention_heads=1024,
        )
    assert IXCConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128
    )


@pytest.mark.parametrize(
    "door", [IXCProcessor.from_pretrained, AutoProcessor.from_pretrained, *DOORS.values()]
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tile_size": 56},
            r"tile_size: the processor's is 56, but the model's is 28 \(config\.json\); correct",
        ),
        (
            {"patch_size": 7},
            r"patch_size: the processor's is 7, but the model's is 14 \(config\.json\); correct",
        ),
    ],
)
def test_a_processor_of_another_geometry_is_refused(
    folder: Path, door: Any, settings: Any, message: str
):
    change(folder / "processor_config.json", **settings)
    if door is from_official:  # which loads a model alone, and never looks at the processor
        return
    with pytest.raises((BadProcessor, BadCheckpoint), match=message):
        door(folder)


@pytest.mark.parametrize(
    "door", [IXCProcessor.from_pretrained, AutoProcessor.from_pretrained, *DOORS.values()]
)
def test_a_tokenizer_beyond_the_vocabulary_is_refused(folder: Path, door: Any):
    larger_tokenizer().save(str(folder / "tokenizer.json"))
    if door is from_official:  # special tokens are within it
        return
    with pytest.raises(
        (BadProcessor, BadCheckpoint),
        match=r"vocabulary: the processor's tokenizer has \d+ tokens, but",
    ):
        door(folder)


def test_special_tokens_that_the_model_does_not_know_are_refused(folder: Path):
    change(folder / "config.json", image_token_id=200)
    with pytest.raises(
        BadCheckpoint,
        match=r"image_token_id: 200, but tokenizer\.json has '\[UNUSED_TOKEN_131\]' at 6",
    ):
        IXCForRewardModel.from_pretrained(folder)
    assert load(folder, IXCForRewardModel)[0].config.image_token_id == 6


def test_parts_that_do_not_fit_are_not_saved_together(tmp_path: Path):
    for processor in (
        IXCProcessor(tiny.processor().backend, 56, 14, 4),
        IXCProcessor(larger_tokenizer(), tiny.TILE, tiny.PATCH, 4),
    ):
        with pytest.raises(BadProcessor, match="the processor's"):
            save(tiny.reward(), processor, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_options_kept_for_the_way_back_must_fit_too(tmp_path: Path):
    to_official(tiny.reward(), tmp_path / "official", {"tile_size": 56})
    tiny.processor().backend.save(str(tmp_path / "official" / "tokenizer.json"))
    with pytest.raises(BadProcessor, match=r"official: tile_size: the processor's is 56"):
        load(tmp_path / "official", IXCForRewardModel)


def test_weights_in_several_files_are_compared_too(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert IXCForRewardModel.from_pretrained(folder).config.num_hidden_layers == 2
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(BadCheckpoint, match="num_hidden_layers: 3, but the weights say 2"):
        IXCForRewardModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hd_num", 10**9),
        ("hd_num_several", 10**9),
        ("tile_size", 28 * 10**6),
        ("max_frames", 10**9),
    ],
)
def test_absurd_options_of_a_processor_are_refused(option: str, value: int):
    options: dict[str, Any] = {"tile_size": tiny.TILE, "patch_size": tiny.PATCH, option: value}
    with pytest.raises(
        BadProcessor, match=f"{option}: {value}: Input should be less than or equal to"
    ):
        IXCProcessor(tiny.processor().backend, **options)


def test_an_absurd_number_of_tiles_in_a_call_is_refused():
    with pytest.raises(BadProcessor, match="hd_num: 1000000000: "):
        tiny.processor()([{"role": "user", "content": "Hi"}], for_reward=False, hd_num=10**9)


def test_a_partition_costs_what_the_image_needs_not_what_is_allowed():
    start = time.process_time()
    assert partition(1920, 1080, 10**12, 560) == partition(1920, 1080, 100, 560)
    assert time.process_time() - start < 0.5
