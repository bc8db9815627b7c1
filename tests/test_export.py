"""Pairs for other trainers: what each form holds, that it comes back the same, and that TRL gets pixels."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ixc.data.export import Form, NotExported, export
from ixc.data.media import Store
from ixc.data.samples import Media, Sample, Turn, Verdict, answer, read_samples, write_samples
from ixc.data.sources import File
from ixc.data.sources.embedded.videos import encode
from ixc.params import CollectParams, SourceParams
from ixc.serve.cli import main
from ixc.stages.collect import stage as collect

EVERY: tuple[Form, ...] = get_args(Form)
FORMS = pytest.mark.parametrize("form", EVERY)


def pair(id: str, *prompt: str, media: tuple[Media, ...] = (), **changes: Any) -> Sample:
    """A pair; the turns of the prompt are the user's and the assistant's by turns."""
    kinds = {medium.kind for medium in media}
    modality: Literal["video", "image", "text"] = (
        "video" if "video" in kinds else "image" if kinds else "text"
    )
    turns = tuple(
        Turn(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(prompt)
    )
    given: dict[str, Any] = {"chosen": answer("Yes."), "rejected": answer("No."), **changes}
    verdict = Verdict(winner="chosen", judge="source")
    return Sample(
        id=f"made/{id}",
        source="made",
        domain="reasoning",
        modality=modality,
        prompt=turns,
        media=media,
        verdict=verdict,
        **given,
    )


@pytest.fixture
def store(tmp_path: Path) -> dict[str, Media]:
    """Two images and a video in the store `media`."""
    folder, files = tmp_path / "native", {}
    folder.mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (30, 30), name).save(folder / f"{name}.png")
        files[name] = File(kind="image", path=folder / f"{name}.png")
    files["film"] = File(kind="video", data=encode([Image.new("RGB", (16, 16), "red")] * 2))
    keep = Store(tmp_path / "media")
    return {name: keep.add(file) for name, file in files.items()}


@pytest.fixture
def pairs(store: dict[str, Media]) -> list[Sample]:
    red, blue, video = store.values()
    system = (
        Turn(role="system", content="Be brief."),
        Turn(role="user", content="What\n\nis it? \u2028 "),
    )
    return [
        pair("text", "  What is it?\n"),
        pair("turns", "Hi.", "Hello.", "What is it?"),
        replace(pair("system", "x", media=(red,)), prompt=system),
        pair("first", "What is it? ", media=(red,)),
        pair("blank", "\n What is it?", media=(blue,)),
        pair("within", "Is <ImageHere> red?", media=(red,)),
        pair("behind", "What is it? <ImageHere>", media=(red,)),
        pair("later", "Hi.", "Hello.", "<ImageHere>\nWhat is it?", media=(red,)),
        pair("two", "Image1 <ImageHere>; Image2 <ImageHere>; Which is red?", media=(blue, red)),
        pair("twice", "Is <ImageHere> like <ImageHere>?", media=(red, red)),
        pair(
            "mixed", "Is <ImageHere> like <ImageHere> or <ImageHere>?", media=(video, blue, video)
        ),
        pair("film", "Describe the film.", media=(video,)),
        pair("long", "Why?", chosen=answer("So:\n\n- a\n- b"), rejected=answer(" No. ")),
        pair("val", "Who?", split="val"),
    ]


def written(folder: Path, pairs: list[Sample]) -> Path:
    write_samples(pairs, folder / "pairs.parquet")
    return folder / "pairs.parquet"


def back(folder: Path, exported: Path) -> dict[str, Sample]:
    """What `collect` reads from an export, by the ids that the pairs had."""
    params = CollectParams(
        sources=(SourceParams(reader="preferences", name="again", path=str(exported)),)
    )
    names = ("prompts.parquet", "public.parquet", "corpus.parquet", "media", "quarantine.parquet")
    collect.run(params, *(folder / "back" / name for name in names))
    assert pq.read_table(folder / "back" / "quarantine.parquet").to_pylist() == []
    return {
        sample.id.removeprefix("again/"): sample
        for sample in read_samples(folder / "back" / "public.parquet")
    }


def content(sample: Sample) -> tuple[Any, ...]:
    media = [(medium.kind, medium.sha256) for medium in sample.media]
    return sample.prompt, sample.chosen, sample.rejected, media, sample.domain, sample.modality


def assert_same(exported: dict[str, Sample], pairs: list[Sample]) -> None:
    assert exported.keys() == {sample.id for sample in pairs}
    for sample in pairs:
        assert content(exported[sample.id]) == content(sample), sample.id


@FORMS
def test_what_is_exported_comes_back_with_the_same_texts_order_and_media(
    tmp_path: Path, pairs: list[Sample], form: Form
):
    assert main(["export", str(written(tmp_path, pairs)), "--to", form, "--out", str(tmp_path / "out"),
                 "--media-root", str(tmp_path / "media")]) == 0  # fmt: skip
    exported = back(tmp_path, tmp_path / "out")
    assert_same(exported, pairs)
    assert exported["made/val"].split == "val"
    files = [file for file in (tmp_path / "back" / "media").rglob("*") if file.is_file()]
    assert (
        all(file.stem == hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        and len(files) == 3
    )


@FORMS
def test_the_order_of_the_pairs_is_kept(tmp_path: Path, form: Form):
    made = [pair(str(number), f"What is {number}?") for number in (3, 1, 2)]
    export(written(tmp_path, made), form, tmp_path / "out", tmp_path / "media")
    assert list(back(tmp_path, tmp_path / "out")) == ["made/3", "made/1", "made/2"]


def test_trl_finds_images_in_the_column_that_it_looks_for(tmp_path: Path, pairs: list[Sample]):
    datasets = pytest.importorskip("datasets")
    export(written(tmp_path, pairs), "trl", tmp_path / "out", tmp_path / "media")
    files = str(tmp_path / "out" / "train.parquet")
    table = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = {row["id"].removeprefix("made/"): row for row in table}
    assert [image.size for image in rows["two"]["images"]] == [(30, 30), (30, 30)]
    assert rows["two"]["images"][0].getpixel((0, 0)) == (0, 0, 255)
    assert rows["text"]["images"] == []
    assert [part["type"] for part in rows["first"]["prompt"][0]["content"]] == ["image", "text"]
    assert not {"film", "mixed", "val"} & rows.keys()  # TRL would read videos blindly


def test_texts_alone_are_turns_of_text_without_a_column_of_images(tmp_path: Path):
    export(written(tmp_path, [pair("a", "Why?")]), "trl", tmp_path / "out", tmp_path / "media")
    [row] = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert (row["prompt"], "images" in row) == ([{"role": "user", "content": "Why?"}], False)


def test_llama_factory_finds_its_columns_its_marks_and_its_files(
    tmp_path: Path, pairs: list[Sample]
):
    export(written(tmp_path, pairs), "llama-factory", tmp_path / "out", tmp_path / "media")
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert sorted(info) == ["ixc_train", "ixc_val"]
    table = pq.read_table(tmp_path / "out" / info["ixc_train"]["file_name"]).to_pylist()
    assert set(info["ixc_train"]["columns"].values()) <= table[0].keys()
    for row in table:
        text = "".join(turn["value"] for turn in row["conversations"])
        assert (text.count("<image>"), text.count("<video>")) == (
            len(row["images"]),
            len(row["videos"]),
        )
        assert all((tmp_path / "out" / path).is_file() for path in (*row["images"], *row["videos"]))


def test_ms_swift_finds_the_better_answer_last(tmp_path: Path, pairs: list[Sample]):
    export(written(tmp_path, pairs), "swift", tmp_path / "out", tmp_path / "media")
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()}
    first = rows["made/first"]
    assert first["messages"][0] == {"role": "user", "content": "<image>\nWhat is it? "}
    assert (first["messages"][-1]["content"], first["rejected_response"]) == ("Yes.", "No.")


# What cannot be exported


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        ("swift", {"rejected": answer("Yes.")}, "the two answers are the same"),
        ("swift", {"chosen": answer("See <image>.")}, "a text says '<image>'"),
        ("llama-factory", {"rejected": answer("<audio>")}, "a text says '<audio>'"),
        (
            "llama-factory",
            {"prompt": (Turn(role="user", content="a"), Turn(role="user", content="b"))},
            "by turns",
        ),
        ("trl", {"rejected": ()}, "1 turns in `chosen` and 0 in `rejected`"),
        ("trl", {"chosen": answer("a") + answer("b")}, "2 turns in `chosen`"),
        ("trl", {"verdict": Verdict(winner="tie", judge="x")}, "verdict.winner is tie"),
        (
            "trl",
            {"prompt": (Turn(role="user", content="<ImageHere>?"),)},
            "more marks <ImageHere> than pictures",
        ),
        (
            "trl",
            {"media": (Media(kind="image", path="ab/cd.png", sha256="cd"),)},
            "give the right --media-root",
        ),
    ],
)
def test_what_a_trainer_would_read_wrongly_is_refused_by_name(
    tmp_path: Path, capsys, form: Form, changes: dict[str, Any], reason: str
):
    source = written(tmp_path, [pair("good", "Why?"), replace(pair("bad", "Why not?"), **changes)])
    out = tmp_path / "out"
    assert (
        main(
            [
                "export",
                str(source),
                "--to",
                form,
                "--out",
                str(out),
                "--media-root",
                str(tmp_path / "media"),
            ]
        )
        == 2
    )
    assert "1 of 2 pairs are left out" in capsys.readouterr().err
    [line] = csv.DictReader((out / "refused.csv").open())
    assert line["id"] == "made/bad" and reason in line["reason"]
    assert back(tmp_path, out).keys() == {"made/good"}


def test_a_text_about_image_tags_goes_to_trl_as_it_is(tmp_path: Path):
    made = [pair("a", "What does <image> mean in HTML?", chosen=answer("<video> is another."))]
    export(written(tmp_path, made), "trl", tmp_path / "out", tmp_path / "media")
    assert_same(back(tmp_path, tmp_path / "out"), made)


def test_an_altered_image_is_refused(tmp_path: Path, store: dict[str, Media]):
    (tmp_path / "media" / store["red"].path).write_bytes(b"another")
    with pytest.raises(NotExported, match="altered since it was stored"):
        export(
            written(tmp_path, [pair("a", "?", media=(store["red"],))]),
            "trl",
            tmp_path / "out",
            tmp_path / "media",
        )


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path):
    source, own = written(tmp_path, [pair("a", "Why?")]), tmp_path / "own"
    own.mkdir()
    for form in EVERY:
        export(source, form, own, tmp_path / "media")
    assert sorted(file.name for file in own.iterdir()) == [
        "README.md",
        "refused.csv",
        "train.parquet",
    ]
    (own / "README.md").write_text("# My notes")
    with pytest.raises(FileExistsError, match="name a new folder"):
        export(source, "trl", own, tmp_path / "media")
    assert (own / "README.md").read_text() == "# My notes"


# The whole demo, and a real trainer


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `collect` makes of the embedded corpus."""
    folder = tmp_path_factory.mktemp("demo")
    names = ("prompts.parquet", "public.parquet", "corpus.parquet", "media", "quarantine.parquet")
    collect.run(
        CollectParams(sources=(SourceParams(reader="embedded"),)),
        *(folder / name for name in names),
    )
    return folder


@pytest.mark.slow
@FORMS
def test_all_pairs_of_the_demo_come_back_the_same(tmp_path: Path, demo: Path, form: Form):
    export(demo / "public.parquet", form, tmp_path / "out", demo / "media")
    pairs = list(read_samples(demo / "public.parquet"))
    assert len(pairs) > 5000
    assert_same(back(tmp_path, tmp_path / "out"), pairs)


@pytest.fixture(scope="module")
def trl_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with TRL, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("trl")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "trl>=1.16"]
    installed = subprocess.run(run, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"trl cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    [site] = folder.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text("\n".join(path for path in sys.path if path))
    return python


@pytest.mark.slow
def test_trls_dpo_trainer_gives_a_tiny_qwen2_vl_the_pixels(
    tmp_path: Path, pairs: list[Sample], trl_python: Path
):
    export(written(tmp_path, pairs), "trl", tmp_path / "out", tmp_path / "media")
    script = Path(__file__).with_name("train_with_trl.py")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = [
        str(trl_python),
        str(script),
        str(tmp_path / "out" / "train.parquet"),
        str(tmp_path / "trained"),
    ]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["steps"] == 2 and seen["pixel_values"] > 0
    assert seen["images"] == seen["shown"]
