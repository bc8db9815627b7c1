"""Which language a text is in."""

from functools import cache
from typing import Any

# langdetect's languages, so that the judgement is among the same candidates as the official one
_LANGUAGES = """
    af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr
    ne nl no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh
"""


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely language."""
    return _langid().classify(text)[0]


@cache
def _langid() -> Any:
    import py3langid  # half a second, and few prompts need it

    py3langid.set_languages(_LANGUAGES.split())
    return py3langid
