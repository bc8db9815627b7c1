"""Rewards in files, one per shard of rows: what a killed call has scored is not scored again."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.engine import distributed
from ixc.io.digests import OtherRun
from ixc.io.files import remove_folder, replacing

KEY_BYTES = 16
_SCHEMA = pa.schema(
    {
        "rewards": pa.list_(pa.float64()),
        "keys": pa.list_(pa.binary(KEY_BYTES)),
        "reason": pa.string(),
    }
)


class Scored(NamedTuple):
    """What became of a row."""

    rewards: list[float]
    keys: list[bytes]
    """A name for all that each reward depends on."""
    reason: str
    """Why there are no rewards; empty: there are."""


class Scores:
    """The rewards of all rows, or why there are none; in memory, 16 bytes a row and 8 a reward."""

    def __init__(self, counts: np.ndarray, rewards: np.ndarray, reasons: dict[int, str]) -> None:
        self.ends = np.cumsum(counts)
        self.starts = self.ends - counts
        self.rewards = rewards
        self.reasons = reasons
        """Of the rows that could not be scored, by number."""

    def of(self, row: int) -> list[float]:
        """A row's rewards, none where there is a reason."""
        return self.rewards[self.starts[row] : self.ends[row]].tolist()


class Shards:
    """The scored parts of one table, in a folder beside what they will become."""

    def __init__(
        self,
        target: Path,
        parts: Sequence[int],
        size: int,
        about: Mapping[str, str | int | float],
        others: Literal["refuse", "remove"] = "refuse",
    ) -> None:
        """All processes must make one before one of them is asked.

        Args:
            target: what the shards will become.
            parts: rows of each part of the table; no shard has rows of two, so that one changes no other's batches.
            size: rows of a shard.
            about: what shards of an earlier, killed call must agree in to be used.
            others: what becomes of those that do not.
        """
        self.rows, self.size = sum(parts), size
        self.count = sum(math.ceil(rows / size) for rows in parts)
        self.folder = target.with_name(f".{target.name}.shards")
        self.about = {**about, "shard_rows": size, "rows": list(parts)}
        self.others = others

    def path(self, number: int) -> Path:
        """Where a shard is, once it is scored."""
        return self.folder / f"{number:06d}.parquet"

    def todo(self) -> set[int]:
        """This process's shards that are not there yet; asked by all processes together.

        Raises:
            OtherRun: there are shards of another table, model or size.
        """
        mine = range(distributed.rank(), self.count, distributed.world_size())
        with distributed.joined():
            # the first process looks and tidies up; the others hear what it found
            objection = distributed.gathered(self._objection() if distributed.rank() == 0 else "")[
                0
            ]
            if objection:
                raise OtherRun(objection)
            missing = {number for number in mine if not self.path(number).exists()}
            distributed.gathered(
                None
            )  # or the first process may join and tidy up before another has looked
        return missing

    def _objection(self) -> str:
        """Why the shards that are there must not be used; empty after those of no use were removed."""
        written = self.folder / "about.json"
        known = json.loads(written.read_text()) if written.exists() else self.about
        keys = [key for key in self.about if known.get(key) != self.about[key]]
        if keys and self.others == "refuse":
            changes = ", ".join(
                f"{key} was {known.get(key)!r}, is {self.about[key]!r}" for key in keys
            )
            return f"{self.folder}: {changes}; set it back to go on, or delete the folder to start anew"
        if keys or not written.exists():
            remove_folder(self.folder)  # another's, or nobody knows whose
        with replacing(written) as part:
            part.write_text(json.dumps(self.about))
        return ""

    def write(self, number: int, rows: Iterable[Scored]) -> None:
        """Keep what became of a shard's rows."""
        table = pa.Table.from_pylist([row._asdict() for row in rows], schema=_SCHEMA)
        with replacing(self.path(number)) as part:
            pq.write_table(table, part)

    def joined(self) -> Scores:
        """Wait for the other processes' shards, and put all together; equal answers get equal rewards.

        The same answer scored in two shards differs in its last digits, for it was read in another batch: the first
        one's reward is taken for both.
        """
        while not all(self.path(number).exists() for number in range(self.count)):
            time.sleep(0.2)
        counts, rewards, keys, reasons, done = [np.zeros(0, np.int64)], [np.zeros(0)], [b""], {}, 0
        for number in range(self.count):
            table = pq.read_table(self.path(number)).combine_chunks()
            counts.append(table["rewards"].combine_chunks().value_lengths().to_numpy())
            rewards.append(table["rewards"].combine_chunks().flatten().to_numpy())
            keys.append(b"".join(table["keys"].combine_chunks().flatten().to_pylist()))
            numbered = enumerate(table["reason"].to_pylist(), done)
            reasons |= {row: reason for row, reason in numbered if reason}
            done += len(table)
        lengths, values = np.concatenate(counts), np.concatenate(rewards)
        assert len(lengths) == self.rows, f"{self.folder}: {len(lengths)} rows of {self.rows}"
        names = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
        _, first, same = np.unique(names, return_index=True, return_inverse=True)
        return Scores(lengths, values[first][same], reasons)

    def remove(self) -> None:
        """All is written: the shards are of no use any more."""
        remove_folder(self.folder)
