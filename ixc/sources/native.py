"""Native files, row by row: what is broken is refused with its place and a remedy, and the rest goes on."""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from ixc.sources import BadSource, File, Refused, Row

T = TypeVar("T")
Record = dict[str, Any]
Make = Callable[[Record, int], Iterable[Row]]
"""(record, its number from 1) -> the rows it yields."""


class Unusable(ValueError):
    """A record that yields no row, and why."""


def find(path: Path, *patterns: str) -> list[Path]:
    """The files of a source: `path` itself, or what matches below the folder, sorted.

    Raises:
        BadSource: there is none.
    """
    if path.is_file():
        return [path]
    found = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if not found:
        raise BadSource(f"{path}: no file {' or '.join(patterns)}; set `path` to the data set's own folder")
    return found


def home(path: Path) -> Path:
    """The folder that a source's file names are relative to."""
    return path.parent if path.is_file() else path


def lines(path: Path) -> Iterator[tuple[int, Record] | Refused]:
    """The objects of a JSON-lines file (also `.gz`), numbered from 1; blank lines do not count as records."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _parsed(line, path, number)
    except (EOFError, gzip.BadGzipFile) as error:
        yield Refused(where=f"{path.name}:{number + 1}", reason=f"cut off ({error}); fetch the file again")
    if number == 0:
        yield Refused(where=path.name, reason="empty file; fetch it again, or remove it")


def _parsed(line: bytes, path: Path, number: int) -> tuple[int, Record] | Refused:
    where = f"{path.name}:{number}"
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason} at byte {error.start}); convert the file: iconv -t UTF-8"
        return Refused(where=where, reason=reason)
    except json.JSONDecodeError as error:
        return Refused(where=where, reason=f"not JSON ({error.msg}, column {error.colno}); correct the line")
    if not isinstance(record, dict):
        return Refused(where=where, reason=f"{type(record).__name__}, not an object; one JSON object a line")
    return number, record


def rows(path: Path, make: Make) -> Iterator[Row | Refused]:
    """What `make` turns the records of a JSON-lines file into."""
    for item in lines(path):
        yield from [item] if isinstance(item, Refused) else attempt(make, item[1], item[0], path)


def attempt(make: Make, record: Record, number: int, path: Path) -> list[Row | Refused]:
    """The rows of one record: all of them, or one refusal."""
    try:
        return list(make(record, number))
    except Unusable as error:
        return [Refused(where=f"{path.name}:{number}", reason=str(error))]
    except (TypeError, AttributeError, ValueError) as error:  # a value of a type that `make` did not expect
        detail = " ".join(str(error).split())
        reason = f"not of the expected form ({detail}); compare it with the reader's description"
        return [Refused(where=f"{path.name}:{number}", reason=reason)]


def document(path: Path) -> Record | Refused:
    """A file that is one JSON object."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        return Refused(where=path.name, reason=f"not UTF-8 (byte {error.start}); convert it: iconv -t UTF-8")
    except json.JSONDecodeError as error:
        reason = "empty file" if not path.stat().st_size else f"not JSON ({error.msg}, line {error.lineno})"
        return Refused(where=f"{path.name}:{error.lineno}", reason=f"{reason}; fetch the file again")
    return content if isinstance(content, dict) else Refused(where=path.name, reason="not a JSON object")


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
        raise Unusable(f"{name}: {value!r}: expected {kind.__name__}")
    if isinstance(value, str) and not value.strip():
        raise Unusable(f"{name}: empty; fill it in or remove the row")
    return value


def media(folder: Path, name: str, kind: Literal["image", "video"]) -> File:
    """A file below `folder`.

    Raises:
        Unusable: it is missing, or its name leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Unusable(f"{name!r} leaves the source's folder; use a path below it")
    if not path.is_file():
        raise Unusable(f"{name!r}: no such file below the source's folder; add it or remove the row")
    return File(kind=kind, path=path)
