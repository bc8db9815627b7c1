"""The doors that Transformers' users know: Trainer, PEFT, `generate`, pipelines, the Auto classes, saved folders."""

import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from transformers import Trainer, TrainingArguments

from ixc.losses import bradley_terry_loss
from ixc.model import IXCForCausalLM, IXCForRewardModel, IXCModel, IXCPreTrainedModel
from ixc.model.language import PLoRALinear, WrongPictures

IMAGE = tiny.processor().ids["image"]
IDS = torch.tensor([[1, IMAGE, IMAGE, 30, 31, 32]])
FEATURES = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))


# Trainer: gradients are those of the whole step, however it is cut into batches


class Recording(Trainer):
    """Notes the gradients of every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradients: list[torch.Tensor] = []

    def _clip_grad_norm(self, model: Any) -> Any:
        self.gradients.append(torch.cat([x.grad.flatten().clone() for x in model.parameters() if x.grad is not None]))
        return super()._clip_grad_norm(model)


class OfPairs(Recording):
    """A loss of the user's own making, as TRL's RewardTrainer has it: the mean over the pairs of a batch."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        chosen, rejected = model(**inputs).logits[:, 0].view(-1, 2).unbind(1)
        return bradley_terry_loss(chosen, rejected)


def rows(count: int, wanted: bool = False) -> list[dict[str, Any]]:
    """Texts of unequal lengths, padded on the right; `wanted`: with the score that each should get."""
    made = []
    for i in range(count):
        length = 4 + 5 * i % 7
        ids = torch.tensor([1, *(20 + (7 * i + 3 * j) % 60 for j in range(length - 1)), *[2] * (10 - length)])
        mask = torch.tensor([1] * length + [0] * (10 - length))
        labels = torch.tensor(float(i % 3)) if wanted else torch.where(mask == 1, ids, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def trained(trainer: type[Recording], model: IXCPreTrainedModel, data: Any, steps: int, folder: Path) -> Recording:
    """One optimizer step over eight rows, cut into so many batches."""
    options: dict[str, Any] = {"max_steps": 1, "max_grad_norm": 1e9, "learning_rate": 1e-3, "logging_steps": 1}
    quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    sizes = {"per_device_train_batch_size": len(data) // steps, "gradient_accumulation_steps": steps}
    told = TrainingArguments(str(folder), **options, **quiet, **sizes)
    run = trainer(model=model, args=told, train_dataset=data)
    run.train()
    return run


@pytest.mark.parametrize(
    ("trainer", "build", "data"),
    [
        (Recording, tiny.causal, rows(8)),
        (Recording, tiny.reward, rows(8, wanted=True)),
        (OfPairs, tiny.reward, [{k: v for k, v in row.items() if k != "labels"} for row in rows(8)]),
        (OfPairs, tiny.reward, rows(8, wanted=True)),
    ],
    ids=["SFT", "scores", "pairs", "pairs with labels"],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(trainer: Any, build: Any, data: Any, tmp_path: Path):
    whole, *cut = [trained(trainer, build(), data, steps, tmp_path) for steps in (1, 2, 4)]
    [loss] = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert loss > 0.1 and whole.gradients[0].abs().max() > 1e-3
    for run in cut:
        assert [e["loss"] for e in run.state.log_history if "loss" in e] == [pytest.approx(loss, abs=1e-4)]  # rounded
        torch.testing.assert_close(run.gradients[0], whole.gradients[0], rtol=1e-5, atol=1e-5)


def test_a_loss_is_the_sum_over_the_items_of_the_step():
    # the mean over 5 predicted tokens, times 5, over the 10 of the whole step
    model, labels = tiny.causal(), IDS.masked_fill(IDS == IMAGE, 33)
    alone = model(labels, labels=labels).loss
    torch.testing.assert_close(model(labels, labels=labels, num_items_in_batch=10).loss, alone / 2)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(labels, shift_labels=shifted).loss, alone)
    reward = tiny.reward()
    score = reward(labels).logits.item()
    assert reward(labels, labels=torch.tensor([score + 2])).loss.item() == pytest.approx(4, rel=1e-4)
    assert reward(labels, labels=torch.tensor([[score + 2]]), num_items_in_batch=4).loss.item() == pytest.approx(
        1, rel=1e-4
    )


def test_forward_names_the_pictures_for_trainer_drops_what_it_does_not_name():
    for kind in (IXCForRewardModel, IXCForCausalLM, IXCModel):
        assert {"pixel_values", "tile_grids", "features"} <= set(inspect.signature(kind.forward).parameters)


# Nothing that is given is passed over


@pytest.mark.parametrize("build", [tiny.causal, tiny.reward, lambda: IXCModel(tiny.config())])
def test_an_unknown_argument_of_forward_is_refused_by_name(build: Any):
    model = build()
    for name in ("lables", "pixel_value", "images", "is_causal", "token_type_ids"):
        with pytest.raises(TypeError, match=f"unknown keyword argument '{name}'; "):
            model(IDS, features=FEATURES, **{name: None})
    with pytest.raises(TypeError, match="'pixel_value'; did you mean pixel_values"):
        model(IDS, features=FEATURES, pixel_value=None)
    states = model(IDS, features=FEATURES, output_hidden_states=True, use_cache=True, return_dict=True).hidden_states
    assert len(states) == 3  # the embeddings, and after each of two layers


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ({"pixel_values": torch.zeros(2, 3, 56, 56), "tile_grids": torch.tensor([[1, 1]])}, r"\[3, 56, 56\].*28, 28"),
        ({"pixel_values": torch.zeros(3, 3, 28, 28), "tile_grids": torch.tensor([[1, 1]])}, "3 tiles, but .* of 2"),
        ({"pixel_values": torch.zeros(2, 3, 28, 28)}, "pixel_values with tile_grids"),
        ({"tile_grids": torch.tensor([[1, 1]]), "features": FEATURES}, "pixel_values with tile_grids"),
    ],
)
def test_pictures_of_another_geometry_are_refused(shown: dict[str, Any], message: str):
    with pytest.raises(WrongPictures, match=message):
        tiny.reward()(IDS, **shown)


def test_an_id_beyond_the_vocabulary_is_named():
    with pytest.raises(ValueError, match="input_ids: 280: not among the 280 of this model's vocabulary"):
        tiny.causal()(torch.tensor([[1, 280]]))


def test_a_loss_of_some_columns_is_refused():
    with pytest.raises(ValueError, match="logits_to_keep: 1: the loss needs all columns"):
        tiny.causal()(IDS, features=FEATURES, labels=IDS, logits_to_keep=1)


# PEFT


@pytest.mark.parametrize(("build", "task"), [(tiny.causal, "CAUSAL_LM"), (tiny.reward, "SEQ_CLS"), (tiny.reward, None)])
def test_peft_finds_all_linear_layers(build: Any, task: Any, tmp_path: Path):
    plain = build()(IDS, features=FEATURES).logits
    model = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules="all-linear", task_type=task))
    torch.testing.assert_close(model(input_ids=IDS, features=FEATURES).logits, plain)
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert {"wqkv", "wo", "w1", "w2", "w3", "q_proj", "fc1"} <= adapted
    assert not {"Plora_A", "Plora_B", "output"} & adapted
    for name, weights in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weights)
    trained = model(input_ids=IDS, features=FEATURES).logits
    assert not torch.allclose(trained, plain)
    model.save_pretrained(str(tmp_path))
    loaded: Any = peft.PeftModel.from_pretrained(build(), str(tmp_path))
    torch.testing.assert_close(loaded(input_ids=IDS, features=FEATURES).logits, trained)
    merged = loaded.merge_and_unload()
    assert sum(isinstance(module, PLoRALinear) for module in merged.modules()) == 10
    torch.testing.assert_close(merged(IDS, features=FEATURES).logits, trained, rtol=1e-4, atol=1e-5)
