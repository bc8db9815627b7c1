"""Right or wrong by rule: a known answer held against a given one.

Plain words, plain numbers, options and constraints take microseconds; only mathematics in LaTeX, fractions,
powers or percents wakes math-verify.
"""

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from ixc.data.samples import Gold
from ixc.verifiers.choices import (
    ALL,
    MENTION,
    Option,
    Reading,
    as_option,
    plain,
    read_option,
    repeated,
)
from ixc.verifiers.ifeval import holds, parse_constraints
from ixc.verifiers.vqa import soft_accuracy


def check(gold: Gold, answer: str) -> float | None:
    """1.0 for a right answer, 0.0 for a wrong one, None where only a judge can tell; `vqa` knows shades between.

    >>> check(Gold(check="number", value="12"), "7 + 5 makes 12.")
    1.0
    """
    if gold.check == "open":
        return None
    score = _RULES[gold.check](gold, answer)
    return None if score is None else float(score)


def matches(gold: Gold, answer: str) -> bool:
    """`value` occurs as whole words, whatever the case, and none of `others` does; of a list of words, each one."""
    if items := listed(gold.value):
        return all(matches(replace(gold, value=item), answer) for item in items)
    if not gold.value.strip():
        return False
    # One search for all of them: in `dark red`, which is one of the others, `red` is not named.
    matched = _words(gold.value, gold.others).findall(answer.lower())
    named = {" ".join(text.split()) for text in matched}
    return named == {_plain(gold.value)}


@lru_cache(maxsize=65536)
def _words(value: str, others: tuple[str, ...]) -> re.Pattern[str]:
    """Longest first: who says `dark red` does not say `red`. And `3` is not named by `3.5` or `1,300`."""
    texts = {_plain(text) for text in (value, *others)} - {""}
    patterns = []
    for text in sorted(texts, key=len, reverse=True):
        patterns.append(r"\s+".join(map(re.escape, text.split())))
    any_of = "|".join(patterns)
    letter = r"[^\W\u3040-\u30ff\u3400-\u9fff]"  # Chinese and Japanese have no spaces, not around other words either
    return re.compile(rf"(?<!{letter})(?<!\d[.,])(?:{any_of})(?!{letter}|[.,]\d)")


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


_SEPARATOR = re.compile(r",\s+|,(?!\d{3}(?!\d))|;|\s+and\s+|\s*&\s*")


def listed(text: str) -> list[str]:
    """The items of a list in brackets, as ChartQA writes several words; none where it is no list of words.

    >>> listed("[Blue, Red]"), listed("blue, red"), listed("[0, 1]")
    (['Blue', 'Red'], [], [])
    """
    match = re.fullmatch(r"\s*\[([^\[\]]*[^\W\d_][^\[\]]*)\]\s*", text)
    return _items(match.group(1)) if match else []


def _items(text: str) -> list[str]:
    items = (item.strip(" \t\n\"'") for item in _SEPARATOR.split(text))
    return [item for item in items if item]


def follows(gold: Gold, answer: str) -> bool:
    """All instructions hold."""
    return all(holds(constraint, answer) for constraint in _constraints(gold.value))


_constraints = lru_cache(maxsize=65536)(parse_constraints)

_NUMBER = re.compile(r"(?:(?<![\w)}])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_SEVERAL = re.compile(rf"{_NUMBER.pattern}(?:\s*(?:,|,?\s+and\b)\s*{_NUMBER.pattern})+")
_ONLY_SEVERAL = re.compile(rf"\A\s*{_SEVERAL.pattern}(?=\s*\.?\s*\Z)")
_MARK = re.compile(r"####|^\s*A:|\banswer\s*(?:is\s*:?|:)", re.IGNORECASE | re.MULTILINE)
_MATHEMATICS = re.compile(r"\\|\d\s*[/^:]\s*\d|\d\s*%|√|π|²|³")


_COMPOUND_UNIT = re.compile(rf"({_NUMBER.pattern})\s*[A-Za-zµ]+[²³]?\s*/\s*[A-Za-zµ]+[²³]?")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")


def equals(gold: Gold, answer: str) -> bool:
    """The answer's final value equals the known one as mathematics; units are not compared, nor is a list's order."""
    known = _unmarked(spelt(gold.value))
    final = final_value(answer, several=_SEVERAL.fullmatch(known) is not None)

    # `1 1/2` is a sum, `60 km/h` is 60.
    value = _MIXED.sub(r"(\1+\2/\3)", known)
    value = _COMPOUND_UNIT.sub(r"\1", value)
    final = _MIXED.sub(r"(\1+\2/\3)", final)

    # Plain numbers are compared as such: computer algebra takes a thousand times as long.
    if _MATHEMATICS.search(final) or _SEVERAL.fullmatch(final) or _number(value) is None:
        return _equal_mathematics(value, final)
    match = _NUMBER.search(final)
    return match is not None and _same(_number(value), _number(match.group()))


_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
_SCIENTIFIC = re.compile(r"(?<![\w.,])(\d+(?:\.\d+)?[eE][-+]?\d{1,2})(?!\w)")


def spelt(text: str) -> str:
    r"""Roots as LaTeX writes them, and powers of ten as digits.

    >>> spelt("2√3"), spelt("1.5e-3")
    ('2\\sqrt{3}', '0.0015')
    """
    text = _ROOT.sub(lambda root: rf"\sqrt{{{next(filter(None, root.groups()), '')}}}", text)
    return _SCIENTIFIC.sub(lambda number: format(Decimal(number.group()), "f"), text)


def final_value(answer: str, several: bool = False) -> str:
    r"""The part of an answer that states its result: a box, what follows the last marker, or the last number.

    Where `several` numbers are expected, the last list of them counts before the last number.

    >>> [final_value(text) for text in (r"It is \boxed{\frac{1}{2}}.", "3 * 4\nA: 12 eggs", "4 is 2 + 2")]
    ['\\frac{1}{2}', '12 eggs', '2']
    """
    answer = spelt(answer)
    box = boxed(answer)
    if box is not None and re.search(r"\w", box):
        return _unmarked(box)
    marks = list(_MARK.finditer(answer))
    if marks:
        after = answer[marks[-1].end() :]
        stated = after.strip().split("\n")[0]
        if re.search(r"\d|\\|π", stated):
            return _unmarked(stated)
    pattern = _SEVERAL if several else _ONLY_SEVERAL
    lists = list(pattern.finditer(answer))
    return lists[-1].group().strip() if lists else _last_value(answer)


def boxed(answer: str) -> str | None:
    r"""What stands in the last `\boxed{}`, braces balanced."""
    start = answer.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len(r"\boxed{")
    for i in range(begin, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[i], 0)
        if depth == 0:
            return answer[begin:i]
    return answer[begin:]


_VALUE = re.compile(
    rf"\$[^$\n]*[\d\\][^$\n]*\$|\\\(.*?\\\)"
    rf"|(?:{_NUMBER.pattern}\s*)?\\sqrt\{{[^{{}}]*\}}"
    rf"|{_NUMBER.pattern}(?:\s+\d+\s*/\s*\d+|\s*[/^:]\s*{_NUMBER.pattern})?\s*%?"
    r"|\\[dt]?frac\{[^{}]*\}\{[^{}]*\}"
)


def _last_value(answer: str) -> str:
    """The last formula, fraction, percentage or number."""
    values = [text for text in _VALUE.findall(answer) if _NUMBER.search(text) or "\\" in text]
    return _unmarked(values[-1]) if values else ""


def _unmarked(text: str) -> str:
    r"""Without dollar signs, `\( \)` and the full stop: `$12$.` is 12, and so are `$12` and `12.`"""
    return re.sub(r"\\[()\[\]]|\$", "", text).strip().rstrip(".").strip("*").strip()


def _number(text: str) -> float | None:
    """A plain number, thousands separated or not."""
    if not _NUMBER.fullmatch(text):
        return None
    return float(text.replace(",", "").replace("−", "-"))


def _same(left: float | None, right: float | None) -> bool:
    return left is not None and right is not None and math.isclose(left, right, rel_tol=1e-9)


@lru_cache(maxsize=65536)
def _equal_mathematics(left: str, right: str) -> bool:
    """Equal by computer algebra; math-verify's time limits are alarms, which only a main thread can set."""
    import math_verify  # loads sympy: half a second

    limit: Any = 5 if threading.current_thread() is threading.main_thread() else None
    gold = math_verify.parse(f"${left}$", parsing_timeout=limit)
    answer = math_verify.parse(f"${right}$", parsing_timeout=limit)
    if not gold or not answer:
        return False
    return math_verify.verify(gold, answer, timeout_seconds=limit)


def same_option(gold: Gold, answer: str) -> float | None:
    """The option the answer settles on is the known one: by letter, or else by its words or its value.

    None where nobody can tell: it names several options and settles on none, or only repeats them.
    """
    known = as_option(gold.value)
    others = [as_option(text) for text in gold.others]
    reading = read_option(answer, _letters(known, others))
    if not others and reading.letter is None and repeated(plain(answer)):
        return None
    if reading.several and reading.rank >= MENTION and not others:
        return None

    # A weak hint at a letter does not stand against the words of another option.
    if known.letter and reading.letter and reading.rank >= MENTION:
        named = _first_named((known, *others), answer)
        if named is not None and named.letter != reading.letter:
            return None
    if known.letter and reading.letter and not _superseded(known, others, answer, reading):
        return float(reading.letter == known.letter)
    if _names(known, others, answer):
        return 1.0
    return None if known.letter and reading.several else 0.0


def _first_named(options: Sequence[Option], answer: str) -> Option | None:
    """The first of the options whose text an answer says, and does not deny."""
    for option in options:
        others = [one for one in options if one != option]
        if _names(option, others, answer):
            return option
    return None


def _letters(known: Option, others: Sequence[Option]) -> str:
    """Those that the options have; all that there may be where one has none."""
    letters = [option.letter for option in (known, *others) if option.letter]
    if not others or len(letters) < 1 + len(others):
        return ALL
    return "".join(sorted(letters))


_SAYS_VALUE = re.compile(
    r"(?:\banswer\s*(?:is\s*:?|:)|答案(?:应该|应|就)?(?:是|为|:))([^\n。]*)", re.IGNORECASE
)


def _superseded(known: Option, others: Sequence[Option], answer: str, reading: Reading) -> bool:
    """Whether an answer states another value after its letter: `Vitamin (C). The answer is 3`."""
    text = plain(answer)
    statements = [match for match in _SAYS_VALUE.finditer(text) if match.start() >= reading.end]
    if not statements:
        return False
    last = statements[-1]
    if not _NUMBER.search(last.group(1)) or not _NUMBER.search(known.text):
        return False

    # A letter that is not stated as the answer must agree with the value; one that is may differ from none.
    stated = last.group()
    own = [option for option in (known, *others) if option.letter == reading.letter]
    if reading.rank > 1:
        return not any(_names(option, [], stated) for option in own)
    foreign = [option for option in (known, *others) if option.letter != reading.letter]
    return any(_names(option, [], stated) for option in foreign)


def _names(known: Option, others: Sequence[Option], answer: str) -> bool:
    """Whether an answer says an option's text, and does not deny it."""
    texts = tuple(other.text for other in others)
    affirmed = _affirmed(answer, (known.text, *texts))
    gold = Gold(check="choice", value=known.text, others=texts)
    if matches(gold, affirmed):
        return True
    return _NUMBER.search(known.text) is not None and equals(gold, affirmed)


_NOT = (
    r"(?:\bnot|n't|\bneither|\bnor|\bnever|\brather than|\binstead of|\bcannot be|不是|并非|而非|不等于|不为|不选"
    r"|排除)"
)
_NO = r"(?:\bno|\bwithout|没有|并无)"
_A = r"\s*(?:be\s+|equal to\s+|the\s+|an?\s+)?"


def _affirmed(answer: str, texts: Sequence[str]) -> str:
    """An answer without the options, and the numbers, that it denies."""
    longest_first = sorted({*texts}, key=len, reverse=True)
    some = "|".join(re.escape(text) for text in longest_first if text) or r"(?!)"
    value = rf"(?:{some}|\$?{_NUMBER.pattern})(?![\w.]*\d)"
    several = rf"{value}(?:\s*(?:,|、|\bor\b|\band\b|\bnor\b|或|和|也不是){_A}{value})*"
    return re.sub(
        rf"{_NOT}{_A}{several}|(?:{_NOT}\s*(?:\w+\s+){{1,2}}?|{_NO}\s*)(?:{some})",
        " ",
        answer,
        flags=re.IGNORECASE,
    )


TOLERANCE = 0.05
"""Of a number read off a chart, relative to the known one."""


def read_off(gold: Gold, answer: str) -> bool:
    """ChartQA's relaxed accuracy on what the answer states: 5 % for numbers, the same words for the rest.

    A percentage may be written as its number or as its share. As in the official rule, years are numbers, too.

    Source: ChartQA, arXiv:2203.10244, section 5.1.
    """
    if items := listed(gold.value):
        return _read_off_each(gold, items, _items(stated(answer).strip("[]")))
    known = _quantities(_unmarked(spelt(gold.value)))
    if not known:
        return _plain(stated(answer)) == _plain(gold.value)
    # A percentage on either side may be meant as a share.
    for value in known:
        for other in _quantities(final_value(answer)):
            if abs(value - other) <= TOLERANCE * abs(value):
                return True
    return False


def _read_off_each(gold: Gold, known: list[str], items: list[str]) -> bool:
    """As many items, and each one is right, in any order."""
    remaining = list(items)
    for item in known:
        one = replace(gold, value=item)
        right = next((text for text in remaining if read_off(one, text)), None)
        if right is None:
            return False
        remaining.remove(right)
    return not remaining


def _quantities(text: str) -> list[float]:
    """What a number may mean: `45%` is 45 or 0.45; nothing where there is none."""
    match = re.fullmatch(rf"({_NUMBER.pattern})\s*(%?)[A-Za-z\s]*", text)
    value = _number(match.group(1)) if match else None
    if match is None or value is None:
        return []
    is_percentage = match.group(2) != ""
    return [value, value / 100] if is_percentage else [value]


def stated(answer: str) -> str:
    r"""What an answer says, without a box, an `answer:` before it, quotation marks and the full stop.

    >>> [stated(text) for text in ("Spain.", "The answer is: Spain", r"So \boxed{\text{Spain}}.")]
    ['Spain', 'Spain', 'Spain']
    """
    box = boxed(answer)
    text = answer if box is None else re.sub(r"\\text\w*\{([^{}]*)\}", r"\1", box)
    marks = list(_MARK.finditer(text))
    text = text[marks[-1].end() :] if marks else text
    return _unmarked(text).strip("\"'")


def as_people_say(gold: Gold, answer: str) -> float:
    """How far people agree with what the answer states."""
    return soft_accuracy(gold.value, stated(answer))


_RULES = {
    "match": matches,
    "number": equals,
    "choice": same_option,
    "chart": read_off,
    "vqa": as_people_say,
    "constraints": follows,
}
