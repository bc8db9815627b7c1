"""What README.md prints about using a model runs as it is printed."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tiny
from PIL import Image

from ixc.data.samples import write_samples
from ixc.data.sources.embedded.videos import encode
from ixc.models.ixc25.folder import save
from ixc.serve.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
BLOCKS = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("ixc ")]
OF_MODELS = {"score", "rank", "chat", "convert"}
"""Commands that need a model alone; the others' data is the pipeline's."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name."""
    for name in ("models/reward", "internlm-xcomposer2d5-7b-reward"):
        save(tiny.reward(), tiny.processor(), tmp_path / name)
    save(tiny.causal(), tiny.processor(), tmp_path / "models/chat")
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "picture.png")
    (tmp_path / "film.mp4").write_bytes(encode(frames))
    write_samples([tiny.pair("Which?", "good", "bad")], tmp_path / "corpus.parquet")
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat, "images": ["picture.png"]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_examples():
    assert len(PYTHON) >= 1 and {command.split()[1] for command in COMMANDS} >= OF_MODELS


@pytest.mark.parametrize("code", PYTHON)
def test_a_block_of_python_runs_as_printed(
    workplace: Path, code: str, capsys: pytest.CaptureFixture[str]
):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.split()[1] in OF_MODELS])
def test_a_command_runs_as_printed(
    workplace: Path, command: str, capsys: pytest.CaptureFixture[str]
):
    length = (
        ["--max-new-tokens", "8"] if command.startswith("ixc chat") else []
    )  # random weights never end
    assert main([*shlex.split(command, comments=True)[1:], *length]) == 0
    assert capsys.readouterr().out.strip() or length
