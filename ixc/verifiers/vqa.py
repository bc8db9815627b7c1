"""The soft accuracy of VQA: an answer is as right as there are people who gave it.

Normalisation as in the official evaluation (VQA v2, `vqaEval.py`), but that an apostrophe never counts, which
covers its list of contractions; and agreement with all the people, not the mean over all but one of them.
"""

import json
import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0", **{word: str(value) for value, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
ENOUGH = 3
"""People who must agree for an answer to be wholly right."""


class BadAnswers(ValueError):
    """A `Gold.value` that is no list of people's answers."""


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, small numbers as digits.

    >>> normalised("The two dogs."), normalised("1,000"), normalised("half-open"), normalised("3.5 kg!")
    ('2 dogs', '1000', 'half open', '3.5 kg')
    """
    text = " ".join(text.lower().replace("'", "").split())
    tight = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in _PUNCTUATION:
        # A mark at a word's edge goes, one inside a word parts it.
        at_edge = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if at_edge or tight else " ")
    words = re.sub(r"\.(?!\d)", "", bare).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answers: str, answer: str) -> float:
    """`min(n / 3, 1)` for an answer that `n` people gave; where fewer than three were asked, the share of them.

    Args:
        answers: a JSON list of what people answered, ten of them in VQA and A-OKVQA.

    >>> soft_accuracy('["dog", "a dog", "puppy", "Dog", "cat"]', "The dog."), soft_accuracy('["dog"]', "cat")
    (1.0, 0.0)
    """
    people = _people(answers)
    num_agreeing = people.count(normalised(answer))
    return min(num_agreeing / min(ENOUGH, len(people)), 1.0)


@lru_cache(maxsize=65536)
def _people(answers: str) -> list[str]:
    try:
        given = json.loads(answers)
    except ValueError:
        given = None
    if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
        raise BadAnswers(f'{answers!r}: not a JSON list of answers; write ["red", "dark red", ...]')
    return [normalised(text) for text in given]
