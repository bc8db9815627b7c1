"""Overlap with what the model will be tested on: texts in any file, pictures in any size."""

import base64
import csv
import gzip
import io
import json
import random
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from real import REAL, needs_real

from ixc.stages.validate.contamination import COMMON, BadBenchmark, Benchmarks, entries
from ixc.stages.validate.image_hash import ImageIndex, image_hash
from ixc.stages.validate.shingles import Words

QUESTION = (
    "Which of the four boats in the harbour is the one that will leave at noon, and why that one?"
)


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Coloured shapes on a shaded ground, always the same for a seed."""
    rng = np.random.default_rng(seed)
    shade = np.linspace(rng.integers(0, 120), rng.integers(130, 255), size[0])
    image = Image.fromarray(
        np.broadcast_to(shade[None, :, None], (size[1], size[0], 3)).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(0, size[0] - 60)), int(rng.integers(0, size[1] - 60))
        box = (x, y, x + int(rng.integers(20, 60)), y + int(rng.integers(20, 60)))
        draw.rectangle(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def written(path: Path, content: str) -> None:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def overlap(benchmarks: Benchmarks, text: str) -> str:
    return benchmarks.text_overlap([Words.of(text)])


def test_each_entry_of_the_folder_is_a_benchmark_but_for_notes_about_it(tmp_path: Path):
    for name in ("b.txt", "README.md", ".hidden.txt"):
        (tmp_path / name).write_text(QUESTION)
    (tmp_path / "pictures").mkdir()
    assert entries(str(tmp_path)) == [tmp_path / "b.txt", tmp_path / "pictures"]
    assert entries(str(tmp_path / "b.txt")) == [tmp_path / "b.txt"]
    assert entries(None) == []
    with pytest.raises(
        BadBenchmark, match=r"validate\.benchmarks: nowhere: no such file or folder"
    ):
        entries("nowhere")


@pytest.mark.parametrize(
    "name", ["b.jsonl", "b.json", "b.txt", "b.parquet", "b.tsv", "b.CSV", "b.jsonl.gz", "b.csv.gz"]
)
def test_texts_are_found_in_every_kind_of_file(tmp_path: Path, name: str):
    rows = [
        {"id": 1, "turns": [{"content": "Hello there."}]},
        {"id": 2, "turns": [{"content": QUESTION}]},
    ]
    match Path(name.removesuffix(".gz")).suffix.lower():
        case ".jsonl":
            written(tmp_path / name, "\n".join(map(json.dumps, rows)))
        case ".json":
            (tmp_path / name).write_text(json.dumps(rows))
        case ".txt":
            (tmp_path / name).write_text(f"Hello there.\n\n{QUESTION}\n")
        case ".csv" | ".tsv":
            comma = "\t" if name.endswith("tsv") else ","
            written(tmp_path / name, f'id{comma}question\n1{comma}Hello\n2{comma}"{QUESTION}"\n')
        case _:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    found = overlap(Benchmarks([tmp_path], 13, 6), f"Look! {QUESTION.upper()} Think first.")
    assert found.startswith(
        f"{tmp_path}/{name}:2: 'which of the four boats in the harbour is the one that will'"
    )


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
        assert overlap(benchmarks, f"{own} {borrowed} {own}").startswith(
            f"{tmp_path}/b.txt:{place + 1}: "
        )
        assert not overlap(benchmarks, own)


def test_images_are_found_in_folders_and_in_parquet(tmp_path: Path):
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    scene(1).save(tmp_path / "pictures" / "deep" / "one.png")
    pq.write_table(
        pa.table({"image": [{"bytes": encoded(scene(2)), "path": "x"}]}), tmp_path / "b.parquet"
    )
    benchmarks = Benchmarks([tmp_path / "pictures", tmp_path / "b.parquet"], 13, 6)
    assert [row.images for row in benchmarks.read] == [1, 1]
    assert benchmarks.image_overlap(image_hash(encoded(scene(1), "JPEG", quality=70))).endswith(
        "one.png:1"
    )
    assert benchmarks.image_overlap(image_hash(encoded(scene(2).resize((160, 120))))).endswith(
        "b.parquet:1"
    )
    assert benchmarks.image_overlap(image_hash(encoded(scene(3)))) == ""


def in_text(image: Image.Image, form: str = "PNG") -> str:
    return base64.b64encode(encoded(image, form)).decode()


def test_images_in_base64_are_found_in_tables_and_in_lists_of_them(tmp_path: Path):
    cells = [in_text(scene(1)), f"data:image/jpeg;base64,{in_text(scene(2), 'JPEG')}"]
    cells.append(str([in_text(scene(3), "WEBP"), in_text(scene(4), "GIF")]))
    with (tmp_path / "b.tsv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerows(
            [("index", "image", "question"), *((i, cell, "What?") for i, cell in enumerate(cells))]
        )
    written(
        tmp_path / "b.jsonl.gz",
        json.dumps({"image": base64.encodebytes(encoded(scene(5))).decode()}),
    )
    benchmarks = Benchmarks([tmp_path], 13, 6)
    assert [(row.texts, row.images, row.videos) for row in benchmarks.read] == [(0, 5, 0)]
    places = [
        benchmarks.image_overlap(image_hash(encoded(scene(seed), "JPEG", quality=80)))
        for seed in range(1, 6)
    ]
    assert [place.rpartition("/")[2] for place in places] == [
        "b.tsv:1",
        "b.tsv:2",
        "b.tsv:3",
        "b.tsv:3",
        "b.jsonl.gz:1",
    ]


def test_videos_and_other_bytes_are_the_same_only_to_the_last_byte(tmp_path: Path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "one.mp4").write_bytes(b"a film")
    pq.write_table(pa.table({"video": [b"another film", b""]}), tmp_path / "films" / "b.parquet")
    benchmarks = Benchmarks([tmp_path / "films"], 13, 6)
    assert benchmarks.read[0].videos == 2
    assert benchmarks.video_overlap(sha256(b"a film").hexdigest()).endswith("films/one.mp4:1")
    assert benchmarks.video_overlap(sha256(b"another film").hexdigest()).endswith("b.parquet:1")
    assert (
        benchmarks.video_overlap(sha256(b"a third").hexdigest())
        == benchmarks.video_overlap(sha256(b"").hexdigest())
        == ""
    )


def test_files_that_are_not_read_are_named(tmp_path: Path):
    for name in (
        "b.txt",
        "b.pkl",
        "deep/b.zip",
        "README.md",
        "LICENSE",
        ".cache/b.lock",
        "b.parquet.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(QUESTION)
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    names = [
        Path(file).relative_to(tmp_path).as_posix()
        for file in Benchmarks([tmp_path], 13, 6).read[0].unread
    ]
    assert names == ["b.parquet.gz", "b.pkl", "deep/b.zip", "linked"]


PICTURE = encoded(scene(1))
DAMAGED = {"cut off": PICTURE[: len(PICTURE) // 2], "junk": b"no picture at all"}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("suffix", [".png", ".JPG"])
def test_a_image_that_cannot_be_read_is_refused(tmp_path: Path, damage: str, suffix: str):
    (tmp_path / "b.txt").write_text(QUESTION)
    (tmp_path / f"hurt{suffix}").write_bytes(DAMAGED[damage])
    says = rf"validate\.benchmarks: {tmp_path}/hurt{suffix}:1: a picture that cannot be read .*; fetch it again"
    with pytest.raises(BadBenchmark, match=says):
        Benchmarks([tmp_path], 13, 6)


def test_a_image_in_a_row_that_is_cut_off_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"image": [PICTURE, PICTURE[:40]]}), tmp_path / "b.parquet")
    written(tmp_path / "b.tsv", f"index\timage\n0\t{base64.b64encode(PICTURE)[:301].decode()}\n")
    for name, row in (("b.parquet", 2), ("b.tsv", 1)):
        with pytest.raises(
            BadBenchmark, match=rf"{tmp_path}/{name}:{row}: a picture that cannot be read"
        ):
            Benchmarks([tmp_path / name], 13, 6)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bomb.png").write_bytes(PICTURE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        BadBenchmark, match=rf"{tmp_path}/bomb\.png:1: .*decompression bomb.*; .*scale it down"
    ):
        Benchmarks([tmp_path / "bomb.png"], 13, 6)


def test_images_scaled_and_recompressed_are_the_same_and_others_are_not():
    hashes = [image_hash(encoded(scene(seed))) for seed in range(20)]
    index = ImageIndex(hashes)
    for seed in range(20):
        image = scene(seed)
        copies = (
            encoded(image, "JPEG", quality=60),
            encoded(image.resize((200, 150), Image.Resampling.LANCZOS), "JPEG", quality=85),
            encoded(image.resize((640, 480)), "WEBP", quality=80),
        )
        assert [index.similar(image_hash(copy), 6) for copy in copies] == [[seed]] * 3


def test_a_changed_digit_is_another_image():
    def sum_(text: str) -> Image.Image:
        image = Image.new("RGB", (224, 224), "white")
        ImageDraw.Draw(image).text((60, 90), text, fill="black", font_size=36)
        return image

    index = ImageIndex([image_hash(encoded(sum_("12 + 30")))])
    assert index.similar(image_hash(encoded(sum_("12 + 30"), "JPEG", quality=80)), 6) == [0]
    assert index.similar(image_hash(encoded(sum_("17 + 30"))), 6) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, "cannot be read .*No such file"),
        ("b.jsonl", b"{", "cannot be read"),
        ("b.json", b"\xff\xfe", "cannot be read"),
        ("b.parquet", b"PAR", "cannot be read"),
        ("b.txt", b"Too short.", "no text of 8 words, no picture and no film"),
        ("b.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-4], "cannot be read"),
        ("b.csv.gz", b"no archive", "cannot be read"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes | None, says: str
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadBenchmark, match=rf"validate\.benchmarks: {tmp_path}/{name}: {says}"):
        Benchmarks([tmp_path / name], 13, 6)


@needs_real
def test_a_real_benchmark_is_found_in_itself_and_not_in_real_dialogues():
    benchmarks = Benchmarks([REAL / "rm_bench"], 13, 6)
    rows = json.loads((REAL / "rm_bench" / "chat_filtered.json").read_text(encoding="utf-8"))
    assert all(
        overlap(benchmarks, text)
        for row in rows
        for text in row["chosen"]
        if len(Words.of(text).spoken) >= 20
    )
    with (REAL / "hh_rlhf" / "harmless-base_test_sample.jsonl").open(encoding="utf-8") as lines:
        assert not any(overlap(benchmarks, json.loads(line)["chosen"]) for line in lines)
