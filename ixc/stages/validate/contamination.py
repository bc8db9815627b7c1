"""What the model will be tested on, so that nothing of it is trained on.

Texts overlap if they share `n` consecutive words (GPT-3, arXiv:2005.14165, appendix C: 13); images, if they look
the same; videos, if they are the same file. Any layout will do: every text, image and video in a file counts.
"""

import base64
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.containers import VIDEO_SUFFIXES
from ixc.data.images import NotAnImage
from ixc.io.digests import file_sha256
from ixc.stages.validate.image_hash import ImageHash, ImageIndex, image_hash
from ixc.stages.validate.shingles import Words, ngrams

SHORTEST = 8
"""Words that a benchmark's text must have, if it has fewer than n, to be looked for as a whole (GPT-3: 8)."""
COMMON = 10
"""What occurs in more records than this is boilerplate, "choose one of the following", and no evidence (GPT-3: 10)."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""Tables with a header, and what separates their columns."""
TEXTS = (".jsonl", ".json", ".parquet", ".txt", *TABLES)
"""All but Parquet may be compressed, too: `.jsonl.gz`."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NOTES = ("README", "LICENSE")
"""Files about a benchmark begin so."""
_MAX_CELL = 1 << 30
"""Characters of a cell: images of VLMEvalKit have millions."""
_BITS = np.uint64((1 << 24) - 1)
_BASE64 = re.compile(
    r"(?<![\w.:/+-])(?:data:image/[\w.+-]+;base64,)?"
    r"((?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/]{60,}(?:\r?\n[A-Za-z0-9+/]+)*={0,2})"
)
"""An image as text, as VLMEvalKit has it: JPEG, PNG, GIF, WEBP or TIFF by its first bytes."""
_IMAGE_MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL)
"""How bytes of images begin."""


class Record(NamedTuple):
    """The texts and the images of a row."""

    texts: list[str]
    images: list[Path | bytes]
    """Bytes may also be a video, or anything else."""


class BadBenchmark(ValueError):
    """A benchmark that cannot be read: without it nobody knows what must not be trained on."""


class Benchmark(NamedTuple):
    """What was read of one path, for the page."""

    path: str
    texts: int
    images: int
    videos: int
    """And other bytes that are no image."""
    unread: tuple[str, ...] = ()
    """Files that nothing is compared with, for want of a way to read them."""


class Benchmarks:
    """All that must not be trained on, ready to be searched.

    Args:
        paths: files and folders, a benchmark each.
        n: words that a text shares with a benchmark if it overlaps.
        distance: bits of the image hash that may differ.

    Raises:
        BadBenchmark: one is missing, or something in it cannot be read, or it has no text, image or video.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        n: int,
        distance: int,
    ) -> None:
        self.n, self.distance = n, distance
        self.read: list[Benchmark] = []
        self._places: list[str] = []
        self._videos: dict[str, int] = {}
        self._lengths: set[int] = set()
        self._owners: list[int] = []
        grams: list[np.ndarray] = []
        hashes: list[ImageHash] = []
        for path in paths:
            self.read.append(self._add(path, grams, hashes))
        self._images = ImageIndex(hashes)
        self._grams, self._records = _distinct(grams)

        # A bit for each hash of a piece: ten times faster than to search for every piece.
        self._maybe = np.zeros(1 << 24, bool)
        self._maybe[self._grams & _BITS] = True

    def text_overlap(self, texts: Iterable[Words]) -> str:
        """Where in a benchmark the words of a text occur, and which; empty if they do not."""
        if not len(self._grams):
            return ""
        # Short texts of a benchmark are pieces of their own length.
        for text in texts:
            for n in sorted(self._lengths):
                if n > len(text.numbers):
                    continue
                hit = self._first(ngrams(text.numbers, n))
                if hit is not None:
                    start, record = hit
                    words = " ".join(text.spoken[start : start + n])
                    return f"{self._places[record]}: {words!r}"
        return ""

    def image_overlap(self, one: ImageHash) -> str:
        """Where a benchmark has an image that looks like this one; empty if it has none."""
        similar = self._images.similar(one, self.distance)
        return self._places[self._owners[similar[0]]] if similar else ""

    def video_overlap(self, digest: str) -> str:
        """Where a benchmark has the video of this SHA-256; empty if it has not."""
        return self._places[self._videos[digest]] if digest in self._videos else ""

    def _first(self, grams: np.ndarray) -> tuple[int, int] | None:
        """The place of the first known piece of a text, and the record that has it."""
        # What has no bit is in no benchmark; what has one may be.
        for place in np.flatnonzero(self._maybe[grams & _BITS]):
            at = np.searchsorted(self._grams, grams[place])
            if at < len(self._grams) and self._grams[at] == grams[place]:
                return int(place), int(self._records[at])
        return None

    def _add(
        self,
        path: Path,
        grams: list[np.ndarray],
        hashes: list[ImageHash],
    ) -> Benchmark:
        """Read what is below a path; an entry of `grams` for every record."""
        files, unread = _files(path)
        num_texts, images_before, videos_before = 0, len(hashes), len(self._videos)
        for file in files:
            for place, record in _records(file):
                # A record's number is how many came before it: the media refer to it.
                for image in record.images:
                    self._add_medium(image, place, hashes)
                self._places.append(place)
                pieces = [self._pieces(text) for text in record.texts]
                pieces = [piece for piece in pieces if len(piece)]
                num_texts += len(pieces)
                distinct = np.zeros(0, np.uint64)
                if pieces:
                    distinct = np.unique(np.concatenate(pieces))
                grams.append(distinct)

        # For the page: a path that was misread shows in its numbers.
        benchmark = Benchmark(
            path=path.as_posix(),
            texts=num_texts,
            images=len(hashes) - images_before,
            videos=len(self._videos) - videos_before,
            unread=unread,
        )
        if not (benchmark.texts or benchmark.images or benchmark.videos):
            nothing = f"no text of {min(SHORTEST, self.n)} words, no picture and no film is in it"
            remedy = f"name a {', '.join(TEXTS)} file or a folder with pictures"
            raise BadBenchmark(f"{_key(path)}: {nothing}; {remedy}")
        return benchmark

    def _add_medium(
        self,
        image: Path | bytes,
        place: str,
        hashes: list[ImageHash],
    ) -> None:
        """Note what an image looks like, and of videos and other bytes what they are."""
        record = len(self._places)
        if isinstance(image, Path) and image.suffix.lower() in VIDEO_SUFFIXES:
            self._videos.setdefault(file_sha256(image), record)
            return
        try:
            hashes.append(image_hash(image))
            self._owners.append(record)
        except Exception as error:  # decoders raise what they like
            # Bytes that do not even begin like an image may be a video, or anything else.
            is_other = isinstance(error, NotAnImage)
            if not is_other or isinstance(image, Path) or _IMAGE_MAGIC.match(image):
                remedy = "fetch it again, scale it down if it is too large, or remove it"
                raise BadBenchmark(
                    f"{_key(place)}: a picture that cannot be read ({error}); {remedy}"
                ) from error
            self._videos.setdefault(sha256(image).hexdigest(), record)

    def _pieces(self, text: str) -> np.ndarray:
        """The pieces of a text, by their numbers; none of a text that is too short to count."""
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
        raise BadBenchmark(f"{_key(place)}: no such file or folder; correct the path")
    if path.is_file():
        return [path]
    ignored = (".", *_NOTES)
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith(ignored))


def _distinct(grams: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All pieces in order, each with the first record that has it; not those that too many records have."""
    if not grams:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    sizes = [len(pieces) for pieces in grams]
    records = np.repeat(np.arange(len(grams)), sizes)
    pieces, first, counts = np.unique(
        np.concatenate(grams),
        return_index=True,
        return_counts=True,
    )
    # What many records share tells nothing about any of them.
    is_rare = counts <= COMMON
    return pieces[is_rare], records[first[is_rare]]


def _key(place: Path | str) -> str:
    """Where a benchmark is named in the parameters, for messages."""
    return f"params.yaml: validate.benchmarks: {place}"


def _kind(path: Path) -> str:
    """The suffix in small letters, without that of compression."""
    name = path.name.lower()
    for suffix in TEXTS:
        if suffix != ".parquet" and name.endswith(f"{suffix}.gz"):
            return suffix
    return path.suffix.lower()


def _files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """What is read of a benchmark, and what is not; of a folder neither notes about it nor hidden files."""
    if not path.is_dir():
        return [path], ()
    readable = (*TEXTS, *IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files, unread = [], []
    for file in sorted(path.rglob("*")):
        if not file.is_file() and not file.is_symlink():
            continue
        # Caches and version control, at any depth.
        if any(name.startswith(".") for name in file.relative_to(path).parts):
            continue
        if _kind(file) in readable:
            files.append(file)
        elif not file.name.startswith(_NOTES):
            unread.append(file.as_posix())
    return files, tuple(unread)


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
    """What a file holds, row by row: nested, with texts, images and other things in it."""
    kind = _kind(path)
    if kind in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        yield path
    elif kind == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    else:
        open_file = gzip.open if path.suffix.lower() == ".gz" else open
        with open_file(path, "rt", encoding="utf-8", newline="") as stream:
            yield from _rows_of(kind, stream)


def _rows_of(kind: str, stream: TextIOBase) -> Iterator[Any]:
    """The rows of an open text file of some kind."""
    match kind:
        case ".jsonl":
            for line in stream:
                if line.strip():
                    yield json.loads(line)
        case ".json":
            content = json.load(stream)
            yield from content if isinstance(content, list) else [content]
        case ".csv" | ".tsv":
            csv.field_size_limit(_MAX_CELL)
            yield from csv.DictReader(stream, delimiter=TABLES[kind])
        case _:
            yield from re.split(r"\r?\n\r?\n", stream.read())


def _collect(content: Any, record: Record) -> None:
    """Sort the leaves of a row into texts and images."""
    if isinstance(content, str):
        # An image inside a text must not count as words.
        record.texts.append(_BASE64.sub(" ", content))
        record.images.extend(map(_decoded, _BASE64.findall(content)))
    elif isinstance(content, bytes | Path) and content != b"":
        record.images.append(content)
    elif isinstance(content, list | dict):
        items = content.values() if isinstance(content, dict) else content
        for item in items:
            _collect(item, record)


def _decoded(image: str) -> bytes:
    """Bytes of an image in base64; what is missing at its end is for the image's decoder to notice."""
    letters = "".join(image.split()).rstrip("=")
    # One letter alone after groups of four is less than a byte.
    if len(letters) % 4 == 1:
        letters = letters[:-1]
    return base64.b64decode(letters + "===")
