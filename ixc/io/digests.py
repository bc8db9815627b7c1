"""Short names for files and values: by them a run tells whether what an earlier one made of these is still good."""

import json
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any


class OtherRun(ValueError):
    """Work begun with other parameters, data or base model: what differs, and what to do."""


def digest(*values: Any) -> str:
    """A name for data classes, texts and bytes: 16 hexadecimal digits."""
    hashed = sha256()
    for value in values:
        hashed.update(repr(value).encode("utf-8", "surrogatepass") + b"\0")
    return hashed.hexdigest()[:16]


def json_sha256(value: Any) -> str:
    """SHA-256, in hexadecimal digits, of what JSON can hold: the key of a request."""
    return sha256(json.dumps(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256, in hexadecimal digits, of a file's bytes, all of them."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def digest_of(path: Path, ends: int = 2**20) -> str:
    """A name for a file, or for the files of a folder: by names, sizes and both ends, which is all of a small one."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    # Weights have gigabytes; another training changes their ends like the rest of them.
    hashed = sha256()
    for each in files:
        size = each.stat().st_size
        with each.open("rb") as file:
            hashed.update(f"{each.name} {size}".encode())
            hashed.update(file.read(ends))
            file.seek(max(0, size - ends))
            hashed.update(file.read(ends))
    return hashed.hexdigest()[:16]
