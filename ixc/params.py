"""`params.yaml`, typed: one section per stage, a unit and a source under each field; needs no torch.

An unknown key or a bad value is a `BadParams` that names the file, the key and the value.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from ixc.data.reasons import Reason
from ixc.data.samples import Domain, Role
from ixc.packing import MAX_TOKENS_PER_MICROBATCH

STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)
"""A traceback must not show what was typed in the wrong place: it may be a key."""
SECRET = "secret"
"""The type of an error whose value is not told."""
RENAMED = {
    "pass_tokens": "max_tokens_per_microbatch",
    "features": "vision_cache",
    "hd_num": "image_budget",
}
"""What keys are called now that had other names once."""

Precision = Literal["fp32", "bf16"]
AttentionName = Literal["auto", "sdpa", "flash_attention_2", "flex"]
"""Kernels of packed rows: PyTorch's `sdpa`, response after response; FlashAttention of the extra `flash`, half
precision on GPUs only; PyTorch's FlexAttention, GPUs only. `auto`: FlexAttention on a GPU, SDPA elsewhere."""


class BadParams(ValueError):
    """A parameter file that does not say what its schema asks for."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceParams:
    """One data set that `collect` reads."""

    reader: str
    """A name in `ixc.data.sources.READERS`."""
    name: str = ""
    """What its rows, counts and ids are called by; default: the reader's name."""
    path: str = ""
    """Folder or file, relative to `collect.root`, in the data set's native form."""
    hub: str = ""
    """In place of `path`, the data set's id on the Hugging Face hub, streamed."""
    config: str | None = None
    """The hub's name of a part of the data set."""
    split: str = "train"
    """Of the hub's data set."""
    respect_splits: bool = True
    """Hold out what the set's authors keep for validation and tests, as its rows, its files' names or the hub's split
    tell; false: train on it all the same, but for `val_fraction` of it."""
    revision: str | None = None
    """A commit of the hub's data set; none: whatever is newest when `collect` runs."""
    role: Role | None = None
    """What its rows are for. `corpus`: every answer, empty ones too, goes to `clean`; `prompts`: only the questions are
    kept, an answer as a reference; `pairs`: a row that is no pair is refused. None: as each row is, a pair with two
    answers, a prompt without any or with a reference; a row with one answer more is refused, for it could be either."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the reader, say `columns: {prompt: question}` of `preferences`; see its module."""
    commercial: bool | None = None
    """Whether commercial use is allowed; none: as the reader's `LICENCE` says."""
    limit: int | None = Field(default=None, gt=0)
    """Rows at most, the first ones; none: all."""

    @model_validator(mode="after")
    def _one_place(self) -> "SourceParams":
        if self.hub and self.path:
            raise ValueError("path and hub are both given; remove one")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixtureParams:
    """How much of what came in is kept: drawn by seed and id, so that a new source changes no other's draw.

    Rows for the corpus are not trained on: only their source's number counts for them.
    """

    sources: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Samples of a source at most, by its name; all of those that are not named. Official: a list of such numbers."""
    domains: dict[Domain, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Samples of a domain at most, after the sources' numbers."""
    images_per_text: int | None = Field(default=None, gt=0)
    """Samples with a picture or film to each without, in every split; what is too much of one kind is left out, after
    all numbers, and where the other kind is missing, nothing. Official: 2 (its batches follow a cycle of 2 to 1)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CollectParams:
    """Which prompts, ready pairs and corpus rows come in."""

    seed: int = 0
    root: str = "."
    """Where the sources' paths start."""
    sources: tuple[SourceParams, ...]
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of prompts held out where a source has no split of its own; what shares a picture or a prompt, whatever its
    source, stays together, and with what its authors hold out."""
    licences: Literal["any", "commercial"] = "any"
    """`commercial` leaves out the sources whose licence forbids commercial use, or is unknown."""
    mixture: MixtureParams = MixtureParams()
    max_pixels: int = Field(default=50_000_000, gt=0)
    """Larger pictures and films are quarantined: a decompression bomb looks like this."""
    max_chars: int = Field(default=200_000, gt=0)
    """Rows with a longer prompt or answer are quarantined, characters; the official model reads about 16,000 tokens."""

    @model_validator(mode="after")
    def _names(self) -> "CollectParams":
        names = [source.name or source.reader for source in self.sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"sources: two are called {', '.join(sorted(twice))}; give each a `name`"
            )
        if unknown := set(self.mixture.sources) - set(names):
            raise ValueError(
                f"mixture.sources: no source is called {', '.join(sorted(unknown))}; correct the name"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BootstrapParams:
    """The model every later stage starts from."""

    seed: int = 0
    processes: int = Field(default=1, gt=0)
    """Processes on this machine that share every step: one per GPU, or on CPUs one per core at most."""
    pretrained: str | None = None
    """A folder with a model of a family of `ixc.models`, ours or its authors'; then nothing is trained here."""
    architecture: dict[str, Any] | None = None
    """`family`, one of `ixc.models.FAMILIES`, and that family's sizes, which it checks itself."""
    image_budget: int = Field(default=4, gt=0, le=1024)
    """What an image may take at most, in the family's own unit: tiles, say."""
    steps: int = Field(default=1000, gt=0)
    batch_size: int = Field(default=64, gt=0)
    """Conversations per optimizer step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Share of training answers replaced by a wrong or an evasive one, as in data from the web; the base
    then errs in ways that a reward model can learn to tell."""
    noise_from: float = Field(default=0.8, ge=0, le=1)
    """Share of the steps that see clean answers, before the noise begins."""
    attention: AttentionName = "auto"
    """As in `generate`; this stage computes in fp32."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints, from which the same stage goes on after a crash; none: it starts anew."""

    @model_validator(mode="after")
    def _of_a_family(self) -> "BootstrapParams":
        if self.architecture is not None and "family" not in self.architecture:
            raise ValueError("architecture: no family; add it, such as `family: ixc25`")
        return self


def _variable(name: str) -> str:
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        remedy = "a key does not belong here: export it, and name the variable"
        problem = f"not the name of a variable, in capitals; {remedy}"
        raise PydanticCustomError(SECRET, problem)
    return name


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise PydanticCustomError(
            SECRET, "has a password or a query in it; a key belongs into the environment"
        )
    return url


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerParams:
    """An OpenAI-compatible server: OpenAI's own, vLLM, LMDeploy, SGLang."""

    model: str
    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """None: the client's default."""
    api_key_env: Annotated[str, AfterValidator(_variable)] = "OPENAI_API_KEY"
    """The environment variable that holds the key; the key itself is never written anywhere."""
    concurrency: int = Field(default=16, gt=0)
    """Requests in flight."""
    timeout_s: float = Field(default=60.0, gt=0)
    max_requests: int = Field(default=10_000, gt=0)
    """Stop asking after this many in one run, every try of a request that failed among them; the next run goes on from
    what is stored. In batches, each question of a batch is one."""
    max_cost: float | None = Field(default=None, gt=0)
    """US dollars for all that a run wants answered, by this model: what earlier runs have paid for the same questions
    counts, unreadable replies too; what they paid for others does not. Asking stops before it would cost more; raise it
    and run again to go on. It is reckoned with the dearest reply so far, so only the first `concurrency` requests,
    before any price is known, and replies dearer than all before, can exceed it."""
    max_side: int = Field(default=1024, gt=0)
    """Larger pictures are scaled down to this many pixels before they are sent."""
    video_frames: int = Field(default=4, gt=0)
    """Evenly spaced frames that stand for a film."""
    input_price: float = Field(default=0.0, ge=0)
    """US dollars per million prompt tokens; what costs are reckoned with."""
    output_price: float = Field(default=0.0, ge=0)
    """US dollars per million answered tokens."""

    @model_validator(mode="after")
    def _prices(self) -> "ServerParams":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError(
                "max_cost needs input_price and output_price, or nothing ever costs anything"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VisionCacheParams:
    """Where the frozen tower's picture tokens are kept. Official sizes, fp32: 6.7 MB per tile."""

    memory_gb: float = Field(default=4.0, ge=0)
    """Main memory at most, per process; what was not used for longest goes first."""
    disk: str | None = None
    """A folder that outlives the run and that any number of processes share; none: nothing is written."""
    disk_gb: float = Field(default=50.0, gt=0)
    """Nothing is added to a folder of this size."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerateParams:
    """Answers sampled from the base model."""

    seed: int = 0
    processes: int = Field(default=1, gt=0)
    """Processes on this machine that share the work out: one per GPU, or on CPUs one per core at most."""
    max_train: int | None = Field(default=None, gt=0)
    """Training prompts answered at most, drawn equally over the domains; none: all."""
    max_val: int | None = Field(default=None, gt=0)
    """Held-out prompts answered at most, likewise."""
    num_candidates: int = Field(default=4, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, gt=0)
    batch_size: int = Field(default=64, gt=0)
    """Prompts decoded together at most."""
    max_tokens_per_microbatch: int = Field(default=MAX_TOKENS_PER_MICROBATCH, gt=0)
    """Tokens that are in memory together at most, of prompts with all their answers; a prompt of more is refused."""
    precision: Precision | None = None
    """What the model's weights are kept and computed in; none: as they are stored."""
    attention: AttentionName = "auto"
    """What packed rows are computed with; what a machine lacks is refused before anything is computed."""
    vision_cache: VisionCacheParams = VisionCacheParams()
    server: ServerParams | None = None
    """Answers in place of the base model: the same model behind vLLM, say; none: the base model itself."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LLMJudgeParams(ServerParams):
    """A model that judges pairs."""

    temperature: float | None = Field(default=0.0, ge=0)
    """None: not sent, for models that refuse it."""
    batch: bool = False
    """Ask through OpenAI's Batch API: half the price (give the prices so), within a day."""
    batch_size: int = Field(default=1000, gt=0, le=50_000)
    """Requests per batch, one batch at a time; `max_cost` is looked at between batches, and while no price is known, a
    batch is one of `concurrency` requests. OpenAI: 50,000."""
    poll_s: float = Field(default=30.0, gt=0)
    """Seconds between two looks at a batch."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JudgeParams:
    """How candidates become preference pairs."""

    seed: int = 0
    pairs_per_prompt: int = Field(default=2, gt=0)
    judges: tuple[LLMJudgeParams, ...] = ()
    """Judge what no verifier can (`gold.check: open`), by majority; none: such prompts yield no pair."""

    @model_validator(mode="after")
    def _each_once(self) -> "JudgeParams":
        models = [judge.model for judge in self.judges]
        twice = sorted({model for model in models if models.count(model) > 1})
        if twice:
            raise ValueError(f"judges: {twice} more than once; a majority needs different models")
        return self


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
    near_prompt_words: int = Field(default=16, ge=16)
    """Words from which a prompt without media leaks by being nearly one of val's, by `near_duplicates`, whatever the
    answers are: the train pair goes. Shorter prompts leak only word for word, for there each word matters. So do those
    of a template: those that, with more than ten others of train, are nearly the same prompt of val."""
    near_images: int | None = Field(default=6, ge=0, le=10)
    """Bits of 64 in which the difference hashes of two pictures may differ for them to be compared, so that
    no picture is in train and, scaled or recompressed, in val; none: only the same file is the same picture."""
    benchmarks: str | None = None
    """A folder, or one file, of what the model will be tested on (jsonl, json, csv, tsv, txt, all also as .gz; parquet;
    pictures, films): pairs that share a text, a picture or a film's very file with it are not trained on. The page
    lists files of other kinds. DVC watches the folder: what changes there is looked for again."""
    overlap_words: int = Field(default=13, ge=8)
    """Consecutive words in common that are an overlap. GPT-3, arXiv:2005.14165, appendix C: 13."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes: pairs in another language are dropped, by a guess from the beginnings of prompt and chosen
    answer; those with fewer than eight words there are kept. None given: the page tells which they are in."""
    max_rejected_share: float = Field(default=0.5, gt=0, le=1)
    """More quarantined than this fails the stage: the data, not the pair, is at fault."""
    max_share: dict[Reason, float] = Field(default_factory=dict)
    """The same for single reasons, such as `media missing: 0.01`."""
    min_pairs: int = Field(default=10, gt=0)
    """Fewer pairs left than this, in train or in val, fails the stage."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoRAParams:
    """Low-rank adapters beside every linear layer of the decoder (arXiv:2106.09685)."""

    rank: int = Field(default=64, gt=0)
    alpha: float = Field(default=64.0, gt=0)
    """What an adapter adds is multiplied by alpha / rank."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainRMParams:
    """How the reward model learns (paper, section 3 and appendix A)."""

    seed: int = 0
    processes: int = Field(default=1, gt=0)
    """Processes on this machine that share every step: one per GPU, or on CPUs one per core at most."""
    pooling: Literal["last_token", "mean"] = "last_token"
    """`last_token`: the official checkpoint; `mean`: the paper's text."""
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int | None = Field(default=None, gt=0)
    """Pairs per optimizer step, over all GPUs. Paper: 256."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """In its place, tokens per optimizer step at most, over all GPUs."""
    max_tokens_per_microbatch: int = Field(default=16384, gt=0)
    """Tokens of one forward pass at most: what memory allows. A step of more is accumulated; a pair of more is
    refused."""
    by_prompt: bool = False
    """All pairs of a prompt in one row, its prompt and each of its answers read once (K-wise)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: for the weight matrices, with AdamW for the rest; where the base model knows little. Paper: AdamW."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate. Paper: 1e-5."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps. script_train.sh of the official code: 0.01."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that the cosine ends at. Official: 0."""
    beta2: float = Field(default=0.98, gt=0, lt=1)
    """AdamW's decay of squared gradients. script_train.sh: 0.95."""
    weight_decay: float = Field(default=0.0, ge=0)
    """script_train.sh: 0.1."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    margin: float = Field(default=0.0, ge=0)
    """What the chosen reward must be ahead by; see `losses.bradley_terry_loss` for this and the next two."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    focal: float = Field(default=0.0, ge=0)
    centering: float = Field(default=0.0, ge=0)
    """Weight of `centering_loss`: makes rewards comparable between prompts, which cleaning and PPO want."""
    precision: Precision = "fp32"
    """`bf16` (official): the model computes in bfloat16; weights, optimizer and score head stay in fp32."""
    attention: AttentionName = "auto"
    """As in `generate`."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass, rather than keep what it computed. Official: yes."""
    zero: Literal[0, 1, 2, 3] = 0
    """What the processes share out, of 16 bytes per weight (ZeRO, arXiv:1910.02054): 1 AdamW's moments, 8 bytes;
    2 the gradients too; 3 the weights too. 2 and 3 need the extra `deepspeed`. script_train.sh: 2."""
    offload: Literal["none", "optimizer", "weights"] = "none"
    """With `zero: 2` or `3`, what is kept in main memory: the moments, and AdamW is computed there; or, with `3`, the
    weights too."""
    lora: LoRAParams | None = None
    """Train adapters and the score head in place of the whole language model. In the end they are merged, and also kept
    by themselves, in PEFT's format, as the model's folder `adapter`. The official LoRA script (rank 512, alpha 64)
    leaves the score head as it is."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints, from which the same stage goes on after a crash; none: it starts anew."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training prompts that are not trained on, and that early stopping looks at."""
    validate_every: int = Field(default=100, gt=0)
    """Steps between two looks; the weights of the best are kept."""
    patience: int | None = Field(default=None, gt=0)
    """Looks without an improvement after which training ends; none: it goes on."""
    vision_cache: VisionCacheParams = VisionCacheParams()

    @model_validator(mode="after")
    def _one_batch(self) -> "TrainRMParams":
        if (self.batch_size is None) == (self.batch_tokens is None):
            raise ValueError("give batch_size (pairs) or batch_tokens, one of them")
        if self.patience is not None and not self.held_out:
            raise ValueError("patience needs held_out, the share of prompts that it looks at")
        return self

    @model_validator(mode="after")
    def _shared_out(self) -> "TrainRMParams":
        needed = {"none": 0, "optimizer": 2, "weights": 3}[self.offload]
        if self.zero < needed:
            raise ValueError(f"offload: {self.offload!r} needs zero: {needed}, not {self.zero}")
        if self.zero >= 2 and self.optimizer == "muon":
            raise ValueError(
                f"optimizer: 'muon' needs whole matrices: set zero to 0 or 1, not {self.zero}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateRMParams:
    """How the reward model is measured."""

    seed: int = 0
    processes: int = Field(default=1, gt=0)
    """Processes on this machine that share the work out: one per GPU, or on CPUs one per core at most."""
    batch_size: int = Field(default=64, gt=0)
    """Pairs scored together at most."""
    max_tokens_per_microbatch: int = Field(default=MAX_TOKENS_PER_MICROBATCH, gt=0)
    """Tokens of one forward pass at most: what memory allows. An answer that exceeds it with its prompt is refused."""
    num_resamples: int = Field(default=1000, gt=0)
    """Bootstrap resamples of the 95 % confidence intervals."""
    precision: Precision | None = None
    """What weights are kept and computed in; none: as they are stored, and `train_rm` stores fp32."""
    attention: AttentionName = "auto"
    """As in `generate`."""
    vision_cache: VisionCacheParams = VisionCacheParams()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainPPOParams:
    """PPO, equations 2-4 of the paper."""

    seed: int = 0
    processes: int = Field(default=1, gt=0)
    """Processes on this machine that share every step: one per GPU, or on CPUs one per core at most."""
    steps: int = Field(default=50, gt=0)
    """Rollout batches."""
    batch_size: int = Field(default=256, gt=0)
    """Answers per step. Paper: 256."""
    answers_per_prompt: int = Field(default=4, gt=0)
    """Sampled together; their prompt is read once."""
    sampling_batch_size: int = Field(default=8, gt=0)
    """Prompts that are answered together at most, with random numbers of their own: answers are the same on any number
    of processes, of which each takes some of a step's batches."""
    minibatch_size: int = Field(default=64, gt=0)
    """Answers per update."""
    max_tokens_per_microbatch: int = Field(default=MAX_TOKENS_PER_MICROBATCH, gt=0)
    """Tokens of one forward pass at most: what memory allows. A minibatch of more is accumulated; a prompt that may
    come to more with its answers is refused."""
    epochs: int = Field(default=1, gt=0)
    """Passes over each rollout batch."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Paper: 5e-5."""
    critic_learning_rate: float = Field(default=5e-5, gt=0)
    critic_warmup_steps: int = Field(default=2, ge=0)
    """Rollout batches that only the critic learns from; fewer than `steps`."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount per token. Paper: 0.99."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """The paper's beta: GAE's bias against variance. Paper: 0.95."""
    clip: float = Field(default=0.2, gt=0)
    """The paper's epsilon. Paper: 0.2."""
    kl_coef: float = Field(default=0.05, ge=0)
    """Nats of divergence from the reference, per token, subtracted from the reward."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; ratio, KL and entropy are those of the distribution at this temperature."""
    max_new_tokens: int = Field(default=32, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Of the policy's gradient, and of the critic's."""
    precision: Precision = "fp32"
    """`bf16`: the models compute in bfloat16; weights that are trained, and heads, stay in fp32."""
    attention: AttentionName = "auto"
    """As in `generate`."""
    gradient_checkpointing: bool = False
    """As in `train_rm`."""
    zero: Literal[0, 1, 2] = 0
    """As in `train_rm`, of the policy and of the critic; the weights stay whole, for answers are sampled from them."""
    offload: Literal["none", "optimizer"] = "none"
    """As in `train_rm`."""
    lora: LoRAParams | None = None
    """As in `train_rm`: adapters of the policy and of the critic, with their heads; the policy's are kept."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints, from which the same stage goes on after a crash; none: it starts anew."""
    reward_clip: float = Field(default=5.0, gt=0)
    """Rewards, standardised within their domain, are clipped to this."""
    eval_prompts: int | None = Field(default=None, gt=0)
    """Held-out prompts that base and chat are compared on, drawn equally over the domains; none: all."""
    eval_samples: int = Field(default=4, gt=0)
    """Answers sampled per held-out prompt when base and chat are compared."""
    vision_cache: VisionCacheParams = VisionCacheParams()

    @model_validator(mode="after")
    def _whole_prompts(self) -> "TrainPPOParams":
        for name in ("batch_size", "minibatch_size"):
            if getattr(self, name) % self.answers_per_prompt:
                raise ValueError(
                    f"{name} must be a multiple of answers_per_prompt ({self.answers_per_prompt})"
                )
        return self

    @model_validator(mode="after")
    def _shared_out(self) -> "TrainPPOParams":
        if self.offload != "none" and self.zero < 2:
            raise ValueError(f"offload: {self.offload!r} needs zero: 2, not {self.zero}")
        return self

    @model_validator(mode="after")
    def _policy_learns(self) -> "TrainPPOParams":
        if (warmup := self.critic_warmup_steps) >= self.steps:
            form = f"the policy would learn in none of the {self.steps} steps; lower it, or raise steps"
            raise ValueError(f"critic_warmup_steps: {warmup}: {form}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BestOfNParams:
    """Test-time scaling (paper, section 4.2)."""

    seed: int = 0
    processes: int = Field(default=1, gt=0)
    """Processes on this machine that share the work out: one per GPU, or on CPUs one per core at most."""
    n: tuple[int, ...] = (1, 2, 4, 8)
    max_prompts: int | None = Field(default=None, gt=0)
    """Held-out prompts answered at most, drawn equally over the domains; none: all."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, gt=0)
    batch_size: int = Field(default=64, gt=0)
    """Prompts answered and scored together at most."""
    max_tokens_per_microbatch: int = Field(default=MAX_TOKENS_PER_MICROBATCH, gt=0)
    """Tokens that are in memory together at most, of prompts with all their answers; a prompt of more is refused."""
    precision: Precision | None = None
    """As in `evaluate_rm`."""
    attention: AttentionName = "auto"
    """As in `generate`."""
    vision_cache: VisionCacheParams = VisionCacheParams()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CleanParams:
    """Cleaning of an instruction-tuning corpus (paper, section 4.3)."""

    seed: int = 0
    plant: float = Field(default=0.0, ge=0, lt=1)
    """Share of rows of which a copy is spoilt, to measure how well a low reward finds defects. Only the copy is: every
    row comes out as it came in, and no copy does. 0: nothing is measured."""
    remove: float = Field(default=0.25, gt=0, lt=1)
    """Share of rows removed, lowest reward within their domain first."""
    processes: int = Field(default=1, gt=0)
    """Processes of this machine that share the rows out. More machines: `torchrun` in `dvc.yaml`."""
    batch_size: int = Field(default=64, gt=0)
    """Rows, with their pictures, that are in memory together at most."""
    shard_rows: int = Field(default=1024, gt=0)
    """Rows that a kill may cost: the next run goes on with the rest."""
    max_tokens_per_microbatch: int = Field(default=MAX_TOKENS_PER_MICROBATCH, gt=0)
    """Tokens of one forward pass at most: what memory allows. A row of more is not scored."""
    precision: Precision | None = None
    """As in `evaluate_rm`."""
    attention: AttentionName = "auto"
    """As in `generate`."""
    vision_cache: VisionCacheParams = VisionCacheParams()


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
        raise BadParams(
            f"{path}: {error}; a complete example is infra/params/laptop.yaml"
        ) from error


def resolved(params: Params) -> dict[str, dict[str, Any]]:
    """Each stage's section with every default filled in, as plain data: what a stage really runs with.

    >>> from pathlib import Path
    >>> resolved(load_params(Path("infra/params/laptop.yaml")))["judge"]
    {'seed': 0, 'pairs_per_prompt': 3, 'judges': []}
    """
    sections = TypeAdapter(Params).dump_python(params, mode="json")
    return {name: section for name, section in sections.items() if isinstance(section, dict)}


def _sentence(path: Path, detail: Any) -> str:
    """One problem as `file: key: value: remedy`."""
    key = ".".join(map(str, detail["loc"])) or "(top level)"
    if detail["type"] == "unexpected_keyword_argument" and (name := RENAMED.get(detail["loc"][-1])):
        return f"{path}: {key}: is called {name} now; give it that name"
    if detail["type"] == "unexpected_keyword_argument":
        return f"{path}: {key}: unknown key; remove it or correct its spelling"
    if detail["type"] == "missing":
        return f"{path}: {key}: missing; every stage needs its section and required keys"
    if detail["type"] == SECRET:
        return f"{path}: {key}: {detail['msg']}"
    return f"{path}: {key}: {detail['input']!r}: {detail['msg']}"
