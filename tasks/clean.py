"""Remove the worst rows of an instruction-tuning corpus."""

from tasks.stage import dvc_task, main

clean = dvc_task("clean")

if __name__ == "__main__":
    main("clean")
