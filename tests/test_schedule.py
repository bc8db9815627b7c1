"""The deployment in `infra/prefect.yaml` really gets scheduled."""

import json
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import REPOSITORY, Call


def scheduled(api: str) -> list[dict[str, object]]:
    body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}).encode()
    request = urllib.request.Request(
        f"{api}/flow_runs/filter", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.mark.slow
def test_a_deployed_schedule_creates_runs(prefect_api: str, call: Call, tmp_path: Path):
    pool = call(
        REPOSITORY,
        "-m",
        "prefect",
        "work-pool",
        "create",
        "local",
        "--type",
        "process",
        "--overwrite",
    )
    assert pool.returncode == 0, pool.stderr
    deploy = (
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--all",
        "--prefect-file",
        "infra/prefect.yaml",
    )
    done = call(REPOSITORY, *deploy, IXC_HOME=str(REPOSITORY))
    assert done.returncode == 0, done.stdout + done.stderr

    deadline = time.monotonic() + 60
    while not (runs := scheduled(prefect_api)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert runs, "no run is scheduled: see the reason for the pin of sqlalchemy in pyproject.toml"
    assert all(run["auto_scheduled"] for run in runs)
    assert all(str(run["expected_start_time"])[11:16] == "03:00" for run in runs)
