"""The page of pairs: a bounded choice of what was retained and of what was dropped, to be filtered and read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.io.files import replacing
from ixc.report.cards import MAX_TEXT, image_of, in_turn, text_of
from ixc.report.pages import render
from ixc.report.record import Record

RETAINED = {"train": "pairs/train", "val": "pairs/val"}
INPUTS = ("judged", "pairs/public")
"""Where dropped pairs can still be read; the quarantine holds their ids."""
GROUPS = ("source", "domain", "modality", "split", "outcome")
"""What the page filters by."""
MAX_IMAGES = 3
"""Of one pair, at most."""


class PairRef(NamedTuple):
    """A pair before its texts are read."""

    id: str
    outcome: str
    """`kept`, or why it was dropped."""
    kind: tuple[str, ...]
    """The page takes kinds in turn."""
    detail: str = ""
    advice: str = ""


@dataclass(frozen=True)
class PairCard:
    """A pair on the page."""

    row: dict[str, Any]
    ref: PairRef
    question: str
    chosen: str
    rejected: str
    images: Sequence[str]
    missing: Sequence[str]
    """Why there are less images than the pair has."""

    def group(self, name: str) -> str:
        """What a filter selects by."""
        return self.ref.outcome if name == "outcome" else self.row[name]


def write_pairs(record: Record, max_pairs: int) -> Path | None:
    """Write `reports/pairs.html`, or nothing before there are pairs."""
    refs = []
    if max_pairs > 0:
        refs = [*_dropped(record), *_retained(record)]
    if not refs:
        return None

    # Every kind in turn, or the most frequent source would fill the page.
    places = in_turn(range(len(refs)), lambda place: "/".join(refs[place].kind), max_pairs)
    chosen = [refs[place] for place in sorted(places)]
    pairs = [_card(record, row, ref) for ref, row in _read(record, chosen)]

    groups: dict[str, list[str]] = {}
    for name in GROUPS:
        groups[name] = sorted({pair.group(name) for pair in pairs})
    content = {
        "pairs": pairs,
        "total": len(refs),
        "groups": groups,
        # What came in, and what became of it.
        "origins": record.origins(("collect", "judge", "validate")),
    }
    html = render("pairs.html.jinja", content)
    path = record.root / "reports" / "pairs.html"
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def _retained(record: Record) -> Iterator[PairRef]:
    """The pairs that are trained on or validated with."""
    columns = ("id", "source", "domain", "modality")
    for split, name in RETAINED.items():
        table = record.table(name, columns)
        for id, source, domain, modality in _columns(table, columns):
            yield PairRef(id, "kept", (split, source, domain, modality))


def _dropped(record: Record) -> Iterator[PairRef]:
    """The pairs in quarantine."""
    columns = ("id", "source", "reason", "detail", "advice")
    # The quarantine has ids and reasons; the texts are in the tables that came in.
    table = record.table("quarantine/validate", columns)
    for id, source, reason, detail, advice in _columns(table, columns):
        yield PairRef(id, reason, (source, reason), detail, advice)


def _columns(table: pa.Table | None, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The rows of some columns; none of a table that is not there."""
    if table is None or not len(table):
        return
    columns = [table[name].to_pylist() for name in names]
    yield from zip(*columns, strict=True)


def _read(record: Record, refs: Sequence[PairRef]) -> Iterator[tuple[PairRef, dict[str, Any]]]:
    """The pairs with their rows; a dropped one whose table has changed since is left out."""
    retained_ids = [ref.id for ref in refs if ref.outcome == "kept"]
    dropped_ids = [ref.id for ref in refs if ref.outcome != "kept"]
    retained = _rows(record, RETAINED.values(), retained_ids)
    dropped = _rows(record, INPUTS, dropped_ids)
    for ref in refs:
        rows = retained if ref.outcome == "kept" else dropped
        if ref.id in rows:
            yield ref, rows[ref.id]


def _rows(
    record: Record,
    names: Iterable[str],
    ids: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Rows by id; only these are decoded, for a table may have millions."""
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        path = record.root / "data" / f"{name}.parquet"
        if not path.exists() or not ids:
            continue
        table = pq.read_table(path, filters=[("id", "in", list(ids))])
        for row in table.to_pylist():
            rows.setdefault(row["id"], row)
    return rows


def _card(
    record: Record,
    row: dict[str, Any],
    ref: PairRef,
) -> PairCard:
    """A pair with its texts and images."""
    images, missing = [], []
    for medium in row["media"][:MAX_IMAGES]:
        image, reason = image_of(record, medium)
        if image:
            images.append(image)
        if reason:
            missing.append(reason)
    num_more = len(row["media"]) - MAX_IMAGES
    if num_more > 0:
        missing.append(f"{num_more} more")

    # There is more room than on a card of the report.
    limit = 3 * MAX_TEXT
    return PairCard(
        row=row,
        ref=ref,
        question=text_of(row["prompt"], limit),
        chosen=text_of(row["chosen"], limit),
        rejected=text_of(row["rejected"], limit),
        images=images,
        missing=missing,
    )
