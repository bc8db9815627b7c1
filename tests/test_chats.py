"""The one record of a chat: every form of the field is read as the same chat, and nothing is dropped silently."""

import base64
import gzip
import json
import os
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ixc.data.media import BadMedia
from ixc.data.samples import Turn
from ixc.data.sources import File
from ixc.data.sources.conversations import place, turns
from ixc.models.ixc25.prompts import BadConversation, parse
from ixc.serve.chat_files import BadFile, read_rows
from ixc.serve.chat_media import Medium, Video, opened, read_medium
from ixc.serve.chats import ChatRecord, read_chat

ANSWER = {"role": "assistant", "content": "Red."}
TEXT = {"type": "text", "text": "What is it?"}
PNG = "data:image/png;base64,"


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def asked(*parts: Any) -> list[Any]:
    return [user(list(parts)), ANSWER]


@pytest.fixture
def red(tmp_path: Path) -> Path:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


IN_PARTS = [
    asked({"type": "image", "image": "red.png"}, TEXT),  # Transformers, Qwen
    asked({"type": "image", "path": "red.png"}, TEXT),
    asked({"type": "image", "url": "red.png"}, TEXT),
    asked({"type": "image_url", "image_url": {"url": "red.png", "detail": "high"}}, TEXT),  # OpenAI
    asked({"type": "image_url", "image_url": "red.png"}, TEXT),
    asked(
        {"type": "input_image", "image_url": "red.png"},
        {"type": "input_text", "text": "What is it?"},
    ),
    asked({"image": "red.png"}, {"text": "What is it?"}),
    asked(
        {"type": "image", "image": "red.png", "text": None}, {**TEXT, "image": None}
    ),  # a union of Arrow's columns
    [user("What is it?", images=["red.png"]), ANSWER],  # Ollama
    [user("<image>What is it?", image="red.png"), ANSWER],
    {
        "messages": [user([{"type": "image"}, TEXT]), ANSWER],
        "images": ["red.png"],
    },  # TRL, the place by a part
    {
        "messages": [{**user([{"type": "image"}, TEXT]), "name": None, "tool_calls": []}, ANSWER],
        "media": "red.png",
    },
]
AT_THE_START = [
    {"messages": [user("What is it?"), ANSWER], "images": ["red.png"]},
    {"messages": [user("What is it?"), ANSWER], "image": "red.png", "videos": None},
    {
        "messages": [user("What is it?"), ANSWER],
        "media": ["red.png"],
        "id": 7,
        "meta": {"any": "thing"},
    },
    {"messages": [user("<image>\nWhat is it?"), ANSWER], "image": "red.png"},
    {
        "messages": [user("What is it?\n<image>"), ANSWER],
        "images": [{"bytes": None, "path": "red.png"}],
    },
    {
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "Red."},
        ],
        "image": "red.png",
    },
    {"prompt": "What is it?", "completion": "Red.", "images": ["red.png"]},
    {"prompt": [user("What is it?")], "completion": [ANSWER], "images": ["red.png"]},
]


@pytest.mark.parametrize("given", IN_PARTS, ids=range(len(IN_PARTS)))
def test_forms_with_the_image_at_its_place(red: Path, given: Any):
    read = read_chat(given, base=red.parent)
    assert read.messages == [user([{"type": "image"}, TEXT]), ANSWER]
    assert read.media == (Medium("image", red),)


@pytest.mark.parametrize("given", AT_THE_START, ids=range(len(AT_THE_START)))
def test_forms_with_the_image_before_everything(red: Path, given: Any):
    assert read_chat(given, base=red.parent) == ChatRecord(
        [user("What is it?"), ANSWER], (Medium("image", red),)
    )


@pytest.mark.parametrize("form", ["url", "bare", "source", "dict", "bytes", "object", "urlsafe"])
def test_an_image_may_travel_in_the_row(red: Path, form: str):
    data = red.read_bytes()
    text = base64.b64encode(data).decode()
    part: dict[str, Any] = {
        "url": {"type": "image_url", "image_url": {"url": PNG + text}},
        "bare": {"type": "image", "base64": text},
        "source": {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": text},
        },
        "dict": {"type": "image", "image": {"bytes": data, "path": "red.png"}},
        "bytes": {"type": "image", "image": data},
        "object": {"type": "image", "image": {"bytes": text, "path": None}},
        "urlsafe": {
            "type": "image",
            "image": PNG + base64.urlsafe_b64encode(data).decode().rstrip("="),
        },
    }[form]
    [medium] = read_chat(asked(part, TEXT)).media
    assert medium.kind == "image" and opened(medium) == data


def test_videos_are_paths_bytes_frames_arrays_and_urls(tmp_path: Path):
    video, frames = b"\0\0\0\x18ftypisom" + bytes(9), [Image.new("RGB", (4, 4))] * 2
    url = "data:video/mp4;base64," + base64.b64encode(video).decode()
    array = np.zeros((2, 4, 4, 3), np.uint8)
    for given, wanted in ((video, video), (url, video), (Video(frames), frames), (frames, frames)):
        for media in ([given], {"videos": [given]}):
            record = {
                "messages": [user("A film?"), ANSWER],
                **(media if isinstance(media, dict) else {}),
            }
            [medium] = read_chat(record, () if isinstance(media, dict) else media).media
            assert medium.kind == "video" and opened(medium) == wanted
    assert len(opened(read_medium(Video(array), None, None))) == 2
    assert read_medium("a.mp4", "image", tmp_path) == Medium("video", tmp_path / "a.mp4")
    frames_of_files = asked({"type": "video", "video": ["1.png", "2.png"]}, TEXT)
    assert read_chat(frames_of_files, base=tmp_path).media[0].source == [
        tmp_path / "1.png",
        tmp_path / "2.png",
    ]
    still = b"\0\0\0\x18ftypavif"
    assert read_medium(still, None, None).kind == "image"


def test_bytes_without_a_kind_are_what_they_begin_as():
    stream = (b"\x47" + bytes(187)) * 3
    for data, kind in (
        (stream, "video"),
        (b"\0\0\0\x08wide" + bytes(9), "video"),
        (b"OggS" + bytes(9), "video"),
    ):
        assert read_medium(data, None, None).kind == kind
    assert read_medium(b"GIF89a" + bytes(9), None, None).kind == "image"


def test_data_urls_are_told_apart_by_all_their_letters():
    one, other = (
        ChatRecord([ANSWER], (read_medium(url, None, None),))
        for url in ("data:image/x,a//b", "data:image/x,a/b")
    )
    assert one.media_keys() != other.media_keys()


def test_paths_are_relative_to_the_base_and_urls_of_files_are_paths(tmp_path: Path):
    assert read_medium("a/b.png", None, tmp_path).source == tmp_path / "a/b.png"
    assert read_medium(str(tmp_path / "c.png"), None, Path("/else")).source == tmp_path / "c.png"
    assert (
        read_medium((tmp_path / "d e.png").as_uri(), None, Path("/else")).source
        == tmp_path / "d e.png"
    )


def test_several_media_take_the_marks_by_their_kind():
    record = {
        "messages": [user("<video> then <image>, <image>?"), ANSWER],
        "images": ["a.png", "b.png"],
        "videos": ["c.mp4"],
    }
    read = read_chat(record)
    kinds = [part["type"] for part in read.messages[0]["content"]]
    assert kinds == ["video", "text", "image", "text", "image", "text"]
    assert [medium.source.name for medium in read.media] == ["a.png", "b.png", "c.mp4"]
    ours = read_chat(
        [user("Image1 <ImageHere>; Image2 <ImageHere>"), ANSWER], [Video(b"film"), "a.png"]
    )
    assert [part["type"] for part in ours.messages[0]["content"]] == [
        "text",
        "video",
        "text",
        "image",
    ]


def test_several_without_marks_are_named_at_the_start_as_collect_does():
    read = read_chat({"messages": [user("Which is red?"), ANSWER], "images": ["a.png", "b.png"]})
    texts = [part.get("text", part["type"]) for part in read.messages[0]["content"]]
    assert texts == ["Image1 ", "image", "; Image2 ", "image", "; ", "Which is red?"] or "".join(
        texts
    ) == ("Image1 image; Image2 image; Which is red?")


def test_marks_are_text_in_parts_in_answers_and_without_an_image_amid_a_sentence():
    html = "How does <video> differ from <image> in HTML?"
    assert read_chat([user(html), ANSWER]) == ChatRecord([user(html), ANSWER])
    said = [user("Draw."), {"role": "assistant", "content": "<image>"}]
    assert read_chat(said).messages == said
    parts = [user([{"type": "text", "text": "<image>\nWhat is <ImageHere>?"}]), ANSWER]
    assert read_chat(parts, "red.png").messages == parts


def test_turns_and_other_names_of_roles():
    assert read_chat([Turn(role="user", content="Hi."), ANSWER]).messages == [user("Hi."), ANSWER]
    named = [{"role": "developer", "content": "Be brief."}, user("Hi."), ANSWER]
    assert read_chat(named).messages[0]["role"] == "system"
    assert (
        read_chat({"messages": [user("Hi."), ANSWER], "system": "Be brief."}).messages[0]["content"]
        == "Be brief."
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"messages": [user("Hi."), ANSWER], "imgs": ["a.png"]},
            "unknown key 'imgs'.*did you mean 'images'",
        ),
        (
            {"messages": [user("Hi."), ANSWER], "label": 1},
            "unknown key 'label': 1; known are messages.*under meta",
        ),
        ({"messages": [user("Hi.")], "chosen": []}, "chosen: a pair"),
        ({"messages": [user("Hi.", picture="a.png"), ANSWER]}, "message 0: unknown key 'picture'"),
        (
            {"messages": [user("Hi."), {**ANSWER, "tool_calls": [{}]}]},
            "message 1: unknown key 'tool_calls'",
        ),
        (
            {"messages": asked({"type": "image", "image": "a.png", "min_pixels": 4})},
            "part 0: unknown key 'min_pixels'",
        ),
        ({"messages": asked({"type": "input_audio", "input_audio": {}})}, "part 0: .*give"),
        (
            {"messages": asked({"type": "image", "image": "a.png", "url": "b.png"})},
            "image and url: give one",
        ),
        (
            {"messages": asked({"type": "text", "text": "a", "image": "b.png"})},
            "part 0: unknown key 'image'",
        ),
        (
            {"messages": asked({"type": "image"}, {"type": "image", "image": "a.png"})},
            "without its image",
        ),
        (
            {"messages": asked({"type": "image", "image": "a.png"}), "images": ["b.png"]},
            "in one place",
        ),
        (
            {"messages": [user("Hi."), ANSWER], "image": "a.png", "images": ["b.png"]},
            "both images and image",
        ),
        (
            {"messages": [user("Hi."), ANSWER], "media": "a.png", "images": ["b.png"]},
            "in two places",
        ),
        (
            {"messages": [user("<image>\nWhat?"), ANSWER]},
            "<image> marks an image or video, but the chat has none",
        ),
        ({"messages": [user("What?\n<video>"), ANSWER], "videos": []}, "<video> marks"),
        (
            {"messages": [user("<image> or <image>?"), ANSWER], "images": ["a.png"]},
            "1 images and videos but 2 marks",
        ),
        ({"images": ["a.png"]}, "no messages: a chat is"),
        ({"messages": [], "conversations": []}, "messages and conversations"),
        ({"prompt": "Hi."}, "prompt and completion go together"),
        ({"messages": "hello"}, "'hello': no list of messages"),
        ({"messages": []}, "no message"),
        ({"messages": [user(None), ANSWER]}, "content of type NoneType"),
        ({"messages": [{"role": "tool", "content": "7"}]}, "role 'tool'"),
        (user("Hi."), "no list of messages; give a list of such lists"),
    ],
)
def test_what_cannot_be_read_whole_is_refused_by_name(given: Any, message: str):
    with pytest.raises(BadConversation, match=message):
        read_chat(given)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/a.png", "an address; nothing is fetched here: download it"),
        ("s3://bucket/a.png", "an address"),
        ("", "no image"),
        (7, "7: no image"),
        ({"path": "a.png", "width": 7}, "unknown key 'width'"),
        ({}, "neither path, url nor bytes"),
        (["a.png"], "a list where one image belongs"),
    ],
)
def test_what_is_no_image_is_refused_by_name(source: Any, message: str):
    with pytest.raises(BadMedia, match=message):
        read_chat({"messages": [user("Hi."), ANSWER], "images": [source]})


@pytest.mark.parametrize("url", ["data:image/png;base64,!!!", "data:image/png;base64"])
def test_a_data_url_that_is_none(url: str):
    with pytest.raises(BadMedia, match="a data URL without data, or whose base64 is broken"):
        opened(read_medium(url, "image", None))


@pytest.mark.parametrize(
    "text",
    [
        "<image>\nWhat?",
        "<image> What?",
        "What?\n<image>\n",
        "\n What?\n<image>",
        "Is this red? <image>",
        "Is <image> red?",
    ],
)
def test_a_chat_has_its_image_where_collect_puts_it(red: Path, text: str):
    [stored] = place(turns(text), [File(kind="image")])
    [asked, _] = read_chat({"messages": [user(text), ANSWER], "images": [red]}).messages
    content = (
        asked["content"]
        if isinstance(asked["content"], list)
        else [{"type": "text", "text": asked["content"]}]
    )
    assert "".join(part.get("text", "<ImageHere>") for part in content) == stored.content


# Files


def line(text: str, **more: Any) -> str:
    return json.dumps({"messages": [user(text), ANSWER], **more}, ensure_ascii=False)


def found(path: Path) -> list[str]:
    """Texts of the questions, or the reasons."""
    return [
        row.reason if row.chat is None else str(row.chat.messages[0]["content"])
        for row in read_rows(str(path))
    ]


def test_lines_end_at_line_feeds_only_and_a_mark_of_byte_order_is_no_text(tmp_path: Path):
    texts = [
        "one\u2028line",
        "next\u0085line",
        "para\u2029graph",
        "form\x0cfeed \x1c \x1d \x1e",
        "plain\r\n",
    ]
    lines = "\r\n".join(line(text) for text in texts) + "\n\n  \n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert found(tmp_path / "a.jsonl") == texts


def test_a_bad_row_is_named_and_costs_no_other(tmp_path: Path):
    bad = [
        b"{",
        b"\xff\xfe",
        b'{"messages": [], "messages": []}',
        b"7",
        b'"text"',
        b"[" * 99_999,
        line("<image>").encode(),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([line("good").encode(), *bad, line("also good").encode()]))
    rows = list(read_rows(str(path)))
    assert [row.where for row in rows] == [f"{path}:{number}" for number in range(1, 10)]
    assert [row.chat is not None for row in rows] == [True, *[False] * 7, True]
    for row, reason in zip(
        rows[1:8],
        ("not JSON", "not UTF-8", "the key 'messages' twice", "7", "'text'", "not JSON", "marks"),
        strict=True,
    ):
        assert reason in row.reason


def test_a_list_over_several_lines_is_read_too(tmp_path: Path):
    chats = [json.loads(line(text)) for text in ("a", "b")]
    (tmp_path / "a.json").write_text(json.dumps(chats, indent=1))
    (tmp_path / "b.json").write_text(json.dumps(chats))
    assert found(tmp_path / "a.json") == found(tmp_path / "b.json") == ["a", "b"]
    (tmp_path / "c.json").write_text(json.dumps(chats, indent=1) + json.dumps(chats))
    assert (
        found(tmp_path / "c.json")[:2] == ["a", "b"]
        and "behind the list's end" in found(tmp_path / "c.json")[2]
    )
    (tmp_path / "d.json").write_text(json.dumps(chats, indent=1)[:-30])
    assert found(tmp_path / "d.json")[0] == "a" and "not JSON" in found(tmp_path / "d.json")[1]
    (tmp_path / "e.jsonl").write_text(
        json.dumps(chats[0]["messages"]) + "\n" + json.dumps(chats[1]["messages"])
    )
    assert found(tmp_path / "e.jsonl") == ["a", "b"]


def test_an_element_is_named_by_its_line(tmp_path: Path):
    (tmp_path / "a.json").write_text(f"\n[{line('a')},\n\n{line('b', imgs=7)}\n,7]")
    rows = list(read_rows(str(tmp_path / "a.json")))
    assert [row.where.rsplit(":")[-1] for row in rows] == ["2", "4", "5"]
    assert [bool(row.reason) for row in rows] == [False, True, True]


def test_a_list_may_hold_lists_of_messages(tmp_path: Path):
    chats = [json.loads(line(text))["messages"] for text in ("a", "b")]
    for number, written in enumerate(
        (json.dumps(chats), json.dumps(chats, indent=1), f"[\n{json.dumps(chats[0])}\n]")
    ):
        (tmp_path / f"{number}.json").write_text(written)
        assert found(tmp_path / f"{number}.json") == ["a", "b"][: written.count("user")]
    (tmp_path / "mixed.json").write_text(f"[{line('a')}, 7]")
    first, second = found(tmp_path / "mixed.json")
    assert first == "a" and second.startswith("7")


BROKEN = [
    '[{"role": "user", "content": "cut',
    '[{"role": "user", "content": "x", "content": "y"}]',
    '[{"role": "user"} 7]',
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_first_line_of_messages_costs_no_other(tmp_path: Path, broken: str):
    lines = [broken, *(json.dumps(json.loads(line(text))["messages"]) for text in ("a", "b"))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    first, *others = found(tmp_path / "a.jsonl")
    assert "not JSON" in first and others == ["a", "b"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "broken", ['{"id": 1, "id": 2}', '{"id": 1, "messages": [}', '{"id": "cut', "{'id': 1}"]
)
def test_a_broken_element_of_a_list_costs_no_other(tmp_path: Path, indent: int | None, broken: str):
    chats = [json.dumps(json.loads(line(text)), indent=indent) for text in ("a", "b", "c")]
    (tmp_path / "a.json").write_text("[\n" + ",\n".join([chats[0], broken, *chats[1:]]) + "\n]")
    first, reason, *others = found(tmp_path / "a.json")
    assert "not JSON" in reason and [first, *others] == ["a", "b", "c"]
    (tmp_path / "b.json").write_text(
        "[" + ",".join([chats[0], '{"id": 1, "id": 2}', chats[1]]) + "]"
    )
    assert [text for text in found(tmp_path / "b.json") if "twice" not in text] == ["a", "b"]


def test_a_pipe_is_read_to_its_end(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_text(line("a") + "\n" + line("b")))
    writer.start()
    assert found(pipe) == ["a", "b"]
    writer.join()


def test_a_row_of_many_levels_costs_no_other(tmp_path: Path):
    deep: Any = "a.png"
    for _ in range(800):
        deep = {"image": deep}
    (tmp_path / "a.jsonl").write_text(line("a", images=[deep]) + "\n" + line("b"))
    first, second = found(tmp_path / "a.jsonl")
    assert ("nested too deep" in first or "recursion" in first) and second == "b"


def test_the_processor_refuses_keys_of_a_message_that_it_would_not_read():
    with pytest.raises(BadConversation, match="message 0: unknown key 'images'"):
        parse([user("Hi.", images=["a.png"]), ANSWER])


def test_parquet_brings_chats_and_the_bytes_of_their_images(tmp_path: Path, red: Path):
    images = [{"bytes": red.read_bytes(), "path": None}]
    rows = [
        {"messages": [user("in the row"), ANSWER], "images": images, "id": "a"},
        {
            "messages": [user("in a file"), ANSWER],
            "images": [{"bytes": None, "path": "red.png"}],
            "id": "b",
        },
        {"messages": [user("none"), ANSWER], "images": None, "id": "c"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    media = [row.chat.media for row in read_rows(str(tmp_path / "a.parquet")) if row.chat]
    assert media == [(Medium("image", red.read_bytes()),), (Medium("image", red),), ()]


def test_files_of_another_kind_are_refused_whole(tmp_path: Path):
    pq.write_table(
        pa.Table.from_pylist([dict.fromkeys(("prompt", "chosen", "candidates", "modality"), "")]),
        tmp_path / "s",
    )
    (tmp_path / "wide").write_bytes(line("a").encode("utf-16"))
    (tmp_path / "zip").write_bytes(gzip.compress(line("a").encode()))
    (tmp_path / "cut").write_bytes((tmp_path / "s").read_bytes()[:50])
    for name, message in (
        ("s", "give it as --in"),
        ("wide", "iconv -f UTF-16"),
        ("zip", "gunzip"),
        ("cut", "damaged Parquet"),
    ):
        with pytest.raises(BadFile, match=message):
            list(read_rows(str(tmp_path / name)))
