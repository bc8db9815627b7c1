"""The one record that travels the whole way, and its Parquet form.

`prompt`, `chosen` and `rejected` are turns as TRL has them. The images and videos are not in the file: `media` names
them in the store, and `<ImageHere>` marks their places, which no other trainer looks for. `ixc export` writes pairs
with their media as TRL, LLaMA-Factory and ms-swift read them.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ixc.io.files import damage, replacing

STRICT = ConfigDict(extra="forbid")

Domain = Literal["instruction", "general", "text_rich", "reasoning", "video", "safety"]
Modality = Literal["text", "image", "video"]
Role = Literal["corpus", "prompts", "pairs"]
"""What a sample is for: an answer to be cleaned, a question to be answered, two answers to learn from."""
Check = Literal["match", "number", "choice", "chart", "vqa", "constraints", "open"]

PLACEHOLDER = "<ImageHere>"
"""Where in a prompt an image or video belongs."""


class BadRecord(ValueError):
    """A stored record that is not what its schema says: file, row and field in one breath."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Media:
    """An image or a video in the content-addressed store."""

    kind: Literal["image", "video"]
    path: str
    """Relative to `data/media/`: two hex digits, a slash, the digest and the suffix."""
    sha256: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Gold:
    """What is known to be right, and how an answer is checked against it."""

    check: Check
    """`match`: `value` occurs as words, and none of `others` does · `number`: equal as mathematics ·
    `choice`: the same option, by letter, or by text where `value` has it (`B. a fish`; `others` likewise) ·
    `chart`: a number within 5 %, or the same words · `vqa`: what people answered, JSON `["red", ...]` ·
    `constraints`: IFEval instructions, JSON `[{"id", "kwargs"}]` · `open`: only a judge can tell."""
    value: str
    answer: str = ""
    """A reference answer in full words: what SFT learns; empty when the source has none."""
    others: tuple[str, ...] = ()
    """Values that would contradict `value`: an answer that names one of them is wrong (`match`)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Verdict:
    """Who decided that `chosen` is better, and on what ground."""

    winner: Literal["chosen", "rejected", "tie"]
    judge: str
    """`verifier/<check>`, `source` for a ready pair, or the judge model's name."""
    orders: tuple[str, ...] = ()
    """A model's verdicts with chosen shown first, then second: judges favour a position."""
    reason: str = ""
    cost: float = 0.0
    """Paid for this verdict, US dollars."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sample:
    """A prompt, and what the stages so far have added to it."""

    id: str
    prompt_id: str = ""
    """Id of the prompt that the answers belong to; empty: the row is itself a prompt, or its source pairs no prompts.
    Ids carry no meaning: what an id looks like says nothing about the prompt."""
    source: str
    domain: Domain
    modality: Modality
    split: Literal["train", "val"] = "train"
    """`val` prompts and their media are held out from every training stage."""
    prompt: tuple[Turn, ...]
    """The conversation up to the answer, oldest turn first; `PLACEHOLDER` marks where an image belongs."""
    media: tuple[Media, ...] = ()
    """Images and videos in the order the prompt mentions them."""
    gold: Gold | None = None
    candidates: tuple[str, ...] = ()
    """Sampled answers (`generate`)."""
    chosen: tuple[Turn, ...] = ()
    """The better answer (`judge`, or a ready pair)."""
    rejected: tuple[Turn, ...] = ()
    verdict: Verdict | None = None
    rewards: tuple[float, ...] = ()
    """Rewards, in the order of `candidates`, or of (chosen, rejected)."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """What only one source or stage knows; JSON. `meta.columns`: what else stood in the source's row."""

    @property
    def role(self) -> Role:
        """What it is for, by the answers that it has."""
        return "pairs" if self.rejected else "corpus" if self.chosen else "prompts"


def answer(text: str) -> tuple[Turn, ...]:
    """An assistant's answer in TRL's form.

    >>> answer("Yes.")[0].content
    'Yes.'
    """
    return (Turn(role="assistant", content=text),)


def user_message(text: str) -> tuple[Turn, ...]:
    """A prompt of one message, the user's.

    >>> user_message("Why?")[0].role
    'user'
    """
    return (Turn(role="user", content=text),)


Reply = str | tuple[Turn, ...]
"""An answer to be scored: its text, or its turns, of which the first and the last are the assistant's."""


def objection_to_turns(turns: Sequence[Turn]) -> str:
    """Why turns are no answer that can be scored; empty if they are one.

    >>> objection_to_turns(answer("Yes."))
    ''
    >>> objection_to_turns((Turn(role="user", content="Why?"), *answer("It is red.")))
    'turns of user, assistant: an answer begins and ends with the assistant; move what comes before into the prompt'
    """
    if not turns:
        return "no answer; add it, or remove the row"
    if turns[0].role != "assistant" or turns[-1].role != "assistant":
        roles = ", ".join(turn.role for turn in turns)
        begins_wrong = turns[0].role != "assistant"
        remedy = (
            "move what comes before into the prompt" if begins_wrong else "remove what follows it"
        )
        return f"turns of {roles}: an answer begins and ends with the assistant; {remedy}"
    if any(PLACEHOLDER in turn.content for turn in turns if turn.role != "assistant"):
        return f"{PLACEHOLDER} in a turn after the first: media belong to the prompt; remove it, or the row"
    return ""


_TURNS = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt_id": pa.string(),
        "source": pa.string(),
        "domain": pa.string(),
        "modality": pa.string(),
        "split": pa.string(),
        "prompt": _TURNS,
        "media": pa.list_(
            pa.struct({"kind": pa.string(), "path": pa.string(), "sha256": pa.string()})
        ),
        "gold": pa.struct(
            {
                "check": pa.string(),
                "value": pa.string(),
                "answer": pa.string(),
                "others": pa.list_(pa.string()),
            }
        ),
        "candidates": pa.list_(pa.string()),
        "chosen": _TURNS,
        "rejected": _TURNS,
        "verdict": pa.struct(
            {
                "winner": pa.string(),
                "judge": pa.string(),
                "orders": pa.list_(pa.string()),
                "reason": pa.string(),
                "cost": pa.float64(),
            }
        ),
        "rewards": pa.list_(pa.float64()),
        "meta": pa.string(),
    }
)
_SAMPLE = TypeAdapter(Sample)
_NAMES = [field.name for field in fields(Sample)]
_OPTIONAL = frozenset({"prompt_id"})
"""Columns that tables of earlier versions, or a user's own, may lack: they read as empty."""


def read_samples(path: Path, group: int | None = None) -> Iterator[Sample]:
    """Stream the samples of a Parquet file, or of one of its row groups.

    Raises:
        BadRecord: a row or a column is not what the schema says.
    """
    for first, batch in read_batches(path, group):
        yield from decoded(batch, path, first)


def read_each(path: Path) -> Iterator[Sample | BadRecord]:
    """Stream the rows of a Parquet file; in the place of one that is no sample stands why.

    Raises:
        BadRecord: it is no Parquet file, or lacks a column.
    """
    for first, batch in read_batches(path):
        try:
            records = batch.to_pylist()
        except (UnicodeDecodeError, pa.ArrowInvalid):
            # Row by row: only the one that cannot be decoded is lost.
            for number in range(len(batch)):
                yield _record_or_reason(batch.slice(number, 1), path, first + number)
            continue
        for row, record in enumerate(records, first):
            try:
                yield _decode(record, path, row)
            except BadRecord as error:
                yield error


def _record_or_reason(row: pa.RecordBatch, path: Path, number: int) -> Sample | BadRecord:
    try:
        return next(decoded(row, path, number))
    except BadRecord as error:
        return error


def read_pairs(path: Path) -> list[Sample]:
    """The pairs of a Parquet file; both answers of each can be scored, whole, however many turns they have.

    Raises:
        BadRecord: one has an answer that cannot, or is not what the schema says.
    """
    samples = list(read_samples(path))
    for row, sample in enumerate(samples):
        for name, turns in (("chosen", sample.chosen), ("rejected", sample.rejected)):
            if objection := objection_to_turns(turns):
                raise BadRecord(f"{path}: row {row} ({sample.id}): {name}: {objection}")
    return samples


def decoded(batch: pa.RecordBatch, path: Path, first: int = 0) -> Iterator[Sample]:
    """The samples of a batch of rows; `path` and `first`, the number of its first row, are for errors.

    Raises:
        BadRecord: a row is not what the schema says.
    """
    try:
        records = batch.to_pylist()
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        rows = f"row {first}" if len(batch) == 1 else f"rows {first} to {first + len(batch) - 1}"
        raise BadRecord(f"{path}: {rows}: {error}; write them again as UTF-8") from error
    for row, record in enumerate(records, first):
        yield _decode(record, path, row)


def read_batches(path: Path, group: int | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Stream the same rows undecoded, each batch with the number of its first row.

    Raises:
        BadRecord: it is no Parquet file, a damaged one, or lacks a column.
    """
    file = open_table(path)
    row = sum(file.metadata.row_group(i).num_rows for i in range(group or 0))
    groups = range(file.num_row_groups) if group is None else [group]
    names = [name for name in _NAMES if name in file.schema_arrow.names]
    batches = file.iter_batches(batch_size=4096, row_groups=groups, columns=names)
    while True:
        with damage(f"{path}: cannot be read from row {row:,} on", BadRecord):
            batch = next(batches, None)
        if batch is None:
            return
        yield row, _completed(batch)
        row += batch.num_rows


def _completed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with the columns that their table may lack."""
    for name in _OPTIONAL.difference(batch.schema.names):
        empty = pa.array([""] * len(batch))
        batch = batch.append_column(SCHEMA.field(name), empty)
    return batch


def open_table(path: Path) -> pq.ParquetFile:
    """A table of samples, to ask for its size.

    Raises:
        BadRecord: it is no Parquet file, or lacks a column.
    """
    with damage(f"{path}: not a Parquet file", BadRecord):
        file = pq.ParquetFile(path)
    missing = set(_NAMES) - _OPTIONAL - set(file.schema_arrow.names)
    if missing:
        raise BadRecord(f"{path}: no column {sorted(missing)}; expected {_NAMES}")
    return file


def _decode(record: dict[str, Any], path: Path, row: int) -> Sample:
    try:
        prompt_id = record.get("prompt_id") or ""
        meta = json.loads(record["meta"] or "{}")
        return _SAMPLE.validate_python({**record, "prompt_id": prompt_id, "meta": meta})
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, detail["loc"]))
        raise BadRecord(f"{path}: row {row}: {field}: {detail['msg']}") from error
    except ValueError as error:  # what is no JSON
        raise BadRecord(f"{path}: row {row}: meta: {error}") from error


def write_samples(samples: Iterable[Sample], path: Path, rows_per_group: int = 4096) -> int:
    """Write samples to `path`, which appears only when it is complete; returns how many."""
    count = 0
    with writing(path, rows_per_group) as put:
        for sample in samples:
            put(sample)
            count += 1
    return count


@contextmanager
def writing(path: Path, rows_per_group: int = 4096) -> Iterator[Callable[[Sample], None]]:
    """A function that appends a sample to `path`: for stages that fill several files in one pass."""
    group: list[dict[str, Any]] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
        group.clear()

    def put(sample: Sample) -> None:
        meta = json.dumps(sample.meta, sort_keys=True)
        group.append({**_SAMPLE.dump_python(sample), "meta": meta})
        if len(group) == rows_per_group:
            flush()

    with replacing(path) as part, pq.ParquetWriter(part, SCHEMA) as writer:
        yield put
        if group:
            flush()


@contextmanager
def copying(path: Path, rows_per_group: int = 4096) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """A function that appends rows as they are to `path`, which is written at once; rows are grouped as by `writing`.

    Raises:
        BadRecord: when it is called: the rows have another schema than ours.
    """
    waiting = [SCHEMA.empty_table()]

    def put(rows: pa.RecordBatch) -> None:
        waiting.append(_as_ours(rows))
        count = sum(map(len, waiting))
        if count < rows_per_group:
            return
        # Only whole groups are written; the rest waits for more rows.
        table = pa.concat_tables(waiting)
        whole = count - count % rows_per_group
        writer.write_table(table.slice(0, whole), rows_per_group)
        waiting[:] = [table.slice(whole)]

    with pq.ParquetWriter(path, SCHEMA) as writer:
        yield put
        if len(table := pa.concat_tables(waiting)):
            writer.write_table(table)


def _as_ours(rows: pa.RecordBatch) -> pa.Table:
    try:
        return pa.Table.from_batches([rows]).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowInvalid, ValueError) as error:
        raise BadRecord(
            f"rows of another schema ({error}); run the stage that writes them again"
        ) from error


def balanced(samples: Iterable[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` samples, drawn as equally over the domains as they allow, in their old order.

    >>> balanced([], 3, seed=0)
    []
    """
    samples = list(samples)
    if limit is None or limit >= len(samples):
        return samples
    order = random.Random(seed).sample(range(len(samples)), len(samples))

    # The first of every domain, then the second of every one, and so on.
    counts: Counter[str] = Counter()
    ranked = []
    for i in order:
        domain = samples[i].domain
        ranked.append((counts[domain], i))
        counts[domain] += 1
    drawn = [i for _, i in sorted(ranked)[:limit]]
    return [samples[i] for i in sorted(drawn)]


def verifiable(samples: Iterable[Sample]) -> list[Sample]:
    """The held-out samples whose answers a verifier can check; where there is none, all that are held out."""
    held_out = [sample for sample in samples if sample.split == "val"]
    checked = [sample for sample in held_out if sample.gold and sample.gold.check != "open"]
    return checked or held_out
