"""Great Expectations suites: one for each table that comes in, and one for the pairs that are about to be written.

The table of written pairs is derived from the very samples that are written, not from the rules that chose them: a
mistake in a rule shows here. A check that could not be computed is `errored`, not `failed`: Great Expectations
reports both as `success=False`.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd

from ixc.data.samples import Domain, Modality
from ixc.params import ValidateParams
from ixc.stages.validate.facts import COLUMNS

Suite = Literal["prompts", "candidates", "pairs", "written"]

MIN_LANGUAGE_SHARE = 0.5
"""Share of pairs that should have text enough to tell their language."""
_NOTHING = "nothing_told"
"""Key of what an expectation says if no row has a value; without it, it passes."""


class Check(NamedTuple):
    """One expectation and how it came out."""

    says: str
    status: Literal["passed", "failed", "errored"]
    critical: bool
    """Only a critical one stops the stage."""
    detail: str = ""


def suite(name: Suite, params: ValidateParams) -> list[Any]:
    """What must hold of a table (critical), and what should (warning).

    Of what comes in, only its shape must hold: single rows that are at fault are dropped.
    """
    rules = _shape()
    if name == "prompts":
        return [*rules, *_prompts()]
    if name == "candidates":
        return [*rules, *_prompts(), *_candidates()]
    if name == "pairs":
        return [*rules, *_pairs("warning"), *_verdicts()]
    # What goes out must hold of every row: a rule that let one through is wrong.
    return [*rules, *_pairs("critical"), *_written(params), *_lengths()]


def _shape() -> list[Any]:
    """What makes a table one of ours."""
    gxe = _expectations()
    columns = gxe.ExpectTableColumnsToMatchSet(
        column_set=list(COLUMNS),
        exact_match=True,
        description="The table has the columns it should have",
    )
    return [
        columns,
        _present("id", "an id"),
        _present("source", "a source"),
        _present("split", "a split"),
        _one_of("domain", get_args(Domain), "Domains are known ones"),
        _one_of("modality", get_args(Modality), "Modalities are known ones"),
    ]


def _prompts() -> list[Any]:
    """What prompts should fulfil."""
    return [
        _present("prompt", "words in its prompt", "warning"),
        _unique("id", "Ids are unique", "warning"),
        _true("media_stored", "Media are in the store", "warning"),
        _true("media_sound", "Media can be decoded, and are in no benchmark", "warning"),
        _true("prompt_in_one_split", "No prompt is in train and in val", "warning"),
        _true("media_in_one_split", "No picture or film is in train and in val", "warning"),
    ]


def _candidates() -> list[Any]:
    """What candidates should fulfil beyond what prompts do."""
    return [
        _between("num_candidates", "Every prompt has candidates", "warning", min_value=1),
        _mean(
            "distinct_candidates",
            "Candidates differ: without that there is nothing to judge",
            min_value=1.5,
        ),
    ]


def _pairs(severity: str) -> list[Any]:
    """What single pairs are held to; those that come in and fail it are dropped."""
    # Critical where they go out, for the rules have dropped whatever fails them.
    columns = {"prompt": "words in its prompt", "judge": "a judge", "winner": "a verdict"}
    flags = {
        "answers_differ": "The two answers differ",
        "media_stored": "Media are in the store",
        "media_sound": "Media can be decoded, and are in no benchmark",
        "scores_finite": "Costs and rewards are numbers",
        "prompt_in_one_split": "No prompt is in train and in val",
        "media_in_one_split": "No picture or film is in train and in val",
    }
    return [
        *(_present(column, what, severity) for column, what in columns.items()),
        _unique("id", "Ids are unique", severity),
        *(_true(column, says, severity) for column, says in flags.items()),
        _true(
            "ratings_sound",
            "Where a source rates both answers, the chosen one is rated higher",
            "warning",
        ),
        _between("chosen_length", "Chosen answers say something", severity, min_value=1),
        _between("rejected_length", "Rejected answers say something", severity, min_value=1),
    ]


def _verdicts() -> list[Any]:
    """Whether the judge can be trusted."""
    gxe = _expectations()
    return [
        _one_of("winner", ("chosen", "rejected", "tie"), "Verdicts are known ones"),
        gxe.ExpectColumnValuesToBeInSet(
            column="winner",
            value_set=["chosen"],
            mostly=0.5,
            severity="warning",
            description="At least half of the verdicts are for the chosen answer, not ties",
        ),
        _true(
            "orders_agree",
            "A judge asked in both orders says the same in 7 of 10 cases",
            "warning",
            mostly=0.7,
        ),
    ]


def _written(params: ValidateParams) -> list[Any]:
    """What the pairs to train on must fulfil as a whole."""
    gxe = _expectations()
    enough = gxe.ExpectTableRowCountToBeBetween(
        min_value=2 * params.min_pairs, description="There are enough pairs"
    )
    overlap = gxe.ExpectColumnValuesToBeNull(
        column="overlap", description="No pair shares a text with a benchmark"
    )
    rules = [
        enough,
        overlap,
        _one_of("winner", ("chosen",), "The verdict is for the chosen answer"),
    ]
    return [*rules, *(_languages(params.languages) if params.languages else ())]


def _languages(languages: Sequence[str]) -> list[Any]:
    """Pairs are in these languages, and their texts are long enough to tell."""
    gxe = _expectations()
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="language",
            value_set=list(languages),
            description=f"Every pair with text enough to tell is in {', '.join(languages)}",
            meta={_NOTHING: "no pair has text enough to tell; leave out validate.languages"},
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="language",
            mostly=MIN_LANGUAGE_SHARE,
            severity="warning",
            description=f"{MIN_LANGUAGE_SHARE:.0%} of the pairs have text enough to tell their language",
        ),
    ]


def _lengths() -> list[Any]:
    """Length alone must not tell the better answer."""
    # Either way a reward model would learn to count words.
    gxe = _expectations()
    says = "The longer answer is not nearly always the better or the worse one (20 to 80 %)"
    return [
        _mean("chosen_longer", says, min_value=0.2, max_value=0.8),
        gxe.ExpectColumnMedianToBeBetween(
            column="length_ratio",
            min_value=0.5,
            max_value=1.5,
            severity="warning",
            description="Chosen and rejected answers are about equally long (median ratio 0.5 to 1.5)",
        ),
    ]


@cache
def _expectations() -> Any:
    """Great Expectations' classes."""
    # Two seconds that not every importer need wait.
    return import_module("great_expectations.expectations")


def _present(column: str, what: str, severity: str = "critical") -> Any:
    """Every row has a value."""
    says = f"Every row has {what}"
    return _expectations().ExpectColumnValuesToNotBeNull(
        column=column, severity=severity, description=says
    )


def _unique(column: str, says: str, severity: str = "critical") -> Any:
    """No value occurs twice."""
    return _expectations().ExpectColumnValuesToBeUnique(
        column=column, severity=severity, description=says
    )


def _true(
    column: str,
    says: str,
    severity: str = "critical",
    mostly: float = 1.0,
) -> Any:
    """All rows, or most of them, are True."""
    return _expectations().ExpectColumnValuesToBeInSet(
        column=column, value_set=[True], mostly=mostly, severity=severity, description=says
    )


def _one_of(
    column: str,
    values: Sequence[str],
    says: str,
) -> Any:
    """Every value is one of some."""
    return _expectations().ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), description=says
    )


def _between(
    column: str,
    says: str,
    severity: str,
    min_value: int,
) -> Any:
    """No value is below a limit."""
    return _expectations().ExpectColumnValuesToBeBetween(
        column=column, min_value=min_value, severity=severity, description=says
    )


def _mean(column: str, says: str, **limits: float) -> Any:
    """The mean is within limits; no more than a warning."""
    return _expectations().ExpectColumnMeanToBeBetween(
        column=column, severity="warning", description=says, **limits
    )


def run_checks(table: pd.DataFrame, rules: list[Any]) -> list[Check]:
    """Validate a table against Great Expectations rules, in an ephemeral context: nothing is written."""
    import great_expectations as gx

    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}

    # The table stays where it is, in memory.
    asset = context.data_sources.add_or_update_pandas("pairs").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name="pairs", expectations=rules))
    definition = gx.ValidationDefinition(name="pairs", data=batch, suite=suite)
    context.validation_definitions.add(definition)
    validation = definition.run(
        batch_parameters={"dataframe": table},
        result_format="SUMMARY",
    )

    # Errored checks come first in the results; readers look for the order of the rules.
    order = {rule.description: index for index, rule in enumerate(rules)}
    checks = [_check(result) for result in validation.results]
    return sorted(checks, key=lambda check: order.get(check.says, 0))


def _check(result: Any) -> Check:
    """One result of Great Expectations as ours."""
    config = result.expectation_config
    critical = str(getattr(config.severity, "value", config.severity)) == "critical"
    says = config.description or config.type
    # An expectation that could not be computed says nothing about the data.
    error = _raised(result.exception_info or {})
    if error:
        return Check(says, "errored", critical, error)
    counts = result.result or {}

    # Great Expectations passes a column without a single value: nothing in it is unexpected.
    is_empty = counts.get("missing_count") == counts.get("element_count")
    if _NOTHING in (config.meta or {}) and is_empty:
        return Check(says, "failed", critical, config.meta[_NOTHING])
    status = "passed" if result.success else "failed"
    return Check(says, status, critical, _detail(counts))


def _raised(info: dict[Any, Any]) -> str:
    """The message of a metric that could not be computed; empty if all could."""
    # Of one metric alone, or of several by their names.
    entries = [info]
    if "raised_exception" not in info:
        entries = [entry for entry in info.values() if isinstance(entry, dict)]
    for entry in entries:
        if entry.get("raised_exception"):
            message = str(entry.get("exception_message"))
            return message.strip().splitlines()[0]
    return ""


def _detail(result: dict[str, Any]) -> str:
    """Examples of what is not met, or what was observed."""
    # Of expectations about single values; of those about a column there is one value.
    if "unexpected_count" in result:
        examples = ", ".join(map(str, result.get("partial_unexpected_list", [])[:3]))
        count = f"{result['unexpected_count']:,} of {result['element_count']:,} do not"
        return f"{count}: {examples}" if result["unexpected_count"] else ""
    value = result.get("observed_value")
    return f"observed: {value:.4g}" if isinstance(value, float | int) else ""
