"""Score, compare, rank and reply: the same numbers alone, together and after saving; and what bad input says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from ixc.api import ChatModel, RewardModel, _messages, branched, convert
from ixc.compat import AutoModel, AutoTokenizer
from ixc.model import BadCheckpoint
from ixc.model.folder import save
from ixc.model.processing import BadConversation, TooLong
from ixc.sources.embedded.films import encode

RED, WIDE = Image.new("RGB", (28, 28), "red"), Image.new("RGB", (70, 28), "blue")
FILM = [Image.new("RGB", (28, 20), colour) for colour in ("red", "green", "blue")]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return RewardModel(tiny.reward(), tiny.processor())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[list[Any]]]:
    """Sixteen chats: texts, pictures, several pictures, a film file, several turns, one question with four answers."""
    film = tmp_path_factory.mktemp("films") / "film.mp4"
    film.write_bytes(encode([frame.resize((64, 48)) for frame in FILM]))
    chats = [chat("How many?", str(n) * n) for n in range(1, 5)]
    media: list[list[Any]] = [[RED]] * 4
    chats += [chat("Name it.", "x" * n) for n in range(1, 4)] + [chat("A film?", "Yes.")]
    media += [[], [WIDE], [np.asarray(WIDE)], [film]]
    chats += [[*chat("Hello!", "Hi."), *chat("Which?", "b" * n)] for n in range(1, 8)]
    media += [[], [RED], [], [WIDE], [RED], [], []]
    chats.append(chat("Image1 <ImageHere>; Image2 <ImageHere>: which is red?", "The first."))
    media.append([RED, WIDE])
    return chats, media


def test_a_chat_scores_the_same_alone_among_others_and_after_saving(
    model: RewardModel, mixed: tuple[list[Any], list[list[Any]]], tmp_path: Path
):
    chats, media = mixed
    together = model.score(chats, media)
    alone = [model.score([one], [shown])[0] for one, shown in zip(chats, media, strict=True)]
    save(model.model, model.processor, tmp_path / "saved")
    loaded = RewardModel.from_pretrained(tmp_path / "saved")
    assert together == pytest.approx(alone, abs=1e-5)
    assert loaded.score(chats, media) == pytest.approx(alone, abs=1e-5)
    assert np.std(alone) > 0.05


def test_the_score_is_that_of_the_plain_forward_pass(model: RewardModel, mixed: tuple[list[Any], list[list[Any]]]):
    for one, shown in zip(*mixed, strict=True):
        with torch.no_grad():
            wanted = model.model(**model.processor(one, images=shown)).logits.item()
        assert model.score([one], [shown]) == pytest.approx([wanted], abs=1e-5)


def test_eager_and_sdpa_agree(mixed: tuple[list[Any], list[list[Any]]]):
    scores = []
    for attention in ("eager", "sdpa"):
        reward = tiny.reward()
        reward.set_attn_implementation(attention)
        scores.append(RewardModel(reward, tiny.processor()).score(*mixed))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_picture_shown_to_four_answers_passes_the_tower_once(model: RewardModel, monkeypatch: pytest.MonkeyPatch):
    passed: list[int] = []
    plain = model.model.encode_pictures
    monkeypatch.setattr(model.model, "encode_pictures", lambda shown: passed.append(len(shown)) or plain(shown))
    model.score([chat("How many?", str(n)) for n in range(4)], [[RED]] * 4)
    assert passed == [1]


def test_rank_gives_scores_places_and_order(model: RewardModel):
    chats = [chat("Name it.", answer) for answer in ("red", "blue", "red", "green")]
    scores, ranks, order = model.rank(chats)
    assert [scores[i] for i in order] == sorted(scores, reverse=True)
    assert [order[rank - 1] for rank in ranks] == [0, 1, 2, 3]
    assert ranks[0] < ranks[2]  # equal chats keep their order


def test_compare_gives_the_probability_of_the_paper(model: RewardModel):
    first, second = chat("Name it.", "red"), chat("Name it.", "blue")
    found = model.compare(first, second, [RED])
    one, other = model.score([first, second], [[RED], [RED]])
    assert found.scores == pytest.approx((one, other), abs=1e-5)
    assert found.probability == pytest.approx(1 / (1 + np.exp(other - one)))
    assert found.better == (0 if one > other else 1)
    assert model.compare(first, first).better is None


def test_a_single_picture_needs_no_list(model: RewardModel):
    one = chat("Name it.", "red")
    assert model.score([one], [RED]) == model.score([one], [[RED]])
    assert model.compare(one, one, RED).scores == model.compare(one, one, [RED]).scores


def test_more_prompts_than_fit_in_memory_are_scored_in_turn(model: RewardModel, monkeypatch: pytest.MonkeyPatch):
    chats = [chat(f"Question {n % 7}?", "x" * n) for n in range(20)]
    wanted = model.score(chats)
    monkeypatch.setattr("ixc.api.PROMPTS_AT_ONCE", 2)
    assert model.score(chats) == pytest.approx(wanted, abs=1e-5)


def test_no_chats_no_scores(model: RewardModel):
    assert model.score([]) == []


@pytest.mark.parametrize(
    ("chats", "media", "message"),
    [
        ([[{"role": "user", "content": "Hi."}]], None, "assistant"),
        ([[]], None, "message"),
        ([[{"role": "robot", "content": "Hi."}]], None, "robot"),
        ([[{"text": "Hi."}]], None, "role"),
        ([chat("Hi.", "Hi.")], [], "1 chats but media for 0"),
        ([chat("Hi.", "Hi.")], [[RED, RED]], "Image1 <ImageHere>; Image2 <ImageHere>"),
        ([chat("<ImageHere>", "Hi.")], [[]], "0 pictures but 1 placeholders"),
        ([chat("Hi.", "Hi."), chat("Hi.", "Ho."), chat("Hi.", "\ud800")], None, "chat 2: .*no Unicode"),
    ],
)
def test_bad_chats_are_refused(model: RewardModel, chats: Any, media: Any, message: str):
    with pytest.raises(BadConversation, match=message):
        model.score(chats, media)


def test_a_chat_alone_is_not_a_list_of_chats():
    with pytest.raises(BadConversation, match=r"chat 0: .*'user'.*no list of messages; give a list of such lists"):
        _messages(chat("Hi.", "Hi.")[0], 0)


def test_what_is_too_long_is_refused(model: RewardModel):
    short = RewardModel(model.model, model.processor, max_length=20)
    with pytest.raises(TooLong, match="20"):
        short.score([chat("Name it.", "x" * 99)])


def test_sequences_become_a_tree():
    assert branched([[1, 2], [1, 2]]).branches == [[2], [2]]
    assert branched([[1, 2, 3]]).prefix == [1, 2]


def test_a_reply_is_generated(tmp_path: Path):
    policy = ChatModel(tiny.causal(), tiny.processor())
    save(policy.model, policy.processor, tmp_path / "chat")
    loaded = ChatModel.from_pretrained(tmp_path / "chat")
    asked = [{"role": "user", "content": "What is it?"}]
    assert loaded.reply(asked, [RED], max_new_tokens=4) == policy.reply(asked, [RED], max_new_tokens=4)


def test_there_and_back_is_the_same_model(model: RewardModel, tmp_path: Path):
    save(model.model, model.processor, tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "official") == {"new": [], "ignored": []}
    assert not (tmp_path / "official" / "processor_config.json").exists()
    assert convert(tmp_path / "official", tmp_path / "again") == {"new": [], "ignored": []}
    one, wanted = chat("Name it.", "red"), model.score([chat("Name it.", "red")], [[RED]])
    for name in ("official", "again"):
        assert RewardModel.from_pretrained(tmp_path / name).score([one], [[RED]]) == wanted


def test_a_model_without_the_head_is_no_such_model(model: RewardModel, tmp_path: Path):
    save(model.model, model.processor, tmp_path / "reward")
    with pytest.raises(BadCheckpoint, match=r"reward: no output\.weight.*name the folder of a chat model"):
        ChatModel.from_pretrained(tmp_path / "reward")


def test_the_official_example_runs(model: RewardModel, tmp_path: Path):
    save(model.model, model.processor, tmp_path / "reward")
    RED.save(tmp_path / "cars1.jpg")
    official: Any = AutoModel.from_pretrained(
        tmp_path / "reward", device_map="cpu", torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    official.tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward", trust_remote_code=True)
    first, second = chat("Name it.", "red"), chat("Name it.", "blue")
    image = [str(tmp_path / "cars1.jpg")]
    scores = official.get_scores([first, second], [image] * 2, hd_num=9)
    assert scores == pytest.approx([official.get_score(c, image, hd_num=9) for c in (first, second)], abs=1e-5)
    assert official.get_scores([first], [[]]) == official.get_score(first, [])
    assert official.compare(first, image, second, image, hd_num=9) is bool(scores[0] > scores[1])
    assert official.rank([first, second], [image] * 2, hd_num=9) == sorted((0, 1), key=lambda i: -scores[i])
