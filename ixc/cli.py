"""`ixc`: score, rank and chat from the command line, convert checkpoints, look at tables."""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ixc.show import FILTERS
from ixc.show import show as print_rows
from ixc.startup import quick_imports


class BadInput(ValueError):
    """A file or option that cannot be used: which, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on stderr and exit status 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:  # the last: an attention that is not installed
        print(f"ixc {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="ixc", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    score_parser = _command(commands, "score", score, "score chats with a reward model")
    rank_parser = _command(commands, "rank", rank, "rank answers to one question, best first")
    for command in (score_parser, rank_parser):
        _model_options(command)
        command.add_argument("chats", nargs="?", help='JSON lines {"messages": [...], "media": [paths]}; -: stdin')
        command.add_argument("--question", help="instead of a file: one question ...")
        command.add_argument("--answer", action="append", default=[], help="... and an answer to it; may be repeated")
        command.add_argument("--media", action="append", default=[], help="a picture or film; may be repeated")
    _table_options(score_parser)

    chat_parser = _command(commands, "chat", chat, "talk to a chat model; one message, or until end of input")
    _model_options(chat_parser)
    chat_parser.add_argument("message", nargs="?")
    chat_parser.add_argument("--media", action="append", default=[], help="a picture or film; may be repeated")
    chat_parser.add_argument("--max-new-tokens", type=int, default=1024)
    chat_parser.add_argument("--sample", action="store_true", help="sample as the official chat does, not greedily")

    show_parser = _command(commands, "show", show, "print the rows of a table of the pipeline")
    show_parser.add_argument("table", type=Path, help="data/pairs/train.parquet, data/quarantine/validate.parquet, ...")
    show_parser.add_argument("--limit", type=int, default=10, help="rows at most; 0: all (default: 10)")
    for name in FILTERS:
        show_parser.add_argument(f"--{name}", help=f"only rows of this {name}")

    convert_parser = _command(commands, "convert", convert, "official checkpoint to ours, or back")
    convert_parser.add_argument("source", type=Path)
    convert_parser.add_argument(
        "target", type=Path, help="a new folder, or a checkpoint that ixc wrote: it is replaced"
    )
    convert_parser.add_argument("--json", action="store_true", help="print JSON")
    return top


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help)
    command.set_defaults(run=run)
    return command


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="a model's folder, ours or official")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    attention = "sdpa, flash_attention_2, ...: of replies; scores share prompts, by an attention of their own"
    command.add_argument(
        "--attention", default="sdpa", help=f"{attention}; eager: every chat (not a table's) whole, in formulae"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _table_options(command: argparse.ArgumentParser) -> None:
    table = command.add_argument_group("a table of samples, of any size", "under torchrun, by all processes together")
    table.add_argument("--in", dest="source", type=Path, help="Parquet; a killed call goes on where it was")
    table.add_argument("--out", dest="target", type=Path, help="the same rows, with rewards")
    table.add_argument("--media-root", type=Path, default=Path("data/media"), help="the folder of its pictures")
    table.add_argument("--shard-rows", type=_count, default=1024, help="rows that a kill may cost")
    table.add_argument("--pass-tokens", type=_count, default=16384, help="tokens of a forward pass at most")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: not a whole number above 0")
    return int(text)


def _api() -> ModuleType:
    """`ixc.api`; what an import makes lives to the end, and to look through it for garbage takes a second."""
    gc.disable()
    with quick_imports():
        from ixc import api

    gc.freeze()
    gc.enable()
    return api


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ixc.model.official import as_device

    try:
        device = as_device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BadInput(f"--device {options.device}: {str(error).splitlines()[0]}; cpu is always there") from error
    return {"device": device, "dtype": options.dtype, "attn_implementation": options.attention}


def _loaded(options: argparse.Namespace, kind: str) -> Any:
    """A model of `ixc.api`, by the name of its class."""
    with quick_imports():
        return getattr(_api(), kind).from_pretrained(options.model, **_loading(options))


def score(options: argparse.Namespace) -> None:
    """Print a score per chat, or score a table."""
    if options.source or options.target:
        score_table(options)
        return
    chats, media = _chats(options)
    scores = _loaded(options, "RewardModel").score(chats, media)
    _print(options, scores, [f"{value:.4f}  {_shortened(chat)}" for value, chat in zip(scores, chats, strict=True)])


def score_table(options: argparse.Namespace) -> None:
    """Score a table of samples into another; the first process says how many."""
    from ixc import bulk, distributed
    from ixc.checkpoints import digest_of
    from ixc.features import Features
    from ixc.model import IXCForRewardModel
    from ixc.model.folder import load

    if not (options.source and options.target) or options.chats or options.question is not None:
        raise BadInput("--in goes with --out, and without chats or a question")
    loading = _loading(options)
    if str(loading["device"]) == "cuda":
        loading["device"] = distributed.device()
    model, processor = load(options.model, IXCForRewardModel, **loading)
    counts = bulk.score_table(
        model,
        Features(model, processor, options.media_root),
        options.source,
        options.target,
        model_name=digest_of(Path(options.model)),
        shard_rows=options.shard_rows,
        pass_tokens=options.pass_tokens,
    )
    if counts:
        _print(options, counts, [f"{options.target}: {counts['rows']:,} rows, {counts[bulk.NOT_SCORED]:,} not scored"])


def rank(options: argparse.Namespace) -> None:
    """Print chats from best to worst."""
    chats, media = _chats(options)
    ranking = _loaded(options, "RewardModel").rank(chats, media)
    lines = [f"{place}. {ranking.scores[i]:.4f}  {_shortened(chats[i])}" for place, i in enumerate(ranking.order, 1)]
    _print(options, ranking._asdict(), lines)


def chat(options: argparse.Namespace) -> None:
    """Answer one message, or hold a conversation; the media belong to its first message."""
    model = _loaded(options, "ChatModel")
    official = {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.005}
    settings = {"max_new_tokens": options.max_new_tokens, **(official if options.sample else {})}
    messages: list[dict[str, str]] = []
    for line in [options.message] if options.message else sys.stdin:
        messages.append({"role": "user", "content": line.strip()})
        messages.append({"role": "assistant", "content": model.reply(messages, options.media, **settings)})
        _print(options, messages[-1], [messages[-1]["content"]])


def show(options: argparse.Namespace) -> None:
    """Print rows, readable, also into a pipe."""
    filters = {name: getattr(options, name) for name in FILTERS}
    try:
        print_rows(options.table, limit=options.limit or None, **filters)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; the interpreter must not flush into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def convert(options: argparse.Namespace) -> None:
    """Official to ours, or ours to official, by what the source is; says which keys were new or ignored."""
    report = _api().convert(options.source, options.target)
    _print(options, report, [f"{what}: {', '.join(names) or 'none'}" for what, names in report.items()])


def _chats(options: argparse.Namespace) -> tuple[list[Any], list[list[str]]]:
    """The chats of a file, or those of the command line."""
    if options.question is not None:
        if not options.answer or options.chats:
            raise BadInput("--question goes with one --answer or more, and without a file")
        asked = {"role": "user", "content": options.question}
        chats = [[asked, {"role": "assistant", "content": answer}] for answer in options.answer]
        return chats, [options.media] * len(chats)
    if not options.chats:
        raise BadInput("name a file of chats, or give --question and --answer")
    text = sys.stdin.read() if options.chats == "-" else Path(options.chats).read_text(encoding="utf-8")
    rows = [_row(line, f"{options.chats}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [row["messages"] for row in rows], [row.get("media") or [] for row in rows]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where}: not JSON ({error}); one chat a line") from error
    media = row.get("media") or [] if isinstance(row, dict) else None
    named = isinstance(media, list) and all(isinstance(path, str) for path in media)
    if not named or not isinstance(row.get("messages"), list):
        raise BadInput(f'{where}: a chat is {{"messages": [{{"role": ..., "content": ...}}], "media": [paths]}}')
    return row


def _shortened(chat: Sequence[Any], width: int = 80) -> str:
    said = chat[-1]["content"]
    said = said if isinstance(said, str) else " ".join(part.get("text", "<picture>") for part in said)
    text = " ".join(said.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _print(options: argparse.Namespace, data: Any, lines: Sequence[str]) -> None:
    """Data as JSON where that was asked for, else the lines."""
    print(json.dumps(data, ensure_ascii=False) if options.json else "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
