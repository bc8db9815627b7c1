"""Geometry, pixels, video strips and ids against those of the official code; its README stands beside the numbers.

Cases of `test_golden.py`, which collects them.
"""

import hashlib
import re
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from golden import GOLDEN, SIDE, TILE, arrays, cases, described, ids, official_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ixc.data.samples import Turn
from ixc.data.videos import frames_seen
from ixc.models.ixc25 import IXCProcessor
from ixc.models.ixc25.processing import IXCBatch
from ixc.models.ixc25.tiles import ImageTiles, num_tokens, strip, to_tiles

MEAN = np.array(described("config").get("image_mean", 0), np.float32)
STD = np.array(described("config").get("image_std", 1), np.float32)
Tail = Literal["nl", "nonl"]
REAL = {"tile_size": 560, "patch_size": 14}
"""Of the 7B, which the photographs' numbers are of, whatever the sizes of the folder's own model."""


@cache
def processor(
    transform: str = "inference", tail: Tail = "nonl", hd_num: int = 9, **sizes: int
) -> IXCProcessor:
    options: dict[str, Any] = {
        "hd_num": hd_num,
        "tail_newline": tail == "nl",
        "max_length": 10**6,
        **sizes,
    }
    if transform == "reward_train":
        options |= {"geometry": "official_train", "strip_turns": True}
    return IXCProcessor.from_official(official_folder(), **options)


def whole(image: ImageTiles) -> np.ndarray:
    """The padded image from its tiles, [3, H, W]."""
    columns = (len(image.tiles) - 1) // image.rows
    tiles = image.tiles[1:].unflatten(0, (image.rows, columns))
    return tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2).contiguous().numpy()


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Normalised pixels as 8 bits again, [H, W, 3]."""
    return ((pixels.transpose(1, 2, 0) * STD + MEAN) * 255).round().astype(np.uint8)


def num_image_ids(batch: IXCBatch) -> int:
    return int((batch["input_ids"] == ids()["image"]).sum())


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


QUESTION = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


CUT = sorted({(case["image"], case["transform"]) for case in cases("preprocess")})


@pytest.mark.parametrize(("image", "transform"), CUT)
def test_pixels_are_the_official_ones(image: str, transform: str):
    for case in [
        c for c in cases("preprocess") if (c["image"], c["transform"]) == (image, transform)
    ]:
        batch = processor(transform)(
            QUESTION, images=GOLDEN / "images" / image, hd_num=case["hd_num"]
        )
        [tiles] = batch.images
        assert batch["tile_grids"].tolist() == [case["tiles_hw"]]
        assert num_image_ids(batch) == case["num_image_tokens"]
        pixels = whole(tiles)
        assert [*pixels.shape[:0:-1]] == case["out_size_wh"]
        assert sha256(pixels) == case["sha256_tensor_fp32_chw"]
        for x, y, *values in case["tensor_samples"]:
            np.testing.assert_allclose(pixels[:, y, x], values, atol=1e-6)
        seen = as_bytes(pixels)
        assert sha256(seen) == case["sha256_rgb_uint8"]
        for x, y, *colour in case["pixel_samples"]:
            assert seen[y, x].tolist() == colour
        wanted = arrays("preprocess_blocks")[case["block_key"]]
        np.testing.assert_allclose(block_means(seen, *wanted.shape[:2]), wanted, rtol=1e-5)


def block_means(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean colours of so many equal blocks."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    whole = pixels[: rows * height, : columns * width]
    return whole.reshape(rows, height, columns, width, 3).mean((1, 3))


@pytest.mark.parametrize(
    "told", cases("cars/cars_expected", "geometry"), ids=lambda c: f"{c['image']}-{c['hd_num']}"
)
def test_geometry_of_photographs_is_the_official_one(told: dict[str, Any]):
    path = GOLDEN / "cars" / told["image"]
    batch = processor(told["transform"], **REAL)(QUESTION, images=path, hd_num=told["hd_num"])
    assert batch["tile_grids"].tolist() == [told["tiles_hw"]]
    assert num_image_ids(batch) == told["num_image_tokens"]


# Text


def ids_of(segments: list[dict[str, Any]]) -> list[int]:
    image = ids()["image"]
    return [
        i for s in segments for i in (s["ids"] if s["type"] == "text" else [image] * s["length"])
    ]


def places(batch: IXCBatch) -> list[list[int]]:
    """Half-open ranges of image tokens."""
    mask = (batch["input_ids"][0] == ids()["image"]).int()
    edges = torch.diff(mask, prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()
    return edges.reshape(-1, 2).tolist()


TEXTS = dict(cases("text"))
TAILS: tuple[Tail, ...] = get_args(Tail)
FORMS = ("reward_train", "reward_infer")
TO_SCORE = [
    (c, form, tail)
    for c in sorted(TEXTS)
    for form in FORMS
    for tail in TAILS
    if tail in TEXTS[c].get(form, ())
]


@pytest.mark.parametrize(("case", "form", "tail"), TO_SCORE)
def test_ids_to_score_are_the_official_ones(case: str, form: str, tail: Tail):
    known = TEXTS[case]
    told, images = known[form], [GOLDEN / "images" / name for name in known["images"]]
    hd_num = told.get("hd_num", told.get("hd_num_argument"))
    reading = processor(told["transform"], tail, hd_num)
    batch = reading(known["reward_infer"]["messages"], images=images)
    assert batch["input_ids"].tolist() == [ids_of(told[tail]["segments"])]
    assert places(batch) == told[tail]["im_mask_true_ranges"]
    assert batch["input_ids"].shape[1] == told[tail]["total_length"]


@pytest.mark.parametrize("case", [case for case in sorted(TEXTS) if "chat" in TEXTS[case]])
def test_ids_of_a_question_are_the_official_ones(case: str):
    known = TEXTS[case]
    told, images = known["chat"], [GOLDEN / "images" / name for name in known["images"]]
    meta = (
        [{"role": "system", "content": told["meta_instruction"]}]
        if told["meta_instruction"]
        else []
    )
    turns = [
        {"role": role, "content": said}
        for pair in told["history"]
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    messages = [*meta, *turns, {"role": "user", "content": told["query"]}]
    batch = processor(hd_num=told["hd_num_argument"])(messages, images=images, for_reward=False)
    assert batch["input_ids"].tolist() == [ids_of(told["segments"])]
    assert places(batch) == told["im_mask_true_ranges"]
    prompt = processor().prompt([Turn(**message) for message in messages], told_counts(told))
    assert prompt == ids_of(told["segments"])


def told_counts(told: dict[str, Any]) -> list[int]:
    return [segment["length"] for segment in told["segments"] if segment["type"] == "image"]


RELEASED = [
    (told, tail)
    for told in cases("cars/cars_expected", "chats")
    for tail in TAILS
    if tail in told["text_ids"]
]


@pytest.mark.parametrize(
    ("told", "tail"), RELEASED, ids=lambda one: one if isinstance(one, str) else one["name"]
)
def test_ids_of_the_released_example_are_the_official_ones(told: dict[str, Any], tail: Tail):
    images = [GOLDEN / "cars" / name for name in told["images"]]
    reading = processor(tail=tail, hd_num=told["hd_num"], **REAL)
    [row] = reading(told["messages"], images=images)["input_ids"].tolist()
    assert len(row) == told["total_length"][tail]
    assert [i for i in row if i != ids()["image"]] == told["text_ids"][tail]


def begins_with_space(case: str) -> bool:
    """Such an answer's first token may span the newline before it, if both are read as one text, as officially."""
    return TEXTS[case]["reward_infer"]["messages"][-1]["content"].startswith(("\n", " "))


APART = [
    (c, tail) for c, form, tail in TO_SCORE if form == "reward_infer" and not begins_with_space(c)
]


@pytest.mark.parametrize(("case", "tail"), APART)
def test_a_prompt_and_its_answer_apart_are_the_whole(case: str, tail: Tail):
    *turns, said = TEXTS[case]["reward_infer"]["messages"]
    told = TEXTS[case]["reward_infer"][tail]
    reading = processor(tail=tail)
    prompt = reading.prompt([Turn(**turn) for turn in turns], told_counts(told))
    assert prompt + reading.scored(reading.answer(said["content"])) == ids_of(told["segments"])


@cache
def control() -> dict[str, int]:
    """The vocabulary's control tokens, by their names."""
    vocabulary = processor().backend.get_vocab()
    return {
        name: i
        for name, i in vocabulary.items()
        if re.fullmatch(r"<unk>|</?s>|\[UNUSED_TOKEN_\d+\]", name)
    }


@settings(deadline=None, database=None)
@given(st.data())
def test_no_text_becomes_a_control_token_of_the_official_vocabulary(data: st.DataObject):
    named = st.sampled_from(["<0x0A>", *sorted(control())])
    text = "".join(data.draw(st.lists(st.one_of(named, st.text(max_size=4)), max_size=6)))
    reading = processor()
    encoded = reading.encode(text)
    assert not set(encoded) & set(control().values())
    assert reading.decode(encoded) == text.replace(
        "\u2581", " "
    )  # sentencepiece's own sign for a space


# Videos


@pytest.mark.parametrize(
    "told", cases("video", "frame_indices"), ids=lambda c: f"{c['fps']}x{c['n_frames']}"
)
def test_the_official_frames_are_seen(told: dict[str, Any]):
    start, end = told["start"] or 0, told["end"] or told["n_frames"]
    assert [start + i for i in frames_seen(end - start, told["fps"], told["num_frm"])] == told[
        "indices"
    ]


@pytest.mark.parametrize("told", cases("video", "grids"), ids=lambda c: c["name"])
def test_strips_have_the_official_sizes(told: dict[str, Any]):
    canvas = processor().composite([Image.new("RGB", tuple(told["frame_wh"]))] * told["n_frames"])
    place = strip(*canvas.size, TILE)
    assert [*canvas.size] == told["grid_wh"]
    assert [place.columns * TILE, place.rows * TILE] == told["out_wh"]
    assert [place.rows, place.columns] == told["tiles_hw"]
    assert num_tokens(place.rows, place.columns, SIDE) == told["num_image_tokens"]


@pytest.mark.parametrize("told", cases("video", "pixel_cases"), ids=lambda c: c["npz_key"])
def test_strips_have_the_official_pixels(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda *_, **__: None
    )  # the numbers were made without labels
    frames = [Image.new("RGB", tuple(told["frame_wh"]), tuple(colour)) for colour in told["colors"]]
    canvas, stored = processor().composite(frames), arrays("video")
    assert sha256(np.asarray(canvas)) == told["sha256_grid_rgb"]
    place = strip(*canvas.size, TILE)
    seen = as_bytes(whole(ImageTiles(to_tiles(canvas, place, TILE), place.rows)))
    assert sha256(seen) == told["sha256_out_rgb"]
    assert (
        np.asarray(canvas)[10::20, 10::20] == stored[f"{told['npz_key']}|grid_block20"].numpy()
    ).all()
    assert (seen[10::20, 10::20] == stored[f"{told['npz_key']}|out_block20"].numpy()).all()
