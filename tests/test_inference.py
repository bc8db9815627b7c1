"""Scoring and sampling: the prompt once, the picture once, and the same numbers as one by one."""

from pathlib import Path

import pytest
import tiny
import torch

from ixc.inference import generate, rewards_of, sample_ids, score
from ixc.model import Tree, collate
from ixc.samples import Sample

END = tiny.processor().ids["turn_end"]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Prompts of many lengths: text, one picture, two pictures."""
    red, blue = tiny.picture(tmp_path, "red"), tiny.picture(tmp_path, "blue", (90, 30))
    return [
        tiny.sample("Hello, who are you, and why?"),
        tiny.sample("What is it?", [red]),
        tiny.sample("Hi."),
        tiny.sample("Image1 <ImageHere>; Image2 <ImageHere>; which is wider?", [red, blue]),
        tiny.sample("Again: what is it?", [red]),
    ]


ANSWERS = (("Yes.", "No, never.", "x"), ("A red square.",), ("", "Hm."), ("The second one.", "The"), ("Red",))


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_an_answer_scores_alone_as_in_a_batch_of_mixed_prompts(pooling: str, samples: list[Sample], tmp_path: Path):
    model = tiny.reward(pooling=pooling)
    together = score(model, tiny.features(model, tmp_path), samples, ANSWERS, batch_size=5)
    assert [len(row) for row in together] == [3, 1, 2, 2, 1]
    for sample, answers, rewards in zip(samples, ANSWERS, together, strict=True):
        for answer, reward in zip(answers, rewards, strict=True):
            [[alone]] = score(model, tiny.features(model, tmp_path), [sample], [[answer]], batch_size=1)
            assert reward == pytest.approx(alone, abs=1e-5)


def test_rewards_are_the_plain_forward_pass(samples: list[Sample], tmp_path: Path):
    model, processor = tiny.reward(), tiny.processor()
    [[got]] = score(model, tiny.features(model, tmp_path), samples[1:2], [["A red square."]], batch_size=1)
    picture = processor.load(tmp_path, samples[1].media[0], processor.hd_num)
    with torch.no_grad():
        [tokens] = model.encode_pictures([picture])
        ids = processor.prompt(samples[1].prompt, [processor.num_tokens(picture)])
        ids = processor.scored(ids + processor.answer("A red square."))
        wanted = model(torch.tensor([ids]), features=tokens).logits[0, 0]
    assert got == pytest.approx(wanted.item(), abs=1e-5)


def test_each_picture_is_encoded_once(samples: list[Sample], tmp_path: Path):
    model = tiny.reward()
    features = tiny.features(model, tmp_path)
    for _ in range(2):
        score(model, features, samples, ANSWERS, batch_size=2)
    generate(tiny.causal(), features, samples, 3, 1.0, 2, 2, seed=0)
    assert features.num_encoded == 2


def test_gradients_reach_the_language_model_and_not_the_frozen_tower(samples: list[Sample], tmp_path: Path):
    model = tiny.reward()
    model.freeze_vision()
    features = tiny.features(model, tmp_path)
    features.prepare(samples)
    tree = Tree(features.prompt(samples[1]), [[30, 31], [32]])
    rewards_of(model, features, samples[1:2], collate([tree])).sum().backward()
    assert model.score.weight.grad is not None
    lora = model.get_parameter("model.layers.0.attention.wqkv.Plora_B.weight").grad
    assert lora is not None and lora.abs().sum() > 0
    assert all(p.grad is None for p in model.vit.parameters())


def test_equal_seeds_give_equal_answers_and_another_seed_others(samples: list[Sample], tmp_path: Path):
    model = tiny.causal()

    def said(seed: int) -> list[list[list[int]]]:
        rows = generate(model, tiny.features(model, tmp_path), samples, 3, 1.0, 6, 2, seed)
        return [[answer.ids for answer in row] for row in rows]

    first = said(0)
    assert first == said(0) != said(1)
    assert [len(row) for row in first] == [3] * 5
    assert len({tuple(ids) for row in first for ids in row}) > 10


@torch.no_grad()
def test_a_cold_model_says_what_the_full_forward_pass_finds_likeliest(samples: list[Sample], tmp_path: Path):
    model, features = tiny.causal(), tiny.features(tiny.causal(), tmp_path)
    rows = generate(model, features, samples, 2, 1e-4, 5, 5, seed=0)
    for sample, row in zip(samples, rows, strict=True):
        ids = features.prompt(sample)
        for _ in range(5):
            logits = model(torch.tensor([ids]), features=features.together([sample])).logits
            ids = [*ids, int(logits[0, -1].argmax())]
            if ids[-1] == END:
                break
        wanted = ids[len(features.prompt(sample)) :]
        assert [answer.ids for answer in row] == [wanted, wanted]


def test_an_answer_stops_at_the_end_of_its_turn(samples: list[Sample], tmp_path: Path):
    model = tiny.causal()
    rows = generate(model, tiny.features(model, tmp_path), samples, 40, 3.0, 30, 5, seed=0)
    answers = [answer for row in rows for answer in row]
    assert all(END not in answer.ids[:-1] for answer in answers)
    assert all(len(answer.ids) == 30 for answer in answers if answer.ids[-1] != END)
    ended = [answer for answer in answers if answer.ids[-1] == END]
    assert 5 < len(ended) < len(answers)
    assert all(answer.text == tiny.processor().decode(answer.ids[:-1]).strip() for answer in ended)


@pytest.mark.parametrize("last", [0, 2])
def test_a_forced_end_ends_an_answer(last: int, samples: list[Sample], tmp_path: Path, monkeypatch):
    """The model is made to say `x` until step `last`, then the end of the turn."""
    model, features = tiny.causal(), tiny.features(tiny.causal(), tmp_path)
    features.prepare(samples)
    wanted, x = iter([*[40] * last, END, *[41] * 9]), torch.zeros(280)
    monkeypatch.setattr(
        model.output, "forward", lambda h: x.index_fill(0, torch.tensor(next(wanted)), 1e4).expand(len(h), -1)
    )
    ids = sample_ids(model, features, samples, 2, 1.0, 8, torch.Generator())
    assert ids == [[[*[40] * last, END]] * 2] * 5
    assert next(wanted) == 41  # nothing was computed after the last answer had ended


def test_no_samples_is_no_work(tmp_path: Path):
    model = tiny.reward()
    assert score(model, tiny.features(model, tmp_path), [], [], batch_size=4) == []
