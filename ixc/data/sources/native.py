"""From native files to rows: every reader hands `each` one function that turns a record into rows.

What is broken is refused with its place and a remedy, and the rest goes on.
"""

import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ixc.data.inline import inline
from ixc.data.sources import BadSource, File, Refused, Row
from ixc.data.sources.forms import Keyed, Record, as_record, document, lines, records
from ixc.data.sources.hub import Hub, stream
from ixc.data.sources.phrases import blank
from ixc.data.sources.splits import held_out

__all__ = [
    "Entry",
    "Locate",
    "Origin",
    "Record",
    "Unusable",
    "attempt",
    "document",
    "each",
    "find",
    "home",
    "lines",
    "locator",
    "matching",
    "media",
    "records",
    "several",
    "take",
    "texts",
]

T = TypeVar("T")
Origin = Path | Hub
Rows = Row | Iterable[Row]
"""What a record becomes: one row, several, or none."""
ReadRecords = Callable[[Path, str], Keyed]
"""(file, its name in refusals) -> its records, each with a key that is unique in the file."""
Unfold = Callable[[Record], Iterable[tuple[str, Any]]]
"""The records within a record, each with a key that is unique in it."""
Locate = Callable[[str], File]
"""The medium of a bare name, wherever it lies below the source's folder."""

FORMS = tuple(
    f"**/*{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow")
)
"""What `each` reads where a reader names no patterns."""
_METADATA_FILES = {"dataset_info.json", "dataset_infos.json", "state.json"}
"""What `datasets` writes beside its files."""


class Unusable(ValueError):
    """A record that yields no row, and why."""


class Entry(NamedTuple):
    """One record of a data set in whatever form, and where it is from."""

    record: Record
    file: str
    """Relative to the source's folder; on the hub, the name of the split."""
    key: str
    """Number of the line or row, from 1; of a JSON mapping, the key."""
    folder: Path | None
    """What the names of media are relative to; None on the hub, which brings them along."""

    @property
    def id(self) -> str:
        """File and key: unique, for records that have no id of their own."""
        name = self.file.removesuffix(".gz")
        stem = name.rpartition(".")[0] or self.file
        return f"{stem}/{self.key}"

    @property
    def where(self) -> str:
        """Its place, as refusals name it."""
        return f"{self.file}:{self.key}"

    def image(self, value: Any) -> File:
        """An image of the record, by its name below the folder or by itself; see `media`."""
        return media(self.folder, value, "image")


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
    files = matching(path, *patterns)
    if not files:
        raise BadSource(
            f"{path}: no file {' or '.join(patterns)}; set `path` to the data set's own folder"
        )
    return files


def matching(folder: Path, *patterns: str) -> list[Path]:
    """The data files below a folder that match, sorted; perhaps none.

    Raises:
        BadSource: one is a link out of the folder.
    """
    files: set[Path] = set()
    for pattern in patterns:
        files.update(file for file in folder.glob(pattern) if _is_data(file, folder))
    for file in sorted(files):
        if not _inside(file, folder):
            remedy = "copy the file, or set `path` to its folder"
            raise BadSource(f"{file}: a link that leaves the source's folder; {remedy}")
    return sorted(files)


def _is_data(file: Path, folder: Path) -> bool:
    names = file.relative_to(folder).parts
    is_hidden = any(name.startswith(".") for name in names)
    return file.is_file() and not is_hidden and file.name not in _METADATA_FILES


def _inside(path: Path, folder: Path) -> bool:
    """Whether a file is below a folder, links followed."""
    real_path = path.resolve()
    real_folder = folder.resolve()
    if real_path.is_relative_to(real_folder):
        return True
    # The hub's cache has what its snapshots link to in a folder beside them.
    for parent in real_folder.parents:
        if parent.name == "snapshots":
            return real_path.is_relative_to(parent.parent / "blobs")
    return False


def home(path: Path) -> Path:
    """The folder that a source's file names are relative to."""
    return path.parent if path.is_file() else path


# From records to rows


def each(
    origin: Origin,
    make: Callable[[Entry], Rows],
    *patterns: str,
    records: ReadRecords = records,
    unfold: Unfold | None = None,
) -> Iterator[Row | Refused]:
    """What `make` turns the records into: of the hub, or of every file that matches.

    Args:
        origin: the source's folder, one file of it, or the hub.
        make: the row or rows of a record; raises `Unusable` to refuse it.
        patterns: of the files, below the folder; none stands for `FORMS`.
        records: how a file is read: as a list or lines of records (`forms.records`), as a table or a mapping of
            records (`tables.records`), or as JSON lines whatever its name (`lines`).
        unfold: the records within each record, if it holds several.

    Raises:
        BadSource: no file matches, or the hub has no such data set.
    """
    for entry in _entries(origin, patterns or FORMS, records, unfold):
        if isinstance(entry, Refused):
            yield entry
        else:
            yield from _made(partial(make, entry), entry.where, entry.file)


def _entries(
    origin: Origin, patterns: Iterable[str], records: ReadRecords, unfold: Unfold | None
) -> Iterator[Entry | Refused]:
    folder = None if isinstance(origin, Hub) else home(origin)
    for file, keyed in _files(origin, patterns, records):
        for item in keyed:
            if isinstance(item, Refused):
                yield item
                continue
            key, value = item
            yield from _unfolded(Entry(value, file, str(key), folder), unfold)


def _files(
    origin: Origin, patterns: Iterable[str], records: ReadRecords
) -> Iterator[tuple[str, Keyed]]:
    """The files of a source by name, with the records of each; of the hub, its split."""
    if isinstance(origin, Hub):
        yield origin.split, enumerate(stream(origin), start=1)
        return
    for file in find(origin, *patterns):
        name = file.relative_to(home(origin)).as_posix()
        yield name, records(file, name)


def _unfolded(entry: Entry, unfold: Unfold | None) -> list[Entry | Refused]:
    """The records within a record, or itself."""
    if unfold is None or not isinstance(entry.record, dict):
        return [_checked(entry)]
    try:
        inner = list(unfold(entry.record))
    except Unusable as error:
        return [Refused(where=entry.where, reason=str(error))]
    entries = []
    for inner_key, value in inner:
        key = "/".join(filter(None, (entry.key, inner_key)))
        entries.append(_checked(entry._replace(record=value, key=key)))
    return entries


def _checked(entry: Entry) -> Entry | Refused:
    if isinstance(entry.record, dict):
        return entry
    kind = type(entry.record).__name__
    return Refused(where=entry.where, reason=f"{kind}, not an object; correct the row")


def attempt(
    make: Callable[[Record, int], Rows],
    record: Any,
    number: int,
    name: str,
) -> list[Row | Refused]:
    """The rows of one record that a reader found by itself: all of them, or one refusal.

    Args:
        name: of the file, below the source's folder. Where it says so, rows without a split of their own are held out.
    """
    where = f"{name}:{number}"
    checked = as_record(record, where, number)
    if isinstance(checked, Refused):
        return [checked]
    return _made(partial(make, record, number), where, name)


def _made(make: Callable[[], Rows], where: str, name: str) -> list[Row | Refused]:
    try:
        made = make()
        rows = [made] if isinstance(made, Row) else list(made)
    except Unusable as error:
        return [Refused(where=where, reason=str(error))]
    # What a value that `make` did not expect raises: one strange row must not end the reading.
    except (TypeError, AttributeError, ValueError, LookupError) as error:
        detail = " ".join(str(error).split())[:200]
        reason = f"not of the expected form ({detail}); compare it with the reader's description"
        return [Refused(where=where, reason=reason)]
    return [row if row.split else replace(row, split=held_out(name)) for row in rows]


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
    stripped = [str(value).strip() for value in values if isinstance(value, str | int | float)]
    if len(stripped) < len(values) or any(map(blank, stripped)):
        raise Unusable(
            f"{name}: {reprlib.repr(values)}: expected texts, none of them empty; correct it"
        )
    return stripped


def several(value: Any) -> list[Any]:
    """A field that holds one, a list, or nothing.

    >>> several("a.png"), several(None), several("")
    (['a.png'], [], [])
    """
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


# Media


def media(folder: Path | None, value: Any, kind: Literal["image", "video"]) -> File:
    """A file below `folder`, or one that the row brings along: bytes, `{"bytes", "path"}`, a data URL or base64.

    Raises:
        Unusable: it is missing, is none of these, or its name leads out of the folder.
    """
    name, content = value, value
    if isinstance(value, dict):
        name = value.get("path")
        content = value.get("bytes") or name
    if data := _data(content, folder):
        return File(kind=kind, data=data)

    if not isinstance(name, str) or not name:
        raise Unusable(
            f"{kind}: {reprlib.repr(name)}: neither bytes nor a file's name; add it or remove the row"
        )
    if re.match("https?://", name):
        raise Unusable(
            f"{reprlib.repr(name)}: an address on the web; download it and give its name below the folder"
        )
    if folder is None:
        raise Unusable(
            f"{reprlib.repr(name)}: the hub gives only this name; download the data set and set `path`"
        )
    return File(kind=kind, path=_below(folder, name))


def _data(value: Any, folder: Path | None) -> bytes | None:
    """The bytes that a value is, or stands for; None for a name."""
    if isinstance(value, bytes):
        return value or None
    if not isinstance(value, str):
        return None
    try:
        data = inline(value)
    except ValueError as error:
        raise Unusable(str(error)) from error
    # A short name may happen to be base64, too: the file decides.
    if data and folder and len(value) < 256 and ":" not in value and (folder / value).is_file():
        return None
    return data


def _below(folder: Path, name: str) -> Path:
    path = folder / name
    label = reprlib.repr(name) if len(name) > 200 else repr(name)
    try:
        is_inside = _inside(path, folder)
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name of a thousand letters, a link to itself
        raise Unusable(
            f"{label}: cannot be a file's name ({type(error).__name__}); correct it"
        ) from error
    if not is_inside:
        raise Unusable(f"{label} leaves the source's folder; use a path below it")
    if not is_file:
        raise Unusable(f"{label}: no such file below the source's folder; add it or remove the row")
    return path


def locator(folder: Path, kind: Literal["image", "video"], *suffixes: str) -> Locate:
    """A function that finds media by their bare names, in whatever folder below `folder` they were unpacked."""
    paths: dict[str, list[str]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in suffixes:
            paths[file.name].append(file.relative_to(folder).as_posix())

    def locate(name: str) -> File:
        candidates = paths.get(name, [name])
        if len(candidates) > 1:
            first, second = candidates[:2]
            raise Unusable(f"{name!r}: in two places, {first} and {second}; keep one")
        return media(folder, candidates[0], kind)

    return locate
