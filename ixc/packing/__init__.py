"""One packed row: a prompt once, its answers beside it, and the attention that keeps them apart."""

MAX_TOKENS_PER_MICROBATCH = 32_768
"""The tokens that one forward pass without gradients may have where nobody says otherwise."""
