"""What README.md, CONTRIBUTING.md and docs/ say is true: examples run, and what they name exists."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import yaml
from PIL import Image
from pydantic import TypeAdapter

from ixc.data.samples import write_samples
from ixc.data.sources import READERS
from ixc.data.sources.embedded.videos import encode
from ixc.models.ixc25.folder import save
from ixc.params import Params
from ixc.serve.cli import main, parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_MODELS = {"score", "rank", "chat", "convert"}
"""Commands of `ixc` that need a model alone; the others' data is the pipeline's."""
SECTIONS: dict[str, Any] = {field.name: field.type for field in fields(Params)}
"""The type of each section of params.yaml."""


class Excerpt(NamedTuple):
    """A piece of a document."""

    document: str
    text: str


def excerpts(pattern: str) -> list[Excerpt]:
    """What the pattern's only group matches, in all documents."""
    found = []
    for path in DOCUMENTS:
        matches = re.findall(pattern, path.read_text(), re.DOTALL | re.MULTILINE)
        found += [Excerpt(path.name, text) for text in matches]
    return found


def commands(program: str) -> list[Excerpt]:
    """The lines of shell blocks that begin with a program."""
    lines = []
    for document, block in excerpts(r"^```sh\n(.*?)^```"):
        lines += [Excerpt(document, line) for line in block.splitlines()]
    return [line for line in lines if line.text.startswith(f"{program} ")]


def name(excerpt: Any) -> str:
    """What a test about an excerpt is called."""
    first = excerpt.text.strip().splitlines()[0]
    return f"{excerpt.document}: {first[:60]}"


PYTHON = excerpts(r"^```python\n(.*?)^```")
COMMANDS = commands("ixc")
CODE = excerpts(r"`([^`\n]+)`")
"""What stands in backticks inside a line."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name."""
    root = tmp_path_factory.mktemp("workplace")
    for model in ("models/reward", "internlm-xcomposer2d5-7b-reward"):
        save(tiny.reward(), tiny.processor(), root / model)
    save(tiny.causal(), tiny.processor(), root / "models/chat")
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(root / "image.png")
    (root / "video.mp4").write_bytes(encode(frames))
    write_samples([tiny.pair("Which?", "good", "bad")], root / "corpus.parquet")
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    (root / "chats.jsonl").write_text(json.dumps({"messages": chat, "images": ["image.png"]}))
    return root


@pytest.fixture
def workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working directory."""
    monkeypatch.chdir(folder)
    return folder


# Examples


def test_there_are_examples():
    assert {example.document for example in PYTHON} >= {"README.md", "models.md"}
    assert {example.text.split()[1] for example in COMMANDS} >= OF_MODELS


@pytest.mark.parametrize("example", PYTHON, ids=name)
def test_a_block_of_python_runs_as_printed(
    workplace: Path, example: Excerpt, capsys: pytest.CaptureFixture[str]
):
    exec(compile(example.text, example.document, "exec"), {})


@pytest.mark.parametrize(
    "example", [each for each in COMMANDS if each.text.split()[1] in OF_MODELS], ids=name
)
def test_a_command_runs_as_printed(
    workplace: Path, example: Excerpt, capsys: pytest.CaptureFixture[str]
):
    arguments = shlex.split(example.text, comments=True)[1:]
    # random weights never end a reply
    length = ["--max-new-tokens", "8"] if arguments[0] == "chat" else []
    assert main([*arguments, *length]) == 0
    assert capsys.readouterr().out.strip() or length


@pytest.mark.parametrize(
    "example", [each for each in COMMANDS if each.text.split()[1] not in OF_MODELS], ids=name
)
def test_the_options_of_every_other_command_exist(example: Excerpt):
    parser().parse_args(shlex.split(example.text, comments=True)[1:])


@pytest.mark.parametrize("example", excerpts(r"^```yaml\n(.*?)^```"), ids=name)
def test_an_example_of_parameters_is_accepted(example: Excerpt):
    for section, values in yaml.safe_load(example.text).items():
        TypeAdapter(SECTIONS[section]).validate_python(values)


# Names


@pytest.mark.parametrize("command", commands("make"), ids=name)
def test_a_target_of_make_exists(command: Excerpt):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.text.split()[1] in targets


@pytest.mark.parametrize(
    "module", excerpts(r"python -m ((?:benchmarks|flows|ixc|tasks)[\w.]+)"), ids=name
)
def test_a_module_that_is_run_exists(module: Excerpt):
    assert find_spec(module.text), f"{module.document} names {module.text}"


def test_every_link_leads_to_a_file_and_to_a_heading_of_it():
    broken = []
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if not link.startswith("http") and not leads_somewhere(document, link):
                broken.append(f"{document.name}: {link}")
    assert broken == []


def leads_somewhere(document: Path, link: str) -> bool:
    """Whether a link of a document is the path of a file, and its anchor a heading there."""
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    if not target.exists():
        return False
    return not anchor or anchor in anchors(target)


def anchors(path: Path) -> Iterator[str]:
    """The headings of a document as GitHub's anchors."""
    for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE):
        letters = re.sub(r"[^\w\- ]", "", heading.lower())
        yield letters.replace(" ", "-")


def test_every_path_in_backticks_exists():
    known = re.compile(r"(?:\.ci|benchmarks|docs|flows|infra|ixc|tasks|tests)/[\w./-]*")
    missing = []
    for document, text in CODE:
        path = ROOT / text
        if known.fullmatch(text) and not (path.exists() or path.with_suffix(".py").exists()):
            missing.append(f"{document}: {text}")
    assert missing == []


def test_every_parameter_in_backticks_exists():
    unknown = []
    for document, text in CODE:
        section, _, rest = text.partition(".")
        key = re.match(r"\w+", rest)
        if section not in SECTIONS or key is None or rest == "py":
            continue
        if key[0] not in {field.name for field in fields(SECTIONS[section])}:
            unknown.append(f"{document}: {text}")
    assert unknown == []


def test_the_table_of_readers_is_that_of_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| (yes|no) \|[^|]*\|$",
        (ROOT / "docs/data.md").read_text(),
        re.MULTILINE,
    )
    commercial = {reader: answer == "yes" for reader, answer in rows}
    assert commercial == {name: READERS[name].licence.commercial for name in READERS}
