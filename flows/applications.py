"""The second half of the graph: what a reward model is good for."""

from prefect import flow

from tasks.best_of_n import best_of_n
from tasks.clean import clean
from tasks.publish import publish
from tasks.train_ppo import train_ppo
from tasks.workspace import workspace


@flow
def applications() -> None:
    """A reward model in; an aligned model, test-time scaling and a cleaned corpus out."""
    with workspace():
        train_ppo()
        best_of_n()
        clean()
        publish()


if __name__ == "__main__":
    applications()
