"""The report: every section when its data are there, a note where they are damaged, and never a crash."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageDraw

from ixc.data.samples import Domain, Media, Modality, Sample, Turn, answer, write_samples
from ixc.report import STAGES, summary, write_report
from ixc.report.cards import in_turn
from ixc.report.images import SIDE, thumbnail
from ixc.report.record import MADE_BY
from ixc.report.svg import Mark, Row, _running_mean, bars, dots, histogram, lines, ticks
from tasks.workspace import stages

HOSTILE = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"
DOMAINS: dict[Modality, Domain] = {"text": "instruction", "image": "general", "video": "video"}
METRICS: dict[str, dict[str, float]] = {
    "evaluate_rm": {
        "accuracy/all": 0.84,
        "accuracy_low/all": 0.81,
        "accuracy_high/all": 0.87,
        "accuracy/text": 0.9,
        "accuracy/image": 0.8,
        "accuracy/domain:general": 0.79,
        "accuracy_low/domain:general": 0.72,
        "accuracy_high/domain:general": 0.86,
        "accuracy/source:embedded": 0.84,
        "accuracy_swapped_media/image": 0.55,
    },
    "train_ppo": {
        "gold/base": 0.41,
        "gold/chat": 0.63,
        "reward/base": -0.2,
        "reward/chat": 1.1,
        "kl": 2.5,
    }
    | {
        "length/base": 9.5,
        "length/chat": 8.0,
        "gold/base/domain:video": 0.3,
        "gold/chat/domain:video": 0.45,
    },
    "best_of_n": {f"gold/{n}": 0.5 + 0.05 * i for i, n in enumerate((1, 2, 4, 8))}
    | {f"oracle/{n}": 0.5 + 0.12 * i for i, n in enumerate((1, 2, 4, 8))},
    "clean": {
        "auroc/all": 0.9,
        "auroc/hallucination": 0.8,
        "auroc/empty": 0.99,
        "auroc/mismatch": 0.85,
    },
}


class Page(HTMLParser):
    """What a browser would make of a page: its tags and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def image(path: Path, colour: str, size: tuple[int, int] = (320, 200)) -> Media:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((80, 40, 200, 160), fill=colour)
    image.save(path / f"{colour}.png")
    return Media(kind="image", path=f"{colour}.png", sha256="0" * 64)


def video(path: Path) -> Media:
    with av.open(str(path / "film.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(0, 200, 10):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), shade, np.uint8), format="rgb24"
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return Media(kind="video", path="film.mp4", sha256="1" * 64)


def sample(name: str, media: Media | None = None, **changes: Any) -> Sample:
    modality: Modality = media.kind if media else "text"
    values: dict[str, Any] = {
        "prompt": (
            Turn(
                role="user",
                content=("<ImageHere>" if media else "") + "How many circles are there?",
            ),
        ),
        "chosen": answer("I count one."),
        "rejected": answer("I count three."),
        "media": (media,) if media else (),
    }
    return Sample(
        id=name,
        source="embedded",
        domain=DOMAINS[modality],
        modality=modality,
        **(values | changes),
    )


def write_provenance(root: Path) -> None:
    """As `tasks.stage` writes it for each stage."""
    folder = root / "metrics" / "provenance"
    folder.mkdir(parents=True, exist_ok=True)
    for place, stage in enumerate(STAGES):
        content = {"stage": stage, "run": f"{place:x}" * 32, "commit": "c0ffee" * 6 + "c0ff-dirty"}
        content |= {
            "data": {"data/prompts.parquet": f"{place:x}a" * 16},
            "command": f"python -m tasks.{stage} data/x",
        }
        (folder / f"{stage}.json").write_text(json.dumps(content))


def write_validation_summary(root: Path) -> None:
    """As the stage `validate` writes it."""
    content = {
        "failures": [],
        "params": {
            "max_length_ratio": 2.0,
            "min_length_for_ratio": 8,
            "overlap_words": 13,
            "languages": [],
        },
        "unit": "words",
        "total": 83,
        "kept": {"train": 60, "val": 20},
        "dropped": 3,
        "reasons": [
            {
                "name": "identical answers",
                "pairs": 2,
                "advice": "Drop them at the source.",
                "examples": ["drop0: x"],
            },
            {
                "name": "chosen too long",
                "pairs": 1,
                "advice": "Ask for shorter answers.",
                "examples": ["embedded/images/0123: 40 words against 11"],
            },
        ],
        "sources": {
            "embedded": {"kept": 80, "identical answers": 2, "chosen too long": 1},
            "a_source_with_a_long_name": {"kept": 3},
        },
        "lengths": [
            {"source": "embedded", "pairs": 83, "too_long": 1, "before": 1.1, "after": 1.0}
        ],
        "ratios": {"before": [[0.5, 20], [1.0, 40], [4.0, 3]], "after": [[0.5, 20], [1.0, 40]]},
        "languages": [["en", 70]],
        "untold": 10,
        "benchmarks": [
            {
                "path": "infra/benchmarks",
                "texts": 10,
                "images": 0,
                "videos": 0,
                "unread": ["films/notes.pkl"],
            }
        ],
        "tables": {
            "Prompts": [
                {"says": "Ids are unique", "status": "passed", "critical": False, "detail": ""}
            ]
        },
    }
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "validation.json").write_text(json.dumps(content))


def write_removed(samples: list[Sample], rewards: list[float], root: Path) -> None:
    """What `clean` removes: the rows with two columns of its own."""
    path = root / "data" / "removed.parquet"
    write_samples(samples, path)
    table = pq.read_table(path)
    for name, values in (("clean_reward", rewards), ("clean_reason", ["low"] * len(samples))):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def write_scores(rng: np.random.Generator, root: Path) -> None:
    """What `clean` says of every row of a corpus of 120."""
    kinds = ["", "hallucination", "empty", "mismatch"] * 30
    columns = {
        "domain": ["general", "instruction"] * 60,
        "fate": ["kept"] * 80 + ["removed"] * 38 + ["unscored"] * 2,
        "reward": [*rng.normal(1, 1, 118).tolist(), None, None],
        "planted": kinds,
        "planted_reward": [float(rng.normal(-2)) if kind else None for kind in kinds],
    }
    pq.write_table(pa.table(columns), root / "data" / "scored" / "corpus.parquet")


def write_metrics(root: Path, stages: dict[str, dict[str, float]]) -> None:
    (root / "metrics").mkdir(exist_ok=True)
    for stage, metrics in stages.items():
        (root / "metrics" / f"{stage}.json").write_text(json.dumps(metrics))


def write_curve(root: Path, stage: str, columns: dict[str, list[float]]) -> None:
    folder = root / "metrics" / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    body = "".join(
        f"{step},{','.join(map(str, row))}\n"
        for step, row in enumerate(zip(*columns.values(), strict=True))
    )
    (folder / f"{stage}.csv").write_text(f"step,{','.join(columns)}\n{body}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole run: made-up numbers, real files."""
    store, rng = tmp_path / "data" / "media", np.random.default_rng(0)
    store.mkdir(parents=True)
    media = (None, image(store, "red"), image(store, "blue"), video(store))
    make = [(f"{index}", media[index % 4]) for index in range(80)]
    write_samples([sample(*one) for one in make], tmp_path / "data" / "prompts.parquet")
    write_samples(
        [sample(*one) for one in make[:60]], tmp_path / "data" / "pairs" / "train.parquet"
    )
    pairs = [sample(*one, rewards=tuple(rng.normal((1, -1), 1.2))) for one in make]
    write_samples(pairs[:20], tmp_path / "data" / "pairs" / "val.parquet")
    write_samples(pairs, tmp_path / "data" / "scored" / "val.parquet")
    drawn = [
        sample(
            *one,
            candidates=("one", "two"),
            rewards=tuple(rng.normal((1, 0), 1)),
            meta={"correct": [1, 0]},
        )
        for one in make[:24]
    ]
    write_samples(drawn, tmp_path / "data" / "scored" / "best_of_n.parquet")
    write_removed([sample(*one) for one in make], rng.normal(-2, 1, 80).tolist(), tmp_path)
    write_scores(rng, tmp_path)
    (tmp_path / "data" / "quarantine").mkdir()
    write_samples(
        [sample(f"drop{index}", media[index]) for index in range(3)],
        tmp_path / "data" / "judged.parquet",
    )
    reasons = ("identical answers", "identical answers", HOSTILE)
    columns = {"id": ["drop0", "drop1", "drop2"], "reason": list(reasons)}
    columns |= {
        name: [f"{name} {place}" for place in range(3)]
        for name in ("source", "split", "detail", "advice")
    }
    refused = pa.table(columns)
    pq.write_table(refused, tmp_path / "data" / "quarantine" / "validate.parquet")
    write_metrics(tmp_path, METRICS)
    fall = [0.7 * 0.99**step + rng.normal(0, 0.03) for step in range(120)]
    write_curve(tmp_path, "train_rm", {"loss": fall, "accuracy": [1 - loss / 1.4 for loss in fall]})
    write_curve(
        tmp_path, "train_ppo", {"reward": [step / 50 for step in range(40)], "kl": [0.1] * 40}
    )
    warm = [2e-3 * min(1.0, (step + 1) / 6) * (1 - step / 130) for step in range(120)]
    write_curve(tmp_path, "bootstrap", {"loss": fall, "learning_rate": warm})
    write_provenance(tmp_path)
    write_validation_summary(tmp_path)
    return tmp_path


def page(root: Path) -> Page:
    return Page(write_report(root).read_text(encoding="utf-8"))


def sections(found: Page) -> list[str | None]:
    return [attributes["id"] for tag, attributes in found.tags if tag == "section"]


def test_a_whole_run_has_every_section_and_no_note(root: Path) -> None:
    found = page(root)
    assert sections(found) == (
        [
            "headline",
            "data",
            "base",
            "reward",
            "accuracy",
            "ppo",
            "best",
            "cleaning",
            "quarantine",
            "reading",
        ]
    )
    assert "Not shown" not in found.text
    assert "84.0\u202f%" in found.text and "from 41.0\u202f%" in found.text


def test_what_came_in_and_what_was_left_out_is_shown_by_source(tmp_path: Path) -> None:
    fates = {"rows": 1200, "kept": 700, "quarantined": 200, "left_out": 300}
    collected = {f"{fate}/web": float(count) for fate, count in fates.items()}
    write_metrics(
        tmp_path, {"collect": {**collected, "left_out/domain/general": 300.0, "unread/bought": 1.0}}
    )
    found = page(tmp_path)
    assert "web1,200700200300" in "".join(found.text.split())
    assert "bought (left out by its licence, not read)" in found.text
    assert (
        "web, quarantined: 200" in found.text and "web, left out by the mixture: 300" in found.text
    )


ONE_JUDGE = {
    "consistency": 0.8,
    "position_bias": 0.25,
    "length_bias": -0.5,
    "pairs": 1200,
    "spent": 3.456,
}


def test_what_the_judges_are_worth_is_shown_where_models_judged(tmp_path: Path) -> None:
    judged = {
        f"llm/{name}/{key}": value
        for name in ("gpt", "qwen", "odd")
        for key, value in ONE_JUDGE.items()
    }
    kappas = {"gpt/qwen": 0.71, "gpt/odd": 0.02, "qwen/odd": -0.03}
    pairs = {f"llm/cohen_kappa/{names}": kappa for names, kappa in kappas.items()}
    together = {"llm/agreement": 0.5, "llm/fleiss_kappa": 0.23, "llm/cost": 1.0, "pairs/all": 9.0}
    write_metrics(tmp_path, {"judge": {**judged, **pairs, **together}})
    found = page(tmp_path)
    assert sections(found) == ["judges", "reading"]
    text = "".join(found.text.split())
    assert "gpt1,20080.0%+0.25-0.503.46" in text and text.count("1,200") == 3
    assert "all:Fleiss'kappa0.23" in text and "gptandodd:Cohen'skappa0.02" in text


def test_a_judge_that_has_not_judged_yet_has_dashes(tmp_path: Path) -> None:
    write_metrics(
        tmp_path, {"judge": {"llm/gpt/pairs": 0.0, "llm/gpt/spent": 0.0, "pairs/all": 0.0}}
    )
    assert "gpt0–––0.00" in page(tmp_path).text


def test_verifiers_alone_need_no_section_on_judges(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"judge": {"llm/requests": 0.0, "llm/cost": 0.0, "pairs/all": 90.0}})
    assert "judges" not in sections(page(tmp_path))


def test_the_page_needs_nothing_but_itself(root: Path) -> None:
    found = page(root)
    addresses = [
        str(attributes.get(name))
        for _, attributes in found.tags
        for name in ("src", "href")
        if name in attributes
    ]
    assert addresses and all(
        address.startswith(("data:image/jpeg;base64,", "#", "pairs.html", "validation.html"))
        for address in addresses
    )
    html = (root / "reports" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)


def test_what_became_of_the_corpus_is_told_apart_from_what_was_measured_in_its_copy(
    root: Path,
) -> None:
    text = "".join(page(root).text.split())
    assert "all80382" in text, "kept, removed, unscored"
    assert "Measuredinacopyofthecorpus,ashareofwhichwasspoiltonpurpose" in text
    assert "mismatch––85.0%" in text


def test_lengths_ties_calibration_and_exchanged_pairs_stand_beside_the_accuracy(root: Path) -> None:
    numbers = {
        "pairs/all": 4227,
        "prompts/all": 1658,
        "ties/all": 3,
        "ece/all": 0.05,
        "length_only/all": 0.55,
    }
    numbers |= {
        "words_chosen/all": 21.5,
        "words_rejected/all": 18,
        "pairs/image": 900,
        "pairs_swapped/image": 890,
    }
    write_metrics(root, {"evaluate_rm": METRICS["evaluate_rm"] | numbers})
    text = "".join(page(root).text.split())
    assert "all4,2271,65884.0%55.0%5.0%321.518––" in text
    assert "image900–80.0%–––––89055.0%" in text
    assert "Thepicturepairs(890of900)withpicturesexchanged" in text
    assert "Calibration" in text and "longerwins" in text


def test_removed_samples_are_shown_with_their_images_and_domains(root: Path) -> None:
    found = page(root)
    groups = [
        attributes["data-group"]
        for tag, attributes in found.tags
        if tag == "article" and attributes["data-group"]
    ]
    assert len(groups) == 40 and set(groups) == set(DOMAINS.values())
    assert {groups.count(domain) for domain in DOMAINS.values()} == {13, 14}
    pictured = [attributes for tag, attributes in found.tags if tag == "img"]
    assert 30 <= len(pictured) <= 60


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = (Turn(role="user", content=HOSTILE),)
    write_removed([sample("1", chosen=answer(HOSTILE), prompt=hostile)], [-1.0], tmp_path)
    write_curve(tmp_path, "train_rm", {HOSTILE.replace(",", ""): [0.5, 0.4]})
    found = page(tmp_path)
    assert found.count("script") == 1, "only the page's own"
    assert found.count("img") == 0
    assert found.text.count(HOSTILE) >= 3, "question, answer and curve, readable"


def test_an_empty_folder_is_a_page_that_says_so(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert sections(found) == ["reading"]
    assert "no stage has written its results" in found.text


class Bare(HTMLParser):
    """The texts with digits that stand in no part of a page that says where its numbers come from."""

    VOID = {"meta", "link", "img", "br", "input", "hr"}

    def __init__(self, html: str, sections: bool) -> None:
        """With `sections`, each has to say it for itself, and the header too."""
        super().__init__()
        self.kinds = {"section", "header", "body"} if sections else {"body"}
        self.parts: list[tuple[list[str], set[str]]] = []
        """Open parts: their texts with digits, and the kinds of what they say of where these come from."""
        self.open: list[str] = []
        self.bare: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in self.kinds:
            self.parts.append(([], set()))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass
        if tag in self.kinds:
            texts, told = self.parts.pop()
            self.bare += texts if told != {"run", "commit", "data", "command"} else []

    def handle_data(self, data: str) -> None:
        if not self.parts or self.open[-1] in ("script", "style", "title"):
            return
        texts, told = self.parts[-1]
        told.update(
            word
            for word in ("run", "commit", "data", "command")
            if re.search(rf"\b{word}\b", data) and "details" in self.open
        )
        if re.search(r"\d", data):
            texts.append(data.strip())


@pytest.mark.parametrize("name", ["index.html", "pairs.html", "validation.html"])
def test_every_number_says_where_it_comes_from(root: Path, name: str) -> None:
    write_report(root)
    html = (root / "reports" / name).read_text(encoding="utf-8")
    bare = Bare(html, sections=name == "index.html").bare
    assert [text for text in bare if "%" not in text] == [], (
        "the key to the terms has its 50 % and 100 %"
    )
    for text in ("4" * 32, "c0ffee" * 6 + "c0ff-dirty", "python -m tasks.validate data/x"):
        assert text in Page(html).text
    for path in (root / "metrics" / "provenance").iterdir():
        path.unlink()
    write_report(root)
    html = (root / "reports" / name).read_text(encoding="utf-8")
    assert len(Bare(html, sections=name == "index.html").bare) > 5, (
        "the test would see a number without"
    )


def test_a_section_names_the_stages_whose_results_it_shows(root: Path) -> None:
    write_report(root)
    html = (root / "reports" / "index.html").read_text(encoding="utf-8")
    found = {}
    for part in html.split("<section id=")[1:]:
        found[part.split('"')[1]] = re.findall(r"<summary>(\w+): run", part)
    assert found == {
        "headline": ["evaluate_rm", "train_ppo", "best_of_n", "clean"],
        "data": ["collect", "validate"],
        "base": ["bootstrap"],
        "reward": ["train_rm"],
        "accuracy": ["evaluate_rm"],
        "ppo": ["train_ppo"],
        "best": ["best_of_n"],
        "cleaning": ["clean"],
        "quarantine": ["validate"],
        "reading": [],
    }


def test_numbers_without_a_record_say_how_to_get_one(root: Path) -> None:
    (root / "metrics" / "provenance" / "clean.json").write_text("{")
    assert "dvc repro -f -s clean" in " ".join(page(root).text.split())


def test_each_table_of_the_graph_has_its_stage() -> None:
    graph = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
    outs = {
        (next(iter(out)), stage) for stage, told in graph.items() for out in told.get("outs", [])
    }
    tables = {
        (path[5:-8], stage)
        for path, stage in outs
        if path.startswith("data/") and path.endswith(".parquet")
    }
    assert set(MADE_BY.items()) == tables
    assert {(f"metrics/provenance/{stage}.json", stage) for stage in STAGES} <= outs


def test_equal_answers_are_one_line_on_a_card(root: Path) -> None:
    answers = ("four", "four", "one", "four", "five", "four")
    rewards = (1.0, 1.0, 3.0, 1.0, 0.0, 1.0)
    drawn = sample("1", candidates=answers, rewards=rewards, meta={"correct": [0, 0, 1, 0, 0, 0]})
    write_samples([drawn], root / "data" / "scored" / "best_of_n.parquet")
    html = write_report(root).read_text(encoding="utf-8")
    card = next(part for part in html.split("<article") if "1 of 6 right" in part).split(
        "</article>"
    )[0]
    texts = re.findall(r'<div class="text">(.*?)</div>', card)
    assert texts == ["one", "four", "five"] and "wrong, 4 times" in card


def test_a_prompt_with_many_pairs_is_one_example(root: Path) -> None:
    pairs = [sample(f"{i}", rewards=(5.0 + i, 0.0)) for i in range(6)]
    other = (Turn(role="user", content="Which colour is it?"),)
    write_samples(
        [*pairs, sample("x", rewards=(1.0, 0.0), prompt=other)],
        root / "data" / "scored" / "val.parquet",
    )
    html = write_report(root).read_text(encoding="utf-8")
    assert re.findall(r"margin ([+\d.]+)", html) == ["+10.00", "+1.00"]


def test_a_damaged_summary_of_the_validation_is_a_note(root: Path) -> None:
    for text in ("{", "[]", '{"total": 3}'):
        (root / "reports" / "validation.json").write_text(text)
        assert "Not shown: The validation, in full" in page(root).text


def browsed(root: Path, max_pairs: int = 200) -> Page:
    write_report(root, max_pairs)
    return Page((root / "reports" / "pairs.html").read_text(encoding="utf-8"))


def articles(found: Page) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in found.tags if tag == "article"]


def test_the_pairs_can_be_browsed_kept_and_dropped(root: Path) -> None:
    found = browsed(root)
    outcomes = [one["data-outcome"] for one in articles(found)]
    assert (
        outcomes.count("kept") == 80
        and outcomes.count("identical answers") == 2
        and outcomes.count(HOSTILE) == 1
    )
    assert (
        "Dropped, identical answers (detail 0)" in " ".join(found.text.split())
        and "advice 0" in found.text
    )
    assert {one["data-split"] for one in articles(found)} == {"train"}
    assert [attributes["name"] for tag, attributes in found.tags if tag == "select"] == (
        ["source", "domain", "modality", "split", "outcome"]
    )
    assert ("a", {"href": "pairs.html"}) in page(root).tags


def test_the_page_of_pairs_needs_nothing_but_itself_and_runs_nothing_of_the_data(
    root: Path,
) -> None:
    found = browsed(root)
    html = (root / "reports" / "pairs.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert found.count("script") == 1 and HOSTILE in found.text
    assert all(
        str(a["src"]).startswith("data:image/jpeg;base64,") for tag, a in found.tags if tag == "img"
    )


def test_the_page_of_pairs_is_bounded_and_leaves_no_kind_out(root: Path) -> None:
    shown = articles(browsed(root, 6))
    assert len(shown) == 6
    assert {one["data-modality"] for one in shown} == {"text", "image", "video"}
    assert {"kept", "identical answers"} < {one["data-outcome"] for one in shown}
    (root / "reports" / "pairs.html").unlink()
    write_report(root, 0)
    assert not (root / "reports" / "pairs.html").exists()


def test_damaged_pairs_are_a_note_on_the_report(root: Path) -> None:
    (root / "data" / "pairs" / "train.parquet").write_bytes(b"broken")
    assert "Not shown: The pairs, to browse" in page(root).text


def test_a_section_appears_with_its_stage(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"clean": METRICS["clean"]})
    assert sections(page(tmp_path)) == ["headline", "cleaning", "reading"]
    write_metrics(tmp_path, {"train_ppo": METRICS["train_ppo"]})
    assert sections(page(tmp_path)) == ["headline", "ppo", "cleaning", "reading"]


@pytest.mark.parametrize(
    ("name", "still_there"),
    [
        ("data/scored/val.parquet", "Accuracy on held-out pairs"),
        ("data/removed.parquet", "Accuracy on held-out pairs"),
        ("data/scored/best_of_n.parquet", "Right answers against N"),
        ("data/prompts.parquet", "Accuracy on held-out pairs"),
        ("data/quarantine/validate.parquet", "Removed samples"),
        ("metrics/train_ppo.json", "Accuracy on held-out pairs"),
        ("metrics/curves/train_rm.csv", "Removed samples"),
    ],
)
def test_a_damaged_file_is_a_note_and_the_rest_remains(
    root: Path, name: str, still_there: str
) -> None:
    (root / name).write_bytes(b"step,loss\n\xff\x00broken")
    html = write_report(root).read_text(encoding="utf-8")
    assert "Not shown: " in Page(html).text
    assert str(root) not in html
    assert still_there in Page(html).text


def test_a_file_without_the_expected_columns_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "data" / "scored").mkdir(parents=True)
    pq.write_table(pa.table({"other": [1]}), tmp_path / "data" / "scored" / "val.parquet")
    assert "Not shown: How far apart the rewards" in page(tmp_path).text


def test_a_missing_image_is_named_on_its_card(tmp_path: Path) -> None:
    lost = Media(kind="image", path="ab/lost.png", sha256="0" * 64)
    write_removed([sample("1", lost)], [-1.0], tmp_path)
    assert "cannot show data/media/ab/lost.png" in page(tmp_path).text


def test_the_same_inputs_give_the_same_page(root: Path) -> None:
    assert write_report(root).read_bytes() == write_report(root).read_bytes()


def test_the_page_stays_small(root: Path) -> None:
    assert write_report(root).stat().st_size < 1_000_000


def test_summary_has_exactly_the_agreed_keys(root: Path) -> None:
    (root / "metrics" / "summary.json").write_text(
        '{"wall_s": 700, "rm": {"accuracy": {"all": 0.1}}}'
    )
    assert summary(root) == {
        "rm": {
            "accuracy": {"all": 0.84, "text": 0.9, "image": 0.8},
            "accuracy_swapped_media": {"image": 0.55},
        },
        "best_of_n": {
            "gold": {n: METRICS["best_of_n"][f"gold/{n}"] for n in "1248"},
            "oracle": {n: METRICS["best_of_n"][f"oracle/{n}"] for n in "1248"},
        },
        "ppo": {
            "gold": {"base": 0.41, "chat": 0.63},
            "reward": {"base": -0.2, "chat": 1.1},
            "kl": 2.5,
            "length": {"base": 9.5, "chat": 8.0},
        },
        "clean": {"auroc": {"all": 0.9, "hallucination": 0.8, "empty": 0.99, "mismatch": 0.85}},
        "wall_s": 700,
    }


def test_summary_of_nothing_is_empty(tmp_path: Path) -> None:
    assert summary(tmp_path) == {}


def test_summary_names_the_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "clean.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics/clean\.json: no JSON"):
        summary(tmp_path)


def test_a_running_mean_follows_a_warm_up_from_its_first_step() -> None:
    ramp = [(float(step), 2.0 * step) for step in range(100)]
    np.testing.assert_allclose(
        _running_mean(ramp), ramp
    )  # the mean of a straight line is that line, to its ends
    bent = [(float(step), min(step, 20) / 20) for step in range(400)]
    smooth = _running_mean(bent)
    assert smooth[0] == (0.0, 0.0) and smooth[-1] == bent[-1]
    # in the middle, of 41 points: step 20 has 20 below the bend, with the mean 0.475, and 21 at 1
    assert smooth[20][1] == pytest.approx((20 * 0.475 + 21) / 41)


def test_the_stages_are_those_of_the_graph() -> None:
    assert list(STAGES) == stages(Path(__file__).parents[1])


def test_no_torch_is_needed() -> None:
    code = "import sys, ixc.report; print([name for name in ('torch', 'pandas', 'av') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_thumbnail_keeps_its_shape_within_the_side(tmp_path: Path) -> None:
    medium = image(tmp_path, "green", (600, 300))
    assert decoded(thumbnail(tmp_path / medium.path, "image")).size == (SIDE, SIDE // 2)


def test_a_video_is_a_strip_of_three_frames(tmp_path: Path) -> None:
    strip = decoded(thumbnail(tmp_path / video(tmp_path).path, "video"))
    # 20 frames, of which 0, 8 and 16 are shown: 3 x 64 pixels and two gaps of 3, growing brighter
    assert strip.size == (198, 48)
    shades = [int(np.asarray(strip.convert("L"))[24, x]) for x in (32, 99, 166)]
    assert shades == pytest.approx([0, 80, 160], abs=12)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decoded(thumbnail(tmp_path / "clear.png", "image")).getpixel((5, 5)) == (255, 255, 255)


def test_no_kind_crowds_out_another() -> None:
    kinds = "aaaaaaab"
    assert sorted(kinds[index] for index in in_turn(range(8), kinds.__getitem__, 3)) == [
        "a",
        "a",
        "b",
    ]


def test_ticks_are_round() -> None:
    assert ticks(0.13, 0.97) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(-3, 3, 3) == [-2, 0, 2]
    assert ticks(7, 7) == [7]


def test_a_histogram_shows_shares_of_each_group() -> None:
    # three of four values fall into the first of two bins, and the single other one into the second
    svg = histogram({"many": [0, 0, 0, 10], "one": [10]}, label="h", x_label="x", num_bins=2)
    assert re.findall(r"<title>(\w+), [^:]*: ([\d.]+)", svg) == [
        ("many", "75.0"),
        ("many", "25.0"),
        ("one", "100.0"),
    ]


def test_bars_are_stacked_and_end_in_their_total() -> None:
    svg = bars({"general": {"text": 30, "image": 10}}, label="b")
    (x0, width0), (x1, width1) = re.findall(
        r'class="bar c\d" x="([\d.]+)" y="10" width="([\d.]+)"', svg
    )
    assert float(x1) == pytest.approx(float(x0) + float(width0), abs=0.11)
    assert float(width0) == pytest.approx(3 * float(width1), abs=0.3)
    assert ">40</text>" in svg


def test_dots_tell_their_interval() -> None:
    svg = dots([Row("all", (Mark("plain", 0.8, 0.7, 0.9),))], label="d", reference=0.5)
    assert "all, plain: 80.0\u202f% (70.0\u202f% to 90.0\u202f%)" in svg


@pytest.mark.parametrize("points", [[], [(0.0, float("nan"))]])
def test_nothing_to_draw_draws_nothing(points: list[tuple[float, float]]) -> None:
    assert lines({"a": points}, label="l", x_label="x") == ""


def test_a_constant_and_a_long_curve_are_drawn() -> None:
    constant = lines({"a": [(0.0, 2.0), (1.0, 2.0)]}, label="l", x_label="x")
    assert "nan" not in constant and constant.count("<path") == 1
    long = lines(
        {"a": [(float(i), float(i % 7)) for i in range(100_000)]},
        label="l",
        x_label="x",
        smooth=True,
    )
    assert len(long) < 30_000
