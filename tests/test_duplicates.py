"""Near duplicates: planted ones are found, and only those."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixc.stages.validate import minhash as duplicates
from ixc.stages.validate.minhash import near_duplicates, near_prompts, signatures
from ixc.stages.validate.shingles import Words, mixed, ngrams, shingles

Pair = tuple[str, str, str]
VOCABULARY = [f"word{index}" for index in range(3000)]


def found(pairs: list[Pair], groups: list[int] | None = None, threshold: float = 0.75) -> list[int]:
    signed = signatures(words(*pair) for pair in pairs)
    return near_duplicates(
        signed, np.array(groups or [0] * len(pairs), np.uint64), threshold
    ).tolist()


def words(prompt: str, chosen: str, rejected: str) -> tuple[Words, Words, Words]:
    return Words.of(prompt), Words.of(chosen), Words.of(rejected)


def text(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=length))


def edited(rng: random.Random, pair: Pair, share: float) -> Pair:
    prompt, chosen, rejected = (edited_text(rng, part, share) for part in pair)
    return prompt, chosen, rejected


def edited_text(rng: random.Random, text: str, share: float) -> str:
    """A share of the words exchanged, in a row, in capitals and with punctuation."""
    words = text.split()
    count = max(round(share * len(words)), 1)
    start = rng.randrange(len(words) - count)
    words[start : start + count] = rng.choices(VOCABULARY, k=count)
    return ", ".join(words).upper() + "!"


def test_recall_and_precision_on_planted_cases():
    rng = random.Random(0)
    originals = [(text(rng, 40), text(rng, 80), text(rng, 60)) for _ in range(300)]
    # 4 % of the words exchanged leave a similarity of 0.86 to 0.9; 30 %, of about 0.5
    near, far = ([edited(rng, pair, share) for pair in originals] for share in (0.04, 0.3))
    first = found([*originals, *near, *far])
    assert first[:300] == list(range(300))
    assert sum(first[300 + place] == place for place in range(300)) >= 0.98 * 300
    assert sum(first[600 + place] != 600 + place for place in range(300)) <= 0.02 * 300


LONG = "Please describe in one or two sentences what can be seen on the left of the picture and what on the right"
SAID = "there is a dog on the left who looks at a ball and on the right a child who is about to throw it far away"


def test_case_space_and_punctuation_make_no_difference():
    assert found([(LONG, SAID, "A cat."), (LONG.upper(), f"{SAID} .", "a  cat!")]) == [0, 0]


def test_other_answers_to_the_same_prompt_are_no_repeat():
    assert found([(LONG, SAID, "A cat."), (LONG, "There is a cow.", "A cat.")]) == [0, 1]


def test_exchanged_answers_are_no_repeat():
    assert found([(LONG, SAID, "A cat."), (LONG, "A cat.", SAID)]) == [0, 1]


def test_every_word_of_a_short_text_matters():
    short = [
        ("What is 3 - 5?", "-2", "2"),
        ("What is 3 + 5?", "-2", "2"),
        ("what is 3 - 5", "-2", "2"),
    ]
    assert found(short) == [0, 1, 0]


def test_how_often_a_word_is_said_matters():
    assert found([("Say it.", "flag " * 20, "no"), ("Say it.", "flag " * 40, "no")]) == [0, 1]


def test_pairs_about_other_images_are_no_repeat():
    same = (LONG, SAID, "A cat.")
    assert found([same, same, same], groups=[1, 2, 1]) == [0, 1, 0]


def test_prompts_near_held_out_ones_are_detected_whatever_is_answered():
    rng = random.Random(0)
    held_out = [text(rng, 40) for _ in range(300)]
    near = [edited_text(rng, one, 0.025) for one in held_out]
    far = [edited_text(rng, one, 0.3) for one in held_out]
    asked, held = (
        signatures(words(one, text(rng, 9), "") for one in texts)[:, :1]
        for texts in ([*near, *far], held_out)
    )
    found = near_prompts(asked, np.arange(600), held, 0.75).tolist()
    assert sum(found[place] == place for place in range(300)) >= 0.98 * 300
    assert sum(place >= 0 for place in found[300:]) <= 0.02 * 300
    assert near_prompts(asked, np.array([299, 0]), held, 0.75).tolist() == [found[299], found[0]]
    assert near_prompts(asked, np.arange(2), held[:0], 0.75).tolist() == [-1, -1]


def test_no_pair_and_empty_texts():
    assert found([]) == []
    assert found([("", "", ""), ("", "", "")]) == [0, 0]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from([LONG, SAID, "short", "", "数 字", f"{LONG} now"]), min_size=1, max_size=12
    )
)
def test_the_pair_that_is_named_is_kept_and_comes_first(texts: list[str]):
    first = found([(one, one, "no") for one in texts])
    for place, named in enumerate(first):
        assert named <= place and first[named] == named
    assert len(set(first)) <= len(set(texts))


def test_shingles_are_those_of_each_text_alone():
    rng = random.Random(0)
    texts = [Words.of(text(rng, length)).numbers for length in (0, 1, 3, 15, 16, 17, 40, 0, 2)]
    texts.append(Words.of("flag " * 20).numbers)
    found, owners = shingles(texts, 2, 16)
    assert owners.tolist() == sorted(owners.tolist())
    assert np.bincount(owners, minlength=10).tolist() == [0, 1, 1, 1, 15, 16, 39, 0, 1, 19]
    assert len(set(found.tolist())) == len(found)  # equal ones of one text are told apart
    for number, one in enumerate(texts):
        assert found[owners == number].tolist() == shingles([one], 2, 16)[0].tolist()
    assert found[owners == 3].tolist() == ngrams(texts[3], 16).tolist()
    assert found[owners == 5].tolist() == mixed(ngrams(texts[5], 2)).tolist()


def test_signatures_do_not_depend_on_what_is_read_together(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    pairs = [words(text(rng, 30), text(rng, 70), text(rng, 5)) for _ in range(9)]
    together = signatures(pairs)
    monkeypatch.setattr(duplicates, "AT_ONCE", 250)
    assert np.array_equal(signatures(pairs), together)
    assert np.array_equal(signatures(pairs[4:5])[0], together[4])
