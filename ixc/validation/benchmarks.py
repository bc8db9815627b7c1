"""What the model will be tested on, so that nothing of it is trained on.

Texts overlap if they share `n` consecutive words (GPT-3, arXiv:2005.14165, appendix C: 13); pictures, if they look
the same. Any layout will do: every text and every picture in a file counts.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.validation.pictures import Look, Looks, look
from ixc.validation.texts import Words, ngrams

SHORTEST = 8
"""Words that a benchmark's text must have, if it has fewer than n, to be looked for as a whole (GPT-3: 8)."""
COMMON = 10
"""What occurs in more records than this is boilerplate, "choose one of the following", and no evidence (GPT-3: 10)."""
TEXTS, PICTURES = (".jsonl", ".json", ".parquet", ".txt"), (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif")
_BITS = np.uint64((1 << 24) - 1)


class Record(NamedTuple):
    """The texts and the pictures of a row."""

    texts: list[str]
    pictures: list[Path | bytes]


class BadBenchmark(ValueError):
    """A benchmark that cannot be read: without it nobody knows what must not be trained on."""


class Benchmark(NamedTuple):
    """What was read of one path, for the page."""

    path: str
    texts: int
    pictures: int


class Benchmarks:
    """All that must not be trained on, ready to be searched.

    Args:
        paths: files and folders, a benchmark each.
        n: words that a text shares with a benchmark if it overlaps.
        distance: bits of the picture hash that may differ.

    Raises:
        BadBenchmark: one is missing, cannot be read, or has neither a text nor a picture.
    """

    def __init__(self, paths: Sequence[Path], n: int, distance: int) -> None:
        self.n, self.distance = n, distance
        self.read: list[Benchmark] = []
        self._places: list[str] = []
        self._lengths: set[int] = set()
        self._owners: list[int] = []
        grams: list[np.ndarray] = []
        looks: list[Look] = []
        for path in paths:
            self.read.append(self._add(path, f"params.yaml: validate.benchmarks: {path}", grams, looks))
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

    def picture_overlap(self, one: Look) -> str:
        """Where a benchmark has a picture that looks like this one; empty if it has none."""
        found = self._looks.like(one, self.distance)
        return self._places[self._owners[found[0]]] if found else ""

    def _first(self, grams: np.ndarray) -> tuple[int, int] | None:
        """The place of the first known piece of a text, and the record that has it."""
        for place in np.flatnonzero(self._maybe[grams & _BITS]):
            at = np.searchsorted(self._grams, grams[place])
            if at < len(self._grams) and self._grams[at] == grams[place]:
                return int(place), int(self._records[at])
        return None

    def _add(self, path: Path, key: str, grams: list[np.ndarray], looks: list[Look]) -> Benchmark:
        """Read what is below a path; an entry of `grams` for every record."""
        texts = pictures = 0
        for place, record in _records(path, key):
            pieces = [piece for text in record.texts if len(piece := self._pieces(text))]
            seen = [one for picture in record.pictures if (one := _seen(picture)) is not None]
            self._owners += [len(self._places)] * len(seen)
            self._places.append(place)
            grams.append(np.unique(np.concatenate(pieces)) if pieces else np.zeros(0, np.uint64))
            looks += seen
            texts, pictures = texts + len(pieces), pictures + len(seen)
        if not texts and not pictures:
            nothing = f"no text of {min(SHORTEST, self.n)} words and no picture is in it"
            raise BadBenchmark(f"{key}: {nothing}; name a {', '.join(TEXTS)} file or a folder with pictures")
        return Benchmark(path.as_posix(), texts, pictures)

    def _pieces(self, text: str) -> np.ndarray:
        numbers = Words.of(text).numbers
        if len(numbers) < min(SHORTEST, self.n):
            return numbers[:0]
        self._lengths.add(min(self.n, len(numbers)))
        return ngrams(numbers, self.n)


def entries(place: str | None) -> list[Path]:
    """The benchmarks at a place: the file, or what lies in the folder, but for README and hidden files.

    Raises:
        BadBenchmark: there is no such place.
    """
    if place is None:
        return []
    path = Path(place)
    if not path.exists():
        raise BadBenchmark(f"params.yaml: validate.benchmarks: {place}: no such file or folder; correct the path")
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith((".", "README")))


def _distinct(grams: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All pieces in order, each with the first record that has it; not those that too many records have."""
    if not grams:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    records = np.repeat(np.arange(len(grams)), [len(pieces) for pieces in grams])
    pieces, first, counts = np.unique(np.concatenate(grams), return_index=True, return_counts=True)
    telling = counts <= COMMON
    return pieces[telling], records[first[telling]]


def _seen(picture: Path | bytes) -> Look | None:
    """What a picture looks like; None for bytes that are none."""
    try:
        return look(picture)
    except (OSError, ValueError):
        return None


def _records(path: Path, key: str) -> Iterator[tuple[str, Record]]:
    """Rows of a file, or of all files in a folder, with their places.

    Raises:
        BadBenchmark: a file is missing or is not what its name says.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in (*TEXTS, *PICTURES):
                yield from _records(file, key)
        return
    try:
        for row, content in enumerate(_rows(path), start=1):
            record = Record([], [])
            _collect(content, record)
            yield f"{path.as_posix()}:{row}", record
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadBenchmark(f"{key}: cannot be read ({error}); correct the path, or fetch the benchmark") from error


def _rows(path: Path) -> Iterator[Any]:
    """What a file holds, row by row: nested, with texts, pictures and other things in it."""
    match path.suffix.lower():
        case ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        case ".jsonl":
            with path.open(encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.strip())
        case ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            yield from content if isinstance(content, list) else [content]
        case suffix if suffix in PICTURES:
            yield path
        case _:
            yield from path.read_text(encoding="utf-8").split("\n\n")


def _collect(content: Any, record: Record) -> None:
    """Sort the leaves of a row into texts and pictures."""
    if isinstance(content, str):
        record.texts.append(content)
    elif isinstance(content, bytes | Path):
        record.pictures.append(content)
    elif isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            _collect(part, record)
