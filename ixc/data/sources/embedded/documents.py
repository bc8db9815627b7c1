"""Text-rich pictures: bar charts, tables and receipts."""

import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ixc.data.sources import File, Row
from ixc.data.sources.embedded.drawing import (
    COLOURS,
    GROUNDS,
    Ground,
    draw_until,
    held_out,
    number,
    one_of,
    png,
    write_text,
)

NUMBERS = range(1, 6)


def _cells(
    rng: random.Random, validation: bool, count: int, ground: Ground
) -> list[tuple[str, int]]:
    """Colours with numbers, no two alike; validation holds out a colour with a number in a place on a ground."""

    def ok(cells: list[tuple[str, int]]) -> bool:
        seen = {
            held_out(*cell, place, count, ground) == validation for place, cell in enumerate(cells)
        }
        return seen == {True} and len({c for c, _ in cells}) == len({v for _, v in cells}) == count

    return draw_until(
        lambda: [(rng.choice(list(COLOURS)), rng.choice(NUMBERS)) for _ in range(count)], ok
    )


def chart(rng: random.Random, validation: bool) -> list[Row]:
    """Three bars with their values above: which is tallest, which shortest, and what is the value of one?"""
    ground = rng.choice(GROUNDS)
    shown = _cells(rng, validation, 3, ground)
    image = Image.new("RGB", (112, 112), ground)
    draw, width = ImageDraw.Draw(image), 112 / len(shown)
    for i, (colour, value) in enumerate(shown):
        top = 104 - 15 * value
        draw.rectangle((i * width + 5, top, (i + 1) * width - 5, 108), fill=COLOURS[colour])
        write_text(image, ((i + 0.5) * width, top - 2), str(value), 22, "md")
    file, names = png(image), [c for c, _ in shown]
    tallest = max(shown, key=lambda c: c[1])[0]
    shortest = min(shown, key=lambda c: c[1])[0]
    colour, value = rng.choice(shown)
    asks = (
        f"What is the value of the {colour} bar?",
        f"How high is the {colour} bar?",
        f"Read the {colour} bar.",
    )
    near = [v for _, v in shown if v != value] + [value + 1]
    return [
        *(
            _extreme(rng, file, names, *case)
            for case in ((tallest, "tallest"), (shortest, "shortest"))
        ),
        number(rng, "text_rich", asks, [file], value, near, f"The {colour} bar shows {{}}."),
    ]


def _extreme(rng: random.Random, file: File, names: Sequence[str], colour: str, word: str) -> Row:
    texts = (
        f"Which bar is the {word}?",
        f"What colour is the {word} bar?",
        f"Name the {word} bar.",
    )
    return one_of(rng, "text_rich", texts, [file], colour, names, f"The {word} bar is {{}}.")


def table(rng: random.Random, validation: bool) -> list[Row]:
    """Two coloured rows with a number in a cell each: what stands in a row, and which row holds a number?"""
    ground = rng.choice(GROUNDS)
    shown = _cells(rng, validation, 2, ground)
    image = Image.new("RGB", (112, 112), ground)
    draw = ImageDraw.Draw(image)
    for i, (colour, digit) in enumerate(shown):
        draw.rectangle((2, 56 * i + 2, 109, 56 * i + 53), fill=COLOURS[colour])
        draw.rectangle((64, 56 * i + 9, 102, 56 * i + 46), fill=ground)
        write_text(image, (83, 56 * i + 28), str(digit), 40, "mm")
    (colour, digit), (other, another) = rng.sample(shown, 2)
    asks = (
        f"What stands in the {colour} row?",
        f"Read the {colour} row.",
        f"Which number is in the {colour} row?",
    )
    which = (
        f"Which row holds {digit}?",
        f"What colour is the row with {digit}?",
        f"In which row is {digit}?",
    )
    near, file = [another, *rng.sample([n for n in NUMBERS if n != digit], 2)], png(image)
    return [
        number(rng, "text_rich", asks, [file], digit, near, f"The {colour} row holds {{}}."),
        one_of(rng, "text_rich", which, [file], colour, (colour, other), "It is the {} row."),
    ]


def receipt(rng: random.Random, validation: bool) -> list[Row]:
    """A slip with a total of one large digit; validation holds out totals in a place on a slip."""
    total, height, ground, shift = draw_until(
        lambda: (
            rng.choice(NUMBERS),
            rng.choice((56, 84, 112)),
            rng.choice(GROUNDS),
            rng.randint(-3, 3),
        ),
        lambda drawn: held_out(*drawn) == validation,
    )
    image = Image.new("RGB", (112, height), ground)
    write_text(image, (6, 4), "TOTAL", 13)
    write_text(image, (56 + shift, height / 2 + 6), str(total), 44, "mm")
    texts = ("What is the total?", "How much is to be paid?", "Read the total on the receipt.")
    near = rng.sample([n for n in NUMBERS if n != total], 3)
    return [number(rng, "text_rich", texts, [png(image)], total, near, "The total is {}.")]
