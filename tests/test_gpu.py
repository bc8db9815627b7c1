"""On a GPU: the same numbers as on the CPU, few compilations, and a host that waits for nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.gpu.attention import calls, flash_attention
from ixc.data.samples import Sample
from ixc.engine.preference_groups import num_pairs, preference_groups, read
from ixc.engine.sampling import STEPS_AHEAD, sample_tokens
from ixc.engine.scoring import score
from ixc.models.ixc25 import IXCForRewardModel
from ixc.models.ixc25.folder import load, save
from ixc.packing.attention import (
    PackedLayout,
    block_mask,
    compiled,
    flex_attention,
    segment_attention,
    varlen,
    varlen_attention,
)
from ixc.packing.layout import PrefixGroup, collate
from ixc.params import TrainRMParams
from ixc.rl.rollouts import MicroBatch, token_values
from ixc.stages.train_rm import learn, optimizer_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)
SHAPES = (
    ((300, (40, 30)),),
    ((1, (1,)),),
    ((700, (100, 90, 80, 70)), (50, (20, 300))),
    ((0, (5, 200)), (130, ())),
    ((128, (64, 64)),),
    ((2000, (300, 310)), (40, (9, 8, 7))),
)
WIDTHS = {"flex": 64, "no flex": 16}
"""Hidden sizes of a model with 4 heads: FlexAttention needs 16 channels a head."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
Way = Callable[[Tensor, Tensor, Tensor, PackedLayout, float], Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is compiled yet."""
    torch._dynamo.reset()
    counters.clear()
    for kept in (block_mask, compiled, calls, varlen):
        kept.cache_clear()
    yield


def drawn(
    layout: PackedLayout, channels: int, dtype: torch.dtype, heads: int = 8, groups: int = 2
) -> list[Tensor]:
    """Queries, keys, values, and weights of the output."""
    generator = torch.Generator(GPU).manual_seed(0)
    length = len(layout.numbers()[0])

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, channels, generator=generator, device=GPU).to(dtype)

    return [draw(heads, length), draw(groups, length), draw(groups, length), draw(length, heads)]


def out_and_gradients(way: Way, layout: PackedLayout, given: list[Tensor]) -> list[Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in given[:3])
    out = way(q, k, v, layout, q.shape[-1] ** -0.5)
    return [out.detach(), *torch.autograd.grad((out * given[3]).sum(), (q, k, v))]


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, by the norm."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        (flex_attention, torch.float32),
        (flex_attention, torch.bfloat16),
        (flash_attention, torch.bfloat16),
    ],
)
def test_every_way_is_branch_after_branch(way: Way, channels: int, dtype: torch.dtype):
    for layout in map(PackedLayout, SHAPES):
        given = drawn(layout, channels, dtype)
        exact = out_and_gradients(segment_attention, layout, [x.double() for x in given])
        got = out_and_gradients(way, layout, given)
        for name, x, wanted in zip(("out", "of q", "of k", "of v"), got, exact, strict=True):
            assert x.dtype == dtype and error(x, wanted) < TOLERANCES[dtype], (layout, name)


@pytest.mark.parametrize("channels", [64, 128])
def test_flash_attention_of_the_package_is_branch_after_branch(channels: int):
    pytest.importorskip("flash_attn", reason="needs the extra `flash`")
    test_every_way_is_branch_after_branch(varlen_attention, channels, torch.bfloat16)


@pytest.mark.parametrize("trained", [False, True])
def test_two_kernels_serve_all_lengths(trained: bool):
    count = []
    for length in (300, 900, 1, 129, 256, 257, 511, 1024, 2345, 4000, 5, 128):
        layout = PackedLayout(((length, (7, 8)),))
        q, k, v, weights = drawn(layout, 64, torch.bfloat16)
        q.requires_grad_(trained)
        out = flex_attention(q, k, v, layout, 0.1)
        if trained:
            (out * weights).sum().backward()
        count.append(counters["stats"]["unique_graphs"])
    # the mask and the attention, each for the first size, and then for all
    assert count[1] <= 4 and count[-1] == count[1], count


def groups(seed: int) -> list[PrefixGroup]:
    """Texts of random lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(most: int) -> list[int]:
        size = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(20, 200, (size,), generator=generator).tolist()

    return [PrefixGroup(words(300), [words(90) for _ in range(2)]) for _ in range(2)]


class Learnt(NamedTuple):
    """What a pass gives."""

    rewards: Tensor
    gradients: Tensor


def learnt(model: IXCForRewardModel, rows: list[PrefixGroup]) -> Learnt:
    model.zero_grad()
    batch = collate(rows).to(model.device)
    rewards = model.response_scores(batch)
    rewards.tanh().sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return Learnt(rewards.detach().cpu(), torch.cat(gradients).cpu())


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_rewards_and_gradients_are_those_of_the_cpu(pooling: str, checkpointed: bool, width: int):
    model, twin = (tiny.reward(hidden_size=width, pooling=pooling).train() for _ in range(2))
    model.to(GPU)  # pyright: ignore[reportArgumentType]
    if checkpointed:
        model.gradient_checkpointing_enable()
    for rows in map(groups, range(4)):
        got, wanted = learnt(model, rows), learnt(twin, rows)
        torch.testing.assert_close(got.rewards, wanted.rewards, rtol=1e-4, atol=1e-4)
        assert error(got.gradients, wanted.gradients) < 1e-3 and wanted.gradients.norm() > 0


def test_scoring_first_and_training_then_is_no_mistake():
    model, rows = tiny.reward(hidden_size=64).to(GPU).train(), groups(0)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        rewards = model.response_scores(collate(rows).to(GPU))
    torch.testing.assert_close(learnt(model, rows).rewards, rewards.cpu())


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_host_waits_for_nothing_in_a_pass(pooling: str, checkpointed: bool):
    model = tiny.reward(hidden_size=64, pooling=pooling).to(GPU).train()  # pyright: ignore[reportArgumentType]
    model.gradient_checkpointing_enable() if checkpointed else None
    image_features = torch.randn(2, 64, device=GPU)

    def learn_from(group: PrefixGroup) -> None:
        batch = collate([group]).to(GPU)
        model.response_scores(batch, image_features).sum().backward()
        token_values(model, MicroBatch(batch, image_features)).sum().backward()

    image = tiny.processor().ids["image"]
    for length in (300, 400):  # compiling may wait
        learn_from(PrefixGroup([1, image, image, *[30] * length], [[40], [41] * 50]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn_from(PrefixGroup([1, image, image, *[30] * 500], [[40], [41] * 60]))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_host_waits_for_no_token_that_is_sampled():
    model, generator = tiny.causal(hidden_size=64).to(GPU), torch.Generator(GPU)  # pyright: ignore[reportArgumentType]
    given = ([[1, *[30] * 300], [1, 40]], None, 3, 1.0, STEPS_AHEAD, generator)
    sample_tokens(model, *given)  # compiling may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample_tokens(model, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Pairs: a text, a picture, and two pictures."""
    red, blue = tiny.image(tmp_path, "red"), tiny.image(tmp_path, "blue", (90, 30))
    return [
        tiny.pair("Hello, who are you, and why?", "good", "bad bad"),
        tiny.pair("Which?", "red", "not blue", [red]),
        tiny.pair("<ImageHere> or <ImageHere>?", "the second", "the first", [red, blue]),
    ]


ANSWERS = (("Yes.", "No, never.", "x"), ("A red square.",), ("The second one.", "The"))


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_chat_scores_alone_as_in_a_batch_and_as_on_the_cpu(
    pooling: str,
    dtype: torch.dtype,
    tolerance: float,
    width: int,
    samples: list[Sample],
    tmp_path: Path,
):
    twin = tiny.reward(hidden_size=width, pooling=pooling)
    wanted = score(twin, tiny.vision_cache(twin, tmp_path), samples, ANSWERS, batch_size=3)
    model = tiny.reward(hidden_size=width, pooling=pooling).to(GPU, dtype)  # pyright: ignore[reportArgumentType]
    together = score(model, tiny.vision_cache(model, tmp_path), samples, ANSWERS, batch_size=3)
    spread = max(max(row) for row in wanted) - min(min(row) for row in wanted)
    for sample, answers, rewards, cpu in zip(samples, ANSWERS, together, wanted, strict=True):
        [alone] = score(
            model, tiny.vision_cache(model, tmp_path), [sample], [answers], batch_size=1
        )
        assert rewards == pytest.approx(alone, abs=tolerance * spread)
        assert rewards == pytest.approx(cpu, abs=tolerance * spread)


@pytest.mark.parametrize("name", ["sdpa", "flex", "flash_attention_2"])
def test_a_chat_scores_by_every_kernel_as_on_the_cpu(
    name: str, samples: list[Sample], tmp_path: Path
):
    if name == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="needs the extra `flash`")
    twin = tiny.reward(hidden_size=64)
    wanted = score(twin, tiny.vision_cache(twin, tmp_path), samples, ANSWERS, batch_size=3)
    save(twin, tiny.processor(), tmp_path / "reward")
    model, _ = load(tmp_path / "reward", IXCForRewardModel, GPU, torch.bfloat16, attention=name)
    got = score(model, tiny.vision_cache(model, tmp_path), samples, ANSWERS, batch_size=3)
    spread = max(max(row) for row in wanted) - min(min(row) for row in wanted)
    for rewards, cpu in zip(got, wanted, strict=True):
        assert rewards == pytest.approx(cpu, abs=0.1 * spread)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_a_cold_model_says_what_transformers_generates(
    count: int, samples: list[Sample], tmp_path: Path
):
    model = tiny.causal(hidden_size=64).to(GPU)  # pyright: ignore[reportArgumentType]
    vision_cache = tiny.vision_cache(model, tmp_path)
    vision_cache.prepare(samples)
    prompts = [vision_cache.prompt(sample) for sample in samples]
    given = (
        vision_cache.concat_features(samples),
        count,
        1e-4,
        8,
        torch.Generator(GPU).manual_seed(0),
    )
    got = sample_tokens(model, prompts, *given).tolist()
    for number, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
        options: dict[str, Any] = {
            "image_features": vision_cache.concat_features([sample]),
            "max_new_tokens": 8,
            "do_sample": False,
        }
        ids = torch.tensor([prompt], device=GPU)
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[
            0, len(prompt) :
        ].tolist()
        for row in got[number * count : (number + 1) * count]:
            assert len(wanted) > 0 and row[: len(wanted)] == wanted


def losses(device: torch.device, precision: str, samples: list[Sample], root: Path) -> list[float]:
    """Of three steps."""
    model = tiny.reward(hidden_size=64).to(device).train()  # pyright: ignore[reportArgumentType]
    model.freeze_vision()
    if precision == "bf16":
        model.compute_in_bf16()
    params, rows = (
        TrainRMParams(batch_size=3, learning_rate=1e-3),
        preference_groups(samples, False),
    )
    vision_cache, steps = tiny.vision_cache(model, root), optimizer_of(params, model, 3)
    vision_cache.prepare(samples)
    batches = [[read(vision_cache, rows)] for _ in range(3)]
    return [
        learn(params, model, vision_cache, steps, batch, num_pairs(rows), 1)["loss"]
        for batch in batches
    ]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 0.1)])
def test_three_steps_have_the_losses_of_the_cpu(
    precision: str, tolerance: float, samples: list[Sample], tmp_path: Path
):
    got, wanted = (
        losses(GPU, precision, samples, tmp_path),
        losses(torch.device("cpu"), "fp32", samples, tmp_path),
    )
    assert got == pytest.approx(wanted, rel=tolerance, abs=tolerance / 10)
    assert wanted[2] < wanted[0]
