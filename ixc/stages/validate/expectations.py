"""Great Expectations suites: one for each table that comes in, and one for the pairs that are about to be written.

The table of kept pairs is derived from the very samples that are written, not from the rules that chose them: a
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

Suite = Literal["prompts", "candidates", "pairs", "kept"]

TOLD = 0.5
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
    if name in ("prompts", "candidates"):
        return [*rules, *_prompts(), *(_candidates() if name == "candidates" else [])]
    if name == "pairs":
        return [*rules, *_pairs("warning"), *_verdicts()]
    return [*rules, *_pairs("critical"), *_kept(params), *_lengths()]


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
        *(
            _present(column, what)
            for column, what in (("id", "an id"), ("source", "a source"), ("split", "a split"))
        ),
        _one_of("domain", get_args(Domain), "Domains are known ones"),
        _one_of("modality", get_args(Modality), "Modalities are known ones"),
    ]


def _prompts() -> list[Any]:
    return [
        _present("prompt", "words in its prompt", "warning"),
        _unique("id", "Ids are unique", "warning"),
        _true("media_stored", "Media are in the store", "warning"),
        _true("media_sound", "Media can be decoded, and are in no benchmark", "warning"),
        _true("prompt_in_one_split", "No prompt is in train and in val", "warning"),
        _true("media_in_one_split", "No picture or film is in train and in val", "warning"),
    ]


def _candidates() -> list[Any]:
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


def _kept(params: ValidateParams) -> list[Any]:
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
            mostly=TOLD,
            severity="warning",
            description=f"{TOLD:.0%} of the pairs have text enough to tell their language",
        ),
    ]


def _lengths() -> list[Any]:
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
    return import_module(
        "great_expectations.expectations"
    )  # two seconds that not every importer need wait


def _present(column: str, what: str, severity: str = "critical") -> Any:
    says = f"Every row has {what}"
    return _expectations().ExpectColumnValuesToNotBeNull(
        column=column, severity=severity, description=says
    )


def _unique(column: str, says: str, severity: str = "critical") -> Any:
    return _expectations().ExpectColumnValuesToBeUnique(
        column=column, severity=severity, description=says
    )


def _true(column: str, says: str, severity: str = "critical", mostly: float = 1.0) -> Any:
    return _expectations().ExpectColumnValuesToBeInSet(
        column=column, value_set=[True], mostly=mostly, severity=severity, description=says
    )


def _one_of(column: str, values: Sequence[str], says: str) -> Any:
    return _expectations().ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), description=says
    )


def _between(column: str, says: str, severity: str, min_value: int) -> Any:
    return _expectations().ExpectColumnValuesToBeBetween(
        column=column, min_value=min_value, severity=severity, description=says
    )


def _mean(column: str, says: str, **limits: float) -> Any:
    return _expectations().ExpectColumnMeanToBeBetween(
        column=column, severity="warning", description=says, **limits
    )


def run_checks(table: pd.DataFrame, rules: list[Any]) -> list[Check]:
    """Validate a table against Great Expectations rules, in an ephemeral context: nothing is written."""
    import great_expectations as gx

    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_or_update_pandas("pairs").add_dataframe_asset("kept")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name="pairs", expectations=rules))
    definition = gx.ValidationDefinition(name="pairs", data=batch, suite=suite)
    context.validation_definitions.add(definition)
    found = definition.run(batch_parameters={"dataframe": table}, result_format="SUMMARY")
    # Errored checks come first in the results; readers look for the order of the rules.
    order = {rule.description: index for index, rule in enumerate(rules)}
    return sorted(
        (_check(result) for result in found.results), key=lambda check: order.get(check.says, 0)
    )


def _check(result: Any) -> Check:
    config = result.expectation_config
    critical = str(getattr(config.severity, "value", config.severity)) == "critical"
    says = config.description or config.type
    if error := _raised(result.exception_info or {}):
        return Check(says, "errored", critical, error)
    found = result.result or {}
    if _NOTHING in (config.meta or {}) and found.get("missing_count") == found.get("element_count"):
        return Check(says, "failed", critical, config.meta[_NOTHING])
    return Check(says, "passed" if result.success else "failed", critical, _detail(found))


def _raised(info: dict[Any, Any]) -> str:
    """The message of a metric that could not be computed; empty if all could."""
    entries = (
        [info] if "raised_exception" in info else [e for e in info.values() if isinstance(e, dict)]
    )
    messages = [
        str(entry.get("exception_message")) for entry in entries if entry.get("raised_exception")
    ]
    return messages[0].strip().splitlines()[0] if messages else ""


def _detail(result: dict[str, Any]) -> str:
    if "unexpected_count" in result:
        examples = ", ".join(map(str, result.get("partial_unexpected_list", [])[:3]))
        count = f"{result['unexpected_count']:,} of {result['element_count']:,} do not"
        return f"{count}: {examples}" if result["unexpected_count"] else ""
    value = result.get("observed_value")
    return f"observed: {value:.4g}" if isinstance(value, float | int) else ""
