"""The ratios in RESULTS.md as a plot beside it: what the tables print in bold, against the column `... / ours`.

python -m benchmarks.plot
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).with_name("RESULTS.md")


class Ratio(NamedTuple):
    """How many times as much another way takes."""

    section: str
    case: str
    way: str
    value: float


def ratios(text: str) -> Iterator[Ratio]:
    """The bold numbers of all tables whose column is called `way / ours`, by section and row.

    >>> list(ratios("## Scoring\\n| answers | naive, s | naive / ours |\\n|---|---|---|\\n| 16 | 3.0 | **9.5** |"))
    [Ratio(section='Scoring', case='16', way='naive', value=9.5)]
    """
    section, columns = "", []
    for line in text.splitlines():
        cells = (
            [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        )
        if line.startswith("## "):
            section = line[3:]
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        named = list(zip(columns, cells, strict=False))
        case = ", ".join(cell for name, cell in named if "," not in name and "/" not in name)
        for name, cell in named:
            if name.endswith(" / ours") and (bold := re.fullmatch(r"\*\*([\d.]+)\*\*", cell)):
                yield Ratio(section, case, name.removesuffix(" / ours"), float(bold[1]))


def draw(found: list[Ratio], target: Path) -> None:
    """Bars, a panel for each section."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "ixc"  # the same numbers, the same file
    sections = list(dict.fromkeys(each.section for each in found))
    heights = [sum(each.section == section for each in found) for section in sections]
    figure = Figure(figsize=(9, 1 + 0.2 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(sections), squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    for panel, section in zip(panels, sections, strict=True):
        shown = [each for each in found if each.section == section]
        ways = list(dict.fromkeys(each.way for each in shown))
        for place, each in enumerate(shown):
            panel.barh(-place, each.value, color=f"C{ways.index(each.way)}")
            panel.text(each.value, -place, f" {each.value:g}", va="center", fontsize=7)
        panel.set_yticks(
            [-place for place in range(len(shown))],
            [f"{e.case} - {e.way}" for e in shown],
            fontsize=7,
        )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(section, fontsize=9, loc="left")
    panels[-1].set_xlabel("times what ours takes")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(list(ratios(RESULTS.read_text(encoding="utf-8"))), RESULTS.with_suffix(".svg"))
