"""The base model: a tiny IXC-2.5 trained by SFT on the prompts' reference answers, or a pretrained one resolved."""

import random
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ixc.data.corruption import EVASIVE
from ixc.data.samples import Sample, read_samples
from ixc.engine import distributed
from ixc.engine.batching import shared_out
from ixc.engine.checkpoints import Checkpoints, History, digest
from ixc.engine.optim import seed_everything
from ixc.engine.trainer import Learner, Trainer, make_optimizer, update
from ixc.io.files import replacing_folder, track
from ixc.metrics import Lineage, Log, Metrics, ignore
from ixc.models.ixc25 import (
    IXCConfig,
    IXCForCausalLM,
    IXCProcessor,
    PrefixGroup,
    collate,
    from_official,
)
from ixc.models.ixc25.folder import processor_of, save
from ixc.models.ixc25.kernels import refuse_attention, use_attention
from ixc.models.ixc25.processing import PLACEHOLDER, ImageTiles, train_tokenizer, words_of
from ixc.packing.layout import PackedBatch
from ixc.params import BootstrapParams

Conversation = tuple[Sample, ...]
"""Samples about the same media: one prefix, a response each."""
TILE_COST = 50
"""Characters that take about as long to learn from as a tile of a picture (laptop preset)."""


class NoModel(ValueError):
    """Nothing to start from: what is missing, and what to set."""


FREE = ("attention", "checkpoint_every", "processes")
"""Parameters that change no number, and may therefore differ when a run goes on."""


def run(
    params: BootstrapParams,
    prompts: Path,
    media: Path,
    base: Path,
    *,
    log: Log = ignore,
    lineage: Lineage | None = None,
) -> Metrics:
    """Write the model that every later stage starts from."""
    if params.pretrained is not None:
        return resolve(Path(params.pretrained), base)
    with distributed.joined():
        return learn(params, prompts, media, base, log, lineage)


def learn(
    params: BootstrapParams,
    prompts: Path,
    media: Path,
    base: Path,
    log: Log,
    lineage: Lineage | None = None,
) -> Metrics:
    """Train the tiny model, or go on where a killed run had come to; the first process writes it."""
    refuse_attention(params.attention, distributed.device())
    rng = seed_everything(params.seed)
    samples = [s for s in read_samples(prompts) if s.split == "train" and s.gold and s.gold.answer]
    if not samples:
        raise NoModel(
            f"{prompts}: no training prompt has a reference answer; set bootstrap.pretrained instead"
        )
    processor, model = build(params, samples)
    model.to(distributed.device())  # pyright: ignore[reportArgumentType]
    use_attention(model, params.attention)

    # Beside the model, until it is whole.
    folder = base.with_name(f".{base.name}.checkpoints")
    with Checkpoints(folder, about(params, samples), lineage) as checkpoints:
        history = train(params, model, processor, samples, media, rng, log, checkpoints)
    if distributed.rank() == 0:
        with checkpoints.saving(base):
            save(model, processor, base)
    checkpoints.remove()
    # One step's loss is noise.
    last = [numbers["loss"] for numbers in history[-50:]]
    return {
        "loss": sum(last) / len(last),
        "samples": len(samples),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def about(params: BootstrapParams, samples: Sequence[Sample]) -> dict[str, object]:
    """What a checkpoint must agree in: all that the losses depend on."""
    fixed = {key: value for key, value in asdict(params).items() if key not in FREE}
    return {**fixed, "samples": digest(*samples)}


def resolve(pretrained: Path, base: Path) -> Metrics:
    """Take a pretrained model's folder as it is, or an official checkpoint in our form; one process is enough."""
    if not (pretrained / "config.json").is_file():
        raise NoModel(
            f"bootstrap.pretrained: {str(pretrained)!r}: no config.json there; name a model folder"
        )
    if distributed.rank():
        return {}
    if not (pretrained / "processor_config.json").is_file():
        model = from_official(pretrained)
        save(model, processor_of(pretrained, model), base)
        return {"parameters": 0}
    with replacing_folder(base) as part:
        shutil.copytree(pretrained, part, dirs_exist_ok=True)
    return {"parameters": 0}


def build(
    params: BootstrapParams, samples: Sequence[Sample]
) -> tuple[IXCProcessor, IXCForCausalLM]:
    """A tokenizer trained on the samples, and an untrained model of the asked size."""
    if params.architecture is None:
        raise NoModel("bootstrap: neither `pretrained` nor `architecture` is set; set one of them")
    tokenizer = train_tokenizer(map(words_of, samples), params.architecture.vocab_size)
    processor = IXCProcessor(
        tokenizer,
        params.architecture.tile_size,
        params.architecture.patch_size,
        hd_num=params.hd_num,
    )
    special: dict[str, Any] = {
        "bos_token_id": processor.ids["bos"],
        "eos_token_id": processor.ids["eos"],
        "pad_token_id": processor.ids["eos"],
        "image_token_id": processor.ids["image"],
        "end_of_turn_token_id": processor.ids["turn_end"],
    }
    config = IXCConfig(**special, **asdict(params.architecture), hd_num=params.hd_num)
    return processor, IXCForCausalLM(config)


def train(
    params: BootstrapParams,
    model: IXCForCausalLM,
    processor: IXCProcessor,
    samples: Sequence[Sample],
    media: Path,
    rng: random.Random,
    log: Log,
    checkpoints: Checkpoints,
) -> History:
    """SFT on the answers' tokens, the vision tower included; the numbers of all steps.

    Every process draws the same batches, and does its part of each.
    """
    images = load_images(processor, samples, media)
    groups = conversations(samples)
    optimizer = make_optimizer(
        model, params.learning_rate, params.steps, kind="muon", weight_decay=0.01
    )
    trainer = Trainer(
        "bootstrap",
        {"base": Learner(model, optimizer)},
        params.steps,
        checkpoints,
        log,
        checkpoint_every=params.checkpoint_every,
        rng=rng,
    )
    trainer.resume()
    model.train()
    for step in trainer.steps():
        # All tasks mixed; in the last steps some answers are wrong.
        batch = rng.sample(groups, min(params.batch_size, len(groups)))
        noise = params.noise if step >= params.noise_from * params.steps else 0.0
        draws = [random.Random(rng.random()) for _ in batch]

        # This process's groups, so that all have about as much to do.
        owners = shared_out([cost(group, images) for group in batch], distributed.world_size())
        mine = [place for place, owner in enumerate(owners) if owner == distributed.rank()]

        # The tower is trained too, so images pass it in every step.
        packed: list[PrefixGroup] = []
        tiles: list[ImageTiles] = []
        for place in mine:
            seen = [images[each.sha256] for each in batch[place][0].media]
            packed.append(group_of(processor, batch[place], seen, noise, draws[place]))
            tiles += seen
        features = model.encode_images(tiles)
        layout = collate(packed).to(model.device)

        # One loss of all processes' tokens together.
        loss = answer_loss(model, layout, torch.cat(features) if features else None)
        optimizer.backward(loss)
        rates = update(optimizer, [[sample.id for place in mine for sample in batch[place]]])
        whole = distributed.summed(loss.detach()).item()
        trainer.finish_step({"loss": whole, **rates})
    return trainer.history


def load_images(
    processor: IXCProcessor, samples: Sequence[Sample], media: Path
) -> dict[str, ImageTiles]:
    """Tiles of all the samples' media, by content hash."""
    new = {m.sha256: m for sample in samples for m in sample.media}
    return {
        sha: processor.load(media, m, processor.hd_num)
        for sha, m in track(new.items(), "pictures", len(new))
    }


def cost(group: Conversation, images: Mapping[str, ImageTiles]) -> int:
    """About what a group takes to learn from: its words' characters, and its pictures' tiles as so many."""
    tiles = sum(len(images[media.sha256].tiles) for media in group[0].media)
    characters = 0
    for sample in group:
        characters += sum(len(turn.content) for turn in sample.prompt)
        characters += len(sample.gold.answer) if sample.gold else 0
    return TILE_COST * tiles + characters


def conversations(samples: Sequence[Sample], most: int = 5) -> list[Conversation]:
    """Samples with the same prefix, together: a picture is looked at once for all its questions.

    Texts, which are longer, come in threes, so that rows are of like length and little is padding.
    """
    # A sample that shows several images, or names one by a placeholder, shares its prefix with nobody.
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        alone = len(sample.media) > 1 or PLACEHOLDER in sample.prompt[-1].content
        image = sample.media[0].sha256 if sample.media else "text"
        groups[sample.id if alone else image].append(sample)
    rows: list[Conversation] = []
    for name, group in groups.items():
        size = 3 if name == "text" else most
        rows += [tuple(group[start : start + size]) for start in range(0, len(group), size)]
    return rows


def group_of(
    processor: IXCProcessor,
    group: Conversation,
    images: Sequence[ImageTiles],
    noise: float,
    rng: random.Random,
) -> PrefixGroup:
    """`<s>` and the picture as prefix; of every sample its question, given, and its answer, to be learned."""
    counts = [processor.num_tokens(image) for image in images]
    prompts = [processor.prompt(sample.prompt, counts) for sample in group]
    shared = len(prompts[0]) if len(group) == 1 else 1 + sum(counts)
    answers = [processor.answer(target(sample, noise, rng)) for sample in group]
    responses = [prompt[shared:] + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return PrefixGroup(prompts[0][:shared], responses, [len(ids) - shared for ids in prompts])


def target(sample: Sample, noise: float, rng: random.Random) -> str:
    """The reference answer, or with probability `noise` a wrong one, or one time in five an evasive one."""
    assert sample.gold is not None
    if rng.random() >= noise:
        return sample.gold.answer
    wrong = sample.meta.get("wrong", ())
    return rng.choice(wrong if wrong and rng.random() < 0.8 else EVASIVE)


def answer_loss(
    model: IXCForCausalLM, batch: PackedBatch, image_features: Float[Tensor, "P D"] | None
) -> Float[Tensor, ""]:
    """Cross-entropy of the answers' tokens, nats per token of all processes' together."""
    hidden = model.model(**batch.inputs(), image_features=image_features, columns=batch.target_from)
    logits = model.output(hidden[0])
    tokens = distributed.summed(torch.tensor(float(len(batch.target_ids)), device=logits.device))
    return F.cross_entropy(logits.float(), batch.target_ids, reduction="sum") / tokens
