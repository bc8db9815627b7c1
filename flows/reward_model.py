"""The first half of the graph."""

from prefect import flow

from tasks.bootstrap import bootstrap
from tasks.collect import collect
from tasks.evaluate_rm import evaluate_rm
from tasks.generate import generate
from tasks.judge import judge
from tasks.publish import publish
from tasks.train_rm import train_rm
from tasks.validate import validate
from tasks.workspace import workspace


@flow(name="reward-model")
def reward_model() -> None:
    """New preferences in, a measured reward model out."""
    with workspace():
        collect()
        bootstrap()
        generate()
        judge()
        validate()
        train_rm()
        evaluate_rm()
        publish()


if __name__ == "__main__":
    reward_model()
