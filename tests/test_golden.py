"""Our classes against numbers of the official code on a small random model; its README stands beside it.

`IXC_GOLDEN=<folder> pytest tests/test_golden.py` runs every case of another folder of the same form.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import (
    GOLDEN,
    SIDE,
    TILE,
    arrays,
    cases,
    derived,
    described,
    ids,
    official_folder,
    with_images,
)
from golden_processing import *  # noqa: F403  its tests are collected here
from golden_processing import ids_of
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from ixc.engine.losses import bradley_terry_loss
from ixc.models.ixc25 import (
    IXCForCausalLM,
    IXCForRewardModel,
    IXCPreTrainedModel,
    IXCProcessor,
    from_official,
)
from ixc.models.ixc25.heads import pool
from ixc.models.ixc25.language import PLoRALinear, rope_tables
from ixc.models.ixc25.tiles import Geometry, ImageTiles, num_tokens, partition, to_tiles
from ixc.models.ixc25.vision import image_sequence, merge_patches
from ixc.packing.layout import PrefixGroup, collate
from ixc.serve.compat import OfficialRewardModel

PLACEHOLDER = "<ImageHere>"
POOLINGS = {"last_token": "last", "mean": "mean"}
"""Ours, and what the stored numbers call them."""
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (GOLDEN / "config.json").is_file(), reason=f"{GOLDEN}: no golden data"),
]


def close(got: Tensor | None, wanted: Tensor, atol: float, rtol: float = 0) -> None:
    assert got is not None
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def close_states(got: Tensor, wanted: Tensor) -> None:
    """Hidden states, pooled states and logits."""
    close(got, wanted, 5e-5, 1e-4)


def close_scores(got: Sequence[float] | Tensor, wanted: Sequence[float]) -> None:
    close(torch.as_tensor(got).double().flatten(), torch.tensor(wanted).double().flatten(), 2e-5)


def close_sum(got: Tensor, total: float, absolute: float) -> None:
    assert got.double().sum().item() == pytest.approx(total, abs=1e-5 * absolute)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A folder of the official form: config, all weights, tokenizer."""
    folder = official_folder()
    weights = {
        name: weight
        for path in GOLDEN.glob("*.safetensors")
        for name, weight in load_file(path).items()
    }
    made = [
        name
        for name, told in described("config").get("derived_weights", {}).items()
        if isinstance(told, dict)
    ]
    save_file(weights | {name: derived(name) for name in made}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return IXCProcessor.from_official(official_folder()).backend


def loaded(folder: Path, kind: type[IXCPreTrainedModel], attention: str = "sdpa") -> Any:
    model = from_official(folder, torch.float32, attention, model_class=kind)
    model.config.image_token_id = ids()["image"]  # the marker is ours: no official config tells it
    return model


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def reward(checkpoint: Path, request: pytest.FixtureRequest) -> IXCForRewardModel:
    return loaded(checkpoint, IXCForRewardModel, request.param)


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def chat(checkpoint: Path, request: pytest.FixtureRequest) -> IXCForCausalLM:
    return loaded(checkpoint, IXCForCausalLM, request.param)


# Images

GEOMETRIES: dict[str, Geometry] = {"inference": "official", "reward_train": "official_train"}


def cut(name: str, transform: str, hd_num: int) -> ImageTiles:
    """A stored image through the transform of inference or of training."""
    image = Image.open(GOLDEN / "images" / name).convert("RGB")
    place = partition(*image.size, hd_num, TILE, GEOMETRIES[transform])
    return ImageTiles(to_tiles(image, place, TILE), place.rows)


def columns(image: ImageTiles) -> int:
    return (len(image.tiles) - 1) // image.rows


def length(image: ImageTiles) -> int:
    return num_tokens(image.rows, columns(image), SIDE)


def image_features(model: IXCPreTrainedModel, shown: Sequence[ImageTiles]) -> Tensor | None:
    return torch.cat(model.encode_images(shown)) if shown else None


def shown_in(told: dict[str, Any]) -> ImageTiles:
    return cut(told["image"], told["transform"], told["hd_num"])


def flat(rows: Sequence[Sequence[ImageTiles]]) -> list[ImageTiles]:
    return [image for row in rows for image in row]


def of_global_view(whole: Tensor, view: str, wanted: Tensor) -> Tensor:
    """What the view's name says: one row of it, or means over as many blocks as are stored."""
    if row := re.search(r"_row(\d+)$", view):
        return whole[0, :, int(row[1])]
    return torch.nn.functional.adaptive_avg_pool2d(whole, (wanted.shape[-2], wanted.shape[-1]))


SEEN = cases("vision", "images")


@pytest.mark.parametrize("told", SEEN, ids=lambda told: told["image"])
@torch.no_grad()
def test_image_tokens_are_the_official_ones(told: dict[str, Any], reward: IXCForRewardModel):
    image, name, stored = shown_in(told), told["image"], arrays("vision")
    whole = image.tiles[:1]
    for view, wanted in (
        (key, stored[key]) for key in stored if key.startswith(f"{name}|global_view_")
    ):
        close(of_global_view(whole, view, wanted), wanted, 1e-5)
    merged = merge_patches(reward.vit(image.tiles))
    sequence = image_sequence(merged, image.rows, reward.plora_sub_GN, reward.plora_glb_GN)
    [projected] = reward.encode_images([image])
    assert len(projected) == told["num_tokens"]
    for stage, got in (("vit_merged", sequence), ("projected", projected)):
        close(got[stored[f"{name}|rows"]], stored[f"{name}|{stage}"], 2e-5)
        close_sum(got, told[stage]["sum"], told[stage]["abs_sum"])
    newlines = told["sub_GN_rows_global_view"] + told["sub_GN_rows_tiles"]
    assert torch.equal(sequence[newlines], reward.plora_sub_GN[0, 0].expand(len(newlines), -1))
    assert torch.equal(sequence[told["global_GN_row"]], reward.plora_glb_GN[0, 0])


@pytest.mark.parametrize("told", SEEN, ids=lambda told: told["image"])
@torch.no_grad()
def test_the_vision_tower_is_clip_without_its_last_norm(
    told: dict[str, Any], reward: IXCForRewardModel
):
    image, stored, rows = shown_in(told), arrays("vision"), torch.tensor(told["clip_rows"])
    tower: Any = reward.vit.vision_tower["vision_model"]
    embedded = tower.pre_layrnorm(tower.embeddings(image.tiles))
    close(embedded[:, rows], stored[f"{told['image']}|clip_embeddings_rows"], 2e-5)
    patches = rows > 0  # ours drops the class token, row 0
    last = stored[f"{told['image']}|clip_last_rows"]
    close(reward.vit(image.tiles)[:, rows[patches] - 1], last[:, patches], 2e-5)


# Layers

with_layers = pytest.mark.skipif(
    not described("plora"), reason="no plora.json in the golden folder"
)


@with_layers
@torch.no_grad()
def test_partial_lora_is_the_official_one(reward: IXCForRewardModel):
    z, told = arrays("plora"), described("plora")
    wqkv: Any = reward.get_submodule(told["linear"])
    w2 = reward.get_submodule(told["w2"])
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


@with_layers
@torch.no_grad()
def test_an_attention_and_a_feed_forward_block_are_the_official_ones(reward: IXCForRewardModel):
    z = arrays("plora")
    layer: Any = reward.get_submodule(described("plora")["linear"].removesuffix(".attention.wqkv"))
    x, places = z["attn_x"], places_of(z["attn_im_mask"])
    rope = rope_tables(torch.arange(x.shape[1])[None], reward.config, x.dtype)
    close(layer.attention.wqkv(x, places), z["qkv_raw"], 2e-5)
    close(layer.attention(x, rope, None, places)[0], z["attn_out"], 2e-5)
    close(layer.feed_forward(x, places), z["mlp_out"], 2e-5)


# Conversations, one by one

STORED = {told["key"]: told for told in cases("forward")}
TEXTS = dict(cases("text"))
ALONE = [key for key in STORED if not key.startswith("padded_")]
FORWARD = [key for key in ALONE if key.split("|")[0] in TEXTS]


def parts(key: str) -> tuple[list[int], int]:
    """Ids of a stored conversation, our marker where its image is; and where the tail begins."""
    case, mode, tail, *_ = key.split("|")
    told = TEXTS[case][f"reward_{mode}"][tail]
    row = ids_of(told["segments"])
    assert len(row) == told["total_length"]
    return row, len(row) - len(told["tail_ids"])


def images(key: str) -> list[ImageTiles]:
    """A conversation's images, in reading order."""
    case, mode, tail, *_ = key.split("|")
    told = TEXTS[case][f"reward_{mode}"]
    hd_num = told["hd_num" if mode == "train" else "hd_num_used"]
    order = [
        segment["image_index"] for segment in told[tail]["segments"] if segment["type"] == "image"
    ]
    return [cut(TEXTS[case]["images"][i], told["transform"], hd_num) for i in order]


def laid_out(key: str) -> tuple[list[int], list[ImageTiles]]:
    """Ids and images of a stored row that stands alone: a conversation, the question, or a variant of one."""
    if key in FORWARD:
        return parts(key)[0], images(key)
    if key.startswith("chat_prompt"):
        return asked()
    assert key.startswith("variant_single_image_before_bos"), (
        f"{key}: a layout that nothing here builds"
    )
    usual, image = varied(key), ids()["image"]
    row, _ = parts(usual)
    return [i for i in row if i == image] + [i for i in row if i != image], images(usual)


def varied(key: str) -> str:
    """The conversation that a variant is of: with one image, at the start; best the one that its name names."""
    of_tail = [k for k in FORWARD if k.split("|")[2] == tail_of(key)]
    fitting = [
        k
        for k in of_tail
        if shows_one_at_the_start(k) and STORED[k]["length"] == STORED[key]["length"]
    ]
    assert fitting, f"{key}: no conversation of one picture that this is a variant of"
    return min(fitting, key=lambda k: (k.split("|")[0] not in key, k.split("|")[1] != "train"))


def tail_of(key: str) -> str:
    """The tail that a row's source tells."""
    [tail] = re.findall(r"\btail (\w+)", STORED[key]["source"])
    return tail


def shows_one_at_the_start(key: str) -> bool:
    case, mode, tail, *_ = key.split("|")
    ranges = TEXTS[case][f"reward_{mode}"][tail]["im_mask_true_ranges"]
    return [start for start, _ in ranges] == [1]


def hold_against(hidden: Tensor, key: str, reward: IXCForRewardModel) -> None:
    """A row's hidden states, its two pooled states, its two scores and the sums, against the stored ones."""
    stored, told = arrays("forward"), STORED[key]
    if f"{key}|hidden" in stored:
        close_states(hidden[stored[f"{key}|rows"]], stored[f"{key}|hidden"])
    hold_pooled(hidden, key, told, reward)
    close_sum(hidden, told["hidden_sum"], told["hidden_abs_sum"])


def hold_pooled(hidden: Tensor, key: str, told: dict[str, Any], reward: IXCForRewardModel) -> None:
    everyone = torch.ones(1, len(hidden), dtype=torch.long)
    for pooling, name in POOLINGS.items():
        pooled = pool(hidden[None], everyone, pooling)
        close_states(pooled[0], arrays("forward")[f"{key}|hidden_{name}"])
        close_scores(reward.scores(pooled), [told[f"score_{name}"]])


def score_of(told: dict[str, Any], reward: IXCForRewardModel) -> float:
    """The stored score of the model's own pooling."""
    return told[f"score_{POOLINGS[reward.config.pooling]}"]


@pytest.mark.parametrize("key", ALONE)
@torch.no_grad()
def test_hidden_states_and_both_scores_are_the_official_ones(key: str, reward: IXCForRewardModel):
    row, shown = laid_out(key)
    out = reward(
        torch.tensor([row]), image_features=image_features(reward, shown), output_hidden_states=True
    )
    hold_against(out.last_hidden_state[0], key, reward)
    if f"{key}|layers_at_last" in arrays("forward"):
        layers = torch.stack([states[0, -1] for states in out.hidden_states])
        close_states(layers, arrays("forward")[f"{key}|layers_at_last"])
    close_scores(out.logits, [score_of(STORED[key], reward)])


@pytest.mark.parametrize("key", FORWARD)
@torch.no_grad()
def test_the_tree_layout_gives_both_scores_too(
    key: str, reward: IXCForRewardModel, monkeypatch: pytest.MonkeyPatch
):
    row, split = parts(key)
    batch = collate([PrefixGroup(row[:split], [row[split:]])])
    for pooling, name in POOLINGS.items():
        monkeypatch.setattr(reward.config, "pooling", pooling)
        scores = reward.response_scores(batch, image_features(reward, images(key)))
        close_scores(scores, [STORED[key][f"score_{name}"]])


@pytest.mark.parametrize(
    "told", cases("forward", "rope_scaling_extras"), ids=lambda told: told["name"]
)
@torch.no_grad()
def test_scaled_rotary_positions_are_the_official_ones(
    told: dict[str, Any], checkpoint: Path, tmp_path: Path
):
    config = described("config")
    changed = {name: told[name] for name in ("rope_scaling", "max_position_embeddings")}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"llm": config.get("llm", {}) | changed})
    )
    for path in checkpoint.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    model = loaded(tmp_path, IXCForRewardModel)
    row, _ = parts(told["input"])
    out = model(torch.tensor([row]), image_features=image_features(model, images(told["input"])))
    hold_pooled(out.last_hidden_state[0], f"rope_{told['name']}", told, model)
    close_scores(out.logits, [score_of(told, model)])


@pytest.mark.parametrize("tail", sorted(cases("forward", "api")))
def test_the_official_calls_give_the_official_answers(tail: str, checkpoint: Path):
    told = described("forward")["api"][tail]
    known = [TEXTS[name] for name in told["conversations"]]
    chats = [one["reward_infer"]["messages"] for one in known]
    images = [[str(GOLDEN / "images" / name) for name in one["images"]] for one in known]
    processor = IXCProcessor.from_official(checkpoint, tail_newline=tail == "nl")
    reward = loaded(checkpoint, IXCForRewardModel)
    reward.config.pooling = pooling_of(told, tail)
    model, most = OfficialRewardModel(reward, processor), told["hd_num"]
    alone = [
        model.get_score(chat, shown, hd_num=most) for chat, shown in zip(chats, images, strict=True)
    ]
    close_scores(torch.tensor(alone), told["get_score"])
    close_scores(torch.tensor(model.get_scores(chats, images, hd_num=most)), told["get_scores"])
    assert model.rank(chats, images, hd_num=most) == told["rank"]
    for i, j, better in compared(told):
        assert model.compare(chats[i], images[i], chats[j], images[j], hd_num=most) is better
    assert model.get_scores(chats[:1], images[:1], hd_num=most) == pytest.approx(
        told["get_scores_single_element_list"], abs=2e-5
    )


def pooling_of(told: dict[str, Any], tail: str) -> str:
    """The pooling whose scores the calls answered with: the official one, unless they say the other's."""
    name, score = told["conversations"][0], told["get_score"][0]
    stored = STORED.get(f"{name}|infer|{tail}|0", {"score_last": score, "score_mean": math.inf})
    return min(POOLINGS, key=lambda pooling: abs(stored[f"score_{POOLINGS[pooling]}"] - score))


def compared(told: dict[str, Any]) -> Iterator[tuple[int, int, bool]]:
    for name, better in told.items():
        if numbers := re.fullmatch(r"compare_(\d+)_vs_(\d+)", name):
            yield int(numbers[1]), int(numbers[2]), better


# The chat model


def asked() -> tuple[list[int], list[ImageTiles]]:
    """The stored question, and its images."""
    told = described("generation")
    named = told.get("images", told.get("image")) or []
    shown = [
        cut(name, told["transform"], told["hd_num"])
        for name in ([named] if isinstance(named, str) else named)
    ]
    text = [i for part in told["prompt_parts"] for i in part["ids"]]
    lengths = [end - start for start, end in told["im_mask_true_ranges"]]
    before = [start - sum(lengths[:i]) for i, (start, _) in enumerate(told["im_mask_true_ranges"])]
    row = with_images(text, before, [length(image) for image in shown])
    assert len(row) == told["prompt_length"]
    return row, shown


@pytest.mark.parametrize("key", [key for key in ALONE if f"{key}|logits_ids" in arrays("forward")])
@torch.no_grad()
def test_logits_of_the_chat_model_are_the_official_ones(key: str, chat: IXCForCausalLM):
    stored, told = arrays("forward"), STORED[key]
    row, shown = laid_out(key)
    logits = chat(
        torch.tensor([row]), image_features=image_features(chat, shown), logits_to_keep=1
    ).logits[0, 0]
    close_states(logits[stored[f"{key}|logits_ids"]], stored[f"{key}|logits_at_ids"])
    close_states(logits.topk(20).values, stored[f"{key}|logits_top20"])
    close_states(logits[stored[f"{key}|logits_top20_ids"]], stored[f"{key}|logits_top20"])
    assert logits.logsumexp(0).item() == pytest.approx(told["logits_logsumexp"], abs=5e-5)
    assert logits.mean().item() == pytest.approx(told["logits_mean"], abs=1e-6)


def pixels(shown: Sequence[ImageTiles]) -> dict[str, Tensor]:
    """Images as a processor hands them over."""
    if not shown:
        return {}
    grids = [[image.rows, columns(image)] for image in shown]
    return {
        "pixel_values": torch.cat([image.tiles for image in shown]),
        "tile_grids": torch.tensor(grids),
    }


@pytest.mark.parametrize("run", range(len(cases("generation", "runs"))))
def test_greedy_answers_are_the_official_ones(run: int, chat: IXCForCausalLM):
    wanted = described("generation")["runs"][run]
    row, shown = asked()
    out = chat.generate(
        torch.tensor([row]),
        **pixels(shown),
        attention_mask=torch.ones(1, len(row), dtype=torch.long),
        max_new_tokens=len(wanted["new_ids"]),
        do_sample=False,
        repetition_penalty=wanted["repetition_penalty"],
    )
    assert out[0, len(row) :].tolist() == wanted["new_ids"]


@pytest.mark.parametrize("told", cases("sft"), ids=lambda told: told["case"])
@torch.no_grad()
def test_supervised_loss_is_the_official_one(
    told: dict[str, Any], chat: IXCForCausalLM, tokenizer: Tokenizer
):
    shown = [
        cut(name, told.get("transform", "reward_train"), told["hd_num"]) for name in told["images"]
    ]
    _, marked = spelled(tokenizer, told["prompt"])
    before = marked or [0] * len(
        shown
    )  # the chat class puts an image without a place before the first token
    row = torch.tensor([with_images(told["text_ids"], before, [length(image) for image in shown])])
    assert row.shape[1] == told["length"]
    learned = torch.zeros_like(row, dtype=torch.bool)
    for start, end in told["target_positions"]:
        learned[0, start:end] = True
    assert row[learned].tolist() == told["target_ids"]
    marks = row.where(learned, -100)
    assert chat(
        row, labels=marks, image_features=image_features(chat, shown)
    ).loss.item() == pytest.approx(told["loss"], abs=2e-5)


# Batches of pairs


def spelled(tokenizer: Tokenizer, prompt: str) -> tuple[list[int], list[int]]:
    """Ids of a stored prompt's text, in which control tokens are spelled out; and how many stand before each image's
    place."""
    row, marked = [ids()["bos"]], []
    for piece in re.split(rf"(\[UNUSED_TOKEN_\d+\]|</s>|{PLACEHOLDER})", prompt):
        if piece == PLACEHOLDER:
            marked.append(len(row))
        elif (control := tokenizer.token_to_id(piece)) is not None and re.match(
            r"\[UNUSED_TOKEN_\d+\]|</s>", piece
        ):
            row.append(control)
        else:
            row += tokenizer.encode(piece, add_special_tokens=False).ids
    return row, marked


def encoded(tokenizer: Tokenizer, prompt: str, shown: Sequence[ImageTiles]) -> list[int]:
    """Ids of a stored prompt; an image without a place comes after `<s>`."""
    row, marked = spelled(tokenizer, prompt)
    return with_images(row, marked or [1] * len(shown), [length(image) for image in shown])


def batch_of(
    told: dict[str, Any], tokenizer: Tokenizer, side: str
) -> tuple[Tensor, Tensor, list[list[ImageTiles]]]:
    """Ids, mask and each row's images of a stored batch of pairs, padded on one side."""
    pairs = told["images_per_pair"] or [[]] * (len(told["prompts"]) // 2)
    shown = [
        [cut(name, told["transform"], told["hd_num"]) for name in names or ()]
        for names in pairs
        for _ in "ab"
    ]
    tail = "</s>" if told["tail"] == "nonl" else "\n</s>"
    prompts = [prompt.replace("\n</s>", tail) for prompt in told["prompts"]]
    rows = [encoded(tokenizer, prompt, seen) for prompt, seen in zip(prompts, shown, strict=True)]
    longest = max(map(len, rows))
    padded, mask = (
        torch.full((len(rows), longest), ids()["eos"]),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    for row, given in enumerate(rows):
        at = slice(0, len(given)) if side == "right" else slice(longest - len(given), longest)
        padded[row, at], mask[row, at] = torch.tensor(given), 1
    return padded, mask, shown


BATCHES = cases("rm_loss", "batches")
PADDED = sorted(
    {key.split("|")[0].removeprefix("padded_") for key in STORED if key.startswith("padded_")}
)


@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_padded_batches_give_the_official_states(
    kind: str, side: str, reward: IXCForRewardModel, tokenizer: Tokenizer
):
    told = next(
        b for b in BATCHES if b["kind"] == kind and b["tail"] == tail_of(f"padded_{kind}|0")
    )
    rows, mask, shown = batch_of(told, tokenizer, side)
    out = reward(rows, mask, image_features=image_features(reward, flat(shown)))
    for row, real in enumerate(mask.bool()):
        hidden, left = (
            out.last_hidden_state[row, real],
            f"left_padded_{kind}|{row}|hidden_real_tokens",
        )
        hold_against(hidden, f"padded_{kind}|{row}", reward)
        if side == "left" and left in arrays("forward"):
            close_states(hidden, arrays("forward")[left])
    close_scores(
        out.logits, [score_of(STORED[f"padded_{kind}|{row}"], reward) for row in range(len(rows))]
    )


def of_batch(told: dict[str, Any]) -> str:
    return "|".join(told[name] for name in ("kind", "pooling", "tail"))


@pytest.mark.parametrize("layout", ["padded", "tree"])
@pytest.mark.parametrize("told", BATCHES, ids=of_batch)
def test_loss_and_gradients_are_the_official_ones(
    told: dict[str, Any],
    layout: str,
    reward: IXCForRewardModel,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
):
    padded, mask, shown = batch_of(told, tokenizer, "right")
    [pooling] = (ours for ours, name in POOLINGS.items() if name == told["pooling"])
    reward.zero_grad()
    if layout == "padded":
        hidden = reward(
            padded, mask, image_features=image_features(reward, flat(shown))
        ).last_hidden_state
        scores = reward.scores(pool(hidden, mask, pooling))
    else:
        rows = [row[real].tolist() for row, real in zip(padded, mask.bool(), strict=True)]
        groups = [
            shared(chosen, rejected) for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
        ]
        monkeypatch.setattr(reward.config, "pooling", pooling)
        scores = reward.response_scores(collate(groups), image_features(reward, flat(shown[::2])))
    chosen, rejected = scores.unflatten(0, (-1, 2)).unbind(1)
    loss = bradley_terry_loss(chosen, rejected)
    loss.backward()

    close_scores(scores.detach(), told["rewards"])
    close_scores(loss.detach(), [told["loss"]])
    assert (chosen > rejected).float().mean().item() == told["accuracy"]
    noise = FP32 * max(1, told["grad_l2_norm_total"])
    for label, norm in told["grad_l2_norm"].items():  # "name", or "name[row] (what it is)"
        name, row = re.match(r"([\w.]+)(?:\[(\d+)\])?", label).groups()  # pyright: ignore[reportOptionalMemberAccess]
        gradient = reward.get_parameter(name).grad
        gradient = gradient if row is None or gradient is None else gradient[int(row)]
        got = 0.0 if gradient is None else gradient.norm().item()
        assert got == pytest.approx(norm or 0.0, rel=1e-4, abs=noise), label
    assert total_norm(reward) == pytest.approx(told["grad_l2_norm_total"], rel=1e-4, abs=noise)
    for name, wanted in gradients(told):
        gradient = reward.get_parameter(name).grad
        gradient = (
            torch.zeros_like(wanted) if gradient is None else gradient
        )  # Partial LoRA rests without images
        close(gradient, wanted, max(1e-5 * wanted.abs().max().item(), noise))


FP32 = 2e-6
"""What rounding leaves of a gradient that is the difference of two nearly equal states; fp32 against fp64: 8e-6."""


def total_norm(model: IXCForRewardModel) -> float:
    """Of all that the official training may train: not the tower."""
    found = [
        weights.grad for name, weights in model.named_parameters() if not name.startswith("vit.")
    ]
    return (
        torch.stack([gradient.norm() for gradient in found if gradient is not None]).norm().item()
    )


def gradients(told: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The stored gradients of a batch, by the names of the weights."""
    start = f"{of_batch(told)}|"
    return (
        (key.removeprefix(start), wanted)
        for key, wanted in arrays("rm_grads").items()
        if key.startswith(start)
    )


def shared(chosen: list[int], rejected: list[int]) -> PrefixGroup:
    """Two sequences as a tree: what they begin with in common is read once."""
    same = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    return PrefixGroup(chosen[:same], [chosen[same:], rejected[same:]])
