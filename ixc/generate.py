"""N sampled answers per prompt from the base model."""

from dataclasses import replace
from pathlib import Path

from ixc.features import Features
from ixc.inference import generate
from ixc.metrics import Log, Metrics, ignore
from ixc.model import IXCForCausalLM, IXCProcessor
from ixc.params import GenerateParams
from ixc.samples import balanced, read_samples, write_samples


def run(
    params: GenerateParams, prompts: Path, media: Path, base: Path, candidates: Path, *, log: Log = ignore
) -> Metrics:
    """Answer the prompts `num_candidates` times each."""
    everything = list(read_samples(prompts))
    samples = [
        sample
        for split, limit in (("train", params.max_train), ("val", params.max_val))
        for sample in balanced((s for s in everything if s.split == split), limit, params.seed)
    ]
    model, processor = IXCForCausalLM.from_pretrained(base), IXCProcessor.from_pretrained(base)
    answers = generate(
        model,
        Features(model, processor, media),
        samples,
        params.num_candidates,
        params.temperature,
        params.max_new_tokens,
        params.batch_size,
        params.seed,
    )
    texts = [tuple(answer.text for answer in row) for row in answers]
    write_samples((replace(s, candidates=t) for s, t in zip(samples, texts, strict=True)), candidates)
    lengths = [len(answer.ids) for row in answers for answer in row]
    return {
        "prompts": len(samples),
        "candidates": len(lengths),
        "distinct": sum(len(set(row)) for row in texts) / max(1, len(lengths)),
        "length": sum(lengths) / max(1, len(lengths)),
    }
