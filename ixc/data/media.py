"""Images and videos: a content-addressed store, checked at the door, and how both are read again.

A file is stored unaltered as `<first two digits of its SHA-256>/<SHA-256><suffix>`: the same image from two
sources is one file, and a file that was damaged later no longer matches its name. Only what decodes to its end from
its own bytes is stored.

How images are opened is in `ixc.data.images`, how videos are in `ixc.data.videos`.
"""

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from ixc.data.images import MAX_PIXELS, BadMedia, existing, open_image, recognised, to_rgb
from ixc.data.samples import Media
from ixc.data.videos import suffix_of, survey, verify_video
from ixc.io.files import replacing

# The store


@dataclass(frozen=True, kw_only=True)
class File:
    """An image or video that a row refers to: on disk, or made in memory."""

    kind: Literal["image", "video"]
    path: Path | None = None
    data: bytes | None = None
    suffix: str = ""
    """With the dot; for images of a format that the store knows no suffix of."""


class Store:
    """The folder of media. Files are added whole or not at all, and never changed."""

    def __init__(self, root: Path, max_pixels: int = MAX_PIXELS) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.max_pixels = max_pixels
        self._results: dict[tuple[Path | bytes, str], Media | BadMedia] = {}

    def add(self, file: File) -> Media:
        """Check a file and store a copy of it. It is looked at once, however many rows name it or bring it along.

        Raises:
            BadMedia: it is missing, damaged, empty or too large.
        """
        # By path or by content, and as what it was given: a GIF can be both.
        key = (file.path or hashlib.sha256(file.data or b"").digest(), file.kind)
        if key not in self._results:
            try:
                self._results[key] = self._store(file)
            except BadMedia as error:
                self._results[key] = error
        result = self._results[key]
        if isinstance(result, BadMedia):
            raise BadMedia(str(result))
        return result

    def prune(self, keep: Collection[str]) -> None:
        """Delete what no sample refers to; `keep` holds paths relative to the store."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        for path in files:
            if path.relative_to(self.root).as_posix() not in keep:
                path.unlink()

    def _store(self, file: File) -> Media:
        if file.path is None:
            return self._store_bytes(file, file.data or b"")
        digest = _digest(existing(file.path))
        media = _media(file, digest, _suffix(file.path, file, self.max_pixels))
        target = self.root / media.path
        # What is there was checked when it came.
        if not target.exists():
            verify(file.path, file.kind, self.max_pixels)
            with replacing(target, durable=False) as part:  # many small files: 5 ms each
                shutil.copyfile(file.path, part)
        return media

    def _store_bytes(self, file: File, data: bytes) -> Media:
        arrived = self.root / ".arrived"
        try:
            arrived.write_bytes(data)
            return self._store(replace(file, path=arrived, data=None))
        except BadMedia as error:
            # The row names no file: say what it brought along instead.
            reason = str(error).replace(str(arrived), f"{len(data):,} bytes in the row")
            raise BadMedia(reason) from error
        finally:
            arrived.unlink(missing_ok=True)


_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "DIB": ".dib",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "ICO": ".ico",
    "TGA": ".tga",
}
"""Of the formats that are opened; a name may say anything, and the same bytes have to have one name in the store."""


def _suffix(path: Path, file: File, max_pixels: int) -> str:
    """What a file is called by: its format. It must not be too large, and a video must not need other files."""
    if file.kind == "video":
        survey(path, max_pixels)
        return suffix_of(path)
    with recognised(path, max_pixels) as image:
        return _SUFFIXES[image.format or ""]


def _media(file: File, digest: str, suffix: str) -> Media:
    return Media(kind=file.kind, path=f"{digest[:2]}/{digest}{suffix}", sha256=digest)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stored(root: Path, media: Media) -> Path:
    """Where a stored file is.

    Raises:
        BadMedia: it is missing.
    """
    path = root / media.path
    if not path.is_file():
        raise BadMedia(
            f"{path}: not in the store; run `dvc repro collect`, or `dvc pull data/media`"
        )
    return path


def check(root: Path, media: Media) -> None:
    """Make sure that a stored file is still what its name says, and can be decoded.

    A video is not decoded: while it is what its name says, it is what was decoded at the door.

    Raises:
        BadMedia: it is missing, was altered, or cannot be decoded.
    """
    path = stored(root, media)
    if _digest(path) != media.sha256:
        raise BadMedia(
            f"{path}: altered since it was stored; delete it and run `dvc repro collect`"
        )
    if media.kind == "video":
        survey(path)
    else:
        verify(path, media.kind)


def verify(path: Path, kind: str, max_pixels: int = MAX_PIXELS) -> None:
    """Read an image as the model does, or a video to its end.

    Raises:
        BadMedia: it is missing, empty, damaged, cut off, too large, or needs other files.
    """
    if kind == "video":
        verify_video(path, max_pixels)
    else:
        to_rgb(open_image(existing(path), max_pixels), path)


# Reading again


def load_image(root: Path, media: Media) -> Image.Image:
    """A stored image as RGB, upright (EXIF), on white where it is transparent.

    Raises:
        BadMedia: it is missing, damaged, or a video.
    """
    if media.kind != "image":
        path = root / media.path
        raise BadMedia(f"{path}: a video, not an image; read it with videos.read_frames")
    path = stored(root, media)
    return to_rgb(open_image(path, MAX_PIXELS), path)
