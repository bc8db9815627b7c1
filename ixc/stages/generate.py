"""N sampled answers per prompt, from the base model or from a server; a killed run goes on where it was.

Beside the output lies a journal while the work lasts: batches of the base model, each of which has random numbers of
its own, so that going on gives what an undisturbed run gives; or single answers of the server. What the server was
asked three times in vain, and paid for, is a line with `"text": null` and not asked again, nor is what it refused,
which has its reason in `"refused"`: the journal then stays. To have it asked again, remove those lines:
`sed -i '/"text": null/d' data/.candidates.parquet.server.jsonl`.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from ixc.clients.content import Part, image_parts, text_part
from ixc.clients.server import address, ask_all
from ixc.clients.usage import Paid
from ixc.data.samples import PLACEHOLDER, Sample, balanced, read_samples, write_samples
from ixc.engine import distributed
from ixc.engine.sampling import BatchIds, generate
from ixc.engine.vision_cache import VisionCache
from ixc.io.journal import Journal
from ixc.metrics import Log, Metrics, ignore
from ixc.models import load_policy
from ixc.params import GenerateParams, ServerParams


class Answered(NamedTuple):
    """A prompt with its candidates, and how many tokens each has."""

    sample: Sample
    lengths: list[int]


def run(
    params: GenerateParams,
    prompts: Path,
    media: Path,
    base: Path,
    candidates: Path,
    *,
    log: Log = ignore,
) -> Metrics:
    """Answer the prompts `num_candidates` times each."""
    everything = list(read_samples(prompts))
    samples = [
        sample
        for split, limit in (("train", params.max_train), ("val", params.max_val))
        for sample in balanced((s for s in everything if s.split == split), limit, params.seed)
    ]
    candidates.parent.mkdir(parents=True, exist_ok=True)
    if params.server is None:
        with distributed.joined():
            answered = locally(params, samples, media, base, candidates)
        if distributed.rank() == 0:
            write_samples((each.sample for each in answered), candidates)
            for journal in journals(candidates):
                journal.remove()
        return metrics(answered)

    if distributed.rank():  # one process is enough to wait for a server
        return {}
    journal = Journal(candidates.with_name(f".{candidates.name}.server.jsonl"))
    answered, taken = remotely(params, params.server, samples, media, journal)
    write_samples((each.sample for each in answered), candidates)
    unanswered = ("left", "unreadable", "refused", "unreachable", "unusable_media")
    if not any(taken.get(f"server/{name}") for name in unanswered):
        journal.remove()
    return metrics(answered) | taken


def metrics(answered: Sequence[Answered]) -> Metrics:
    """How many, how different, how long."""
    lengths = [length for each in answered for length in each.lengths]
    distinct = sum(len(set(each.sample.candidates)) for each in answered)
    return {
        "prompts": len(answered),
        "candidates": len(lengths),
        "distinct": distinct / max(1, len(lengths)),
        "length": sum(lengths) / max(1, len(lengths)),
    }


# The base model


def locally(
    params: GenerateParams, samples: Sequence[Sample], media: Path, base: Path, candidates: Path
) -> list[Answered]:
    """The base model's answers, batch by batch; processes share the batches out, each with a journal of its own."""
    device = distributed.device()
    model, processor = load_policy(base, device, params.precision, params.attention)
    vision_cache = VisionCache(model, processor, media, params.vision_cache)
    done = resume(candidates, job(params, samples, base)) if distributed.rank() == 0 else {}
    done = distributed.gathered(done)[0]
    journal = journal_of(candidates, distributed.rank())
    answers = generate(
        model,
        vision_cache,
        samples,
        params.num_candidates,
        params.temperature,
        params.max_new_tokens,
        params.batch_size,
        params.seed,
        params.max_tokens_per_microbatch,
        done=done,
        keep=lambda number, ids: journal.append({"batch": number, "ids": ids}),
    )
    origin = {"generate": {"model": base.as_posix(), "seed": params.seed}}
    return [
        Answered(
            replace(
                sample, candidates=tuple(answer.text for answer in row), meta=sample.meta | origin
            ),
            [len(answer.ids) for answer in row],
        )
        for sample, row in zip(samples, answers, strict=True)
    ]


def journal_of(candidates: Path, rank: int) -> Journal:
    """Where a process writes down the batches that it has done."""
    return Journal(candidates.with_name(f".{candidates.name}.base-{rank}.jsonl"))


def journals(candidates: Path) -> list[Journal]:
    """Those of all processes, of a killed run too."""
    return [
        Journal(path) for path in sorted(candidates.parent.glob(f".{candidates.name}.base-*.jsonl"))
    ]


def job(params: GenerateParams, samples: Sequence[Sample], base: Path) -> str:
    """A digest of all that the base model's answers depend on; its weights count by name, size and time."""
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(base.glob("*"))
    ]
    digest = hashlib.sha256(json.dumps([asdict(replace(params, processes=1)), files]).encode())
    for sample in samples:
        digest.update(
            json.dumps(
                [sample.id, *map(asdict, sample.prompt), *map(asdict, sample.media)]
            ).encode()
        )
    return digest.hexdigest()


def resume(candidates: Path, job: str) -> dict[int, BatchIds]:
    """The batches, by number, that a killed run of the same job has done, on however many processes."""
    first = journal_of(candidates, 0)
    lines = [json.loads(line) for line in first]
    if not lines or lines[0] != {"job": job}:
        for journal in journals(candidates):
            journal.remove()
        first.append({"job": job})
        return {}
    batches = [json.loads(line) for journal in journals(candidates) for line in journal]
    return {line["batch"]: line["ids"] for line in batches if "batch" in line}


# A server


class AnswerRequest(NamedTuple):
    """One answer to ask for."""

    key: str
    """SHA-256 of all that the server is shown, and of what is wanted of it."""
    sample: Sample
    seed: int


def remotely(
    params: GenerateParams,
    server: ServerParams,
    samples: Sequence[Sample],
    media: Path,
    journal: Journal,
) -> tuple[list[Answered], Metrics]:
    """The server's answers, one request each, and what they took; prompts left without an answer are left out."""
    requests = [
        [one_of(params, server, sample, k) for k in range(params.num_candidates)]
        for sample in samples
    ]
    answers = _Answers(params, server, media, journal)
    usage = ask_all("generate.server", server, chain.from_iterable(requests), answers)
    usage.warn_unanswered(address("generate.server", server), journal.path, '"text": null')
    rows = [
        answered_remotely(server.model, *each, answers)
        for each in zip(samples, requests, strict=True)
    ]
    return [row for row in rows if row.lengths], {
        f"server/{name}": n for name, n in usage.metrics().items()
    }


BYTES_PER_TOKEN = 64
"""More than the tokens of any text have on average; an answer with more was not bounded by `max_new_tokens`."""


class _Answers:
    """How an answer is asked for, and what is written down about it."""

    def __init__(
        self, params: GenerateParams, server: ServerParams, media: Path, journal: Journal
    ) -> None:
        self.params, self.server, self.media, self.journal = params, server, media, journal
        self.max_bytes = BYTES_PER_TOKEN * (params.max_new_tokens + 4)
        self.lines: dict[str, dict[str, Any]] = {
            line["key"]: line for line in map(json.loads, journal)
        }

    def request(self, one: AnswerRequest) -> dict[str, Any]:
        """The conversation, and how to sample."""
        sampling = {
            "temperature": self.params.temperature,
            "max_tokens": self.params.max_new_tokens,
        }
        return {
            "messages": messages(one.sample, self.media, self.server),
            "seed": one.seed,
            **sampling,
        }

    def answered(self, one: AnswerRequest) -> bool:
        """Whether there is a text."""
        return self.lines.get(one.key, {}).get("text") is not None

    def paid(self, one: AnswerRequest) -> Paid:
        """What the journal says that its replies took."""
        return Paid.stored(self.lines.get(one.key, {}))

    def refused(self, one: AnswerRequest) -> bool:
        """Whether the journal says that the server refused it."""
        return self.lines.get(one.key, {}).get("refused") is not None

    def refuse(self, one: AnswerRequest, reason: str, paid: Paid) -> None:
        """Write down why there is no text."""
        self._write(one, paid, text=None, refused=reason)

    def keep(self, one: AnswerRequest, text: str | None, paid: Paid) -> bool:
        """Write down the text, or only what it took."""
        self._write(one, paid, text=text and text.strip())
        return text is not None

    def _write(self, one: AnswerRequest, paid: Paid, **fields: str | None) -> None:
        tokens = paid.output_tokens - self.paid(one).output_tokens
        self.lines[one.key] = {"key": one.key, **fields, "tokens": tokens, **paid._asdict()}
        self.journal.append(self.lines[one.key])


def one_of(params: GenerateParams, server: ServerParams, sample: Sample, k: int) -> AnswerRequest:
    """The k-th answer to a prompt."""
    seed = random.Random(f"{params.seed}/{sample.id}/{k}").getrandbits(31)
    content = [*map(asdict, sample.prompt), *(medium.sha256 for medium in sample.media)]
    settings = [
        server.model,
        server.base_url,
        params.temperature,
        params.max_new_tokens,
        sample.id,
        seed,
    ]
    return AnswerRequest(
        hashlib.sha256(json.dumps([*settings, *content]).encode()).hexdigest(), sample, seed
    )


def answered_remotely(
    model: str, sample: Sample, requests: Sequence[AnswerRequest], answers: _Answers
) -> Answered:
    """A prompt with the answers there are; `meta.generate` says whose they are, and from which seeds."""
    answered = [(one.seed, answers.lines[one.key]) for one in requests if answers.answered(one)]
    meta = sample.meta | {"generate": {"model": model, "seeds": [seed for seed, _ in answered]}}
    texts = tuple(line["text"] for _, line in answered)
    return Answered(
        replace(sample, candidates=texts, meta=meta), [line["tokens"] for _, line in answered]
    )


def messages(sample: Sample, root: Path, server: ServerParams) -> list[dict[str, Any]]:
    """The conversation, each image or video where `<ImageHere>` stands; without a mark, before the user's words."""
    media_parts = iter([image_parts(medium, root, server) for medium in sample.media])
    unmarked = len(sample.media) - sum(turn.content.count(PLACEHOLDER) for turn in sample.prompt)
    turns = []
    for turn in sample.prompt:
        before = list(islice(media_parts, max(unmarked, 0))) if turn.role == "user" else []
        unmarked -= len(before)
        parts = [*chain(*before), *_content(turn.content, media_parts)]
        plain = all(
            part["type"] == "text" for part in parts
        )  # some servers know no parts where there is no image
        turns.append({"role": turn.role, "content": turn.content if plain else parts})
    return turns


def _content(text: str, media_parts: Iterator[list[Part]]) -> list[Part]:
    """A turn's parts; a mark that no image is left for is text like any other."""
    head, *rest = text.split(PLACEHOLDER)
    parts = [text_part(head)]
    for tail in rest:
        parts += [*next(media_parts, [text_part(PLACEHOLDER)]), text_part(tail)]
    return [part for part in parts if part.get("text") != ""]
