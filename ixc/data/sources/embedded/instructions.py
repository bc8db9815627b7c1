"""Instruction following in text: constraints that a program can check, under IFEval's names (arXiv:2311.07911)."""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from ixc.data.sources import Row
from ixc.data.sources.embedded.drawing import draw_until, held_out, question

NOUNS = (
    "apple bird boat book bottle bridge chair city clock cloud coat desk door fish flower fox garden glass "
    "goat hammer hill horse island kite lake lion moon mouse ocean piano river ship"
).split()
VERBS = ("sees", "likes", "finds", "meets", "passes", "needs")


class Task(NamedTuple):
    """A request, the constraints it sets, a right answer, and wrong ones."""

    text: str
    constraints: list[dict[str, Any]]
    answer: str
    wrong: list[str]


def instruction(rng: random.Random, validation: bool) -> list[Row]:
    """One request; a request is for training or for validation, never for both."""
    make = rng.choice(_TASKS)
    task = draw_until(
        lambda: make(rng, rng.sample(NOUNS, 4)), lambda drawn: held_out(drawn.text) == validation
    )
    checks = json.dumps(task.constraints)
    return [
        question("instruction", task.text, [], "constraints", checks, task.answer, wrong=task.wrong)
    ]


def _constraint(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"id": name, "kwargs": kwargs}


def _keywords(*words: str) -> dict[str, Any]:
    return _constraint("keywords:existence", keywords=list(words))


def _repeat(rng: random.Random, words: list[str]) -> Task:
    word, times = words[0], rng.randint(2, 4)
    texts = (f"Write the word {word} {times} times.", f"Say {word} exactly {times} times.")
    constraints = [
        _constraint("keywords:frequency", keyword=word, frequency=times, relation="at least"),
        _constraint("length_constraints:number_words", num_words=times + 1, relation="less than"),
    ]
    # Once too few, once too many, and another word.
    wrong = [" ".join([word] * n) for n in (times - 1, times + 1)] + [" ".join([words[1]] * times)]
    return Task(rng.choice(texts), constraints, " ".join([word] * times), wrong)


def _sentence(rng: random.Random, words: list[str]) -> Task:
    first, second, third, fourth = words
    texts = (
        f"Write a sentence with the words {first} and {second}.",
        f"Use {first} and {second} in a sentence.",
    )
    verb = rng.choice(VERBS)
    wrong = [
        f"The {first} {verb} the {first}.",
        f"The {first} {verb} the {third}.",
        f"The {third} {verb} the {second}.",
        f"The {third} {verb} the {fourth}.",
    ]
    return Task(
        rng.choice(texts), [_keywords(first, second)], f"The {first} {verb} the {second}.", wrong
    )


def _bullets(rng: random.Random, words: list[str]) -> Task:
    count = rng.randint(2, 3)
    texts = (
        f"Give exactly {count} bullet points, each with the word {words[0]}.",
        f"List {words[0]} in {count} bullet points.",
    )
    constraints = [
        _constraint("detectable_format:number_bullet_lists", num_bullets=count),
        _constraint("keywords:frequency", keyword=words[0], frequency=count, relation="at least"),
    ]
    # One bullet too many, one too few, and no bullets.
    lines = [f"* {words[0]}"] * 6
    wrong = [
        "\n".join(lines[: count + 1]),
        "\n".join(lines[: count - 1]),
        " ".join([words[0]] * count),
    ]
    return Task(rng.choice(texts), constraints, "\n".join(lines[:count]), wrong)


def _quotation(rng: random.Random, words: list[str]) -> Task:
    texts = (
        f"Put the word {words[0]} in double quotation marks.",
        f"Write {words[0]} within double quotation marks.",
        f"Quote the word {words[0]}, with double marks.",
        f"Say {words[0]} in double quotation marks.",
    )
    wrong = [words[0], f'"{words[1]}"', f'"{words[0]}']
    constraints = [_constraint("startend:quotation"), _keywords(words[0])]
    return Task(rng.choice(texts), constraints, f'"{words[0]}"', wrong)


def _ending(rng: random.Random, words: list[str]) -> Task:
    first, last = words[:2]
    texts = (
        f"Write about the {first} and end with {last}.",
        f"Say something on the {first}; the last word is {last}.",
    )
    constraints = [_keywords(first), _constraint("startend:end_checker", end_phrase=last)]
    verb = rng.choice(VERBS)
    wrong = [
        f"A {first} {verb} a {words[2]}",
        f"A {last} {verb} a {first}",
        f"A {words[2]} {verb} a {words[3]}",
    ]
    return Task(rng.choice(texts), constraints, f"A {first} {verb} a {last}", wrong)


def _no_comma(rng: random.Random, words: list[str]) -> Task:
    three = words[:3]
    texts = (
        f"List {', '.join(three[:2])} and {three[2]} without commas.",
        f"Repeat without any comma: {', '.join(three)}.",
    )
    constraints = [_constraint("punctuation:no_comma"), _keywords(*three)]
    first, second, third = three
    wrong = [
        ", ".join(three),
        f"{first} and {third} and {third}",
        f"{first} and {words[3]} and {third}",
        f"{first} and {second} and {words[3]}",
    ]
    return Task(rng.choice(texts), constraints, " and ".join(three), wrong)


def _title(rng: random.Random, words: list[str]) -> Task:
    texts = (
        f"Give a title with the word {words[0]} in double angle brackets.",
        f"Write <<a title>> about {words[0]}.",
        f"What would be a <<title>> for {words[0]}?",
        f"Write a title with {words[0]} in double angle brackets.",
    )
    constraints = [_constraint("detectable_format:title"), _keywords(words[0])]
    wrong = [f"The {words[0]}", f"<<The {words[1]}>>", f"<The {words[0]}>"]
    return Task(rng.choice(texts), constraints, f"<<The {words[0]}>>", wrong)


def _forbidden(rng: random.Random, words: list[str]) -> Task:
    first, second = words[:2]
    texts = (
        f"Choose {first} or {second}; do not say {second}.",
        f"{first} or {second}? Never say {second}.",
    )
    constraints = [
        _keywords(first),
        _constraint("keywords:forbidden_words", forbidden_words=[second]),
    ]
    wrong = [
        f"I take the {second}.",
        f"I take the {first} and the {second}.",
        f"I take the {words[2]}.",
    ]
    return Task(rng.choice(texts), constraints, f"I take the {first}.", wrong)


_TASKS: tuple[Callable[[random.Random, list[str]], Task], ...] = (
    _repeat,
    _sentence,
    _bullets,
    _quotation,
    _ending,
    _no_comma,
    _title,
    _forbidden,
)
