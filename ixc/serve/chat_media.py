"""What an image or video of a chat may be given as: a path, a data URL, bytes, frames, or the row's own bytes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image
from torch import Tensor

from ixc.data.inline import begins_as_video, from_data_url, is_data_url
from ixc.data.media import BadMedia
from ixc.models.base import Kind
from ixc.models.inputs import is_video

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_HELD = ("bytes", "base64", "data", "url", "path", "image", "video")
"""Keys of an object that stands for an image or video, the first that is not null counts."""
_BESIDE = ("bytes", "path", "type", "media_type", "detail")


@dataclass(frozen=True, eq=False)
class Video:
    """A video that is no file with a video's suffix: its bytes, a list of frames, or an array [T, H, W, C]."""

    source: Any


class Medium(NamedTuple):
    """An image or video of a chat; `source` as `opened` takes it."""

    kind: Kind
    source: Any


def read_medium(given: Any, kind: Kind | None, base: Path | None) -> Medium:
    """An image or video from whatever the field writes it as.

    Args:
        given: a path, `file:` or data URL; bytes; an object with `bytes` and `path` (`datasets`), `url` (OpenAI) or
            `data` (Anthropic); an image in memory; a list of frames; a `Video`.
        kind: what its key says; none: what it looks like.
        base: the folder where relative paths start; none: the working directory.

    Raises:
        BadMedia: an address that would have to be fetched, or none of these forms.
    """
    if isinstance(given, Video):
        return read_medium(given.source, "video", base)
    if isinstance(given, Mapping):
        return read_medium(_held(given), kind, base)
    if isinstance(given, str | PathLike):
        return (
            _named(str(given), kind, base)
            if isinstance(given, str)
            else _of_path(Path(given), kind, base)
        )
    return _in_memory(given, kind, base)


def _in_memory(given: Any, kind: Kind | None, base: Path | None) -> Medium:
    """Frames, bytes or an image object."""
    if isinstance(given, list | tuple):
        if kind == "image":
            raise BadMedia(
                f"{given!r:.80}: a list where one image belongs; give its frames as a video"
            )
        return Medium("video", [read_medium(frame, "image", base).source for frame in given])
    if isinstance(given, bytes | bytearray | memoryview):
        given = bytes(given)
        return Medium("video" if kind == "video" or begins_as_video(given) else "image", given)
    if given is None or isinstance(given, bool | int | float):
        raise BadMedia(
            f"{given!r}: no {kind or 'image or video'}; give a path, a data URL or bytes"
        )
    return Medium(kind or "image", given)


def _named(text: str, kind: Kind | None, base: Path | None) -> Medium:
    """A path or URL as text; a data URL is decoded only when the chat's turn comes."""
    if is_data_url(text):
        head = text[:30].lower()
        by_type: Kind = "video" if head.startswith("data:video/") else "image"
        if kind is None and not head.startswith(("data:video/", "data:image/")):
            by_type = "video" if begins_as_video(_of_data_url(text)) else "image"
        return Medium("video" if "video" in (kind, by_type) else "image", text)
    if text[:5].lower() == "file:":
        parts = urlsplit(text)
        return _of_path(
            Path(url2pathname(parts.netloc.removeprefix("localhost") + parts.path)), kind, base
        )
    if _ADDRESS.match(text):
        form = "an address; nothing is fetched here: download it, give its path or a data URL"
        raise BadMedia(f"{text[:80]!r}: {form}")
    if not text:
        raise BadMedia(f"'': no {kind or 'image or video'}; give a path, a data URL or bytes")
    return _of_path(Path(text), kind, base)


def _of_path(path: Path, kind: Kind | None, base: Path | None) -> Medium:
    return Medium(
        "video" if kind == "video" or is_video(path) else "image",
        path if base is None else base / path,
    )


def _held(given: Mapping[str, Any]) -> Any:
    """What an object holds: `{"bytes", "path"}`, `{"url"}`, `{"type": "base64", "media_type", "data"}`."""
    known = {key: value for key, value in given.items() if value is not None}
    names = [name for name in _HELD if name in known]
    unknown = [key for key in known if key not in (*names[:1], *_BESIDE)]
    if not names or unknown:
        at_fault = f"unknown key {unknown[0]!r}" if unknown else "neither path, url nor bytes"
        raise BadMedia(f"{dict(given)!r:.80}: {at_fault}; give a path, a data URL or bytes")
    value = known[names[0]]
    if (
        isinstance(value, str)
        and (names[0] in ("bytes", "base64", "data"))
        and not is_data_url(value)
    ):
        return f"data:{known.get('media_type', '')};base64,{value}"
    return value


def opened(medium: Medium) -> Any:
    """What the processor takes: data URLs become bytes, an array of frames a list.

    Raises:
        BadMedia: a data URL that is none.
    """
    return _opened(medium.source, medium.kind)


def _opened(source: Any, kind: Kind) -> Any:
    if isinstance(source, str) and is_data_url(source):
        return _of_data_url(source)
    if isinstance(source, list):
        return [_opened(frame, "image") for frame in source]
    if kind == "video" and getattr(source, "ndim", 0) == 4:
        return list(source)
    return source


def _of_data_url(url: str) -> bytes:
    try:
        return from_data_url(url)
    except ValueError as error:
        raise BadMedia(str(error)) from error


def medium_key(medium: Medium) -> Any:
    """What tells one image or video from another: its path, or all that it holds, so that equal chats score equally."""
    return medium.kind, _key(medium.source)


def _key(source: Any) -> Any:
    if isinstance(source, Path):
        return source.absolute()
    if isinstance(source, str | bytes):  # a data URL, which is no path: // in it is not /
        return source
    if isinstance(source, list | tuple):
        return tuple(map(_key, source))
    try:
        return _content(source)
    except (
        TypeError,
        ValueError,
        OSError,
    ):  # a closed file, a kind that nobody knows: the processor says so
        return id(source)


def _content(source: Any) -> Any:
    """A digest of an image in memory; where it may be more than its pixels say, the object itself."""
    if isinstance(source, Image.Image):
        if getattr(source, "n_frames", 1) > 1:
            return id(source)
        look = (
            source.mode,
            source.size,
            source.getpalette(),
            source.getexif().tobytes(),
            sorted(source.info.items()),
        )
        return type(source).__name__, repr(look), sha256(source.tobytes()).digest()
    if isinstance(source, np.ndarray | Tensor):
        pixels = np.asarray(source)
        look = type(source).__name__, pixels.shape, pixels.dtype.str
        return id(source) if pixels.dtype.hasobject else (*look, sha256(pixels.tobytes()).digest())
    return id(source)
