"""Text-rich images: bar charts, tables and receipts."""

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

    def draw() -> list[tuple[str, int]]:
        return [(rng.choice(list(COLOURS)), rng.choice(NUMBERS)) for _ in range(count)]

    def is_right(cells: list[tuple[str, int]]) -> bool:
        for place, (colour, value) in enumerate(cells):
            if held_out(colour, value, place, count, ground) != validation:
                return False
        colours = {colour for colour, _ in cells}
        values = {value for _, value in cells}
        return len(colours) == len(values) == count

    return draw_until(draw, is_right)


def chart(rng: random.Random, validation: bool) -> list[Row]:
    """Three bars with their values above: which is tallest, which shortest, and what is the value of one?"""
    ground = rng.choice(GROUNDS)
    bars = _cells(rng, validation, 3, ground)
    image = Image.new("RGB", (112, 112), ground)
    draw = ImageDraw.Draw(image)
    width = 112 / len(bars)
    # Each bar a third of the width, with its value above.
    for i, (colour, value) in enumerate(bars):
        top = 104 - 15 * value
        draw.rectangle((i * width + 5, top, (i + 1) * width - 5, 108), fill=COLOURS[colour])
        write_text(image, ((i + 0.5) * width, top - 2), str(value), 22, "md")
    file = png(image)

    names = [colour for colour, _ in bars]
    by_height = sorted(bars, key=lambda bar: bar[1])
    tallest, shortest = by_height[-1][0], by_height[0][0]
    colour, value = rng.choice(bars)
    texts = (
        f"What is the value of the {colour} bar?",
        f"How high is the {colour} bar?",
        f"Read the {colour} bar.",
    )
    # Likely mistakes: the values of the other bars.
    near = [other for _, other in bars if other != value]
    near.append(value + 1)
    return [
        _extreme(rng, file, names, tallest, "tallest"),
        _extreme(rng, file, names, shortest, "shortest"),
        number(rng, "text_rich", texts, [file], value, near, f"The {colour} bar shows {{}}."),
    ]


def _extreme(
    rng: random.Random,
    file: File,
    names: Sequence[str],
    colour: str,
    word: str,
) -> Row:
    texts = (
        f"Which bar is the {word}?",
        f"What colour is the {word} bar?",
        f"Name the {word} bar.",
    )
    return one_of(rng, "text_rich", texts, [file], colour, names, f"The {word} bar is {{}}.")


def table(rng: random.Random, validation: bool) -> list[Row]:
    """Two coloured rows with a number in a cell each: what stands in a row, and which row holds a number?"""
    ground = rng.choice(GROUNDS)
    cells = _cells(rng, validation, 2, ground)
    image = Image.new("RGB", (112, 112), ground)
    draw = ImageDraw.Draw(image)
    # A coloured row, a pale cell in it, the number in the cell.
    for i, (colour, digit) in enumerate(cells):
        top = 56 * i
        draw.rectangle((2, top + 2, 109, top + 53), fill=COLOURS[colour])
        draw.rectangle((64, top + 9, 102, top + 46), fill=ground)
        write_text(image, (83, top + 28), str(digit), 40, "mm")

    (colour, digit), (other_colour, other_digit) = rng.sample(cells, 2)
    what = (
        f"What stands in the {colour} row?",
        f"Read the {colour} row.",
        f"Which number is in the {colour} row?",
    )
    which = (
        f"Which row holds {digit}?",
        f"What colour is the row with {digit}?",
        f"In which row is {digit}?",
    )
    other_digits = [n for n in NUMBERS if n != digit]
    # Likely mistakes: the number of the other row, and two that are not there.
    near = [other_digit, *rng.sample(other_digits, 2)]
    colours = (colour, other_colour)
    file = png(image)
    return [
        number(rng, "text_rich", what, [file], digit, near, f"The {colour} row holds {{}}."),
        one_of(rng, "text_rich", which, [file], colour, colours, "It is the {} row."),
    ]


def receipt(rng: random.Random, validation: bool) -> list[Row]:
    """A slip with a total of one large digit; validation holds out totals in a place on a slip."""

    def draw() -> tuple[int, int, Ground, int]:
        total = rng.choice(NUMBERS)
        height = rng.choice((56, 84, 112))
        ground = rng.choice(GROUNDS)
        shift = rng.randint(-3, 3)
        return total, height, ground, shift

    total, height, ground, shift = draw_until(draw, lambda drawn: held_out(*drawn) == validation)
    image = Image.new("RGB", (112, height), ground)
    write_text(image, (6, 4), "TOTAL", 13)
    write_text(image, (56 + shift, height / 2 + 6), str(total), 44, "mm")
    texts = ("What is the total?", "How much is to be paid?", "Read the total on the receipt.")
    near = rng.sample([n for n in NUMBERS if n != total], 3)
    return [number(rng, "text_rich", texts, [png(image)], total, near, "The total is {}.")]
