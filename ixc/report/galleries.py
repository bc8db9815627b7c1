"""Cards with pictures: what the reward model gets right, gets wrong, picks and removes."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ixc.report.blocks import Answer, Block, Card, Gallery
from ixc.report.images import thumbnail
from ixc.report.record import MODALITIES, Record, metas, pair_rewards, rows

MAX_REMOVED = 40
"""Cards in the gallery of removed samples: with the examples, about 60 pictures on the page."""
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
    known = metas(table)
    mixed = [
        i for i, meta in enumerate(known) if 0 < sum(meta.get("correct", ())) < len(meta["correct"])
    ]
    shown = _spread(table, mixed, each=2)
    cards = [
        _pick_card(record, row, known[i]["correct"])
        for i, row in zip(shown, rows(table, shown), strict=True)
    ]
    caption = "Prompts whose candidates are partly right, highest reward first: the first line is the pick."
    return Gallery("What is picked", cards, caption) if cards else None


def removed_gallery(record: Record) -> Block | None:
    """The removed samples, a few of each domain."""
    table = record.table("removed", (*CARD, "domain", "chosen", "clean_reward"))
    if table is None or not len(table):
        return None
    domains = [str(domain) for domain in table["domain"].to_pylist()]
    rewards = [reward or 0.0 for reward in table["clean_reward"].to_pylist()]
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    chosen = in_turn(order, domains.__getitem__, MAX_REMOVED)
    cards = [_removed_card(record, row) for row in rows(table, chosen)]
    caption = (
        f"{len(cards)} of {len(table):,} removed samples, lowest reward first, the domains in turn."
    )
    return Gallery("Removed samples", cards, caption, sorted({card.group for card in cards}))


def _examples(record: Record, title: str, caption: str, sign: int) -> Block | None:
    """A few pairs from one end of the margins; `sign` 1 for the smallest, -1 for the largest."""
    table = record.table("scored/val", (*CARD, "chosen", "rejected", "rewards"))
    if table is None or not len(table):
        return None
    margins = pair_rewards(table) @ [1.0, -1.0]
    order = [
        int(index)
        for index in np.argsort(sign * margins, kind="stable")
        if sign * margins[index] < 0
    ]
    cards = [
        _pair_card(record, row) for row in rows(table, _spread(table, _once(table, order), each=2))
    ]
    return Gallery(title, cards, caption) if cards else None


def _once(table: pa.Table, order: Sequence[int]) -> list[int]:
    """The first row of `order` of each prompt with its media: a prompt with many pairs must not be all there is."""
    asked = zip(table["prompt"].to_pylist(), table["media"].to_pylist(), strict=True)
    keys = [repr(one) for one in asked]
    first: dict[str, int] = {}
    for index in order:
        first.setdefault(keys[index], index)
    return list(first.values())


def _spread(table: pa.Table, order: Sequence[int], each: int) -> list[int]:
    """The first `each` of every modality: all the first, then all the second."""
    modalities = table["modality"].to_pylist()
    firsts = [[index for index in order if modalities[index] == kind][:each] for kind in MODALITIES]
    return [found[place] for place in range(each) for found in firsts if place < len(found)]


def in_turn(order: Iterable[int], kind: Callable[[int], str], limit: int) -> list[int]:
    """Up to `limit` of `order`, in turn from every kind, so that no kind crowds out another."""
    places: Counter[str] = Counter()
    turns = []
    for index in order:
        turns.append((places[kind(index)], index))
        places[kind(index)] += 1
    return [index for _, index in sorted(turns, key=lambda turn: turn[0])[:limit]]


def _pair_card(record: Record, row: dict[str, Any]) -> Card:
    rewards = row["rewards"]
    answers = [
        Answer(said(row["chosen"]), rewards[0], "good", "better"),
        Answer(said(row["rejected"]), rewards[1], "bad", "worse"),
    ]
    return _card(record, row, answers, tag=f"margin {rewards[0] - rewards[1]:+.2f}")


def _pick_card(record: Record, row: dict[str, Any], correct: Sequence[int]) -> Card:
    ranked = sorted(
        zip(row["rewards"], row["candidates"], correct, strict=True), key=lambda one: -one[0]
    )
    times = Counter(text for _, text, _ in ranked)
    best: dict[str, tuple[float, int]] = {}  # equal answers are one line
    for reward, text, right in ranked:
        best.setdefault(text, (reward, right))
    marks = []
    for text, (reward, right) in list(best.items())[:MAX_ANSWERS]:
        often = f", {times[text]} times" if times[text] > 1 else ""
        marks.append(
            Answer(
                _cut(text),
                reward,
                "good" if right else "bad",
                f"{'right' if right else 'wrong'}{often}",
            )
        )
    return _card(record, row, marks, tag=f"{sum(correct)} of {len(correct)} right")


def _removed_card(record: Record, row: dict[str, Any]) -> Card:
    answers = [Answer(said(row["chosen"]), row["clean_reward"])]
    return _card(record, row, answers, tag=row["domain"], group=row["domain"])


def _card(
    record: Record, row: dict[str, Any], answers: Sequence[Answer], tag: str, group: str = ""
) -> Card:
    image, missing = image_of(record, row["media"][0]) if row["media"] else (None, "")
    asked = [turn for turn in row["prompt"] if turn["role"] == "user"]
    return Card(said(asked[-1:]), answers, image, missing, tag, group)


def image_of(record: Record, medium: dict[str, str]) -> tuple[str | None, str]:
    """A medium as a `data:` address, or why it cannot be shown."""
    try:
        return thumbnail(record.root / "data" / "media" / medium["path"], medium["kind"]), ""
    except (OSError, ValueError):
        return None, f"cannot show data/media/{medium['path']}"


def said(turns: Sequence[dict[str, str]], limit: int = MAX_TEXT) -> str:
    """The text of a message, without the marks that say where its pictures belong."""
    return _cut(
        " ".join(turn["content"] for turn in turns).replace("<ImageHere>", "").strip(), limit
    )


def _cut(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
