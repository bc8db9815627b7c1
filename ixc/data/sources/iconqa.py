"""IconQA: questions on icon pictures, the options texts or pictures. CC BY-NC-SA 4.0; no commercial use.

Native: `problems.json`, `{<pid>: {"question", "choices", "answer", "ques_type", "split"}}`, `ques_type` one of
`choose_txt`, `choose_img` (choices are file names; the answer is an index) and `fill_in_blank` (a text);
pictures in `iconqa/<split>/<ques_type>/<pid>/`, the question's being `image.png`. Or Parquet, `choices` a text with
commas between them, `answer` one of them, the pictures in `query_image` and `choice_image_0` to `_4`.

Source: https://github.com/lupantech/IconQA, arXiv:2110.13214.
"""

from collections.abc import Iterator

from ixc.data.samples import PLACEHOLDER
from ixc.data.sources import File, Refused, Row
from ixc.data.sources.answers import asked, choice, lettered, position, short
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, Record, Unusable, media, take
from ixc.data.sources.splits import held_out
from ixc.data.sources.tables import Entry, each, texts

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)
MAX_PICTURES = 5
"""Columns for pictures of options in the Parquet form."""


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem; where the options are pictures, the prompt shows them after the question's."""
    return each(origin, _rows, "problems.json", "**/*.parquet")


def _rows(entry: Entry) -> list[Row]:
    record, stored = entry.record, "query_image" in entry.record
    kind, question = take(record, "ques_type", str), take(record, "question", str)
    if kind not in ("choose_txt", "choose_img", "fill_in_blank"):
        raise Unusable(f"ques_type: {kind!r}: not one of choose_txt, choose_img, fill_in_blank")
    options = [] if kind == "fill_in_blank" else _options(record, stored)

    if kind == "fill_in_blank":
        prompt, answer = asked(question), short(take(record, "answer", object))
    elif kind == "choose_txt":
        prompt, answer = (
            lettered(question, options),
            choice(options, _right(record, options, stored)),
        )
    else:
        prompt = lettered(f"{PLACEHOLDER}\n{question}", [PLACEHOLDER] * len(options))
        answer = choice([""] * len(options), _right(record, options, stored))
    names = options if kind == "choose_img" else []
    row = Row(
        id=entry.id if stored else entry.key,
        domain="text_rich",
        prompt=prompt,
        media=_stored(entry, len(names)) if stored else _native(entry, kind, names),
        group="" if stored else entry.key,
        split=None if stored else held_out(take(record, "split", str)),
        meta={"kind": kind},
        **answer,
    )
    return [row]


def _options(record: Record, stored: bool) -> list[str]:
    listed = {"choices": take(record, "choices", str).split(",")} if stored else record
    return texts(listed, "choices")


def _right(record: Record, options: list[str], stored: bool) -> int:
    return position(options, take(record, "answer", str)) if stored else take(record, "answer", int)


def _native(entry: Entry, kind: str, names: list[str]) -> tuple[File, ...]:
    folder = f"iconqa/{take(entry.record, 'split', str)}/{kind}/{entry.key}"
    return tuple(media(entry.folder, f"{folder}/{name}", "image") for name in ("image.png", *names))


def _stored(entry: Entry, num_options: int) -> tuple[File, ...]:
    if num_options > MAX_PICTURES:
        raise Unusable(
            f"{num_options} options that are pictures; there are columns for {MAX_PICTURES}"
        )
    columns = ("query_image", *(f"choice_image_{k}" for k in range(num_options)))
    return tuple(media(entry.folder, entry.record.get(column), "image") for column in columns)
