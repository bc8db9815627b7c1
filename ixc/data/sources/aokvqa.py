"""A-OKVQA: questions on photographs that need common sense. Apache-2.0; commercial use allowed.

Native: `aokvqa_v1p0_{train,val}.json`, a list of `{"question_id", "image_id": int, "split", "question",
"choices": [4], "correct_choice_idx", "direct_answers": [10], "difficult_direct_answer", "rationales": [3]}`, the
images COCO's, `<split>2017/<image_id, 12 digits>.jpg`; or Parquet with the image in `image`. The test rows have
no answers.

Source: https://github.com/allenai/aokvqa, arXiv:2206.01718.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator

from ixc.data.samples import Gold
from ixc.data.sources import Refused, Row, tables
from ixc.data.sources.answers import choice, lettered, user_prompt
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Entry, Origin, Record, Unusable, each, take, texts
from ixc.data.sources.phrases import sentence

LICENCE = Licence(
    name="Apache-2.0", commercial=True, note="the pictures, COCO's, keep their Flickr licences"
)
SHORT = "Answer in a word or a short phrase."
FILES = ("**/aokvqa_v*.json", "**/*.parquet")


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question, and, where a short answer is expected to be found, the same question without options."""
    return each(origin, _rows, *FILES, records=tables.records)


def _rows(entry: Entry) -> Iterator[Row]:
    record = entry.record
    id = take(record, "question_id", str)
    question = take(record, "question", str)
    options = texts(record, "choices")
    right = take(record, "correct_choice_idx", int)
    answer = choice(options, right, reason=_rationale(record))
    image = record["image"] if "image" in record else _coco_name(record)
    common = {
        "domain": "general",
        "media": (entry.image(image),),
        "group": str(record.get("image_id") or ""),
    }

    direct_answers = _direct_answers(record)
    yield Row(
        id=id,
        prompt=lettered(question, options),
        **common,
        **answer,
    )

    # Ten people answered without the options; where they hardly agree, nothing can be checked.
    if direct_answers and not record.get("difficult_direct_answer"):
        [(most_common, _)] = Counter(direct_answers).most_common(1)
        value = json.dumps(direct_answers, ensure_ascii=False)
        gold = Gold(check="vqa", value=value, answer=sentence(most_common))
        prompt = user_prompt(f"{question}\n{SHORT}")
        yield Row(id=f"{id}/direct", prompt=prompt, gold=gold, **common)


def _rationale(record: Record) -> str:
    return texts(record, "rationales")[0] if record.get("rationales") else ""


def _coco_name(record: Record) -> str:
    split = take(record, "split", str)
    image_id = take(record, "image_id", int)
    return f"{split}2017/{image_id:012}.jpg"


def _direct_answers(record: Record) -> list[str]:
    """Ten people's answers; the hub's copy has them as the text of a list."""
    value = record.get("direct_answers")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise Unusable("direct_answers: not a list of texts; correct it") from error
    return texts({"direct_answers": value}, "direct_answers") if value else []
