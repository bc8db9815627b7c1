"""The reward model at full size, random bf16 weights: tokens and answers per second, memory, share of the GPU's peak.

python -m benchmarks.gpu.score_7b PICTURE [PICTURE ...]
"""

import json
import sys
import time
from itertools import product

import torch
from PIL import Image

from ixc.model import IXCConfig, IXCForRewardModel, Tree, collate
from ixc.model.pictures import num_tokens, partition, to_tiles

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 operations per second (NVIDIA data sheets)."""
PROMPT, ANSWER, ANSWERS = 64, 256, (4, 16, 64)


def build(config: IXCConfig, device: str) -> IXCForRewardModel:
    """Random weights, of the size that keeps activations finite."""
    with torch.device("meta"):
        model = IXCForRewardModel._from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.02)
    return model.eval()


def weights_used(model: IXCForRewardModel) -> tuple[int, int]:
    """Weights that every token passes, of the language model (Partial LoRA not counted) and of the tower."""
    named = model.model.named_parameters()
    language = sum(w.numel() for name, w in named if "tok_emb" not in name and "Plora" not in name)
    return language, sum(w.numel() for w in model.vit.parameters())


@torch.inference_mode()
def measure(model: IXCForRewardModel, path: str, answers: int, repeats: int = 5) -> dict[str, float | str]:
    """Score answers about one picture: tower, projector and language model."""
    picture, size, device = Image.open(path).convert("RGB"), model.config.tile_size, model.device
    place = partition(*picture.size, 9, size)
    shown = (to_tiles(picture, place, size).to(device, model.dtype), place.rows)
    prefix = [1, *[model.config.image_token_id] * num_tokens(place.rows, place.columns, model.config.side)]
    prefix += range(1000, 1000 + PROMPT)
    tree = Tree(prefix, [list(range(2000 + i, 2000 + i + ANSWER)) for i in range(answers)])
    batch = collate([tree]).to(device)
    gpu = device.type == "cuda"

    def once() -> None:
        hidden = model.model(**batch.inputs(), features=torch.cat(model.encode_pictures([shown])))
        model.scores(batch.pool(hidden, "last_token")).tolist()  # waits for the GPU

    once()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(repeats):
        once()
    seconds = (time.perf_counter() - start) / repeats
    read = batch.input_ids.numel()
    language, vision = weights_used(model)
    patches = (size // model.config.patch_size) ** 2 + 1
    operations = 2 * (language * read + vision * len(shown[0]) * patches)
    name = torch.cuda.get_device_name() if gpu else "cpu"
    peak = next((value for key, value in PEAK.items() if key in name), float("nan"))
    return {
        "device": name,
        "answers": answers,
        "tiles": len(shown[0]),
        "tokens": read,
        "seconds": seconds,
        "tokens_per_second": read / seconds,
        "answers_per_second": answers / seconds,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else float("nan"),
        "share_of_peak": operations / seconds / peak,
    }


if __name__ == "__main__":
    model = build(IXCConfig(), "cuda")
    for path, answers in product(sys.argv[1:], ANSWERS):
        print(json.dumps({"picture": path, **measure(model, path, answers)}))
