"""WildVision-Battle: people's votes between two models' answers about their images. ODC-BY; commercial use allowed.

Native: Parquet, `{"question_id", "model_a", "model_b", "conversation_a": [{"role", "content"}], "conversation_b",
"language", "image", "winner", ...}`; a `winner` that is neither `model_a` nor `model_b` is a tie.

Source: https://huggingface.co/datasets/WildVision/wildvision-battle, arXiv:2406.11069.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.conversations import pair, place
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take
from ixc.data.sources.strangers import refuse_strangers

LICENCE = Licence(name="ODC-BY", commercial=True, note="the pictures are users' uploads")
COLUMNS = ("conversation_a", "conversation_b", "winner", "image", "language")
META = ("language", "judge", "model_a", "model_b")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs; battles whose earlier answers differ have no common prompt and are refused."""
    yield from each(origin, _row)


def _row(entry: Entry) -> Row:
    record = entry.record
    winner = take(record, "winner", str)
    refuse_strangers(record, COLUMNS)
    if winner not in ("model_a", "model_b"):
        raise Unusable(f"winner: {winner!r:.40}: a tie is no pair; remove the row")
    # The winner's conversation first.
    sides = ["conversation_a", "conversation_b"]
    if winner == "model_b":
        sides.reverse()
    better, worse = (take(record, side, list) for side in sides)
    prompt, chosen, rejected = pair(None, better, worse)
    files = (entry.image(record.get("image")),)
    return Row(
        id=entry.id,
        domain="general",
        prompt=place(prompt, files),
        media=files,
        chosen=chosen,
        rejected=rejected,
        meta={name: record.get(name) for name in META},
    )
