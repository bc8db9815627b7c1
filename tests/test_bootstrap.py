"""The base model: trained from prompts with answers, or taken as it is."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ixc.data.corruption import EVASIVE
from ixc.data.samples import write_samples
from ixc.engine.checkpoints import OtherRun
from ixc.models.base import BadArchitecture
from ixc.models.ixc25 import IXCForCausalLM, IXCProcessor, to_official
from ixc.models.ixc25.folder import load
from ixc.packing.layout import Prompt
from ixc.params import BootstrapParams
from ixc.stages.bootstrap import NoModel, build, conversations, group_of, run, target, words_of


def test_a_base_is_trained_from_prompts_and_can_be_loaded(tmp_path: Path):
    red, blue = (tiny.image(tmp_path / "media", colour) for colour in ("red", "blue"))
    samples = [
        tiny.sample("Which?", [red], id="a", gold=tiny.match("red")),
        tiny.sample("Which?", [blue], id="b", gold=tiny.match("blue")),
        tiny.sample("Say yes.", id="c", gold=tiny.match("yes")),
        tiny.sample("Held out.", id="d", split="val", gold=tiny.match("no")),
    ]
    write_samples(samples, tmp_path / "prompts.parquet")
    params = BootstrapParams(
        architecture=tiny.ARCHITECTURE, steps=40, batch_size=3, learning_rate=1e-2
    )
    losses: list[float] = []
    metrics = run(
        params,
        tmp_path / "prompts.parquet",
        tmp_path / "media",
        tmp_path / "base",
        log=lambda numbers, step: losses.append(numbers["loss"]),
    )
    assert metrics["samples"] == 3  # not the held-out one
    assert losses[-1] < losses[0] / 2
    assert IXCForCausalLM.from_pretrained(tmp_path / "base").config.hidden_size == 16
    assert IXCProcessor.from_pretrained(tmp_path / "base").tile_size == 28


class Killed(BaseException):
    """What a kill is to the code."""


def test_a_killed_training_ends_in_exactly_the_numbers_of_one_that_was_not(tmp_path: Path):
    media = [tiny.image(tmp_path, colour) for colour in ("red", "blue")]
    samples = [
        tiny.sample(f"{i}?", [media[i % 2]] if i % 3 else [], id=str(i), gold=tiny.match("yes"))
        for i in range(12)
    ]
    write_samples(samples, tmp_path / "prompts.parquet")

    def curve(name: str, kill_after: int | None = None, **options: Any) -> list[dict[str, float]]:
        curve: list[dict[str, float]] = []

        def log(numbers: dict[str, float], step: int) -> None:
            assert step == len(curve)
            curve.append(numbers)
            if step + 1 == kill_after:
                raise Killed

        sizes: dict[str, Any] = {"steps": 8, "batch_size": 3, "noise": 0.5, "noise_from": 0.5}
        params = BootstrapParams(
            architecture=tiny.ARCHITECTURE, checkpoint_every=2, **(sizes | options)
        )
        run(params, tmp_path / "prompts.parquet", tmp_path, tmp_path / name, log=log)
        return curve

    whole = curve("whole")
    for step in (3, 7):
        with pytest.raises(Killed):
            curve("killed", kill_after=step)
    with pytest.raises(OtherRun, match=r"noise was 0.5, is 0.1; set it back"):
        curve("killed", noise=0.1)
    assert curve("killed") == whole
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / ".killed.checkpoints").exists()


def test_a_pretrained_model_is_taken_as_it_is(tmp_path: Path):
    (tmp_path / "own").mkdir()
    for name in ("config.json", "processor_config.json"):
        (tmp_path / "own" / name).write_text("{}")
    params = BootstrapParams(pretrained=str(tmp_path / "own"))
    run(params, tmp_path / "prompts.parquet", tmp_path / "media", tmp_path / "base")
    assert (tmp_path / "base" / "config.json").read_text() == "{}"


def test_an_official_checkpoint_becomes_a_folder_of_ours(tmp_path: Path):
    model = tiny.causal()
    to_official(model, tmp_path / "official")
    tiny.processor().tokenizer.save(str(tmp_path / "official" / "tokenizer.json"))
    params = BootstrapParams(pretrained=str(tmp_path / "official"))
    run(params, tmp_path / "prompts.parquet", tmp_path / "media", tmp_path / "base")
    taken, processor = load(tmp_path / "base", IXCForCausalLM)
    assert all(
        torch.equal(taken.state_dict()[name], weight) for name, weight in model.state_dict().items()
    )
    assert processor.tile_size == tiny.TILE


def test_a_pretrained_folder_without_a_model_is_refused_by_name(tmp_path: Path):
    params = BootstrapParams(pretrained=str(tmp_path / "absent"))
    with pytest.raises(NoModel, match=r"bootstrap\.pretrained: .*absent': no config\.json there"):
        run(params, tmp_path / "prompts.parquet", tmp_path / "media", tmp_path / "base")


def test_sizes_that_make_no_model_are_named_as_in_params():
    params = BootstrapParams(architecture={**tiny.ARCHITECTURE, "hidden_size": -1, "rank": 2})
    with pytest.raises(BadArchitecture) as caught:
        build(params, [tiny.sample("What?")])
    assert str(caught.value).splitlines() == [
        "bootstrap.architecture.hidden_size: -1: Input should be greater than 0",
        "bootstrap.architecture.rank: unknown key; remove it or correct its spelling",
    ]
    with pytest.raises(ValueError, match="no family; add it, such as"):
        BootstrapParams(architecture={"hidden_size": 16})


def test_a_tokenizer_learns_from_prompts_and_reference_answers():
    sample = tiny.sample("What colour?", gold=tiny.match("red"))
    assert words_of(sample) == "What colour?\nred"


def test_questions_on_one_image_share_it_and_texts_share_only_the_start(tmp_path: Path):
    red = tiny.image(tmp_path, "red")
    about = [
        tiny.sample(text, [red], id=text, gold=tiny.match("red")) for text in ("What?", "Which?")
    ]
    texts = [tiny.sample(text, id=text, gold=tiny.match("yes")) for text in ("A?", "B?", "C?")]
    groups = conversations([about[0], *texts, about[1]])
    assert [[s.id for s in group] for group in groups] == [["What?", "Which?"], ["A?", "B?", "C?"]]

    processor = tiny.processor()
    laid = group_of(processor, groups[1], [], 0.0, random.Random(0))
    assert laid.prompt == Prompt([processor.ids["bos"]], (range(1),), 1)
    assert processor.decode(laid.responses[0][laid.free[0] :]) == "yes"


def test_noise_replaces_its_share_of_the_answers():
    sample = tiny.sample("Which?", gold=tiny.match("right"), meta={"wrong": ["wrong"]})
    rng = random.Random(0)
    said = Counter(target(sample, 0.4, rng) for _ in range(4000))
    # 60 % right; of the noise 80 % wrong (32 %) and 20 % evasive (8 %); three deviations are 2.3 points
    assert said["right"] / 4000 == pytest.approx(0.6, abs=0.024)
    assert said["wrong"] / 4000 == pytest.approx(0.32, abs=0.024)
    assert sum(said[text] for text in EVASIVE) / 4000 == pytest.approx(0.08, abs=0.024)
    assert target(sample, 0.0, rng) == "right"
