"""Videos of every container and codec that people use, drawn and encoded in memory."""

import io
from typing import NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream


class Form(NamedTuple):
    """How a video is encoded."""

    codec: str
    container: str
    pixels: str = "yuv420p"
    options: dict[str, str] = {}
    """Of the container."""


FORMS = {
    "mp4": Form("libx264", "mp4"),
    "fragmented.mp4": Form("libx264", "mp4", options={"movflags": "frag_keyframe+empty_moov"}),
    "av1.mp4": Form("libsvtav1", "mp4"),
    "mov": Form("libx264", "mov"),
    "prores.mov": Form("prores_ks", "mov", "yuv422p10le"),
    "m4v": Form("mpeg4", "ipod"),
    "3gp": Form("h263", "3gp"),
    "mkv": Form("mpeg4", "matroska"),
    "live.mkv": Form("libx264", "matroska", options={"live": "1"}),
    "webm": Form("libvpx", "webm"),
    "vp9.webm": Form("libvpx-vp9", "webm"),
    "avi": Form("mpeg4", "avi"),
    "mjpeg.avi": Form("mjpeg", "avi", "yuvj420p"),
    "wmv": Form("wmv2", "asf"),
    "flv": Form("flv1", "flv"),
    "h264.flv": Form("libx264", "flv"),
    "mpg": Form("mpeg2video", "mpeg"),
    "ts": Form("libx264", "mpegts"),
    "m2ts": Form("libx264", "mpegts", options={"mpegts_m2ts_mode": "1"}),
    "gif": Form("gif", "gif", "rgb8"),
}
SIZE = 176, 144
"""Width and height; H.263 knows few others."""


def clip(form: Form, num_frames: int = 24, size: tuple[int, int] = SIZE, **options: str) -> bytes:
    """A video of 25 frames a second, each with its own patch; `options` are the codec's."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form.container, options=form.options) as container:
        draw_into(container, form, num_frames, size, **options)
    return buffer.getvalue()


def draw_into(
    container: OutputContainer, form: Form, num_frames: int, size: tuple[int, int], **options: str
) -> None:
    """Add a track to a container."""
    keys = {"g": "12", "svtav1-params": "lp=1"} if form.codec.startswith("lib") else {}
    stream = container.add_stream(form.codec, rate=25, options=keys | options)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = *size, form.pixels
    for index in range(num_frames):
        container.mux(stream.encode(frame(index, size, form.pixels)))
    container.mux(stream.encode(None))


def frame(index: int, size: tuple[int, int], pixels: str) -> av.VideoFrame:
    """Coloured squares that move, and a grey that tells which frame it is."""
    width, height = size
    squares = np.random.default_rng(0).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    image = np.kron(np.roll(squares, index // 4, axis=1), np.ones((16, 16, 1), np.uint8))
    image[:16, :16] = 10 * index % 250
    drawn = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return drawn.reformat(format=pixels)
