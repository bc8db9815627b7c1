"""Stage `collect`: rows of every source in; prompts, ready pairs, a corpus and their media out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ixc.files import replacing, track
from ixc.media import BadMedia, Store
from ixc.metrics import Log, Metrics, ignore
from ixc.mixture import Ticket, draw, ticket
from ixc.params import CollectParams, MixtureParams, SourceParams
from ixc.samples import PLACEHOLDER, Media, Modality, Sample, Verdict, answer, copying, decoded, read_batches, writing
from ixc.sources import READERS, BadOption, BadSource, Refused, Row
from ixc.sources.hub import Hub
from ixc.sources.licences import Licence

_JSON = (str, int, float, list, dict, type(None))
QUARANTINE = pa.schema({"source": pa.string(), "where": pa.string(), "reason": pa.string(), "stage": pa.string()})


class Source(NamedTuple):
    """A source of `params.yaml`, found and ready to be read."""

    name: str
    licence: Licence
    commercial: bool
    admitted: bool
    """By `collect.licences`."""
    rows: Iterator[Row | Refused]


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
    `collect.licences` leaves out. The media folder is added to, and then
    cleared of what no row shows any more: its files never change, and those of a run that was stopped are not
    checked again.

    Raises:
        BadSource: a source is unknown or missing, or no row of any source can be used.
    """
    sources = [_source(source, index, params) for index, source in enumerate(params.sources)]
    print(_licences(sources))
    counts = Counter(f"unread/{source.name}" for source in sources if not source.admitted)
    sources = [source for source in sources if source.admitted]
    if params.sources and not sources:
        raise BadSource("params.yaml: every source is left out; set collect.licences: any, or add a source")
    media_out.mkdir(parents=True, exist_ok=True)
    counts.update(dict.fromkeys(_expected(sources), 0))

    with ExitStack() as stack:
        samples = prompts_out.with_name(".collect.parquet")
        stack.callback(samples.unlink, missing_ok=True)
        tickets = _take_in(sources, params, samples, Store(media_out, params.max_pixels), quarantine_out, counts, log)
        if not tickets:
            raise BadSource(_nothing(quarantine_out))
        kept = zip(tickets, draw(tickets, params.mixture), strict=True)
        fates = np.array([each.pile.partition("/")[0] if keep else "left_out" for each, keep in kept])
        outputs = {"prompts": prompts_out, "pairs": public_out, "corpus": corpus_out}
        shown = _give_out(samples, fates, outputs, counts)
    counts.update(_short(params.mixture, counts))
    Store(media_out).prune(shown)
    print(_balance(sources, counts))
    return {name: float(count) for name, count in sorted({**counts, "media": len(shown)}.items())}


# Where the rows come from


def _source(source: SourceParams, index: int, params: CollectParams) -> Source:
    """A source, checked before anything is read."""
    key = f"params.yaml: collect.sources[{index}]"
    if source.reader not in READERS:
        raise BadSource(f"{key}.reader: {source.reader!r}: no such reader; one of {', '.join(sorted(READERS))}")
    licence = READERS[source.reader].licence
    commercial = licence.commercial if source.commercial is None else source.commercial
    admitted = commercial or params.licences == "any"
    return Source(source.called, licence, commercial, admitted, _rows(source, key, params) if admitted else iter(()))


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


def _licences(sources: Sequence[Source]) -> str:
    """What may be done with the sources, as a table."""
    lines = [("source", "licence", "commercial use", "")]
    for source in sources:
        left_out = "" if source.admitted else "left out by collect.licences"
        note = "; ".join(filter(None, (left_out, source.licence.note)))
        lines.append((source.name, source.licence.name, "yes" if source.commercial else "no", note))
    return _table(lines)


def _balance(sources: Sequence[Source], counts: Counter[str]) -> str:
    """What came in and what did not, as a table."""
    lines = [("source", *_FATES)]
    lines += [(source.name, *(f"{counts[f'{fate}/{source.name}']:,}" for fate in _FATES)) for source in sources]
    return _table(lines)


def _short(mixture: MixtureParams, counts: Counter[str]) -> Counter[str]:
    """How many samples the sources and domains lack of what the mixture asks for."""
    short = Counter({f"short/{name}": most - counts[f"kept/{name}"] for name, most in mixture.sources.items()})
    for domain, most in mixture.domains.items():
        kept = counts[f"prompts/domain/{domain}"] + counts[f"pairs/domain/{domain}"]
        short[f"short/domain/{domain}"] = most - kept
    for name, count in short.items():
        if count:
            print(f"{name}: {count:,} samples are lacking; add data, or ask for less in collect.mixture")
    return short


_FATES = ("rows", "kept", "quarantined", "left_out")


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in padded)


def _expected(sources: Sequence[Source]) -> Iterator[str]:
    """Counts that are reported even if they are 0."""
    for source in sources:
        yield from (f"{fate}/{source.name}" for fate in _FATES)
    yield from ("prompts/all", "pairs/all", "corpus/all")


# Rows in


def _take_in(
    sources: Sequence[Source],
    params: CollectParams,
    samples_out: Path,
    store: Store,
    quarantine_out: Path,
    counts: Counter[str],
    log: Log,
) -> list[Ticket]:
    """Write the usable rows as samples, and the others to the quarantine; a ticket for each sample."""
    seen: set[str] = set()
    tickets: list[Ticket] = []
    with ExitStack() as stack:
        put = stack.enter_context(writing(samples_out))
        refuse = stack.enter_context(quarantining(quarantine_out, QUARANTINE))
        for step, source in enumerate(sources):
            for item in track(source.rows, source.name):
                counts[f"rows/{source.name}"] += 1
                sample = _sample(item, source.name, params, store, seen)
                if isinstance(sample, Refused):
                    counts[f"quarantined/{source.name}"] += 1
                    refuse((source.name, sample.where, sample.reason, "collect"))
                else:
                    seen.add(sample.id)
                    put(sample)
                    tickets.append(ticket(sample, params.seed))
            log({"rows": float(sum(counts[f"rows/{each.name}"] for each in sources))}, step)
    return tickets


def _nothing(quarantine: Path) -> str:
    lines = pq.read_table(quarantine).slice(0, 1).to_pylist()
    first = f"the first: {lines[0]['where']}: {lines[0]['reason']}" if lines else "the sources are empty"
    return f"no row of any source can be used; {first}; see {quarantine.name}"


def _sample(item: Row | Refused, source: str, params: CollectParams, store: Store, seen: set[str]) -> Sample | Refused:
    """A row as a sample, its media stored; or why not."""
    if isinstance(item, Refused):
        return item
    id = f"{source}/{item.id}"
    repeated = "duplicate id; the first row that has it is kept" if id in seen else None
    if reason := _unreadable(item, params.max_chars) or _objection(item) or repeated:
        return Refused(where=_printable(id[:200]), reason=reason)
    try:
        sample = _built(item, id, source, tuple(store.add(file) for file in item.media))
    except BadMedia as error:
        return Refused(where=id, reason=str(error))
    except ValidationError as error:
        detail = error.errors()[0]
        return Refused(where=id, reason=f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}")
    own = item.group or (sample.media[0].sha256 if sample.media else item.id)
    return replace(sample, split=item.split or split(f"{source}/{own}", params.val_fraction, params.seed))


def _built(row: Row, id: str, source: str, media: tuple[Media, ...]) -> Sample:
    paired = bool(row.chosen.strip())
    return Sample(
        id=id,
        source=source,
        domain=row.domain,
        modality=_modality(row),
        prompt=row.prompt,
        media=media,
        gold=row.gold,
        chosen=answer(row.chosen) if paired else (),
        rejected=answer(row.rejected) if paired else (),
        verdict=Verdict(winner="chosen", judge="source") if paired else None,
        meta={**row.meta, **({"wrong": list(row.wrong)} if row.wrong else {})},
    )


def _objection(row: Row) -> str | None:
    """Why a row cannot be a sample; None if nothing speaks against it."""
    if not any(turn.content.strip() for turn in row.prompt if turn.role == "user"):
        return "no question; add it or remove the row"
    if bool(row.chosen.strip()) != bool(row.rejected.strip()):
        return "a pair with one answer; add the other or remove the row"
    if row.gold is None and not row.chosen.strip():
        return "neither a pair nor a gold answer; add one or remove the row"
    marks = sum(turn.content.count(PLACEHOLDER) for turn in row.prompt)
    if marks != len(row.media) and (marks or len(row.media) > 1):
        return f"the prompt marks {marks} pictures with {PLACEHOLDER}, the row has {len(row.media)}; correct it"
    return None


def _unreadable(row: Row, max_chars: int) -> str | None:
    """Why a row cannot be stored; None if it can."""
    texts = [row.id, row.group, *(turn.content for turn in row.prompt), row.chosen, row.rejected, *row.wrong]
    texts += [row.gold.value, row.gold.answer, *row.gold.others] if row.gold else []
    if (longest := max(map(len, texts))) > max_chars:
        return f"a text of {longest:,} characters; shorten it, or raise collect.max_chars ({max_chars:,})"
    if any(text != _printable(text) for text in texts):
        return "not UTF-8, or half a character; convert the file: iconv -t UTF-8"
    if odd := [name for name, value in row.meta.items() if not isinstance(value, _JSON)]:
        return f"{odd[0]}: neither text nor number, but {type(row.meta[odd[0]]).__name__}; convert it"
    return None


def _printable(text: str) -> str:
    """The text without half characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _modality(row: Row) -> Modality:
    kinds = {file.kind for file in row.media}
    return "video" if "video" in kinds else "image" if kinds else "text"


def split(group: str, val_fraction: float, seed: int) -> str:
    """`val` for a fixed share of the groups, whatever else is in the source.

    >>> 150 < sum(split(f"group {i}", 0.2, seed=0) == "val" for i in range(1000)) < 250
    True
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return "val" if int.from_bytes(digest[:4]) / 2**32 < val_fraction else "train"


# Samples out


def _give_out(samples: Path, fates: np.ndarray, outputs: dict[str, Path], counts: Counter[str]) -> set[str]:
    """Sort what the draw kept into the outputs, rows as they are; the media that they show.

    Args:
        fates: of every sample: the output it goes to, or `left_out`.
    """
    shown: set[str] = set()
    with ExitStack() as stack:
        parts = {name: stack.enter_context(replacing(path)) for name, path in outputs.items()}
        put = {name: stack.enter_context(copying(parts[name])) for name in ("prompts", "pairs")}
        refer = stack.enter_context(writing(parts["corpus"]))
        for first, batch in read_batches(samples):
            here = fates[first : first + len(batch)]
            _count_left_out(batch.filter(pa.array(here == "left_out")), counts)
            for name, copy in put.items():
                rows = batch.filter(pa.array(here == name))
                copy(rows)
                _count(name, rows, counts)
                counts.update(f"kept/{source}" for source in rows["source"].to_pylist())
            rows = batch.filter(pa.array(here != "left_out"))
            shown.update(file["path"] for files in rows["media"].to_pylist() for file in files)
            references = _references(rows)
            _count("corpus", references, counts)
            for sample in decoded(references, samples, first):
                refer(_reference(sample))
    return shown


def _references(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The held-out rows whose gold answer is known in full words."""
    known = (gold is not None and gold["answer"] != "" for gold in rows["gold"].to_pylist())
    wanted = [split == "val" and is_known for split, is_known in zip(rows["split"].to_pylist(), known, strict=True)]
    return rows.filter(pa.array(wanted, pa.bool_()))


def _reference(sample: Sample) -> Sample:
    assert sample.gold is not None
    return replace(sample, chosen=answer(sample.gold.answer), rejected=(), verdict=None)


def _count_left_out(rows: pa.RecordBatch, counts: Counter[str]) -> None:
    counts.update(f"left_out/{source}" for source in rows["source"].to_pylist())
    counts.update(f"left_out/domain/{domain}" for domain in rows["domain"].to_pylist())


def _count(name: str, rows: pa.RecordBatch, counts: Counter[str]) -> None:
    counts[f"{name}/all"] += len(rows)
    for aspect in ("split", "domain", "modality"):
        counts.update(f"{name}/{aspect}/{value}" for value in rows[aspect].to_pylist())


# The quarantine


def write_quarantine(rows: Iterable[tuple[str, ...]], path: Path, schema: pa.Schema) -> None:
    """Rows of texts, in the order of the schema's columns."""
    with quarantining(path, schema) as refuse:
        for row in rows:
            refuse(row)


@contextmanager
def quarantining(path: Path, schema: pa.Schema) -> Iterator[Callable[[tuple[str, ...]], None]]:
    """A function that appends a row of texts, in the order of the schema's columns, to `path`."""
    group: list[dict[str, str]] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
        group.clear()

    def put(row: tuple[str, ...]) -> None:
        group.append(dict(zip(schema.names, map(_printable, row), strict=True)))
        if len(group) == 4096:
            flush()

    with replacing(path) as part, pq.ParquetWriter(part, schema) as writer:
        yield put
        if group:
            flush()
