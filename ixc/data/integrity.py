"""What the structure of a video file says before any decoder runs: whether it was cut off, or needs other files.

MP4 and Matroska may name the files that their frames lie in, or that come before and after; such files are refused.
Most containers declare how long their pieces are, so that a missing end shows at once.

Sources: ISO/IEC 14496-12 (MP4), RFC 9559 (Matroska), Microsoft's AVI RIFF and ASF references, RFC 3533 (Ogg),
GIF89a, ISO/IEC 13818-1 (MPEG transport streams).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

_MAX_ELEMENTS = 2_000_000
"""Of a container's structure; a file with more is made to waste time. An hour of Matroska has about 10,000."""


class BadContainer(ValueError):
    """A file that is no video, points at other files, or was cut off: what was found, and the remedy."""


def _cut_off(what: str, end: int, size: int) -> BadContainer:
    return BadContainer(
        f"cut off: {what} ends at byte {end:,}, the file at {size:,}; fetch it again"
    )


def _points_away(what: str) -> BadContainer:
    return BadContainer(
        f"{what}: it needs other files; join them to one file: ffmpeg -i IN -c copy OUT.mp4"
    )


def no_check(stream: BinaryIO, size: int) -> None:
    """Of FLV, whose packets and times show it; see `ixc.data.videos`."""


@dataclass
class _Count:
    """How many elements of a file were looked at."""

    value: int = 0

    def add(self) -> None:
        self.value += 1
        if self.value > _MAX_ELEMENTS:
            raise BadContainer(f"damaged: more than {_MAX_ELEMENTS:,} parts; fetch it again")


# MP4, QuickTime


class _Box(NamedTuple):
    type: bytes
    start: int
    """Of its content."""
    end: int


_TOP_BOXES = set(
    b"ftyp styp moov moof mfra mdat free skip wide udta uuid meta sidx ssix prft emsg pdin".split()
)
_CONTAINER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"dinf", b"meta", b"moof", b"traf"}
_REFERENCE_BOXES = {b"rmra": "a QuickTime reference movie", b"rmda": "a QuickTime reference movie"}


def check_mp4(stream: BinaryIO, size: int) -> None:
    for box in _boxes(stream, 0, size, _Count()):
        if box.end > size and box.type in _TOP_BOXES:  # anything else is what some cameras append
            raise _cut_off(f"its part {box.type.decode()!r}", box.end, size)
        if box.type in _REFERENCE_BOXES:
            raise _points_away(_REFERENCE_BOXES[box.type])
        if box.type == b"cmov":
            raise BadContainer(
                "an MP4 with a packed header; unpack it: ffmpeg -i IN -c copy OUT.mp4"
            )
        if box.type == b"dref":
            _check_data_references(stream, box)


def _boxes(
    stream: BinaryIO,
    start: int,
    end: int,
    count: "_Count",
) -> Iterator[_Box]:
    """Every box from `start` on and those inside the boxes that lead to references."""
    while start + 8 <= end:
        count.add()
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
        if type in _CONTAINER_BOXES and box.end <= end:
            yield from _boxes(stream, box.start + _skipped(stream, box), box.end, count)
        start = box.end


def _skipped(stream: BinaryIO, box: _Box) -> int:
    """`meta` has four bytes before its boxes in MP4, and none in QuickTime."""
    stream.seek(box.start)
    return 4 if box.type == b"meta" and stream.read(4) == b"\0\0\0\0" else 0


def _check_data_references(stream: BinaryIO, dref: _Box) -> None:
    for entry in _boxes(stream, dref.start + 8, dref.end, _Count()):
        stream.seek(entry.start)
        version_and_flags = stream.read(4)
        # Bit 0: the frames are in this file.
        is_here = len(version_and_flags) == 4 and version_and_flags[3] & 1
        if not is_here:
            raise _points_away("an MP4 whose frames lie in another file")


# Matroska

_SEGMENT = 0x18538067
_INFO = 0x1549A966
_CHAPTERS = 0x1043A770
_EDITION = 0x45B9
_ATOM = 0xB6
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


def check_matroska(stream: BinaryIO, size: int) -> None:
    _walk_matroska(stream, 0, size, size, _Count())


def _walk_matroska(
    stream: BinaryIO,
    start: int,
    end: int,
    size: int,
    count: _Count,
) -> None:
    while start < end:
        count.add()
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
        stream.seek(body)
        if element == _ORDERED and any(stream.read(min(length or 0, 8))):
            raise _points_away("a Matroska file with ordered chapters")
        if element in (_SEGMENT, _INFO, _CHAPTERS, _EDITION, _ATOM):
            _walk_matroska(stream, body, stop, size, count)
        if element == _SEGMENT:  # what is appended to it is never read
            return
        # What was written live has clusters of unknown length: their blocks follow, then the next cluster.
        start = body if length is None and element == _CLUSTER else stop


def _damaged_matroska(place: int, size: int) -> BadContainer:
    missing = "cut off" if size - place < 12 else "damaged"
    return BadContainer(
        f"{missing}: no part of a Matroska file at byte {place:,} of {size:,}; fetch it again"
    )


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
    is_unknown = length == (1 << bits) - 1
    element = int.from_bytes(head[:id_bytes], "big")
    return element, None if is_unknown else length, header


# AVI, ASF, Ogg, MPEG-TS


def check_avi(stream: BinaryIO, size: int) -> None:
    stream.seek(4)
    length = int.from_bytes(stream.read(4), "little")
    slack = 16  # some writers count the header in
    if length < 0xFFFFFFF0 and 8 + length > size + slack:
        raise _cut_off("its data", 8 + length, size)


def check_asf(stream: BinaryIO, size: int) -> None:
    place = 0
    while place + 24 <= size:
        stream.seek(place + 16)
        length = int.from_bytes(stream.read(8), "little")
        if length < 24:  # written live
            return
        place += length
        if place > size:
            raise _cut_off("a part", place, size)


def check_ogg(stream: BinaryIO, size: int) -> None:
    longest = 27 + 255 + 255 * 255
    stream.seek(max(size - longest, 0))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    is_last = is_whole = False
    if len(page) >= 27:
        # Behind the header of 27 bytes come the segments' lengths, and the segments.
        is_last = bool(page[5] & 4)
        num_segments = page[26]
        lengths = page[27 : 27 + num_segments]
        is_whole = len(page) >= 27 + num_segments + sum(lengths)
    if not (is_last and is_whole):
        raise BadContainer(f"cut off: its last page is missing after byte {size:,}; fetch it again")


def check_gif(stream: BinaryIO, size: int) -> None:
    """From block to block up to the end mark."""
    stream.seek(0)
    reader = _Reader(stream, size)
    header = reader.take(13)
    reader.skip_palette(header[10])
    while (kind := reader.take(1)) != b"\x3b":
        if kind == b"\x2c":  # a frame
            reader.skip_palette(reader.take(9)[8])
        reader.take(1)  # of a frame: the size of a code; else what kind of extension follows
        while length := reader.take(1)[0]:
            reader.take(length)


@dataclass
class _Reader:
    stream: BinaryIO
    size: int

    def take(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) < count:
            raise BadContainer(
                f"cut off: its end mark is missing after byte {self.size:,}; fetch it again"
            )
        return data

    def skip_palette(self, flags: int) -> None:
        if flags & 0x80:
            self.take(3 << ((flags & 7) + 1))


# MPEG program stream


def check_program_stream(stream: BinaryIO, size: int) -> None:
    """From packet to packet, each of which declares its length; what is none is left to FFmpeg."""
    place = 0
    while place + 4 <= size:
        stream.seek(place)
        head = stream.read(14)
        if not head.startswith(b"\x00\x00\x01") or head[3] < 0xB9:
            return
        if head[3] == 0xB9:  # the end mark
            length = 4
        elif head[3] == 0xBA:  # of a pack, the header: MPEG-2's is longer
            length = 14 + (head[-1] & 7) if head[4:5] > b"\x3f" else 12
        else:
            length = 6 + int.from_bytes(head[4:6], "big")
        place += length
        if place > size:
            raise _cut_off("its last packet", place, size)


# MPEG transport stream

SYNC = 0x47
"""The first byte of every packet."""


def check_transport_stream(length: int, stream: BinaryIO, size: int) -> None:
    """A stream declares no length: only a cut within a packet, or within the last frame, shows."""
    if over := size % length:
        raise BadContainer(
            f"cut off: {over} of {length} bytes of its last packet are there; fetch it again"
        )
    stream.seek(size - length)
    last = _Packet(stream.read(length)[-188:])
    payloads = [last.payload]
    place = size - length
    packet = last
    # Back to the packet in which the last frame begins.
    while not (packet.is_start and packet.pid == last.pid) and place > 0:
        place -= length
        stream.seek(place)
        packet = _Packet(stream.read(length)[-188:])
        if packet.pid == last.pid:
            payloads.append(packet.payload)
    if not packet.payload.startswith(b"\x00\x00\x01"):  # a table, or empty
        return
    declared = int.from_bytes(packet.payload[4:6], "big")
    # A frame of undeclared length ends in a packet that is filled up, unless it happens to fit.
    is_whole = sum(map(len, payloads)) >= declared + 6 if declared else len(last.payload) < 184
    if not is_whole:
        raise BadContainer(
            "cut off within its last frame; fetch it again, or convert it: ffmpeg -i IN OUT.mp4"
        )


class _Packet:
    """One of 188 bytes."""

    def __init__(self, data: bytes) -> None:
        self.pid = int.from_bytes(data[1:3], "big") & 0x1FFF
        self.is_start = bool(data[1] & 0x40)
        has_adaptation, has_payload = data[3] & 0x20, data[3] & 0x10
        begin = 5 + data[4] if has_adaptation else 4
        self.payload = data[begin:] if has_payload else b""
