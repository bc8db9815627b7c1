"""ScienceQA: choices of school science with lectures and solutions. CC BY-NC-SA 4.0; no commercial use.

Native: `problems.json`, `{<qid>: {"question", "choices", "answer": int, "hint", "image": "image.png" | null,
"subject", "solution", "split"}}`, images in `images/<split>/<qid>/`; or Parquet with the image in
`image`. Half of the questions have none.

Source: https://github.com/lupantech/ScienceQA, arXiv:2209.09513.
"""

from collections.abc import Iterator

from ixc.data.sources import File, Refused, Row, tables
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, each, take, texts
from ixc.data.sources.splits import held_out

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question; the solution opens the reference answer."""
    return each(origin, _row, "problems.json", "**/*.parquet", records=tables.records)


def _row(entry: Entry) -> Row:
    record = entry.record
    options = texts(record, "choices")
    hint = str(record.get("hint") or "").strip()
    question = take(record, "question", str)
    solution = str(record.get("solution") or "")
    # The hub has the Parquet form, where a row's place is its id and its file its split.
    is_parquet = entry.folder is None or entry.file.endswith(".parquet")
    return Row(
        id=entry.id if is_parquet else entry.key,
        domain="text_rich",
        prompt=lettered(f"{hint}\n{question}", options),
        media=_images(entry, is_parquet),
        split=None if is_parquet else held_out(take(record, "split", str)),
        meta={"subject": record.get("subject")},
        **choice(options, take(record, "answer", int), reason=solution),
    )


def _images(entry: Entry, is_parquet: bool) -> tuple[File, ...]:
    image = take(entry.record, "image", object)
    if image is None:
        return ()
    if not is_parquet:
        split = take(entry.record, "split", str)
        name = take(entry.record, "image", str)
        image = f"images/{split}/{entry.key}/{name}"
    return (entry.image(image),)
