"""ScienceQA: choices of school science with lectures and solutions. CC BY-NC-SA 4.0; no commercial use.

Native: `problems.json`, `{<qid>: {"question", "choices", "answer": int, "hint", "image": "image.png" | null,
"subject", "solution", "split"}}`, pictures in `images/<split>/<qid>/`; or Parquet with the picture in
`image`. Half of the questions have none.

Source: https://github.com/lupantech/ScienceQA, arXiv:2209.09513.
"""

from collections.abc import Iterator

from ixc.data.sources import File, Refused, Row
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, media, take
from ixc.data.sources.splits import held_out
from ixc.data.sources.tables import Entry, each, texts

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question; the solution opens the reference answer."""
    return each(origin, _rows, "problems.json", "**/*.parquet")


def _rows(entry: Entry) -> list[Row]:
    record, options = entry.record, texts(entry.record, "choices")
    hint, question = str(record.get("hint") or "").strip(), take(record, "question", str)
    native = not entry.file.endswith(".parquet")
    row = Row(
        id=entry.key if native else entry.id,
        domain="text_rich",
        prompt=lettered(f"{hint}\n{question}", options),
        media=_images(entry, native),
        split=held_out(take(record, "split", str)) if native else None,
        meta={"subject": record.get("subject")},
        **choice(options, take(record, "answer", int), reason=str(record.get("solution") or "")),
    )
    return [row]


def _images(entry: Entry, native: bool) -> tuple[File, ...]:
    if take(entry.record, "image", object) is None:
        return ()
    if not native:
        return (media(entry.folder, entry.record["image"], "image"),)
    name = (
        f"images/{take(entry.record, 'split', str)}/{entry.key}/{take(entry.record, 'image', str)}"
    )
    return (media(entry.folder, name, "image"),)
