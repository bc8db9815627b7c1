"""The page of pairs: a bounded choice of what was kept and of what was dropped, to be filtered and read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ixc.io.files import replacing
from ixc.report.galleries import MAX_TEXT, image_of, in_turn, said
from ixc.report.record import Record

KEPT = {"train": "pairs/train", "val": "pairs/val"}
CAME = ("judged", "pairs/public")
"""Where dropped pairs can still be read; the quarantine holds their ids."""
GROUPS = ("source", "domain", "modality", "split", "fate")
"""What the page filters by."""
PICTURES = 3
"""Of one pair, at most."""


class Picked(NamedTuple):
    """A pair that will be shown, before its texts are read."""

    id: str
    fate: str
    """`kept`, or why it was dropped."""
    kind: tuple[str, ...]
    """Kinds are shown in turn."""
    detail: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Shown:
    """A pair on the page."""

    row: dict[str, Any]
    picked: Picked
    question: str
    chosen: str
    rejected: str
    images: Sequence[str]
    missing: Sequence[str]
    """Why there are pictures less than the pair has."""

    def group(self, name: str) -> str:
        """What a filter selects by."""
        return self.picked.fate if name == "fate" else self.row[name]


def write_pairs(record: Record, max_pairs: int) -> Path | None:
    """Write `reports/pairs.html`, or nothing before there are pairs."""
    found = [*_dropped(record), *_kept(record)] if max_pairs > 0 else []
    if not found:
        return None
    chosen = in_turn(range(len(found)), lambda place: "/".join(found[place].kind), max_pairs)
    pairs = [
        _shown(record, row, one)
        for one, row in _read(record, [found[place] for place in sorted(chosen)])
    ]
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(
        loader=folder,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = {name: sorted({pair.group(name) for pair in pairs}) for name in GROUPS}
    origins = record.origins(
        ("collect", "judge", "validate")
    )  # what came in, and what became of it
    html = pages.get_template("pairs.html.jinja").render(
        pairs=pairs, total=len(found), groups=groups, origins=origins
    )
    path = record.root / "reports" / "pairs.html"
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def _kept(record: Record) -> Iterator[Picked]:
    columns = ("id", "source", "domain", "modality")
    for split, name in KEPT.items():
        table = record.table(name, columns)
        for id, *kind in (
            zip(*(table[column].to_pylist() for column in columns), strict=True) if table else ()
        ):
            yield Picked(id, "kept", (split, *kind))


def _dropped(record: Record) -> Iterator[Picked]:
    columns = ("id", "source", "reason", "detail", "advice")
    table = record.table("quarantine/validate", columns)
    for id, source, reason, detail, advice in (
        zip(*(table[column].to_pylist() for column in columns), strict=True) if table else ()
    ):
        yield Picked(id, reason, (source, reason), detail, advice)


def _read(record: Record, picked: Sequence[Picked]) -> Iterator[tuple[Picked, dict[str, Any]]]:
    """The picked pairs with their rows; a dropped one whose table has changed since is left out."""
    kept = _rows(record, KEPT.values(), [one.id for one in picked if one.fate == "kept"])
    dropped = _rows(record, CAME, [one.id for one in picked if one.fate != "kept"])
    for one in picked:
        if row := (kept if one.fate == "kept" else dropped).get(one.id):
            yield one, row


def _rows(record: Record, names: Iterable[str], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows by id; only these are decoded, for a table may have millions."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        path = record.root / "data" / f"{name}.parquet"
        if path.exists() and ids:
            for row in pq.read_table(path, filters=[("id", "in", list(ids))]).to_pylist():
                found.setdefault(row["id"], row)
    return found


def _shown(record: Record, row: dict[str, Any], picked: Picked) -> Shown:
    looks = [image_of(record, medium) for medium in row["media"][:PICTURES]]
    more = len(row["media"]) - PICTURES
    missing = [*(why for _, why in looks if why), *([f"{more} more"] if more > 0 else [])]
    return Shown(
        row,
        picked,
        said(row["prompt"], 3 * MAX_TEXT),
        said(row["chosen"], 3 * MAX_TEXT),
        said(row["rejected"], 3 * MAX_TEXT),
        [image for image, _ in looks if image],
        missing,
    )
