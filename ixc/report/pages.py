"""Templates beside this file as pages: every text in them is escaped, and a name that is missing is an error."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, content: dict[str, Any]) -> str:
    """The page as HTML.

    Raises:
        jinja2.UndefinedError: the template needs what `content` has not.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(content)
