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
from ixc.stages.validate.image_hash import ImageHash, ImageIndex, image_hash
from ixc.stages.validate.minhash import (
    MINIMA,
    PromptSignatures,
    Signatures,
    near_duplicates,
    near_prompts,
)
from ixc.stages.validate.summary import write_summary
from ixc.stages.validate.workers import Workers, workers

_DROPPED = ("id", "source", "split", "reason", "detail")
QUARANTINE = pa.schema(dict.fromkeys((*_DROPPED, "advice"), pa.string()))
WORST = 3
"""Reasons that a failure names."""

Objections = Iterator[tuple[int, Objection]]
"""Places of pairs, and what speaks against each."""


class ValidationFailed(ValueError):
    """The data as a whole are at fault, not single pairs."""


class CheckedFile(NamedTuple):
    """A stored file once it was decoded."""

    objection: Objection | None
    image_hash: ImageHash | None = None
    """None for videos and for what cannot be used."""


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

    Prompts and candidates are only checked: the models have seen them already.

    Raises:
        ValidationFailed: too little is left, or an expectation is not met. The summary says why; the
            other outputs of the last good run stay.
        BadRecord: a table or one of its rows is not what its schema says.
        BadParams, BadBenchmark: the tokenizer or a benchmark cannot be read.
    """
    # What the model will be tested on comes first: without it nothing may be let through.
    paths = entries(params.benchmarks)
    benchmarks = Benchmarks(paths, params.overlap_words, params.near_images or 0)
    num_judged = open_table(judged).metadata.num_rows
    num_pairs = num_judged + open_table(public).metadata.num_rows

    with ExitStack() as stack:
        outputs = {
            "train": stack.enter_context(replacing(train_out)),
            "val": stack.enter_context(replacing(val_out)),
        }
        with workers(params, benchmarks, num_pairs) as team:
            # Every row is read once and becomes some hundred bytes: a million fit into memory.
            prompt_facts, prompt_signatures = _facts_and_signatures(team, (prompts,))
            is_val = prompt_facts["split"] == "val"
            held_out = prompt_facts.loc[is_val]
            held_out_signatures = prompt_signatures[is_val.to_numpy(), :1]
            del prompt_signatures
            completed = _facts(team, candidates)
            facts, signatures = _facts_and_signatures(team, (judged, public))
            files = _check_files(_media_of(facts, prompt_facts, completed), media, benchmarks)

            # Each rule looks only at the pairs that the rules before it have left.
            _object(facts, _to_media(facts, files))
            _object(facts, _to_repeats(facts))
            _object(facts, _to_near_repeats(facts, signatures, params))
            val = _val_of(facts, held_out)
            _object(facts, _to_leaks(facts, val, files, params))
            val_prompts = (held_out, held_out_signatures)
            _object(facts, _to_near_prompts(facts, signatures, *val_prompts, params))
            del signatures, held_out_signatures

            # The pairs themselves are copied row by row, never built anew.
            _write((judged, public), facts, outputs)
            written = _written(facts, outputs)

        # Of the tables as a whole: a fault of many rows is one of the data, not of the rows.
        tables: dict[Suite, pd.DataFrame] = {
            "prompts": prompt_facts,
            "candidates": completed,
            "pairs": facts,
            "written": written,
        }
        unusable = {path for path, file in files.items() if file.objection}
        checks = _check(params, _tables(tables, num_judged, media, unusable))
        failures = [
            *_too_much(facts, params),
            *_too_little(facts, params),
            *_not_met(checks),
        ]
        write_summary(summary_out, facts, params, checks, benchmarks.read, failures)

        # Leaving the stack by an error leaves the outputs of the last good run.
        if failures:
            page = summary_out.with_suffix(".html")
            raise ValidationFailed("\n".join([*failures, f"the page explains it: {page}"]))
        write_quarantine(_dropped(facts), quarantine_out, QUARANTINE)

    metrics = _metrics(facts, checks)
    log(metrics, 0)
    return metrics


# What there is


def _facts(team: Workers, *tables: Path) -> pd.DataFrame:
    """Every row of the tables in small, as far as `table_of` needs it."""
    groups = [frame([]).loc[:, TABLED]]
    for group in team.row_groups(tables):
        groups.append(group.facts.loc[:, TABLED])
    return pd.concat(groups, ignore_index=True)


def _facts_and_signatures(
    team: Workers,
    tables: Sequence[Path],
) -> tuple[pd.DataFrame, Signatures]:
    """Every row in small, with what speaks against it by itself; and what near duplicates are detected by."""
    num_rows = sum(open_table(path).metadata.num_rows for path in tables)
    # Into one array from the start: joined at the end they would be in memory twice.
    signatures = np.empty((num_rows, 2, MINIMA), np.uint16)
    groups = [frame([])]
    done = 0
    for group in track(team.row_groups(tables, sign=True), "validate"):
        signatures[done : done + len(group.facts)] = group.signatures
        done += len(group.facts)
        groups.append(group.facts)
    return pd.concat(groups, ignore_index=True), signatures


def _media_of(*tables: pd.DataFrame) -> dict[str, Media]:
    """What the tables refer to, each file once, by its path."""
    media = {}
    for table in tables:
        for row in table["media"]:
            media.update((one.path, one) for one in row)
    return media


def _check_files(
    media: Mapping[str, Media],
    root: Path,
    benchmarks: Benchmarks,
) -> dict[str, CheckedFile]:
    """Every file is decoded once, however many rows refer to it."""
    # Threads: the decoders let go of the interpreter.
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda one: _check_file(root, one, benchmarks), media.values())
        results = track(checks, "media", len(media))
        return dict(zip(media, results, strict=True))


def _check_file(root: Path, media: Media, benchmarks: Benchmarks) -> CheckedFile:
    """A file once it was decoded, and compared with the benchmarks."""
    path = root / media.path
    if not path.is_file():
        return CheckedFile(Objection("media missing", media.path))
    try:
        check(root, media)
    except BadMedia as error:
        detail = str(error).replace(str(path), media.path)
        return CheckedFile(Objection("media damaged", detail))

    # A video is compared as a file, an image by what it shows.
    if media.kind == "video":
        place = benchmarks.video_overlap(media.sha256)
        if place:
            return CheckedFile(Objection("in benchmark", f"{media.path} is {place}"))
        return CheckedFile(None)
    hashed = image_hash(path)
    place = benchmarks.image_overlap(hashed)
    if place:
        objection = Objection("in benchmark", f"{media.path} looks like {place}")
        return CheckedFile(objection, hashed)
    return CheckedFile(None, hashed)


# What speaks against it


def _retained(facts: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Place and columns of the pairs that nothing speaks against so far."""
    retained = facts["reason"].isna()
    return facts.loc[retained, list(columns)].itertuples(name=None)


def _object(facts: pd.DataFrame, objections: Objections) -> None:
    """Note what speaks against pairs."""
    # All are collected before any is noted, for the rules read the same columns.
    by_place = dict(objections)
    if not by_place:
        return
    places = list(by_place)
    facts.loc[places, "reason"] = [objection.reason for objection in by_place.values()]
    facts.loc[places, "detail"] = [objection.detail for objection in by_place.values()]


def _to_media(facts: pd.DataFrame, files: Mapping[str, CheckedFile]) -> Objections:
    """A pair goes with any of its media."""
    for place, media in _retained(facts, "media"):
        objections = [files[one.path].objection for one in media]
        first = next(filter(None, objections), None)
        if first is not None:
            yield place, first


def _to_repeats(facts: pd.DataFrame) -> Objections:
    """The first of equal pairs is retained; a train pair that repeats a val pair is a leak, not a repeat."""
    # Splits apart, or a leak into val would be taken for a mere repeat.
    ids: set[str] = set()
    pairs: dict[tuple[str, bytes], str] = {}
    columns = ("id", "split", "pair", "exchanged")
    for place, id, split, pair, exchanged in _retained(facts, *columns):
        if id in ids:
            yield place, Objection("duplicate id")
        elif first := pairs.get((split, pair)):
            yield place, Objection("duplicate", f"of {first}")
        elif first := pairs.get((split, exchanged)):
            yield place, Objection("contradiction", f"to {first}")
        else:
            ids.add(id)
            pairs[split, pair] = id


class _Row(NamedTuple):
    """A pair as `_to_near_repeats` needs it."""

    place: int
    id: str
    split: str
    media: tuple[Media, ...]


def _to_near_repeats(
    facts: pd.DataFrame,
    signatures: Signatures,
    params: ValidateParams,
) -> Objections:
    """Of pairs nearly alike about the same media the first is retained, and val before train."""
    if params.near_duplicates is None:
        return
    # The earlier of two is retained, so val goes first: a stable sort leaves the rest in order.
    rows = [_Row(*row) for row in _retained(facts, "id", "split", "media")]
    rows.sort(key=lambda row: row.split == "train")

    # The same question about another image is another question.
    numbers: dict[tuple[str, ...], int] = {}
    groups = []
    for row in rows:
        media = tuple(one.sha256 for one in row.media)
        groups.append(numbers.setdefault(media, len(numbers)))

    signed = signatures[[row.place for row in rows]]
    firsts = near_duplicates(signed, np.array(groups, np.uint64), params.near_duplicates)
    for here, first in enumerate(firsts.tolist()):
        if first == here:
            continue
        row, original = rows[here], rows[first]
        reason = "near duplicate" if row.split == original.split else "held out"
        yield row.place, Objection(reason, f"nearly the same as {original.id}")


def _to_near_prompts(
    facts: pd.DataFrame,
    signatures: Signatures,
    held_out: pd.DataFrame,
    held_out_signatures: PromptSignatures,
    params: ValidateParams,
) -> Objections:
    """A train pair without media whose prompt is nearly one of val's goes, whatever its answers are."""
    if params.near_duplicates is None:
        return
    # Prompts of val count whether or not a pair is about them.
    retained = facts["reason"].isna()
    train = np.flatnonzero(_is_comparable(facts, "train", params) & retained)
    pairs = np.flatnonzero(_is_comparable(facts, "val", params) & retained)
    prompts = np.flatnonzero(_is_comparable(held_out, "val", params))
    val_ids = held_out["id"].iloc[prompts].tolist()
    val_ids += facts["id"].iloc[pairs].tolist()
    val = np.concatenate([held_out_signatures[prompts], signatures[pairs, :1]])
    nearest = near_prompts(signatures[:, :1], train, val, params.near_duplicates)
    hits = []
    for place, of in zip(train.tolist(), nearest.tolist(), strict=True):
        if of >= 0:
            hits.append((place, of))

    # Many prompts that are nearly one are a template: the question is in the few words that differ.
    one_group = np.zeros(len(val), np.uint64)
    templates = near_duplicates(val, one_group, params.near_duplicates).tolist()
    variants: dict[int, set[bytes]] = defaultdict(set)
    for place, of in hits:
        variants[templates[of]].add(facts["prompt"].iat[place])
    for place, of in hits:
        if len(variants[templates[of]]) <= COMMON:
            yield place, Objection("held out", f"prompt nearly that of {val_ids[of]}")


def _is_comparable(
    facts: pd.DataFrame,
    split: str,
    params: ValidateParams,
) -> np.ndarray:
    """Which rows of a split have no media, and a prompt of words enough to be compared."""
    has_words = facts["prompt_words"] >= params.near_prompt_words
    has_media = facts["media"].astype(bool)
    is_of_split = facts["split"] == split
    return (is_of_split & has_words & ~has_media).to_numpy()


def _val_of(facts: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """All of val: the prompts held out, whether or not a pair is about them, and the pairs retained for it."""
    is_val = facts["reason"].isna() & (facts["split"] == "val")
    return pd.concat([held_out, facts.loc[is_val, TABLED]])


def _to_leaks(
    facts: pd.DataFrame,
    val: pd.DataFrame,
    files: Mapping[str, CheckedFile],
    params: ValidateParams,
) -> Objections:
    """A train pair whose prompt or media are in val goes: val must stay unseen, and train has more."""
    prompts = dict(zip(val["prompt"], val["id"], strict=True))
    owner = _owner(val, files, params.near_images)
    for place, split, prompt, media in _retained(facts, "split", "prompt", "media"):
        if split != "train":
            continue
        if prompt in prompts:
            yield place, Objection("held out", f"prompt of {prompts[prompt]}")
            continue
        owners = (owner(one.path) for one in media)
        first = next(filter(None, owners), None)
        if first is not None:
            yield place, Objection("held out", f"picture or film of {first}")


def _owner(
    val: pd.DataFrame,
    files: Mapping[str, CheckedFile],
    distance: int | None,
) -> Callable[[str], str | None]:
    """What tells which row of val has a file, or an image that looks like it: at most `distance` bits differ; none:
    only the file itself counts."""
    ids: dict[str, str] = {}
    for id, media in zip(val["id"], val["media"], strict=True):
        ids.update((one.path, id) for one in media)
    hashes: dict[str, ImageHash] = {}
    if distance is not None:
        for path, file in files.items():
            if file.image_hash is not None:
                hashes[path] = file.image_hash
    val_paths = [path for path in ids if path in hashes]
    index = ImageIndex([hashes[path] for path in val_paths])

    # Many pairs are about one image: it is searched for once.
    @cache
    def owner(path: str) -> str | None:
        """The row of val that has this file, or one that looks like it."""
        if path in ids or path not in hashes:
            return ids.get(path)
        similar = index.similar(hashes[path], distance or 0)
        return ids[val_paths[similar[0]]] if similar else None

    return owner


# What comes of it


def _write(
    tables: Sequence[Path],
    facts: pd.DataFrame,
    outputs: Mapping[str, Path],
) -> None:
    """Copy the retained pairs of each split, in their order."""
    outcomes = np.where(facts["reason"].isna(), facts["split"], "")
    start = 0
    with ExitStack() as stack:
        copies = {}
        for split, path in outputs.items():
            copies[split] = stack.enter_context(copying(path))
        for table in tables:
            for _, batch in read_batches(table):
                batch_outcomes = outcomes[start : start + len(batch)]
                start += len(batch)
                for split, copy in copies.items():
                    copy(batch.filter(pa.array(batch_outcomes == split)))


def _written(facts: pd.DataFrame, outputs: Mapping[str, Path]) -> pd.DataFrame:
    """The facts of the rows that were copied, which the outputs are held against, row by row."""
    retained = facts.loc[facts["reason"].isna(), TABLED]
    by_split = [retained.loc[retained["split"] == split] for split in outputs]
    written = pd.concat(by_split, ignore_index=True)
    # What is checked must be what was written, whatever the rules meant to write.
    ids = []
    for path in outputs.values():
        ids += pq.read_table(path, columns=["id"])["id"].to_pylist()
    paths = ", ".join(map(str, outputs.values()))
    assert ids == written["id"].tolist(), f"{paths}: not the rows that were retained"
    return written


def _tables(
    facts: Mapping[Suite, pd.DataFrame],
    num_judged: int,
    media: Path,
    unusable: Collection[str],
) -> Iterator[tuple[str, Suite, pd.DataFrame]]:
    """What came in, and the pairs that go out; one after another, for a million rows take 300 MB."""
    prompts = facts["prompts"]
    held_out = prompts.loc[prompts["split"] == "val"]
    yield "Prompts", "prompts", table_of(prompts, media, unusable)
    yield "Candidates", "candidates", table_of(facts["candidates"], media, unusable)

    # Judged and ready pairs share their media and prompts, so their table is made of both.
    pairs = table_of(facts["pairs"], media, unusable, held_out)
    yield "Judged pairs", "pairs", pairs.iloc[:num_judged]
    yield "Ready pairs", "pairs", pairs.iloc[num_judged:]
    del pairs
    written = table_of(facts["written"], media, unusable, held_out)
    yield "Pairs that are written", "written", written


def _check(
    params: ValidateParams,
    tables: Iterable[tuple[str, Suite, pd.DataFrame]],
) -> dict[str, list[Check]]:
    """What the tables fulfil."""
    checks = {}
    for title, name, table in tables:
        # Nothing came in of a kind that this run has not; but nothing to train on is an error.
        if len(table) or name == "written":
            checks[title] = run_checks(table, suite(name, params))
    return checks


def _too_much(facts: pd.DataFrame, params: ValidateParams) -> Iterator[str]:
    """Which limits on what is dropped are broken."""
    # Of all pairs together.
    dropped = Counter(facts["reason"].dropna())
    share = dropped.total() / max(len(facts), 1)
    if share > params.max_rejected_share:
        worst = []
        for reason, count in dropped.most_common(WORST):
            worst.append(f"{count} for {reason!r}: {ADVICE[reason]}")
        limit = f"validate.max_rejected_share: {params.max_rejected_share}"
        yield f"{limit}: {share:.0%} of {len(facts)} pairs were dropped, {'; '.join(worst)}"

    # And of single reasons, each with the source that it comes from most.
    for reason, limit in params.max_share.items():
        share = dropped[reason] / max(len(facts), 1)
        if share > limit:
            rows = facts[facts["reason"] == reason]
            source, count = Counter(rows["source"]).most_common(1)[0]
            origin = f"{count} of {len(rows)} from {source}, such as {rows.id.iloc[0]}"
            most = f"{share:.1%} of {len(facts)} pairs, {origin}"
            yield f"validate.max_share: {reason}: {limit}: {most}; {ADVICE[reason]}"


def _too_little(facts: pd.DataFrame, params: ValidateParams) -> Iterator[str]:
    """Which splits have less pairs than they must have."""
    num_retained = _num_retained(facts)
    for split in ("train", "val"):
        num = num_retained[split]
        if num < params.min_pairs:
            few = f"validate.min_pairs: {params.min_pairs}: only {num} pairs are left in {split}"
            yield f"{few}; add sources or prompts, or lower it"


def _num_retained(facts: pd.DataFrame) -> Counter[str]:
    """By split."""
    return Counter(facts.loc[facts["reason"].isna(), "split"])


def _not_met(checks: dict[str, list[Check]]) -> Iterator[str]:
    """Which expectations are not met, or could not be computed."""
    for title, results in checks.items():
        for result in results:
            reason = f"{result.says}; {result.detail}"
            if result.status == "errored":
                yield f"{title}: could not be computed, which says nothing about the data: {reason}"
            elif result.status == "failed" and result.critical:
                yield f"{title}: expectation not met: {reason}"


def _dropped(facts: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """The rows of the quarantine."""
    rows = facts.loc[facts["reason"].notna(), list(_DROPPED)]
    for id, source, split, reason, detail in rows.itertuples(index=False, name=None):
        yield id, source, split, reason, detail, ADVICE[reason]


def _metrics(facts: pd.DataFrame, checks: dict[str, list[Check]]) -> Metrics:
    """Counts of what came in and what became of it; a reason that never occurred is a 0."""
    dropped = Counter(facts["reason"].dropna())
    num_retained = _num_retained(facts)
    # A check that could not be computed stops the stage, so that it needs no number.
    statuses: Counter[str] = Counter()
    for results in checks.values():
        statuses.update(check.status for check in results)

    counts = {
        "pairs": len(facts),
        "kept/train": num_retained["train"],
        "kept/val": num_retained["val"],
    }
    for reason in REASONS:
        counts[f"dropped/{reason}"] = dropped[reason]
    for status in ("passed", "failed"):
        counts[f"checks/{status}"] = statuses[status]
    return {name: float(count) for name, count in counts.items()}
