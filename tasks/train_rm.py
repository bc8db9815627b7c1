"""Train the reward model, and register it."""

from tasks.stage import dvc_task, main

train_rm = dvc_task("train_rm")

if __name__ == "__main__":
    main("train_rm", model="ixc-reward")
