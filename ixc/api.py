"""For people and scripts: score, compare and rank chats about texts, pictures and films; chat with a policy.

>>> model = RewardModel.from_pretrained("models/reward")                                       # doctest: +SKIP
>>> chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A red car."}]
>>> model.score([chat], media=[["car.jpg"]])                                                    # doctest: +SKIP
[1.72]
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ixc.batches import passes, within
from ixc.media import BadMedia
from ixc.model import IXCForCausalLM, IXCForRewardModel, IXCPreTrainedModel, IXCProcessor, Tree, collate
from ixc.model.folder import is_ours, load, processor_of, save, suppress_control
from ixc.model.official import from_official, to_official
from ixc.model.processing import BadConversation, IXCBatch, Picture

Chat = Sequence[Mapping[str, Any]]
"""Messages `{"role": "system" | "user" | "assistant", "content": text}`; to be scored, the last is the assistant's."""
Shown = Any
"""A chat's pictures in a list, or a single one: paths, bytes, PIL images, arrays, tensors; a path with a film's suffix
is a film."""
PROMPTS_AT_ONCE = 64
"""Prompts whose pictures are in memory together."""
TOKENS_AT_ONCE = 16384
"""Tokens of a forward pass; a single longer chat still goes through."""
TILES_AT_ONCE = 64
Model = TypeVar("Model", bound=IXCPreTrainedModel)


class Ranking(NamedTuple):
    """Chats from best to worst; equal scores keep their order."""

    scores: list[float]
    ranks: list[int]
    """The place of each chat, 1 the best."""
    order: list[int]
    """Indices of the chats, best first."""


class Comparison(NamedTuple):
    """Two chats; the first is better with `probability` (Bradley-Terry, paper eq. 1)."""

    scores: tuple[float, float]
    probability: float

    @property
    def better(self) -> int | None:
        """0, 1, or None for a tie."""
        first, second = self.scores
        return None if first == second else int(second > first)


@dataclass(frozen=True)
class Asked:
    """A prompt with the answers to it that are to be scored."""

    tree: Tree
    pictures: list[Picture]
    chats: list[list[int]]
    """Which chats each branch stands for; equal ones are one branch."""

    def __len__(self) -> int:
        return len(self.tree)


class RewardModel:
    """A reward model with its processor.

    Chats that share prompt and media are read as one, the prompt once, by an attention of our own (`shared_prefix`);
    one loaded with `attn_implementation="eager"` reads every chat whole, in plain formulae: slow, and the reference.
    """

    def __init__(
        self,
        model: IXCForRewardModel,
        processor: IXCProcessor,
        hd_num: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """`hd_num`: tiles per picture at most, default the processor's; `max_length`: tokens, more is an error."""
        self.model, self.processor = model.eval(), processor
        self.hd_num, self.max_length = hd_num, max_length

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "RewardModel":
        """A folder of ours or of the official form; `options` as in `load`."""
        return cls(*load(folder, IXCForRewardModel, **options))

    @torch.no_grad()
    def score(self, chats: Sequence[Chat], media: Sequence[Shown] | None = None) -> list[float]:
        """One score per chat, unbounded; higher is better.

        In fp32 a chat scores the same alone and among others, to 1e-5. In bf16, where either score is rounded, they
        differ by up to 5 % of the spread of scores (of 16 tiny models the worst: 3.5 %), much as both do from fp32's.

        Args:
            media: pictures and films of each chat; None: text only.

        Raises:
            BadConversation: a chat without an answer, or pictures that do not match its placeholders.
            BadMedia: a picture or film that cannot be read.
        """
        asked = self._asked(chats, [()] * len(chats) if media is None else media)
        scores = [0.0] * len(chats)
        while some := list(islice(asked, PROMPTS_AT_ONCE)):
            for rows in passes(range(len(some)), list(map(len, some)), TOKENS_AT_ONCE):
                self._score([some[i] for i in rows], scores)
        return scores

    def _score(self, batch: Sequence[Asked], scores: list[float]) -> None:
        """Write the scores of a batch into their places."""
        rewards = self._rewards(batch).tolist()
        for equal, reward in zip((equal for one in batch for equal in one.chats), rewards, strict=True):
            for chat in equal:
                scores[chat] = reward

    def compare(self, first: Chat, second: Chat, media: Shown = (), second_media: Shown | None = None) -> Comparison:
        """Which of two chats is better; they are about the same media unless the second has its own."""
        one, other = self.score([first, second], [media, media if second_media is None else second_media])
        return Comparison((one, other), float(torch.sigmoid(torch.tensor(one - other))))

    def rank(self, chats: Sequence[Chat], media: Sequence[Shown] | None = None) -> Ranking:
        """Order, places and scores."""
        scores = self.score(chats, media)
        order = sorted(range(len(chats)), key=lambda i: -scores[i])
        place = {chat: rank for rank, chat in enumerate(order, 1)}
        return Ranking(scores, [place[i] for i in range(len(chats))], order)

    def _asked(self, chats: Sequence[Chat], media: Sequence[Shown]) -> Iterator[Asked]:
        """Chats with the same prompt and media, together."""
        if len(media) != len(chats):
            raise BadConversation(f"{len(chats)} chats but media for {len(media)}; give a list, maybe empty, per chat")
        groups: dict[Any, list[int]] = defaultdict(list)
        pictures = [_listed(shown) for shown in media]
        for i, (chat, shown) in enumerate(zip(chats, pictures, strict=True)):
            alone = i if _shows(_messages(chat, i)[-1:]) else None  # its pictures are not the prompt's
            groups[repr(chat[:-1]), tuple(map(_key, shown)), alone].append(i)
        for same in groups.values():
            yield from self._trees([chats[i] for i in same], pictures[same[0]], same)

    def _trees(self, chats: Sequence[Chat], shown: Sequence[Any], numbers: Sequence[int]) -> Iterator[Asked]:
        """One tree; several where the length policy shortened the chats differently, or they cannot share a prompt."""
        read = self._read(chats, shown, numbers)
        rest = iter(read.pictures)
        pictures = [list(islice(rest, len(shown) - len(dropped.pictures))) for dropped in read.dropped]
        groups: dict[Any, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for ids, dropped, number in zip(read["input_ids"], read.dropped, numbers, strict=True):
            groups[dropped, self._apart(ids)][tuple(ids)].append(number)
        for (dropped, _), rows in groups.items():
            yield Asked(branched(list(rows)), pictures[read.dropped.index(dropped)], list(rows.values()))

    def _apart(self, ids: Sequence[int]) -> Any:
        """What sequences must have in common to be read as one tree.

        Dynamic rotary scaling turns the whole of a sequence by its length. `eager` shares nothing: it is the reference.
        """
        config = self.model.config
        if config._attn_implementation == "eager":
            return tuple(ids)
        return max(len(ids), config.max_position_embeddings) if config.rope["rope_type"] == "dynamic" else None

    def _read(self, chats: Sequence[Chat], shown: Sequence[Any], numbers: Sequence[int]) -> IXCBatch:
        given: dict[str, Any] = {"hd_num": self.hd_num, "max_length": self.max_length}
        try:
            return self.processor(list(chats), images=[shown] * len(chats), return_tensors=None, **given)
        except (BadConversation, BadMedia) as error:
            if len(chats) == 1:
                raise type(error)(f"chat {numbers[0]}: {error}") from error
            for chat, number in zip(chats, numbers, strict=True):  # the one at fault will say which it is
                self._read([chat], shown, [number])
            raise

    def _rewards(self, batch: Sequence[Asked]) -> Float[Tensor, " R"]:
        features = encode(self.model, [p for one in batch for p in one.pictures])
        if self.model.config._attn_implementation == "eager":
            return self._plain([[*one.tree.prefix, *branch] for one in batch for branch in one.tree.branches], features)
        layout = collate([one.tree for one in batch]).to(self.model.device)
        return self.model.branch_scores(layout, features)

    def _plain(self, rows: Sequence[Sequence[int]], features: Float[Tensor, "P D"] | None) -> Float[Tensor, " R"]:
        """Scores of whole sequences by the model's own forward pass, as one padded batch."""
        ids, mask = (
            pad_sequence([torch.tensor(row) for row in some], True, fill).to(self.model.device)
            for some, fill in ((rows, self.model.config.pad_token_id), ([[1] * len(row) for row in rows], 0))
        )
        return self.model(ids, mask, features=features).logits.squeeze(1)


class ChatModel:
    """A policy with its processor."""

    def __init__(self, model: IXCForCausalLM, processor: IXCProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        suppress_control(model, processor)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "ChatModel":
        """A folder of ours or of the official form; `options` as in `load`."""
        return cls(*load(folder, IXCForCausalLM, **options))

    @torch.no_grad()
    def reply(self, chat: Chat, media: Shown = (), max_new_tokens: int = 1024, **options: Any) -> str:
        """The assistant's next message.

        Args:
            options: of Transformers' `generate`; by default greedy. The official chat samples: `do_sample=True,
                temperature=1.0, top_p=0.8, repetition_penalty=1.005`.
        """
        read = self.processor(list(chat), images=_listed(media), for_reward=False).to(self.model.device)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        out = self.model.generate(**read, **options)
        return self.processor.decode(out[0, read["input_ids"].shape[1] :].tolist()).strip()


def convert(source: str | Path, target: str | Path) -> dict[str, list[str]]:
    """An official checkpoint in our form, or, where the source is ours, in the official form.

    The processor's options go there and back: the official `config.json` keeps them under a key of ours.

    Returns:
        The keys that were `new` (a head the source lacks) or `ignored`.

    Raises:
        FileExistsError: the target is the source, or holds files that no conversion wrote; nothing was touched.
        BadCheckpoint: as in `from_official`.
    """
    source, target = Path(source), Path(target)
    if objection := _objection(source, target):
        raise FileExistsError(objection)
    if (source / "processor_config.json").is_file():
        told = json.loads((source / "config.json").read_text()).get("architectures") or [""]
        kind = IXCForRewardModel if told[0] == IXCForRewardModel.__name__ else IXCForCausalLM
        model = from_official(source, model_class=kind)
        to_official(model, target, asdict(processor_of(source, model).options))
        for name in ("tokenizer.model", "tokenizer.json"):
            if (source / name).is_file():
                shutil.copy(source / name, target / name)
        return {"new": [], "ignored": []}
    model = from_official(source)
    save(model, processor_of(source, model), target)
    if (source / "tokenizer.model").is_file():  # the way back needs it
        shutil.copy(source / "tokenizer.model", target / "tokenizer.model")
    return {"new": list(model.load_report.new), "ignored": list(model.load_report.ignored)}


def _objection(source: Path, target: Path) -> str | None:
    """Why a conversion must not replace its target."""
    if target.resolve() == source.resolve():
        return f"{target}: source and target are the same; name another folder"
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not is_ours(target)):
        return f"{target}: is there, and no checkpoint that ixc wrote: it would be lost; name a new or an empty folder"
    return None


def encode(model: IXCPreTrainedModel, pictures: Sequence[Picture]) -> Float[Tensor, "P D"] | None:
    """Picture tokens, one picture after another; a bounded number of tiles passes the tower at once."""
    if not pictures:
        return None
    chunks = within(range(len(pictures)), [len(picture.tiles) for picture in pictures], TILES_AT_ONCE)
    return torch.cat([tokens for chunk in chunks for tokens in model.encode_pictures([pictures[i] for i in chunk])])


def branched(rows: Sequence[Sequence[int]]) -> Tree:
    """Sequences as a tree: what they all begin with is read once; each keeps a token of its own at least.

    >>> branched([[1, 2, 3, 4], [1, 2, 5]])
    Tree(prefix=[1, 2], branches=[[3, 4], [5]], free=[])
    """
    columns = zip(*(row[:-1] for row in rows), strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
    return Tree(list(rows[0][:shared]), [list(row[shared:]) for row in rows])


def _messages(chat: Any, number: int) -> Chat:
    """The chat; a message alone, what a caller gives who forgets the outer list, is none."""
    if not isinstance(chat, Sequence) or isinstance(chat, str):
        raise BadConversation(f"chat {number}: {chat!r:.80}: no list of messages; give a list of such lists")
    return chat


def _shows(messages: Chat) -> bool:
    """Whether there is a place for a picture among the parts of a message."""
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") != "text" for part in parts)


def _listed(shown: Shown) -> list[Any]:
    return list(shown) if isinstance(shown, list | tuple) else [shown]


def _key(item: Any) -> Any:
    """What tells one picture from another: its path, its bytes, or the object itself."""
    return item if isinstance(item, str | Path | bytes) else id(item)
