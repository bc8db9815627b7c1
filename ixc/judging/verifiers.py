"""Right or wrong by rule: what a known answer says about a given one.

Plain words, plain numbers, options and constraints take microseconds; only mathematics in LaTeX, fractions,
powers or percents wakes math-verify.
"""

import math
import re
import threading
from functools import lru_cache
from typing import Any

from ixc.judging.constraints import holds, parse_constraints
from ixc.samples import Gold


def check(gold: Gold, answer: str) -> float | None:
    """1.0 for a right answer, 0.0 for a wrong one, None where only a judge can tell.

    >>> check(Gold(check="number", value="12"), "7 + 5 makes 12.")
    1.0
    """
    if gold.check == "open":
        return None
    return float(_RULES[gold.check](gold, answer))


def matches(gold: Gold, answer: str) -> bool:
    """`value` occurs as whole words, whatever the case, and none of `others` does."""
    if not gold.value.strip():
        return False
    named = {" ".join(text.split()) for text in _words(gold.value, gold.others).findall(answer.lower())}
    return named == {_plain(gold.value)}


@lru_cache(maxsize=65536)
def _words(value: str, others: tuple[str, ...]) -> re.Pattern[str]:
    """Longest first: who says `dark red` does not say `red`. And `3` is not named by `3.5` or `1,300`."""
    texts = sorted({_plain(text) for text in (value, *others)} - {""}, key=len, reverse=True)
    any_of = "|".join(r"\s+".join(map(re.escape, text.split())) for text in texts)
    return re.compile(rf"(?<!\w)(?<!\d[.,])(?:{any_of})(?!\w|[.,]\d)")


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def follows(gold: Gold, answer: str) -> bool:
    """All instructions hold."""
    return all(holds(constraint, answer) for constraint in _constraints(gold.value))


_constraints = lru_cache(maxsize=65536)(parse_constraints)

_NUMBER = re.compile(r"(?:(?<![\w)}])[-+−])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARK = re.compile(r"####|^\s*A:|\banswer\s*(?:is\s*:?|:)", re.IGNORECASE | re.MULTILINE)
_MATHEMATICS = re.compile(r"\\|\d\s*[/^:]\s*\d|\d\s*%|√|π|²|³")


def equals(gold: Gold, answer: str) -> bool:
    """The answer's final value equals the known one as mathematics."""
    value, final = _unmarked(gold.value), final_value(answer)
    if _MATHEMATICS.search(final) or _number(value) is None:
        return _equal_mathematics(value, final)
    found = _NUMBER.search(final)
    return found is not None and _same(_number(value), _number(found.group()))


def final_value(answer: str) -> str:
    r"""The part of an answer that states its result: a box, what follows the last marker, or the last number.

    >>> [final_value(text) for text in (r"It is \boxed{\frac{1}{2}}.", "3 * 4\nA: 12 eggs", "4 is 2 + 2")]
    ['\\frac{1}{2}', '12 eggs', '2']
    """
    box = boxed(answer)
    if box is not None and re.search(r"\w", box):
        return _unmarked(box)
    if marks := list(_MARK.finditer(answer)):
        stated = answer[marks[-1].end() :].strip().split("\n")[0]
        if re.search(r"\d|\\|π", stated):
            return _unmarked(stated)
    return _last_value(answer)


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
    rf"\$[^$\n]*[\d\\][^$\n]*\$|\\\(.*?\\\)|{_NUMBER.pattern}(?:\s*[/^:]\s*{_NUMBER.pattern})?\s*%?"
    r"|\\[dt]?frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\}"
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
    return float(text.replace(",", "").replace("−", "-")) if _NUMBER.fullmatch(text) else None


def _same(left: float | None, right: float | None) -> bool:
    return left is not None and right is not None and math.isclose(left, right, rel_tol=1e-9)


@lru_cache(maxsize=65536)
def _equal_mathematics(left: str, right: str) -> bool:
    """Equal by computer algebra; math-verify's time limits are alarms, which only a main thread can set."""
    import math_verify  # loads sympy: half a second

    limit: Any = 5 if threading.current_thread() is threading.main_thread() else None
    gold, found = (math_verify.parse(f"${text}$", parsing_timeout=limit) for text in (left, right))
    return bool(gold and found) and math_verify.verify(gold, found, timeout_seconds=limit)


def same_option(gold: Gold, answer: str) -> bool:
    """The option the answer settles on is the known one."""
    return option(answer) == (option(gold.value) or gold.value.strip().upper())


_LETTER = r"[\(\[*]*([A-Ja-j])[\)\]*]*"
_STATED = re.compile(
    rf"(?:\banswer\s*(?:is|:)|\boption|\bchoice|####|^\s*A:)\s*:?\s*{_LETTER}(?![\w'])",
    re.IGNORECASE | re.MULTILINE,
)
_LEADING = re.compile(r"\s*(?:[\(\[]([A-Ja-j])[\)\]]|([A-Ja-j])\s*(?:[\).:]|$)|([B-HJ])(?=\s))")
_BRACKETED = re.compile(r"[\(\[]([A-J])[\)\]]")
_ALONE = re.compile(r"\b([A-J])\b(?!\s+[a-z]|')")


def option(answer: str) -> str | None:
    r"""The letter of the option that an answer settles on, a capital; None if it names none.

    A box counts most, then `answer is`, a letter at the very start, the last `(B)`, the last lone capital.

    >>> [option(text) for text in ("b", "(B) a fish", r"\boxed{\text{B}}", "A cat, so answer: B", "no idea")]
    ['B', 'B', 'B', 'B', None]
    """
    box = boxed(answer)
    if box is not None and (letter := re.fullmatch(rf"\W*(?:\\text\w*\{{)?\W*{_LETTER}\W*", box)):
        return letter.group(1).upper()
    text = answer.replace("$", "").strip()
    if stated := _STATED.findall(text):
        return stated[-1].upper()
    if box is not None:
        return None  # a boxed value names its option by content, and letters in formulas are no options
    if leading := _LEADING.match(text):
        return next(filter(None, leading.groups())).upper()
    named = _BRACKETED.findall(text) or _ALONE.findall(text)
    return named[-1] if named else None


_RULES = {"match": matches, "number": equals, "choice": same_option, "constraints": follows}
