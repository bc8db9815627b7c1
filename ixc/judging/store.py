"""Verdicts are paid for: one JSON line each, on disk before the next is asked for, never asked for twice."""

import json
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Winner = Literal["first", "second", "tie"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Judgement:
    """What a judge said when it was shown two answers in one order."""

    key: str
    """SHA-256 of everything the judge was shown, in the order it was shown."""
    model: str
    winner: Winner
    reason: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """US dollars, re-asking included."""


_LINE = TypeAdapter(Judgement)


class VerdictStore:
    """One judge's judgements: a JSONL file that only grows, and its lines by key."""

    def __init__(self, folder: Path, model: str) -> None:
        """Open `<folder>/<model>.jsonl`; characters that file names cannot have become `-`.

        Raises:
            ValueError: a line that is not a judgement; a torn last line, left by a kill, is dropped instead.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}.jsonl"
        self._judgements = {judgement.key: judgement for judgement in self._recover()}

    def _recover(self) -> list[Judgement]:
        """The stored judgements; what follows the last line end is cut off: the next starts there."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return [self._decode(line, number) for number, line in enumerate(whole.splitlines(), 1)]

    def _decode(self, line: bytes, number: int) -> Judgement:
        try:
            return _LINE.validate_json(line)
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(map(str, detail["loc"])) or "line"
            raise ValueError(
                f"{self.path}:{number}: {where}: {detail['msg']}; remove the line, it is then asked for again"
            ) from error

    def __len__(self) -> int:
        return len(self._judgements)

    def get(self, key: str) -> Judgement | None:
        """The judgement under a key, if it was ever made."""
        return self._judgements.get(key)

    def add(self, judgement: Judgement) -> None:
        """Keep a judgement; it is on the disk when this returns."""
        line = json.dumps(_LINE.dump_python(judgement), ensure_ascii=False)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._judgements[judgement.key] = judgement
