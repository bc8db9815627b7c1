r"""Which option a free answer settles on, in English and Chinese: its letter, or the word that nobody can tell.

A letter counts by what stands around it, never by itself: `Vitamin C`, `points A and B`, `it is not C` name no
option. What stands around a letter has a rank, and the last one of the highest rank counts:

1. `answer`: a box, `the answer is C`, `I choose C`, `C is the correct answer`, 答案为C, 故选C
2. `lead`: the letter starts the answer or is its last line
3. `verdict`: `C is right`, `so it is C`, `which is option C`, C正确, 应该是C
4. `mention`: `(C)` or `option C`, if no other is named so
5. `hedge`: `it might be C`, if nothing better is said

Letters that are denied (`not C`, `C is wrong`, 排除C) settle nothing, unless they leave one of the known options.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ixc.verifiers import phrases

ALL = "ABCDEFGHIJ"
"""The letters that an option may have where a source does not say which there are."""


class Option(NamedTuple):
    """An option's letter, if it is known, and its text, if there is one."""

    letter: str | None
    text: str


_LETTERED = re.compile(
    r"\s*(?:[(\[（【]([A-Ja-j])[)\]）】][.:、：．]?|([A-Ja-j])(?:[).:、：．）]|(?=\s*$)))\s*(.*)",
    re.DOTALL,
)


def as_option(text: str) -> Option:
    """What a source calls an option.

    >>> as_option("(B) a fish"), as_option("b"), as_option("A fish"), as_option("Ｂ、鱼")
    (Option(letter='B', text='a fish'), Option(letter='B', text=''), Option(letter=None, text='A fish'), \
Option(letter='B', text='鱼'))
    """
    narrow = unicodedata.normalize("NFKC", text[:3]) + text[3:]
    match = _LETTERED.fullmatch(narrow)
    if match is None:
        return Option(None, text.strip())
    letter = match.group(1) or match.group(2)
    return Option(letter.upper(), match.group(3).strip())


class Reading(NamedTuple):
    """What an answer settles on, and how."""

    letter: str | None
    """The one that it settles on; None where it names none, or several."""
    several: bool = False
    """Whether it names several and settles on none."""
    rank: int = 0
    """How it is named, 1 to 5 as above; 0 for none."""
    end: int = 0
    """Where in `plain(answer)` that ends."""


def option(answer: str, letters: str = ALL) -> str | None:
    r"""The letter of the option that an answer settles on, a capital; None if it names none, or several.

    >>> [option(text) for text in ("b", "(B) a fish", r"\boxed{\text{B}}", "A cat, so answer: B", "no idea")]
    ['B', 'B', 'B', 'B', None]
    >>> [option(text) for text in ("故选B", "排除A，B选项正确", "Vitamin B. It is 3.", "It is B or C.", "It is not B.")]
    ['B', 'B', None, None, None]
    """
    return read_option(answer, letters).letter


def read_option(answer: str, letters: str = ALL) -> Reading:
    """The same, and how it is named.

    Args:
        letters: those of the question's options; a letter that none has is no option.
    """
    text = plain(answer)
    named = list(_judged(text, letters))

    # Who corrects himself means what comes last, if that settles anything.
    corrections = list(phrases.CORRECTION.finditer(text))
    if corrections:
        last = corrections[-1].end()
        later = [one for one in named if one.start >= last]
        reading = _settle(later, letters, text)
        if 0 < reading.rank <= VERDICT:
            return reading
    return _settle(named, letters, text)


# Plain text: no mark-up, one form of every character

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_STYLE = re.compile(
    r"\\(?:text|mathrm|mathbf|mathsf|mathit|boldsymbol|bm|bf|rm|operatorname|mbox)\w*\s*\{([^{}]*)\}"
)
_SPACE = re.compile(r"\\(?:quad|qquad|[,;:! ])|~|\u200b")
_ANSWER_TAG = re.compile(r"<answer>|<\|begin_of_box\|>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][a-z0-9_|]*\s*/?>|<\|[a-z_]+\|>", re.IGNORECASE)
_LONE_UNDERSCORED = re.compile(r"(?<![A-Za-z0-9])_+(\(?[A-Ja-j]\)?)_+(?![A-Za-z0-9])")
_GSM = re.compile(r"^\s*####\s*(?=\S{1,4}\s*$)", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:#+|>+)[ \t]*", re.MULTILINE)


def plain(answer: str) -> str:
    r"""Without thoughts, Markdown, HTML and LaTeX's clothing; full-width and circled letters as usual ones.

    >>> plain(r"**答案：**Ｃ"), plain(r"It is $\boxed{\text{(C)}}$")
    ('答案:C', 'It is  answer: (C) .')
    """
    if not answer:
        return ""
    text = unicodedata.normalize("NFKC", _THOUGHT.sub(" ", answer))

    # LaTeX
    for sign in (r"\left", r"\right", r"\$"):
        text = text.replace(sign, "")
    text = _SPACE.sub(" ", text)
    for _ in range(3):  # one style may wrap another
        text = _STYLE.sub(r"\1", text)
    text = _unboxed(text)

    # HTML
    if "<" in text:
        text = _ANSWER_TAG.sub(" answer: ", text)
        text = _TAG.sub(". ", text)

    # Markdown
    text = re.sub(r"\\[()]|[*`$]", "", text)
    text = _LONE_UNDERSCORED.sub(r"\1", text)
    text = _GSM.sub("answer: ", text)
    return _HEADING.sub("", text).strip("\n\t ")


def _unboxed(text: str) -> str:
    r"""Every `\boxed{X}` as `answer: X .`, its braces balanced."""
    pieces: list[str] = []
    while (start := text.find(r"\boxed{")) >= 0:
        depth, end = 1, start + len(r"\boxed{")
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inside = text[start + len(r"\boxed{") : end - (depth == 0)]
        pieces += [text[:start], f" answer: {inside} . "]
        text = text[end:]
    return "".join([*pieces, text])


# Where letters are named

_ONE = (
    r"(?:\(\s*[A-Ja-j]\s*\)|\[\s*[A-Ja-j]\s*\]|\{\s*[A-Ja-j]\s*\}|<[A-Ja-j]>|\"[A-Ja-j][.,]?\"|'[A-Ja-j][.,]?'"
    r"|“[A-Ja-j][.,]?”|‘[A-Ja-j]’|「[A-Ja-j]」|『[A-Ja-j]』|【[A-Ja-j]】|《[A-Ja-j]》|[A-Ja-j](?!['′’][A-Za-z]"
    r"|['′’](?!\s|$)))"
)
_NOUN = r"(?:option|choice|answer|选项|答案)"
_JOIN = rf"(?:\s*[、/&]\s*(?:和|或|与|及)?|\s+(?:and|or|nor)\s+|\s*(?:和|或者?|与|以?及|还是)\s*)(?:{_NOUN}\s*)?"
_SINGULAR = r"(?!\s+(?:is|isn't|was|has|does|doesn't|looks|gives|can|cannot|must)\b)"
_LIST = rf"{_ONE}(?:\s*,\s*{_ONE})+\s*,?\s*(?:and|or|和|或|与|及)\s*{_ONE}|{_ONE}(?:\s*,\s*{_ONE}){{2,}}"
_MENTION = re.compile(
    rf"(?<![A-Za-z0-9_∠△⊙°\\^.])(?:{_LIST}|{_ONE}(?:{_JOIN}{_ONE}{_SINGULAR})+|{_ONE}|[A-J]{{2,4}})(?![A-Za-z0-9_])"
)
_NOT_A_LETTER = re.compile(
    r"\s*(?:[=≈<≤≥+×÷^∈⊂∪∩∥⊥±]|>(?!\s*$))|\([-\d]|\s+[-*/]\s*[A-Za-z]\b|['′]"
    r"|\.[a-z]\.|\s?[点角边圆球盒袋组队班车瓶城村市区站层楼栋号座]"
)
_ARTICLE = re.compile(
    r"\s+(?!(?:is|are|was|and|or|nor|because|since|as|due|for|but|which|that|has|looks|seems|would|must|should|can"
    r"|cannot|isn't|doesn't|does|gives|matches|fits|not|remains|works|rather|instead|with|by)\b)[A-Za-z]"
)
_FORMULA_BEFORE = re.compile(r"(?:[+×÷<≤≥∠△⊙∥⊥∪∩∈^]|(?<![=\-])>|=)\s*$")


_FIRST = re.compile(r"\s*(?:(?:option|choice|letter)\s*)?", re.IGNORECASE)


class _Named(NamedTuple):
    """Letters that are named together, and how: a rank, or `DENIED`."""

    letters: tuple[str, ...]
    rank: int
    start: int
    end: int
    after: str


DENIED, ANSWER, LEAD, VERDICT, MENTION, HEDGE = -1, 1, 2, 3, 4, 5
_WINDOW = 90
"""Characters before letters, and after them, that say how they are meant."""


def _judged(text: str, letters: str) -> Iterator[_Named]:
    """Every place where options may be named, with its rank; what has none is left out."""
    for match in _MENTION.finditer(text):
        mention, start, end = match.group(), match.start(), match.end()
        names = tuple(dict.fromkeys(re.findall(r"(?<![A-Za-z])[A-Ja-j](?![a-z])", mention)))
        # `ABD` names three options, `BAD` is a word.
        if re.fullmatch(r"[A-J]{2,4}", mention):
            is_ascending = list(mention) == sorted(set(mention))
            names = tuple(mention) if is_ascending else ()
        capitals = tuple(name.upper() for name in names)
        if not names or not all(name in letters for name in capitals):
            continue
        before = text[max(0, start - _WINDOW) : start]
        after = text[end:][:_WINDOW]
        is_first = _FIRST.fullmatch(before) is not None
        rank = _rank(mention, names, before, after, is_first)
        if rank:
            yield _Named(capitals, rank, start, end, after)


def _rank(mention: str, names: Sequence[str], before: str, after: str, first: bool) -> int:  # noqa: PLR0911 - one rule a line
    bare = len(mention) == 1
    if _NOT_A_LETTER.match(after) and not phrases.DENIED_AFTER.match(after):
        return 0
    # `a` is an article, `I` a person, unless what stands around says otherwise.
    is_article = bare and mention in "Aa" and _ARTICLE.match(after)
    if is_article and not phrases.ARTICLE_AFTER_MARK.search(before):
        return 0
    if bare and mention in "Ii" and not re.match(r"\s*[.,;:)!。]|\s*$", after):
        return 0
    small = names[0].islower()
    if (
        small
        and bare
        and not re.match(r"\s*(?:[.,;:)!?。、\n]|$|(?:because|since|as|is|项|选项)\b)", after)
    ):
        return 0
    if phrases.EXCEPT.search(before):
        return 0
    if phrases.DENIED_SENTENCE.search(_sentence(before)):
        return DENIED
    crossed = phrases.mark_in_line(before, after) is False
    if crossed or phrases.DENIED_BEFORE.search(before) or phrases.DENIED_AFTER.match(after):
        return DENIED
    if _is_named_option(mention, before, after) and phrases.DENIED_IN.search(_clause(after)):
        return DENIED
    run = len(mention) > 1 and mention.isalpha()
    rank = _affirmed(before, after, first, single=len(names) == 1)
    if run and rank != ANSWER:
        return 0
    if rank != ANSWER and _FORMULA_BEFORE.search(before) and not re.search(r"[=-]>\s*$", before):
        return 0
    if rank == 0 and not small and _is_named_option(mention, before, after):
        rank = MENTION
    if rank and (phrases.DOUBT_BEFORE.search(before) or phrases.DOUBT_AFTER.match(after)):
        rank = HEDGE
    return rank


def _affirmed(before: str, after: str, first: bool, single: bool) -> int:  # noqa: PLR0911 - one rule a line
    """The rank of letters that are not denied."""
    if (
        phrases.ANSWER_BEFORE.search(before)
        or phrases.CHOSEN_BEFORE.search(before)
        or phrases.ANSWER_ZH.search(before)
    ):
        return ANSWER
    if phrases.ANSWER_AFTER.match(after):
        return ANSWER
    if first and single and _leads(after):
        return LEAD
    if (
        single
        and re.search(r"(?:^|[.!?。！？\n;→⇒]|[=-]>|:)\s*$", before)
        and re.match(r"\s*[.。!)]?\s*$", after)
    ):
        return LEAD
    if phrases.RIGHT_AFTER.match(after) or phrases.mark_in_line(before, after):
        return VERDICT
    if (
        phrases.THEREFORE.search(before) or phrases.THE_ONE_IS.search(before)
    ) and phrases.SENTENCE_OVER.match(after):
        return VERDICT
    if (
        phrases.SENTENCE_OVER.match(after)
        and phrases.IS_LAST.search(before)
        and not phrases.GEOMETRY.search(_sentence(before))
    ):
        return VERDICT
    if phrases.ONLY.search(before) and re.match(r"\s+[a-z]+s\b|\s*[\u4e00-\u9fff]", after):
        return VERDICT
    if phrases.WHICH_IS.search(before):
        return VERDICT
    return 0


def _is_named_option(mention: str, before: str, after: str) -> bool:
    """Whether a letter is an option's, whatever stands around it: `(C)`, `option C`, C项."""
    return (
        mention[0] in "([【"
        or phrases.NAMED_OPTION.search(before) is not None
        or re.match(r"选?项", after) is not None
    )


def _sentence(before: str) -> str:
    return re.split(r"[.;!?。；\n,](?!\d)", before)[-1]


def _clause(after: str) -> str:
    """What comes next about an option, as far as it is about this one."""
    return phrases.CLAUSE_END.split(after.lstrip(" .:)、"), maxsplit=1)[0]


def _leads(after: str) -> bool:
    """Whether a letter at the very start is the answer, and no sentence's subject."""
    return phrases.LEADS.match(after) is not None


# What remains


def _settle(named: Sequence[_Named], letters: str, text: str) -> Reading:
    """The last of the highest rank, or what denials leave."""
    labels = repeated(text)
    for rank in (ANSWER, LEAD, VERDICT):
        ranked = [one for one in named if one.rank == rank]
        # Who repeats the options begins with the first of them, and means nothing by it.
        if rank == LEAD and labels:
            first_label = min(labels)
            ranked = [
                one
                for one in ranked
                if one.letters[0] > first_label or not one.after.strip(" .。!)\n")
            ]
        if ranked:
            return _reading(ranked[-1:], rank)

    denied: set[str] = set()
    for one in named:
        if one.rank == DENIED:
            denied.update(one.letters)
    mentions = []
    for one in named:
        is_denied = len(one.letters) == 1 and one.letters[0] in denied
        if one.rank == MENTION and not is_denied:
            mentions.append(one)
    if mentions and not mentions[-1].after.strip(" .。!)"):
        return _reading(mentions[-1:], MENTION)
    if mentions:
        return _reading(mentions, MENTION)

    # Where all but one are denied, that one is the answer.
    remaining = [letter for letter in letters if letter not in denied]
    if letters != ALL and len(letters) > 2 and len(remaining) == 1:
        end = max(one.end for one in named)
        return Reading(remaining[0], rank=VERDICT, end=end)
    hedges = [one for one in named if one.rank == HEDGE and not set(one.letters) & denied]
    return _reading(hedges, HEDGE) if hedges else Reading(None)


def _reading(named: Sequence[_Named], rank: int) -> Reading:
    letters: set[str] = set()
    for one in named:
        letters.update(one.letters)
    several = len(letters) > 1
    return Reading(None if several else letters.pop(), several, rank, named[-1].end)


_LABEL = re.compile(r"(?<![^\s(\[])([A-J])[).\]:、]")


def repeated(text: str) -> set[str]:
    """The letters of the options, where they are repeated one by one: then the first of them leads nothing."""
    labels = set(_LABEL.findall(text))
    return labels if len(labels) > 2 else set()
