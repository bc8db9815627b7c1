"""Turn candidates into preference pairs."""

from tasks.stage import dvc_task, main

judge = dvc_task("judge")

if __name__ == "__main__":
    main("judge")
