"""Data sets as tables: CSV, TSV, Parquet, JSON lists and JSON mappings, read as records that know their place.

As in `native`, what is broken is refused with its place and a remedy, and the rest goes on.
"""

import csv
import json
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from ixc.data.sources import File, Refused, Row, forms
from ixc.data.sources.forms import (
    TOO_LONG,
    Numbered,
    Record,
    RepeatedKey,
    bounded,
    oversized,
    unrepeated,
)
from ixc.data.sources.hub import Hub, stream
from ixc.data.sources.native import Origin, Unusable, attempt, find, home, media
from ixc.data.sources.phrases import blank

Keyed = Iterator[tuple[str, Any] | Refused]
"""(key, value) of each record: the key of a JSON mapping, else the number of the line or row, from 1."""
Unfold = Callable[[Record], Iterable[tuple[str, Any]]]
"""The records within a record, each with a key that is unique in it."""

Locate = Callable[[str], File]

MAX_LINE = 2**24
"""Characters. A longer line cannot be a row: a cell would pass csv's limit of 131,072, or there are over 128."""


class Entry(NamedTuple):
    """One record, and where it is from."""

    record: Record
    file: str
    """Relative to the source's folder."""
    key: str
    folder: Path | None
    """What the names of media are relative to; None on the hub, which brings them along."""

    @property
    def id(self) -> str:
        """File and key: unique, for records that have no id of their own."""
        return f"{self.file.rpartition('.')[0]}/{self.key}"

    @property
    def where(self) -> str:
        return f"{self.file}:{self.key}"


def each(
    origin: Origin,
    make: Callable[[Entry], Iterable[Row]],
    *patterns: str,
    unfold: Unfold | None = None,
    single: bool = False,
) -> Iterator[Row | Refused]:
    """What `make` turns the records of every matching file into.

    Args:
        origin: the source's folder, one file of it, or the hub.
        make: rows of a record; raises `Unusable` to refuse it.
        patterns: of the files, below the folder.
        unfold: the records within each record, if it holds several.
        single: a JSON object is one record, not a mapping of records.

    Raises:
        BadSource: no file matches.
    """
    for entry in _entries(origin, patterns, unfold, single):
        if isinstance(entry, Refused):
            yield entry
            continue
        for item in attempt(lambda *_, entry=entry: make(entry), entry.record, 0, entry.file):
            yield item if isinstance(item, Row) else replace(item, where=entry.where)


def _entries(
    origin: Origin, patterns: tuple[str, ...], unfold: Unfold | None, single: bool
) -> Iterator[Entry | Refused]:
    folder = None if isinstance(origin, Hub) else home(origin)
    for name, items in _files(origin, patterns, single):
        for item in items:
            if isinstance(item, Refused):
                yield item
                continue
            key, value = item
            for inner, part in _parts(value, f"{name}:{key}", unfold):
                yield _entry(part, Entry({}, name, "/".join(filter(None, (key, inner))), folder))


def _files(origin: Origin, patterns: tuple[str, ...], single: bool) -> Iterator[tuple[str, Keyed]]:
    if isinstance(origin, Hub):
        yield (
            f"{origin.split}.parquet",
            ((str(number), value) for number, value in enumerate(stream(origin), start=1)),
        )
        return
    for file in find(origin, *patterns):
        name = file.relative_to(home(origin)).as_posix()
        yield name, records(file, name, single)


def _parts(value: Any, where: str, unfold: Unfold | None) -> Iterable[tuple[str, Any]]:
    if unfold is None or not isinstance(value, dict):
        return [("", value)]
    try:
        return list(unfold(value))
    except Unusable as error:
        return [("", Refused(where=where, reason=str(error)))]


def _entry(value: Any, place: Entry) -> Entry | Refused:
    if isinstance(value, dict):
        return place._replace(record=value)
    reason = f"{type(value).__name__}, not an object; correct the row"
    return value if isinstance(value, Refused) else Refused(where=place.where, reason=reason)


# The forms of a file


def records(file: Path, name: str, single: bool = False) -> Keyed:
    """The records of a file by its suffix; `name` is what refusals call it. CSV and JSON lines begin with a header."""
    if file.suffix == ".parquet" or (file.suffix == ".json" and forms.opens_with_a_list(file)):
        return _keyed(forms.records(file, name))
    if file.suffix in (".csv", ".tsv"):
        return _headed(_cells(file, name, "," if file.suffix == ".csv" else "\t"), name)
    if file.suffix == ".jsonl":
        return _headed(_lists(file, name), name)
    return _json(file, name, single)


def _headed(lists: Iterator[tuple[int, list[Any]] | Refused], name: str) -> Keyed:
    """The first list names the columns of the others."""
    first = next(lists, Refused(where=name, reason="empty file; fetch it again, or remove it"))
    if isinstance(first, Refused):
        yield first  # without its header no row has a meaning
        return
    header = [str(column).strip() for column in first[1]]
    named = list(filter(None, header))
    if len(set(named)) < len(named):
        yield Refused(where=f"{name}:{first[0]}", reason="two columns have one name; rename one")
        return
    item = None
    for item in lists:
        if isinstance(item, Refused):
            yield item
        elif reason := _misfit(item[1], header):
            yield Refused(where=f"{name}:{item[0]}", reason=reason)
        else:
            yield (
                str(item[0]),
                {column: cell for column, cell in zip(header, item[1], strict=False) if column},
            )
    if item is None:
        yield _no_rows(name)


def _misfit(cells: list[Any], header: list[str]) -> str:
    """Why a row is not one of its header; empty if it is.

    Columns without a name, as spreadsheets leave behind the last one, hold nothing, and need not be there. The first
    one may count the rows, as pandas writes it.
    """
    last = max((i for i, column in enumerate(header, start=1) if column), default=0)
    filled = [not blank(str("" if cell is None else cell)) for cell in cells]
    if len(cells) < last or any(filled[len(header) :]):
        return f"{len(cells)} columns, the header has {len(header)}; quote or correct the row"
    unnamed = [i for i, column in enumerate(header[: len(cells)]) if not column and filled[i]]
    if stray := [cells[i] for i in unnamed if i or not str(cells[i]).isdecimal()]:
        return f"{reprlib.repr(stray[0])} stands in a column without a name; name it, or quote or correct the row"
    return ""


def _no_rows(name: str) -> Refused:
    return Refused(where=name, reason="no rows; fetch the file again, or remove it")


def _not_utf8(where: str) -> Refused:
    return Refused(where=where, reason="not UTF-8; convert the file: iconv -t UTF-8")


_STRAY = re.compile("[\ud800-\udfff]")


def _cells(file: Path, name: str, delimiter: str) -> Iterator[tuple[int, list[str]] | Refused]:
    """The rows of a CSV file with the number of the line each begins on."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(_bounded(stream), delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                last = reader.line_num
                swallowed = f"; lines {number} to {last} are one row by it" if last > number else ""
                yield Refused(
                    where=f"{name}:{number}",
                    reason=f"not a row ({error}){swallowed}; correct its quotes",
                )
                continue
            if any(_STRAY.search(cell) for cell in cells):
                yield _not_utf8(f"{name}:{number}")
            elif cells:
                yield number, cells


def _bounded(stream: TextIO) -> Iterator[str]:
    """Lines, of which at most the first `MAX_LINE` characters are kept."""
    while line := stream.readline(MAX_LINE):
        yield line
        while len(line) == MAX_LINE and not line.endswith("\n"):
            line = stream.readline(MAX_LINE)


def _lists(file: Path, name: str) -> Iterator[tuple[int, list[Any]] | Refused]:
    """The lines of a JSON-lines file whose lines are lists."""
    with file.open("rb") as stream:
        for number, line in enumerate(bounded(stream), start=1):
            value = _list(line, f"{name}:{number}")
            if isinstance(value, Refused):
                yield value
            elif value is not None:
                yield number, value


def _list(line: bytes | None, where: str) -> list[Any] | Refused | None:
    """A line as a list; None for a blank one."""
    if line is None:
        return Refused(where=where, reason=TOO_LONG)
    if not line.strip():
        return None
    value = _parsed(line, where)
    other = Refused(where=where, reason="not a list; one JSON list a line")
    return value if isinstance(value, list | Refused) else other


def _json(file: Path, name: str, single: bool) -> Keyed:
    """The values of a JSON object, or the object itself."""
    reason = oversized(file)
    content = (
        Refused(where=name, reason=reason) if reason else _parsed(file.read_bytes(), name, _marked)
    )
    if isinstance(content, _Repeated):
        content = Refused(where=name, reason=f"not JSON ({content.fault}); correct it")
    if isinstance(content, Refused):
        yield content
    elif isinstance(content, dict):
        for key, value in [("", content)] if single else content.items():
            fault = _repeated(value)
            yield (
                Refused(where=f"{name}:{key}", reason=f"not JSON ({fault}); correct it")
                if fault
                else (key, value)
            )
    else:
        yield Refused(where=name, reason="neither a list nor an object; is it the data set's file?")
    if content == {}:
        yield _no_rows(name)


class _Repeated(dict[str, Any]):
    """An object that has a key twice; it spoils only the record that it is in."""

    fault = ""


def _marked(pairs: list[tuple[str, Any]]) -> Record:
    try:
        return unrepeated(pairs)
    except RepeatedKey as error:
        record = _Repeated(pairs)
        record.fault = str(error)
        return record


def _repeated(value: Any) -> str:
    """What is wrong with the keys of a value, or of any within it; empty for nothing."""
    if isinstance(value, _Repeated):
        return value.fault
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_repeated, inner)), "")


def _parsed(
    text: bytes, where: str, hook: Callable[[list[tuple[str, Any]]], Record] = unrepeated
) -> Any:
    """A JSON text, or why it is none."""
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=hook)
        if rb"\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode(
                "utf-8"
            )  # half a surrogate pair is no text
    except UnicodeError:
        return _not_utf8(where)
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({error})" if text.strip() else "empty file"
        return Refused(where=where, reason=f"{reason}; fetch the file again, or correct it")
    return value


def _keyed(numbered: Numbered) -> Keyed:
    for item in numbered:
        yield item if isinstance(item, Refused) else (str(item[0]), item[1])


# What a record holds


def locator(folder: Path, kind: Literal["image", "video"], *suffixes: str) -> Locate:
    """A function that finds media by their bare names, in whatever folder below `folder` they were unpacked."""
    places = defaultdict(list)
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes):
        places[file.name].append(file.relative_to(folder).as_posix())

    def locate(name: str) -> File:
        found = places.get(name, [name])
        if len(found) > 1:
            raise Unusable(f"{name!r}: in two places, {found[0]} and {found[1]}; keep one")
        return media(folder, found[0], kind)

    return locate


def texts(record: Record, name: str) -> list[str]:
    """A list of texts or numbers, as texts.

    >>> texts({"choices": [" a cat", 3]}, "choices")
    ['a cat', '3']

    Raises:
        Unusable: it is missing or holds anything else, or a blank text.
    """
    values = record.get(name)
    if not isinstance(values, list) or not values:
        raise Unusable(
            f"{name}: {reprlib.repr(values)}: expected a list of texts; add it or remove the row"
        )
    found = [str(value).strip() for value in values if isinstance(value, str | int | float)]
    if len(found) < len(values) or any(map(blank, found)):
        raise Unusable(
            f"{name}: {reprlib.repr(values)}: expected texts, none of them empty; correct it"
        )
    return found
