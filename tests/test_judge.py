from dataclasses import replace
from pathlib import Path

import pytest

from ixc.data.samples import Gold, Media, Sample, Turn, read_samples, write_samples
from ixc.metrics import Metrics, ignore
from ixc.params import JudgeParams
from ixc.stages.judge.stage import run

CATS = Sample(
    id="cats",
    source="test",
    domain="reasoning",
    modality="image",
    split="val",
    prompt=(Turn(role="user", content="<ImageHere>How many cats?"),),
    media=(Media(kind="image", path="ab/cats.png", sha256="ab"),),
    gold=Gold(check="number", value="4", answer="There are 4 cats."),
    candidates=("3", "4 cats", "5", "3", "4 cats", "It is 4."),
    rewards=(0.0,) * 6,
    meta={"level": 1},
)


def judge(
    tmp_path: Path, *samples: Sample, params: JudgeParams | None = None
) -> tuple[Metrics, list[Sample]]:
    write_samples(samples, tmp_path / "candidates.parquet")
    paths = (
        tmp_path / "candidates.parquet",
        tmp_path / "media",
        tmp_path / "out.parquet",
        tmp_path / "verdicts",
    )
    metrics = run(params or JudgeParams(), *paths, log=ignore)
    return metrics, list(read_samples(tmp_path / "out.parquet"))


def texts(pairs: list[Sample]) -> list[tuple[str, str]]:
    return [(pair.chosen[0].content, pair.rejected[0].content) for pair in pairs]


def test_the_most_frequent_right_and_wrong_candidates_meet_first(tmp_path: Path) -> None:
    _, pairs = judge(tmp_path, CATS)
    assert texts(pairs) == [("4 cats", "3"), ("It is 4.", "5")]


def test_a_pair_is_its_prompt_with_two_answers_and_a_verdict(tmp_path: Path) -> None:
    _, [pair] = judge(tmp_path, CATS, params=JudgeParams(pairs_per_prompt=1))
    assert pair.verdict is not None
    assert (pair.verdict.winner, pair.verdict.judge) == ("chosen", "verifier/number")
    assert pair.verdict.reason.endswith(".")
    added = {"chosen": pair.chosen, "rejected": pair.rejected, "verdict": pair.verdict}
    assert pair == replace(CATS, id="cats#0", prompt_id="cats", candidates=(), rewards=(), **added)


def test_without_a_right_candidate_the_reference_answer_is_chosen(tmp_path: Path) -> None:
    _, pairs = judge(tmp_path, replace(CATS, candidates=("3", "5", "3")))
    assert texts(pairs) == [("There are 4 cats.", "3"), ("There are 4 cats.", "5")]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (replace(CATS, candidates=()), "no_candidates"),
        (replace(CATS, gold=None), "no_gold"),
        (replace(CATS, candidates=("4", "It is 4.")), "no_wrong_candidate"),
        (replace(CATS, candidates=("3",), gold=Gold(check="number", value="4")), "no_right_answer"),
        (
            replace(CATS, candidates=("3",), gold=Gold(check="number", value="4", answer="Some.")),
            "no_right_answer",
        ),
        (replace(CATS, gold=Gold(check="open", value="", answer="Four cats.")), "no_judge"),
    ],
)
def test_a_prompt_without_a_pair_is_counted_by_its_reason(
    tmp_path: Path, sample: Sample, reason: str
) -> None:
    metrics, pairs = judge(tmp_path, sample)
    assert pairs == []
    assert metrics["pairs/all"] == 0 and metrics[f"without_pair/{reason}"] == 1


def test_every_check_makes_pairs(tmp_path: Path) -> None:
    golds = {
        "match": (
            Gold(check="match", value="red", others=("blue",)),
            ("It is red.", "It is blue."),
        ),
        "choice": (Gold(check="choice", value="B"), ("The answer is B.", "C")),
        "chart": (Gold(check="chart", value="40"), ("41", "45")),
        "vqa": (Gold(check="vqa", value='["red", "red", "red"]'), ("Red.", "Blue.")),
        "constraints": (
            Gold(check="constraints", value='[{"id": "punctuation:no_comma"}]'),
            ("a", "a, b"),
        ),
    }
    samples = [
        replace(CATS, id=name, gold=gold, candidates=(both[1], both[0]))
        for name, (gold, both) in golds.items()
    ]
    _, pairs = judge(tmp_path, *samples)
    assert texts(pairs) == [both for _, both in golds.values()]
    assert [pair.verdict and pair.verdict.judge for pair in pairs] == [
        f"verifier/{name}" for name in golds
    ]


def test_an_answer_that_one_person_gave_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    gold = Gold(check="vqa", value='["red", "red", "red", "pink"]')
    _, pairs = judge(tmp_path, replace(CATS, gold=gold, candidates=("pink", "pink", "red", "blue")))
    assert texts(pairs) == [("red", "blue")]


def test_metrics_count_pairs_and_shares_of_right_candidates(tmp_path: Path) -> None:
    other = replace(
        CATS,
        id="other",
        domain="general",
        modality="text",
        media=(),
        candidates=("3", "4", "5", "6"),
    )
    metrics, _ = judge(tmp_path, CATS, other)
    assert metrics["pairs/all"] == 4
    assert (metrics["pairs/modality/image"], metrics["pairs/domain/general"]) == (2, 2)
    assert metrics["right/reasoning"] == 0.5  # 3 of 6
    assert metrics["right/general"] == 0.25  # 1 of 4
    assert (metrics["llm/requests"], metrics["llm/cost"]) == (0, 0)


def test_the_same_seed_gives_the_same_pairs_and_another_breaks_ties_otherwise(
    tmp_path: Path,
) -> None:
    even = replace(CATS, candidates=tuple(map(str, range(1, 20))))
    first, again = (judge(tmp_path, even)[1] for _ in range(2))
    assert first == again
    others = [
        texts(judge(tmp_path, even, params=JudgeParams(seed=seed))[1]) for seed in range(1, 5)
    ]
    assert any(pairs != texts(first) for pairs in others)


def test_the_folder_of_verdicts_always_exists_and_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "verdicts").mkdir()
    (tmp_path / "verdicts" / "paid.jsonl").write_text("")
    judge(tmp_path, CATS)
    assert [path.name for path in (tmp_path / "verdicts").iterdir()] == ["paid.jsonl"]
