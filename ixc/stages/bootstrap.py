"""The base model: a tiny IXC-2.5 trained by SFT on the prompts' reference answers, or a pretrained one resolved."""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
from ixc.engine.optim import MuonOptimizer, seed_everything
from ixc.io.files import replacing_folder, track
from ixc.metrics import Log, Metrics, ignore
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


def run(
    params: BootstrapParams, prompts: Path, media: Path, base: Path, *, log: Log = ignore
) -> Metrics:
    """Write the model that every later stage starts from."""
    if params.pretrained is not None:
        return resolve(Path(params.pretrained), base)
    with distributed.joined():
        return learn(params, prompts, media, base, log)


def learn(params: BootstrapParams, prompts: Path, media: Path, base: Path, log: Log) -> Metrics:
    """Train the tiny model; the first process writes it."""
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
    losses = list(train(params, model, processor, samples, media, rng, log))
    if distributed.rank() == 0:
        save(model, processor, base)
    tail = losses[-50:]
    return {
        "loss": sum(tail) / len(tail),
        "samples": len(samples),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


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
) -> Iterator[float]:
    """SFT on the answers' tokens, the vision tower included; yields the losses.

    Every process draws the same batches, and does its part of each.
    """
    images = load_images(processor, samples, media)
    groups = conversations(samples)
    optimizer = MuonOptimizer(model, params.learning_rate, params.steps, weight_decay=0.01)
    model.train()
    for step in track(range(params.steps), "bootstrap", params.steps):
        batch = rng.sample(groups, min(params.batch_size, len(groups)))  # all tasks mixed
        noise = params.noise if step >= params.noise_from * params.steps else 0.0
        draws = [random.Random(rng.random()) for _ in batch]
        owners = shared_out([cost(group, images) for group in batch], distributed.world_size())
        mine = [place for place, owner in enumerate(owners) if owner == distributed.rank()]
        shown = [[images[m.sha256] for m in batch[place][0].media] for place in mine]
        packed = [
            group_of(processor, batch[place], seen, noise, draws[place])
            for place, seen in zip(mine, shown, strict=True)
        ]
        image_features = model.encode_images([image for seen in shown for image in seen])
        layout = collate(packed).to(model.device)
        loss = answer_loss(model, layout, torch.cat(image_features) if image_features else None)
        rates = optimizer.step(loss)
        whole = distributed.summed(loss.detach()).item()
        log({"loss": whole, **rates}, step)
        yield whole


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
    texts = (
        text
        for s in group
        for text in (*(turn.content for turn in s.prompt), s.gold.answer if s.gold else "")
    )
    return TILE_COST * tiles + sum(map(len, texts))


def conversations(samples: Sequence[Sample], most: int = 5) -> list[Conversation]:
    """Samples with the same prefix, together: a picture is looked at once for all its questions.

    Texts, which are longer, come in threes, so that rows are of like length and little is padding.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        alone = len(sample.media) > 1 or PLACEHOLDER in sample.prompt[-1].content
        groups[sample.id if alone else sample.media[0].sha256 if sample.media else "text"].append(
            sample
        )
    chunks = [(group, 3 if name == "text" else most) for name, group in groups.items()]
    return [
        tuple(group[i : i + size]) for group, size in chunks for i in range(0, len(group), size)
    ]


def group_of(
    processor: IXCProcessor,
    group: Conversation,
    images: Sequence[ImageTiles],
    noise: float,
    rng: random.Random,
) -> PrefixGroup:
    """`<s>` and the picture as prefix; of every sample its question, given, and its answer, to be learned."""
    counts = [processor.num_tokens(p) for p in images]
    whole = [processor.prompt(sample.prompt, counts) for sample in group]
    shared = len(whole[0]) if len(group) == 1 else 1 + sum(counts)
    answers = [processor.answer(target(sample, noise, rng)) for sample in group]
    responses = [ids[shared:] + said for ids, said in zip(whole, answers, strict=True)]
    return PrefixGroup(whole[0][:shared], responses, [len(ids) - shared for ids in whole])


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
    logits = model.output(
        model.model(**batch.inputs(), image_features=image_features, columns=batch.target_from)[0]
    )
    tokens = distributed.summed(torch.tensor(float(len(batch.target_ids)), device=logits.device))
    return F.cross_entropy(logits.float(), batch.target_ids, reduction="sum") / tokens
