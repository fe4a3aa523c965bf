"""The configuration of one training run: a value for every knob, and the checks between them.

It is built once, from the options of a command or the hyperparameters of a job, and passed down unchanged. It is
written to the model card and to the version's metadata.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, Final, Literal, get_args, get_origin

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.learning.knobs import KNOBS
from graftwork.adapters.learning.methods import FULL, ONLINE, RANKED, SUPERVISED, TRAINING_METHODS, TrainingMethod
from graftwork.adapters.learning.trackers import TRACKERS
from graftwork.training.data.mix.balance import Balance
from graftwork.training.data.mix.curriculum import Curriculum

Targets = Literal["all-linear"] | tuple[str, ...]
"""``"all-linear"`` is every linear layer but the head; a tuple names modules by the last part of their dotted name."""

FORBIDDEN_TARGETS = frozenset({"lm_head", "embed_out", "output"})
"""Output heads. The trainer's fused loss multiplies by the head's own weight, so an adapter on it would get no
gradient."""

Variant = Literal["lora", "rslora", "dora", "full"]

Quantization = Literal["none", "nf4"]

Reference = Literal["parent", "base"]

Precision = Literal["auto", "bfloat16", "float32"]

PersonalInSystem = Literal["keep", "mask"]

FRESH_RATES: Final[Mapping[TrainingMethod, float]] = {
    "sft": 5e-4,
    "weighted_sft": 5e-4,
    "pretrain": 2e-4,
    "dpo": 1e-5,
    "kto": 5e-6,
    "distillation": 1e-3,
    "grpo": 1e-4,
}
"""Peak learning rate by method, for a fresh adapter."""

CONTINUED_RATES: Final[Mapping[TrainingMethod, float]] = {
    "sft": 1e-4,
    "weighted_sft": 1e-4,
    "pretrain": 5e-5,
    "dpo": 5e-6,
    "kto": 2e-6,
    "distillation": 2e-4,
    "grpo": 5e-5,
}
"""Peak learning rate by method, for an adapter that is trained further. Lower than for a fresh one, since forgetting
depends on the rate more than on anything else."""


ENOUGH_STEPS: Final = 60
"""Optimizer steps that a run of few rows takes at least, where its batch size and epochs are not given. With a quarter
of them a small model learns next to nothing, whatever the rows."""

FEW_STEPS: Final = 120
"""A run of fewer steps learns at twice the rate."""

SMALLEST_BATCH: Final = 4
MOST_EPOCHS: Final = 10.0
"""The bounds within which the batch size and the epochs follow from the rows."""

FULL_RATE: Final = 0.1
"""Factor on the learning rate where all weights are trained: LoRA's best rate is about ten times that of full
fine-tuning."""


_DEFAULTS: Final[Mapping[str, Any]] = {name: knob.default for name, knob in KNOBS.items()}


def _for_few_rows(num_rows: int, usual: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Batch size, epochs and rate with which so few rows are learned; see docs/learning.md#few-rows.

    Args:
        num_rows: rows to learn from.
        usual: the values of many rows, and those that are given.
        given: names of the latter.
    """
    batch_size, epochs, rate = usual["batch_size"], usual["epochs"], usual["learning_rate"]
    if "batch_size" not in given:
        enough = 2 ** int(log2(max(1.0, num_rows * epochs / ENOUGH_STEPS)))
        batch_size = max(SMALLEST_BATCH, min(batch_size, enough))
    if "epochs" not in given:
        epochs = max(epochs, min(MOST_EPOCHS, float(ceil(ENOUGH_STEPS * batch_size / num_rows))))
    if num_rows * epochs / batch_size < FEW_STEPS:
        rate *= 2
    return {"batch_size": batch_size, "epochs": epochs, "learning_rate": rate}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The configuration of one run of one method. Build it with `start`, which chooses the defaults for the method.

    The meaning, unit, bounds and default of each field are defined in `graftwork.adapters.learning.knobs`. A check at
    the end of this module ensures that each knob has a field.

    Raises:
        ConfigurationError: if a value is out of bounds or does not go with another one; ``param`` is the field.
    """

    method: TrainingMethod = "sft"
    """The training method; `graftwork.training.methods.rows` defines which rows each method takes."""
    rank: int = _DEFAULTS["rank"]
    alpha: int = _DEFAULTS["alpha"]
    dropout: float = _DEFAULTS["dropout"]
    targets: Targets = _DEFAULTS["targets"]
    layers: tuple[int, ...] | None = _DEFAULTS["layers"]
    variant: Variant = _DEFAULTS["variant"]
    quantization: Quantization = _DEFAULTS["quantization"]
    beta: float = _DEFAULTS["beta"]
    sft_share: float = _DEFAULTS["sft_share"]
    reference: Reference = _DEFAULTS["reference"]
    balance: Balance = _DEFAULTS["balance"]
    curriculum: Curriculum = _DEFAULTS["curriculum"]
    teacher: str | None = _DEFAULTS["teacher"]
    rewards: tuple[str, ...] = _DEFAULTS["rewards"]
    grader: Mapping[str, Any] | None = _DEFAULTS["grader"]
    judge: Mapping[str, Any] | None = _DEFAULTS["judge"]
    response_format: Mapping[str, Any] | None = _DEFAULTS["response_format"]
    generations: int = _DEFAULTS["generations"]
    temperature: float = _DEFAULTS["temperature"]
    answer_tokens: int = _DEFAULTS["answer_tokens"]
    replay: float = _DEFAULTS["replay"]
    forgetting: float | None = _DEFAULTS["forgetting"]
    anchor: float = _DEFAULTS["anchor"]
    augment: int = _DEFAULTS["augment"]
    checkpoint_steps: int = _DEFAULTS["checkpoint_steps"]
    eval_interval: int = _DEFAULTS["eval_interval"]
    learning_rate: float = _DEFAULTS["learning_rate"]
    epochs: float = _DEFAULTS["epochs"]
    batch_size: int = _DEFAULTS["batch_size"]
    micro_batch_tokens: int = _DEFAULTS["micro_batch_tokens"]
    warmup: float = _DEFAULTS["warmup"]
    weight_decay: float = _DEFAULTS["weight_decay"]
    max_grad_norm: float = _DEFAULTS["max_grad_norm"]
    max_length: int = _DEFAULTS["max_length"]
    validation: float = _DEFAULTS["validation"]
    personal_in_system: PersonalInSystem = _DEFAULTS["personal_in_system"]
    seed: int = _DEFAULTS["seed"]
    search: int = _DEFAULTS["search"]
    report_to: tuple[str, ...] = _DEFAULTS["report_to"]
    precision: Precision = _DEFAULTS["precision"]

    def __post_init__(self) -> None:
        self._require(self.method in TRAINING_METHODS, "method", f"must be one of {', '.join(TRAINING_METHODS)}")
        for knob in KNOBS.values():
            if knob.in_config and (missed := knob.expectation_missed(getattr(self, knob.name))) is not None:
                self._require(False, knob.name, missed)
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
        self._require(self.beta > 0 or self.method == "grpo", "beta", "must be above 0")
        self._require(
            not self.augment or self.method in SUPERVISED,
            "augment",
            f"is for {' and '.join(sorted(SUPERVISED))} alone, and this is {self.method}: leave it out",
        )
        if self.layers is not None:
            self._require(bool(self.layers) and min(self.layers) >= 0, "layers", "must name at least one layer, from 0")
            self._require(self.targets == "all-linear", "layers", "goes with targets=all-linear alone")
        self._require(
            isinstance(self.report_to, tuple) and set(self.report_to) <= set(TRACKERS),
            "report_to",
            f"names trackers: {', '.join(TRACKERS)}",
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
    def start(
        cls, method: TrainingMethod, *, continuing: bool, num_rows: int | None = None, **given: Any
    ) -> TrainConfig:
        """Build a configuration from the defaults of a method.

        Args:
            method: the training method.
            continuing: whether an existing adapter is trained further; its defaults forget less.
            num_rows: rows to learn from. Of few rows supervised methods learn in smaller batches, longer and faster.
            **given: fields that replace the defaults. Where ``rank`` is given and ``alpha`` is not, alpha is twice the
                rank.

        Raises:
            ConfigurationError: as for the class.
        """
        rate = (CONTINUED_RATES if continuing else FRESH_RATES).get(method, KNOBS["learning_rate"].default)
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
        if num_rows and method in SUPERVISED:
            defaults |= _for_few_rows(num_rows, {**_DEFAULTS, **defaults, **given}, given)
        return cls(**{**defaults, **given})

    @property
    def judged_by(self) -> Mapping[str, Any] | None:
        """The grader by which held-out answers are judged where no row says what is right; None if there is none."""
        return self.judge or self.grader

    @property
    def is_online(self) -> bool:
        """Whether the model generates completions during training and learns from them."""
        return self.method in ONLINE

    @property
    def completions_per_prompt(self) -> int:
        """Completions that an online method generates for each prompt in a step."""
        return self.generations if self.method == "grpo" else 1

    @property
    def max_generated_tokens(self) -> int:
        """Tokens that a generated completion adds to a row at most; 0 unless the method is online."""
        return self.answer_tokens if self.is_online else 0

    def _check_online(self) -> None:
        self._require(
            (self.teacher is not None) == (self.method == "distillation"),
            "teacher",
            "is the larger model that distillation, and nothing else, learns from",
        )
        self._require(
            isinstance(self.rewards, tuple)
            and bool(self.rewards) + (self.grader is not None) == (self.method == "grpo"),
            "rewards" if self.rewards or self.grader is None else "grader",
            "names the reward functions that grpo, and nothing else, learns from, exact for example; or a grader is "
            "given instead",
        )
        self._require(self.method != "grpo" or not self.search, "search", "needs a loss to compare, which grpo has not")
        self._require(
            self.method != "grpo" or self.batch_size % self.generations == 0,
            "batch_size",
            f"must be a multiple of generations ({self.generations}) for grpo: it counts answers",
        )

    def _require(self, ok: bool, field: str, expectation: str) -> None:
        if not ok:
            raise ConfigurationError(f"{field} {expectation}; it is {getattr(self, field)!r}.", param=field)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, in JSON's types."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


def _check_fields() -> None:
    """Check that knobs and fields correspond, and that a field's literals are the choices of its knob.

    Raises:
        TypeError: naming the fields that differ.
    """
    types = typing.get_type_hints(TrainConfig)
    knobs = {knob.name for knob in KNOBS.values() if knob.in_config}
    if unmatched := types.keys() ^ (knobs | {"method"}):
        raise TypeError(f"TrainConfig and the table of knobs do not agree about {', '.join(sorted(unmatched))}")
    for name in knobs:
        if get_origin(types[name]) is Literal and get_args(types[name]) != KNOBS[name].choices:
            raise TypeError(f"{name} is of {types[name]} in TrainConfig, and of {KNOBS[name].choices} in its knob")


_check_fields()
