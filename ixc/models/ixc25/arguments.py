"""Which keyword arguments a forward pass has; all others are refused."""

from collections.abc import Iterable
from difflib import get_close_matches

ARGUMENTS = (
    *(
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "pixel_values",
        "tile_grids",
    ),
    *(
        "image_features",
        "use_cache",
        "labels",
        "num_items_in_batch",
        "shift_labels",
        "logits_to_keep",
    ),
)
"""What the heads take; for the remedy in an error."""
PASSED_ON = frozenset(
    (
        *("output_attentions", "output_hidden_states"),  # read by `capture_outputs`
        *(
            "cu_seq_lens_q",
            "cu_seq_lens_k",
            "max_length_q",
            "max_length_k",
        ),  # read by FlashAttention
        "cache_position",  # of older versions of Transformers; the cache knows
    )
)
"""Keyword arguments of a forward pass that Transformers' own parts read, beside those in the signatures."""


def refuse_unknown(given: Iterable[str]) -> None:
    """A keyword argument that nothing reads is a mistake, never a silent default.

    Raises:
        TypeError: with its name, and the known ones that come near.

    >>> refuse_unknown(["lables"])
    Traceback (most recent call last):
        ...
    TypeError: forward: unknown keyword argument 'lables'; did you mean labels?
    """
    for name in given:
        if name not in PASSED_ON:
            near = get_close_matches(name, [*ARGUMENTS, *PASSED_ON])
            remedy = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"leave it out; known: {', '.join(ARGUMENTS)}"
            )
            raise TypeError(f"forward: unknown keyword argument {name!r}; {remedy}")
