"""Blocks about the reward model on held-out pairs."""

import numpy as np

from ixc.metrics import reliability
from ixc.report.blocks import Block, Figure, Figures, Table
from ixc.report.record import MODALITIES, Record, named, pair_rewards
from ixc.report.svg import Mark, Row, dots, histogram, lines, number, percent, whole, whole_percent


def accuracy(record: Record) -> Block | None:
    """Accuracy by group, with intervals and with exchanged images."""
    metrics = record.metrics("evaluate_rm")
    groups = [key.removeprefix("accuracy/") for key in metrics if key.startswith("accuracy/")]
    if not groups:
        return None
    names = [name for name in ("all", *MODALITIES) if name in groups]
    rows = [_accuracy_row(metrics, name) for name in names]
    for prefix in ("domain", "source"):
        members = sorted(name for name in groups if name.startswith(f"{prefix}:"))
        if members:
            rows.append(Row(f"By {prefix}"))
            rows += [_accuracy_row(metrics, name) for name in members]

    # A coin is the measure of all of them.
    figure = Figure(
        "Accuracy on held-out pairs",
        dots(rows, label="Reward model accuracy by group", reference=0.5),
        "Dots with their 95 % intervals, in which pairs of one prompt count as dependent; dashed: a coin. "
        "After the arrows: the same pairs by a rule that takes the longer answer, and with pictures exchanged.",
        wide=True,
    )
    return Figures([figure])


def accuracy_table(record: Record) -> Block | None:
    """The same in numbers, with lengths and calibration."""
    metrics = record.metrics("evaluate_rm")
    groups = named(metrics, "accuracy")
    first = [name for name in ("all", *MODALITIES) if name in groups]
    formats = {
        "pairs": whole,
        "prompts": whole,
        "accuracy": percent,
        "length_only": percent,
        "ece": percent,
        "ties": whole,
        "words_chosen": number,
        "words_rejected": number,
        "pairs_swapped": whole,
        "accuracy_swapped_media": percent,
    }
    table = []
    for group in (*first, *sorted(set(groups) - set(first))):
        cells = [group]
        for name, as_text in formats.items():
            value = metrics.get(f"{name}/{group}")
            cells.append("–" if value is None else as_text(value))
        table.append(cells)
    head = ("group", "pairs", "prompts", "accuracy", "longer wins", "calibration error", "ties")
    words = ("words, chosen", "words, rejected", "pairs exchanged", "accuracy exchanged")
    caption = (
        "A tie counts as wrong. Longer wins: what a rule would get right that takes the longer answer; equal lengths "
        "count half. Calibration error: how far the claimed probabilities are from the shares that are right. Pairs "
        "exchanged: those for which another picture was at hand."
    )
    return Table((*head, *words), table, caption) if table else None


def calibration(record: Record) -> Block | None:
    """How often the model is right where it claims a probability."""
    table = record.table("scored/val", ("rewards",))
    if table is None or not len(table):
        return None
    # By how much the chosen answer is ahead; the model claims a probability of its sigmoid.
    margins = pair_rewards(table) @ [1.0, -1.0]
    claimed, right, count = reliability(margins.tolist())
    series = {
        "right": list(zip(claimed, right, strict=True)),
        "claimed": [(0.5, 0.5), (1.0, 1.0)],
    }
    svg = lines(
        series,
        label="Claimed and true probability",
        x_label="claimed probability",
        y_format=whole_percent,
    )
    caption = (
        f"Pairs in bins of the probability that the model claims, {min(count):,} to {max(count):,} in each. Below the "
        "diagonal it is too sure of itself."
    )
    return Figures([Figure("Calibration", svg, caption)]) if svg else None


def reward_histograms(record: Record) -> Block | None:
    """How far apart the rewards of better and worse answers are."""
    table = record.table("scored/val", ("modality", "rewards"))
    if table is None or not len(table):
        return None
    pairs = pair_rewards(table)
    modalities = np.array(table["modality"].to_pylist())
    # A modality may be easy, and hide that another is not learnt.
    figures = []
    for name in ("all", *MODALITIES):
        rewards = pairs if name == "all" else pairs[modalities == name]
        if not len(rewards):
            continue
        chosen, rejected = rewards[:, 0], rewards[:, 1]
        accuracy = float(np.mean(chosen > rejected))
        svg = histogram(
            {"chosen": chosen, "rejected": rejected},
            label=f"Rewards of chosen and rejected answers, {name}",
            x_label="reward",
        )
        title = "Rewards" if name == "all" else f"Rewards, {name}"
        caption = f"{percent(accuracy)} of the pairs in the right order."
        figures.append(Figure(title, svg, caption))
    return Figures(figures)


def num_swapped(metrics: dict[str, float]) -> str:
    """How many of the pairs with images could be given another one, in brackets."""
    count, total = metrics.get("pairs_swapped/image"), metrics.get("pairs/image")
    return "" if count is None or total is None else f" ({count:,.0f} of {total:,.0f})"


def _accuracy_row(metrics: dict[str, float], group: str) -> Row:
    """A group as a line of dots."""
    low, high = metrics.get(f"accuracy_low/{group}"), metrics.get(f"accuracy_high/{group}")
    marks = [Mark("as they are", metrics[f"accuracy/{group}"], low, high)]
    # What a rule without eyes, and the model without the right image, make of the same pairs.
    length_only = metrics.get(f"length_only/{group}")
    if length_only is not None:
        marks.append(Mark("longer wins", length_only))
    swapped = metrics.get(f"accuracy_swapped_media/{group}")
    if swapped is not None:
        marks.append(Mark("pictures exchanged", swapped))
    return Row(group.partition(":")[2] or group, tuple(marks))
