"""Scoring tables of any size: streamed, in shards, by any number of processes, each row once and in its place.

A shard is so many rows. The process that it falls to writes their rewards into a file that appears whole; a shard whose
file is there is not scored again, whoever asks. When all are there, the first process joins them. A row that cannot be
scored never stops the others: it has a reason in place of rewards.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ixc.data.samples import BadRecord, Reply, Sample, objection_to_turns, open_table, read_each
from ixc.engine import distributed
from ixc.engine.batching import microbatches, pack_by_budget, prefetch
from ixc.engine.scoring import rewards_of, scored_ids
from ixc.engine.vision_cache import LOADERS, VisionCache
from ixc.io.digests import digest, digest_of
from ixc.io.files import replacing, track
from ixc.metrics import Metrics, non_finite
from ixc.models.base import ScoringModel
from ixc.packing.layout import PrefixGroup, Prompt, collate
from ixc.serve.shards import Scored, Scores, Shards

ROWS_AT_ONCE = 64
"""Rows that are read while those before them are scored."""
NOT_SCORED = "not_scored"
"""The key in a row's `meta` that says why it has no rewards."""
T = TypeVar("T")
Item = Sample | BadRecord
"""A row, or why it is none."""


class NoAnswer(ValueError):
    """A row without an answer that can be scored."""


@dataclass(frozen=True)
class Limits:
    """What memory allows, and what the reader may change of it."""

    max_tokens_per_microbatch: int = 16384
    """Tokens of a forward pass at most."""
    budget_option: str = "--max-tokens-per-microbatch"
    """What that is called where the reader can change it."""
    rows_at_once: int = ROWS_AT_ONCE
    """Rows in memory together at most, with their images."""


@dataclass(frozen=True)
class Row:
    """A sample as the model reads it, or why it cannot."""

    sample: Sample | None = None
    prompt: Prompt | None = None
    responses: list[list[int]] = field(default_factory=list)
    """Ids of each answer with the tail that its score is read from."""
    keys: list[bytes] = field(default_factory=list)
    """A name for each answer with its prompt and images: equal ones have equal rewards."""
    objection: str = ""


class Part(NamedTuple):
    """A prompt with as many of its answers as fit into a pass."""

    sample: Sample
    group: PrefixGroup
    keys: list[bytes]


def score_table(
    model: ScoringModel,
    vision_cache: VisionCache,
    source: Path,
    target: Path,
    *,
    model_name: str,
    shard_rows: int = 1024,
    max_tokens_per_microbatch: int = 16384,
) -> Metrics:
    """Write the table's rows, in order, with their `rewards`: of the candidates, else of chosen and rejected.

    All other columns are copied as they are. A row that cannot be scored keeps its place, without rewards, and `meta`
    says why.

    Args:
        model_name: what shards of an earlier, killed call must have been scored by to be used.
        shard_rows: rows that a kill may cost.
        max_tokens_per_microbatch: tokens of a forward pass at most.

    Raises:
        OtherRun: there are shards of another table, model or size.
        BadRecord: it is no table of samples.
    """
    if source.resolve() == target.resolve():
        raise BadRecord(f"{target}: is what is to be read; name another file to write")
    about = {
        "model": model_name,
        **settings_of(model, vision_cache),
        "max_tokens_per_microbatch": max_tokens_per_microbatch,
        "table": digest_of(source),
    }
    shards = Shards(target, [open_table(source).metadata.num_rows], shard_rows, about)
    scores = score_rows(
        model, vision_cache, [read_each(source)], shards, Limits(max_tokens_per_microbatch)
    )
    if scores is None:
        return {}
    _write_table(source, target, scores)
    shards.remove()
    return {"rows": shards.rows, NOT_SCORED: len(scores.reasons)}


def score_rows(
    model: ScoringModel,
    vision_cache: VisionCache,
    parts: Iterable[Iterable[Item]],
    shards: Shards,
    limits: Limits,
    answers_of: Callable[[Sample], Sequence[Reply]] | None = None,
) -> Scores | None:
    """Score rows, shard by shard, with all other processes; only the first gets the result.

    Args:
        parts: the rows, in as many parts and of the numbers that the shards were made for; the same in every process.
        answers_of: what is to be scored of a row, default `candidates_or_pair`; raises `NoAnswer`.

    Raises:
        OtherRun: see `Shards`.
    """
    todo = shards.todo()
    model.eval()
    coming = (some for rows in parts for some in chunks(rows, shards.size))
    for number, some in enumerate(track(coming, "score", shards.count)):
        if number in todo:
            shards.write(
                number, scored(model, vision_cache, some, limits, answers_of or candidates_or_pair)
            )
    return shards.joined() if distributed.rank() == 0 else None


def settings_of(model: ScoringModel, vision_cache: VisionCache) -> dict[str, str]:
    """What rewards depend on beside weights and rows."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.attention,
        "media_root": str(vision_cache.root.resolve()),
        "processor": digest(vision_cache.processor.options),
    }


def scored(
    model: ScoringModel,
    vision_cache: VisionCache,
    rows: Sequence[Item],
    limits: Limits,
    answers_of: Callable[[Sample], Sequence[Reply]],
) -> Iterator[Scored]:
    """The rewards of each row, or the reason why there are none; equal answers to equal prompts are read once."""
    known: dict[bytes, float] = {}
    coming = prefetch(
        rows,
        lambda item: readable(vision_cache, item, limits, answers_of),
        limits.rows_at_once,
        LOADERS,
    )
    for some in chunks(coming, limits.rows_at_once):
        score_new(model, vision_cache, some, known, limits.max_tokens_per_microbatch)
        for row in some:
            rewards = [known[key] for key in row.keys]
            objection = non_finite(rewards)
            yield (
                Scored([], [], objection) if objection else Scored(rewards, row.keys, row.objection)
            )


def readable(
    vision_cache: VisionCache,
    item: Item,
    limits: Limits,
    answers_of: Callable[[Sample], Sequence[Reply]],
) -> Row:
    """A sample's tokens, its images at hand; or what speaks against it."""
    if isinstance(item, BadRecord):
        return Row(objection=str(item))
    try:
        responses = [scored_ids(vision_cache, reply) for reply in answers_of(item)]
        prompt = vision_cache.prompt(item)
        longest = len(prompt) + max(map(len, responses))
        if longest <= limits.max_tokens_per_microbatch:
            vision_cache.load_ahead([item])
            return Row(item, prompt, responses, keys_of(vision_cache, item, prompt.ids, responses))
        more = f"more than {limits.max_tokens_per_microbatch:,}; raise {limits.budget_option}"
        objection = f"{longest:,} tokens, {more}"
    except (
        ValueError,
        OSError,
    ) as error:  # BadMedia, BadConversation, NoAnswer, a file that may not be read
        objection = str(error)
    with suppress(ValueError, OSError):
        vision_cache.forget([item])
    return Row(objection=objection)


def candidates_or_pair(sample: Sample) -> list[Reply]:
    """What is to be scored: the candidates, else chosen and, if it is there, rejected.

    Raises:
        NoAnswer: there is neither, or one has turns that are no answer.
    """
    if sample.candidates:
        return list(sample.candidates)
    if not sample.chosen:
        raise NoAnswer("no answer: neither candidates nor chosen")
    named = (
        {"chosen": sample.chosen, "rejected": sample.rejected}
        if sample.rejected
        else {"chosen": sample.chosen}
    )
    for name, turns in named.items():
        if objection := objection_to_turns(turns):
            raise NoAnswer(f"{name}: {objection}")
    return list(named.values())


def keys_of(
    vision_cache: VisionCache,
    sample: Sample,
    prompt: Sequence[int],
    responses: Iterable[Sequence[int]],
) -> list[bytes]:
    """A name, 16 bytes, for all that each answer's reward depends on in the row."""
    images = "\0".join(vision_cache.key(ref) for ref in vision_cache.image_refs([sample]))
    ids = np.array(prompt, np.int64).tobytes()
    common = blake2b(images.encode() + b"\0\0" + ids, digest_size=16)
    keys = []
    for response in responses:
        hashed = common.copy()
        hashed.update(b"answer" + np.array(response, np.int64).tobytes())
        keys.append(hashed.digest())
    return keys


@torch.no_grad()
def score_new(
    model: ScoringModel,
    vision_cache: VisionCache,
    rows: Sequence[Row],
    known: dict[bytes, float],
    max_tokens_per_microbatch: int,
) -> None:
    """Add to `known` the rewards of all answers that it lacks."""
    parts: list[Part] = []
    seen = set(known)
    for row in rows:
        if row.sample is None or row.prompt is None:
            continue
        responses = dict(zip(row.keys, row.responses, strict=True))
        new = {key: ids for key, ids in responses.items() if key not in seen}
        seen.update(new)
        if not new:
            vision_cache.release([row.sample])
        parts += _parts(row.sample, row.prompt, new, max_tokens_per_microbatch)

    # rows of like length go through the model together
    lengths = [len(part.group) for part in parts]
    for batch in microbatches(range(len(parts)), lengths, max_tokens_per_microbatch):
        some = [parts[i] for i in batch]
        packed = collate([part.group for part in some])
        rewards = rewards_of(model, vision_cache, [part.sample for part in some], packed)
        keys = [key for part in some for key in part.keys]
        known.update(zip(keys, rewards.tolist(), strict=True))


def _parts(
    sample: Sample,
    prompt: Prompt,
    responses: dict[bytes, list[int]],
    max_tokens_per_microbatch: int,
) -> Iterator[Part]:
    keys, ids = list(responses), list(responses.values())
    room = max_tokens_per_microbatch - len(prompt)
    for some in pack_by_budget(range(len(ids)), list(map(len, ids)), room):
        yield Part(sample, PrefixGroup(prompt, [ids[k] for k in some]), [keys[k] for k in some])


def _write_table(source: Path, target: Path, scores: Scores) -> None:
    """The source's rows, as they are but for `rewards`, and for why there are none in `meta`."""
    file = open_table(source)
    schema = file.schema_arrow
    for column in (pa.field("rewards", pa.list_(pa.float64())), pa.field("meta", pa.string())):
        schema = schema.set(schema.get_field_index(column.name), column)
    row = 0
    with replacing(target) as part, pq.ParquetWriter(part, schema) as writer:
        for batch in file.iter_batches(batch_size=4096):
            numbers = range(row, row + len(batch))
            metas = map(_meta, _texts(batch["meta"]), (scores.reasons.get(i, "") for i in numbers))
            columns = {**dict(zip(batch.schema.names, batch.columns, strict=True))}
            columns["rewards"] = pa.array([scores.of(i) for i in numbers], pa.list_(pa.float64()))
            columns["meta"] = pa.array(list(metas), pa.string())
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
            row += len(batch)


def _texts(column: pa.Array) -> list[str | None]:
    """Strings; of those that are not UTF-8, for which their rows are not scored, what can be read."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        held = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "replace") for value in held]


def _meta(text: str | None, reason: str) -> str | None:
    """A row's `meta` with the reason; without that of an earlier call, if it has rewards now.

    >>> _meta('{"a":1}', ""), _meta('{"a": 1, "not_scored": "gone"}', ""), _meta("", "lost")
    ('{"a":1}', '{"a": 1}', '{"not_scored": "lost"}')
    """
    if not reason and NOT_SCORED not in (text or ""):
        return text
    try:
        known = json.loads(text or "{}")
    except ValueError:
        known = None
    known = (
        known if isinstance(known, dict) else {"meta": text}
    )  # what is no JSON is kept as it came
    rest = {key: value for key, value in known.items() if key != NOT_SCORED}
    return json.dumps({**rest, NOT_SCORED: reason} if reason else rest, sort_keys=True)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many items at a time.

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])
