"""Small sentences that several readers build, and what they find in texts."""

import re
import unicodedata

_UNSEEN = {"Cc", "Cf", "Cn", "Zs", "Zl", "Zp", "Mn", "Me"}
"""Unicode categories of what no reader sees: controls, format marks, blanks, accents on nothing."""
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs that look like a blank."""

_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def sentence(text: str) -> str:
    """A capital first and a full stop last.

    >>> sentence("an elephant")
    'An elephant.'
    """
    text = text.strip()
    stop = "" if text.endswith((".", "!", "?")) else "."
    return text[:1].upper() + text[1:] + stop


def with_article(noun: str) -> str:
    """The indefinite article, by the first letter.

    >>> with_article("apple"), with_article("cat")
    ('an apple', 'a cat')
    """
    article = "an" if noun[:1].lower() in "aeiou" else "a"
    return f"{article} {noun}"


def bare(noun: str) -> str:
    """A noun without its article.

    >>> bare("an open hand")
    'open hand'
    """
    return re.sub(r"^(an?|the)\s+", "", noun.strip(), flags=re.IGNORECASE)


def opposite(word: str) -> str:
    """The other one of yes and no, true and false; empty for any other word.

    >>> opposite("Yes"), opposite("purple")
    ('no', '')
    """
    return _OPPOSITES.get(word.strip().lower(), "")


def blank(text: str) -> bool:
    """Whether a reader sees nothing: blanks, NUL and other controls, zero-width characters.

    >>> blank(" \\n"), blank("\\0"), blank("\\u200b\\ufeff"), blank("?")
    (True, True, True, False)
    """
    return all(unicodedata.category(sign) in _UNSEEN or sign in _FILLERS for sign in text)


def without_edge(text: str, mark: str) -> str | None:
    """A text without the mark of its only image before it, or on a line behind it; None where the mark is elsewhere.

    So LLaVA writes that the image comes first. The text stays as it is.

    >>> without_edge("<image>\\nWhat?", "<image>"), without_edge("What?\\n<image>", "<image>")
    ('What?', 'What?')
    >>> without_edge("Is this red? <image>", "<image>")
    """
    if text.lstrip().startswith(mark):
        rest = text.lstrip().removeprefix(mark)
        return rest[1:] if rest.startswith("\n") else rest.lstrip()
    if text.rstrip().endswith(f"\n{mark}"):
        return text.rstrip().removesuffix(f"\n{mark}")
    return None
