"""Every knob of a training run, defined once: its name, type, bounds, default and help.

Three places are built from this table, so that a new knob appears in all of them:

- ``TrainConfig``, the settings of a run: a field of the knob's name, with its ``default``, checked by its ``bounds``;
- the hyperparameters of ``/v1/fine_tuning/jobs``, checked before a job is queued: its ``job``;
- the options of ``graftwork train``: its ``option``.

A run accepts more than a job: what others may ask of a server has an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from graftwork.adapters.learning.methods import TrainingMethod
from graftwork.adapters.learning.trackers import TRACKERS
from graftwork.adapters.peft_format.limits import AdapterLimits

Kind = Literal["integer", "number", "choice", "folder", "names", "numbers", "modules", "grader", "response_format"]
"""``names`` and ``numbers`` are several of these; ``modules`` is ``all-linear`` or names of modules; ``grader`` and
``response_format`` are objects, as `graftwork.adapters.learning.graders` reads them."""

Panel = Literal["The data", "The run"]
"""The heading of an option's group in ``graftwork train --help``."""

MAX_RANK: Final = AdapterLimits().max_rank
MAX_WORDINGS: Final = 8
MIN_TRIALS: Final = 2
MAX_TRIALS: Final = 100


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """An interval of numbers. ``expectation`` describes it in a message, after the knob's name."""

    expectation: str
    least: float = float("-inf")
    most: float = float("inf")
    above: float = float("-inf")
    """Values must be greater, not equal."""
    below: float = float("inf")
    """Values must be less, not equal; infinity itself never is."""
    zero: bool = False
    """Whether 0, for "none", is allowed as well."""

    def contains(self, value: float) -> bool:
        """Whether a value is in the interval."""
        inside = self.least <= value <= self.most and self.above < value < self.below
        return inside or (self.zero and value == 0)


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """A knob as jobs have it. Its value may always be ``"auto"`` as well.

    Attributes:
        name: Over HTTP, if not the knob's.
        whole: Whether a job takes whole numbers only, where a run takes any.
        least: The smallest number.
        most: The largest number.
        choices: The words, if it is a choice.
    """

    name: str | None = None
    whole: bool = False
    least: float = float("-inf")
    most: float = float("inf")
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Option:
    """A knob as ``graftwork train`` has it.

    Attributes:
        flag: The option's name.
        help: Its help text.
        panel: The heading of its group.
        metavar: Its value's name in the help.
        local: Only with ``--local``.
        has_default: Whether it has the knob's default and shows it; else a missing value is left to the run.
        least: The smallest number, where the command line checks it.
        most: The largest number, where the command line checks it.
    """

    flag: str
    help: str
    panel: Panel = "The run"
    metavar: str | None = None
    local: bool = False
    has_default: bool = False
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One knob of a training run.

    Attributes:
        name: The field of ``TrainConfig``.
        kind: Its type.
        default: Of a run.
        help: What it does.
        bounds: Of a number; all must hold.
        choices: Of a choice. With ``None`` as the default it may be left without a value.
        method: The one method that has it and requires it.
        needs: For that method's error message: what it is.
        instead: The knob that may be given in its place; one of the two is required, and not both.
        job: How it is given over HTTP; ``None``: not at all.
        option: How it is given on the command line; ``None``: not at all.
        aliases: Further names in the description of a run.
        can_be_none: Whether ``None`` has a meaning of its own, beside the default.
        in_config: Whether it is a field of ``TrainConfig``; not if it is only a factor of another knob.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    bounds: tuple[Bounds, ...] = ()
    choices: tuple[str, ...] = ()
    method: TrainingMethod | None = None
    needs: str = ""
    instead: str | None = None
    job: Hyperparameter | None = None
    option: Option | None = None
    aliases: tuple[str, ...] = ()
    can_be_none: bool = False
    in_config: bool = True

    def expectation_missed(self, value: Any) -> str | None:
        """What is wrong with a value for a run, as words that follow the knob's name; ``None`` if nothing is.

        Raises:
            TypeError: It is a word where a number is needed.
        """
        if value is None and (self.default is None or self.can_be_none):
            return None
        if self.choices and self.kind == "choice" and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        return next((bounds.expectation for bounds in self.bounds if not bounds.contains(value)), None)

    @property
    def job_name(self) -> str:
        """Its name over HTTP."""
        return self.job.name if self.job is not None and self.job.name is not None else self.name


_AT_LEAST_ONE: Final = Bounds(least=1, expectation="must be at least 1")
_NOT_NEGATIVE: Final = Bounds(least=0, below=float("inf"), expectation="must not be negative")


def _share(expectation: str) -> Bounds:
    return Bounds(least=0, below=1, expectation=expectation)


_TABLE: Final = (
    Knob(
        name="epochs",
        kind="number",
        default=3.0,
        bounds=(Bounds(above=0, below=float("inf"), expectation="must be above 0"),),
        help="Passes over the training rows.",
        job=Hyperparameter(name="n_epochs", whole=True, least=1, most=1000),
        option=Option(flag="--epochs", help="Passes over the rows. 3."),
        aliases=("num_epochs",),
    ),
    Knob(
        name="batch_size",
        kind="integer",
        default=16,
        bounds=(_AT_LEAST_ONE,),
        help="Rows an optimizer step learns from.",
        job=Hyperparameter(least=1, most=4096),
        option=Option(flag="--batch-size", help="Rows a step. 16."),
    ),
    Knob(
        name="learning_rate_multiplier",
        kind="number",
        default=1.0,
        help="Multiplies the learning rate that would be used otherwise.",
        job=Hyperparameter(least=1e-6, most=1e6),
        in_config=False,
    ),
    Knob(
        name="learning_rate",
        kind="number",
        default=5e-4,
        bounds=(Bounds(above=0, below=1, expectation="must be above 0 and below 1; 5e-4 is a good start"),),
        help="Peak rate.",
        job=Hyperparameter(least=1e-12, most=1.0),
        option=Option(flag="--learning-rate", help="Peak rate. 5e-4, or what suits the method."),
    ),
    Knob(
        name="beta",
        kind="number",
        default=0.1,
        bounds=(Bounds(least=0, below=float("inf"), expectation="must be above 0"),),
        help="Of DPO, KTO and GRPO: how near to the reference the answers must stay; more is nearer. GRPO also takes "
        "0, which lets go.",
        job=Hyperparameter(least=0.0, most=100.0),
    ),
    Knob(
        name="rank",
        kind="integer",
        default=16,
        bounds=(
            _AT_LEAST_ONE,
            Bounds(most=MAX_RANK, expectation=f"must be at most {MAX_RANK}, the largest that is served"),
        ),
        help="Width of the adapter. 16 is enough for a task, 32 for a style and a domain together.",
        job=Hyperparameter(least=1, most=MAX_RANK),
        option=Option(flag="--rank", help="Width of the adapter. 16."),
        aliases=("lora_rank",),
    ),
    Knob(
        name="alpha",
        kind="integer",
        default=32,
        bounds=(_AT_LEAST_ONE,),
        help="The adapter's output is multiplied by alpha / rank. Twice the rank is the usual choice.",
        job=Hyperparameter(least=1, most=4096),
        option=Option(flag="--alpha", help="Scale. Twice the rank."),
    ),
    Knob(
        name="max_length",
        kind="integer",
        default=1024,
        bounds=(Bounds(least=2, expectation="must be at least 2: one token to read and one to learn"),),
        help="Tokens of a row; what is longer loses its end. A row that loses its whole completion is left out and "
        "reported.",
        job=Hyperparameter(least=2, most=1 << 20),
        option=Option(flag="--max-length", help="Tokens of a row; longer ones lose their end. 1024.", panel="The data"),
    ),
    Knob(
        name="warmup",
        kind="number",
        default=0.03,
        bounds=(_share("is a share of the steps: at least 0 and below 1"),),
        help="Share of the steps, rounded down, in which the rate rises to its peak; it then falls along a cosine to "
        "zero.",
        job=Hyperparameter(least=0.0, most=0.99),
    ),
    Knob(
        name="weight_decay",
        kind="number",
        default=0.0,
        bounds=(_NOT_NEGATIVE,),
        help="AdamW's weight decay.",
        job=Hyperparameter(least=0.0, most=10.0),
    ),
    Knob(
        name="max_grad_norm",
        kind="number",
        default=1.0,
        bounds=(Bounds(above=0, below=float("inf"), expectation="must be above 0"),),
        help="Gradients longer than this are shortened to it.",
        job=Hyperparameter(least=1e-6, most=1e6),
    ),
    Knob(
        name="dropout",
        kind="number",
        default=0.0,
        bounds=(_share("must be at least 0 and below 1"),),
        help="Share of the adapter's inputs dropped in training, 0 to 1.",
        job=Hyperparameter(least=0.0, most=0.99),
    ),
    Knob(
        name="anchor",
        kind="number",
        default=0.0,
        bounds=(_NOT_NEGATIVE,),
        help="Of supervised runs: how firmly the model is held to what the base says of texts that have nothing to do "
        "with the task; 0 lets go.",
        job=Hyperparameter(least=0.0, most=100.0),
    ),
    Knob(
        name="sft_share",
        kind="number",
        default=0.2,
        bounds=(_NOT_NEGATIVE,),
        help="Of DPO: the weight of learning the better answer itself beside preferring it. 1 for corrections, where "
        "the better answer is known to be right: then it is SFT on the fix and DPO on the pair in one.",
        job=Hyperparameter(least=0.0, most=100.0),
    ),
    Knob(
        name="replay",
        kind="number",
        default=0.25,
        bounds=(_share("is a share of the rows: at least 0 and below 1"),),
        help="Share of the rows that come from older rounds, where there are any.",
        job=Hyperparameter(least=0.0, most=0.99),
    ),
    Knob(
        name="forgetting",
        kind="number",
        default=0.02,
        can_be_none=True,
        bounds=(Bounds(least=0, expectation="must not be negative"),),
        help="By how much the loss on held-out rows of older rounds may rise before the run ends early, with the "
        "weights it had before; None lets it rise.",
        job=Hyperparameter(least=0.0, most=100.0),
    ),
    Knob(
        name="validation",
        kind="number",
        default=0.1,
        bounds=(_share("is a share of the rows: at least 0 and below 1"),),
        help="Share of the rows never trained on, to measure the loss on after each epoch. 0 trains on everything.",
        job=Hyperparameter(least=0.0, most=0.9),
        option=Option(
            flag="--validation", help="Share of rows to measure on.", panel="The data", local=True, has_default=True
        ),
    ),
    Knob(
        name="personal_in_system",
        kind="choice",
        default="keep",
        choices=("keep", "mask"),
        help="What becomes of personal data in system messages: kept, since whoever asks sends it again, or masked as "
        "elsewhere. Of files and feedback; a stored data set is as it was made.",
        job=Hyperparameter(choices=("keep", "mask")),
        option=Option(
            flag="--personal-in-system", help="Personal data in system messages: keep it, or mask it.", panel="The data"
        ),
    ),
    Knob(
        name="micro_batch_tokens",
        kind="integer",
        default=2048,
        bounds=(_AT_LEAST_ONE,),
        help="Padded tokens at most in one forward pass: a step's rows go through the model in as many parts as that "
        "takes, so that memory does not follow the rows' length. One row always goes through whole.",
        job=Hyperparameter(least=1, most=1 << 20),
    ),
    Knob(
        name="checkpoint_steps",
        kind="integer",
        default=50,
        bounds=(_AT_LEAST_ONE,),
        help="Steps between two checkpoints, where checkpoints are kept. There is one after every epoch as well.",
        job=Hyperparameter(least=1, most=1_000_000),
    ),
    Knob(
        name="search",
        kind="integer",
        default=0,
        bounds=(
            Bounds(
                least=MIN_TRIALS,
                most=MAX_TRIALS,
                zero=True,
                expectation=f"is a number of trials: {MIN_TRIALS} to {MAX_TRIALS}, or 0",
            ),
        ),
        help="Trials of a search over rate, rank and epochs around the ones here, of which the best goes on; 0: none, "
        "the run is done as it stands here.",
        job=Hyperparameter(least=MIN_TRIALS, most=MAX_TRIALS),
        option=Option(
            flag="--search",
            help="Try N rates, ranks and epochs around these; the best on held-out rows goes on.",
            metavar="N",
            least=MIN_TRIALS,
            most=MAX_TRIALS,
        ),
    ),
    Knob(
        name="augment",
        kind="integer",
        default=0,
        bounds=(Bounds(least=0, most=MAX_WORDINGS, expectation=f"must be 0 to {MAX_WORDINGS}"),),
        help="Of supervised runs: so many other wordings of each question are asked of the base, and those that pass "
        "for such are learned from as well, with the same answer; 0 to 8.",
        job=Hyperparameter(least=0, most=MAX_WORDINGS),
        option=Option(
            flag="--augment",
            help="Have the base write N other wordings of each question; the good ones are learned as well.",
            metavar="N",
            least=1,
            most=MAX_WORDINGS,
        ),
    ),
    Knob(
        name="generations",
        kind="integer",
        default=8,
        bounds=(Bounds(least=2, most=64, expectation="must be at least 2 and at most 64"),),
        help="Of GRPO: answers to one question, which are held against each other.",
        job=Hyperparameter(least=2, most=64),
    ),
    Knob(
        name="temperature",
        kind="number",
        default=1.0,
        bounds=(Bounds(above=0, most=2, expectation="must be above 0 and at most 2"),),
        help="Of GRPO: the temperature at which answers are drawn. Below 1 a small model is right more often.",
        job=Hyperparameter(least=0.1, most=2),
    ),
    Knob(
        name="answer_tokens",
        kind="integer",
        default=64,
        bounds=(_AT_LEAST_ONE,),
        help="Of GRPO and distillation: tokens of an answer that the model tries, at most.",
        job=Hyperparameter(least=1, most=1 << 16),
    ),
    Knob(
        name="balance",
        kind="choice",
        default="none",
        choices=("none", "sqrt", "full"),
        help="Class weights for supervised runs, by the answers.",
        job=Hyperparameter(choices=("none", "sqrt", "full")),
    ),
    Knob(
        name="curriculum",
        kind="choice",
        default="none",
        choices=("none", "short_first", "easy_first"),
        help="In which order an epoch's rows are learned from. Not of KTO, whose liked and disliked rows stay mixed.",
        job=Hyperparameter(choices=("none", "short_first", "easy_first")),
    ),
    Knob(
        name="variant",
        kind="choice",
        default="lora",
        choices=("lora", "rslora", "dora", "full"),
        help="rslora multiplies by alpha / sqrt(rank), for high ranks; dora also learns each column's length, for "
        "about twice the time. A continued adapter keeps its own. full trains no adapter but all weights of the base: "
        "what comes out is a model of its own, which cannot be swapped while serving.",
        job=Hyperparameter(choices=("lora", "rslora", "dora")),
    ),
    Knob(
        name="quantization",
        kind="choice",
        default="none",
        choices=("none", "nf4"),
        help="nf4 holds the base in 4 bits while it trains (QLoRA): for bases that do not fit otherwise.",
        job=Hyperparameter(choices=("none", "nf4")),
    ),
    Knob(
        name="precision",
        kind="choice",
        default="auto",
        choices=("auto", "bfloat16", "float32"),
        help="What the forward pass computes in; the adapter's own weights are float32 always. auto: bfloat16 where "
        "the device has instructions for it.",
        job=Hyperparameter(choices=("bfloat16", "float32")),
        option=Option(flag="--precision", help="What the forward pass computes in.", local=True, has_default=True),
    ),
    Knob(
        name="reference",
        kind="choice",
        default="parent",
        choices=("parent", "base"),
        help="Of DPO, KTO and GRPO: what the answers must stay near to. parent is the version that is continued, base "
        "the bare base; for a fresh adapter both are the same.",
        job=Hyperparameter(choices=("parent", "base")),
    ),
    Knob(
        name="layers",
        kind="numbers",
        default=None,
        help="Numbers of the layers that get an adapter, from 0; None: all of them.",
        job=Hyperparameter(),
    ),
    Knob(
        name="report_to",
        kind="names",
        default=(),
        choices=TRACKERS,
        help="Trackers that are told every measurement; what they need to know, addresses and keys, is the "
        "environment's.",
        job=Hyperparameter(),
        option=Option(
            flag="--report-to",
            help="Tell every measurement to wandb, mlflow or trackio, too.",
            metavar="TRACKER",
        ),
    ),
    Knob(
        name="teacher",
        kind="folder",
        default=None,
        help="Of a distillation: the larger model's name.",
        method="distillation",
        needs="the folder of the larger model to learn from",
        job=Hyperparameter(),
        option=Option(
            flag="--teacher",
            help="Of distillation: the larger model's folder, at the server's; with --local a hub id as well.",
            metavar="MODEL",
        ),
    ),
    Knob(
        name="rewards",
        kind="names",
        default=(),
        help="Of GRPO: names of reward functions, whose rewards are added up.",
        method="grpo",
        needs="the reward functions to learn from, such as exact, or a grader",
        instead="grader",
        job=Hyperparameter(),
        option=Option(
            flag="--reward",
            help="Of grpo: an installed reward function, exact or similar for example; may be repeated.",
            metavar="NAME",
        ),
    ),
    Knob(
        name="grader",
        kind="grader",
        default=None,
        help="Of GRPO: what grades the answers, in the place of reward functions.",
        method="grpo",
        needs="the grader to learn from",
        instead="rewards",
        job=Hyperparameter(),
    ),
    Knob(
        name="response_format",
        kind="response_format",
        default=None,
        help="Of graders: the JSON that an answer has to be.",
        job=Hyperparameter(),
    ),
    Knob(
        name="judge",
        kind="grader",
        default=None,
        help="What grades held-out answers for the gates where no row says what is right; the run's grader by default.",
        job=Hyperparameter(),
    ),
    Knob(
        name="eval_interval",
        kind="integer",
        default=0,
        bounds=(_NOT_NEGATIVE,),
        help="Steps after which the held-out rows are measured, beside the end of each epoch; 0: then alone.",
        job=Hyperparameter(least=1, most=1_000_000),
    ),
    Knob(
        name="targets",
        kind="modules",
        default="all-linear",
        help="all-linear is every linear layer but the head; a tuple names modules by the last part of their dotted "
        "name.",
    ),
    Knob(
        name="seed",
        kind="integer",
        default=0,
        bounds=(Bounds(least=0, below=2**32, expectation="must be at least 0 and below 2**32"),),
        help="Of the adapter's start and of the rows' order. A job has a field of its own for it.",
        option=Option(flag="--seed", help="Same seed, same adapter.", has_default=True),
    ),
)

KNOBS: Final[Mapping[str, Knob]] = {knob.name: knob for knob in _TABLE}
"""All knobs, by name."""

HYPERPARAMETERS: Final[Mapping[str, Knob]] = {knob.job_name: knob for knob in _TABLE if knob.job is not None}
"""The knobs of jobs, by their names over HTTP."""

OPTIONS: Final[Mapping[str, Option]] = {knob.name: knob.option for knob in _TABLE if knob.option is not None}
"""The options of ``graftwork train``, by the knobs' names."""

ALIASES: Final[Mapping[str, str]] = {
    alias: knob.name for knob in _TABLE for alias in (knob.job_name, *knob.aliases) if alias != knob.name
}
"""Names of knobs by their other names."""
