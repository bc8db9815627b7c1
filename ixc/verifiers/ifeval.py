"""Instructions a program can check: the 25 kinds of IFEval (arXiv:2311.07911), one small predicate each.

Kinds, arguments and meaning follow the official checker (google-research, `instruction_following_eval`) in
its strict mode. What that leaves to NLTK is simpler here: a sentence ends at `.!?` but not
after an abbreviation, a hyphenated word is one, and py3langid tells English from the rest. Keywords are literal.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ixc.verifiers.languages import language_of

Predicate = Callable[..., bool]


class Constraint(NamedTuple):
    """One instruction of a prompt, as in IFEval's `instruction_id_list` and `kwargs`."""

    id: str
    kwargs: Mapping[str, Any]


class BadConstraint(ValueError):
    """An instruction that no predicate knows, or arguments that do not fit it."""


def parse_constraints(text: str) -> tuple[Constraint, ...]:
    """The instructions in a `Gold.value`: JSON `[{"id": ..., "kwargs": {...}}]`.

    >>> parse_constraints('[{"id": "punctuation:no_comma"}]')
    (Constraint(id='punctuation:no_comma', kwargs={}),)
    """
    try:
        return tuple(_constraint(**entry) for entry in json.loads(text))
    except (TypeError, ValueError) as error:
        if isinstance(error, BadConstraint):
            raise
        raise BadConstraint(
            f'{text!r}: not JSON `[{{"id": ..., "kwargs": {{...}}}}]` ({error})'
        ) from error


def _constraint(id: str, kwargs: Mapping[str, Any] | None = None) -> Constraint:
    """Arguments that are null are dropped: the Hugging Face copy of IFEval has a column for every one."""
    if id not in PREDICATES:
        raise BadConstraint(f"{id!r}: unknown instruction; known: {sorted(PREDICATES)}")
    arguments = {name: value for name, value in (kwargs or {}).items() if value is not None}
    expected = ARGUMENTS[id]
    if set(arguments) != set(expected):
        raise BadConstraint(f"{id}: arguments {sorted(arguments)}; expected {sorted(expected)}")
    return Constraint(id, arguments)


def holds(constraint: Constraint, answer: str) -> bool:
    """Whether the answer follows the instruction; an empty one follows none."""
    return bool(answer.strip()) and PREDICATES[constraint.id](answer, **constraint.kwargs)


def compare(count: int, relation: str, bound: int) -> bool:
    """IFEval's two relations.

    >>> compare(3, "at least", 3), compare(3, "less than", 3)
    (True, False)
    """
    if relation not in ("at least", "less than"):
        raise BadConstraint(f"{relation!r}: unknown relation; use 'at least' or 'less than'")
    return count >= bound if relation == "at least" else count < bound


# Keywords


def existence(answer: str, keywords: list[str]) -> bool:
    """Every keyword occurs, be it inside a longer word."""
    lower = answer.lower()
    return all(keyword.lower() in lower for keyword in keywords)


def frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    """A keyword's occurrences, those inside longer words included."""
    return compare(answer.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(answer: str, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Occurrences of one letter, in either case."""
    return compare(answer.lower().count(letter.lower()), let_relation, let_frequency)


# Language


def response_language(answer: str, language: str) -> bool:
    """The answer is in one language, an ISO 639-1 code, as IFEval's own detector has it.

    Which half of an answer in two languages counts is a matter of the detector: hence the official one. It draws
    random numbers, here always the same, and cannot tell about what has no letters, which is let pass.
    """
    # A second, and few prompts need it.
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return detect(answer).partition("-")[0] == language.partition("-")[0]
    except LangDetectException:
        return True


def is_english(text: str, min_letters: int = 20) -> bool:
    """A guess from fewer letters than `min_letters` is worth nothing; then any ASCII text may be English."""
    letters = [character for character in text if character.isalpha()]
    if len(letters) < min_letters:
        return "".join(letters).isascii()
    return language_of(text.lower()) == "en"


# Length

_ABBREVIATION = re.compile(
    r"\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|[a-z])\.$", re.IGNORECASE
)
_CLOSING = r"\"'”’»›)\]}*"
_SENTENCE_END = re.compile(
    rf"[.!?]+[{_CLOSING}]*\s+(?=\S)|[.!?]+[\"”»](?=[^\W\d_])"
    rf"|[。！？।]+[{_CLOSING}」』）]*\s*(?=[^\s{_CLOSING}」』）])"
)


def count_sentences(text: str) -> int:
    """Sentences in a text.

    >>> count_sentences("Dr. Who pays 3.50 for tea. Does he? Yes!")
    3
    """
    stripped = text.strip()
    count = 1
    for match in _SENTENCE_END.finditer(stripped):
        # Enough for the longest abbreviation.
        ending = stripped[: match.end()].rstrip()[-12:]
        if not _ABBREVIATION.search(ending):
            count += 1
    return count


def number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    """Sentences in the answer."""
    return compare(count_sentences(answer), relation, num_sentences)


def number_words(answer: str, num_words: int, relation: str) -> bool:
    """Runs of letters, digits and underscores: `don't` is two."""
    return compare(len(re.findall(r"\w+", answer)), relation, num_words)


def inner(pieces: list[str]) -> list[str] | None:
    """What stands between separators; nothing may stand only at the edges, else None."""
    last = len(pieces) - 1
    texts = []
    for index, piece in enumerate(pieces):
        is_inner = 0 < index < last
        if not piece.strip() and is_inner:
            return None
        if piece.strip():
            texts.append(piece.strip())
    return texts


def number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs, parted by `***`."""
    paragraphs = inner(re.split(r"\s?\*\*\*\s?", answer))
    return paragraphs is not None and len(paragraphs) == num_paragraphs


def nth_paragraph_first_word(
    answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """The n-th of so many paragraphs, parted by blank lines, starts with a word."""
    paragraphs = answer.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if nth_paragraph > count or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


# Content


def number_placeholders(answer: str, num_placeholders: int) -> bool:
    """At least so many `[placeholders]`."""
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def postscript(answer: str, postscript_marker: str) -> bool:
    """A postscript behind its marker; the two usual markers may be spaced: `P. S.`."""
    usual = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = usual.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(pattern, answer.lower()) is not None


# Format


def number_bullet_lists(answer: str, num_bullets: int) -> bool:
    """Exactly so many lines that start with `*` (not `**`) or `-`."""
    return len(re.findall(r"^\s*\*[^*].*$|^\s*-.*$", answer, re.MULTILINE)) == num_bullets


def constrained_response(answer: str) -> bool:
    """One of IFEval's three fixed sentences occurs."""
    return any(f"My answer is {word}." in answer for word in ("yes", "no", "maybe"))


def number_highlighted_sections(answer: str, num_highlights: int) -> bool:
    """At least so many `*highlights*` or `**highlights**`."""
    marked = re.findall(r"\*[^\n*]*\*", answer) + re.findall(r"\*\*[^\n*]*\*\*", answer)
    return sum(bool(text.strip("*").strip()) for text in marked) >= num_highlights


def multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many numbered headings: `SECTION 1`. (The argument's spelling is IFEval's.)"""
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", answer)) >= num_sections


def json_format(answer: str) -> bool:
    """The whole answer is JSON, in a Markdown fence or not."""
    text = re.sub(r"^```(?:json|Json|JSON)?|```$", "", answer.strip()).strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(answer: str) -> bool:
    """A title in double angle brackets."""
    return any(text.lstrip("<").rstrip(">").strip() for text in re.findall(r"<<[^\n]+>>", answer))


# Combination


def two_responses(answer: str) -> bool:
    """Two different answers, parted by six asterisks."""
    responses = inner(answer.split("******"))
    return responses is not None and len(responses) == 2 and responses[0] != responses[1]


def repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    """The request is repeated before the answer."""
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


# Start, end, case and punctuation


def end_checker(answer: str, end_phrase: str) -> bool:
    """The answer ends with a phrase, a closing quotation mark aside."""
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(answer: str) -> bool:
    """The whole answer stands in double quotation marks."""
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words in capitals only; a hyphenated word is one."""
    words = re.findall(r"[^\W_]+(?:[-.][^\W_]+)*", answer)
    return compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def english_capital(answer: str) -> bool:
    """English in capital letters only."""
    return answer.isupper() and is_english(answer)


def english_lowercase(answer: str) -> bool:
    """English without a capital letter."""
    return answer.islower() and is_english(answer)


def no_comma(answer: str) -> bool:
    """No comma at all."""
    return "," not in answer


PREDICATES: dict[str, Predicate] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
"""IFEval's instruction ids, all of them, and what each asks of an answer."""

ARGUMENTS: dict[str, tuple[str, ...]] = {
    id: tuple(inspect.signature(predicate).parameters)[1:] for id, predicate in PREDICATES.items()
}
"""The names of each one's `kwargs`."""
