"""Small pictures to put inside a page."""

import base64
import io
from itertools import islice
from pathlib import Path

from PIL import Image

SIDE = 240
"""Longest side of a thumbnail, pixels."""


def thumbnail(path: Path, kind: str) -> str:
    """A picture, or the beginning of a film as a strip of three frames, as a `data:` address.

    Raises:
        OSError, ValueError: the file is missing or cannot be decoded.
    """
    picture = _strip(path) if kind == "video" else _small(Image.open(path))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _small(picture: Image.Image, side: int = SIDE) -> Image.Image:
    picture.thumbnail((side, side))
    if picture.mode in ("RGBA", "LA", "P", "PA"):  # JPEG has no transparency: white, as on paper
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _strip(path: Path) -> Image.Image:
    import av  # a fifth of a second, and most runs have no film to show

    with av.open(str(path)) as film:
        frames = [_small(frame.to_image(), SIDE // 2) for frame in islice(film.decode(video=0), 0, 17, 8)]
    if not frames:
        raise ValueError(f"{path}: no frame; the file is damaged or not a film")
    strip = Image.new("RGB", (sum(frame.width + 3 for frame in frames) - 3, frames[0].height), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (frame.width + 3), 0))
    return strip
