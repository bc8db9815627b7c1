"""Cleaning of an instruction-tuning corpus by reward (paper, section 4.3).

The corpus is scored as it came, and every row of it goes into one of three tables: cleaned, removed, unscored. Rows are
copied as they are, columns that nobody here knows included. How well a low reward tells bad rows is measured apart: in
a copy, of which a share is spoilt on purpose, and which is never written.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.corruption import Planting
from ixc.data.samples import BadRecord, Reply, Sample, objection_to_turns, open_table, read_each
from ixc.engine import distributed
from ixc.engine.vision_cache import VisionCache
from ixc.io.digests import digest_of
from ixc.io.files import replacing
from ixc.metrics import Log, Metrics, ignore
from ixc.models import load_scorer
from ixc.params import CleanParams
from ixc.serve.bulk import Limits, NoAnswer, score_rows, settings_of
from ixc.serve.shards import Scores, Shards

REWARD, REASON = "clean_reward", "clean_reason"
"""The columns that removed and unscored rows have beside their own; those of an earlier run are replaced."""
KEPT, REMOVED, UNSCORED = OUTCOMES = ("kept", "removed", "unscored")
_SCORES = pa.schema(
    {
        "row": pa.int64(),
        "id": pa.string(),
        "domain": pa.string(),
        "fate": pa.string(),
        "reward": pa.float64(),
        "reason": pa.string(),
        "planted": pa.string(),
        "planted_reward": pa.float64(),
    }
)
"""A row of the corpus by its number, what became of it and why; `planted`: how its copy was spoilt, and its reward."""


class NothingScored(ValueError):
    """Not one row could be scored: why the first could not."""


@dataclass
class Outcome:
    """What became of the rows of a corpus, each by its number."""

    domains: Sequence[str | None]
    rewards: np.ndarray
    """NaN where there is none."""
    low: np.ndarray
    """Whether a row is to be removed."""
    reasons: Mapping[int, str]
    """Why a row could not be scored."""
    planted: Mapping[int, str] = field(default_factory=dict)
    """How a row's copy was spoilt."""
    copies: Mapping[int, float] = field(default_factory=dict)
    """The copy's reward; NaN where there is none."""

    @property
    def outcomes(self) -> np.ndarray:
        """`kept`, `removed` or `unscored`."""
        return np.where(self.low, REMOVED, np.where(np.isnan(self.rewards), UNSCORED, KEPT))

    def reason(self, row: int) -> str:
        """Why a row is not kept; empty if it is."""
        if self.low[row]:
            return f"reward {self.rewards[row]:.4f}: among the lowest of domain {self.domains[row]}"
        return self.reasons.get(row, "")


def run(
    params: CleanParams,
    corpus: Path,
    media: Path,
    reward: Path,
    cleaned: Path,
    removed: Path,
    unscored: Path,
    scores: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Remove the share with the lowest rewards of each domain; measure in a spoilt copy how well that finds defects.

    A run that was killed goes on where it was; several processes share the rows out, and the first one writes.

    Raises:
        BadRecord: the corpus is no table of samples, or a table to write is the corpus, or another of them.
        NothingScored: not one of its rows could be scored; nothing was written.
    """
    _refuse_same(corpus, cleaned, removed, unscored, scores)

    # whatever rewards depend on is what shards of an earlier run must agree in
    device = distributed.device()
    model, processor = load_scorer(reward, device, params.precision, params.attention)
    vision_cache = VisionCache(model, processor, media, params.vision_cache)
    about = {"model": digest_of(reward), "table": digest_of(corpus)}
    about |= settings_of(model, vision_cache)
    about |= {
        "max_tokens_per_microbatch": params.max_tokens_per_microbatch,
        "plant": params.plant,
        "seed": params.seed,
    }
    planting = Planting(lambda: read_each(corpus), params.plant, params.seed)
    num_rows = open_table(corpus).metadata.num_rows

    # one sweep over the corpus and the spoilt copies behind it: equal texts get equal rewards in both
    parts = read_each(corpus), (defect.sample for defect in planting.defects())
    shards = Shards(
        scores, [num_rows, len(planting.rows)], params.shard_rows, about, others="remove"
    )
    limits = Limits(
        params.max_tokens_per_microbatch, "clean.max_tokens_per_microbatch", params.batch_size
    )
    scored = score_rows(model, vision_cache, parts, shards, limits, answer_of)
    if scored is None:
        return {}

    outcome = outcome_of(params, corpus, scored, planting, num_rows)
    _write(outcome, corpus, cleaned, removed, unscored, scores)
    shards.remove()
    counts = Counter(outcome.outcomes.tolist())
    if counts[UNSCORED]:
        first = min(outcome.reasons)
        print(
            f"clean: {counts[UNSCORED]:,} of {num_rows:,} rows could not be scored, such as row {first}: "
            f"{outcome.reasons[first]}; all are in {unscored}, each with its reason",
            file=sys.stderr,
        )
    return {
        "rows": num_rows,
        **{kind: counts[kind] for kind in OUTCOMES},
        **measured(outcome, params.remove),
    }


def _refuse_same(corpus: Path, *written: Path) -> None:
    """Check that nothing that is written takes the place of the corpus, or of another table."""
    taken = {corpus.resolve()}
    for path in written:
        if path.resolve() in taken:
            raise BadRecord(
                f"{path}: is the corpus, or stands for two tables; name another file to write"
            )
        taken.add(path.resolve())


def answer_of(sample: Sample) -> list[Reply]:
    """What the reward of a corpus row is read from: its answer, all turns of it.

    Raises:
        NoAnswer: there is none.
    """
    if objection := objection_to_turns(sample.chosen):
        raise NoAnswer(f"chosen: {objection}")
    return [sample.chosen]


def outcome_of(
    params: CleanParams, corpus: Path, scores: Scores, planting: Planting, num_rows: int
) -> Outcome:
    """What becomes of each row by the rewards of all rows, and of the spoilt copies behind them.

    Raises:
        NothingScored: there are rows, and none has a reward.
    """
    rewards = np.array([reward for row in range(num_rows) for reward in scores.of(row) or [np.nan]])
    reasons = {row: reason for row, reason in scores.reasons.items() if row < num_rows}
    if num_rows and len(reasons) == num_rows:
        raise NothingScored(
            f"{corpus}: none of {num_rows:,} rows could be scored, such as row 0: {reasons[0]}; nothing was written: "
            "see whether the corpus and its media belong together"
        )
    copies = {
        row: (scores.of(num_rows + place) or [np.nan])[0] for place, row in enumerate(planting.rows)
    }
    domains = _texts(pq.read_table(corpus, columns=["domain"])["domain"])
    low = lowest(domains, rewards, params.remove)
    return Outcome(domains, rewards, low, reasons, planting.kinds, copies)


def lowest(domains: Sequence[str | None], rewards: np.ndarray, share: float) -> np.ndarray:
    """Which rows are the lowest-rewarded `share` of their domain: average rewards differ between domains.

    Rows without a reward, NaN, are of no domain's.
    """
    members: dict[str | None, list[int]] = defaultdict(list)
    for row in np.flatnonzero(~np.isnan(rewards)).tolist():
        members[domains[row]].append(row)
    low = np.zeros(len(rewards), dtype=bool)
    for rows in members.values():
        ranked = np.array(rows)[np.argsort(rewards[rows], kind="stable")]
        low[ranked[: round(share * len(rows))]] = True
    return low


def measured(outcome: Outcome, share: float) -> Metrics:
    """AUROC of a low reward as a sign of each kind of defect, and what would be removed: in the spoilt copy.

    The kinds are those that were planted now; what a row's `meta` says of an earlier run counts for nothing.
    """
    if not outcome.planted:
        return {}
    rewards = outcome.rewards.copy()
    rewards[list(outcome.copies)] = list(outcome.copies.values())
    low = lowest(outcome.domains, rewards, share)
    kinds = np.array([outcome.planted.get(row, "") for row in range(len(rewards))])
    scored = ~np.isnan(rewards)
    sound = rewards[scored & (kinds == "")]
    metrics: Metrics = {}
    if not len(sound) or not (kinds[scored] != "").any():
        return metrics  # nothing to compare
    for kind in sorted(set(kinds[scored].tolist()) - {""}):
        bad = scored & (kinds == kind)
        metrics |= {f"auroc/{kind}": auroc(rewards[bad], sound), f"planted/{kind}": int(bad.sum())}
        metrics[f"recall/{kind}"] = float(low[bad].mean())
    metrics["auroc/all"] = auroc(rewards[scored & (kinds != "")], sound)
    metrics["precision"] = float((kinds[low] != "").sum() / max(1, low.sum()))
    return metrics


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """Chance that a bad row has a lower reward than a good one, ties half (Mann-Whitney U).

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(bad) or not len(good):
        return float("nan")
    ordered = np.sort(good)
    above = len(good) - np.searchsorted(ordered, bad, "right")
    ties = np.searchsorted(ordered, bad, "right") - np.searchsorted(ordered, bad, "left")
    return float((above + ties / 2).mean() / len(good))


def _write(
    outcome: Outcome, corpus: Path, cleaned: Path, removed: Path, unscored: Path, scores: Path
) -> None:
    """Part the corpus in three, in its order, and say of every row what became of it; all appear when all are whole."""
    paths = dict(zip(OUTCOMES, (cleaned, removed, unscored), strict=True))
    file, outcomes, row = open_table(corpus), outcome.outcomes, 0
    with ExitStack() as stack:
        parts = {
            name: stack.enter_context(replacing(path))
            for name, path in (*paths.items(), ("scores", scores))
        }
        schemas = {
            kind: file.schema_arrow if kind == KEPT else _explained(file.schema_arrow)
            for kind in OUTCOMES
        }
        writers = {
            name: stack.enter_context(pq.ParquetWriter(part, schemas.get(name, _SCORES)))
            for name, part in parts.items()
        }
        for batch in file.iter_batches(batch_size=4096):
            rows = np.arange(row, row + len(batch))
            for kind in OUTCOMES:
                chosen = outcomes[rows] == kind
                some = batch.filter(pa.array(chosen))
                if kind != KEPT:
                    some = _explain(some, schemas[kind], outcome, rows[chosen])
                if len(some):
                    writers[kind].write_batch(some)
            writers["scores"].write_batch(_score_rows(outcome, batch["id"], rows, outcomes))
            row += len(batch)


def _explained(schema: pa.Schema) -> pa.Schema:
    """The columns of rows that are not kept: their own, and why."""
    own = [column for column in schema if column.name not in (REWARD, REASON)]
    return pa.schema(
        [*own, pa.field(REWARD, pa.float64()), pa.field(REASON, pa.string())], schema.metadata
    )


def _explain(
    rows: pa.RecordBatch, schema: pa.Schema, outcome: Outcome, numbers: np.ndarray
) -> pa.RecordBatch:
    own = [rows[name] for name in schema.names[:-2]]
    reasons = [outcome.reason(number) for number in numbers.tolist()]
    added = [pa.array(outcome.rewards[numbers], from_pandas=True), pa.array(reasons, pa.string())]
    return pa.record_batch([*own, *added], schema=schema)


def _texts(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """A column as texts; the row of one that is no UTF-8 is no sample, and must not stop those that are."""
    scored = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    return [None if text is None else text.decode(errors="replace") for text in scored]


def _score_rows(
    outcome: Outcome, ids: pa.Array, numbers: np.ndarray, outcomes: np.ndarray
) -> pa.RecordBatch:
    """What became of some rows."""
    rows = numbers.tolist()
    copies = [outcome.copies.get(row, np.nan) for row in rows]
    columns = {
        "row": pa.array(numbers),
        "id": pa.array(_texts(ids), pa.string()),
        "domain": pa.array([outcome.domains[row] for row in rows], pa.string()),
        "fate": pa.array(outcomes[numbers].tolist(), pa.string()),
        "reward": pa.array(outcome.rewards[numbers], from_pandas=True),
        "reason": pa.array([outcome.reason(row) for row in rows], pa.string()),
        "planted": pa.array([outcome.planted.get(row, "") for row in rows], pa.string()),
        "planted_reward": pa.array(np.array(copies), from_pandas=True),
    }
    return pa.record_batch(list(columns.values()), schema=_SCORES)
