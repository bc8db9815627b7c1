"""The official tokenizer from its file, and what is no official tokenizer."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ixc.models.ixc25.tokenizers import (
    BadTokenizer,
    Piece,
    merges,
    official_tokenizer,
    read_pieces,
    special_ids,
)

OFFICIAL = Path(__file__).parents[2] / "shared" / "golden" / "tokenizer.model"


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protobuf message of small numbers, floats and texts."""
    written = b""
    for number, value in fields:
        if isinstance(value, bytes):
            written += bytes([number << 3 | 2, len(value)]) + value
        elif isinstance(value, float):
            written += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            tag = number << 3
            written += bytes([tag, value] if tag < 128 else [tag & 0x7F | 0x80, tag >> 7, value])
    return written


def model(*pieces: tuple[str, float, int], bpe: int = 2, prefix: int = 0) -> bytes:
    """A sentencepiece model of a few pieces: text, score, kind."""
    entries = [
        (1, message((1, text.encode()), (2, score), (3, kind))) for text, score, kind in pieces
    ]
    rules = [(2, message((3, bpe), (35, 1))), (3, message((1, b"identity"), (3, prefix), (4, 0)))]
    return message(*entries, *rules)


SMALL = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((f"[UNUSED_TOKEN_{i}]", 0.0, 4) for i in (130, 131, 145, 146)),
    ("——", 0.0, 4),
    *(
        (text, -float(rank), 1)
        for rank, text in enumerate(["bc", "ab", "abc", "a", "b", "c", "\u2581", "—"])
    ),
]


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer.model").write_bytes(model(*SMALL))
    tokenizer = official_tokenizer(tmp_path / "tokenizer.model")
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_the_best_pair_is_merged_first(small: Tokenizer):
    assert small.encode("abc").tokens == ["abc"]  # by way of "bc", which beats "ab"
    assert small.encode("abb").tokens == ["ab", "b"]


def test_white_space_is_kept_and_what_is_unknown_becomes_bytes(small: Tokenizer):
    assert small.encode(" a  b\n").tokens == ["\u2581", "a", "\u2581", "\u2581", "b", "<0x0A>"]
    assert small.encode("é").tokens == ["<0xC3>", "<0xA9>"]
    assert small.decode(small.encode(" a  é\n").ids) == " a  é\n"


def test_a_user_defined_text_is_one_token_and_a_control_string_is_none(small: Tokenizer):
    assert small.encode("a———").tokens == ["a", "——", "—"]
    ids = special_ids(small)
    assert not set(ids.values()) & set(
        small.encode("".join(t for t, _, k in SMALL if k in (2, 3, 4))).ids
    )


def test_merges_are_ranked_by_score_then_place():
    pieces = [
        Piece("a", -9, 1),
        Piece("b", -9, 1),
        Piece("ba", -2, 1),
        Piece("ab", -1, 1),
        Piece("aba", -3, 1),
    ]
    assert merges(pieces) == [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (model(*SMALL)[:-3], "damaged"),
        (model(*SMALL, bpe=1), "model_type is 1, not 2"),
        (model(*SMALL, prefix=1), "add_dummy_prefix is 1, not 0"),
    ],
)
def test_another_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(BadTokenizer, match=reason) as caught:
        official_tokenizer(tmp_path / "tokenizer.model")
    assert "tokenizer.model: " in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BadTokenizer, match=r"absent\.model: no such file"):
        official_tokenizer(tmp_path / "absent.model")


@settings(deadline=None, database=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, patch: bytes
):
    data = bytearray(model(*SMALL))
    at %= len(data)
    data[at : at + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "patched.model"
    path.write_bytes(data)
    try:
        assert read_pieces(path)
    except BadTokenizer as error:
        assert str(path) in str(error)


# What sentencepiece 0.2.3 makes of these with the official file
KNOWN = {
    " a  b\n\n\n\tc ": [395, 387, 260, 1552, 1590, 262],
    "Ｅxtra——……": [92352, 274, 2325, 92395, 92396],
    "深度学习，模型！": [70907, 68352, 60353, 70218, 60477],
    "안녕 🙂👩\u200d💻": [
        67806,
        238,
        136,
        152,
        262,
        243,
        162,
        156,
        133,
        243,
        162,
        148,
        172,
        64233,
        243,
        162,
        149,
        190,
    ],
    "</s><s><unk>": [654, 269, 1936, 269, 1936, 3289, 330],
    "<0x0A>▁x\u3000y\r\n": [333, 300, 274, 300, 290, 330, 991, 60975, 282, 450],
    "    if x == 1:\n        return {}\n": [388, 464, 991, 753, 262, 312, 642, 391, 821, 5769],
    "": [],
}


@pytest.mark.real
@pytest.mark.skipif(not OFFICIAL.is_file(), reason=f"{OFFICIAL}: no golden data")
def test_ids_are_those_of_sentencepiece():
    tokenizer = official_tokenizer(OFFICIAL)
    tokenizer.encode_special_tokens = True
    assert {text: tokenizer.encode(text).ids for text in KNOWN} == KNOWN
