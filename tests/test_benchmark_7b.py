"""The measurement of the 7B runs, and measures what it says."""

import math
from pathlib import Path

import tiny
from PIL import Image

from benchmarks.gpu import score_7b


def test_the_measurement_of_the_7b_runs_at_any_size(tmp_path: Path):
    Image.new("RGB", (56, 28), "teal").save(tmp_path / "picture.png")
    model = score_7b.build(tiny.config(vocab_size=3000), "cpu")
    found = score_7b.measure(model, str(tmp_path / "picture.png"), answers=2, repeats=1)
    # two tiles in a row and the global view, a token each; a newline after either row, and a separator
    picture = 3 + 2 + 1
    assert found["tiles"] == 3
    assert found["tokens"] == 1 + picture + score_7b.PROMPT + 2 * score_7b.ANSWER
    assert math.isfinite(float(found["tokens_per_second"]))
