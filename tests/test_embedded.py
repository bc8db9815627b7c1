"""The embedded corpus: its answers are right, its wrong ones wrong, and validation is held out."""

import hashlib
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ixc.data.sources import Row, embedded
from ixc.data.sources.embedded import read
from ixc.data.sources.embedded.drawing import COLOURS, GROUNDS
from ixc.data.sources.embedded.videos import FPS, FRAMES
from ixc.data.videos import read_frames
from ixc.verifiers.rules import check


def corpus(seed: int, share: int) -> list[Row]:
    """One group in `share` of the corpus; a group does not depend on how many there are."""
    makers = {
        kind: (make, count // share, ready)
        for kind, (make, count, ready) in embedded._MAKERS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_MAKERS", makers)
        return [row for row in read(Path(), seed) if isinstance(row, Row)]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A quarter of the corpus."""
    return corpus(0, 4)


def test_a_quarter_has_2000_prompts_over_five_domains_and_three_modalities(rows: list[Row]):
    assert sum(row.gold is not None for row in rows) >= 2000
    assert {row.domain for row in rows} == {
        "instruction",
        "general",
        "text_rich",
        "reasoning",
        "video",
    }
    assert {tuple(file.kind for file in row.media) for row in rows} == {(), ("image",), ("video",)}
    assert {row.split for row in rows} == {"train", "val"}
    assert len({row.id for row in rows}) == len(rows)


def test_every_reference_answer_is_right_and_every_wrong_one_wrong(rows: list[Row]):
    known = [row for row in rows if row.gold is not None]
    assert [row.id for row in known if row.gold and check(row.gold, row.gold.answer) != 1] == []
    assert [
        (row.id, text)
        for row in known
        for text in row.wrong
        if row.gold and check(row.gold, text) != 0
    ] == []
    assert all(row.wrong for row in known)


def test_rows_without_a_known_answer_are_ready_pairs(rows: list[Row]):
    pairs = [row for row in rows if row.gold is None]
    assert len(pairs) > 100
    assert all(row.chosen and row.rejected and row.chosen != row.rejected for row in pairs)


def test_equal_seeds_give_equal_rows_and_bytes_and_another_seed_others():
    first = corpus(0, 100)
    assert first == corpus(0, 100) != corpus(1, 100)
    assert {file.kind for row in first for file in row.media} == {"image", "video"}


def test_a_row_does_not_depend_on_how_many_there_are(rows: list[Row]):
    by_id = {row.id: row for row in rows}
    assert all(by_id[row.id] == row for row in corpus(0, 100))


def test_no_image_of_validation_is_in_training_and_a_group_stays_together(rows: list[Row]):
    splits: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        splits[row.group].add(row.split)
        for file in row.media:
            splits[hashlib.sha256(file.data or b"").hexdigest()].add(row.split)
    assert all(len(names) == 1 for names in splits.values())


def image(row: Row) -> Image.Image:
    return Image.open(io.BytesIO(row.media[0].data or b""))


def things(row: Row) -> list[object] | None:
    """What validation holds out, as far as it can be read off a row."""
    text, kind = row.prompt[0].content, row.group.split("-")[0]
    assert row.gold is not None
    if kind == "instruction":
        return [text]
    if kind == "sum":
        known = re.match(r"What|Add|Take|Calculate|There|\d", text)
        wording = re.sub(r"\d", "bare", known.group()) if known else "story"
        operation = "-" if re.search(r" - |Take|sells|takes", text) else "+"
        return [wording, operation, *re.findall(r"\d+", text)]
    if kind == "count":
        colours = {colour for _, colour in image(row).getcolors(99999) or []}
        [colour] = [name for name, colour in COLOURS.items() if colour in colours]
        shape = re.search(r"square|triangle|cross|ring", text)
        return [shape and shape.group(), colour, row.gold.value, image(row).getpixel((0, 0))]
    return None


def test_no_combination_of_validation_is_in_training(rows: list[Row]):
    seen: dict[tuple[object, ...], set[str | None]] = defaultdict(set)
    for row in rows:
        if row.gold is not None and (combination := things(row)) is not None:
            seen[row.group.split("-")[0], *combination].add(row.split)
    assert {kind for kind, *_ in seen} == {"instruction", "sum", "count"}
    assert [combination for combination, splits in seen.items() if len(splits) > 1] == []


def test_a_thing_in_a_corner_of_a_canvas_is_in_one_split(rows: list[Row]):
    scenes: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.group.startswith("scene") and row.gold is not None:
            scenes[row.group].append(row)
    seen: dict[tuple[object, ...], set[str | None]] = defaultdict(set)
    for group in scenes.values():
        answers = [row.gold.answer for row in group if row.gold]
        thing = next(a for a in answers if re.fullmatch(r"an? \w+ \w+( and .*)?\.", a))
        place = next(
            m.group(1) for a in answers if (m := re.fullmatch(r"The \w+ is at the (.*)\.", a))
        )
        if " and " not in thing:
            drawn = image(group[0])
            seen[thing, place, drawn.size, drawn.getpixel((0, 0))].add(group[0].split)
    assert len(seen) > 50
    assert all(len(splits) == 1 for splits in seen.values())


def test_videos_are_seen_once_a_second_and_show_their_event(rows: list[Row], tmp_path: Path):
    frames_of: dict[str, list[Image.Image]] = {}
    for row in rows:
        event = row.gold.value if row.domain == "video" and row.gold else "red"
        if event not in frames_of and event not in COLOURS:
            path = tmp_path / f"{row.id}.mp4"
            path.write_bytes(row.media[0].data or b"")
            frames_of[event] = read_frames(path)
    assert set(frames_of) == {
        "moves left",
        "moves right",
        "moves up",
        "moves down",
        "grows",
        "shrinks",
    }
    for event, frames in frames_of.items():
        assert len(frames) == FRAMES // FPS == 4
        start, end = (box(frame) for frame in (frames[0], frames[-1]))
        moved = (end[0] - start[0], end[1] - start[1], end[2] - start[2])
        across, down, wider = (round(x / 8) for x in moved)
        match event:
            case "moves left":
                assert across < 0 == down
            case "moves right":
                assert across > 0 == down
            case "moves up":
                assert down < 0 == across
            case "moves down":
                assert down > 0 == across
            case "grows":
                assert wider > 0
            case _:
                assert wider < 0


def box(frame: Image.Image) -> tuple[float, float, float]:
    """Centre and width of what is not ground, pixels; videos are compressed, so the ground is not even."""
    ground = min(GROUNDS, key=lambda g: distance(g, frame.getpixel((1, 1))))
    width, height = frame.size
    places = ((x, y) for x in range(width) for y in range(height))
    inside = [place for place in places if distance(frame.getpixel(place), ground) > 120]
    xs, ys = [x for x, _ in inside], [y for _, y in inside]
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs)


def distance(left: Any, right: Any) -> int:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True))
