"""The end of a flow: the report, the summary, and both in Prefect's UI."""

from pathlib import Path

from tasks.report import numbers, refresh
from tasks.workspace import current


def publish() -> None:
    """Refresh the report of the current workspace and show its numbers in the flow's run."""
    from prefect.artifacts import create_markdown_artifact

    here = current()
    page = refresh(here.root, here.wall_s)
    create_markdown_artifact(as_markdown(page, numbers(here.root)), key="report")  # pyright: ignore


def as_markdown(page: Path | None, summary: dict[str, float]) -> str:
    """The report's address and a table of the summary."""
    link = (
        f"[The report]({page.resolve().as_uri()}): `{page.resolve()}`"
        if page
        else "No report was written."
    )
    rows = "\n".join(f"| {name} | {value:g} |" for name, value in summary.items())
    return f"{link}\n\n| number | value |\n| --- | --- |\n{rows}\n"
