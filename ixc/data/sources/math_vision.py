"""MATH-Vision: competition problems on pictures, and eight models' answers. MIT; commercial use allowed.

Native: `test*.jsonl`, `{"id", "question", "options", "answer", "level", "subject", "image"}`; with options
the answer is a letter. Optional, `outputs/<model>.jsonl`: `{"id", "response", "model_answer", "correct"}`.
A problem has one picture file; `<image1>`, `<image2>` mark its parts in question and options.
A public benchmark: a model trained on it must not be reported on it.

Source: https://github.com/mathllm/MATH-V, arXiv:2402.14804.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from ixc.data.samples import Gold, Turn
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, Unusable, find, home, lines, matching, media, rows, take

LICENCE = Licence(name="MIT", commercial=True, note="a public benchmark")

_MARK = re.compile(r"<image(\d+)>")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem, and a pair where some model is right and some wrong."""
    folder, answers = home(path), defaultdict(list)
    for file in matching(folder, "outputs/*.jsonl"):
        for item in lines(file):
            if isinstance(item, Refused):
                yield item
            else:
                answers[str(item[1].get("id"))].append(item[1])
    for file in find(path, "test*.jsonl"):
        yield from rows(
            file, lambda record, number: _rows(record, folder, answers[str(record.get("id"))], seed)
        )


def _rows(record: Record, folder: Path, outputs: list[Record], seed: int) -> Iterator[Row]:
    id = take(record, "id", str)
    options, answer = take(record, "options", list), take(record, "answer", str)
    if options and answer not in ascii_uppercase[: len(options)]:
        raise Unusable(f"answer: {answer!r}: not one of the {len(options)} options; correct it")
    rng = random.Random(f"{seed}/{id}")
    image = media(folder, take(record, "image", str), "image")
    prompt = (Turn(role="user", content=_question(take(record, "question", str), options)),)
    right = sorted(
        {
            text
            for output in outputs
            if output.get("correct") is True and (text := _response(output))
        }
    )
    wrong = sorted(
        {
            text
            for output in outputs
            if output.get("correct") is False and (text := _response(output))
        }
    )
    gold, known_wrong = _gold(answer, options, outputs, rng)
    meta = {"subject": record.get("subject"), "level": record.get("level")}

    common = {"domain": "reasoning", "prompt": prompt, "media": (image,), "group": id, "meta": meta}
    yield Row(id=id, gold=gold, wrong=known_wrong, **common)
    wrong = [text for text in wrong if text not in right]
    if right and wrong:
        yield Row(id=f"{id}/pair", chosen=rng.choice(right), rejected=rng.choice(wrong), **common)


def _question(question: str, options: list[str]) -> str:
    text = re.sub(r"\s+\n|\n{2,}", "\n", _MARK.sub("", question)).strip()
    if not options:
        return f"{text}\nAnswer with a number or a short expression."
    listed = "\n".join(
        _option(letter, option) for letter, option in zip(ascii_uppercase, options, strict=False)
    )
    return f"{text}\n{listed}\nAnswer with the letter of the right option."


def _option(letter: str, option: str) -> str:
    """One option; where it is only its letter, or a part of the picture, there is nothing to spell out.

    >>> _option("B", "B"), _option("B", "7 cm"), _option("B", "<image3>")
    ('(B)', '(B) 7 cm', '(B) figure 3')
    """
    text = _MARK.sub(r"figure \1", str(option))
    return f"({letter})" if text == letter else f"({letter}) {text}"


def _gold(
    answer: str, options: list[str], outputs: list[Record], rng: random.Random
) -> tuple[Gold, tuple[str, ...]]:
    if options:
        other = rng.choice(
            [letter for letter in ascii_uppercase[: len(options)] if letter != answer]
        )
        return Gold(check="choice", value=answer, answer=f"The answer is ({answer})."), (
            f"The answer is ({other}).",
        )
    missed = {
        str(output.get("model_answer") or "")
        for output in outputs
        if output.get("correct") is False
    }
    wrong = tuple(f"The answer is {value}." for value in sorted(missed - {"", answer}))
    return Gold(check="number", value=answer, answer=f"The answer is {answer}."), wrong[:1]


def _response(output: Record) -> str:
    return str(output.get("response") or "").strip()
