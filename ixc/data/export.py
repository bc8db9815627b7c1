"""Pairs for other trainers, with their images and videos beside them: TRL, LLaMA-Factory and ms-swift.

Each form is a folder of Parquet tables, one per split: a table says what type a column has where its first ten thousand
rows have no image, which JSON lines do not. The reader `preferences` takes each folder back, with the same texts,
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


class Exported(NamedTuple):
    """A pair as a form has it."""

    record: dict[str, Any]
    table: str
    """The table that it goes into, without its suffix."""


def export(
    pairs: Path,
    form: Form,
    out: Path,
    media: Path,
) -> dict[str, int]:
    """Write the pairs of a table into a new folder, or over an earlier export; returns how many, and how many not.

    Args:
        pairs: Parquet of samples, say `data/pairs/train.parquet`.
        media: the folder of their images and videos.

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
        refused_file = (folder / REFUSED).open("w", encoding="utf-8", newline="")
        refused = csv.writer(stack.enter_context(refused_file))
        refused.writerow(("id", "reason"))

        # Every pair goes into a table, or into the list of the refused.
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
        [(reason, _)] = reasons.most_common(1)
        summary = f"{counts['refused']:,} of {total:,} pairs are left out, most often: {reason}"
        raise NotExported(f"{summary}; all are listed in {out / REFUSED}")
    return dict(counts)


def _refuse_foreign(out: Path) -> None:
    is_empty = out.is_dir() and not any(out.iterdir())
    if not out.exists() or is_empty:
        return
    readme = out / "README.md"
    if not readme.is_file() or not readme.read_text(encoding="utf-8").startswith(_TITLE):
        raise FileExistsError(
            f"{out}: holds something that ixc export did not write; name a new folder"
        )


def _is_marked(pairs: Path) -> bool:
    """Whether a pair has media, or words that look like a mark: then TRL's turns are of parts."""
    for sample in read_samples(pairs):
        if sample.media or any(_MARK_LIKE.search(turn.content) for turn in sample.prompt):
            return True
    return False


class _Writer:
    """The tables of a form, and the media beside them."""

    def __init__(
        self,
        form: Form,
        folder: Path,
        media: Path,
        in_parts: bool,
    ) -> None:
        self._form: Form = form
        self._folder = folder
        self._media = media
        self._in_parts = in_parts
        self._tables: dict[str, _Table] = {}
        self._faults: dict[str, str] = {}
        """Of each medium, what speaks against it; empty for nothing."""

    def put(self, sample: Sample) -> None:
        """Append a pair to its split's table.

        Raises:
            Unfit: it cannot be.
        """
        _check_pair(sample)
        for medium in sample.media:
            self._check(medium)
        exported = _FORMS[self._form](sample, self._in_parts)
        # TRL has the media in the table, the others beside it.
        if self._form == "trl":
            for column, paths in _media_paths(sample).items():
                exported.record[column] = [self._with_bytes(path) for path in paths]
        else:
            for medium in sample.media:
                self._copy(medium)
        self._table(exported.table).put(exported.record)

    def _check(self, medium: Media) -> None:
        if medium.path not in self._faults:
            self._faults[medium.path] = _fault(self._media / medium.path, medium)
        if fault := self._faults[medium.path]:
            raise Unfit(fault)

    def _with_bytes(self, path: str) -> dict[str, Any]:
        return {"bytes": (self._media / path).read_bytes(), "path": path}

    def _copy(self, medium: Media) -> None:
        target = self._folder / MEDIA / medium.path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._media / medium.path, target)

    def _table(self, name: str) -> "_Table":
        if name not in self._tables:
            schema = _schema(self._form, self._in_parts, with_videos="videos" in name)
            self._tables[name] = _Table(self._folder / f"{name}.parquet", schema)
        return self._tables[name]

    def describe(self) -> None:
        """Write what the folder holds, and how each tool reads it."""
        names = sorted(self._tables)
        if self._form == "llama-factory":
            # LLaMA-Factory reads no folder without it.
            info = {f"ixc_{name}": _dataset_info(name) for name in names}
            text = json.dumps(info, indent=2) + "\n"
            (self._folder / "dataset_info.json").write_text(text, encoding="utf-8")
        readme = _readme(self._form, names)
        (self._folder / "README.md").write_text(readme, encoding="utf-8")

    def close(self) -> None:
        for table in self._tables.values():
            table.close()


class _Table:
    """A Parquet file whose row groups are bounded in bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = 0

    def put(self, record: dict[str, Any]) -> None:
        self._rows.append(record)
        files = [*record["images"], *record["videos"]]
        self._num_bytes += sum(len(file["bytes"]) for file in files if isinstance(file, dict))
        if len(self._rows) == _GROUP_ROWS or self._num_bytes > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        group = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(group)
        self._rows = []
        self._num_bytes = 0

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


# What can be exported


def _check_pair(sample: Sample) -> None:
    num_chosen = len(sample.chosen)
    num_rejected = len(sample.rejected)
    if num_chosen != 1 or num_rejected != 1:
        counts = f"{num_chosen} turns in `chosen` and {num_rejected} in `rejected`"
        raise Unfit(f"{counts}: no pair of two answers")
    if sample.verdict and sample.verdict.winner != "chosen":
        raise Unfit(f"verdict.winner is {sample.verdict.winner}: no pair whose `chosen` is better")


def _fault(path: Path, medium: Media) -> str:
    """Why a stored file cannot be given away; empty if it can."""
    if not path.is_file():
        return f"{medium.path}: not in {path.parents[1]}; give the right --media-root"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != medium.sha256:
        return f"{medium.path}: altered since it was stored; collect it again"
    return ""


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
            pieces.append(left.pop(0))
            pieces.append(text)
        turns.append((turn, pieces))
    # The only one needs no mark.
    if len(left) == len(sample.media) == 1:
        _, first = turns[0]
        first = next((pieces for turn, pieces in turns if turn.role == "user"), first)
        first.insert(0, left.pop())
    if left:
        raise Unfit(f"fewer marks {PLACEHOLDER} than pictures and films")
    return turns


# The forms


def _trl(sample: Sample, in_parts: bool) -> Exported:
    """Turns of text, or of parts where there are media; the media themselves in columns, in the order of their parts.

    TRL brings only images to the model: pairs with videos have a table of their own, which it does not read blindly.
    """
    prompt = [_trl_turn(turn.role, pieces, in_parts) for turn, pieces in _pieces(sample)]
    [chosen] = sample.chosen
    [rejected] = sample.rejected
    record: dict[str, Any] = {
        "id": sample.id,
        "domain": sample.domain,
        "prompt": prompt,
        "chosen": [_trl_turn(chosen.role, [chosen.content], in_parts)],
        "rejected": [_trl_turn(rejected.role, [rejected.content], in_parts)],
    }
    suffix = "_with_videos" if sample.modality == "video" else ""
    return Exported(record, sample.split + suffix)


def _trl_turn(role: str, pieces: Pieces, in_parts: bool) -> dict[str, Any]:
    content = _parts(pieces) if in_parts else "".join(map(str, pieces))
    return {"role": role, "content": content}


def _parts(pieces: Pieces) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Media):
            parts.append({"type": piece.kind, "text": None})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts or [{"type": "text", "text": ""}]


def _llama_factory(sample: Sample, in_parts: bool) -> Exported:
    """Sharegpt with a ranking: `dataset_info.json` names the columns."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = _tagged(sample)
    if not _alternate([turn.role for turn in turns]):
        raise Unfit(
            "turns that are not user and assistant by turns, ending with the user: LLaMA-Factory skips such a row"
        )
    record = {
        "id": sample.id,
        "domain": sample.domain,
        "conversations": [{"from": names[turn.role], "value": turn.content} for turn in turns],
        "chosen": {"from": "gpt", "value": sample.chosen[0].content},
        "rejected": {"from": "gpt", "value": sample.rejected[0].content},
        **_media_columns(sample),
    }
    return Exported(record, sample.split)


def _alternate(roles: list[str]) -> bool:
    """Whether user and assistant take turns, perhaps behind a system message; the user begins and ends.

    >>> _alternate(["system", "user"]), _alternate(["user", "user"]), _alternate(["user", "assistant"])
    (True, False, False)
    """
    speakers = roles[1:] if roles[:1] == ["system"] else roles
    users = speakers[::2]
    assistants = speakers[1::2]
    is_last_user = len(speakers) % 2 == 1
    return is_last_user and {*users} == {"user"} and {*assistants} <= {"assistant"}


def _swift(sample: Sample, in_parts: bool) -> Exported:
    """Messages that end with the better answer, and the worse one beside them."""
    [chosen] = sample.chosen
    [rejected] = sample.rejected
    if chosen.content == rejected.content:
        raise Unfit("the two answers are the same: ms-swift refuses such a row")
    messages = [*_tagged(sample), chosen]
    record = {
        "id": sample.id,
        "domain": sample.domain,
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
        "rejected_response": rejected.content,
        **_media_columns(sample),
    }
    return Exported(record, sample.split)


_FORMS: dict[Form, Callable[[Sample, bool], Exported]] = {
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
    texts = [turn.content for turn in (*sample.chosen, *sample.rejected)]
    for _, pieces in turns:
        texts += [piece for piece in pieces if isinstance(piece, str)]
    for tag in _TAGS:
        if any(tag in text for text in texts):
            raise Unfit(
                f"a text says {tag!r}, which would be taken for a picture, film or sound; export to trl"
            )
    # LLaVA writes the only image on a line before the question.
    is_marked = any(PLACEHOLDER in turn.content for turn in sample.prompt)
    behind = "\n" if len(sample.media) == 1 and not is_marked else ""
    return [replace(turn, content=_joined(pieces, behind)) for turn, pieces in turns]


def _joined(pieces: Pieces, behind: str) -> str:
    tagged = [piece if isinstance(piece, str) else f"<{piece.kind}>{behind}" for piece in pieces]
    return "".join(tagged)


def _media_paths(sample: Sample) -> dict[str, list[str]]:
    """The paths in the store by column."""
    return {
        "images": [medium.path for medium in sample.media if medium.kind == "image"],
        "videos": [medium.path for medium in sample.media if medium.kind == "video"],
    }


def _media_columns(sample: Sample) -> dict[str, list[str]]:
    """The paths in the exported folder by column."""
    columns: dict[str, list[str]] = {}
    for column, paths in _media_paths(sample).items():
        columns[column] = [f"{MEDIA}/{path}" for path in paths]
    return columns


# Their tables

_STRING = {"dtype": "string", "_type": "Value"}


def _schema(form: Form, in_parts: bool, with_videos: bool) -> pa.Schema:
    text = pa.string()
    paths = pa.list_(text)
    if form == "trl":
        return _trl_schema(in_parts, with_videos)
    if form == "llama-factory":
        turn = pa.struct({"from": text, "value": text})
        messages = {"conversations": pa.list_(turn), "chosen": turn, "rejected": turn}
    else:
        turn = pa.struct({"role": text, "content": text})
        messages = {"messages": pa.list_(turn), "rejected_response": text}
    return pa.schema({"id": text, "domain": text, **messages, "images": paths, "videos": paths})


def _trl_schema(in_parts: bool, with_videos: bool) -> pa.Schema:
    """With what `datasets` writes into a Parquet file: that `images` are images, not bytes.

    Without media there is no such column: TRL takes a table that has it for one of images.
    """
    # The columns by Arrow's types.
    text = pa.string()
    content = pa.list_(pa.struct({"type": text, "text": text})) if in_parts else text
    turns = pa.list_(pa.struct({"role": text, "content": content}))
    files = pa.list_(pa.struct({"bytes": pa.binary(), "path": text}))
    columns = {"id": text, "domain": text, "prompt": turns, "chosen": turns, "rejected": turns}

    # The same by the names that `datasets` has for them.
    content_feature: Any = [{"type": _STRING, "text": _STRING}] if in_parts else _STRING
    turns_feature = [{"role": _STRING, "content": content_feature}]
    features: dict[str, Any] = {
        "id": _STRING,
        "domain": _STRING,
        "prompt": turns_feature,
        "chosen": turns_feature,
        "rejected": turns_feature,
    }

    if in_parts:
        columns["images"] = files
        features["images"] = [{"_type": "Image"}]
    if with_videos:
        columns["videos"] = files
        features["videos"] = [{"bytes": {"dtype": "binary", "_type": "Value"}, "path": _STRING}]
    info = json.dumps({"info": {"features": features}})
    return pa.schema(columns, metadata={"huggingface": info})


def _dataset_info(name: str) -> dict[str, Any]:
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    columns |= {"images": "images", "videos": "videos"}
    return {
        "file_name": f"{name}.parquet",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": columns,
    }


def _readme(form: Form, names: list[str]) -> str:
    paragraphs = [f"{_TITLE} for {form}", *_usage(form, names), _BACK]
    return "\n\n".join(paragraphs) + "\n"


def _usage(form: Form, names: list[str]) -> Iterator[str]:
    first = names[0] if names else "train"
    if form == "trl":
        yield f'    load_dataset("parquet", data_files="{first}.parquet", split="train")'
        yield "The pictures are in the tables. A table `*_with_videos` is for trainers that read its column `videos`:"
        yield "TRL 1.16 brings only pictures to the model."
    elif form == "llama-factory":
        datasets = ", ".join(f"ixc_{name}" for name in names)
        yield f"    dataset_dir: <this folder>\n    dataset: {datasets}"
    else:
        yield f"    ROOT_IMAGE_DIR=<this folder> swift rlhf --rlhf_type dpo --dataset <this folder>/{first}.parquet"
    yield f"Pairs that could not be exported are listed in `{REFUSED}`, with the reason."


_BACK = "`ixc` reads the folder again: `{reader: preferences, path: <this folder>}` in `collect.sources`."
