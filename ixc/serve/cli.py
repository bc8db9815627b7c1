"""`ixc`: score, rank and chat from the command line, convert checkpoints, look at tables."""

import argparse
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from ixc.data.export import Form, export
from ixc.serve.cli_options import (
    REPLYING,
    SCORING,
    Version,
    as_options,
    count,
    model_options,
    seed,
    table_options,
    temperature,
)
from ixc.serve.show import FILTERS
from ixc.serve.show import show as print_rows

SOME_UNSCORED = 3
_STATUS = f"""\
exit status: 0: everything was scored; 2: bad input, nothing was scored; {SOME_UNSCORED}: at least one row could not be
scored, which stderr names by file and line, all others were (under torchrun: 1 instead of {SOME_UNSCORED})"""


class BadInput(ValueError):
    """A file or option that cannot be used: which, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on stderr and exit status 2; see `_STATUS`."""
    options = parser().parse_args(arguments)
    if isinstance(
        sys.stdout, TextIOWrapper
    ):  # a sign that the terminal has not must not cost the scores
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = options.run(options) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except (
        BrokenPipeError
    ):  # `| head` has seen enough; the interpreter must not flush into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (
        ValueError,
        OSError,
        ImportError,
    ) as error:  # the last: an attention that is not installed
        _complain(options, str(error))
        return 2


def _complain(options: argparse.Namespace, reason: str) -> None:
    print(f"ixc {options.command}: {as_options(' '.join(reason.split()))}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="ixc", description=__doc__)
    top.add_argument("--version", action=Version, nargs=0, help="print the version and leave")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    score_parser = _command(commands, "score", score, "score chats with a reward model")
    rank_parser = _command(commands, "rank", rank, "rank answers to one question, best first")
    for command in (score_parser, rank_parser):
        model_options(command, SCORING)
        command.epilog = _STATUS
        command.add_argument("chats", nargs="?", help=_CHATS)
        command.add_argument("--question", help="instead of a file: one question ...")
        command.add_argument(
            "--answer", action="append", default=[], help="... and an answer to it; may be repeated"
        )
        command.add_argument(
            "--media", action="append", default=[], help="an image or video; may be repeated"
        )
        root = "the folder of images and videos; default: of a file of chats its own, of a table data/media"
        command.add_argument("--media-root", type=Path, help=root)
    table_options(score_parser)

    chat_parser = _command(
        commands, "chat", chat, "talk to a chat model; one message, or until end of input"
    )
    model_options(chat_parser, REPLYING)
    chat_parser.add_argument("message", nargs="?")
    chat_parser.add_argument(
        "--media", action="append", default=[], help="an image or video; may be repeated"
    )
    chat_parser.add_argument("--system", help="what the model is told before the conversation")
    chat_parser.add_argument(
        "--max-new-tokens", type=count, default=1024, help="tokens of a reply at most"
    )
    chat_parser.add_argument(
        "--sample", action="store_true", help="sample as the official chat does, not greedily"
    )
    chat_parser.add_argument(
        "--temperature", type=temperature, help="sample at this temperature; 0: greedily"
    )
    chat_parser.add_argument("--seed", type=seed, help="of sampling; equal seeds, equal replies")

    show_parser = _command(commands, "show", show, "print the rows of a table of the pipeline")
    show_parser.add_argument(
        "table", type=Path, help="data/pairs/train.parquet, data/quarantine/validate.parquet, ..."
    )
    show_parser.add_argument(
        "--limit", type=int, default=10, help="rows at most; 0: all (default: 10)"
    )
    for name in FILTERS:
        show_parser.add_argument(f"--{name}", help=f"only rows of this {name}")

    convert_parser = _command(commands, "convert", convert, "official checkpoint to ours, or back")
    convert_parser.add_argument("source", type=Path)
    convert_parser.add_argument(
        "target", type=Path, help="a new folder, or a checkpoint that ixc wrote: it is replaced"
    )
    convert_parser.add_argument("--json", action="store_true", help="print JSON")
    _export_options(commands)
    return top


_CHATS = """\
chats as JSON lines, one JSON list or Parquet; -: lines from stdin. A chat: {"messages": [{"role": ..., "content": ...},
...], "images": [paths], "videos": [paths]}, or as OpenAI, Transformers, TRL or LLaVA write it; relative paths start at
the file's folder"""


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help)
    command.set_defaults(run=run)
    return command


def _export_options(commands: Any) -> None:
    command = _command(
        commands, "export", export_pairs, "pairs with their images and videos, for another trainer"
    )
    command.add_argument("pairs", type=Path, help="data/pairs/train.parquet, ...")
    command.add_argument(
        "--to", required=True, choices=get_args(Form), help="the trainer that is to read them"
    )
    command.add_argument(
        "--out", required=True, type=Path, help="a new folder, or an earlier export: it is replaced"
    )
    command.add_argument(
        "--media-root", type=Path, default=Path("data/media"), help="the folder of their media"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _api() -> ModuleType:
    """`ixc.serve.api`; what an import makes lives to the end, and to look through it for garbage takes a second."""
    gc.disable()
    from ixc.serve import api

    gc.freeze()
    gc.enable()
    return api


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ixc.models.places import as_device

    try:
        device = as_device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BadInput(
            f"--device {options.device}: {str(error).splitlines()[0]}; cpu is always there"
        ) from error
    attention = (REPLYING if options.command == "chat" else SCORING)[options.attention]
    return {"device": device, "dtype": options.dtype, **attention}


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the processor."""
    names = ("image_budget", "max_length", "max_frames", "max_pixels", "on_overflow")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _loaded(options: argparse.Namespace, kind: str) -> Any:
    """A model of `ixc.serve.api`, by the name of its class."""
    return getattr(_api(), kind).from_pretrained(
        options.model, **_loading(options), **_reading(options)
    )


def score(options: argparse.Namespace) -> int:
    """Print a score per chat, or score a table."""
    if options.source or options.target:
        return score_table(options)
    rows = _chats(options)
    outcomes = _outcomes(options, rows)
    scores = [outcome.score for outcome in outcomes]
    printed = ["-" if score is None else f"{score:.4f}" for score in scores]
    _print(
        options,
        scores,
        [f"{score}  {_shortened(row)}" for score, row in zip(printed, rows, strict=True)],
    )
    return _status(options, rows, outcomes)


def rank(options: argparse.Namespace) -> int:
    """Print chats from best to worst; those that cannot be scored have no place."""
    rows = _chats(options)
    outcomes = _outcomes(options, rows)
    scores = [outcome.score for outcome in outcomes]
    scored = [i for i, value in enumerate(scores) if value is not None]
    order = [scored[i] for i in _api().ranked([scores[i] for i in scored]).order]
    places: list[int | None] = [None] * len(rows)
    for place, i in enumerate(order, 1):
        places[i] = place
    lines = [f"{place}. {scores[i]:.4f}  {_shortened(rows[i])}" for place, i in enumerate(order, 1)]
    _print(options, {"scores": scores, "ranks": places, "order": order}, lines)
    return _status(options, rows, outcomes)


def _outcomes(options: argparse.Namespace, rows: Sequence[Any]) -> list[Any]:
    """A score or a reason for each row."""
    api = _api()
    readable = [row.chat for row in rows if row.chat is not None]
    model = _loaded(options, "RewardModel")
    scored = iter(model.score_each(readable))
    outcomes = [api.Outcome(None, row.reason) if row.chat is None else next(scored) for row in rows]
    reasons = {outcome.reason for outcome in outcomes}
    if options.question is not None and len(reasons) == 1 and "" not in reasons:
        raise BadInput(outcomes[0].reason)  # the question's, or that of all its media
    return outcomes


def _status(options: argparse.Namespace, rows: Sequence[Any], outcomes: Sequence[Any]) -> int:
    """Name the rows that have no score; the exit status says whether there are any."""
    failed = [
        (row.where, outcome.reason)
        for row, outcome in zip(rows, outcomes, strict=True)
        if outcome.reason
    ]
    for where, reason in failed:
        _complain(options, f"{where}: {reason}")
    if failed:
        _complain(
            options, f"{len(failed):,} of {len(rows):,} chats not scored, for the reasons above"
        )
    return _exit_status(len(failed), len(rows))


def _exit_status(unscored: int, rows: int) -> int:
    return 0 if not unscored else SOME_UNSCORED if unscored < rows else 2


def score_table(options: argparse.Namespace) -> int:
    """Score a table of samples into another; the first process says how many."""
    from ixc.engine import distributed
    from ixc.engine.checkpoints import digest_of
    from ixc.engine.vision_cache import VisionCache
    from ixc.models import load_scorer
    from ixc.models.places import stored
    from ixc.serve import bulk
    from ixc.serve.chat_files import holds_chats

    if not (options.source and options.target) or options.chats or options.question is not None:
        raise BadInput("--in goes with --out, and without chats or a question")
    if options.media or options.max_length or options.on_overflow:
        bound = "a table names its media, --max-tokens-per-microbatch is its bound"
        raise BadInput(f"--media, --max-length and --on-overflow go with chats; {bound}")
    if options.attention == "eager":
        raise BadInput(
            "--attention eager reads every chat whole, and a table's answers share their prompts: leave it out"
        )
    if holds_chats(options.source):
        raise BadInput(
            f"{options.source}: a table of chats, not of the pipeline's samples; give it without --in and --out"
        )
    if options.media_root is not None and not options.media_root.is_dir():
        raise BadInput(
            f"--media-root {options.media_root}: no such folder; name the one that the table's paths start at"
        )
    loading, folder = _loading(options), stored(options.model)
    if str(loading["device"]) == "cuda":
        loading["device"] = distributed.device()
    model, processor = load_scorer(folder, **loading)
    reading = _reading(options)
    counts = bulk.score_table(
        model,
        VisionCache(
            model, processor.with_options(**reading) if reading else processor, _root(options)
        ),
        options.source,
        options.target,
        model_name=digest_of(folder),
        shard_rows=options.shard_rows,
        max_tokens_per_microbatch=options.max_tokens_per_microbatch,
    )
    if not counts:
        return 0
    unscored = counts[bulk.NOT_SCORED]
    _print(options, counts, [f"{options.target}: {counts['rows']:,} rows, {unscored:,} not scored"])
    if unscored:
        why = f"most often: {_commonest_reason(options.target)}; all are in {options.target}, meta.{bulk.NOT_SCORED}"
        _complain(
            options,
            f"{unscored:,} of {counts['rows']:,} rows not scored (media from {_root(options)}); {why}",
        )
    return _exit_status(int(unscored), int(counts["rows"]))


def _root(options: argparse.Namespace) -> Path:
    return options.media_root or Path("data/media")


def _commonest_reason(table: Path) -> str:
    """Why most of the rows that have no rewards have none, by the first of them: names and numbers differ."""
    from collections import Counter

    import pyarrow.parquet as pq

    from ixc.serve.bulk import NOT_SCORED

    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for batch in pq.ParquetFile(table).iter_batches(columns=["meta"]):
        for meta in batch["meta"].to_pylist():
            if reason := json.loads(meta or "{}").get(NOT_SCORED):
                kind = re.sub(r"\S*[\d/]\S*", "", reason)
                counts[kind] += 1
                examples.setdefault(kind, reason)
    return examples[counts.most_common(1)[0][0]]


def chat(options: argparse.Namespace) -> None:
    """Answer one message, or hold a conversation; the media belong to its first message."""
    model = _loaded(options, "ChatModel")
    settings = {"max_new_tokens": options.max_new_tokens, **_sampling(options)}
    if not options.json:  # as it comes; flushed, or a pipe would get it all at once
        settings["on_text"] = lambda text: print(text, end="", flush=True)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    if options.message is not None and not options.message.strip():
        raise BadInput("the message is empty; write one, or none and then one a line")
    for number, line in enumerate(sys.stdin if options.message is None else [options.message]):
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.strip()})
        seed = None if options.seed is None else options.seed + number
        messages.append(
            {
                "role": "assistant",
                "content": model.reply(messages, options.media, seed=seed, **settings),
            }
        )
        _print(options, messages[-1], [""])


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """How replies are sampled, if they are."""
    settings = (
        {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.005} if options.sample else {}
    )
    if options.temperature == 0:
        return {}
    return (
        settings
        if options.temperature is None
        else {"do_sample": True, **settings, "temperature": options.temperature}
    )


def show(options: argparse.Namespace) -> None:
    """Print rows, readable, also into a pipe."""
    print_rows(
        options.table,
        limit=options.limit or None,
        **{name: getattr(options, name) for name in FILTERS},
    )


def convert(options: argparse.Namespace) -> None:
    """Official to ours, or ours to official, by what the source is; says which keys were new or ignored."""
    report = _api().convert(options.source, options.target)
    _print(
        options, report, [f"{what}: {', '.join(names) or 'none'}" for what, names in report.items()]
    )


def export_pairs(options: argparse.Namespace) -> None:
    """Write pairs as another trainer reads them; says how many."""
    counts = export(options.pairs, options.to, options.out, options.media_root)
    _print(options, counts, [f"{options.out}: {counts['exported']:,} pairs; see README.md there"])


def _chats(options: argparse.Namespace) -> list[Any]:
    """The chats of a file, or those of the command line, as rows."""
    from ixc.serve.chat_files import Row, read_rows
    from ixc.serve.chats import read_chat

    if options.question is not None:
        if not options.answer or options.chats:
            raise BadInput("--question goes with one --answer or more, and without a file")
        question = {"role": "user", "content": options.question}
        chats = [[question, {"role": "assistant", "content": answer}] for answer in options.answer]
        return [
            Row(f"--answer {number}", read_chat(chat, options.media, options.media_root))
            for number, chat in enumerate(chats, 1)
        ]
    if not options.chats:
        raise BadInput("name a file of chats, or give --question and --answer")
    if options.media:
        raise BadInput("--media goes with --question; a file of chats names its own media")
    return list(read_rows(options.chats, options.media_root))


def _shortened(row: Any, width: int = 80) -> str:
    """The answer of a row, or where it stands, if it could not be read."""
    if row.chat is None:
        return row.where
    answer = row.chat.messages[-1]["content"]
    answer = (
        answer
        if isinstance(answer, str)
        else " ".join(part.get("text", "<image>") for part in answer)
    )
    text = " ".join(answer.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _print(options: argparse.Namespace, data: Any, lines: Sequence[str]) -> None:
    """Data as JSON where that was asked for, else the lines."""
    if options.json:
        print(json.dumps(data, ensure_ascii=False, allow_nan=False))
    elif lines:
        print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
