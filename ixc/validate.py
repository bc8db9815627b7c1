"""Stage `validate`: only pairs that nothing speaks against are trained on; the others leave with a reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetFile

from ixc.collect import write_quarantine
from ixc.files import track
from ixc.media import BadMedia, check
from ixc.metrics import Log, Metrics, ignore
from ixc.params import BadParams, ValidateParams
from ixc.samples import Media, Sample, read_samples, writing
from ixc.validation.benchmarks import Benchmarks
from ixc.validation.duplicates import Signature, near_duplicates, stacked
from ixc.validation.expectations import Check, run_checks, suite
from ixc.validation.facts import Facts, Observer, table_of, text
from ixc.validation.page import write_page
from ixc.validation.pictures import Look, Looks, look
from ixc.validation.reasons import ADVICE, REASONS, Objection, Reason

QUARANTINE = pa.schema(dict.fromkeys(("id", "source", "split", "reason", "detail", "advice"), pa.string()))
WORST = 3
"""Reasons that a failure names."""


class ValidationFailed(ValueError):
    """The data as a whole are at fault, not single pairs."""


class Seen(NamedTuple):
    """A stored file after a look at it."""

    objection: Objection | None
    look: Look | None = None
    """None for films and for what cannot be used."""


def objection(sample: Sample, params: ValidateParams, length: Callable[[str], int]) -> Objection | None:
    """What speaks, by itself, against a pair; None if nothing does.

    >>> from ixc.samples import Turn, answer
    >>> question = (Turn(role="user", content="Is it red?"),)
    >>> pair = Sample(id="7", source="s", domain="general", modality="text", prompt=question,
    ...               chosen=answer("Yes."), rejected=answer("Yes."))
    >>> objection(pair, ValidateParams(), words).reason
    'identical answers'
    """
    chosen, rejected = text(sample.chosen), text(sample.rejected)
    if not chosen or not rejected:
        return Objection("no answer", "neither" if chosen == rejected else "rejected" if chosen else "chosen")
    if chosen == rejected:
        return Objection("identical answers")
    if sample.verdict is None:
        return Objection("no verdict")
    if sample.verdict.winner != "chosen":
        return Objection("tie" if sample.verdict.winner == "tie" else "rejected wins", f"judge {sample.verdict.judge}")
    longer, shorter = length(chosen), length(rejected)
    if longer >= params.min_length_for_ratio and longer > params.max_length_ratio * shorter:
        return Objection("chosen too long", f"{longer} {'tokens' if params.tokenizer else 'words'} against {shorter}")
    return None


def words(answer: str) -> int:
    """How many words a text has."""
    return len(answer.split())


def ruler(params: ValidateParams) -> Callable[[str], int]:
    """What measures answers: tokens where a tokenizer is named, else words.

    Raises:
        BadParams: the tokenizer cannot be read.
    """
    if params.tokenizer is None:
        return words
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(params.tokenizer)
    except Exception as error:  # the library raises plain `Exception`
        key = f"params.yaml: validate.tokenizer: {params.tokenizer}"
        raise BadParams(f"{key}: {error}; name a tokenizer.json, or leave it out to count words") from error
    return lambda answer: len(tokenizer.encode(answer, add_special_tokens=False).ids)


def run(
    params: ValidateParams,
    judged: Path,
    public: Path,
    media: Path,
    train_out: Path,
    val_out: Path,
    quarantine_out: Path,
    page_out: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Write the pairs to train on and to validate with, the quarantine, and a page that explains them.

    Raises:
        ValidationFailed: too little is left, or an expectation is not met. The page says why; the other
            outputs of the last good run stay.
        BadParams, BadBenchmark: the tokenizer or a benchmark cannot be read.
    """
    benchmarks = Benchmarks(params.benchmarks, params.overlap_words, params.near_pictures or 0)
    observer = Observer(ruler(params), benchmarks)
    facts, signatures = _observe(params, observer, judged, public)
    looks = _object_to_media(facts, media, benchmarks)
    _object_to_repeats(facts)
    _object_to_near_repeats(facts, signatures, params)
    _object_to_leaks(facts, looks, params)
    del signatures

    with ExitStack() as stack:
        files = {"train": train_out, "val": val_out}
        put = {split: stack.enter_context(writing(path)) for split, path in files.items()}
        written: list[Facts] = []
        for sample, fact in zip(_pairs(judged, public), facts, strict=True):
            if fact.objection is None:
                put[sample.split](sample)
                written.append(observer.facts(sample))

        checks = _check(facts, ParquetFile(judged).metadata.num_rows, written, media, params)
        failures = [*_too_much(facts, params), *_too_little(facts, params), *_not_met(checks)]
        write_page(page_out, facts, params, checks, benchmarks.read, failures)
        if failures:
            raise ValidationFailed("\n".join([*failures, f"the page explains it: {page_out}"]))
        write_quarantine(list(_dropped(facts)), quarantine_out, QUARANTINE)

    metrics = _metrics(facts, checks)
    log(metrics, 0)
    return metrics


def _pairs(judged: Path, public: Path) -> Iterator[Sample]:
    return chain(read_samples(judged), read_samples(public))


def _observe(
    params: ValidateParams, observer: Observer, judged: Path, public: Path
) -> tuple[list[Facts], list[Signature]]:
    """Every pair in small, with what speaks against it by itself."""
    facts, signatures = list[Facts](), list[Signature]()
    for sample in track(_pairs(judged, public), "validate"):
        fact, signature = observer.facts_and_signature(sample)
        overlap = Objection("in benchmark", fact.overlap) if fact.overlap else None
        fact.objection = objection(sample, params, observer.length) or overlap
        facts.append(fact)
        signatures.append(signature)
    return facts, signatures


def _object_to_media(facts: list[Facts], root: Path, benchmarks: Benchmarks) -> dict[str, Look]:
    """Every file is decoded once, however many pairs show it; what the usable pictures look like."""
    wanted = {media.path: media for fact in _kept(facts) for media in fact.media}
    with ThreadPoolExecutor() as pool:
        results = track(pool.map(lambda media: _see(root, media, benchmarks), wanted.values()), "media", len(wanted))
        seen = dict(zip(wanted, results, strict=True))
    for fact in _kept(facts):
        fact.objection = next((found for media in fact.media if (found := seen[media.path].objection)), None)
    return {path: one.look for path, one in seen.items() if one.look is not None}


def _see(root: Path, media: Media, benchmarks: Benchmarks) -> Seen:
    path = root / media.path
    if not path.is_file():
        return Seen(Objection("media missing", media.path))
    try:
        check(root, media)
    except BadMedia as error:
        return Seen(Objection("media damaged", str(error).replace(str(path), media.path)))
    if media.kind == "video":
        return Seen(None)
    seen = look(path)
    place = benchmarks.picture_overlap(seen)
    return Seen(Objection("in benchmark", f"{media.path} looks like {place}") if place else None, seen)


def _object_to_repeats(facts: list[Facts]) -> None:
    """The first of equal pairs is kept; a train pair that repeats a val pair is a leak, not a repeat."""
    ids: set[str] = set()
    pairs: dict[tuple[str, bytes], str] = {}
    for fact in _kept(facts):
        if fact.id in ids:
            fact.objection = Objection("duplicate id")
        elif first := pairs.get((fact.split, fact.pair)):
            fact.objection = Objection("duplicate", f"of {first}")
        elif first := pairs.get((fact.split, fact.exchanged)):
            fact.objection = Objection("contradiction", f"to {first}")
        else:
            ids.add(fact.id)
            pairs[fact.split, fact.pair] = fact.id


def _object_to_near_repeats(facts: list[Facts], signatures: Sequence[Signature], params: ValidateParams) -> None:
    """Of pairs nearly alike about the same media the first is kept, and val before train."""
    if params.near_duplicates is None:
        return
    left = [(fact, signature) for fact, signature in zip(facts, signatures, strict=True) if fact.objection is None]
    left.sort(key=lambda one: one[0].split == "train")
    groups: dict[tuple[str, ...], int] = {}
    numbers = [groups.setdefault(tuple(media.sha256 for media in fact.media), len(groups)) for fact, _ in left]
    signed = stacked([signature for _, signature in left])
    for place, first in enumerate(near_duplicates(signed, np.array(numbers, np.uint64), params.near_duplicates)):
        fact, original = left[place][0], left[int(first)][0]
        if fact is not original:
            reason = "near duplicate" if fact.split == original.split else "held out"
            fact.objection = Objection(reason, f"nearly the same as {original.id}")


def _object_to_leaks(facts: list[Facts], looks: dict[str, Look], params: ValidateParams) -> None:
    """A train pair whose prompt or media is in val goes: val must stay unseen, and train has more."""
    val = [fact for fact in _kept(facts) if fact.split == "val"]
    prompts = {fact.prompt: fact.id for fact in val}
    media = {item.path: fact.id for fact in val for item in fact.media}
    shown = [path for path in media if path in looks and params.near_pictures is not None]
    unseen = Looks([looks[path] for path in shown])

    @cache
    def owner(path: str) -> str | None:
        """The val pair that shows a file, or a picture that looks like it."""
        if path in media or path not in looks or not shown:
            return media.get(path)
        alike = unseen.like(looks[path], params.near_pictures or 0)
        return media[shown[alike[0]]] if alike else None

    for fact in _kept(facts):
        if fact.split == "train" and fact.prompt in prompts:
            fact.objection = Objection("held out", f"prompt of {prompts[fact.prompt]}")
        elif fact.split == "train" and (found := next(filter(None, (owner(one.path) for one in fact.media)), None)):
            fact.objection = Objection("held out", f"picture or film of {found}")


def _kept(facts: Iterable[Facts]) -> list[Facts]:
    return [fact for fact in facts if fact.objection is None]


def _check(
    facts: list[Facts], num_judged: int, written: list[Facts], media: Path, params: ValidateParams
) -> dict[str, list[Check]]:
    """What the tables fulfil: those that came in, and the pairs that go out."""
    came = table_of(facts, media)
    tables = {"Prompts of all pairs": came.drop_duplicates("prompt"), "Judged pairs": came[:num_judged]}
    tables |= {"Ready pairs": came[num_judged:], "Pairs that are written": table_of(written, media)}
    suites = ("prompts", "pairs", "pairs", "kept")
    return {
        title: run_checks(table, suite(name, params))
        for (title, table), name in zip(tables.items(), suites, strict=True)
        if len(table) or name == "kept"
    }


def _too_much(facts: list[Facts], params: ValidateParams) -> Iterator[str]:
    """Which limits on what is dropped are broken."""
    dropped: Counter[Reason] = Counter(fact.objection.reason for fact in facts if fact.objection)
    share = dropped.total() / max(len(facts), 1)
    if share > params.max_rejected_share:
        worst = [f"{count} for {reason!r}: {ADVICE[reason]}" for reason, count in dropped.most_common(WORST)]
        limit = f"validate.max_rejected_share: {params.max_rejected_share}"
        yield f"{limit}: {share:.0%} of {len(facts)} pairs were dropped, {'; '.join(worst)}"
    for reason, limit in params.max_share.items():
        if (share := dropped[reason] / max(len(facts), 1)) > limit:
            found = [fact for fact in facts if fact.objection and fact.objection.reason == reason]
            source, count = Counter(fact.source for fact in found).most_common(1)[0]
            most = f"{share:.1%} of {len(facts)} pairs, {count} of {len(found)} from {source}, such as {found[0].id}"
            yield f"validate.max_share: {reason}: {limit}: {most}; {ADVICE[reason]}"


def _too_little(facts: list[Facts], params: ValidateParams) -> Iterator[str]:
    kept = Counter(fact.split for fact in _kept(facts))
    for split in ("train", "val"):
        if kept[split] < params.min_pairs:
            few = f"validate.min_pairs: {params.min_pairs}: only {kept[split]} pairs are left in {split}"
            yield f"{few}; add sources or prompts, or lower it"


def _not_met(checks: dict[str, list[Check]]) -> Iterator[str]:
    for title, found in checks.items():
        for item in found:
            if item.status == "errored":
                yield f"{title}: could not be computed, which says nothing about the data: {item.says}; {item.detail}"
            elif item.status == "failed" and item.critical:
                yield f"{title}: expectation not met: {item.says}; {item.detail}"


def _dropped(facts: list[Facts]) -> Iterator[tuple[str, ...]]:
    for fact in facts:
        if fact.objection:
            reason, detail = fact.objection
            yield fact.id, fact.source, fact.split, reason, detail, ADVICE[reason]


def _metrics(facts: list[Facts], checks: dict[str, list[Check]]) -> Metrics:
    """Counts of what came in and what became of it; a reason that never occurred is a 0."""
    dropped = Counter(fact.objection.reason for fact in facts if fact.objection)
    kept = Counter(fact.split for fact in _kept(facts))
    statuses = Counter(item.status for found in checks.values() for item in found)
    counts = {"pairs": len(facts), "kept/train": kept["train"], "kept/val": kept["val"]}
    counts |= {f"dropped/{reason}": dropped[reason] for reason in REASONS}
    counts |= {f"checks/{status}": statuses[status] for status in ("passed", "failed")}
    return {name: float(count) for name, count in counts.items()}
