"""Whether a model and a processor belong together: what one makes must be what the other reads."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from ixc.model.options import ProcessorOptions

SIZES = ("tile_size", "patch_size")


def objection(model: Mapping[str, Any], options: ProcessorOptions, tokenizer: Tokenizer) -> str | None:
    """Why a processor cannot serve a model; None: it can.

    Args:
        model: what its `config.json` says; what is not there is not compared.
    """
    for name in SIZES:
        own, other = getattr(options, name), model.get(name)
        if other is not None and own != other:
            form = f"the model's is {other} (config.json); correct one of them, or save both together"
            return f"{name}: {own}, but {form}"
    size, known = tokenizer.get_vocab_size(), model.get("vocab_size")
    if isinstance(known, int) and size > known:
        form = f"the model knows {known} tokens (config.json: vocab_size); take the tokenizer that was saved with it"
        return f"tokenizer.json: {size} tokens, but {form}"
    return None
