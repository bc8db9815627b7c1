"""Short names for files and values: by them a run tells whether what an earlier one made of these is still good."""

from hashlib import sha256
from pathlib import Path
from typing import Any


class OtherRun(ValueError):
    """Work begun with other parameters, data or base model: what differs, and what to do."""


def digest(*parts: Any) -> str:
    """A name for data classes, texts and bytes."""
    hashed = sha256()
    for part in parts:
        hashed.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
    return hashed.hexdigest()[:16]


def digest_of(path: Path, ends: int = 2**20) -> str:
    """A name for a file, or for the files of a folder: by names, sizes and both ends, which is all of a small one."""
    hashed = sha256()
    for each in (
        sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    ):
        with each.open("rb") as file:
            hashed.update(f"{each.name} {each.stat().st_size}".encode() + file.read(ends))
            file.seek(max(0, each.stat().st_size - ends))
            hashed.update(file.read(ends))
    return hashed.hexdigest()[:16]
