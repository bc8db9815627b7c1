"""Reward training and scoring: ours against what others do, side by side on the same model, data and threads.

The others' layout is a padded batch: every sequence whole, its picture through the tower for every row, as TRL,
LLaMA-Factory and ms-swift do. It stands here twice: as a plain loop, and as TRL's `RewardTrainer` with our model class
and a collator that brings the pictures, which it lacks. Ours reads prompt and picture once per question. Every run is a
fresh process with one thread; the number is CPU time of the best step. Rewards are checked to be equal.

    python -m benchmarks.train_rm [--trl PYTHON] [--only train|score]       PYTHON: of an environment with `trl`
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ixc.losses import bradley_terry_loss
from ixc.model import IXCConfig, IXCForRewardModel, Tree, collate

TILE, TILE_TOKENS, VOCABULARY, IMAGE = 224, 8, 1000, 3
GRIDS = {64: None, 320: (1, 3), 512: (2, 3), 1090: (3, 5), 2048: (4, 7)}
"""Rows and columns of the picture's tiles in a prefix of so many tokens; the rest is text."""


@dataclass(frozen=True)
class Shape:
    """A batch: `questions` prompts of `prefix` tokens, each with `answers` answers of `response` tokens."""

    prefix: int
    response: int
    answers: int
    questions: int


TRAIN = (
    *(Shape(prefix, 64, 2, max(1, 2560 // prefix)) for prefix in GRIDS),
    *(Shape(prefix, 256, 2, max(1, 2560 // prefix)) for prefix in GRIDS),
    *(Shape(prefix, 64, 4, 1) for prefix in (64, 320, 2048)),
    Shape(64, 64, 16, 1),
    Shape(320, 64, 16, 1),
)
SCORE = tuple(Shape(prefix, 64, answers, 1) for prefix in (320, 1090, 2048) for answers in (2, 4, 16))


@dataclass(frozen=True)
class Question:
    """A tree of token ids, and the picture in its prefix: tiles, and their rows and columns; None: text only."""

    tree: Tree
    tiles: Tensor | None
    grid: tuple[int, int] | None

    def rows(self) -> list[Tensor]:
        """Every answer after the whole prompt."""
        return [torch.tensor(self.tree.prefix + branch) for branch in self.tree.branches]


def model() -> IXCForRewardModel:
    """Random weights; 5 million of them in the language model, its tower as small beside it as in the 7B."""
    torch.manual_seed(0)
    config = IXCConfig(
        vocab_size=VOCABULARY,
        image_token_id=IMAGE,
        eos_token_id=2,
        pad_token_id=2,
        bos_token_id=1,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        plora_rank=16,
        tile_size=TILE,
        vision_hidden_size=64,
        vision_intermediate_size=256,
        vision_num_hidden_layers=4,
        vision_num_attention_heads=4,
    )
    reward = IXCForRewardModel(config)
    reward.config.num_labels = 1  # TRL asks for it
    reward.freeze_vision()
    return reward.train()


def questions(shape: Shape) -> list[Question]:
    """Random ids and tiles."""
    generator = torch.Generator().manual_seed(1)

    def words(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=generator).tolist()

    def question() -> Question:
        grid, branches = GRIDS[shape.prefix], [words(shape.response) for _ in range(shape.answers)]
        if grid is None:
            return Question(Tree([1, *words(shape.prefix - 1)], branches), None, None)
        rows, columns = grid
        seen = TILE_TOKENS * (TILE_TOKENS + 1) + 1 + rows * TILE_TOKENS * (columns * TILE_TOKENS + 1)
        prefix = [1, *[IMAGE] * seen, *words(shape.prefix - 1 - seen)]
        tiles = torch.randn(1 + rows * columns, 3, TILE, TILE, generator=generator)
        return Question(Tree(prefix, branches), tiles, grid)

    return [question() for _ in range(shape.questions)]


def shown(data: list[Question], repeats: int) -> dict[str, Tensor]:
    """The pictures of every row of a padded batch."""
    seen = [(q.tiles, q.grid) for q in data for _ in range(repeats) if q.tiles is not None]
    if not seen:
        return {}
    tiles, grids = zip(*seen, strict=True)
    return {"pixel_values": torch.cat(tiles), "tile_grids": torch.tensor(grids)}


def padded_rewards(reward: IXCForRewardModel, rows: list[Tensor], pictures: dict[str, Tensor]) -> Tensor:
    """One reward per whole row."""
    ids = pad_sequence(rows, batch_first=True, padding_value=2)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return reward(ids, mask, **pictures).logits[:, 0]


def tree_rewards(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """One reward per answer; prompt and picture once per question."""
    batch = collate([q.tree for q in data])
    seen = shown(data, 1)
    features = reward.get_image_features(**seen) if seen else None
    hidden = reward.model(**batch.inputs(), features=features)
    return reward.scores(batch.pool(hidden, "last_token"))


def ours(reward: IXCForRewardModel, data: list[Question]) -> tuple[Tensor, Tensor]:
    """Rewards of the better and of the worse answer of all pairs."""
    rewards = tree_rewards(reward, data).unflatten(0, (len(data), -1))
    better, worse = torch.tensor(list(combinations(range(rewards.shape[1]), 2))).unbind(1)
    return rewards[:, better].flatten(), rewards[:, worse].flatten()


def padded(reward: IXCForRewardModel, data: list[Question]) -> tuple[Tensor, Tensor]:
    """The same by the others' layout: all better answers, then all worse ones, in one padded batch."""
    pairs = [pair for q in data for pair in combinations(q.rows(), 2)]
    better, worse = (list(rows) for rows in zip(*pairs, strict=True))
    pictures = shown(data, len(pairs) // len(data))
    twice = {name: torch.cat([x, x]) for name, x in pictures.items()}
    rewards = padded_rewards(reward, better + worse, twice)
    return rewards[: len(pairs)], rewards[len(pairs) :]


def padded_batch(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """Score all answers in one padded batch."""
    return padded_rewards(reward, [row for q in data for row in q.rows()], shown(data, len(data[0].tree.branches)))


def one_by_one(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """Score the answers one at a time."""
    return torch.cat([padded_rewards(reward, [row], shown([q], 1)) for q in data for row in q.rows()])


PAIRS = {"ours": ours, "padded": padded, "trl": padded}
SCORES = {"ours": tree_rewards, "padded batch": padded_batch, "one by one": one_by_one}


def train_steps(way: str, reward: IXCForRewardModel, data: list[Question], steps: int) -> list[float]:
    """CPU seconds of each step of a plain loop."""
    trained = [weights for weights in reward.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=True)

    def step() -> None:
        chosen, rejected = PAIRS[way](reward, data)
        loss = bradley_terry_loss(chosen, rejected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return [_seconds(step) for _ in range(steps)]


def trl_steps(reward: IXCForRewardModel, data: list[Question], steps: int) -> list[float]:
    """CPU seconds of each step of TRL's `RewardTrainer`, its defaults but for gradient checkpointing, which is off."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.trainer.reward_config import RewardConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.reward_trainer import RewardTrainer  # pyright: ignore[reportMissingImports]

    pairs = [(n, *pair) for n, q in enumerate(data) for pair in combinations(q.rows(), 2)]
    rows = [{"chosen_ids": a.tolist(), "rejected_ids": b.tolist(), "question": n} for n, a, b in pairs] * steps

    def batch(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.tensor([e[side] for side in ("chosen_ids", "rejected_ids") for e in examples])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **shown([data[e["question"]] for _ in range(2) for e in examples], 1),
        }

    class Clock(TrainerCallback):
        at: list[float] = []

        def on_step_end(self, *told: Any, **more: Any) -> None:
            self.at.append(time.process_time())

    words = {"</s>": 2, **{str(i): i for i in range(3, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "</s>")), eos_token="</s>", pad_token="</s>"
    )
    args = RewardConfig(
        "/tmp/trl",
        per_device_train_batch_size=len(pairs),
        max_steps=steps,
        max_length=None,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    start = time.process_time()
    RewardTrainer(reward, args, batch, Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()]).train()
    at = [start, *Clock.at]
    return [after - before for before, after in pairwise(at)]


def kept_for_backward(reward: IXCForRewardModel, compute: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted."""
    weights = {x.untyped_storage().data_ptr() for x in reward.parameters()}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        alive = compute()
    del alive
    return sum(kept.values())


def _seconds(compute: Callable[[], Any]) -> float:
    start = time.process_time()
    compute()
    return time.process_time() - start


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(task: str, way: str, shape: Shape, steps: int) -> None:
    """Print CPU seconds of the best step, memory and rewards of one way; runs in its own process."""
    torch.set_num_threads(1)
    reward, data = model(), questions(shape)
    if task == "score":
        with torch.inference_mode():
            rewards = SCORES[way](reward, data)
            before = _peak()
            seconds = min(_seconds(lambda: SCORES[way](reward, data)) for _ in range(steps))
        print(json.dumps({"seconds": seconds, "peak": _peak() - before, "kept": 0, "rewards": rewards.tolist()}))
        return
    with torch.no_grad():
        rewards = torch.cat(PAIRS[way](reward, data)).tolist()
    if way == "trl":
        import_module("trl.trainer.reward_trainer")  # its size is not counted
    before = _peak()
    run = trl_steps(reward, data, steps + 1) if way == "trl" else train_steps(way, reward, data, steps + 1)
    peak = _peak() - before
    kept = kept_for_backward(reward, lambda: PAIRS[way](reward, data))
    print(json.dumps({"seconds": min(run[1:]), "peak": peak, "kept": kept, "rewards": rewards}))


def in_its_own_process(python: str, task: str, way: str, shape: Shape, steps: int) -> dict[str, Any]:
    """What `measure` prints."""
    told = json.dumps({"task": task, "way": way, "shape": asdict(shape), "steps": steps})
    command = [python, "-m", "benchmarks.train_rm", "--measure", told]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{way}, {shape}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def side_by_side(task: str, ways: dict[str, str], shape: Shape, steps: int) -> dict[str, dict[str, Any]]:
    """All ways (with the interpreter for each); their rewards must agree."""
    runs = {way: in_its_own_process(python, task, way, shape, steps) for way, python in ways.items()}
    for run in runs.values():
        got, wanted = torch.tensor(run["rewards"]), torch.tensor(runs["ours"]["rewards"])
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    return runs


def table(task: str, ways: dict[str, str], shapes: tuple[Shape, ...], steps: int) -> None:
    """Print a Markdown table, row by row."""
    others = [way for way in ways if way != "ours"]
    head = ["prefix", "response", "answers", "questions", *(f"{way}, s" for way in ways)]
    head += [*(f"{way} / ours" for way in others), *(f"{way}, MiB" for way in ways)]
    head += ["kept, MiB: padded", "ours", "ratio"] if task == "train" else []
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for shape in shapes:
        runs = side_by_side(task, ways, shape, steps)
        own = runs["ours"]
        row = [*map(str, asdict(shape).values()), *(f"{run['seconds']:.3f}" for run in runs.values())]
        row += [f"**{runs[way]['seconds'] / own['seconds']:.2f}**" for way in others]
        row += [f"{run['peak'] / 2**20:.0f}" for run in runs.values()]
        if task == "train":
            kept = runs["padded"]["kept"], own["kept"]
            row += [*(f"{size / 2**20:.0f}" for size in kept), f"{kept[1] / kept[0]:.2f}"]
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Training, then scoring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", metavar="PYTHON", help="interpreter of an environment with `trl`")
    parser.add_argument("--only", choices=("train", "score"), help="one of the two tables")
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after one to warm up")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        told = json.loads(options.measure)
        measure(told["task"], told["way"], Shape(**told["shape"]), told["steps"])
        return
    if options.only != "score":
        trl = {"trl": options.trl} if options.trl else {}
        table("train", {"ours": sys.executable, "padded": sys.executable, **trl}, TRAIN, options.steps)
    if options.only != "train":
        table("score", dict.fromkeys(SCORES, sys.executable), SCORE, options.steps)


if __name__ == "__main__":
    main()
