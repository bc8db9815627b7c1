"""Our classes against numbers of the official code on a tiny random model; its README stands beside it."""

import hashlib
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ixc.model import IXCConfig, IXCForCausalLM, IXCForRewardModel, Tree, collate
from ixc.model.processing import Partition, Picture, partition, to_tiles

GOLDEN = Path(os.environ.get("IXC_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (GOLDEN / "weights.safetensors").is_file(), reason=f"{GOLDEN}: no golden data"),
]
IGNORED = {f"vit.vision_tower.vision_model.post_layernorm.{kind}" for kind in ("weight", "bias")}


@cache
def described(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def arrays(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def derived(name: str) -> Tensor:
    """A large matrix that is made, not stored."""
    told = described("config")["derived_weights"][name]
    uniform = np.random.RandomState(told["seed"]).random_sample(told["shape"])
    matrix = ((uniform * 2.0 - 1.0) * told["scale"]).astype(np.float32)
    assert hashlib.sha256(matrix.tobytes()).hexdigest() == told["sha256"]
    return torch.from_numpy(matrix)


def config() -> IXCConfig:
    told = described("config")
    same = {*told["llm"]} - {"hidden_act", "rope_scaling", "bias", "max_length", "tie_word_embeddings"}
    vision = {*told["vision"]} - {"image_size", "patch_size", "hidden_act", "num_channels"}
    return IXCConfig(
        **{name: told["llm"][name] for name in same},
        **{f"vision_{name}": told["vision"][name] for name in vision},
        plora_rank=told["plora_r"],
    )


@cache
def reward() -> IXCForRewardModel:
    model = IXCForRewardModel(config()).eval()
    weights = load_file(GOLDEN / "weights.safetensors")
    weights["model.tok_embeddings.weight"] = derived("model.tok_embeddings.weight")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, set(unexpected)) == ([], IGNORED)
    return model


@cache
def chat() -> IXCForCausalLM:
    model = IXCForCausalLM(config()).eval()
    weights = load_file(GOLDEN / "weights.safetensors") | {
        name: derived(name) for name in ("model.tok_embeddings.weight", "output.weight")
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, set(unexpected)) == ([], IGNORED | {"score.weight"})
    return model


def image(name: str) -> Image.Image:
    return Image.open(GOLDEN / "images" / name).convert("RGB")


def for_inference(name: str) -> Picture:
    picture = image(name)
    place = partition(*picture.size, 9, 560)
    return Picture(to_tiles(picture, place, 560), place.rows)


def for_training(name: str) -> Picture:
    """The official training transform: up to 1.5 times as wide, padded at both ends."""
    picture = image(name)
    turned = picture.width < picture.height
    picture = picture.transpose(Image.Transpose.TRANSPOSE) if turned else picture
    ratio = picture.width / picture.height
    scale = max(s for s in range(1, 10) if s * math.ceil(s / ratio) <= 9)
    columns = min(math.ceil(picture.width * 1.5 / 560), scale)
    height = int(columns * 560 / ratio)
    rows = math.ceil(height / 560)
    canvas = Image.new("RGB", (columns * 560, rows * 560), "white")
    resized = picture.resize((columns * 560, height), Image.Resampling.BILINEAR)
    canvas.paste(resized, (0, (rows * 560 - height) // 2))
    canvas = canvas.transpose(Image.Transpose.TRANSPOSE) if turned else canvas
    place = Partition(*canvas.size, canvas.height // 560, canvas.width // 560)
    return Picture(to_tiles(canvas, place, 560), place.rows)


def test_pixels_of_the_inference_transform_are_the_official_ones():
    cases = [c for c in described("preprocess")["cases"] if c["transform"] == "inference" and c["hd_num"] == 9]
    assert len(cases) == 10
    for case in cases:
        picture = for_inference(case["image"])
        rows, columns = case["tiles_hw"]
        assert (picture.rows, len(picture.tiles)) == (rows, rows * columns + 1)
        whole = picture.tiles[1:].unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        digest = hashlib.sha256(whole.contiguous().numpy().tobytes()).hexdigest()
        assert digest == case["sha256_tensor_fp32_chw"], case["image"]


NAMES = ("small_300x220.png", "port_330x700.png")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_picture_tokens_are_the_official_ones(name: str):
    picture, wanted = for_training(name), arrays("vision")
    whole = torch.nn.functional.avg_pool2d(picture.tiles[:1], 70)
    torch.testing.assert_close(whole, wanted[f"{name}|global_view_8x8"], rtol=0, atol=1e-5)
    [got] = reward().encode_pictures([picture])
    [told] = [case for case in described("vision")["images"] if case["image"] == name]
    assert len(got) == told["num_tokens"]
    assert got.double().sum().item() == pytest.approx(told["projected"]["sum"], abs=1e-5 * told["projected"]["abs_sum"])
    seen = got[wanted[f"{name}|rows"]]
    torch.testing.assert_close(seen, wanted[f"{name}|projected"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_vision_tower_is_clip_without_its_last_norm(name: str):
    got = reward().vit(for_training(name).tiles)
    rows = next(case["clip_rows"] for case in described("vision")["images"] if case["image"] == name)
    wanted = arrays("vision")[f"{name}|clip_last_rows"]
    patches = torch.tensor(rows[1:]) - 1  # ours drops the class token, row 0
    torch.testing.assert_close(got[:, patches], wanted[:, 1:], rtol=0, atol=2e-5)


@torch.no_grad()
def test_partial_lora_is_the_official_one():
    z, model = arrays("plora"), reward()
    mask = z["mask_partial"][..., None].float()
    wqkv = model.get_submodule("model.layers.0.attention.wqkv")
    w2 = model.get_submodule("model.layers.1.feed_forward.w2")
    got = {
        "out_none": wqkv(z["x"], None),
        "out_partial": wqkv(z["x"], mask),
        "out_all": wqkv(z["x"], torch.ones_like(mask)),
        "w2_out": w2(z["w2_x"], z["w2_mask"][..., None].float()),
    }
    for key, value in got.items():
        torch.testing.assert_close(value, z[key], rtol=0, atol=2e-5)


def parts(case: str, mode: str, tail: str) -> tuple[list[int], int]:
    """Ids of a stored conversation, our marker where its picture is; and where the tail begins."""
    told = described("text")["cases"][case][f"reward_{mode}"][tail]
    ids: list[int] = []
    for segment in told["segments"]:
        ids += segment["ids"] if segment["type"] == "text" else [92528] * segment["length"]
    assert len(ids) == told["total_length"]
    return ids, len(ids) - len(told["tail_ids"])


CASES = [
    ("text", "train", "nl", ()),
    ("text", "infer", "nonl", ()),
    ("single", "train", "nl", NAMES[:1]),
    ("single", "infer", "nonl", NAMES[:1]),
    ("multi", "infer", "nonl", NAMES),
    ("multiturn", "infer", "nonl", NAMES[:1]),
    ("system", "train", "nonl", ()),
]


@pytest.mark.parametrize(("case", "mode", "tail", "names"), CASES)
@torch.no_grad()
def test_hidden_states_and_both_scores_are_the_official_ones(case: str, mode: str, tail: str, names: tuple[str, ...]):
    model, key = reward(), f"{case}|{mode}|{tail}|0"
    told = next(c for c in described("forward")["cases"] if c["key"] == key)
    ids, split = parts(case, mode, tail)
    load = for_training if mode == "train" else for_inference
    tokens = model.encode_pictures([load(name) for name in names])

    batch = collate([Tree(ids[:split], [ids[split:]])], 2)
    hidden = model(
        batch.input_ids,
        features=torch.cat(tokens) if tokens else None,
        position_ids=batch.position_ids,
        mask=batch.mask(),
    )
    stored = arrays("forward")
    if f"{key}|hidden" in stored:
        got = hidden[0, stored[f"{key}|rows"]]
        torch.testing.assert_close(got, stored[f"{key}|hidden"], rtol=1e-4, atol=5e-5)
    for pooling, name in (("last_token", "last"), ("mean", "mean")):
        pooled = batch.pool(hidden, pooling)
        torch.testing.assert_close(pooled[0], stored[f"{key}|hidden_{name}"], rtol=1e-4, atol=5e-5)
        assert model.score(pooled).item() == pytest.approx(told[f"score_{name}"], abs=2e-5)


@pytest.mark.parametrize("case", ["text", "single"])
@torch.no_grad()
def test_logits_of_the_chat_model_are_the_official_ones(case: str):
    model, stored, key = chat(), arrays("forward"), f"{case}|train|nl|0"
    ids, _ = parts(case, "train", "nl")
    tokens = model.encode_pictures([for_training(NAMES[0])]) if case == "single" else []
    hidden = model.model(torch.tensor([ids]), features=torch.cat(tokens) if tokens else None)
    logits = model.output(hidden[0, -1])
    wanted = stored[f"{key}|logits_at_ids"]
    torch.testing.assert_close(logits[stored[f"{key}|logits_ids"]], wanted, rtol=1e-4, atol=5e-5)
    assert logits.topk(20).indices.tolist() == stored[f"{key}|logits_top20_ids"].tolist()
