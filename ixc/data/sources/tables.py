"""Files that are tables: CSV, TSV, Parquet, JSON lists and JSON mappings, read record by record.

`native.each` takes `records` where `forms.records` does not know the form. As there, what is broken is refused with its
place and a remedy, and the rest goes on.
"""

import csv
import json
import re
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ixc.data.sources import Refused, forms
from ixc.data.sources.forms import (
    TOO_LONG,
    Keyed,
    Record,
    RepeatedKey,
    bounded,
    oversized,
    unrepeated,
)
from ixc.data.sources.phrases import blank

NumberedList = tuple[int, list[Any]]
"""A row's cells, and the number of the line on which it begins."""

MAX_LINE = 2**24
"""Characters. A longer line cannot be a row: a cell would pass csv's limit of 131,072, or there are over 128."""


def records(file: Path, name: str) -> Keyed:
    """The records of a file by its suffix; `name` is what refusals call it.

    CSV and JSON lines begin with a header; a JSON object maps keys to records.
    """
    match file.suffix:
        case ".parquet":
            return forms.records(file, name)
        case ".csv":
            return _headed(_cells(file, name, ","), name)
        case ".tsv":
            return _headed(_cells(file, name, "\t"), name)
        case ".jsonl":
            return _headed(_lists(file, name), name)
        case ".json" if forms.opens_with_a_list(file):
            return forms.records(file, name)
        case _:
            return _mapping(file, name)


def one_record(file: Path, name: str) -> Keyed:
    """The same, but a JSON object is itself the one record of its file, under an empty key."""
    if file.suffix == ".json" and not forms.opens_with_a_list(file):
        return _mapping(file, name, is_one_record=True)
    return records(file, name)


# CSV, TSV, and JSON lines of lists


def _headed(lists: Iterator[NumberedList | Refused], name: str) -> Keyed:
    """The first list names the columns of the others."""
    first = next(lists, Refused(where=name, reason="empty file; fetch it again, or remove it"))
    if isinstance(first, Refused):
        yield first  # without its header no row has a meaning
        return
    header_line, columns = first
    header = [str(column).strip() for column in columns]
    named = [column for column in header if column]
    if len(set(named)) < len(named):
        reason = "two columns have one name; rename one"
        yield Refused(where=f"{name}:{header_line}", reason=reason)
        return

    is_empty = True
    for item in lists:
        is_empty = False
        if isinstance(item, Refused):
            yield item
            continue
        number, cells = item
        if reason := _misfit(cells, header):
            yield Refused(where=f"{name}:{number}", reason=reason)
            continue
        named_cells = zip(header, cells, strict=False)
        yield number, {column: cell for column, cell in named_cells if column}
    if is_empty:
        yield _no_rows(name)


def _misfit(cells: list[Any], header: list[str]) -> str:
    """Why a row is not one of its header; empty if it is.

    Columns without a name, as spreadsheets leave behind the last one, hold nothing, and need not be there. The first
    one may count the rows, as pandas writes it.
    """
    num_needed = max((i for i, column in enumerate(header, start=1) if column), default=0)
    filled = [not blank(str("" if cell is None else cell)) for cell in cells]
    if len(cells) < num_needed or any(filled[len(header) :]):
        return f"{len(cells)} columns, the header has {len(header)}; quote or correct the row"
    for i, column in enumerate(header[: len(cells)]):
        is_row_number = i == 0 and str(cells[i]).isdecimal()
        if not column and filled[i] and not is_row_number:
            cell = reprlib.repr(cells[i])
            return f"{cell} stands in a column without a name; name it, or quote or correct the row"
    return ""


def _no_rows(name: str) -> Refused:
    return Refused(where=name, reason="no rows; fetch the file again, or remove it")


def _not_utf8(where: str) -> Refused:
    return Refused(where=where, reason="not UTF-8; convert the file: iconv -t UTF-8")


_STRAY = re.compile("[\ud800-\udfff]")
"""What `surrogateescape` makes of bytes that are no UTF-8."""


def _cells(file: Path, name: str, delimiter: str) -> Iterator[NumberedList | Refused]:
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
                # An open quote swallows what follows: say how far it reaches.
                last = reader.line_num
                swallowed = f"; lines {number} to {last} are one row by it" if last > number else ""
                reason = f"not a row ({error}){swallowed}; correct its quotes"
                yield Refused(where=f"{name}:{number}", reason=reason)
                continue
            if any(_STRAY.search(cell) for cell in cells):
                yield _not_utf8(f"{name}:{number}")
            elif cells:
                yield number, cells


def _bounded(stream: TextIO) -> Iterator[str]:
    """Lines, each cut after `MAX_LINE` characters."""
    while line := stream.readline(MAX_LINE):
        yield line
        # The rest of an endless line is dropped unread.
        while len(line) == MAX_LINE and not line.endswith("\n"):
            line = stream.readline(MAX_LINE)


def _lists(file: Path, name: str) -> Iterator[NumberedList | Refused]:
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
    if isinstance(value, list | Refused):
        return value
    return Refused(where=where, reason="not a list; one JSON list a line")


# JSON objects


def _mapping(file: Path, name: str, is_one_record: bool = False) -> Keyed:
    """The values of a JSON object by their keys, or the object itself."""
    content = _content(file, name)
    if isinstance(content, Refused):
        yield content
        return
    if not isinstance(content, dict):
        yield Refused(where=name, reason="neither a list nor an object; is it the data set's file?")
        return
    for key, value in [("", content)] if is_one_record else content.items():
        if fault := _repeated(value):
            yield Refused(where=f"{name}:{key}", reason=f"not JSON ({fault}); correct it")
        else:
            yield key, value
    if not content:
        yield _no_rows(name)


def _content(file: Path, name: str) -> Any:
    """A JSON file as a whole, or why it cannot be read."""
    if reason := oversized(file):
        return Refused(where=name, reason=reason)
    content = _parsed(file.read_bytes(), name, _marked)
    if isinstance(content, _Repeated):
        return Refused(where=name, reason=f"not JSON ({content.fault}); correct it")
    return content


class _Repeated(dict[str, Any]):
    """An object that has a key twice; it makes only the record that it is in unusable."""

    fault = ""
    """Which key."""


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
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return ""
    return next(filter(None, map(_repeated, value)), "")


def _parsed(
    text: bytes, where: str, hook: Callable[[list[tuple[str, Any]]], Record] = unrepeated
) -> Any:
    """A JSON text, or why it is none."""
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=hook)
        # Half a surrogate pair is no text: it cannot be written again.
        if rb"\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        return _not_utf8(where)
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({error})" if text.strip() else "empty file"
        return Refused(where=where, reason=f"{reason}; fetch the file again, or correct it")
    return value
