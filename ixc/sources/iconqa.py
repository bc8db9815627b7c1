"""IconQA: questions on icon pictures, the options texts or pictures. CC BY-NC-SA 4.0; no commercial use.

Native: `problems.json`, `{<pid>: {"question", "choices", "answer", "ques_type", "split"}}`, `ques_type` one of
`choose_txt`, `choose_img` (choices are file names; the answer is an index) and `fill_in_blank` (a text);
pictures in `iconqa/<split>/<ques_type>/<pid>/`, the question's being `image.png`.

Source: https://github.com/lupantech/IconQA, arXiv:2110.13214.
"""

from collections.abc import Iterator
from pathlib import Path

from ixc.samples import PLACEHOLDER
from ixc.sources import Refused, Row
from ixc.sources.answers import asked, choice, lettered, short
from ixc.sources.licences import Licence
from ixc.sources.native import Unusable, media, take
from ixc.sources.tables import Entry, each, held_out, texts

LICENCE = Licence(name="CC BY-NC-SA 4.0", commercial=False)


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem; where the options are pictures, the prompt shows them after the question's."""
    return each(path, _rows, "problems.json")


def _rows(entry: Entry) -> list[Row]:
    record = entry.record
    kind, split = take(record, "ques_type", str), take(record, "split", str)
    if kind not in ("choose_txt", "choose_img", "fill_in_blank"):
        raise Unusable(f"ques_type: {kind!r}: not one of choose_txt, choose_img, fill_in_blank")
    question, folder = take(record, "question", str), f"iconqa/{split}/{kind}/{entry.key}"
    options = [] if kind == "fill_in_blank" else texts(record, "choices")
    names = ["image.png", *(options if kind == "choose_img" else [])]

    if kind == "fill_in_blank":
        prompt, answer = asked(question), short(take(record, "answer", object))
    elif kind == "choose_txt":
        prompt, answer = lettered(question, options), choice(options, take(record, "answer", int))
    else:
        prompt = lettered(f"{PLACEHOLDER}\n{question}", [PLACEHOLDER] * len(options))
        answer = choice([""] * len(options), take(record, "answer", int))
    row = Row(
        id=entry.key,
        domain="text_rich",
        prompt=prompt,
        media=tuple(media(entry.folder, f"{folder}/{name}", "image") for name in names),
        group=entry.key,
        split=held_out(split),
        meta={"kind": kind},
        **answer,
    )
    return [row]
