"""Stage `validate`: only pairs that nothing speaks against are trained on; the others leave with a reason."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pyarrow as pa

from ixc.collect import write_quarantine
from ixc.files import track
from ixc.media import BadMedia, check
from ixc.metrics import Log, Metrics, ignore
from ixc.params import ValidateParams
from ixc.samples import Media, Sample, read_samples, writing
from ixc.validation.expectations import Check, expectations, run_checks
from ixc.validation.facts import Facts, facts_of, table_of, text, words
from ixc.validation.page import write_page

QUARANTINE = pa.schema({"id": pa.string(), "source": pa.string(), "reason": pa.string(), "advice": pa.string()})

ADVICE = {
    "no answer": "Give the pair both answers, or remove it at its source.",
    "identical answers": "Nothing can be learned from it; sample with a higher temperature.",
    "no verdict": "Judge it: name a model under judge.judges, or a gold answer to the prompt.",
    "tie": "The judge saw no difference; nothing to do.",
    "rejected wins": "Chosen and rejected are exchanged at the source; exchange them back.",
    "chosen too long": "The paper's length constraint; raise validate.max_length_ratio if length is quality.",
    "media missing": "Run `dvc repro collect`, or `dvc pull data/media`.",
    "media damaged": "Delete the stored file and run `dvc repro collect`.",
    "duplicate id": "Make ids unique within the source; the first pair is kept.",
    "duplicate": "The same pair again; the first one is kept.",
    "held out": "Its prompt or media are in val too; the val pair is kept.",
}
"""Every reason for which a pair is dropped, and what to do about it."""


class ValidationFailed(ValueError):
    """The data as a whole are at fault, not single pairs."""


def objection(sample: Sample, params: ValidateParams) -> str | None:
    """Why a pair, by itself, must not be trained on; None if nothing speaks against it.

    >>> from ixc.samples import Turn, answer
    >>> question = (Turn(role="user", content="Is it red?"),)
    >>> pair = Sample(id="7", source="s", domain="general", modality="text", prompt=question,
    ...               chosen=answer("Yes."), rejected=answer("Yes."))
    >>> objection(pair, ValidateParams())
    'identical answers'
    """
    chosen, rejected = text(sample.chosen), text(sample.rejected)
    if not chosen or not rejected:
        return "no answer"
    if chosen == rejected:
        return "identical answers"
    if sample.verdict is None:
        return "no verdict"
    if sample.verdict.winner != "chosen":
        return "tie" if sample.verdict.winner == "tie" else "rejected wins"
    length = words(chosen)
    if length >= params.min_words_for_ratio and length > params.max_length_ratio * words(rejected):
        return "chosen too long"
    return None


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
    """
    pairs = track(_pairs(judged, public), "validate")
    facts = [facts_of(sample, objection(sample, params)) for sample in pairs]
    _object_to_media(facts, media)
    _object_to_repeats(facts)
    _object_to_leaks(facts)

    with ExitStack() as stack:
        files = {"train": train_out, "val": val_out}
        put = {split: stack.enter_context(writing(path)) for split, path in files.items()}
        written: list[Facts] = []
        for sample, fact in zip(_pairs(judged, public), facts, strict=True):
            if fact.reason is None:
                put[sample.split](sample)
                written.append(facts_of(sample))

        checks = run_checks(table_of(written, media), expectations(params.min_pairs))
        failures = [*_too_little(facts, params), *_not_met(checks)]
        write_page(page_out, facts, ADVICE, checks, failures)
        if failures:
            raise ValidationFailed("\n".join([*failures, f"the page explains it: {page_out}"]))
        dropped = [(fact.id, fact.source, fact.reason, ADVICE[fact.reason]) for fact in facts if fact.reason]
        write_quarantine(dropped, quarantine_out, QUARANTINE)

    metrics = _metrics(facts, checks)
    log(metrics, 0)
    return metrics


def _pairs(judged: Path, public: Path) -> Iterator[Sample]:
    return chain(read_samples(judged), read_samples(public))


def _object_to_media(facts: list[Facts], root: Path) -> None:
    """Every file is decoded once, however many pairs show it."""
    wanted = {media.path: media for fact in facts if fact.reason is None for media in fact.media}
    with ThreadPoolExecutor() as pool:
        results = track(pool.map(lambda media: _unusable(root, media), wanted.values()), "media", len(wanted))
        found = dict(zip(wanted, results, strict=True))
    for fact in facts:
        if fact.reason is None:
            fact.reason = next((reason for media in fact.media if (reason := found[media.path])), None)


def _unusable(root: Path, media: Media) -> str | None:
    if not (root / media.path).is_file():
        return "media missing"
    try:
        check(root, media)
    except BadMedia:
        return "media damaged"
    return None


def _object_to_repeats(facts: list[Facts]) -> None:
    ids: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for fact in facts:
        if fact.reason is not None:
            continue
        if fact.id in ids:
            fact.reason = "duplicate id"
        elif (fact.split, fact.pair) in pairs:
            fact.reason = "duplicate"
        else:
            ids.add(fact.id)
            pairs.add((fact.split, fact.pair))


def _object_to_leaks(facts: list[Facts]) -> None:
    """A train pair whose prompt or media is in val goes: val must stay unseen, and train has more."""
    val = [fact for fact in facts if fact.reason is None and fact.split == "val"]
    prompts = {fact.prompt for fact in val}
    media = {item.sha256 for fact in val for item in fact.media}
    for fact in facts:
        if fact.reason is None and fact.split == "train":
            leaks = fact.prompt in prompts or any(item.sha256 in media for item in fact.media)
            fact.reason = "held out" if leaks else None


def _too_little(facts: list[Facts], params: ValidateParams) -> Iterator[str]:
    """Which thresholds of `params` are broken."""
    dropped = Counter(fact.reason for fact in facts if fact.reason)
    share = dropped.total() / max(len(facts), 1)
    if share > params.max_rejected_share:
        reason, count = dropped.most_common(1)[0]
        limit = f"validate.max_rejected_share: {params.max_rejected_share}"
        most = f"{share:.0%} of {len(facts)} pairs were dropped, {count} of them for {reason!r}"
        yield f"{limit}: {most}; {ADVICE[reason]}"
    kept = Counter(fact.split for fact in facts if fact.reason is None)
    for split in ("train", "val"):
        if kept[split] < params.min_pairs:
            few = f"validate.min_pairs: {params.min_pairs}: only {kept[split]} pairs are left in {split}"
            yield f"{few}; add sources or prompts, or lower it"


def _not_met(checks: list[Check]) -> Iterator[str]:
    for item in checks:
        if item.status == "errored":
            yield f"could not be computed, which says nothing about the data: {item.says}; {item.detail}"
        elif item.status == "failed" and item.critical:
            yield f"expectation not met: {item.says}; {item.detail}"


def _metrics(facts: list[Facts], checks: list[Check]) -> Metrics:
    """Counts of what came in and what became of it; a reason that never occurred is a 0."""
    dropped = Counter(fact.reason for fact in facts if fact.reason)
    kept = Counter(fact.split for fact in facts if fact.reason is None)
    counts = {"pairs": len(facts), "kept/train": kept["train"], "kept/val": kept["val"]}
    counts |= {f"dropped/{reason}": dropped[reason] for reason in ADVICE}
    counts |= {f"checks/{status}": sum(c.status == status for c in checks) for status in ("passed", "failed")}
    return {name: float(count) for name, count in counts.items()}
