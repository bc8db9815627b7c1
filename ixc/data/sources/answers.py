"""Questions as prompts, and how their answers are checked: gold, and what is known to be wrong."""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import TypedDict

from ixc.data.samples import Gold, Turn
from ixc.data.sources.native import Unusable
from ixc.data.sources.phrases import bare, opposite, sentence

MAX_OPTIONS = 10
"""The verifier of choices reads the letters A to J."""

_NUMBER = re.compile(r"[-+−]?\$?\s?(\d[\d,]*(\.\d+)?|\.\d+)(\s*/\s*\d+)?\s*%?")


class Answer(TypedDict):
    """Two fields of a `Row`."""

    gold: Gold
    wrong: tuple[str, ...]


def asked(question: str) -> tuple[Turn, ...]:
    """A prompt of one turn."""
    return (Turn(role="user", content=question.strip()),)


def lettered(question: str, options: Sequence[str]) -> tuple[Turn, ...]:
    """A question and its options.

    >>> lettered("What is it?", ["a cat", "a dog"])[0].content
    'What is it?\\n(A) a cat\\n(B) a dog\\nAnswer with the letter of the right option.'
    """
    listed = [
        f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    return asked(
        "\n".join([question.strip(), *listed, "Answer with the letter of the right option."])
    )


def choice(options: Sequence[str], right: int, reason: str = "") -> Answer:
    """One of several options; empty texts stand for options that are pictures.

    >>> choice(["a cat", "a dog"], 1, reason="It barks.")["gold"].answer
    'It barks.\\nThe answer is (B) a dog.'

    Args:
        options: at least two, at most `MAX_OPTIONS`.
        right: index of the right one.
        reason: opens the reference answer.

    Raises:
        Unusable: `right` is no index, the options are too few or too many, or two of them are right.
    """
    _check_options(options, right)
    marked = list(zip(ascii_uppercase, options, strict=False))
    named = [f"{letter}. {option}" if option else letter for letter, option in marked]
    stated = [sentence(f"The answer is ({letter}) {option}".rstrip()) for letter, option in marked]
    value, answer = named.pop(right), stated.pop(right)
    if reason.strip():
        answer = f"{sentence(reason)}\n{answer}"
    gold = Gold(check="choice", value=value, others=tuple(named), answer=answer)
    return Answer(gold=gold, wrong=tuple(stated))


def _check_options(options: Sequence[str], right: int) -> None:
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise Unusable(f"{len(options)} options; expected 2 to {MAX_OPTIONS}")
    if isinstance(right, bool) or not 0 <= right < len(options):
        raise Unusable(
            f"answer: {right!r}: not the index of one of the {len(options)} options; correct it"
        )
    if options[right] and options.count(options[right]) > 1:
        raise Unusable(f"the right option, {options[right]!r}, stands twice; remove one")


def position(options: Sequence[str], value: str) -> int:
    """The index of the option that is `value`, whatever the case.

    >>> position(["Yes", "No"], "no")
    1

    Raises:
        Unusable: there is none.
    """
    folded = [option.strip().casefold() for option in options]
    if value.strip().casefold() not in folded:
        raise Unusable(f"answer: {value!r}: not one of the options {list(options)}; correct it")
    return folded.index(value.strip().casefold())


def short(value: object, reason: str = "") -> Answer:
    """A number, or a few words; of yes and no, true and false the other one is wrong.

    >>> [short(value)["gold"].check for value in ("1,234", 7, "3/4", "25%", "the cat", "Yes")]
    ['number', 'number', 'number', 'number', 'match', 'match']

    Raises:
        Unusable: `value` is neither text nor number, or blank.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or not str(value).strip()
    ):
        raise Unusable(
            f"answer: {value!r}: expected a text or a number; correct it or remove the row"
        )
    text = str(value).strip()
    answer = (
        f"{sentence(reason)}\nThe answer is {sentence(text)}" if reason.strip() else sentence(text)
    )
    if _NUMBER.fullmatch(text):
        plain = re.sub(r"[,$\s]", "", text)
        return Answer(gold=Gold(check="number", value=plain, answer=answer), wrong=())
    other = opposite(text)
    gold = Gold(check="match", value=bare(text), others=(other,) if other else (), answer=answer)
    return Answer(gold=gold, wrong=(sentence(other),) if other else ())


def reference(text: str) -> Answer:
    """An answer in free words, which only a judge can compare."""
    return Answer(gold=Gold(check="open", value=text, answer=text), wrong=())
