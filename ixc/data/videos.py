"""The one place where videos are opened: which frames a file has, and those that the model sees.

A file is read through a handle that was opened here, by the demuxer that its own first bytes name
(`ixc.data.containers`); FFmpeg may open nothing else, neither a file nor an address. Whatever PyAV or FFmpeg raise
leaves here as `BadMedia`.

Two decoders can be chosen. PyAV, the default, is maintained, brings a current FFmpeg and can write videos too. decord
is what the official code uses; both give the same frames, see `read_with_decord` for what the latter cannot read.
"""

import bisect
import errno
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, NoReturn

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from ixc.data.containers import VIDEO_CODECS, Container, recognise
from ixc.data.images import MAX_PIXELS, BadMedia, check_size, existing
from ixc.data.integrity import BadContainer

VideoDecoder = Literal["pyav", "decord"]
Choose = Callable[[int, Fraction], Sequence[int]]
"""(number of frames, frames per second) -> which frames to decode, ascending."""
_MIN_COMPLETE = 0.9
"""Share of what a header declares that must be there: an edit list may hide a few frames at the ends."""
_WORTH_SEEKING = 250
"""Frames that need not be decoded; less does not pay for finding the others."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a video's packets say, none of them decoded."""

    num_frames: int
    rate: Fraction
    """Frames per second, averaged."""
    times: tuple[int, ...]
    """When each frame is due, ascending, in the track's unit; empty if two are due at once."""
    keys: tuple[int, ...]
    """Frames, by their place in `times`, from which decoding can begin; ascending."""


def read_frames(
    path: Path,
    max_frames: int = 32,
    include_last: bool = False,
    max_pixels: int = MAX_PIXELS,
    decoder: VideoDecoder = "pyav",
) -> list[Image.Image]:
    """The frames of a video that the model sees, RGB and upright.

    Args:
        max_frames, include_last: see `frames_seen`.
        max_pixels: of a frame; a video of larger ones is refused before any is decoded.

    Raises:
        BadMedia: as `read_frames_of`.
    """

    def choose(num_frames: int, rate: Fraction) -> list[int]:
        return frames_seen(num_frames, rate, max_frames, include_last)

    return read_frames_of(path, choose, max_pixels, decoder)


def read_frames_of(
    path: Path, choose: Choose, max_pixels: int = MAX_PIXELS, decoder: VideoDecoder = "pyav"
) -> list[Image.Image]:
    """The frames of a video that `choose` names, RGB and upright.

    Args:
        max_pixels: of a frame; a video of larger ones is refused before any is decoded.

    Raises:
        BadMedia: it is missing, cut off, damaged, no video, needs other files, or is too large.
    """
    if decoder == "decord":
        return read_with_decord(path, choose, max_pixels)
    video = survey(path, max_pixels)
    indices = choose(video.num_frames, video.rate)
    frames = _read_by_seeking(path, video, indices, max_pixels)
    if frames is None:
        frames, count = _read_all(path, indices, max_pixels)
        # Not every packet is a frame; the rule counts frames.
        if count != video.num_frames:
            frames, _ = _read_all(path, choose(count, video.rate), max_pixels)
    if not frames:
        raise BadMedia(
            f"{path}: no frame can be decoded; fetch it again, or convert it: ffmpeg -i IN OUT.mp4"
        )
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
    every_second = list(range(0, num_frames, max(round(rate), 1)))
    if len(every_second) <= max_frames:
        return every_second
    return [every_second[int(i * len(every_second) / (max_frames + 1))] for i in range(max_frames)]


def frames_seen(
    num_frames: int, rate: Fraction | float, max_frames: int, include_last: bool = False
) -> list[int]:
    """Which frames of a video are seen.

    By the official rule (`sampled`) one a second, and of a long video never the last 6 %. With `include_last` the last
    frame is always seen, and a video with more seconds than `max_frames` is thinned evenly from end to end.

    >>> frames_seen(10, 30.0, 4), frames_seen(10, 30.0, 4, include_last=True)
    ([0], [0, 9])
    >>> frames_seen(100, 1.0, 4), frames_seen(100, 1.0, 4, include_last=True)
    ([0, 20, 40, 60], [0, 33, 66, 99])
    """
    if not include_last:
        return sampled(num_frames, rate, max_frames)
    last = num_frames - 1
    every_second = sorted({*sampled(num_frames, rate, num_frames), last})
    if len(every_second) <= max_frames:
        return every_second
    if max_frames == 1:
        return [last]
    num_gaps = max_frames - 1
    return [every_second[(len(every_second) - 1) * i // num_gaps] for i in range(max_frames)]


def verify_video(path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Decode a video to its end.

    Raises:
        BadMedia: as `read_frames_of`; or its frames are damaged, the last one or more than a tenth.
    """
    survey(path, max_pixels)
    count = damaged = 0
    is_last_damaged = False
    with closing(_frames(path, max_pixels)) as frames:
        for frame in frames:
            count += 1
            is_last_damaged = frame.is_corrupt
            damaged += frame.is_corrupt
    if not count:
        raise BadMedia(
            f"{path}: no frame can be decoded; fetch it again, or convert it: ffmpeg -i IN OUT.mp4"
        )
    if is_last_damaged or damaged > (1 - _MIN_COMPLETE) * count:
        last = ", the last one too" if is_last_damaged else ""
        detail = f"{damaged} of {count} frames are damaged{last}"
        raise BadMedia(
            f"{path}: cut off, or damaged: {detail}; fetch it again, or convert it: ffmpeg -i IN OUT.mp4"
        )


def suffix_of(path: Path) -> str:
    """What a video's name ends in, by its container.

    Raises:
        BadMedia: it is none that may be opened, needs other files, or was cut off.
    """
    with path.open("rb") as stream, _naming(path):
        return recognise(stream).suffix


# Opening


class OpenVideo(NamedTuple):
    """A video that may be read, and its best track."""

    container: InputContainer
    track: VideoStream
    kind: Container


@contextmanager
def opened(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[OpenVideo]:
    """A video and its best track; what is raised inside names the file.

    Raises:
        BadMedia: it is missing, no video, needs other files, is cut off, damaged or too large.
    """
    with _naming(path), existing(path).open("rb") as stream:
        kind = recognise(stream)
        # The handle is all that FFmpeg gets: it opens nothing by itself.
        options = {"format_whitelist": kind.demuxer, "protocol_whitelist": "none"}
        with av.open(
            _Handle(stream),
            "r",
            kind.demuxer,
            container_options=options,
            metadata_errors="replace",
            io_open=_refuse_to_open,
        ) as container:
            track = _best_track(path, container)
            check_size(path, track.codec_context.width, track.codec_context.height, max_pixels)
            # Later frames may be larger than the header says.
            track.codec_context.options = {"max_pixels": str(max_pixels)}
            yield OpenVideo(container, track, kind)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except BadMedia:
        raise
    except BadContainer as error:
        raise BadMedia(f"{path}: {error}") from error
    # FFmpegError; of damaged files also AttributeError, UnicodeDecodeError, IndexError ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadMedia(f"{path}: damaged, or cut off ({reason}); fetch it again") from error


class _Handle:
    """The one file that FFmpeg gets. It may seek to impossible places in it, and expects an error's number then."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read, self.tell, self._seek = stream.read, stream.tell, stream.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, OverflowError, ValueError):
            return -errno.EINVAL


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise BadMedia(
        f"a video that wants to open {url!r}; join its parts to one file: ffmpeg -i IN -c copy OUT.mp4"
    )


def _best_track(path: Path, container: InputContainer) -> VideoStream:
    """FFmpeg's choice among several tracks, which decord follows too: the largest, more or less."""
    track = container.streams.best("video")
    if not isinstance(track, VideoStream) or track.disposition & Disposition.attached_pic:
        raise BadMedia(
            f"{path}: no picture track: cut off, or sound only; fetch it again, or drop it"
        )
    codec = track.codec_context.codec.canonical_name if track.codec_context else "unknown"
    if codec not in VIDEO_CODECS:
        raise BadMedia(
            f"{path}: its codec, {codec}, is none that is read; convert it: ffmpeg -i IN OUT.mp4"
        )
    return track


# What the packets say


def survey(path: Path, max_pixels: int = MAX_PIXELS) -> Survey:
    """Read the packets of a video without decoding them.

    Raises:
        BadMedia: as `opened`; or fewer of them are there than the header declares.
    """
    times: list[int | None] = []
    keys: list[int | None] = []
    end = 0.0
    is_last_cut = False
    with opened(path, max_pixels) as video:
        container, track, kind = video
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            # Sound, and what an edit list hides, is no frame.
            if packet.stream_index != track.index or not packet.size or packet.is_discard:
                continue
            times.append(packet.pts)
            is_last_cut = packet.is_corrupt
            if packet.is_keyframe:
                keys.append(packet.pts)
        _check_complete(path, video, len(times), end, is_last_cut)
        rate = track.average_rate or track.guessed_rate or Fraction(1)

    # To seek, every frame must have a time of its own.
    known = sorted(time for time in times if time is not None)
    if not kind.has_index or len(set(known)) < len(times):
        return Survey(num_frames=len(times), rate=rate, times=(), keys=())
    ranks = {time: rank for rank, time in enumerate(known)}
    key_ranks = sorted(ranks[time] for time in keys if time is not None)
    return Survey(num_frames=len(times), rate=rate, times=tuple(known), keys=tuple(key_ranks))


def _check_complete(
    path: Path, video: OpenVideo, num_packets: int, end: float, is_last_cut: bool
) -> None:
    container, track, kind = video
    if num_packets < _MIN_COMPLETE * track.frames:
        raise BadMedia(
            f"{path}: cut off, {num_packets} of {track.frames} frames are there; fetch it again"
        )
    declared = (container.duration or 0) / av.time_base
    if kind.declares_duration and end < _MIN_COMPLETE * declared:
        raise BadMedia(
            f"{path}: cut off, {end:.1f} of {declared:.1f} seconds are there; fetch it again"
        )
    if is_last_cut:
        raise BadMedia(f"{path}: cut off in the last of {num_packets} frames; fetch it again")


# Decoding


def _frames(path: Path, max_pixels: int) -> Generator[av.VideoFrame, None, None]:
    with opened(path, max_pixels) as (container, track, _):
        yield from container.decode(track)


def _read_all(
    path: Path, indices: Collection[int], max_pixels: int
) -> tuple[list[Image.Image], int]:
    """The frames of these indices, and how many the video has; only the former are converted to RGB."""
    chosen = set(indices)
    images: list[Image.Image] = []
    count = 0
    with closing(_frames(path, max_pixels)) as frames:
        for index, frame in enumerate(frames):
            count += 1
            if index in chosen:
                images.append(_upright(frame))
    return images, count


def _upright(frame: av.VideoFrame) -> Image.Image:
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


# Seeking


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Frames that are decoded one after the other."""

    start: int
    """A key frame."""
    indices: list[int]
    """Of the frames to read, ascending; decoding ends with the last."""


def _runs(video: Survey, indices: Sequence[int]) -> list[_Run]:
    """How to decode as few frames as possible: each from the key frame before it."""
    runs: list[_Run] = []
    for index in indices:
        num_keys_before = bisect.bisect_right(video.keys, index)
        key = video.keys[max(num_keys_before - 1, 0)]
        if runs and key <= runs[-1].indices[-1]:
            runs[-1].indices.append(index)
        else:
            start = key if runs else min(key, index)
            runs.append(_Run(start=start, indices=[index]))
    return runs


def _read_by_seeking(
    path: Path, video: Survey, indices: Sequence[int], max_pixels: int
) -> list[Image.Image] | None:
    """The frames of these indices by way of the key frames before them; None if that saves little or is not exact.

    Every frame that is decoded must be due when the packets say that the next one is. Where one is not (hidden
    frames, two fields for one frame), the packets do not count the frames, and all have to be decoded.
    """
    runs = _runs(video, indices) if video.keys else []
    num_decoded = sum(run.indices[-1] - run.start + 1 for run in runs)
    if not runs or video.num_frames - num_decoded < _WORTH_SEEKING:
        return None
    images: list[Image.Image] = []
    with opened(path, max_pixels) as (container, track, _):
        for run in runs:
            if run.start:
                container.seek(video.times[run.start], stream=track)
            decoded = _decode_run(container, track, video.times, run)
            if decoded is None:
                return None
            images += decoded
    return images


def _decode_run(
    container: InputContainer, track: VideoStream, times: Sequence[int], run: _Run
) -> list[Image.Image] | None:
    images = []
    index = run.start
    for frame in container.decode(track):
        # Seeking may end at an earlier key frame.
        if frame.pts is not None and frame.pts < times[run.start]:
            continue
        if frame.pts != times[index]:
            return None
        if index in run.indices:
            images.append(_upright(frame))
        if index == run.indices[-1]:
            return images
        index += 1
    return None


# The official code's decoder


def read_with_decord(path: Path, choose: Choose, max_pixels: int = MAX_PIXELS) -> list[Image.Image]:
    """The frames of a video as the official code reads them.

    Source: internlm-xcomposer2d5-7b, `ixc_utils.load_video`.

    Raises:
        BadMedia: as `read_frames_of`; or decord 0.6 reads it wrong or not at all.
    """
    survey(path, max_pixels)
    _refuse_for_decord(path, max_pixels)
    import torch  # noqa: F401  decord crashes where it is loaded first (lmms-eval#1432)
    from decord import VideoReader

    with _naming(path):
        reader = VideoReader(str(path.absolute()), num_threads=1)  # a path, not an address
        indices = choose(len(reader), Fraction(reader.get_avg_fps()))
        frames = reader.get_batch(indices).asnumpy()
        return [Image.fromarray(frame) for frame in frames]


def _refuse_for_decord(path: Path, max_pixels: int) -> None:
    """Its FFmpeg, of 2021, knows neither AV1 nor VVC; it swaps the bytes of 10-bit frames, and turns none upright."""
    with opened(path, max_pixels) as (container, track, _):
        codec = track.codec_context.codec.canonical_name
        reasons = [codec] if codec in ("av1", "vvc") else []
        depths = {component.bits for component in track.format.components}
        reasons += [f"{bits} bits a channel" for bits in depths if bits > 8]
        frame = next(container.decode(track), None)
        if frame is not None and frame.rotation:
            reasons.append(f"turned by {frame.rotation} degrees")
    if reasons:
        what = f"{reasons[0]}, which decord cannot read"
        raise BadMedia(
            f"{path}: {what}; set video_decoder: pyav, or convert it: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4"
        )
