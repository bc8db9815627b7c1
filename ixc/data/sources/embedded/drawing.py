"""What can be drawn: coloured shapes and numbers on a pale ground; and the rows that ask about them."""

import io
import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from ixc.data.samples import Check, Domain, Gold, user_message
from ixc.data.sources import File, Row

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 180),
    "black": (20, 20, 20),
}
SHAPES = ("square", "triangle", "cross", "ring")
SIZES = ((112, 112), (112, 112), (96, 96), (72, 72), (120, 90), (150, 75), (75, 150))
"""Pixels, wide and tall."""
GROUNDS = ((255, 255, 255), (245, 240, 230), (230, 240, 245), (240, 230, 240))

T = TypeVar("T")
Thing = tuple[str, str]
"""A colour and a shape."""
Point = tuple[float | int, float | int]
"""Pixels from the left and from the top."""
Ground = tuple[int, int, int]


THINGS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def held_out(*combination: object) -> bool:
    """Whether a combination is held out for validation: one in five, whatever the seed.

    >>> held_out("red", "ring", 3) == held_out("red", "ring", 3)
    True
    """
    return zlib.crc32(repr(combination).encode()) % 5 == 0


def draw_until(make: Callable[[], T], is_right: Callable[[T], bool]) -> T:
    """Draw with `make` until `is_right` takes it."""
    while True:
        drawn = make()
        if is_right(drawn):
            return drawn


def draw_thing(
    image: Image.Image,
    thing: Thing,
    centre: Point,
    radius: float | int,
) -> None:
    """Draw a shape; `centre` and `radius` in pixels."""
    colour_name, shape = thing
    colour = COLOURS[colour_name]
    x, y = centre
    r = radius
    box = (x - r, y - r, x + r, y + r)
    draw = ImageDraw.Draw(image)
    match shape:
        case "square":
            draw.rectangle(box, fill=colour)
        case "triangle":
            draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
        case "ring":
            draw.ellipse(box, outline=colour, width=max(round(r * 0.4), 2))
        case _:
            arm = r * 0.35
            draw.rectangle((x - r, y - arm, x + r, y + arm), fill=colour)
            draw.rectangle((x - arm, y - r, x + arm, y + r), fill=colour)


def write_text(
    image: Image.Image,
    at: Point,
    text: str,
    height: float | int,
    anchor: str = "la",
) -> None:
    """Write black text; `height` in pixels."""
    font = ImageFont.load_default(height)
    ImageDraw.Draw(image).text(at, text, fill="black", font=font, anchor=anchor)


def png(image: Image.Image) -> File:
    """An image as a file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return File(kind="image", data=buffer.getvalue())


def question(
    domain: Domain,
    text: str,
    media: Sequence[File],
    check: Check,
    value: str,
    answer: str,
    others: Sequence[str] = (),
    wrong: Sequence[str] = (),
) -> Row:
    """A prompt with its gold answer; id, group and split are the corpus's to give."""
    gold = Gold(
        check=check,
        value=value,
        answer=answer,
        others=tuple(others),
    )
    return Row(
        id="",
        domain=domain,
        prompt=user_message(text),
        media=tuple(media),
        gold=gold,
        wrong=tuple(wrong),
    )


def one_of(
    rng: random.Random,
    domain: Domain,
    texts: Sequence[str],
    media: Sequence[File],
    value: str,
    values: Sequence[str],
    form: str,
) -> Row:
    """A question whose answer is one of `values`, put into `form`."""
    others = [other for other in values if other != value]
    wrong_values = rng.sample(others, min(3, len(others)))
    wrong = [form.format(other) for other in wrong_values]
    text = rng.choice(texts)
    answer = form.format(value)
    return question(domain, text, media, "match", value, answer, others, wrong)


def number(
    rng: random.Random,
    domain: Domain,
    texts: Sequence[str],
    media: Sequence[File],
    value: int,
    near: Sequence[int],
    form: str,
) -> Row:
    """A question whose answer is a number; `near` are the likely mistakes."""
    mistakes = [other for other in dict.fromkeys(near) if other != value and other >= 0]
    wrong = [form.format(other) for other in mistakes]
    text = rng.choice(texts)
    answer = form.format(value)
    return question(domain, text, media, "number", str(value), answer, wrong=wrong)
