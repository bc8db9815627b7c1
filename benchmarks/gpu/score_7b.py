"""The reward model at full size, random bf16 weights: tokens and answers per second, memory, share of the GPU's peak.

python -m benchmarks.gpu.score_7b [--device cuda] [--tiny] PICTURE [PICTURE ...]
"""

import time
from collections.abc import Sequence
from itertools import product

import torch
from PIL import Image

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
    share_of_peak,
    tell,
    weights_of_read,
    weights_used,
)
from ixc.models.ixc25 import IXCForRewardModel
from ixc.models.ixc25.tiles import num_tokens, partition, to_tiles
from ixc.packing.layout import PrefixGroup, collate

PROMPT, ANSWER, ANSWERS = 64, 256, (4, 16, 64)


@torch.inference_mode()
def measure(model: IXCForRewardModel, path: str, answers: int, repeats: int = 5) -> Found:
    """Score answers about one picture: tower, projector and language model."""
    image, size, device = Image.open(path).convert("RGB"), model.config.tile_size, model.device
    place = partition(*image.size, 9, size)
    shown = (to_tiles(image, place, size).to(device, model.dtype), place.rows)
    prefix = [
        1,
        *[model.config.image_token_id] * num_tokens(place.rows, place.columns, model.config.side),
    ]
    words = range(20, 220)  # no special token is among them
    prefix += [words[i % 200] for i in range(PROMPT)]
    group = PrefixGroup(
        prefix, [[words[(n + i) % 200] for i in range(ANSWER)] for n in range(answers)]
    )
    batch = collate([group]).to(device)

    def once() -> None:
        model.response_scores(
            batch, torch.cat(model.encode_images([shown]))
        ).tolist()  # waits for the GPU

    once()
    forget_memory(device)
    start = time.perf_counter()
    for _ in range(repeats):
        once()
    seconds = (time.perf_counter() - start) / repeats
    tokens, weights, last = batch.input_ids.numel(), weights_used(model), weights_of_read(model)
    in_language = weights.language * tokens - last.language * (tokens - answers)
    operations = 2 * (in_language + weights.tower * patches(model.config, len(shown[0])))
    return {
        "device": device_name(device),
        "answers": answers,
        "tiles": len(shown[0]),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "answers_per_second": answers / seconds,
        "memory_gib": memory_gib(device),
        "share_of_peak": share_of_peak(operations, seconds, device),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """A line per picture and number of answers."""
    options = parser(__doc__)
    options.add_argument("images", nargs="+")
    given = options.parse_args(arguments)
    model = build(config_of(TINY if given.tiny else {}), given.device)
    for path, answers in product(given.images, ANSWERS):
        tell(
            image=path, **attempt(lambda path=path, answers=answers: measure(model, path, answers))
        )


if __name__ == "__main__":
    main()
