"""The base model: a tiny one trained by SFT on the prompts' reference answers, or a pretrained one resolved."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ixc.data.corruption import EVASIVE
from ixc.data.samples import PLACEHOLDER, Sample, read_samples
from ixc.engine import distributed
from ixc.engine.batching import shared_out
from ixc.engine.checkpoints import Checkpoints, History, digest
from ixc.engine.optim import seed_everything
from ixc.engine.trainer import Learner, Trainer, make_optimizer, update
from ixc.io.files import track
from ixc.metrics import Lineage, Log, Metrics, ignore
from ixc.models import adopt, save
from ixc.models import build as build_model
from ixc.models.base import BadArchitecture, LoadedImage, PolicyModel, Processor
from ixc.models.kernels import refuse_attention, use_attention
from ixc.packing.layout import PackedBatch, PrefixGroup, collate
from ixc.params import BootstrapParams

Conversation = tuple[Sample, ...]
"""Samples about the same media: one prefix, a response each."""
TILE_COST = 50
"""Characters that take about as long to learn from as a tile of an image (laptop preset)."""


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
    model, processor = build(params, samples)
    model.to(distributed.device())
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
    adopt(pretrained, base)
    return {"parameters": 0}


def build(params: BootstrapParams, samples: Sequence[Sample]) -> tuple[PolicyModel, Processor]:
    """An untrained model of the given size, and a tokenizer trained on the samples.

    Raises:
        BadArchitecture: the model's family cannot be built so.
    """
    if params.architecture is None:
        raise NoModel("bootstrap: neither `pretrained` nor `architecture` is set; set one of them")
    texts = [words_of(sample) for sample in samples]
    try:
        return build_model(params.architecture, params.image_budget, texts)
    except BadArchitecture as error:
        lines = [f"bootstrap.architecture.{line}" for line in str(error).splitlines()]
        raise BadArchitecture("\n".join(lines)) from error


def words_of(sample: Sample) -> str:
    """All text of a sample, for training a tokenizer."""
    answer = sample.gold.answer if sample.gold else ""
    return "\n".join([*(turn.content for turn in sample.prompt), answer])


def train(
    params: BootstrapParams,
    model: PolicyModel,
    processor: Processor,
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
        tiles: list[LoadedImage] = []
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
    processor: Processor, samples: Sequence[Sample], media: Path
) -> dict[str, LoadedImage]:
    """All the samples' media as the tower reads them, by content hash; each has the budget of one that stands alone."""
    media_by_hash = {medium.sha256: medium for sample in samples for medium in sample.media}
    images = {}
    for sha256, medium in track(media_by_hash.items(), "images", len(media_by_hash)):
        [ref] = processor.image_refs([medium])
        images[sha256] = processor.load(media, *ref)
    return images


def cost(group: Conversation, images: Mapping[str, LoadedImage]) -> int:
    """About what a group takes to learn from: its words' characters, and its images' tiles as so many."""
    tiles = sum(images[media.sha256].num_tiles for media in group[0].media)
    characters = 0
    for sample in group:
        characters += sum(len(turn.content) for turn in sample.prompt)
        characters += len(sample.gold.answer) if sample.gold else 0
    return TILE_COST * tiles + characters


def conversations(samples: Sequence[Sample], most: int = 5) -> list[Conversation]:
    """Samples with the same prefix, together: an image passes the tower once for all its questions.

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
    processor: Processor,
    group: Conversation,
    images: Sequence[LoadedImage],
    noise: float,
    rng: random.Random,
) -> PrefixGroup:
    """Image, or start of a text, as prefix; of every sample its question, given, and its answer, to be learned."""
    sizes = [processor.size_of(image) for image in images]
    prompts = [processor.read_prompt(sample.prompt, sizes) for sample in group]
    shared = len(prompts[0]) if len(group) == 1 else processor.shared_length(prompts[0])
    responses = []
    for sample, prompt in zip(group, prompts, strict=True):
        answer = processor.answer(target(sample, noise, rng))
        responses.append(prompt.ids[shared:] + answer)
    given = [len(prompt) - shared for prompt in prompts]
    return PrefixGroup(prompts[0].cut(shared), responses, given)


def target(sample: Sample, noise: float, rng: random.Random) -> str:
    """The reference answer, or with probability `noise` a wrong one, or one time in five an evasive one."""
    assert sample.gold is not None
    if rng.random() >= noise:
        return sample.gold.answer
    wrong = sample.meta.get("wrong", ())
    return rng.choice(wrong if wrong and rng.random() < 0.8 else EVASIVE)


def answer_loss(
    model: PolicyModel, batch: PackedBatch, image_features: Float[Tensor, "P W"] | None
) -> Float[Tensor, ""]:
    """Cross-entropy of the answers' tokens, nats per token of all processes' together."""
    logits = model.logits(model.hidden_states(batch, image_features, batch.target_from))
    tokens = distributed.summed(torch.tensor(float(len(batch.target_ids)), device=logits.device))
    return F.cross_entropy(logits.float(), batch.target_ids, reduction="sum") / tokens
