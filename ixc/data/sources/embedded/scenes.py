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
    Ground,
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
    num_things = rng.choice((1, 1, 1, 2, 2, 3))
    size = rng.choice(SIZES)
    ground = rng.choice(GROUNDS)

    def draw() -> tuple[list[Thing], list[str]]:
        return rng.sample(THINGS, num_things), rng.sample(PLACES, num_things)

    def is_right(drawn: tuple[list[Thing], list[str]]) -> bool:
        things, places = drawn
        if not _distinct(things):
            return False
        for thing, place in zip(things, places, strict=True):
            if held_out(thing, place, size, ground) != validation:
                return False
        return True

    present, places = draw_until(draw, is_right)
    file = _scene_image(present, places, size, ground)

    # Each question is about a thing of its own; the order of the draws makes the corpus.
    rows = []
    for make in (_colour, _shape, _place, _presence):
        index = rng.randrange(num_things)
        rows.append(make(rng, file, present, index, places[index]))
    rows.append(_description(rng, file, present))
    rows.append(_caption_pair(rng, file, present))
    return rows


def _scene_image(
    present: Sequence[Thing],
    places: Sequence[str],
    size: tuple[int, int],
    ground: Ground,
) -> File:
    width, height = size
    image = Image.new("RGB", size, ground)
    for thing, place in zip(present, places, strict=True):
        x = 0.75 if "right" in place else 0.25
        y = 0.75 if "bottom" in place else 0.25
        draw_thing(image, thing, (x * width, y * height), 0.23 * min(size))
    return png(image)


def _distinct(present: Sequence[Thing]) -> bool:
    """Whether no two things share a colour or a shape."""
    colours = {colour for colour, _ in present}
    shapes = {shape for _, shape in present}
    return len(colours) == len(shapes) == len(present)


def _colour(
    rng: random.Random,
    file: File,
    present: Sequence[Thing],
    index: int,
    place: str,
) -> Row:
    colour, shape = present[index]
    texts = (
        f"What colour is the {shape}?",
        f"Tell me the colour of the {shape}.",
        f"Which colour has the {shape}?",
    )
    return one_of(rng, "general", texts, [file], colour, list(COLOURS), f"The {shape} is {{}}.")


def _shape(
    rng: random.Random,
    file: File,
    present: Sequence[Thing],
    index: int,
    place: str,
) -> Row:
    colour, shape = present[index]
    texts = (
        f"What shape is {colour}?",
        f"Which shape is the {colour} one?",
        f"Name the {colour} shape.",
    )
    return one_of(rng, "general", texts, [file], shape, SHAPES, f"The {colour} shape is a {{}}.")


def _place(
    rng: random.Random,
    file: File,
    present: Sequence[Thing],
    index: int,
    place: str,
) -> Row:
    _, shape = present[index]
    texts = (
        f"Where is the {shape}?",
        f"In which corner is the {shape}?",
        f"Tell me where the {shape} is.",
    )
    return one_of(rng, "general", texts, [file], place, PLACES, f"The {shape} is at the {{}}.")


def _presence(
    rng: random.Random,
    file: File,
    present: Sequence[Thing],
    index: int,
    place: str,
) -> Row:
    _, shape = present[index]
    is_there = rng.random() < 0.5
    if not is_there:
        shape = rng.choice(_absent_shapes(present))
    texts = (f"Is there a {shape}?", f"Can you see a {shape}?", f"Does the picture show a {shape}?")
    value, other = ("yes", "no") if is_there else ("no", "yes")
    answers = {"no": f"No, there is no {shape}.", "yes": f"Yes, there is a {shape}."}
    return question(
        "general",
        rng.choice(texts),
        [file],
        "match",
        value,
        answers[value],
        others=[other],
        wrong=[answers[other]],
    )


def _absent_shapes(present: Sequence[Thing]) -> list[str]:
    shapes = {shape for _, shape in present}
    return [shape for shape in SHAPES if shape not in shapes]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _list(present: Sequence[Thing]) -> str:
    named = [f"{_article(colour)} {colour} {shape}" for colour, shape in present]
    return " and ".join(named) + "."


def _hallucinated(rng: random.Random, present: Sequence[Thing]) -> list[Thing]:
    """The same things, one of them with another colour or shape."""
    things = list(present)
    index = rng.randrange(len(things))
    colour, shape = things[index]
    # A colour or a shape that no thing here has: the caption is false of all of them.
    if rng.random() < 0.5:
        colours = {colour for colour, _ in things}
        colour = rng.choice([other for other in COLOURS if other not in colours])
    else:
        shape = rng.choice(_absent_shapes(things))
    things[index] = (colour, shape)
    return things


def _description(rng: random.Random, file: File, present: Sequence[Thing]) -> Row:
    named = [f"{colour} {shape}" for colour, shape in present]
    absent = _absent_shapes(present)
    # A right description names everything there, and no shape that is not.
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
    rejected = _list(_hallucinated(rng, present))
    return replace(row, gold=None, chosen=_list(present), rejected=rejected)


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def count(rng: random.Random, validation: bool) -> list[Row]:
    """One to four things of one kind; validation holds out things in a number on a ground."""
    (colour, shape), total, ground = draw_until(
        lambda: (rng.choice(THINGS), rng.randint(1, 4), rng.choice(GROUNDS)),
        lambda drawn: held_out(*drawn) == validation,
    )
    image = Image.new("RGB", (112, 112), ground)
    # One thing in each of so many quarters.
    for corner in rng.sample(range(4), total):
        row, column = divmod(corner, 2)
        centre = (28 + 56 * column, 28 + 56 * row)
        draw_thing(image, (colour, shape), centre, 20)
    texts = (
        f"How many {_plural(shape)} are there?",
        f"Count the {_plural(shape)}.",
        f"How many {colour} {_plural(shape)} do you see?",
    )
    near = rng.sample([n for n in range(1, 5) if n != total], 3)
    return [number(rng, "reasoning", texts, [png(image)], total, near, "I count {}.")]
