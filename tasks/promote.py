"""A candidate becomes champion, if good.

`python -m tasks.promote ixc-reward --metric accuracy/all --at-least 0.8` is an event, no artefact: the graph
knows nothing of it. The champion so far stays reachable as `previous`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.tracking import client, experiment


class NotPromoted(ValueError):
    """A candidate that does not pass the gate, or that there is no measurement of."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, promote, say so; 1 if the gate stays shut."""
    parser = argparse.ArgumentParser(prog="tasks.promote", description=__doc__)
    parser.add_argument("model", help="a registered model, as ixc-reward")
    parser.add_argument("--metric", required=True, help="as accuracy/all")
    parser.add_argument("--at-least", type=float, required=True)
    options = parser.parse_args(arguments)
    try:
        print(promote(client(), options.model, options.metric, options.at_least))
    except NotPromoted as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def promote(client: Any, model: str, metric: str, at_least: float) -> str:
    """Move the alias `champion` to the candidate if its newest measurement is good enough.

    Raises:
        NotPromoted: it is not, or there is none.
    """
    candidate = _by_alias(client, model, "candidate")
    if candidate is None:
        raise NotPromoted(
            f"{model}: no version has the alias candidate; run the stage that trains it"
        )
    value = measured(client, candidate, metric)
    if not value >= at_least:
        raise NotPromoted(
            f"{model} version {candidate.version}: {metric} is {value:g}, below {at_least:g}"
        )

    # What it replaces stays within reach, for a way back.
    champion = _by_alias(client, model, "champion")
    if champion is not None and champion.version != candidate.version:
        client.set_registered_model_alias(model, "previous", champion.version)
    client.set_registered_model_alias(model, "champion", candidate.version)
    return f"{model} version {candidate.version} is champion: {metric} is {value:g}, at least {at_least:g}"


def measured(client: Any, version: Any, metric: str) -> float:
    """The newest value of a metric among the runs that read exactly this model, or the run that made it."""
    path, md5 = version.tags["dvc_path"], version.tags["dvc_md5"]
    query = f"tags.`dvc/{path}` = '{md5}' and attributes.status = 'FINISHED'"
    readers = client.search_runs(
        [experiment(client, Path())], query, order_by=["attributes.start_time DESC"]
    )
    for run in [*readers, client.get_run(version.run_id)]:
        if metric in run.data.metrics:
            return run.data.metrics[metric]
    raise NotPromoted(
        f"{version.name} version {version.version}: no run has measured {metric!r} of {path} {md5}"
    )


def _by_alias(client: Any, model: str, alias: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException:
        return None


if __name__ == "__main__":
    sys.exit(main())
