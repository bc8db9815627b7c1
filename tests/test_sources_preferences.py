"""Public preference sets: rows of the documented native form, good and bad, from files and from the hub."""

import base64
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_sources import paint, write

from ixc.data.sources import READERS, BadOption, File, Refused, Row
from ixc.data.sources.conversations import pair, place, turns
from ixc.data.sources.llava_critic import better
from ixc.data.sources.native import Unusable


def read(name: str, path: Path, **options: Any) -> tuple[list[Row], list[Refused]]:
    items = list(READERS[name](path, 0, **options))
    return [i for i in items if isinstance(i, Row)], [i for i in items if isinstance(i, Refused)]


def parquet(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def stored(colour: str = "red") -> dict[str, Any]:
    """An image as `datasets` writes it to Parquet."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "1.png"}


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def shared(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def question(row: Row) -> str:
    [turn] = row.prompt
    return turn.content


def rated(*ratings: str) -> list[dict[str, Any]]:
    """Completions named by their place, with two ratings each."""
    return [
        {
            "model": "m",
            "response": f"answer {i}",
            "annotations": {"honesty": {"Rating": r}, "helpfulness": {"Rating": r}},
        }
        for i, r in enumerate(ratings)
    ]


TASK = (
    "<image>\nGiven an image and a corresponding question, please serve as a fair judge. Your task is provided as "
    "follows:\nQuestion: [What is [it]?]\nThe first response: [A [red] cat.]\nThe second response: [A dog.]\n"
    "ASSISTANT:\n"
)
BATTLE = {
    "conversation_a": messages("What is it?", "A."),
    "conversation_b": messages("What is it?", "B."),
    "image": stored(),
}
SAFE = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "No.",
    "safer_response_id": 1,
    "better_response_id": 0,
}
POST = {
    "post_id": "p",
    "history": "Why?",
    "human_ref_A": "A.",
    "human_ref_B": "B.",
    "labels": 1,
    "score_ratio": 1.5,
}
HHH = {"input": "Help?", "targets": {"choices": ["No.", "Yes."], "labels": [0, 1]}}
UF = {"source": "s", "instruction": "Do it.", "completions": rated("1", "5", "3")}
VLF = {"id": "1", "prompt": "What?", "completions": rated("4", "2", "3"), "image": stored()}
TULU = {
    "id": "t",
    "prompt": "Do.",
    "chosen": messages("Do.", "Done."),
    "rejected": messages("Do.", "No."),
}
RLAIF = {
    "question": "What?",
    "chosen": "A cat.",
    "rejected": "A dog.",
    "image": stored(),
    "idx": "3",
    "ds_name": "d",
}
CRITIC = {
    "id": "c",
    "source": "s",
    "conversations": shared(TASK, "The second response is better."),
    "image": stored(),
}

GOOD: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "tulu_if": (TULU, ("Do.", "Done.", "No.")),
    "ultrafeedback": (UF, ("Do it.", "answer 1", "answer 0")),
    "hhh_alignment": (HHH, ("Help?", "Yes.", "No.")),
    "pku_saferlhf": (SAFE, ("How?", "No.", "So.")),
    "shp": (POST, ("Why?", "A.", "B.")),
    "wildvision": ({**BATTLE, "winner": "model_b"}, ("What is it?", "B.", "A.")),
    "llava_critic": (CRITIC, ("What is [it]?", "A dog.", "A [red] cat.")),
    "vlfeedback": (VLF, ("What?", "answer 0", "answer 1")),
    "rlaif_v": (RLAIF, ("What?", "A cat.", "A dog.")),
}
"""A row, and the prompt, the better and the worse answer that it holds."""
BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "tulu_if": [
        ({"chosen": messages("Do.")}, "an answer that does not end with the assistant's turn"),
        ({"rejected": messages("Go.", "No.")}, "the dialogues part before their last turn"),
        ({"chosen": [{"role": "robot", "content": "?"}]}, "no turn whose role is one of"),
        ({"chosen": [{"role": "user", "content": None}]}, "a turn without a text"),
    ],
    "ultrafeedback": [
        ({"completions": rated("5", "5")}, "all have the same ratings"),
        ({"completions": rated("5", "N/A")}, "1 with a text and all ratings"),
        ({"completions": rated("5", "nan")}, "1 with a text and all ratings"),
        ({"completions": 7}, "not of the expected form"),
        ({"instruction": None}, "instruction: None: expected str"),
    ],
    "hhh_alignment": [
        (
            {"targets": {"choices": ["No.", "Yes."], "labels": [1, 1]}},
            "labels [1, 1]: expected a 1",
        ),
        ({"targets": {"choices": ["No."], "labels": [1, 0]}}, "not of the expected form"),
    ],
    "pku_saferlhf": [
        ({"safer_response_id": 2}, "safer_response_id: 2: expected 0 or 1"),
        ({"safer_response_id": "1"}, "safer_response_id: '1': expected int"),
        ({"response_0": " "}, "response_0: empty"),
    ],
    "shp": [({"labels": 7}, "labels: 7: expected 1"), ({"history": ""}, "history: empty")],
    "wildvision": [
        ({"winner": "tie"}, "winner: 'tie': a tie is no pair"),
        ({"image": None}, "image: None: neither bytes nor a file's name"),
        (
            {"conversation_a": messages("Hi.", "x", "And?", "y")},
            "the dialogues part before their last turn",
        ),
    ],
    "llava_critic": [
        (
            {"conversations": shared(TASK, "Both are equally good.")},
            "a judgement that prefers neither",
        ),
        (
            {"conversations": shared("Rate this response.", "7")},
            "no question and two responses in brackets",
        ),
        ({"image": {"bytes": None, "path": None}}, "image: None: neither bytes"),
    ],
    "vlfeedback": [
        ({"image": {"bytes": None, "path": "../x.png"}}, "'../x.png' leaves the source's folder")
    ],
    "rlaif_v": [
        ({"chosen": None}, "chosen: missing"),
        ({"question": 7}, "7: neither a text nor a list of turns"),
        ({"image": 7}, "image: 7: neither bytes nor"),
    ],
}
"""What makes the row above unusable, and the reason that is given."""


@pytest.mark.parametrize("name", GOOD)
def test_a_row_of_the_native_form_is_a_pair(tmp_path: Path, name: str):
    record, expected = GOOD[name]
    [row], refused = read(name, parquet(tmp_path / "train.parquet", record))
    assert (question(row), row.chosen, row.rejected) == expected
    assert (refused, bool(row.media)) == ([], "image" in record)


@pytest.mark.parametrize(
    ("name", "change", "reason"), [(name, *case) for name in BAD for case in BAD[name]]
)
def test_a_bad_row_is_refused_with_its_place_and_the_next_is_read(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
):
    record = {key: value for key, value in GOOD[name][0].items() if key != "image"}
    if "image" in GOOD[name][0]:
        paint(tmp_path / "red.png")
        record["image"] = "red.png"
    write(tmp_path / "train.jsonl", record | change, record)
    rows, [refused] = read(name, tmp_path)
    assert (len(rows), refused.where) == (1, "train.jsonl:1")
    assert reason in refused.reason


@pytest.mark.parametrize("name", GOOD)
def test_a_row_without_one_of_its_fields_is_refused_or_does_without(tmp_path: Path, name: str):
    whole = {key: value for key, value in GOOD[name][0].items() if key != "image"}
    records = [{key: value for key, value in whole.items() if key != gone} for gone in whole]
    rows, refused = read(name, write(tmp_path / "train.jsonl", *records))
    assert len(rows) + len(refused) == len(records)
    assert all("\n" not in item.reason for item in refused)


# What one set only has


def test_the_random_rule_takes_any_lower_answer_and_the_seed_decides(tmp_path: Path):
    write(tmp_path / "a.jsonl", *[UF] * 40)
    rows, _ = read("ultrafeedback", tmp_path)
    assert {(row.chosen, row.rejected) for row in rows} == {
        ("answer 1", "answer 0"),
        ("answer 1", "answer 2"),
    }
    assert read("ultrafeedback", tmp_path)[0] == rows
    assert {row.rejected for row in read("ultrafeedback", tmp_path, rejected="worst")[0]} == {
        "answer 0"
    }


def test_completions_as_datasets_stores_a_sequence_are_the_same(tmp_path: Path):
    columns = {name: [each[name] for each in UF["completions"]] for name in UF["completions"][0]}
    [row], _ = read(
        "ultrafeedback",
        write(tmp_path / "a.jsonl", {**UF, "completions": columns}),
        rejected="worst",
    )
    assert (row.chosen, row.rejected) == ("answer 1", "answer 0")


def test_the_binarised_form_of_ultrafeedback_is_read(tmp_path: Path):
    record = {
        "prompt": "Do.",
        "prompt_id": "x",
        "chosen": messages("Do.", "Done."),
        "rejected": messages("Do.", "No."),
    }
    [row], _ = read("ultrafeedback", parquet(tmp_path / "a.parquet", record))
    assert (question(row), row.chosen, row.rejected) == ("Do.", "Done.", "No.")


@pytest.mark.parametrize(
    ("scores", "num_rows"), [((7.5, 7.0), 1), ((7.0, 7.0), 0), ((None, 7.0), 1), ((6.0, 7.0), 0)]
)
def test_a_binarised_tie_of_ultrafeedback_is_refused(
    tmp_path: Path, scores: tuple[float | None, float], num_rows: int
):
    record = {
        "prompt": "Do.",
        "chosen": messages("Do.", "Done."),
        "rejected": messages("Do.", "No."),
    }
    scored = {"score_chosen": scores[0], "score_rejected": scores[1]}
    rows, refused = read("ultrafeedback", write(tmp_path / "a.jsonl", record | scored))
    assert (len(rows), len(refused)) == (num_rows, 1 - num_rows)
    assert all("a tie is no pair" in item.reason for item in refused)


@pytest.mark.parametrize("name", ["tulu_if", "ultrafeedback"])
def test_a_set_of_texts_may_talk_of_image_tags(tmp_path: Path, name: str):
    text = "What does <image> mean in HTML?"
    record = {
        "prompt": text,
        "chosen": messages(text, "A tag."),
        "rejected": messages(text, "No idea."),
    }
    [row], refused = read(name, write(tmp_path / "a.jsonl", record))
    assert (question(row), refused) == (text, [])


def test_your_own_texts_may_talk_of_image_tags_if_you_say_that_they_are_texts(tmp_path: Path):
    text = "What does <image> mean in HTML?"
    path = write(tmp_path / "a.jsonl", {"prompt": text, "chosen": "A tag.", "rejected": "No idea."})
    [row], _ = read("preferences", path, columns={"images": "", "videos": ""})
    assert question(row) == text
    assert "marks 1 pictures, the row has 0" in read("preferences", path)[1][0].reason


def test_a_text_of_the_official_file_may_talk_of_image_tags(tmp_path: Path):
    text = "What does <image> mean?"
    record = {
        "conversations_a": shared(text, "A tag."),
        "conversations_b": shared(text, "No idea."),
    }
    [row], _ = read("ixc_pairs", write(tmp_path / "a.jsonl", record))
    assert question(row) == text


def test_pku_by_helpfulness(tmp_path: Path):
    [row], _ = read("pku_saferlhf", write(tmp_path / "a.jsonl", SAFE), label="better")
    assert (row.chosen, row.rejected) == ("So.", "No.")


def test_shp_is_read_folder_by_folder_and_can_ask_for_a_clear_vote(tmp_path: Path):
    write(tmp_path / "askbaking" / "train.json", POST, {**POST, "labels": 0})
    write(tmp_path / "askscience" / "train.json", {**POST, "score_ratio": 2.0})
    rows, _ = read("shp", tmp_path)
    assert [(row.id, row.chosen) for row in rows] == [
        ("askbaking/train/1", "A."),
        ("askbaking/train/2", "B."),
        ("askscience/train/1", "A."),
    ]
    assert {row.group for row in rows} == {"p"}
    assert [row.id for row in read("shp", tmp_path, min_score_ratio=2)[0]] == ["askscience/train/1"]


def test_hhh_as_big_bench_has_it(tmp_path: Path):
    example = {"input": "Help?", "target_scores": {"No.": 0, "Yes.": 1}}
    task = {"name": "hhh", "examples": [example, {**example, "target_scores": {"No.": 0}}, 7]}
    (tmp_path / "harmless").mkdir()
    (tmp_path / "harmless" / "task.json").write_text(json.dumps(task, indent=1))
    [row], refused = read("hhh_alignment", tmp_path)
    assert (row.id, row.chosen, row.rejected) == ("harmless/1", "Yes.", "No.")
    assert [item.where for item in refused] == ["task.json:2", "task.json:3"]


def test_vlfeedback_with_its_images_in_a_folder(tmp_path: Path):
    record = {key: value for key, value in VLF.items() if key != "image"}
    paint(tmp_path / "merged_images" / "a.png")
    write(
        tmp_path / "vlfeedback_80k.jsonl",
        {**record, "img_path": "a.png"},
        {**record, "img_path": "b.png"},
    )
    [row], [refused] = read("vlfeedback", tmp_path)
    assert row.media[0].path == tmp_path / "merged_images" / "a.png"
    assert "no such file" in refused.reason


def test_mia_dpo_marks_its_images_in_the_models_way(tmp_path: Path):
    for name in "ab":
        paint(tmp_path / "images" / f"{name}.png")
    two = {
        "id": 1,
        "image": ["images/a.png", "images/b.png"],
        "prompt": "<image-placeholder>\nIn Image1, what?",
    }
    one = {"id": 2, "image": "images/a.png", "prompt": "<image-placeholder>\nWhat?"}
    answers = {"chosen": "A cat.", "rejected": "A dog.", "gt": "A cat."}
    (tmp_path / "dpo_27k.json").write_text(json.dumps([two | answers, one | answers], indent=2))
    rows, refused = read("mia_dpo", tmp_path)
    assert [question(row) for row in rows] == [
        "Image1 <ImageHere>; Image2 <ImageHere>; In Image1, what?",
        "What?",
    ]
    assert ([len(row.media) for row in rows], refused) == ([2, 1], [])


def test_mmif_is_sharegpt_with_two_answers(tmp_path: Path):
    paint(tmp_path / "cc3m" / "a.jpg")
    record = {
        "images": ["cc3m/a.jpg"],
        "conversations": shared("<image>\nDescribe it in two words."),
        "chosen": {"from": "gpt", "value": "Red square."},
        "rejected": {"from": "gpt", "value": "It is a red square."},
    }
    (tmp_path / "mmif.json").write_text(json.dumps([record, {**record, "images": ["gone.jpg"]}]))
    [row], [refused] = read("mmif", tmp_path)
    assert (question(row), row.chosen, row.domain) == (
        "Describe it in two words.",
        "Red square.",
        "instruction",
    )
    assert refused.where == "mmif.json:2"


def test_the_official_training_file_has_texts_images_and_videos(tmp_path: Path):
    paint(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"film")
    better, worse = shared("What?", "A cat."), shared("What?", "A dog.")
    better[1]["from"] = worse[1]["from"] = "bot"
    base = {"id": "0", "conversations_a": better, "conversations_b": worse}
    (tmp_path / "mine.json").write_text(
        json.dumps([base, {**base, "image": "a.png"}, {**base, "image": ["a.mp4"]}, {}])
    )
    rows, [refused] = read("ixc_pairs", tmp_path, domain="text_rich")
    assert [[file.kind for file in row.media] for row in rows] == [[], ["image"], ["video"]]
    assert {(question(row), row.chosen, row.rejected, row.domain) for row in rows} == {
        ("What?", "A cat.", "A dog.", "text_rich")
    }
    assert refused.reason == "conversations_a: missing; add the field or remove the row"


@pytest.mark.parametrize(
    ("judgement", "winner"),
    [
        ("The first response is better because it names the dog.", "first"),
        ("Both are fluent. However, the second response is slightly better.", "second"),
        ("Compared to the first response, the second answer is inferior.", "first"),
        (
            "If the first response were right it would win. The second response is far superior.",
            "second",
        ),
        ("The second response is better since it is not vague.", "second"),
        ("Although it is not perfect, the first response is better, if a bit long.", "first"),
        ("Response 1 is better.", "first"),
        ("Overall, response 2 is worse than response 1.", "first"),
        ("The first one is clearly the better response.", "first"),
        ("Compared to the first response the second is better.", "second"),
        ("The better response is the second one.", "second"),
        ("The second response is more detailed and accurate.", "second"),
        ("The first response is less helpful.", "second"),
        ("The first response is more accurate. The second response is better overall.", "second"),
        ("The second response is better. The first response is more comprehensive.", "second"),
        (
            "The first response is better at colours. All in all, the second response is better.",
            "second",
        ),
        (
            "At first sight the first response is better. In the end, the second response is better.",
            "second",
        ),
        (
            "The first response isn't better, the second response is.\nResponse 2 is preferred.",
            "second",
        ),
    ],
)
def test_a_judgement_names_the_better_response(judgement: str, winner: str):
    assert better(judgement) == winner


@pytest.mark.parametrize(
    "judgement",
    [
        "Neither the first response nor the second response is better.",
        "The first response is not better.",
        "The first response is better and the second response is better.",
        "The first response is more accurate but the second response is more helpful.",
        "The first response is better at naming colours.",
        "The second response is better in terms of style.",
        "It is hard to say whether the first response is better.",
        "The first response isn't better.",
        "Both are equally good. The first response is no better.",
        "",
    ],
)
def test_an_unclear_judgement_is_refused(judgement: str):
    with pytest.raises(Unusable, match=r"prefers (neither|both)"):
        better(judgement)


# Your own columns


def test_columns_are_mapped(tmp_path: Path):
    paint(tmp_path / "a.png")
    record = {
        "q": "<image> or <image>?",
        "win": "Yes.",
        "lose": "No.",
        "pics": ["a.png", "a.png"],
        "key": 7,
        "kind": None,
    }
    columns = {
        "prompt": "q",
        "chosen": "win",
        "rejected": "lose",
        "images": "pics",
        "id": "key",
        "domain": "kind",
    }
    [row], _ = read(
        "preferences", parquet(tmp_path / "a.parquet", record), columns=columns, domain="text_rich"
    )
    assert (row.id, row.domain, question(row)) == ("7", "text_rich", "<ImageHere> or <ImageHere>?")
    assert (row.chosen, row.rejected, len(row.media)) == ("Yes.", "No.", 2)


def test_a_column_that_is_not_there_is_refused_by_its_name(tmp_path: Path):
    record = {"prompt": "Q?", "win": "Yes.", "rejected": "No."}
    columns = {"chosen": "won"}
    assert read("preferences", write(tmp_path / "a.jsonl", record), columns=columns) == (
        [],
        [
            Refused(
                where="a.jsonl:1",
                reason="won: missing; add the other answer, or map its name in `options.columns`",
            )
        ],
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "preferences",
            {"columns": {"promt": "q"}},
            r"options\.columns\.promt: Unexpected keyword",
        ),
        ("preferences", {"domain": "gossip"}, r"options\.domain: Input should be 'instruction'"),
        ("pku_saferlhf", {"lable": "safer"}, r"options\.lable: Unexpected keyword"),
        (
            "shp",
            {"min_score_ratio": 0.5},
            r"options\.min_score_ratio: .*greater than or equal to 1",
        ),
        ("shp", {"seed": 3}, r"options\.seed: Got multiple values"),
        ("gsm8k", {"limit": 3}, r"options\.limit: Unexpected keyword"),
    ],
)
def test_an_option_that_a_reader_does_not_take_is_named(
    tmp_path: Path, name: str, options: dict, message: str
):
    with pytest.raises(BadOption, match=message):
        READERS[name](tmp_path, 0, **options)


# Conversations


def test_an_implicit_prompt_is_what_both_begin_with():
    hh = "\n\nHuman: Hi.\n\nAssistant:"
    assert pair(None, f"{hh} Hello.", f"{hh} No.").chosen == "Hello."
    result = pair(None, messages("Hi.", "Hello."), messages("Hi.", "No."))
    assert ([turn.content for turn in result.prompt], result.chosen, result.rejected) == (
        ["Hi."],
        "Hello.",
        "No.",
    )


@pytest.mark.parametrize(
    "answers", [("Yes.", "No."), (messages("Hi.", "Yes.")[1:], messages("Hi.", "No.")[1:])]
)
def test_answers_without_any_prompt_are_refused(answers: tuple[Any, Any]):
    with pytest.raises(Unusable, match="no prompt"):
        pair(None, *answers)


def test_trls_messages_with_parts_are_read():
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = turns([{"role": "user", "content": [*parts, {"type": "text", "text": " <image>"}]}])
    assert place(prompt, [File(kind="image")])[0].content == "What? <image>"


def test_marks_and_images_have_to_agree(tmp_path: Path):
    paint(tmp_path / "a.png")
    write(
        tmp_path / "a.jsonl",
        {"prompt": "<image> <image>", "chosen": "a", "rejected": "b", "images": ["a.png"]},
    )
    assert "marks 2 pictures, the row has 1" in read("preferences", tmp_path)[1][0].reason
    with pytest.raises(Unusable, match="marks 1 pictures, the row has 0"):
        place(turns("<image>\nWhat?"), [])


# Columns that nobody asked about

PLAIN_PAIR = {"prompt": "What is it?", "chosen": "Red.", "rejected": "Blue.", "images": ["a.png"]}


def read_one(folder: Path, record: dict[str, Any], **options: Any) -> Row | Refused:
    for name in "ab":
        paint(folder / f"{name}.png")
    rows, refused = read("preferences", write(folder / "x.jsonl", record), **options)
    [item] = [*rows, *refused]
    return item


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rejected_images", ["b.png"]),
        ("chosen_images", ["b.png"]),
        ("rejectedImages", ["b.png"]),
        ("images_rejected", "b.png"),
        ("negative_image", {"path": "b.png", "bytes": None}),
        ("image2", "b.png"),
        ("image", "b.png"),
        ("pictures", [7]),
        ("second_pic", "far away"),
        ("extra", "b.png"),
        ("extra", ["data:image/png;base64,aGk="]),
        ("extra", {"nested": {"file": "b.jpeg"}}),
        ("clip", "a"),
        ("audios", ["a.wav"]),
        ("audio", "sound of a bell"),
        ("voice_note", "a bell"),
        ("image_url", "https://example.org/b.png"),
        ("tools", '[{"name": "search"}]'),
        ("objects", {"bbox": [[1, 2, 3, 4]], "ref": ["dog"]}),
        ("history", [["Hi.", "Hello."]]),
        ("input", "A text to translate."),
        ("rejected_response", "Green."),
        ("responses", ["Green.", "Yellow."]),
        ("completion", "Green."),
        ("output", "Green."),
        ("messages", [{"role": "user", "content": "Another."}]),
        ("positive_messages", [{"role": "assistant", "content": "Another."}]),
        ("model_response", "Green."),  # its last word is what it is
        ("source_image", "far away"),
        ("text_rejected", ["Green."] * 2),
        ("second_answer_1", "Green."),
        ("worse", "Green."),
        ("extra", base64.b64encode(stored()["bytes"]).decode()),
        ("image_source", base64.b64encode(stored()["bytes"]).decode()),
        ("extra", "b.avif"),
        ("extra", "b.wmv"),
    ],
)
def test_a_column_that_could_carry_something_is_refused_by_name(
    tmp_path: Path, name: str, value: Any
):
    item = read_one(tmp_path, PLAIN_PAIR | {name: value})
    assert isinstance(item, Refused) and item.reason.startswith(f"{name}: ")
    ignored = read_one(tmp_path, PLAIN_PAIR | {name: value}, ignore=[name])
    assert isinstance(ignored, Row) and len(ignored.media) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rejected_images", ["a.png"]),  # the same as `images`
        ("rejected_images", []),
        ("audios", [None]),
        ("tools", "[]"),
        ("gt", "Red."),
        ("chosen_model", "some/model"),
        ("model_chosen", "some/model"),
        ("score_rejected", "7.5"),
        ("response_model_1", "some/model"),
        ("image_sha256", "0" * 64),
        ("chosen_score", 7.5),
        ("rejected_ratings", [1, 2]),
        ("image_id", "000000123"),
        ("image_size", [640, 480]),
        ("num_images", 1),
        ("messages", None),
        ("url", "https://example.org/a.png"),
        ("my_column", "anything"),
    ],
)
def test_a_column_that_carries_nothing_new_is_no_reason_to_refuse(
    tmp_path: Path, name: str, value: Any
):
    row = read_one(tmp_path, PLAIN_PAIR | {name: value})
    assert isinstance(row, Row) and len(row.media) == 1


def test_bytes_in_a_column_of_any_name_are_refused(tmp_path: Path):
    rows, [refused] = read(
        "preferences", parquet(tmp_path / "a.parquet", PLAIN_PAIR | {"images": None, "x": b"\x89"})
    )
    assert rows == [] and refused.reason.startswith("x: b'\\x89': could carry media")


def test_a_readers_own_set_has_no_column_more_than_it_reads(tmp_path: Path):
    for name, record in {
        "mmif": {"conversations": shared("Hi."), "chosen": "A.", "rejected": "B."},
        **SETS,
    }.items():
        rows, [refused] = read(
            name, write(tmp_path / f"{name}.jsonl", record, record | {"rejected_images": ["b.png"]})
        )
        assert len(rows) == 1, name
        assert refused.reason.startswith("rejected_images: "), name


SETS = {
    "ixc_pairs": {
        "conversations_a": shared("Hi.", "A."),
        "conversations_b": shared("Hi.", "B."),
        "turn": 1,
    },
    "hh_rlhf": {
        "chosen": "\n\nHuman: Hi.\n\nAssistant: A.",
        "rejected": "\n\nHuman: Hi.\n\nAssistant: B.",
    },
    "tulu_if": TULU,
}


# Media in the record


def encoded(form: str) -> str:
    text = base64.b64encode(stored()["bytes"]).decode()
    forms = {
        "plain": text,
        "url": f"data:image/png;base64,{text}",
        "lines": "\n".join([text[:60], text[60:]]),
    }
    return forms.get(form) or "data:image/png," + quote(stored()["bytes"])


@pytest.mark.parametrize("form", ["plain", "url", "lines", "percent"])
@pytest.mark.parametrize(
    "wrap",
    [lambda v: v, lambda v: [v], lambda v: {"bytes": v, "path": "1.png"}, lambda v: [{"path": v}]],
)
def test_a_image_may_stand_in_the_record_as_text(tmp_path: Path, form: str, wrap: Any):
    item = read_one(tmp_path, PLAIN_PAIR | {"images": wrap(encoded(form))})
    assert isinstance(item, Row) and [file.data for file in item.media] == [stored()["bytes"]]


@pytest.mark.parametrize("value", ["data:image/png;base64,?", "data:image/png;base64", "data:,"])
def test_a_broken_data_url_is_refused(tmp_path: Path, value: str):
    item = read_one(tmp_path, PLAIN_PAIR | {"images": value})
    assert (
        isinstance(item, Refused)
        and "a data URL without data, or whose base64 is broken" in item.reason
    )


@pytest.mark.parametrize("value", ["", None, []])
def test_a_row_of_text_may_say_that_it_has_no_image(tmp_path: Path, value: Any):
    record = {**PLAIN_PAIR, "images": None, "image": value}
    assert isinstance(read_one(tmp_path, record), Row)
    lost = read_one(tmp_path, record | {"prompt": "<image>\nWhat is it?"})
    assert isinstance(lost, Refused) and "marks 1 pictures, the row has 0" in lost.reason


def test_a_number_that_json_does_not_know_is_kept_as_text(tmp_path: Path):
    item = read_one(tmp_path, PLAIN_PAIR | {"scores": [float("nan"), float("-inf"), 0.5]})
    assert isinstance(item, Row) and item.meta == {"columns": {"scores": ["nan", "-inf", 0.5]}}


def test_an_empty_id_is_none(tmp_path: Path):
    rows, refused = read(
        "preferences", write(tmp_path / "x.jsonl", *[PLAIN_PAIR | {"images": [], "id": ""}] * 2)
    )
    assert ([row.id for row in rows], refused) == (["x/1", "x/2"], [])


def test_a_image_on_the_web_is_refused_with_the_remedy(tmp_path: Path):
    item = read_one(tmp_path, PLAIN_PAIR | {"images": "https://example.org/a.png"})
    assert isinstance(item, Refused) and "an address on the web; download it" in item.reason


@pytest.mark.parametrize(
    "source",
    [
        {"base64": encoded("plain")},
        {"source": {"type": "base64", "media_type": "image/png", "data": encoded("plain")}},
    ],
)
def test_a_part_of_a_turn_may_hold_its_image_as_anthropic_has_it(
    tmp_path: Path, source: dict[str, Any]
):
    parts = [{"type": "image", **source}, {"type": "text", "text": "What is it?"}]
    item = read_one(
        tmp_path, {**PLAIN_PAIR, "images": None, "prompt": [{"role": "user", "content": parts}]}
    )
    assert isinstance(item, Row) and [file.data for file in item.media] == [stored()["bytes"]]


@pytest.mark.parametrize(
    "part", [{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": "a.png"}]
)
def test_a_part_of_a_turn_may_bring_its_image_along(tmp_path: Path, part: dict[str, Any]):
    parts = [{"type": "text", "text": "Is "}, part, {"type": "text", "text": " red?"}]
    record = {**PLAIN_PAIR, "images": None, "prompt": [{"role": "user", "content": parts}]}
    item = read_one(tmp_path, record)
    assert isinstance(item, Row)
    assert (question(item), item.media[0].path) == ("Is <ImageHere> red?", tmp_path / "a.png")
    both = read_one(tmp_path, record | {"images": ["b.png"]})
    assert isinstance(both, Refused) and "both in the turns and in images" in both.reason


def test_an_answer_that_shows_another_image_than_the_prompt_is_refused(tmp_path: Path):
    questions = {
        name: {"role": "user", "content": [{"type": "image", "image": f"{name}.png"}]}
        for name in "ab"
    }
    answers = {
        word: [questions["b"], {"role": "assistant", "content": word}] for word in ("Red.", "Blue.")
    }
    record = {"prompt": [questions["a"]], "chosen": answers["Red."], "rejected": answers["Blue."]}
    item = read_one(tmp_path, record)
    assert isinstance(item, Refused) and "prompt and answers show other pictures" in item.reason
    same = read_one(tmp_path, record | {"prompt": [questions["b"]]})
    assert isinstance(same, Row) and [file.path for file in same.media] == [tmp_path / "b.png"]


@pytest.mark.parametrize(
    ("key", "value"), [("images", ["b.png"]), ("image", "b.png"), ("tool_calls", [{"id": "1"}])]
)
def test_what_a_turn_carries_beside_its_content_is_refused_by_name(
    tmp_path: Path, key: str, value: Any
):
    turn = {"role": "user", "content": "What is it?"}
    item = read_one(tmp_path, PLAIN_PAIR | {"prompt": [turn | {key: value}]})
    assert isinstance(item, Refused) and item.reason.startswith(f"{key}: ")
    assert isinstance(
        read_one(tmp_path, PLAIN_PAIR | {"prompt": [turn | {key: None, "turn_id": 3}]}), Row
    )


@pytest.mark.parametrize("kind", ["audio", "input_audio", "tool_use", None])
def test_a_part_of_another_kind_is_refused(tmp_path: Path, kind: str | None):
    prompt = [{"role": "user", "content": [{"type": kind, "audio": "a.wav"}]}]
    item = read_one(tmp_path, {**PLAIN_PAIR, "images": None, "prompt": prompt})
    assert isinstance(item, Refused) and "no part of type text, image or video" in item.reason


def test_videos_and_images_come_in_the_order_of_their_marks(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    record = {**PLAIN_PAIR, "prompt": "Is <video> like <image>?", "videos": ["a.mp4"]}
    item = read_one(tmp_path, record)
    assert isinstance(item, Row) and [file.kind for file in item.media] == ["video", "image"]


def test_a_image_of_a_later_question_stays_there(tmp_path: Path):
    prompt = messages("Hi.", "Hello.", "<image>\nWhat is it?")
    item = read_one(tmp_path, {**PLAIN_PAIR, "prompt": prompt})
    assert isinstance(item, Row) and item.prompt[2].content == "<ImageHere>\nWhat is it?"


# Forms of other tools


@pytest.mark.parametrize(
    "record",
    [
        {"messages": messages("What is it?", "Red."), "rejected_response": "Blue."},
        {
            "messages": messages("What is it?", "Red."),
            "rejected_messages": messages("What is it?", "Blue."),
        },
        {
            "conversations": shared("What is it?"),
            "chosen": shared("", "Red.")[1],
            "rejected": shared("", "Blue.")[1],
        },
        {"messages": messages("What is it?"), "chosen": "Red.", "rejected": "Blue."},
    ],
)
def test_the_forms_of_ms_swift_and_llama_factory_are_read(tmp_path: Path, record: dict[str, Any]):
    item = read_one(tmp_path, record | {"image": "a.png", "system": "Be brief."})
    assert isinstance(item, Row)
    assert [(turn.role, turn.content) for turn in item.prompt] == [
        ("system", "Be brief."),
        ("user", "What is it?"),
    ]
    assert (item.chosen, item.rejected, len(item.media), item.answer) == ("Red.", "Blue.", 1, None)


@pytest.mark.parametrize(
    "record", [{"messages": messages("What is it?")}, {"conversations": shared("What is it?")}]
)
def test_a_conversation_that_waits_for_its_answer_is_a_prompt(
    tmp_path: Path, record: dict[str, Any]
):
    item = read_one(tmp_path, record | {"image": "a.png"})
    assert isinstance(item, Row)
    assert (question(item), item.answer, item.chosen, len(item.media)) == (
        "What is it?",
        None,
        "",
        1,
    )


def test_answers_of_several_turns_against_one_are_no_pair(tmp_path: Path):
    item = read_one(tmp_path, PLAIN_PAIR | {"chosen": messages("", "Red.", "Sure?", "Yes.")[1:]})
    assert isinstance(item, Refused) and "two prompts, no pair" in item.reason


def test_a_prompt_that_the_dialogue_does_not_hold_is_not_dropped(tmp_path: Path):
    whole = {
        "chosen": messages("What is it?", "Red."),
        "rejected": messages("What is it?", "Blue."),
    }
    assert isinstance(read_one(tmp_path, PLAIN_PAIR | whole), Row)
    item = read_one(tmp_path, PLAIN_PAIR | whole | {"prompt": "Answer in French."})
    assert isinstance(item, Refused) and item.reason.startswith("prompt: says something else")


def test_two_empty_answers_are_no_prompt(tmp_path: Path):
    item = read_one(tmp_path, PLAIN_PAIR | {"chosen": "", "rejected": " "})
    assert isinstance(item, Refused) and item.reason.startswith("two empty answers")
