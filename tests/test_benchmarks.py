"""Overlap with what the model will be tested on: texts in any file, pictures in any size."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from real import REAL, needs_real

from ixc.validation.benchmarks import COMMON, BadBenchmark, Benchmarks, entries
from ixc.validation.pictures import Looks, look
from ixc.validation.texts import Words

QUESTION = "Which of the four boats in the harbour is the one that will leave at noon, and why that one?"


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Coloured shapes on a shaded ground, always the same for a seed."""
    rng = np.random.default_rng(seed)
    shade = np.linspace(rng.integers(0, 120), rng.integers(130, 255), size[0])
    image = Image.fromarray(np.broadcast_to(shade[None, :, None], (size[1], size[0], 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(0, size[0] - 60)), int(rng.integers(0, size[1] - 60))
        box = (x, y, x + int(rng.integers(20, 60)), y + int(rng.integers(20, 60)))
        draw.rectangle(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encoded(picture: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def overlap(benchmarks: Benchmarks, text: str) -> str:
    return benchmarks.text_overlap([Words.of(text)])


def test_each_entry_of_the_folder_is_a_benchmark_but_for_notes_about_it(tmp_path: Path):
    for name in ("b.txt", "README.md", ".hidden.txt"):
        (tmp_path / name).write_text(QUESTION)
    (tmp_path / "pictures").mkdir()
    assert entries(str(tmp_path)) == [tmp_path / "b.txt", tmp_path / "pictures"]
    assert entries(str(tmp_path / "b.txt")) == [tmp_path / "b.txt"]
    assert entries(None) == []
    with pytest.raises(BadBenchmark, match=r"validate\.benchmarks: nowhere: no such file or folder"):
        entries("nowhere")


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "b.txt", "b.parquet"])
def test_texts_are_found_in_every_kind_of_file(tmp_path: Path, name: str):
    rows = [{"id": 1, "turns": [{"content": "Hello there."}]}, {"id": 2, "turns": [{"content": QUESTION}]}]
    match Path(name).suffix:
        case ".jsonl":
            (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        case ".json":
            (tmp_path / name).write_text(json.dumps(rows))
        case ".txt":
            (tmp_path / name).write_text(f"Hello there.\n\n{QUESTION}\n")
        case _:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    found = overlap(Benchmarks([tmp_path], 13, 6), f"Look! {QUESTION.upper()} Think first.")
    assert found.startswith(f"{tmp_path}/{name}:2: 'which of the four boats in the harbour is the one that will'")


def test_thirteen_words_overlap_and_twelve_do_not(tmp_path: Path):
    (tmp_path / "b.txt").write_text(QUESTION)
    benchmarks = Benchmarks([tmp_path / "b.txt"], 13, 6)
    words = QUESTION.split()
    assert overlap(benchmarks, " ".join(words[3:16]))
    assert not overlap(benchmarks, " ".join(words[3:15]))


def test_a_shorter_text_counts_as_a_whole_and_a_very_short_one_not(tmp_path: Path):
    (tmp_path / "b.txt").write_text("What is the name of the tallest tower?\n\nWhat is this?")
    benchmarks = Benchmarks([tmp_path / "b.txt"], 13, 6)
    assert overlap(benchmarks, "Tell me: what is the name of the tallest tower? In feet.")
    assert not overlap(benchmarks, "What is the name of the tallest man?")
    assert not overlap(benchmarks, "What is this?")
    assert benchmarks.read[0].texts == 1


def test_boilerplate_of_a_benchmark_is_no_evidence(tmp_path: Path):
    common = "Answer with the letter of the right option from the given choices and nothing else."
    rows = [f"{QUESTION} {common}", *(f"Number {index}. {common}" for index in range(COMMON))]
    (tmp_path / "b.txt").write_text("\n\n".join(rows))
    benchmarks = Benchmarks([tmp_path / "b.txt"], 13, 6)
    assert not overlap(benchmarks, common)
    assert overlap(benchmarks, QUESTION)


def test_planted_overlaps_are_found_and_nothing_else(tmp_path: Path):
    rng = random.Random(0)
    make = [" ".join(f"w{rng.randrange(2000)}" for _ in range(60)) for _ in range(600)]
    (tmp_path / "b.txt").write_text("\n\n".join(make[:300]))
    benchmarks = Benchmarks([tmp_path / "b.txt"], 13, 6)
    for place, own in enumerate(make[300:]):
        borrowed = " ".join(make[place].split()[20:35])
        assert overlap(benchmarks, f"{own} {borrowed} {own}").startswith(f"{tmp_path}/b.txt:{place + 1}: ")
        assert not overlap(benchmarks, own)


def test_pictures_are_found_in_folders_and_in_parquet(tmp_path: Path):
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    scene(1).save(tmp_path / "pictures" / "deep" / "one.png")
    pq.write_table(pa.table({"image": [{"bytes": encoded(scene(2)), "path": "x"}]}), tmp_path / "b.parquet")
    benchmarks = Benchmarks([tmp_path / "pictures", tmp_path / "b.parquet"], 13, 6)
    assert [row.pictures for row in benchmarks.read] == [1, 1]
    assert benchmarks.picture_overlap(look(encoded(scene(1), "JPEG", quality=70))).endswith("one.png:1")
    assert benchmarks.picture_overlap(look(encoded(scene(2).resize((160, 120))))).endswith("b.parquet:1")
    assert benchmarks.picture_overlap(look(encoded(scene(3)))) == ""


def test_pictures_scaled_and_recompressed_are_the_same_and_others_are_not():
    seen = [look(encoded(scene(seed))) for seed in range(20)]
    gallery = Looks(seen)
    for seed in range(20):
        picture = scene(seed)
        copies = (
            encoded(picture, "JPEG", quality=60),
            encoded(picture.resize((200, 150), Image.Resampling.LANCZOS), "JPEG", quality=85),
            encoded(picture.resize((640, 480)), "WEBP", quality=80),
        )
        assert [gallery.like(look(copy), 6) for copy in copies] == [[seed]] * 3


def test_a_changed_digit_is_another_picture():
    def sum_(text: str) -> Image.Image:
        image = Image.new("RGB", (224, 224), "white")
        ImageDraw.Draw(image).text((60, 90), text, fill="black", font_size=36)
        return image

    gallery = Looks([look(encoded(sum_("12 + 30")))])
    assert gallery.like(look(encoded(sum_("12 + 30"), "JPEG", quality=80)), 6) == [0]
    assert gallery.like(look(encoded(sum_("17 + 30"))), 6) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, "cannot be read .*No such file"),
        ("b.jsonl", b"{", "cannot be read"),
        ("b.json", b"\xff\xfe", "cannot be read"),
        ("b.parquet", b"PAR", "cannot be read"),
        ("b.txt", b"Too short.", "no text of 8 words and no picture"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, says: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadBenchmark, match=rf"validate\.benchmarks: {tmp_path}/{name}: {says}"):
        Benchmarks([tmp_path / name], 13, 6)


@needs_real
def test_a_real_benchmark_is_found_in_itself_and_not_in_real_dialogues():
    benchmarks = Benchmarks([REAL / "rm_bench"], 13, 6)
    rows = json.loads((REAL / "rm_bench" / "chat_filtered.json").read_text(encoding="utf-8"))
    assert all(overlap(benchmarks, text) for row in rows for text in row["chosen"] if len(Words.of(text).spoken) >= 20)
    with (REAL / "hh_rlhf" / "harmless-base_test_sample.jsonl").open(encoding="utf-8") as lines:
        assert not any(overlap(benchmarks, json.loads(line)["chosen"]) for line in lines)
