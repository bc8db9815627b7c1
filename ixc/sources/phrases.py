"""Small sentences that several readers build."""

import re


def sentence(text: str) -> str:
    """A capital first and a full stop last.

    >>> sentence("an elephant")
    'An elephant.'
    """
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def with_article(noun: str) -> str:
    """The indefinite article, by the first letter.

    >>> with_article("apple"), with_article("cat")
    ('an apple', 'a cat')
    """
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


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
    return {"yes": "no", "no": "yes", "true": "false", "false": "true"}.get(word.strip().lower(), "")
