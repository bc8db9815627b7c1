"""PPO: credit by hand, rewards by domain, what is frozen, one pass or many, and a toy reward that rises."""

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ixc.data.samples import Sample, write_samples
from ixc.engine.batching import OverBudget
from ixc.engine.checkpoints import Checkpoints, History, OtherRun
from ixc.engine.optim import Optimizer, rate
from ixc.engine.sampling import generate
from ixc.engine.towers import UnequalModels
from ixc.engine.vision_cache import VisionCache
from ixc.metrics import Log, ignore
from ixc.models.ixc25 import IXCForCausalLM, IXCForRewardModel, IXCProcessor
from ixc.models.ixc25.folder import save
from ixc.models.ixc25.processing import train_tokenizer
from ixc.packing.layout import PrefixGroup, collate
from ixc.params import LoRAParams, TrainPPOParams, VisionCacheParams
from ixc.rl.rollouts import (
    DomainNorm,
    MicroBatch,
    Models,
    Question,
    Rollout,
    compute_advantages,
    judge,
    prompts_of,
    punish_endless,
    roll_out,
    token_log_probs,
    with_images,
)
from ixc.stages import train_ppo
from ixc.stages.train_ppo import compare, divergence, learn, ready, run

END = tiny.processor().ids["turn_end"]
SMALL = TrainPPOParams(
    steps=1, batch_size=8, minibatch_size=8, max_new_tokens=4, critic_warmup_steps=0
)


def train(
    params: TrainPPOParams,
    models: Models,
    vision_cache: VisionCache,
    samples: list[Sample],
    rng: random.Random,
    log: Log = ignore,
) -> History:
    """A training without states."""
    checkpoints = Checkpoints(vision_cache.root / "state", {})
    return train_ppo.train(params, models, vision_cache, samples, rng, log, checkpoints)


def test_credit_by_hand():
    # two answers, of two tokens and of one; gamma 0.5, lambda 0.5, 0.1 per nat of divergence
    # rewards: -0.1 * 1 = -0.1, -0.1 * -2 + 3 = 3.2 | -0.1 * 0 + 1 = 1
    # A_1 = 3.2 - 2 = 1.2;  A_0 = -0.1 + 0.5 * 2 - 1 + 0.25 * 1.2 = 0.2 | 1 - 0.5 = 0.5
    # returns, A + V: 1.2, 3.2 | 1
    params = TrainPPOParams(gamma=0.5, lam=0.5, kl_coef=0.1)
    advantages, returns = compute_advantages(
        params,
        lengths=[2, 1],
        divergence=torch.tensor([1.0, -2.0, 0.0]),
        values=torch.tensor([1.0, 2.0, 0.5]),
        normalized=torch.tensor([3.0, 1.0]),
    )
    torch.testing.assert_close(advantages, torch.tensor([0.2, 1.2, 0.5]))
    torch.testing.assert_close(returns, torch.tensor([1.2, 3.2, 1.0]))


def test_credit_does_not_flow_between_trees():
    params, lengths = TrainPPOParams(), [2, 1, 1, 3]
    nats, values = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    normalized = torch.tensor([1.0, -2.0, 0.5, 3.0])
    together = compute_advantages(params, lengths, nats, values, normalized)
    first = compute_advantages(params, lengths[:2], nats[:3], values[:3], normalized[:2])
    second = compute_advantages(params, lengths[2:], nats[3:], values[3:], normalized[2:])
    for got, parts in zip(together, zip(first, second, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(parts))


def test_rewards_are_standardised_within_their_domain():
    norm = DomainNorm(clip=5.0)
    # general: mean 2, deviation 1; safety: mean 100, deviation 10
    got = norm(["general", "safety"], torch.tensor([[1.0, 3.0], [90.0, 110.0]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_the_moments_of_a_domain_follow_its_batches_slowly():
    norm = DomainNorm(clip=50.0, decay=0.9)
    norm(["general"], torch.tensor([[-1.0, 1.0]]))
    # mean 0.9 * 0 + 0.1 * 10 = 1; square 0.9 * 1 + 0.1 * 100 = 10.9; deviation sqrt(9.9)
    got = norm(["general"], torch.tensor([[10.0, 10.0]]))
    torch.testing.assert_close(got, torch.full((1, 2), 9 / 9.9**0.5))


def test_standardised_rewards_are_clipped_and_equal_ones_are_no_news():
    norm = DomainNorm(clip=1.5)
    got = norm(["general"] * 5, torch.tensor([[0.0]] * 4 + [[100.0]]))
    # mean 20, deviation 40: -0.5 and 2, which is clipped
    torch.testing.assert_close(got, torch.tensor([[-0.5]] * 4 + [[1.5]]))
    torch.testing.assert_close(
        DomainNorm(clip=1.5)(["general"], torch.full((1, 3), 7.0)), torch.zeros(1, 3)
    )


def test_an_answer_without_an_end_gets_the_lowest_reward_of_the_batch():
    # the third answer never ends, however well it is liked
    rewards = torch.tensor([[1.0, -2.0], [5.0, 3.0]])
    got = punish_endless(rewards, torch.tensor([[True, True], [False, True]]))
    torch.testing.assert_close(got, torch.tensor([[1.0, -2.0], [-2.0, 3.0]]))


def test_an_answer_ends_with_its_turn_or_with_eos():
    processor, eos = tiny.processor(), tiny.processor().ids["eos"]
    endings = [[40, END], [40, eos], [40, 41]]
    assert [processor.has_ended(ids) for ids in endings] == [True, True, False]
    assert processor.as_turn([40, eos]) == [40, END]


def alone(group: PrefixGroup, features: torch.Tensor | None = None) -> MicroBatch:
    """A group by itself."""
    return MicroBatch(collate([group]), features)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_plain_forward_pass():
    model, group = tiny.causal(), PrefixGroup([1, 30], [[40, 41], [50]])
    got = token_log_probs(model, alone(group))
    logits = without(model(torch.tensor([[1, 30, 40, 41]])).logits, model.unsampled).log_softmax(
        -1
    )[0]
    wanted = [logits[1, 40], logits[2, 41], logits[1, 50]]
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def without(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The logits where these ids are impossible."""
    return logits.index_fill(-1, torch.tensor(ids), -torch.inf)


def test_the_log_probabilities_of_an_answer_are_those_it_was_sampled_with(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # the distributions that the sampler draws from, against those of which ratio, KL and entropy are made
    models, _ = ready(*folders)
    drawn: list[torch.Tensor] = []
    multinomial = torch.multinomial
    monkeypatch.setattr(
        torch, "multinomial", lambda p, *a, **k: drawn.append(p.log()) or multinomial(p, *a, **k)
    )
    params = replace(
        SMALL,
        temperature=0.6,
        answers_per_prompt=1,
        batch_size=1,
        minibatch_size=1,
        max_new_tokens=9,
    )
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    prompts = with_images(vision_cache, questions(tmp_path)[:1])
    normal = DomainNorm(params.reward_clip)
    [rollout] = roll_out(params, models, vision_cache, prompts, normal, step=4)
    [[*ids]] = rollout.group.responses
    wanted = torch.stack([log_probs[0, id_] for log_probs, id_ in zip(drawn, ids, strict=True)])
    torch.testing.assert_close(rollout.log_probs, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rollout.reference_log_probs, wanted, rtol=1e-4, atol=1e-5)
    # the ratio too is 1 where nothing has been learned
    numbers, _ = gradients(params, models, vision_cache, [rollout])
    assert numbers["clip_fraction"] == 0
    assert prompts[0].images is not None
    warm = token_log_probs(models.policy, alone(rollout.group, prompts[0].images[0]), 1.0)
    assert not torch.allclose(warm, wanted, rtol=0.05)


def test_the_divergence_is_that_at_the_sampling_temperature(
    folders: tuple[Path, Path], tmp_path: Path
):
    models, _ = ready(*folders)
    vision_cache, sample = tiny.vision_cache(models.reference, tmp_path), tiny.sample("Who?")
    with torch.no_grad():
        models.policy.get_parameter("output.weight").mul_(
            2
        )  # at temperature 2 it is what the base is at 1
    batch = alone(PrefixGroup(vision_cache.prompt(sample), [[40, 41], [42]]))
    cold, warm = (token_log_probs(models.reference, batch, t) for t in (1.0, 2.0))
    got = divergence(
        replace(SMALL, temperature=2.0), models, vision_cache, [sample], [[[40, 41], [42]]]
    )
    assert got == pytest.approx((cold - warm).mean().item(), rel=1e-4, abs=1e-5)


def test_an_answer_that_ends_with_eos_is_judged_as_one_that_ends_its_turn(tmp_path: Path):
    model, eos = tiny.reward(), tiny.processor().ids["eos"]
    prompts = with_images(tiny.vision_cache(model, tmp_path), [tiny.sample("Hi.")])
    with torch.no_grad():
        got = judge(SMALL, model, tiny.processor(), prompts, [[[40, eos], [41, 42, END], [eos]]])
        wanted = judge(SMALL, model, tiny.processor(), prompts, [[[40, END], [41, 42, END], [END]]])
    assert torch.equal(got, wanted) and len(set(got.flatten().tolist())) == 3


def differing(root: Path, part: str) -> Path:
    """The reward model of `saved`, but for one part."""
    reward, processor = IXCForRewardModel.from_pretrained(root / "reward"), tiny.processor()
    with torch.no_grad():
        if part == "tower":
            reward.vit.vision_tower.vision_model.embeddings.class_embedding[3] += 0.01  # pyright: ignore
        if part == "projector":
            reward.vision_proj[2].weight[0, 0] += 0.01  # pyright: ignore
        if part == "newline":
            reward.plora_sub_GN += 0.01
    if part == "heads":
        reward.config.vision_num_attention_heads = 4
    if part == "tiles":
        processor = IXCProcessor(processor.tokenizer, tiny.TILE, tiny.PATCH, hd_num=9)
    if part == "tail":
        processor = IXCProcessor(
            processor.tokenizer, tiny.TILE, tiny.PATCH, hd_num=4, tail_newline=True
        )
    if part == "tokenizer":
        processor = IXCProcessor(
            train_tokenizer(["other text"] * 9, 280), tiny.TILE, tiny.PATCH, hd_num=4
        )
    save(reward, processor, root / part)
    return root / part


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("tower", r"its vision tower is not that of .*base \(.*class_embedding\)"),
        ("projector", r"its vision tower is not that of .*base \(proj.2.weight\)"),
        ("newline", r"its vision tower is not that of .*base \(sub\)"),
        ("heads", "config.json: vision_num_attention_heads: 4, but"),
        ("tiles", "processor_config.json: hd_num: 9, but .* has 4"),
        ("tail", "processor_config.json: tail_newline: True, but .* has False"),
        ("tokenizer", "its tokenizer is not that of"),
    ],
)
def test_a_reward_model_that_reads_otherwise_than_the_base_is_refused(
    part: str, named: str, folders: tuple[Path, Path], tmp_path: Path
):
    with pytest.raises(UnequalModels, match=rf"{part}: {named}"):
        ready(folders[0], differing(tmp_path, part))


def test_the_rounding_of_a_reward_model_stored_in_bf16_is_no_other_tower(
    folders: tuple[Path, Path], tmp_path: Path
):
    rounded = IXCForRewardModel.from_pretrained(folders[1], dtype=torch.bfloat16)
    save(rounded, tiny.processor(), tmp_path / "rounded")
    assert ready(folders[0], tmp_path / "rounded")[0].reward.dtype == torch.float32


@pytest.mark.parametrize(("warmup", "steps"), [(2, 2), (3, 2)])
def test_a_policy_that_would_never_learn_is_refused(warmup: int, steps: int):
    with pytest.raises(
        ValueError, match=f"critic_warmup_steps: {warmup}: .* none of the {steps} steps"
    ):
        TrainPPOParams(steps=steps, critic_warmup_steps=warmup)


def test_either_schedule_runs_its_course_over_its_own_updates(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models, _ = ready(*folders)
    made: list[Recorded] = []

    def record(*given: Any, **options: Any) -> Recorded:
        made.append(Recorded(*given, **options))
        return made[-1]

    monkeypatch.setattr("ixc.engine.trainer.Optimizer", record)
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    params = replace(SMALL, steps=4, minibatch_size=4, epochs=2, critic_warmup_steps=3)
    train(params, models, vision_cache, questions(tmp_path), random.Random(0))
    actor, critic = (optimizer.rates for optimizer in made)
    assert (len(actor), len(critic)) == (4, 16)  # 2 minibatches, 2 epochs, of 1 step and of 4
    for rates in (actor, critic):
        wanted = [5e-5 * rate(i, 1, len(rates), 0.1) for i in range(len(rates))]
        assert rates == pytest.approx(wanted)


class Recorded(Optimizer):
    """Remembers the learning rates of its updates."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.rates: list[float] = []

    def update(self) -> dict[str, float]:
        numbers = super().update()
        self.rates.append(numbers["learning_rate"])
        return numbers


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a reward model."""
    return saved(tmp_path)


def saved(root: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """Folders of a base and a reward model whose weights are stored so."""
    torch.manual_seed(0)
    base = IXCForCausalLM(tiny.config(initializer_range=0.1))
    reward = tiny.with_tower_of(tiny.reward(), base)
    for model in (base, reward):
        model.to(dtype)  # pyright: ignore[reportArgumentType]
    save(base, tiny.processor(), root / "base")
    save(reward, tiny.processor(), root / "reward")
    return root / "base", root / "reward"


def questions(root: Path) -> list[Sample]:
    """Eight prompts of several lengths about four pictures, and one without."""
    media = [tiny.image(root, c) for c in ("red", "blue", "green", "white")]
    return [
        *(tiny.sample("Why? " * (i % 3 + 1) + str(i), [media[i % 4]]) for i in range(8)),
        tiny.sample("Who?"),
    ]


class Still(Optimizer):
    """Leaves gradients where they are, and weights as they are."""

    def update(self) -> dict[str, float]:
        return {"grad_norm": 0.0}


@contextmanager
def passes_of(*models: Any) -> Iterator[list[int]]:
    """Tokens of every forward pass."""
    sizes: list[int] = []

    def note(_: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        sizes.append((given[0] if given else named["input_ids"]).numel())

    hooks = [model.model.register_forward_pre_hook(note, with_kwargs=True) for model in models]
    yield sizes
    for hook in hooks:
        hook.remove()


@contextmanager
def passes_of_layers(model: Any) -> Iterator[list[int]]:
    """An entry for every time that a decoder layer computes."""
    done: list[int] = []
    norms = [part for name, part in model.model.named_modules() if name.endswith("ffn_norm")]
    hooks = [norm.register_forward_pre_hook(lambda *_: done.append(1)) for norm in norms]
    yield done
    for hook in hooks:
        hook.remove()


def rolled_out(params: TrainPPOParams, models: Models, vision_cache: VisionCache) -> list[Rollout]:
    """Answers to all questions, from a fresh sampler."""
    prompts = prompts_of(vision_cache, questions(vision_cache.root))
    return roll_out(params, models, vision_cache, prompts, DomainNorm(params.reward_clip), step=0)


def gradients(
    params: TrainPPOParams, models: Models, vision_cache: VisionCache, rollouts: list[Rollout]
) -> tuple[dict[str, float], Models]:
    """An update's numbers, and models that hold its gradients."""
    models = copy.deepcopy(models)
    actor, critic = (Still(model.parameters(), 1.0, 1) for model in (models.policy, models.critic))
    return learn(params, models, vision_cache, actor, critic, rollouts, learn_policy=True), models


def test_an_update_in_many_passes_is_the_update_in_one(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    with torch.no_grad():  # a policy that has moved: ratios on either side of the trust region
        for weights in models.policy.decoder_module().parameters():
            weights.add_(
                0.03 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
            )
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    rollouts = rolled_out(SMALL, models, vision_cache)
    for rollout in rollouts:
        rollout.log_probs += 0.4 * torch.randn(
            rollout.log_probs.shape, generator=torch.Generator().manual_seed(2)
        )
    numbers, wanted = gradients(SMALL, models, vision_cache, rollouts)
    assert 0 < numbers["clip_fraction"] < 1
    with passes_of(models.policy, models.critic) as sizes:
        fewer = replace(SMALL, max_tokens_per_microbatch=150)
        got_numbers, got = gradients(fewer, models, vision_cache, rollouts)
    assert len(sizes) > 4 and max(sizes) <= 150
    assert got_numbers == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    for name in ("policy", "critic"):
        found = dict(getattr(got, name).named_parameters())
        for key, weights in getattr(wanted, name).named_parameters():
            torch.testing.assert_close(found[key].grad, weights.grad, rtol=1e-4, atol=1e-6)


def test_a_rollout_in_many_passes_is_the_rollout_in_one(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models, _ = ready(*folders)
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    rollouts = rolled_out(SMALL, models, vision_cache)
    responses = {tuple(rollout.prompt.prompt.ids): rollout.group.responses for rollout in rollouts}

    def sampled(params: Any, policy: Any, prompts: list[Question], generator: Any) -> list[Any]:
        return [responses[tuple(question.prompt.ids)] for question in prompts]

    monkeypatch.setattr("ixc.rl.rollouts.sample_completions", sampled)
    fewer = replace(SMALL, max_tokens_per_microbatch=150)
    for got, rollout in zip(rolled_out(fewer, models, vision_cache), rollouts, strict=True):
        for name in ("log_probs", "reference_log_probs", "rewards", "advantages", "returns"):
            mine, wanted = getattr(got, name), getattr(rollout, name)
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_no_pass_of_the_four_models_exceeds_its_tokens(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    samples, vision_cache = questions(tmp_path), tiny.vision_cache(models.reference, tmp_path)
    params = replace(SMALL, batch_size=32, minibatch_size=16, max_tokens_per_microbatch=150)
    with passes_of(*vars(models).values()) as sizes:
        train(params, models, vision_cache, samples, random.Random(0))
        compare(params, models, vision_cache, [replace(s, gold=tiny.match("me")) for s in samples])
    assert 100 < max(sizes) <= 150


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_prompt_that_is_too_long_is_refused_before_anything_is_trained(
    split: str, folders: tuple[Path, Path], tmp_path: Path
):
    long = tiny.sample("why " * 40, gold=tiny.match("x"), split=split, id="long")
    write_samples(
        [tiny.sample("a"), tiny.sample("b", gold=tiny.match("x"), split="val"), long],
        tmp_path / "prompts",
    )
    paired = ("a", "long") if split == "train" else ("a",)
    write_samples(
        [tiny.pair(i, "x", "y", id=f"{i}#0", prompt_id=i) for i in paired], tmp_path / "pairs"
    )
    data = tmp_path / "prompts", tmp_path / "pairs", tmp_path / "media"
    curve: list[dict[str, float]] = []
    with pytest.raises(
        OverBudget,
        match=r"long: \d+ tokens with its answers, more than train_ppo.max_tokens_per_microbatch 99",
    ):
        run(
            replace(SMALL, max_tokens_per_microbatch=99),
            *data,
            *folders,
            tmp_path / "chat",
            log=lambda m, i: curve.append(m),
        )
    assert curve == []


def test_log_probabilities_part_by_part_are_the_same_and_so_are_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
):
    def found() -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        model, groups = (
            tiny.causal(),
            [PrefixGroup([1, 30], [[40, 41], [50, 51, 52]]), PrefixGroup([1], [[60, 61]])],
        )
        log_probs = token_log_probs(model, MicroBatch(collate(groups), None))
        (log_probs * torch.arange(1.0, 8.0)).sum().backward()
        return log_probs.detach(), {name: p.grad for name, p in model.named_parameters()}

    (wanted, wanted_gradients), sizes, forward = found(), [], torch.nn.Linear.forward
    monkeypatch.setattr("ixc.rl.rollouts.LOGITS_AT_ONCE", 3 * 280)
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda layer, x: sizes.append(len(x)) or forward(layer, x)
    )
    log_probs, gradients = found()
    assert sizes[:3] == [3, 3, 1] and sorted(sizes[3:]) == [
        1,
        3,
        3,
    ]  # and again in the backward pass
    torch.testing.assert_close(log_probs, wanted)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name])


def test_layers_that_are_computed_again_give_the_same_training(
    folders: tuple[Path, Path], tmp_path: Path
):
    def trained(params: TrainPPOParams) -> list[dict[str, float]]:
        models, _ = ready(*folders)
        curve: list[dict[str, float]] = []
        with passes_of_layers(models.policy) as count:
            vision_cache = tiny.vision_cache(models.reference, tmp_path)
            train(
                params,
                models,
                vision_cache,
                questions(tmp_path),
                random.Random(0),
                lambda m, i: curve.append(m),
            )
        layers.append(len(count))
        return curve

    layers: list[int] = []
    params = replace(SMALL, steps=2)
    assert trained(replace(params, gradient_checkpointing=True)) == trained(params)
    assert layers[0] == layers[1] + 2 * 2  # two layers, two updates


def test_the_norm_of_either_gradient_is_limited(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models, _ = ready(*folders)
    limits, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda p, limit: (limits.append(limit), clip(p, limit))[1],
    )
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    params = replace(SMALL, max_grad_norm=0.25)
    train(params, models, vision_cache, questions(tmp_path), random.Random(0))
    assert limits == [0.25, 0.25]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_that_are_stored_in_bf16_learn(precision: Any, tmp_path: Path):
    models, _ = ready(*saved(tmp_path, torch.bfloat16), precision)
    pairs = [
        (m, {name: w.clone() for name, w in m.named_parameters()})
        for m in (models.policy, models.critic)
    ]
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    params = replace(SMALL, steps=2, learning_rate=1e-6, critic_learning_rate=1e-6)
    curve: list[dict[str, float]] = []
    train(
        params,
        models,
        vision_cache,
        questions(tmp_path),
        random.Random(0),
        lambda m, i: curve.append(m),
    )
    for model, before in pairs:
        assert {w.dtype for w in model.parameters()} == {torch.float32}
        moved = [
            (w != before[name]).float().mean()
            for name, w in model.decoder_module().named_parameters(prefix="model")
        ]
        assert sum(moved) / len(moved) > 0.5
    assert curve[0]["kl"] == 0  # policy and reference are still one, to the last bit


def test_what_is_frozen_takes_half_the_memory_and_says_the_same(
    folders: tuple[Path, Path], tmp_path: Path
):
    models, _ = ready(*folders, "bf16")
    reference = {w.dtype for w in models.reference.model.layers[0].attention.parameters()}  # pyright: ignore
    assert reference == {torch.bfloat16}
    [prompt] = with_images(tiny.vision_cache(models.reference, tmp_path), questions(tmp_path)[:1])
    [kept] = with_images(tiny.vision_cache(models.policy, tmp_path), questions(tmp_path)[:1])
    assert prompt.images is not None and kept.images is not None
    assert torch.equal(prompt.images[0], kept.images[0])
    group, features = PrefixGroup(prompt.prompt, [[40, 41], [50]]), prompt.images[0]
    with torch.no_grad():
        reference, policy = (
            token_log_probs(m, alone(group, features)) for m in (models.reference, models.policy)
        )
        exact = token_log_probs(ready(*folders)[0].policy, alone(group, features.float()))
    assert torch.equal(reference, policy) and not torch.equal(policy, exact)
    torch.testing.assert_close(policy, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("memory_gb", [0.0, 4.0])
def test_a_image_of_a_step_passes_the_tower_once_for_all_models(
    memory_gb: float, folders: tuple[Path, Path], tmp_path: Path
):
    models, processor = ready(*folders)
    samples = questions(tmp_path)
    vision_cache = VisionCache(
        models.reference, processor, tmp_path, VisionCacheParams(memory_gb=memory_gb)
    )
    params = replace(
        SMALL, batch_size=32, minibatch_size=8, epochs=2, max_tokens_per_microbatch=150
    )
    drawn = random.Random(3).choices(samples, k=8)
    train(params, models, vision_cache, samples, random.Random(3))
    distinct = {media.sha256 for s in (samples if memory_gb else drawn) for media in s.media}
    assert vision_cache.num_encoded == len(distinct)


def test_policy_and_critic_learn_reference_and_reward_do_not(
    folders: tuple[Path, Path], tmp_path: Path
):
    models, _ = ready(*folders)
    before = {name: x.clone() for name, x in models.reference.state_dict().items()}
    judged = {name: x.clone() for name, x in models.reward.state_dict().items()}
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    samples = [tiny.sample("Colour?", [tiny.image(tmp_path, "red")]), tiny.sample("Who?")]
    params = TrainPPOParams(
        steps=2, batch_size=8, minibatch_size=4, max_new_tokens=4, critic_warmup_steps=1
    )
    curve: list[dict[str, float]] = []
    train(params, models, vision_cache, samples, random.Random(0), lambda m, i: curve.append(m))

    assert vision_cache.num_encoded == 1
    assert [("policy_loss" in numbers) for numbers in curve] == [False, True]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)  # policy and reference are still one
    assert all(torch.equal(x, before[name]) for name, x in models.reference.state_dict().items())
    assert all(torch.equal(x, judged[name]) for name, x in models.reward.state_dict().items())
    for trained, old in ((models.policy, before), (models.critic, judged)):
        moved = {
            name.split(".")[0]
            for name, x in trained.state_dict().items()
            if not torch.equal(x, old[name])
        }
        assert "model" in moved and not moved & {
            "vit",
            "vision_proj",
            "plora_glb_GN",
            "plora_sub_GN",
        }


X, Y = (tiny.processor().encode(letter)[0] for letter in "xy")


class LikesX(torch.nn.Module):
    """A language model without depth, 16 channels: the reward is whether an answer's last word is `x`."""

    def forward(
        self, input_ids: torch.Tensor, columns: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        hidden = torch.zeros(*input_ids.shape, 16)
        hidden[:, 3:, 0] = (input_ids[:, :-3] == X).float()  # x, end of turn, </s>, reward token
        return hidden[:, columns]


def test_a_few_steps_raise_a_toy_reward(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    with torch.no_grad():  # a policy that knows two letters and how to end
        models.policy.output = torch.nn.Linear(16, 280)
        models.policy.output.bias.fill_(-20)[[X, Y, END]] = 0
    wanted = IXCForRewardModel(tiny.config())
    wanted.model = LikesX()  # pyright: ignore[reportAttributeAccessIssue]
    torch.nn.init.ones_(wanted.score.weight)
    models = Models(models.policy, models.reference, models.critic, wanted)
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    params = TrainPPOParams(
        steps=12,
        batch_size=32,
        minibatch_size=16,
        learning_rate=2e-2,
        max_new_tokens=3,
        kl_coef=0.0,
        critic_warmup_steps=1,
    )
    curve: list[dict[str, float]] = []
    samples = [tiny.sample("Go."), tiny.sample("Again.")]
    train(params, models, vision_cache, samples, random.Random(0), lambda m, i: curve.append(m))
    rewards = [numbers["reward"] for numbers in curve]
    assert sum(rewards[:3]) / 3 < 0.5  # at most a third of the answers by chance
    assert sum(rewards[-3:]) / 3 > 0.8


def test_base_and_chat_are_compared_on_the_same_prompts(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    samples = [
        tiny.sample("Who?", gold=tiny.match("me")),
        tiny.sample("Safe?", gold=tiny.match("yes"), domain="safety"),
    ]
    got = compare(TrainPPOParams(max_new_tokens=3), models, vision_cache, samples)
    assert got["prompts"] == 2
    for name in ("gold", "reward", "length"):
        assert got[f"{name}/base"] == got[f"{name}/chat"]  # nothing has been trained
    assert got["kl"] == 0
    assert {"gold/chat/domain:general", "gold/base/domain:safety"} <= got.keys()


def test_what_nobody_knows_is_no_number(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    got = compare(TrainPPOParams(max_new_tokens=3), models, vision_cache, [tiny.sample("Who?")])
    assert (
        not any(name.startswith("gold") for name in got)
        and {"reward/chat", "length/base", "kl"} <= got.keys()
    )
    assert all(map(math.isfinite, got.values()))
    assert compare(TrainPPOParams(max_new_tokens=3), models, vision_cache, []) == {"prompts": 0}


def test_the_divergence_from_the_base_by_hand(folders: tuple[Path, Path], tmp_path: Path):
    models, _ = ready(*folders)
    vision_cache, sample = tiny.vision_cache(models.reference, tmp_path), tiny.sample("Who?")
    with torch.no_grad():
        models.policy.get_parameter("output.weight").zero_()  # every word is equally likely
    words = 280 - len(models.policy.unsampled)
    assert words == 264  # the tokenizer has 269; of seven control tokens two end an answer
    got = divergence(SMALL, models, vision_cache, [sample], [[[40, 41], [42]]])
    group = PrefixGroup(vision_cache.prompt(sample), [[40, 41], [42]])
    log_probs = token_log_probs(models.reference, alone(group))
    assert got == pytest.approx(-math.log(words) - log_probs.mean().item(), rel=1e-5)


@pytest.mark.parametrize("lora", [None, LoRAParams(rank=2)])
def test_the_stage_writes_a_chat_model_that_answers(
    folders: tuple[Path, Path], tmp_path: Path, lora: LoRAParams | None
):
    prompts = [
        tiny.sample("a", [tiny.image(tmp_path, "red")], gold=tiny.match("x")),
        tiny.sample("b", gold=tiny.match("x")),
        tiny.sample("c", gold=tiny.match("x"), split="val"),
    ]
    write_samples(prompts, tmp_path / "prompts.parquet")
    write_samples([tiny.pair("a", "x", "y", id="a#0", prompt_id="a")], tmp_path / "pairs.parquet")
    params = TrainPPOParams(
        steps=2,
        batch_size=4,
        minibatch_size=4,
        max_new_tokens=3,
        critic_warmup_steps=0,
        vision_cache=VisionCacheParams(disk=str(tmp_path / "store")),
        lora=lora,
    )
    curve: list[dict[str, float]] = []
    metrics = run(
        params,
        tmp_path / "prompts.parquet",
        tmp_path / "pairs.parquet",
        tmp_path,
        *folders,
        tmp_path / "chat",
        log=lambda m, i: curve.append(m),
    )
    assert metrics["prompts"] == 1 and any((tmp_path / "store").iterdir())
    assert (
        len(curve) == 2
        and {"reward", "kl", "length", "policy_loss", "value_loss"} <= curve[1].keys()
    )
    assert (tmp_path / "chat" / "adapter").is_dir() == (lora is not None)
    chat = IXCForCausalLM.from_pretrained(tmp_path / "chat")
    said = generate(chat, tiny.vision_cache(chat, tmp_path), prompts, 2, 1.0, 3, 3, seed=0)
    assert [len(row) for row in said] == [2, 2, 2]
    assert not torch.equal(
        chat.output.weight, IXCForCausalLM.from_pretrained(folders[0]).output.weight
    )


class Killed(BaseException):
    """What a kill is to the code."""


def test_a_killed_training_ends_in_exactly_the_numbers_of_one_that_was_not(
    folders: tuple[Path, Path], tmp_path: Path
):
    samples = [tiny.sample("a", [tiny.image(tmp_path, "red")]), tiny.sample("b"), tiny.sample("c")]
    write_samples([*samples, tiny.sample("d", gold=tiny.match("x"), split="val")], tmp_path / "q")
    write_samples([tiny.pair(i, "x", "y", id=f"{i}#0", prompt_id=i) for i in "abc"], tmp_path / "p")

    def trained(name: str, kill_after: int | None = None, **options: Any) -> list[Any]:
        curve: list[Any] = []

        def log(numbers: dict[str, float], step: int) -> None:
            assert step == len(curve)
            curve.append(numbers)
            if step + 1 == kill_after:
                raise Killed

        sizes: dict[str, Any] = {"steps": 5, "critic_warmup_steps": 1, "sampling_batch_size": 1}
        params = replace(SMALL, minibatch_size=4, checkpoint_every=2, **(sizes | options))
        paths = tmp_path / "q", tmp_path / "p", tmp_path, *folders, tmp_path / name
        return [*curve, run(params, *paths, log=log)]

    whole = trained("whole")
    for step in (3, 5):
        with pytest.raises(Killed):
            trained("killed", kill_after=step)
    with pytest.raises(OtherRun, match=r"clip was 0.2, is 0.3; set it back"):
        trained("killed", clip=0.3)
    assert trained("killed") == whole
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / ".killed.checkpoints").exists()


def test_answers_are_the_same_however_many_processes_share_the_batches(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each of two processes answers some batches; together they have what one alone has, to the last digit."""
    models, _ = ready(*folders)
    params = replace(SMALL, sampling_batch_size=2)
    vision_cache = tiny.vision_cache(models.reference, tmp_path)
    wanted = rolled_out(params, models, vision_cache)

    parts: list[Any] = []
    monkeypatch.setattr("ixc.rl.rollouts.distributed.gathered", lambda own: parts.append(own) or [])
    for rank in range(2):
        share = slice(rank, None, 2)
        monkeypatch.setattr(
            "ixc.rl.rollouts.my_share", lambda costs, s=share: [*range(len(costs))][s]
        )
        with pytest.raises(KeyError):  # the other's answers are missing
            rolled_out(params, models, vision_cache)
    assert not parts[0].keys() & parts[1].keys()
    answers = parts[0] | parts[1]
    for i, rollout in enumerate(wanted):
        assert answers[i].responses == rollout.group.responses
        assert torch.equal(answers[i].log_probs, rollout.log_probs)
        assert torch.equal(answers[i].reference_log_probs, rollout.reference_log_probs)
