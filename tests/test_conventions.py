"""The doors that Transformers' users know: Trainer, PEFT, `generate`, pipelines, the Auto classes, saved folders."""

import inspect
import re
import stat
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from ixc.engine.losses import bradley_terry_loss
from ixc.models.ixc25 import (
    IXCForCausalLM,
    IXCForRewardModel,
    IXCModel,
    IXCPreTrainedModel,
    IXCProcessor,
    to_official,
)
from ixc.models.ixc25.folder import is_ours, save
from ixc.models.ixc25.language import PLoRALinear, WrongImages
from ixc.models.ixc25.processing import BadConversation

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
        self.gradients.append(
            torch.cat([x.grad.flatten().clone() for x in model.parameters() if x.grad is not None])
        )
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
        ids = torch.tensor(
            [1, *(20 + (7 * i + 3 * j) % 60 for j in range(length - 1)), *[2] * (10 - length)]
        )
        mask = torch.tensor([1] * length + [0] * (10 - length))
        labels = torch.tensor(float(i % 3)) if wanted else torch.where(mask == 1, ids, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def trained(
    trainer: type[Recording], model: IXCPreTrainedModel, data: Any, steps: int, folder: Path
) -> Recording:
    """One optimizer step over eight rows, cut into so many batches."""
    options: dict[str, Any] = {
        "max_steps": 1,
        "max_grad_norm": 1e9,
        "learning_rate": 1e-3,
        "logging_steps": 1,
    }
    quiet: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    sizes: dict[str, Any] = {
        "per_device_train_batch_size": len(data) // steps,
        "gradient_accumulation_steps": steps,
    }
    told = TrainingArguments(str(folder), **options, **quiet, **sizes)
    run = trainer(model=model, args=told, train_dataset=data)
    run.train()
    return run


@pytest.mark.parametrize(
    ("trainer", "build", "data"),
    [
        (Recording, tiny.causal, rows(8)),
        (Recording, tiny.reward, rows(8, wanted=True)),
        (
            OfPairs,
            tiny.reward,
            [{k: v for k, v in row.items() if k != "labels"} for row in rows(8)],
        ),
        (OfPairs, tiny.reward, rows(8, wanted=True)),
    ],
    ids=["SFT", "scores", "pairs", "pairs with labels"],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(
    trainer: Any, build: Any, data: Any, tmp_path: Path
):
    whole, *cut = [trained(trainer, build(), data, steps, tmp_path) for steps in (1, 2, 4)]
    [loss] = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert loss > 0.1 and whole.gradients[0].abs().max() > 1e-3
    for run in cut:
        assert [e["loss"] for e in run.state.log_history if "loss" in e] == [
            pytest.approx(loss, abs=1e-4)
        ]  # rounded
        torch.testing.assert_close(run.gradients[0], whole.gradients[0], rtol=1e-5, atol=1e-5)


def test_trainer_evaluates_too(tmp_path: Path):
    told: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    cases: list[tuple[Any, Any]] = [(tiny.causal(), rows(4)), (tiny.reward(), rows(4, wanted=True))]
    for model, data in cases:
        trainer = Trainer(
            model=model, args=TrainingArguments(str(tmp_path), **told), eval_dataset=data
        )
        batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
        assert trainer.evaluate()["eval_loss"] == pytest.approx(
            model(**batch).loss.item(), abs=1e-4
        )
    predicted: Any = trainer.predict(data).predictions
    assert predicted.shape == (4, 1)


def test_a_loss_is_the_sum_over_the_items_of_the_step():
    # the mean over 5 predicted tokens, times 5, over the 10 of the whole step
    model, labels = tiny.causal(), IDS.masked_fill(IDS == IMAGE, 33)
    alone = model(labels, labels=labels).loss
    torch.testing.assert_close(model(labels, labels=labels, num_items_in_batch=10).loss, alone / 2)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(labels, shift_labels=shifted).loss, alone)
    reward = tiny.reward()
    score = reward(labels).logits.item()
    assert reward(labels, labels=torch.tensor([score + 2])).loss.item() == pytest.approx(
        4, rel=1e-4
    )
    assert reward(
        labels, labels=torch.tensor([[score + 2]]), num_items_in_batch=4
    ).loss.item() == pytest.approx(1, rel=1e-4)


def test_forward_names_the_images_for_trainer_drops_what_it_does_not_name():
    for kind in (IXCForRewardModel, IXCForCausalLM, IXCModel):
        assert {"pixel_values", "tile_grids", "image_features"} <= set(
            inspect.signature(kind.forward).parameters
        )


# Nothing that is given is passed over


@pytest.mark.parametrize("build", [tiny.causal, tiny.reward, lambda: IXCModel(tiny.config())])
def test_an_unknown_argument_of_forward_is_refused_by_name(build: Any):
    model = build()
    for name in ("lables", "pixel_value", "images", "is_causal", "token_type_ids"):
        with pytest.raises(TypeError, match=f"unknown keyword argument '{name}'; "):
            model(IDS, image_features=FEATURES, **{name: None})
    with pytest.raises(TypeError, match="'pixel_value'; did you mean pixel_values"):
        model(IDS, image_features=FEATURES, pixel_value=None)
    states = model(
        IDS, image_features=FEATURES, output_hidden_states=True, use_cache=True, return_dict=True
    ).hidden_states
    assert len(states) == 3  # the embeddings, and after each of two layers


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (
            {"pixel_values": torch.zeros(2, 3, 56, 56), "tile_grids": torch.tensor([[1, 1]])},
            r"\[3, 56, 56\].*28, 28",
        ),
        (
            {"pixel_values": torch.zeros(3, 3, 28, 28), "tile_grids": torch.tensor([[1, 1]])},
            "3 tiles, but .* of 2",
        ),
        ({"pixel_values": torch.zeros(2, 3, 28, 28)}, "pixel_values with tile_grids"),
        (
            {"tile_grids": torch.tensor([[1, 1]]), "image_features": FEATURES},
            "pixel_values with tile_grids",
        ),
    ],
)
def test_images_of_another_geometry_are_refused(shown: dict[str, Any], message: str):
    with pytest.raises(WrongImages, match=message):
        tiny.reward()(IDS, **shown)


def test_an_id_beyond_the_vocabulary_is_named():
    with pytest.raises(
        ValueError, match="input_ids: 280: not among the 280 of this model's vocabulary"
    ):
        tiny.causal()(torch.tensor([[1, 280]]))


def test_a_loss_of_some_columns_is_refused():
    with pytest.raises(ValueError, match="logits_to_keep: 1: the loss needs all columns"):
        tiny.causal()(IDS, image_features=FEATURES, labels=IDS, logits_to_keep=1)


# PEFT


@pytest.mark.parametrize(
    ("build", "task"), [(tiny.causal, "CAUSAL_LM"), (tiny.reward, "SEQ_CLS"), (tiny.reward, None)]
)
def test_peft_finds_all_linear_layers(build: Any, task: Any, tmp_path: Path):
    plain = build()(IDS, image_features=FEATURES).logits
    model = peft.get_peft_model(
        build(), peft.LoraConfig(r=2, target_modules="all-linear", task_type=task)
    )
    torch.testing.assert_close(model(input_ids=IDS, image_features=FEATURES).logits, plain)
    adapted = {
        name.split(".lora_A")[0].split(".")[-1]
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }
    assert {"wqkv", "wo", "w1", "w2", "w3", "q_proj", "fc1"} <= adapted
    assert not {"Plora_A", "Plora_B", "output"} & adapted
    for name, weights in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weights)
    trained = model(input_ids=IDS, image_features=FEATURES).logits
    assert not torch.allclose(trained, plain)
    model.save_pretrained(str(tmp_path))
    loaded: Any = peft.PeftModel.from_pretrained(build(), str(tmp_path))
    torch.testing.assert_close(loaded(input_ids=IDS, image_features=FEATURES).logits, trained)
    merged = loaded.merge_and_unload()
    assert sum(isinstance(module, PLoRALinear) for module in merged.modules()) == 10
    torch.testing.assert_close(
        merged(IDS, image_features=FEATURES).logits, trained, rtol=1e-4, atol=1e-5
    )


# Generation


ASKED = [{"role": "user", "content": "Hi"}]
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def test_prompts_are_padded_on_the_left_so_that_a_short_one_answers_as_alone():
    processor, model = tiny.processor(), tiny.causal()
    chats = [ASKED, [{"role": "user", "content": "A much longer question than that."}]]
    together = processor(chats, for_reward=False)
    assert together["attention_mask"][0, 0] == 0 and together["attention_mask"][:, -1].all()
    answers = model.generate(**together, **GREEDY)[:, together["input_ids"].shape[1] :]
    for chat, answer in zip(chats, answers, strict=True):
        alone = processor(chat, for_reward=False)
        wanted = model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :]
        assert answer[: len(wanted)].tolist() == wanted.tolist()
    scored = [[*chat, {"role": "assistant", "content": "Yes."}] for chat in chats]
    assert processor(scored)["attention_mask"][0, 0] == 1
    assert processor(chats, for_reward=False, padding_side="right")["attention_mask"][0, 0] == 1
    # a folder that was saved with the old default
    old = type(processor)(processor.backend, tiny.TILE, tiny.PATCH, 4, padding_side="right")
    assert old(chats, for_reward=False)["attention_mask"][:, -1].all()


def test_positions_do_not_count_the_padding():
    model, ids = tiny.causal(), torch.tensor([[2, 2, 1, 30, 31], [1, 40, 41, 42, 43]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    together, alone = model(ids, mask).logits[0, 2:], model(ids[:1, 2:]).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_ends_in_padding_is_refused():
    batch = tiny.processor()(
        [ASKED, [{"role": "user", "content": "Longer."}]], for_reward=False, padding_side="right"
    )
    with pytest.raises(
        ValueError, match=r"attention_mask: row 0: padded on the right.*padding_side=.left"
    ):
        tiny.causal().generate(**batch, **GREEDY)


def test_an_unknown_argument_of_generate_is_refused():
    with pytest.raises(ValueError, match="pixel_value"):
        tiny.causal().generate(IDS[:, 3:], pixel_value=1, **GREEDY)


def test_a_string_stops_an_answer():
    model, tokenizer = tiny.causal(), tiny.processor().tokenizer
    prompt = tiny.processor()(ASKED, for_reward=False)
    start = prompt["input_ids"].shape[1]
    free = model.generate(**prompt, **GREEDY)[0, start:]
    text = tokenizer.decode(free[:4])
    stop = text[-1]
    first = next(i for i in range(len(free)) if stop in tokenizer.decode(free[: i + 1]))
    stopped = model.generate(**prompt, **GREEDY, stop_strings=[stop], tokenizer=tokenizer)[
        0, start:
    ]
    assert first + 1 < len(free)
    assert stopped.tolist() == free[: first + 1].tolist()


# Pipelines and Auto classes, from a folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model and a reward model, saved."""
    root = tmp_path_factory.mktemp("models")
    save(tiny.causal(), tiny.processor(), root / "chat")
    save(tiny.reward(), tiny.processor(), root / "reward")
    return root


RED = Image.new("RGB", (84, 28), "red")


def answer_of(**shown: Any) -> str:
    """What the model answers, by hand; control tokens it does not say."""
    model, processor = tiny.causal(), tiny.processor()
    model.suppress_control(processor)
    batch = processor(**shown, for_reward=False)
    ids = model.generate(**batch, **GREEDY)
    return processor.decode(ids[0].tolist())[
        len(processor.decode(batch["input_ids"][0].tolist())) :
    ]


def test_a_pipeline_answers_about_images(folders: Path):
    pipe: Any = pipeline("image-text-to-text", model=str(folders / "chat"))
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": RED}, {"type": "text", "text": "Which?"}],
        }
    ]
    options: dict[str, Any] = {"generate_kwargs": GREEDY, "return_full_text": False}
    wanted = answer_of(text=[{"role": "user", "content": "<ImageHere>Which?"}], images=[RED])
    assert [one["generated_text"] for one in pipe(text=chat, **options)] == [wanted]
    assert [
        [one["generated_text"] for one in row] for row in pipe(text=[chat, chat], **options)
    ] == [[wanted]] * 2
    [full] = pipe(text=chat, generate_kwargs=GREEDY)
    assert full["generated_text"] == [*chat, {"role": "assistant", "content": wanted}]
    [plain] = pipe(images=RED, text="Which?", **options)
    assert plain["generated_text"] == answer_of(text="Which?", images=RED)
    stopped = pipe(text=chat, stop_sequence=wanted[:1], **options)
    assert wanted.startswith(stopped[0]["generated_text"])


def test_a_pipeline_scores_without_softmax_or_sigmoid(folders: Path):
    pipe: Any = pipeline("text-classification", model=str(folders / "reward"))
    answers = ("Yes.", "No.", "A long answer of many words, this.", "7")
    chats = [[*ASKED, {"role": "assistant", "content": answer}] for answer in answers]
    scores = [tiny.reward()(**tiny.processor()(chat)).logits.item() for chat in chats]
    score, chat = min(zip(scores, chats, strict=True), key=lambda one: one[0])
    assert score < 0  # which no sigmoid gives
    assert pipe.model.config.num_labels == 1
    assert pipe({"text": "Hi", "text_pair": chat[1]["content"]})["score"] == pytest.approx(
        score, abs=1e-5
    )
    assert pipe({"text": chat})["score"] == pytest.approx(score, abs=1e-5)
    text = pipe.tokenizer.apply_chat_template(chat, tokenize=False)
    assert pipe(text, split_special_tokens=False)[0]["score"] == pytest.approx(score, abs=1e-5)
    with pytest.warns(UserWarning, match="control strings are read as text; give the chat itself"):
        assert pipe(text)[0]["score"] != pytest.approx(score, abs=1e-2)
    both = pipe(
        [{"text": chat}, {"text": [*ASKED, {"role": "assistant", "content": "No."}]}], batch_size=2
    )
    assert both[0]["score"] == pytest.approx(score, abs=1e-5)
    [plain] = pipe("Hi")
    wanted = tiny.reward()(torch.tensor([tiny.processor().encode("Hi")])).logits.item()
    assert plain["score"] == pytest.approx(wanted, abs=1e-5)


def test_more_labels_than_one_are_refused(folders: Path):
    with pytest.raises(ValueError, match=r"num_labels: 3.*a reward is one number"):
        AutoModelForSequenceClassification.from_pretrained(folders / "reward", num_labels=3)
    assert (
        AutoModelForSequenceClassification.from_pretrained(
            folders / "reward", num_labels=1
        ).config.num_labels
        == 1
    )


TEXTS = [
    "",
    " two  spaces\n\ttab ",
    "Grüße, 世界 🙂",
    "12345 67",
    "</s><s>[UNUSED_TOKEN_146]user\nHi[UNUSED_TOKEN_145]",
]


@pytest.mark.parametrize("config", [True, False])
def test_the_auto_tokenizer_has_the_ids_of_the_processor(
    folders: Path, config: bool, tmp_path: Path
):
    processor = IXCProcessor(tiny.processor().backend, tiny.TILE, tiny.PATCH, 4, tail_newline=True)
    save(tiny.reward(), processor, tmp_path / "model")
    if not config:  # as folders were written before
        (tmp_path / "model" / "tokenizer_config.json").unlink()
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == tokenizer.encode(text) == processor.encode(text)
        assert tokenizer.decode(processor.encode(text)) == text
    chat = [*ASKED, {"role": "assistant", "content": TEXTS[-1]}]
    [wanted] = processor(chat, return_tensors=None)["input_ids"]
    assert tokenizer.apply_chat_template(chat)["input_ids"] == wanted
    assert tokenizer.apply_chat_template([chat, chat], return_dict=False) == [wanted, wanted]
    assert tokenizer("Hi", TEXTS[-1])["input_ids"] == wanted
    [opened] = processor(ASKED, for_reward=False, return_tensors=None)["input_ids"]
    assert tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"] == opened
    assert tokenizer.apply_chat_template(chat, tokenize=False) == processor.apply_chat_template(
        chat, tokenize=False
    )
    padded = tokenizer([chat, [*ASKED, *chat]], padding=True, return_tensors="pt")
    assert (
        padded["input_ids"][0, -len(wanted) :].tolist() == wanted
        and padded["attention_mask"][0, 0] == 0
    )
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (
        "</s>",
        "</s>",
        "<s>",
    )


@pytest.mark.parametrize(
    ("chat", "options", "message"),
    [
        (ASKED, {}, "the chat ends with 'user': give add_generation_prompt=True"),
        (
            ASKED,
            {"truncation": True},
            "truncation: True: not done for a chat; nothing of a chat is ever cut off",
        ),
        (ASKED, {"tools": [1]}, "tools: .*leave it out"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            {"add_generation_prompt": True},
            "0 images but 1 pl",
        ),
    ],
)
def test_the_tokenizer_refuses_what_it_cannot_do(chat: Any, options: Any, message: str):
    with pytest.raises(BadConversation, match=message):
        tiny.processor().tokenizer.apply_chat_template(chat, **options)


# Saved folders


def test_a_saved_folder_is_readable_and_has_a_model_card(folders: Path, tmp_path: Path):
    to_official(tiny.reward(), tmp_path / "official")
    tiny.reward().save_pretrained(tmp_path / "plain")
    for folder in (folders / "chat", folders / "reward", tmp_path / "official", tmp_path / "plain"):
        wanted = folder.stat().st_mode & 0o666
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {wanted}
        card: Any = ModelCard.load(folder / "README.md")
        scores = folder != folders / "chat"
        assert card.data.pipeline_tag == ("text-classification" if scores else "image-text-to-text")
        assert "15,780" in card.text or not scores
    assert is_ours(folders / "chat") and is_ours(tmp_path / "official")


def test_a_strangers_card_and_files_stay_as_they_are(tmp_path: Path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    tiny.reward().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert not is_ours(tmp_path)


def test_the_code_on_a_card_runs(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    RED.save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    for name in ("chat", "reward"):
        [code] = re.findall(
            r"```python\n(.*?)```", (folders / name / "README.md").read_text(), re.DOTALL
        )
        exec(code.replace("path/to/this/folder", str(folders / name)), {})
