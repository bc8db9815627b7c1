"""The report: one self-contained page from what the stages have left behind, and the summary of metrics."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from ixc.io.files import replacing
from ixc.report.blocks import Block, Note
from ixc.report.pages import render
from ixc.report.pairs import write_pairs
from ixc.report.record import STAGES, Record
from ixc.report.sections import SECTIONS, Section
from ixc.report.validation import write_validation

T = TypeVar("T")
DAMAGE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, pa.ArrowException)
"""What a missing, half-written or outdated file makes a block raise."""

PAGES = ("Browse the pairs →", "The validation →")
"""What the links to the other pages say."""
_SUMMARY = (
    ("rm.accuracy", "evaluate_rm", "accuracy", ("all", "text", "image", "video")),
    ("rm.accuracy_swapped_media", "evaluate_rm", "accuracy_swapped_media", ("image", "video")),
    ("best_of_n.gold", "best_of_n", "gold", ("1", "2", "4", "8")),
    ("best_of_n.oracle", "best_of_n", "oracle", ("1", "2", "4", "8")),
    ("ppo.gold", "train_ppo", "gold", ("base", "chat")),
    ("ppo.reward", "train_ppo", "reward", ("base", "chat")),
    ("ppo", "train_ppo", "", ("kl",)),
    ("ppo.length", "train_ppo", "length", ("base", "chat")),
    ("clean.auroc", "clean", "auroc", ("all", "hallucination", "empty", "mismatch")),
)
"""Where each number of the summary comes from: its branch, the stage, the prefix of the key, and the keys."""


def summary(root: Path) -> dict[str, Any]:
    """The content of `metrics/summary.json`, the numbers to compare runs by.

    Stages that have not run are absent.

    Raises:
        ValueError: a stage's metrics are damaged.
    """
    # Keys are dotted: `rm.accuracy.all` is a number two branches down.
    record = Record(root)
    tree: dict[str, Any] = {}
    for branch, stage, prefix, keys in _SUMMARY:
        metrics = record.metrics(stage)
        for key in keys:
            name = f"{prefix}/{key}" if prefix else key
            if name in metrics:
                _branch(tree, branch)[key] = metrics[name]

    # A flow alone knows how long it took; a summary that cannot be read is simply replaced.
    with suppress(OSError, ValueError, LookupError, TypeError):
        tree["wall_s"] = _wall_s(root)
    return tree


def write_report(root: Path, max_pairs: int = 200) -> Path:
    """Write `reports/index.html` from what is there, and the pages that it leads to.

    What cannot be read becomes a note on the page.

    Args:
        root: where the stages have written.
        max_pairs: how many `reports/pairs.html` shows; 0: that page is not written.
    """
    record = Record(root)
    path = root / "reports" / "index.html"

    # The pages that this one leads to; where one cannot be written, a note says why.
    pairs = _block(lambda record: write_pairs(record, max_pairs), record, "The pairs, to browse")
    validation = _block(write_validation, record, "The validation, in full")
    links, notes = [], []
    for page, title in zip((pairs, validation), PAGES, strict=True):
        if isinstance(page, Path):
            links.append((page.name, title))
        elif isinstance(page, Note):
            notes.append(page)

    # Each section names the runs that its numbers come from: the stages that its blocks have read.
    sections = []
    for section in SECTIONS:
        record.read.clear()
        blocks = _blocks(section, record)
        if blocks:
            sections.append((section, blocks, record.origins(record.read)))

    content = {
        "sections": sections,
        "stages": STAGES,
        "done": record.done(),
        "as_of": _as_of(record),
        "wall": _wall(record),
        "pages": links,
        "notes": notes,
        "origins": record.origins(record.done()),
    }
    html = render("page.html.jinja", content)
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def _blocks(section: Section, record: Record) -> list[Block]:
    """What a section has to show so far."""
    blocks = []
    for build in section.blocks:
        block = _block(build, record, _title(build))
        if block is not None:
            blocks.append(block)
    return blocks


def _title(build: Callable[[Record], object]) -> str:
    """A block's name in a note: the first line of its docstring."""
    return (build.__doc__ or build.__name__).strip().splitlines()[0]


def _block(
    build: Callable[[Record], T | None],
    record: Record,
    what: str,
) -> T | Note | None:
    """What is built, or the note of why it is not: a report must not fail the stage that it reports on."""
    try:
        return build(record)
    except DAMAGE as error:
        reason = str(error).replace(f"{record.root}/", "")
        return Note(f"Not shown: {what} ({type(error).__name__}: {reason})")


def _as_of(record: Record) -> str:
    """When the newest of the metrics was written; not the clock, so that equal inputs give an equal page."""
    files = (record.root / "metrics").glob("*.json")
    times = [path.stat().st_mtime for path in files]
    if not times:
        return ""
    newest = datetime.fromtimestamp(max(times), UTC)
    return f"{newest:%d %B %Y, %H:%M} UTC"


def _wall(record: Record) -> str:
    """How long the run took, where the summary knows."""
    with suppress(*DAMAGE):
        seconds = _wall_s(record.root)
        if math.isfinite(seconds):
            return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return ""


def _wall_s(root: Path) -> float | int:
    """Seconds of the last flow in which every stage really ran.

    Raises:
        OSError, ValueError, LookupError, TypeError: there was none, or its summary is damaged.
    """
    text = (root / "metrics" / "summary.json").read_text(encoding="utf-8")
    return json.loads(text)["wall_s"]


def _branch(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """A branch of a tree by its dotted path; it is there afterwards."""
    for name in path.split("."):
        tree = tree.setdefault(name, {})
    return tree
