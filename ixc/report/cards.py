"""Cards with images: what the reward model gets right, gets wrong, picks and removes."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ixc.report.blocks import Answer, Block, Card, Gallery
from ixc.report.images import thumbnail
from ixc.report.record import MODALITIES, Record, metas, pair_rewards, rows

MAX_REMOVED = 40
"""Cards in the gallery of removed samples: with the examples, about 60 images on the page."""
MAX_TEXT = 320
"""Characters of a question or an answer on a card."""
MAX_ANSWERS = 4
"""Different answers on a card."""
CARD = ("prompt", "media", "modality")


def right_examples(record: Record) -> Block | None:
    """Pairs the reward model orders with the largest margin."""
    return _examples(
        record,
        "Surest when right",
        "The largest margins in the right direction, a few per modality.",
        -1,
    )


def wrong_examples(record: Record) -> Block | None:
    """Pairs it orders wrongly with the largest margin."""
    return _examples(
        record,
        "Surest when wrong",
        "The largest margins in the wrong direction: look here first.",
        1,
    )


def picks(record: Record) -> Block | None:
    """Prompts with right and wrong candidates, best reward first."""
    table = record.table("scored/best_of_n", (*CARD, "candidates", "rewards", "meta"))
    if table is None:
        return None
    # Where all candidates are right, or none is, there is nothing to pick.
    correct_of = [meta.get("correct", ()) for meta in metas(table)]
    mixed = []
    for index, correct in enumerate(correct_of):
        if 0 < sum(correct) < len(correct):
            mixed.append(index)

    indexes = _spread(table, mixed, each=2)
    cards = []
    for index, row in zip(indexes, rows(table, indexes), strict=True):
        cards.append(_pick_card(record, row, correct_of[index]))
    caption = "Prompts whose candidates are partly right, highest reward first: the first line is the pick."
    return Gallery("What is picked", cards, caption) if cards else None


def removed_gallery(record: Record) -> Block | None:
    """The removed samples, a few of each domain."""
    table = record.table("removed", (*CARD, "domain", "chosen", "clean_reward"))
    if table is None or not len(table):
        return None
    # Those with the least reward of every domain, or one domain would fill the gallery.
    domains = [str(domain) for domain in table["domain"].to_pylist()]
    rewards = [reward or 0.0 for reward in table["clean_reward"].to_pylist()]
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    chosen = in_turn(order, domains.__getitem__, MAX_REMOVED)
    cards = [_removed_card(record, row) for row in rows(table, chosen)]
    caption = (
        f"{len(cards)} of {len(table):,} removed samples, lowest reward first, the domains in turn."
    )
    groups = sorted({card.group for card in cards})
    return Gallery("Removed samples", cards, caption, groups)


def _examples(
    record: Record,
    title: str,
    caption: str,
    sign: int,
) -> Block | None:
    """A few pairs from one end of the margins; `sign` 1 for the smallest, -1 for the largest."""
    table = record.table("scored/val", (*CARD, "chosen", "rejected", "rewards"))
    if table is None or not len(table):
        return None
    # Only pairs on one side of zero: few mistakes must not be filled up with successes.
    margins = sign * (pair_rewards(table) @ [1.0, -1.0])
    ascending = np.argsort(margins, kind="stable").tolist()
    order = [index for index in ascending if margins[index] < 0]
    indexes = _spread(table, _once(table, order), each=2)
    cards = [_pair_card(record, row) for row in rows(table, indexes)]
    return Gallery(title, cards, caption) if cards else None


def _once(table: pa.Table, order: Sequence[int]) -> list[int]:
    """The first row of `order` of each prompt with its media: a prompt with many pairs must not be all there is."""
    questions = zip(table["prompt"].to_pylist(), table["media"].to_pylist(), strict=True)
    keys = [repr(question) for question in questions]
    first: dict[str, int] = {}
    for index in order:
        first.setdefault(keys[index], index)
    return list(first.values())


def _spread(
    table: pa.Table,
    order: Sequence[int],
    each: int,
) -> list[int]:
    """The first `each` of every modality: all the first, then all the second."""
    modalities = table["modality"].to_pylist()
    first: dict[str, list[int]] = {kind: [] for kind in MODALITIES}
    for index in order:
        of_its_kind = first[modalities[index]]
        if len(of_its_kind) < each:
            of_its_kind.append(index)

    spread = []
    for place in range(each):
        for indexes in first.values():
            spread += indexes[place : place + 1]
    return spread


def in_turn(
    order: Iterable[int],
    kind: Callable[[int], str],
    limit: int,
) -> list[int]:
    """Up to `limit` of `order`, in turn from every kind, so that no kind crowds out another."""
    # The first of every kind, then the second of every kind, and so on; a stable sort does the rest.
    counts: Counter[str] = Counter()
    turns = []
    for index in order:
        turns.append((counts[kind(index)], index))
        counts[kind(index)] += 1
    turns.sort(key=lambda turn: turn[0])
    return [index for _, index in turns[:limit]]


def _pair_card(record: Record, row: dict[str, Any]) -> Card:
    """A pair, the better answer first."""
    rewards = row["rewards"]
    answers = [
        Answer(text_of(row["chosen"]), rewards[0], "good", "better"),
        Answer(text_of(row["rejected"]), rewards[1], "bad", "worse"),
    ]
    return _card(record, row, answers, tag=f"margin {rewards[0] - rewards[1]:+.2f}")


def _pick_card(
    record: Record,
    row: dict[str, Any],
    correct: Sequence[int],
) -> Card:
    """A prompt with its candidates, best reward first."""
    candidates = list(zip(row["rewards"], row["candidates"], correct, strict=True))
    candidates.sort(key=lambda candidate: -candidate[0])

    # Equal answers are one line, with the best of their rewards.
    num_equal = Counter(text for _, text, _ in candidates)
    best: dict[str, tuple[float, int]] = {}
    for reward, text, is_right in candidates:
        best.setdefault(text, (reward, is_right))

    answers = []
    for text, (reward, is_right) in list(best.items())[:MAX_ANSWERS]:
        label = "right" if is_right else "wrong"
        if num_equal[text] > 1:
            label += f", {num_equal[text]} times"
        mark = "good" if is_right else "bad"
        answers.append(Answer(_cut(text), reward, mark, label))
    return _card(record, row, answers, tag=f"{sum(correct)} of {len(correct)} right")


def _removed_card(record: Record, row: dict[str, Any]) -> Card:
    """A removed sample with its reward."""
    answers = [Answer(text_of(row["chosen"]), row["clean_reward"])]
    return _card(record, row, answers, tag=row["domain"], group=row["domain"])


def _card(
    record: Record,
    row: dict[str, Any],
    answers: Sequence[Answer],
    tag: str,
    group: str = "",
) -> Card:
    """A card: the last question, the first image and some answers."""
    image, missing = None, ""
    if row["media"]:
        image, missing = image_of(record, row["media"][0])
    # Of a conversation the last question is what was answered.
    questions = [turn for turn in row["prompt"] if turn["role"] == "user"]
    return Card(
        question=text_of(questions[-1:]),
        answers=answers,
        image=image,
        missing=missing,
        tag=tag,
        group=group,
    )


def image_of(record: Record, medium: dict[str, str]) -> tuple[str | None, str]:
    """A medium as a `data:` address, or why it cannot be shown."""
    path = record.root / "data" / "media" / medium["path"]
    try:
        return thumbnail(path, medium["kind"]), ""
    except (OSError, ValueError):
        return None, f"cannot show data/media/{medium['path']}"


def text_of(turns: Sequence[dict[str, str]], limit: int = MAX_TEXT) -> str:
    """The text of messages, without the marks that say where their images belong."""
    text = " ".join(turn["content"] for turn in turns)
    unmarked = text.replace("<ImageHere>", "").strip()
    return _cut(unmarked, limit)


def _cut(text: str, limit: int = MAX_TEXT) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
