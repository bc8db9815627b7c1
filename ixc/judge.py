"""Candidates become preference pairs: by rule where the answer is known, else by a model."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ixc.judging.openai_judge import Usage, ask, questions, verdict
from ixc.judging.store import VerdictStore
from ixc.judging.verifiers import check
from ixc.metrics import Log, Metrics, ignore
from ixc.params import JudgeParams, LLMJudgeParams
from ixc.samples import Gold, Sample, Verdict, answer, read_samples, write_samples


class Pair(NamedTuple):
    """Two answers and who told them apart."""

    chosen: str
    rejected: str
    verdict: Verdict


class NoPair(Exception):
    """Why a prompt yields no pair, as a metric's name."""


def run(
    params: JudgeParams, candidates: Path, media: Path, judged: Path, verdicts: Path, *, log: Log = ignore
) -> Metrics:
    """Write up to `pairs_per_prompt` pairs per prompt; every judgement of the model is kept in `verdicts`."""
    verdicts.mkdir(parents=True, exist_ok=True)
    store, usage = None, Usage()
    if params.llm is not None:
        store = VerdictStore(verdicts, params.llm.model)
        usage = ask_model(params.llm, params, candidates, media, store, log)
    tally: Counter[str] = Counter()
    write_samples(pairs(params, candidates, store, tally), judged)
    return metrics(tally, usage)


def ask_model(
    llm: LLMJudgeParams, params: JudgeParams, candidates: Path, media: Path, store: VerdictStore, log: Log
) -> Usage:
    """Ask the model about every open prompt's candidates against its reference answer."""
    asked = (
        question
        for sample in read_samples(candidates)
        if sample.gold is not None and sample.gold.check == "open"
        for rejected in rivals(params, sample, sample.gold)
        for question in questions(llm.model, sample, sample.gold.answer, rejected)
    )
    return ask(llm, asked, media, store, log=log)


def pairs(params: JudgeParams, candidates: Path, store: VerdictStore | None, tally: Counter[str]) -> Iterator[Sample]:
    """Every prompt's pairs, as samples; what happened is counted in `tally`."""
    for sample in read_samples(candidates):
        try:
            found = pairs_of(params, sample, store, tally)
        except NoPair as reason:
            tally[f"without_pair/{reason}"] += 1
            continue
        for k, pair in enumerate(found):
            tally.update(("pairs/all", f"pairs/modality/{sample.modality}", f"pairs/domain/{sample.domain}"))
            yield as_sample(sample, k, pair)


def as_sample(sample: Sample, k: int, pair: Pair) -> Sample:
    """A prompt with one of its pairs in place of its candidates."""
    return replace(
        sample,
        id=f"{sample.id}#{k}",
        candidates=(),
        rewards=(),
        chosen=answer(pair.chosen),
        rejected=answer(pair.rejected),
        verdict=pair.verdict,
    )


def pairs_of(params: JudgeParams, sample: Sample, store: VerdictStore | None, tally: Counter[str]) -> list[Pair]:
    """A prompt's pairs, at least one.

    Raises:
        NoPair: it has none.
    """
    if sample.gold is None:
        raise NoPair("no_gold")
    if not sample.candidates:
        raise NoPair("no_candidates")
    if sample.gold.check != "open":
        return verified_pairs(params, sample, sample.gold, tally)
    if params.llm is None or store is None:
        raise NoPair("no_judge")
    return judged_pairs(params, params.llm.model, sample, sample.gold, store)


def verified_pairs(params: JudgeParams, sample: Sample, gold: Gold, tally: Counter[str]) -> list[Pair]:
    """Right candidates, or else the reference answer, each against a wrong candidate."""
    counts = Counter(sample.candidates)
    scores = {text: check(gold, text) for text in counts}
    tally[f"candidates/{sample.domain}"] += counts.total()
    tally[f"right/{sample.domain}"] += sum(counts[text] for text, score in scores.items() if score == 1.0)

    ranked = by_frequency(params, sample)
    right = [text for text in ranked if scores[text] == 1.0]
    wrong = [text for text in ranked if scores[text] == 0.0]
    if not wrong:
        raise NoPair("no_wrong_candidate")
    reason = "A candidate with the known answer against one without it."
    if not right:
        if not gold.answer or check(gold, gold.answer) != 1.0:
            raise NoPair("no_right_answer")
        right, reason = [gold.answer], "The reference answer against a candidate that misses it."
    found = Verdict(winner="chosen", judge=f"verifier/{gold.check}", reason=reason)
    rejected = wrong[: params.pairs_per_prompt]
    return [Pair(right[k % len(right)], text, found) for k, text in enumerate(rejected)]


def by_frequency(params: JudgeParams, sample: Sample) -> list[str]:
    """Distinct candidates, the most frequent first; the seed orders the equally frequent ones."""
    counts = Counter(sample.candidates)
    texts = sorted(counts)
    random.Random(f"{params.seed}/{sample.id}").shuffle(texts)
    return sorted(texts, key=lambda text: -counts[text])


def rivals(params: JudgeParams, sample: Sample, gold: Gold) -> list[str]:
    """The candidates that an open prompt's reference answer is held against; none without a reference."""
    if not gold.answer:
        return []
    texts = [text for text in by_frequency(params, sample) if text.strip() != gold.answer.strip()]
    return texts[: params.pairs_per_prompt]


def judged_pairs(params: JudgeParams, model: str, sample: Sample, gold: Gold, store: VerdictStore) -> list[Pair]:
    """The reference answer against candidates found worse in both orders (paper, section 3)."""
    if not gold.answer:
        raise NoPair("no_reference")
    answered: list[Pair] = []
    for text in rivals(params, sample, gold):
        first, second = (store.get(question.key) for question in questions(model, sample, gold.answer, text))
        if first is not None and second is not None:
            answered.append(Pair(gold.answer, text, verdict(model, first, second)))
    if not answered:
        raise NoPair("not_judged")
    won = [pair for pair in answered if pair.verdict.winner == "chosen"]
    if not won:
        raise NoPair("reference_not_better")
    return won


def metrics(tally: Counter[str], usage: Usage) -> Metrics:
    """Counts as they are, shares of right candidates, and what the model took."""
    domains = [name.removeprefix("candidates/") for name in tally if name.startswith("candidates/")]
    shares = {f"right/{domain}": tally[f"right/{domain}"] / tally[f"candidates/{domain}"] for domain in domains}
    counts = {name: float(n) for name, n in tally.items() if name.startswith(("pairs/", "without_pair/"))}
    llm = {
        "llm/requests": usage.requests,
        "llm/cost": usage.cost,
        "llm/unreadable": usage.unreadable,
        "llm/unreachable": usage.unreachable,
        "llm/left": usage.left,
    }
    return {"pairs/all": 0.0, **counts, **shares, **llm}
