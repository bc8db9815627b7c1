"""Every reader through `collect`, whatever has happened to its files: each row is kept or quarantined, always."""

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import paint, write
from test_sources_preferences import GOOD
from test_sources_questions import SETS, VALUES, folder_of, png, put

from ixc.data.sources import READERS, Refused, Row
from ixc.metrics import Metrics
from ixc.params import CollectParams, SourceParams
from ixc.stages.collect import stage as collect

FATES = ("rows", "kept", "quarantined", "left_out")
PICTURED = sorted(
    name
    for name, a_set in SETS.items()
    if any(file.endswith((".png", ".jpg")) for file in a_set.media)
)


def three(name: str, folder: Path) -> str:
    """Three good rows of a set in its native form; its reader's name."""
    if name in SETS:
        folder_of(name, folder, {}, {}, {})
        return SETS[name].module
    record = {key: value for key, value in GOOD[name][0].items() if key != "image"}
    if "image" in GOOD[name][0]:
        paint(folder / "red.png")
        record["image"] = "red.png"
    write(folder / "train.jsonl", record, record, record)
    return name


def collected(folder: Path, reader: str) -> tuple[Metrics, list[str]]:
    """The counts of `odd`, which lies in the folder, and why its rows were refused; beside it a sound source."""
    write(folder / "sound" / "a.jsonl", {"prompt": "Why?", "chosen": "So.", "rejected": "No."})
    sources = (
        SourceParams(reader=reader, path="odd", name="odd"),
        SourceParams(reader="preferences", path="sound"),
    )
    names = ("prompts.parquet", "public.parquet", "corpus.parquet", "media", "quarantine.parquet")
    params = CollectParams(root=str(folder), sources=sources)
    metrics = collect.run(params, *(folder / "out" / name for name in names))
    refused = pq.read_table(folder / "out" / "quarantine.parquet").to_pylist()
    return {fate: metrics[f"{fate}/odd"] for fate in FATES}, [row["reason"] for row in refused]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(1) + data[place + 1 :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted(rng.choices(range(len(data) + 1), k=2))
    return data[:end] + data[start:]


def in_another_encoding(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + "é".encode("latin1") + data[place:]


DAMAGE: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    cut,
    flip,
    repeat,
    in_another_encoding,
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([*SETS, *GOOD]),
    st.lists(st.sampled_from(DAMAGE), min_size=1, max_size=3),
    st.integers(0),
)
def test_no_damage_to_a_file_loses_a_row_or_raises(name: str, damage: list[Callable], seed: int):
    rng = random.Random(seed)
    with TemporaryDirectory() as place:
        folder = Path(place)
        reader = three(name, folder / "odd")
        for harm in damage:
            file = rng.choice(
                sorted(path for path in (folder / "odd").rglob("*") if path.is_file())
            )
            if data := file.read_bytes():
                file.write_bytes(harm(rng, data))
        counts, reasons = collected(folder, reader)
        assert counts["rows"] == counts["kept"] + counts["quarantined"] > 0
        assert counts["quarantined"] == len(reasons) and all(reasons)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(GOOD)))
def test_whatever_a_field_of_a_pair_holds_it_is_kept_or_refused(data: st.DataObject, name: str):
    good = {key: value for key, value in GOOD[name][0].items() if key != "image"}
    odd = good | {data.draw(st.sampled_from(sorted(good))): data.draw(VALUES)}
    with TemporaryDirectory() as place:
        if "image" in GOOD[name][0]:
            paint(Path(place) / "red.png")
            good, odd = good | {"image": "red.png"}, odd | {"image": "red.png"}
        write(Path(place) / "train.jsonl", good, odd, good)
        items = list(READERS[name](Path(place), 0))
    rows, refused = ([item for item in items if isinstance(item, kind)] for kind in (Row, Refused))
    assert (len(rows) >= 2, len(rows) + len(refused)) == (True, 3)


def bomb(path: Path, secret: Path) -> None:
    """A PNG of a few bytes that says it has 3.6 billion pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    sized = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(sized))


def link(path: Path, secret: Path) -> None:
    path.unlink()
    path.symlink_to(secret)


@pytest.mark.parametrize("name", PICTURED)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path, secret: path.unlink(), "no such file"),
        (link, "leaves the source's folder"),
        (bomb, "pixels"),
        (lambda path, secret: path.write_bytes(b""), "0 bytes"),
        (lambda path, secret: path.write_bytes(png()[:-20]), "damaged picture"),
    ],
    ids=["missing", "link", "bomb", "empty", "cut"],
)
def test_a_spoilt_image_is_quarantined_whatever_the_set(
    tmp_path: Path, name: str, spoil: Callable[[Path, Path], None], reason: str
):
    reader = three(name, tmp_path / "odd")
    for file in SETS[name].media:
        spoil(tmp_path / "odd" / file, put(tmp_path / "secret.png", png()))
    counts, reasons = collected(tmp_path, reader)
    assert counts["kept"] == 0 < counts["quarantined"] == counts["rows"]
    assert all(reason in each for each in reasons), reasons


@pytest.mark.parametrize("name", ["tulu_if", "ai2d", "aokvqa"])
def test_of_rows_with_one_id_the_first_is_kept(tmp_path: Path, name: str):
    counts, reasons = collected(tmp_path, three(name, tmp_path / "odd"))
    assert 2 * counts["kept"] == counts["quarantined"] > 0
    assert all(reason.startswith("duplicate id; ") for reason in reasons)
