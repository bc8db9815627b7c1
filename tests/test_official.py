"""Official checkpoints: what loads, what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModel

from ixc.models.ixc25 import (
    BadCheckpoint,
    IXCForCausalLM,
    IXCForRewardModel,
    IXCModel,
    from_official,
    to_official,
)
from ixc.models.ixc25.folder import load, save
from ixc.models.ixc25.processing import SPECIAL

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


def shard(folder: Path, index: str = "model.safetensors.index.json") -> None:
    """Two files and an index, as large checkpoints come."""
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file)
    if index:
        named = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (folder / index).write_text(json.dumps(named))


def add_a_file(folder: Path) -> None:
    """A file that is none of the checkpoint's."""
    (folder / "optimizer.bin").write_bytes(b"no weights")


@pytest.mark.parametrize(
    "arrange",
    [
        add_a_file,
        shard,
        lambda folder: shard(folder, "weights.safetensors.index.json"),
        lambda folder: shard(folder, ""),
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
    ],
)
def test_what_is_written_officially_is_read_back(folder: Path, arrange: Any):
    arrange(folder)
    wanted, got = tiny.reward(), from_official(folder)
    assert isinstance(got, IXCForRewardModel) and not got.training
    assert all(torch.equal(x, got.state_dict()[name]) for name, x in wanted.state_dict().items())
    ids = torch.tensor([[1, 30, 31, 2]])
    assert torch.equal(got(ids).logits, wanted(ids).logits)


def types(model: torch.nn.Module) -> set[torch.dtype]:
    return {weights.dtype for weights in model.parameters()}


def test_the_type_is_the_stored_one_or_the_asked_one(folder: Path):
    assert types(from_official(folder)) == {torch.float32}
    assert types(from_official(folder, dtype=torch.bfloat16)) == {torch.bfloat16}
    half = {name: weight.half() for name, weight in weights_of(folder).items()}
    save_file(half, folder / "model.safetensors")
    assert types(from_official(folder)) == {torch.float16}
    assert types(from_official(folder, dtype="auto")) == {torch.float16}
    assert types(from_official(folder, dtype="float32", device="auto")) == {torch.float32}
    save_file(half | {NORM: torch.ones(16, dtype=torch.bfloat16)}, folder / "model.safetensors")
    assert types(from_official(folder)) == {torch.float32}  # the narrowest that holds both halves


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "flaot32"}, "dtype: 'flaot32': give"),
        ({"dtype": "int8"}, "dtype: 'int8': give"),
        ({"dtype": torch.int8}, r"dtype: torch\.int8: give"),
        ({"device": "abacus"}, "device: 'abacus': give"),
    ],
    ids=str,
)
def test_an_unknown_type_or_device_is_refused(folder: Path, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        from_official(folder, **options)


def pictured(model: Any) -> torch.Tensor:
    """The score of an image and a few words."""
    side, row = model.config.tile_size, model.config.side
    tiles = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))
    places = [model.config.image_token_id] * (3 * row * row + 1 + 2 * row)
    shown: dict[str, Any] = {"pixel_values": tiles, "tile_grids": torch.tensor([[1, 2]])}
    with torch.no_grad():
        return model(torch.tensor([[1, *places, 30, 31, 2]]), **shown).logits


SIZES: list[dict[str, Any]] = [
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1},
    {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 7},
    {"hidden_size": 40, "num_attention_heads": 1, "num_key_value_heads": 1},
    {"num_hidden_layers": 1, "vision_num_hidden_layers": 3},
    {"plora_rank": 1, "plora_scale": 2.0},
    {"plora_rank": 17, "plora_scale": 0.5},
    {"plora_ranks": {"wqkv": 2}},
    {"plora_ranks": {"w1": 1, "w2": 2, "w3": 5, "wo": 7}, "plora_scales": {"w2": 3.0, "wqkv": 0.5}},
    {"tile_size": 56},
    {"tile_size": 28, "patch_size": 7},
    {"vision_hidden_size": 36, "vision_num_attention_heads": 3, "vision_layer_norm_eps": 0.1},
    {"rms_norm_eps": 0.1, "pooling": "mean", "rope_theta": 100.0},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rms_norm_eps": 1, "vision_layer_norm_eps": 1, "plora_scale": 2, "plora_scales": {"wo": 3}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_sizes_are_read_from_weights_and_settings(sizes: dict[str, Any], tmp_path: Path):
    wanted = tiny.reward(**sizes)
    to_official(wanted, tmp_path / "official")
    got = from_official(tmp_path / "official")
    torch.testing.assert_close(pictured(got), pictured(wanted))
    assert not torch.allclose(pictured(got), pictured(tiny.reward()))


def test_settings_may_be_nested_and_heads_of_keys_follow_from_the_shapes(tmp_path: Path):
    wanted = tiny.reward(plora_scale=2.0)
    to_official(wanted, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["num_key_value_heads"], told["plora_scaling"]
    vision = told.pop("vision")
    nested = {"llm": told, "vision_config": vision, "plora_alpha": 6}  # rank 3
    (tmp_path / "config.json").write_text(json.dumps(nested))
    torch.testing.assert_close(pictured(from_official(tmp_path)), pictured(wanted))
    del told["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(nested | {"head_dim": 4}))
    torch.testing.assert_close(pictured(from_official(tmp_path)), pictured(wanted))


@pytest.mark.parametrize(
    ("rank", "wqkv", "told", "scale"),
    [
        (6, 2, {"plora_alpha": 6}, 3.0),
        (6, 8, {}, 2.0),  # the 4KHD model's
        (6, 2, {}, 1.0),
        (8, 8, {}, 1.0),
    ],
)
def test_a_linear_layer_of_another_rank_has_its_own_scale(
    rank: int, wqkv: int, told: dict[str, Any], scale: float, tmp_path: Path
):
    sizes: dict[str, Any] = {"plora_rank": rank, "plora_ranks": {"wqkv": wqkv}}
    wanted = tiny.reward(**sizes, plora_scales={"wqkv": scale})
    to_official(wanted, tmp_path)
    silent = json.loads((tmp_path / "config.json").read_text())
    del silent["plora_r"], silent["plora_scaling"]
    (tmp_path / "config.json").write_text(json.dumps(silent | told))
    torch.testing.assert_close(pictured(from_official(tmp_path)), pictured(wanted))
    assert not torch.allclose(
        pictured(wanted), pictured(tiny.reward(**sizes, plora_scales={"wqkv": scale / 2}))
    )


def with_tokenizer(folder: Path, first: int) -> Path:
    """A checkpoint that tells no ids, as official ones, and beside it a tokenizer with `first` characters ahead."""
    told = json.loads((folder / "config.json").read_text())
    ids = ("bos_token_id", "eos_token_id", "image_token_id", "end_of_turn_token_id")
    (folder / "config.json").write_text(
        json.dumps({name: x for name, x in told.items() if name not in ids})
    )
    letters = {chr(0x4E00 + i): i for i in range(first)}
    tokenizer = Tokenizer(
        models.BPE(letters | {token: first + i for i, token in enumerate(SPECIAL.values())}, [])
    )
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_ids_of_special_tokens_are_the_tokenizers(tmp_path: Path):
    to_official(tiny.causal(), tmp_path)
    model, processor = load(with_tokenizer(tmp_path, 90), IXCForCausalLM)
    config, ids = model.config, processor.ids
    assert ids["image"] == 96
    assert (config.bos_token_id, config.eos_token_id) == (ids["bos"], ids["eos"])
    assert (config.image_token_id, config.end_of_turn_token_id) == (ids["image"], ids["turn_end"])
    assert model.generation_config.eos_token_id == [ids["eos"], ids["turn_end"]]
    words = {id_ for id_ in range(280) if 0 <= id_ < 90} | {ids["eos"], ids["turn_end"]}
    assert model.generation_config.suppress_tokens == [
        id_ for id_ in range(280) if id_ not in words
    ]
    asked = [{"role": "user", "content": "\u4e00"}]
    seen = processor(asked, images=[Image.new("RGB", (28, 28))], for_reward=False)
    blind = processor(asked, for_reward=False)
    with torch.no_grad():
        assert not torch.allclose(model(**seen).logits[:, -1], model(**blind).logits[:, -1])


def test_ids_of_our_own_folders_are_the_tokenizers_too(tmp_path: Path):
    model = tiny.reward(image_token_id=200, end_of_turn_token_id=201)
    save(model, tiny.processor(), tmp_path / "ours")
    config = from_official(tmp_path / "ours").config
    ids = tiny.processor().ids
    assert (config.image_token_id, config.end_of_turn_token_id) == (ids["image"], ids["turn_end"])


def without_special(folder: Path) -> None:
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))


def forget_ids(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in told.items() if k != "image_token_id"})
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: with_tokenizer(f, 275),
            r"tokenizer\.json: '\[UNUSED_TOKEN_130\]' is 280, but the model knows 280",
        ),
        (without_special, r"tokenizer\.json: no token '<unk>'"),
        (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json: damaged"),
        (lambda f: (f / "tokenizer.model").write_bytes(b"x"), r"tokenizer\.model: damaged"),
        (lambda f: change(f, image_token_id=280), "image_token_id: 280: not among the 280"),
        (lambda f: change(f, end_of_turn_token_id=999), "end_of_turn_token_id: 999: not among"),
        (forget_ids, "image_token_id: 92528: not among the 280"),
    ],
)
def test_ids_that_the_model_does_not_know_are_refused(folder: Path, spoil: Any, message: str):
    spoil(folder)
    with pytest.raises(BadCheckpoint, match=message):
        from_official(folder)


def test_a_folder_of_ours_is_read_too(tmp_path: Path):
    wanted = tiny.reward(
        vision_hidden_size=72, vision_num_attention_heads=9
    )  # not the 64 channels a head of CLIP
    wanted.save_pretrained(tmp_path)
    torch.testing.assert_close(pictured(from_official(tmp_path)), pictured(wanted))


def test_no_pickle_is_read(tmp_path: Path):
    model = tiny.reward()
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        IXCForRewardModel.from_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin, pickles"):
        from_official(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), "reward: model.norm.weight missing; fetch all files"),
        (lambda weights: weights.update(abc=torch.ones(3)), "reward: abc not of this architecture"),
        (
            lambda weights: weights.update({"evil.lora_sft_A.weight": torch.ones(3)}),
            "evil.lora_sft_A.weight not of",
        ),
    ],
)
@pytest.mark.parametrize("loaded", [IXCForRewardModel, IXCForCausalLM, IXCModel, AutoModel])
def test_transformers_loading_is_as_strict(tmp_path: Path, loaded: Any, change: Any, message: str):
    folder = tmp_path / "reward"
    tiny.reward().save_pretrained(folder)
    assert loaded.from_pretrained(folder).config.hidden_size == 16
    weights = weights_of(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=message):
        loaded.from_pretrained(folder)


def test_what_transformers_found_can_still_be_asked_for(tmp_path: Path):
    tiny.reward().save_pretrained(tmp_path)
    _, found = IXCForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(found["missing_keys"]) == {"output.weight"}


def test_without_any_head_the_class_has_to_be_named(folder: Path):
    without(folder, "score.weight")
    with pytest.raises(
        BadCheckpoint, match=r"neither output\.weight nor score\.weight; name the model_class"
    ):
        from_official(folder)
    assert from_official(folder, model_class=IXCForRewardModel).load_report.new == ("score.weight",)


def test_another_head_is_new_and_said_to_be(folder: Path):
    policy = from_official(folder, model_class=IXCForCausalLM)
    assert policy.load_report.new == ("output.weight",)
    assert policy.load_report.ignored == ("score.weight",)
    assert 0 < policy.output.weight.std() < 0.1


def test_without_a_head(folder: Path):
    assert from_official(folder, model_class=IXCModel).load_report.ignored == ("score.weight",)


def test_unused_tensors_are_ignored_and_listed(folder: Path):
    vit = "vit.vision_tower.vision_model."
    beside = [
        *(
            f"{vit}{name}"
            for name in ("post_layernorm.weight", "post_layernorm.bias", "embeddings.position_ids")
        ),
        *(
            f"model.layers.0.attention.{name}.weight"
            for name in ("wo.lora_sft_A", "wqkv.lora_dpo_B")
        ),
        "model.layers.1.feed_forward.w2.lora_web_B.weight",
        *(
            f"model.layers.1.attention.rotary_emb.{name}"
            for name in ("inv_freq", "cos_cached", "sin_cached")
        ),
        "model.rotary_emb.inv_freq",
    ]
    weights = weights_of(folder) | {name: torch.ones(2, 2) for name in beside}
    save_file(weights, folder / "model.safetensors")
    assert set(from_official(folder).load_report.ignored) == set(beside)


def test_a_scaled_partial_lora_is_scaled(folder: Path):
    change(folder, plora_scaling=2.0)
    ids = torch.tensor([[1, tiny.processor().ids["image"], 30, 2]])
    image = torch.ones(1, 16)
    single, double = tiny.reward(), from_official(folder)
    assert not torch.allclose(
        single(ids, image_features=image).logits, double(ids, image_features=image).logits
    )
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


def leave(folder: Path, name: str) -> None:
    """An index whose first file, whole and sound, lies elsewhere."""
    shard(folder)
    index = folder / "model.safetensors.index.json"
    (folder / "model-1.safetensors").rename(folder.parent / "outside.safetensors")
    index.write_text(index.read_text().replace("model-1.safetensors", name))


def quantised(folder: Path) -> dict[str, torch.Tensor]:
    weights = weights_of(folder)
    return weights | {NORM: weights[NORM].to(torch.int8)}


def only_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: without(f, NORM), f"{NORM} missing"),
        (lambda f: without(f, "model.tok_embeddings.weight"), "not a whole IXC-2.5 checkpoint"),
        (
            lambda f: save_file(weights_of(f) | {NORM: torch.ones(7)}, f / "model.safetensors"),
            r"norm.*shape \[7\]",
        ),
        (
            lambda f: save_file(weights_of(f) | {"abc": torch.ones(7)}, f / "model.safetensors"),
            "abc not of this",
        ),
        *(
            (
                lambda f, name=name: save_file(
                    weights_of(f) | {name: torch.ones(7)}, f / "model.safetensors"
                ),
                name,
            )
            for name in (
                "evil.lora_sft_A.weight",
                "post_layernorm.weight",
                "model.layers.0.lora_sft_A.weight",
            )
        ),
        (
            lambda f: leave(f, "../outside.safetensors"),
            r"index\.json: \.\./outside\.safetensors: not a file of this",
        ),
        (
            lambda f: leave(f, str(f.parent / "outside.safetensors")),
            "outside.safetensors: not a file of this folder",
        ),
        (cut_off, "cut off"),
        (lose_a_shard, "model-2.safetensors: the index names"),
        (only_a_pickle, "pytorch_model.bin, pickles, which are not read"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors"),
        (
            lambda f: change(f, rope_scaling={"type": "yarn", "factor": 2.0}),
            "yarn.*one of default, linear, dynamic",
        ),
        (lambda f: change(f, hidden_size=32), "hidden_size: 32, but the weights say 16"),
        (lambda f: change(f, bias=True), "bias: true"),
        (
            lambda f: change(f, hidden_act="gelu"),
            'hidden_act: "gelu": this architecture has "silu"',
        ),
        (lambda f: change(f, tie_word_embeddings=True), "tie_word_embeddings: true"),
        (lambda f: change(f, vision={"hidden_act": "gelu"}), 'vision_hidden_act: "gelu"'),
        (lambda f: change(f, vision={"image_size": 336}), "tile_size: 336, but the weights say 28"),
        (
            lambda f: change(f, rope_scaling={"type": "linear"}),
            r"rope_scaling\.factor: None: give a number",
        ),
        (
            lambda f: change(f, rope_scaling={"factor": 2.0}),
            r"rope_scaling: \{'factor': 2\.0\}: no type; add it",
        ),
        (
            lambda f: change(f, rope_scaling={"type": None, "factor": 2.0}),
            "rope_scaling: .*no type; add it",
        ),
        (lambda f: change(f, head_dim=8), "head_dim: 8, but the weights say 4"),
        (lambda f: change(f, mm_hidden_size=33), "mm_hidden_size: 33, but the weights say 32"),
        (lambda f: change(f, plora_r=7), "plora_rank: 7, but the weights say 3"),
        (
            lambda f: change(f, plora_scaling={"wx": 1.0}),
            "plora_scales: .*wx.*wqkv, wo, w1, w2, w3",
        ),
        (lambda f: change(f, plora_scaling={"wo": "1"}), r"plora_scales\.wo: '1': give a number"),
        (lambda f: change(f, rope_scaling="linear"), "rope_scaling: 'linear': give"),
        (lambda f: change(f, pooling="max"), "pooling: 'max': unknown; one of last_token, mean"),
        (lambda f: change(f, num_attention_heads=None), "num_attention_heads: missing"),
        (
            lambda f: change(f, num_attention_heads=3),
            "hidden_size: 16: not a multiple of num_attention_heads",
        ),
        (lambda f: change(f, num_key_value_heads=4), "shape"),
        (lambda f: change(f, pad_token_id=False), "pad_token_id: False: give a whole number"),
        (lambda f: change(f, rms_norm_eps=True), "rms_norm_eps: True: give a number"),
        (lambda f: change(f, pad_token_id=99999), "pad_token_id: 99999: not among the 280"),
        (
            lambda f: (shard(f), (f / "model.safetensors.index.json").write_text("{}")),
            r"index\.json: no index",
        ),
        (
            lambda f: save_file({NORM: torch.ones(16)}, f / "again.safetensors"),
            "norm.weight is in again.safetensors too",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut off or no safetensors"),
        (
            lambda f: save_file(quantised(f), f / "model.safetensors"),
            "norm.weight: stored as I8; quantised",
        ),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, spoil: Any, message: str):
    spoil(folder)
    with pytest.raises(BadCheckpoint, match=message):
        from_official(folder)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.floats(-99, 99)
    | st.just(float("inf"))
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "factor"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def unhurt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    to_official(tiny.reward(), folder / "model")
    return folder / "model"


@settings(deadline=None, database=None)
@given(st.data())
def test_any_setting_is_used_or_refused(unhurt: Path, data: st.DataObject):
    told = json.loads((unhurt / "config.json").read_text())
    name = data.draw(st.sampled_from([*told, "llm", "head_dim", "plora_alpha"]))
    try:
        (unhurt / "config.json").write_text(json.dumps(told | {name: data.draw(JSON)}))
        score = from_official(unhurt)(torch.tensor([[1, 30, 31, 2]])).logits
    except BadCheckpoint as error:
        assert str(unhurt) in str(error)
    else:
        assert score.isfinite().all()
    finally:
        (unhurt / "config.json").write_text(json.dumps(told))


@settings(deadline=None, database=None)
@given(st.data())
def test_any_damage_to_a_file_is_harmless_or_refused(unhurt: Path, data: st.DataObject):
    path = unhurt / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header + 9))
    end = data.draw(st.sampled_from([len(whole), header, header + 9, at]))
    hurt = (whole[:at] + data.draw(st.binary(min_size=1, max_size=3)) + whole[at:])[:end]
    try:
        path.write_bytes(
            data.draw(st.sampled_from([hurt, whole[:at] + hurt[at : at + 1] + whole[at + 1 :]]))
        )
        assert from_official(unhurt).num_parameters() > 0
    except BadCheckpoint as error:
        assert str(unhurt) in str(error)
    finally:
        path.write_bytes(whole)
