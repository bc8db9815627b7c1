"""Images and videos: what enters the store, what is turned away, and what is read back."""

from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

from ixc.data.images import IMAGE_FORMATS, image_size
from ixc.data.media import BadMedia, Store, check, load_image, verify
from ixc.data.samples import Media
from ixc.data.sources import File
from ixc.data.videos import read_frames, sampled


def video(path: Path, num_frames: int, fps: int = 10, rotation: int = 0) -> Path:
    """A video whose frame i is a grey of 6 * i, in a container that begins with its index."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            image = np.full((32, 64, 3), min(6 * index, 255), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey(image: Image.Image) -> int:
    return round(float(np.asarray(image).mean()))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.effect_noise((40, 30), 50).convert("RGB").save(path)
    return path


def test_a_image_is_kept_unaltered_under_its_own_hash(tmp_path: Path, image: Path):
    before = image.read_bytes()
    media = Store(tmp_path / "media").add(File(kind="image", path=image))
    digest = sha256(before).hexdigest()
    assert media.path == f"{digest[:2]}/{digest}.png"
    assert (tmp_path / "media" / media.path).read_bytes() == before == image.read_bytes()


def test_bytes_and_file_of_the_same_image_are_one_file(tmp_path: Path, image: Path):
    store = Store(tmp_path / "media")
    first = store.add(File(kind="image", path=image))
    assert store.add(File(kind="image", data=image.read_bytes())) == first
    assert len([path for path in (tmp_path / "media").rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize(
    "make", [lambda b: b[: len(b) // 2], lambda b: b"\x89PNG\r\n" + b[60:], lambda b: b""]
)
def test_a_damaged_image_is_refused_and_nothing_is_stored(tmp_path: Path, image: Path, make):
    bad = tmp_path / "bad.png"
    bad.write_bytes(make(image.read_bytes()))
    store = Store(tmp_path / "media")
    for file in (File(kind="image", path=bad), File(kind="image", data=bad.read_bytes())):
        with pytest.raises(BadMedia, match=r"damaged|not a picture|0 bytes"):
            store.add(file)
    assert not [path for path in (tmp_path / "media").rglob("*") if path.is_file()]


def test_a_refused_file_is_refused_for_every_row_that_shows_it(tmp_path: Path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    store = Store(tmp_path / "media")
    for _ in range(2):
        with pytest.raises(BadMedia, match=r"bad\.png: not a picture"):
            store.add(File(kind="image", path=bad))


def test_a_image_may_be_as_large_as_the_limit_and_no_larger(tmp_path: Path, image: Path):
    verify(image, "image", max_pixels=40 * 30)
    with pytest.raises(BadMedia, match=r"40 x 30 pixels, more than 1,199; .*max_pixels"):
        verify(image, "image", max_pixels=40 * 30 - 1)


def test_a_video_may_be_as_large_as_the_limit_and_no_larger_in_the_store_or_not(tmp_path: Path):
    path = video(tmp_path / "a.mp4", 3)
    verify(path, "video", max_pixels=64 * 32)
    for limit in (64 * 32 - 1, 64 * 32, 64 * 32 - 1):
        store = Store(tmp_path / "media", max_pixels=limit)
        if limit == 64 * 32:
            store.add(File(kind="video", path=path))
            continue
        with pytest.raises(
            BadMedia, match=r"a\.mp4: 64 x 32 pixels, more than 2,047; .*max_pixels"
        ):
            store.add(File(kind="video", path=path))
        with pytest.raises(BadMedia, match="64 x 32 pixels"):
            verify(path, "video", max_pixels=limit)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)  # 400 million pixels in 50 kB
    with pytest.raises(BadMedia, match=r"bomb\.png: .*pixels"):
        verify(path, "image")


def test_a_video_is_stored_and_read_back_frame_by_frame(tmp_path: Path):
    media = Store(tmp_path / "media").add(File(kind="video", path=video(tmp_path / "a.mp4", 35)))
    frames = read_frames(tmp_path / "media" / media.path)
    assert [frame.size for frame in frames] == [(64, 32)] * 4
    # 10 frames a second: 0, 10, 20, 30; limited-range YUV rounds a grey by one
    assert [grey(frame) for frame in frames] == pytest.approx([0, 60, 120, 180], abs=1)


def test_the_video_rule_by_hand():
    # stride round(2.5) = 2 (half to even), of 5 frames: 0, 2, 4
    assert sampled(5, Fraction(5, 2)) == [0, 2, 4]
    # stride 1, 66 frames, 32 of 33 thirds: int(i * 66 / 33) = 2i, up to 62
    assert sampled(66, 1.0) == list(range(0, 64, 2))
    assert sampled(32, 1.0) == list(range(32))
    assert sampled(4, 0.4) == [0, 1, 2, 3]  # officially a division by zero


def test_a_video_of_a_telephone_held_upright_is_upright(tmp_path: Path):
    assert read_frames(video(tmp_path / "a.mp4", 3, rotation=90))[0].size == (32, 64)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_off_video_is_refused(tmp_path: Path, share: float):
    whole = video(tmp_path / "whole.mp4", 40).read_bytes()
    path = tmp_path / "cut.mp4"
    start = whole.index(b"mdat")
    path.write_bytes(whole[: start + int((share - 0.1) * (len(whole) - start))])
    with pytest.raises(BadMedia, match=r"cut\.mp4: .*cut off"):
        verify(path, "video")


def test_a_video_without_its_index_is_refused(tmp_path: Path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(video(tmp_path / "whole.mp4", 10).read_bytes()[:40])
    with pytest.raises(BadMedia, match=r"cut\.mp4: .*cut off.*; fetch it again"):
        verify(path, "video")


def test_a_video_without_frames_is_refused(tmp_path: Path):
    path = video(tmp_path / "none.avi", 0)
    with pytest.raises(BadMedia, match=r"none\.avi: "):
        verify(path, "video")


def test_a_sound_file_is_no_video(tmp_path: Path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(BadMedia, match="sound or an image; convert it"):
        verify(path, "video")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(9))
def test_the_size_of_a_image_is_that_of_its_reading(tmp_path: Path, suffix: str, orientation: int):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"lying.{suffix}"
    Image.new("RGB", (40, 20), "blue").save(path, exif=exif)
    read = load_image(tmp_path, Media(kind="image", path=path.name, sha256=""))
    assert image_size(path, 10**6) == read.size == ((20, 40) if orientation >= 5 else (40, 20))


def test_transparent_becomes_white_and_exif_is_respected(tmp_path: Path):
    store = Store(tmp_path / "media")
    clear, turned = tmp_path / "clear.png", tmp_path / "turned.jpg"
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(clear)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 20), "blue").save(turned, exif=exif)

    loaded = load_image(store.root, store.add(File(kind="image", path=clear)))
    assert (loaded.mode, loaded.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert load_image(store.root, store.add(File(kind="image", path=turned))).size == (20, 40)


def test_sixteen_bits_a_pixel_are_scaled_not_cut(tmp_path: Path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((2, 2), 32768, np.uint16)).save(path)
    store = Store(tmp_path / "media")
    assert (
        load_image(store.root, store.add(File(kind="image", path=path))).getpixel((0, 0))
        == (128,) * 3
    )


def test_a_stored_file_that_was_altered_or_removed_is_noticed(tmp_path: Path, image: Path):
    store = Store(tmp_path / "media")
    media = store.add(File(kind="image", path=image))
    check(store.root, media)
    (store.root / media.path).write_bytes(image.read_bytes() + b"!")
    with pytest.raises(BadMedia, match="altered since it was stored"):
        check(store.root, media)
    (store.root / media.path).unlink()
    with pytest.raises(BadMedia, match="not in the store; run `dvc repro collect`"):
        check(store.root, media)


def test_the_same_bytes_have_one_name_whatever_the_file_is_called(tmp_path: Path, image: Path):
    store = Store(tmp_path / "media")
    (tmp_path / "copy.JPEG").write_bytes(image.read_bytes())
    named = [File(kind="image", path=image), File(kind="image", path=tmp_path / "copy.JPEG")]
    [path] = {
        store.add(file).path for file in (*named, File(kind="image", data=image.read_bytes()))
    }
    assert path.endswith(".png")


@pytest.mark.parametrize("format", IMAGE_FORMATS)
def test_of_every_format_the_same_bytes_have_one_name(tmp_path: Path, format: str):
    store, names = Store(tmp_path / "media"), [tmp_path / name for name in ("a.png", "b.exe", "c")]
    Image.new("RGB", (20, 20), "red").save(names[0], format)
    for name in names[1:]:
        name.write_bytes(names[0].read_bytes())
    files = [
        File(kind="image", data=names[0].read_bytes()),
        *(File(kind="image", path=name) for name in names),
    ]
    [path] = {store.add(file).path for file in files}
    assert Path(path).suffix not in ("", ".exe") and (Path(path).suffix == ".png") == (
        format == "PNG"
    )


def test_bytes_that_are_no_image_are_named_by_their_size(tmp_path: Path):
    store = Store(tmp_path / "media")
    with pytest.raises(BadMedia, match=r"^3 bytes in the row: not a picture"):
        store.add(File(kind="image", data=b"abc"))
    with pytest.raises(BadMedia, match=r"^0 bytes in the row: 0 bytes"):
        store.add(File(kind="image", data=b""))
    assert not list(store.root.iterdir())


def test_what_is_in_the_store_already_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = video(tmp_path / "a.mp4", 3)
    first = Store(tmp_path / "media").add(File(kind="video", path=path))
    monkeypatch.setattr("ixc.data.media.verify", lambda *_: pytest.fail("decoded again"))
    assert Store(tmp_path / "media").add(File(kind="video", path=path)) == first


def test_a_image_that_many_rows_bring_along_is_looked_at_once(tmp_path: Path, image: Path):
    store = Store(tmp_path / "store")
    brought = [File(kind="image", data=image.read_bytes()) for _ in range(2)]
    first = store.add(brought[0])
    (store.root / ".arrived").mkdir()  # where bytes are put to be looked at
    assert store.add(brought[1]) == first


def test_what_no_row_shows_is_pruned(tmp_path: Path, image: Path):
    store = Store(tmp_path / "media")
    stored = store.add(File(kind="image", path=image))
    other = tmp_path / "other.png"
    Image.new("RGB", (3, 3)).save(other)
    gone = store.add(File(kind="image", path=other))
    store.prune({stored.path})
    assert (store.root / stored.path).exists()
    assert not (store.root / gone.path).exists()
