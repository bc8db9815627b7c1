"""Pairs for other trainers, with their pictures and films in place: TRL, LLaMA-Factory and ms-swift.

Each form is a folder of Parquet tables, one per split: a table says what type a column has where its first ten thousand
rows have no picture, which JSON lines do not. The reader `preferences` takes each folder back, with the same texts,
order and media. What a trainer would read wrongly is refused by name, in `refused.csv`.

Sources: trl 1.16 `prepare_multimodal_messages`, llamafactory 0.9.5 `SharegptDatasetConverter`, ms-swift 4.6
`RowPreprocessor`.
"""

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ixc.data.samples import PLACEHOLDER, Media, Sample, Turn, open_table, read_samples
from ixc.io.files import replacing_folder, track

Form = Literal["trl", "llama-factory", "swift"]
Pieces = list[str | Media]
"""A turn's text, with the media at their places."""

REFUSED = "refused.csv"
MEDIA = "media"
_TITLE = "# Pairs, exported by ixc"
_GROUP_BYTES = 64 * 2**20
"""Of a row group, which is held in memory."""
_GROUP_ROWS = 1024
_MARK_LIKE = re.compile("<(?:image|video|ImageHere)")


class NotExported(ValueError):
    """Pairs that the other trainer would not read as they are: how many, why, and where they are listed."""


class Unfit(ValueError):
    """A pair that cannot be exported, and why."""


class Told(NamedTuple):
    """A pair as a form has it."""

    record: dict[str, Any]
    table: str
    """The table that it goes into, without its suffix."""


def export(pairs: Path, form: Form, out: Path, media: Path) -> dict[str, int]:
    """Write the pairs of a table into a new folder, or over an earlier export; returns how many, and how many not.

    Args:
        pairs: Parquet of samples, say `data/pairs/train.parquet`.
        media: the folder of their pictures and films.

    Raises:
        NotExported: some or all were refused; the folder has the others, if any, and `refused.csv`.
        FileExistsError: `out` holds something else.
    """
    _refuse_foreign(out)
    total = open_table(pairs).metadata.num_rows
    counts: Counter[str] = Counter(exported=0, refused=0)
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        folder = stack.enter_context(replacing_folder(out))
        writer = _Writer(form, folder, media, _is_marked(pairs))
        stack.callback(writer.close)
        refused = csv.writer(
            stack.enter_context((folder / REFUSED).open("w", encoding="utf-8", newline=""))
        )
        refused.writerow(("id", "reason"))
        for sample in track(read_samples(pairs), f"export to {form}", total):
            try:
                writer.put(sample)
                counts["exported"] += 1
            except Unfit as reason:
                refused.writerow((sample.id, reason))
                counts["refused"] += 1
                reasons[str(reason)] += 1
        writer.describe()
    if counts["refused"]:
        first = reasons.most_common(1)[0][0]
        told = f"{counts['refused']:,} of {total:,} pairs are left out, most often: {first}"
        raise NotExported(f"{told}; all are listed in {out / REFUSED}")
    return dict(counts)


def _refuse_foreign(out: Path) -> None:
    about = out / "README.md"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not about.is_file() or not about.read_text(encoding="utf-8").startswith(_TITLE):
        raise FileExistsError(
            f"{out}: holds something that ixc export did not write; name a new folder"
        )


def _is_marked(pairs: Path) -> bool:
    """Whether a pair has media, or words that look like a mark: then TRL's turns are of parts."""
    return any(
        s.media or any(_MARK_LIKE.search(turn.content) for turn in s.prompt)
        for s in read_samples(pairs)
    )


class _Writer:
    """The tables of a form, and the media beside them."""

    def __init__(self, form: Form, folder: Path, media: Path, in_parts: bool) -> None:
        self._form: Form = form
        self._folder, self._media, self._in_parts = folder, media, in_parts
        self._tables: dict[str, _Table] = {}
        self._checked: dict[str, str] = {}
        """Of each medium, what speaks against it; empty for nothing."""

    def put(self, sample: Sample) -> None:
        """Append a pair to its split's table.

        Raises:
            Unfit: it cannot be.
        """
        _check_pair(sample)
        for medium in sample.media:
            self._check(medium)
        told = _FORMS[self._form](sample, self._in_parts)
        if self._form == "trl":
            told.record.update(
                {name: list(map(self._brought, paths)) for name, paths in _paths(sample).items()}
            )
        else:
            for medium in sample.media:
                self._place(medium)
        self._table(told).put(told.record)

    def _check(self, medium: Media) -> None:
        if medium.path not in self._checked:
            self._checked[medium.path] = _fault(self._media / medium.path, medium)
        if fault := self._checked[medium.path]:
            raise Unfit(fault)

    def _brought(self, path: str) -> dict[str, Any]:
        return {"bytes": (self._media / path).read_bytes(), "path": path}

    def _place(self, medium: Media) -> None:
        target = self._folder / MEDIA / medium.path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._media / medium.path, target)

    def _table(self, told: Told) -> "_Table":
        if told.table not in self._tables:
            schema = _schema(self._form, self._in_parts, with_videos="videos" in told.table)
            self._tables[told.table] = _Table(self._folder / f"{told.table}.parquet", schema)
        return self._tables[told.table]

    def describe(self) -> None:
        """Write what the folder holds, and how each tool reads it."""
        names = sorted(self._tables)
        if self._form == "llama-factory":
            info = {f"ixc_{name}": _dataset_info(name) for name in names}
            (self._folder / "dataset_info.json").write_text(
                json.dumps(info, indent=2) + "\n", encoding="utf-8"
            )
        (self._folder / "README.md").write_text(_about(self._form, names), encoding="utf-8")

    def close(self) -> None:
        for table in self._tables.values():
            table.close()


class _Table:
    """A Parquet file whose row groups are bounded in bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._writer = schema, pq.ParquetWriter(path, schema)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def put(self, record: dict[str, Any]) -> None:
        self._rows.append(record)
        files = [file for name in ("images", "videos") for file in record[name]]
        self._bytes += sum(len(file["bytes"]) for file in files if isinstance(file, dict))
        if len(self._rows) == _GROUP_ROWS or self._bytes > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


# What can be exported


def _check_pair(sample: Sample) -> None:
    if len(sample.chosen) != 1 or len(sample.rejected) != 1:
        counted = f"{len(sample.chosen)} turns in `chosen` and {len(sample.rejected)} in `rejected`"
        raise Unfit(f"{counted}: no pair of two answers")
    if sample.verdict and sample.verdict.winner != "chosen":
        raise Unfit(f"verdict.winner is {sample.verdict.winner}: no pair whose `chosen` is better")


def _fault(path: Path, medium: Media) -> str:
    """Why a stored file cannot be given away; empty if it can."""
    if not path.is_file():
        return f"{medium.path}: not in {path.parents[1]}; give the right --media-root"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return (
        ""
        if digest == medium.sha256
        else f"{medium.path}: altered since it was stored; collect it again"
    )


def _pieces(sample: Sample) -> list[tuple[Turn, Pieces]]:
    """Each turn of the prompt, and its pieces; a medium without a mark comes first, as the model reads it."""
    left = list(sample.media)
    turns: list[tuple[Turn, Pieces]] = []
    for turn in sample.prompt:
        head, *rest = turn.content.split(PLACEHOLDER)
        pieces: Pieces = [head]
        for text in rest:
            if not left:
                raise Unfit(f"more marks {PLACEHOLDER} than pictures and films")
            pieces += [left.pop(0), text]
        turns.append((turn, pieces))
    if len(left) == len(sample.media) == 1:
        first = next((pieces for turn, pieces in turns if turn.role == "user"), turns[0][1])
        first.insert(0, left.pop())
    if left:
        raise Unfit(f"fewer marks {PLACEHOLDER} than pictures and films")
    return turns


# The forms


def _trl(sample: Sample, in_parts: bool) -> Told:
    """Turns of text, or of parts where there are media; the media themselves in columns, in the order of their parts.

    TRL brings only pictures to the model: pairs with films have a table of their own, which it does not read blindly.
    """
    prompt = [_trl_turn(turn.role, pieces, in_parts) for turn, pieces in _pieces(sample)]
    record: dict[str, Any] = {"id": sample.id, "domain": sample.domain, "prompt": prompt}
    for name, answer in (("chosen", sample.chosen[0]), ("rejected", sample.rejected[0])):
        record[name] = [_trl_turn(answer.role, [answer.content], in_parts)]
    return Told(
        record, f"{sample.split}_with_videos" if sample.modality == "video" else sample.split
    )


def _trl_turn(role: str, pieces: Pieces, in_parts: bool) -> dict[str, Any]:
    return {"role": role, "content": _parts(pieces) if in_parts else "".join(map(str, pieces))}


def _parts(pieces: Pieces) -> list[dict[str, Any]]:
    parts = [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind, "text": None}
        for p in pieces
    ]
    return [part for part in parts if part["text"] != ""] or [{"type": "text", "text": ""}]


def _llama_factory(sample: Sample, in_parts: bool) -> Told:
    """Sharegpt with a ranking: `dataset_info.json` names the columns."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = _tagged(sample)
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if len(spoken) % 2 == 0 or any(
        role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)
    ):
        raise Unfit(
            "turns that are not user and assistant by turns, ending with the user: LLaMA-Factory skips such a row"
        )
    record = {
        "id": sample.id,
        "domain": sample.domain,
        "conversations": [{"from": names[turn.role], "value": turn.content} for turn in turns],
        "chosen": {"from": "gpt", "value": sample.chosen[0].content},
        "rejected": {"from": "gpt", "value": sample.rejected[0].content},
        **_placed(sample),
    }
    return Told(record, sample.split)


def _swift(sample: Sample, in_parts: bool) -> Told:
    """Messages that end with the better answer, and the worse one beside them."""
    if sample.chosen[0].content == sample.rejected[0].content:
        raise Unfit("the two answers are the same: ms-swift refuses such a row")
    messages = [*_tagged(sample), sample.chosen[0]]
    record = {
        "id": sample.id,
        "domain": sample.domain,
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
        "rejected_response": sample.rejected[0].content,
        **_placed(sample),
    }
    return Told(record, sample.split)


_FORMS: dict[Form, Callable[[Sample, bool], Told]] = {
    "trl": _trl,
    "llama-factory": _llama_factory,
    "swift": _swift,
}
_TAGS = ("<image>", "<video>", "<audio>")


def _tagged(sample: Sample) -> list[Turn]:
    """The prompt with `<image>` and `<video>` where the media belong, the way of LLaVA.

    Raises:
        Unfit: a text holds such a tag itself, which would be counted.
    """
    turns = _pieces(sample)
    texts = [p for _, pieces in turns for p in pieces if isinstance(p, str)]
    texts += [turn.content for turn in (*sample.chosen, *sample.rejected)]
    if found := [tag for tag in _TAGS if any(tag in text for text in texts)]:
        raise Unfit(
            f"a text says {found[0]!r}, which would be taken for a picture, film or sound; export to trl"
        )
    unmarked = len(sample.media) == 1 and not any(
        PLACEHOLDER in turn.content for turn in sample.prompt
    )
    behind = "\n" if unmarked else ""
    return [replace(turn, content=_joined(pieces, behind)) for turn, pieces in turns]


def _joined(pieces: Pieces, behind: str) -> str:
    return "".join(p if isinstance(p, str) else f"<{p.kind}>{behind}" for p in pieces)


def _paths(sample: Sample) -> dict[str, list[str]]:
    kinds = {"images": "image", "videos": "video"}
    return {
        column: [m.path for m in sample.media if m.kind == kind] for column, kind in kinds.items()
    }


def _placed(sample: Sample) -> dict[str, list[str]]:
    return {
        column: [f"{MEDIA}/{path}" for path in paths] for column, paths in _paths(sample).items()
    }


# Their tables

_STRING = {"dtype": "string", "_type": "Value"}


def _schema(form: Form, in_parts: bool, with_videos: bool) -> pa.Schema:
    text, strings = pa.string(), pa.list_(pa.string())
    if form == "trl":
        return _trl_schema(in_parts, with_videos)
    turn = pa.struct(
        {"from": text, "value": text}
        if form == "llama-factory"
        else {"role": text, "content": text}
    )
    said = {"conversations": pa.list_(turn), "chosen": turn, "rejected": turn}
    if form == "swift":
        said = {"messages": pa.list_(turn), "rejected_response": text}
    return pa.schema({"id": text, "domain": text, **said, "images": strings, "videos": strings})


def _trl_schema(in_parts: bool, with_videos: bool) -> pa.Schema:
    """With what `datasets` keeps in a Parquet file: that `images` are pictures, not bytes.

    Without media there is no such column: TRL takes a table that has it for one of pictures.
    """
    text = pa.string()
    content = pa.list_(pa.struct({"type": text, "text": text})) if in_parts else text
    turns, file = (
        pa.list_(pa.struct({"role": text, "content": content})),
        pa.struct({"bytes": pa.binary(), "path": text}),
    )
    told = [
        {"role": _STRING, "content": [{"type": _STRING, "text": _STRING}] if in_parts else _STRING}
    ]
    columns = {"id": text, "domain": text, "prompt": turns, "chosen": turns, "rejected": turns}
    features: dict[str, Any] = {
        "id": _STRING,
        "domain": _STRING,
        "prompt": told,
        "chosen": told,
        "rejected": told,
    }
    if in_parts:
        columns["images"], features["images"] = pa.list_(file), [{"_type": "Image"}]
    if with_videos:
        columns["videos"] = pa.list_(file)
        features["videos"] = [{"bytes": {"dtype": "binary", "_type": "Value"}, "path": _STRING}]
    return pa.schema(
        columns, metadata={"huggingface": json.dumps({"info": {"features": features}})}
    )


def _dataset_info(name: str) -> dict[str, Any]:
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    columns |= {"images": "images", "videos": "videos"}
    return {
        "file_name": f"{name}.parquet",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": columns,
    }


def _about(form: Form, names: list[str]) -> str:
    return "\n\n".join([f"{_TITLE} for {form}", *_use(form, names), _BACK]) + "\n"


def _use(form: Form, names: list[str]) -> Iterator[str]:
    first = names[0] if names else "train"
    if form == "trl":
        yield f'    load_dataset("parquet", data_files="{first}.parquet", split="train")'
        yield "The pictures are in the tables. A table `*_with_videos` is for trainers that read its column `videos`:"
        yield "TRL 1.16 brings only pictures to the model."
    elif form == "llama-factory":
        yield f"    dataset_dir: <this folder>\n    dataset: {', '.join(f'ixc_{name}' for name in names)}"
    else:
        yield f"    ROOT_IMAGE_DIR=<this folder> swift rlhf --rlhf_type dpo --dataset <this folder>/{first}.parquet"
    yield f"Pairs that could not be exported are listed in `{REFUSED}`, with the reason."


_BACK = "`ixc` reads the folder again: `{reader: preferences, path: <this folder>}` in `collect.sources`."
