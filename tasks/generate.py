"""Sample N answers per prompt from the base model."""

from tasks.stage import dvc_task, main

generate = dvc_task("generate")

if __name__ == "__main__":
    main("generate")
