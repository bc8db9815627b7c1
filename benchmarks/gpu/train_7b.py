"""Reward training at full size, random weights: pairs per second, memory, share of the GPU's peak; ours beside padding.

`ours`: the steps of the stage `train_rm` (its `learn`, its optimizer, its features): prompt and picture once per pair,
the picture's tokens made before and kept. `padded`: what others do: both answers whole, in a padded batch, PyTorch's
attention with a mask, pictures through the frozen tower for each; with the same optimizer. Layers are computed again in
the backward pass unless `--keep` is given. Weights are

    bf16    weights, gradients and AdamW's moments in bfloat16: 8 bytes each; loses small updates, hence for its speed
    fp32    the stage's `precision: bf16`: computed in bfloat16, all the others in fp32: 16 bytes each

The share of the peak is that of the operations which the layout needs, nothing computed again counted,

    mfu = (6 (N T + N' P) + 12 L H E S + 2 V X) / (seconds x peak)

with N weights of the language model, T tokens, N' weights of Partial LoRA, P picture tokens, L layers, H heads of E
channels, S pairs of a token and one that it looks at, V weights of the tower, and X patches that pass it in the step.
Behind the attention of the last layer T are, in ours, only the tokens that a score is read from, and P none.
Each configuration is a line; one that the memory is too small for is a line that says so.

    python -m benchmarks.gpu.train_7b [--weights bf16 fp32] [--pairs 2] [--keep] [--device cuda] [--tiny] PICTURE ...
"""

import gc
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.models import (
    TINY,
    Found,
    attempt,
    build,
    config_of,
    device_name,
    forget_memory,
    memory_gib,
    parser,
    patches,
    processor_of,
    share_of_peak,
    tell,
    wait_for,
    weights_of_read,
    weights_used,
)
from benchmarks.reward import padded_ids
from ixc.data.samples import Media, Sample, Turn, answer
from ixc.engine.losses import bradley_terry_loss
from ixc.engine.preference_groups import MicroBatch, preference_groups, read
from ixc.engine.vision_cache import VisionCache
from ixc.models.ixc25 import IXCConfig, IXCForRewardModel
from ixc.params import TrainRMParams
from ixc.stages.train_rm import learn, optimizer_of

PROMPT, ANSWER = 64, 300
"""Tokens of text."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Case(NamedTuple):
    """One configuration."""

    way: str
    """`ours` or `padded`."""
    weights: str
    kept: bool
    """Activations are kept for the backward pass."""
    pairs: int
    steps: int


class Need(NamedTuple):
    """What a layout has to compute: tokens, those of pictures among them, who looks at whom, patches in the tower."""

    tokens: int
    images: int
    read: int
    """Tokens that pass all of the last layer; `read_pictures`, those of pictures among them."""
    read_images: int
    image_refs: int
    patches: int


def samples_of(path: Path, pairs: int) -> list[Sample]:
    """Pairs about one picture; random digits, a token each."""
    rng = random.Random(0)
    media = Media(
        kind="image", path=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )

    def words(count: int) -> str:
        return "".join(rng.choices("0123456789", k=count))

    def pair(number: int) -> Sample:
        prompt, told = (
            (Turn(role="user", content=words(PROMPT)),),
            {"source": "random", "domain": "general"},
        )
        answers: dict[str, Any] = {
            "chosen": answer(words(ANSWER)),
            "rejected": answer(words(ANSWER)),
        }
        return Sample(
            id=str(number), **told, modality="image", prompt=prompt, media=(media,), **answers
        )

    return [pair(number) for number in range(pairs)]


def rows_of(batch: MicroBatch) -> list[Tensor]:
    """Every answer after its whole prompt: all better ones, then all worse ones."""
    ids, found = batch.packed.input_ids[0], []
    for prefix, *responses in batch.packed.layout.groups:
        found.append([torch.cat([ids[prefix], ids[response]]) for response in responses])
    return [row for column in zip(*found, strict=True) for row in column]


def need(way: str, batch: MicroBatch, config: IXCConfig, tiles: int) -> Need:
    """Of a step; `tiles`: of the picture."""
    rows = rows_of(batch)
    if way == "padded":
        ids, image_refs = torch.cat(rows), sum(len(row) * (len(row) + 1) // 2 for row in rows)
    else:
        ids, image_refs = batch.packed.input_ids[0], 0
        for queries, keys, causal in batch.packed.layout.calls:
            size, seen = queries.stop - queries.start, keys.stop - keys.start
            image_refs += size * (size + 1) // 2 if causal else size * seen
    tokens, images = len(ids), int((ids == config.image_token_id).sum())
    if way == "padded":
        return Need(tokens, images, tokens, images, image_refs, patches(config, tiles * len(rows)))
    return Need(tokens, images, len(rows), 0, image_refs, 0)


def operations(model: IXCForRewardModel, need: Need) -> float:
    """Of a training step, as the module's text says."""
    weights, last, config = weights_used(model), weights_of_read(model), model.config
    linear = 6 * (weights.language * need.tokens + weights.partial * need.images)
    linear -= 6 * (
        last.language * (need.tokens - need.read) + last.partial * (need.images - need.read_images)
    )
    attention = 12 * config.num_hidden_layers * config.hidden_size * need.image_refs
    return linear + attention + 2 * weights.tower * need.patches


def stepper(
    case: Case,
    model: IXCForRewardModel,
    vision_cache: VisionCache,
    batch: MicroBatch,
    tiles: Tensor,
    rows: int,
) -> Callable[[], float]:
    """A training step, which returns its loss; `tiles` of the picture, in so many `rows`."""
    params = TrainRMParams(batch_size=case.pairs, learning_rate=1e-6)
    optimizer = optimizer_of(params, model, 1000)
    if case.way == "ours":
        return lambda: learn(params, model, vision_cache, optimizer, [batch], case.pairs, 1)["loss"]
    columns, times = (len(tiles) - 1) // rows, 2 * case.pairs
    given = padded_ids(rows_of(batch))
    given |= {
        "pixel_values": torch.cat([tiles] * times),
        "tile_grids": torch.tensor([[rows, columns]] * times),
    }

    def step() -> float:
        moved = {name: x.to(model.device) for name, x in given.items()}
        chosen, rejected = model(**moved).logits[:, 0].chunk(2)
        loss = bradley_terry_loss(chosen, rejected)
        optimizer.step(loss)
        return loss.item()

    return step


def ready(case: Case, config: IXCConfig, device: str) -> IXCForRewardModel:
    """A model that is trained as the case says."""
    model = build(config, device, DTYPES[case.weights]).train()
    model.freeze_vision()
    if case.weights == "fp32":
        model.compute_in_bf16()
    if not case.kept:
        model.gradient_checkpointing_enable()
    return model


def measure(case: Case, sizes: dict[str, Any], device: str, path: Path) -> Found:
    """Whole steps: forward, backward, clipping, AdamW."""
    config, processor = config_of(sizes), processor_of(sizes)
    model = ready(case, config, device)
    vision_cache, samples = VisionCache(model, processor, path.parent), samples_of(path, case.pairs)
    vision_cache.prepare(samples)
    batch = read(vision_cache, preference_groups(samples, False))
    image = processor.load(path.parent, *vision_cache.image_refs(samples[:1])[0])
    step = stepper(case, model, vision_cache, batch, image.tiles, image.rows)
    losses = [step(), step()]  # kernels are compiled
    forget_memory(model.device)
    wait_for(model.device)
    start = time.perf_counter()
    losses += [step() for _ in range(case.steps)]
    wait_for(model.device)
    seconds = (time.perf_counter() - start) / case.steps
    needed = need(case.way, batch, config, len(image.tiles))
    return {
        "device": device_name(model.device),
        "tiles": len(image.tiles),
        "tokens": needed.tokens,
        "seconds": seconds,
        "pairs_per_second": case.pairs / seconds,
        "memory_gib": memory_gib(model.device),
        "mfu": share_of_peak(operations(model, needed), seconds, model.device),
        "first_loss": losses[0],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """A line per picture and configuration."""
    options = parser(__doc__)
    options.add_argument("images", nargs="+", type=Path)
    options.add_argument("--weights", nargs="+", choices=DTYPES, default=list(DTYPES))
    options.add_argument(
        "--ways", nargs="+", choices=["ours", "padded"], default=["ours", "padded"]
    )
    options.add_argument("--pairs", type=int, default=2, help="per step")
    options.add_argument("--steps", type=int, default=5, help="after two that are not measured")
    options.add_argument(
        "--keep", action="store_true", help="keep activations, rather than compute them again"
    )
    given = options.parse_args(arguments)
    for path, weights, way in product(given.images, given.weights, given.ways):
        case = Case(way, weights, given.keep, given.pairs, given.steps)
        found = attempt(
            lambda path=path, case=case: measure(
                case, TINY if given.tiny else {}, given.device, path
            )
        )
        tell(image=path.name, **case._asdict(), **found)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
