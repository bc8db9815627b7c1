"""Images and videos from whatever a caller has at hand: files, bytes, PIL images, arrays, frames."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ixc.data.containers import VIDEO_SUFFIXES
from ixc.data.images import BadMedia, Transparency, naming_damage, open_image, to_rgb
from ixc.data.videos import VideoDecoder, frames_seen, read_frames

ImageSource = str | PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
"""A file, its bytes, a PIL image, an array [H, W, C] or [H, W], or a tensor [C, H, W] or [H, W]; 8-bit values, or
floats from 0 to 1."""
VideoSource = str | PathLike[str] | bytes | Sequence[ImageSource]
"""A file, its bytes, or frames."""


def is_video(source: object) -> bool:
    """Whether a file's name says that it is a video, as the official code decides it (which knows fewer).

    >>> is_video("a/b.MP4"), is_video("a/b.png")
    (True, False)
    """
    return isinstance(source, str | PathLike) and Path(source).suffix.lower() in VIDEO_SUFFIXES


def read_image(source: object, transparency: Transparency, max_pixels: int) -> Image.Image:
    """An image as RGB, upright (EXIF), 16 bits and floats from 0 to 1 scaled to 8 bits.

    Args:
        source: an `ImageSource`.
        transparency: see `images.to_rgb`.

    Raises:
        BadMedia: it is missing, damaged, closed, empty, no image, larger than `max_pixels`, or an address; or its
            values do not tell which of them is white.
    """
    if isinstance(source, np.ndarray | Tensor):
        with naming_damage(_named(source)):  # tensors without data, sparse ones
            image = _from_array(source)
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, str | PathLike | bytes):
        with _as_file(source) as path:
            image = open_image(path, max_pixels)
    else:
        raise BadMedia(
            f"{type(source).__name__}: no image; give a path, bytes, a PIL image, an array or a tensor"
        )
    if not 0 < image.width * image.height <= max_pixels:
        size = f"{image.width} x {image.height}"
        raise BadMedia(
            f"an image of {size} pixels: must have 1 to {max_pixels:,}; scale it, or raise max_pixels"
        )
    return to_rgb(image, _named(source), transparency)


def _named(source: object) -> str:
    if isinstance(source, bytes):
        return f"{len(source):,} bytes"
    return str(source) if isinstance(source, str | PathLike) else f"a {type(source).__name__}"


def _from_array(array: np.ndarray | Tensor) -> Image.Image:
    form = f"a {type(array).__name__} of shape {tuple(array.shape)} and {array.dtype}"
    if isinstance(array, Tensor):
        array = (
            array.detach().cpu().float().numpy()
            if array.is_floating_point()
            else array.detach().cpu().numpy()
        )
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if (
        array.size == 0
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (3, 4))
    ):
        raise BadMedia(
            f"{form}: no image; give [H, W, C] (a tensor: [C, H, W]) with 1, 3 or 4 channels"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # not a number is in no range
            raise BadMedia(f"{form}: values outside 0 to 1; scale them, before any normalisation")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadMedia(f"{form}: give 8-bit values (uint8), or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array))


def read_video(
    source: object,
    max_frames: int,
    include_last: bool,
    transparency: Transparency,
    max_pixels: int,
    decoder: VideoDecoder = "pyav",
) -> list[Image.Image]:
    """The frames of a video that the model sees; of a list of frames, at most `max_frames` by the same rule.

    Args:
        source: a `VideoSource`.
        include_last: see `videos.frames_seen`.
        max_pixels: of a frame; a video of larger ones is refused before any is decoded.
        decoder: of a file or its bytes; see `videos`.

    Raises:
        BadMedia: the video is missing, cut off, damaged, an address, needs other files, has no frame, or its frames
            are too large.
    """
    if isinstance(source, str | PathLike | bytes):
        with _as_file(source) as path:
            return read_frames(path, max_frames, include_last, max_pixels, decoder)
    if not isinstance(source, Sequence):
        raise BadMedia(f"{type(source).__name__}: no video; give a path, bytes or a list of frames")
    if not source:
        raise BadMedia("a video without frames; give at least one")
    indices = frames_seen(len(source), 1.0, max_frames, include_last)
    return [read_image(source[i], transparency, max_pixels) for i in indices]


@contextmanager
def _as_file(source: str | PathLike[str] | bytes) -> Iterator[Path]:
    """A file that holds the source; bytes get one for the moment, and errors call them bytes."""
    if not isinstance(source, bytes):
        yield _path(source)
        return
    if not source:
        raise BadMedia("0 bytes: neither image nor video; fetch it again")
    with tempfile.NamedTemporaryFile(prefix="ixc-") as file:
        file.write(source)
        file.flush()
        try:
            yield Path(file.name)
        except BadMedia as error:
            raise BadMedia(str(error).replace(file.name, f"{len(source):,} bytes")) from error


def _path(source: str | PathLike[str]) -> Path:
    if isinstance(source, str) and re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", source):
        raise BadMedia(
            f"{source[:80]!r}: an address; nothing is fetched here: download it, give the path or the bytes"
        )
    path = Path(source)
    if not path.is_file():
        raise BadMedia(f"{path}: no such file; correct the name or add the file")
    if path.stat().st_size == 0:
        raise BadMedia(f"{path}: 0 bytes; fetch the file again")
    return path
