"""Small pictures to put inside a page."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from ixc.data.images import MAX_PIXELS, on_white, recognised

SIDE = 240
"""Longest side of a thumbnail, pixels."""


def thumbnail(path: Path, kind: str) -> str:
    """An image, or the beginning of a video as a strip of three frames, as a `data:` address.

    Raises:
        OSError, ValueError: the file is missing or cannot be decoded.
    """
    image = _strip(path) if kind == "video" else _small(recognised(path, MAX_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/jpeg;base64,{text}"


def _small(image: Image.Image, side: int = SIDE) -> Image.Image:
    """An image upright, on white and small: JPEG has no transparency."""
    image.thumbnail((side, side))
    return on_white(ImageOps.exif_transpose(image))  # JPEG has no transparency


def _strip(path: Path) -> Image.Image:
    """Three frames of the first 17, side by side."""
    # A fifth of a second, and most runs have no video.
    from ixc.data.videos import read_frames_of

    first = read_frames_of(path, lambda num_frames, rate: range(0, min(num_frames, 17), 8))
    frames = [_small(frame, SIDE // 2) for frame in first]
    width = sum(frame.width + 3 for frame in frames) - 3
    strip = Image.new("RGB", (width, frames[0].height), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (frame.width + 3), 0))
    return strip
