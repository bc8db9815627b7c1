"""Every family of models passes the same tests: scoring, sampling, training, the image once, folders.

Whoever adds a family adds a line to `FAMILIES`; see docs/adding-a-model.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import toy_vlm

from ixc import models
from ixc.data.samples import Sample
from ixc.engine.checkpoints import Checkpoints
from ixc.engine.lora import add_lora, merge_lora
from ixc.engine.optim import Optimizer
from ixc.engine.sampling import answer_logits, generate
from ixc.engine.scoring import rewards_of, score, scored_group
from ixc.engine.towers import Reader, UnequalModels, refuse_unequal
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import ignore
from ixc.models.base import BadArchitecture, PolicyModel, Pooling, Processor, ScoringModel
from ixc.packing.layout import PrefixGroup, Prompt, collate
from ixc.params import TrainPPOParams, TrainRMParams
from ixc.rl.rollouts import DomainNorm, Models, prompts_of, roll_out
from ixc.stages import train_rm
from ixc.stages.train_ppo import learn


@dataclass(frozen=True)
class Kit:
    """A family's models of a few thousand random weights."""

    policy: Callable[[], PolicyModel]
    scorer: Callable[[], ScoringModel]
    processor: Callable[[], Processor]


def toy(kind: type[toy_vlm.ToyModel], packs: bool) -> Callable[[], Any]:
    """A toy, always of the same weights."""

    def make() -> toy_vlm.ToyModel:
        torch.manual_seed(0)
        model = kind().eval()
        model.packs = packs
        return model

    return make


FAMILIES = {
    "ixc25": Kit(tiny.causal, tiny.reward, tiny.processor),
    "toy": Kit(toy(toy_vlm.ToyPolicy, True), toy(toy_vlm.ToyScorer, True), toy_vlm.ToyProcessor),
    "toy, row by row": Kit(
        toy(toy_vlm.ToyPolicy, False), toy(toy_vlm.ToyScorer, False), toy_vlm.ToyProcessor
    ),
}


@pytest.fixture(params=FAMILIES)
def kit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kit:
    monkeypatch.setitem(models.FAMILIES, "toy", "toy_vlm")
    return FAMILIES[request.param]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Prompts of many lengths: text, one image, two images."""
    red, blue = tiny.image(tmp_path, "red"), tiny.image(tmp_path, "blue", (90, 60))
    return [
        tiny.sample("Hello, who are you?"),
        tiny.sample("What is it?", [red]),
        tiny.sample("Hi."),
        tiny.sample("Image1 <ImageHere>; Image2 <ImageHere>; which is wider?", [red, blue]),
        tiny.sample("Again: what is it?", [blue]),
    ]


ANSWERS = (("Yes.", "No.", "x"), ("Red.",), ("", "Hm."), ("The second.", "The"), ("Blue",))


def cache(kit: Kit, model: PolicyModel | ScoringModel, root: Path) -> VisionCache:
    return VisionCache(model, kit.processor(), root)


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_an_answer_scores_alone_as_among_others(
    kit: Kit, pooling: Pooling, samples: list[Sample], tmp_path: Path
):
    model = kit.scorer()
    model.pooling = pooling
    together = score(model, cache(kit, model, tmp_path), samples, ANSWERS, batch_size=5)
    alone = []
    for sample, answers in zip(samples, ANSWERS, strict=True):
        for answer in answers:
            alone += score(model, cache(kit, model, tmp_path), [sample], [[answer]], 1)
    rewards = [reward for row in together for reward in row]
    assert rewards == pytest.approx([reward for [reward] in alone], abs=1e-5)
    assert max(rewards) - min(rewards) > 0.1  # they can be told apart


def test_gradients_are_those_of_answers_read_alone(kit: Kit, samples: list[Sample], tmp_path: Path):
    model = kit.scorer()
    model.freeze_vision()
    vision_cache = cache(kit, model, tmp_path)
    chosen = [samples[0], samples[3]]
    vision_cache.prepare(chosen)
    answers = [ANSWERS[0], ANSWERS[3]]

    def gradients(groups: list[tuple[Sample, tuple[str, ...]]]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for sample, texts in groups:
            batch = collate([scored_group(vision_cache, sample, texts)])
            rewards_of(model, vision_cache, [sample], batch).tanh().sum().backward()
        named = model.named_parameters()
        return {name: weights.grad for name, weights in named if weights.grad is not None}

    together = gradients(list(zip(chosen, answers, strict=True)))
    together = {name: gradient.clone() for name, gradient in together.items()}
    alone = gradients(
        [(s, (text,)) for s, texts in zip(chosen, answers, strict=True) for text in texts]
    )
    assert together.keys() == alone.keys() and len(together) > 3
    assert not {name for name in model.tower_weights() if name in together}
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-5)


def test_an_image_is_encoded_once_and_counts_by_its_header(
    kit: Kit, samples: list[Sample], tmp_path: Path
):
    model = kit.scorer()
    vision_cache = cache(kit, model, tmp_path)
    prompts = [vision_cache.prompt(sample) for sample in samples]
    for _ in range(2):
        score(model, vision_cache, samples, ANSWERS, batch_size=2)
    assert vision_cache.num_encoded == 2
    assert prompts == [vision_cache.prompt(sample) for sample in samples]
    [features] = vision_cache.of([samples[4]])
    assert features.shape == (
        vision_cache.sizes[vision_cache.key(vision_cache.image_refs([samples[4]])[0])].tokens,
        model.feature_width,
    )


@torch.no_grad()
def test_a_cold_model_says_what_reading_everything_anew_finds_likeliest(
    kit: Kit, samples: list[Sample], tmp_path: Path
):
    model = kit.policy()
    vision_cache = cache(kit, model, tmp_path)
    rows = generate(model, vision_cache, samples, 2, 1e-4, 5, 5, seed=0)
    for sample, row in zip(samples, rows, strict=True):
        prompt, ids = vision_cache.prompt(sample), []
        while len(ids) < 5 and not (ids and ids[-1] in model.end_ids):
            batch = collate([PrefixGroup(prompt, [ids] if ids else [])])
            hidden = model.hidden_states(batch, vision_cache.concat_features([sample]))
            ids = [*ids, int(answer_logits(model, hidden[-1:], 1.0).argmax())]
        assert [answer.ids for answer in row] == [ids, ids]


def test_equal_seeds_give_equal_answers_and_none_holds_a_control_token(
    kit: Kit, samples: list[Sample], tmp_path: Path
):
    model = kit.policy()

    def sampled(seed: int) -> list[list[list[int]]]:
        rows = generate(model, cache(kit, model, tmp_path), samples, 20, 2.0, 6, 2, seed)
        return [[answer.ids for answer in row] for row in rows]

    first = sampled(0)
    assert first == sampled(0) != sampled(1)
    answers = [ids for row in first for ids in row]
    assert not set(model.unsampled) & {id_ for ids in answers for id_ in ids}
    assert all(not model.end_ids & set(ids[:-1]) for ids in answers)
    assert all(len(ids) == 6 for ids in answers if ids[-1] not in model.end_ids)


def test_a_folder_gives_the_same_scores_and_answers(
    kit: Kit, samples: list[Sample], tmp_path: Path
):
    policy, scorer, processor = kit.policy(), kit.scorer(), kit.processor()
    models.save(policy, processor, tmp_path / "chat")
    models.save(scorer, processor, tmp_path / "reward")
    chat, chats_processor = models.load_policy(tmp_path / "chat")
    reward, rewards_processor = models.load_scorer(tmp_path / "reward")
    for model in (chat, reward):
        if hasattr(model, "packs"):
            model.packs = policy.packs
    assert chats_processor.options == rewards_processor.options == processor.options
    pairs = ((policy, processor), (chat, chats_processor))
    answers = [generate(m, VisionCache(m, p, tmp_path), samples, 2, 1.0, 4, 5, 0) for m, p in pairs]
    assert answers[0] == answers[1]
    pairs = ((scorer, processor), (reward, rewards_processor))
    scores = [score(m, VisionCache(m, p, tmp_path), samples, ANSWERS, 5) for m, p in pairs]
    assert scores[0] == scores[1]
    torch.manual_seed(0)
    new, _ = models.scorer_from(tmp_path / "chat")
    assert new.decoder_module().state_dict().keys() == chat.decoder_module().state_dict().keys()


def test_models_of_other_towers_are_not_mixed(kit: Kit, tmp_path: Path):
    one, other, processor = kit.policy(), kit.policy(), kit.processor()
    refuse_unequal(Reader(Path("a"), one, processor), Reader(Path("b"), other, processor))
    with torch.no_grad():
        next(iter(other.tower_weights().values())).add_(1)
    with pytest.raises(UnequalModels, match="b: its vision tower is not that of a"):
        refuse_unequal(Reader(Path("a"), one, processor), Reader(Path("b"), other, processor))


def test_an_image_may_take_fewer_positions_than_tokens(tmp_path: Path):
    wide = tiny.sample("What?", [tiny.image(tmp_path, "blue", (56, 56))])
    vision_cache = VisionCache(toy_vlm.ToyPolicy(), toy_vlm.ToyProcessor(), tmp_path)
    prompt = vision_cache.prompt(wide)
    assert prompt.ids[:5] == [toy_vlm.BOS, *[toy_vlm.IMAGE] * 4]
    assert [list(axis[:6]) for axis in prompt.positions] == [
        [0, 1, 1, 1, 1, 3],  # frame
        [0, 1, 1, 2, 2, 3],  # row
        [0, 1, 2, 1, 2, 3],  # column; text goes on after the largest
    ]
    assert prompt.next_position == len(prompt) - 2
    batch = collate([PrefixGroup(prompt, [[7, 8]]), PrefixGroup(Prompt.counted([1, 2]), [[9]])])
    assert batch.position_ids.shape == (3, len(prompt) + 5)
    assert batch.position_ids[:, -5:].tolist() == [[len(prompt) - 2, len(prompt) - 1, 0, 1, 2]] * 3


def test_what_no_family_can_build_is_named():
    with pytest.raises(BadArchitecture, match="family: missing; one of ixc25"):
        models.build({}, 4, [])
    with pytest.raises(BadArchitecture, match="family: 'gpt': unknown; one of ixc25"):
        models.build({"family": "gpt"}, 4, [])
    with pytest.raises(BadArchitecture, match=r"hidden_size: missing(.|\n)*heads: unknown key"):
        models.build({"family": "ixc25", "heads": 3}, 4, [])
    with pytest.raises(BadArchitecture, match="vocab_size: 3: Input should be greater than 300"):
        models.build({"family": "ixc25", "vocab_size": 3}, 4, [])


def pairs(root: Path) -> list[Sample]:
    """`good` beats `bad` in text; about an image, its colour beats the other one."""
    media = {colour: tiny.image(root, colour) for colour in ("red", "blue")}
    samples = [tiny.pair(f"Number {i}?", "good", "bad") for i in range(8)]
    for i in range(4):
        for colour, other in (("red", "blue"), ("blue", "red")):
            samples.append(tiny.pair(f"Colour {i}?", colour, other, [media[colour]]))
    return samples


def test_a_reward_model_learns_and_its_tower_stays(kit: Kit, tmp_path: Path):
    model, samples = kit.scorer(), pairs(tmp_path)
    model.freeze_vision()
    tower = {name: weights.clone() for name, weights in model.tower_weights().items()}
    params = TrainRMParams(epochs=15, batch_size=8, learning_rate=2e-2)
    vision_cache, checkpoints = cache(kit, model, tmp_path), Checkpoints(tmp_path / "state", {})
    history, _ = train_rm.train(params, model, vision_cache, samples, ignore, checkpoints)
    assert history[-1]["loss"] < 0.3 < history[0]["loss"]
    assert history[-1]["accuracy"] == 1.0
    for name, weights in model.tower_weights().items():
        assert torch.equal(weights, tower[name])


def test_adapters_learn_and_leave_plain_weights(kit: Kit, tmp_path: Path):
    model, names = kit.scorer(), kit.scorer().state_dict().keys()
    model.freeze_vision()
    add_lora(model, rank=2, alpha=4.0)
    params = TrainRMParams(epochs=2, batch_size=8, learning_rate=1e-2)
    vision_cache, checkpoints = cache(kit, model, tmp_path), Checkpoints(tmp_path / "state", {})
    before = [layer.weight.clone() for layer in model.lora_layers()]
    train_rm.train(params, model, vision_cache, pairs(tmp_path), ignore, checkpoints)
    merge_lora(model)
    assert model.state_dict().keys() == names
    for layer, weight in zip(model.lora_layers(), before, strict=True):
        assert not torch.equal(layer.weight, weight)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_muon_moves_its_matrices_also_where_layers_are_computed_again(
    kit: Kit, checkpointed: bool, tmp_path: Path
):
    model = kit.scorer()
    model.freeze_vision()
    if checkpointed:
        model.gradient_checkpointing_enable()
    params = TrainRMParams(epochs=1, batch_size=8, learning_rate=1e-2, optimizer="muon")
    vision_cache, checkpoints = cache(kit, model, tmp_path), Checkpoints(tmp_path / "state", {})
    before = [matrix.clone() for matrix in model.muon_matrices()]
    train_rm.train(params, model, vision_cache, pairs(tmp_path), ignore, checkpoints)
    moved = zip(model.muon_matrices(), before, strict=True)
    assert before and not any(torch.equal(matrix, start) for matrix, start in moved)


def test_ppo_learns_from_what_was_sampled_and_only_the_trained_weights_move(
    kit: Kit, samples: list[Sample], tmp_path: Path
):
    params = TrainPPOParams(batch_size=20, minibatch_size=20, max_new_tokens=4)
    learning = Models(kit.policy(), kit.policy(), kit.scorer(), kit.scorer())
    for trained in (learning.policy, learning.critic):
        trained.freeze_vision()
    vision_cache = cache(kit, learning.reference, tmp_path)
    vision_cache.prepare(samples)
    questions = prompts_of(vision_cache, samples)
    rollouts = roll_out(params, learning, vision_cache, questions, DomainNorm(5.0), step=0)
    for rollout in rollouts:  # the reference has the same weights
        torch.testing.assert_close(rollout.log_probs, rollout.reference_log_probs)
        assert len(rollout.log_probs) == sum(map(len, rollout.group.responses))

    actor = Optimizer(learning.policy.parameters(), 1e-2, 4)
    critic = Optimizer(learning.critic.parameters(), 1e-2, 4)
    numbers = learn(params, learning, vision_cache, actor, critic, rollouts, learn_policy=True)
    assert numbers["clip_fraction"] == 0 and numbers["grad_norm"] > 0
    pairs_of_models = (
        (learning.policy, learning.reference),
        (learning.critic, learning.reward),
    )
    for trained, frozen in pairs_of_models:
        tower, same = trained.tower_weights(), frozen.tower_weights()
        assert all(torch.equal(tower[name], same[name]) for name in tower)
        moved = zip(trained.lora_layers(), frozen.lora_layers(), strict=True)
        assert not any(torch.equal(mine.weight, yours.weight) for mine, yours in moved)
