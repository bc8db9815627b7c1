"""Whatever a model computes with is where the model is, and the host seldom waits for it.

The meta device stands for a GPU: it, too, refuses most tensors of the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ixc.data.samples import Sample
from ixc.engine import sampling
from ixc.engine.optim import Optimizer
from ixc.engine.preference_groups import num_pairs, preference_groups, read
from ixc.engine.sampling import generate
from ixc.engine.scoring import score
from ixc.engine.vision_cache import VisionCache
from ixc.models.base import VisionLanguageModel
from ixc.params import TrainPPOParams, TrainRMParams
from ixc.rl import rollouts
from ixc.rl.rollouts import DomainNorm, Models, roll_out, with_images
from ixc.stages import train_ppo
from ixc.stages.train_rm import learn, optimizer_of

READ_BY_THE_HOST = [
    Tensor.tolist,
    Tensor.item,
    Tensor.cpu,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
]


class Elsewhere(TorchFunctionMode):
    """A device without numbers: the host reads ones from it, and how often it does is counted.

    So answers in the making end with their first token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in READ_BY_THE_HOST and args[0].is_meta:
            self.reads += 1
            return func(torch.ones_like(args[0], device="cpu"))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    adamw, autocast, random_numbers = torch.optim.AdamW, torch.autocast, torch.Generator()
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *given, **options: adamw(*given, **options | {"fused": False})
    )
    monkeypatch.setattr(
        torch, "autocast", lambda at, **how: nullcontext() if at == "meta" else autocast(at, **how)
    )
    for module in (sampling, rollouts):
        monkeypatch.setattr(module, "sampler", lambda *_: random_numbers)
    with Elsewhere() as mode:
        yield mode


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Pairs: a text, a picture, and two pictures."""
    red, blue = tiny.image(tmp_path, "red"), tiny.image(tmp_path, "blue", (90, 30))
    return [
        tiny.pair("Why?", "good", "bad bad", id="text"),
        tiny.pair("Which?", "red", "not blue", [red], id="one"),
        tiny.pair("<ImageHere> or <ImageHere>?", "the second", "the first", [red, blue], id="two"),
    ]


def away(model: tiny.Model) -> tiny.Model:
    """The model without its numbers."""
    return model.to("meta")


def seen(model: VisionLanguageModel, samples: Sequence[Sample], root: Path) -> VisionCache:
    """The pictures' tokens, made on the CPU, for a model elsewhere."""
    vision_cache = tiny.vision_cache(tiny.causal(), root)
    vision_cache.prepare(samples)
    vision_cache.model = model
    return vision_cache


@pytest.mark.parametrize(
    ("pooling", "optimizer", "rope", "microbatches"),
    [
        ("last_token", "adamw", "default", 2),
        ("mean", "muon", "default", 1),
        ("mean", "adamw", "dynamic", 1),
    ],
)
def test_a_training_step_reads_three_times_however_many_its_passes(
    pooling: str,
    optimizer: Literal["adamw", "muon"],
    rope: str,
    microbatches: int,
    samples: list[Sample],
    tmp_path: Path,
    elsewhere: Elsewhere,
):
    stretched = {"max_position_embeddings": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    model = away(tiny.reward(pooling=pooling, **(stretched if rope == "dynamic" else {}))).train()
    params, vision_cache = (
        TrainRMParams(batch_size=9, optimizer=optimizer),
        seen(model, samples, tmp_path),
    )
    rows = preference_groups(samples, False)
    batches = [read(vision_cache, rows) for _ in range(microbatches)]
    steps = optimizer_of(params, model, 3)
    for _ in range(2):
        before = elsewhere.reads
        learn(
            params,
            model,
            vision_cache,
            steps,
            batches,
            num_pairs(rows) * microbatches,
            microbatches,
        )
        assert (
            elsewhere.reads - before == 3
        )  # are the losses finite? the gradient's norm; the step's numbers


def test_a_checkpointed_step_reads_no_more(
    samples: list[Sample], tmp_path: Path, elsewhere: Elsewhere
):
    model = away(tiny.reward()).train()
    model.gradient_checkpointing_enable()
    params, vision_cache, rows = (
        TrainRMParams(batch_size=3),
        seen(model, samples, tmp_path),
        preference_groups(samples, False),
    )
    learn(
        params,
        model,
        vision_cache,
        optimizer_of(params, model, 3),
        [read(vision_cache, rows)],
        3,
        1,
    )
    assert elsewhere.reads == 3


@pytest.mark.parametrize("batch_size", [1, 2])
def test_scoring_reads_once_a_batch(
    batch_size: int, samples: list[Sample], tmp_path: Path, elsewhere: Elsewhere
):
    model = away(tiny.reward())
    rewards = score(
        model, seen(model, samples, tmp_path), samples, [["a", "b b"], ["c"], ["d"] * 3], batch_size
    )
    assert rewards == [[1.0, 1.0], [1.0], [1.0] * 3]
    assert elsewhere.reads == -(-len(samples) // batch_size)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("new_tokens", "reads"), [(5, 0), (16, 0), (40, 1)])
def test_answers_in_the_making_are_looked_at_now_and_then(
    count: int,
    new_tokens: int,
    reads: int,
    samples: list[Sample],
    tmp_path: Path,
    elsewhere: Elsewhere,
):
    model = away(tiny.causal())
    rows = generate(
        model, seen(model, samples, tmp_path), samples, count, 1.0, new_tokens, 3, seed=0
    )
    assert [len(row) for row in rows] == [count] * 3
    # have all ended? they have, by the 16th token; what they are
    assert elsewhere.reads == reads + 1


def test_ppo_rolls_out_and_learns(samples: list[Sample], tmp_path: Path, elsewhere: Elsewhere):
    models = Models(
        away(tiny.causal()), away(tiny.causal()), away(tiny.reward()), away(tiny.reward())
    )
    vision_cache = seen(models.reference, samples, tmp_path)
    params = TrainPPOParams(batch_size=6, minibatch_size=6, answers_per_prompt=2, max_new_tokens=3)
    actor, critic = (
        Optimizer(model.parameters(), 1e-3, 4) for model in (models.policy, models.critic)
    )
    prompts = with_images(vision_cache, samples)
    normal = DomainNorm(params.reward_clip)
    rolled = roll_out(params, models, vision_cache, prompts, normal, step=0)
    assert [len(rollout.rewards) for rollout in rolled] == [2] * 3
    before = elsewhere.reads
    numbers = train_ppo.learn(params, models, vision_cache, actor, critic, rolled, True)
    assert numbers.keys() == {"policy_loss", "value_loss", "clip_fraction", "grad_norm"}
    # of actor and critic: is it finite? the norm; and the three other numbers at once
    assert elsewhere.reads - before == 5


def test_what_stays_on_the_cpu_is_refused(
    samples: list[Sample], tmp_path: Path, elsewhere: Elsewhere
):
    model = away(tiny.reward())
    model.model.norm.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="meta"):
        score(model, seen(model, samples, tmp_path), samples, [["a"]] * 3, 3)
