"""Tokenizers: the official one, converted from its `tokenizer.model`, and one trained on a corpus for a tiny model.

Both are fast `tokenizers` objects whose control tokens no text is ever encoded to.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, no_type_check

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIAL = {
    "unk": "<unk>",
    "bos": "<s>",
    "eos": "</s>",
    "turn_start": "[UNUSED_TOKEN_146]",
    "turn_end": "[UNUSED_TOKEN_145]",
    "reward": "[UNUSED_TOKEN_130]",
    "image": "[UNUSED_TOKEN_131]",
}
"""The official vocabulary's names; `image` is ours and marks an image token's place."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BPE = 2
_SPACE = "\u2581"
Fields = dict[int, list[int | bytes]]
"""A protobuf message: its values by field number, undecoded."""


class BadTokenizer(ValueError):
    """A tokenizer that is not one of an IXC-2.5: which file, what is wrong, what to do."""


class Piece(NamedTuple):
    """An entry of a sentencepiece vocabulary; its place is its id."""

    text: str
    score: float
    """What a merge into it is worth; the highest goes first."""
    kind: int

    @property
    def is_control(self) -> bool:
        """Whether it steers the model. The other user-defined pieces are full-width letters and dashes: text."""
        return self.kind in (_UNKNOWN, _CONTROL) or self.text.startswith("[UNUSED_TOKEN_")


def official_tokenizer(path: Path) -> Tokenizer:
    """The fast form of an official `tokenizer.model`: equal ids for any text without control strings.

    Sentencepiece merges the neighbours whose piece scores highest, so its scores, in order, are the ranks of the
    merges. Text is taken as it is: no prefix space, no folding of white space, unknown characters as bytes.

    Raises:
        BadTokenizer: the file is missing or damaged, or asks for other rules.
    """
    pieces = read_pieces(path)
    vocabulary = {piece.text: id_ for id_, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges(pieces), unk_token=SPECIAL["unk"], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    whole = [piece for piece in pieces if piece.is_control or piece.kind == _USER_DEFINED]
    tokenizer.add_tokens(
        [AddedToken(p.text, special=p.is_control, normalized=False) for p in whole]
    )
    return tokenizer


def merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, best first."""
    ids = {piece.text: id_ for id_, piece in enumerate(pieces) if piece.kind == _NORMAL}
    ranked = [
        (-pieces[id_].score, id_, ids[left], ids[right])
        for text, id_ in ids.items()
        for left, right in ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        if left in ids and right in ids
    ]
    return [(pieces[left].text, pieces[right].text) for _, _, left, right in sorted(ranked)]


def read_pieces(path: Path) -> list[Piece]:
    """The vocabulary of a sentencepiece BPE model.

    Source: github.com/google/sentencepiece, src/sentencepiece_model.proto.
    """
    if not path.is_file():
        raise BadTokenizer(f"{path}: no such file; an official checkpoint has one: fetch it")
    try:
        model = _fields(path.read_bytes())
        pieces = [_piece(_fields(_bytes(entry))) for entry in model[1]]
        trainer, normalizer = (_fields(_bytes(model[number][0])) for number in (2, 3))
    except (KeyError, IndexError, UnicodeDecodeError, struct.error) as error:
        raise BadTokenizer(f"{path}: damaged, or no sentencepiece model; fetch it again") from error
    rules = {
        "model_type": (trainer.get(3, [1])[0], _BPE),
        "byte_fallback": (trainer.get(35, [0])[0], 1),
        "normalizer": (normalizer.get(1, [b""])[0], b"identity"),
        "add_dummy_prefix": (normalizer.get(3, [1])[0], 0),
        "remove_extra_whitespaces": (normalizer.get(4, [1])[0], 0),
    }
    for name, (actual, official) in rules.items():
        if actual != official:
            raise BadTokenizer(
                f"{path}: {name} is {actual!r}, not {official!r}: not the tokenizer of an IXC-2.5"
            )
    return pieces


def _piece(fields: Fields) -> Piece:
    [score] = struct.unpack("<f", _bytes(fields[2][0]))
    kind = fields.get(3, [_NORMAL])[0]
    if not isinstance(kind, int):
        raise IndexError("a message where a number belongs")
    return Piece(_bytes(fields[1][0]).decode(), score, kind)


@no_type_check
def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise IndexError("a number where a message belongs")
    return value


def _fields(message: bytes) -> Fields:
    fields: Fields = {}
    for number, value in _read(message):
        fields.setdefault(number, []).append(value)
    return fields


@no_type_check
def _read(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values, as the protobuf encoding lays them out.

    Tests check types at run time, but not here and in what is called here: half a million calls a file.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + size > len(message):
            raise IndexError("cut off")
        yield number, message[at : at + size]
        at += size


@no_type_check
def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, seven bits a byte, lowest first; and where it ends."""
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with the official special tokens first; each digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def is_byte(tokenizer: Tokenizer, id_: int) -> bool:
    """Whether a token stands for one byte of a character; sentencepiece writes it `<0xE4>`."""
    return re.fullmatch(r"<0x[0-9A-F]{2}>", tokenizer.id_to_token(id_) or "") is not None


def unsampled_ids(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Ids below `vocab_size` that no answer may contain: those without a token, and control tokens that end nothing."""
    tokens = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ends = {SPECIAL["eos"], SPECIAL["turn_end"]}

    def is_control(id_: int) -> bool:
        token = tokens[id_]
        return id_ in special or token in SPECIAL.values() or token.startswith("[UNUSED_TOKEN_")

    return [
        i for i in range(vocab_size) if i not in tokens or (is_control(i) and tokens[i] not in ends)
    ]


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens, by our names for them."""
    return {name: _required_id(tokenizer, token) for name, token in SPECIAL.items()}


def _required_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise BadTokenizer(
            f"the tokenizer has no token {token!r}; it is not one of an IXC-2.5 model"
        )
    return token_id
