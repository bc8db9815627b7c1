"""IconQA: questions on icon images, the options texts or images. CC BY-NC-SA 4.0; no commercial use.

Native: `problems.json`, `{<pid>: {"question", "choices", "answer", "ques_type", "split"}}`, `ques_type` one of
`choose_txt`, `choose_img` (choices are file names; the answer is an index) and `fill_in_blank` (a text);
images in `iconqa/<split>/<ques_type>/<pid>/`, the question's being `image.png`. Or Parquet, `choices` a text with
commas between them, `answer` one of them, the images in `query_image` and `choice_image_0` to `_4`.

Source: https://github.com/lupantech/IconQA, arXiv:2110.13214.
"""

from collections.abc import Iterator

from ixc.data.samples import PLACEHOLDER, Turn
from ixc.data.sources import File, Refused, Row, tables
from ixc.data.sources.answers import Answer, choice, lettered, position, short, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Record, Unusable, each, take, texts
from ixc.data.sources.splits import held_out

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)
MAX_IMAGES = 5
"""Columns for images of options in the Parquet form."""


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem; where the options are images, the prompt shows them after the question's."""
    return each(origin, _row, "problems.json", "**/*.parquet", records=tables.records)


def _row(entry: Entry) -> Row:
    record = entry.record
    kind = take(record, "ques_type", str)
    question = take(record, "question", str)
    if kind not in ("choose_txt", "choose_img", "fill_in_blank"):
        raise Unusable(f"ques_type: {kind!r}: not one of choose_txt, choose_img, fill_in_blank")

    is_parquet = "query_image" in record
    options = [] if kind == "fill_in_blank" else _options(record, is_parquet)
    prompt, answer = _prompt_and_answer(record, kind, question, options, is_parquet)
    option_images = options if kind == "choose_img" else []
    common = {"domain": "text_rich", "prompt": prompt, "meta": {"kind": kind}, **answer}
    if is_parquet:
        return Row(id=entry.id, media=_parquet_images(entry, len(option_images)), **common)
    return Row(
        id=entry.key,
        media=_native_images(entry, kind, option_images),
        group=entry.key,
        split=held_out(take(record, "split", str)),
        **common,
    )


def _prompt_and_answer(
    record: Record,
    kind: str,
    question: str,
    options: list[str],
    is_parquet: bool,
) -> tuple[tuple[Turn, ...], Answer]:
    if kind == "fill_in_blank":
        return user_prompt(question), short(take(record, "answer", object))
    if kind == "choose_txt":
        prompt = lettered(question, options)
        return prompt, choice(options, _right(record, options, is_parquet))
    # Options that are images: each stands behind its letter.
    marks = [PLACEHOLDER] * len(options)
    prompt = lettered(f"{PLACEHOLDER}\n{question}", marks)
    return prompt, choice([""] * len(options), _right(record, options, is_parquet))


def _options(record: Record, is_parquet: bool) -> list[str]:
    if not is_parquet:
        return texts(record, "choices")
    choices = take(record, "choices", str).split(",")
    return texts({"choices": choices}, "choices")


def _right(record: Record, options: list[str], is_parquet: bool) -> int:
    if is_parquet:
        return position(options, take(record, "answer", str))
    return take(record, "answer", int)


def _native_images(entry: Entry, kind: str, option_images: list[str]) -> tuple[File, ...]:
    split = take(entry.record, "split", str)
    folder = f"iconqa/{split}/{kind}/{entry.key}"
    names = [f"{folder}/{name}" for name in ("image.png", *option_images)]
    return tuple(entry.image(name) for name in names)


def _parquet_images(entry: Entry, num_options: int) -> tuple[File, ...]:
    if num_options > MAX_IMAGES:
        raise Unusable(
            f"{num_options} options that are pictures; there are columns for {MAX_IMAGES}"
        )
    columns = ["query_image"]
    columns += [f"choice_image_{k}" for k in range(num_options)]
    images = [entry.record.get(column) for column in columns]
    return tuple(entry.image(image) for image in images)
