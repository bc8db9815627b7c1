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
    ids: set[str],
) -> Sample | Refused:
    """A row as a sample, its media stored; or why not.

    Args:
        ids: of the samples that the source gave before.
    """
    if isinstance(item, Refused):
        return item
    id = f"{source}/{item.id}"
    reason = _unreadable(item, params.max_chars) or _objection(item)
    if reason is None and id in ids:
        reason = "duplicate id; the first row that has it is kept"
    if reason is not None:
        return Refused(where=printable(id[:200]), reason=reason)

    # Its media last, for each takes its time: they are decoded, scaled and stored.
    try:
        row = _for_role(role, item)
        media = tuple(store.add(file) for file in item.media)
        return _sample(row, id, source, media)
    except (BadMedia, NoRole) as error:
        return Refused(where=id, reason=str(error))
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, detail["loc"]))
        return Refused(where=id, reason=f"{field}: {detail['msg']}")


class NoRole(ValueError):
    """A row that is not what its source is for: why, and what to change."""


def _for_role(role: Role | None, row: Row) -> Row:
    """A row with only the answers that its source's role is about.

    Raises:
        NoRole: it has none, or its role is not clear.
    """
    is_pair = bool(row.chosen)

    # Of a prompt only the question counts, and an answer as what candidates are held against.
    if role == "prompts":
        gold = row.gold
        if gold is None and row.answer:
            gold = Gold(check="open", value=row.answer, answer=row.answer)
        return replace(row, chosen="", rejected="", answer=None, gold=gold)

    if role == "pairs" and not is_pair:
        remedy = "add the other answer, or change the source's `role`"
        raise NoRole(f"no pair, and its source is for pairs; {remedy}")

    # The corpus has one answer to each question, if need be the reference answer.
    if role == "corpus":
        reference = row.gold.answer if row.gold else None
        answer = row.answer if row.answer is not None else reference or None
        if is_pair or answer is None:
            count = "two answers" if is_pair else "no answer"
            remedy = "correct it, or change the source's `role`"
            raise NoRole(f"{count}, and its source is for the corpus: {remedy}")
        return replace(row, answer=answer)

    # No role is set: the row itself tells, unless all it has is one answer of unknown worth.
    if row.answer is not None and not is_pair and row.gold is None:
        both = "`role: corpus` if its answers are to be cleaned, `role: prompts` if its questions are to be answered"
        raise NoRole(f"one answer, and what it is for is not clear; set for its source {both}")
    return row if row.answer is None else replace(row, answer=None)


def _sample(
    row: Row,
    id: str,
    source: str,
    media: tuple[Media, ...],
) -> Sample:
    """A row as a sample, once nothing speaks against it."""
    text = row.chosen or row.answer
    meta = dict(row.meta)
    if row.wrong:
        meta["wrong"] = list(row.wrong)
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
        meta=meta,
    )


def _objection(row: Row) -> str | None:
    """Why a row cannot be a sample; None if nothing speaks against it."""
    questions = [turn.content for turn in row.prompt if turn.role == "user"]
    if all(map(blank, questions)):
        return "no question; add it or remove the row"
    is_pair = row.chosen or row.rejected
    if is_pair and (blank(row.chosen) or blank(row.rejected)):
        remedy = "two empty answers; fill them in"
        if blank(row.chosen) != blank(row.rejected):
            remedy = "one answer; add the other"
        return f"a pair with {remedy} or remove the row"
    # Blank, but not empty: an empty answer may be what its source says.
    if row.answer is not None and row.answer.strip() and blank(row.answer):
        return f"an answer of characters that nobody sees, {row.answer[:20]!a}; correct it or remove the row"
    marks = sum(turn.content.count(PLACEHOLDER) for turn in row.prompt)
    if marks != len(row.media) and (marks or len(row.media) > 1):
        return f"the prompt marks {marks} pictures with {PLACEHOLDER}, the row has {len(row.media)}; correct it"
    return None


def _unreadable(row: Row, max_chars: int) -> str | None:
    """Why a row cannot be stored; None if it can."""
    texts = [turn.content for turn in row.prompt]
    texts += [row.id, row.group]
    texts += [row.chosen, row.rejected, *row.wrong, row.answer or ""]
    if row.gold:
        texts += [row.gold.value, row.gold.answer, *row.gold.others]
    longest = max(map(len, texts))
    if longest > max_chars:
        return f"a text of {longest:,} characters; shorten it, or raise collect.max_chars ({max_chars:,})"
    if any(text != printable(text) for text in texts):
        return _HALF

    # Columns that we know nothing of go along as JSON.
    for name, value in row.meta.items():
        if not isinstance(value, _JSON):
            kind = type(value).__name__
            return f"{name}: neither text nor number, but {kind}; convert it"
    try:
        meta = json.dumps(row.meta, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # bytes in a list, a list in itself
        return f"a column that JSON cannot hold ({error}); convert it"
    return _HALF if meta != printable(meta) else None


def _modality(row: Row) -> Modality:
    """The most demanding kind of its media: a video counts for more than an image."""
    kinds = {file.kind for file in row.media}
    if "video" in kinds:
        return "video"
    return "image" if kinds else "text"
