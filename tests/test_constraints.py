import json
from typing import Any

import pytest
from real import REAL, needs_real

from ixc.verifiers.ifeval import (
    ARGUMENTS,
    PREDICATES,
    BadConstraint,
    Constraint,
    count_sentences,
    holds,
    parse_constraints,
)

FINNISH = "Tämä on suomeksi kirjoitettu lause, joka kertoo säästä ja kesästä."
GERMAN = "Das ist ein Satz auf Deutsch, und er handelt vom Wetter."

# kind, arguments, an answer that follows, one that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Ink", "pen"]}, "A PEN without ink", "A pen"),
    ("keywords:existence", {"keywords": ["ink"]}, "I drink", "I dine"),  # inside a word counts
    (
        "keywords:existence",
        {"keywords": ["C++ (2)"]},
        "about C++ (2)",
        "about C",
    ),  # literal, no pattern
    (
        "keywords:frequency",
        {"keyword": "ha", "frequency": 3, "relation": "at least"},
        "Haha, ha",
        "ha ha",
    ),
    (
        "keywords:frequency",
        {"keyword": "ha", "frequency": 3, "relation": "less than"},
        "ha ha",
        "Ha ha ha",
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat"]},
        "A category",
        "A Cat!",
    ),  # whole words
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
        "One day",
        "Eve",
    ),
    ("language:response_language", {"language": "fi"}, FINNISH, GERMAN),
    ("language:response_language", {"language": "de"}, GERMAN, FINNISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "Yes. I do.",
        "I do.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "***One***Two***",
        "One\n***\n***\nTwo",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        "I don't",
        "I do",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "I do",
        "I don't",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n\n"then, slowly."',
        "Then.\n\nFirst.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
        "A\n\nb",
        "A\n\nb\n\nc",  # the number of paragraphs counts, too
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "[name], [address]",
        "[name]",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Bye.\nP. S. More",
        "Bye. PS More",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "Bye.\np.p.s More",
        "P.S. More",
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        "* one\n- two",
        "* one\n* two\n* three",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* one\n**bold**", "**bold**"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*one* and *two*",
        "*one*, ** **",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSECTION B",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A day>>\nIt was", "<A day>"),
    ("detectable_format:title", {}, "<<x>>", "<< >>"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:two_responses", {}, "******One******Two", "One******Two******Three"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, "say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So: "the END."', "The end. Bye"),
    ("startend:quotation", {}, ' "Yes." ', 'He said "yes."'),
    ("startend:quotation", {}, '""', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "I SAID so",
        "IN-LINE it is",  # a hyphenated word is one
    ),
    (
        "change_case:english_capital",
        {},
        "THIS IS A SENTENCE ABOUT THE WEATHER.",
        "This Is A Sentence.",
    ),
    ("change_case:english_capital", {}, "YES", GERMAN.upper()),
    (
        "change_case:english_lowercase",
        {},
        "this is a sentence about the weather.",
        "This is a sentence.",
    ),
    ("change_case:english_lowercase", {}, "yes, 3 cats", FINNISH.lower()),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
]


@pytest.mark.parametrize(("kind", "kwargs", "follows", "breaks"), CASES)
def test_every_kind_tells_right_from_wrong(
    kind: str, kwargs: dict[str, Any], follows: str, breaks: str
) -> None:
    constraint = Constraint(kind, kwargs)
    assert (holds(constraint, follows), holds(constraint, breaks)) == (True, False)


def test_all_twenty_five_kinds_are_here_and_tried() -> None:
    assert len(PREDICATES) == 25
    assert {case[0] for case in CASES} == set(PREDICATES)


def test_an_empty_answer_follows_nothing() -> None:
    assert not holds(Constraint("punctuation:no_comma", {}), " \n")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One.", 1),
        ("no full stop", 1),
        ("One. Two! Three?", 3),
        ('He said: "Stop." She did not.', 2),
        ("It costs 3.50 dollars. Dr. Who pays, e.g. in cash.", 2),
        ("Wait... what?!", 2),
        ("一。二。", 2),
        (
            "He said “Stop.” Then he left.",
            2,
        ),  # curly quotes, guillemets, brackets, bold: all close a sentence
        ("“One.” “Two.” “Three.”", 3),
        ("He said “Why?” and left.", 2),
        ("«Stop.» Then he left.", 2),
        ("‘Fine.’ She left.", 2),
        ("(One.) [Two.] {Three.} Four.", 4),
        ("**Stop.** She left.", 2),
        ('He left."She stayed.', 2),
        ("他说：“停。”然后走了。", 2),
        ("她说：「走吧。」他走了。", 2),
        ('It is 3.5" long.', 1),
    ],
)
def test_sentences_are_counted_as_people_do(text: str, count: int) -> None:
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("answer", "language"),
    [  # what langdetect 1.0.9 says, whichever half it takes
        (f"This is an English answer about the weather, and it is quite long. {GERMAN}", "de"),
        (
            "Here is the text in German that you asked for: Das Wetter ist heute schön, die Sonne scheint.",
            "de",
        ),
        ("Certainly! Here is the poem in Hindi. सूरज चमकता है और पक्षी गाते हैं। यह एक सुंदर दिन है।", "hi"),
        ("The weather today is nice and the sun is shining. El clima de hoy es agradable.", "en"),
    ],
)
def test_a_half_english_answer_is_what_the_official_detector_says(
    answer: str, language: str
) -> None:
    kinds = {
        code: holds(Constraint("language:response_language", {"language": code}), answer)
        for code in ("en", "de", "hi")
    }
    assert kinds == {code: code == language for code in kinds}
    assert holds(
        Constraint("language:response_language", {"language": "fi"}), "42!"
    )  # no letters: let pass


def test_the_same_answer_has_the_same_language_every_time() -> None:
    found = {
        holds(
            Constraint("language:response_language", {"language": "de"}), "Das is good, und so on."
        )
        for _ in range(20)
    }
    assert len(found) == 1


def test_null_arguments_count_as_absent() -> None:
    text = '[{"id": "punctuation:no_comma", "kwargs": {"num_words": null}}]'
    assert parse_constraints(text) == (Constraint("punctuation:no_comma", {}),)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no json", "'no json'"),
        ('[{"kwargs": {}}]', "id"),
        ('[{"id": "startend:rhyme"}]', "'startend:rhyme'"),
        ('[{"id": "startend:end_checker", "kwargs": {"end": "x"}}]', "end_phrase"),
    ],
)
def test_an_error_names_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(BadConstraint, match=named):
        parse_constraints(text)


def test_an_unknown_relation_is_an_error() -> None:
    constraint = Constraint(
        "length_constraints:number_words", {"num_words": 3, "relation": "around"}
    )
    with pytest.raises(BadConstraint, match="'around'"):
        holds(constraint, "three")


@needs_real
def test_every_real_prompt_can_be_checked() -> None:
    path = REAL / "ifeval" / "input_data.jsonl"
    seen: set[str] = set()
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
        for constraint in parse_constraints(
            json.dumps([{"id": i, "kwargs": kwargs} for i, kwargs in pairs])
        ):
            assert set(constraint.kwargs) == set(ARGUMENTS[constraint.id])
            assert holds(constraint, row["prompt"]) in (True, False)
            seen.add(constraint.id)
    assert seen == set(PREDICATES)
