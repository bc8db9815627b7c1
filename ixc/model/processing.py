"""From conversations, pictures and films to what the model reads.

Geometry, template and special tokens are the official ones; every length in pixels scales with the tile size
(official: 560), so that a tiny model sees the same layout. Prompts are built from ids: no text a user types can become
a control token or a picture's place.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from ixc.files import replacing
from ixc.media import load_picture, read_frames
from ixc.samples import Media, Sample, Turn

SPECIAL = {
    "unk": "<unk>",
    "bos": "<s>",
    "eos": "</s>",
    "turn_start": "[UNUSED_TOKEN_146]",
    "turn_end": "[UNUSED_TOKEN_145]",
    "reward": "[UNUSED_TOKEN_130]",
    "image": "[UNUSED_TOKEN_131]",
}
"""The official vocabulary's names; `image` is ours and marks a picture token's place."""
PLACEHOLDER = "<ImageHere>"
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


class BadConversation(ValueError):
    """A conversation whose pictures and placeholders do not match, or that has no answer to give."""


class Partition(NamedTuple):
    """A picture's place on the grid of tiles."""

    width: int
    height: int
    """The resized picture, pixels."""
    rows: int
    columns: int
    """Tiles, after padding."""


def partition(width: int, height: int, hd_num: int, tile: int) -> Partition:
    """The official dynamic partition: as many tiles as the picture fills, `hd_num` at most.

    >>> partition(1920, 1080, 9, 560)
    Partition(width=1680, height=945, rows=2, columns=3)
    >>> partition(337, 1023, 9, 560)
    Partition(width=368, height=1120, rows=2, columns=1)
    """
    if width < height:
        turned = partition(height, width, hd_num, tile)
        return Partition(turned.height, turned.width, turned.columns, turned.rows)
    ratio = width / height
    scale = max((s for s in range(1, hd_num + 1) if s * math.ceil(s / ratio) <= hd_num), default=1)
    columns = min(math.ceil(width / tile), scale)
    new_height = max(int(columns * tile / ratio), 1)
    return Partition(columns * tile, new_height, math.ceil(new_height / tile), columns)


def strip(width: int, height: int, tile: int) -> Partition:
    """A film's composite: its short side one tile, its long side as many as it takes."""
    if width < height:
        turned = strip(height, width, tile)
        return Partition(turned.height, turned.width, turned.columns, turned.rows)
    long = int(tile * width / height)
    return Partition(long, tile, 1, math.ceil(long / tile))


def to_tiles(picture: Image.Image, place: Partition, tile: int) -> Float[Tensor, "N 3 S S"]:
    """Resize, pad with white at the end, normalise, cut; the global view comes first."""
    canvas = Image.new("RGB", (place.columns * tile, place.rows * tile), "white")
    canvas.paste(_resized(picture, place.width, place.height), (0, 0))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
    pixels = (pixels - _MEAN) / _STD
    whole = F.interpolate(pixels[None], (tile, tile), mode="bicubic", align_corners=False)
    tiles = pixels.unflatten(2, (place.columns, tile)).unflatten(1, (place.rows, tile))
    return torch.cat([whole, tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)])


def _resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A portrait is turned, resized and turned back, as officially: PIL rounds between its passes, so order shows."""
    if picture.width >= picture.height:
        return picture.resize((width, height), Image.Resampling.BILINEAR)
    turned = picture.transpose(Image.Transpose.TRANSPOSE)
    return turned.resize((height, width), Image.Resampling.BILINEAR).transpose(Image.Transpose.TRANSPOSE)


def film_strip(frames: Sequence[Image.Image], tile: int) -> Image.Image:
    """Frames on one labelled canvas: side by side, or below each other when the last one is wider than high.

    Official lengths at tile 560: long side 1120, label band 40, gap 10.
    """
    unit = tile / 560
    band, gap, long = round(40 * unit), round(10 * unit), 2 * tile
    sized = [_long_side(frame, long) for frame in frames]
    font = ImageFont.load_default(max(band, 1))
    below = frames[-1].width > frames[-1].height
    width = long if below else sum(f.width + gap for f in sized)
    height = sum(f.height + band + gap for f in sized) if below else max(f.height for f in sized) + band
    canvas = Image.new("RGB", (width, height), "white")
    draw, x, y = ImageDraw.Draw(canvas), 0, 0
    for number, frame in enumerate(sized):
        draw.text((x, y), f"<IMAGE {number}>", fill="black", font=font)
        canvas.paste(frame, (x, y + band))
        x, y = (x, y + frame.height + band + gap) if below else (x + frame.width + gap, y)
        line = (0, y - gap // 2, long, y - gap // 2) if below else (x - gap // 2, 0, x - gap // 2, height)
        if number + 1 < len(sized):
            draw.line(line, fill="black", width=max(round(2 * unit), 1))
    return canvas


def _long_side(frame: Image.Image, long: int) -> Image.Image:
    ratio = frame.width / frame.height
    size = (long, max(int(long / ratio), 1)) if frame.width > frame.height else (max(int(long * ratio), 1), long)
    return frame.resize(size, Image.Resampling.BILINEAR)


class Picture(NamedTuple):
    """A picture or film as the vision tower reads it."""

    tiles: Float[Tensor, "N 3 S S"]
    rows: int


class IXCProcessor:
    """Tokenizer and picture geometry of one model."""

    def __init__(self, tokenizer: Tokenizer, tile_size: int, patch_size: int, hd_num: int) -> None:
        self.tokenizer, self.tile_size, self.patch_size, self.hd_num = (
            tokenizer,
            tile_size,
            patch_size,
            hd_num,
        )
        tokenizer.encode_special_tokens = True
        self.ids = {name: _required_id(tokenizer, token) for name, token in SPECIAL.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write `tokenizer.json` and `processor_config.json`."""
        with replacing(folder / "tokenizer.json") as part:
            self.tokenizer.save(str(part))
        geometry = {"tile_size": self.tile_size, "patch_size": self.patch_size, "hd_num": self.hd_num}
        with replacing(folder / "processor_config.json") as part:
            part.write_text(json.dumps(geometry, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "IXCProcessor":
        """Read what `save_pretrained` wrote."""
        geometry = json.loads((folder / "processor_config.json").read_text())
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), **geometry)

    def load(self, root: Path, media: Media, hd_num: int | None = None) -> Picture:
        """A stored picture or film as tiles."""
        if media.kind == "video":
            canvas = film_strip(read_frames(root / media.path), self.tile_size)
            place = strip(canvas.width, canvas.height, self.tile_size)
        else:
            canvas = load_picture(root, media)
            place = partition(canvas.width, canvas.height, hd_num or self.hd_num, self.tile_size)
        return Picture(to_tiles(canvas, place, self.tile_size), place.rows)

    def num_tokens(self, picture: Picture) -> int:
        """Tokens of a picture: `(tiles + 1) side^2 + 1 + (rows + 1) side`."""
        side = self.tile_size // self.patch_size // 2
        return len(picture.tiles) * side**2 + 1 + (picture.rows + 1) * side

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control strings in it stay text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, turns: Sequence[Turn], num_tokens: Sequence[int]) -> list[int]:
        """Ids from `<s>` to the opening of the assistant's answer.

        One picture without a placeholder goes to the very start; else each placeholder takes one picture, in order.

        Args:
            num_tokens: tokens of each picture.

        Raises:
            BadConversation: pictures and placeholders do not match.
        """
        slots = [[self.ids["image"]] * n for n in num_tokens]
        marks = sum(turn.content.count(PLACEHOLDER) for turn in turns)
        at_start = marks == 0 and len(slots) == 1
        if marks != len(slots) and not at_start:
            form = "; ".join(f"Image{i + 1} {PLACEHOLDER}" for i in range(len(slots))) or "no placeholder"
            raise BadConversation(f"{len(slots)} pictures but {marks} placeholders; the prompt needs: {form}")
        rest = iter(slots)
        ids = [self.ids["bos"], *(next(rest) if at_start else [])]
        for turn in turns:
            ids += [
                self.ids["turn_start"],
                *self.encode(turn.role + "\n"),
                *self._content(turn.content, rest),
            ]
            ids += [self.ids["turn_end"], *self.encode("\n")]
        return [*ids, *self.opening()]

    def opening(self) -> list[int]:
        """What stands before an assistant's answer."""
        return [self.ids["turn_start"], *self.encode("assistant\n")]

    def _content(self, text: str, slots: Iterable[list[int]]) -> list[int]:
        first, *others = text.split(PLACEHOLDER)
        pictures = iter(slots)
        return self.encode(first) + [i for part in others for i in (*next(pictures), *self.encode(part))]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer as the chat model writes it: the text, then the end of the turn."""
        return [*self.encode(text), self.ids["turn_end"]]

    def scored(self, answer_ids: Sequence[int]) -> list[int]:
        """An answer with the tail that the score is read from: `</s>` and the reward token.

        The official pin of transformers strips the newline before `</s>`, so none stands there.
        """
        return [*answer_ids, self.ids["eos"], self.ids["reward"]]


def words_of(sample: Sample) -> str:
    """All text of a sample, for training a tokenizer."""
    answer = sample.gold.answer if sample.gold else ""
    return "\n".join([*(turn.content for turn in sample.prompt), answer])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with the official special tokens first; each digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _required_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}; it is not one of an IXC-2.5 model")
    return found
