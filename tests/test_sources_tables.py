"""Tables: every row is a record or a refusal with its place."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixc.data.sources import Refused, forms, tables
from ixc.data.sources.tables import records


def read(
    path: Path, content: bytes | str
) -> tuple[list[tuple[str, object]], list[tuple[str, str]]]:
    """(key, value) of the records; (place, reason) of the refusals."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items = list(records(path, path.name))
    refusals = [(item.where, item.reason) for item in items if isinstance(item, Refused)]
    keyed = [item for item in items if not isinstance(item, Refused)]
    return [(str(key), record) for key, record in keyed], refusals


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=4),
    delimiter=st.sampled_from(",\t"),
)
def test_what_csv_writes_is_read_again(rows: list[list[str]], delimiter: str):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
    with TemporaryDirectory() as folder:
        keyed, refused = read(
            Path(folder) / ("x.csv" if delimiter == "," else "x.tsv"), text.getvalue()
        )
    assert refused == []
    assert [list(record.values()) for _, record in keyed if isinstance(record, dict)] == rows


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=80),
    suffix=st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet"]),
)
def test_no_bytes_are_a_traceback(content: bytes, suffix: str):
    with TemporaryDirectory() as folder:
        keyed, refused = read(Path(folder) / f"x.{suffix}", b"a,b\n" + content)
    assert keyed or refused


def test_csv_rows_are_numbered_by_their_first_line(tmp_path: Path):
    keyed, refused = read(tmp_path / "x.csv", '\ufeffa,b\n"1\n1",2\n\n3,4\n5\n6,7,8\n9,10\n')
    assert keyed == [
        ("2", {"a": "1\n1", "b": "2"}),
        ("5", {"a": "3", "b": "4"}),
        ("8", {"a": "9", "b": "10"}),
    ]
    assert [where for where, _ in refused] == ["x.csv:6", "x.csv:7"]
    assert refused[1][1] == "3 columns, the header has 2; quote or correct the row"


def test_csv_of_mixed_encodings_loses_only_the_strange_rows(tmp_path: Path):
    keyed, refused = read(
        tmp_path / "x.csv", "a,b\nné,1\n".encode() + "né,2\n".encode("latin1") + b"n,3\n"
    )
    assert [key for key, _ in keyed] == ["2", "4"]
    assert refused == [("x.csv:3", "not UTF-8; convert the file: iconv -t UTF-8")]


def test_csv_with_a_broken_quote_goes_on(tmp_path: Path):
    keyed, refused = read(tmp_path / "x.csv", 'a,b\n"1"2,3\n4,5\n"6,7\n')
    assert [key for key, _ in keyed] == ["3"]
    assert [where for where, _ in refused] == ["x.csv:2", "x.csv:4"]
    assert all("correct its quotes" in reason for _, reason in refused)


def test_an_endless_line_is_refused_without_reading_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "MAX_LINE", 2**18)
    keyed, refused = read(tmp_path / "x.csv", "a,b\n" + "x" * 2**20 + ",1\n3,4\n")
    assert ([key for key, _ in keyed], [where for where, _ in refused]) == (["3"], ["x.csv:2"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty file"),
        ("a,b\n", "no rows"),
        ("a,a\n1,2\n", "two columns have one name"),
        (b"\xff,b\n1,2\n", "not UTF-8"),
    ],
)
def test_a_csv_file_without_header_or_rows_is_refused_whole(
    tmp_path: Path, content: bytes | str, reason: str
):
    keyed, [refused] = read(tmp_path / "x.csv", content)
    assert keyed == [] and refused[1].startswith(reason)


def test_json_lists_are_numbered_and_mappings_keyed(tmp_path: Path):
    keyed, refused = read(tmp_path / "x.json", json.dumps([{"a": 1}, 2, {"a": 3}]))
    assert keyed == [("1", {"a": 1}), ("3", {"a": 3})]
    assert refused == [("x.json:2", "int, not an object; one JSON object for each record")]
    assert read(tmp_path / "x.json", json.dumps({"p7": {"a": 1}}))[0] == [("p7", {"a": 1})]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty file"),
        ("[]", "empty list"),
        ("{}", "no rows"),
        ("7", "neither a list nor an object"),
        ('{"a": 1', "not JSON"),
        ("[" * 10**5, "not JSON"),
        ('{"p": {}, "p": {}}', "not JSON (the key 'p' twice)"),
        (b'{"p": "\xe9"}', "not UTF-8"),
        ('{"p": "\\ud800"}', "not UTF-8"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_refused_whole(
    tmp_path: Path, content: bytes | str, reason: str
):
    keyed, [refused] = read(tmp_path / "x.json", content)
    assert keyed == [] and refused[1].startswith(reason)


def test_two_gigabytes_are_refused_unread(tmp_path: Path):
    with (tmp_path / "x.json").open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(2**31)
    [refused] = records(tmp_path / "x.json", "x.json")
    assert (
        isinstance(refused, Refused) and "2,147,483,648 bytes in one JSON object" in refused.reason
    )


def test_an_endless_line_of_json_is_refused_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forms, "MAX_RECORD", 2**10)
    keyed, [refused] = read(tmp_path / "x.jsonl", '["a"]\n["' + "x" * 2**12 + '"]\n["b"]\n')
    assert (keyed, refused[0]) == ([("3", {"a": "b"})], "x.jsonl:2")
    assert "is it one record?" in refused[1]


def test_a_cut_list_gives_the_rows_before_the_cut(tmp_path: Path):
    keyed, [refused] = read(tmp_path / "x.json", '[{"a": 1}, {"a": ')
    assert keyed == [("1", {"a": 1})]
    assert refused[0] == "x.json:2" and "cut off" in refused[1]


def test_parquet_rows_are_numbered_and_a_text_in_another_encoding_refused(tmp_path: Path):
    raw = pa.array([b"one", "né".encode("latin1"), b"three"]).view(pa.string())
    pq.write_table(pa.table({"a": raw}), tmp_path / "x.parquet")
    keyed, refused = read(tmp_path / "x.parquet", (tmp_path / "x.parquet").read_bytes())
    assert keyed == [("1", {"a": "one"}), ("3", {"a": "three"})]
    assert refused == [("x.parquet:2", "not UTF-8; write the file again from UTF-8 texts")]


def test_a_cut_parquet_file_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"a": ["one"]}), tmp_path / "x.parquet")
    keyed, [refused] = read(tmp_path / "x.parquet", (tmp_path / "x.parquet").read_bytes()[:-9])
    assert keyed == [] and "damaged, or cut off" in refused[1]


def test_columns_without_a_name_are_nothing_unless_a_value_stands_there(tmp_path: Path):
    keyed, refused = read(tmp_path / "x.csv", "a,b,,\n1,2,,\n3,4\n5,6,,7\n8,x, y,\n9\n")
    assert keyed == [("2", {"a": "1", "b": "2"}), ("3", {"a": "3", "b": "4"})]
    assert [(where, reason.split(";")[0]) for where, reason in refused] == [
        ("x.csv:4", "'7' stands in a column without a name"),
        ("x.csv:5", "' y' stands in a column without a name"),
        ("x.csv:6", "1 columns, the header has 4"),
    ]


def test_empty_cells_behind_the_header_and_the_numbers_of_pandas_are_no_columns(tmp_path: Path):
    assert read(tmp_path / "x.csv", "a,b, \n1,2, ,,\n") == ([("2", {"a": "1", "b": "2"})], [])
    assert read(tmp_path / "y.csv", ",a\n0,x\n1,y\n") == (
        [("2", {"a": "x"}), ("3", {"a": "y"})],
        [],
    )
    keyed, [refused] = read(tmp_path / "z.csv", "a,b\n1,2,,3\n")
    assert keyed == [] and refused == (
        "z.csv:2",
        "4 columns, the header has 2; quote or correct the row",
    )


def test_a_quote_that_swallows_lines_says_which(tmp_path: Path):
    keyed, [refused] = read(tmp_path / "x.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n')
    assert keyed == [("2", {"a": "1", "b": "2"})]
    assert refused[0] == "x.csv:3" and "lines 3 to 5 are one row by it" in refused[1]


def test_a_key_that_is_there_twice_in_a_mapping_spoils_only_its_own_record(tmp_path: Path):
    keyed, refused = read(
        tmp_path / "x.json", '{"p": {"a": 1}, "q": {"a": [{"b": 1, "b": 2}]}, "r": {"a": 3}}'
    )
    assert keyed == [("p", {"a": 1}), ("r", {"a": 3})]
    assert refused == [("x.json:q", "not JSON (the key 'b' twice); correct it")]
