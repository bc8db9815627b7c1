"""MATH-Vision: competition problems on images, and eight models' answers. MIT; commercial use allowed.

Native: `test*.jsonl`, `{"id", "question", "options", "answer", "level", "subject", "image"}`; with options
the answer is a letter. Optional, `outputs/<model>.jsonl`: `{"id", "response", "model_answer", "correct"}`.
A problem has one image file; `<image1>`, `<image2>` mark its parts in question and options.
A public benchmark: a model trained on it must not be reported on it.

Source: https://github.com/mathllm/MATH-V, arXiv:2402.14804.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from ixc.data.samples import Gold, user_message
from ixc.data.sources import Refused, Row
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import (
    Entry,
    Record,
    Unusable,
    each,
    home,
    lines,
    matching,
    take,
)

LICENCE = Licence(name="MIT", commercial=True, note="a public benchmark")

_MARK = re.compile(r"<image(\d+)>")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A prompt per problem, and a pair where some model is right and some wrong."""
    # What the models answered is optional, and belongs to a problem by its id.
    outputs: dict[str, list[Record]] = defaultdict(list)
    for file in matching(home(path), "outputs/*.jsonl"):
        for item in lines(file):
            if isinstance(item, Refused):
                yield item
            else:
                _, output = item
                outputs[str(output.get("id"))].append(output)

    def rows(entry: Entry) -> Iterator[Row]:
        id = str(entry.record.get("id"))
        return _rows(entry, outputs[id], seed)

    yield from each(path, rows, "test*.jsonl", records=lines)


def _rows(entry: Entry, outputs: list[Record], seed: int) -> Iterator[Row]:
    record = entry.record
    id = take(record, "id", str)
    options = take(record, "options", list)
    answer = take(record, "answer", str)
    if options and answer not in ascii_uppercase[: len(options)]:
        raise Unusable(f"answer: {answer!r}: not one of the {len(options)} options; correct it")
    rng = random.Random(f"{seed}/{id}")
    image = entry.image(take(record, "image", str))
    question = _question(take(record, "question", str), options)
    right = _responses(outputs, is_correct=True)
    wrong = _responses(outputs, is_correct=False)
    gold, known_wrong = _gold(answer, options, outputs, rng)
    common = {
        "domain": "reasoning",
        "prompt": user_message(question),
        "media": (image,),
        "group": id,
        "meta": {"subject": record.get("subject"), "level": record.get("level")},
    }

    yield Row(id=id, gold=gold, wrong=known_wrong, **common)

    # One text may have been judged both ways: it is no rejected answer then.
    wrong = [text for text in wrong if text not in right]
    if right and wrong:
        chosen = rng.choice(right)
        yield Row(
            id=f"{id}/pair",
            chosen=chosen,
            rejected=rng.choice(wrong),
            **common,
        )


def _responses(outputs: list[Record], is_correct: bool) -> list[str]:
    """What the models answered rightly, or wrongly: each text once, in alphabetical order."""
    texts = set()
    for output in outputs:
        text = str(output.get("response") or "").strip()
        if output.get("correct") is is_correct and text:
            texts.add(text)
    return sorted(texts)


def _question(question: str, options: list[str]) -> str:
    unmarked = _MARK.sub("", question)
    text = re.sub(r"\s+\n|\n{2,}", "\n", unmarked).strip()
    if not options:
        return f"{text}\nAnswer with a number or a short expression."
    lines = [text]
    for letter, option in zip(ascii_uppercase, options, strict=False):
        lines.append(_option(letter, option))
    lines.append("Answer with the letter of the right option.")
    return "\n".join(lines)


def _option(letter: str, option: str) -> str:
    """One option; where it is only its letter, or a part of the image, there is nothing to spell out.

    >>> _option("B", "B"), _option("B", "7 cm"), _option("B", "<image3>")
    ('(B)', '(B) 7 cm', '(B) figure 3')
    """
    text = _MARK.sub(r"figure \1", str(option))
    return f"({letter})" if text == letter else f"({letter}) {text}"


def _gold(
    answer: str,
    options: list[str],
    outputs: list[Record],
    rng: random.Random,
) -> tuple[Gold, tuple[str, ...]]:
    """How an answer is checked, and one that is known to be wrong."""
    if options:
        letters = ascii_uppercase[: len(options)]
        other = rng.choice([letter for letter in letters if letter != answer])
        gold = Gold(check="choice", value=answer, answer=f"The answer is ({answer}).")
        return gold, (f"The answer is ({other}).",)
    missed = set()
    for output in outputs:
        if output.get("correct") is False:
            missed.add(str(output.get("model_answer") or ""))
    wrong = tuple(f"The answer is {value}." for value in sorted(missed - {"", answer}))
    gold = Gold(check="number", value=answer, answer=f"The answer is {answer}.")
    return gold, wrong[:1]
