"""Train the reward model, and register it."""

from tasks.stage import dvc_task, main

train_rm = dvc_task("train_rm")

if __name__ == "__main__":
    from ixc.train_rm import run

    main("train_rm", run, model="ixc-reward")
