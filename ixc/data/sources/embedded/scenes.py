"""General scenes - what is where, in which colour - and counting."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ixc.data.sources import File, Row
from ixc.data.sources.embedded.drawing import (
    COLOURS,
    GROUNDS,
    SHAPES,
    SIZES,
    THINGS,
    Thing,
    draw_thing,
    draw_until,
    held_out,
    number,
    one_of,
    png,
    question,
)

PLACES = ("top left", "top right", "bottom left", "bottom right")


def scene(rng: random.Random, validation: bool) -> list[Row]:
    """One to three things: four questions, a description, and a ready pair of a true and a hallucinated caption.

    Validation holds out which thing stands in which corner of which canvas.
    """
    many, size, ground = rng.choice((1, 1, 1, 2, 2, 3)), rng.choice(SIZES), rng.choice(GROUNDS)
    present, places = draw_until(
        lambda: (rng.sample(THINGS, many), rng.sample(PLACES, many)),
        lambda drawn: (
            _distinct(drawn[0])
            and all(held_out(*p, size, ground) == validation for p in zip(*drawn, strict=True))
        ),
    )
    image = Image.new("RGB", size, ground)
    for thing, place in zip(present, places, strict=True):
        x, y = ("right" in place) * 0.5 + 0.25, ("bottom" in place) * 0.5 + 0.25
        draw_thing(image, thing, (x * size[0], y * size[1]), 0.23 * min(size))
    file, rows = png(image), []
    for make in (_colour, _shape, _place, _presence):
        asked = rng.randrange(many)
        rows.append(make(rng, file, present, asked, places[asked]))
    return [*rows, _description(rng, file, present), _caption_pair(rng, file, present)]


def _distinct(present: Sequence[Thing]) -> bool:
    """Whether no two things share a colour or a shape."""
    return len({c for c, _ in present}) == len({s for _, s in present}) == len(present)


def _colour(
    rng: random.Random, file: File, present: Sequence[Thing], asked: int, place: str
) -> Row:
    colour, shape = present[asked]
    texts = (
        f"What colour is the {shape}?",
        f"Tell me the colour of the {shape}.",
        f"Which colour has the {shape}?",
    )
    return one_of(rng, "general", texts, [file], colour, list(COLOURS), f"The {shape} is {{}}.")


def _shape(rng: random.Random, file: File, present: Sequence[Thing], asked: int, place: str) -> Row:
    colour, shape = present[asked]
    texts = (
        f"What shape is {colour}?",
        f"Which shape is the {colour} one?",
        f"Name the {colour} shape.",
    )
    return one_of(rng, "general", texts, [file], shape, SHAPES, f"The {colour} shape is a {{}}.")


def _place(rng: random.Random, file: File, present: Sequence[Thing], asked: int, place: str) -> Row:
    shape = present[asked][1]
    texts = (
        f"Where is the {shape}?",
        f"In which corner is the {shape}?",
        f"Tell me where the {shape} is.",
    )
    return one_of(rng, "general", texts, [file], place, PLACES, f"The {shape} is at the {{}}.")


def _presence(
    rng: random.Random, file: File, present: Sequence[Thing], asked: int, place: str
) -> Row:
    shape, there = present[asked][1], rng.random() < 0.5
    if not there:
        shape = rng.choice([s for s in SHAPES if all(s != other for _, other in present)])
    texts = (f"Is there a {shape}?", f"Can you see a {shape}?", f"Does the picture show a {shape}?")
    answers = (f"No, there is no {shape}.", f"Yes, there is a {shape}.")
    value, other = ("yes", "no") if there else ("no", "yes")
    return question(
        "general",
        rng.choice(texts),
        [file],
        "match",
        value,
        answers[there],
        [other],
        [answers[not there]],
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _list(present: Sequence[Thing]) -> str:
    return " and ".join(f"{_article(colour)} {colour} {shape}" for colour, shape in present) + "."


def _hallucinated(rng: random.Random, present: Sequence[Thing]) -> list[Thing]:
    """The same things, one of them with another colour or shape."""
    at = rng.randrange(len(present))
    colour, shape = present[at]
    if rng.random() < 0.5:
        colour = rng.choice([c for c in COLOURS if c not in {c for c, _ in present}])
    else:
        shape = rng.choice([s for s in SHAPES if s not in {s for _, s in present}])
    return [*present[:at], (colour, shape), *present[at + 1 :]]


def _description(rng: random.Random, file: File, present: Sequence[Thing]) -> Row:
    named = [f"{colour} {shape}" for colour, shape in present]
    absent = [shape for shape in SHAPES if all(shape != other for _, other in present)]
    constraints = [
        {"id": "keywords:existence", "kwargs": {"keywords": named}},
        {"id": "keywords:forbidden_words", "kwargs": {"forbidden_words": absent}},
    ]
    text = rng.choice(("Describe the picture.", "What do you see?", "What does the picture show?"))
    wrong = [_list(_hallucinated(rng, present)) for _ in range(2)]
    return question(
        "general", text, [file], "constraints", json.dumps(constraints), _list(present), wrong=wrong
    )


def _caption_pair(rng: random.Random, file: File, present: Sequence[Thing]) -> Row:
    row = question("general", "Write a caption for this picture.", [file], "open", "", "")
    return replace(
        row, gold=None, chosen=_list(present), rejected=_list(_hallucinated(rng, present))
    )


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def count(rng: random.Random, validation: bool) -> list[Row]:
    """One to four things of one kind; validation holds out things in a number on a ground."""
    (colour, shape), total, ground = draw_until(
        lambda: (rng.choice(THINGS), rng.randint(1, 4), rng.choice(GROUNDS)),
        lambda drawn: held_out(*drawn) == validation,
    )
    image = Image.new("RGB", (112, 112), ground)
    for corner in rng.sample(range(4), total):
        draw_thing(image, (colour, shape), (28 + 56 * (corner % 2), 28 + 56 * (corner // 2)), 20)
    texts = (
        f"How many {_plural(shape)} are there?",
        f"Count the {_plural(shape)}.",
        f"How many {colour} {_plural(shape)} do you see?",
    )
    near = rng.sample([n for n in range(1, 5) if n != total], 3)
    return [number(rng, "reasoning", texts, [png(image)], total, near, "I count {}.")]
