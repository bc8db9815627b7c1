"""Candidates become preference pairs: by rule where the answer is known, else by a model."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ixc.clients.ledger import Usage
from ixc.data.samples import Gold, Sample, Verdict, answer, read_samples, write_samples
from ixc.metrics import Log, Metrics, ignore
from ixc.params import JudgeParams
from ixc.stages.judge.openai_judge import ask
from ixc.stages.judge.panel import Opinion, agreement, biases, majority, pairwise
from ixc.stages.judge.questions import Question, questions
from ixc.stages.judge.store import VerdictStore, slug
from ixc.verifiers.rules import check


class Pair(NamedTuple):
    """Two answers and who told them apart."""

    chosen: str
    rejected: str
    verdict: Verdict


class NoPair(Exception):
    """Why a prompt yields no pair, as a metric's name."""


def run(
    params: JudgeParams,
    candidates: Path,
    media: Path,
    judged: Path,
    verdicts: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Write up to `pairs_per_prompt` pairs per prompt; every judgement of a model is kept in `verdicts`."""
    verdicts.mkdir(parents=True, exist_ok=True)
    panel = Panel(params, verdicts)
    usages = [
        ask(
            judge, asked(params, judge.model, candidates), media, panel.stores[judge.model], log=log
        )
        for judge in params.judges
    ]
    tally: Counter[str] = Counter()
    write_samples(pairs(params, candidates, panel, tally), judged)
    spent = {
        f"llm/{slug(j.model)}/spent": u.spent for j, u in zip(params.judges, usages, strict=True)
    }
    return metrics(tally, usages) | panel.metrics() | spent


class Panel:
    """The judges, what they have said so far, and what they said about the pairs of this run."""

    def __init__(self, params: JudgeParams, verdicts: Path) -> None:
        self.stores = {judge.model: VerdictStore(verdicts, judge.model) for judge in params.judges}
        self.opinions: dict[str, list[Opinion]] = {model: [] for model in self.stores}
        self.verdicts: list[list[Verdict]] = []

    def verdict(self, sample: Sample, reference: str, other: str) -> Verdict | None:
        """The judges' verdict on the reference, as `chosen`, against another answer; None if too few have spoken."""
        verdicts: list[Verdict] = []
        for model in self.stores:
            opinion = self.opinion(model, sample, reference, other)
            if opinion is not None:
                self.opinions[model].append(opinion)
                verdicts.append(opinion.verdict)
        self.verdicts.append(verdicts)
        return majority(verdicts, len(self.stores))

    def opinion(self, model: str, sample: Sample, reference: str, other: str) -> Opinion | None:
        """One judge's stored judgements of a pair."""
        first, second = (
            self.stores[model].get(q.key) for q in questions(model, sample, reference, other)
        )
        words = len(reference.split()), len(other.split())
        longer = (words[0] > words[1]) - (words[0] < words[1])
        known = first and second and first.winner and second.winner
        return Opinion(first, second, longer) if first and second and known else None

    def metrics(self) -> Metrics:
        """How far the judges agree, and what each is biased by."""
        agreements = agreement(self.verdicts, len(self.stores)) | pairwise(
            self.verdicts, list(self.stores)
        )
        pairs: Metrics = {
            f"llm/{slug(model)}/pairs": len(found) for model, found in self.opinions.items()
        }
        return agreements | biases(self.opinions) | pairs


def asked(params: JudgeParams, model: str, candidates: Path) -> Iterator[Question]:
    """What a judge is asked: each open prompt's reference answer against candidates, in both orders."""
    for sample in read_samples(candidates):
        if sample.gold is not None and sample.gold.check == "open":
            for other in rivals(params, sample, sample.gold):
                yield from questions(model, sample, sample.gold.answer, other)


def pairs(
    params: JudgeParams, candidates: Path, panel: Panel, tally: Counter[str]
) -> Iterator[Sample]:
    """Every prompt's pairs, as samples; what happened is counted in `tally`."""
    for sample in read_samples(candidates):
        try:
            found = pairs_of(params, sample, panel, tally)
        except NoPair as reason:
            tally[f"without_pair/{reason}"] += 1
            continue
        for k, pair in enumerate(found):
            tally.update(
                ("pairs/all", f"pairs/modality/{sample.modality}", f"pairs/domain/{sample.domain}")
            )
            yield as_sample(sample, k, pair)


def as_sample(sample: Sample, k: int, pair: Pair) -> Sample:
    """A prompt with one of its pairs in place of its candidates."""
    return replace(
        sample,
        id=f"{sample.id}#{k}",
        prompt_id=sample.id,
        candidates=(),
        rewards=(),
        chosen=answer(pair.chosen),
        rejected=answer(pair.rejected),
        verdict=pair.verdict,
    )


def pairs_of(params: JudgeParams, sample: Sample, panel: Panel, tally: Counter[str]) -> list[Pair]:
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
    if not params.judges:
        raise NoPair("no_judge")
    return judged_pairs(params, sample, sample.gold, panel)


def verified_pairs(
    params: JudgeParams, sample: Sample, gold: Gold, tally: Counter[str]
) -> list[Pair]:
    """Right candidates, or else the reference answer, each against a wrong candidate."""
    counts = Counter(sample.candidates)
    scores = {text: check(gold, text) for text in counts}
    tally[f"candidates/{sample.domain}"] += counts.total()
    tally[f"right/{sample.domain}"] += sum(
        counts[text] for text, score in scores.items() if score == 1.0
    )

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


def judged_pairs(params: JudgeParams, sample: Sample, gold: Gold, panel: Panel) -> list[Pair]:
    """The reference answer against candidates that the judges found worse in both orders (paper, section 3)."""
    if not gold.answer:
        raise NoPair("no_reference")
    verdicts = {
        text: panel.verdict(sample, gold.answer, text) for text in rivals(params, sample, gold)
    }
    answered = [
        Pair(gold.answer, text, verdict)
        for text, verdict in verdicts.items()
        if verdict is not None
    ]
    if not answered:
        raise NoPair("not_judged")
    won = [pair for pair in answered if pair.verdict.winner == "chosen"]
    if not won:
        raise NoPair("reference_not_better")
    return won


def metrics(tally: Counter[str], usages: Sequence[Usage]) -> Metrics:
    """Counts as they are, shares of right candidates, and what the judges took."""
    domains = [name.removeprefix("candidates/") for name in tally if name.startswith("candidates/")]
    shares = {
        f"right/{domain}": tally[f"right/{domain}"] / tally[f"candidates/{domain}"]
        for domain in domains
    }
    counts = {
        name: float(n) for name, n in tally.items() if name.startswith(("pairs/", "without_pair/"))
    }
    taken = [usage.metrics() for usage in usages]
    llm = {f"llm/{name}": sum(each[name] for each in taken) for name in Usage().metrics()}
    return {"pairs/all": 0.0, **counts, **shares, **llm}
