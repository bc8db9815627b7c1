"""Great Expectations over the pairs that are about to be written.

The table is derived from the very samples that are written, not from the rules that chose them: a mistake in
a rule shows here. A check that could not be computed is `errored`, not `failed`: Great Expectations reports
both as `success=False`.
"""

from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd

from ixc.samples import Domain, Modality
from ixc.validation.facts import COLUMNS


class Check(NamedTuple):
    """One expectation and how it came out."""

    says: str
    status: Literal["passed", "failed", "errored"]
    critical: bool
    """Only a critical one stops the stage."""
    detail: str = ""


def expectations(min_pairs: int) -> list[Any]:
    """What must hold of the kept pairs (critical), and what should (warning)."""
    gxe = import_module("great_expectations.expectations")  # two seconds that not every importer need wait

    rules = [
        gxe.ExpectTableColumnsToMatchSet(
            column_set=list(COLUMNS), exact_match=True, description="The table has the columns it should have"
        ),
        gxe.ExpectColumnValuesToBeUnique(column="id", description="Ids are unique"),
        gxe.ExpectColumnValuesToBeInSet(
            column="domain", value_set=list(get_args(Domain)), description="Domains are known ones"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="modality", value_set=list(get_args(Modality)), description="Modalities are known ones"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="winner", value_set=["chosen"], description="The verdict is for the chosen answer"
        ),
        gxe.ExpectColumnValuesToBeBetween(column="chosen_words", min_value=1, description="Chosen answers have words"),
        gxe.ExpectColumnMeanToBeBetween(
            column="chosen_longer",
            min_value=0.2,
            max_value=0.8,
            severity="warning",
            description="The longer answer is not nearly always the better or the worse one (20 to 80 %)",
        ),
    ]
    return [*_never_null(gxe), *_always_true(gxe), *_enough(gxe, min_pairs), *rules]


def _never_null(gxe: Any) -> list[Any]:
    columns = {
        "id": "an id",
        "source": "a source",
        "split": "a split",
        "prompt": "a prompt",
        "judge": "a judge",
        "winner": "a verdict",
    }
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"Every pair has {what}")
        for column, what in columns.items()
    ]


def _always_true(gxe: Any) -> list[Any]:
    says = {
        "answers_differ": "The two answers differ",
        "media_stored": "Media are in the store",
        "prompt_in_one_split": "No prompt is in train and in val",
        "media_in_one_split": "No picture or film is in train and in val",
    }
    return [
        gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True], description=text)
        for column, text in says.items()
    ]


def _enough(gxe: Any, min_pairs: int) -> list[Any]:
    return [gxe.ExpectTableRowCountToBeBetween(min_value=2 * min_pairs, description="There are enough pairs")]


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
    return sorted((_check(result) for result in found.results), key=lambda check: order.get(check.says, 0))


def _check(result: Any) -> Check:
    config = result.expectation_config
    critical = str(getattr(config.severity, "value", config.severity)) == "critical"
    says = config.description or config.type
    if error := _raised(result.exception_info or {}):
        return Check(says, "errored", critical, error)
    return Check(says, "passed" if result.success else "failed", critical, _detail(result.result or {}))


def _raised(info: dict[Any, Any]) -> str:
    """The message of a metric that could not be computed; empty if all could."""
    entries = [info] if "raised_exception" in info else [e for e in info.values() if isinstance(e, dict)]
    messages = [str(entry.get("exception_message")) for entry in entries if entry.get("raised_exception")]
    return messages[0].strip().splitlines()[0] if messages else ""


def _detail(result: dict[str, Any]) -> str:
    if "unexpected_count" in result:
        examples = ", ".join(map(str, result.get("partial_unexpected_list", [])[:3]))
        count = f"{result['unexpected_count']:,} of {result['element_count']:,} do not"
        return f"{count}: {examples}" if result["unexpected_count"] else ""
    value = result.get("observed_value")
    return f"observed: {value:.4g}" if isinstance(value, float | int) else ""
