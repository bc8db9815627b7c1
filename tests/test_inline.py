"""Images and videos in texts: both doors, rows of sources and chats, read the same."""

import base64
import io
from urllib.parse import quote

import pytest
from clips import FORMS, clip
from PIL import Image

from ixc.data.images import BadMedia
from ixc.data.inline import begins_as_video, inline
from ixc.data.sources.native import Unusable, media
from ixc.serve.chat_media import opened, read_medium


def drawn(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(file, format)
    return file.getvalue()


def in_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


PNG = in_text(drawn("PNG"))


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{PNG}",
        f"DATA:IMAGE/PNG;BASE64,{PNG}",
        f"data:;base64,{PNG}",
        f"data:image/png;charset=utf-8;base64,{PNG}",
        f"data:image/png;base64;charset=utf-8,{PNG}",
        f"data:image/png;base64,{quote(PNG, safe='')}",  # as a browser's address has it
        f"data:image/png;base64,{PNG.rstrip('=')}",
        f"data:image/png,{quote(drawn('PNG'))}",
    ],
)
def test_a_data_url_is_the_same_image_in_a_row_and_in_a_chat(url: str):
    assert media(None, url, "image").data == drawn("PNG")
    assert opened(read_medium(url, "image", None)) == drawn("PNG")


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,!!!", "data:image/png;base64", "data:,", "data:image/png;base64,"],
)
def test_a_broken_data_url_is_refused_by_both_in_the_same_words(url: str):
    reason = "a data URL without data, or whose base64 is broken; encode the file again"
    with pytest.raises(BadMedia, match=reason):
        opened(read_medium(url, "image", None))
    with pytest.raises(Unusable, match=reason):
        media(None, url, "image")


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO"]
)
def test_base64_of_every_format_with_a_signature_is_told_from_a_name(format: str):
    data = drawn(format)
    assert (inline(in_text(data)), begins_as_video(data)) == (data, False)


@pytest.mark.parametrize("name", FORMS)
def test_base64_of_every_container_is_told_from_a_name(name: str):
    data = clip(FORMS[name], 8)
    assert (inline(in_text(data)), begins_as_video(data)) == (data, name != "gif")
    assert media(None, in_text(data), "video").data == data


@pytest.mark.parametrize(
    "text", ["images/a.png", "a" * 64, "no punctuation in these many words", "Qk" + "x" * 40]
)
def test_what_only_looks_like_base64_is_a_name(text: str):
    assert inline(text) is None
