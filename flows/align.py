"""The whole graph, a sentence."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from tasks.best_of_n import best_of_n
from tasks.bootstrap import bootstrap
from tasks.clean import clean
from tasks.collect import collect
from tasks.evaluate_rm import evaluate_rm
from tasks.generate import generate
from tasks.judge import judge
from tasks.publish import publish
from tasks.train_ppo import train_ppo
from tasks.train_rm import train_rm
from tasks.validate import validate
from tasks.workspace import workspace

Override = Annotated[str, Field(pattern=r"^\w+(\.\w+)*=.*$")]


@flow(name="align")
def align(
    params: str | None = None, overrides: Sequence[Override] = (), name: str | None = None
) -> None:
    """Raw prompts in, an aligned model and a cleaned corpus out.

    Args:
        params: a parameter file other than params.yaml, as in infra/params/laptop.yaml.
        overrides: parameters to change, as in train_rm.learning_rate=2e-5.
        name: of the workspace that a run with its own parameters has; this run's name if empty.
    """
    with workspace(params, overrides, name or flow_run.get_name()):
        # Preference pairs.
        collect()
        bootstrap()
        generate()
        judge()
        validate()
        # A reward model, measured.
        train_rm()
        evaluate_rm()
        # What it is good for.
        train_ppo()
        best_of_n()
        clean()
        publish()


if __name__ == "__main__":
    state = align(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"), return_state=True)
    sys.exit(0 if state.is_completed() else 1)
