"""Super-CLEVR: questions on rendered vehicles. Questions CC-BY-4.0, images BSD; commercial use allowed.

Native: `superCLEVR_questions*.json`, `{"questions": [{"image_filename", "question", "answer"}]}`, true or
false, a number or a word for an answer; the images are in `images/`. By `image_index`, the first 20,000 images are
for training, the next 5,000 for validation, the last 5,000 for tests.

Source: https://github.com/Lizw14/Super-CLEVR; Z. Li et al., CVPR 2023.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from ixc.data.samples import Gold, user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, Unusable, attempt, document, find, home, media, take
from ixc.data.sources.phrases import opposite, sentence
from ixc.data.sources.splits import held_out

LICENCE = Licence(name="CC-BY-4.0", commercial=True, note="pictures: BSD")

_KINDS = (
    {"small", "large"},
    {"metal", "rubber"},
    {"gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"},
)
"""Answers to questions about size, material and colour; what is left names parts or vehicles."""

FOR_TRAINING = 20_000
"""Images."""


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per question."""
    for file in find(path, "superCLEVR_questions*.json"):
        content = document(file)
        if isinstance(content, Refused):
            yield content
            continue
        questions = content.get("questions")
        if isinstance(questions, list):
            yield from _rows(questions, file, home(path), seed)
        else:
            reason = "no list 'questions'; is it a Super-CLEVR question file?"
            yield Refused(where=file.name, reason=reason)


def _rows(
    questions: list[Record],
    file: Path,
    folder: Path,
    seed: int,
) -> Iterator[Row | Refused]:
    names = _names(questions)
    suffix = file.stem.removeprefix("superCLEVR_questions")

    def row(record: Record, number: int) -> Row:
        id = f"{suffix.strip('_')}/{number}"
        rng = random.Random(f"{seed}/{suffix}/{number}")
        return _row(record, id, folder, names, rng)

    for number, record in enumerate(questions, start=1):
        yield from attempt(row, record, number, file.name)


def _names(questions: list[Record]) -> set[str]:
    """The parts and vehicles among a file's answers: what one of them could be mistaken for."""
    answers = {str(question.get("answer")) for question in questions if isinstance(question, dict)}
    words = {answer for answer in answers if not answer.isdigit()}
    return words.difference({"True", "False"}, *_KINDS)


def _row(
    record: Record,
    id: str,
    folder: Path,
    names: set[str],
    rng: random.Random,
) -> Row:
    image = take(record, "image_filename", str)
    gold, wrong = _gold(take(record, "answer", object), names, rng)
    question = take(record, "question", str)
    return Row(
        id=id,
        domain="general",
        prompt=user_message(question),
        media=(media(folder, f"images/{image}", "image"),),
        gold=gold,
        wrong=wrong,
        split="val" if _index(record) >= FOR_TRAINING else held_out(str(record.get("split"))),
        group=image,
    )


def _index(record: Record) -> int:
    """Of the image; of those that do not say, -1."""
    index = record.get("image_index")
    return index if isinstance(index, int) else -1


def _gold(value: object, names: set[str], rng: random.Random) -> tuple[Gold, tuple[str, ...]]:
    """How an answer is checked, and a wrong one of the same kind."""
    if isinstance(value, bool):
        word = "yes" if value else "no"
        other = opposite(word)
        return _match(word, {other}), (sentence(other),)
    if isinstance(value, int):
        # A count is off by one; nothing is below none.
        wrong = value + rng.choice([-1, 1] if value else [1])
        gold = Gold(check="number", value=str(value), answer=f"{value}.")
        return gold, (f"{wrong}.",)
    if not isinstance(value, str) or not value:
        raise Unusable(f"answer: {value!r}: expected true, false, a number or a word")
    kind = next((kind for kind in _KINDS if value in kind), names)
    # `wheel` does not contradict `front wheel`.
    others = {other for other in kind if other not in value and value not in other}
    gold = _match(value, others)
    if not others:
        return gold, ()
    return gold, (sentence(rng.choice(sorted(others))),)


def _match(value: str, others: set[str]) -> Gold:
    return Gold(
        check="match",
        value=value,
        others=tuple(sorted(others)),
        answer=sentence(value),
    )
