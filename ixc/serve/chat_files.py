"""Chats in files: JSON lines, one JSON list, or Parquet. A row that cannot be read says why and costs no other."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.media import BadMedia
from ixc.data.sources.forms import RepeatedKey, unrepeated
from ixc.models.base import BadConversation
from ixc.serve.chats import ChatRecord, read_chat

_BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
"""How a file of two bytes a character begins."""
_GZIP = b"\x1f\x8b"
_SEPARATOR = re.compile(r"[\s,]*")
_SAMPLE = {"prompt", "chosen", "candidates", "modality"}
"""Columns that a table of the pipeline has and no table of chats."""


class BadFile(ValueError):
    """A file of chats that cannot be read at all: which, why, and what to do."""


class Row(NamedTuple):
    """A chat of a file, or why it is none."""

    where: str
    """File and line, or row from 1."""
    chat: ChatRecord | None
    reason: str = ""


def read_rows(path: str, root: Path | None = None) -> Iterator[Row]:
    """The chats of a file in order; blank lines are none.

    Args:
        path: JSON lines, one JSON list, or Parquet (by its first bytes); `-`: standard input, no Parquet.
        root: where relative paths of images and videos start; none: the file's own folder.

    Raises:
        BadFile: nothing of it can be read.
        OSError: there is no such file.
    """
    if path != "-" and _is_parquet(Path(path)):
        yield from _parquet(Path(path), root or Path(path).parent)
        return
    base = root or (None if path == "-" else Path(path).parent)
    for where, given in _json(_content(path), path):
        yield _row(where, given, base)


def _row(where: str, given: Any, base: Path | None) -> Row:
    if isinstance(given, _Unread):
        return Row(where, None, given.reason)
    try:
        return Row(where, read_chat(given, base=base))
    except (BadConversation, BadMedia) as error:
        return Row(where, None, str(error))
    except RecursionError:
        return Row(where, None, "nested too deep; write it plainly")


class _Unread(NamedTuple):
    """What stands for a row that is no JSON, or for an object in it that would lose something."""

    reason: str


# JSON


def _content(path: str) -> bytes:
    if path != "-":
        return Path(path).read_bytes()
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode("utf-8", "surrogatepass") if binary is None else binary.read()


def _json(content: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """Where each value stands, and the value."""
    if content.startswith(_WIDE):
        raise BadFile(f"{name}: UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    if content.startswith(_GZIP):
        raise BadFile(f"{name}: compressed; unpack it: gunzip -c FILE | ixc ... -")
    content = content.removeprefix(_BOM)
    if _is_one_list(content):
        yield from _elements(content, name)
        return
    # only at \n: in JSON's strings U+2028, U+0085 and others may stand, which `splitlines` takes for line ends
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield f"{name}:{number}", _value(line)


def _is_one_list(content: bytes) -> bool:
    """Whether a file is a list of chats, and not a line for each, which may be a list of messages."""
    content = content.lstrip()
    if not content.startswith(b"["):
        return False
    first, *others = content.split(b"\n")
    value = _value(first)
    if not isinstance(value, _Unread):
        return bool(value) and not _is_messages(value)
    # a list over several lines, or a line that is broken: then the next one is a chat
    following = next((line for line in others if line.strip()), b"")
    return first.strip() == b"[" or not _is_messages(_value(following))


def _is_messages(value: Any) -> bool:
    """Whether a list is one chat, not several."""
    messages = value if isinstance(value, list) else []
    return any(isinstance(one, Mapping) and one.keys() & {"role", "from"} for one in messages)


def _elements(content: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON list, and the line where each begins; those behind a broken one as far as lines tell."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{name}: not UTF-8 (byte {error.start + 1}); convert it: iconv -t UTF-8"
        ) from error
    place, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = place
        place = _SEPARATOR.match(text, place).end()  # pyright: ignore[reportOptionalMemberAccess]
        line += text.count("\n", start, place)
        where = f"{name}:{line}"
        if text[place : place + 1] == "]":
            if rest := text[place + 1 :].strip():
                yield (
                    where,
                    _Unread(f"not JSON: behind the list's end stands {rest:.40}; one list a file"),
                )
            return
        try:
            value, end = _element(text, place)
        except (ValueError, RecursionError) as error:
            following = _next_alike(text, place)
            lost = "" if following else "; nothing behind it is read"
            yield where, _Unread(f"not JSON ({error}){lost}")
            if following is None:
                return
            end = following
        else:
            yield where, value
        line += text.count("\n", place, end)
        place = end


def _element(text: str, place: int) -> tuple[Any, int]:
    """The value that begins at a place, or why it is none, and its end.

    Raises:
        ValueError, RecursionError: nobody knows where it ends.
    """
    try:
        return json.JSONDecoder(object_pairs_hook=unrepeated).raw_decode(text, place)
    except RepeatedKey as error:
        _, end = json.JSONDecoder().raw_decode(text, place)
        return _Unread(f"not JSON ({error})"), end


def _next_alike(text: str, place: int) -> int | None:
    """Where the next line begins an object or list as far from the margin as the one at this place."""
    margin = text[text.rfind("\n", 0, place) + 1 : place]
    match = (
        re.compile(rf"\n{re.escape(margin)}(?=[{{\[])").search(text, place)
        if not margin.strip()
        else None
    )
    return match.end() if match else None


def _value(text: bytes) -> Any:
    """The value of JSON text, or why it is none."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unrepeated)
    except UnicodeDecodeError as error:
        return _Unread(f"not UTF-8 (byte {error.start + 1}); convert it: iconv -t UTF-8")
    except (ValueError, RecursionError) as error:
        return _Unread(f"not JSON ({error}); one chat a line")


# Parquet


def holds_chats(path: Path) -> bool:
    """Whether a file is Parquet with the columns of chats, not of the pipeline's samples."""
    if not path.is_file() or not _is_parquet(path):
        return False
    try:
        names = set(pq.read_schema(path).names)
    except pa.ArrowException:
        return False
    return bool(names & {"messages", "conversations", "conversation", "completion"})


def _is_parquet(path: Path) -> bool:
    """What comes through a pipe is none: it can be read only once."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path, base: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise BadFile(f"{path}: damaged Parquet ({error}); fetch it again") from error
    if set(file.schema_arrow.names) >= _SAMPLE:
        raise BadFile(
            f"{path}: a table of the pipeline's samples, not of chats; give it as --in, with --out"
        )
    number = 0
    try:
        for batch in file.iter_batches(batch_size=256):
            for given in batch.to_pylist():
                number += 1
                yield _row(f"{path}: row {number}", given, base)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        detail = " ".join(str(error).split())[:200]
        lost = f"damaged ({detail}); {file.metadata.num_rows - number:,} rows from here on are lost: fetch it again"
        yield Row(f"{path}: row {number + 1}", None, lost)
