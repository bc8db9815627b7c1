"""Which files may be opened as videos, told by their own bytes, and what their structure says before any decoder runs.

FFmpeg opens far more than videos: playlists (HLS, DASH, ffconcat), numbered images, network addresses, and files that
only point at other files. Here a file must begin with the signature of one of a few containers that hold their frames
themselves; its name decides nothing. Inside MP4 and Matroska, references to other files are looked for and refused.

Sources: ISO/IEC 14496-12 (MP4), RFC 9559 (Matroska), Microsoft's AVI RIFF and ASF references, RFC 3533 (Ogg).
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".mov", ".wmv", ".webm"),  # by which the official code knows a video
    *(".m4v", ".3gp", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".ogv"),
)
"""What names of videos end in. A GIF is an image, unless it is given as a video."""

VIDEO_CODECS = frozenset(
    "av1 cinepak dnxhd dvvideo ffv1 flv1 gif h263 h264 hevc huffyuv jpeg2000 mjpeg mpeg1video mpeg2video mpeg4 "
    "msmpeg4v1 msmpeg4v2 msmpeg4v3 png prores qtrle rawvideo theora utvideo vc1 vp6 vp6f vp8 vp9 vvc wmv1 wmv2 "
    "wmv3".split()
)
"""FFmpeg's names of the codecs that people's videos are in; each decodes from its packets alone."""

HEAD_BYTES = 1024
"""What a container is recognised by."""
_MAX_ELEMENTS = 2_000_000
"""Of a container's structure; a file with more is made to waste time. An hour of Matroska has about 10,000."""


class BadContainer(ValueError):
    """A file that is no video, points at other files, or was cut off: what was found, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """A kind of file that holds its frames itself."""

    name: str
    """As people call it."""
    demuxer: str
    """As FFmpeg calls it."""
    suffix: str
    """In the store: equal bytes have one name, whatever they were called."""
    check: Callable[[BinaryIO, int], None]
    """Looks through the structure of a file of so many bytes.

    Raises:
        BadContainer: it points at other files, or was cut off.
    """


def recognise(stream: BinaryIO) -> Container:
    """The container that a file's first bytes show, its structure checked; the stream is at its start again.

    Raises:
        BadContainer: none that may be opened; it points at other files; it was cut off.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    container = sniff(head)
    if container is None:
        raise BadContainer(f"not a video that can be read: {describe(head)}")
    container.check(stream, size)
    stream.seek(0)
    return container


def sniff(head: bytes) -> Container | None:
    """The container that begins like this; none if it is not one of those that may be opened."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return None if brand in _STILL_BRANDS else _MOV if brand == b"qt  " else _MP4
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime before there was `ftyp`
        return _MOV
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _WEBM if b"webm" in head[:64] else _MATROSKA
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return _AVI
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return _ASF
    for container, length, start in ((_MPEG_TS, 188, 0), (_M2TS, 192, 4)):
        if len(head) >= length and set(head[start::length]) == {0x47}:  # every packet begins with this byte
            return container
    return next((container for magic, container in _BY_MAGIC.items() if head.startswith(magic)), None)


def describe(head: bytes) -> str:
    """What a file that may not be opened is, with the remedy.

    >>> describe(b"#EXTM3U")
    'an HLS playlist, which names other files; join them to one file: ffmpeg -i IN -c copy OUT.mp4'
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lists = (name for mark, name in _PLAYLISTS.items() if text.startswith(mark) or (mark[:1] == b"<" and mark in text))
    if name := next(lists, None):
        return f"{name}, which names other files; join them to one file: ffmpeg -i IN -c copy OUT.mp4"
    if head[4:8] == b"ftyp":
        return "an HEIC or AVIF image; give it as an image, after converting it to PNG or JPEG"
    for mark, name in _IMAGES.items():
        if head.startswith(mark):
            return f"{name}; give it as an image"
    for mark, name in _OTHERS.items():
        if head.startswith(mark):
            return f"{name}; convert it: ffmpeg -i IN OUT.mp4"
    return (
        "none of MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV, Ogg and GIF; "
        "fetch it again, or convert it: ffmpeg -i IN OUT.mp4"
    )


# What is recognised and not opened

_PLAYLISTS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "an ffconcat script",
    b"<MPD": "a DASH manifest",
    b"<SmoothStreamingMedia": "a Smooth Streaming manifest",
    b"<smil": "a SMIL playlist",
    b"<asx": "an ASX playlist",
    b"<ASX": "an ASX playlist",
    b"<AssetMap": "an IMF package",
    b"<CompositionPlaylist": "an IMF package",
    b"[playlist]": "a PLS playlist",
    b"[Reference]": "an ASF reference file",
    b"RTSPtext": "an RTSP reference",
    b"rtsptext": "an RTSP reference",
    b"v=0": "an SDP description",
    b"# VobSub": "a VobSub index",
    b"DVDVIDEO": "a DVD index",
    b"file ": "an ffconcat script",
}
_IMAGES = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"BM": "a BMP image",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
}
_OTHERS = {
    b"\x06\x0e\x2b\x34": "an MXF file",
    b".RMF": "a RealMedia file",
    b"DKIF": "an IVF file",
    b"YUV4MPEG2": "a YUV4MPEG file",
    b"\x00\x00\x00\x01": "a raw stream without a container",
    b"\x00\x00\x01\xb3": "a raw MPEG stream without a container",
    b"FWS": "a Flash program",
    b"CWS": "a Flash program",
    b"RIFF": "sound or an image",
    b"ID3": "sound only",
    b"fLaC": "sound only",
}
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"crx ")


def _cut_off(what: str, end: int, size: int) -> BadContainer:
    return BadContainer(f"cut off: {what} ends at byte {end:,}, the file at {size:,}; fetch it again")


def _points_away(what: str) -> BadContainer:
    return BadContainer(f"{what}: it needs other files; join them to one file: ffmpeg -i IN -c copy OUT.mp4")


def _no_check(stream: BinaryIO, size: int) -> None:
    """Of containers without a structure that tells; what is missing shows in decoding."""


# MP4, QuickTime


class _Box(NamedTuple):
    type: bytes
    start: int
    """Of its content."""
    end: int


_TOP_BOXES = set(b"ftyp styp moov moof mfra mdat free skip wide udta uuid meta sidx ssix prft emsg pdin".split())
_BRANCHES = {b"moov", b"trak", b"mdia", b"minf", b"dinf", b"meta", b"moof", b"traf"}
_REFERENCE_BOXES = {b"rmra": "a QuickTime reference movie", b"rmda": "a QuickTime reference movie"}


def _check_mp4(stream: BinaryIO, size: int) -> None:
    for box in _boxes(stream, 0, size, [0]):
        if box.end > size and box.type in _TOP_BOXES:  # anything else is what some cameras append
            raise _cut_off(f"its part {box.type.decode()!r}", box.end, size)
        if box.type in _REFERENCE_BOXES:
            raise _points_away(_REFERENCE_BOXES[box.type])
        if box.type == b"cmov":
            raise BadContainer("an MP4 with a packed header; unpack it: ffmpeg -i IN -c copy OUT.mp4")
        if box.type == b"dref":
            _check_data_references(stream, box)


def _boxes(stream: BinaryIO, start: int, end: int, seen: list[int]) -> Iterator[_Box]:
    """Every box from `start` on and those inside the branches that lead to references."""
    while start + 8 <= end:
        seen[0] += 1
        if seen[0] > _MAX_ELEMENTS:
            raise BadContainer(f"damaged: more than {_MAX_ELEMENTS:,} parts; fetch it again")
        stream.seek(start)
        length, type = struct.unpack(">I4s", stream.read(8))
        header = 8
        if length == 1:
            wide = stream.read(8)
            if len(wide) < 8:
                raise _cut_off("a part's header", start + 16, end)
            length, header = int.from_bytes(wide, "big"), 16
        box = _Box(type, start + header, end if length == 0 else start + length)
        if box.end < box.start:  # of no sensible length: FFmpeg ends here too
            return
        yield box
        if type in _BRANCHES and box.end <= end:
            yield from _boxes(stream, box.start + _skipped(stream, box), box.end, seen)
        start = box.end


def _skipped(stream: BinaryIO, box: _Box) -> int:
    """`meta` has four bytes before its boxes in MP4, and none in QuickTime."""
    stream.seek(box.start)
    return 4 if box.type == b"meta" and stream.read(4) == b"\0\0\0\0" else 0


def _check_data_references(stream: BinaryIO, dref: _Box) -> None:
    for entry in _boxes(stream, dref.start + 8, dref.end, [0]):
        stream.seek(entry.start)
        version_and_flags = stream.read(4)
        if not (len(version_and_flags) == 4 and version_and_flags[3] & 1):  # 1: the frames are in this file
            raise _points_away("an MP4 whose frames lie in another file")


# Matroska

_SEGMENT, _INFO, _CHAPTERS, _EDITION, _ATOM = 0x18538067, 0x1549A966, 0x1043A770, 0x45B9, 0xB6
_CLUSTER = 0x1F43B675
_LINKS = {
    0x3CB923: "a Matroska file that continues another",
    0x3C83AB: "a Matroska file that continues another",
    0x3EB923: "a Matroska file that another continues",
    0x3E83BB: "a Matroska file that another continues",
    0x6E67: "a Matroska file with chapters of another",
    0x6EBC: "a Matroska file with chapters of another",
}
_ORDERED = 0x45DD


def _check_matroska(stream: BinaryIO, size: int) -> None:
    _walk_matroska(stream, 0, size, size, [0])


def _walk_matroska(stream: BinaryIO, start: int, end: int, size: int, seen: list[int]) -> None:
    while start < end:
        seen[0] += 1
        if seen[0] > _MAX_ELEMENTS:
            raise BadContainer(f"damaged: more than {_MAX_ELEMENTS:,} parts; fetch it again")
        stream.seek(start)
        element, length, header = _element(stream.read(12))
        if not element:
            raise _damaged_matroska(start, size)
        body = start + header
        if length is not None and body + length > size:
            what = "its segment" if element == _SEGMENT else f"its part {element:#x}"
            raise _cut_off(what, body + length, size)
        stop = end if length is None else body + length
        if element in _LINKS:
            raise _points_away(_LINKS[element])
        if element == _ORDERED and any(stream.seek(body) and stream.read(length or 0)):
            raise _points_away("a Matroska file with ordered chapters")
        if element in (_SEGMENT, _INFO, _CHAPTERS, _EDITION, _ATOM):
            _walk_matroska(stream, body, stop, size, seen)
        # What was written live has clusters of unknown length: their blocks follow, then the next cluster.
        start = body if length is None and element == _CLUSTER else stop


def _damaged_matroska(place: int, size: int) -> BadContainer:
    missing = "cut off" if size - place < 12 else "damaged"
    return BadContainer(f"{missing}: no part of a Matroska file at byte {place:,} of {size:,}; fetch it again")


def _element(head: bytes) -> tuple[int, int | None, int]:
    """Id, length of the content (None: unknown), bytes before the content; id 0 if there is none.

    >>> _element(bytes.fromhex("ec8401")), _element(bytes.fromhex("1f43b675ff"))
    ((236, 4, 2), (524531317, None, 5))
    """
    id_bytes = 9 - head[0].bit_length() if head and head[0] else 9
    if id_bytes > 4 or len(head) <= id_bytes or not head[id_bytes]:
        return 0, 0, 0
    length_bytes = 9 - head[id_bytes].bit_length()
    header = id_bytes + length_bytes
    if len(head) < header:
        return 0, 0, 0
    bits = 7 * length_bytes
    length = int.from_bytes(head[id_bytes:header], "big") & ((1 << bits) - 1)
    return int.from_bytes(head[:id_bytes], "big"), None if length == (1 << bits) - 1 else length, header


# AVI, ASF, Ogg, MPEG-TS


def _check_avi(stream: BinaryIO, size: int) -> None:
    stream.seek(4)
    length = int.from_bytes(stream.read(4), "little")
    slack = 16  # some writers count the header in
    if length < 0xFFFFFFF0 and 8 + length > size + slack:
        raise _cut_off("its data", 8 + length, size)


def _check_asf(stream: BinaryIO, size: int) -> None:
    place = 0
    while place + 24 <= size:
        stream.seek(place + 16)
        length = int.from_bytes(stream.read(8), "little")
        if length < 24:  # written live
            return
        place += length
        if place > size:
            raise _cut_off("a part", place, size)


def _check_ogg(stream: BinaryIO, size: int) -> None:
    longest = 27 + 255 + 255 * 255
    stream.seek(max(size - longest, 0))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    is_last = len(page) >= 27 and page[5] & 4
    is_whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not (is_last and is_whole):
        raise BadContainer(f"cut off: its last page is missing after byte {size:,}; fetch it again")


def _check_packets(length: int, stream: BinaryIO, size: int) -> None:
    if over := size % length:
        raise BadContainer(f"cut off: {over} of {length} bytes of its last packet are there; fetch it again")


_MP4 = Container(name="MP4", demuxer="mp4", suffix=".mp4", check=_check_mp4)
_MOV = Container(name="QuickTime", demuxer="mov", suffix=".mov", check=_check_mp4)
_MATROSKA = Container(name="Matroska", demuxer="matroska", suffix=".mkv", check=_check_matroska)
_WEBM = Container(name="WebM", demuxer="webm", suffix=".webm", check=_check_matroska)
_AVI = Container(name="AVI", demuxer="avi", suffix=".avi", check=_check_avi)
_ASF = Container(name="WMV", demuxer="asf", suffix=".wmv", check=_check_asf)
_MPEG_TS = Container(name="MPEG-TS", demuxer="mpegts", suffix=".ts", check=partial(_check_packets, 188))
_M2TS = replace(_MPEG_TS, suffix=".m2ts", check=partial(_check_packets, 192))
_BY_MAGIC = {
    b"\x00\x00\x01\xba": Container(name="MPEG", demuxer="mpeg", suffix=".mpg", check=_no_check),
    b"FLV\x01": Container(name="FLV", demuxer="flv", suffix=".flv", check=_no_check),
    b"OggS": Container(name="Ogg", demuxer="ogg", suffix=".ogv", check=_check_ogg),
    b"GIF8": Container(name="GIF", demuxer="gif", suffix=".gif", check=_no_check),
}


def is_video(path: Path) -> bool:
    """Whether a file begins like a video that may be opened."""
    with path.open("rb") as stream:
        return sniff(stream.read(HEAD_BYTES)) is not None
