"""Score, compare, rank and reply: the same numbers alone, together and after saving; and what bad input says."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from ixc.data.media import BadMedia
from ixc.data.sources.embedded.videos import encode
from ixc.models import save
from ixc.models.ixc25 import BadCheckpoint, IXCForRewardModel, IXCProcessor, language
from ixc.models.ixc25.processing import BadConversation, BadProcessor, TooLong
from ixc.models.ixc25.tiles import partition, to_tiles
from ixc.models.ixc25.tokenizers import is_byte
from ixc.models.kernels import NoAttention
from ixc.packing.layout import PackedBatch
from ixc.serve.api import BadScore, ChatModel, RewardModel, Video, branched, convert
from ixc.serve.compat import AutoModel, AutoTokenizer, OfficialRewardModel
from ixc.serve.streaming import Streamed

RED, WIDE = Image.new("RGB", (28, 28), "red"), Image.new("RGB", (70, 28), "blue")
FILM = [Image.new("RGB", (28, 20), colour) for colour in ("red", "green", "blue")]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return RewardModel(tiny.reward(), tiny.processor())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[list[Any]]]:
    """Sixteen chats: texts, images, several images, a video file, several turns, one question with four answers."""
    video = tmp_path_factory.mktemp("films") / "film.mp4"
    video.write_bytes(encode([frame.resize((64, 48)) for frame in FILM]))
    chats = [chat("How many?", str(n) * n) for n in range(1, 5)]
    media: list[list[Any]] = [[RED]] * 4
    chats += [chat("Name it.", "x" * n) for n in range(1, 4)] + [chat("A film?", "Yes.")]
    media += [[], [WIDE], [np.asarray(WIDE)], [video]]
    chats += [[*chat("Hello!", "Hi."), *chat("Which?", "b" * n)] for n in range(1, 8)]
    media += [[], [RED], [], [WIDE], [RED], [], []]
    chats.append(chat("Image1 <ImageHere>; Image2 <ImageHere>: which is red?", "The first."))
    media.append([RED, WIDE])
    return chats, media


def test_equal_chats_get_equal_scores_to_the_last_digit(model: RewardModel):
    """Three times the same image in other objects, and one that is equal but for its palette."""
    indexed = [Image.new("P", (28, 28)) for _ in range(3)]
    for image, colour in zip(indexed, ((200, 0, 0), (200, 0, 0), (0, 0, 200)), strict=True):
        image.putpalette(colour)
    shown: list[Any] = [
        [RED],
        [RED.copy()],
        [np.asarray(RED)],
        [np.array(RED)],
        *([each] for each in indexed),
    ]
    chats = [chat("What is it?", "A square.")] * len(shown)
    longer = [chat(f"Something else, number {n}?", "Yes, " * n) for n in range(9)]
    scores = model.score([*chats, *longer], [*shown, *([[]] * 9)])
    assert scores[0] == scores[1] and scores[2] == scores[3] and scores[4] == scores[5]
    assert abs(scores[5] - scores[6]) > 1e-4


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


@pytest.mark.parametrize("seed", range(3))
def test_in_bf16_a_chat_scores_nearly_the_same_alone_and_among_others(
    seed: int, mixed: tuple[list[Any], list[list[Any]]]
):
    # the bound that README states; a row's place in a pass decides how its numbers are rounded
    torch.manual_seed(seed)
    exact = RewardModel(
        tiny.shaken(IXCForRewardModel(tiny.config(hidden_size=64)), seed), tiny.processor()
    )
    wanted = exact.score(*mixed)
    rounded = RewardModel(exact.model.bfloat16(), exact.processor)
    together = rounded.score(*mixed)
    alone = [rounded.score([one], [shown])[0] for one, shown in zip(*mixed, strict=True)]
    spread = max(wanted) - min(wanted)
    assert together == pytest.approx(alone, abs=0.05 * spread)
    assert together == pytest.approx(wanted, abs=0.1 * spread)


def test_the_score_is_that_of_the_plain_forward_pass(
    model: RewardModel, mixed: tuple[list[Any], list[list[Any]]]
):
    for one, shown in zip(*mixed, strict=True):
        with torch.no_grad():
            wanted = model.model(**model.processor(one, images=shown)).logits.item()
        assert model.score([one], [shown]) == pytest.approx([wanted], abs=1e-5)


def test_eager_is_another_way_to_the_same_scores(
    model: RewardModel, mixed: tuple[list[Any], list[list[Any]]], monkeypatch: pytest.MonkeyPatch
):
    plain = tiny.reward()
    plain.set_attn_implementation("eager")
    called: list[int] = []
    formulae = language.eager_attention
    monkeypatch.setattr(
        language, "eager_attention", lambda *x, **y: called.append(len(x[1])) or formulae(*x, **y)
    )
    wanted = RewardModel(plain, tiny.processor()).score(*mixed)
    assert sum(called) == 2 * len(wanted)  # every chat a row of its own, in either layer
    called.clear()
    assert model.score(*mixed) == pytest.approx(wanted, abs=1e-5)
    assert not called


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_under_dynamic_scaling_too_a_score_does_not_depend_on_the_other_answers(attention: str):
    scaled = tiny.reward(
        max_position_embeddings=40, rope_scaling={"type": "dynamic", "factor": 2.0}
    )
    scaled.set_attn_implementation(attention)
    model = RewardModel(scaled, tiny.processor())
    chats = [chat("Name it.", "x" * n) for n in (1, 2, 40, 40, 41)]
    chats[3] = chat("Name it.", "y" * 40)
    alone = [model.score([one])[0] for one in chats]
    assert model.score(chats) == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 4) for score in alone}) == 5


def test_a_image_may_be_part_of_an_answer(model: RewardModel):
    asked = {"role": "user", "content": "Draw it."}
    image, text = {"type": "image"}, {"type": "text", "text": "Here."}
    parts = ([image, text], [text, image], [text])
    chats = [[asked, {"role": "assistant", "content": list(some)}] for some in parts]
    alone = [model.score([one], [[RED]])[0] for one in chats]
    assert model.score(chats, [[RED]] * 3) == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 4) for score in alone}) == 3


def test_a_image_shown_to_four_answers_passes_the_tower_once(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
):
    passed: list[int] = []
    plain = model.model.encode_images
    monkeypatch.setattr(
        model.model, "encode_images", lambda shown: passed.append(len(shown)) or plain(shown)
    )
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


def test_a_single_image_needs_no_list(model: RewardModel):
    one = chat("Name it.", "red")
    assert model.score([one], [RED]) == model.score([one], [[RED]])
    assert model.compare(one, one, RED).scores == model.compare(one, one, [RED]).scores


def test_more_prompts_and_answers_than_fit_into_a_pass_are_scored_in_turn(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
):
    chats = [chat(f"Question {n % 7}?", "x" * n) for n in range(40)]
    wanted = model.score(chats)
    sizes: list[int] = []
    plain = model.model.response_scores

    def counted(batch: PackedBatch, image_features: Tensor | None) -> Tensor:
        sizes.append(batch.input_ids.numel())
        return plain(batch, image_features)

    monkeypatch.setattr(model.model, "response_scores", counted)
    monkeypatch.setattr("ixc.serve.api.TOKENS_AT_ONCE", 150)
    assert model.score(chats) == pytest.approx(wanted, abs=1e-5)
    assert max(sizes) <= 150 and len(sizes) < 20


def test_a_image_of_many_answers_passes_the_tower_once(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ixc.serve.api.TOKENS_AT_ONCE", 150)
    passed: list[int] = []
    plain = model.model.encode_images
    monkeypatch.setattr(
        model.model, "encode_images", lambda shown: passed.append(len(shown)) or plain(shown)
    )
    chats = [chat("How many?", str(n) * 9) for n in range(40)]
    found = model.score(chats, [[RED]] * 40)
    assert passed == [1]
    alone = RewardModel(model.model, model.processor).score(chats[:1], [[RED]])
    assert found[0] == pytest.approx(alone[0], abs=1e-5)


MEMORY = """
import resource, sys
import tiny
from ixc.serve.api import RewardModel
model = RewardModel(tiny.reward(hidden_size=128, intermediate_size=512), tiny.processor())
asked = {"role": "user", "content": "Describe it."}
chats = [[asked, {"role": "assistant", "content": f"Answer {n}, at length."}] for n in range(int(sys.argv[1]))]
assert len(set(model.score(chats))) > 50
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_answers_take_the_memory_of_a_hundred():
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        "OMP_NUM_THREADS": "1",
    }
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", MEMORY, str(count)], env=environment))
        for count in (100, 10_000)
    ]
    assert peaks[1] < 1.2 * peaks[0]


def test_equal_answers_have_equal_scores_in_whatever_pass(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ixc.serve.api.TOKENS_AT_ONCE", 60)
    answers = ["x" * (n % 9) for n in range(40)]
    found = model.score([chat("Name it.", answer) for answer in answers])
    assert len(set(found)) == len(set(answers))


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
        ([chat("<ImageHere>", "Hi.")], [[]], "0 images but 1 placeholders"),
        (
            [chat("Hi.", "Hi."), chat("Hi.", "Ho."), chat("Hi.", "\ud800")],
            None,
            "chat 2: .*no Unicode",
        ),
    ],
)
def test_bad_chats_are_refused(model: RewardModel, chats: Any, media: Any, message: str):
    with pytest.raises(BadConversation, match=message):
        model.score(chats, media)


def test_a_chat_alone_is_not_a_list_of_chats(model: RewardModel):
    with pytest.raises(
        BadConversation, match=r"chat 0: .*'user'.*no list of messages; give a list of such lists"
    ):
        model.score(chat("Hi.", "Hi."))


def test_what_is_too_long_is_refused(model: RewardModel):
    short = RewardModel(model.model, model.processor, max_length=20)
    with pytest.raises(TooLong, match="20"):
        short.score([chat("Name it.", "x" * 99)])


def test_sequences_become_a_tree():
    assert branched([[1, 2], [1, 2]]).responses == [[2], [2]]
    assert branched([[1, 2, 3]]).prefix == [1, 2]


def test_each_chat_has_a_score_or_a_reason(model: RewardModel, tmp_path: Path):
    good, other = chat("Name it.", "red"), chat("Name it.", "blue")
    missing = str(tmp_path / "missing.png")
    chats = [
        good,
        [good[0]],
        other,
        good,
        {"messages": good, "pictures": [RED]},
        other,
        chat("Hi.", "\ud800"),
        good,
    ]
    media = [[RED], [], [RED], [missing], [], [missing], [], ["x" * 5000 + ".png"]]
    found = model.score_each(chats, media)
    wanted = model.score([good, other], [[RED]] * 2)
    assert [found[0].score, found[2].score] == pytest.approx(wanted, abs=1e-5)
    assert [bool(outcome.reason) for outcome in found] == [
        False,
        True,
        False,
        True,
        True,
        True,
        True,
        True,
    ]
    assert all((outcome.score is None) == bool(outcome.reason) for outcome in found)
    reasons = {
        1: "nothing to score; end with an assistant's answer$",
        3: "missing.png: no such file",
        4: "'pictures'",
    }
    for number, reason in {
        **reasons,
        5: "missing.png: no such file",
        6: "no Unicode",
        7: "name too long",
    }.items():
        assert re.search(reason, found[number].reason)


def test_a_record_scores_as_its_messages_and_media_do(model: RewardModel):
    messages = chat("Name it.", "red")
    wanted = model.score([messages], [[RED]])
    part = {"type": "image", "image": RED}
    named = [{"role": "user", "content": [part, {"type": "text", "text": "Name it."}]}, messages[1]]
    place = [{"role": "user", "content": "<ImageHere>Name it."}, messages[1]]
    assert model.score([{"messages": messages, "images": [RED]}]) == pytest.approx(wanted, abs=1e-6)
    assert model.score([named]) == pytest.approx(model.score([place], [[RED]]), abs=1e-6)
    assert model.compare({"messages": messages, "image": RED}, messages).scores[0] == pytest.approx(
        wanted[0], abs=1e-5
    )


def test_a_video_may_be_a_file_bytes_or_frames(model: RewardModel, tmp_path: Path):
    (tmp_path / "film.mp4").write_bytes(encode([frame.resize((64, 48)) for frame in FILM]))
    one = chat("A film?", "Yes.")
    [wanted] = model.score([one], [[tmp_path / "film.mp4"]])
    data = (tmp_path / "film.mp4").read_bytes()
    for media in (data, Video(data), Video(str(tmp_path / "film.mp4"))):
        assert model.score([one], [[media]]) == pytest.approx([wanted], abs=1e-6)
    [frames] = model.score([one], [[Video(FILM)]])
    array = np.stack([np.asarray(frame) for frame in FILM])
    for media in (FILM, Video(array), Video([np.asarray(frame) for frame in FILM])):
        assert model.score([one], [[media]]) == pytest.approx([frames], abs=1e-6)
    two = [{"role": "user", "content": "Image1 <ImageHere>; Image2 <ImageHere>"}, one[1]]
    ordered, turned = model.score([two, two], [[Video(data), RED], [RED, Video(data)]])
    assert ordered == pytest.approx(
        model.score([two], [[str(tmp_path / "film.mp4"), RED]])[0], abs=1e-6
    )
    assert abs(ordered - turned) > 1e-4


def test_a_score_that_is_no_number_is_refused(model: RewardModel):
    broken, one, two = tiny.reward(), chat("Name it.", "red"), chat("Name it.", "blue")
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            broken.score.weight.fill_(value)
        judge = RewardModel(broken, tiny.processor())
        calls: list[tuple[Any, ...]] = [
            (judge.score, [one]),
            (judge.compare, one, two),
            (judge.rank, [one, two]),
        ]
        for call, *given in calls:
            with pytest.raises(BadScore, match=r"chat 0: score (nan|-?inf): no number"):
                call(*given)
        assert [outcome.score for outcome in judge.score_each([one, two])] == [None, None]
        with pytest.raises(BadScore):
            OfficialRewardModel(broken, tiny.processor()).compare(one, [], two, [])


def test_a_model_is_loaded_with_options_of_its_own(model: RewardModel, tmp_path: Path):
    save(model.model, model.processor, tmp_path / "reward")
    one = chat("Name it.", "red")
    load = RewardModel.from_pretrained
    small = load(
        tmp_path / "reward", image_budget=1, device_map="cpu", dtype=torch.bfloat16, max_frames=2
    )
    assert (small.processor.hd_num, small.processor.options.max_frames) == (1, 2)
    assert small.model.dtype == torch.bfloat16
    assert load(tmp_path / "reward", image_budget=1).score([one], [WIDE]) == pytest.approx(
        RewardModel(model.model, model.processor, image_budget=1).score([one], [WIDE]), abs=1e-5
    )
    with pytest.raises(TooLong, match="more than max_length 20"):
        load(tmp_path / "reward", max_length=20).score([chat("Name it.", "x" * 99)])
    with pytest.raises(BadMedia, match="raise max_pixels"):
        load(tmp_path / "reward", max_pixels=9).score([one], [RED])
    with pytest.raises(BadProcessor, match="hd_nm"):
        load(tmp_path / "reward", hd_nm=1)
    with pytest.raises(ValueError, match="two names of one thing"):
        load(tmp_path / "reward", device="cpu", device_map="auto")


def test_names_in_the_local_cache_are_models_too(model: RewardModel, tmp_path: Path):
    place = tmp_path / "models--internlm--reward"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    save(model.model, model.processor, place / "snapshots" / "abc")
    cached = RewardModel.from_pretrained("internlm/reward", cache_dir=tmp_path)
    one = chat("Name it.", "red")
    assert cached.score([one]) == pytest.approx(model.score([one]), abs=1e-5)
    with pytest.raises(BadCheckpoint, match="none of this name in the local cache"):
        ChatModel.from_pretrained("internlm/other", cache_dir=tmp_path)


def test_a_reply_comes_piece_by_piece_and_from_a_seed():
    policy, asked = (
        ChatModel(tiny.causal(), tiny.processor()),
        [{"role": "user", "content": "What is it?"}],
    )
    pieces: list[str] = []
    before = torch.random.get_rng_state()
    how: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "temperature": 2.0}
    whole = policy.reply(asked, seed=3, on_text=pieces.append, **how)
    assert "".join(pieces) == whole and len(pieces) > 3
    assert policy.reply(asked, seed=3, **how) == whole != policy.reply(asked, seed=4, **how)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(BadConversation, match=r"already answered; end with a question$"):
        policy.reply(chat("What is it?", "A ring."))


def test_half_a_character_waits_for_its_other_half():
    pieces: list[str] = []
    text = " für 3 €\n\nwohl ".encode()
    stream = Streamed(lambda ids: bytes(ids).decode("utf-8", "replace"), pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    for byte in text:
        stream.put(torch.tensor([byte]))
    stream.end()
    assert "".join(pieces) == text.decode().strip() and "\ufffd" not in "".join(pieces)


def test_tokens_of_single_bytes_wait_for_what_spoils_or_saves_them_all():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"wohl": 256}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    smile = list("\U0001f642".encode())
    for ids in ([256, *smile, 256], [*smile, *smile[:2]], [256, *smile, *smile[:1], 256, 256]):
        pieces: list[str] = []
        stream = Streamed(tokenizer.decode, pieces.append, partial(is_byte, tokenizer))
        stream.put(torch.tensor([[1, 2, 3]]))
        for token in ids:
            stream.put(torch.tensor([token]))
        stream.end()
        assert "".join(pieces) == tokenizer.decode(ids)


def test_a_temperature_that_leaves_no_numbers_is_refused():
    policy, asked = (
        ChatModel(tiny.causal(), tiny.processor()),
        [{"role": "user", "content": "What is it?"}],
    )
    with pytest.raises(ValueError, match=r"temperature: 1e-40: .*give 0\.0001 or more"):
        policy.reply(asked, max_new_tokens=2, do_sample=True, temperature=1e-40)
    assert policy.reply(asked, max_new_tokens=2, do_sample=True, temperature=1e-4) is not None


def test_an_answer_that_looks_like_parts_is_another_answer(model: RewardModel):
    parts = [{"type": "text", "text": "red"}]
    asked = {"role": "user", "content": "Name it."}
    written, shown = (
        [asked, {"role": "assistant", "content": content}] for content in (repr(parts), parts)
    )
    together = model.score([written, shown])
    assert together == pytest.approx([model.score([one])[0] for one in (written, shown)], abs=1e-5)


def test_the_kernel_of_scores_is_chosen_at_load(
    model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(model.model, model.processor, tmp_path / "reward")
    load, chats = RewardModel.from_pretrained, [chat("Name it.", "red"), chat("Name it.", "blue")]
    chosen = load(tmp_path / "reward", attention="sdpa")
    assert chosen.model.attention == "sdpa, sdpa"
    assert chosen.score(chats) == pytest.approx(model.score(chats), abs=1e-5)
    with pytest.raises(NoAttention, match="attention: 'flex': needs a GPU"):
        load(tmp_path / "reward", attention="flex")
    with pytest.raises(ValueError, match="device: 'meta'"):
        load(tmp_path / "reward", device="meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: 'cuda:0': no GPU"):
        load(tmp_path / "reward", device_map=0)


def test_a_string_stops_a_reply():
    policy, asked = (
        ChatModel(tiny.causal(), tiny.processor()),
        [{"role": "user", "content": "What is it?"}],
    )
    whole = policy.reply(asked, max_new_tokens=12, do_sample=True, temperature=2.0, seed=3)
    sign = next(
        sign
        for sign in whole[2:]
        if sign.isascii() and sign.isprintable() and sign not in whole[:2]
    )
    stopped = policy.reply(
        asked, max_new_tokens=12, do_sample=True, temperature=2.0, seed=3, stop_strings=[sign]
    )
    assert stopped == whole[: whole.index(sign) + 1].strip()


def test_a_reply_is_generated(tmp_path: Path):
    policy = ChatModel(tiny.causal(), tiny.processor())
    save(policy.model, policy.processor, tmp_path / "chat")
    loaded = ChatModel.from_pretrained(tmp_path / "chat")
    asked = [{"role": "user", "content": "What is it?"}]
    assert loaded.reply(asked, [RED], max_new_tokens=4) == policy.reply(
        asked, [RED], max_new_tokens=4
    )


def test_there_and_back_is_the_same_model(model: RewardModel, tmp_path: Path):
    options: dict[str, Any] = {
        "geometry": "official_train",
        "tail_newline": True,
        "hd_num_several": 2,
        "hd_num": 3,
    }
    processor = IXCProcessor(tiny.processor().tokenizer, tiny.TILE, tiny.PATCH, **options)
    save(model.model, processor, tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "official") == {"new": [], "ignored": []}
    assert not (tmp_path / "official" / "processor_config.json").exists()
    assert convert(tmp_path / "official", tmp_path / "again") == {"new": [], "ignored": []}
    one = chat("Name it.", "red")
    wanted = RewardModel(model.model, processor).score([one], [[WIDE]])
    for name in ("official", "again"):
        loaded = RewardModel.from_pretrained(tmp_path / name)
        assert loaded.processor.options == processor.options
        # a product of one row rounds by where the weights lie in memory
        assert loaded.score([one], [[WIDE]]) == pytest.approx(wanted)
        assert AutoTokenizer.from_pretrained(tmp_path / name).options == processor.options


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_converted_onto_what_it_would_destroy(model: RewardModel, tmp_path: Path):
    source, foreign, beside = (tmp_path / name for name in ("ours", "thesis", "official"))
    save(model.model, model.processor, source)
    convert(source, beside)
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for extra in (
        "notes.txt",
        "model-2.safetensors",
    ):  # a checkpoint, and something beside it; another's checkpoint
        (beside / extra).write_text("mine")
    (beside / "config.json").write_text('{"model_type": "internlm2"}')
    for target, message in (
        (source, "source and target are the same"),
        (tmp_path / "thesis" / ".." / "ours", "source and target are the same"),
        (foreign, "thesis: is there, and no checkpoint that ixc wrote"),
        (foreign / "thesis.tex", "is there"),
        (beside, "official: is there"),
    ):
        before = [held(folder) for folder in (source, foreign, beside)]
        with pytest.raises(FileExistsError, match=message):
            convert(source, target)
        assert [held(folder) for folder in (source, foreign, beside)] == before


def test_what_a_conversion_wrote_may_be_written_again(model: RewardModel, tmp_path: Path):
    save(model.model, model.processor, tmp_path / "ours")
    (tmp_path / "official").mkdir()  # an empty folder is no loss
    for _ in range(2):
        convert(tmp_path / "ours", tmp_path / "official")
        convert(tmp_path / "official", tmp_path / "again")
    assert set(held(tmp_path / "again")) == set(held(tmp_path / "ours"))


def test_a_model_without_the_head_is_no_such_model(model: RewardModel, tmp_path: Path):
    save(model.model, model.processor, tmp_path / "reward")
    with pytest.raises(
        BadCheckpoint, match=r"reward: no output\.weight.*name the folder of a chat model"
    ):
        ChatModel.from_pretrained(tmp_path / "reward")


@pytest.fixture(scope="module")
def reward_folder(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("official")
    save(model.model, model.processor, root / "reward")
    RED.save(root / "cars1.png")
    WIDE.resize((140, 112)).save(root / "wide.png")
    return root / "reward"


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_the_official_example_runs(reward_folder: Path, half: torch.dtype | None):
    official: Any = AutoModel.from_pretrained(
        reward_folder, device_map="cpu", torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    official.tokenizer = AutoTokenizer.from_pretrained(reward_folder, trust_remote_code=True)
    first, second = chat("Name it.", "red"), chat("Name it.", "blue")
    image = [str(reward_folder.parent / "cars1.png")]
    wanted = official.get_scores([first, second], [image] * 2, hd_num=9)
    with torch.autocast("cpu", half, enabled=half is not None):
        scores = official.get_scores([first, second], [image] * 2, hd_num=9)
        alone = [official.get_score(c, image, hd_num=9) for c in (first, second)]
        assert scores == pytest.approx(alone, abs=1e-5 if half is None else 2e-2)
        assert scores == pytest.approx(wanted, abs=5e-2)
        assert official.get_scores([first], [[]]) == official.get_score(first, [])
        assert official.compare(first, image, second, image, hd_num=9) is bool(
            scores[0] > scores[1]
        )
        assert official.rank([first, second], [image] * 2, hd_num=9) == sorted(
            (0, 1), key=lambda i: -scores[i]
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_single_precision_under_autocast(model: RewardModel, attention: str, side: Any):
    reward = tiny.reward()
    reward.set_attn_implementation(attention)
    batch = model.processor(
        [chat("Name it.", "red"), chat("Hi.", "x" * 20)], images=[[RED], []], padding_side=side
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = reward(**batch).logits
        head = reward.scores(torch.full((1, 16), 1 + 2**-12))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward(**batch).logits, rtol=0, atol=5e-2)
    torch.testing.assert_close(head, reward.score.weight.sum(1) * (1 + 2**-12))


def test_a_single_image_is_one_image_in_whatever_form(reward_folder: Path):
    official, one = AutoModel.from_pretrained(reward_folder), chat("Name it.", "red")
    path = reward_folder.parent / "wide.png"  # of 20 tiles
    wanted = official.get_score(one, [str(path)], hd_num=20)
    assert wanted != official.get_score(one, [str(path)], hd_num=6)
    for shown in (str(path), path, Image.open(path)):
        assert official.get_score(one, shown, hd_num=20) == wanted
        assert official.get_scores([one, one], [shown, shown], hd_num=20) == pytest.approx(
            [wanted] * 2, abs=1e-5
        )
    with pytest.raises(BadConversation, match="2 chats but media for 1"):
        official.get_scores([one, one], [str(path)])


def test_a_tensor_of_the_official_transform_is_taken_as_it_is(reward_folder: Path):
    official, one = AutoModel.from_pretrained(reward_folder), chat("Name it.", "red")
    path = str(reward_folder.parent / "wide.png")
    place = partition(140, 112, 20, tiny.TILE)
    tiles = to_tiles(Image.open(path), place, tiny.TILE)[1:].unflatten(
        0, (place.rows, place.columns)
    )
    whole = tiles.permute(2, 0, 3, 1, 4).reshape(1, 3, 4 * tiny.TILE, 5 * tiny.TILE)
    wanted = official.get_score(one, path, hd_num=20)
    assert official.get_score(one, [whole], hd_num=1) == pytest.approx(wanted, abs=1e-5)
    assert official.get_scores([one, one], [[whole], [path]], hd_num=1) == pytest.approx(
        [wanted, official.get_score(one, path, hd_num=1)], abs=1e-5
    )
    two = chat("Image1 <ImageHere>; Image2 <ImageHere>", "red")
    for shown, message in (
        ([whole[..., :-1]], "sides that are no multiples of 28"),
        ([whole * 99], "values that no normalised image has"),
    ):
        with pytest.raises(BadMedia, match=message):
            official.get_score(one, shown)
    with pytest.raises(BadMedia, match="more tiles than 6 among files"):
        official.get_score(two, [whole, path])


def test_a_prompt_of_the_official_template_is_the_chat_it_was_made_of(reward_folder: Path):
    official = AutoModel.from_pretrained(reward_folder)
    prompt = (
        "[UNUSED_TOKEN_146]user\nName\nit.[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\nred[UNUSED_TOKEN_145]\n"
        "</s>[UNUSED_TOKEN_130]"
    )
    wanted = official.get_score(chat("Name\nit.", "red"), [])
    assert official.get_score(prompt, [], apply_template=False) == wanted
    for bad in ("Name it.", prompt[:-1], "x" + prompt, chat("Name it.", "red")):
        with pytest.raises(BadConversation, match=r"official template|give the prompt"):
            official.get_score(bad, [], apply_template=False)


def test_calls_of_a_module_chain(reward_folder: Path):
    official = AutoModel.from_pretrained(reward_folder, device_map={"": "cpu"})
    assert official.half().to("cpu").eval() is official
    assert official.model.dtype == torch.float16


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({}, torch.float32),
        ({"torch_dtype": "auto"}, torch.float32),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": torch.float16, "device_map": None}, torch.float16),
        ({"dtype": "float16", "device_map": "auto", "low_cpu_mem_usage": True}, torch.float16),
    ],
    ids=str,
)
def test_types_have_names_too(reward_folder: Path, told: dict[str, Any], wanted: torch.dtype):
    assert AutoModel.from_pretrained(reward_folder, **told).model.dtype == wanted


def test_a_map_of_several_devices_is_refused(reward_folder: Path):
    with pytest.raises(ValueError, match="a model lives on one device"):
        AutoModel.from_pretrained(reward_folder, device_map={"model": "cpu", "vit": "cuda"})


def test_a_name_means_the_snapshot_in_the_local_cache(reward_folder: Path, tmp_path: Path):
    stored = tmp_path / "models--internlm--reward"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("abc")
    shutil.copytree(reward_folder, stored / "snapshots" / "abc")
    one, name = chat("Name it.", "red"), "internlm/reward"
    cached = AutoModel.from_pretrained(name, cache_dir=tmp_path)
    assert cached.get_score(one, []) == AutoModel.from_pretrained(reward_folder).get_score(one, [])
    assert (
        AutoTokenizer.from_pretrained(name, cache_dir=tmp_path).options == cached.processor.options
    )
    for missing in ("internlm/other", "not a / name"):
        with pytest.raises(
            BadCheckpoint, match="no such folder, and none of this name in the local cache"
        ):
            AutoModel.from_pretrained(missing, cache_dir=tmp_path)
