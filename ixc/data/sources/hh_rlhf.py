"""HH-RLHF: human preferences about harmlessness, multi-turn text. MIT; commercial use allowed.

Native: JSON lines, also gzipped, `{"chosen", "rejected"}`; each is a whole dialogue of `\\n\\nHuman: ` and
`\\n\\nAssistant: ` turns. The response is what follows the last `\\n\\nAssistant:`. Where the dialogues part
before that, the two responses answer different prompts and are no pair. Some texts are offensive or harmful.

Source: https://github.com/anthropics/hh-rlhf, arXiv:2204.05862.
"""

from collections.abc import Iterator

from ixc.data.sources import Refused, Row
from ixc.data.sources.conversations import dialogues
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Unusable, each, take
from ixc.data.sources.strangers import refuse_strangers

LICENCE = Licence(name="MIT", commercial=True)
COLUMNS = ("chosen", "rejected")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """Ready pairs, the two answers to one dialogue."""
    yield from each(origin, _row)


def _row(entry: Entry) -> Row:
    refuse_strangers(entry.record, COLUMNS)
    chosen_dialogue = take(entry.record, "chosen", str)
    rejected_dialogue = take(entry.record, "rejected", str)
    prompt, chosen, rejected = dialogues(chosen_dialogue, rejected_dialogue)
    if not chosen or not rejected:
        raise Unusable("an empty response; remove the row")
    return Row(
        id=entry.id,
        domain="safety",
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        # Many pairs open with the same question: held out together, or validation is half known.
        group=prompt[0].content,
    )
