"""Candidates become preference pairs: by rule where the answer is known, else by a model."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ixc.clients.usage import Usage
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
    """Write up to `pairs_per_prompt` pairs per prompt; every judgement of a model is stored in `verdicts`."""
    verdicts.mkdir(parents=True, exist_ok=True)
    panel = Panel(params, verdicts)

    # One judge after the other; what they have judged in earlier runs is not asked again.
    usages = []
    spent: Metrics = {}
    for judge in params.judges:
        due = open_questions(params, judge.model, candidates)
        usage = ask(judge, due, media, panel.stores[judge.model], log=log)
        usages.append(usage)
        spent[f"llm/{slug(judge.model)}/spent"] = usage.spent

    # Pairs are made of what the stores hold, so that a run without a server gives the same ones.
    tally: Counter[str] = Counter()
    write_samples(pairs(params, candidates, panel, tally), judged)
    return metrics(tally, usages) | panel.metrics() | spent


class Panel:
    """The judges, their judgements so far, and their opinions of the pairs of this run."""

    def __init__(self, params: JudgeParams, verdicts: Path) -> None:
        models = [judge.model for judge in params.judges]
        self.stores = {model: VerdictStore(verdicts, model) for model in models}
        self.opinions: dict[str, list[Opinion]] = {model: [] for model in self.stores}
        self.verdicts: list[list[Verdict]] = []

    def verdict(
        self,
        sample: Sample,
        reference: str,
        other: str,
    ) -> Verdict | None:
        """The judges' verdict on the reference, as `chosen`, against another answer; None if too few have spoken."""
        verdicts: list[Verdict] = []
        for model in self.stores:
            opinion = self.opinion(model, sample, reference, other)
            if opinion is not None:
                self.opinions[model].append(opinion)
                verdicts.append(opinion.verdict)
        self.verdicts.append(verdicts)
        return majority(verdicts, len(self.stores))

    def opinion(
        self,
        model: str,
        sample: Sample,
        reference: str,
        other: str,
    ) -> Opinion | None:
        """One judge's stored judgements of a pair; None unless there is a winner in both orders."""
        store = self.stores[model]
        question_first, question_second = questions(model, sample, reference, other)
        first, second = store.get(question_first.key), store.get(question_second.key)
        if first is None or second is None:
            return None
        if first.winner is None or second.winner is None:
            return None
        # For the judge's bias: does it take the longer one?
        num_words, num_other = len(reference.split()), len(other.split())
        longer = (num_words > num_other) - (num_words < num_other)
        return Opinion(first, second, longer)

    def metrics(self) -> Metrics:
        """How far the judges agree, and what each is biased by."""
        agreements = agreement(self.verdicts, len(self.stores))
        agreements |= pairwise(self.verdicts, list(self.stores))
        pairs: Metrics = {}
        for model, opinions in self.opinions.items():
            pairs[f"llm/{slug(model)}/pairs"] = len(opinions)
        return agreements | biases(self.opinions) | pairs


def open_questions(params: JudgeParams, model: str, candidates: Path) -> Iterator[Question]:
    """What a judge has to tell: each open prompt's reference answer against candidates, in both orders."""
    for sample in read_samples(candidates):
        if sample.gold is not None and sample.gold.check == "open":
            for other in rivals(params, sample, sample.gold):
                yield from questions(model, sample, sample.gold.answer, other)


def pairs(
    params: JudgeParams,
    candidates: Path,
    panel: Panel,
    tally: Counter[str],
) -> Iterator[Sample]:
    """Every prompt's pairs, as samples; what happened is counted in `tally`."""
    for sample in read_samples(candidates):
        try:
            made = pairs_of(params, sample, panel, tally)
        except NoPair as reason:
            tally[f"without_pair/{reason}"] += 1
            continue
        for k, pair in enumerate(made):
            tally["pairs/all"] += 1
            tally[f"pairs/modality/{sample.modality}"] += 1
            tally[f"pairs/domain/{sample.domain}"] += 1
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


def pairs_of(
    params: JudgeParams,
    sample: Sample,
    panel: Panel,
    tally: Counter[str],
) -> list[Pair]:
    """A prompt's pairs, at least one.

    Raises:
        NoPair: it has none.
    """
    if sample.gold is None:
        raise NoPair("no_gold")
    if not sample.candidates:
        raise NoPair("no_candidates")
    # Where a rule can tell, no judge is paid for it.
    if sample.gold.check != "open":
        return verified_pairs(params, sample, sample.gold, tally)
    if not params.judges:
        raise NoPair("no_judge")
    return judged_pairs(params, sample, sample.gold, panel)


def verified_pairs(
    params: JudgeParams,
    sample: Sample,
    gold: Gold,
    tally: Counter[str],
) -> list[Pair]:
    """Right candidates, or else the reference answer, each against a wrong candidate."""
    counts = Counter(sample.candidates)
    scores = {text: check(gold, text) for text in counts}
    tally[f"candidates/{sample.domain}"] += counts.total()
    num_right = sum(counts[text] for text, score in scores.items() if score == 1.0)
    tally[f"right/{sample.domain}"] += num_right

    # Between right and wrong lies what nobody can tell: it is neither chosen nor rejected.
    ranked = by_frequency(params, sample)
    right = [text for text in ranked if scores[text] == 1.0]
    wrong = [text for text in ranked if scores[text] == 0.0]
    if not wrong:
        raise NoPair("no_wrong_candidate")
    reason = "A candidate with the known answer against one without it."
    # The reference answer stands in, if the rule itself takes it for right.
    if not right:
        if not gold.answer or check(gold, gold.answer) != 1.0:
            raise NoPair("no_right_answer")
        right, reason = [gold.answer], "The reference answer against a candidate that misses it."
    verdict = Verdict(winner="chosen", judge=f"verifier/{gold.check}", reason=reason)

    # Right ones take turns, or the most frequent would stand in every pair.
    rejected = wrong[: params.pairs_per_prompt]
    return [Pair(right[k % len(right)], text, verdict) for k, text in enumerate(rejected)]


def by_frequency(params: JudgeParams, sample: Sample) -> list[str]:
    """Distinct candidates, the most frequent first; the seed orders the equally frequent ones."""
    # Shuffled from a known order, so that the candidates' own order counts for nothing.
    counts = Counter(sample.candidates)
    texts = sorted(counts)
    random.Random(f"{params.seed}/{sample.id}").shuffle(texts)
    return sorted(texts, key=lambda text: -counts[text])


def rivals(params: JudgeParams, sample: Sample, gold: Gold) -> list[str]:
    """The candidates that an open prompt's reference answer is held against; none without a reference."""
    if not gold.answer:
        return []
    # The reference itself is no rival of its own.
    reference = gold.answer.strip()
    texts = [text for text in by_frequency(params, sample) if text.strip() != reference]
    return texts[: params.pairs_per_prompt]


def judged_pairs(
    params: JudgeParams,
    sample: Sample,
    gold: Gold,
    panel: Panel,
) -> list[Pair]:
    """The reference answer against candidates that the judges found worse in both orders (paper, section 3)."""
    if not gold.answer:
        raise NoPair("no_reference")
    judged = []
    for text in rivals(params, sample, gold):
        verdict = panel.verdict(sample, gold.answer, text)
        if verdict is not None:
            judged.append(Pair(gold.answer, text, verdict))
    if not judged:
        raise NoPair("not_judged")
    # A tie, or a candidate that is better than its reference, teaches nothing reliable.
    won = [pair for pair in judged if pair.verdict.winner == "chosen"]
    if not won:
        raise NoPair("reference_not_better")
    return won


def metrics(tally: Counter[str], usages: Sequence[Usage]) -> Metrics:
    """Counts as they are, shares of right candidates, and what the judges took."""
    counts: Metrics = {"pairs/all": 0.0}
    shares: Metrics = {}
    for name, count in tally.items():
        kind, _, domain = name.partition("/")
        if kind in ("pairs", "without_pair"):
            counts[name] = float(count)
        elif kind == "candidates":
            shares[f"right/{domain}"] = tally[f"right/{domain}"] / count

    # Summed over the judges; each one's own is on its server's bill.
    taken: Metrics = dict.fromkeys(Usage().metrics(), 0)
    for usage in usages:
        for name, value in usage.metrics().items():
            taken[name] += value
    llm = {f"llm/{name}": value for name, value in taken.items()}
    return counts | shares | llm
