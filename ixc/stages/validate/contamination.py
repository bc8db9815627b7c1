"""What the model will be tested on, so that nothing of it is trained on.

Texts overlap if they share `n` consecutive words (GPT-3, arXiv:2005.14165, appendix C: 13); pictures, if they look
the same; films, if they are the same file. Any layout will do: every text, picture and film in a file counts.
"""

import base64
import csv
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.containers import VIDEO_SUFFIXES
from ixc.data.images import NotAnImage
from ixc.stages.validate.image_hash import Look, Looks, look
from ixc.stages.validate.shingles import Words, ngrams

SHORTEST = 8
"""Words that a benchmark's text must have, if it has fewer than n, to be looked for as a whole (GPT-3: 8)."""
COMMON = 10
"""What occurs in more records than this is boilerplate, "choose one of the following", and no evidence (GPT-3: 10)."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""Tables with a header, and what separates their columns."""
TEXTS = (".jsonl", ".json", ".parquet", ".txt", *TABLES)
"""All but Parquet may be compressed, too: `.jsonl.gz`."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NOTES = ("README", "LICENSE")
"""Files about a benchmark begin so."""
_MAX_CELL = 1 << 30
"""Characters of a cell: pictures of VLMEvalKit have millions."""
_BITS = np.uint64((1 << 24) - 1)
_BASE64 = re.compile(
    r"(?<![\w.:/+-])(?:data:image/[\w.+-]+;base64,)?"
    r"((?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/]{60,}(?:\r?\n[A-Za-z0-9+/]+)*={0,2})"
)
"""A picture as text, as VLMEvalKit has it: JPEG, PNG, GIF, WEBP or TIFF by its first bytes."""
_BEGINS = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL)
"""How bytes of pictures begin."""


class Record(NamedTuple):
    """The texts and the pictures of a row."""

    texts: list[str]
    images: list[Path | bytes]
    """Bytes may also be a film, or anything else."""


class BadBenchmark(ValueError):
    """A benchmark that cannot be read: without it nobody knows what must not be trained on."""


class Benchmark(NamedTuple):
    """What was read of one path, for the page."""

    path: str
    texts: int
    images: int
    videos: int
    """And other bytes that are no picture."""
    unread: tuple[str, ...] = ()
    """Files that nothing is compared with, for want of a way to read them."""


class Benchmarks:
    """All that must not be trained on, ready to be searched.

    Args:
        paths: files and folders, a benchmark each.
        n: words that a text shares with a benchmark if it overlaps.
        distance: bits of the picture hash that may differ.

    Raises:
        BadBenchmark: one is missing, or something in it cannot be read, or it has no text, picture or film.
    """

    def __init__(self, paths: Sequence[Path], n: int, distance: int) -> None:
        self.n, self.distance = n, distance
        self.read: list[Benchmark] = []
        self._places: list[str] = []
        self._videos: dict[str, int] = {}
        self._lengths: set[int] = set()
        self._owners: list[int] = []
        grams: list[np.ndarray] = []
        looks: list[Look] = []
        for path in paths:
            self.read.append(self._add(path, grams, looks))
        self._grams, self._records = _distinct(grams)
        self._maybe = np.zeros(1 << 24, bool)  # ten times faster than to search for every piece
        self._maybe[self._grams & _BITS] = True
        self._looks = Looks(looks)

    def text_overlap(self, texts: Iterable[Words]) -> str:
        """Where in a benchmark the words of a text occur, and which; empty if they do not."""
        for text in texts if len(self._grams) else ():
            for n in sorted(self._lengths):
                if n <= len(text.numbers) and (hit := self._first(ngrams(text.numbers, n))):
                    return f"{self._places[hit[1]]}: {' '.join(text.spoken[hit[0] : hit[0] + n])!r}"
        return ""

    def image_overlap(self, one: Look) -> str:
        """Where a benchmark has a picture that looks like this one; empty if it has none."""
        found = self._looks.like(one, self.distance)
        return self._places[self._owners[found[0]]] if found else ""

    def video_overlap(self, sha256: str) -> str:
        """Where a benchmark has the film of this digest; empty if it has not."""
        return self._places[self._videos[sha256]] if sha256 in self._videos else ""

    def _first(self, grams: np.ndarray) -> tuple[int, int] | None:
        """The place of the first known piece of a text, and the record that has it."""
        for place in np.flatnonzero(self._maybe[grams & _BITS]):
            at = np.searchsorted(self._grams, grams[place])
            if at < len(self._grams) and self._grams[at] == grams[place]:
                return int(place), int(self._records[at])
        return None

    def _add(self, path: Path, grams: list[np.ndarray], looks: list[Look]) -> Benchmark:
        """Read what is below a path; an entry of `grams` for every record."""
        files, unread = _files(path)
        texts, images, videos = 0, len(looks), len(self._videos)
        for place, record in (item for file in files for item in _records(file)):
            pieces = [piece for text in record.texts if len(piece := self._pieces(text))]
            for image in record.images:
                self._see(image, place, looks)
            self._places.append(place)
            grams.append(np.unique(np.concatenate(pieces)) if pieces else np.zeros(0, np.uint64))
            texts += len(pieces)
        found = Benchmark(
            path.as_posix(), texts, len(looks) - images, len(self._videos) - videos, unread
        )
        if not any(found[1:4]):
            nothing = f"no text of {min(SHORTEST, self.n)} words, no picture and no film is in it"
            raise BadBenchmark(
                f"{_key(path)}: {nothing}; name a {', '.join(TEXTS)} file or a folder with pictures"
            )
        return found

    def _see(self, image: Path | bytes, place: str, looks: list[Look]) -> None:
        """Note what a picture looks like, and of films and other bytes what they are."""
        if isinstance(image, Path) and image.suffix.lower() in VIDEO_SUFFIXES:
            self._videos.setdefault(_digest(image), len(self._places))
            return
        try:
            looks.append(look(image))
            self._owners.append(len(self._places))
        except Exception as error:  # decoders raise what they like
            if not isinstance(error, NotAnImage) or isinstance(image, Path) or _BEGINS.match(image):
                remedy = "fetch it again, scale it down if it is too large, or remove it"
                raise BadBenchmark(
                    f"{_key(place)}: a picture that cannot be read ({error}); {remedy}"
                ) from error
            self._videos.setdefault(hashlib.sha256(image).hexdigest(), len(self._places))

    def _pieces(self, text: str) -> np.ndarray:
        numbers = Words.of(text).numbers
        if len(numbers) < min(SHORTEST, self.n):
            return numbers[:0]
        self._lengths.add(min(self.n, len(numbers)))
        return ngrams(numbers, self.n)


def entries(place: str | None) -> list[Path]:
    """The benchmarks at a place: the file, or what lies in the folder, but for hidden files and notes about it.

    Raises:
        BadBenchmark: there is no such place.
    """
    if place is None:
        return []
    path = Path(place)
    if not path.exists():
        raise BadBenchmark(
            f"params.yaml: validate.benchmarks: {place}: no such file or folder; correct the path"
        )
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith((".", *_NOTES)))


def _distinct(grams: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All pieces in order, each with the first record that has it; not those that too many records have."""
    if not grams:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    records = np.repeat(np.arange(len(grams)), [len(pieces) for pieces in grams])
    pieces, first, counts = np.unique(np.concatenate(grams), return_index=True, return_counts=True)
    telling = counts <= COMMON
    return pieces[telling], records[first[telling]]


def _key(place: Path | str) -> str:
    return f"params.yaml: validate.benchmarks: {place}"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _kind(path: Path) -> str:
    """The suffix in small letters, without that of compression."""
    name = path.name.lower()
    packed = next(
        (suffix for suffix in TEXTS if suffix != ".parquet" and name.endswith(f"{suffix}.gz")), None
    )
    return packed or path.suffix.lower()


def _files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """What is read of a benchmark, and what is not; of a folder neither notes about it nor hidden files."""
    if not path.is_dir():
        return [path], ()
    below = sorted(file for file in path.rglob("*") if file.is_file() or file.is_symlink())
    told = [
        file
        for file in below
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    files = [file for file in told if _kind(file) in (*TEXTS, *PICTURES, *VIDEO_SUFFIXES)]
    left = set(told) - set(files)
    return files, tuple(
        file.as_posix() for file in told if file in left and not file.name.startswith(_NOTES)
    )


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """Rows of a file, with their places.

    Raises:
        BadBenchmark: the file is missing or is not what its name says.
    """
    try:
        for row, content in enumerate(_rows(path), start=1):
            record = Record([], [])
            _collect(content, record)
            yield f"{path.as_posix()}:{row}", record
    except (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise BadBenchmark(
            f"{_key(path)}: cannot be read ({error}); correct the path, or fetch the benchmark"
        ) from error


def _rows(path: Path) -> Iterator[Any]:
    """What a file holds, row by row: nested, with texts, pictures and other things in it."""
    kind = _kind(path)
    if kind in (*PICTURES, *VIDEO_SUFFIXES):
        yield path
    elif kind == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    else:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(
            path, "rt", encoding="utf-8", newline=""
        ) as stream:
            yield from _rows_of(kind, stream)


def _rows_of(kind: str, stream: TextIOBase) -> Iterator[Any]:
    match kind:
        case ".jsonl":
            yield from (json.loads(line) for line in stream if line.strip())
        case ".json":
            content = json.load(stream)
            yield from content if isinstance(content, list) else [content]
        case ".csv" | ".tsv":
            csv.field_size_limit(_MAX_CELL)
            yield from csv.DictReader(stream, delimiter=TABLES[kind])
        case _:
            yield from re.split(r"\r?\n\r?\n", stream.read())


def _collect(content: Any, record: Record) -> None:
    """Sort the leaves of a row into texts and pictures."""
    if isinstance(content, str):
        record.texts.append(_BASE64.sub(" ", content))
        record.images.extend(map(_decoded, _BASE64.findall(content)))
    elif isinstance(content, bytes | Path) and content != b"":
        record.images.append(content)
    elif isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            _collect(part, record)


def _decoded(image: str) -> bytes:
    """Bytes of a picture in base64; what is missing at its end is for the picture's decoder to find."""
    letters = "".join(image.split()).rstrip("=")
    return base64.b64decode(letters[: len(letters) - (len(letters) % 4 == 1)] + "===")
