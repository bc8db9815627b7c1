"""Adapters change nothing at first, learn beside frozen weights, and end as plain weights and as PEFT's."""

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch

from ixc.data.samples import Sample, write_samples
from ixc.engine.checkpoints import Checkpoints
from ixc.engine.lora import add_lora, merge_lora
from ixc.metrics import ignore
from ixc.models.ixc25 import IXCForRewardModel
from ixc.models.ixc25.folder import save
from ixc.packing.layout import PackedBatch, PrefixGroup, collate
from ixc.params import LoRAParams, TrainRMParams
from ixc.stages.train_rm import History, run, train

LAYERS = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")


def batch() -> PackedBatch:
    return collate([PrefixGroup([1, 25, 26], [[27, 28], [29]]), PrefixGroup([1, 23, 24], [[25]])])


def rewards(model: IXCForRewardModel) -> torch.Tensor:
    return model.response_scores(batch())


def adapted() -> IXCForRewardModel:
    """A model with adapters of random weights."""
    model = tiny.reward()
    model.freeze_vision()
    add_lora(model, rank=3, alpha=6.0)
    for name, weights in model.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(weights, std=0.2)
    return model


def test_new_adapters_change_no_reward():
    model = tiny.reward()
    before = rewards(model)
    add_lora(model, rank=3, alpha=6.0)
    assert torch.equal(rewards(model), before)


def test_adapters_and_the_score_head_are_all_that_is_trained():
    trained = {name for name, p in adapted().named_parameters() if p.requires_grad}
    assert "score.weight" in trained
    names = {name.split(".lora.")[0] for name in trained - {"score.weight"}}
    assert len(names) == 2 * len(LAYERS) and {
        f"{name.split('.')[-1]}.weight" for name in names
    } == set(LAYERS)


def test_merged_adapters_give_the_same_rewards_from_plain_weights():
    model = adapted()
    with_adapters = rewards(model)
    assert not torch.allclose(with_adapters, rewards(tiny.reward()))
    merge_lora(model)
    torch.testing.assert_close(rewards(model), with_adapters)
    assert set(dict(model.named_parameters())) == set(dict(tiny.reward().named_parameters()))
    merge_lora(model)
    torch.testing.assert_close(rewards(model), with_adapters)


def test_an_adapter_adds_alpha_over_rank_of_its_product():
    model, layer = adapted(), "model.layers.0.attention.wo"
    names = ("weight", "lora.up.weight", "lora.down.weight")
    before, up, down = (model.get_parameter(f"{layer}.{name}").detach().clone() for name in names)
    merge_lora(model)
    torch.testing.assert_close(
        model.get_parameter(f"{layer}.weight").data, before + 6.0 / 3 * up @ down
    )


def pairs(root: Path) -> list[Sample]:
    red = tiny.image(root, "red")
    return [tiny.pair(f"{i}?", "good", "bad", [red] if i % 2 else []) for i in range(16)]


def learned(root: Path, **options: Any) -> tuple[History, IXCForRewardModel]:
    torch.manual_seed(0)
    model = tiny.reward()
    model.freeze_vision()
    lora = LoRAParams(rank=4, alpha=8.0)
    add_lora(model, lora.rank, lora.alpha)
    if options.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable()
    params = TrainRMParams(epochs=12, batch_size=8, learning_rate=1e-2, lora=lora, **options)
    vision_cache = tiny.vision_cache(model, root)
    history, _ = train(
        params, model, vision_cache, pairs(root), ignore, Checkpoints(root / "state", {})
    )
    merge_lora(model)
    return history, model


def test_training_moves_the_layers_and_the_head_and_nothing_else(tmp_path: Path):
    history, model = learned(tmp_path)
    assert history[-1]["loss"] < 0.2 < history[0]["loss"]
    before = tiny.reward().state_dict()
    assert model.state_dict().keys() == before.keys()
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, before[name]) is not name.endswith((*LAYERS, "score.weight")), (
            name
        )


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, {"max_tokens_per_microbatch": 200}]
)
def test_what_saves_memory_changes_no_number(tmp_path: Path, options: dict[str, Any]):
    for mine, yours in zip(learned(tmp_path, **options)[0], learned(tmp_path)[0], strict=True):
        assert mine == pytest.approx(yours, rel=1e-4, abs=1e-5)


def test_the_best_weights_on_held_out_pairs_come_back_merged(tmp_path: Path):
    history, model = learned(tmp_path, held_out=0.3, validate_every=1)
    assert "held_out_loss" in history[-1]
    assert not [name for name in model.state_dict() if ".lora." in name]


def test_peft_loads_the_adapters_that_a_training_leaves(tmp_path: Path):
    """Beside the base model they score as the merged model does."""
    save(tiny.causal(), tiny.processor(), tmp_path / "base")
    write_samples(pairs(tmp_path), tmp_path / "pairs.parquet")
    lora = LoRAParams(rank=4, alpha=6.0)
    params = TrainRMParams(epochs=2, batch_size=8, learning_rate=1e-2, lora=lora)
    reward = tmp_path / "reward"
    run(params, tmp_path / "pairs.parquet", tmp_path, tmp_path / "base", reward)

    merged = IXCForRewardModel.from_pretrained(reward)
    beside: Any = peft.PeftModel.from_pretrained(
        IXCForRewardModel.from_pretrained(tmp_path / "base"), str(reward / "adapter")
    )
    wanted = rewards(merged)
    assert not torch.allclose(rewards(IXCForRewardModel.from_pretrained(tmp_path / "base")), wanted)
    torch.testing.assert_close(rewards(beside.base_model.model), wanted)
    torch.testing.assert_close(rewards(beside.merge_and_unload()), wanted)
