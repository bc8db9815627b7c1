"""The tower's attention is the one that the model is told."""

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TILES = torch.randn(3, 3, tiny.TILE, tiny.TILE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def patches(implementation: str) -> torch.Tensor:
    model = tiny.reward()
    model.set_attn_implementation(implementation)
    return model.vit(TILES)


def test_all_implementations_give_the_same_patches():
    torch.testing.assert_close(patches("eager"), patches("sdpa"))


def test_every_patch_attends_to_every_other_by_the_plain_kernel():
    attention: Any = tiny.reward().get_submodule(
        "vit.vision_tower.vision_model.encoder.layers.0.self_attn"
    )
    attention.config._attn_implementation = "sdpa"
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    q, k, v = (
        p(x).unflatten(-1, (2, 4)).transpose(1, 2)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    wanted = attention.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    assert torch.equal(attention(x), wanted)  # bit by bit


def test_another_implementation_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []

    def silent(
        module: Any, q: torch.Tensor, k: Any, v: Any, mask: Any, is_causal: bool, **kwargs: Any
    ) -> Any:
        asked.append(is_causal)
        return torch.zeros_like(q).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "silent", silent)
    assert not torch.equal(patches("silent"), patches("sdpa"))
    assert asked == [False]  # of one layer
