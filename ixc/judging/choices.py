r"""Which option a free answer settles on, in English and Chinese: its letter, or the word that nobody can tell.

A letter counts by what stands around it, never by itself: `Vitamin C`, `points A and B`, `it is not C` name no
option. What is said around a letter has a rank, and the last one of the highest rank counts:

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

ALL = "ABCDEFGHIJ"
"""The letters that an option may have where a source does not say which there are."""


class Option(NamedTuple):
    """An option's letter, if it is known, and its text, if there is one."""

    letter: str | None
    text: str


_LETTERED = re.compile(
    r"\s*(?:[(\[（【]([A-Ja-j])[)\]）】][.:、：．]?|([A-Ja-j])(?:[).:、：．）]|(?=\s*$)))\s*(.*)", re.DOTALL
)


def as_option(text: str) -> Option:
    """What a source calls an option.

    >>> as_option("(B) a fish"), as_option("b"), as_option("A fish"), as_option("Ｂ、鱼")
    (Option(letter='B', text='a fish'), Option(letter='B', text=''), Option(letter=None, text='A fish'), \
Option(letter='B', text='鱼'))
    """
    narrow = unicodedata.normalize("NFKC", text[:3]) + text[3:]
    found = _LETTERED.fullmatch(narrow)
    if found is None:
        return Option(None, text.strip())
    return Option((found.group(1) or found.group(2)).upper(), found.group(3).strip())


class Reading(NamedTuple):
    """What an answer says about letters."""

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
    """The same, and how it is said.

    Args:
        letters: those of the question's options; a letter that none has is no option.
    """
    text = plain(answer)
    corrections = list(_CORRECTION.finditer(text))
    if corrections:
        last = corrections[-1].end()
        tail = _settle([one for one in _judged(text, letters) if one.start >= last], letters, text)
        if 0 < tail.rank <= VERDICT:
            return tail
    return _settle(list(_judged(text, letters)), letters, text)


# Plain text: no mark-up, one form of every character

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_STYLE = re.compile(r"\\(?:text|mathrm|mathbf|mathsf|mathit|boldsymbol|bm|bf|rm|operatorname|mbox)\w*\s*\{([^{}]*)\}")
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
    text = unicodedata.normalize("NFKC", _THOUGHT.sub(" ", answer))
    text = _SPACE.sub(" ", text.replace(r"\left", "").replace(r"\right", "").replace(r"\$", ""))
    for _ in range(3):  # one style may wrap another
        text = _STYLE.sub(r"\1", text)
    text = _unboxed(text)
    text = _TAG.sub(". ", _ANSWER_TAG.sub(" answer: ", text)) if "<" in text else text
    text = re.sub(r"\\[()]|[*`$]", "", text)
    text = _LONE_UNDERSCORED.sub(r"\1", text)
    return _HEADING.sub("", _GSM.sub("answer: ", text)).strip("\n\t ") if answer else ""


def _unboxed(text: str) -> str:
    r"""Every `\boxed{X}` as `answer: X .`, its braces balanced."""
    parts: list[str] = []
    while (start := text.find(r"\boxed{")) >= 0:
        depth, end = 1, start + len(r"\boxed{")
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inside = text[start + len(r"\boxed{") : end - (depth == 0)]
        parts += [text[:start], f" answer: {inside} . "]
        text = text[end:]
    return "".join([*parts, text])


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
    for found in _MENTION.finditer(text):
        names = tuple(dict.fromkeys(re.findall(r"(?<![A-Za-z])[A-Ja-j](?![a-z])", found.group())))
        if re.fullmatch(r"[A-J]{2,4}", found.group()):
            names = tuple(found.group()) if list(found.group()) == sorted(set(found.group())) else ()
        if not names or not all(name.upper() in letters for name in names):
            continue
        before, after = text[max(0, found.start() - _WINDOW) : found.start()], text[found.end() :][:_WINDOW]
        rank = _rank(found.group(), names, before, after, _FIRST.fullmatch(before) is not None)
        if rank:
            yield _Named(tuple(name.upper() for name in names), rank, found.start(), found.end(), after)


def _rank(shown: str, names: Sequence[str], before: str, after: str, first: bool) -> int:  # noqa: PLR0911 - one rule a line
    bare = len(shown) == 1
    if _NOT_A_LETTER.match(after) and not _DENIED_AFTER.match(after):
        return 0
    if bare and shown in "Aa" and _ARTICLE.match(after) and not _ARTICLE_AFTER_MARK.search(before):
        return 0
    if bare and shown in "Ii" and not re.match(r"\s*[.,;:)!。]|\s*$", after):
        return 0
    small = names[0].islower()
    if small and bare and not re.match(r"\s*(?:[.,;:)!?。、\n]|$|(?:because|since|as|is|项|选项)\b)", after):
        return 0
    if _EXCEPT.search(before):
        return 0
    if _DENIED_SENTENCE.search(_sentence(before)):
        return DENIED
    if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
        return DENIED
    if _is_named_option(shown, before, after) and _DENIED_IN.search(_clause(after)):
        return DENIED
    run = len(shown) > 1 and shown.isalpha()
    rank = _affirmed(before, after, first, single=len(names) == 1)
    if run and rank not in (ANSWER,):
        return 0
    if rank != ANSWER and _FORMULA_BEFORE.search(before) and not re.search(r"[=-]>\s*$", before):
        return 0
    if rank == 0 and not small and _is_named_option(shown, before, after):
        rank = MENTION
    if rank and (_DOUBT_BEFORE.search(before) or _DOUBT_AFTER.match(after)):
        rank = HEDGE
    return rank


def _affirmed(before: str, after: str, first: bool, single: bool) -> int:  # noqa: PLR0911 - one rule a line
    """The rank of letters that are not denied."""
    if _ANSWER_BEFORE.search(before) or _CHOSEN_BEFORE.search(before) or _ANSWER_ZH.search(before):
        return ANSWER
    if _ANSWER_AFTER.match(after):
        return ANSWER
    if first and single and _leads(after):
        return LEAD
    if single and re.search(r"(?:^|[.!?。！？\n;→⇒]|[=-]>|:)\s*$", before) and re.match(r"\s*[.。!)]?\s*$", after):
        return LEAD
    if _RIGHT_AFTER.match(after):
        return VERDICT
    if (_THEREFORE.search(before) or _THE_ONE_IS.search(before)) and _SENTENCE_OVER.match(after):
        return VERDICT
    if _SENTENCE_OVER.match(after) and _IS_LAST.search(before) and not _GEOMETRY.search(_sentence(before)):
        return VERDICT
    if _ONLY.search(before) and re.match(r"\s+[a-z]+s\b|\s*[\u4e00-\u9fff]", after):
        return VERDICT
    if _WHICH_IS.search(before):
        return VERDICT
    return 0


def _is_named_option(shown: str, before: str, after: str) -> bool:
    """Whether a letter is an option's, whatever is said of it: `(C)`, `option C`, C项."""
    return shown[0] in "([【" or _NAMED_OPTION.search(before) is not None or re.match(r"选?项", after) is not None


def _sentence(before: str) -> str:
    return re.split(r"[.;!?。；\n,](?!\d)", before)[-1]


def _clause(after: str) -> str:
    """What is said next about an option, as far as it is about this one."""
    return _CLAUSE_END.split(after.lstrip(" .:)、"), maxsplit=1)[0]


def _leads(after: str) -> bool:
    """Whether a letter at the very start is the answer, and no sentence's subject."""
    return _LEADS.match(after) is not None


_LEADS = re.compile(
    r"\s*$|\s*[吧呢啊呀]|\s*[).:、,;!。：](?!\s*[A-J]\b)|\s*\n|\s+[-–—]|选?项|\s*[,]?\s*(?:because|since|因为|是因为)"
    r"|\s+(?!(?:is|are|was|and|or|has|have|had|lies|can|must|may|does|do|cannot|to|in|on|of|at|divides|moves|will"
    r"|would"
    r"|completes|then|equals?|means|stands|represents|gives|shows|be|being|denotes|intersects?|goes|comes|wins"
    r"|got|say|think"
    r"|chose|choose|see|don't|am|isn't|doesn't)\b)\S"
)

# English, and what both languages share

_FILL = (
    r"(?:(?:therefore|thus|then|hence|definitely|clearly|obviously|indeed|simply|just|probably|likely|most|certainly"
    r"|surely|still|really|also|that|the|of|option|choice|letter|answer|number|statement|figure|image|picture|it|it's"
    r"|is|correct|right|best|final|one|figure|选项|图形?|图像|图片)\b|[:\s,\"'“(]|选项|图形?)*"
)
_IS = (
    r"(?:(?:\s+|\b)(?:is|was|are|be|becomes|would be|must be|should be|will be|has to be|ought to be|can only be"
    r"|turns out to be|seems to be|appears to be|comes out (?:as|to be)|remains|stays)\b|'s\b|\s*(?:=>|->|[:=→⇒]"
    r"|[-–—]))"
)
_ANSWER_BEFORE = re.compile(
    rf"(?:\b(?:answers?|ans|solution|(?:choice|option|selection|pick|guess|verdict|decision"
    rf"|conclusion)(?=\s+(?:is|would|must)\b|:)|(?:correct|right|best|true|proper|valid|final|closest|appropriate"
    rf"|suitable|only)"
    rf"(?: possible| remaining| matching)?"
    rf"(?: (?:answer|option|choice|one|response|pick|letter|alternative|figure|picture|match|statement))?)\b"
    rf"[\"')\s]*(?:(?:to|for|of|in) (?:this|the|that|our|your)(?: [a-z]+)? ?[a-z]*)?\s*(?:here|then|therefore|thus)?"
    rf"{_IS}{_FILL}|\banswer[,)]?\s+(?:option|choice|letter)?\s*|\bans\.\s*|^\s*A:\s*|\n\s*A:\s*)$",
    re.IGNORECASE,
)
_CHOSEN_BEFORE = re.compile(
    rf"(?:\b(?:choose|chose|choosing|select|selected|selecting|pick|picked|picking|go(?:ing)? (?:with|for)"
    rf"|went (?:with|for)|opt(?:ed|ing)? for|settle (?:on|for)|vote for|say|guess|bet on|conclude|stick with"
    rf"|lean towards?"
    rf"|mark|circle|tick)\b{_FILL})$",
    re.IGNORECASE,
)
_ANSWER_AFTER = re.compile(
    r"\s*[),]?\s*(?:option|选项)?\s*(?:is|are|was|must be|should be|would be|has to be|will be|,)\s*"
    r"(?:therefore |thus |clearly |definitely |obviously |indeed |hence |then |also )?"
    r"(?:(?:the|my|our|your)\s+(?:only\s+|most\s+|single\s+|final\s+)?"
    r"(?:correct|right|best|proper|answer|final|one|option that|choice|solution|appropriate|suitable|accurate)\b"
    r"|what (?:we|you|is))|[^.;\n]{0,80}\b(?:therefore|thus|hence|so) (?:is |it is )?the (?:correct"
    r"|right) (?:answer|option|choice)\b|\s*[)]?\s*(?:选项|项)?(?:就是|才是|是|为)(?:本题的?|此题的?|这道题的?"
    r"|唯一)?(?:正确)?(?:的)?答案",
    re.IGNORECASE,
)
_ANSWER_ZH = re.compile(
    r"(?:(?:答案|正解|正确(?:的)?(?:答案|选项|结论|说法|判断|叙述|一项|项|图形?)?|符合(?:题意|条件"
    r"|要求)的(?:选项)?)\s*"
    r"(?:应该|应当|应|就|只能|必然|显然|当然|一定)?\s*(?:选择|选|是|为|:|有|=|,)+\s*(?:选项|图形?|[:\s(\"“])*"
    r"|答案[】\])》」]?\s*[(“\"]?|(?:答|解答)\s*[:是为]\s*|填(?:入|写|的是|上)?(?:选项|图形?)?\s*[(“]?"
    r"|(?<![任挑])选(?:择)?(?:答案|的是|的|定|出|了|为|是|[:\s(\"“])*(?:选项|图形?)?[\s:(\"“]*)$"
)
_RIGHT_AFTER = re.compile(
    r"\s*[),]?\s*(?:option|choice|选项|项|图)?\s*,?\s*(?:"
    r"(?:(?:is|are|was|looks|seems|must be|should be|would be|has to be|appears to be|will be)\s+)"
    r"(?:therefore |thus |clearly |definitely |obviously |indeed |hence |also |the only |the one |only )?"
    r"(?:correct|right|true|valid|it\b|best|that (?:fits|matches|works|is)|(?:which|that) )"
    r"|(?:fits|matches|works|remains|satisfies|holds|is left|wins|(?:comes|is) (?:the )?closest)\b|[✓✔✅]"
    r"|(?:显然|一定|才|就|最|更|比较|较|均|都|也|是|为)*(?:正确|对的|对(?=[,.。;!]|$)|符合|满足|成立|合适|合理"
    r"|接近|相符|吻合|准确|恰当))",
    re.IGNORECASE,
)
_SENTENCE_OVER = re.compile(r"\s*(?:[.,;:!)。、\n]|$|\(|because|since|as\b|项|选项|[-–—]|吧|了|，|因为)")
_THEREFORE = re.compile(
    r"(?:\b(?:so|thus|hence|therefore|then|consequently|accordingly|but|no|yes|ok|okay|actually|wait|rather"
    r"|leaves|leaving"
    r"|remaining|only|definitely|surely|certainly|probably|clearly|obviously|likely|absolutely|perhaps|maybe"
    r"|possibly|i think|i believe)\b[,:\s]*(?:(?:it|that|this|we have|we get|it's|that's)(?: is|'s| must be"
    r"| has to be| should be"
    r"| can only be| would be| leaves)?)?"
    r"|\b(?:it|that|this)(?:'s| is| must be| has to be| should be| would be| can only be| will be)"
    r"|的是|应该?是|所以是|因此是|因而是|就是|才是|只能是|必然是|一定是|而是|只有|应为|故为|即为|只剩下?"
    r"|剩下的?是?|综上,?|所以|因此|因而|故|即|得)"
    r"\s*(?:(?:clearly|definitely|obviously|probably|the|option|choice|answer|letter|just|simply)\b|选项|答案"
    r"|[:\s,\"“(])*$",
    re.IGNORECASE,
)
_THE_ONE_IS = re.compile(
    r"\b(?:only|one|best|largest|smallest|longest|shortest|highest|lowest|most|least|correct|missing|odd|next"
    r"|different)\b"
    r"[^.;,:\n]{0,50}\b(?:is|must be|should be|would be)\s+(?:option |choice |the )?[(\"“]*$|(?:最"
    r"|唯一)[^,.;。\n]{0,20}[是为](?:选项)?[(“]*$",
    re.IGNORECASE,
)
_IS_LAST = re.compile(
    r"(?:\b(?:is|be|are|becomes|like|'s|giving|gives|yielding|yields|obtain|get)\s+(?:the |in |at "
    r"|on )?(?:picture |figure |image |panel |shape )?"
    r"|(?<![点心角线边弧径段])(?:是|像|为)\s*)[(\"“]*$",
    re.IGNORECASE,
)
_ONLY = re.compile(r"(?:\bonly|只有|仅有?|唯有)\s*(?:option |choice |选项)?[(\"“]*$", re.IGNORECASE)
_GEOMETRY = re.compile(
    r"\b(?:points?|cent(?:re|er)|vert(?:ex|ices)|midpoint|angles?|sides?|radius|origin|circle|lines?|segments?"
    r"|foot|sets?|events?"
    r"|vitamin|hepatitis|intersection|intersects?|planes?|student|letters? (?:before|after)|blood|grade|size|type"
    r"|group|team)\b"
    r"|[点心角线边弧径段圆]",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"(?:\b(?:anything|everything|all|any|every \w+|any \w+|all \w+|all of \w+(?: \w+)?)\s+(?:but|except)"
    r"|\bexcept(?: for)?|(?<![排去剔])除了?|除开)"
    r"\s*(?:option|choice|选项)?[\s(\"“]*$",
    re.IGNORECASE,
)
_WHICH_IS = re.compile(
    r"(?:\b(?:is|matches|match|equals|corresponds? (?:to|with)|corresponding to|gives?|agrees with|leads? to"
    r"|leaves|yields"
    r"|points? to|namely|i\.e\.,?|matching|that is,?|as in|fits|supports?|indicates?|means|consistent with|listed as"
    r"|shown in|in line with|labell?ed)\s+(?:by |in |as )?(?:the )?(?:correct )?(?:option|choice|answer|letter)"
    r"|=>|[→⇒]"
    r"|(?:对应|即|得|得到|就是|也就是|符合|属于|与|跟|和|同|是|见|匹配)(?:的是|的)?选项)\s*[:(\"“]*$",
    re.IGNORECASE,
)
_NAMED_OPTION = re.compile(
    r"(?:\b(?:option|choice)|\A(?:picture|figure|image|panel|shape|diagram|graph)|选项|\A图形?)\s*[:(\"“]*$",
    re.IGNORECASE,
)
_ARTICLE_AFTER_MARK = re.compile(r"(?:\boption|\bchoice|\bletter|选项|选|答案[是为:])\s*$", re.IGNORECASE)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|on second thought|scratch that|let me correct|correction|i made a mistake|no wait|oops)\b"
    r"|(?:不对(?=[,，.。!])|等等|更正|纠正一下|哦不|重新(?:考虑|检查|计算|审题))",
    re.IGNORECASE,
)

# Denied and doubted

_DENIED_BEFORE = re.compile(
    r"(?:(?:\bnot|n't|\bnever|\bneither|\bnor|\bcannot|\brather than|\binstead of|\beliminat(?:e|es|ed|ing)"
    r"|\brul(?:e|es|ed|ing) out|\bexclud(?:e|es|ed|ing)|\bdiscard(?:s|ed|ing)?|\breject(?:s|ed|ing)?"
    r"|\bcross(?:es|ed|ing)? (?:out|off)|\bstrik(?:e|es|ing) (?:out|off)|\bwithout|\bother than|\bunlike"
    r"|\bdismiss(?:es|ed|ing)?"
    r"|\b(?:wrong|incorrect|worst) (?:answer|option|choice)s? (?:is|are|would be))"
    r"(?:\s+(?:be|is|the|to|pick|choose|select|go with|say|option|choice|answer|letter|options|choices|answers"
    r"|correct|both"
    r"|necessarily|really|actually|simply|just|either))*[\s:(\"“]*"
    r"|(?:[不没未非勿别莫误错](?:有|应该|应当|能|要|会|可能|可以|可|该|应|必|得)*(?:是|选择|选|为|填)|而非|并非"
    r"|非|排除(?:掉|了)?|去掉|剔除"
    r"|否定(?:了)?|舍去|去除|淘汰|不等于|不属于|不符合|误认为是?|误以为是?)(?:的是|了)?\s*(?:选项|答案"
    r"|项)*[\s:(\"“]*)$",
    re.IGNORECASE,
)
_DENIED_SENTENCE = re.compile(
    r"(?:n't|\bnot|\bnever)\s+(?:think|believe|say|agree|look|seem|choose|pick|expect|see how)\b|\bno way\b"
    r"|\bimpossible that\b"
    r"|\bI doubt\b|不认为|不觉得|不同意|没法得出",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\s*\)?\s*(?:option|choice|options|choices|选项|项)?\s*(?:"
    r"(?:(?:is|are|was|were|looks?|seems?|would be|must be|should be|has to be|can be|could be|will be|both|all"
    r"|clearly|also"
    r"|therefore|thus|obviously|definitely|to be|simply|just|already|being|has been|have been|get|gets)\s+)+"
    r"(?:wrong|incorrect|false|invalid|not\b|too\b|out\b|impossible|ruled|eliminated|excluded|rejected|discarded"
    r"|inconsistent"
    r"|irrelevant|no good|unlikely|untrue|off\b|dismissed|contradict)"
    r"|(?:is|are|was|were|do|does|did|ca|can|could|wo|would|should)(?:n't|n’t)\b|(?:cannot|can not|does not"
    r"|do not|fails?|failed"
    r"|contradicts?|violates?|misses|lacks|could not|would not|will not)\b|[✗✘❌×]|\s*[:.)-]?\s*(?:wrong"
    r"|incorrect|false)\b"
    r"|(?:[):.、]?\s*)?(?:选项|项)?(?:也|均|都|就|则|是|明显|显然|一定|肯定|可以|可|应|被|应该|应当|直接|全|两项"
    r"|三项|两个|三个|两|三|选项)*"
    r"(?:错误|错|不对|不正确|不符|不成立|不满足|不合|不可能|不是|不行|不选|不能|不应|有误|排除|否定|矛盾|偏大"
    r"|偏小|太大|太小|过大|过小|舍去"
    r"|不等|不相等|不准确|不恰当|不合适|与题意不))",
    re.IGNORECASE,
)
_DOUBT_BEFORE = re.compile(
    r"(?:\b(?:perhaps|maybe|possibly|if|suppose|assume|assuming|thought|think(?:ing)? at first|initially|at first"
    r"|first guess|might be|may be|could be"
    r"|whether|tempt(?:ed|ing)|someone|some people|some students|student|why|unless|looks like|hardly|before"
    r"|is it|people often"
    r"|many|trap|distractor|friend)\b|如果|若|假如|假设|有人|有的(?:同学|人)|以为|看似|可能(?:会|是|选)|容易|起初"
    r"|一开始|最初|同学|为什么|是否|会不会"
    r"|也许|或许|干扰)[^.。;,，!?！？\n]*$",
    re.IGNORECASE,
)
_DOUBT_AFTER = re.compile(
    r"\s*[)]?\s*(?:选项|项)?\s*(?:\?|吗|呢|还是|looks (?:good|tempting|plausible|likely)|seems (?:good|tempting"
    r"|plausible|likely))"
)


_CLAUSE_END = re.compile(r"[.;!?。\n,](?!\d)|\b(?:because|since|as|while|whereas|but|and|so)\b|因为|所以|而|[A-J]\b")
_DENIED_IN = re.compile(
    r"\b(?:is|are|was|looks|seems|would be) (?:clearly |also |simply |just |definitely )?(?:wrong|incorrect|false"
    r"|invalid|too|not|out)\b"
    r"|\b(?:is|does|do|has|would|can|could)(?:n't| not)\b|\bcannot\b|\bno\b|\bfails?\b|\bcontradicts?\b"
    r"|不符|不一致|不相符|不吻合|不匹配|不满足|不成立|不正确|错误|不对|有误|矛盾|排除|不同",
    re.IGNORECASE,
)

# What remains


def _settle(named: Sequence[_Named], letters: str, text: str) -> Reading:
    """The last of the highest rank, or what denials leave."""
    enumerated = enumerates(text)
    for rank in (ANSWER, LEAD, VERDICT):
        found = [one for one in named if one.rank == rank]
        if rank == LEAD and enumerated:
            found = [one for one in found if not one.after.strip(" .。!)\n")]
        if found:
            return _reading(found[-1:], rank)
    denied = {name for one in named if one.rank == DENIED for name in one.letters}
    mentions = [
        one for one in named if one.rank == MENTION and not (len(one.letters) == 1 and one.letters[0] in denied)
    ]
    if mentions and not mentions[-1].after.strip(" .。!)"):
        return _reading(mentions[-1:], MENTION)
    if mentions:
        return _reading(mentions, MENTION)
    left = [letter for letter in letters if letter not in denied]
    if letters != ALL and len(letters) > 2 and len(left) == 1:
        return Reading(left[0], rank=VERDICT, end=max(one.end for one in named))
    hedges = [one for one in named if one.rank == HEDGE and not set(one.letters) & denied]
    return _reading(hedges, HEDGE) if hedges else Reading(None)


def _reading(found: Sequence[_Named], rank: int) -> Reading:
    names = {name for one in found for name in one.letters}
    return Reading(names.pop() if len(names) == 1 else None, len(names) > 1, rank, found[-1].end)


_LABEL = re.compile(r"(?<![^\s(\[])([A-J])[).\]:、]")


def enumerates(text: str) -> bool:
    """Whether the options are repeated one by one: then the first of them leads nothing."""
    return len(set(_LABEL.findall(text))) > 2
