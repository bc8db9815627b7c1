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
    {
        "source": pa.string(),
        "where": pa.string(),
        "reason": pa.string(),
        "stage": pa.string(),
    }
)
_LINKS = pa.schema(
    {
        "own": pa.string(),
        "bonds": pa.string(),
    }
)
"""By sample: the split that its source gives it, and the keys that it shares with what it is linked to."""
SAMPLES, REFUSED, LINKS = "samples.parquet", "refused.parquet", "bonds.parquet"
"""What a source gave: in a folder that is whole or absent, so that a run that was stopped need not read it again."""


class Source(NamedTuple):
    """A source of `params.yaml`, ready to be read."""

    name: str
    licence: Licence
    commercial: bool
    admitted: bool
    """By `collect.licences`."""
    respect_splits: bool
    role: Role | None
    rows: Iterator[Row | Refused]
    folder: str
    """Where its samples are until the run ends: a name that changes with everything that they depend on."""


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
    """Sort the rows of every source into prompts, pairs and corpus; what is refused is quarantined with its reason.

    Rows = kept + quarantined + left out by the mixture, for every source; `unread` counts those that
    `collect.licences` leaves out. The media folder is added to, and then cleared of what no row refers to any more: its
    files never change. What a run that was stopped had taken in is not checked again: single media, and whole sources.

    Raises:
        BadSource: a source is unknown or missing, or no row of any source can be used.
    """
    # Every source is checked, and its licence, before anything is read.
    code = Code()
    configured = []
    for index, source in enumerate(params.sources):
        configured.append(_source(source, index, params, code))
    print(_licences(configured))
    sources = [source for source in configured if source.admitted]
    if params.sources and not sources:
        raise BadSource(
            "params.yaml: every source is left out; set collect.licences: any, or add a source"
        )
    counts = Counter(f"unread/{source.name}" for source in configured if not source.admitted)
    counts.update(dict.fromkeys(_expected(sources), 0))
    media_out.mkdir(parents=True, exist_ok=True)

    # Each source in a folder of its own: what a run that was stopped has read whole is taken from there.
    work = prompts_out.with_name(".collect")
    folders = [work / source.folder for source in sources]
    for stale in set(work.glob("*")) - set(folders):
        shutil.rmtree(stale)
    store = Store(media_out, params.max_pixels)
    for step, (source, folder) in enumerate(zip(sources, folders, strict=True)):
        if _is_whole(folder, media_out):
            print(f"{source.name}: read by the run before, which was stopped: taken from {folder}")
        else:
            _read_source(source, params, folder, store)
        num_refused = pq.read_metadata(folder / REFUSED).num_rows
        num_samples = pq.read_metadata(folder / SAMPLES).num_rows
        counts[f"quarantined/{source.name}"] = num_refused
        counts[f"rows/{source.name}"] = num_refused + num_samples
        num_rows = sum(counts[f"rows/{each.name}"] for each in sources)
        log({"rows": float(num_rows)}, step)
    write_quarantine(_refused(folders), quarantine_out, QUARANTINE)

    # Splits and mixture look at all samples together; then each goes to its output.
    splits, outcomes = _decide(folders, params)
    if not len(splits):
        shutil.rmtree(work, ignore_errors=True)
        raise BadSource(_nothing(quarantine_out))
    outputs = {"prompts": prompts_out, "pairs": public_out, "corpus": corpus_out}
    used_media = _write_outputs(folders, splits, outcomes, outputs, counts)

    # The outputs are whole: what was read is not needed again, nor are media that no row refers to.
    shutil.rmtree(work)
    store.prune(used_media)
    counts.update(_short(params.mixture, counts))
    print(_balance(sources, counts))
    for source in sources:
        if counts[f"held_out/{source.name}"] == counts[f"kept/{source.name}"] > 0:
            print(f"{source.name}: all is held out: {_ALL_HELD_OUT}")
    counts["media"] = len(used_media)
    return {name: float(count) for name, count in sorted(counts.items())}


# Where the rows come from


def _source(
    source: SourceParams,
    index: int,
    params: CollectParams,
    code: Code,
) -> Source:
    """A source, checked before anything is read."""
    key = f"params.yaml: collect.sources[{index}]"
    if source.reader not in READERS:
        known = ", ".join(sorted(READERS))
        raise BadSource(f"{key}.reader: {source.reader!r}: no such reader; one of {known}")

    # The owner of a data set may have granted more, or less, than its licence does.
    licence = READERS[source.reader].licence
    commercial = licence.commercial if source.commercial is None else source.commercial
    admitted = commercial or params.licences == "any"
    rows = _rows(source, key, params) if admitted else iter(())

    # Without path and hub, nothing is stale.
    folder = str(index)
    if source.path or source.hub:
        folder = _digest(source, params, code)
    return Source(
        name=source.name or source.reader,
        licence=licence,
        commercial=commercial,
        admitted=admitted,
        respect_splits=source.respect_splits,
        role=source.role,
        rows=rows,
        folder=folder,
    )


def _rows(
    source: SourceParams,
    key: str,
    params: CollectParams,
) -> Iterator[Row | Refused]:
    """The rows of a source, which are read only when they are taken."""
    path = Path(params.root) / source.path
    if not source.hub and not path.exists():
        raise BadSource(f"{key}.path: {path}: does not exist; correct it, or fetch the data")
    # Some data sets are nowhere but on the hub; everything else is a file or a folder.
    origin: Hub | Path = path
    if source.hub:
        origin = Hub(
            name=source.hub,
            config=source.config,
            split=source.split,
            revision=source.revision,
        )
    read = READERS[source.reader]
    try:
        rows = read(origin, params.seed, **source.options)
    except BadOption as error:
        raise BadSource(f"{key}.{error}") from error
    return islice(rows, source.limit)


def _digest(source: SourceParams, params: CollectParams, code: Code) -> str:
    """Of the parameters, the code and the files, by name, size and time, that a source's samples depend on."""
    place = Path(source.hub) if source.hub else Path(params.root) / source.path
    files = []
    for path in sorted([place, *place.rglob("*")]):
        if not path.is_file():
            continue
        stat = path.stat()
        files.append((path.as_posix(), stat.st_size, stat.st_mtime_ns))
    # A changed reader gives other samples, and so does a changed file.
    modules = code.digests("collect", {source.reader})
    return digest(source, params.seed, params.max_pixels, params.max_chars, files, modules)


def _licences(sources: Sequence[Source]) -> str:
    """What may be done with the sources, as a table."""
    lines = [("source", "licence", "commercial use", "")]
    for source in sources:
        # A source that is left out is listed too, for its licence is the reason.
        left_out = "" if source.admitted else "left out by collect.licences"
        notes = filter(None, (left_out, source.licence.note))
        note = "; ".join(notes)
        commercial = "yes" if source.commercial else "no"
        lines.append((source.name, source.licence.name, commercial, note))
    return _table(lines)


def _balance(sources: Sequence[Source], counts: Counter[str]) -> str:
    """What came in and what did not, as a table; `held_out` is a part of `kept`."""
    columns = (*_OUTCOMES, "held_out")
    lines: list[tuple[str, ...]] = [("source", *columns)]
    for source in sources:
        numbers = [counts[f"{column}/{source.name}"] for column in columns]
        lines.append((source.name, *(f"{number:,}" for number in numbers)))
    return _table(lines)


def _short(mixture: MixtureParams, counts: Counter[str]) -> Counter[str]:
    """How many samples are fewer than the mixture asks for: `short`, they did not come in; `thinned`, they did."""
    short: Counter[str] = Counter()
    for limit in _limits(mixture, counts):
        present = limit.retained + counts[f"left_out/{limit.name}"]
        lacking = max(limit.most - present, 0)
        thinned = min(limit.most, present) - limit.retained
        short[f"short/{limit.name}"] = lacking
        short[f"thinned/{limit.name}"] = thinned

        # Two remedies: more data, or another number in the mixture.
        where = f"{limit.key}: {limit.most}"
        if lacking:
            print(f"{where}: {lacking:,} samples are lacking; add data, or ask for less")
        if thinned:
            others = []
            for rule in _rules(mixture):
                if not limit.key.startswith(rule.key):
                    others.append(f"{rule.key}: {rule.value}")
            rules = " and ".join(others)
            there = f"{thinned:,} samples are there, but left out by {rules}"
            print(f"{where}: {there}; change one of the two")
    return short


class _Limit(NamedTuple):
    """A number of the mixture."""

    key: str
    """Where it stands in `params.yaml`."""
    name: str
    """What it counts, as the metrics name it."""
    most: int
    retained: int


def _limits(mixture: MixtureParams, counts: Counter[str]) -> Iterator[_Limit]:
    """Every number of the mixture, the sources first."""
    for name, most in mixture.sources.items():
        retained = counts[f"kept/{name}"]
        yield _Limit(f"collect.mixture.sources.{name}", name, most, retained)
    for name, most in mixture.domains.items():
        retained = counts[f"prompts/domain/{name}"] + counts[f"pairs/domain/{name}"]
        yield _Limit(f"collect.mixture.domains.{name}", f"domain/{name}", most, retained)


class _Rule(NamedTuple):
    """A section of the mixture that is in force."""

    key: str
    value: object


def _rules(mixture: MixtureParams) -> Iterator[_Rule]:
    """The sections of the mixture that are in force."""
    for name in ("sources", "domains", "images_per_text"):
        value = getattr(mixture, name)
        if value:
            yield _Rule(f"collect.mixture.{name}", value)


_OUTCOMES = ("rows", "kept", "quarantined", "left_out")
_ALL_HELD_OUT = "its authors' test rows, or bound to such; `respect_splits: false` for it trains on them all the same"


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    """Lines of cells as text, in columns."""
    columns = zip(*lines, strict=True)
    widths = [max(map(len, column)) for column in columns]
    padded = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        padded.append("  ".join(cells).rstrip())
    return "\n".join(padded)


def _expected(sources: Sequence[Source]) -> Iterator[str]:
    """Counts that are reported even if they are 0."""
    for source in sources:
        for outcome in (*_OUTCOMES, "held_out"):
            yield f"{outcome}/{source.name}"
    yield from ("prompts/all", "pairs/all", "corpus/all")


# Rows in


def _read_source(
    source: Source,
    params: CollectParams,
    path: Path,
    store: Store,
) -> None:
    """Write the usable rows of a source as samples, what links them to others, and the refused rows."""
    ids: set[str] = set()
    with ExitStack() as stack:
        folder = stack.enter_context(replacing_folder(path))
        put_sample = stack.enter_context(writing(folder / SAMPLES))
        put_link = stack.enter_context(quarantining(folder / LINKS, _LINKS))
        put_refused = stack.enter_context(quarantining(folder / REFUSED, QUARANTINE))
        # Row by row: a source may be larger than the memory.
        for item in track(source.rows, source.name):
            sample = admitted(item, source.name, source.role, params, store, ids)
            if isinstance(sample, Refused):
                put_refused((source.name, sample.where, sample.reason, "collect"))
            elif isinstance(item, Row):
                ids.add(sample.id)
                put_sample(sample)
                # The group of a row is not in its sample, so that the keys are computed here.
                own_split = item.split if source.respect_splits else None
                keys = map(str, link_keys(sample, item.group))
                put_link((own_split or "", " ".join(keys)))


def _is_whole(folder: Path, media: Path) -> bool:
    """Whether a source was read to its end by a run that was stopped, and its media are still there."""
    if not folder.is_dir():
        return False
    for _, batch in read_batches(folder / SAMPLES):
        paths = _media_paths(batch)
        if not all((media / path).is_file() for path in paths):
            return False
    return True


def _media_paths(batch: pa.RecordBatch) -> set[str]:
    """The files that rows of samples refer to, relative to the media folder."""
    paths = set()
    for files in batch["media"].to_pylist():
        paths.update(file["path"] for file in files)
    return paths


def _refused(folders: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """The rows of the quarantine, source after source."""
    for folder in folders:
        for row in _texts(folder / REFUSED):
            yield tuple(row.values())


def _texts(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table of texts, batch by batch."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _decide(folders: Sequence[Path], params: CollectParams) -> tuple[np.ndarray, np.ndarray]:
    """Of every sample, its split and its outcome: the output it goes to, or `left_out`."""
    # Links go through other sources, so that no sample's split is known before all are read.
    linked = Splits()
    tickets = []
    for folder in folders:
        for sample in read_samples(folder / SAMPLES):
            tickets.append(ticket(sample, params.seed))
        for row in _texts(folder / LINKS):
            linked.add(map(int, row["bonds"].split()), row["own"])
    splits = list(linked.decided(params.val_fraction, params.seed))

    # A ticket's group ends in the sample's split, which was not known when it was written.
    outputs = [each.group.partition("/")[0] for each in tickets]
    grouped = []
    for each, output, split in zip(tickets, outputs, splits, strict=True):
        grouped.append(each._replace(group=f"{output}/{split}"))
    is_drawn = draw(grouped, params.mixture)
    return np.array(splits), np.where(is_drawn, outputs, "left_out")


def _nothing(quarantine: Path) -> str:
    """Why there is nothing to write, and where to look."""
    # The first refusal is most often the reason of all.
    lines = pq.read_table(quarantine).slice(0, 1).to_pylist()
    first = "the sources are empty"
    if lines:
        first = f"the first: {lines[0]['where']}: {lines[0]['reason']}"
    return f"no row of any source can be used; {first}; see {quarantine.name}"


# Samples out


def _write_outputs(
    folders: Sequence[Path],
    splits: np.ndarray,
    outcomes: np.ndarray,
    outputs: dict[str, Path],
    counts: Counter[str],
) -> set[str]:
    """Sort what was drawn into the outputs, rows as they are but for their split; the media that they refer to.

    Args:
        splits: of every sample.
        outcomes: of every sample: the output it goes to, or `left_out`.
    """
    used_media: set[str] = set()
    with ExitStack() as stack:
        parts = {}
        for name, path in outputs.items():
            parts[name] = stack.enter_context(replacing(path))
        copy_prompts = stack.enter_context(copying(parts["prompts"]))
        copy_pairs = stack.enter_context(copying(parts["pairs"]))
        put_corpus = stack.enter_context(writing(parts["corpus"]))
        for start, batch in _batches(folders, splits):
            batch_outcomes = outcomes[start : start + len(batch)]
            left_out = batch.filter(pa.array(batch_outcomes == "left_out"))
            _count_left_out(left_out, counts)

            # Prompts and pairs are copied as they are, without a look at their rows.
            for name, copy in (("prompts", copy_prompts), ("pairs", copy_pairs)):
                rows = batch.filter(pa.array(batch_outcomes == name))
                copy(rows)
                _count(name, rows, counts)

            rows = batch.filter(pa.array(batch_outcomes != "left_out"))
            _count_retained(rows, counts)
            used_media |= _media_paths(rows)

            # The corpus has its own rows, and those whose reference answer can be cleaned like one.
            cleanable = _cleanable(rows)
            _count("corpus", cleanable, counts)
            for sample in decoded(cleanable, outputs["corpus"]):
                put_corpus(sample if sample.role == "corpus" else _reference(sample))
    return used_media


def _batches(folders: Sequence[Path], splits: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The samples of all sources with their splits, each batch with the number of its first."""
    start = 0
    column = SCHEMA.get_field_index("split")
    for folder in folders:
        for _, batch in read_batches(folder / SAMPLES):
            end = start + len(batch)
            batch_splits = pa.array(splits[start:end], pa.string())
            yield start, batch.set_column(column, "split", batch_splits)
            start = end


def _cleanable(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows for the corpus, and the held-out prompts and pairs whose gold answer is known in full words."""
    is_cleanable = []
    for for_corpus, split, gold in zip(
        _for_corpus(rows),
        rows["split"].to_pylist(),
        rows["gold"].to_pylist(),
        strict=True,
    ):
        has_reference = gold is not None and gold["answer"] != ""
        is_cleanable.append(for_corpus or (split == "val" and has_reference))
    return rows.filter(pa.array(is_cleanable, pa.bool_()))


def _for_corpus(rows: pa.RecordBatch) -> list[bool]:
    """Whether each row has one answer, as `Sample.role` has it."""
    answers = zip(
        rows["chosen"].to_pylist(),
        rows["rejected"].to_pylist(),
        strict=True,
    )
    return [bool(chosen) and not rejected for chosen, rejected in answers]


def _reference(sample: Sample) -> Sample:
    """A held-out sample with its reference answer as the only one."""
    assert sample.gold is not None
    return replace(
        sample,
        chosen=answer(sample.gold.answer),
        rejected=(),
        verdict=None,
    )


def _count_left_out(rows: pa.RecordBatch, counts: Counter[str]) -> None:
    """What the mixture left out, by source and by domain."""
    for source in rows["source"].to_pylist():
        counts[f"left_out/{source}"] += 1
    # The mixture's numbers by domain are about what is trained on.
    domains = rows["domain"].to_pylist()
    for domain, for_corpus in zip(domains, _for_corpus(rows), strict=True):
        if not for_corpus:
            counts[f"left_out/domain/{domain}"] += 1


def _count_retained(rows: pa.RecordBatch, counts: Counter[str]) -> None:
    """What goes to one of the outputs, and how much of it is held out, by source."""
    sources, splits = rows["source"].to_pylist(), rows["split"].to_pylist()
    for source, split in zip(sources, splits, strict=True):
        counts[f"kept/{source}"] += 1
        if split == "val":
            counts[f"held_out/{source}"] += 1


def _count(
    name: str,
    rows: pa.RecordBatch,
    counts: Counter[str],
) -> None:
    """The rows of an output: all, by split, by domain and by modality."""
    counts[f"{name}/all"] += len(rows)
    for aspect in ("split", "domain", "modality"):
        for value in rows[aspect].to_pylist():
            counts[f"{name}/{aspect}/{value}"] += 1
