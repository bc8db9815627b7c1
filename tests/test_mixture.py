"""Which samples are kept: exact, seeded, and each source's draw its own."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixc.data.samples import Media, Sample, Turn
from ixc.params import MixtureParams
from ixc.stages.collect.mixture import BadMixture, Ticket, draw, ticket

PICTURE = Media(kind="image", path="00/0.png", sha256="0")


def sample(id: str, source: str = "a", has_media: bool = False) -> Sample:
    prompt = (Turn(role="user", content="Why?"),)
    media, modality = ((PICTURE,), "image") if has_media else ((), "text")
    return Sample(
        id=id, source=source, domain="general", modality=modality, prompt=prompt, media=media
    )


def kept(samples: list[Sample], params: MixtureParams, seed: int = 0) -> set[str]:
    keep = draw([ticket(each, seed) for each in samples], params)
    return {each.id for each, yes in zip(samples, keep, strict=True) if yes}


MANY = [sample(f"{source}{i}", source) for source in "abc" for i in range(50)]


def test_each_source_has_its_number_and_what_is_not_named_is_whole():
    found = kept(MANY, MixtureParams(sources={"a": 7, "b": 0}))
    assert Counter(id[0] for id in found) == {"a": 7, "c": 50}


def test_the_seed_decides_and_a_new_source_changes_no_others_draw():
    params = MixtureParams(sources={"a": 7})
    alone = kept(MANY[:50], params)
    assert kept(MANY[::-1], params) >= alone
    assert kept(MANY[:50], params, seed=1) != alone


def test_more_of_a_source_contains_what_less_of_it_had():
    assert kept(MANY, MixtureParams(sources={"a": 7})) < kept(MANY, MixtureParams(sources={"a": 9}))


def test_a_number_larger_than_what_there_is_takes_all():
    assert len(kept(MANY, MixtureParams(sources={"a": 1000}))) == 150


def test_two_images_to_a_text_by_hand():
    # 7 pictures and 9 texts: 3 texts want 6 pictures, so that 1 picture and 6 texts are left out
    samples = [sample(f"p{i}", has_media=True) for i in range(7)] + [
        sample(f"t{i}") for i in range(9)
    ]
    found = kept(samples, MixtureParams(images_per_text=2))
    assert Counter(id[0] for id in found) == {"p": 6, "t": 3}


def test_where_one_kind_is_missing_the_other_is_kept_whole():
    assert len(kept(MANY, MixtureParams(images_per_text=2))) == 150


TEXTS = [sample(f"t{i}", "t") for i in range(300)]
PICTURES = [sample(f"p{i}", "p", has_media=True) for i in range(300)]


def test_numbers_that_contradict_the_images_to_a_text_are_refused_by_name():
    numbers = MixtureParams(sources={"t": 200, "p": 60}, images_per_text=2)
    told = r"images_per_text: 2: .* 60 samples .*\(p: 60\) and 200 without \(t: 200\): ask for 400 with, or for 30 wi"
    with pytest.raises(BadMixture, match=told):
        kept(TEXTS + PICTURES, numbers)


@pytest.mark.parametrize(
    "sources",
    [{"t": 100, "p": 200}, {"t": 100, "p": 190}, {"t": 200}, {"p": 60}, {"t": 0, "p": 60}],
    ids=["agree", "nearly", "one is free", "the other is free", "one kind only"],
)
def test_numbers_that_leave_the_ratio_something_to_decide_are_not(sources: dict[str, int]):
    found = Counter(
        id[0] for id in kept(TEXTS + PICTURES, MixtureParams(sources=sources, images_per_text=2))
    )
    assert found["p"] == 2 * found["t"] or sources == {"t": 0, "p": 60}


def test_a_source_of_both_kinds_can_be_thinned():
    both = [sample(f"t{i}") for i in range(20)] + [
        sample(f"p{i}", has_media=True) for i in range(8)
    ]
    found = Counter(id[0] for id in kept(both, MixtureParams(sources={"a": 25}, images_per_text=2)))
    assert found["p"] == 2 * found["t"] > 0


TICKETS = st.lists(
    st.builds(
        Ticket,
        rank=st.binary(min_size=2, max_size=2),
        source=st.sampled_from("ab"),
        domain=st.sampled_from(["general", "safety"]),
        group=st.sampled_from(["pairs/train", "pairs/val"]),
        has_media=st.booleans(),
    ),
    max_size=60,
)


@given(TICKETS, st.integers(0, 20), st.integers(0, 20))
def test_numbers_are_exact(tickets: list[Ticket], source: int, domain: int):
    there = Counter(each.source for each in tickets)
    keep = draw(tickets, MixtureParams(sources={"a": source}))
    found = Counter(each.source for each, yes in zip(tickets, keep, strict=True) if yes)
    assert (found["a"], found["b"]) == (min(source, there["a"]), there["b"])

    both = draw(tickets, MixtureParams(sources={"a": source}, domains={"safety": domain}))
    left = Counter(each.domain for each, yes in zip(tickets, keep, strict=True) if yes)
    found = Counter(each.domain for each, yes in zip(tickets, both, strict=True) if yes)
    assert (found["safety"], found["general"]) == (min(domain, left["safety"]), left["general"])


@given(TICKETS, st.integers(1, 3))
def test_the_ratio_holds_in_every_group(tickets: list[Ticket], ratio: int):
    keep = draw(tickets, MixtureParams(images_per_text=ratio))
    for group in {each.group for each in tickets}:
        there = Counter(each.has_media for each in tickets if each.group == group)
        found = Counter(
            each.has_media
            for each, yes in zip(tickets, keep, strict=True)
            if yes and each.group == group
        )
        if there[True] and there[False]:
            assert (
                found[True]
                == ratio * found[False]
                == ratio * min(there[True] // ratio, there[False])
            )
        else:
            assert found == there
