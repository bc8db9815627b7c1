"""Scoring tables of any size: streamed, in shards, by any number of processes, each row once and in its place.

A shard is so many rows of the table. The process that it falls to writes its scored rows into a file that appears
whole; a shard whose file is there is not scored again, whoever asks. When all are there, the first process joins them.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ixc import distributed
from ixc.batches import ahead, passes
from ixc.checkpoints import OtherRun, digest, digest_of
from ixc.features import LOADERS, Features
from ixc.files import remove_folder, replacing, track
from ixc.inference import rewards_of, scoring_tree
from ixc.media import BadMedia
from ixc.metrics import Metrics, non_finite
from ixc.model import IXCForRewardModel, Tree, collate
from ixc.model.processing import BadConversation
from ixc.samples import SCHEMA, BadRecord, Sample, read_samples, write_samples

ROWS_AT_ONCE = 64
"""Rows that are read while those before them are scored."""
NOT_SCORED = "not_scored"
"""The key in a row's `meta` that says why it has no rewards."""
T = TypeVar("T")


class Row(NamedTuple):
    """A sample as the model reads it, or why it cannot."""

    sample: Sample
    tree: Tree
    objection: str = ""

    def __len__(self) -> int:
        return len(self.tree)


def score_table(
    model: IXCForRewardModel,
    features: Features,
    source: Path,
    target: Path,
    *,
    model_name: str,
    shard_rows: int = 1024,
    pass_tokens: int = 16384,
) -> Metrics:
    """Write the table's samples, in order, with their `rewards`: of the candidates, else of chosen and rejected.

    A row that cannot be scored keeps its place, without rewards, and `meta` says why.

    Args:
        model_name: what shards of an earlier, killed call must have been scored by to be used.
        shard_rows: rows that a kill may cost.
        pass_tokens: tokens of a forward pass at most.

    Raises:
        OtherRun: there are shards of another table, model or size.
        BadRecord: the table or one of its rows is not what its schema says.
    """
    if source.resolve() == target.resolve():
        raise BadRecord(f"{target}: is what is to be read; name another file to write")
    sizes = {"shard_rows": shard_rows, "pass_tokens": pass_tokens}
    shards = Shards(target, source, {"model": model_name, **told(model, features), **sizes})
    todo = shards.todo()
    model.eval()
    for number, samples in enumerate(track(chunks(read_samples(source), shard_rows), "score", shards.count)):
        if number in todo:
            write_samples(scored(model, features, samples, pass_tokens), shards.path(number))
    return shards.joined() if distributed.rank() == 0 else {}


def told(model: IXCForRewardModel, features: Features) -> dict[str, str]:
    """What rewards depend on beside weights and rows."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.config._attn_implementation),
        "media_root": str(features.root.resolve()),
        "processor": digest(features.processor.options),
    }


class Shards:
    """The scored parts of one table, beside what they will become."""

    def __init__(self, target: Path, source: Path, about: dict[str, str | int]) -> None:
        try:
            self.rows = pq.ParquetFile(source).metadata.num_rows
        except pa.ArrowInvalid as error:
            raise BadRecord(f"{source}: not a Parquet file ({error}); name a table of samples") from error
        self.target, self.count = target, math.ceil(self.rows / int(about["shard_rows"]))
        self.folder = target.with_name(f".{target.name}.shards")
        self._agree({**about, "table": digest_of(source)})

    def _agree(self, about: dict[str, str | int]) -> None:
        written = self.folder / "about.json"
        known = json.loads(written.read_text()) if written.exists() else about
        keys = [key for key in about if known.get(key) != about[key]]
        if keys:
            changes = ", ".join(f"{key} was {known.get(key)!r}, is {about[key]!r}" for key in keys)
            raise OtherRun(f"{self.folder}: {changes}; set it back to go on, or delete the folder to start anew")
        if distributed.rank() == 0:
            if not written.exists():
                remove_folder(self.folder)  # nobody knows whose shards there may be
            with replacing(written) as part:
                part.write_text(json.dumps(about))

    def path(self, number: int) -> Path:
        """Where a shard is, once it is scored."""
        return self.folder / f"{number:06d}.parquet"

    def todo(self) -> set[int]:
        """This process's shards that are not there yet."""
        mine = range(distributed.rank(), self.count, distributed.world_size())
        with distributed.joined():
            distributed.gathered(None)  # the first process has removed what is of no use
            missing = {number for number in mine if not self.path(number).exists()}
            distributed.gathered(None)  # or the first process may join and tidy up before another has looked
        return missing

    def joined(self) -> Metrics:
        """Wait for the other processes' shards, and make one table of all; how many rows there are, and how many of
        them could not be scored."""
        while not all(self.path(number).exists() for number in range(self.count)):
            time.sleep(0.2)
        rows = missing = 0
        with replacing(self.target) as part, pq.ParquetWriter(part, SCHEMA) as writer:
            for number in range(self.count):
                table = pq.read_table(self.path(number))
                writer.write_table(table)
                rows += len(table)
                missing += sum(NOT_SCORED in json.loads(meta) for meta in table["meta"].to_pylist())
        assert rows == self.rows, f"{self.target}: {rows} rows of {self.rows}"
        remove_folder(self.folder)
        return {"rows": rows, NOT_SCORED: missing}


def scored(
    model: IXCForRewardModel, features: Features, samples: Sequence[Sample], pass_tokens: int
) -> Iterator[Sample]:
    """The samples with their rewards, or with the reason why there are none."""
    rows_read = ahead(samples, lambda sample: readable(features, sample, pass_tokens), ROWS_AT_ONCE, LOADERS)
    for rows in chunks(rows_read, ROWS_AT_ONCE):
        rewards = rewards_by_row(model, features, rows, pass_tokens)
        for i, row in enumerate(rows):
            numbers = rewards.get(i, ())
            objection = row.objection or non_finite(numbers)
            meta = {**row.sample.meta, NOT_SCORED: objection} if objection else row.sample.meta
            yield replace(row.sample, rewards=() if objection else numbers, meta=meta)


def readable(features: Features, sample: Sample, pass_tokens: int) -> Row:
    """A sample's tokens and pictures, or what speaks against it."""
    try:
        tree = scoring_tree(features, sample, answers_of(sample))
        if not (objection := objection_to(tree, pass_tokens)):
            features.load_ahead([sample])
            return Row(sample, tree)
    except (BadMedia, BadConversation) as error:
        objection = str(error)
    features.forget([sample])
    return Row(sample, Tree([], []), objection)


def objection_to(tree: Tree, pass_tokens: int) -> str:
    """Why a row cannot be scored, whatever its pictures show."""
    if not tree.branches:
        return "no answer: neither candidates nor chosen"
    form = f"{len(tree):,} tokens, more than {pass_tokens:,}; raise --pass-tokens"
    return form if len(tree) > pass_tokens else ""


def answers_of(sample: Sample) -> list[str]:
    """What is to be scored: the candidates, else chosen and rejected, as far as they are there."""
    if sample.candidates:
        return list(sample.candidates)
    return [turns[0].content for turns in (sample.chosen, sample.rejected) if turns]


@torch.no_grad()
def rewards_by_row(
    model: IXCForRewardModel, features: Features, rows: Sequence[Row], pass_tokens: int
) -> dict[int, tuple[float, ...]]:
    """Rewards of the rows that nothing speaks against, by their place."""
    found: dict[int, tuple[float, ...]] = {}
    sound = [i for i, row in enumerate(rows) if not row.objection]
    for batch in passes(sound, [len(row) for row in rows], pass_tokens):
        trees = collate([rows[i].tree for i in batch])
        rewards = rewards_of(model, features, [rows[i].sample for i in batch], trees)
        sizes = [len(rows[i].tree.branches) for i in batch]
        found |= {i: tuple(part.tolist()) for i, part in zip(batch, rewards.split(sizes), strict=True)}
    return found


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many items at a time.

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])
