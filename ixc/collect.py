"""Stage `collect`: rows of every source in; prompts, ready pairs, a corpus and their media out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ixc.files import replacing, track
from ixc.media import BadMedia, Store
from ixc.metrics import Log, Metrics, ignore
from ixc.params import CollectParams, SourceParams
from ixc.samples import Modality, Sample, Verdict, answer, writing
from ixc.sources import READERS, BadSource, Refused, Row

QUARANTINE = pa.schema({"source": pa.string(), "where": pa.string(), "reason": pa.string(), "stage": pa.string()})


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

    The media folder is added to, and then cleared of what no row shows any more: its files never change.

    Raises:
        BadSource: a source is unknown or missing, or no row of any source can be used.
    """
    sources = [(source, _located(source, index, params)) for index, source in enumerate(params.sources)]
    media_out.mkdir(parents=True, exist_ok=True)
    store, refused, counts = Store(media_out, params.max_pixels), [], Counter[str]()
    seen: set[str] = set()
    shown: set[str] = set()

    with ExitStack() as stack:
        files = {
            name: stack.enter_context(writing(path))
            for name, path in (("prompts", prompts_out), ("pairs", public_out), ("corpus", corpus_out))
        }
        for step, (source, path) in enumerate(sources):
            for item in track(_rows(source, path, params.seed), source.reader):
                sample = _sample(item, source.reader, params, store, seen)
                counts[f"rows/{source.reader}"] += 1
                if isinstance(sample, Refused):
                    counts[f"quarantined/{source.reader}"] += 1
                    refused.append((source.reader, sample.where, sample.reason, "collect"))
                    continue
                seen.add(sample.id)
                shown.update(media.path for media in sample.media)
                _put(sample, files, counts)
            log({"rows": float(sum(counts[f"rows/{name}"] for name in READERS))}, step)
        write_quarantine(refused, quarantine_out, QUARANTINE)
        if not seen:
            first = f"the first: {refused[0][1]}: {refused[0][2]}" if refused else "the sources are empty"
            raise BadSource(f"no row of any source can be used; {first}; see {quarantine_out.name}")
    store.prune(shown)
    metrics = {**dict.fromkeys(_expected(params), 0), **counts, "media": len(shown)}
    return {name: float(count) for name, count in sorted(metrics.items())}


def _expected(params: CollectParams) -> Iterator[str]:
    """Counts that are reported even if they are 0."""
    for source in params.sources:
        yield from (f"{kind}/{source.reader}" for kind in ("rows", "kept", "quarantined"))
    yield from ("prompts/all", "pairs/all", "corpus/all")


def _located(source: SourceParams, index: int, params: CollectParams) -> Path:
    """Where a source is, checked before anything is read."""
    key = f"params.yaml: collect.sources[{index}]"
    if source.reader not in READERS:
        raise BadSource(f"{key}.reader: {source.reader!r}: no such reader; one of {', '.join(sorted(READERS))}")
    path = Path(params.root) / source.path
    if not path.exists():
        raise BadSource(f"{key}.path: {path}: does not exist; correct it, or fetch the data")
    return path


def _rows(source: SourceParams, path: Path, seed: int) -> Iterator[Row | Refused]:
    return islice(READERS[source.reader](path, seed), source.limit)


def _sample(item: Row | Refused, source: str, params: CollectParams, store: Store, seen: set[str]) -> Sample | Refused:
    """A row as a sample, its media stored; or why not."""
    if isinstance(item, Refused):
        return item
    id = f"{source}/{item.id}"
    if reason := _objection(item):
        return Refused(where=id, reason=reason)
    if id in seen:
        return Refused(where=id, reason="duplicate id; the first row that has it is kept")
    try:
        media = tuple(store.add(file) for file in item.media)
        sample = Sample(
            id=id,
            source=source,
            domain=item.domain,
            modality=_modality(item),
            prompt=item.prompt,
            media=media,
            gold=item.gold,
            chosen=answer(item.chosen) if item.chosen else (),
            rejected=answer(item.rejected) if item.rejected else (),
            verdict=Verdict(winner="chosen", judge="source") if item.chosen else None,
            meta={**item.meta, **({"wrong": list(item.wrong)} if item.wrong else {})},
        )
    except BadMedia as error:
        return Refused(where=id, reason=str(error))
    except ValidationError as error:
        detail = error.errors()[0]
        return Refused(where=id, reason=f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}")
    own = item.group or (media[0].sha256 if media else item.id)
    return replace(sample, split=item.split or split(f"{source}/{own}", params.val_fraction, params.seed))


def _objection(row: Row) -> str | None:
    if not any(turn.content.strip() for turn in row.prompt if turn.role == "user"):
        return "no question; add it or remove the row"
    if bool(row.chosen.strip()) != bool(row.rejected.strip()):
        return "a pair with one answer; add the other or remove the row"
    if row.gold is None and not row.chosen:
        return "neither a pair nor a gold answer; add one or remove the row"
    return None


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


def _put(sample: Sample, files: dict[str, Callable[[Sample], None]], counts: Counter[str]) -> None:
    counts[f"kept/{sample.source}"] += 1
    _append("pairs" if sample.chosen else "prompts", sample, files, counts)
    if sample.split == "val" and sample.gold and sample.gold.answer:
        reference = replace(sample, chosen=answer(sample.gold.answer), rejected=(), verdict=None)
        _append("corpus", reference, files, counts)


def _append(name: str, sample: Sample, files: dict[str, Callable[[Sample], None]], counts: Counter[str]) -> None:
    files[name](sample)
    counts[f"{name}/all"] += 1
    for aspect in ("split", "domain", "modality"):
        counts[f"{name}/{aspect}/{getattr(sample, aspect)}"] += 1


def write_quarantine(rows: Sequence[tuple[str, ...]], path: Path, schema: pa.Schema) -> None:
    """Rows of texts, in the order of the schema's columns."""
    records = [dict(zip(schema.names, row, strict=True)) for row in rows]
    with replacing(path) as part:
        pq.write_table(pa.Table.from_pylist(records, schema=schema), part)
