"""The measurements of the 7B run, and measure what they say."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu import attention, models, score_7b, train_7b
from ixc.engine.preference_groups import MicroBatch
from ixc.packing.attention import PackedLayout, segment_attention
from ixc.packing.layout import PrefixGroup, collate

IMAGE = tiny.processor().ids["image"]
BATCH = MicroBatch([], collate([PrefixGroup([1, IMAGE], [[50, 60], [70]])]))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Two tiles in a row and the global view, a token each."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (56, 28), "teal").save(path)
    return path


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_scoring_is_measured_at_any_size(image: Path):
    model = models.build(tiny.config(), "cpu")
    found = score_7b.measure(model, str(image), answers=2, repeats=1)
    # three tiles, a token each; a newline after either row, and a separator
    assert found["tiles"] == 3
    assert found["tokens"] == 1 + (3 + 2 + 1) + score_7b.PROMPT + 2 * score_7b.ANSWER
    assert math.isfinite(float(found["tokens_per_second"]))


def test_a_line_for_every_number_of_answers(image: Path, capsys: pytest.CaptureFixture[str]):
    score_7b.main(["--tiny", "--device", "cpu", str(image)])
    assert [line["answers"] for line in lines(capsys.readouterr().out)] == list(score_7b.ANSWERS)


def test_a_line_for_every_way_of_training(image: Path, capsys: pytest.CaptureFixture[str]):
    train_7b.main(["--tiny", "--device", "cpu", "--steps", "1", str(image)])
    found = lines(capsys.readouterr().out)
    assert [(line["weights"], line["way"]) for line in found] == [
        ("bf16", "ours"),
        ("bf16", "padded"),
        ("fp32", "ours"),
        ("fp32", "padded"),
    ]
    for line in found:
        assert line["pairs_per_second"] == pytest.approx(2 / float(str(line["seconds"])))
    ours, padded, *_ = (int(str(line["tokens"])) for line in found)
    answers = 4 * train_7b.ANSWER
    assert answers < ours < padded < 2 * ours


def test_what_does_not_fit_is_a_line_that_says_so(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def measure(case: train_7b.Case, *given: object) -> models.Found:
        if case.weights == "fp32":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return {"seconds": 1.0}

    monkeypatch.setattr(train_7b, "measure", measure)
    train_7b.main(["--weights", "fp32", "bf16", "--ways", "ours", "--device", "cpu", str(image)])
    large, small = lines(capsys.readouterr().out)
    assert large["out_of_memory"] == "CUDA out of memory" and "seconds" not in large
    assert small["seconds"] == 1.0


def test_rows_of_a_padded_batch_by_hand():
    rows = train_7b.rows_of(
        MicroBatch([], collate([PrefixGroup([1], [[5, 6], [7]]), PrefixGroup([2], [[8], [9]])]))
    )
    assert [row.tolist() for row in rows] == [[1, 5, 6], [2, 8], [1, 7], [2, 9]]


def test_what_a_layout_needs_by_hand():
    # ours: the prefix with its first answer, 4 (4 + 1) / 2 = 10; the second, 1, which looks at 2 tokens of the prefix
    assert train_7b.need("ours", BATCH, tiny.config(), tiles=2) == (5, 1, 2, 0, 13, 0)
    # 10 + 3 (3 + 1) / 2 = 16; 2 rows of 2 tiles of 4 patches and a class token
    assert train_7b.need("padded", BATCH, tiny.config(), tiles=2) == (7, 2, 7, 2, 16, 20)


def test_operations_of_a_step_by_hand():
    model = models.build(tiny.config(), "cpu")
    language, partial, tower = models.weights_used(model)
    # 2 layers, 16 channels: 16 x 32 + 16 x 16 + 3 x 16 x 24 in matrices, 2 x 16 in norms; and the last norm
    assert language == 2 * (16 * 32 + 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    # rank 3, in and out of each
    assert partial == 2 * 3 * ((16 + 32) + (16 + 16) + 3 * (16 + 24))
    wanted = 6 * (language * 7 + partial * 2) + 12 * 2 * 16 * 16 + 2 * tower * 20
    assert train_7b.operations(model, train_7b.Need(7, 2, 7, 2, 16, 20)) == wanted
    # of the last layer 16 x 16 + 3 x 16 x 24 in matrices, a norm, and the last norm; rank 3 beside each matrix
    unread = 6 * (
        (16 * 16 + 3 * 16 * 24 + 2 * 16) * (7 - 3) + 3 * ((16 + 16) + 3 * (16 + 24)) * (2 - 1)
    )
    assert train_7b.operations(model, train_7b.Need(7, 2, 3, 1, 16, 20)) == wanted - unread


def test_the_share_of_the_peak_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "device_name", lambda device: "NVIDIA H200")
    assert models.share_of_peak(989e12, 4.0, torch.device("cuda")) == 0.25
    monkeypatch.setattr(models, "device_name", lambda device: "another")
    assert math.isnan(models.share_of_peak(1.0, 1.0, torch.device("cuda")))


def test_a_line_for_every_way_of_attention(capsys: pytest.CaptureFixture[str]):
    attention.main(["--tiny", "--device", "cpu"])
    found = lines(capsys.readouterr().out)
    assert [line["way"] for line in found] == ["cascade", "segment"]
    assert all(float(str(line["error"])) < 0.01 for line in found)


def test_operations_of_attention_by_hand():
    # prefix and first response 4 (4 + 1) / 2 = 10, second 1 + 2: 13; 4 for each of 3 heads' 5 channels
    assert attention.operations(PackedLayout(((2, (2, 1)),)), heads=3, channels=5) == 4 * 15 * 13


def parts(call: attention.Call) -> list[tuple[slice, slice]]:
    ends = [list(map(int, x)) for x in (call.query_ends, call.key_ends)]
    return [(slice(a, b), slice(c, d)) for (a, b), (c, d) in zip(*map(pairwise, ends), strict=True)]


def weights_of(q: Tensor, k: Tensor, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    """Logits [H Q K] of grouped heads, and their log-sum-exps."""
    logits = (
        torch.einsum("qhe,khe->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scaling
    )
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
    return logits, logits.logsumexp(-1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, call: attention.Call, scaling: float
) -> tuple[Tensor, ...]:
    """What the flash kernel promises, in plain formulae."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for queries, keys in parts(call):
        logits, lse[:, queries] = weights_of(q[queries], k[keys], call.causal, scaling)
        values = v[keys].repeat_interleave(q.shape[1] // v.shape[1], 1)
        out[queries] = torch.einsum("hqk,khe->qhe", logits.softmax(-1), values)
    return out, lse


def backward(
    given: tuple[Tensor, ...], call: attention.Call, scaling: float, asked: object
) -> tuple[Tensor, ...]:
    """Its backward pass: weights by the log-sum-exp that it is given, FlashAttention-2, algorithm 2."""
    grad, q, k, v, out, lse = given
    totals = tuple(map(torch.zeros_like, (q, k, v)))
    for queries, keys in parts(call):
        logits, _ = weights_of(q[queries], k[keys], call.causal, scaling)
        weights, groups = (logits - lse[:, queries, None]).exp(), q.shape[1] // k.shape[1]
        wide_k, wide_v = (x[keys].repeat_interleave(groups, 1) for x in (k, v))
        of_weights = torch.einsum("qhe,khe->hqk", grad[queries], wide_v)
        own = (grad[queries] * out[queries]).sum(-1).T[..., None]
        of_logits = weights * (of_weights - own) * scaling
        totals[0][queries] = torch.einsum("hqk,khe->qhe", of_logits, wide_k)
        for total, left, right in ((totals[1], of_logits, q), (totals[2], weights, grad)):
            wide = torch.einsum("hqk,qhe->khe", left, right[queries])
            total[keys] = wide.unflatten(1, (-1, groups)).sum(2)
    return totals


@pytest.mark.parametrize(
    "shapes", [((5, (3, 4, 2)), (0, (2, 3)), (4, ()), (6, (1, 2))), ((3, (2,)),)]
)
def test_two_calls_of_flash_attention_are_branch_after_branch(
    shapes: tuple[tuple[int, tuple[int, ...]], ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "forward_kernel", forward)
    monkeypatch.setattr(attention, "backward_kernel", backward)
    layout, generator = PackedLayout(shapes), torch.Generator().manual_seed(0)
    size = len(layout.numbers()[0])
    q, k, v = (torch.randn(1, n, size, 8, generator=generator).requires_grad_() for n in (4, 2, 2))
    found = []
    for way in (attention.flash_attention, segment_attention):
        out = way(q, k, v, layout, 0.3)
        found.append([out, *torch.autograd.grad(out.tanh().sum(), (q, k, v))])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
