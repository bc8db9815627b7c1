"""GeoQA and GeoQA+: choices on figures of plane geometry, in Chinese. Licence not stated; no commercial use.

Native: `{train,dev,test}.pk`, a pickled list of `{"id", "image": array, "token_list": [str], "numbers", "choice_nums":
[4 numbers], "label": int, "formal_point": [str]}`; `N_0` in the tokens stands for the first of `numbers`. A
pickle can run any program, so only plain values and arrays are unpickled: anything else is refused.

Source: https://github.com/chen-judge/GeoQA, arXiv:2105.14517; https://github.com/SCNU203/GeoQA-Plus.
"""

import io
import pickle
import re
from collections.abc import Iterator
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ixc.data.sources import File, Refused, Row
from ixc.data.sources.answers import choice, lettered
from ixc.data.sources.licences import Licence
from ixc.data.sources.native import Record, Unusable, attempt, find, home, take, texts

LICENCE = Licence(name="not stated", commercial=False, note="ask the authors")


def read(path: Path, seed: int) -> Iterator[Row | Refused]:
    """A choice per problem."""
    for file in find(path, "**/*train*.pk", "**/*dev*.pk", "**/*test*.pk"):
        name = file.relative_to(home(path)).as_posix()
        problems = _problems(file)
        if isinstance(problems, Refused):
            yield problems
            continue
        for number, record in enumerate(problems, start=1):
            yield from attempt(partial(_row, name=name), record, number, name)


class _Plain(pickle.Unpickler):
    """Unpickles nothing but plain values and numpy arrays."""

    _ALLOWED = {
        ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("multiarray", "scalar"): np.float64().__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how old pickles write bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 and 2 call the same module differently.
        place = re.sub(r"^numpy\._?core\.", "", module)
        if (place, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it would load {module}.{name}")
        return self._ALLOWED[place, name]


def _problems(file: Path) -> list[Any] | Refused:
    try:
        with file.open("rb") as stream:
            problems = _Plain(stream).load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"not a pickle of plain values ({error}); fetch the file again"
        return Refused(where=file.name, reason=reason)
    if not isinstance(problems, list) or not problems:
        return Refused(where=file.name, reason="not a list of problems; is it GeoQA's file?")
    return problems


def _row(record: Record, number: int, name: str) -> Row:
    options = [_number_text(value) for value in take(record, "choice_nums", list)]
    label: Any = take(record, "label", object)
    figure = _png(take(record, "image", np.ndarray))
    return Row(
        id=f"{name.removesuffix('.pk')}/{number}",
        domain="reasoning",
        prompt=lettered(_question(record), options),
        media=(File(kind="image", data=figure),),
        group=str(take(record, "id", object)),
        meta={"points": record.get("formal_point")},
        **choice(options, index(label)),
    )


def _number_text(value: Any) -> str:
    """A number as a text.

    >>> _number_text(60.0), _number_text(2.5)
    ('60', '2.5')
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise Unusable(f"{value!r}: expected a number; correct it or remove the row")
    return f"{float(value):.10g}"


def _question(record: Record) -> str:
    """The tokens as a text, with their numbers.

    >>> _question({"token_list": ["∠1", "=", "N_0", "°"], "numbers": [50]})
    '∠1=50°'
    """
    numbers = take(record, "numbers", list)

    def number(mark: re.Match[str]) -> str:
        position = int(mark[1])
        if position >= len(numbers):
            raise Unusable(f"{mark[0]}: there are {len(numbers)} numbers; correct the row")
        return _number_text(numbers[position])

    tokens = texts(record, "token_list")
    return re.sub(r"N_(\d+)", number, "".join(tokens))


def _png(array: np.ndarray) -> bytes:
    if array.dtype != np.uint8 or array.size == 0:
        raise Unusable(
            f"image: {array.dtype}, {array.shape}: expected pixels of 8 bits; remove the row"
        )
    # The store takes files, the pickle has bare pixels.
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
