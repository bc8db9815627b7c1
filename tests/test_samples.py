"""The record: what pairs say about their prompts, and answers of several turns."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from ixc.data.samples import (
    BadRecord,
    Turn,
    answer,
    objection_to_turns,
    read_batches,
    read_each,
    read_pairs,
    read_samples,
    write_samples,
)
from ixc.engine.preference_groups import preference_group
from ixc.engine.scoring import score, scored_ids
from ixc.models.ixc25.processing import BadConversation
from ixc.params import JudgeParams
from ixc.serve.api import RewardModel
from ixc.stages.judge import stage as judge
from ixc.stages.train_ppo import prompts_to_learn

SEVERAL = (
    *answer("It is red."),
    Turn(role="user", content="Are you sure?"),
    *answer("Yes, as a rose."),
)
IDS = ("web/q#1", "web/q", "#", "a#b#c", "plain", "web/q#1#0")


def test_every_prompt_of_a_pair_is_found_whatever_its_id_looks_like(tmp_path: Path):
    prompts = [
        tiny.sample(id, gold=tiny.match("red", "blue"), candidates=("red", "blue")) for id in IDS
    ]
    write_samples(prompts, tmp_path / "candidates.parquet")
    paths = [
        tmp_path / name for name in ("candidates.parquet", "media", "judged.parquet", "verdicts")
    ]
    judge.run(JudgeParams(), *paths)
    pairs = list(read_samples(paths[2]))
    assert [pair.prompt_id for pair in pairs] == list(IDS)
    assert prompts_to_learn(pairs[1:3], prompts, paths[2]) == prompts[1:3]
    assert prompts_to_learn(pairs, prompts, paths[2]) == prompts


def test_pairs_that_name_no_prompt_or_a_lost_one_are_refused(tmp_path: Path):
    prompts, table = [tiny.sample("q", gold=tiny.match("red"))], tmp_path / "train.parquet"
    with pytest.raises(
        BadRecord,
        match=r"train.parquet: prompt_id: no pair names .* run `judge` and `validate` again",
    ):
        prompts_to_learn([tiny.pair("q", "x", "y", id="q#0")], prompts, table)
    with pytest.raises(BadRecord, match="prompt_id: 'gone'"):
        prompts_to_learn(
            [tiny.pair("q", "x", "y", prompt_id=name) for name in ("q", "gone")], prompts, table
        )


def test_prompts_that_nobody_knows_an_answer_to_are_learned_from_too(tmp_path: Path):
    known, held_out = (
        tiny.sample("known", gold=tiny.match("red")),
        tiny.sample("held out", split="val"),
    )
    prompts = [tiny.sample("alone"), known, held_out, tiny.sample("alone too")]
    assert prompts_to_learn([], prompts, tmp_path) == [prompts[0], prompts[3]]
    pairs = [tiny.pair("known", "x", "y", prompt_id="known")]
    assert prompts_to_learn(pairs, prompts, tmp_path) == [prompts[0], known, prompts[3]]


def test_a_table_of_before_the_column_is_read_and_copied(tmp_path: Path):
    write_samples([tiny.pair("q", "x", "y")], tmp_path / "new.parquet")
    pq.write_table(
        pq.read_table(tmp_path / "new.parquet").drop_columns(["prompt_id"]),
        tmp_path / "old.parquet",
    )
    assert list(read_samples(tmp_path / "old.parquet")) == [tiny.pair("q", "x", "y")]
    [(_, batch)] = read_batches(tmp_path / "old.parquet")
    assert batch["prompt_id"].to_pylist() == [""]


def test_an_answer_of_several_turns_is_scored_whole_as_the_chat_is(tmp_path: Path):
    sample, model = tiny.sample("What colour is it?"), tiny.reward()
    [[whole, first, text]] = score(
        model,
        tiny.vision_cache(model, tmp_path),
        [sample],
        [[SEVERAL, SEVERAL[:1], "It is red."]],
        1,
    )
    chat = [{"role": turn.role, "content": turn.content} for turn in (*sample.prompt, *SEVERAL)]
    assert [whole] == pytest.approx(RewardModel(model, tiny.processor()).score([chat]), abs=1e-5)
    assert first == text != whole


def test_pairs_that_differ_in_a_later_turn_are_trained_on_as_different(tmp_path: Path):
    pair = tiny.pair(
        "What colour is it?", "", "", chosen=SEVERAL, rejected=(*SEVERAL[:2], *answer("No."))
    )
    row, vision_cache = preference_group([pair]), tiny.vision_cache(tiny.reward(), tmp_path)
    assert (row.chosen, row.rejected) == ([0], [1])
    assert scored_ids(vision_cache, row.answers[0]) != scored_ids(vision_cache, row.answers[1])


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((), "no answer"),
        (
            (Turn(role="user", content="Why?"), *answer("Because.")),
            "turns of user, assistant: .* move what comes",
        ),
        (SEVERAL[:2], "turns of assistant, user: .* remove what follows"),
        (
            (SEVERAL[0], Turn(role="user", content="<ImageHere>?"), SEVERAL[2]),
            "<ImageHere> in a turn after the first",
        ),
    ],
)
def test_turns_that_are_no_answer_are_refused_by_name(
    turns: tuple[Turn, ...], reason: str, tmp_path: Path
):
    assert objection_to_turns(turns)
    good = tiny.pair("q", "x", "y")
    write_samples(
        [good, tiny.pair("r", "", "", chosen=answer("x"), rejected=turns)],
        tmp_path / "pairs.parquet",
    )
    with pytest.raises(BadRecord, match=rf"pairs.parquet: row 1 \(r\): rejected: {reason}"):
        read_pairs(tmp_path / "pairs.parquet")
    with pytest.raises(BadConversation, match=reason):
        tiny.processor().answer(turns)


def test_changed_bytes_are_named_with_their_file_and_row(tmp_path: Path):
    path = tmp_path / "samples.parquet"
    write_samples([tiny.pair(f"Question {i}?", "Yes.", f"No {i}.") for i in range(50)], path)
    whole, refused = path.read_bytes(), []
    for place in range(4, len(whole) - 8, 97):
        path.write_bytes(
            whole[:place]
            + bytes(byte ^ 0x5A for byte in whole[place : place + 40])
            + whole[place + 40 :]
        )
        try:
            list(read_each(path))
        except BadRecord as error:
            refused.append(str(error))
    assert any(f"{path}: cannot be read from row 0 on" in reason for reason in refused)
    assert all(str(path) in reason for reason in refused)
