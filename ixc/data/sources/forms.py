"""The forms of a data file: JSON lists and lines, Parquet and Arrow, read record by record in bounded memory.

What is broken is refused in its place. Nothing is lost in silence: where a file ends too early, or holds something
behind its records, a refusal says how many rows were read and that the rest is missing.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.sources import Refused

Record = dict[str, Any]
Bytes = io.BufferedReader | gzip.GzipFile
Numbered = Iterator[tuple[int, Record] | Refused]
"""Records by the number of their line or row, from 1."""
Keyed = Iterator[tuple[int | str, Any] | Refused]
"""Records, and what should be one, by number or by the key of a JSON mapping."""

MAX_RECORD = 64 * 2**20
"""Bytes of one JSON record; a longer one is refused unread."""
MAX_DOCUMENT = 2**30
"""Bytes of a file that is one JSON object, which cannot be read in parts; a larger one is refused unread."""
TOO_LONG = f"longer than {MAX_RECORD:,} bytes; is it one record? shorten it or remove it"
_CHUNK = 2**20
"""Bytes of a JSON list read at a time."""
_ROWS = 64
"""Rows of a Parquet file decoded at a time: they may hold images."""
_CUT = (EOFError, gzip.BadGzipFile, zlib.error)
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises on a table; the last where a column's name is damaged."""


class RepeatedKey(ValueError):
    """A JSON object that has a key twice: every parser keeps another one of the two values."""


def unrepeated(pairs: list[tuple[str, Any]]) -> Record:
    """A JSON object whose keys are all different, as the `object_pairs_hook` of `json`.

    Raises:
        RepeatedKey: one is there twice.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedKey(f"the key {repeated!r} twice")
    return record


def records(path: Path, name: str) -> Numbered:
    """The records of a JSON, JSON-lines, Parquet or Arrow file, numbered from 1; `name` is what refusals call it."""
    if path.suffix == ".parquet":
        return _parquet(path, name)
    if path.suffix == ".arrow":
        return _arrow(path, name)
    if opens_with_a_list(path) or _is_spread(path):
        return _elements(path, name)
    return lines(path, name)


def _missing(count: int, total: int | None = None) -> str:
    """How much of a broken file was read."""
    of = f" of {total:,}" if total is not None else ""
    return f"{count:,}{of} rows were read and the rest is missing: fetch the file again"


# JSON lines


def lines(path: Path, name: str = "") -> Numbered:
    """The objects of a JSON-lines file (also `.gz`), numbered by line from 1; blank lines are no records."""
    name = name or path.name
    number = count = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(bounded(file), start=1):
                if line is None:
                    yield Refused(where=f"{name}:{number}", reason=TOO_LONG)
                elif line.strip():
                    count += 1
                    yield _parsed(line, f"{name}:{number}", number)
    except _CUT as error:
        reason = f"cut off, or damaged ({error}); {_missing(count)}"
        yield Refused(where=f"{name}:{number + 1}", reason=reason)
    else:
        if number == 0:
            yield Refused(where=name, reason="empty file; fetch it again, or remove it")


@contextmanager
def _opened(path: Path) -> Iterator[Bytes]:
    with path.open("rb") as file:
        yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file


def bounded(file: Bytes) -> Iterator[bytes | None]:
    """Lines; None stands for one that is longer than `MAX_RECORD`."""
    while line := file.readline(MAX_RECORD):
        is_whole = len(line) < MAX_RECORD or line.endswith(b"\n")
        yield line if is_whole else None
        # The rest is read piece by piece, and dropped.
        while not is_whole:
            rest = file.readline(MAX_RECORD)
            is_whole = len(rest) < MAX_RECORD or rest.endswith(b"\n")


def _parsed(line: bytes, where: str, number: int) -> tuple[int, Record] | Refused:
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=unrepeated)
    except UnicodeDecodeError as error:
        reason = (
            f"not UTF-8 ({error.reason} at byte {error.start}); convert the file: iconv -t UTF-8"
        )
        return Refused(where=where, reason=reason)
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno}); correct the line"
        return Refused(where=where, reason=reason)
    # A key twice, a number of a million digits, lists a thousand deep.
    except (ValueError, RecursionError) as error:
        return Refused(where=where, reason=f"not JSON ({error}); correct the line")
    return as_record(value, where, number)


def as_record(value: Any, where: str, number: int) -> tuple[int, Record] | Refused:
    """A value that must be an object."""
    if isinstance(value, dict):
        return number, value
    reason = f"{type(value).__name__}, not an object; one JSON object for each record"
    return Refused(where=where, reason=reason)


# JSON lists


def opens_with_a_list(path: Path) -> bool:
    """Whether a JSON file is a list."""
    return _head(path).startswith(b"[")


def _is_spread(path: Path) -> bool:
    """Whether a JSON file is one object over several lines, or such objects behind each other."""
    return ".json" in path.suffixes and _head(path).partition(b"\n")[0].rstrip() == b"{"


def _head(path: Path) -> bytes:
    """The beginning of a JSON file, as far as it can be read."""
    try:
        with _opened(path) as file:
            return file.read1(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except _CUT:
        return b""


def _elements(path: Path, name: str) -> Numbered:
    """The objects of a JSON file: those of its lists, and those between or behind them.

    The file is not loaded whole.

    Bytes that are no UTF-8 become half characters, which `collect` refuses: no other record is lost.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, value in enumerate(_Lists(_texts(file)), start=1):
                if isinstance(value, ValueError):
                    reason = f"not JSON ({value}); correct the record"
                    yield Refused(where=f"{name}:{number}", reason=reason)
                else:
                    yield as_record(value, f"{name}:{number}", number)
    except (*_CUT, ValueError, RecursionError) as error:
        reason = f"not JSON, or cut off ({error}); what follows is not read: {_missing(number)}, or correct it"
        yield Refused(where=f"{name}:{number + 1}", reason=reason)
    else:
        if number == 0:
            yield Refused(where=name, reason="empty list; fetch the file again, or remove it")


def _texts(file: Bytes) -> Iterator[str]:
    """A file in pieces of about `_CHUNK`; one that is cut or damaged also gives what comes before."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    is_end = False
    while not is_end:
        piece = bytearray()
        try:
            while len(piece) < _CHUNK and not is_end:
                more = file.read1(_CHUNK - len(piece))
                piece += more
                is_end = not more
        except _CUT:
            # What was read before the damage is not lost.
            yield decoder.decode(piece)
            raise
        yield decoder.decode(piece, final=is_end)


class _Lists:
    """The elements of the JSON lists in a text, and the objects behind or between them.

    An element with a key twice, or a number of more digits than Python reads, is given as its ValueError.

    >>> list(_Lists(iter(['[{"a": 1}, {"b": "]"}] [{"c": 2}] {"d": 3}'])))
    [{'a': 1}, {'b': ']'}, {'c': 2}, {'d': 3}]

    Iterating raises ValueError: a list ends too early, is no JSON, has an element longer than `MAX_RECORD`, or there is
    something else behind it.
    """

    _decode = json.JSONDecoder(object_pairs_hook=unrepeated).raw_decode
    _decode_any = json.JSONDecoder(parse_int=float).raw_decode

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts, self._buffer, self._place = texts, "", 0

    def __iter__(self) -> Iterator[Any]:
        while character := self._next(" \t\r\n"):
            if character == "[":
                self._place += 1
                yield from self._list()
            elif character == "{":
                yield self._element()
            else:
                excerpt = self._buffer[self._place : self._place + 20]
                raise ValueError(f"{excerpt!r} behind the list")

    def _list(self) -> Iterator[Any]:
        while self._next(" \t\r\n,") != "]":
            yield self._element()
        self._place += 1

    def _next(self, skipped: str) -> str:
        """The next character that is not one of these; empty at the end."""
        while True:
            character = self._buffer[self._place : self._place + 1]
            while character and character in skipped:
                self._place += 1
                character = self._buffer[self._place : self._place + 1]
            if character or not self._more():
                return character

    def _more(self) -> bool:
        """Read on; whether there was anything."""
        more = next(filter(None, self._texts), "")
        self._buffer, self._place = self._buffer[self._place :] + more, 0
        return bool(more)

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._decoded()
            except json.JSONDecodeError:
                value, end = None, len(self._buffer)
            # At the buffer's end it may go on in what was not read yet: read on, and decode it again.
            if end == len(self._buffer):
                if len(self._buffer) - self._place <= MAX_RECORD and self._more():
                    continue
                value, end = self._decoded()
            self._place = end
            return value

    def _decoded(self) -> tuple[Any, int]:
        try:
            return self._decode(self._buffer, self._place)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            return error, self._decode_any(self._buffer, self._place)[1]


# Tables


def _parquet(path: Path, name: str) -> Numbered:
    """Group by group: a damaged one takes only its own rows along."""
    try:
        with pq.ParquetFile(path) as file:
            _refuse_repeated(file.schema_arrow.names)
            groups = range(file.num_row_groups)
            sizes = [file.metadata.row_group(group).num_rows for group in groups]
            start = 0
            for group, size in enumerate(sizes):
                batches = file.iter_batches(batch_size=_ROWS, row_groups=[group])
                yield from _numbered(batches, name, start, size)
                start += size
    except _DAMAGED as error:
        yield Refused(where=f"{name}:1", reason=_damaged(error))
    else:
        if sum(sizes) == 0:
            yield _no_rows(name)


def _arrow(path: Path, name: str) -> Numbered:
    try:
        with pa.memory_map(str(path)) as source:
            count = 0
            for item in _numbered(_batches(source), name, 0):
                count += 1
                yield item
    except _DAMAGED as error:  # it cannot even be opened
        yield Refused(where=f"{name}:1", reason=_damaged(error))
    else:
        if count == 0:
            yield _no_rows(name)


def _numbered(
    batches: Iterator[pa.RecordBatch],
    name: str,
    start: int,
    total: int | None = None,
) -> Numbered:
    """The records of batches, numbered from `start` + 1; `total`: how many there should be."""
    count = 0
    try:
        for batch in batches:
            for record in _decoded(batch):
                count += 1
                number = start + count
                if isinstance(record, Exception):
                    yield Refused(where=f"{name}:{number}", reason=_unread(record))
                else:
                    yield number, record
    except _DAMAGED as error:
        first_missing = start + count + 1
        rows = f" of rows {start + 1:,} to {start + total:,}" if total is not None else ""
        reason = f"damaged, or cut off ({_one_line(error)});{rows} {_missing(count, total)}"
        yield Refused(where=f"{name}:{first_missing}", reason=reason)


def _damaged(error: Exception) -> str:
    """Why nothing of a table can be read."""
    return f"damaged, or cut off ({_one_line(error)}); {_missing(0)}"


def _refuse_repeated(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise pa.ArrowInvalid(f"two columns are called {name!r}; rename one")


def _unread(error: Exception) -> str:
    """Why a row has a value that Python does not."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8; write the file again from UTF-8 texts"
    what = f"a value that cannot be read ({_one_line(error)})"
    return f"{what}; write it as another type, or remove the row"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _no_rows(name: str) -> Refused:
    return Refused(where=name, reason="no rows; fetch the file again, or remove it")


def _batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_stream(source)  # what `datasets` writes
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(source)
        reader = (file.get_batch(i) for i in range(file.num_record_batches))
    for batch in reader:
        _refuse_repeated(batch.schema.names)
        yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _decoded(batch: pa.RecordBatch) -> Iterator[Record | Exception]:
    """The records of a batch; for one that cannot be read stands why.

    A text may be no UTF-8, a date lie beyond Python's, a struct have a field twice.
    """
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            yield error
        else:
            # Row by row: only the one at fault is lost.
            for i in range(batch.num_rows):
                yield from _decoded(batch.slice(i, 1))


# One object


def oversized(path: Path) -> str:
    """Why a file cannot be read whole; empty if it can."""
    size = path.stat().st_size
    if size <= MAX_DOCUMENT:
        return ""
    return f"{size:,} bytes in one JSON object, more than {MAX_DOCUMENT:,}; split it"


def document(path: Path) -> Record | Refused:
    """A file that is one JSON object."""
    name = path.name
    if reason := oversized(path):
        return Refused(where=name, reason=reason)
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=unrepeated)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte {error.start}); convert it: iconv -t UTF-8"
        return Refused(where=name, reason=reason)
    except json.JSONDecodeError as error:
        is_empty = not path.stat().st_size
        reason = "empty file" if is_empty else f"not JSON ({error.msg}, line {error.lineno})"
        return Refused(where=f"{name}:{error.lineno}", reason=f"{reason}; fetch the file again")
    except (ValueError, RecursionError) as error:
        return Refused(where=name, reason=f"not JSON ({error}); fetch the file again")
    if not isinstance(content, dict):
        return Refused(where=name, reason="not a JSON object")
    return content
