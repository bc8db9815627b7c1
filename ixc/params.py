"""`params.yaml`, typed: one section per stage, a unit and a source under each field; needs no torch.

An unknown key or a bad value is a `BadParams` that names the file, the key and the value.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ixc.validation.reasons import Reason

STRICT = ConfigDict(extra="forbid")


class BadParams(ValueError):
    """A parameter file that does not say what its schema asks for."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceParams:
    """One data set that `collect` reads."""

    reader: str
    """A name in `ixc.sources.READERS`."""
    path: str = ""
    """Folder or file, relative to `collect.root`."""
    limit: int | None = Field(default=None, gt=0)
    """Rows at most, the first ones; none: all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CollectParams:
    """Which prompts, ready pairs and corpus rows come in."""

    seed: int = 0
    root: str = "."
    """Where the sources' paths start."""
    sources: tuple[SourceParams, ...]
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of prompts held out where a source has no split of its own; a picture's prompts stay together."""
    max_pixels: int = Field(default=50_000_000, gt=0)
    """Larger pictures are quarantined: a decompression bomb looks like this."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ArchitectureParams:
    """Sizes of the tiny IXC-2.5; field names as in its config. Official values: reference of the 7B."""

    vocab_size: int = Field(gt=300)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    plora_rank: int = Field(gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""
    tile_size: int = Field(gt=0)
    """Side of a picture tile, pixels; official: 560."""
    patch_size: int = Field(gt=0)
    vision_hidden_size: int = Field(gt=0)
    vision_intermediate_size: int = Field(gt=0)
    vision_num_hidden_layers: int = Field(gt=0)
    vision_num_attention_heads: int = Field(gt=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BootstrapParams:
    """The model every later stage starts from."""

    seed: int = 0
    pretrained: str | None = None
    """A folder with an IXC-2.5 model; then nothing is trained here."""
    architecture: ArchitectureParams | None = None
    hd_num: int = Field(default=4, gt=0)
    """Tiles per picture at most (dynamic partition)."""
    steps: int = Field(default=1000, gt=0)
    batch_size: int = Field(default=64, gt=0)
    """Conversations per optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Share of training answers replaced by a wrong or an evasive one, as in data from the web; the base
    then errs in ways that a reward model can learn to tell."""
    noise_from: float = Field(default=0.8, ge=0, le=1)
    """Share of the steps that see clean answers, before the noise begins."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerateParams:
    """Answers sampled from the base model."""

    seed: int = 0
    max_train: int | None = Field(default=None, gt=0)
    """Training prompts answered at most, drawn equally over the domains; none: all."""
    max_val: int | None = Field(default=None, gt=0)
    """Held-out prompts answered at most, likewise."""
    num_candidates: int = Field(default=4, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, gt=0)
    batch_size: int = Field(default=64, gt=0)
    """Prompts decoded together."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LLMJudgeParams:
    """An OpenAI-compatible judge of pairs."""

    model: str
    base_url: str | None = None
    """None: the client's default."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; the key itself is never written anywhere."""
    concurrency: int = Field(default=16, gt=0)
    """Requests in flight."""
    timeout_s: float = Field(default=60.0, gt=0)
    max_requests: int = Field(default=10_000, gt=0)
    """Stop asking after this many; the next run goes on from the stored verdicts."""
    temperature: float | None = Field(default=0.0, ge=0)
    """None: not sent, for models that refuse it."""
    max_side: int = Field(default=1024, gt=0)
    """Larger pictures are scaled down to this many pixels before they are sent."""
    video_frames: int = Field(default=4, gt=0)
    """Evenly spaced frames that stand for a film."""
    input_price: float = Field(default=0.0, ge=0)
    """US dollars per million prompt tokens; what `llm/cost` is reckoned with."""
    output_price: float = Field(default=0.0, ge=0)
    """US dollars per million answered tokens."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JudgeParams:
    """How candidates become preference pairs."""

    seed: int = 0
    pairs_per_prompt: int = Field(default=2, gt=0)
    llm: LLMJudgeParams | None = None
    """Judges what no verifier can (`gold.check: open`); none: such prompts yield no pair."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidateParams:
    """What a pair must fulfil to be trained on."""

    seed: int = 0
    max_length_ratio: float = Field(default=2.0, gt=0)
    """Longest chosen answer relative to the rejected one: the paper's length constraint (appendix)."""
    min_length_for_ratio: int = Field(default=8, ge=0)
    """The ratio says nothing about answers shorter than this (chosen), which are kept."""
    tokenizer: str | None = None
    """A tokenizer.json, whose tokens are then the unit of length; none: words."""
    near_duplicates: float | None = Field(default=0.75, gt=0.5, le=1)
    """Jaccard similarity of prompts, and of answers, from which pairs about the same media count as one;
    none: only exact repeats do. FineWeb, arXiv:2406.17557: 0.75. It is estimated, give or take 0.04."""
    near_pictures: int | None = Field(default=6, ge=0, le=10)
    """Bits of 64 in which the difference hashes of two pictures may differ for them to be compared, so that
    no picture is in train and, scaled or recompressed, in val; none: only the same file is the same picture."""
    benchmarks: tuple[str, ...] = ()
    """Files (jsonl, json, parquet, txt) and folders of what the model will be tested on: pairs that share a
    text or a picture with them are not trained on."""
    overlap_words: int = Field(default=13, ge=8)
    """Consecutive words in common that are an overlap. GPT-3, arXiv:2005.14165, appendix C: 13."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that nearly all pairs must be in; none given: the page tells which they are in."""
    max_rejected_share: float = Field(default=0.5, gt=0, le=1)
    """More quarantined than this fails the stage: the data, not the pair, is at fault."""
    max_share: dict[Reason, float] = Field(default_factory=dict)
    """The same for single reasons, such as `media missing: 0.01`."""
    min_pairs: int = Field(default=10, gt=0)
    """Fewer pairs left than this, in train or in val, fails the stage."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainRMParams:
    """How the reward model learns (paper, section 3 and appendix A)."""

    seed: int = 0
    pooling: Literal["last_token", "mean"] = "last_token"
    """`last_token`: the official checkpoint; `mean`: the paper's text."""
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=256, gt=0)
    """Pairs per optimizer step. Paper: 256."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak AdamW learning rate. Paper: 1e-5."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    centering: float = Field(default=0.0, ge=0)
    """Weight of `centering_loss`: makes rewards comparable between prompts, which cleaning and PPO want."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateRMParams:
    """How the reward model is measured."""

    seed: int = 0
    batch_size: int = Field(default=64, gt=0)
    """Pairs scored together."""
    num_resamples: int = Field(default=1000, gt=0)
    """Bootstrap resamples of the 95 % confidence intervals."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainPPOParams:
    """PPO, equations 2-4 of the paper."""

    seed: int = 0
    steps: int = Field(default=50, gt=0)
    """Rollout batches."""
    batch_size: int = Field(default=256, gt=0)
    """Answers per step. Paper: 256."""
    answers_per_prompt: int = Field(default=4, gt=0)
    """Sampled together; their prompt is read once."""
    minibatch_size: int = Field(default=64, gt=0)
    epochs: int = Field(default=1, gt=0)
    """Passes over each rollout batch."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Paper: 5e-5."""
    critic_learning_rate: float = Field(default=5e-5, gt=0)
    critic_warmup_steps: int = Field(default=2, ge=0)
    """Rollout batches that only the critic learns from."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount per token. Paper: 0.99."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """The paper's beta: GAE's bias against variance. Paper: 0.95."""
    clip: float = Field(default=0.2, gt=0)
    """The paper's epsilon. Paper: 0.2."""
    kl_coef: float = Field(default=0.05, ge=0)
    """Nats of divergence from the reference, per token, subtracted from the reward."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    reward_clip: float = Field(default=5.0, gt=0)
    """Rewards, standardised within their domain, are clipped to this."""
    eval_prompts: int | None = Field(default=None, gt=0)
    """Held-out prompts that base and chat are compared on, drawn equally over the domains; none: all."""
    eval_samples: int = Field(default=4, gt=0)
    """Answers sampled per held-out prompt when base and chat are compared."""

    @model_validator(mode="after")
    def _whole_prompts(self) -> "TrainPPOParams":
        for name in ("batch_size", "minibatch_size"):
            if getattr(self, name) % self.answers_per_prompt:
                raise ValueError(f"{name} must be a multiple of answers_per_prompt ({self.answers_per_prompt})")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BestOfNParams:
    """Test-time scaling (paper, section 4.2)."""

    seed: int = 0
    n: tuple[int, ...] = (1, 2, 4, 8)
    max_prompts: int | None = Field(default=None, gt=0)
    """Held-out prompts answered at most, drawn equally over the domains; none: all."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, gt=0)
    batch_size: int = Field(default=64, gt=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CleanParams:
    """Cleaning of an instruction-tuning corpus (paper, section 4.3)."""

    seed: int = 0
    plant: float = Field(default=0.3, ge=0, lt=1)
    """Share of rows given a defect first, so that the filter can be measured; 0 for a corpus to be used."""
    remove: float = Field(default=0.25, gt=0, lt=1)
    """Share of rows removed, lowest reward within their domain first."""
    batch_size: int = Field(default=64, gt=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """A whole `params.yaml`: one section per stage, named like it."""

    collect: CollectParams
    bootstrap: BootstrapParams
    generate: GenerateParams
    judge: JudgeParams
    validate: ValidateParams
    train_rm: TrainRMParams
    evaluate_rm: EvaluateRMParams
    train_ppo: TrainPPOParams
    best_of_n: BestOfNParams
    clean: CleanParams
    seed: int = 0
    """Where every section's seed comes from, by a YAML anchor."""


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read a complete parameter file.

    Raises:
        BadParams: the file is missing, is no YAML, or has an unknown key or a bad value.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(Params).validate_python(raw)
    except ValidationError as error:
        raise BadParams("\n".join(_sentence(path, detail) for detail in error.errors())) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadParams(f"{path}: {error}; a complete example is infra/params/laptop.yaml") from error


def _sentence(path: Path, detail: Any) -> str:
    """One problem as `file: key: value: remedy`."""
    key = ".".join(map(str, detail["loc"])) or "(top level)"
    if detail["type"] == "unexpected_keyword_argument":
        return f"{path}: {key}: unknown key; remove it or correct its spelling"
    if detail["type"] == "missing":
        return f"{path}: {key}: missing; every stage needs its section and required keys"
    return f"{path}: {key}: {detail['input']!r}: {detail['msg']}"
