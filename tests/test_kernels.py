"""The attention of packed rows by name: refused where it cannot be had, and used where it can."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from test_attention import SHAPES, Shapes, dense_attention, out_and_gradients
from torch import Tensor

from ixc.data.samples import write_samples
from ixc.engine.scoring import score
from ixc.models.ixc25 import IXCForRewardModel
from ixc.models.ixc25.folder import load, save
from ixc.models.kernels import NoAttention, refuse_attention, use_attention
from ixc.packing import attention
from ixc.packing.attention import PackedLayout, varlen_attention
from ixc.params import (
    BadParams,
    BestOfNParams,
    BootstrapParams,
    CleanParams,
    EvaluateRMParams,
    GenerateParams,
    TrainPPOParams,
    TrainRMParams,
    load_params,
)
from ixc.stages import best_of_n, bootstrap, clean, evaluate_rm, generate, train_ppo, train_rm

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def varlen_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
) -> Tensor:
    """What `flash_attn_varlen_func` (2.1 and later) promises, in plain formulae.

    Source: its docstring: grouped heads; the causal mask is aligned to the bottom right corner of queries and keys.
    """
    assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (
        int(cu_seqlens_q.diff().max()) == max_seqlen_q
        and int(cu_seqlens_k.diff().max()) == max_seqlen_k
    )
    parts = []
    for (start, end), (first, last) in zip(
        pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True
    ):
        key, value = (x[first:last].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        logits = torch.einsum("qhe,khe->hqk", q[start:end], key) * softmax_scale
        hidden = torch.ones(logits.shape[1:], dtype=torch.bool).triu(
            last - first - (end - start) + 1
        )
        parts.append(
            torch.einsum("hqk,khe->qhe", logits.masked_fill(hidden, -torch.inf).softmax(-1), value)
        )
    return torch.cat(parts)


@pytest.fixture(scope="module")
def flash_attn() -> Any:
    """A package flash-attn that computes on the CPU."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = varlen_reference  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn", module)
        yield module


@settings(max_examples=40, deadline=None, database=None)
@given(SHAPES)
@example(((3, ()), (4, ())))  # prompts without answers
@example(((9, (2, 0, 3)),))  # an empty branch
@example(((0, (5, 2)),))  # nothing in common
def test_flash_attention_in_one_call_is_the_dense_mask(flash_attn: Any, shapes: Shapes):
    got, wanted = (
        out_and_gradients(way, PackedLayout(shapes)) for way in (varlen_attention, dense_attention)
    )
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_only_prefixes_of_further_branches_are_read_again():
    plan = attention.varlen(PackedLayout(((3, (2, 4, 1)), (2, ()))), CPU)
    assert plan.keys.tolist() == [0, 1, 2, 3, 4, *[0, 1, 2, 5, 6, 7, 8], *[0, 1, 2, 9], *[10, 11]]
    assert (plan.query_ends.tolist(), plan.key_ends.tolist()) == (
        [0, 5, 9, 10, 12],
        [0, 5, 12, 16, 18],
    )
    assert plan.longest == (5, 7)


@pytest.mark.parametrize(
    ("name", "device", "named"),
    [
        (
            "flash_attention_2",
            CPU,
            "needs a GPU, and the model is on 'cpu'.* flash-attn .*pip install .*ixc.flash.*; or set attention to auto",
        ),
        (
            "flash_attention_2",
            GPU,
            "^attention: 'flash_attention_2': needs the package flash-attn .*attention to auto",
        ),
        (
            "flex",
            CPU,
            "^attention: 'flex': needs a GPU, and the model is on 'cpu'.*attention to auto",
        ),
    ],
)
def test_what_the_machine_lacks_is_named(
    name: Any, device: torch.device, named: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if not installed
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(NoAttention, match=named):
        refuse_attention(name, device)


def test_an_old_gpu_is_named(flash_attn: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(
        NoAttention, match="needs an Ampere GPU or a newer one, not Tesla T4: set attention to flex"
    ):
        refuse_attention("flash_attention_2", GPU)
    refuse_attention("flex", GPU)


@pytest.mark.parametrize(
    ("name", "sizes", "dtype", "named"),
    [
        (
            "flash_attention_2",
            {"hidden_size": 64},
            None,
            "half precision only, and the model in float32: use bf16",
        ),
        (
            "flash_attention_2",
            {"hidden_size": 48},
            torch.bfloat16,
            r"heads of 8, 16, \.\.\. 256 channels, not 12",
        ),
        ("flex", {}, None, "heads of 16 channels at least, not 4"),
    ],
)
def test_what_a_model_does_not_fit_is_named(
    name: Any, sizes: dict[str, int], dtype: Any, named: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ixc.models.kernels._of_machine", lambda *_: iter(()))
    with pytest.raises(NoAttention, match=named):
        use_attention(tiny.reward(**sizes), name, dtype)


def test_a_kernel_that_is_missing_is_named_before_any_weight_is_read(tmp_path: Path):
    with pytest.raises(NoAttention, match="needs a GPU"):
        load(tmp_path / "no model there", IXCForRewardModel, attention="flash_attention_2")
    with pytest.raises(
        NoAttention, match="'fast': unknown; one of auto, sdpa, flash_attention_2, flex"
    ):
        load(tmp_path / "no model there", IXCForRewardModel, attention="fast")


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2"])
def test_packed_rows_go_where_they_are_told(
    name: Any, flash_attn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ixc.models.kernels._of_machine", lambda *_: iter(()))
    monkeypatch.setattr(
        "ixc.models.kernels.HALVES", (torch.float32,)
    )  # the reference computes in what it is given
    used, way = [], attention.WAYS[name]
    monkeypatch.setitem(attention.WAYS, name, lambda *given: used.append(given[3]) or way(*given))
    save(tiny.reward(hidden_size=32), tiny.processor(), tmp_path / "reward")
    samples, answers = [tiny.sample("Who?"), tiny.sample("Why, then?")], [["a", "b b"], ["c"]]
    rewards = []
    for told in ("auto", name):
        model, _ = load(tmp_path / "reward", IXCForRewardModel, attention=told)
        rewards.append(
            [
                x
                for row in score(model, tiny.vision_cache(model, tmp_path), samples, answers, 2)
                for x in row
            ]
        )
        assert len(used) == (0 if told == "auto" else 2)  # two layers
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-5)


Stage = Callable[[Any, Path], object]
STAGES: dict[str, tuple[Stage, Any]] = {
    "bootstrap": (lambda p, at: bootstrap.run(p, at / "rows", at, at / "out"), BootstrapParams()),
    "generate": (
        lambda p, at: generate.run(p, at / "rows", at, at / "no", at / "out"),
        GenerateParams(),
    ),
    "train_rm": (
        lambda p, at: train_rm.run(p, at / "rows", at, at / "no", at / "out"),
        TrainRMParams(batch_size=1),
    ),
    "evaluate_rm": (
        lambda p, at: evaluate_rm.run(p, at / "rows", at, at / "no", at / "out"),
        EvaluateRMParams(),
    ),
    "train_ppo": (
        lambda p, at: train_ppo.run(
            p, at / "rows", at / "rows", at, at / "no", at / "no", at / "out"
        ),
        TrainPPOParams(),
    ),
    "best_of_n": (
        lambda p, at: best_of_n.run(p, at / "rows", at, at / "no", at / "no", at / "out"),
        BestOfNParams(),
    ),
    "clean": (
        lambda p, at: clean.run(p, at / "rows", at, at / "no", *(at / name for name in "abcd")),
        CleanParams(),
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_that_computes_refuses_a_kernel_that_it_cannot_have(stage: str, tmp_path: Path):
    run, params = STAGES[stage]
    write_samples([tiny.pair("a", "x", "y", gold=tiny.match("x"))], tmp_path / "rows")
    with pytest.raises(NoAttention, match="attention: 'flex': needs a GPU"):
        run(type(params)(**{**vars(params), "attention": "flex"}), tmp_path)


def test_an_unknown_kernel_is_refused_where_it_is_written(tmp_path: Path):
    text = Path("infra/params/laptop.yaml").read_text()
    (tmp_path / "params.yaml").write_text(
        text.replace("\nclean:\n", "\nclean:\n  attention: flash\n")
    )
    with pytest.raises(
        BadParams, match=r"clean.attention: 'flash': .*'flash_attention_2' or 'flex'"
    ):
        load_params(tmp_path / "params.yaml")
