"""How one run is to be done: every knob, its unit, its default and what it may be.

Built once at the edge, passed down, printed into the model card and the version's metadata. This file knows nothing of
TRL, PEFT or torch; ``trainer.py`` translates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.learning.trackers import TRACKERS
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.training.data.mix.balance import Balance
from graftwork.training.data.mix.curriculum import Curriculum
from graftwork.training.data.mix.replay import DEFAULT_REPLAY_SHARE

Targets = Literal["all-linear"] | tuple[str, ...]
"""``"all-linear"`` is every linear layer but the head; a tuple names modules by the last part of their dotted name."""

FORBIDDEN_TARGETS = frozenset({"lm_head", "embed_out", "output"})
"""Heads. The trainer's fused loss multiplies with the head's own weight, so an adapter there would never learn."""


Variant = Literal["lora", "rslora", "dora", "full"]


Quantization = Literal["none", "nf4"]


Reference = Literal["parent", "base"]

FRESH_RATES: Final[Mapping[Method, float]] = {
    "sft": 5e-4,
    "weighted_sft": 5e-4,
    "pretrain": 2e-4,
    "dpo": 1e-5,
    "kto": 5e-6,
    "distillation": 1e-3,
    "grpo": 1e-4,
}
"""Peak rates for a fresh adapter."""

CONTINUED_RATES: Final[Mapping[Method, float]] = {
    "sft": 1e-4,
    "weighted_sft": 1e-4,
    "pretrain": 5e-5,
    "dpo": 5e-6,
    "kto": 2e-6,
    "distillation": 2e-4,
    "grpo": 5e-5,
}
"""Lower for an adapter that has learned already: the rate is what forgetting depends on most."""


FULL_RATE: Final = 0.1
"""Of the rate, where all weights are trained: LoRA's best rate is about ten times that of full fine-tuning."""

ONLINE_METHODS: Final = frozenset({"distillation", "grpo"})
"""Methods that learn from what the model answers while it trains."""

FULL: Final = frozenset({"sft", "weighted_sft", "pretrain"})
"""Methods that can train a base as a whole."""

RANKED: Final = frozenset({"sft", "weighted_sft", "pretrain", "dpo"})
"""Methods whose rows have an answer to measure how hard they are by."""

SUPERVISED: Final = frozenset({"sft", "weighted_sft"})
"""Methods whose rows are right answers, whatever the words of the question. Nothing but an anchor keeps them near to
the base."""

MAX_WORDINGS: Final = 8


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of one method, on a fresh adapter or on one that is continued. `start` gives the defaults that fit both.

    Raises ConfigurationError, naming the field, for a value that cannot work.
    """

    method: Method = "sft"
    """What is learned from: `graftwork.training.methods.rows` says which rows each method takes."""

    rank: int = 16
    """Width of the adapter. 16 is enough for a task, 32 for a style and a domain together."""

    alpha: int = 32
    """The adapter's output is multiplied by ``alpha / rank``. Twice the rank is the usual choice."""

    dropout: float = 0.0
    """Share of the adapter's inputs dropped in training, 0 to 1."""

    targets: Targets = "all-linear"

    layers: tuple[int, ...] | None = None
    """Numbers of the layers that get an adapter, from 0; None: all of them."""

    variant: Variant = "lora"
    """``rslora`` multiplies by ``alpha / sqrt(rank)``, for high ranks; ``dora`` also learns each column's length, for
    about twice the time. A continued adapter keeps its own. ``full`` trains no adapter but all weights of the base:
    what comes out is a model of its own, which cannot be swapped while serving."""

    quantization: Quantization = "none"
    """``nf4`` holds the base in 4 bits while it trains (QLoRA): for bases that do not fit otherwise."""

    beta: float = 0.1
    """Of DPO, KTO and GRPO: how near to the reference the answers must stay; more is nearer. GRPO also takes 0, which
    lets go."""

    sft_share: float = 0.2
    """Of DPO: the weight of learning the better answer itself beside preferring it. 1 for corrections, where the better
    answer is known to be right: then it is SFT on the fix and DPO on the pair in one."""

    reference: Reference = "parent"
    """Of DPO, KTO and GRPO: what the answers must stay near to. ``parent`` is the version that is continued, ``base``
    the bare base; for a fresh adapter both are the same."""

    balance: Balance = "none"
    """Class weights for supervised runs, by the answers."""

    curriculum: Curriculum = "none"
    """In which order an epoch's rows are learned from. Not of KTO, whose rows stay mixed by what was said of them."""

    teacher: str | None = None
    """Of a distillation: the larger model's name."""

    rewards: tuple[str, ...] = ()
    """Of GRPO: names of reward functions, whose rewards are added up."""

    generations: int = 8
    """Of GRPO: answers to one question, which are held against each other."""

    answer_tokens: int = 64
    """Of GRPO and distillation: tokens of an answer that the model tries, at most."""

    replay: float = DEFAULT_REPLAY_SHARE
    """Share of the rows that come from older rounds, where there are any."""

    forgetting: float | None = 0.02
    """By how much the loss on held-out rows of older rounds may rise before the run ends early, with the weights it had
    before; None lets it rise."""

    anchor: float = 0.0
    """Of supervised runs: how firmly the model is held to what the base says of texts that have nothing to do with the
    task; 0 lets go."""

    augment: int = 0
    """Of supervised runs: so many other wordings of each question are asked of the base, and those that pass for such
    are learned from as well, with the same answer; 0 to 8."""

    checkpoint_steps: int = 50
    """Steps between two checkpoints, where checkpoints are kept. There is one after every epoch as well."""

    learning_rate: float = 5e-4
    """Peak rate."""

    epochs: float = 3.0
    """Passes over the training rows."""

    batch_size: int = 16
    """Rows an optimizer step learns from."""

    micro_batch_tokens: int = 2048
    """Padded tokens at most in one forward pass: a step's rows go through the model in as many parts as that takes, so
    that memory does not follow the rows' length. One row always goes through whole."""

    warmup: float = 0.03
    """Share of the steps, rounded down, in which the rate rises to its peak; it then falls along a cosine to zero."""

    weight_decay: float = 0.0

    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""

    max_length: int = 1024
    """Tokens of a row; what is longer loses its end. A row that loses its whole completion is left out and reported."""

    validation: float = 0.1
    """Share of the rows never trained on, to measure the loss on after each epoch. 0 trains on everything."""

    seed: int = 0
    """Of the adapter's start and of the rows' order."""

    search: int = 0
    """Trials of a search over rate, rank and epochs around the ones here, of which the best goes on; 0: none, the run
    is done as it stands here."""

    report_to: tuple[str, ...] = ()
    """Trackers that are told every measurement, of `graftwork.adapters.learning.trackers`; what they need to know,
    addresses and keys, is the environment's."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """What the forward pass computes in; the adapter's own weights are float32 always. ``auto``: bfloat16 where the
    device has instructions for it."""

    def __post_init__(self) -> None:
        self._require(self.method in METHODS, "method", f"must be one of {', '.join(METHODS)}")
        for field, kind in (
            ("variant", Variant),
            ("quantization", Quantization),
            ("reference", Reference),
            ("balance", Balance),
            ("curriculum", Curriculum),
        ):
            self._require(getattr(self, field) in get_args(kind), field, f"must be one of {', '.join(get_args(kind))}")
        self._require(
            self.curriculum == "none" or self.method != "kto",
            "curriculum",
            "must be none for kto, whose rows stay mixed",
        )
        self._require(
            self.curriculum != "easy_first" or self.method in RANKED,
            "curriculum",
            f"is easy_first for {', '.join(sorted(RANKED))} alone",
        )
        self._require(
            self.variant != "full" or (self.method in FULL and self.quantization == "none" and not self.search),
            "variant",
            f"is full for {', '.join(sorted(FULL))} alone, without quantization and without a search",
        )
        self._check_online()
        self._require(
            0 < self.beta < float("inf") or (self.beta == 0 and self.method == "grpo"), "beta", "must be above 0"
        )
        self._require(0 <= self.sft_share < float("inf"), "sft_share", "must not be negative")
        self._require(0 <= self.replay < 1, "replay", "is a share of the rows: at least 0 and below 1")
        self._require(self.forgetting is None or self.forgetting >= 0, "forgetting", "must not be negative")
        self._require(0 <= self.anchor < float("inf"), "anchor", "must not be negative")
        self._require(0 <= self.augment <= MAX_WORDINGS, "augment", f"must be 0 to {MAX_WORDINGS}")
        self._require(
            not self.augment or self.method in SUPERVISED,
            "augment",
            f"is for {' and '.join(sorted(SUPERVISED))} alone, and this is {self.method}: leave it out",
        )
        self._require(self.checkpoint_steps >= 1, "checkpoint_steps", "must be at least 1")
        if self.layers is not None:
            self._require(bool(self.layers) and min(self.layers) >= 0, "layers", "must name at least one layer, from 0")
            self._require(self.targets == "all-linear", "layers", "goes with targets=all-linear alone")
        for field in ("rank", "alpha", "batch_size", "micro_batch_tokens"):
            self._require(getattr(self, field) >= 1, field, "must be at least 1")
        largest = AdapterLimits().max_rank
        self._require(self.rank <= largest, "rank", f"must be at most {largest}, the largest that is served")
        self._require(self.max_length >= 2, "max_length", "must be at least 2: one token to read and one to learn")
        self._require(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")
        self._require(0 < self.learning_rate < 1, "learning_rate", "must be above 0 and below 1; 5e-4 is a good start")
        self._require(0 < self.epochs < float("inf"), "epochs", "must be above 0")
        self._require(0 <= self.warmup < 1, "warmup", "is a share of the steps: at least 0 and below 1")
        self._require(0 <= self.weight_decay < float("inf"), "weight_decay", "must not be negative")
        self._require(0 < self.max_grad_norm < float("inf"), "max_grad_norm", "must be above 0")
        self._require(0 <= self.validation < 1, "validation", "is a share of the rows: at least 0 and below 1")
        self._require(self.search == 0 or 2 <= self.search <= 100, "search", "is a number of trials: 2 to 100, or 0")
        self._require(
            isinstance(self.report_to, tuple) and set(self.report_to) <= set(TRACKERS),
            "report_to",
            f"names trackers: {', '.join(TRACKERS)}",
        )
        self._require(0 <= self.seed < 2**32, "seed", "must be at least 0 and below 2**32")
        self._require(
            self.precision in ("auto", "bfloat16", "float32"), "precision", "must be auto, bfloat16 or float32"
        )
        if isinstance(self.targets, tuple):
            self._require(
                bool(self.targets), "targets", "is empty: name at least one module, or leave it at all-linear"
            )
            heads = sorted(target for target in self.targets if target.rsplit(".", 1)[-1] in FORBIDDEN_TARGETS)
            self._require(not heads, "targets", "names the output head, which this trainer does not adapt")
        else:
            self._require(self.targets == "all-linear", "targets", "is all-linear or a tuple of module names")

    @classmethod
    def start(cls, method: Method, *, continuing: bool, **given: Any) -> TrainConfig:
        """The defaults for a method on a fresh adapter or a continued one, changed by what is ``given``."""
        rate = (CONTINUED_RATES if continuing else FRESH_RATES).get(method, 5e-4)
        if given.get("variant") == "full":
            rate *= FULL_RATE
        defaults: dict[str, Any] = {"method": method, "learning_rate": rate}
        if method in SUPERVISED:
            defaults["anchor"] = 0.3
        if continuing:
            defaults["epochs"] = 2.0
        if method == "grpo":
            # Its answers are as many per question as ``generations``: one pass sees each question so often.
            defaults |= {"epochs": 1.0, "batch_size": 32, "beta": 0.04}
        if method == "distillation":
            # A pass is one answer to each question, and the first ones are far from the teacher's.
            defaults["epochs"] = 8.0
        if "rank" in given and "alpha" not in given:
            defaults["alpha"] = 2 * given["rank"]
        return cls(**{**defaults, **given})

    @property
    def is_online(self) -> bool:
        """Whether the model answers while it trains, and learns from that."""
        return self.method in ONLINE_METHODS

    @property
    def completions_per_prompt(self) -> int:
        """Of a run that asks: answers to one question at a time."""
        return self.generations if self.method == "grpo" else 1

    @property
    def max_generated_tokens(self) -> int:
        """Tokens that a row may grow by, where the model answers it itself."""
        return self.answer_tokens if self.is_online else 0

    def _check_online(self) -> None:
        self._require(
            (self.teacher is not None) == (self.method == "distillation"),
            "teacher",
            "is the larger model that distillation, and nothing else, learns from",
        )
        self._require(
            isinstance(self.rewards, tuple) and bool(self.rewards) == (self.method == "grpo"),
            "rewards",
            "names the reward functions that grpo, and nothing else, learns from: exact, for example",
        )
        self._require(self.method != "grpo" or not self.search, "search", "needs a loss to compare, which grpo has not")
        self._require(2 <= self.generations <= 64, "generations", "must be at least 2 and at most 64")
        self._require(self.answer_tokens >= 1, "answer_tokens", "must be at least 1")
        self._require(
            self.method != "grpo" or self.batch_size % self.generations == 0,
            "batch_size",
            f"must be a multiple of generations ({self.generations}) for grpo: it counts answers",
        )

    def _require(self, ok: bool, field: str, expectation: str) -> None:
        if not ok:
            raise ConfigurationError(f"{field} {expectation}; it is {getattr(self, field)!r}.", param=field)

    def to_json(self) -> dict[str, Any]:
        """Every field by name, in JSON's types."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


Method = Literal["sft", "weighted_sft", "dpo", "kto", "pretrain", "distillation", "grpo"]


METHODS: Final[tuple[Method, ...]] = get_args(Method)
