"""The stage `collect`: rows in are samples out, or quarantined with a reason."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from real import REAL, needs_real

from ixc.data.samples import Gold, Role, Sample, Turn, Verdict, answer, read_samples
from ixc.data.sources import READERS, BadSource, File, Reader, Refused, Row
from ixc.data.sources.embedded.videos import encode
from ixc.data.sources.hub import Hub
from ixc.data.sources.licences import Licence
from ixc.io.fingerprint import Code
from ixc.metrics import Metrics
from ixc.params import CollectParams, MixtureParams, SourceParams
from ixc.stages.collect import stage as collect


def row(id: str, **changes: object) -> Row:
    """A prompt with an answer."""
    prompt = (Turn(role="user", content=f"What is {id}?"),)
    gold = Gold(check="match", value=id, answer=f"It is {id}.")
    return replace(Row(id=id, domain="general", prompt=prompt, gold=gold), **changes)


@dataclass
class Outputs:
    """Where a run writes, and what it found there."""

    folder: Path

    def run(self, params: CollectParams) -> Metrics:
        names = (
            "prompts.parquet",
            "public.parquet",
            "corpus.parquet",
            "media",
            "quarantine.parquet",
        )
        return collect.run(params, *(self.folder / name for name in names))

    def samples(self, name: str) -> list[Sample]:
        return list(read_samples(self.folder / f"{name}.parquet"))

    def quarantine(self) -> list[dict[str, str]]:
        return pq.read_table(self.folder / "quarantine.parquet").to_pylist()

    def media(self) -> list[str]:
        root = self.folder / "media"
        return sorted(
            path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
        )


@pytest.fixture
def out(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "out")


@pytest.fixture
def feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a source `made` of the given rows; returns its parameters."""

    def build(*items: Row | Refused, limit: int | None = None, **changes: Any) -> CollectParams:
        def read(path: Path, seed: int) -> Iterator[Row | Refused]:
            yield from items

        module = ModuleType("made")
        vars(module).update(read=read, LICENCE=Licence(name="made up", commercial=True))
        monkeypatch.setitem(sys.modules, "made", module)
        monkeypatch.setitem(READERS, "made", Reader("made"))
        made = SourceParams(reader="made", limit=limit)
        return CollectParams(root=str(tmp_path), sources=(made,), **changes)

    return build


def image(path: Path, colour: str) -> File:
    Image.new("RGB", (4, 4), colour).save(path)
    return File(kind="image", path=path)


def test_prompts_pairs_and_corpus_are_sorted_out(out: Outputs, feed):
    pair = row("b", gold=None, chosen="Yes.", rejected="No.", split="val")
    metrics = out.run(
        feed(row("a", split="val", wrong=("It is z.",)), pair, row("c", split="train"))
    )
    [prompt, other] = out.samples("prompts")
    assert (prompt.id, prompt.split, prompt.meta) == ("made/a", "val", {"wrong": ["It is z."]})
    assert other.id == "made/c"
    [public] = out.samples("public")
    assert public.verdict == Verdict(winner="chosen", judge="source")
    assert (public.chosen, public.rejected) == (answer("Yes."), answer("No."))
    [reference] = out.samples("corpus")  # val rows with an answer in full words
    assert (reference.id, reference.chosen) == ("made/a", answer("It is a."))
    assert reference.meta == {"wrong": ["It is z."]}
    assert (metrics["prompts/all"], metrics["pairs/all"], metrics["corpus/all"]) == (2, 1, 1)


def test_every_row_is_kept_or_quarantined_with_a_reason(out: Outputs, feed, tmp_path: Path):
    broken, gone = tmp_path / "broken.png", tmp_path / "gone.png"
    broken.write_bytes(b"no picture")
    metrics = out.run(
        feed(
            row("good"),
            row("good"),
            Refused(where="a.jsonl:3", reason="not JSON"),
            row("broken", media=(File(kind="image", path=broken),)),
            row("gone", media=(File(kind="image", path=gone),)),
            row("half", chosen="Yes."),
            row("mute", prompt=(Turn(role="user", content=" "),)),
            row("one", gold=None, answer="Yes."),
        )
    )
    found = {
        (line["where"], line["reason"].split(";")[0].split("(")[0].strip())
        for line in out.quarantine()
    }
    assert found == {
        ("made/good", "duplicate id"),
        ("a.jsonl:3", "not JSON"),
        ("made/broken", f"{broken}: not a picture"),
        ("made/gone", f"{gone}: no such file"),
        ("made/half", "a pair with one answer"),
        ("made/mute", "no question"),
        ("made/one", "one answer, and what it is for is not clear"),
    }
    assert (metrics["rows/made"], metrics["kept/made"], metrics["quarantined/made"]) == (8, 1, 7)
    assert {line["stage"] for line in out.quarantine()} == {"collect"}


# Roles


UNSEEN = ["\0", "\u200b\u200d\ufeff", "\u2060 \t\x01", "\u3164", "\u0301", "\u00ad"]


@pytest.mark.parametrize("text", UNSEEN)
def test_a_text_that_nobody_sees_is_quarantined(out: Outputs, feed, text: str):
    asked, said = (
        (Turn(role="user", content=text),),
        {"gold": None, "chosen": text, "rejected": "No."},
    )
    rows = (row("asked", prompt=asked), row("said", **said), row("own", gold=None, answer=text))
    out.run(feed(row("good"), *rows))
    assert [line["reason"].split(";")[0].split(",")[0] for line in out.quarantine()] == [
        "no question",
        "a pair with one answer",
        "an answer of characters that nobody sees",
    ]


def test_a_prompt_alone_is_a_prompt(out: Outputs, feed):
    out.run(feed(row("open", gold=None)))
    [prompt] = out.samples("prompts")
    assert (prompt.id, prompt.gold, prompt.chosen) == ("made/open", None, ())


SFT = {"gold": None, "answer": "Red."}
PAIR = {"gold": None, "chosen": "Yes.", "rejected": "No."}


@pytest.mark.parametrize(
    ("role", "kind", "prompts", "pairs", "corpus"),
    [
        (None, {}, 1, 0, 0),
        (None, PAIR, 0, 1, 0),
        (None, SFT, 0, 0, 0),
        ("prompts", {}, 1, 0, 0),
        ("prompts", PAIR, 1, 0, 0),
        ("prompts", SFT, 1, 0, 0),
        ("pairs", {}, 0, 0, 0),
        ("pairs", PAIR, 0, 1, 0),
        ("pairs", SFT, 0, 0, 0),
        ("corpus", {}, 0, 0, 1),
        ("corpus", PAIR, 0, 0, 0),
        ("corpus", SFT, 0, 0, 1),
        ("corpus", {**SFT, "answer": ""}, 0, 0, 1),
        ("corpus", {"gold": None}, 0, 0, 0),
    ],
)
def test_the_role_of_a_source_decides_what_its_rows_are_for(
    out: Outputs,
    feed,
    role: Role | None,
    kind: dict[str, Any],
    prompts: int,
    pairs: int,
    corpus: int,
):
    params = feed(row("x", split="train", **kind), row("y", split="train", **kind))
    params = replace(params, sources=(replace(params.sources[0], role=role),))
    if not prompts + pairs + corpus:
        with pytest.raises(BadSource, match="`role"):
            out.run(params)
        return
    metrics = out.run(params)
    found = [len(out.samples(name)) for name in ("prompts", "public", "corpus")]
    assert found == [2 * prompts, 2 * pairs, 2 * corpus]
    assert (metrics["kept/made"], metrics["corpus/all"]) == (2, 2 * corpus)
    assert all(not s.chosen and not s.rejected for s in out.samples("prompts"))


def test_instruction_rows_reach_the_corpus_whole_with_their_own_images_videos_and_columns(
    out: Outputs, tmp_path: Path
):
    image(tmp_path / "red.png", "red")
    (tmp_path / "clip.mp4").write_bytes(encode([Image.new("RGB", (16, 16), "red")] * 2))
    said = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "Red."}]
    mute = [said[0], {"from": "gpt", "value": ""}]
    more = [*said, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    records = [
        {
            "id": "a",
            "image": "red.png",
            "conversations": said,
            "my_column": 7,
            "tags": ["x", {"y": None}],
        },
        {"id": "b", "image": "red.png", "conversations": mute},
        {
            "id": "c",
            "conversations": [
                {"from": "human", "value": "Name a fruit."},
                {"from": "gpt", "value": "Sorry."},
            ],
        },
        {"id": "d", "image": "missing.png", "conversations": said},
        {"id": "e", "video": "clip.mp4", "conversations": more},
        {"id": "f", "conversations": [{"from": "human", "value": "Why?"}]},
    ]
    (tmp_path / "sft.json").write_text(json.dumps(records))
    source = SourceParams(reader="preferences", path="sft.json", role="corpus")
    metrics = out.run(CollectParams(root=str(tmp_path), sources=(source,)))
    corpus = {sample.id.removeprefix("preferences/"): sample for sample in out.samples("corpus")}
    assert {id: sample.chosen[0].content for id, sample in corpus.items()} == {
        "a": "Red.",
        "b": "",
        "c": "Sorry.",
        "e": "Yes.",
    }
    assert corpus["a"].meta == {"columns": {"my_column": 7, "tags": ["x", {"y": None}]}}
    assert [sample.modality for sample in corpus.values()] == ["image", "image", "text", "video"]
    assert [turn.content for turn in corpus["e"].prompt] == ["What colour?", "Red.", "Sure?"]
    assert [line["where"] for line in out.quarantine()] == ["sft.json:4", "preferences/f"]
    assert (metrics["rows/preferences"], metrics["kept/preferences"]) == (6, 4)
    assert out.samples("prompts") == out.samples("public") == []
    assert len(out.media()) == 2


def test_the_corpus_keeps_out_of_the_mixture_but_for_its_own_number(
    out: Outputs, feed, tmp_path: Path
):
    files = [image(tmp_path / f"{i}.png", f"#00000{i}") for i in range(4)]
    rows = [row(f"p{i}", gold=None, answer="", media=(file,)) for i, file in enumerate(files)]
    params = feed(
        *rows, mixture=MixtureParams(domains={"general": 0}, images_per_text=1, sources={"made": 3})
    )
    metrics = out.run(replace(params, sources=(replace(params.sources[0], role="corpus"),)))
    assert (
        len(out.samples("corpus")),
        metrics["left_out/made"],
        metrics["thinned/domain/general"],
    ) == (3, 1, 0)


def test_a_domain_that_a_reader_made_up_is_quarantined(out: Outputs, feed):
    odd = row("odd")
    object.__setattr__(odd, "domain", "gossip")  # a reader of one's own, not type-checked
    out.run(feed(row("a"), odd))
    assert [line["reason"].split(",")[0] for line in out.quarantine()] == [
        "domain: Input should be 'instruction'"
    ]


def test_a_group_is_held_out_together_and_the_share_is_about_right(out: Outputs, feed):
    rows = [row(f"{group}-{i}", group=str(group)) for group in range(400) for i in range(2)]
    out.run(feed(*rows, val_fraction=0.25))
    splits: dict[str, set[str]] = {}
    for sample in out.samples("prompts"):
        splits.setdefault(sample.id.split("-")[0], set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    # 400 draws of 0.25: 100, standard deviation 8.7
    assert 70 < sum(found == {"val"} for found in splits.values()) < 130


def test_rows_of_the_same_image_are_held_out_together_even_without_a_group(
    out: Outputs, feed, tmp_path: Path
):
    files = [
        image(tmp_path / f"{i}.png", "red") for i in range(20)
    ]  # the same bytes under many names
    out.run(feed(*(row(str(i), media=(file,)) for i, file in enumerate(files)), val_fraction=0.5))
    assert len({sample.split for sample in out.samples("prompts")}) == 1
    assert len(out.media()) == 1


@pytest.fixture
def lay(tmp_path: Path):
    """Lay records, each a prompt with an answer, into a file of a source; returns the source's parameters."""

    def build(
        name: str, *records: dict[str, Any], file: str = "a.jsonl", **changes: Any
    ) -> SourceParams:
        (tmp_path / name).mkdir(exist_ok=True)
        lines = ({"prompt": "What is it?", "answer": "So.", **record} for record in records)
        (tmp_path / name / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return SourceParams(reader="preferences", name=name, path=name, **changes)

    return build


def splits(out: Outputs, tmp_path: Path, *sources: SourceParams, **changes: Any) -> dict[str, str]:
    """The split of every prompt, by its id."""
    out.run(CollectParams(root=str(tmp_path), sources=sources, **changes))
    return {sample.id: sample.split for sample in out.samples("prompts")}


def test_a_image_is_in_one_split_whatever_sources_show_it(out: Outputs, lay, tmp_path: Path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for i in range(40):  # under another name in each source
            image(tmp_path / name / f"{name}{i}.png", f"#0000{i:02x}")
    records = {
        n: [{"images": f"{n}{i}.png", "prompt": f"{n} {i}?"} for i in range(40)]
        for n in ("here", "there")
    }
    found = splits(
        out, tmp_path, *(lay(name, *each) for name, each in records.items()), val_fraction=0.5
    )
    assert [found[f"here/a/{i}"] for i in range(1, 41)] == [
        found[f"there/a/{i}"] for i in range(1, 41)
    ]
    assert len(set(found.values())) == 2


def test_a_prompt_is_in_one_split_whatever_sources_ask_it(out: Outputs, lay, tmp_path: Path):
    one = lay("one", *({"prompt": f"What is {i}?"} for i in range(40)))
    other = lay("other", *({"prompt": f"what is  {i}?\n"} for i in range(40)))
    found = splits(out, tmp_path, one, other, val_fraction=0.5)
    assert [found[f"one/a/{i}"] for i in range(1, 41)] == [
        found[f"other/a/{i}"] for i in range(1, 41)
    ]
    assert len(set(found.values())) == 2


def test_what_shares_a_image_with_held_out_rows_is_held_out(out: Outputs, lay, tmp_path: Path):
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
        for colour in ("red", "blue", "lime"):
            image(tmp_path / name / f"{colour}.png", colour)
    two = {"prompt": "<image> or <image>?", "images": ["blue.png", "lime.png"]}
    mine = lay("mine", {"images": ["red.png"]}, {**two, "images": ["red.png", "blue.png"]}, two)
    yours = lay("yours", {"images": ["lime.png"]}, file="test.jsonl")
    assert set(splits(out, tmp_path, mine, yours, val_fraction=0.01).values()) == {
        "val"
    }  # by way of blue, and of lime


def test_what_the_authors_keep_for_tests_is_held_out_unless_it_is_told_otherwise(
    out: Outputs, lay, tmp_path: Path, capsys
):
    rows = [{"prompt": f"What is {i}?"} for i in range(40)]
    strict = lay("strict", *rows, file="test_prefs.jsonl")
    assert set(splits(out, tmp_path, strict, val_fraction=0.2).values()) == {"val"}
    told = capsys.readouterr().out.splitlines()
    assert told[-2].split() == ["strict", "40", "40", "0", "0", "40"]
    assert told[-1].startswith("strict: all is held out") and "`respect_splits: false`" in told[-1]
    found = splits(out, tmp_path, replace(strict, respect_splits=False), val_fraction=0.2)
    assert set(found.values()) == {"train", "val"}
    assert "all is held out" not in capsys.readouterr().out
    assert set(splits(out, tmp_path, lay("loose", *rows, file="train.jsonl")).values()) == {
        "train",
        "val",
    }


def test_a_new_source_changes_no_split_of_another_that_it_shares_nothing_with(
    out: Outputs, lay, tmp_path: Path
):
    one = lay("one", *({"prompt": f"What is {i}?"} for i in range(40)))
    other = lay("other", *({"prompt": f"Who is {i}?"} for i in range(40)))
    alone = splits(out, tmp_path, one)
    assert alone.items() <= splits(out, tmp_path, other, one).items()


# A run that is stopped


def stop(monkeypatch: pytest.MonkeyPatch, reader: str) -> list[str]:
    """Let a reader be killed in the middle; returns, as they come, the paths that readers are asked to read."""
    read, asked = Reader.__call__, []

    def call(self: Reader, origin: Any, seed: int, /, **options: Any) -> Iterator[Row | Refused]:
        asked_now = read(self, origin, seed, **options)

        def rows() -> Iterator[Row | Refused]:
            asked.append(Path(origin).name)
            for item in asked_now:
                yield item
                if self.module.endswith(reader):
                    raise KeyboardInterrupt

        return rows()

    monkeypatch.setattr(Reader, "__call__", call)
    return asked


@pytest.fixture
def stopped(out: Outputs, lay, tmp_path: Path) -> CollectParams:
    """The parameters of a run that read the source `mine`, and was stopped in `late`."""
    for name in ("mine", "late"):
        (tmp_path / name).mkdir()
    image(tmp_path / "mine" / "red.png", "red")
    mine = lay("mine", {"images": "red.png"}, {"images": "gone.png"})
    item = {"key": 1, "prompt": "Write.", "instruction_id_list": ["a"], "kwargs": [{}]}
    (tmp_path / "late" / "a.jsonl").write_text(json.dumps(item))
    params = CollectParams(
        root=str(tmp_path), sources=(mine, SourceParams(reader="ifeval", path="late"))
    )
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, "ifeval")
        with pytest.raises(KeyboardInterrupt):
            out.run(params)
    return params


def test_a_run_that_was_stopped_goes_on_where_it_was(
    out: Outputs, stopped: CollectParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, whole = stop(monkeypatch, "none"), Outputs(tmp_path / "whole")
    metrics = out.run(stopped)
    assert asked == ["late"]
    assert whole.run(stopped) == metrics
    for name in ("prompts", "public", "corpus", "quarantine"):
        assert (out.folder / f"{name}.parquet").read_bytes() == (
            whole.folder / f"{name}.parquet"
        ).read_bytes()
    assert not list(out.folder.glob(".*"))


def test_a_hub_that_breaks_off_loses_only_its_own_rows(
    out: Outputs, monkeypatch: pytest.MonkeyPatch
):
    read = []

    def stream(hub: Hub) -> Iterator[dict[str, str]]:
        read.append(hub.name)
        yield {"prompt": f"{hub.name}?", "answer": "So."}
        if hub.name == "b/far" and len(read) == 2:
            raise BadSource("hub b/far: ConnectionError at row 2")

    monkeypatch.setattr("ixc.data.sources.native.stream", stream)
    sources = tuple(
        SourceParams(reader="preferences", name=name[0], hub=name) for name in ("a/near", "b/far")
    )
    params = CollectParams(sources=sources)
    with pytest.raises(BadSource, match="ConnectionError at row 2"):
        out.run(params)
    metrics = out.run(params)
    assert (read, metrics["kept/a"], metrics["kept/b"]) == (["a/near", "b/far", "b/far"], 1, 1)


@pytest.mark.parametrize("change", ["file", "parameter", "media"])
def test_what_has_changed_since_is_read_again(
    out: Outputs, stopped: CollectParams, lay, monkeypatch: pytest.MonkeyPatch, change: str
):
    if change == "file":
        lay("mine", {"images": "red.png"}, {"prompt": "Another?"}, {"prompt": "One more?"})
    elif change == "media":
        (out.folder / "media" / out.media()[0]).unlink()
    else:
        stopped = replace(stopped, max_chars=1000)
    asked = stop(monkeypatch, "none")
    metrics = out.run(stopped)
    assert asked == ["mine", "late"]
    assert metrics["rows/mine"] == (3 if change == "file" else 2)
    assert len(out.media()) == 1


@pytest.mark.parametrize(
    ("module", "read"),
    [
        ("sources/forms.py", ["mine", "late"]),
        ("sources/ifeval.py", ["late"]),
        ("losses.py", ["late"]),
    ],
)
def test_changed_code_reads_again_what_it_had_read(
    out: Outputs,
    stopped: CollectParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    read: list[str],
):
    shutil.copytree(
        Path(__file__).parents[1] / "ixc",
        tmp_path / "ixc",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in (tmp_path / "ixc").rglob("*.py"):
        path.write_text(
            f"# A comment.\n{path.read_text()}{'CHANGED = True' if path.match(module) else ''}\n"
        )
    monkeypatch.setattr(collect, "Code", lambda: Code(tmp_path))
    asked = stop(monkeypatch, "none")
    out.run(stopped)
    assert asked == read


def test_the_same_run_twice_gives_the_same_files(out: Outputs, feed, tmp_path: Path):
    params = feed(row("a"), row("b", media=(image(tmp_path / "x.png", "red"),)))
    out.run(params)
    names = ("prompts", "public", "corpus", "quarantine")
    first = {name: (out.folder / f"{name}.parquet").read_bytes() for name in names}
    out.run(params)
    assert {name: (out.folder / f"{name}.parquet").read_bytes() for name in names} == first


def test_the_media_folder_holds_what_the_samples_show_and_nothing_else(
    out: Outputs, feed, tmp_path: Path
):
    red, blue = image(tmp_path / "red.png", "red"), image(tmp_path / "blue.png", "blue")
    both = (Turn(role="user", content="Is <ImageHere> like <ImageHere>?"),)
    out.run(feed(row("a", prompt=both, media=(red, blue))))
    assert len(out.media()) == 2
    out.run(feed(row("a", media=(blue,))))
    [sample] = out.samples("prompts")
    assert out.media() == [sample.media[0].path]
    assert sample.modality == "image"


def test_the_limit_takes_the_first_rows(out: Outputs, feed):
    out.run(feed(row("a"), row("b"), row("c"), limit=2))
    assert [sample.id for sample in out.samples("prompts")] == ["made/a", "made/b"]


def test_a_missing_path_and_an_unknown_reader_name_the_key(out: Outputs, tmp_path: Path):
    missing = SourceParams(reader="gsm8k", path="nowhere")
    with pytest.raises(
        BadSource, match=r"collect\.sources\[0\]\.path: .*nowhere: does not exist; correct it"
    ):
        out.run(CollectParams(root=str(tmp_path), sources=(missing,)))
    with pytest.raises(
        BadSource, match=r"collect\.sources\[0\]\.reader: 'gsm9k': no such reader; one of"
    ):
        out.run(CollectParams(sources=(SourceParams(reader="gsm9k"),)))


def test_what_no_file_can_hold_is_quarantined(out: Outputs, feed):
    rows = (
        row("long", gold=Gold(check="match", value="x" * 101)),
        row("half", prompt=(Turn(role="user", content="What is \udce9?"),)),
        row("\ud800"),
        row("bytes", meta={"seen": b"x"}),
        row("marked", prompt=(Turn(role="user", content="Is <ImageHere> red?"),)),
        row("blank", chosen=" ", rejected="\n", gold=None),
        Refused(where="a:1", reason="\udce9"),
    )
    metrics = out.run(feed(row("good"), *rows, max_chars=100))
    assert [(line["where"], line["reason"].split("; ")[0]) for line in out.quarantine()] == [
        ("made/long", "a text of 101 characters"),
        ("made/half", "not UTF-8, or half a character"),
        ("made/?", "not UTF-8, or half a character"),
        ("made/bytes", "seen: neither text nor number, but bytes"),
        ("made/marked", "the prompt marks 1 pictures with <ImageHere>, the row has 0"),
        ("made/blank", "a pair with two empty answers"),
        ("a:1", "?"),
    ]
    assert (metrics["rows/made"], metrics["kept/made"]) == (8, 1)


QUESTIONS = st.just("Why?") | st.text()
ITEMS = st.one_of(
    st.builds(Refused, where=st.text(), reason=st.text()),
    st.builds(
        Row,
        id=st.sampled_from("abcdefgh") | st.text(),
        domain=st.sampled_from(["general", "safety"]),
        prompt=st.builds(lambda text: (Turn(role="user", content=text),), QUESTIONS),
        media=st.sampled_from(
            [(), (File(kind="image", data=b"no picture"),), (File(kind="image"),)]
        ),
        gold=st.none() | st.just(Gold(check="match", value="x", answer="It is x.")),
        chosen=st.sampled_from(["", " ", "Yes."]),
        rejected=st.sampled_from(["", "No."]),
        meta=st.dictionaries(
            st.text(max_size=2), st.none() | st.binary() | st.floats(), max_size=1
        ),
    ),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    items=st.lists(ITEMS), most=st.none() | st.integers(0, 4), ratio=st.none() | st.integers(1, 2)
)
def test_rows_are_kept_or_quarantined_or_left_out_always(
    out: Outputs, feed, items: list[Row | Refused], most: int | None, ratio: int | None
):
    mixture = MixtureParams(sources={} if most is None else {"made": most}, images_per_text=ratio)
    metrics = out.run(feed(row("good"), *items, mixture=mixture))
    fates = {fate: metrics[f"{fate}/made"] for fate in ("rows", "kept", "quarantined", "left_out")}
    assert (
        fates["rows"] == len(items) + 1 == fates["kept"] + fates["quarantined"] + fates["left_out"]
    )
    assert fates["quarantined"] == len(out.quarantine())
    assert fates["kept"] == len(out.samples("prompts")) + len(out.samples("public"))
    assert not list(out.folder.glob(".*"))


# Licences and mixture


def test_a_source_that_forbids_commercial_use_is_left_out_and_named(
    out: Outputs, tmp_path: Path, capsys
):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"prompt": "Q?", "chosen": "Yes.", "rejected": "No."})
    )
    mine = SourceParams(reader="preferences", path="a.jsonl", name="found")
    sources = (
        replace(mine, name="bought", commercial=True),
        mine,
        SourceParams(reader="rlaif_v", path="never fetched"),
    )
    metrics = out.run(CollectParams(root=str(tmp_path), licences="commercial", sources=sources))
    assert [sample.id for sample in out.samples("public")] == ["bought/a/1"]
    assert "rows/found" not in metrics and metrics["unread/found"] == metrics["unread/rlaif_v"] == 1
    told = capsys.readouterr().out.splitlines()
    assert told[1].split(maxsplit=3)[:3] == ["bought", "unknown", "yes"]
    assert told[3].split(maxsplit=3) == [
        "rlaif_v",
        "CC-BY-NC-4.0",
        "no",
        "left out by collect.licences",
    ]
    assert told[-1].split() == ["bought", "1", "1", "0", "0", "0"]


def test_if_the_licences_leave_nothing_it_says_so(out: Outputs, tmp_path: Path):
    params = CollectParams(
        root=str(tmp_path), licences="commercial", sources=(SourceParams(reader="rlaif_v"),)
    )
    with pytest.raises(BadSource, match=r"every source is left out; set collect\.licences: any"):
        out.run(params)


def test_the_mixture_is_exact_and_leaves_no_trace_of_the_rest(out: Outputs, feed, tmp_path: Path):
    files = [image(tmp_path / f"{i}.png", f"#00000{i}") for i in range(8)]
    images = [row(f"p{i}", media=(file,), split="train") for i, file in enumerate(files)]
    texts = [row(f"t{i}", domain="safety", split="train") for i in range(20)]
    mixture = MixtureParams(sources={"made": 25}, domains={"safety": 9}, images_per_text=2)
    metrics = out.run(feed(*images, *texts, mixture=mixture))
    kinds = [sample.modality for sample in out.samples("prompts")]
    assert kinds.count("image") == 2 * kinds.count("text") > 0
    assert metrics["kept/made"] + metrics["left_out/made"] == 28
    assert len(out.media()) == kinds.count("image") == metrics["media"]


def test_what_the_mixture_lacks_is_reported(out: Outputs, feed, capsys):
    mixture = MixtureParams(sources={"made": 5}, domains={"general": 1, "safety": 2})
    metrics = out.run(feed(row("a"), row("b"), row("c", domain="safety"), mixture=mixture))
    assert {
        name: count for name, count in metrics.items() if name.startswith(("short/", "thinned/"))
    } == {
        "short/made": 2,
        "short/domain/general": 0,
        "short/domain/safety": 1,
        "thinned/made": 1,
        "thinned/domain/general": 0,
        "thinned/domain/safety": 0,
    }
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "collect.mixture.sources.made: 5: 2 samples are lacking; add data, or ask for less",
        "collect.mixture.sources.made: 5: 1 samples are there, but left out by collect.mixture.domains: "
        "{'general': 1, 'safety': 2}; change one of the two",
        "collect.mixture.domains.safety: 2: 1 samples are lacking; add data, or ask for less",
    ]


def test_an_option_or_hub_that_a_reader_does_not_take_names_the_key(out: Outputs, tmp_path: Path):
    odd = SourceParams(reader="pku_saferlhf", options={"label": "funnier"})
    with pytest.raises(
        BadSource,
        match=r"collect\.sources\[0\]\.options\.label: Input should be 'safer' or 'better'",
    ):
        out.run(CollectParams(root=str(tmp_path), sources=(odd,)))
    with pytest.raises(
        BadSource, match=r"collect\.sources\[0\]\.hub: this reader reads files only"
    ):
        out.run(CollectParams(sources=(SourceParams(reader="gsm8k", hub="openai/gsm8k"),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sources": ({"reader": "gsm8k"}, {"reader": "gsm8k"})},
            "two are called gsm8k; give each a `name`",
        ),
        ({"sources": (), "mixture": {"sources": {"gsm9k": 3}}}, "no source is called gsm9k"),
        ({"sources": ({"reader": "shp", "path": "a", "hub": "b"},)}, "path and hub are both given"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CollectParams(**changes)


def test_nothing_usable_fails_and_leaves_the_last_outputs(out: Outputs, feed):
    out.run(feed(row("a")))
    with pytest.raises(
        BadSource, match=r"no row of any source can be used; the first: b\.jsonl:1: empty"
    ):
        out.run(feed(Refused(where="b.jsonl:1", reason="empty")))
    assert [sample.id for sample in out.samples("prompts")] == ["made/a"]
    assert [line["where"] for line in out.quarantine()] == ["b.jsonl:1"]


def test_a_real_reader_through_the_stage(out: Outputs, tmp_path: Path):
    item = {"key": 1, "prompt": "Write.", "instruction_id_list": ["a"], "kwargs": [{}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(item) + "\n" + json.dumps(item) + "\n\n{")
    metrics = out.run(CollectParams(root=str(tmp_path), sources=(SourceParams(reader="ifeval"),)))
    assert (metrics["rows/ifeval"], metrics["kept/ifeval"]) == (3, 1)
    assert [line["where"] for line in out.quarantine()] == ["ifeval/1", "a.jsonl:4"]


@needs_real
def test_the_real_media_all_enter_the_store(out: Outputs):
    names = ("math_vision", "nlvr", "super_clevr", "photos", "videos")
    params = CollectParams(
        root=str(REAL), sources=tuple(SourceParams(reader=name, path=name) for name in names)
    )
    metrics = out.run(params)
    assert sum(metrics[f"quarantined/{name}"] for name in names) == 0
    # 220 + 600 + 4 + 13 pictures and 4 films; one picture occurs twice
    assert len(out.media()) == metrics["media"] == 840
