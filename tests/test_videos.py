"""Videos: which files are opened, what is found cut or damaged, and which frames are read."""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
from av.stream import Disposition
from clips import FORMS, SIZE, Form, clip, draw_into, frame
from far_reaching import far_reaching
from PIL import Image
from real import REAL, needs_real

from ixc.data import videos
from ixc.data.images import MAX_PIXELS, BadMedia
from ixc.data.media import Store, check, verify
from ixc.data.sources import File
from ixc.data.videos import read_frames_of, survey, verify_video
from ixc.models.inputs import is_video, read_video
from ixc.models.ixc25.options import BadProcessor, checked_options
from ixc.models.ixc25.processing import IXCProcessor


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def every(step: int) -> Callable[[int, Fraction], Sequence[int]]:
    return lambda num_frames, rate: range(0, num_frames, step)


def pixels(frames: Sequence[Image.Image]) -> list[bytes]:
    return [frame.tobytes() for frame in frames]


# Only what holds its own frames


def test_no_file_that_reaches_for_others_is_admitted(tmp_path: Path):
    outside = put(tmp_path / "elsewhere.ts", clip(FORMS["ts"]))
    inside = tmp_path / "inside"
    inside.mkdir()
    crafted = {inside / name: data for name, data in far_reaching(outside).items()}
    assert len(crafted) >= 50
    store = Store(tmp_path / "media")
    for path, data in crafted.items():
        path.write_bytes(data)
        for file in (File(kind="video", path=path), File(kind="video", data=data)):
            with pytest.raises(
                BadMedia, match=r"other files|not a video that can be read|packed header"
            ):
                store.add(file)
        for source in (path, data):
            with pytest.raises(BadMedia):
                read_video(source, 4, False, "white", MAX_PIXELS)
    assert not [file for file in store.root.rglob("*") if file.is_file()]

    # What is refused does reach out where nobody minds: otherwise the above would prove nothing.
    for name in ("hls.m3u8", "hls_absolute.m3u8"):
        with av.open(str(inside / name)) as container:
            assert len(list(container.decode(video=0))) == 24
    verify(outside, "video")


def test_a_video_that_opens_nothing_is_not_told_apart_by_its_name(tmp_path: Path):
    data = clip(FORMS["mp4"])
    store = Store(tmp_path / "media")
    names = ("a.mp4", "b.m3u8", "c", "d.MOV")
    [media] = {store.add(File(kind="video", path=put(tmp_path / name, data))) for name in names}
    assert media.path.endswith(".mp4")
    assert store.add(File(kind="video", data=data)) == media


def test_ffmpeg_may_open_nothing_but_the_file(tmp_path: Path):
    with pytest.raises(BadMedia, match=r"wants to open '/etc/passwd'"):
        videos._refuse_to_open("/etc/passwd", 1, {})
    with videos.opened(put(tmp_path / "a.mp4", clip(FORMS["mp4"]))) as (container, _, _):
        assert container.io_open is videos._refuse_to_open
        assert container.container_options["protocol_whitelist"] == "none"


@pytest.mark.parametrize("name", FORMS)
def test_what_people_use_is_read_under_any_name(tmp_path: Path, name: str):
    path = put(tmp_path / "clip", clip(FORMS[name]))
    verify_video(path)
    assert len(read_frames_of(path, every(1))) == survey(path).num_frames == 24
    assert read_frames_of(path, every(10))[1].size == SIZE
    media = Store(tmp_path / "media").add(File(kind="video", path=path))
    check(tmp_path / "media", media)
    assert is_video(f"{media.path}") or name == "gif"


def test_names_of_videos_are_known():
    names = "a.m4v b.mpg c.ts d.flv e.3gp f.MPEG g.m2ts h.ogv i.mp4".split()
    assert all(map(is_video, names)) and not is_video("a.gif")


@pytest.mark.parametrize(
    ("begins", "what"),
    [
        (b"\x06\x0e\x2b\x34", "an MXF file; convert it: ffmpeg"),
        (b".RMF", "a RealMedia file"),
        (b"\xff\xd8\xff\xe0", "a JPEG image; give it as an image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "sound or an image"),
        (b"\0\0\0\x1cftypavif", "an HEIC or AVIF image"),
        (b"hello", "none of MP4, MOV, Matroska"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, begins: bytes, what: str):
    with pytest.raises(BadMedia, match=rf"odd\.bin: not a video that can be read: {what}"):
        verify_video(put(tmp_path / "odd.bin", begins + bytes(500)))


def test_a_codec_that_nobody_uses_is_refused_by_name(tmp_path: Path):
    path = put(tmp_path / "screen.flv", clip(Form("flashsv", "flv", "bgr24")))
    with pytest.raises(
        BadMedia, match=r"screen\.flv: its codec, flashsv, is none that is read; convert it"
    ):
        survey(path)


def test_the_cover_of_a_song_is_no_video(tmp_path: Path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = *SIZE, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        for packet in [*sound.encode(silence), *sound.encode(None)]:
            container.mux(packet)
        image = av.VideoFrame.from_image(Image.new("RGB", SIZE, "red")).reformat(format="yuvj420p")
        for packet in [*cover.encode(image), *cover.encode(None)]:
            container.mux(packet)
    with pytest.raises(BadMedia, match="no picture track"):
        verify_video(path)


# Cut off, damaged


@pytest.mark.parametrize("name", FORMS)
def test_a_cut_video_is_refused_wherever_it_is_read(tmp_path: Path, name: str):
    whole = clip(FORMS[name])
    for share in (0.3, 0.5, 0.8):
        path = put(tmp_path / "cut", whole[: int(share * len(whole)) | 1])
        with pytest.raises(BadMedia, match=r"/cut: .*(cut off|damaged).*; fetch it again"):
            verify_video(path)
        with pytest.raises(BadMedia):
            Store(tmp_path / "media").add(File(kind="video", path=path))
        with pytest.raises(BadMedia):
            read_video(path, 4, False, "white", MAX_PIXELS)


@pytest.mark.parametrize("name", ["mp4", "mov", "mkv", "webm", "avi", "flv", "mpg", "gif"])
@pytest.mark.parametrize("rest", [b"<html>404</html>", bytes(1000)])
def test_what_was_appended_to_a_whole_video_does_not_matter(tmp_path: Path, name: str, rest: bytes):
    data = clip(FORMS[name], 30)
    alone, longer = put(tmp_path / "alone", data), put(tmp_path / "longer", data + rest)
    verify_video(longer)
    assert survey(longer).num_frames == survey(alone).num_frames == 30


def test_what_was_found_of_a_cut_file_is_said(tmp_path: Path):
    mkv, flv = clip(FORMS["mkv"]), clip(FORMS["flv"])
    with pytest.raises(
        BadMedia, match=rf"half\.mkv: cut off: its segment ends at byte {len(mkv):,}, the file at"
    ):
        survey(put(tmp_path / "half.mkv", mkv[: len(mkv) // 2]))
    with pytest.raises(BadMedia, match=r"half\.flv: cut off, 0\.\d of 1\.0 seconds are there"):
        survey(put(tmp_path / "half.flv", flv[: len(flv) // 2]))


def test_a_transport_stream_that_ends_within_a_frame_is_refused(tmp_path: Path):
    data = clip(FORMS["ts"], 1)
    for packets in range(5, len(data) // 188 - 1):
        with pytest.raises(BadMedia, match="cut off within its last frame"):
            survey(put(tmp_path / "cut.ts", data[: 188 * packets]))
    survey(put(tmp_path / "whole.ts", data))


def test_a_video_damaged_in_the_middle_is_refused_at_the_door(tmp_path: Path):
    data = bytearray(clip(FORMS["mp4"], 60))
    start = data.index(b"mdat") + 600
    data[start : start + 3000] = random.Random(0).randbytes(3000)
    path = put(tmp_path / "rotten.mp4", bytes(data))
    with pytest.raises(BadMedia, match=r"rotten\.mp4: .*damaged.*fetch it again"):
        Store(tmp_path / "media").add(File(kind="video", path=path))


def test_a_title_that_is_not_unicode_does_not_matter(tmp_path: Path):
    buffer = BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        container.metadata["title"] = "Cafe"
        draw_into(container, FORMS["avi"], 8, SIZE)
    path = put(tmp_path / "latin.avi", buffer.getvalue().replace(b"Cafe", b"Caf\xe9"))
    assert b"Caf\xe9" in path.read_bytes()
    verify_video(path)
    assert len(read_video(path, 8, True, "white", MAX_PIXELS)) == 2


def rotten(rng: random.Random, data: bytes) -> bytes:
    rotten = bytearray(data)
    reach = rng.choice([len(data), min(len(data), 1500)])  # the header matters most
    for _ in range(rng.choice([1, 3, 30])):
        place = rng.randrange(reach)
        rotten[place : place + 4] = rng.choice(
            [rng.randbytes(1), bytes(8), b"\xff" * 4, rng.randbytes(4)]
        )
    return bytes(rotten)


@pytest.mark.parametrize("name", FORMS)
def test_a_bit_rotted_video_is_read_or_refused_by_name(tmp_path: Path, name: str):
    rng, whole = random.Random(name), clip(FORMS[name], 8)
    for _ in range(8):
        path = put(tmp_path / "rotten", rotten(rng, whole))
        for read in (verify_video, lambda path: read_frames_of(path, every(3), 10**6)):
            try:
                read(path)
            except BadMedia as error:
                assert str(error).startswith(str(path)) and ";" in str(error)


def test_later_frames_may_not_be_larger_either(tmp_path: Path):
    small, large = clip(FORMS["ts"], 12), clip(FORMS["ts"], 12, (640, 480))
    path = put(tmp_path / "growing.ts", small + large)
    verify_video(path, 640 * 480)
    with pytest.raises(BadMedia):
        verify_video(path, 320 * 240)


# Which frames


def test_of_several_tracks_the_best_is_read(tmp_path: Path):
    path = tmp_path / "two.mp4"
    form = FORMS["mp4"]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, size in zip(streams, ((64, 48), SIZE), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, form.pixels
            stream.disposition = Disposition.default
        for stream in streams:
            for index in range(12):
                container.mux(
                    stream.encode(frame(index, (stream.width, stream.height), form.pixels))
                )
            container.mux(stream.encode(None))
    assert read_frames_of(path, every(6))[0].size == SIZE


LONG = {
    "b-frames.mp4": (Form("libx264", "mp4"), {"g": "50", "bf": "3"}),
    "open-gop.mp4": (Form("libx264", "mp4"), {"g": "50", "x264-params": "open-gop=1"}),
    "intra-refresh.mp4": (Form("libx264", "mp4"), {"g": "50", "x264-params": "intra-refresh=1"}),
    "h264.mkv": (Form("libx264", "matroska"), {"g": "40"}),
    "hevc.mp4": (
        Form("libx265", "mp4"),
        {"g": "50", "x265-params": "log-level=none:pools=1:open-gop=1"},
    ),
    "interlaced.mp4": (Form("libx264", "mp4"), {"g": "50", "flags": "+ildct+ilme"}),
    "vp8.webm": (
        Form("libvpx", "webm"),
        {"g": "50", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    ),
    "vp9.webm": (
        Form("libvpx-vp9", "webm"),
        {"g": "50", "lag-in-frames": "16", "cpu-used": "8", "row-mt": "0"},
    ),
    "mpeg4.mp4": (Form("mpeg4", "mp4"), {"g": "50", "bf": "2"}),
    "h264.ts": (Form("libx264", "mpegts"), {"g": "50"}),
    "h264.flv": (Form("libx264", "flv"), {"g": "50"}),
    "mpeg4.avi": (Form("mpeg4", "avi"), {"g": "50", "bf": "2"}),
}


@pytest.mark.parametrize("name", LONG)
def test_frames_read_by_seeking_are_those_of_a_full_reading(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    form, options = LONG[name]
    path = put(tmp_path / name, clip(form, 400, (96, 64), **options))
    indices = [0, 1, 120, 151, 333]
    in_full, num_frames = videos._read_all(path, indices, MAX_PIXELS)
    assert num_frames == 400 and len(set(pixels(in_full))) == 5
    monkeypatch.setattr(videos, "_WORTH_SEEKING", 1)
    by_seeking = videos._read_by_seeking(path, survey(path), indices, MAX_PIXELS)
    assert by_seeking is None or pixels(by_seeking) == pixels(in_full)
    assert by_seeking is not None or name in (
        "vp8.webm",
        "mpeg4.avi",
        "h264.ts",
        "intra-refresh.mp4",
    )
    assert pixels(read_frames_of(path, lambda num_frames, rate: indices)) == pixels(in_full)


def test_a_long_video_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(tmp_path / "long.mp4", clip(FORMS["mp4"], 600, (96, 64), g="25"))
    monkeypatch.setattr(videos, "_read_all", lambda *_: pytest.fail("decoded whole"))
    assert len(read_frames_of(path, every(100))) == 6


# decord


@pytest.mark.parametrize("name", ["mp4", "mov", "mkv", "avi", "m4v", "flv"])
def test_both_decoders_read_the_same_frames(tmp_path: Path, name: str):
    pytest.importorskip("decord")
    path = put(tmp_path / name, clip(FORMS[name], 60))
    by_pyav, by_decord = (
        read_video(path, 4, False, "white", MAX_PIXELS, decoder) for decoder in ("pyav", "decord")
    )
    assert len(by_pyav) == len(by_decord) == 3
    assert pixels(by_pyav) == pixels(by_decord)


def turned(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.set_display_rotation(90)
        for index in range(8):
            container.mux(stream.encode(frame(index, SIZE, "yuv420p")))
        container.mux(stream.encode(None))
    return path


def test_what_decord_reads_wrong_is_refused_by_name(tmp_path: Path):
    pytest.importorskip("decord")
    deep = clip(Form("libx264", "mp4", "yuv420p10le"))
    cases = {
        put(tmp_path / "av1.mp4", clip(FORMS["av1.mp4"])): "av1",
        put(tmp_path / "deep.mp4", deep): "10 bits a channel",
        turned(tmp_path / "turned.mp4"): "turned by 90 degrees",
    }
    for path, what in cases.items():
        with pytest.raises(
            BadMedia,
            match=rf"{path.name}: {what}, which decord cannot read; set video_decoder: pyav",
        ):
            read_frames_of(path, every(10), decoder="decord")
        assert read_frames_of(path, every(10))
    with pytest.raises(BadMedia, match="cut off"):  # what PyAV refuses, decord is not asked
        read_frames_of(put(tmp_path / "cut.mp4", deep[:2000]), every(10), decoder="decord")


def test_a_processor_reads_with_the_decoder_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    monkeypatch.setattr(
        videos, "read_with_decord", lambda path, *_: seen.append(path) or [Image.new("RGB", SIZE)]
    )
    monkeypatch.setattr("ixc.models.ixc25.options.find_spec", lambda name: name)
    path = put(tmp_path / "a.mp4", clip(FORMS["mp4"]))
    chat = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A square."},
    ]
    for decoder, times in (("pyav", 0), ("decord", 1)):
        options = {"tile_size": tiny.TILE, "patch_size": tiny.PATCH, "video_decoder": decoder}
        IXCProcessor(tiny.processor().tokenizer, **options)(chat, videos=[path])
        assert len(seen) == times
    # what one decoder read is not taken for what the other reads
    assert "video_decoder" in tiny.processor().geometry()


def test_a_decoder_that_is_not_installed_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ixc.models.ixc25.options.find_spec", lambda _: None)
    with pytest.raises(
        BadProcessor, match=r"video_decoder: 'decord': not installed; pip install 'ixc\[video\]'"
    ):
        checked_options({"video_decoder": "decord"})
    assert checked_options({}).video_decoder == "pyav"


@needs_real
def test_both_decoders_read_the_real_videos_alike_the_larger_track_of_two():
    pytest.importorskip("decord")
    for name in ("bigbuckbunny", "flower", "friday", "nasa_13013"):
        path = REAL / "videos" / f"{name}.mp4"
        by_pyav = read_frames_of(path, every(60))
        assert pixels(by_pyav) == pixels(read_frames_of(path, every(60), decoder="decord"))
    assert by_pyav[0].size == (480, 270)
