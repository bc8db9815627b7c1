"""Align the base model with PPO, and register it."""

from tasks.stage import dvc_task, main

train_ppo = dvc_task("train_ppo")

if __name__ == "__main__":
    main("train_ppo", model="ixc-chat")
