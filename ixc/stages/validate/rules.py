"""What speaks, by itself, against a pair."""

from collections.abc import Callable

from ixc.data.reasons import Objection
from ixc.data.samples import Sample, Turn, objection_to_turns
from ixc.params import BadParams, ValidateParams


def objection(
    sample: Sample, params: ValidateParams, length: Callable[[str], int]
) -> Objection | None:
    """What speaks, by itself, against a pair; None if nothing does.

    >>> from ixc.data.samples import answer
    >>> question = (Turn(role="user", content="Is it red?"),)
    >>> pair = Sample(id="7", source="s", domain="general", modality="text", prompt=question,
    ...               chosen=answer("Yes."), rejected=answer("Yes."))
    >>> objection(pair, ValidateParams(), words).reason
    'identical answers'
    """
    chosen, rejected = text(sample.chosen), text(sample.rejected)
    if missing := _missing(sample, chosen, rejected):
        return Objection("no answer", missing)
    if chosen == rejected:
        return Objection("identical answers")
    if sample.verdict is None:
        return Objection("no verdict")
    if sample.verdict.winner != "chosen":
        reason = "tie" if sample.verdict.winner == "tie" else "rejected wins"
        return Objection(reason, f"judge {sample.verdict.judge}")

    # The paper's length constraint: without it the reward model takes length for quality.
    longer, shorter = length(chosen), length(rejected)
    if longer >= params.min_length_for_ratio and longer > params.max_length_ratio * shorter:
        unit = "tokens" if params.tokenizer else "words"
        return Objection("chosen too long", f"{longer} {unit} against {shorter}")
    return None


def _missing(sample: Sample, chosen: str, rejected: str) -> str:
    """Which of the two has no text, or has turns that are no answer; empty if both are answers."""
    if not chosen and not rejected:
        return "neither"
    if not chosen or not rejected:
        return "rejected" if chosen else "chosen"
    for name, turns in (("chosen", sample.chosen), ("rejected", sample.rejected)):
        odd = objection_to_turns(turns)
        if odd:
            return f"{name}: {odd}"
    return ""


def text(turns: tuple[Turn, ...]) -> str:
    """What an answer says, without space around it."""
    return "\n".join(turn.content for turn in turns).strip()


def words(answer: str) -> int:
    """How many words a text has."""
    return len(answer.split())


def ruler(params: ValidateParams) -> Callable[[str], int]:
    """What measures answers: tokens where a tokenizer is named, else words.

    Raises:
        BadParams: the tokenizer cannot be read.
    """
    if params.tokenizer is None:
        return words
    from tokenizers import Tokenizer

    # Words say little about answers in Chinese, or in code.
    try:
        tokenizer = Tokenizer.from_file(params.tokenizer)
    except Exception as error:  # the library raises plain `Exception`
        key = f"params.yaml: validate.tokenizer: {params.tokenizer}"
        raise BadParams(
            f"{key}: {error}; name a tokenizer.json, or leave it out to count words"
        ) from error
    return lambda answer: len(tokenizer.encode(answer, add_special_tokens=False).ids)
