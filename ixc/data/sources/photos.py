"""Natural pictures with a true caption, questions, and objects that are not there. CC0 or public domain.

Native: `captions.jsonl`, `{"image", "caption", "qa": [{"question", "answer"}], "absent": [str], "licence"}`;
the names are relative to the folder. The format is this project's own: describe your own pictures in it.
Commercial use: as far as each row's `licence` goes.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, Turn
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, find, home, media, rows, take
from ixc.data.sources.phrases import bare, opposite, sentence, with_article

LICENCE = Licence(name="CC0 or public domain", commercial=True, note="each row has its own")

DESCRIBE = (Turn(role="user", content="Describe the picture."),)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """Captions, questions, and pairs of the caption against one that sees what is not there."""
    for file in find(path, "captions.jsonl"):
        yield from rows(file, lambda record, _: _rows(record, home(path)))


def _rows(record: Record, folder: Path) -> Iterator[Row]:
    name, caption = take(record, "image", str), sentence(take(record, "caption", str))
    meta = {"licence": record.get("licence")}
    common = {
        "domain": "general",
        "media": (media(folder, name, "image"),),
        "group": name,
        "meta": meta,
    }
    seen = [
        f"{caption} There is also {with_article(noun)}." for noun in take(record, "absent", list)
    ]

    gold = Gold(check="open", value=caption, answer=caption)
    yield Row(id=f"{name}/caption", prompt=DESCRIBE, gold=gold, wrong=tuple(seen), **common)
    for noun, false in zip(record["absent"], seen, strict=True):
        # As long as the false one: the better caption must not be known by its length.
        true = f"{caption} There is no {noun} here."
        yield Row(id=f"{name}/pair/{noun}", prompt=DESCRIBE, chosen=true, rejected=false, **common)
        yield _question(
            f"Is there {with_article(noun)} in the picture?", "no", f"{name}/absent/{noun}", common
        )
    for number, qa in enumerate(take(record, "qa", list), start=1):
        yield _question(
            take(qa, "question", str), take(qa, "answer", str), f"{name}/qa/{number}", common
        )


def _question(question: str, answer: str, id: str, common: Record) -> Row:
    value, other = bare(answer), opposite(answer)
    gold = Gold(
        check="match", value=value, others=(other,) if other else (), answer=sentence(answer)
    )
    wrong = (sentence(other),) if other else ()
    return Row(
        id=id, prompt=(Turn(role="user", content=question),), gold=gold, wrong=wrong, **common
    )
