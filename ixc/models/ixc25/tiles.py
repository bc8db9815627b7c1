"""Images and videos as the vision tower reads them: geometry, video strips, tiles.

Every length in pixels scales with the tile size (official: 560), so that a tiny model sees the same layout; a video's
lengths may also be the official ones whatever the tile is, see `ProcessorOptions.video_lengths`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Geometry = Literal["official", "official_train"]
_MEAN = np.array([[0.48145466], [0.4578275], [0.40821073]], np.float32)
_STD = np.array([[0.26862954], [0.26130258], [0.27577711]], np.float32)
_NORMALISED = (np.arange(256, dtype=np.float32) / np.float32(255) - _MEAN) / _STD
"""What each of the 256 values becomes, a row per colour: looking it up costs a fraction of computing it."""


class Partition(NamedTuple):
    """An image's place on the grid of tiles."""

    width: int
    height: int
    """The resized image, pixels."""
    rows: int
    columns: int
    """Tiles, after padding."""
    left: int = 0
    top: int = 0
    """Where the image lies between its padding, pixels."""

    def turned(self) -> "Partition":
        """The place of the mirrored image."""
        return Partition(self.height, self.width, self.columns, self.rows, self.top, self.left)


class ImageTiles(NamedTuple):
    """An image or video as the vision tower reads it."""

    tiles: Float[Tensor, "N 3 S S"]
    rows: int

    @property
    def num_tiles(self) -> int:
        """Tiles, the global view among them."""
        return len(self.tiles)


def partition(
    width: int, height: int, hd_num: int, tile: int, geometry: Geometry = "official"
) -> Partition:
    """The official dynamic partition: as many tiles as the image fills, `hd_num` at most.

    `official` is that of inference: padding at the end. `official_train`, of the released reward training, takes
    images half as wide again, so that 560 x 560 already has four tiles, and pads on both sides.

    Source: `ixc_utils.Image_transform`; for training `R560_HD18_Identity_transform`.

    >>> partition(1920, 1080, 9, 560)
    Partition(width=1680, height=945, rows=2, columns=3, left=0, top=0)
    >>> partition(337, 1023, 9, 560)
    Partition(width=368, height=1120, rows=2, columns=1, left=0, top=0)
    >>> partition(560, 560, 9, 560, "official_train")
    Partition(width=1120, height=1120, rows=2, columns=2, left=0, top=0)
    """
    if width < height:
        return partition(height, width, hd_num, tile, geometry).turned()
    ratio = width / height
    scaled_width = width * 1.5 if geometry == "official_train" else width
    most_columns = math.ceil(scaled_width / tile)
    columns = max(
        (s for s in range(1, min(most_columns, hd_num) + 1) if s * math.ceil(s / ratio) <= hd_num),
        default=1,
    )
    new_height = max(int(columns * tile / ratio), 1)
    rows = math.ceil(new_height / tile)
    top = (rows * tile - new_height) // 2 if geometry == "official_train" else 0
    return Partition(columns * tile, new_height, rows, columns, top=top)


def strip(width: int, height: int, tile: int) -> Partition:
    """A video's composite: its short side one tile, its long side as many as it takes."""
    if width < height:
        return strip(height, width, tile).turned()
    long = int(tile * (width / height))
    return Partition(long, tile, 1, math.ceil(long / tile))


def to_tiles(image: Image.Image, place: Partition, tile: int) -> Float[Tensor, "N 3 S S"]:
    """Resize, pad with white, normalise, cut; the global view comes first."""
    canvas = Image.new("RGB", (place.columns * tile, place.rows * tile), "white")
    canvas.paste(_resized(image, place.width, place.height), (place.left, place.top))
    planes = np.asarray(canvas).transpose(2, 0, 1)
    pixels = np.stack([table[plane] for table, plane in zip(_NORMALISED, planes, strict=True)])
    whole = F.interpolate(
        torch.from_numpy(pixels)[None], (tile, tile), mode="bicubic", align_corners=False
    )
    tiles = pixels.reshape(3, place.rows, tile, place.columns, tile).transpose(1, 3, 0, 2, 4)
    return torch.from_numpy(np.concatenate([whole.numpy(), tiles.reshape(-1, 3, tile, tile)]))


def num_tokens(rows: int, columns: int, side: int) -> int:
    """Tokens of an image of so many tiles: each has `side` squared, as has the global view; a newline ends every
    row of both, and a separator stands between them.

    >>> num_tokens(1, 1, 20)
    841
    """
    return (rows * columns + 1) * side**2 + 1 + (rows + 1) * side


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """A portrait is turned, resized and turned back, as officially: PIL rounds between its passes, so order shows."""
    if image.width >= image.height:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    return turned.resize((height, width), Image.Resampling.BILINEAR).transpose(
        Image.Transpose.TRANSPOSE
    )


def video_strip(frames: Sequence[Image.Image], tile: int) -> Image.Image:
    """Frames on one labelled canvas: side by side, or below each other when the last one is wider than high.

    Official lengths: long side of a frame 1120 pixels, label band 40, gap 10, line 2; here times `tile` / 560. The
    official labels are set in SimHei, which is neither free nor at hand; here in the font that Pillow brings along
    (Aileron, CC0).
    """
    unit = tile / 560
    band, gap, long = round(40 * unit), round(10 * unit), 2 * tile
    sized = [_long_side(frame, long) for frame in frames]
    font = ImageFont.load_default(max(band, 1))
    below = frames[-1].width > frames[-1].height
    width = long if below else sum(f.width + gap for f in sized)
    height = (
        sum(f.height + band + gap for f in sized) if below else max(f.height for f in sized) + band
    )
    canvas = Image.new("RGB", (width, height), "white")
    draw, x, y = ImageDraw.Draw(canvas), 0, 0
    for number, frame in enumerate(sized):
        draw.text((x, y), f"<IMAGE {number}>", fill="black", font=font)
        canvas.paste(frame, (x, y + band))
        x, y = (x, y + frame.height + band + gap) if below else (x + frame.width + gap, y)
        line = (
            (0, y - gap // 2, long, y - gap // 2)
            if below
            else (x - gap // 2, 0, x - gap // 2, height)
        )
        if number + 1 < len(sized):
            draw.line(line, fill="black", width=max(round(2 * unit), 1))
    return canvas


def _long_side(frame: Image.Image, long: int) -> Image.Image:
    ratio = frame.width / frame.height
    size = (
        (long, max(int(long / ratio), 1))
        if frame.width > frame.height
        else (max(int(long * ratio), 1), long)
    )
    return frame.resize(size, Image.Resampling.BILINEAR)
