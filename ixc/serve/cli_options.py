"""Options of the command line that several commands share, their values, and errors in their names."""

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OPTIONS = (
    "image_budget",
    "max_length",
    "max_frames",
    "max_pixels",
    "on_overflow",
    "max_tokens_per_microbatch",
    "shard_rows",
    "max_new_tokens",
    "dtype",
)
_IN_OTHER_DOORS = {
    "attention: '": "--attention '",
    "set attention to ": "give --attention ",
    "give the content as parts: ": "leave it out, or give the chat in a file, its content as parts: ",
}
"""What remedies say that have another form here."""
_OPTION = re.compile(rf"(?<![\w./-])(?:collect\.)?({'|'.join(_OPTIONS)})(?![\w/-]|\.\w)")


class Version(argparse.Action):
    """Prints the version; it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"ixc {version('ixc')}")
        parser.exit()


def as_options(reason: str) -> str:
    """An error with the names that its remedy has here: those of options.

    >>> as_options("21 tokens, more than max_length 20; raise max_length")
    '21 tokens, more than --max-length 20; raise --max-length'
    """
    for name, here in _IN_OTHER_DOORS.items():
        reason = reason.replace(name, here)
    return _OPTION.sub(lambda found: "--" + found[1].replace("_", "-"), reason)


SCORING = {
    "auto": {"attention": "auto"},
    "sdpa": {"attention": "sdpa"},
    "flash_attention_2": {
        "attention": "flash_attention_2",
        "attn_implementation": "flash_attention_2",
    },
    "flex": {"attention": "flex"},
    "eager": {"attn_implementation": "eager"},
}
"""`--attention` where scores share their prompts: the arguments of `ixc.serve.api.loaded`."""
REPLYING = {
    name: {"attn_implementation": name}
    for name in ("sdpa", "flash_attention_2", "flex_attention", "eager")
}
"""The same where Transformers' `generate` answers."""
_SCORING = """\
the kernel that scores are computed with; auto: FlexAttention on a GPU, SDPA elsewhere; flash_attention_2: needs the
package flash-attn, bf16 or fp16, and an Ampere GPU or a newer one; flex: a GPU; eager: plain formulae, every chat read
whole, slow, not for tables"""
_REPLYING = "the kernel that replies are computed with, as Transformers calls it"


def model_options(command: argparse.ArgumentParser, attention: Mapping[str, Any]) -> None:
    """Which model, where, and how it reads; `attention`: `SCORING` or `REPLYING`, of which the first is the default."""
    command.add_argument("model", help="a model's folder, ours or official")
    command.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one"
    )
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored"
    )
    default, about = next(iter(attention)), _SCORING if attention is SCORING else _REPLYING
    command.add_argument(
        "--attention", choices=attention, default=default, help=f"{about} (default: {default})"
    )
    command.add_argument(
        "--image-budget",
        type=count,
        help="what an image may take at most (tiles, say); default: as stored with the model",
    )
    command.add_argument(
        "--max-length", type=count, help="tokens of a chat at most; default: as stored"
    )
    command.add_argument(
        "--max-frames", type=count, help="frames of a video at most; default: as stored"
    )
    command.add_argument(
        "--max-pixels", type=count, help="pixels of an image or frame at most; default: as stored"
    )
    policies = ("error", "drop_oldest_turns", "shrink_images")
    command.add_argument(
        "--on-overflow", choices=policies, help="what becomes of a longer chat; default: as stored"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def table_options(command: argparse.ArgumentParser) -> None:
    """How a table is scored."""
    table = command.add_argument_group(
        "a table of samples, of any size", "under torchrun, by all processes together"
    )
    table.add_argument(
        "--in", dest="source", type=Path, help="Parquet; a killed call goes on where it was"
    )
    table.add_argument("--out", dest="target", type=Path, help="the same rows, with rewards")
    table.add_argument("--shard-rows", type=count, default=1024, help="rows that a kill may cost")
    table.add_argument(
        "--max-tokens-per-microbatch",
        type=count,
        default=16384,
        help="tokens of a forward pass at most",
    )


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: not a whole number above 0")
    return int(text)


def temperature(text: str) -> float:
    """A finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: not a number of 0 or more")
    return value


def seed(text: str) -> int:
    """What torch takes as a seed."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r}: not a whole number from 0 to 2**63 - 1")
    return int(text)
