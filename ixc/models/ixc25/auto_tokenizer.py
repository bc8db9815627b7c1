"""The tokenizer as Transformers' users hold it: `AutoTokenizer`, `processor.tokenizer`, pipelines, `stop_strings`.

Its ids are the processor's: control strings in a text stay text, and a chat is built from ids. A text that the template
was already applied to can be read with `split_special_tokens=False`, Transformers' own switch for that; then whoever
wrote a part of it steers the model.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerFast

from ixc.models.ixc25.configuration import IXCConfig
from ixc.models.ixc25.prompts import BadConversation, Layout, Template, parse
from ixc.models.ixc25.tokenizers import SPECIAL, special_ids

_TOKENS = {"unk_token": SPECIAL["unk"], "bos_token": SPECIAL["bos"], "eos_token": SPECIAL["eos"]}
_DEFAULTS = {
    **_TOKENS,
    "pad_token": SPECIAL["eos"],
    "split_special_tokens": True,
    "padding_side": "left",
}
_FROM_PROCESSOR = ("strip_turns", "tail_newline")
"""Options of the processor that decide which ids a chat has."""
CONFIG = {"tokenizer_class": "IXCTokenizer", **_DEFAULTS}
"""`tokenizer_config.json`: from which `AutoTokenizer` knows the class; what decides chats is the processor's."""
_OF_CHATS = (
    "padding",
    "max_length",
    "pad_to_multiple_of",
    "padding_side",
    "return_tensors",
    "return_attention_mask",
)
"""What a chat can be encoded with; each as in `PreTrainedTokenizerBase.pad`."""


class IXCTokenizer(PreTrainedTokenizerFast):
    """Ids of texts as `IXCProcessor.encode` gives them, and of chats without images as the processor gives them.

    A pair of texts is a question and its answer, laid out by the template and with the tail that the score is read
    from, so that `pipeline("text-classification")` scores `{"text": question, "text_pair": answer}`.
    """

    model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def of(cls, backend: Tokenizer, **options: Any) -> "IXCTokenizer":
        """Around a tokenizer, which is copied."""
        return cls(tokenizer_object=backend, **{**_DEFAULTS, **options})

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:
        """As Transformers', also of a folder that holds `tokenizer.json` and `processor_config.json` only."""
        path = Path(folder) / "processor_config.json"
        stored = json.loads(path.read_text()) if path.is_file() else {}
        chosen = {name: stored[name] for name in _FROM_PROCESSOR if name in stored}
        return super().from_pretrained(folder, *args, **{**_DEFAULTS, **chosen, **options})

    def __call__(self, text: Any = None, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """Ids of one text or several, of pairs of question and answer, or of chats (lists of messages).

        Args:
            text: a text or a list of texts; or a chat or a list of chats.
            text_pair: the answers, as many as texts.
            options: as Transformers'; of chats and pairs: those of `apply_chat_template`.

        Raises:
            BadConversation: a chat of another form, or with images; or an option that it has not.
        """
        if text_pair is not None:
            return self.apply_chat_template(
                _exchanges(text, text_pair), **{"return_attention_mask": True, **options}
            )
        if _is_chat(text) or (isinstance(text, Sequence) and text and _is_chat(text[0])):
            return self.apply_chat_template(text, **{"return_attention_mask": True, **options})
        first = text[0] if isinstance(text, list | tuple) and text else text
        if options.get("split_special_tokens", self.split_special_tokens) and _is_templated(first):
            warnings.warn(
                f"{first:.40}...: its control strings are read as text; {_REMEDY}", stacklevel=2
            )
        texts: Any = text
        return super().__call__(texts, **options)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Ids of a chat or of several, as the processor's.

        Args:
            add_generation_prompt: the opening of an answer follows; else what the score is read from.
            tokenize: False: the text; see `split_special_tokens` above before giving it to a model.
            return_dict: False: only `input_ids`.
            options: some of `_OF_CHATS`, as in `PreTrainedTokenizerBase.pad`.

        Raises:
            BadConversation: a chat of another form, or with images; or an option that it has not.
        """
        _refuse_unknown(options)
        several = not _is_chat(conversation)
        layouts = [
            self._layout(chat, add_generation_prompt)
            for chat in (conversation if several else [conversation])
        ]
        rows = [
            [i for piece in layout.pieces() if isinstance(piece, list) for i in piece]
            for layout in layouts
        ]
        if not tokenize:
            texts = [self.decode(row, skip_special_tokens=False) for row in rows]
            return texts if several else texts[0]
        encoded = self._padded(
            rows if several or options.get("return_tensors") else rows[0], options
        )
        return encoded if return_dict else encoded["input_ids"]

    def _layout(self, messages: Sequence[Any], add_generation_prompt: bool) -> Layout:
        template = Template(special_ids(self.backend_tokenizer), self._plain_ids)
        layout = template.layout(parse(messages, self._option("strip_turns")), [])
        role = layout.blocks[-1].role
        if (role == "assistant") == add_generation_prompt:
            form = (
                "add_generation_prompt=True"
                if role != "assistant"
                else "add_generation_prompt=False"
            )
            raise BadConversation(
                f"the chat ends with {role!r}: give {form}, or another last message"
            )
        return (
            template.to_answer(layout) if add_generation_prompt else self._scored(template, layout)
        )

    def _scored(self, template: Template, layout: Layout) -> Layout:
        return template.to_score(layout, self._option("tail_newline"))

    def _option(self, name: str) -> bool:
        return bool(self.init_kwargs.get(name, False))

    def _plain_ids(self, text: str) -> list[int]:
        return super().__call__(text, split_special_tokens=True, add_special_tokens=False)[
            "input_ids"
        ]

    def _padded(self, rows: Any, options: Mapping[str, Any]) -> BatchEncoding:
        given = {name: value for name, value in options.items() if name in _OF_CHATS}
        encoded: Any = self.pad({"input_ids": rows}, **{"padding": False, **given})
        return encoded

    # What code written for the backend calls.

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens beside the vocabulary's merges, by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def save(self, path: str) -> None:
        """Write the backend's one file, `tokenizer.json`."""
        self.backend_tokenizer.save(path)


_REMEDY = "give the chat itself (a list of messages), or split_special_tokens=False if you wrote all of the text"


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and bool(value)
        and not isinstance(value, str)
        and isinstance(value[0], Mapping)
    )


def _is_templated(text: Any) -> bool:
    return isinstance(text, str) and text.startswith(SPECIAL["bos"] + SPECIAL["turn_start"])


def _exchanges(questions: Any, answers: Any) -> list[Any]:
    """Chats of one question and one answer each; one chat if they are strings."""
    if isinstance(questions, str) and isinstance(answers, str):
        return _exchange(questions, answers)
    if not (isinstance(questions, list | tuple) and isinstance(answers, list | tuple)) or len(
        questions
    ) != len(answers):
        raise BadConversation(f"text_pair: {answers!r:.80}: give as many answers as texts")
    return [
        _exchange(question, answer) for question, answer in zip(questions, answers, strict=True)
    ]


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    """The question as a part: `<ImageHere>` in it is text."""
    question_turn = {"role": "user", "content": [{"type": "text", "text": question}]}
    return [question_turn, {"role": "assistant", "content": answer}]


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        idle = (
            value is None or value is False or (name == "truncation" and value == "do_not_truncate")
        )
        if (
            name == "add_special_tokens" or name in _OF_CHATS or idle
        ):  # the template is made of them, always
            continue
        form = (
            "nothing of a chat is ever cut off: drop its oldest messages"
            if name == "truncation"
            else "leave it out"
        )
        raise BadConversation(f"{name}: {value!r:.80}: not done for a chat; {form}")


AutoTokenizer.register(IXCConfig, fast_tokenizer_class=IXCTokenizer)
