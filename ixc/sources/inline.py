"""Pictures and films that stand in a text: data URLs (RFC 2397) and plain base64."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{24,}={0,2}\s*")
_BEGINNINGS = (
    b"\x89PNG",
    b"\xff\xd8\xff",  # JPEG
    b"GIF8",
    b"BM",  # BMP
    b"II*\0",  # TIFF
    b"MM\0*",
    b"RIFF",  # WebP, AVI
    b"\x1aE\xdf\xa3",  # Matroska, WebM
)
"""Of pictures and films; MP4 and QuickTime have `ftyp` behind the first four bytes."""


def inline(text: str) -> bytes | None:
    """The bytes that a data URL or base64 stands for; None for any other text, such as a file's name.

    >>> inline("data:image/gif;base64,R0lGOA=="), inline("pictures/a.png")
    (b'GIF8', None)

    Raises:
        ValueError: a data URL that cannot be decoded.
    """
    if text[:5].lower() == "data:":
        return _of_url(text)
    if not _BASE64.fullmatch(text):
        return None
    data = _decoded(text)
    known = data is not None and (data.startswith(_BEGINNINGS) or data[4:8] == b"ftyp")
    return data if known else None


def suffix_of(film: bytes) -> str:
    """What a film's file is called by, as far as its first bytes tell."""
    return {b"RIFF": ".avi", b"\x1aE\xdf\xa3": ".mkv"}.get(film[:4], ".mp4")


def _of_url(text: str) -> bytes:
    head, comma, body = text.partition(",")
    data = _decoded(body) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    if not comma or not data:
        raise ValueError(f"{text[:40]!r}: a data URL without data, or whose base64 is broken; encode the file again")
    return data


def _decoded(text: str) -> bytes | None:
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return None
