"""The model card: what a folder holds and how it is loaded, for people and for the Hugging Face hub."""

from pathlib import Path
from typing import Any

_MARK = "<!-- Written by ixc. Delete this line to keep your own text. -->"
_CARD = """---
library_name: transformers
pipeline_tag: {task}
tags:
- ixc
- {tag}
---
{mark}

# {title}

{what}

| | |
|---|---|
| parameters | {parameters:,} |
| vocabulary | {config.vocab_size:,} tokens |
| language model | {config.num_hidden_layers} layers of {config.hidden_size} channels |
| vision tower | {config.vision_num_hidden_layers} layers of {config.vision_hidden_size} channels; tiles of \
{config.tile_size} pixels, patches of {config.patch_size} |
{more}
## How to use it

```python
{code}
```

The classes are those of the package `ixc`; no remote code runs. Architecture: InternLM-XComposer-2.5 \
(arXiv:2407.03320) and its reward model (arXiv:2501.12368). The licence is that of the weights and data it was trained \
from; it is not stated here.
"""
_REWARD = """from ixc.serve.api import RewardModel

model = RewardModel.from_pretrained("{folder}")
chat = [{{"role": "user", "content": "What is it?"}}, {{"role": "assistant", "content": "A red ring."}}]
model.score([chat], [["picture.png"]])  # one number per chat, the higher the better"""
_CHAT = """from ixc.serve.api import ChatModel

model = ChatModel.from_pretrained("{folder}")
model.reply([{{"role": "user", "content": "What is it?"}}], ["picture.png"])"""
_SCORES = (
    "A reward model: it reads a chat with its images and videos, and gives the last answer a score, one unbounded "
    "number. Only scores of answers to the same question can be compared. It measures what its pairs preferred, in "
    "their languages and on their subjects, and nothing else; longer answers may score higher for their length."
)
_ANSWERS = (
    "A vision-language chat model: it answers questions about images and videos. It may be wrong, and it may be "
    "harmful: check what it says before you rely on it."
)


def write_card(model: Any, folder: Path) -> None:
    """Write `README.md`, unless somebody's own is there.

    Args:
        model: an `IXCPreTrainedModel`.
    """
    path = folder / "README.md"
    if not path.exists() or is_card(path):
        path.write_text(card(model))


def is_card(path: Path) -> bool:
    """Whether a file is a card of ours, which may be replaced."""
    try:
        return path.name == "README.md" and _MARK in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def card(model: Any) -> str:
    """The text; equal models have equal cards."""
    scores = hasattr(model, "score")
    config, parameters = model.config, sum(weights.numel() for weights in model.parameters())
    return _CARD.format(
        task="text-classification" if scores else "image-text-to-text",
        tag="reward-model" if scores else "vision-language",
        mark=_MARK,
        title="IXC-2.5-Reward" if scores else "IXC-2.5",
        what=_SCORES if scores else _ANSWERS,
        config=config,
        parameters=parameters,
        more=f"| score read from | {config.pooling} |\n" if scores else "",
        code=(_REWARD if scores else _CHAT).format(folder="path/to/this/folder"),
    )
