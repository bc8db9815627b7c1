"""Native files, row by row: what is broken is refused with its place and a remedy, and the rest goes on."""

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ixc.data.inline import inline
from ixc.data.sources import BadSource, File, Refused, Row
from ixc.data.sources.forms import Numbered, Record, as_record, document, lines, records
from ixc.data.sources.hub import Hub, stream
from ixc.data.sources.phrases import blank
from ixc.data.sources.splits import held_out

__all__ = [
    "Entry",
    "Make",
    "Numbered",
    "Origin",
    "Record",
    "Unusable",
    "attempt",
    "document",
    "each",
    "find",
    "home",
]
__all__ += ["lines", "matching", "media", "records", "rows", "several", "take"]

T = TypeVar("T")
Origin = Path | Hub
Make = Callable[[Record, int], Iterable[Row]]
"""(record, its number from 1) -> the rows it yields."""

FORMS = tuple(
    f"**/*{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow")
)
"""What `each` can read."""
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json"}
"""What `datasets` writes beside its files."""


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
        raise BadSource(
            f"hub {path.name}: this reader reads files only; download the data set and set `path`"
        )
    if path.is_file():
        return [path]
    found = matching(path, *patterns)
    if not found:
        raise BadSource(
            f"{path}: no file {' or '.join(patterns)}; set `path` to the data set's own folder"
        )
    return found


def matching(folder: Path, *patterns: str) -> list[Path]:
    """The data files below a folder that match, sorted; perhaps none.

    Raises:
        BadSource: one is a link out of the folder.
    """
    found = sorted(
        {file for pattern in patterns for file in folder.glob(pattern) if _is_data(file, folder)}
    )
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
    return real.is_relative_to(top) or (
        snapshots is not None and real.is_relative_to(snapshots.parent / "blobs")
    )


def home(path: Path) -> Path:
    """The folder that a source's file names are relative to."""
    return path.parent if path.is_file() else path


def each(
    origin: Origin, make: Callable[[Entry], Iterable[Row]], *patterns: str
) -> Iterator[Row | Refused]:
    """What `make` turns the records into: of the hub, or of every file that matches (default: `FORMS`)."""
    folder = None if isinstance(origin, Hub) else home(origin)
    for name, numbered in _parts(origin, patterns or FORMS):
        part = name.removesuffix(".gz").rpartition(".")[0] or name
        for item in numbered:
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
        yield from (
            [item] if isinstance(item, Refused) else attempt(make, item[1], item[0], path.name)
        )


def attempt(make: Make, record: Any, number: int, name: str) -> list[Row | Refused]:
    """The rows of one record: all of them, or one refusal.

    Args:
        name: of the file, below the source's folder. Where it says so, rows without a split of their own are held out.
    """
    if isinstance(found := as_record(record, f"{name}:{number}", number), Refused):
        return [found]
    return _attempt(lambda: make(record, number), f"{name}:{number}", name)


def _attempt(make: Callable[[], Iterable[Row]], where: str, name: str) -> list[Row | Refused]:
    try:
        return [row if row.split else replace(row, split=held_out(name)) for row in make()]
    except Unusable as error:
        return [Refused(where=where, reason=str(error))]
    except (
        TypeError,
        AttributeError,
        ValueError,
        LookupError,
    ) as error:  # a value that `make` did not expect
        detail = " ".join(str(error).split())[:200]
        reason = f"not of the expected form ({detail}); compare it with the reader's description"
        return [Refused(where=where, reason=reason)]


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
    if isinstance(value, str) and blank(value):
        raise Unusable(f"{name}: empty; fill it in or remove the row")
    return value


def media(folder: Path | None, value: Any, kind: Literal["image", "video"]) -> File:
    """A file below `folder`, or one that the row brings along: bytes, `{"bytes", "path"}`, a data URL or base64.

    Raises:
        Unusable: it is missing, is none of these, or its name leads out of the folder.
    """
    named = value.get("path") if isinstance(value, dict) else value
    if data := _data((value.get("bytes") or named) if isinstance(value, dict) else value, folder):
        return File(kind=kind, data=data)
    if not isinstance(named, str) or not named:
        raise Unusable(
            f"{kind}: {reprlib.repr(named)}: neither bytes nor a file's name; add it or remove the row"
        )
    if re.match("https?://", named):
        raise Unusable(
            f"{reprlib.repr(named)}: an address on the web; download it and give its name below the folder"
        )
    if folder is None:
        raise Unusable(
            f"{reprlib.repr(named)}: the hub gives only this name; download the data set and set `path`"
        )
    return File(kind=kind, path=_below(folder, named))


def _data(value: Any, folder: Path | None) -> bytes | None:
    """The bytes that a value is, or stands for; None for a name."""
    if not isinstance(value, str):
        return value if isinstance(value, bytes) and value else None
    try:
        data = inline(value)
    except ValueError as error:
        raise Unusable(str(error)) from error
    is_name = (
        data and folder and len(value) < 256 and ":" not in value and (folder / value).is_file()
    )
    return None if is_name else data


def _below(folder: Path, name: str) -> Path:
    path, shown = folder / name, reprlib.repr(name) if len(name) > 200 else repr(name)
    try:
        inside, there = _inside(path, folder), path.is_file()
    except (OSError, RuntimeError) as error:  # a name of a thousand letters, a link to itself
        raise Unusable(
            f"{shown}: cannot be a file's name ({type(error).__name__}); correct it"
        ) from error
    if not inside:
        raise Unusable(f"{shown} leaves the source's folder; use a path below it")
    if not there:
        raise Unusable(f"{shown}: no such file below the source's folder; add it or remove the row")
    return path


def several(value: Any) -> list[Any]:
    """A field that holds one, a list, or nothing.

    >>> several("a.png"), several(None), several("")
    (['a.png'], [], [])
    """
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]
