"""Our classes against numbers of the official code on a small random model; its README stands beside it.

`IXC_GOLDEN=<folder> pytest tests/test_golden.py` runs every case of another folder of the same form.
"""

import hashlib
import json
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_processing import *  # noqa: F403  its tests are collected here
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from ixc.losses import bradley_terry_loss
from ixc.model import IXCForCausalLM, IXCForRewardModel, IXCPreTrainedModel, IXCProcessor, Tree, collate, from_official
from ixc.model.heads import pool
from ixc.model.language import PLoRALinear, rope_tables
from ixc.model.pictures import Geometry, Picture, partition, to_tiles

IMAGE = 92528
GOLDEN = Path(os.environ.get("IXC_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (GOLDEN / "weights.safetensors").is_file(), reason=f"{GOLDEN}: no golden data"),
]


@cache
def described(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def arrays(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def close(got: Tensor | None, wanted: Tensor, atol: float, rtol: float = 0) -> None:
    assert got is not None
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def derived(name: str) -> Tensor:
    """A large matrix that is made, not stored."""
    told = described("config")["derived_weights"][name]
    uniform = np.random.RandomState(told["seed"]).random_sample(told["shape"])
    matrix = ((uniform * 2.0 - 1.0) * told["scale"]).astype(np.float32)
    assert hashlib.sha256(matrix.tobytes()).hexdigest() == told["sha256"]
    return torch.from_numpy(matrix)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the official form: config, all weights, tokenizer."""
    folder = tmp_path_factory.mktemp("official")
    weights = load_file(GOLDEN / "weights.safetensors")
    weights |= {name: derived(name) for name in ("model.tok_embeddings.weight", "output.weight")}
    save_file(weights, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(GOLDEN / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return IXCProcessor.from_official(checkpoint).tokenizer


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def reward(checkpoint: Path, request: pytest.FixtureRequest) -> IXCForRewardModel:
    return from_official(checkpoint, attn_implementation=request.param)


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def chat(checkpoint: Path, request: pytest.FixtureRequest) -> IXCForCausalLM:
    return from_official(checkpoint, attn_implementation=request.param, model_class=IXCForCausalLM)


def image(name: str) -> Image.Image:
    return Image.open(GOLDEN / "images" / name).convert("RGB")


def for_inference(name: str) -> Picture:
    return cut(image(name), "official")


def for_training(name: str) -> Picture:
    return cut(image(name), "official_train")


def cut(picture: Image.Image, geometry: Geometry) -> Picture:
    place = partition(*picture.size, 9, 560, geometry)
    return Picture(to_tiles(picture, place, 560), place.rows)


NAMES = ("small_300x220.png", "port_330x700.png")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_picture_tokens_are_the_official_ones(name: str, reward: IXCForRewardModel):
    picture, wanted = for_training(name), arrays("vision")
    whole = torch.nn.functional.avg_pool2d(picture.tiles[:1], 70)
    torch.testing.assert_close(whole, wanted[f"{name}|global_view_8x8"], rtol=0, atol=1e-5)
    [got] = reward.encode_pictures([picture])
    [told] = [case for case in described("vision")["images"] if case["image"] == name]
    assert len(got) == told["num_tokens"]
    assert got.double().sum().item() == pytest.approx(told["projected"]["sum"], abs=1e-5 * told["projected"]["abs_sum"])
    seen = got[wanted[f"{name}|rows"]]
    torch.testing.assert_close(seen, wanted[f"{name}|projected"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_vision_tower_is_clip_without_its_last_norm(name: str, reward: IXCForRewardModel):
    got = reward.vit(for_training(name).tiles)
    rows = next(case["clip_rows"] for case in described("vision")["images"] if case["image"] == name)
    wanted = arrays("vision")[f"{name}|clip_last_rows"]
    patches = torch.tensor(rows[1:]) - 1  # ours drops the class token, row 0
    torch.testing.assert_close(got[:, patches], wanted[:, 1:], rtol=0, atol=2e-5)


@torch.no_grad()
def test_partial_lora_is_the_official_one(reward: IXCForRewardModel):
    z = arrays("plora")
    wqkv: Any = reward.get_submodule("model.layers.0.attention.wqkv")
    w2 = reward.get_submodule("model.layers.1.feed_forward.w2")
    partial, everyone = places_of(z["mask_partial"]), torch.arange(z["x"].shape[:2].numel())
    close(wqkv(z["x"], None), z["out_none"], 2e-5)
    close(wqkv(z["x"], partial), z["out_partial"], 2e-5)
    close(wqkv(z["x"], everyone), z["out_all"], 2e-5)
    close(w2(z["w2_x"], places_of(z["w2_mask"])), z["w2_out"], 2e-5)
    scaled = PLoRALinear(wqkv.in_features, wqkv.out_features, len(wqkv.Plora_A.weight), scale=2.0)
    scaled.load_state_dict(wqkv.state_dict())
    close(scaled(z["x"], partial), z["out_partial_scaling2"], 2e-5)


def places_of(mask: Tensor) -> Tensor:
    """Where a mask over rows and columns is set, as the layers take it."""
    return mask.flatten().nonzero().squeeze(1)


def parts(case: str, mode: str, tail: str) -> tuple[list[int], int]:
    """Ids of a stored conversation, our marker where its picture is; and where the tail begins."""
    told = described("text")["cases"][case][f"reward_{mode}"][tail]
    ids: list[int] = []
    for segment in told["segments"]:
        ids += segment["ids"] if segment["type"] == "text" else [IMAGE] * segment["length"]
    assert len(ids) == told["total_length"]
    return ids, len(ids) - len(told["tail_ids"])


@torch.no_grad()
def test_an_attention_and_a_feed_forward_block_are_the_official_ones(reward: IXCForRewardModel):
    z = arrays("plora")
    layer: Any = reward.model.layers[0]
    x, places = z["attn_x"], places_of(z["attn_im_mask"])
    rope = rope_tables(torch.arange(x.shape[1])[None], reward.config, x.dtype)
    close(layer.attention.wqkv(x, places), z["qkv_raw"], 2e-5)
    close(layer.attention(x, rope, None, places)[0], z["attn_out"], 2e-5)
    close(layer.feed_forward(x, places), z["mlp_out"], 2e-5)


def pictures(case: str, mode: str) -> list[Picture]:
    """A conversation's pictures through the transform of training or of inference."""
    load = for_training if mode == "train" else for_inference
    return [load(name) for name in described("text")["cases"][case]["images"]]


def features(model: IXCPreTrainedModel, shown: list[Picture]) -> Tensor | None:
    return torch.cat(model.encode_pictures(shown)) if shown else None


FORWARD = [c["key"] for c in described("forward")["cases"] if c["key"].count("|") == 3] if GOLDEN.is_dir() else []


@pytest.mark.parametrize("key", FORWARD)
@torch.no_grad()
def test_hidden_states_and_both_scores_are_the_official_ones(key: str, reward: IXCForRewardModel):
    case, mode, tail, _ = key.split("|")
    told = next(c for c in described("forward")["cases"] if c["key"] == key)
    ids, _ = parts(case, mode, tail)
    out = reward(torch.tensor([ids]), features=features(reward, pictures(case, mode)), output_hidden_states=True)
    hold_against(out.last_hidden_state[0], key)
    if f"{key}|layers_at_last" in arrays("forward"):
        layers = torch.stack([states[0, -1] for states in out.hidden_states])
        close(layers, arrays("forward")[f"{key}|layers_at_last"], 5e-5, 1e-4)
    assert out.logits.item() == pytest.approx(told["score_last"], abs=2e-5)


def hold_against(hidden: Tensor, key: str) -> None:
    """A row's hidden states, its two pooled states and the sums, against the stored ones."""
    stored, told = arrays("forward"), next(c for c in described("forward")["cases"] if c["key"] == key)
    if f"{key}|hidden" in stored:
        close(hidden[stored[f"{key}|rows"]], stored[f"{key}|hidden"], 5e-5, 1e-4)
    everyone = torch.ones(1, len(hidden), dtype=torch.long)
    for pooling, name in (("last_token", "last"), ("mean", "mean")):
        close(pool(hidden[None], everyone, pooling)[0], stored[f"{key}|hidden_{name}"], 5e-5, 1e-4)
    assert hidden.double().sum().item() == pytest.approx(told["hidden_sum"], abs=1e-5 * told["hidden_abs_sum"])


@pytest.mark.parametrize("key", FORWARD)
@torch.no_grad()
def test_the_tree_layout_gives_both_scores_too(key: str, reward: IXCForRewardModel):
    case, mode, tail, _ = key.split("|")
    told = next(c for c in described("forward")["cases"] if c["key"] == key)
    ids, split = parts(case, mode, tail)
    batch = collate([Tree(ids[:split], [ids[split:]])], reward.config.pad_token_id)
    hidden = reward.model(**batch.inputs(), features=features(reward, pictures(case, mode)))
    for pooling, name in (("last_token", "last"), ("mean", "mean")):
        assert reward.scores(batch.pool(hidden, pooling)).item() == pytest.approx(told[f"score_{name}"], abs=2e-5)


@torch.no_grad()
def test_the_picture_before_the_first_token_is_another_sequence(reward: IXCForRewardModel):
    key = "variant_single_image_before_bos|0"
    ids, _ = parts("single", "train", "nl")
    count = ids.count(IMAGE)
    turned = [IMAGE] * count + [i for i in ids if i != IMAGE]
    out = reward(torch.tensor([turned]), features=features(reward, pictures("single", "train")))
    told = next(c for c in described("forward")["cases"] if c["key"] == key)
    hold_against(out.last_hidden_state[0], key)
    assert out.logits.item() == pytest.approx(told["score_last"], abs=2e-5)


@pytest.mark.parametrize("case", ["text", "single"])
@torch.no_grad()
def test_logits_of_the_chat_model_are_the_official_ones(case: str, chat: IXCForCausalLM):
    stored, key = arrays("forward"), f"{case}|train|nl|0"
    ids, _ = parts(case, "train", "nl")
    logits = chat(torch.tensor([ids]), features=features(chat, pictures(case, "train")), logits_to_keep=1).logits[0, 0]
    close(logits[stored[f"{key}|logits_ids"]], stored[f"{key}|logits_at_ids"], 5e-5, 1e-4)
    assert logits.topk(20).indices.tolist() == stored[f"{key}|logits_top20_ids"].tolist()


SCALINGS = described("forward")["rope_scaling_extras"] if GOLDEN.is_dir() else []


@pytest.mark.parametrize("told", SCALINGS, ids=lambda told: told["name"])
@torch.no_grad()
def test_scaled_rotary_positions_are_the_official_ones(told: dict[str, Any], checkpoint: Path, tmp_path: Path):
    config = json.loads((checkpoint / "config.json").read_text())
    config["llm"] |= {name: told[name] for name in ("rope_scaling", "max_position_embeddings")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    model = from_official(tmp_path)
    case, mode, tail = told["input"].split("|")
    ids, _ = parts(case, mode, tail)
    out = model(torch.tensor([ids]), features=features(model, pictures(case, mode)))
    assert out.logits.item() == pytest.approx(told["score_last"], abs=2e-5)


def encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a stored prompt, in which control tokens are spelled out."""
    ids: list[Any] = [1]
    for piece in re.split(r"(\[UNUSED_TOKEN_\d+\]|</s>)", prompt):
        if re.fullmatch(r"\[UNUSED_TOKEN_\d+\]|</s>", piece):
            ids.append(tokenizer.token_to_id(piece))
        elif piece:
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
    return ids


def batch_of(told: dict[str, Any], tokenizer: Tokenizer, side: str) -> tuple[Tensor, Tensor, list[Picture]]:
    """Ids, mask and pictures of a stored batch of pairs, padded on one side."""
    shown = [[for_training(name) for name in names] for names in told["images_per_pair"] or [[], []] for _ in "ab"]
    rows = []
    for prompt, seen in zip(told["prompts"], shown, strict=True):
        tail = "</s>" if told["tail"] == "nonl" else "\n</s>"
        first, *rest = encoded(tokenizer, prompt.replace("\n</s>", tail))
        rows.append([first, *(IMAGE for picture in seen for _ in range(length(picture))), *rest])
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), 2), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, given in enumerate(rows):
        at = slice(0, len(given)) if side == "right" else slice(longest - len(given), longest)
        ids[row, at], mask[row, at] = torch.tensor(given), 1
    return ids, mask, [picture for seen in shown for picture in seen]


def length(picture: Picture) -> int:
    """Tokens of a picture."""
    return len(picture.tiles) * 400 + 1 + (picture.rows + 1) * 20


BATCHES = described("rm_loss")["batches"] if GOLDEN.is_dir() else []


@pytest.mark.parametrize("kind", ["text", "multi"])
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_padded_batches_give_the_official_states(kind: str, side: str, reward: IXCForRewardModel, tokenizer: Tokenizer):
    told = next(b for b in BATCHES if b["kind"] == kind and b["tail"] == "nl")
    ids, mask, shown = batch_of(told, tokenizer, side)
    out = reward(ids, mask, features=features(reward, shown))
    for row, real in enumerate(mask.bool()):
        hold_against(out.last_hidden_state[row, real], f"padded_{kind}|{row}")
    if (kind, side) == ("text", "left"):
        close(out.logits[:, 0], torch.tensor(described("forward")["left_padded_text"]["score_last"]), 2e-5)


def of_batch(told: dict[str, Any]) -> str:
    return "|".join(told[name] for name in ("kind", "pooling", "tail"))


@pytest.mark.parametrize("layout", ["padded", "tree"])
@pytest.mark.parametrize("told", BATCHES, ids=of_batch)
def test_loss_and_gradients_are_the_official_ones(
    told: dict[str, Any], layout: str, reward: IXCForRewardModel, tokenizer: Tokenizer
):
    ids, mask, shown = batch_of(told, tokenizer, "right")
    pooling = {"last": "last_token", "mean": "mean"}[told["pooling"]]
    reward.zero_grad()
    if layout == "padded":
        hidden = reward(ids, mask, features=features(reward, shown)).last_hidden_state
        pooled = pool(hidden, mask, pooling)
    else:
        rows = [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]
        trees = [shared(chosen, rejected) for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)]
        batch = collate(trees, reward.config.pad_token_id)
        hidden = reward.model(**batch.inputs(), features=features(reward, shown[::2]))
        pooled = batch.pool(hidden, pooling)
    scores = reward.scores(pooled)
    chosen, rejected = scores.unflatten(0, (-1, 2)).unbind(1)
    loss = bradley_terry_loss(chosen, rejected)
    loss.backward()

    close(scores, torch.tensor(told["rewards"]), 2e-5)
    assert loss.item() == pytest.approx(told["loss"], abs=2e-5)
    for label, norm in told["grad_l2_norm"].items():  # "name", or "name[row] (what it is)"
        name, row = re.match(r"([\w.]+)(?:\[(\d+)\])?", label).groups()  # pyright: ignore[reportOptionalMemberAccess]
        gradient = reward.get_parameter(name).grad
        gradient = gradient if row is None or gradient is None else gradient[int(row)]
        got = 0.0 if gradient is None else gradient.norm().item()
        assert got == pytest.approx(norm or 0.0, rel=1e-4, abs=FP32), label
    for key, wanted in arrays("rm_grads").items():
        if key.startswith(f"{told['kind']}|{told['pooling']}|{told['tail']}|"):
            gradient = reward.get_parameter(key.split("|")[3]).grad
            gradient = torch.zeros_like(wanted) if gradient is None else gradient  # Partial LoRA rests without pictures
            close(gradient, wanted, max(1e-5 * wanted.abs().max().item(), FP32))


FP32 = 2e-6
"""What rounding leaves of a gradient that is the difference of two nearly equal states; fp32 against fp64: 8e-6."""


def shared(chosen: list[int], rejected: list[int]) -> Tree:
    """Two sequences as a tree: what they begin with in common is read once."""
    same = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    return Tree(chosen[:same], [chosen[same:], rejected[same:]])


@pytest.mark.parametrize("run", [0, 1])
def test_greedy_answers_are_the_official_ones(run: int, chat: IXCForCausalLM):
    told = described("generation")
    wanted = told["runs"][run]
    picture = for_inference(told["image"])
    first, *rest = (part["ids"] for part in told["prompt_parts"])
    ids = first + [IMAGE] * length(picture) + [i for part in rest for i in part]
    assert len(ids) == told["prompt_length"]
    out = chat.generate(
        torch.tensor([ids]),
        pixel_values=picture.tiles,
        tile_grids=torch.tensor([[picture.rows, (len(picture.tiles) - 1) // picture.rows]]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=len(wanted["new_ids"]),
        do_sample=False,
        repetition_penalty=wanted["repetition_penalty"],
    )
    assert out[0, len(ids) :].tolist() == wanted["new_ids"]


@pytest.mark.parametrize("told", described("sft")["cases"] if GOLDEN.is_dir() else [], ids=lambda told: told["case"])
@torch.no_grad()
def test_supervised_loss_is_the_official_one(told: dict[str, Any], chat: IXCForCausalLM):
    shown = [for_training(name) for name in told["images"]]
    before = sum(map(length, shown))  # the chat class puts a picture before the first token
    ids = torch.tensor([[IMAGE] * before + told["text_ids"]])
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for start, end in told["target_positions"]:
        learned[0, start:end] = True
    assert ids[learned].tolist() == told["target_ids"]
    marks = ids.where(learned, -100)
    assert chat(ids, labels=marks, features=features(chat, shown)).loss.item() == pytest.approx(told["loss"], abs=2e-5)
