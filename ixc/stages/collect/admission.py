"""What becomes of a row: a sample whose media are stored, or a reason that a person can act on."""

import json
from dataclasses import replace

from pydantic import ValidationError

from ixc.data.media import BadMedia, Store
from ixc.data.samples import PLACEHOLDER, Gold, Media, Modality, Role, Sample, Verdict, answer
from ixc.data.sources import Refused, Row
from ixc.data.sources.phrases import blank
from ixc.io.quarantine import printable
from ixc.params import CollectParams

_HALF = "not UTF-8, or half a character; convert the file: iconv -t UTF-8"
_JSON = (str, int, float, list, dict, type(None))


def admitted(
    item: Row | Refused,
    source: str,
    role: Role | None,
    params: CollectParams,
    store: Store,
    seen: set[str],
) -> Sample | Refused:
    """A row as a sample, its media stored; or why not."""
    if isinstance(item, Refused):
        return item
    id = f"{source}/{item.id}"
    repeated = "duplicate id; the first row that has it is kept" if id in seen else None
    if reason := _unreadable(item, params.max_chars) or _objection(item) or repeated:
        return Refused(where=printable(id[:200]), reason=reason)
    try:
        return _built(_as(role, item), id, source, tuple(store.add(file) for file in item.media))
    except (BadMedia, NoRole) as error:
        return Refused(where=id, reason=str(error))
    except ValidationError as error:
        detail = error.errors()[0]
        return Refused(where=id, reason=f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}")


class NoRole(ValueError):
    """A row that is not what its source is for: why, and what to change."""


def _as(role: Role | None, row: Row) -> Row:
    """A row with only the answers that its source's role is about.

    Raises:
        NoRole: it has none, or its role is not clear.
    """
    is_pair, reference = bool(row.chosen), row.gold.answer if row.gold else None
    if role == "prompts":
        known = Gold(check="open", value=row.answer, answer=row.answer) if row.answer else None
        return replace(row, chosen="", rejected="", answer=None, gold=row.gold or known)
    if role == "pairs" and not is_pair:
        raise NoRole(
            "no pair, and its source is for pairs; add the other answer, or change the source's `role`"
        )
    if role == "corpus":
        answer = row.answer if row.answer is not None else reference or None
        if is_pair or answer is None:
            found = "two answers" if is_pair else "no answer"
            raise NoRole(
                f"{found}, and its source is for the corpus: correct it, or change the source's `role`"
            )
        return replace(row, answer=answer)
    if row.answer is not None and not is_pair and row.gold is None:
        both = "`role: corpus` if its answers are to be cleaned, `role: prompts` if its questions are to be answered"
        raise NoRole(f"one answer, and what it is for is not clear; set for its source {both}")
    return row if row.answer is None else replace(row, answer=None)


def _built(row: Row, id: str, source: str, media: tuple[Media, ...]) -> Sample:
    text = row.chosen or row.answer
    return Sample(
        id=id,
        source=source,
        domain=row.domain,
        modality=_modality(row),
        prompt=row.prompt,
        media=media,
        gold=row.gold,
        chosen=() if text is None else answer(text),
        rejected=answer(row.rejected) if row.rejected else (),
        verdict=Verdict(winner="chosen", judge="source") if row.rejected else None,
        meta={**row.meta, **({"wrong": list(row.wrong)} if row.wrong else {})},
    )


def _objection(row: Row) -> str | None:
    """Why a row cannot be a sample; None if nothing speaks against it."""
    if all(blank(turn.content) for turn in row.prompt if turn.role == "user"):
        return "no question; add it or remove the row"
    if (row.chosen or row.rejected) and (blank(row.chosen) or blank(row.rejected)):
        one = blank(row.chosen) != blank(row.rejected)
        remedy = "one answer; add the other" if one else "two empty answers; fill them in"
        return f"a pair with {remedy} or remove the row"
    if row.answer is not None and row.answer.strip() and blank(row.answer):
        return f"an answer of characters that nobody sees, {row.answer[:20]!a}; correct it or remove the row"
    marks = sum(turn.content.count(PLACEHOLDER) for turn in row.prompt)
    if marks != len(row.media) and (marks or len(row.media) > 1):
        return f"the prompt marks {marks} pictures with {PLACEHOLDER}, the row has {len(row.media)}; correct it"
    return None


def _unreadable(row: Row, max_chars: int) -> str | None:
    """Why a row cannot be stored; None if it can."""
    texts = [
        row.id,
        row.group,
        *(turn.content for turn in row.prompt),
        row.chosen,
        row.rejected,
        *row.wrong,
    ]
    texts += [row.answer or ""]
    texts += [row.gold.value, row.gold.answer, *row.gold.others] if row.gold else []
    if (longest := max(map(len, texts))) > max_chars:
        return f"a text of {longest:,} characters; shorten it, or raise collect.max_chars ({max_chars:,})"
    if any(text != printable(text) for text in texts):
        return _HALF
    if odd := [name for name, value in row.meta.items() if not isinstance(value, _JSON)]:
        return (
            f"{odd[0]}: neither text nor number, but {type(row.meta[odd[0]]).__name__}; convert it"
        )
    try:
        meta = json.dumps(row.meta, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # bytes in a list, a list in itself
        return f"a column that JSON cannot hold ({error}); convert it"
    return _HALF if meta != printable(meta) else None


def _modality(row: Row) -> Modality:
    kinds = {file.kind for file in row.media}
    return "video" if "video" in kinds else "image" if kinds else "text"
