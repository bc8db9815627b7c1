"""Natural images with a true caption, questions, and objects that are not there. CC0 or public domain.

Native: `captions.jsonl`, `{"image", "caption", "qa": [{"question", "answer"}], "absent": [str], "licence"}`;
the names are relative to the folder. The format is this project's own: describe your own images in it.
Commercial use: as far as each row's `licence` goes.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Record, each, lines, take
from ixc.data.sources.phrases import bare, opposite, sentence, with_article

LICENCE = Licence(name="CC0 or public domain", commercial=True, note="each row has its own")

DESCRIBE = user_message("Describe the picture.")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """Captions, questions, and pairs of the caption against one that sees what is not there."""
    yield from each(path, _rows, "captions.jsonl", records=lines)


def _rows(entry: Entry) -> Iterator[Row]:
    record = entry.record
    name = take(record, "image", str)
    caption = sentence(take(record, "caption", str))
    common = {
        "domain": "general",
        "media": (entry.image(name),),
        "group": name,
        "meta": {"licence": record.get("licence")},
    }
    absent = take(record, "absent", list)
    hallucinated = [f"{caption} There is also {with_article(noun)}." for noun in absent]

    gold = Gold(check="open", value=caption, answer=caption)
    wrong = tuple(hallucinated)
    yield Row(
        id=f"{name}/caption",
        prompt=DESCRIBE,
        gold=gold,
        wrong=wrong,
        **common,
    )

    for noun, rejected in zip(absent, hallucinated, strict=True):
        # As long as the false one: the better caption must not be known by its length.
        chosen = f"{caption} There is no {noun} here."
        pair = {"prompt": DESCRIBE, "chosen": chosen, "rejected": rejected}
        yield Row(id=f"{name}/pair/{noun}", **pair, **common)
        question = f"Is there {with_article(noun)} in the picture?"
        yield _question_row(f"{name}/absent/{noun}", question, "no", common)

    for number, qa in enumerate(take(record, "qa", list), start=1):
        question = take(qa, "question", str)
        answer = take(qa, "answer", str)
        yield _question_row(f"{name}/qa/{number}", question, answer, common)


def _question_row(
    id: str,
    question: str,
    answer: str,
    common: Record,
) -> Row:
    other = opposite(answer)
    gold = Gold(
        check="match",
        value=bare(answer),
        others=(other,) if other else (),
        answer=sentence(answer),
    )
    return Row(
        id=id,
        prompt=user_message(question),
        gold=gold,
        wrong=(sentence(other),) if other else (),
        **common,
    )
