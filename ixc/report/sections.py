"""The sections of the report: each block reads the record and is None where there is nothing to show yet."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ixc.report.accuracy import (
    accuracy,
    accuracy_table,
    calibration,
    num_swapped,
    reward_histograms,
)
from ixc.report.blocks import Block, Figure, Figures, Table, Tile, Tiles
from ixc.report.cards import picks, removed_gallery, right_examples, wrong_examples
from ixc.report.cleaning import cleaned_table, cleaning_table, planted
from ixc.report.data import data_counts, data_table, sources_plot, sources_table
from ixc.report.judges import judges, judges_agree
from ixc.report.record import Record, metas, named
from ixc.report.svg import Mark, Row, dots, histogram, lines, number, percent, whole_percent

MODELS = ("base", "chat")
MAX_REASONS = 12
"""Of a stage's quarantine, each on a line of its own."""
_TITLES = {
    "kl": "KL",
    "gold": "Right answers",
    "length": "Tokens per answer",
    "grad_norm": "Gradient norm",
}


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, and the blocks below it."""

    id: str
    title: str
    lead: str
    blocks: tuple[Callable[[Record], Block | None], ...]


def headline(record: Record) -> Block | None:
    """The few numbers that say whether the run went well."""
    reward_model = record.metrics("evaluate_rm")
    best = record.metrics("best_of_n")
    ppo = record.metrics("train_ppo")
    largest = max(_sizes(best, "gold"), default=1)
    candidates = [
        _tile(
            "Pair accuracy",
            f"Held-out pairs whose better answer gets the higher reward{_interval(reward_model, 'all')}. "
            "A coin: 50\u202f%.",
            reward_model.get("accuracy/all"),
        ),
        _tile(
            "Pictures exchanged",
            f"The picture pairs{num_swapped(reward_model)} with pictures exchanged. The fall is how much the model "
            "looks.",
            reward_model.get("accuracy_swapped_media/image"),
            reward_model.get("accuracy/image"),
        ),
        _tile(
            "Right after PPO",
            "Answers to held-out prompts that agree with the gold answer, against the base model's.",
            ppo.get("gold/chat"),
            ppo.get("gold/base"),
        ),
        _tile(
            f"Best of {largest}",
            "Right answers when the reward model picks one of so many, against a single one.",
            best.get(f"gold/{largest}"),
            best.get("gold/1"),
        ),
        _tile(
            "Defects found",
            "AUROC in a copy of the corpus with planted defects: how often a spoilt sample gets less reward than a "
            "sound one. Chance: 50\u202f%.",
            record.metrics("clean").get("auroc/all"),
        ),
    ]
    # A stage that has not run has no number yet.
    tiles = [tile for tile in candidates if tile is not None]
    return Tiles(tiles) if tiles else None


def base_curves(record: Record) -> Block | None:
    """How the base model was made, where it was trained here."""
    return _small_multiples(record, "bootstrap", {})


def reward_curves(record: Record) -> Block | None:
    """Loss and friends, step by step."""
    captions = {
        "loss": "Bradley-Terry, nats per pair. Knowing nothing costs ln 2 = 0.693.",
        "accuracy": "Share of the batch in which the better answer scores higher.",
        "grad_norm": "Before clipping.",
        "learning_rate": "Warm-up, then decay.",
    }
    return _small_multiples(record, "train_rm", captions)


def ppo_curves(record: Record) -> Block | None:
    """The course of reinforcement learning."""
    captions = {
        "reward": "Mean reward of the sampled answers: should rise.",
        "kl": "Distance from the base model, nats per token: should stay small.",
        "gold": "Share of right answers: should rise with the reward.",
        "length": "Growth without more right answers is reward hacking.",
        "value_loss": "The critic's error.",
        "clip_fraction": "Share of tokens at the edge of the trust region.",
        "entropy": "Nats per token; a collapse ends exploration.",
    }
    return _small_multiples(record, "train_ppo", captions)


def ppo_gain(record: Record) -> Block | None:
    """Base against chat, as measured on held-out prompts."""
    metrics = record.metrics("train_ppo")
    gains = []
    for name in ("all", *sorted(named(metrics, "gold/base"))):
        marks = _before_after(metrics, "" if name == "all" else f"/{name}")
        if marks:
            gains.append(Row(name.removeprefix("domain:"), marks))
    if not gains:
        return None
    figure = Figure(
        "Right answers, base → chat",
        dots(gains, label="Right answers of base and chat by domain"),
        "Sampled answers to held-out prompts, by domain.",
        wide=True,
    )
    return Figures([figure])


def ppo_table(record: Record) -> Block | None:
    """Base against chat in every number that has both."""
    metrics = record.metrics("train_ppo")
    # Whatever was measured of both.
    names = [key.removesuffix("/base") for key in metrics if key.endswith("/base")]
    both = [name for name in names if f"{name}/chat" in metrics]
    table = []
    for name in both:
        as_text = percent if name == "gold" else number
        values = [as_text(metrics[f"{name}/{model}"]) for model in MODELS]
        table.append([_TITLES.get(name, name.capitalize()), *values])
    if "kl" in metrics:
        table.append(["KL to base, nats per token", "", number(metrics["kl"])])
    return Table(("on held-out prompts", *MODELS), table) if table else None


def scaling(record: Record) -> Block | None:
    """What more samples bring."""
    metrics = record.metrics("best_of_n")
    sizes = _sizes(metrics, "gold")
    if not sizes:
        return None
    names = {"gold": "picked by the reward model", "oracle": "any of N is right (oracle)"}
    axis: dict[str, Any] = {
        "x_label": "N answers per prompt",
        "x_ticks": {np.log2(n): str(n) for n in sizes},
    }
    # Over log2 of N, for N doubles.
    shares = {title: _by_size(metrics, name) for name, title in names.items()}
    svg = lines(shares, label="Right answers against N", y_format=whole_percent, **axis)
    caption = "The gap to the oracle is what a better reward model could still gain."
    figures = [Figure("Right answers against N", svg, caption)]

    # A reward that climbs while the right answers do not is over-optimisation.
    captions = {"reward": "Reward of the picked answer.", "length": "Its length, tokens."}
    for name, caption in captions.items():
        points = _by_size(metrics, name)
        if points:
            svg = lines({name: points}, label=f"{name} against N", **axis)
            figures.append(Figure(f"{name.capitalize()} against N", svg, caption))
    return Figures(figures)


def candidates(record: Record) -> Block | None:
    """Rewards of right and wrong candidates."""
    table = record.table("scored/best_of_n", ("rewards", "meta"))
    if table is None or not len(table):
        return None
    # `best_of_n` notes in `meta` which candidates are right.
    groups: dict[str, list[float]] = {"right": [], "wrong": []}
    for rewards, meta in zip(table["rewards"].to_pylist(), metas(table), strict=True):
        for reward, correct in zip(rewards, meta.get("correct", ()), strict=False):
            groups["right" if correct else "wrong"].append(reward)
    svg = histogram(groups, label="Rewards of right and wrong candidates", x_label="reward")
    caption = "Rewards can order answers to one prompt even where these overlap: prompts differ in difficulty."
    return Figures([Figure("Rewards of all candidates", svg, caption)]) if svg else None


def quarantine(record: Record) -> Block | None:
    """Why rows were set aside, by stage."""
    rows = []
    for stage in ("collect", "validate"):
        table = record.table(f"quarantine/{stage}")
        if table is None:
            continue
        reasons = Counter(table["reason"].to_pylist())
        num_others = reasons.total()
        for reason, count in reasons.most_common(MAX_REASONS):
            rows.append([stage, str(reason), f"{count:,}"])
            num_others -= count
        if num_others:
            other = f"{len(reasons) - MAX_REASONS:,} other reasons"
            rows.append([stage, other, f"{num_others:,}"])
    return Table(("stage", "reason", "rows"), rows, num_texts=2) if rows else None


SECTIONS = (
    Section("headline", "At a glance", "", (headline,)),
    Section(
        "data",
        "Data",
        "What the models learn from and are measured on. Held-out prompts and their pictures are in no training stage.",
        (sources_plot, sources_table, data_counts, data_table),
    ),
    Section("base", "Base model", "What every later stage starts from.", (base_curves,)),
    Section(
        "judges",
        "Judges",
        "Models judged the pairs that no rule can decide, each pair in both orders; a win counts if it is won twice.",
        (judges, judges_agree),
    ),
    Section(
        "reward",
        "Reward model training",
        "It learns to give the better of two answers the higher reward. Faint: each step; solid: running mean.",
        (reward_curves,),
    ),
    Section(
        "accuracy",
        "Reward model accuracy",
        "Does it generalise, and does it look at the pictures?",
        (accuracy, accuracy_table, calibration, reward_histograms, wrong_examples, right_examples),
    ),
    Section(
        "ppo",
        "PPO",
        "The chat model learns to earn reward without straying far from the base model.",
        (ppo_gain, ppo_curves, ppo_table),
    ),
    Section(
        "best",
        "Best of N",
        "Test-time scaling: sample N answers, let the reward model pick.",
        (scaling, candidates, picks),
    ),
    Section(
        "cleaning",
        "Cleaning a corpus",
        "The samples with the lowest rewards within their domain are removed; the others stay as they came. "
        "How well that finds defects is measured in a copy in which some were planted.",
        (cleaned_table, planted, cleaning_table, removed_gallery),
    ),
    Section("quarantine", "Quarantine", "Rows that were set aside, and why.", (quarantine,)),
)


def _tile(
    label: str, meaning: str, value: float | None, before: float | None = None
) -> Tile | None:
    """A share as a tile; None while it is not known."""
    if value is None:
        return None
    return Tile(label, percent(value), meaning, "" if before is None else percent(before))


def _small_multiples(
    record: Record,
    stage: str,
    captions: dict[str, str],
) -> Block | None:
    """A plot per column of a stage's curves, the explained ones first."""
    # Whatever a stage logs is drawn; what is explained here comes first.
    curves = record.curves(stage)
    explained = [name for name in captions if name in curves]
    others = [name for name in curves if name not in captions]
    figures = []
    for name in (*explained, *others):
        title = _TITLES.get(name, name.replace("_", " ").capitalize())
        svg = lines(
            {title: curves[name]},
            label=f"{title} by step",
            x_label="step",
            smooth=name != "learning_rate",
        )
        figures.append(Figure(title, svg, captions.get(name, "")))
    return Figures(figures) if figures else None


def _interval(metrics: dict[str, float], group: str) -> str:
    """The 95 % interval of an accuracy, in brackets; empty while it is not known."""
    low = metrics.get(f"accuracy_low/{group}")
    high = metrics.get(f"accuracy_high/{group}")
    if low is None or high is None:
        return ""
    return f" (95\u202f% interval: {percent(low)} to {percent(high)})"


def _before_after(metrics: dict[str, float], suffix: str) -> tuple[Mark, ...]:
    """Base and chat, or nothing where one is unknown."""
    base = metrics.get(f"gold/base{suffix}")
    chat = metrics.get(f"gold/chat{suffix}")
    if base is None or chat is None:
        return ()
    return Mark("base", base), Mark("chat", chat)


def _sizes(metrics: dict[str, float], name: str) -> list[int]:
    """The N for which `<name>/<N>` is known."""
    ends = named(metrics, name)
    return sorted(int(end) for end in ends if end.isdigit())


def _by_size(metrics: dict[str, float], name: str) -> list[tuple[float, float]]:
    """The points of a curve over log2 of N."""
    return [(float(np.log2(n)), metrics[f"{name}/{n}"]) for n in _sizes(metrics, name)]
