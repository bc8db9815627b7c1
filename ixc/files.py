"""Outputs that are whole or absent, and progress that can be seen."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes `path`'s place only if nothing went wrong: no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder: it starts empty and replaces `path` whole."""
    part, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
    finally:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """`items` with a progress bar, the first process's; in a log file, a line every few seconds."""
    silent = os.environ.get("RANK", "0") != "0"
    return tqdm(items, desc=what, total=total, mininterval=0.1 if sys.stderr.isatty() else 5.0, disable=silent)
