"""Questions as prompts, and how their answers are checked: gold, and what is known to be wrong."""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import TypedDict

from ixc.data.samples import Gold, Turn, user_message
from ixc.data.sources.native import Unusable
from ixc.data.sources.phrases import bare, opposite, sentence

MAX_OPTIONS = 10
"""The verifier of choices reads the letters A to J."""

_NUMBER = re.compile(r"[-+−]?\$?\s?(\d[\d,]*(\.\d+)?|\.\d+)(\s*/\s*\d+)?\s*%?")


class Answer(TypedDict):
    """Two fields of a `Row`."""

    gold: Gold
    wrong: tuple[str, ...]


def user_prompt(question: str) -> tuple[Turn, ...]:
    """A prompt of one turn."""
    return user_message(question.strip())


def lettered(question: str, options: Sequence[str]) -> tuple[Turn, ...]:
    """A question and its options.

    >>> lettered("What is it?", ["a cat", "a dog"])[0].content
    'What is it?\\n(A) a cat\\n(B) a dog\\nAnswer with the letter of the right option.'
    """
    lines = [question.strip()]
    for letter, option in zip(ascii_uppercase, options, strict=False):
        lines.append(f"({letter}) {option}")
    lines.append("Answer with the letter of the right option.")
    return user_prompt("\n".join(lines))


def choice(options: Sequence[str], right: int, reason: str = "") -> Answer:
    """One of several options; empty texts stand for options that are images.

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
    values = []
    answers = []
    for letter, option in zip(ascii_uppercase, options, strict=False):
        values.append(f"{letter}. {option}" if option else letter)
        answers.append(sentence(f"The answer is ({letter}) {option}".rstrip()))

    # What is left after the right one was taken out is wrong.
    value = values.pop(right)
    answer = answers.pop(right)
    if reason.strip():
        answer = f"{sentence(reason)}\n{answer}"
    gold = Gold(
        check="choice",
        value=value,
        others=tuple(values),
        answer=answer,
    )
    return Answer(gold=gold, wrong=tuple(answers))


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
    folded_value = value.strip().casefold()
    folded = [option.strip().casefold() for option in options]
    if folded_value not in folded:
        raise Unusable(f"answer: {value!r}: not one of the options {list(options)}; correct it")
    return folded.index(folded_value)


def short(value: object, reason: str = "") -> Answer:
    """A number, or a few words; of yes and no, true and false the other one is wrong.

    >>> [short(value)["gold"].check for value in ("1,234", 7, "3/4", "25%", "the cat", "Yes")]
    ['number', 'number', 'number', 'number', 'match', 'match']

    Raises:
        Unusable: `value` is neither text nor number, or blank.
    """
    is_short = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not is_short or not str(value).strip():
        raise Unusable(
            f"answer: {value!r}: expected a text or a number; correct it or remove the row"
        )
    text = str(value).strip()
    answer = sentence(text)
    if reason.strip():
        answer = f"{sentence(reason)}\nThe answer is {answer}"

    # A number is compared as mathematics: currency and thousands signs go.
    if _NUMBER.fullmatch(text):
        plain = re.sub(r"[,$\s]", "", text)
        gold = Gold(check="number", value=plain, answer=answer)
        return Answer(gold=gold, wrong=())

    # Of yes and no, true and false the other one is known to be wrong.
    other = opposite(text)
    if not other:
        gold = Gold(check="match", value=bare(text), answer=answer)
        return Answer(gold=gold, wrong=())
    gold = Gold(
        check="match",
        value=bare(text),
        others=(other,),
        answer=answer,
    )
    return Answer(gold=gold, wrong=(sentence(other),))


def reference(text: str) -> Answer:
    """An answer in free words, which only a judge can compare."""
    gold = Gold(check="open", value=text, answer=text)
    return Answer(gold=gold, wrong=())
