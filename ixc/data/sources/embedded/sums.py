"""Reasoning in text: sums and differences, bare and as stories."""

import random

from ixc.data.sources import Row
from ixc.data.sources.embedded.drawing import draw_until, held_out, number

_NAMES = ("Ann", "Ben", "Eva", "Tom", "Mia", "Leo")
_GOODS = ("apples", "books", "coins", "pens", "stamps", "shells")


def exercise(rng: random.Random, validation: bool) -> list[Row]:
    """Two numbers up to 6, added or subtracted; validation holds out numbers in a wording."""
    adds = rng.random() < 0.6
    a, b, wording = draw_until(
        lambda: (*_terms(rng, adds), rng.randrange(6)),
        lambda drawn: held_out(adds, *drawn) == validation,
    )
    total, sign, trades, moves = (
        (a + b, "+", "buys", "brings") if adds else (a - b, "-", "sells", "takes")
    )
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    texts = (
        f"What is {a} {sign} {b}?",
        f"{a} {sign} {b} = ?",
        f"Calculate {a} {sign} {b}.",
        f"Add {a} and {b}." if adds else f"Take {b} from {a}.",
        f"{name} has {a} {goods} and {trades} {b}. How many now?",
        f"There were {a} {goods}. {name} {moves} {b}. How many now?",
    )
    # Likely mistakes: off by one, by two or by ten.
    near = [total + 1, total - 1, total + rng.choice((2, 10))]
    return [
        number(
            rng,
            "reasoning",
            texts[wording : wording + 1],
            [],
            total,
            near,
            f"{a} {sign} {b} = {{}}",
        )
    ]


def _terms(rng: random.Random, adds: bool) -> tuple[int, int]:
    """What is taken away is never the larger one."""
    a, b = rng.randint(1, 6), rng.randint(1, 6)
    return (a, b) if adds else (max(a, b), min(a, b))
