"""Images: which files may be opened, and how any of them becomes 8-bit RGB, upright and on white.

Whatever Pillow raises on a file leaves here as `BadMedia`. Only formats that hold their pixels themselves are opened:
PostScript, which Pillow reads too, is a program that another program would run.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ixc.data.containers import HEAD_BYTES, sniff

Transparency = Literal["white", "official"]
MAX_PIXELS = 50_000_000
"""About 7000 x 7000. Larger images are decompression bombs or scans that belong downscaled."""
IMAGE_FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "PPM",
    "WEBP",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "DIB",
    "ICO",
    "TGA",
)
"""By Pillow's names, in the order in which they are tried: TGA has no signature. A JPEG may be an MPO."""


class BadMedia(ValueError):
    """An image or video that cannot be used: file, what is wrong, remedy."""


class NotAnImage(BadMedia):
    """A file or bytes that begin like no image that may be opened."""


def existing(path: Path) -> Path:
    """The path of a file that is there and not empty.

    Raises:
        BadMedia: it is not.
    """
    if not path.is_file():
        raise BadMedia(f"{path}: no such file; correct the name or add the file")
    if path.stat().st_size == 0:
        raise BadMedia(f"{path}: 0 bytes; fetch the file again")
    return path


def check_size(
    name: object,
    width: int,
    height: int,
    max_pixels: int,
) -> None:
    """Refuse what is too large, before it is decoded.

    Raises:
        BadMedia: it is.
    """
    if width * height > max_pixels:
        size = f"{width} x {height} pixels, more than {max_pixels:,}"
        raise BadMedia(f"{name}: {size}; scale it down, or raise max_pixels")


def recognised(file: Path | bytes, max_pixels: int) -> Image.Image:
    """An image of which the header was read, and nothing more.

    Raises:
        BadMedia: no image of one of `IMAGE_FORMATS`, or too large.
    """
    # Only the header is read: what is too large must not be decoded.
    name = _name(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides
        try:
            source = BytesIO(file) if isinstance(file, bytes) else file
            image = Image.open(source, formats=IMAGE_FORMATS)
        except Image.DecompressionBombError as error:
            raise BadMedia(f"{name}: {error}; scale it down, or drop it") from error
        # Decoders raise what they like: SyntaxError, struct.error, zlib.error ...
        except Exception as error:
            kind = NotAnImage if isinstance(error, UnidentifiedImageError) else BadMedia
            raise kind(f"{name}: not a picture ({_instead(file, error)}") from error
    check_size(name, image.width, image.height, max_pixels)
    return image


def _name(file: Path | bytes) -> str:
    return f"{len(file):,} bytes" if isinstance(file, bytes) else str(file)


def _instead(file: Path | bytes, error: Exception) -> str:
    """What a file is that is no image, with the remedy."""
    head = file[:HEAD_BYTES] if isinstance(file, bytes) else _head(file)
    if container := sniff(head):
        return f"a video, {container.name}); give it as a video"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "HEIC); convert it to PNG or JPEG"
    if head.startswith(b"%!PS"):
        return "PostScript, which is a program); convert it to PNG"
    return f"{error}); fetch it again, or drop its rows"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """An image with all its pixels decoded, as the file has them.

    Raises:
        BadMedia: it is damaged, cut off, no image, or too large.
    """
    image = recognised(path, max_pixels)
    with naming_damage(path):
        image.load()
    return image


@contextmanager
def naming_damage(name: object) -> Iterator[None]:
    """Whatever Pillow raises inside becomes `BadMedia`."""
    try:
        yield
    except BadMedia:
        raise
    except Exception as error:
        raise BadMedia(
            f"{name}: damaged picture ({error}); open or fetch it again, or drop its rows"
        ) from error


def image_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Width and height of an image, upright, by its header.

    Raises:
        BadMedia: it is missing, not an image, damaged, or too large.
    """
    with recognised(existing(path), max_pixels) as image, naming_damage(path):
        is_lying = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        # Of a TIFF Pillow gives the upright size at once.
        if is_lying and image.format != "TIFF":
            return image.height, image.width
        return image.size


def to_rgb(image: Image.Image, name: object, transparency: Transparency = "white") -> Image.Image:
    """An image as 8-bit RGB, upright as its EXIF data says.

    Args:
        name: of the image, for errors.
        transparency: what stands behind transparent pixels: `white`; or `official`, which drops the alpha channel and
            shows the colour that the file happens to hold there.

    Raises:
        BadMedia: it is damaged or was closed, or nobody knows which of its values is white.
    """
    with naming_damage(name):
        image.load()
        image = _from_black(image) if isinstance(image, TiffImageFile) else image
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # which is lost, and which `eight_bit` asks for
        upright = eight_bit(upright, name)
        return on_white(upright) if transparency == "white" else upright.convert("RGB")


def _from_black(image: TiffImageFile) -> Image.Image:
    """A TIFF whose greys count from black and fill their range, where Pillow leaves them as the file has them."""
    if image.mode not in ("I;16", "F"):
        return image
    values = np.asarray(image)
    # 12 bits fill 16.
    if image.tag_v2.get(ExifTags.Base.BitsPerSample) == (12,):
        values = values << 4
    if image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        white = 0xFFFF if image.mode == "I;16" else np.float32(1)
        values = white - values
    from_black = Image.fromarray(values)
    from_black.info = image.info
    from_black.format = image.format
    return from_black


_WHITE_IS_ZERO = 0


def eight_bit(image: Image.Image, name: object = "an image") -> Image.Image:
    """An image in 8 bits a channel that Pillow can convert to RGB, or to RGBA if it is transparent anywhere.

    16 bits are scaled, as are floats from 0 to 1.

    Raises:
        BadMedia: its values do not tell which of them is white.

    >>> eight_bit(Image.new("I;16B", (1, 1), 0x8000)).getpixel((0, 0))
    128
    """
    if image.mode.startswith("I;16"):  # PIL would cut 16 bits off at 255 instead of scaling them
        return _sixteen_bit(image)
    if image.mode == "I":
        if image.format != "PPM":  # whose values Pillow scales to 16 bits
            raise BadMedia(
                f"{name}: 32-bit integers, of which white may be any; convert it to 8 or 16 bits a pixel"
            )
        return _grey(np.asarray(image) >> 8)
    if image.mode == "F":
        return _from_floats(np.asarray(image), name)
    if image.mode in ("La", "RGBa"):  # colours multiplied by their opacity
        return image.convert(image.mode.upper())
    return image


def _sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = _grey(values >> 8)
    # Of a PNG: this value is transparent.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(_grey((values != transparent) * 255))
    return grey


def _from_floats(values: np.ndarray, name: object) -> Image.Image:
    low = values.min()
    high = values.max()
    if not (low >= 0 and high <= 1):  # NaN is in no range
        raise BadMedia(
            f"{name}: floats from {low:g} to {high:g}, not from 0 to 1; scale them, or convert it to 8 bits"
        )
    return _grey((values * 255).round())


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, as on paper.

    >>> on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
