"""`ixc show TABLE`: any of our Parquet tables for a person to read."""

import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FILTERS = ("id", "source", "domain", "modality", "split", "reason")
"""Columns to select by, where a table has them."""
MAX_WIDTH = 110
"""Characters of a line at most, for eyes rather than screens."""
_TEXTS = ("prompt", "chosen", "rejected")


class BadTable(ValueError):
    """A file that cannot be shown."""


def show(
    path: Path,
    *,
    limit: int | None = 10,
    put: Callable[[str], object] = print,
    **filters: str | None,
) -> int:
    """Print the rows of a table; returns how many.

    Args:
        path: any of the pipeline's Parquet files.
        limit: rows at most, the first ones; none: all.
        put: takes the lines.
        filters: what the columns of `FILTERS` must be.

    Raises:
        BadTable: it is no Parquet file, or has no column to filter by.
    """
    page = _Page(put)
    count = 0
    for row in islice(_rows(path, filters), limit):
        page.row(row)
        count += 1
    if not count:
        selected = ", ".join(
            f"{name} {value!r}" for name, value in filters.items() if value is not None
        )
        put(f"{path}: no row{f' with {selected}' if selected else ''}")
    return count


def _rows(path: Path, filters: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    """The rows that pass the filters, a batch at a time."""
    if not path.is_file():
        raise BadTable(f"{path}: no such file; run the stage that writes it")
    selected = {name: value for name, value in filters.items() if value is not None}
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if unknown := [name for name in selected if name not in names]:
                raise BadTable(
                    f"{path}: no column {unknown[0]!r} to filter by; it has {', '.join(names)}"
                )
            for batch in table.iter_batches(batch_size=256):
                yield from reduce(_only, selected.items(), batch).to_pylist()
    except pa.ArrowException as error:
        raise BadTable(
            f"{path}: not a Parquet file ({error}); run the stage that writes it again"
        ) from error


def _only(rows: pa.RecordBatch, selected: tuple[str, str]) -> pa.RecordBatch:
    name, value = selected
    return rows.filter(pc.field(name) == value)


class _Page:
    """Prints rows, wrapped to the width of the terminal."""

    def __init__(self, put: Callable[[str], object]) -> None:
        self._put = put
        self._width = min(shutil.get_terminal_size().columns, MAX_WIDTH)

    def row(self, row: Mapping[str, Any]) -> None:
        """One row: what it is in a line, then what was asked and answered."""
        head = [row[name] for name in FILTERS[:5] if row.get(name)]
        self._put(f"── {' · '.join(map(_clean, head))}")
        for name, value in row.items():
            if name in FILTERS[:5] or value in (None, "", [], "{}"):
                continue
            self._field(name, value)
        self._put("")

    def _field(self, name: str, value: Any) -> None:
        if name in _TEXTS:
            own = ("user", "assistant") if name == "prompt" else ("assistant",)
            for turn in value:
                self._text(name if turn["role"] in own else turn["role"], turn["content"])
        elif name == "candidates":
            for place, text in enumerate(value):
                self._text(f"candidate {place}", text)
        elif name == "media":
            self._text("media", ", ".join(f"{item['path']} ({item['kind']})" for item in value))
        elif name == "verdict":
            self._text("verdict", _verdict(value))
        elif isinstance(value, dict):
            self._text(name, ", ".join(f"{key}: {part}" for key, part in value.items() if part))
        elif isinstance(value, list):
            self._text(name, ", ".join(map(str, value)))
        else:
            self._text(name, str(value))

    def _text(self, name: str, text: str) -> None:
        """A text under its name, its own line breaks kept."""
        lead = f"{name:>10}  "
        width = max(self._width - len(lead), 20)
        lines = [
            part for line in _clean(text).split("\n") for part in textwrap.wrap(line, width) or [""]
        ]
        for place, line in enumerate(lines):
            self._put(((lead if place == 0 else " " * len(lead)) + line).rstrip())


def _clean(text: object) -> str:
    """Without control characters: a text must not command the terminal.

    >>> _clean("red\\x1b[31m")
    'red\\ufffd[31m'
    """
    return "".join(
        one if one.isprintable() or one == "\n" else "\t" if one == "\t" else "\ufffd"
        for one in str(text)
    )


def _verdict(verdict: Mapping[str, Any]) -> str:
    orders = f" (both orders: {', '.join(verdict['orders'])})" if verdict.get("orders") else ""
    cost = f", ${verdict['cost']:.4f}" if verdict.get("cost") else ""
    reason = f": {verdict['reason']}" if verdict.get("reason") else ""
    return f"{verdict['winner']}, by {verdict['judge']}{orders}{cost}{reason}"
