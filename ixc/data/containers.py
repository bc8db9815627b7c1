"""Which files may be opened as videos, by their own bytes.

FFmpeg opens far more than videos: playlists (HLS, DASH, ffconcat), numbered images, network addresses, and files that
only point at other files. Here a file must begin with the signature of one of a few containers that hold their frames
themselves; its name decides nothing. What their structure says is looked at in `ixc.data.integrity`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

from ixc.data.integrity import (
    SYNC,
    BadContainer,
    check_asf,
    check_avi,
    check_gif,
    check_matroska,
    check_mp4,
    check_ogg,
    check_program_stream,
    check_transport_stream,
    no_check,
)

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


@dataclass(frozen=True, kw_only=True)
class Container:
    """A kind of file that holds its frames itself."""

    name: str
    """As people call it."""
    demuxer: str
    """As FFmpeg calls it."""
    suffix: str
    """In the store: equal bytes have one name, whatever they were called."""
    has_index: bool = False
    """A key frame is found at once."""
    declares_duration: bool = False
    """And counts no frames."""
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
    # A box's length comes first, then what kind of box it is.
    if head[4:8] in _MP4_BEGINNINGS and head[8:12] not in _STILL_BRANDS:
        return _MP4 if head[4:8] == b"ftyp" and head[8:12] != b"qt  " else _MOV
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _WEBM if b"webm" in head[:64] else _MATROSKA
    if head.startswith(b"RIFF"):
        return _AVI if head[8:12] == b"AVI " else None
    # Transport streams have no signature, but a sync byte in every packet.
    for container, length, start in ((_MPEG_TS, 188, 0), (_M2TS, 192, 4)):
        if len(head) >= length and set(head[start::length]) == {SYNC}:
            return container
    for magic, container in _BY_MAGIC.items():
        if head.startswith(magic):
            return container
    return None


def describe(head: bytes) -> str:
    """What a file that may not be opened is, with the remedy.

    >>> describe(b"#EXTM3U")
    'an HLS playlist, which names other files; join them to one file: ffmpeg -i IN -c copy OUT.mp4'
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for mark, name in _PLAYLISTS.items():
        is_tag = mark[:1] == b"<"  # which a declaration may precede
        if text.startswith(mark) or (is_tag and mark in text):
            remedy = "join them to one file: ffmpeg -i IN -c copy OUT.mp4"
            return f"{name}, which names other files; {remedy}"
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
_MP4_BEGINNINGS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""The first is missing in QuickTime files from before 2001."""
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"crx ")


_MP4 = Container(
    name="MP4",
    demuxer="mp4",
    suffix=".mp4",
    has_index=True,
    check=check_mp4,
)
_MOV = Container(
    name="QuickTime",
    demuxer="mov",
    suffix=".mov",
    has_index=True,
    check=check_mp4,
)
_MATROSKA = Container(
    name="Matroska",
    demuxer="matroska",
    suffix=".mkv",
    has_index=True,
    declares_duration=True,
    check=check_matroska,
)
_WEBM = Container(
    name="WebM",
    demuxer="webm",
    suffix=".webm",
    has_index=True,
    declares_duration=True,
    check=check_matroska,
)
_AVI = Container(
    name="AVI",
    demuxer="avi",
    suffix=".avi",
    declares_duration=True,
    check=check_avi,
)
_MPEG_TS = Container(
    name="MPEG-TS", demuxer="mpegts", suffix=".ts", check=partial(check_transport_stream, 188)
)
_M2TS = replace(_MPEG_TS, suffix=".m2ts", check=partial(check_transport_stream, 192))
_BY_MAGIC = {
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": Container(
        name="WMV", demuxer="asf", suffix=".wmv", declares_duration=True, check=check_asf
    ),
    b"\x00\x00\x01\xba": Container(
        name="MPEG", demuxer="mpeg", suffix=".mpg", check=check_program_stream
    ),
    b"FLV\x01": Container(
        name="FLV",
        demuxer="flv",
        suffix=".flv",
        has_index=True,
        declares_duration=True,
        check=no_check,
    ),
    b"OggS": Container(name="Ogg", demuxer="ogg", suffix=".ogv", check=check_ogg),
    b"GIF8": Container(name="GIF", demuxer="gif", suffix=".gif", check=check_gif),
}
