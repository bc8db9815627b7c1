"""The stage `validate` on made-up pairs: how time and memory grow with their number.

Texts of varied length (log-normal, words by Zipf's law), a third of the pairs about one of 200 pictures, a tenth judged
by a model; exact and near repeats, ties and overlong answers are planted. The same seed gives the same pairs.

    python -m benchmarks.validate                  # 10,000, 100,000 and 1,000,000 pairs
    python -m benchmarks.validate 10000
"""

import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ixc.data.samples import Media, Sample, Turn, Verdict, answer, writing
from ixc.params import ValidateParams
from ixc.stages.validate.stage import run

SIZES = (10_000, 100_000, 1_000_000)
PICTURES, VOCABULARY = 200, 30_000
MEDIAN_WORDS, MOST_WORDS = (30, 70), 2000
"""Of prompts and of answers; means are 1.4 times as many."""
RECENT = 2000
"""A repeat is of one of so many pairs before it."""
FILES = ("prompts", "candidates", "judged", "public", "media", "train", "val", "quarantine", "page")


class Writer:
    """Made-up texts."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        lengths = self.rng.integers(2, 10, VOCABULARY)
        self.words = ["".join(self.rng.choice(letters, length)) for length in lengths]
        weights = 1 / np.arange(3, VOCABULARY + 3)
        self.frequencies = np.cumsum(weights / weights.sum())

    def length(self, median: float, spread: float = 0.8) -> float:
        """A number of words."""
        return float(np.clip(self.rng.lognormal(np.log(median), spread), 3, MOST_WORDS))

    def text(self, num_words: float) -> str:
        """Words, and sentences of them."""
        length = int(num_words)
        found = (
            np.searchsorted(self.frequencies, self.rng.random(length))
            .clip(max=VOCABULARY - 1)
            .tolist()
        )
        said = [self.words[place] for place in found]
        return (
            ". ".join(
                " ".join(said[start : start + 14]).capitalize() for start in range(0, length, 14)
            )
            + "."
        )


def pairs(number: int, images: list[Media], seed: int = 0) -> Iterator[Sample]:
    """So many pairs: of 100 three repeat an earlier one, three do so nearly, one is a tie."""
    writer, rng, recent = Writer(seed), random.Random(seed), list[Sample]()
    for index in range(number):
        fate = rng.randrange(100)
        pair = _new(index, writer, rng, images)
        if fate < 6 and recent:
            pair = replace(rng.choice(recent), id=pair.id)
            pair = _edited(pair, writer) if fate < 3 else pair
        elif fate == 6:
            pair = replace(
                pair, verdict=Verdict(winner="tie", judge="model", orders=("chosen", "rejected"))
            )
        if len(recent) < RECENT:
            recent.append(pair)
        else:
            recent[index % RECENT] = pair
        yield pair


def _new(index: int, writer: Writer, rng: random.Random, images: list[Media]) -> Sample:
    shown = rng.randrange(3 * len(images))
    media = images[shown : shown + 1]
    held_out = shown < len(images) // 20 if media else rng.random() < 0.05
    asked, answered = map(writer.length, MEDIAN_WORDS)
    chosen, rejected = (answer(writer.text(writer.length(answered, 0.3))) for _ in range(2))
    return Sample(
        id=f"made/{index}",
        source=f"made {rng.randrange(8)}",
        domain=rng.choice(("instruction", "general", "reasoning", "safety")),
        modality="image" if media else "text",
        split="val" if held_out else "train",
        prompt=(Turn(role="user", content=writer.text(asked)),),
        media=tuple(media),
        chosen=chosen,
        rejected=rejected,
        verdict=Verdict(
            winner="chosen", judge="model", orders=("chosen", "chosen"), reason="It is better."
        ),
    )


def _edited(pair: Sample, writer: Writer) -> Sample:
    """One word of each text is another one."""
    return replace(
        pair,
        prompt=(replace(pair.prompt[0], content=_another(pair.prompt[0].content, writer)),),
        chosen=answer(_another(pair.chosen[0].content, writer)),
        rejected=answer(_another(pair.rejected[0].content, writer)),
    )


def _another(text: str, writer: Writer) -> str:
    words = text.split()
    words[len(words) // 2] = writer.words[writer.rng.integers(VOCABULARY)]
    return " ".join(words)


def make(folder: Path, number: int) -> None:
    """The stage's inputs: a tenth of the pairs as judged ones, the others as ready ones."""
    images = [_image(folder / "media", seed) for seed in range(PICTURES)]
    with ExitStack() as stack:
        put = {name: stack.enter_context(writing(folder / name)) for name in FILES[:4]}
        for index, pair in enumerate(pairs(number, images)):
            if index < number // 10:
                asked = replace(pair, chosen=(), rejected=(), verdict=None)
                put["prompts"](asked)
                put["candidates"](
                    replace(asked, candidates=(pair.chosen[0].content, pair.rejected[0].content))
                )
            put["judged" if index < number // 10 else "public"](pair)


def _image(store: Path, seed: int) -> Media:
    squares = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path = store / "new.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(squares).resize((320, 240), Image.Resampling.NEAREST).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stored = store / digest[:2] / f"{digest}.png"
    stored.parent.mkdir(exist_ok=True)
    path.replace(stored)
    return Media(kind="image", path=f"{digest[:2]}/{digest}.png", sha256=digest)


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time and peak GiB of the stage with all its processes."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(
        [sys.executable, "-m", "benchmarks.validate", str(folder)], stderr=sys.stderr
    )
    while process.poll() is None:
        peak = max(peak, _resident(process))
        time.sleep(0.25)
    if process.returncode:
        sys.exit(f"the stage ended with {process.returncode}")
    times = os.times()
    return time.perf_counter() - start, times.children_user + times.children_system, peak / 2**30


def _resident(process: psutil.Popen) -> int:
    """Bytes in memory of a process and its children; what they share counts once for each."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main(sizes: list[int]) -> None:
    """A line of a Markdown table for each number of pairs."""
    print("| pairs | kept | seconds | seconds of CPU time | peak, GiB |\n|---|---|---|---|---|")
    before = 0.0
    for number in sizes:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), number)
            seconds, cpu, memory = measure(Path(name))
            kept = (Path(name) / "kept").read_text()
        print(
            f"| {number:,} | {kept} | {seconds:.0f} | {cpu - before:.0f} | {memory:.2f} |",
            flush=True,
        )
        before = cpu


if __name__ == "__main__":
    if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir():
        place = Path(sys.argv[1])
        metrics = run(ValidateParams(), *(place / name for name in FILES))
        (place / "kept").write_text(f"{metrics['kept/train'] + metrics['kept/val']:,.0f}")
    else:
        main([int(size) for size in sys.argv[1:]] or list(SIZES))
