"""Columns that a reader does not read: what could be an image, an answer or a part of the prompt is refused by name.

A column that nobody reads is lost in silence, and a pair without its second image teaches something false.
"""

import re
import reprlib
from collections.abc import Collection, Sequence
from datetime import date, time
from decimal import Decimal
from math import isfinite
from typing import Any

from ixc.data.containers import VIDEO_SUFFIXES
from ixc.data.inline import inline, is_data_url
from ixc.data.sources.forms import Record
from ixc.data.sources.native import Unusable
from ixc.data.sources.phrases import blank

_MEDIA = "image img picture photo pixel video film movie audio sound speech voice media attachment screenshot".split()
_ANSWER = "answer response completion chosen reject accept prefer output reply candidate solution message".split()
_ANSWER += "conversation dialog assistant generation worse better".split()
_PROMPT = (
    "prompt system history instruction input query question context tool function object".split()
)
_MEDIA_WORDS = set("pic pics clip clips frame frames wav mp3 pdf".split())
_ABOUT = set(
    "id ids idx index model models score scores rating ratings rank type types source sources count counts num number "
    "n size sizes width height length len tokens hash sha sha1 sha256 md5 language lang date time licence license "
    "category categories dataset origin split logp logps logprob logprobs reward rewards prob quality domain style "
    "format level severity version annotator judge".split()
)
"""Last words of a column that only describes an image or an answer: `image_id`, `chosen_model`."""
_WHICH = set("a b c d chosen rejected accepted preferred".split())
"""Words that only say which one a column is about: `score_chosen`, `model_b`."""
_PER_ANSWER = re.compile(r"chosen|reject|positive|negative|response|answer", re.IGNORECASE)
_SUFFIXES = (
    "png jpg jpeg jfif webp gif bmp dib tif tiff ppm pgm avif heic jp2 ico tga svg pdf".split()
)
_SUFFIXES += "wav mp3 flac ogg m4a aac opus wma".split()
_FILE = re.compile(
    rf"[^\n]{{1,400}}\.(?:{'|'.join([*_SUFFIXES, *(s[1:] for s in VIDEO_SUFFIXES)])})",
    re.IGNORECASE,
)
_REMEDY = "map it in `options.columns`, or, if it may be lost, list it in `options.ignore`"


def refuse_strangers(
    record: Record,
    read: Collection[str],
    ignore: Collection[str] = (),
    remedy: str = "remove the column",
) -> None:
    """Make sure that what is not read is neither media nor an answer nor a part of the prompt.

    What says the same as a column that is read, and what only describes one (`image_id`, `chosen_score`), may stay.

    Args:
        read: names of the columns that the reader reads.
        ignore: names of others that may be lost.
        remedy: what the user can do about it.

    Raises:
        Unusable: something is; names the column.
    """
    known = [record[name] for name in read if name in record]
    for name, value in record.items():
        if name in read or name in ignore or _is_empty(value) or value in known:
            continue
        # What is lost in silence teaches something false: say it by name.
        if what := _carries(str(name), value):
            # With media of its own for each answer, the answers belong to two prompts.
            if what == "media" and _PER_ANSWER.search(str(name)):
                why = "an answer has media of its own, and a pair here shows both answers the same ones; remove the row"
            else:
                why = f"could carry {what}, and is not read; {remedy}"
            raise Unusable(f"{name}: {reprlib.repr(value)}: {why}")


def refuse_unmapped(record: Record, read: Collection[str], ignore: Collection[str]) -> None:
    """`refuse_strangers` where the user can map and ignore columns."""
    refuse_strangers(record, read, ignore, _REMEDY)


def others(record: Record, read: Collection[str]) -> Record:
    """The columns that are not read, as JSON can hold them; bytes, and what says the same as one that is read, go.

    JSON knows neither NaN nor infinity: they become texts.

    >>> others({"prompt": "Hi.", "my_column": 7}, ["prompt"])
    {'my_column': 7}
    """
    known = [record[name] for name in read if name in record]
    unread = {}
    for name, value in record.items():
        is_read = name in read or value in known
        if not is_read and value is not None and not _has_bytes(value):
            unread[str(name)] = _plain(value)
    return unread


def _carries(name: str, value: Any) -> str:
    """What a column could carry; empty for nothing that matters."""
    if _has_bytes(value) or _is_file(value):
        return "media"
    words = re.findall("[a-z]+[0-9]*", re.sub("([a-z])([A-Z])", r"\1_\2", name).lower())
    # `response_ids2` is about a response: what counts is the last word that is no "chosen" or "b".
    telling = [word for word in words if word not in _WHICH]
    last = telling[-1] if telling else ""
    is_about = last in _ABOUT or last.rstrip("0123456789") in _ABOUT
    if isinstance(value, bool | int | float | Decimal | date | time) or is_about:
        return ""
    if any(stem in name.lower() for stem in _MEDIA) or _MEDIA_WORDS.intersection(words):
        return "media"
    if _is_numeric(value):
        return ""
    # What is left is known by its name alone.
    for stems, what in ((_ANSWER, "an answer"), (_PROMPT, "a part of the prompt")):
        if any(stem in name.lower() for stem in stems):
            return what
    return ""


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return all(map(_is_empty, value))
    if isinstance(value, str):
        return blank(value) or value.strip() in ("[]", "{}", "null")
    return value is None or value == b""


def _is_file(value: Any) -> bool:
    """Whether it names a file of media, or brings one along; an address on the web only tells where it is from."""
    if isinstance(value, str):
        if is_data_url(value):
            return True
        if "://" not in value[:12] and _FILE.fullmatch(value.strip()):
            return True
        return inline(value) is not None
    if isinstance(value, list):
        return any(map(_is_file, value))
    return isinstance(value, dict) and any(map(_is_file, value.values()))


def _has_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_bytes, value.values()))
    return isinstance(value, bytes) or (
        isinstance(value, list | tuple) and any(map(_has_bytes, value))
    )


def _is_numeric(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_numeric, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    return value is None or isinstance(value, bool | int | float)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | bool | int | type(None)):
        return value
    is_finite = isinstance(value, float) and isfinite(value)
    return value if is_finite else str(value)
