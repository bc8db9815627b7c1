# `make demo` and `make test` work from a fresh clone: the first of them builds .venv.
PYTHON ?= python3
PARAMS ?=
DATA ?=
TORCH = torch>=2.10,<3

BIN = $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export PREFECT_HOME ?= $(CURDIR)/.prefect
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db
export IXC_HOME ?= $(CURDIR)
# "true", the word: MLflow does not understand 1.
export DO_NOT_TRACK = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export MLFLOW_DISABLE_TELEMETRY = true
export DVC_NO_ANALYTICS = 1
export GIT_PYTHON_REFRESH = quiet
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false
export NO_PROXY := localhost,127.0.0.1$(if $(NO_PROXY),$(shell printf ',%s' '$(NO_PROXY)'))
# Without bytecode Prefect, MLflow and DVC start two to three times slower.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test slow lint lock format ui worker report clean-runs

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@# The machine's GPU decides which torch; with none, the small CPU wheel where there is one.
	if nvidia-smi > /dev/null 2>&1; then .venv/bin/python -m pip install '$(TORCH)'; else \
	  .venv/bin/python -m pip install 'torch==2.13.0' || .venv/bin/python -m pip install '$(TORCH)'; fi
	.venv/bin/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed  ## the whole pipeline, for real, on this machine
	@exec python -m flows.local demo $(if $(PARAMS),--params '$(PARAMS)') $(if $(DATA),--data '$(DATA)')

test: lint  ## everything that takes minutes at most, on all cores, four at most; each test computes on one
	OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu"

slow: .venv/installed  ## the long tests, one after another: many start processes of their own
	OMP_NUM_THREADS=1 python -m pytest -m "slow and not gpu" --durations 10

lint: .venv/installed
	ruff check .
	ruff format --check .
	pyright
	lint-imports

lock:  ## every dependency's newest version that the ranges in pyproject.toml admit, into constraints.txt
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install 'torch==2.13.0' || .venv-lock/bin/python -m pip install '$(TORCH)'
	.venv-lock/bin/python -m pip install -e '.[dev]'
	@# What comes with a build of torch is no choice of ours.
	(echo '# Every version that this repository was tested with, written by `make lock`; the Makefile chooses torch.'; \
	  .venv-lock/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==' \
	  ) > constraints.txt.part
	mv constraints.txt.part constraints.txt
	rm -rf .venv-lock

format: .venv/installed
	ruff check --fix .
	ruff format .

ui: .venv/installed  ## Prefect and MLflow, until Ctrl-C
	@exec python -m flows.local ui

worker: .venv/installed  ## the same, and a worker that runs what is scheduled or started in the UI
	@exec python -m flows.local ui --worker

report: .venv/installed  ## write reports/index.html again
	@python -m tasks.report

clean-runs:  ## remove the workspaces of runs with their own parameters
	rm -rf .runs
	git worktree prune
