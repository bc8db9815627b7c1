"""Images and videos that stand in a text: data URLs (RFC 2397) and plain base64, in either of its alphabets."""

import base64
import re
from urllib.parse import unquote, unquote_to_bytes

from ixc.data.containers import HEAD_BYTES, sniff

_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{24,}={0,2}\s*")
_IMAGES = (
    b"\x89PNG",
    b"\xff\xd8\xff",  # JPEG
    b"GIF8",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"RIFF",  # WebP
    b"\0\0\0\x0cjP  ",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"\0\0\x01\0",  # ICO
    *(b"P%d\n" % kind for kind in range(1, 7)),  # PPM and its kind
)
"""What images begin with; AVIF and HEIC have `ftyp` behind the first four bytes."""


def is_data_url(text: str) -> bool:
    """Whether a text claims to be a data URL.

    >>> is_data_url("DATA:image/png;base64,"), is_data_url("data/a.png")
    (True, False)
    """
    return text[:5].lower() == "data:"


def from_data_url(url: str) -> bytes:
    """The bytes that a data URL stands for.

    >>> from_data_url("data:image/gif;base64,R0lGOA%3D%3D"), from_data_url("data:,GIF8")
    (b'GIF8', b'GIF8')

    Raises:
        ValueError: it has none, or they cannot be decoded.
    """
    head, _, body = url.partition(",")
    is_base64 = "base64" in head.lower().split(";")[1:]
    try:
        data = from_base64(unquote(body)) if is_base64 else unquote_to_bytes(body)
    except ValueError:
        data = b""
    if not data:
        raise ValueError(
            f"{url[:40]!r}: a data URL without data, or whose base64 is broken; encode the file again"
        )
    return data


def from_base64(text: str) -> bytes:
    """The bytes of base64, perhaps on several lines or without the signs at its end.

    Raises:
        ValueError: it is none.
    """
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def inline(text: str) -> bytes | None:
    """The bytes that a data URL or base64 stands for; None for any other text, such as a file's name.

    >>> inline("data:image/gif;base64,R0lGOA=="), inline("pictures/a.png")
    (b'GIF8', None)

    Raises:
        ValueError: a data URL that cannot be decoded.
    """
    if is_data_url(text):
        return from_data_url(text)
    if not _BASE64.fullmatch(text):
        return None
    try:
        data = from_base64(text)
    except ValueError:
        return None
    return data if _begins_as_image(data) or begins_as_video(data) else None


def _begins_as_image(data: bytes) -> bool:
    # Two letters alone may be anything: a bitmap has four zeros behind its size.
    is_bitmap = data.startswith(b"BM") and data[6:10] == bytes(4)
    return is_bitmap or data.startswith(_IMAGES) or data[4:8] == b"ftyp"


def begins_as_video(data: bytes) -> bool:
    """Whether bytes begin as a video does; a GIF is an image, unless it is given as a video.

    >>> begins_as_video(b"\\0\\0\\0\\x18ftypisom"), begins_as_video(b"\\x89PNG"), begins_as_video(b"GIF89a")
    (True, False, False)
    """
    container = sniff(data[:HEAD_BYTES])
    # A bare stream is refused by name where videos are opened.
    is_bare_stream = data.startswith(b"\0\0\x01\xb3")
    return is_bare_stream or (container is not None and container.name != "GIF")
