"""Native files, row by row: what is broken is refused with its place and a remedy, and the rest goes on."""

import gzip
import io
import json
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.sources import BadSource, File, Refused, Row
from ixc.sources.hub import Hub, stream
from ixc.sources.splits import held_out

T = TypeVar("T")
Record = dict[str, Any]
Origin = Path | Hub
Make = Callable[[Record, int], Iterable[Row]]
"""(record, its number from 1) -> the rows it yields."""
Bytes = io.BufferedReader | gzip.GzipFile
Numbered = Iterator[tuple[int, Record] | Refused]

FORMS = tuple(f"**/*{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow"))
"""What `each` can read."""
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json"}
"""What `datasets` writes beside its files."""

MAX_RECORD = 64 * 2**20
"""Bytes of one JSON record; a longer one is refused unread."""
MAX_DOCUMENT = 2**30
"""Bytes of a file that is one JSON object, which cannot be read in parts; a larger one is refused unread."""
_CHUNK = 2**20
"""Characters of a JSON list read at a time."""
_ROWS = 64
"""Rows of a Parquet file decoded at a time: they may hold pictures."""
_CUT = (EOFError, gzip.BadGzipFile, zlib.error)


class Unusable(ValueError):
    """A record that yields no row, and why."""


class Entry(NamedTuple):
    """One record of a data set in whatever form."""

    record: Record
    id: str
    """File and number: unique, for records that have no id of their own."""
    folder: Path | None
    """What the names of media are relative to; None on the hub, which brings them along."""


# Where the records are


def find(path: Origin, *patterns: str) -> list[Path]:
    """The files of a source: `path` itself, or what matches below the folder, sorted.

    Raises:
        BadSource: there is none, or one is a link out of the folder.
    """
    if isinstance(path, Hub):
        raise BadSource(f"hub {path.name}: this reader reads files only; download the data set and set `path`")
    if path.is_file():
        return [path]
    found = matching(path, *patterns)
    if not found:
        raise BadSource(f"{path}: no file {' or '.join(patterns)}; set `path` to the data set's own folder")
    return found


def matching(folder: Path, *patterns: str) -> list[Path]:
    """The data files below a folder that match, sorted; perhaps none.

    Raises:
        BadSource: one is a link out of the folder.
    """
    found = sorted({file for pattern in patterns for file in folder.glob(pattern) if _is_data(file, folder)})
    if astray := [file for file in found if not _inside(file, folder)]:
        remedy = "copy the file, or set `path` to its folder"
        raise BadSource(f"{astray[0]}: a link that leaves the source's folder; {remedy}")
    return found


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.name not in _ABOUT


def _inside(path: Path, folder: Path) -> bool:
    """Whether a file is below a folder, links followed; the hub's cache keeps what its snapshots link to in `blobs`."""
    real, top = path.resolve(), folder.resolve()
    snapshots = next((place for place in top.parents if place.name == "snapshots"), None)
    return real.is_relative_to(top) or (snapshots is not None and real.is_relative_to(snapshots.parent / "blobs"))


def home(path: Path) -> Path:
    """The folder that a source's file names are relative to."""
    return path.parent if path.is_file() else path


def each(origin: Origin, make: Callable[[Entry], Iterable[Row]], *patterns: str) -> Iterator[Row | Refused]:
    """What `make` turns the records into: of the hub, or of every file that matches (default: `FORMS`)."""
    folder = None if isinstance(origin, Hub) else home(origin)
    for name, records in _parts(origin, patterns or FORMS):
        part = name.removesuffix(".gz").rpartition(".")[0] or name
        for item in records:
            if isinstance(item, Refused):
                yield item
            else:
                entry = Entry(item[1], f"{part}/{item[0]}", folder)
                yield from _attempt(lambda entry=entry: make(entry), f"{name}:{item[0]}", name)


def _parts(origin: Origin, patterns: Iterable[str]) -> Iterator[tuple[str, Numbered]]:
    if isinstance(origin, Hub):
        yield origin.split, enumerate(stream(origin), start=1)
        return
    for file in find(origin, *patterns):
        name = file.relative_to(home(origin)).as_posix()
        yield name, records(file, name)


def rows(path: Path, make: Make) -> Iterator[Row | Refused]:
    """What `make` turns the records of a JSON-lines file into."""
    for item in lines(path):
        yield from [item] if isinstance(item, Refused) else attempt(make, item[1], item[0], path.name)


def attempt(make: Make, record: Any, number: int, name: str) -> list[Row | Refused]:
    """The rows of one record: all of them, or one refusal.

    Args:
        name: of the file, below the source's folder. Where it says so, rows without a split of their own are held out.
    """
    if isinstance(found := _object(record, f"{name}:{number}", number), Refused):
        return [found]
    return _attempt(lambda: make(record, number), f"{name}:{number}", name)


def _attempt(make: Callable[[], Iterable[Row]], where: str, name: str) -> list[Row | Refused]:
    try:
        return [row if row.split else replace(row, split=held_out(name)) for row in make()]
    except Unusable as error:
        return [Refused(where=where, reason=str(error))]
    except (TypeError, AttributeError, ValueError, LookupError) as error:  # a value that `make` did not expect
        detail = " ".join(str(error).split())[:200]
        reason = f"not of the expected form ({detail}); compare it with the reader's description"
        return [Refused(where=where, reason=reason)]


# The forms of a file


def records(path: Path, name: str) -> Numbered:
    """The records of a JSON, JSON-lines, Parquet or Arrow file, numbered from 1; `name` is what refusals call it."""
    if path.suffix in (".parquet", ".arrow"):
        return _table(path, name)
    return _elements(path, name) if opens_with_a_list(path) else lines(path, name)


def lines(path: Path, name: str = "") -> Numbered:
    """The objects of a JSON-lines file (also `.gz`), numbered from 1; blank lines do not count as records."""
    name, number = name or path.name, 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(bounded(file), start=1):
                if line is None:
                    yield Refused(where=f"{name}:{number}", reason=TOO_LONG)
                elif line.strip():
                    yield _parsed(line, f"{name}:{number}", number)
    except _CUT as error:
        yield Refused(where=f"{name}:{number + 1}", reason=f"cut off ({error}); fetch the file again")
    else:
        if number == 0:
            yield Refused(where=name, reason="empty file; fetch it again, or remove it")


TOO_LONG = f"longer than {MAX_RECORD:,} bytes; is it one record? shorten it or remove it"


@contextmanager
def _opened(path: Path) -> Iterator[Bytes]:
    with path.open("rb") as file:
        yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file


def bounded(file: Bytes) -> Iterator[bytes | None]:
    """Lines; None stands for one that is longer than `MAX_RECORD`."""
    while line := file.readline(MAX_RECORD):
        whole = len(line) < MAX_RECORD or line.endswith(b"\n")
        yield line if whole else None
        while not whole:
            rest = file.readline(MAX_RECORD)
            whole = len(rest) < MAX_RECORD or rest.endswith(b"\n")


def _parsed(line: bytes, where: str, number: int) -> tuple[int, Record] | Refused:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason} at byte {error.start}); convert the file: iconv -t UTF-8"
        return Refused(where=where, reason=reason)
    except json.JSONDecodeError as error:
        return Refused(where=where, reason=f"not JSON ({error.msg}, column {error.colno}); correct the line")
    except (ValueError, RecursionError) as error:  # a number of a million digits, lists a thousand deep
        return Refused(where=where, reason=f"not JSON ({error}); correct the line")
    return _object(value, where, number)


def _object(value: Any, where: str, number: int) -> tuple[int, Record] | Refused:
    if isinstance(value, dict):
        return number, value
    return Refused(where=where, reason=f"{type(value).__name__}, not an object; one JSON object for each record")


def opens_with_a_list(path: Path) -> bool:
    """Whether a JSON file is a list, as far as its beginning can be read."""
    try:
        with _opened(path) as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except _CUT:
        return False


def _elements(path: Path, name: str) -> Numbered:
    """The objects of a file that is one JSON list, without loading it whole.

    Bytes that are no UTF-8 become half characters, which `collect` refuses: they spoil only their own record.
    """
    number = 0
    try:
        with _opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape") as text:
            for number, value in enumerate(_values(text), start=1):
                yield _object(value, f"{name}:{number}", number)
    except (*_CUT, ValueError, RecursionError) as error:
        reason = f"not JSON, or cut off ({error}); what follows is not read: fetch the file again, or correct it"
        yield Refused(where=f"{name}:{number + 1}", reason=reason)
    else:
        if number == 0:
            yield Refused(where=name, reason="empty list; fetch the file again, or remove it")


def _values(text: io.TextIOBase) -> Iterator[Any]:
    """The elements of a JSON list.

    >>> list(_values(io.StringIO('[{"a": 1}, {"b": "]"}]')))
    [{'a': 1}, {'b': ']'}]

    Raises:
        ValueError: it ends too early, is no JSON, or one element is longer than `MAX_RECORD`.
    """
    decode, buffer, place = json.JSONDecoder().raw_decode, text.read(_CHUNK).lstrip(), 1
    while True:
        while buffer[place : place + 1] in tuple(" \t\r\n,"):
            place += 1
        if buffer[place : place + 1] == "]":
            return
        try:
            value, end = decode(buffer, place)
        except json.JSONDecodeError:
            value, end = None, len(buffer)
        if end < len(buffer):
            yield value
            place = end
            continue
        more = text.read(_CHUNK)
        if not more or len(buffer) - place > MAX_RECORD:
            decode(buffer, place)
            raise ValueError("no closing bracket")
        buffer, place = buffer[place:] + more, 0


def _table(path: Path, name: str) -> Numbered:
    number = 0
    try:
        for batch in _batches(path):
            for record in _decoded(batch):
                number += 1
                bad = Refused(where=f"{name}:{number}", reason="not UTF-8; write the file again from UTF-8 texts")
                yield bad if record is None else (number, record)
    except (pa.ArrowException, OSError) as error:
        detail = " ".join(str(error).split())[:200]
        reason = f"damaged, or cut off ({detail}); what follows is not read: fetch the file again"
        yield Refused(where=f"{name}:{number + 1}", reason=reason)
    else:
        if number == 0:
            yield Refused(where=name, reason="no rows; fetch the file again, or remove it")


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)  # what `datasets` writes
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            reader = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in reader:
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _decoded(batch: pa.RecordBatch) -> Iterator[Record | None]:
    """The records of a batch; None stands for one with a text that is no UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
        else:
            for i in range(batch.num_rows):
                yield from _decoded(batch.slice(i, 1))


def oversized(path: Path) -> str:
    """Why a file cannot be read whole; empty if it can."""
    size = path.stat().st_size
    return f"{size:,} bytes in one JSON object, more than {MAX_DOCUMENT:,}; split it" if size > MAX_DOCUMENT else ""


def document(path: Path) -> Record | Refused:
    """A file that is one JSON object."""
    if reason := oversized(path):
        return Refused(where=path.name, reason=reason)
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Refused(where=path.name, reason=f"not UTF-8 (byte {error.start}); convert it: iconv -t UTF-8")
    except json.JSONDecodeError as error:
        reason = "empty file" if not path.stat().st_size else f"not JSON ({error.msg}, line {error.lineno})"
        return Refused(where=f"{path.name}:{error.lineno}", reason=f"{reason}; fetch the file again")
    except (ValueError, RecursionError) as error:
        return Refused(where=path.name, reason=f"not JSON ({error}); fetch the file again")
    return content if isinstance(content, dict) else Refused(where=path.name, reason="not a JSON object")


# What a record holds


def take(record: Record, name: str, kind: type[T]) -> T:
    """A field that must be there, of this type, and not blank.

    >>> take({"answer": "7"}, "answer", str)
    '7'

    Raises:
        Unusable: it is not.
    """
    if name not in record:
        raise Unusable(f"{name}: missing; add the field or remove the row")
    value = record[name]
    if not isinstance(value, kind):
        raise Unusable(f"{name}: {reprlib.repr(value)}: expected {kind.__name__}")
    if isinstance(value, str) and not value.strip():
        raise Unusable(f"{name}: empty; fill it in or remove the row")
    return value


def media(folder: Path | None, value: Any, kind: Literal["image", "video"]) -> File:
    """A file below `folder`, or one that the row brings along: its bytes, or `{"bytes", "path"}`.

    Raises:
        Unusable: it is missing, is neither, or its name leads out of the folder.
    """
    if isinstance(value, dict):
        data, value = value.get("bytes"), value.get("path")
        if data:
            return File(kind=kind, data=data, suffix=Path(value or "").suffix)
    if isinstance(value, bytes) and value:
        return File(kind=kind, data=value)
    if not isinstance(value, str) or not value:
        raise Unusable(f"{kind}: {reprlib.repr(value)}: neither bytes nor a file's name; add it or remove the row")
    if folder is None:
        raise Unusable(f"{reprlib.repr(value)}: the hub gives only this name; download the data set and set `path`")
    return File(kind=kind, path=_below(folder, value))


def _below(folder: Path, name: str) -> Path:
    path, shown = folder / name, reprlib.repr(name) if len(name) > 200 else repr(name)
    try:
        inside, there = _inside(path, folder), path.is_file()
    except (OSError, RuntimeError) as error:  # a name of a thousand letters, a link to itself
        raise Unusable(f"{shown}: cannot be a file's name ({type(error).__name__}); correct it") from error
    if not inside:
        raise Unusable(f"{shown} leaves the source's folder; use a path below it")
    if not there:
        raise Unusable(f"{shown}: no such file below the source's folder; add it or remove the row")
    return path


def several(value: Any) -> list[Any]:
    """A field that holds one, a list, or nothing.

    >>> several("a.png"), several(None)
    (['a.png'], [])
    """
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
