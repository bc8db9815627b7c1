"""Sample N answers, let the reward model pick."""

from tasks.stage import dvc_task, main

best_of_n = dvc_task("best_of_n")

if __name__ == "__main__":
    main("best_of_n")
