"""Rows of texts that are written down as they are refused, with the reason; `collect` and `validate` do so."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.io.files import replacing


def write_quarantine(rows: Iterable[tuple[str, ...]], path: Path, schema: pa.Schema) -> None:
    """Rows of texts, in the order of the schema's columns."""
    with quarantining(path, schema) as refuse:
        for row in rows:
            refuse(row)


@contextmanager
def quarantining(path: Path, schema: pa.Schema) -> Iterator[Callable[[tuple[str, ...]], None]]:
    """A function that appends a row of texts, in the order of the schema's columns, to `path`."""
    group: list[dict[str, str]] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
        group.clear()

    def put(row: tuple[str, ...]) -> None:
        group.append(dict(zip(schema.names, map(printable, row), strict=True)))
        if len(group) == 4096:
            flush()

    with replacing(path) as part, pq.ParquetWriter(part, schema) as writer:
        yield put
        # What is left of the last row group.
        if group:
            flush()


def printable(text: str) -> str:
    """The text without half characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
