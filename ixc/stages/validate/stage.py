"""Stage `validate`: only pairs that nothing speaks against are trained on; the others leave with a reason."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.media import BadMedia, check
from ixc.data.reasons import ADVICE, REASONS, Objection
from ixc.data.samples import Media, copying, open_table, read_batches
from ixc.io.files import replacing, track
from ixc.io.quarantine import write_quarantine
from ixc.metrics import Log, Metrics, ignore
from ixc.params import ValidateParams
from ixc.stages.validate.contamination import COMMON, Benchmarks, entries
from ixc.stages.validate.expectations import Check, Suite, run_checks, suite
from ixc.stages.validate.facts import TABLED, frame, table_of
from ixc.stages.validate.image_hash import Look, Looks, look
from ixc.stages.validate.minhash import (
    MINIMA,
    PromptSignatures,
    Signatures,
    near_duplicates,
    near_prompts,
)
from ixc.stages.validate.summary import write_summary
from ixc.stages.validate.workers import Workers, workers

QUARANTINE = pa.schema(
    dict.fromkeys(("id", "source", "split", "reason", "detail", "advice"), pa.string())
)
WORST = 3
"""Reasons that a failure names."""

Found = Iterator[tuple[int, Objection]]
"""Places of pairs, and what speaks against each."""


class ValidationFailed(ValueError):
    """The data as a whole are at fault, not single pairs."""


class Seen(NamedTuple):
    """A stored file after a look at it."""

    objection: Objection | None
    look: Look | None = None
    """None for films and for what cannot be used."""


def run(
    params: ValidateParams,
    prompts: Path,
    candidates: Path,
    judged: Path,
    public: Path,
    media: Path,
    train_out: Path,
    val_out: Path,
    quarantine_out: Path,
    summary_out: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Write the pairs to train on and to validate with, the quarantine, and a summary that explains them.

    Prompts and candidates are only checked: what is in them was answered, or judged, already.

    Raises:
        ValidationFailed: too little is left, or an expectation is not met. The summary says why; the
            other outputs of the last good run stay.
        BadRecord: a table or one of its rows is not what its schema says.
        BadParams, BadBenchmark: the tokenizer or a benchmark cannot be read.
    """
    benchmarks = Benchmarks(
        entries(params.benchmarks), params.overlap_words, params.near_images or 0
    )
    num_pairs = sum(open_table(path).metadata.num_rows for path in (judged, public))

    with ExitStack() as stack:
        parts = {
            "train": stack.enter_context(replacing(train_out)),
            "val": stack.enter_context(replacing(val_out)),
        }
        with workers(params, benchmarks, num_pairs) as team:
            asked, told = _facts_and_signatures(team, (prompts,))
            val = asked["split"] == "val"
            held_out, told = asked.loc[val], told[val.to_numpy(), :1]
            answered = _facts(team, candidates)
            facts, signatures = _facts_and_signatures(team, (judged, public))
            seen = _see_all(_media_of(facts, asked, answered), media, benchmarks)
            _object(facts, _to_media(facts, seen))
            _object(facts, _to_repeats(facts))
            _object(facts, _to_near_repeats(facts, signatures, params))
            _object(facts, _to_leaks(facts, _unseen(facts, held_out), seen, params))
            _object(facts, _to_near_prompts(facts, signatures, held_out, told, params))
            del signatures, told
            _write((judged, public), facts, parts)
            written = _written(facts, parts)

        came: dict[Suite, pd.DataFrame] = {
            "prompts": asked,
            "candidates": answered,
            "pairs": facts,
            "kept": written,
        }
        spoilt = {path for path, one in seen.items() if one.objection}
        checks = _check(params, _tables(came, open_table(judged).metadata.num_rows, media, spoilt))
        failures = [*_too_much(facts, params), *_too_little(facts, params), *_not_met(checks)]
        write_summary(summary_out, facts, params, checks, benchmarks.read, failures)
        if failures:
            page = summary_out.with_suffix(".html")
            raise ValidationFailed("\n".join([*failures, f"the page explains it: {page}"]))
        write_quarantine(_dropped(facts), quarantine_out, QUARANTINE)

    metrics = _metrics(facts, checks)
    log(metrics, 0)
    return metrics


# What there is


def _facts(team: Workers, *tables: Path) -> pd.DataFrame:
    """Every row of the tables in small, as far as `table_of` asks for it."""
    parts = (part.facts for part in team.parts(tables))
    return pd.concat([part.loc[:, TABLED] for part in (frame([]), *parts)], ignore_index=True)


def _facts_and_signatures(team: Workers, tables: Sequence[Path]) -> tuple[pd.DataFrame, Signatures]:
    """Every row in small, with what speaks against it by itself; and what near duplicates are found by."""
    num_rows = sum(open_table(path).metadata.num_rows for path in tables)
    found, signatures, done = [frame([])], np.empty((num_rows, 2, MINIMA), np.uint16), 0
    for part in track(team.parts(tables, sign=True), "validate"):
        signatures[done : done + len(part.facts)] = part.signatures
        done += len(part.facts)
        found.append(part.facts)
    return pd.concat(found, ignore_index=True), signatures


def _media_of(*tables: pd.DataFrame) -> dict[str, Media]:
    """What the tables show, each file once, by its path."""
    return {media.path: media for table in tables for row in table["media"] for media in row}


def _see_all(wanted: Mapping[str, Media], root: Path, benchmarks: Benchmarks) -> dict[str, Seen]:
    """Every file is decoded once, however many rows show it."""
    with ThreadPoolExecutor() as pool:
        results = track(
            pool.map(lambda media: _see(root, media, benchmarks), wanted.values()),
            "media",
            len(wanted),
        )
        return dict(zip(wanted, results, strict=True))


def _see(root: Path, media: Media, benchmarks: Benchmarks) -> Seen:
    path = root / media.path
    if not path.is_file():
        return Seen(Objection("media missing", media.path))
    try:
        check(root, media)
    except BadMedia as error:
        return Seen(Objection("media damaged", str(error).replace(str(path), media.path)))
    if media.kind == "video":
        place = benchmarks.video_overlap(media.sha256)
        return Seen(Objection("in benchmark", f"{media.path} is {place}") if place else None)
    seen = look(path)
    place = benchmarks.image_overlap(seen)
    return Seen(
        Objection("in benchmark", f"{media.path} looks like {place}") if place else None, seen
    )


# What speaks against it


def _kept(facts: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Place and columns of the pairs that nothing speaks against so far."""
    return facts.loc[facts["reason"].isna(), list(columns)].itertuples(name=None)


def _object(facts: pd.DataFrame, found: Found) -> None:
    """Note what speaks against pairs."""
    if objections := dict(found):
        for column in ("reason", "detail"):
            facts.loc[list(objections), column] = [
                getattr(each, column) for each in objections.values()
            ]


def _to_media(facts: pd.DataFrame, seen: Mapping[str, Seen]) -> Found:
    """A pair goes with any of its media."""
    for place, shown in _kept(facts, "media"):
        if found := next((one for media in shown if (one := seen[media.path].objection)), None):
            yield place, found


def _to_repeats(facts: pd.DataFrame) -> Found:
    """The first of equal pairs is kept; a train pair that repeats a val pair is a leak, not a repeat."""
    ids: set[str] = set()
    pairs: dict[tuple[str, bytes], str] = {}
    for place, id, split, pair, exchanged in _kept(facts, "id", "split", "pair", "exchanged"):
        if id in ids:
            yield place, Objection("duplicate id")
        elif first := pairs.get((split, pair)):
            yield place, Objection("duplicate", f"of {first}")
        elif first := pairs.get((split, exchanged)):
            yield place, Objection("contradiction", f"to {first}")
        else:
            ids.add(id)
            pairs[split, pair] = id


def _to_near_repeats(facts: pd.DataFrame, signatures: Signatures, params: ValidateParams) -> Found:
    """Of pairs nearly alike about the same media the first is kept, and val before train."""
    if params.near_duplicates is None:
        return
    left = sorted(_kept(facts, "id", "split", "media"), key=lambda row: row[2] == "train")
    groups: dict[tuple[str, ...], int] = {}
    numbers = [
        groups.setdefault(tuple(one.sha256 for one in shown), len(groups)) for *_, shown in left
    ]
    signed = signatures[[place for place, *_ in left]]
    for here, first in enumerate(
        near_duplicates(signed, np.array(numbers, np.uint64), params.near_duplicates)
    ):
        (place, _, split, _), (_, id, other, _) = left[here], left[int(first)]
        if first != here:
            yield (
                place,
                Objection(
                    "near duplicate" if split == other else "held out", f"nearly the same as {id}"
                ),
            )


def _to_near_prompts(
    facts: pd.DataFrame,
    signatures: Signatures,
    held_out: pd.DataFrame,
    told: PromptSignatures,
    params: ValidateParams,
) -> Found:
    """A train pair without media whose prompt is nearly one of val's goes, whatever its answers are."""
    if params.near_duplicates is None:
        return
    left = facts["reason"].isna()
    train = np.flatnonzero(_asks(facts, "train", params) & left)
    pairs = np.flatnonzero(_asks(facts, "val", params) & left)
    prompts = np.flatnonzero(_asks(held_out, "val", params))
    ids = [*held_out["id"].iloc[prompts], *facts["id"].iloc[pairs]]
    unseen = np.concatenate([told[prompts], signatures[pairs, :1]])
    near = near_prompts(signatures[:, :1], train, unseen, params.near_duplicates).tolist()
    hits = [(place, of) for place, of in zip(train.tolist(), near, strict=True) if of >= 0]

    # Many prompts that are nearly one are a template: the few words that differ are what is asked.
    first = near_duplicates(unseen, np.zeros(len(unseen), np.uint64), params.near_duplicates)
    variants: dict[int, set[bytes]] = defaultdict(set)
    for place, of in hits:
        variants[int(first[of])].add(facts["prompt"].iat[place])
    for place, of in hits:
        if len(variants[int(first[of])]) <= COMMON:
            yield place, Objection("held out", f"prompt nearly that of {ids[of]}")


def _asks(facts: pd.DataFrame, split: str, params: ValidateParams) -> np.ndarray:
    """Which rows of a split ask without media, in words enough to be compared."""
    asked = (facts["split"] == split) & (facts["prompt_words"] >= params.near_prompt_words)
    return asked.to_numpy() & ~facts["media"].astype(bool).to_numpy()


def _unseen(facts: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """What val asks and shows: the prompts held out, whether or not a pair is about them, and the pairs kept for it."""
    pairs = facts.loc[facts["reason"].isna() & (facts["split"] == "val"), TABLED]
    return pd.concat([held_out, pairs])


def _to_leaks(
    facts: pd.DataFrame, unseen: pd.DataFrame, seen: Mapping[str, Seen], params: ValidateParams
) -> Found:
    """A train pair whose prompt or media are in val goes: val must stay unseen, and train has more."""
    prompts = dict(zip(unseen["prompt"], unseen["id"], strict=True))
    owner = _owner(unseen, seen, params.near_images)
    for place, split, prompt, shown in _kept(facts, "split", "prompt", "media"):
        if split == "train" and prompt in prompts:
            yield place, Objection("held out", f"prompt of {prompts[prompt]}")
        elif split == "train" and (
            found := next(filter(None, (owner(one.path) for one in shown)), None)
        ):
            yield place, Objection("held out", f"picture or film of {found}")


def _owner(
    unseen: pd.DataFrame, seen: Mapping[str, Seen], distance: int | None
) -> Callable[[str], str | None]:
    """What tells which row of val shows a file, or a picture that looks like it: at most `distance` bits differ; none:
    only the file itself counts."""
    media = {
        one.path: id
        for id, shown in zip(unseen["id"], unseen["media"], strict=True)
        for one in shown
    }
    looks = {
        path: one.look
        for path, one in seen.items()
        if one.look is not None and distance is not None
    }
    shown_in_val = [path for path in media if path in looks]
    gallery = Looks([looks[path] for path in shown_in_val])

    @cache
    def owner(path: str) -> str | None:
        if path in media or path not in looks:
            return media.get(path)
        alike = gallery.like(looks[path], distance or 0)
        return media[shown_in_val[alike[0]]] if alike else None

    return owner


# What comes of it


def _write(tables: Sequence[Path], facts: pd.DataFrame, outputs: Mapping[str, Path]) -> None:
    """Copy the kept pairs of each split, in their order."""
    kept = np.where(facts["reason"].isna(), facts["split"], "")
    first = 0
    with ExitStack() as stack:
        put = {split: stack.enter_context(copying(path)) for split, path in outputs.items()}
        for _, batch in (item for table in tables for item in read_batches(table)):
            fates = kept[first : first + len(batch)]
            first += len(batch)
            for split, copy in put.items():
                copy(batch.filter(pa.array(fates == split)))


def _written(facts: pd.DataFrame, outputs: Mapping[str, Path]) -> pd.DataFrame:
    """The facts of the rows that were copied, which the outputs are held against, row by row."""
    kept = facts.loc[facts["reason"].isna(), TABLED]
    found = pd.concat([kept.loc[kept["split"] == split] for split in outputs], ignore_index=True)
    ids = [
        id
        for path in outputs.values()
        for id in pq.read_table(path, columns=["id"])["id"].to_pylist()
    ]
    assert ids == found["id"].tolist(), (
        f"{', '.join(map(str, outputs.values()))}: not the rows that were kept"
    )
    return found


def _tables(
    came: Mapping[Suite, pd.DataFrame], num_judged: int, media: Path, spoilt: Collection[str]
) -> Iterator[tuple[str, Suite, pd.DataFrame]]:
    """What came in, and the pairs that go out; one after another, for a million rows take 300 MB."""
    asked = came["prompts"]
    held_out = asked.loc[asked["split"] == "val"]
    yield "Prompts", "prompts", table_of(asked, media, spoilt)
    yield "Candidates", "candidates", table_of(came["candidates"], media, spoilt)
    pairs = table_of(came["pairs"], media, spoilt, held_out)
    yield "Judged pairs", "pairs", pairs.iloc[:num_judged]
    yield "Ready pairs", "pairs", pairs.iloc[num_judged:]
    del pairs
    yield "Pairs that are written", "kept", table_of(came["kept"], media, spoilt, held_out)


def _check(
    params: ValidateParams, tables: Iterable[tuple[str, Suite, pd.DataFrame]]
) -> dict[str, list[Check]]:
    """What the tables fulfil."""
    return {
        title: run_checks(table, suite(name, params))
        for title, name, table in tables
        if len(table) or name == "kept"
    }


def _too_much(facts: pd.DataFrame, params: ValidateParams) -> Iterator[str]:
    """Which limits on what is dropped are broken."""
    dropped = Counter(facts["reason"].dropna())
    share = dropped.total() / max(len(facts), 1)
    if share > params.max_rejected_share:
        worst = [
            f"{count} for {reason!r}: {ADVICE[reason]}"
            for reason, count in dropped.most_common(WORST)
        ]
        limit = f"validate.max_rejected_share: {params.max_rejected_share}"
        yield f"{limit}: {share:.0%} of {len(facts)} pairs were dropped, {'; '.join(worst)}"
    for reason, limit in params.max_share.items():
        if (share := dropped[reason] / max(len(facts), 1)) > limit:
            found = facts[facts["reason"] == reason]
            source, count = Counter(found["source"]).most_common(1)[0]
            origin = f"{count} of {len(found)} from {source}, such as {found.id.iloc[0]}"
            most = f"{share:.1%} of {len(facts)} pairs, {origin}"
            yield f"validate.max_share: {reason}: {limit}: {most}; {ADVICE[reason]}"


def _too_little(facts: pd.DataFrame, params: ValidateParams) -> Iterator[str]:
    kept = _num_kept(facts)
    for split in ("train", "val"):
        if kept[split] < params.min_pairs:
            few = f"validate.min_pairs: {params.min_pairs}: only {kept[split]} pairs are left in {split}"
            yield f"{few}; add sources or prompts, or lower it"


def _num_kept(facts: pd.DataFrame) -> Counter[str]:
    return Counter(facts.loc[facts["reason"].isna(), "split"])


def _not_met(checks: dict[str, list[Check]]) -> Iterator[str]:
    for title, found in checks.items():
        for item in found:
            if item.status == "errored":
                yield f"{title}: could not be computed, which says nothing about the data: {item.says}; {item.detail}"
            elif item.status == "failed" and item.critical:
                yield f"{title}: expectation not met: {item.says}; {item.detail}"


def _dropped(facts: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    columns = ["id", "source", "split", "reason", "detail"]
    for row in facts.loc[facts["reason"].notna(), columns].itertuples(index=False, name=None):
        yield *row, ADVICE[row[3]]


def _metrics(facts: pd.DataFrame, checks: dict[str, list[Check]]) -> Metrics:
    """Counts of what came in and what became of it; a reason that never occurred is a 0."""
    dropped, kept = Counter(facts["reason"].dropna()), _num_kept(facts)
    statuses = Counter(item.status for found in checks.values() for item in found)
    counts = {"pairs": len(facts), "kept/train": kept["train"], "kept/val": kept["val"]}
    counts |= {f"dropped/{reason}": dropped[reason] for reason in REASONS}
    counts |= {f"checks/{status}": statuses[status] for status in ("passed", "failed")}
    return {name: float(count) for name, count in counts.items()}
