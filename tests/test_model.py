"""The architecture: the official names and shapes, Partial LoRA, saving and loading, the cache."""

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
)

from ixc.models.ixc25 import (
    IXCConfig,
    IXCForCausalLM,
    IXCForRewardModel,
    IXCModel,
    IXCPreTrainedModel,
)
from ixc.models.ixc25.language import PLoRALinear, WrongImages
from ixc.models.ixc25.vision import image_sequence, merge_patches

IMAGE = tiny.processor().ids["image"]
IDS = torch.tensor([[1, IMAGE, IMAGE, 30, 31, 32]])
TOKENS = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))


def official() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 7B checkpoint without its head."""
    clip, layers = "vit.vision_tower.vision_model.", {}
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (92544, 4096),
        "model.norm.weight": (4096,),
        "plora_glb_GN": (1, 1, 4096),
        "plora_sub_GN": (1, 1, 1, 4096),
        **_affine("vision_proj.0", 4096, 4096),
        **_affine("vision_proj.2", 4096, 4096),
        f"{clip}embeddings.class_embedding": (1024,),
        f"{clip}embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        f"{clip}embeddings.position_embedding.weight": (1601, 1024),
        **_affine(f"{clip}pre_layrnorm", 1024),
    }
    for n in range(32):
        layers[f"model.layers.{n}.attention_norm.weight"] = (4096,)
        layers[f"model.layers.{n}.ffn_norm.weight"] = (4096,)
        linears = {
            "attention.wqkv": (6144, 4096),
            "attention.wo": (4096, 4096),
            "feed_forward.w1": (14336, 4096),
            "feed_forward.w2": (4096, 14336),
            "feed_forward.w3": (14336, 4096),
        }
        for name, (wide, narrow) in linears.items():
            layers[f"model.layers.{n}.{name}.weight"] = (wide, narrow)
            layers[f"model.layers.{n}.{name}.Plora_A.weight"] = (256, narrow)
            layers[f"model.layers.{n}.{name}.Plora_B.weight"] = (wide, 256)
    for n in range(24):
        layer = f"{clip}encoder.layers.{n}."
        for norm in ("layer_norm1", "layer_norm2"):
            layers |= _affine(layer + norm, 1024)
        for projection in ("q", "k", "v", "out"):
            layers |= _affine(f"{layer}self_attn.{projection}_proj", 1024, 1024)
        layers |= _affine(f"{layer}mlp.fc1", 4096, 1024) | _affine(f"{layer}mlp.fc2", 1024, 4096)
    return shapes | layers


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (IXCForRewardModel, {"score.weight": (1, 4096)}),
        (IXCForCausalLM, {"output.weight": (92544, 4096)}),
    ],
)
def test_names_and_shapes_are_the_official_7b(
    kind: type[IXCPreTrainedModel], head: dict[str, tuple[int, ...]]
):
    with torch.device("meta"):
        model = kind(IXCConfig())
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == official() | head


def test_the_7b_has_as_many_parameters_as_the_reward_checkpoint():
    # 16.6 GB at two bytes each, the LoRAs that no mode but "write" and "web" uses left out
    with torch.device("meta"):
        model = IXCForRewardModel(IXCConfig())
    assert sum(weights.numel() for weights in model.parameters()) == 8_300_756_992


def test_partial_lora_touches_image_tokens_only():
    layer = tiny.shaken(PLoRALinear(4, 6, rank=2))
    x, places = torch.randn(1, 3, 4), torch.tensor([1])
    plain, partial = layer(x, None), layer(x, places)
    low_rank = x[0, 1] @ layer.Plora_A.weight.T @ layer.Plora_B.weight.T
    assert torch.equal(plain[0, [0, 2]], partial[0, [0, 2]])
    torch.testing.assert_close(partial[0, 1], plain[0, 1] + low_rank)
    torch.testing.assert_close(plain, x @ layer.weight.T)


def test_an_untrained_partial_lora_changes_nothing():
    model = IXCForCausalLM(tiny.config())
    wanted = model.model(IDS, image_features=TOKENS)
    for module in model.modules():
        if isinstance(module, PLoRALinear):
            torch.nn.init.normal_(module.Plora_A.weight)
    assert torch.equal(model.model(IDS, image_features=TOKENS), wanted)


def test_text_before_a_image_does_not_notice_it():
    model, ids = tiny.causal(), torch.tensor([[1, 30, 31, IMAGE, IMAGE, 32]])
    with_image, plain = (
        model.model(ids, image_features=TOKENS),
        model.model(torch.where(ids == IMAGE, 40, ids)),
    )
    torch.testing.assert_close(with_image[:, :3], plain[:, :3])
    assert not torch.allclose(with_image[:, 5], plain[:, 5])


@torch.no_grad()
@pytest.mark.parametrize("steps", [(1,) * 6, (4, 1, 1), (3, 3), (6,)])
def test_the_cache_gives_the_full_forward_pass(steps: tuple[int, ...]):
    model, cache, seen = tiny.causal(), DynamicCache(), []
    image_features, start = list(TOKENS.split(1)), 0
    for size in steps:
        ids = IDS[:, start : start + size]
        own = [image_features.pop(0) for _ in range(int((ids == IMAGE).sum()))]
        seen.append(
            model.model(ids, image_features=torch.cat(own) if own else None, past_key_values=cache)
        )
        start += size
    torch.testing.assert_close(
        torch.cat(seen, 1), model.model(IDS, image_features=TOKENS), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_a_causal_mask_that_is_given_is_the_default():
    model = tiny.causal()
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    got = model.model(
        IDS, image_features=TOKENS, attention_mask=mask, position_ids=torch.arange(6)[None]
    )
    torch.testing.assert_close(got, model.model(IDS, image_features=TOKENS), rtol=1e-4, atol=1e-5)


def same(left: IXCPreTrainedModel, right: IXCPreTrainedModel, but: str = "") -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    body = [name for name in theirs if name != but]
    assert all(torch.equal(ours[name], theirs[name]) for name in body)


def test_saved_and_loaded_is_the_same_model(tmp_path: Path):
    for model in (tiny.causal(), tiny.reward(pooling="mean")):
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        same(loaded, model)
        assert loaded.config.to_dict()["hidden_size"] == 16
        assert loaded.config.pooling == model.config.pooling


def test_a_reward_model_from_a_base_keeps_all_but_the_head(tmp_path: Path):
    base = tiny.causal()
    base.save_pretrained(tmp_path)
    reward = IXCForRewardModel.from_pretrained(tmp_path)
    same(reward, base, but="output.weight")
    assert 0 < reward.score.weight.std() < 0.1  # drawn anew: initializer_range is 0.02


def test_a_policy_from_a_reward_model_keeps_all_but_the_head(tmp_path: Path):
    reward = tiny.reward()
    reward.save_pretrained(tmp_path)
    policy = IXCForCausalLM.from_pretrained(tmp_path)
    same(policy, reward, but="score.weight")
    assert 0 < policy.output.weight.std() < 0.1


def test_what_the_official_checkpoint_has_beside_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from safetensors.torch import load_file, save_file

    model = tiny.reward()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in (
        "output.weight",
        "vit.vision_tower.vision_model.post_layernorm.weight",
        "model.layers.0.attention.wo.lora_sft_A.weight",
    ):
        weights[name] = torch.ones(2, 2)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    same(IXCForRewardModel.from_pretrained(tmp_path), model)


def test_freezing_the_vision_freezes_tower_projector_and_separators_and_nothing_else():
    model = tiny.reward()
    model.freeze_vision()
    frozen = {name.split(".")[0] for name, x in model.named_parameters() if not x.requires_grad}
    trained = {name.split(".")[0] for name, x in model.named_parameters() if x.requires_grad}
    assert frozen == {"vit", "vision_proj", "plora_glb_GN", "plora_sub_GN"}
    assert trained == {"model", "score"}


def test_four_patches_merge_row_by_row():
    # 0  1  2  3      first cell: 0 1 4 5; second: 2 3 6 7; the next row of cells starts at 8
    # 4  5  6  7 ...
    merged = merge_patches(torch.arange(16.0).view(1, 16, 1))
    assert merged[0].tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9, 12, 13], [10, 11, 14, 15]]]


def test_a_image_reads_global_view_separator_and_stitched_rows_each_with_a_newline():
    # one tile row of two tiles with 2 x 2 tokens each: its rows run through both tiles
    grids = torch.arange(12.0).view(3, 2, 2, 1)
    newline, separator = torch.full((1, 1, 1, 1), -1.0), torch.full((1, 1, 1), -2.0)
    got = image_sequence(grids, 1, newline, separator).flatten().tolist()
    assert got == [0, 1, -1, 2, 3, -1, -2, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]


@torch.no_grad()
def test_images_encoded_together_are_those_encoded_alone():
    model, generator = tiny.causal(), torch.Generator().manual_seed(0)
    images = [
        (torch.randn(n, 3, 28, 28, generator=generator), rows)
        for n, rows in ((3, 1), (5, 2), (2, 1))
    ]
    together = model.encode_images(images)
    for got, image in zip(together, images, strict=True):
        torch.testing.assert_close(got, model.encode_images([image])[0], rtol=1e-4, atol=1e-5)
    assert [len(x) for x in together] == [6, 9, 5]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@torch.no_grad()
def test_a_padded_row_scores_as_alone(padding: str, attention: str, pooling: str):
    model = tiny.reward(pooling=pooling)
    model.set_attn_implementation(attention)
    short, long = IDS[0, :4], torch.tensor([1, 33, 34, 35, 36, 37])
    fill = torch.full((2,), model.config.pad_token_id)
    row, real = (
        torch.cat([fill, short] if padding == "left" else [short, fill]),
        torch.ones(4, dtype=torch.long),
    )
    none = torch.zeros(2, dtype=torch.long)
    mask = torch.stack(
        [torch.cat([none, real] if padding == "left" else [real, none]), torch.ones(6).long()]
    )
    together = model(torch.stack([row, long]), mask, image_features=TOKENS).logits
    alone = torch.cat([model(short[None], image_features=TOKENS).logits, model(long[None]).logits])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_checkpointed_gradients_are_the_plain_ones():
    gradients = []
    for checkpointed in (False, True):
        model = tiny.reward().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        images = [(torch.ones(2, 3, 28, 28), 1)]
        ids = torch.tensor([[1, *[IMAGE] * 5, 30, 31]])
        model(ids, image_features=torch.cat(model.encode_images(images))).logits.sum().backward()
        gradients.append({name: x.grad for name, x in model.named_parameters()})
    plain, again = gradients
    assert all(torch.equal(plain[name], again[name]) for name in plain if plain[name] is not None)
    assert sum(x is not None and bool(x.abs().sum()) for x in plain.values()) > 30


def test_peft_trains_beside_it_and_merges(tmp_path: Path):
    plain = tiny.reward()(IDS, image_features=TOKENS).logits
    beside = peft.LoraConfig(
        r=2, target_modules=["wqkv", "wo", "w1", "w2", "w3"], modules_to_save=["score"]
    )
    model = peft.get_peft_model(tiny.reward(), beside)
    torch.testing.assert_close(model(IDS, image_features=TOKENS).logits, plain)
    for name, weights in model.named_parameters():
        if (
            ".lora_B." in name or "score.modules_to_save" in name
        ):  # not Plora_B, which belongs to the model
            torch.nn.init.normal_(weights)
    trained = model(IDS, image_features=TOKENS).logits
    trained.sum().backward()
    assert all(weights.grad is not None for weights in model.parameters() if weights.requires_grad)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny.reward(), str(tmp_path))
    torch.testing.assert_close(loaded(IDS, image_features=TOKENS).logits, trained)
    torch.testing.assert_close(
        loaded.merge_and_unload()(IDS, image_features=TOKENS).logits, trained, rtol=1e-4, atol=1e-5
    )


def test_answers_are_generated_in_batches_and_by_the_dozen():
    model, generator = tiny.causal(), torch.Generator().manual_seed(1)
    tiles = torch.randn(
        5, 3, 28, 28, generator=generator
    )  # an image of one tile, and one of two beside each other
    grids = torch.tensor([[1, 1], [1, 2]])
    rows = [[1, *[IMAGE] * 5, 30], [1, *[IMAGE] * 6, 31]]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    alone = [
        model.generate(torch.tensor([row]), pixel_values=part, tile_grids=grid[None], **options)[
            0, len(row) :
        ]
        for row, part, grid in zip(rows, tiles.split([2, 3]), grids, strict=True)
    ]
    ids, mask = torch.tensor([[2, *rows[0]], rows[1]]), torch.tensor([[0] + [1] * 7, [1] * 8])
    together = model.generate(
        ids, attention_mask=mask, pixel_values=tiles, tile_grids=grids, **options
    )[:, 8:]
    for got, wanted in zip(together, alone, strict=True):
        assert got[: len(wanted)].tolist() == wanted.tolist()
    beams = model.generate(
        ids,
        attention_mask=mask,
        pixel_values=tiles,
        tile_grids=grids,
        max_new_tokens=3,
        do_sample=True,
        num_return_sequences=3,
    )
    assert len(beams) == 6 and IMAGE not in beams[:, 8:]


def test_the_auto_classes_know_the_models(tmp_path: Path):
    tiny.causal().save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), IXCForCausalLM)
    assert isinstance(AutoModel.from_pretrained(tmp_path), IXCModel)
    assert isinstance(
        AutoModelForSequenceClassification.from_pretrained(tmp_path), IXCForRewardModel
    )


@pytest.mark.parametrize("given", [1, 3])
def test_images_that_do_not_fill_their_places_are_refused(given: int):
    with pytest.raises(WrongImages, match=f"{given} image tokens.*: 2; build"):
        tiny.causal()(IDS, image_features=torch.zeros(given, 16))


def test_places_without_their_image_are_refused():
    with pytest.raises(WrongImages, match=r"0 image tokens.*: 2; build"):
        tiny.causal()(IDS)


def test_a_short_row_after_a_long_one_is_a_short_row():
    scaled = tiny.reward(max_position_embeddings=4, rope_scaling={"type": "dynamic", "factor": 2.0})
    short, long = IDS[:, 3:6], torch.arange(30, 50)[None]
    plain, stretched = tiny.reward(), scaled
    assert torch.equal(stretched(short).logits, plain(short).logits)
    assert not torch.allclose(stretched(long).logits, plain(long).logits)
    assert torch.equal(stretched(short).logits, plain(short).logits)


def test_an_unknown_rope_scaling_is_refused():
    with pytest.raises(ValueError, match="yarn"):
        tiny.config(rope_scaling={"type": "yarn", "factor": 2.0})
