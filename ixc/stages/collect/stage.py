"""Stage `collect`: rows of every source in; prompts, ready pairs, a corpus and their media out.

The corpus holds the rows of the sources that are for it, all of them, and the held-out prompts' reference answers.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.media import Store
from ixc.data.samples import (
    SCHEMA,
    Role,
    Sample,
    answer,
    copying,
    decoded,
    read_batches,
    read_samples,
    writing,
)
from ixc.data.sources import READERS, BadOption, BadSource, Refused, Row
from ixc.data.sources.hub import Hub
from ixc.data.sources.licences import Licence
from ixc.data.sources.splits import Splits, link_keys
from ixc.io.digests import digest
from ixc.io.files import replacing, replacing_folder, track
from ixc.io.fingerprint import Code
from ixc.io.quarantine import quarantining, write_quarantine
from ixc.metrics import Log, Metrics, ignore
from ixc.params import CollectParams, MixtureParams, SourceParams
from ixc.stages.collect.admission import admitted
from ixc.stages.collect.mixture import draw, ticket

QUARANTINE = pa.schema(
    {"source": pa.string(), "where": pa.string(), "reason": pa.string(), "stage": pa.string()}
)
_BONDS = pa.schema({"own": pa.string(), "bonds": pa.string()})
SAMPLES, REFUSED, BONDS = "samples.parquet", "refused.parquet", "bonds.parquet"
"""What a source gave: in a folder that is whole or absent, so that a run that was stopped need not read it again."""


class Source(NamedTuple):
    """A source of `params.yaml`, found and ready to be read."""

    name: str
    licence: Licence
    commercial: bool
    admitted: bool
    """By `collect.licences`."""
    respect_splits: bool
    role: Role | None
    rows: Iterator[Row | Refused]
    part: str
    """What its samples are kept under until the run ends: another for everything that they depend on."""


def run(
    params: CollectParams,
    prompts_out: Path,
    public_out: Path,
    corpus_out: Path,
    media_out: Path,
    quarantine_out: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Sort the rows of every source into prompts, pairs and corpus; what is refused is kept with its reason.

    Rows = kept + quarantined + left out by the mixture, for every source; `unread` counts those that
    `collect.licences` leaves out. The media folder is added to, and then cleared of what no row shows any more: its
    files never change. What a run that was stopped had taken in is not checked again: single media, and whole sources.

    Raises:
        BadSource: a source is unknown or missing, or no row of any source can be used.
    """
    code = Code()
    sources = [_source(source, index, params, code) for index, source in enumerate(params.sources)]
    print(_licences(sources))
    counts = Counter(f"unread/{source.name}" for source in sources if not source.admitted)
    sources = [source for source in sources if source.admitted]
    if params.sources and not sources:
        raise BadSource(
            "params.yaml: every source is left out; set collect.licences: any, or add a source"
        )
    media_out.mkdir(parents=True, exist_ok=True)
    counts.update(dict.fromkeys(_expected(sources), 0))

    work = prompts_out.with_name(".collect")
    parts = [work / source.part for source in sources]
    for stale in set(work.glob("*")) - set(parts):
        shutil.rmtree(stale)
    store = Store(media_out, params.max_pixels)
    for step, (source, part) in enumerate(zip(sources, parts, strict=True)):
        if _whole(part, media_out):
            print(f"{source.name}: read by the run before, which was stopped: taken from {part}")
        else:
            _take_in(source, params, part, store)
        counts[f"quarantined/{source.name}"] = pq.read_metadata(part / REFUSED).num_rows
        counts[f"rows/{source.name}"] = (
            counts[f"quarantined/{source.name}"] + pq.read_metadata(part / SAMPLES).num_rows
        )
        log({"rows": float(sum(counts[f"rows/{each.name}"] for each in sources))}, step)

    refused = (tuple(row.values()) for part in parts for row in _texts(part / REFUSED))
    write_quarantine(refused, quarantine_out, QUARANTINE)
    splits, fates = _decided(parts, params)
    if not len(splits):
        shutil.rmtree(work, ignore_errors=True)
        raise BadSource(_nothing(quarantine_out))
    outputs = {"prompts": prompts_out, "pairs": public_out, "corpus": corpus_out}
    shown = _give_out(parts, splits, fates, outputs, counts)
    shutil.rmtree(work)
    counts.update(_short(params.mixture, counts))
    store.prune(shown)
    print(_balance(sources, counts))
    for source in sources:
        if counts[f"held_out/{source.name}"] == counts[f"kept/{source.name}"] > 0:
            print(f"{source.name}: all is held out: {_ALL_HELD_OUT}")
    return {name: float(count) for name, count in sorted({**counts, "media": len(shown)}.items())}


# Where the rows come from


def _source(source: SourceParams, index: int, params: CollectParams, code: Code) -> Source:
    """A source, checked before anything is read."""
    key = f"params.yaml: collect.sources[{index}]"
    if source.reader not in READERS:
        raise BadSource(
            f"{key}.reader: {source.reader!r}: no such reader; one of {', '.join(sorted(READERS))}"
        )
    licence = READERS[source.reader].licence
    commercial = licence.commercial if source.commercial is None else source.commercial
    admitted = commercial or params.licences == "any"
    rows = _rows(source, key, params) if admitted else iter(())
    # without path and hub, nothing is stale
    part = _digest(source, params, code) if source.path or source.hub else str(index)
    name = source.name or source.reader
    return Source(
        name, licence, commercial, admitted, source.respect_splits, source.role, rows, part
    )


def _rows(source: SourceParams, key: str, params: CollectParams) -> Iterator[Row | Refused]:
    path = Path(params.root) / source.path
    if not source.hub and not path.exists():
        raise BadSource(f"{key}.path: {path}: does not exist; correct it, or fetch the data")
    hub = Hub(name=source.hub, config=source.config, split=source.split, revision=source.revision)
    try:
        rows = READERS[source.reader](hub if source.hub else path, params.seed, **source.options)
    except BadOption as error:
        raise BadSource(f"{key}.{error}") from error
    return islice(rows, source.limit)


def _digest(source: SourceParams, params: CollectParams, code: Code) -> str:
    """Of the parameters, the code and the files, by name, size and time, that a source's samples depend on."""
    place = Path(source.hub) if source.hub else Path(params.root) / source.path
    files = sorted(file for file in (place, *place.rglob("*")) if file.is_file())
    seen = [(file.as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    runs = code.digests("collect", {source.reader})
    return digest(source, params.seed, params.max_pixels, params.max_chars, seen, runs)


def _licences(sources: Sequence[Source]) -> str:
    """What may be done with the sources, as a table."""
    lines = [("source", "licence", "commercial use", "")]
    for source in sources:
        left_out = "" if source.admitted else "left out by collect.licences"
        note = "; ".join(filter(None, (left_out, source.licence.note)))
        lines.append((source.name, source.licence.name, "yes" if source.commercial else "no", note))
    return _table(lines)


def _balance(sources: Sequence[Source], counts: Counter[str]) -> str:
    """What came in and what did not, as a table; `held_out` is a part of `kept`."""
    columns = (*_FATES, "held_out")
    lines = [("source", *columns)]
    lines += [
        (source.name, *(f"{counts[f'{column}/{source.name}']:,}" for column in columns))
        for source in sources
    ]
    return _table(lines)


def _short(mixture: MixtureParams, counts: Counter[str]) -> Counter[str]:
    """How many samples are fewer than the mixture asks for: `short`, they did not come in; `thinned`, they did."""
    short: Counter[str] = Counter()
    for key, name, most, kept in _asked(mixture, counts):
        there = kept + counts[f"left_out/{name}"]
        lacking, thinned = max(most - there, 0), min(most, there) - kept
        short[f"short/{name}"], short[f"thinned/{name}"] = lacking, thinned
        if lacking:
            print(f"{key}: {most}: {lacking:,} samples are lacking; add data, or ask for less")
        if thinned:
            rules = " and ".join(
                rule for rule in _rules(mixture) if not key.startswith(rule.partition(":")[0])
            )
            print(
                f"{key}: {most}: {thinned:,} samples are there, but left out by {rules}; change one of the two"
            )
    return short


def _asked(mixture: MixtureParams, counts: Counter[str]) -> Iterator[tuple[str, str, int, int]]:
    """Each number of the mixture: its key, what it counts, the number, and how many were kept."""
    for name, most in mixture.sources.items():
        yield f"collect.mixture.sources.{name}", name, most, counts[f"kept/{name}"]
    for name, most in mixture.domains.items():
        kept = counts[f"prompts/domain/{name}"] + counts[f"pairs/domain/{name}"]
        yield f"collect.mixture.domains.{name}", f"domain/{name}", most, kept


def _rules(mixture: MixtureParams) -> Iterator[str]:
    for rule in ("sources", "domains", "images_per_text"):
        if value := getattr(mixture, rule):
            yield f"collect.mixture.{rule}: {value}"


_FATES = ("rows", "kept", "quarantined", "left_out")
_ALL_HELD_OUT = "its authors' test rows, or bound to such; `respect_splits: false` for it trains on them all the same"


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in padded
    )


def _expected(sources: Sequence[Source]) -> Iterator[str]:
    """Counts that are reported even if they are 0."""
    for source in sources:
        yield from (f"{fate}/{source.name}" for fate in (*_FATES, "held_out"))
    yield from ("prompts/all", "pairs/all", "corpus/all")


# Rows in


def _take_in(source: Source, params: CollectParams, part: Path, store: Store) -> None:
    """Write the usable rows of a source as samples, what binds them to others, and the refused rows."""
    seen: set[str] = set()
    with ExitStack() as stack:
        folder = stack.enter_context(replacing_folder(part))
        put = stack.enter_context(writing(folder / SAMPLES))
        bind = stack.enter_context(quarantining(folder / BONDS, _BONDS))
        refuse = stack.enter_context(quarantining(folder / REFUSED, QUARANTINE))
        for item in track(source.rows, source.name):
            sample = admitted(item, source.name, source.role, params, store, seen)
            if isinstance(sample, Refused):
                refuse((source.name, sample.where, sample.reason, "collect"))
            elif isinstance(item, Row):
                seen.add(sample.id)
                put(sample)
                own = item.split if source.respect_splits else None
                bind((own or "", " ".join(map(str, link_keys(sample, item.group)))))


def _whole(part: Path, media: Path) -> bool:
    """Whether a source was read to its end by a run that was stopped, and its media are still there."""
    if not part.is_dir():
        return False
    batches = (batch["media"].to_pylist() for _, batch in read_batches(part / SAMPLES))
    return all(
        (media / file["path"]).is_file() for batch in batches for files in batch for file in files
    )


def _texts(path: Path) -> Iterator[dict[str, str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _decided(parts: Sequence[Path], params: CollectParams) -> tuple[np.ndarray, np.ndarray]:
    """Of every sample, its split and its fate: the output it goes to, or `left_out`."""
    splits, tickets = Splits(), []
    for part in parts:
        for sample in read_samples(part / SAMPLES):
            tickets.append(ticket(sample, params.seed))
        for row in _texts(part / BONDS):
            splits.add(map(int, row["bonds"].split()), row["own"])
    decided = list(splits.decided(params.val_fraction, params.seed))
    kinds = [each.pile.partition("/")[0] for each in tickets]
    piled = zip(tickets, kinds, decided, strict=True)
    keep = draw(
        [each._replace(pile=f"{kind}/{split}") for each, kind, split in piled], params.mixture
    )
    return np.array(decided), np.where(keep, kinds, "left_out")


def _nothing(quarantine: Path) -> str:
    lines = pq.read_table(quarantine).slice(0, 1).to_pylist()
    first = (
        f"the first: {lines[0]['where']}: {lines[0]['reason']}"
        if lines
        else "the sources are empty"
    )
    return f"no row of any source can be used; {first}; see {quarantine.name}"


# Samples out


def _give_out(
    parts: Sequence[Path],
    splits: np.ndarray,
    fates: np.ndarray,
    outputs: dict[str, Path],
    counts: Counter[str],
) -> set[str]:
    """Sort what the draw kept into the outputs, rows as they are but for their split; the media that they show.

    Args:
        splits: of every sample.
        fates: of every sample: the output it goes to, or `left_out`.
    """
    shown: set[str] = set()
    with ExitStack() as stack:
        whole = {name: stack.enter_context(replacing(path)) for name, path in outputs.items()}
        put = {name: stack.enter_context(copying(whole[name])) for name in ("prompts", "pairs")}
        refer = stack.enter_context(writing(whole["corpus"]))
        for start, batch in _batches(parts, splits):
            here = fates[start : start + len(batch)]
            _count_left_out(batch.filter(pa.array(here == "left_out")), counts)
            for name, copy in put.items():
                rows = batch.filter(pa.array(here == name))
                copy(rows)
                _count(name, rows, counts)
            rows = batch.filter(pa.array(here != "left_out"))
            counts.update(f"kept/{source}" for source in rows["source"].to_pylist())
            kept = zip(rows["source"].to_pylist(), rows["split"].to_pylist(), strict=True)
            counts.update(f"held_out/{source}" for source, split in kept if split == "val")
            shown.update(file["path"] for files in rows["media"].to_pylist() for file in files)
            cleanable = _cleanable(rows)
            _count("corpus", cleanable, counts)
            for sample in decoded(cleanable, outputs["corpus"]):
                refer(sample if sample.role == "corpus" else _reference(sample))
    return shown


def _batches(parts: Sequence[Path], splits: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The samples of all sources with their splits, each batch with the number of its first."""
    start, column = 0, SCHEMA.get_field_index("split")
    for part in parts:
        for _, batch in read_batches(part / SAMPLES):
            here = pa.array(splits[start : start + len(batch)], pa.string())
            yield start, batch.set_column(column, "split", here)
            start += len(batch)


def _cleanable(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows for the corpus, and the held-out prompts and pairs whose gold answer is known in full words."""
    known = [gold is not None and gold["answer"] != "" for gold in rows["gold"].to_pylist()]
    held_out = [split == "val" for split in rows["split"].to_pylist()]
    wanted = [
        own or (out and has)
        for own, out, has in zip(_for_corpus(rows), held_out, known, strict=True)
    ]
    return rows.filter(pa.array(wanted, pa.bool_()))


def _for_corpus(rows: pa.RecordBatch) -> list[bool]:
    """Whether each row has one answer, as `Sample.role` has it."""
    return [
        bool(one) and not other
        for one, other in zip(*(rows[c].to_pylist() for c in _ANSWERS), strict=True)
    ]


_ANSWERS = ("chosen", "rejected")


def _reference(sample: Sample) -> Sample:
    assert sample.gold is not None
    return replace(sample, chosen=answer(sample.gold.answer), rejected=(), verdict=None)


def _count_left_out(rows: pa.RecordBatch, counts: Counter[str]) -> None:
    counts.update(f"left_out/{source}" for source in rows["source"].to_pylist())
    domains = zip(rows["domain"].to_pylist(), _for_corpus(rows), strict=True)
    counts.update(f"left_out/domain/{domain}" for domain, for_corpus in domains if not for_corpus)


def _count(name: str, rows: pa.RecordBatch, counts: Counter[str]) -> None:
    counts[f"{name}/all"] += len(rows)
    for aspect in ("split", "domain", "modality"):
        counts.update(f"{name}/{aspect}/{value}" for value in rows[aspect].to_pylist())
