"""Outputs that are whole or absent, and progress that can be seen."""

import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to that takes `path`'s place only if nothing went wrong: no reader sees half a file.

    `durable`: nor does one after a power failure; the disk is waited for, some milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if durable:
            _to_disk(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder: it starts empty and replaces `path` whole."""
    part = path.with_name(f".{path.name}.part")
    sweep(path)
    part.mkdir(parents=True)
    try:
        yield part
        share_files(part)
        for file in part.rglob("*"):
            if file.is_file():
                _to_disk(file)
        # A folder cannot replace one that is not empty: for a moment there is none.
        with suppress(FileNotFoundError):
            os.replace(path, _old(path))
        os.replace(part, path)
    finally:
        sweep(path)


def share_files(folder: Path, pattern: str = "*") -> None:
    """Let whoever may read a folder read what was just written into it; safetensors writes for its own user only."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob(pattern):
        if file.is_file() and stat.S_IMODE(file.stat().st_mode) == 0o600:
            file.chmod(mode)


def remove_folder(path: Path) -> None:
    """Delete a folder, which is whole or gone at any time; killed meanwhile, it leaves something for `sweep`."""
    sweep(path)
    with suppress(FileNotFoundError):
        os.replace(path, _old(path))
    sweep(path)


def sweep(path: Path) -> None:
    """Delete what a killed `replacing_folder` or `remove_folder` of `path` has left beside it."""
    for leftover in (path.with_name(f".{path.name}.part"), _old(path)):
        shutil.rmtree(leftover, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """`items` with a progress bar, the first process's; in a log file, a line every few seconds."""
    # In a log file ten lines a second would bury everything else.
    silent = os.environ.get("RANK", "0") != "0"
    return tqdm(
        items,
        desc=what,
        total=total,
        mininterval=0.1 if sys.stderr.isatty() else 5.0,
        disable=silent,
    )


@contextmanager
def damage(what: str, become: type[ValueError]) -> Iterator[None]:
    """Arrow's errors about a file's bytes become ours; those of the machine, which have a number, stay."""
    # A fifth of a second, which a score of one chat need not spend.
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise become(f"{what} ({error}); run the stage that writes it again") from error
