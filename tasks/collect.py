"""Read the sources into prompts, ready pairs and a media store."""

from tasks.stage import dvc_task, main

collect = dvc_task("collect")

if __name__ == "__main__":
    main("collect")
