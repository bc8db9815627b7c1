"""Work that outlives a kill: JSON lines that are only ever appended to."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """A JSONL file; a line is on the disk when `append` returns, and a kill costs at most the line it tears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[bytes]:
        """The lines, oldest first; a torn last one is cut off, and the next starts in its place."""
        if not self.path.exists():
            return
        # Bytes of the lines that are whole.
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    os.truncate(self.path, whole)
                    return
                whole += len(line)
                yield line

    def append(self, record: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            # On the disk, not in a buffer: whatever a line is about was paid for.
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget everything: the work is done, or it is another's."""
        self.path.unlink(missing_ok=True)
