"""Images and videos from files, bytes, PIL, arrays and frames; and what is refused, with the remedy."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ixc.data.images import BadMedia
from ixc.data.sources.embedded.videos import encode
from ixc.data.videos import frames_seen
from ixc.models.inputs import is_video, read_image, read_video

LIMIT = 10_000


def read(source: Any, transparency: Any = "white") -> Image.Image:
    return read_image(source, transparency, LIMIT)


def png(image: Image.Image, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def noise() -> Image.Image:
    return Image.effect_noise((40, 30), 80).convert("RGB")


def red(image: Image.Image, x: int = 0) -> int:
    return int(np.asarray(image)[0, x, 0])


def test_every_form_of_a_image_is_the_same_image(tmp_path: Path):
    image = noise()
    path = tmp_path / "noise.png"
    path.write_bytes(png(image))
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [
        path,
        str(path),
        path.read_bytes(),
        image,
        array,
        tensor,
        array / 255,
        tensor.float() / 255,
    ]
    for form in forms:
        assert read(form).tobytes() == image.tobytes()


def test_grey_arrays_are_images_too():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.stack([grey] * 3, -1)
    for form in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert (np.asarray(read(form)) == expected).all()


def test_transparency_is_white_paper_or_as_the_official_code_has_it():
    clear = Image.new("RGBA", (1, 1), (200, 0, 0, 0))
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([200, 0, 0])
    for source in (clear, png(clear), png(palette, transparency=0)):
        assert read(source).getpixel((0, 0)) == (255, 255, 255)
        assert read(source, "official").getpixel((0, 0)) == (200, 0, 0)


def test_sixteen_bits_are_scaled_not_cut():
    deep = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    for transparency in ("white", "official"):
        assert [red(read(deep, transparency), x) for x in range(3)] == [0, 128, 255]


def test_a_image_stands_upright_as_its_camera_held_it(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert read(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.png", r"absent\.png: no such file"),
        (
            "https://example.org/a.png",
            r"'https://example\.org/a\.png': an address; nothing is fetched",
        ),
        ("data:image/png;base64,AAAA", "an address; nothing is fetched"),
        (b"", "0 bytes: neither image nor video"),
        (b"not a picture", "13 bytes: not a picture"),
        (Image.new("1", (101, 100)), "an image of 101 x 100 pixels: must have 1 to 10,000"),
        (png(Image.new("1", (101, 100))), "bytes: 101 x 100 pixels, more than 10,000"),
        (np.zeros((2, 2, 5), np.uint8), r"a ndarray of shape \(2, 2, 5\) and uint8: no image"),
        (np.zeros((0, 2, 3), np.uint8), "no image"),
        (torch.zeros(1, 3, 8, 8), r"a Tensor of shape \(1, 3, 8, 8\) .*: no image"),
        (np.full((2, 2, 3), 2.0), "values outside 0 to 1"),
        (np.full((2, 2, 3), np.nan), "values outside 0 to 1"),
        (np.zeros((2, 2, 3), np.int64), r"give 8-bit values \(uint8\), or floats"),
        (7, "int: no image; give a path"),
    ],
)
def test_what_is_no_image_is_refused_with_the_remedy(source: Any, message: str):
    with pytest.raises(BadMedia, match=message):
        read(source)


@settings(deadline=None, database=None)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, headed: bool):
    source = png(Image.new("RGB", (4, 4)))[:33] + data if headed else data
    for look in (read, lambda video: read_video(video, 4, False, "white", LIMIT)):
        with pytest.raises(BadMedia):
            look(source)


# Videos


def test_a_video_of_huge_frames_is_refused_before_one_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = encode([Image.new("RGB", (128, 96), "red")] * 8)
    monkeypatch.setattr("ixc.data.videos._frames", lambda *_: pytest.fail("decoded"))
    (tmp_path / "film.mp4").write_bytes(large)
    for source, name in ((large, "bytes"), (tmp_path / "film.mp4", r"film\.mp4")):
        with pytest.raises(
            BadMedia, match=rf"{name}: 128 x 96 pixels, more than 10,000; scale it down"
        ):
            frames(source)


def video(num_frames: int) -> bytes:
    return encode([Image.new("RGB", (64, 32), "red")] * num_frames)


def frames(source: Any, max_frames: int = 32, include_last: bool = False) -> list[Image.Image]:
    return read_video(source, max_frames, include_last, "white", LIMIT)


def test_a_video_from_a_file_and_from_its_bytes_is_the_same(tmp_path: Path):
    data = video(24)
    (tmp_path / "film.mp4").write_bytes(data)
    for source in (data, tmp_path / "film.mp4", str(tmp_path / "film.mp4")):
        assert [frame.size for frame in frames(source)] == [(64, 32)] * 3  # 24 frames at 8 a second
        assert len(frames(source, include_last=True)) == 4


def test_a_list_of_frames_is_a_video_of_a_frame_a_second():
    shades = [Image.new("L", (2, 2), i) for i in range(100)]
    assert [red(frame) for frame in frames(shades, 4)] == [0, 20, 40, 60]
    assert [red(frame) for frame in frames(shades, 4, include_last=True)] == [0, 33, 66, 99]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "a video without frames"),
        (b"", "0 bytes"),
        (b"no film", "7 bytes: not a video"),
        ("rtsp://camera", "an address"),
        ("absent.mp4", "no such file"),
        ([np.zeros((0, 2, 3), np.uint8)], "no image"),
        (7, "int: no video; give a path"),
    ],
)
def test_what_is_no_video_is_refused_with_the_remedy(source: Any, message: str):
    with pytest.raises(BadMedia, match=message):
        frames(source)


@settings(deadline=None, database=None)
@given(st.integers(1, 5000), st.floats(0.01, 240), st.integers(1, 64), st.booleans())
def test_frames_are_seen_in_order_once_each_and_no_more_than_asked(
    n: int, rate: float, most: int, last: bool
):
    seen = frames_seen(n, rate, most, last)
    assert 0 < len(seen) <= most
    assert seen == sorted(set(seen))
    assert seen[0] >= 0 and seen[-1] < n
    assert not last or seen[-1] == n - 1


def test_a_fifth_of_a_frame_a_second_shows_every_frame():
    assert frames_seen(3, 0.2, 32) == [0, 1, 2]


def test_a_video_is_known_by_its_suffix():
    assert [is_video(name) for name in ("a.mp4", "b.MKV", Path("c.mov"), "d.gif", b"e.mp4")] == [
        True
    ] * 3 + [False] * 2
