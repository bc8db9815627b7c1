"""Pictures and films: a content-addressed store, checked at the door, and how both are read again.

A file is kept unaltered as `<first two digits of its SHA-256>/<SHA-256><suffix>`: the same picture from two
sources is one file, and a file that was damaged later no longer matches its name.

Films are read by PyAV alone. It is frame-exact and maintained, brings a current FFmpeg (that of decord
knows no AV1), and it can also write films, which the embedded corpus and the tests need.
"""

import hashlib
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError
from PIL import ExifTags, Image, ImageOps

from ixc.files import replacing
from ixc.samples import Media
from ixc.sources import File

MAX_PIXELS = 50_000_000
"""About 7000 x 7000. Larger pictures are decompression bombs or scans that belong downscaled."""


class BadMedia(ValueError):
    """A picture or film that cannot be used: file, what is wrong, remedy."""


# The store


class Store:
    """The folder of media. Files are added whole or not at all, and never changed."""

    def __init__(self, root: Path, max_pixels: int = MAX_PIXELS) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.max_pixels = root, max_pixels
        self._seen: dict[tuple[Path | bytes, str, str], Media | BadMedia] = {}

    def add(self, file: File) -> Media:
        """Check a file and keep a copy of it. It is looked at once, however many rows name it or bring it along.

        Raises:
            BadMedia: it is missing, damaged, empty or too large.
        """
        key = (file.path or hashlib.sha256(file.data or b"").digest(), file.kind, file.suffix)
        if key not in self._seen:
            try:
                self._seen[key] = self._keep(file)
            except BadMedia as error:
                self._seen[key] = error
        known = self._seen[key]
        if isinstance(known, BadMedia):
            raise BadMedia(str(known))
        return known

    def prune(self, keep: Collection[str]) -> None:
        """Delete what no sample refers to; `keep` holds paths relative to the store."""
        for path in [path for path in self.root.rglob("*") if path.is_file()]:
            if path.relative_to(self.root).as_posix() not in keep:
                path.unlink()

    def _keep(self, file: File) -> Media:
        if file.path is None:
            return self._keep_bytes(file, file.data or b"")
        media = _media(file, _digest(_there(file.path)), _suffix(file.path, file, self.max_pixels))
        target = self.root / media.path
        if not target.exists():  # what is there was checked when it came
            verify(file.path, file.kind, self.max_pixels)
            with replacing(target, durable=False) as part:  # many small files: 5 ms each
                shutil.copyfile(file.path, part)
        return media

    def _keep_bytes(self, file: File, data: bytes) -> Media:
        arrived = self.root / ".arrived"
        try:
            arrived.write_bytes(data)
            return self._keep(replace(file, path=arrived, data=None))
        except BadMedia as error:
            raise BadMedia(str(error).replace(str(arrived), f"{len(data):,} bytes in the row")) from error
        finally:
            arrived.unlink(missing_ok=True)


_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
}
"""Of Pillow's formats; a name may say anything, and the same bytes have to have one name in the store."""


def _suffix(path: Path, file: File, max_pixels: int) -> str:
    """What a file is called by: a picture's format, a film's own suffix; it must not be too large."""
    named = (file.suffix or path.suffix).lower()
    if file.kind == "video":
        _check_film_size(path, max_pixels)
        return named
    with _recognised(path, max_pixels) as picture:
        return _SUFFIXES.get(picture.format or "", named)


def _media(file: File, digest: str, suffix: str) -> Media:
    return Media(kind=file.kind, path=f"{digest[:2]}/{digest}{suffix}", sha256=digest)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check(root: Path, media: Media) -> None:
    """Make sure that a stored file is still what its name says, and can be decoded.

    Raises:
        BadMedia: it is missing, was altered, or cannot be decoded.
    """
    path = root / media.path
    if not path.is_file():
        raise BadMedia(f"{path}: not in the store; run `dvc repro collect`, or `dvc pull data/media`")
    if _digest(path) != media.sha256:
        raise BadMedia(f"{path}: altered since it was stored; delete it and run `dvc repro collect`")
    verify(path, media.kind)


# What may enter


def verify(path: Path, kind: str, max_pixels: int = MAX_PIXELS) -> None:
    """Decode a picture whole, or the first frame of a film whose frames are all there.

    Raises:
        BadMedia: it is missing, empty, damaged, cut off or too large.
    """
    if kind == "video":
        _verify_film(_there(path), max_pixels)
    else:
        open_picture(_there(path), max_pixels)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise BadMedia(f"{path}: no such file; correct the name or add the file")
    if path.stat().st_size == 0:
        raise BadMedia(f"{path}: 0 bytes; fetch the file again")
    return path


def _recognised(path: Path, max_pixels: int) -> Image.Image:
    """A picture whose header was read, and nothing more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides
        try:
            picture = Image.open(path)
        except Image.DecompressionBombError as error:
            raise BadMedia(f"{path}: {error}; scale it down, or drop it") from error
        except Exception as error:  # decoders raise what they like: SyntaxError, struct.error, zlib.error ...
            raise BadMedia(f"{path}: not a picture ({error}); fetch it again, or drop its rows") from error
    _check_size(path, picture.width, picture.height, max_pixels)
    return picture


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height} pixels, more than {max_pixels:,}"
        raise BadMedia(f"{path}: {size}; scale it down, or raise max_pixels")


def open_picture(path: Path, max_pixels: int) -> Image.Image:
    picture = _recognised(path, max_pixels)
    try:
        picture.load()
    except Exception as error:
        raise BadMedia(f"{path}: damaged picture ({error}); fetch it again, or drop its rows") from error
    return picture


def _check_film_size(path: Path, max_pixels: int) -> None:
    with _opened(path) as container:
        stream = container.streams.video[0]
        _check_size(path, stream.width, stream.height, max_pixels)


def _verify_film(path: Path, max_pixels: int) -> None:
    _check_film_size(path, max_pixels)
    film = survey(path)
    # An edit list may hide a few frames at the ends; a file that was cut off lacks many.
    if film.packets < 0.9 * film.declared:
        found = f"{film.packets} of {film.declared} frames"
        raise BadMedia(f"{path}: cut off, {found} are there; fetch the film again")
    if next(_frames(path), None) is None:
        raise BadMedia(f"{path}: no frame can be decoded; fetch the film again, or convert it to H.264")


# Reading again


def picture_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of a picture, upright, by its header.

    Raises:
        BadMedia: it is missing, not a picture, or too large.
    """
    with _recognised(_there(path), max_pixels) as picture:
        lying = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        lying &= picture.format != "TIFF"  # of which Pillow tells the upright size at once
        return (picture.height, picture.width) if lying else picture.size


def load_picture(root: Path, media: Media) -> Image.Image:
    """A stored picture as RGB, upright (EXIF), on white where it is transparent.

    Raises:
        BadMedia: it is missing, damaged, or a film.
    """
    path = root / media.path
    if media.kind != "image":
        raise BadMedia(f"{path}: a film, not a picture; read it with read_frames")
    if not path.is_file():
        raise BadMedia(f"{path}: not in the store; run `dvc repro collect`, or `dvc pull data/media`")
    return on_white(ImageOps.exif_transpose(open_picture(path, MAX_PIXELS)))


def on_white(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, as on paper.

    >>> on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if picture.mode.startswith("I;16"):  # PIL would cut 16 bits off at 255 instead of scaling them
        picture = picture.point(lambda value: value / 256).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def read_frames(path: Path, max_frames: int = 32) -> list[Image.Image]:
    """The frames of a film that the model sees, RGB and upright.

    Raises:
        BadMedia: the film is missing or damaged, or has no frame.
    """
    if not path.is_file():
        raise BadMedia(f"{path}: no such film; run `dvc repro collect`, or `dvc pull data/media`")
    film = survey(path)
    frames, count = picked(path, sampled(film.packets, film.rate, max_frames))
    if count != film.packets:  # not every packet is a frame; the rule counts frames
        frames, _ = picked(path, sampled(count, film.rate, max_frames))
    if not frames:
        raise BadMedia(f"{path}: no frame can be decoded; fetch the film again")
    return frames


def sampled(num_frames: int, rate: Fraction | float, max_frames: int = 32) -> list[int]:
    """Which frames are seen: one a second, thinned to `max_frames`.

    The stride is `round(rate)` (half to even). If more than `max_frames` are left, n, those at
    `int(i * n / (max_frames + 1))` stay, so that the last 6 % are never seen; this is the official rule.
    Below 0.5 frames per second the official stride is 0 and its code crashes; here it is 1.

    Source: internlm-xcomposer2d5-7b, `ixc_utils.load_video`.

    >>> sampled(70, Fraction(30000, 1001))
    [0, 30, 60]
    >>> sampled(3, 0.25)
    [0, 1, 2]
    """
    every = list(range(0, num_frames, max(round(rate), 1)))
    if len(every) <= max_frames:
        return every
    return [every[int(i * len(every) / (max_frames + 1))] for i in range(max_frames)]


class _Film(NamedTuple):
    packets: int
    declared: int
    """What the header says; 0 if it says nothing."""
    rate: Fraction
    """Frames per second, averaged."""


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadMedia(f"{path}: no picture track: cut off, or sound only; fetch it again, or drop it")
            yield container
    except FFmpegError as error:
        raise BadMedia(f"{path}: not a film, or cut off ({error.strerror}); fetch it again") from error


def survey(path: Path) -> _Film:
    """Count the packets of the first picture track without decoding them."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(1)
        packets = sum(1 for packet in container.demux(stream) if packet.size)
        return _Film(packets, stream.frames, rate)


def _frames(path: Path) -> Iterator[av.VideoFrame]:
    with _opened(path) as container:
        yield from container.decode(container.streams.video[0])


def picked(path: Path, wanted: Collection[int]) -> tuple[list[Image.Image], int]:
    """The wanted frames, and how many the film has; only the wanted ones are converted to RGB."""
    chosen, pictures, count = set(wanted), [], 0
    for count, frame in enumerate(_frames(path), start=1):
        if count - 1 in chosen:
            pictures.append(_upright(frame))
    return pictures, count


def _upright(frame: av.VideoFrame) -> Image.Image:
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
