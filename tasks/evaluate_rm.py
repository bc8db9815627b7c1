"""Measure the reward model on held-out pairs."""

from tasks.stage import dvc_task, main

evaluate_rm = dvc_task("evaluate_rm")

if __name__ == "__main__":
    main("evaluate_rm")
