"""Images: which files are opened, and how every mode of Pillow becomes 8-bit RGB."""

import random
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import FORMS, clip
from PIL import Image

from ixc.data.images import MAX_PIXELS, BadMedia, NotAnImage, image_size, open_image, recognised
from ixc.data.media import Store, load_image, verify
from ixc.data.samples import Media
from ixc.data.sources import File
from ixc.models.ixc25.inputs import read_image
from ixc.report.images import thumbnail
from ixc.stages.validate.image_hash import image_hash

RAMP = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, axis=0)
"""From black to white, as a person sees it."""
EIGHT_BIT = (RAMP * 255).round().astype(np.uint8)


def put(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def read(source: Any, transparency: Any = "white") -> np.ndarray:
    return np.asarray(read_image(source, transparency, MAX_PIXELS))


@pytest.mark.parametrize("transparency", ["white", "official"])
@pytest.mark.parametrize("kind", [">u2", "<u2"])
def test_sixteen_bits_of_either_order_are_the_same_ramp(
    tmp_path: Path, kind: str, transparency: str
):
    deep = (RAMP * 65535).astype(kind)
    image = Image.frombytes("I;16B" if kind == ">u2" else "I;16", (64, 8), deep.tobytes())
    wanted = np.stack([deep >> 8] * 3, axis=-1)
    assert (read(image, transparency) == wanted).all()
    assert (read(put(tmp_path / "deep.tif", image), transparency) == wanted).all()


def test_a_sixteen_bit_map_is_scaled_too(tmp_path: Path):
    deep = (RAMP * 65535).astype(">u2")
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 64 8 65535\n" + deep.tobytes())
    assert Image.open(path).mode == "I"
    assert (read(path)[..., 0] == deep >> 8).all()


def test_a_sixteen_bit_value_may_be_transparent(tmp_path: Path):
    deep = Image.fromarray(np.array([[1000, 1001]], np.uint16))
    path = put(tmp_path / "clear.png", deep, transparency=1000)
    assert read(path)[0].tolist() == [[255] * 3, [3] * 3]
    assert read(path, "official")[0].tolist() == [[3] * 3] * 2


@pytest.mark.parametrize("transparency", ["white", "official"])
def test_floats_are_scaled_from_0_to_1_and_other_ranges_refused(tmp_path: Path, transparency: str):
    path = put(tmp_path / "ramp.tif", Image.fromarray(RAMP))
    assert (read(path, transparency) == EIGHT_BIT[..., None]).all()
    store = Store(tmp_path / "media")
    stored = load_image(store.root, store.add(File(kind="image", path=path)))
    assert (np.asarray(stored) == EIGHT_BIT[..., None]).all()
    for bad in (RAMP * 255, RAMP - 0.5, RAMP * np.float32("nan")):
        odd = put(tmp_path / "odd.tif", Image.fromarray(bad))
        with pytest.raises(
            BadMedia, match=r"odd\.tif: floats from \S+ to \S+, not from 0 to 1; scale them"
        ):
            read(odd, transparency)
        with pytest.raises(BadMedia, match="floats from"):
            store.add(File(kind="image", path=odd))


@pytest.mark.parametrize("transparency", ["white", "official"])
def test_greys_of_a_tiff_that_count_from_white_or_have_twelve_bits(
    tmp_path: Path, transparency: str
):
    deep = (RAMP * 65535).astype("<u2")
    twelve = (deep >> 4).reshape(-1, 2)
    first, second = twelve[:, 0], twelve[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(
        np.uint8
    )
    wanted = np.stack([deep >> 8] * 3, axis=-1)
    for name, data in {
        "sixteen": tiff(65535 - deep, photometric=0),
        "twelve": tiff(packed, bits=12),
    }.items():
        (tmp_path / f"{name}.tif").write_bytes(data)
        for source in (tmp_path / f"{name}.tif", data, Image.open(tmp_path / f"{name}.tif")):
            assert (read(source, transparency) == wanted).all(), name
    (tmp_path / "float.tif").write_bytes(tiff(1 - RAMP, bits=32, photometric=0, kind=3))
    assert (read(tmp_path / "float.tif", transparency) == EIGHT_BIT[..., None]).all()


def tiff(values: np.ndarray, bits: int = 16, photometric: int = 1, kind: int = 1) -> bytes:
    """A grey TIFF of the ramp's size, in one strip; `photometric` 0: white is zero; `kind` 3: floats."""
    pixels = values.tobytes()
    tags = {
        256: 64,
        257: 8,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: 8,
        279: len(pixels),
        339: kind,
    }
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory


def test_thirty_two_bit_integers_are_refused_by_name(tmp_path: Path):
    path = put(tmp_path / "int32.tif", Image.fromarray((RAMP * 65520).astype(np.int32)))
    for source in (path, path.read_bytes(), Image.open(path)):
        for transparency in ("white", "official"):
            with pytest.raises(
                BadMedia, match="32-bit integers, of which white may be any; convert it to"
            ):
                read(source, transparency)
    with pytest.raises(BadMedia, match="32-bit integers"):
        Store(tmp_path / "media").add(File(kind="image", path=path))


@pytest.mark.parametrize("mode", Image.MODES)
@pytest.mark.parametrize("transparency", ["white", "official"])
def test_every_mode_is_read_or_refused_by_name(mode: str, transparency: str):
    try:
        shape = read(Image.new(mode, (4, 2)), transparency).shape
    except BadMedia as error:
        assert mode in ("I", "LAB") and ";" in str(error)
    else:
        assert shape == (2, 4, 3)


def test_colours_multiplied_by_their_opacity_are_divided_again():
    clear = Image.new("RGBA", (1, 1), (200, 100, 50, 128))
    for mode in ("RGBA", "RGBa"):
        assert read(clear.convert(mode))[0, 0] == pytest.approx((227, 177, 152), abs=2)
        assert read(clear.convert(mode), "official")[0, 0] == pytest.approx((200, 100, 50), abs=2)
    grey = Image.new("LA", (1, 1), (100, 128))
    assert read(grey.convert("La"))[0, 0] == pytest.approx(read(grey)[0, 0], abs=2)


def test_an_image_that_was_closed_or_cut_is_refused_by_name(tmp_path: Path):
    path = put(tmp_path / "noise.png", Image.effect_noise((64, 64), 80))
    closed = Image.open(path)
    closed.close()
    cut = Image.open(BytesIO(path.read_bytes()[:2000]))
    gone = Image.open(put(tmp_path / "gone.png", Image.effect_noise((200, 200), 80)))
    (tmp_path / "gone.png").write_bytes(b"")
    for image in (closed, cut, gone):
        for transparency in ("white", "official"):
            with pytest.raises(
                BadMedia, match=r"^a \w+: damaged picture .*; open or fetch it again"
            ):
                read(image, transparency)


def test_a_tensor_without_data_is_refused_by_name():
    import torch

    with pytest.raises(BadMedia, match="a Tensor: "):
        read(torch.zeros(3, 4, 4, device="meta"))


def test_only_formats_that_hold_their_pixels_are_opened(tmp_path: Path):
    program = put(tmp_path / "program.eps", Image.new("RGB", (8, 8)))
    for path in (program, program.rename(tmp_path / "program.png")):
        if path.exists():
            with pytest.raises(NotAnImage, match="PostScript, which is a program"):
                read(path)
    for name in ("a.pcx", "a.sgi", "a.im"):
        with pytest.raises(NotAnImage):
            verify(put(tmp_path / name, Image.new("RGB", (8, 8))), "image")


def test_a_video_among_the_images_is_named(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(clip(FORMS["webm"], 4))
    with pytest.raises(
        BadMedia, match=r"a\.png: not a picture \(a video, WebM\); give it as a video"
    ):
        read(tmp_path / "a.png")


NOISE = Image.effect_noise((32, 32), 80).convert("RGB")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "TGA")


@pytest.mark.parametrize("format", FORMATS)
def test_a_bit_rotted_image_is_read_or_refused_by_name(tmp_path: Path, format: str):
    stream, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    NOISE.save(
        stream,
        format,
        **({"exif": exif} if format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}),
    )
    whole, rng, path = stream.getvalue(), random.Random(format), tmp_path / "rotten"
    path.write_bytes(whole)
    verify(path, "image")
    for _ in range(40):
        rotten = bytearray(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        for _ in range(rng.choice([1, 5, 30])):
            place = rng.randrange(min(len(rotten), rng.choice([120, len(whole)])))
            rotten[place : place + 4] = rng.choice([rng.randbytes(1), bytes(4), b"\xff" * 4])
        path.write_bytes(rotten)
        uses = (
            read,
            lambda path: read(path.read_bytes()),
            lambda path: image_size(path, 10**6),
            use_everywhere,
        )
        for use in uses:
            try:
                use(path)
            except BadMedia as error:
                assert ";" in str(error)


def use_everywhere(path: Path) -> None:
    """What is admitted can be read by every later stage."""
    verify(path, "image", 10**6)
    load_image(path.parent, Media(kind="image", path=path.name, sha256=""))
    image_hash(path)
    thumbnail(path, "image")


def test_what_is_tried_and_opened_is_the_same_image(tmp_path: Path):
    for format in FORMATS:
        path = put(tmp_path / "same", NOISE, format=format)
        assert recognised(path, MAX_PIXELS).format == format
        assert open_image(path, MAX_PIXELS).size == (32, 32)
