"""Scoring and sampling: the prompt once, the image once, and the same numbers as one by one."""

from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from ixc.data.samples import Sample
from ixc.engine.batching import OverBudget, batched
from ixc.engine.sampling import generate, sample_ids
from ixc.engine.scoring import rewards_of, score
from ixc.models.ixc25 import IXCForCausalLM, IXCPreTrainedModel
from ixc.models.ixc25.folder import load, save
from ixc.packing.layout import PrefixGroup, collate

END, EOS = (tiny.processor().ids[name] for name in ("turn_end", "eos"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Prompts of many lengths: text, one image, two images."""
    red, blue = tiny.image(tmp_path, "red"), tiny.image(tmp_path, "blue", (90, 30))
    return [
        tiny.sample("Hello, who are you, and why?"),
        tiny.sample("What is it?", [red]),
        tiny.sample("Hi."),
        tiny.sample("Image1 <ImageHere>; Image2 <ImageHere>; which is wider?", [red, blue]),
        tiny.sample("Again: what is it?", [red]),
    ]


ANSWERS = (
    ("Yes.", "No, never.", "x"),
    ("A red square.",),
    ("", "Hm."),
    ("The second one.", "The"),
    ("Red",),
)


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_an_answer_scores_alone_as_in_a_batch_of_mixed_prompts(
    pooling: str, samples: list[Sample], tmp_path: Path
):
    model = tiny.reward(pooling=pooling)
    together = score(model, tiny.vision_cache(model, tmp_path), samples, ANSWERS, batch_size=5)
    assert [len(row) for row in together] == [3, 1, 2, 2, 1]
    for sample, answers, rewards in zip(samples, ANSWERS, together, strict=True):
        for answer, reward in zip(answers, rewards, strict=True):
            [[alone]] = score(
                model, tiny.vision_cache(model, tmp_path), [sample], [[answer]], batch_size=1
            )
            assert reward == pytest.approx(alone, abs=1e-5)


def test_rewards_are_the_plain_forward_pass(samples: list[Sample], tmp_path: Path):
    model, processor = tiny.reward(), tiny.processor()
    [[got]] = score(
        model, tiny.vision_cache(model, tmp_path), samples[1:2], [["A red square."]], batch_size=1
    )
    image = processor.load(tmp_path, samples[1].media[0], processor.hd_num)
    with torch.no_grad():
        [tokens] = model.encode_images([image])
        ids = processor.prompt(samples[1].prompt, [processor.num_tokens(image)])
        ids = processor.scored(ids + processor.answer("A red square."))
        wanted = model(torch.tensor([ids]), image_features=tokens).logits[0, 0]
    assert got == pytest.approx(wanted.item(), abs=1e-5)


def test_each_image_is_encoded_once(samples: list[Sample], tmp_path: Path):
    model = tiny.reward()
    vision_cache = tiny.vision_cache(model, tmp_path)
    for _ in range(2):
        score(model, vision_cache, samples, ANSWERS, batch_size=2)
    generate(tiny.causal(), vision_cache, samples, 3, 1.0, 2, 2, seed=0)
    assert vision_cache.num_encoded == 2


def test_gradients_reach_the_language_model_and_not_the_frozen_tower(
    samples: list[Sample], tmp_path: Path
):
    model = tiny.reward()
    model.freeze_vision()
    vision_cache = tiny.vision_cache(model, tmp_path)
    vision_cache.prepare(samples)
    group = PrefixGroup(vision_cache.prompt(samples[1]), [[30, 31], [32]])
    rewards_of(model, vision_cache, samples[1:2], collate([group])).sum().backward()
    assert model.score.weight.grad is not None
    lora = model.get_parameter("model.layers.0.attention.wqkv.Plora_B.weight").grad
    assert lora is not None and lora.abs().sum() > 0
    assert all(p.grad is None for p in model.vit.parameters())


def test_equal_seeds_give_equal_answers_and_another_seed_others(
    samples: list[Sample], tmp_path: Path
):
    model = tiny.causal()

    def said(seed: int) -> list[list[list[int]]]:
        rows = generate(model, tiny.vision_cache(model, tmp_path), samples, 3, 1.0, 6, 2, seed)
        return [[answer.ids for answer in row] for row in rows]

    first = said(0)
    assert first == said(0) != said(1)
    assert [len(row) for row in first] == [3] * 5
    assert len({tuple(ids) for row in first for ids in row}) > 10


@torch.no_grad()
def test_a_cold_model_says_what_the_full_forward_pass_finds_likeliest(
    samples: list[Sample], tmp_path: Path
):
    model, vision_cache = tiny.causal(), tiny.vision_cache(tiny.causal(), tmp_path)
    rows = generate(model, vision_cache, samples, 2, 1e-4, 5, 5, seed=0)
    for sample, row in zip(samples, rows, strict=True):
        ids = vision_cache.prompt(sample).ids
        for _ in range(5):
            logits = model(
                torch.tensor([ids]), image_features=vision_cache.concat_features([sample])
            ).logits
            logits[:, :, model.unsampled] = -torch.inf
            ids = [*ids, int(logits[0, -1].argmax())]
            if ids[-1] in (END, EOS):
                break
        wanted = ids[len(vision_cache.prompt(sample)) :]
        assert [answer.ids for answer in row] == [wanted, wanted]


def test_an_answer_stops_at_the_end_of_its_turn(samples: list[Sample], tmp_path: Path):
    model = tiny.causal()
    rows = generate(model, tiny.vision_cache(model, tmp_path), samples, 40, 3.0, 30, 5, seed=0)
    answers = [answer for row in rows for answer in row]
    assert all(not {END, EOS} & set(answer.ids[:-1]) for answer in answers)
    assert all(len(answer.ids) == 30 for answer in answers if answer.ids[-1] not in (END, EOS))
    ended = [answer for answer in answers if answer.ids[-1] in (END, EOS)]
    assert 5 < len(ended) < len(answers)
    assert {answer.ids[-1] for answer in ended} == {END, EOS}
    assert all(answer.text == tiny.processor().decode(answer.ids[:-1]).strip() for answer in ended)


def test_no_answer_contains_a_control_token(samples: list[Sample], tmp_path: Path):
    save(
        tiny.causal(vocab_size=300), tiny.processor(), tmp_path / "chat"
    )  # more ids than the tokenizer has tokens
    model, processor = load(tmp_path / "chat", IXCForCausalLM)
    size = processor.backend.get_vocab_size()
    control = {id_ for name, id_ in processor.ids.items() if name not in ("eos", "turn_end")}
    assert set(model.unsampled) == control | set(range(size, 300)) and size < 300
    with torch.no_grad():
        model.output.weight[model.unsampled] *= 20  # it wants to say them
    vision_cache = tiny.vision_cache(model, tmp_path)
    rows = generate(model, vision_cache, samples, 40, 3.0, 30, 5, seed=0)
    assert not {id_ for row in rows for answer in row for id_ in answer.ids} & set(model.unsampled)
    asked = processor([{"role": "user", "content": "Hi."}], for_reward=False)
    said = model.generate(**asked, max_new_tokens=20, do_sample=True)[
        0, asked["input_ids"].shape[1] :
    ].tolist()
    assert said and not set(said) & set(model.unsampled)
    again = IXCForCausalLM.from_pretrained(
        tmp_path / "chat"
    )  # a folder says so to Transformers too
    assert again.unsampled == model.unsampled


def test_a_model_that_comes_from_no_folder_says_no_control_token_either(
    samples: list[Sample], tmp_path: Path
):
    model, ids = tiny.causal(), tiny.processor().ids
    control = [ids[name] for name in ("unk", "bos", "turn_start", "reward", "image")]
    with torch.no_grad():
        model.output.weight[control] *= 20
    rows = generate(model, tiny.vision_cache(model, tmp_path), samples, 40, 3.0, 30, 5, seed=0)
    assert not {id_ for row in rows for answer in row for id_ in answer.ids} & set(control)


@pytest.mark.parametrize("end", ["turn_end", "eos"])
@pytest.mark.parametrize("last", [0, 2])
def test_a_forced_end_ends_an_answer(
    last: int, end: str, samples: list[Sample], tmp_path: Path, monkeypatch
):
    """The model is made to say `x` until step `last`, then that the answer ends."""
    end_id = tiny.processor().ids[end]
    model, vision_cache = tiny.causal(), tiny.vision_cache(tiny.causal(), tmp_path)
    vision_cache.prepare(samples)
    wanted, x = iter([*[40] * last, end_id, *[41] * 9]), torch.zeros(280)
    monkeypatch.setattr(
        model.output,
        "forward",
        lambda h: x.index_fill(0, torch.tensor(next(wanted)), 1e4).expand(len(h), -1),
    )
    ids = sample_ids(model, vision_cache, samples, 2, 1.0, 8, torch.Generator())
    assert ids == [[[*[40] * last, end_id]] * 2] * 5
    assert next(wanted) == 41  # nothing was computed after the last answer had ended


def test_no_samples_is_no_work(tmp_path: Path):
    model = tiny.reward()
    assert score(model, tiny.vision_cache(model, tmp_path), [], [], batch_size=4) == []


ROWS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=40)


@given(ROWS, st.integers(1, 9), st.integers(100, 300))
def test_batches_have_every_row_once_and_keep_to_both_limits(
    rows: list[tuple[int, int]], size: int, budget: int
):
    prompts, tokens = [prompt for prompt, _ in rows], [prompt + answers for prompt, answers in rows]
    batches = batched(prompts, tokens, [""] * len(rows), size, budget)
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(rows)), key=prompts.__getitem__)
    assert all(len(batch) <= size and sum(tokens[i] for i in batch) <= budget for batch in batches)
    if sum(tokens) <= budget:  # a budget parts only what exceeds it
        assert batches == [order[i : i + size] for i in range(0, len(order), size)]


def tokens_of_passes(model: IXCPreTrainedModel) -> list[tuple[int, ...]]:
    """Rows and columns of every forward pass from now on."""
    shapes: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda _, given, named: shapes.append(
            tuple((given[0] if given else named["input_ids"]).shape)
        ),
        with_kwargs=True,
    )
    return shapes


@pytest.mark.parametrize("budget", [90, 150, 400])
def test_no_pass_of_scoring_exceeds_its_tokens_and_no_score_depends_on_it(
    budget: int, samples: list[Sample], tmp_path: Path
):
    model = tiny.reward()
    wanted = score(model, tiny.vision_cache(model, tmp_path), samples, ANSWERS, batch_size=5)
    shapes = tokens_of_passes(model)
    got = score(model, tiny.vision_cache(model, tmp_path), samples, ANSWERS, 5, budget)
    assert max(rows * columns for rows, columns in shapes) <= budget
    for row, rewards in zip(got, wanted, strict=True):
        assert row == pytest.approx(rewards, abs=1e-5)


def test_answers_that_do_not_fit_beside_each_other_are_read_apart_and_one_too_long_is_named(
    samples: list[Sample], tmp_path: Path
):
    model, answers = tiny.reward(), [["a" * 20, "b" * 20, "c"]]
    vision_cache, shapes = tiny.vision_cache(model, tmp_path), tokens_of_passes(model)
    [wanted] = score(model, vision_cache, samples[:1], answers, 1)
    [[_, whole]] = shapes
    [got] = score(model, vision_cache, samples[:1], answers, 1, max_tokens_per_microbatch=whole - 1)
    assert got == pytest.approx(wanted, abs=1e-5) and len(shapes) == 3
    with pytest.raises(
        OverBudget,
        match=rf"{samples[0].id[:5]}.*: \d+ tokens, more than max_tokens_per_microbatch 30",
    ):
        score(model, vision_cache, samples[:1], answers, 1, max_tokens_per_microbatch=30)


def test_what_is_sampled_together_stays_within_its_tokens(samples: list[Sample], tmp_path: Path):
    model, vision_cache = tiny.causal(), tiny.vision_cache(tiny.causal(), tmp_path)
    prompts = [len(vision_cache.prompt(sample)) for sample in samples]
    shapes, budget = tokens_of_passes(model), max(prompts) + 3 * 6
    rows = generate(
        model, vision_cache, samples, 3, 1.0, 6, 5, seed=0, max_tokens_per_microbatch=budget
    )
    assert [len(row) for row in rows] == [3] * 5
    read = [
        (columns, rows)
        for (_, columns), (rows, one) in pairwise(shapes)
        if columns > 1 and one == 1
    ]
    assert len(read) > 1 and sum(columns for columns, _ in read) == sum(prompts)
    assert max(columns + 6 * rows for columns, rows in read) == budget
    with pytest.raises(OverBudget, match="more than max_tokens_per_microbatch"):
        generate(
            model, vision_cache, samples, 3, 1.0, 6, 5, seed=0, max_tokens_per_microbatch=budget - 1
        )
