"""What reward training and scoring are measured on: a small model, and questions of any shape about pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ixc.models.ixc25 import IXCConfig, IXCForRewardModel
from ixc.models.ixc25.tiles import num_tokens
from ixc.packing.layout import PrefixGroup, collate

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
    ragged: bool = False
    """These are the longest: prefixes are of all kinds up to it, with up to 64 tokens more, responses from 16 on."""

    def __str__(self) -> str:
        most = "to " if self.ragged else ""
        return f"{most}{self.prefix} | {most}{self.response} | {self.answers} | {self.questions}"


SHAPE = ("prefix", "response", "answers", "questions")
"""The columns that a shape fills."""


@dataclass(frozen=True)
class Question:
    """A group of token ids, and the picture in its prefix: tiles, and their rows and columns; None: text only."""

    group: PrefixGroup
    tiles: Tensor | None
    grid: tuple[int, int] | None

    def rows(self) -> list[Tensor]:
        """Every answer after the whole prompt."""
        return [torch.tensor(self.group.prompt.ids + response) for response in self.group.responses]


def model() -> IXCForRewardModel:
    """Random weights; 5 million of them in the language model, its tower as small beside it as in the 7B."""
    torch.manual_seed(0)
    config = IXCConfig(
        vocab_size=VOCABULARY,
        image_token_id=IMAGE,
        eos_token_id=2,
        pad_token_id=2,
        bos_token_id=1,
        end_of_turn_token_id=2,
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
    kinds = (
        [prefix for prefix in GRIDS if prefix <= shape.prefix] if shape.ragged else [shape.prefix]
    )

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def words(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=generator).tolist()

    def response() -> list[int]:
        return words(drawn(16, shape.response) if shape.ragged else shape.response)

    def question(number: int) -> Question:
        prefix = kinds[number % len(kinds)]
        length, grid = prefix + (drawn(0, 64) if shape.ragged else 0), GRIDS[prefix]
        responses = [response() for _ in range(shape.answers)]
        if grid is None:
            return Question(PrefixGroup([1, *words(length - 1)], responses), None, None)
        rows, columns = grid
        seen = num_tokens(rows, columns, TILE_TOKENS)
        tiles = torch.randn(1 + rows * columns, 3, TILE, TILE, generator=generator)
        return Question(
            PrefixGroup([1, *[IMAGE] * seen, *words(length - 1 - seen)], responses), tiles, grid
        )

    return [question(number) for number in range(shape.questions)]


def shown(data: list[Question], repeats: int) -> dict[str, Tensor]:
    """The pictures of every row of a padded batch."""
    seen = [(q.tiles, q.grid) for q in data for _ in range(repeats) if q.tiles is not None]
    if not seen:
        return {}
    tiles, grids = zip(*seen, strict=True)
    return {"pixel_values": torch.cat(tiles), "tile_grids": torch.tensor(grids)}


def padded_ids(rows: list[Tensor]) -> dict[str, Tensor]:
    """A padded batch of them."""
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=2),
        "attention_mask": mask,
    }


def padded_rewards(
    reward: IXCForRewardModel, rows: list[Tensor], images: dict[str, Tensor]
) -> Tensor:
    """One reward per whole row."""
    return reward(**padded_ids(rows), **images).logits[:, 0]


def tree_rewards(reward: IXCForRewardModel, data: list[Question]) -> Tensor:
    """One reward per answer; prompt and picture once per question."""
    batch = collate([q.group for q in data])
    seen = shown(data, 1)
    vision_cache = reward.get_image_features(**seen) if seen else None
    return reward.response_scores(batch, vision_cache)
