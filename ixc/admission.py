"""What becomes of a row: a sample whose media are stored, or a reason that a person can act on."""

from pydantic import ValidationError

from ixc.media import BadMedia, Store
from ixc.params import CollectParams
from ixc.samples import PLACEHOLDER, Media, Modality, Sample, Verdict, answer
from ixc.sources import Refused, Row

_JSON = (str, int, float, list, dict, type(None))


def admitted(item: Row | Refused, source: str, params: CollectParams, store: Store, seen: set[str]) -> Sample | Refused:
    """A row as a sample, its media stored; or why not."""
    if isinstance(item, Refused):
        return item
    id = f"{source}/{item.id}"
    repeated = "duplicate id; the first row that has it is kept" if id in seen else None
    if reason := _unreadable(item, params.max_chars) or _objection(item) or repeated:
        return Refused(where=printable(id[:200]), reason=reason)
    try:
        return _built(item, id, source, tuple(store.add(file) for file in item.media))
    except BadMedia as error:
        return Refused(where=id, reason=str(error))
    except ValidationError as error:
        detail = error.errors()[0]
        return Refused(where=id, reason=f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}")


def _built(row: Row, id: str, source: str, media: tuple[Media, ...]) -> Sample:
    paired = bool(row.chosen.strip())
    return Sample(
        id=id,
        source=source,
        domain=row.domain,
        modality=_modality(row),
        prompt=row.prompt,
        media=media,
        gold=row.gold,
        chosen=answer(row.chosen) if paired else (),
        rejected=answer(row.rejected) if paired else (),
        verdict=Verdict(winner="chosen", judge="source") if paired else None,
        meta={**row.meta, **({"wrong": list(row.wrong)} if row.wrong else {})},
    )


def _objection(row: Row) -> str | None:
    """Why a row cannot be a sample; None if nothing speaks against it."""
    if not any(turn.content.strip() for turn in row.prompt if turn.role == "user"):
        return "no question; add it or remove the row"
    if bool(row.chosen.strip()) != bool(row.rejected.strip()):
        return "a pair with one answer; add the other or remove the row"
    if row.gold is None and not row.chosen.strip():
        return "neither a pair nor a gold answer; add one or remove the row"
    marks = sum(turn.content.count(PLACEHOLDER) for turn in row.prompt)
    if marks != len(row.media) and (marks or len(row.media) > 1):
        return f"the prompt marks {marks} pictures with {PLACEHOLDER}, the row has {len(row.media)}; correct it"
    return None


def _unreadable(row: Row, max_chars: int) -> str | None:
    """Why a row cannot be stored; None if it can."""
    texts = [row.id, row.group, *(turn.content for turn in row.prompt), row.chosen, row.rejected, *row.wrong]
    texts += [row.gold.value, row.gold.answer, *row.gold.others] if row.gold else []
    if (longest := max(map(len, texts))) > max_chars:
        return f"a text of {longest:,} characters; shorten it, or raise collect.max_chars ({max_chars:,})"
    if any(text != printable(text) for text in texts):
        return "not UTF-8, or half a character; convert the file: iconv -t UTF-8"
    if odd := [name for name, value in row.meta.items() if not isinstance(value, _JSON)]:
        return f"{odd[0]}: neither text nor number, but {type(row.meta[odd[0]]).__name__}; convert it"
    return None


def printable(text: str) -> str:
    """The text without half characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _modality(row: Row) -> Modality:
    kinds = {file.kind for file in row.media}
    return "video" if "video" in kinds else "image" if kinds else "text"
