"""The stage `validate`: which pairs go, why, and when the stage itself must fail."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_media import video
from tokenizers import Tokenizer, models, pre_tokenizers

from ixc.data.reasons import ADVICE
from ixc.data.samples import (
    BadRecord,
    Media,
    Sample,
    Turn,
    Verdict,
    answer,
    copying,
    open_table,
    read_batches,
    read_samples,
    write_samples,
)
from ixc.metrics import Metrics
from ixc.params import BadParams, ValidateParams
from ixc.report.record import Record
from ixc.report.validation import as_page
from ixc.stages.validate import stage as validate
from ixc.stages.validate import workers
from ixc.stages.validate.__main__ import main as check_main
from ixc.stages.validate.contamination import BadBenchmark, Benchmarks
from ixc.stages.validate.expectations import run_checks, suite
from ixc.stages.validate.facts import Observer, frame, table_of
from ixc.stages.validate.rules import objection, ruler, words
from ixc.stages.validate.stage import ValidationFailed

LENIENT = ValidateParams(min_pairs=1, max_rejected_share=1.0)
OBSERVER = Observer(LENIENT, Benchmarks((), 13, 0))


def pair(id: str, chosen: str = "Yes.", rejected: str = "No.", **changes: object) -> Sample:
    """A pair that nothing speaks against."""
    sample = Sample(
        id=id,
        source="made",
        domain="general",
        modality="text",
        prompt=(Turn(role="user", content=f"Is it {id}?"),),
        chosen=answer(chosen),
        rejected=answer(rejected),
        verdict=Verdict(winner="chosen", judge="source"),
    )
    return replace(sample, **changes)


@dataclass
class Stage:
    """The stage's files below a folder."""

    folder: Path

    def run(
        self,
        pairs: Sequence[Sample],
        params: ValidateParams = LENIENT,
        judged: Sequence[Sample] = (),
        prompts: Sequence[Sample] = (),
        candidates: Sequence[Sample] = (),
    ) -> Metrics:
        inputs = {"prompts": prompts, "candidates": candidates, "judged": judged, "public": pairs}
        for name, samples in inputs.items():
            write_samples(samples, self.folder / f"{name}.parquet")
        names = (
            "prompts.parquet",
            "candidates.parquet",
            "judged.parquet",
            "public.parquet",
            "media",
            "train.parquet",
            "val.parquet",
            "q.parquet",
            "summary.json",
        )
        return validate.run(params, *(self.folder / name for name in names))

    def kept(self, split: str) -> list[str]:
        return [sample.id for sample in read_samples(self.folder / f"{split}.parquet")]

    def reasons(self) -> dict[str, str]:
        return {
            row["id"]: row["reason"] for row in pq.read_table(self.folder / "q.parquet").to_pylist()
        }

    def page(self) -> str:
        """What `ixc.report` makes of the summary."""
        content = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return as_page(content, Record(self.folder))

    def image(self, colour: str) -> Media:
        path = self.folder / "new.png"
        Image.new("RGB", (4, 4), colour).save(path)
        return self.stored(path)

    def stored(self, path: Path) -> Media:
        digest = sha256(path.read_bytes()).hexdigest()
        name = f"{digest[:2]}/{digest}{path.suffix}"
        (self.folder / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(self.folder / "media" / name)
        return Media(kind="image", path=name, sha256=digest)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "media").mkdir()
    return Stage(tmp_path)


TRAIN, VAL = pair("good"), pair("held", split="val")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"chosen": ()}, "no answer"),
        ({"rejected": answer("  ")}, "no answer"),
        (
            {"chosen": (*answer("It is red."), Turn(role="user", content="Are you sure?"))},
            "no answer",
        ),
        ({"rejected": answer("Yes. ")}, "identical answers"),
        ({"verdict": None}, "no verdict"),
        ({"verdict": Verdict(winner="tie", judge="m")}, "tie"),
        ({"verdict": Verdict(winner="rejected", judge="m")}, "rejected wins"),
        # ten words against five are twice as many, eleven are more; seven are too few to tell
        ({"chosen": answer("a " * 10), "rejected": answer("b " * 5)}, None),
        ({"chosen": answer("a " * 11), "rejected": answer("b " * 5)}, "chosen too long"),
        ({"chosen": answer("a " * 7), "rejected": answer("b")}, None),
        ({"chosen": answer("a"), "rejected": answer("b " * 99)}, None),
    ],
)
def test_each_objection(changes: dict[str, object], reason: str | None):
    params = ValidateParams(max_length_ratio=2.0, min_length_for_ratio=8)
    found = objection(replace(TRAIN, **changes), params, words)
    assert (found and found.reason) == reason


def test_good_pairs_pass_unchanged_into_their_split(stage: Stage):
    metrics = stage.run([TRAIN, VAL])
    assert list(read_samples(stage.folder / "train.parquet")) == [TRAIN]
    assert list(read_samples(stage.folder / "val.parquet")) == [VAL]
    assert (metrics["kept/train"], metrics["kept/val"]) == (1, 1)
    assert sum(value for name, value in metrics.items() if name.startswith("dropped/")) == 0


def test_judged_pairs_come_before_ready_ones(stage: Stage):
    stage.run([TRAIN, VAL], judged=[pair("judged")])
    assert stage.kept("train") == ["judged", "good"]


def test_what_is_dropped_is_quarantined_with_its_reason_and_counted(stage: Stage):
    tie = pair("even", verdict=Verdict(winner="tie", judge="m"))
    again = replace(TRAIN, id="again")
    metrics = stage.run([TRAIN, tie, TRAIN, again, VAL])
    assert stage.kept("train") == ["good"]
    assert stage.reasons() == {"even": "tie", "good": "duplicate id", "again": "duplicate"}
    assert (
        metrics["dropped/tie"],
        metrics["dropped/duplicate id"],
        metrics["dropped/duplicate"],
    ) == (
        1,
        1,
        1,
    )
    rows = pq.read_table(stage.folder / "q.parquet").to_pylist()
    assert all(row["advice"] == ADVICE[row["reason"]] and row["source"] == "made" for row in rows)


def test_media_must_be_in_the_store_and_undamaged(stage: Stage):
    fine, lost, hurt = (stage.image(colour) for colour in ("red", "green", "blue"))
    (stage.folder / "media" / lost.path).unlink()
    (stage.folder / "media" / hurt.path).write_bytes(b"no picture")
    names = {"fine": fine, "lost": lost, "hurt": hurt}
    stage.run(
        [TRAIN, VAL, *(pair(id, modality="image", media=(media,)) for id, media in names.items())]
    )
    assert stage.reasons() == {"lost": "media missing", "hurt": "media damaged"}
    assert stage.kept("train") == ["good", "fine"]


def test_a_train_pair_that_shares_prompt_or_image_with_val_goes(stage: Stage):
    red, blue = stage.image("red"), stage.image("blue")
    ask = (Turn(role="user", content="Describe the picture."),)
    pairs = [
        TRAIN,
        replace(VAL, id="val text"),
        replace(VAL, id="same text", split="train", chosen=answer("Sure.")),
        pair("val red", split="val", modality="image", media=(red,), prompt=ask),
        pair("train red", modality="image", media=(red,)),
        pair(
            "train blue", modality="image", media=(blue,), prompt=ask
        ),  # the same words about another picture
    ]
    metrics = stage.run(pairs)
    assert stage.reasons() == {"same text": "held out", "train red": "held out"}
    assert stage.kept("train") == ["good", "train blue"]
    assert stage.kept("val") == ["val text", "val red"]
    assert metrics["dropped/held out"] == 2


def test_what_a_prompt_holds_out_is_not_trained_on_though_no_pair_of_val_is_about_it(stage: Stage):
    red, blue = stage.image("red"), stage.image("blue")
    Image.open(stage.folder / "media" / red.path).resize((40, 40)).save(
        stage.folder / "copy.jpg", quality=90
    )
    copy = stage.stored(stage.folder / "copy.jpg")
    shows = pair("shows", split="val", modality="image", media=(red,))
    free = pair("free", modality="image", media=(blue,))
    prompts = [
        replace(one, chosen=(), rejected=(), verdict=None)
        for one in (shows, pair("asks", split="val"), free)
    ]
    pairs = [
        pair("same", modality="image", media=(red,)),
        pair("alike", modality="image", media=(copy,)),
        free,
    ]
    pairs.append(pair("again", prompt=prompts[1].prompt))
    stage.run([TRAIN, VAL, *pairs], prompts=prompts)
    shown = ("held out", "picture or film of shows")
    assert details(stage) == {
        "same": shown,
        "alike": shown,
        "again": ("held out", "prompt of asks"),
    }
    assert stage.kept("train") == ["good", "free"]


def test_the_expectations_see_a_leak_from_the_prompts_that_the_rules_missed(stage: Stage):
    red = stage.image("red")
    held = [
        pair("asks", prompt=TRAIN.prompt, split="val"),
        pair("shows", media=(red,), split="val"),
    ]
    written = frame(map(OBSERVER.facts, [TRAIN, pair("t", modality="image", media=(red,))]))
    leak = table_of(written, stage.folder / "media", held_out=frame(map(OBSERVER.facts, held)))
    failed = {
        check.says
        for check in run_checks(leak, suite("written", LENIENT))
        if check.status == "failed"
    }
    assert failed == {
        "No prompt is in train and in val",
        "No picture or film is in train and in val",
    }


def test_too_many_dropped_fails_with_the_page_and_leaves_the_last_outputs(stage: Stage):
    stage.run([TRAIN, VAL])
    ties = [pair(f"tie {i}", verdict=Verdict(winner="tie", judge="m")) for i in range(3)]
    strict = ValidateParams(min_pairs=1, max_rejected_share=0.5)
    with pytest.raises(
        ValidationFailed,
        match=r"max_rejected_share: 0\.5: 60% of 5 pairs were dropped, 3 for 'tie'",
    ):
        stage.run([pair("new"), VAL, *ties], strict)
    assert stage.kept("train") == ["good"]
    assert "Validation failed" in stage.page() and "60% of 5 pairs" in stage.page()
    assert not list(stage.folder.glob(".*.part"))


@pytest.mark.parametrize(("pairs", "split"), [([TRAIN], "val"), ([VAL], "train"), ([], "train")])
def test_a_split_with_too_few_pairs_fails(stage: Stage, pairs: list[Sample], split: str):
    with pytest.raises(ValidationFailed, match=rf"min_pairs: 1: only 0 pairs are left in {split}"):
        stage.run(pairs)
    assert "Validation failed" in stage.page()


def test_the_page_stands_alone_and_escapes_what_it_shows(stage: Stage):
    bad = pair("<script>alert(1)</script>", verdict=None)
    stage.run([TRAIN, VAL, bad])
    page = stage.page()
    assert (
        "Validation passed" in page
        and "no verdict" in page
        and ADVICE["no verdict"].split("`")[0] in page
    )
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert page.count("<svg") == 2


def table(root: Path, *pairs: Sample) -> pd.DataFrame:
    return table_of(frame(map(OBSERVER.facts, pairs)), root)


def test_the_expectations_see_a_leak_that_the_rules_missed(tmp_path: Path):
    leak = table(tmp_path, TRAIN, replace(TRAIN, id="b", split="val"))
    failed = {
        check.says
        for check in run_checks(leak, suite("written", LENIENT))
        if check.status == "failed"
    }
    assert failed == {"No prompt is in train and in val"}


def test_each_broken_column_breaks_its_own_expectation(tmp_path: Path):
    sound = table(tmp_path, *(pair(str(i)) for i in range(4)))
    for column, value, says in (
        ("id", "same", "Ids are unique"),
        ("domain", "gossip", "Domains are known ones"),
        ("judge", None, "Every row has a judge"),
        ("winner", "tie", "The verdict is for the chosen answer"),
        ("answers_differ", False, "The two answers differ"),
        ("media_stored", False, "Media are in the store"),
        ("chosen_length", 0, "Chosen answers say something"),
        ("scores_finite", False, "Costs and rewards are numbers"),
        ("overlap", "benchmark.jsonl:1", "No pair shares a text with a benchmark"),
        ("language", "de", "Every pair with text enough to tell is in en"),
        ("language", None, "Every pair with text enough to tell is in en"),
    ):
        told = sound.assign(**{"language": "en", column: value})
        checks = run_checks(told, suite("written", replace(LENIENT, languages=("en",))))
        assert [check.says for check in checks if check.status == "failed" and check.critical] == [
            says
        ]


@pytest.mark.parametrize(
    ("ratings", "sound"),
    [
        (None, True),
        ([5, 3.5], True),
        ([3, 5], False),
        ([4, 4], False),
        ([5], False),
        ([5, "3"], False),
        ("5 3", False),
    ],
)
def test_ratings_that_do_not_prefer_the_chosen_answer_are_a_warning(
    tmp_path: Path, ratings: object, sound: bool
):
    rated = table(
        tmp_path, replace(TRAIN, meta={"ratings": ratings} if ratings is not None else {})
    )
    checks = {check.says: check for check in run_checks(rated, suite("pairs", LENIENT))}
    found = checks["Where a source rates both answers, the chosen one is rated higher"]
    assert (found.status == "passed", found.critical) == (sound, False)


def test_an_expectation_that_cannot_be_computed_is_errored_not_failed(tmp_path: Path):
    broken = table(tmp_path, TRAIN, VAL).drop(columns="domain")
    statuses = {check.says: check.status for check in run_checks(broken, suite("written", LENIENT))}
    assert statuses["Domains are known ones"] == "errored"
    assert statuses["The table has the columns it should have"] == "failed"
    assert statuses["Ids are unique"] == "passed"


def test_length_as_a_giveaway_warns_but_does_not_stop(stage: Stage):
    longer = [pair(str(i), chosen="Yes it is.", rejected="No.") for i in range(10)]
    stage.run([*longer, VAL])
    assert '<td class="warning">warning</td>' in stage.page()


SAID = "there is a dog on the left who looks at a ball and on the right a child who is about to throw it far away"


GERMAN = (
    "Auf dem Bild sieht man einen Hund, der links neben einem Kind steht und auf den Ball schaut."
)
ENGLISH = replace(LENIENT, languages=("en",))


def test_every_pair_in_another_language_goes_if_it_has_text_enough_to_tell(stage: Stage):
    english, german = (
        [pair(f"{name} {i}", said, f"{said} no") for i in range(20)]
        for name, said in (("e", SAID), ("d", GERMAN))
    )
    short = [
        pair("short", "Ja, das ist so."),
        pair("sum", "12 + 30 - 4 = 38, 38 - 3 = 35 and 35 * 2 = 70", "12 " * 16),
    ]
    stage.run([VAL, *english, *german, *short], ENGLISH)
    assert stage.kept("train") == [one.id for one in (*english, *short)]
    assert details(stage) == {one.id: ("language", "de, not en") for one in german}
    assert "en 20." in stage.page() and "3 have too little text to tell" in stage.page()
    stage.run([VAL, *english, *german, *short])
    assert details(stage) == {}


def test_languages_that_no_pair_has_text_enough_for_are_not_passed(stage: Stage):
    with pytest.raises(
        ValidationFailed,
        match=r"enough to tell is in en; no pair has .*; leave out validate\.languages",
    ):
        stage.run([TRAIN, VAL], ENGLISH)
    assert "2 have too little text to tell" in stage.page()
    stage.run(
        [TRAIN, VAL, *(pair(f"{i}") for i in range(3)), pair("long", SAID, f"{SAID} no")], ENGLISH
    )
    check = next(
        row for row in stage.page().split("<tr>") if "50% of the pairs have text enough" in row
    )
    assert 'class="warning"' in check and "5 of 6 do not" in check


def details(stage: Stage) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(stage.folder / "q.parquet").to_pylist()
    return {row["id"]: (row["reason"], row["detail"]) for row in rows}


def test_a_reason_says_what_exactly_is_wrong(stage: Stage):
    long = pair("long", chosen="a " * 11, rejected="b " * 5)
    again, against = (
        replace(TRAIN, id="again"),
        replace(TRAIN, id="against", chosen=TRAIN.rejected, rejected=TRAIN.chosen),
    )
    lost = Media(kind="image", path="ab/lost.png", sha256="0" * 64)
    stage.run(
        [
            TRAIN,
            VAL,
            long,
            again,
            against,
            pair("lost", modality="image", media=(lost,)),
            pair("none", rejected=""),
        ]
    )
    assert details(stage) == {
        "long": ("chosen too long", "11 words against 5"),
        "again": ("duplicate", "of good"),
        "against": ("contradiction", "to good"),
        "lost": ("media missing", "ab/lost.png"),
        "none": ("no answer", "rejected"),
    }
    assert "long: 11 words against 5" in stage.page()


def test_near_repeats_go_and_val_comes_before_train(stage: Stage):
    asked = (Turn(role="user", content=SAID),)
    pairs = [
        pair("first", rejected=SAID, prompt=asked),
        pair("capitals", rejected=f"{SAID.upper()}!", prompt=asked),
        pair("train", rejected=f"{SAID} yes", prompt=(Turn(role="user", content=f"{SAID} now?"),)),
        pair(
            "val", rejected=SAID, split="val", prompt=(Turn(role="user", content=f"{SAID} now."),)
        ),
    ]
    stage.run([TRAIN, *pairs[:2], VAL])
    assert details(stage) == {"capitals": ("near duplicate", "nearly the same as first")}
    stage.run([TRAIN, *pairs[2:]])
    assert details(stage) == {"train": ("held out", "nearly the same as val")}
    stage.run([TRAIN, *pairs[:2], VAL], replace(LENIENT, near_duplicates=None))
    assert details(stage) == {}


def test_a_prompt_of_train_that_is_nearly_one_of_val_is_a_leak_whatever_is_answered(stage: Stage):
    def asks(id: str, question: str, split: str = "train") -> Sample:
        return pair(
            id,
            f"Yes, {id}.",
            f"No, {id}.",
            prompt=(Turn(role="user", content=question),),
            split=split,
        )

    held = asks("held", f"Is it so that {SAID} now?", "val")
    alone = replace(
        asks("alone", f"Who said: {SAID[::-1]}?", "val"), chosen=(), rejected=(), verdict=None
    )
    pairs = [
        asks("near held", f"Is it so that {SAID} then?"),
        asks("near alone", f"Who says: {SAID[::-1]}?"),
    ]
    pairs += [
        asks("other", f"{SAID.replace('dog', 'man').replace('on', 'at')}"),
        asks("short", "Is it so that it is?"),
    ]
    leaks = {
        "near held": ("held out", "prompt nearly that of held"),
        "near alone": ("held out", "prompt nearly that of alone"),
    }
    stage.run([TRAIN, held, *pairs], prompts=[alone])
    assert details(stage) == leaks
    stage.run([TRAIN, held, *pairs], replace(LENIENT, near_duplicates=None), prompts=[alone])
    assert details(stage) == {}
    stage.run([TRAIN, held, *pairs], replace(LENIENT, near_prompt_words=40), prompts=[alone])
    assert details(stage) == {}


def test_a_template_is_no_leak_but_its_very_words_are(stage: Stage):
    prompts = [
        (Turn(role="user", content=f"Tell me whether {SAID} {number}"),) for number in range(12)
    ]
    train = [pair(f"{i}", f"Yes {i}", f"No {i}", prompt=prompts[i + 1]) for i in range(11)]
    held = pair("held", split="val", prompt=prompts[0])
    stage.run([*train, pair("again", "Sure.", prompt=prompts[0]), held])
    assert details(stage) == {"again": ("held out", "prompt of held")}
    near = ("held out", "prompt nearly that of held")
    stage.run([TRAIN, *train[:3], held])
    assert details(stage) == {"0": near, "1": near, "2": near}


def test_a_image_of_val_in_another_format_is_a_leak(stage: Stage):
    red = stage.image("red")
    Image.open(stage.folder / "media" / red.path).resize((40, 40)).save(
        stage.folder / "copy.jpg", quality=90
    )
    copy = stage.stored(stage.folder / "copy.jpg")
    pairs = [
        TRAIN,
        pair("v", split="val", modality="image", media=(red,)),
        pair("t", modality="image", media=(copy,)),
    ]
    stage.run(pairs)
    assert details(stage) == {"t": ("held out", "picture or film of v")}
    stage.run(pairs, replace(LENIENT, near_images=None))
    assert details(stage) == {}


def test_what_a_benchmark_asks_or_shows_is_not_trained_on(stage: Stage):
    red = stage.image("red")
    (stage.folder / "bench").mkdir()
    Image.open(stage.folder / "media" / red.path).resize((50, 50)).save(
        stage.folder / "bench" / "one.png"
    )
    (stage.folder / "bench" / "asked.jsonl").write_text(f'{{"question": "{SAID}"}}\n')
    asks = pair("asks", prompt=(Turn(role="user", content=f"Is it true that {SAID}?"),))
    params = replace(LENIENT, benchmarks=str(stage.folder / "bench"))
    stage.run([TRAIN, VAL, asks, pair("shows", modality="image", media=(red,))], params)
    found = details(stage)
    assert {id: reason for id, (reason, _) in found.items()} == {
        "asks": "in benchmark",
        "shows": "in benchmark",
    }
    assert (
        "bench/asked.jsonl:1: 'there is a dog" in found["asks"][1]
        and "one.png" in found["shows"][1]
    )
    assert stage.kept("train") == ["good"] and "bench" in stage.page()


def test_a_video_of_a_benchmark_is_not_trained_on_and_files_not_read_are_listed(stage: Stage):
    (stage.folder / "bench" / "films").mkdir(parents=True)
    video(stage.folder / "new.mp4", 3)
    shutil.copy(stage.folder / "new.mp4", stage.folder / "bench" / "films" / "a.mp4")
    (stage.folder / "bench" / "films" / "notes.pkl").write_bytes(b"x")
    shown = replace(stage.stored(stage.folder / "new.mp4"), kind="video")
    params = replace(LENIENT, benchmarks=str(stage.folder / "bench"))
    stage.run([TRAIN, VAL, pair("shows", modality="video", media=(shown,))], params)
    assert details(stage) == {
        "shows": ("in benchmark", f"{shown.path} is {stage.folder}/bench/films/a.mp4:1")
    }
    assert "films/notes.pkl" in stage.page()


def test_a_benchmark_that_is_not_there_stops_the_stage(stage: Stage):
    with pytest.raises(BadBenchmark, match=r"validate\.benchmarks: .*none: no such file or folder"):
        stage.run([TRAIN, VAL], replace(LENIENT, benchmarks=str(stage.folder / "none")))
    assert not (stage.folder / "train.parquet").exists()


def test_a_limit_for_one_reason_names_number_limit_and_source(stage: Stage):
    tie = pair("even", verdict=Verdict(winner="tie", judge="m"))
    says = r"max_share: tie: 0\.1: 33\.3% of 3 pairs, 1 of 1 from made, such as even; The judge saw no difference"
    with pytest.raises(ValidationFailed, match=says):
        stage.run([TRAIN, VAL, tie], replace(LENIENT, max_share={"tie": 0.1}))
    assert stage.run([TRAIN, VAL, tie], replace(LENIENT, max_share={"tie": 0.5}))["kept/train"] == 1


def test_lengths_are_counted_in_tokens_where_a_tokenizer_is_named(tmp_path: Path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    params = ValidateParams(tokenizer=str(tmp_path / "tokenizer.json"), min_length_for_ratio=2)
    # one word each, but six letters against two
    found = objection(pair("x", chosen="aaaaaa", rejected="ab"), params, ruler(params))
    assert found == ("chosen too long", "6 tokens against 2")
    with pytest.raises(BadParams, match=r"validate\.tokenizer: none\.json"):
        ruler(ValidateParams(tokenizer="none.json"))


def test_the_same_input_gives_the_same_output(stage: Stage):
    pairs = [TRAIN, VAL, replace(TRAIN, id="again"), pair("x", chosen=SAID)]
    names = ("train.parquet", "val.parquet", "q.parquet", "summary.json")
    stage.run(pairs)
    first = [(stage.folder / name).read_bytes() for name in names]
    stage.run(pairs)
    assert [(stage.folder / name).read_bytes() for name in names] == first


def test_prompts_and_candidates_are_checked_and_shown(stage: Stage):
    red, lost = stage.image("red"), Media(kind="image", path="ab/lost.png", sha256="0" * 64)
    asked = [replace(TRAIN, id=id, chosen=(), rejected=(), verdict=None) for id in ("a", "a")]
    shown = [
        replace(asked[0], id=f"p{i}", modality="image", media=(media,))
        for i, media in enumerate((red, lost))
    ]
    answered = [replace(asked[0], candidates=("Yes.", "Yes."))]
    metrics = stage.run([TRAIN, VAL], prompts=[*asked, *shown], candidates=answered)
    prompts, candidates, *_ = (part.split("<h3>")[0] for part in stage.page().split("<h3>")[1:])
    assert prompts.startswith("Prompts</h3>") and candidates.startswith("Candidates</h3>")
    warned = {
        row.split("</td>")[0].split("<td>")[-1]
        for row in prompts.split("<tr>")
        if 'class="warning"' in row
    }
    assert warned == {
        "Ids are unique",
        "Media are in the store",
        "Media can be decoded, and are in no benchmark",
    }
    assert candidates.count('class="warning"') == 1 and "Candidates differ" in candidates
    assert (metrics["checks/failed"], metrics["kept/train"]) == (4, 1)


def test_several_processes_give_the_same_as_one(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    said = [
        pair(f"{i}", rejected=f"{SAID} {i}", split="val" if i % 9 == 0 else "train")
        for i in range(40)
    ]
    names = ("train.parquet", "val.parquet", "q.parquet", "summary.json")
    stage.run(said, judged=[replace(said[3], id="again")])
    first = [(stage.folder / name).read_bytes() for name in names]
    monkeypatch.setattr(workers, "MANY", 10)
    stage.run(said, judged=[replace(said[3], id="again")])
    assert [(stage.folder / name).read_bytes() for name in names] == first


TEXTS = st.sampled_from(["Yes.", "No.", " ", "a " * 20, SAID, f"{SAID} now"])
PAIRS = st.builds(
    pair,
    id=st.sampled_from("abcd"),
    chosen=TEXTS,
    rejected=TEXTS,
    split=st.sampled_from(["train", "val"]),
    media=st.sampled_from([(), (Media(kind="image", path="ab/lost.png", sha256="0" * 64),)]),
    verdict=st.sampled_from(
        [None, *(Verdict(winner=winner, judge="m") for winner in ("chosen", "rejected", "tie"))]
    ),
)


@settings(max_examples=5, deadline=None)
@given(st.lists(PAIRS, max_size=12), st.lists(PAIRS, max_size=4))
def test_every_pair_is_kept_or_quarantined_always(ready: list[Sample], judged: list[Sample]):
    with TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        metrics = stage.run([TRAIN, VAL, *ready], judged=judged)
        kept = [*stage.kept("train"), *stage.kept("val")]
        dropped = pq.read_table(stage.folder / "q.parquet").to_pylist()
    assert metrics["pairs"] == len(ready) + len(judged) + 2 == len(kept) + len(dropped)
    assert metrics["kept/train"] + metrics["kept/val"] == len(kept) == len(set(kept))
    for reason in ADVICE:
        assert metrics[f"dropped/{reason}"] == sum(row["reason"] == reason for row in dropped)


def test_rows_are_copied_as_they_would_be_written(tmp_path: Path):
    pairs = [pair(f"{i}", meta={"number": i}) for i in range(25)]
    write_samples(pairs, tmp_path / "all.parquet", rows_per_group=7)
    with copying(tmp_path / "copy.parquet", rows_per_group=4) as put:
        for first, batch in read_batches(tmp_path / "all.parquet"):
            put(batch.filter(pa.array([row % 2 == 0 for row in range(first, first + len(batch))])))
    assert list(read_samples(tmp_path / "copy.parquet")) == pairs[::2]
    assert list(read_samples(tmp_path / "all.parquet", 1)) == pairs[7:14]
    groups = open_table(tmp_path / "copy.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [4, 4, 4, 1]


def test_rows_of_another_schema_are_not_copied(tmp_path: Path):
    write_samples([TRAIN], tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    other = table.set_column(
        table.schema.get_field_index("rewards"), "rewards", pa.array([["high"]])
    )
    with (
        pytest.raises(BadRecord, match="rows of another schema"),
        copying(tmp_path / "b.parquet") as put,
    ):
        put(other.to_batches()[0])


def test_any_table_can_be_held_against_its_suite(stage: Stage, capsys: pytest.CaptureFixture[str]):
    write_samples(
        [replace(TRAIN, chosen=(), rejected=(), candidates=("same", "same"))],
        stage.folder / "c.parquet",
    )
    assert check_main(str(stage.folder / "c.parquet"), str(stage.folder / "media")) == 0
    assert "warning  Candidates differ" in capsys.readouterr().out
    (stage.folder / "bad.parquet").write_bytes(b"no table")
    assert check_main(str(stage.folder / "bad.parquet")) == 1
    assert "bad.parquet: not a Parquet file" in capsys.readouterr().err
