"""Native files of every form, and the hub: what is read, what is refused, and that nothing is lost on the way."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixc.data.samples import Turn
from ixc.data.sources import READERS, BadOption, BadSource, Refused, Row, forms
from ixc.data.sources.hub import Hub
from ixc.data.sources.native import Entry, Origin, Unusable, each, media, take

HELLO = {"text": "hello"}


def texts(origin: Origin) -> list[str | Refused]:
    """What `each` makes of records with a `text`."""

    def make(entry: Entry) -> list[Row]:
        turn = Turn(role="user", content=take(entry.record, "text", str))
        return [Row(id=entry.id, domain="general", prompt=(turn,))]

    items = each(origin, make)
    return [
        item if isinstance(item, Refused) else f"{item.id}: {item.prompt[0].content}"
        for item in items
    ]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def arrow(path: Path, records: list[dict[str, Any]], opened: Any) -> Path:
    table = pa.Table.from_pylist(records)
    with opened(path, table.schema) as writer:
        writer.write_table(table)
    return path


# Forms


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_record_by_record(tmp_path: Path, name: str, indent: int | None):
    records = [{"text": 'a ] [ " é'}, {"text": "b", "more": [{"x": [1]}]}]
    assert texts(put(tmp_path / name, json.dumps(records, indent=indent).encode())) == [
        'a/1: a ] [ " é',
        "a/2: b",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_lines_are_read_whatever_the_file_is_called(tmp_path: Path, name: str):
    assert texts(put(tmp_path / name, b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}')) == [
        "a/1: a",
        "a/3: b",
    ]


def test_parquet_and_both_kinds_of_arrow_are_read(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist([HELLO] * 600), tmp_path / "a.parquet", row_group_size=250)
    arrow(tmp_path / "b.arrow", [HELLO] * 300, pa.ipc.new_stream)
    arrow(tmp_path / "c.arrow", [HELLO] * 300, pa.ipc.new_file)
    items = texts(tmp_path)
    assert (len(items), items[599], items[-1]) == (1200, "a/600: hello", "c/300: hello")


def test_a_folder_is_read_in_order_without_what_lies_beside_the_data(tmp_path: Path):
    for name in ("b/train.json", "a/train.json", ".cache/x.json", "dataset_info.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        put(tmp_path / name, json.dumps(HELLO).encode())
    assert texts(tmp_path) == ["a/train/1: hello", "b/train/1: hello"]


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.lists(st.text())),
        min_size=1,
    ),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
def test_a_list_comes_back_whole_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict], chunk: int, indent: int | None
):
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(
        json.dumps(records, indent=indent, ensure_ascii=False),
        encoding="utf-8",
        errors="surrogatepass",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "_CHUNK", chunk)
        assert list(forms.records(path, "a.json")) == list(enumerate(records, start=1))


# What is broken


def reasons(path: Path) -> list[str]:
    return [f"{item.where}: {item.reason}" for item in texts(path) if isinstance(item, Refused)]


def test_a_damaged_list_gives_what_comes_before_the_damage(tmp_path: Path):
    items = texts(put(tmp_path / "a.json", b'[{"text": "a"}, {"text": "b"'))
    assert items[0] == "a/1: a"
    assert (
        isinstance(items[1], Refused)
        and items[1].where == "a.json:2"
        and "cut off" in items[1].reason
    )
    assert len(items) == 2


def test_what_is_no_object_or_empty_is_refused_in_its_place(tmp_path: Path):
    assert reasons(put(tmp_path / "a.json", b'[7, {"text": "a"}, {}]')) == [
        "a.json:1: int, not an object; one JSON object for each record",
        "a.json:3: text: missing; add the field or remove the row",
    ]
    assert reasons(put(tmp_path / "b.json", b"[ ]")) == [
        "b.json: empty list; fetch the file again, or remove it"
    ]
    assert reasons(put(tmp_path / "c.jsonl.gz", b"")) == [
        "c.jsonl.gz: empty file; fetch it again, or remove it"
    ]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
@pytest.mark.parametrize("between", [b"", b"\n", b" \r\n\n"])
def test_several_lists_behind_each_other_are_read(tmp_path: Path, name: str, between: bytes):
    lists = [json.dumps([{"text": text}]).encode() for text in "abc"]
    assert texts(put(tmp_path / name, between.join(lists))) == ["a/1: a", "a/2: b", "a/3: c"]


@pytest.mark.parametrize("rest", [b"]", b"x", b"\x00\x00", b', {"text": "b"}]', b'"'])
@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_what_stands_behind_a_list_is_named_with_how_many_rows_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: bytes, chunk: int
):
    monkeypatch.setattr(forms, "_CHUNK", chunk)
    first, refused = texts(put(tmp_path / "a.json", b'[{"text": "a"}]\n' + rest))
    assert first == "a/1: a"
    assert isinstance(refused, Refused) and refused.where == "a.json:2"
    assert (
        "behind the list" in refused.reason
        and "1 rows were read and the rest is missing" in refused.reason
    )


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_objects_over_several_lines_are_read(tmp_path: Path, name: str):
    written = [json.dumps({"text": text}, indent=2).encode() for text in "ab"]
    assert texts(put(tmp_path / name, b"\n".join(written))) == ["a/1: a", "a/2: b"]


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_objects_behind_a_list_and_the_last_of_a_cut_one_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
):
    monkeypatch.setattr(forms, "_CHUNK", chunk)
    content = b'["header"]\n{"text": "a"}\n{"text": "b"}[{"text": "c"}, {"text": "d"}'
    header, *usable, cut = texts(put(tmp_path / "a.jsonl", content))
    assert isinstance(header, Refused) and header.reason.startswith("str, not an object")
    assert usable == ["a/2: a", "a/3: b", "a/4: c", "a/5: d"]
    assert isinstance(cut, Refused) and "5 rows were read and the rest is missing" in cut.reason


def test_a_number_that_python_does_not_read_spoils_only_its_own_record(tmp_path: Path):
    records = [b'{"text": "a"}', b'{"text": "b", "n": %s}' % (b"7" * 5000), b'{"text": "c"}']
    for name, content in {
        "a.jsonl": b"\n".join(records),
        "b.json": b"[" + b", ".join(records) + b"]",
    }.items():
        first, second, last = texts(put(tmp_path / name, content))
        assert (str(first)[2:], str(last)[2:]) == ("1: a", "3: c")
        assert isinstance(second, Refused) and "not JSON" in second.reason


def test_a_cut_list_of_a_few_bytes_in_gz_is_still_a_list(tmp_path: Path):
    path = put(
        tmp_path / "a.json.gz",
        json.dumps([{"text": f"{number:x}"} for number in range(999)]).encode(),
    )
    path.write_bytes(path.read_bytes()[:-20])
    *usable, refused = texts(path)
    assert isinstance(refused, Refused) and "the rest is missing" in refused.reason
    assert 500 < len(usable) < 999 and all(isinstance(item, str) for item in usable)


@pytest.mark.parametrize(
    "odd",
    [
        pa.array([10**15, 0], pa.timestamp("s")),  # the year 31,690,708
        pa.array([10**9, 0], pa.date32()),
        pa.array([10**18, 0], pa.duration("s")),
    ],
)
def test_a_value_that_python_has_no_type_for_spoils_only_its_row(tmp_path: Path, odd: pa.Array):
    pq.write_table(pa.table({"text": ["a", "b"], "when": odd}), tmp_path / "a.parquet")
    first, second = texts(tmp_path / "a.parquet")
    assert second == "a/2: b"
    assert (
        isinstance(first, Refused)
        and first.where == "a.parquet:1"
        and "cannot be read" in first.reason
    )


def test_a_damaged_name_of_a_column_is_refused(tmp_path: Path):
    pq.write_table(
        pa.table({"text": ["a"], "strange": ["b"]}), tmp_path / "a.parquet", store_schema=False
    )
    damaged = (tmp_path / "a.parquet").read_bytes().replace(b"strange", b"\xffrange")
    [refused] = texts(put(tmp_path / "a.parquet", damaged))
    assert isinstance(refused, Refused) and "damaged, or cut off" in refused.reason


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    for name in ("a.parquet", "b.arrow"):
        [refused] = texts(tmp_path / name)
        assert (
            isinstance(refused, Refused)
            and "two columns are called 'text'; rename one" in refused.reason
        )


def test_a_key_that_is_there_twice_spoils_only_its_own_record(tmp_path: Path):
    records = (
        b'{"text": "a"}',
        b'{"text": "b", "text": "c"}',
        b'{"text": "d", "more": {"x": 1, "x": 2}}',
        b'{"text": "e"}',
    )
    for name, content in {
        "a.jsonl": b"\n".join(records),
        "b.json": b"[" + b", ".join(records) + b"]",
    }.items():
        first, second, third, last = texts(put(tmp_path / name, content))
        assert (str(first)[2:], str(last)[2:]) == ("1: a", "4: e")
        for item, key in ((second, "text"), (third, "x")):
            assert isinstance(item, Refused) and f"the key '{key}' twice" in item.reason


def test_a_cut_gz_file_says_how_many_rows_were_read(tmp_path: Path):
    lines = b"".join(
        json.dumps({"text": str(number) * 50}).encode() + b"\n" for number in range(2000)
    )
    path = put(tmp_path / "a.jsonl.gz", lines)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *usable, refused = texts(path)
    assert isinstance(refused, Refused)
    assert 0 < len(usable) < 2000 and all(isinstance(item, str) for item in usable)
    assert f"{len(usable):,} rows were read and the rest is missing" in refused.reason


def test_a_cut_parquet_file_says_that_all_is_missing(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist([HELLO] * 600), tmp_path / "a.parquet", row_group_size=250)
    put(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    [reason] = reasons(tmp_path)
    assert "0 rows were read and the rest is missing" in reason


def test_a_damaged_part_of_a_parquet_file_loses_its_own_rows_and_says_how_many(tmp_path: Path):
    records = [{"text": f"{number:032x}" * 8} for number in range(600)]
    pq.write_table(
        pa.Table.from_pylist(records),
        tmp_path / "a.parquet",
        row_group_size=200,
        use_dictionary=False,
    )
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    start = group.data_page_offset
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    put(tmp_path / "a.parquet", bytes(content))
    items = texts(tmp_path)
    usable, [refused] = (
        [item for item in items if isinstance(item, str)],
        [i for i in items if isinstance(i, Refused)],
    )
    assert [int(item.split("/")[1].split(":")[0]) for item in usable] == [
        *range(1, 201),
        *range(401, 601),
    ]
    assert (
        "of rows 201 to 400" in refused.reason
        and "0 of 200 rows were read and the rest is missing" in refused.reason
    )


@pytest.mark.parametrize(
    "value", [b"9" * 5000, b"[" * 100_000, b'"\xff"', "{'a': 1}".encode("utf-16")]
)
@pytest.mark.parametrize("form", [b'{"text": %b}\n{"text": "b"}', b'[{"text": %b}, {"text": "b"}]'])
def test_no_value_brings_the_reader_down(tmp_path: Path, value: bytes, form: bytes):
    items = texts(put(tmp_path / "a.json", form % value))
    assert items and all("\n" not in item.reason for item in items if isinstance(item, Refused))
    if form.startswith(b"{") and b"\n" not in value:
        assert items[1] == "a/2: b"


def test_a_record_of_gigabytes_is_skipped_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forms, "MAX_RECORD", 64)
    long = json.dumps({"text": "x" * 1000})
    items = texts(put(tmp_path / "a.jsonl", f'{long}\n{{"text": "b"}}\n'.encode()))
    assert isinstance(items[0], Refused) and "is it one record?" in items[0].reason
    assert items[1:] == ["a/2: b"]
    monkeypatch.setattr(forms, "_CHUNK", 16)
    assert "not JSON, or cut off" in reasons(put(tmp_path / "b.json", f"[{long}]".encode()))[0]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_is_refused(tmp_path: Path, name: str):
    assert [
        reason.split(" (")[0] for reason in reasons(put(tmp_path / name, b"PAR1 no table"))
    ] == [f"{name}:1: damaged, or cut off"]


def test_a_text_in_another_encoding_spoils_only_its_row(tmp_path: Path):
    pq.write_table(pa.table({"text": _latin(["a", "café", "b"])}), tmp_path / "a.parquet")
    assert texts(tmp_path) == [
        "a/1: a",
        Refused(where="a.parquet:2", reason="not UTF-8; write the file again from UTF-8 texts"),
        "a/3: b",
    ]


def _latin(values: list[str]) -> pa.Array:
    """A column of texts whose bytes are Latin-1, as a careless writer leaves it."""
    return pa.array([value.encode("latin-1") for value in values], pa.binary()).cast(
        pa.string(), safe=False
    )


# Media


def test_a_image_is_a_name_or_bytes(tmp_path: Path):
    put(tmp_path / "a.png", b"picture")
    assert media(tmp_path, "a.png", "image").path == tmp_path / "a.png"
    assert media(tmp_path, {"bytes": None, "path": "a.png"}, "image").path == tmp_path / "a.png"
    assert media(None, {"bytes": b"x", "path": "far/a.jpg"}, "image").data == b"x"
    assert media(None, b"x", "image").data == b"x"


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    put(tmp_path / "secret.png", b"secret")
    put(folder / "a.png", b"picture")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to(folder / "a.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    assert media(folder, "in.png", "image").path == folder / "in.png"
    for name, reason in {
        "out.png": "leaves the source's folder",
        "loop.png": "cannot be a file's name",
    }.items():
        with pytest.raises(Unusable, match=reason):
            media(folder, name, "image")


def test_data_that_are_a_link_out_of_the_folder_are_refused_as_images_are(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    put(tmp_path / "other.jsonl", json.dumps(HELLO).encode())
    put(folder / "a.jsonl", json.dumps(HELLO).encode())
    (folder / "b.jsonl").symlink_to(folder / "a.jsonl")
    assert len(texts(folder)) == 2
    (folder / "c.jsonl").symlink_to(tmp_path / "other.jsonl")
    with pytest.raises(
        BadSource, match=r"c\.jsonl: a link that leaves the source's folder; copy the file"
    ):
        texts(folder)
    assert texts(folder / "c.jsonl") == ["c/1: hello"]  # named by the user


def test_the_hubs_cache_links_data_and_images_to_its_blobs(tmp_path: Path):
    snapshot, blobs = (
        tmp_path / "datasets--a--b" / "snapshots" / "0f",
        tmp_path / "datasets--a--b" / "blobs",
    )
    for folder in (snapshot / "data", blobs):
        folder.mkdir(parents=True)
    for name, content in {"train.jsonl": json.dumps(HELLO).encode(), "a.png": b"picture"}.items():
        (snapshot / "data" / name).symlink_to(put(blobs / name.encode().hex(), content))
    for origin in (snapshot, snapshot / "data"):
        assert len(texts(origin)) == 1
    assert media(snapshot, "data/a.png", "image").path == snapshot / "data" / "a.png"
    (snapshot / "b.png").symlink_to(put(tmp_path / "secret.png", b"secret"))
    with pytest.raises(Unusable, match="leaves the source's folder"):
        media(snapshot, "b.png", "image")


@pytest.mark.parametrize(
    "value", ["", "x" * 5000, "a\0b", "/etc/hostname", "..", None, 7, b"", {"bytes": b""}, []]
)
def test_what_names_no_file_is_refused(tmp_path: Path, value: object):
    with pytest.raises(ValueError):  # `attempt` turns it into a refusal
        media(tmp_path, value, "image")


# The hub


def test_the_hub_gives_the_rows_that_the_files_hold(tmp_path: Path):
    pytest.importorskip("datasets")
    record = {
        "question": "What?",
        "chosen": "A.",
        "rejected": "B.",
        "image": {"bytes": b"x", "path": "a.png"},
    }
    records = [record, {**record, "chosen": None}, {**record, "question": "Who?"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet")
    local, streamed = (
        list(READERS["rlaif_v"](origin, 0)) for origin in (tmp_path, Hub(name=str(tmp_path)))
    )
    assert [item for item in streamed if isinstance(item, Row)] == [
        item for item in local if isinstance(item, Row)
    ]
    assert [item.where for item in streamed if isinstance(item, Refused)] == ["train:2"]
    assert len(streamed) == len(local) == 3


class Streamed(list):
    """What `load_dataset(..., streaming=True)` returns, as far as it is used."""

    def decode(self, enable: bool) -> Iterator[Any]:
        assert not enable
        return iter(self)

    def skip(self, count: int) -> "Streamed":
        return Streamed(self[count:])


def test_name_config_split_and_revision_reach_datasets(monkeypatch: pytest.MonkeyPatch):
    datasets, calls = pytest.importorskip("datasets"), []

    def load_dataset(*args: Any, **kwargs: Any) -> Streamed:
        calls.append((args, kwargs))
        return Streamed([HELLO])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert texts(Hub(name="a/b", config="c", split="test", revision="r")) == ["test/1: hello"]
    assert calls == [(("a/b", "c"), {"split": "test", "revision": "r", "streaming": True})]


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args: Any, **kwargs: Any) -> Streamed:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        BadSource, match=r"hub a/b: ConnectionError: no route; check name, config, split"
    ):
        texts(Hub(name="a/b"))


def broken_off(monkeypatch: pytest.MonkeyPatch, data: Streamed) -> list[float]:
    """A hub that gives `data`; returns, as they come, the waits before another try."""
    datasets, waits = pytest.importorskip("datasets"), []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    monkeypatch.setattr("ixc.data.sources.hub.time.sleep", waits.append)
    return waits


def test_a_stream_that_breaks_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": str(number)} for number in range(5)]

    class Once(Streamed):
        def decode(self, enable: bool) -> Iterator[Any]:
            yield from self[:2]
            raise ConnectionError("reset by peer")

    waits = broken_off(monkeypatch, Once(rows))
    assert texts(Hub(name="a/b")) == [f"train/{number + 1}: {number}" for number in range(5)]
    assert waits == [1.0]


def test_a_stream_that_breaks_off_for_good_says_where_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
):
    class Gone(Streamed):
        def decode(self, enable: bool) -> Iterator[Any]:
            yield from self[:1]
            raise ConnectionError("reset by peer")

        def skip(self, count: int) -> "Gone":
            return Gone([])

    waits = broken_off(monkeypatch, Gone([HELLO, HELLO]))
    message = (
        r"hub a/b: ConnectionError at row 2 of train, 4 times: reset by peer; run `collect` again"
    )
    with pytest.raises(BadSource, match=message):
        texts(Hub(name="a/b"))
    assert waits == [1.0, 10.0, 60.0]


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadSource, match=r"needs `datasets`: pip install 'ixc\[hub\]'"):
        texts(Hub(name="a/b"))


def test_a_reader_of_files_refuses_the_hub_before_anything_is_read():
    with pytest.raises(BadOption, match="hub: this reader reads files only"):
        READERS["gsm8k"](Hub(name="a/b"), 0)


def test_on_the_hub_a_image_that_is_only_named_is_refused():
    with pytest.raises(Unusable, match="the hub gives only this name"):
        media(None, "a.png", "image")
