"""Keep the pairs that may be trained on; split them."""

from tasks.stage import dvc_task, main

validate = dvc_task("validate")

if __name__ == "__main__":
    main("validate")
