"""`ixc show`: any table, readable, also into a pipe."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ixc.data.samples import Media, Sample, Turn, Verdict, answer, write_samples
from ixc.serve.cli import main
from ixc.serve.show import BadTable, show


def pair(id: str, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "source": "made",
        "domain": "general",
        "modality": "text",
        "prompt": (Turn(role="user", content=f"What is {id}?"),),
        "chosen": answer("A thing."),
        "rejected": answer("Nothing."),
        "verdict": Verdict(
            winner="chosen",
            judge="gpt",
            orders=("chosen", "chosen"),
            reason="It is right.",
            cost=0.25,
        ),
    }
    return Sample(id=id, **(values | changes))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    image = Media(kind="image", path="ab/cd.png", sha256="0" * 64)
    rows = [
        pair("one"),
        pair("two", domain="video"),
        pair("three", source="other", modality="image", media=(image,)),
    ]
    write_samples(rows, tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


def shown(path: Path, **options: Any) -> str:
    lines: list[str] = []
    show(path, put=lines.append, **options)
    return "\n".join(lines)


def test_a_pair_is_shown_with_all_that_is_known_of_it(table: Path):
    text = shown(table, id="three")
    for part in (
        "three · other · general · image · train",
        "What is three?",
        "A thing.",
        "Nothing.",
    ):
        assert part in text
    assert "ab/cd.png (image)" in text
    assert "chosen, by gpt (both orders: chosen, chosen), $0.2500: It is right." in text
    assert "gold" not in text and "candidate" not in text, "what a pair has not is not shown"


def test_a_question_amid_an_answer_is_not_shown_as_the_answer(tmp_path: Path):
    several = (*answer("Red."), Turn(role="user", content="Sure?"), *answer("Yes."))
    write_samples([pair("one", chosen=several)], tmp_path / "pairs.parquet")
    lines = [line.split() for line in shown(tmp_path / "pairs.parquet").splitlines()]
    assert (
        ["chosen", "Red."] in lines and ["user", "Sure?"] in lines and ["chosen", "Yes."] in lines
    )


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, ["one", "two", "three"]),
        ({"limit": 2}, ["one", "two"]),
        ({"limit": None}, ["one", "two", "three"]),
        ({"source": "other"}, ["three"]),
        ({"domain": "general", "modality": "text"}, ["one"]),
        ({"id": "two"}, ["two"]),
    ],
)
def test_filters_select(table: Path, filters: dict[str, Any], ids: list[str]):
    assert re.findall(r"^── (\w+) · ", shown(table, **filters), re.MULTILINE) == ids


def test_nothing_found_says_what_was_looked_for(table: Path):
    assert "no row with source 'nowhere'" in shown(table, source="nowhere")


def test_a_table_that_holds_no_samples_is_shown_too(tmp_path: Path):
    path = tmp_path / "quarantine.parquet"
    pq.write_table(
        pa.table({"id": ["a", "b"], "reason": ["tie", "duplicate"], "detail": ["", "of a"]}), path
    )
    text = shown(path, reason="duplicate")
    assert "of a" in text and "tie" not in text


def test_candidates_and_line_breaks_are_readable(tmp_path: Path):
    write_samples([pair("x", candidates=("first\nline two", "second"))], tmp_path / "t.parquet")
    lines = [line.strip() for line in shown(tmp_path / "t.parquet").splitlines()]
    assert {"candidate 0  first", "line two", "candidate 1  second"} <= set(lines)


def test_a_text_cannot_command_the_terminal(tmp_path: Path):
    write_samples(
        [pair("\x1b]0;title\x07", chosen=answer("\x1b[2Jgone\r"))], tmp_path / "t.parquet"
    )
    assert not set("\x1b\x07\r") & set(shown(tmp_path / "t.parquet"))


def test_errors_name_the_file_and_the_remedy(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(BadTable, match=r"bad\.parquet: not a Parquet file"):
        show(tmp_path / "bad.parquet")
    with pytest.raises(
        BadTable, match="no column 'reason' to filter by; it has id, prompt_id, source"
    ):
        show(table, reason="tie")
    assert main(["show", str(tmp_path / "none.parquet")]) == 2
    assert "none.parquet: no such file; run the stage" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(tmp_path: Path):
    write_samples(
        [pair(f"{index}", chosen=answer("word " * 500)) for index in range(200)],
        tmp_path / "t.parquet",
    )
    command = f"{sys.executable} -m ixc.serve.cli show {tmp_path / 't.parquet'} --limit 0 | head -1"
    done = subprocess.run(
        command,
        shell=True,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("── 0 · made") and done.stderr == ""


def test_no_torch_is_needed():
    code = "import sys, ixc.serve.cli; print('torch' in sys.modules)"
    assert (
        subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
        == b"False\n"
    )
