"""Chats in files: JSON lines, one JSON list, or Parquet. A row that cannot be read says why and costs no other."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.chats import ChatRecord, read_chat
from ixc.media import BadMedia
from ixc.model.prompts import BadConversation
from ixc.sources.forms import unrepeated

_BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
"""How a file of two bytes a character begins."""
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
    """What stands for a row that is no JSON."""

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
    first = _value(content.split(b"\n")[0])
    if isinstance(first, _Unread):
        return True  # over several lines, or broken
    chats = isinstance(first, list) and all(isinstance(chat, Mapping) for chat in first)
    return chats and bool(first) and not any(chat.keys() & {"role", "from"} for chat in first)


def _elements(content: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON list, as far as it can be read, and the line where each begins."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{name}: not UTF-8 (byte {error.start + 1}); convert it: iconv -t UTF-8") from error
    decode = json.JSONDecoder(object_pairs_hook=unrepeated).raw_decode
    place, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = place
        place = _SEPARATOR.match(text, place).end()  # pyright: ignore[reportOptionalMemberAccess]
        line += text.count("\n", start, place)
        where = f"{name}:{line}"
        if text[place : place + 1] == "]":
            if rest := text[place + 1 :].strip():
                yield where, _Unread(f"not JSON: behind the list's end stands {rest:.40}; one list a file")
            return
        try:
            value, end = decode(text, place)
        except (ValueError, RecursionError) as error:
            yield where, _Unread(f"not JSON ({error}); nothing behind it is read")
            return
        yield where, value
        line += text.count("\n", place, end)
        place = end


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
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path, base: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise BadFile(f"{path}: damaged Parquet ({error}); fetch it again") from error
    if set(file.schema_arrow.names) >= _SAMPLE:
        raise BadFile(f"{path}: a table of the pipeline's samples, not of chats; give it as --in, with --out")
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
