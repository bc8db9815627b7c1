"""The base model: train the tiny one, or resolve a pretrained one."""

from tasks.stage import dvc_task, main

bootstrap = dvc_task("bootstrap")

if __name__ == "__main__":
    main("bootstrap")
