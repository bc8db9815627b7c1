"""A-OKVQA: questions on photographs that need common sense. Apache-2.0; commercial use allowed.

Native: `aokvqa_v1p0_{train,val}.json`, a list of `{"question_id", "image_id": int, "split", "question",
"choices": [4], "correct_choice_idx", "direct_answers": [10], "difficult_direct_answer", "rationales": [3]}`, the
pictures COCO's, `<split>2017/<image_id, 12 digits>.jpg`; or Parquet with the picture in `image`. The test rows have
no answers.

Source: https://github.com/allenai/aokvqa, arXiv:2206.01718.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator

from ixc.data.samples import Gold
from ixc.data.sources import Refused, Row
from ixc.data.sources.answers import asked, choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Origin, Record, Unusable, media, take
from ixc.data.sources.phrases import sentence
from ixc.data.sources.tables import Entry, each, texts

LICENCE = Licence(
    name="Apache-2.0", commercial=True, note="the pictures, COCO's, keep their Flickr licences"
)
SHORT = "Answer in a word or a short phrase."


def read(origin: Origin, seed: int) -> Iterator[Row | Refused]:
    """A choice per question, and, where a short answer is expected to be found, the same question without options."""
    return each(origin, _rows, "**/aokvqa_v*.json", "**/*.parquet")


def _rows(entry: Entry) -> Iterator[Row]:
    record = entry.record
    id, question = take(record, "question_id", str), take(record, "question", str)
    options = texts(record, "choices")
    answer = choice(options, take(record, "correct_choice_idx", int), reason=_rationale(record))
    image = media(entry.folder, record["image"] if "image" in record else _coco(record), "image")
    common = {"domain": "general", "media": (image,), "group": str(record.get("image_id") or "")}

    direct = _direct_answers(record)
    yield Row(id=id, prompt=lettered(question, options), **common, **answer)
    if direct and not record.get("difficult_direct_answer"):
        usual = sentence(Counter(direct).most_common(1)[0][0])
        gold = Gold(check="vqa", value=json.dumps(direct, ensure_ascii=False), answer=usual)
        yield Row(id=f"{id}/direct", prompt=asked(f"{question}\n{SHORT}"), gold=gold, **common)


def _rationale(record: Record) -> str:
    return texts(record, "rationales")[0] if record.get("rationales") else ""


def _coco(record: Record) -> str:
    return f"{take(record, 'split', str)}2017/{take(record, 'image_id', int):012}.jpg"


def _direct_answers(record: Record) -> list[str]:
    """Ten people's answers; the hub's copy has them as the text of a list."""
    value = record.get("direct_answers")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise Unusable("direct_answers: not a list of texts; correct it") from error
    return texts({"direct_answers": value}, "direct_answers") if value else []
