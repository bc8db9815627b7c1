"""Texts, images and videos as the content parts of an OpenAI-compatible message."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ixc.data.media import load_image, stored
from ixc.data.samples import Media
from ixc.data.videos import read_frames
from ixc.params import ServerParams

T = TypeVar("T")
Part = dict[str, Any]
"""One `text` or `image_url` of a message."""


def text_part(text: str) -> Part:
    """A message's text."""
    return {"type": "text", "text": text}


def image_parts(medium: Media, root: Path, params: ServerParams) -> list[Part]:
    """An image as one data URL; a video as `video_frames` of the frames that the model sees."""
    if medium.kind == "image":
        images = [load_image(root, medium)]
    else:
        images = spaced(read_frames(stored(root, medium)), params.video_frames)
    return [
        {"type": "image_url", "image_url": {"url": data_url(image, params.max_side)}}
        for image in images
    ]


def spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced, the first and the last among them.

    >>> spaced("abcde", 3), spaced("ab", 3), spaced("ab", 1)
    (['a', 'c', 'e'], ['a', 'b'], ['a'])
    """
    last = len(items) - 1
    gaps = max(count - 1, 1)
    # A set, for a short sequence is asked for the same place twice.
    places = {round(k * last / gaps) for k in range(count)}
    return [items[place] for place in sorted(places)]


def data_url(image: Image.Image, max_side: int) -> str:
    """An image of at most `max_side` pixels as text."""
    image = image.convert("RGB")
    image.thumbnail((max_side, max_side))
    # A small drawing is smaller as PNG, and exact.
    form = "png" if max(image.size) <= 256 else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form};base64,{text}"
