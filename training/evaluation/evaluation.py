"""Evaluation of a candidate version on held-out rows, compared with its parent and the base, over the server's API."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.types.generation import Score
from graftwork.training.data.row import Row
from graftwork.training.evaluation.bias import Bias, measure_bias
from graftwork.training.evaluation.inference import SPARE, ServedModels, sample_rows
from graftwork.training.evaluation.intervals import Interval, paired_interval, ratio_interval
from graftwork.training.evaluation.metrics import (
    METRIC_BY_KIND,
    EvaluationKind,
    RowLosses,
    Slice,
    compare,
    divergence,
    kind_of,
    likelihoods,
    row_losses,
    slices,
)
from graftwork.training.evaluation.texts import GENERAL_TEXTS
from graftwork.training.methods.grading.grading import GivenAnswer, Grading

MAX_ROWS: Final = 1000
"""Maximum number of held-out rows that are answered; of more, a sample is used."""

MAX_LOSS_ROWS: Final = 200
"""Maximum number of rows whose loss is measured."""

EXAMPLES: Final = 10
"""Number of examples in a report."""


@dataclass(frozen=True, kw_only=True)
class ModelMeasurement:
    """The measurements of one model on the held-out rows.

    Attributes:
        model: its name in requests.
        answers: the answer to each row; empty for texts without questions and for feedback.
        right: the metric of each row: 0 to 1, or for texts the mean log-likelihood of a token in nats; empty for
            feedback.
        metrics: metrics over all rows by name: accuracy, precision, recall, f1, exact_match, bleu, rouge_l,
            log_likelihood, or grade, passed and the mean grade by each part of a grader, depending on the kind of
            evaluation.
        losses: losses of the rows' answers, or of the texts.
        general: the same for `GENERAL_TEXTS`.
        replay: the same for held-out rows of earlier rounds; None without such rows.
    """

    model: str
    answers: tuple[str, ...]
    right: tuple[float, ...]
    metrics: Mapping[str, float]
    losses: RowLosses
    general: RowLosses
    replay: RowLosses | None = None

    @property
    def loss(self) -> float:
        """Mean loss of the rows, in nats per token."""
        return self.losses.mean

    @property
    def general_loss(self) -> float:
        """Mean loss of `GENERAL_TEXTS`, in nats per token."""
        return self.general.mean

    @property
    def replay_loss(self) -> float | None:
        """Mean loss of held-out rows of earlier rounds, in nats per token; None without such rows."""
        return None if self.replay is None else self.replay.mean

    @property
    def perplexity(self) -> float:
        """Perplexity per token of the rows."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question, its reference answer, and the answer of each model (``candidate``, ``parent``, ``base``)."""

    question: str
    expected: str
    answers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FinalReading:
    """Metrics on held-out rows that neither runs nor gates know, so that nothing was chosen by them.

    Attributes:
        num_rows: number of rows.
        metrics: metrics over all rows by name, by model (``candidate``, ``parent``, ``base``).
    """

    num_rows: int
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        kind: the kind of the held-out rows.
        metric: the metric by which models are compared; None for feedback.
        judged_by: the name of the grader that says who is better; None where rows say what is right.
        num_rows: number of held-out rows on which models were compared; 0 for feedback.
        candidate: measurements of the candidate.
        parent: measurements of its parent; None for a version without one.
        base: measurements of the base.
        better: difference of the metric, candidate minus other model, by the other model (``parent``, ``base``); empty
            for feedback.
        slices: the metric by class, for labels.
        kl_to_parent: lower bound of KL(candidate ‖ parent) in nats per token, from the most likely tokens; to the base
            for a version without a parent; not a number for rows without answers.
        bias: how often answers depend on a name or pronoun.
        examples: questions with the answers of all models, those with different answers first.
        num_left_out: number of held-out rows that were not evaluated because they are longer than the server accepts.
        final: the final reading, which decides nothing; None without rows for it.
    """

    kind: EvaluationKind
    metric: str | None
    num_rows: int
    candidate: ModelMeasurement
    parent: ModelMeasurement | None
    base: ModelMeasurement
    better: Mapping[str, Interval]
    slices: tuple[Slice, ...]
    kl_to_parent: float
    bias: Bias
    examples: tuple[Example, ...] = field(repr=False)
    num_left_out: int = 0
    final: FinalReading | None = None
    judged_by: str | None = None

    @property
    def before(self) -> ModelMeasurement:
        """The measurements of the model that the candidate would replace: its parent, or else the base."""
        return self.parent or self.base

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, without questions and answers, for the version's metadata."""

        def numbers(measured: ModelMeasurement | None) -> dict[str, Any] | None:
            if measured is None:
                return None
            losses = {
                "loss": measured.loss,
                "perplexity": measured.perplexity,
                "replay_loss": measured.replay_loss,
                "general_loss": measured.general_loss,
            }
            return {"model": measured.model, **_rounded({**measured.metrics, **losses})}

        return {
            "kind": self.kind,
            "metric": self.metric,
            "judged_by": self.judged_by,
            "rows": self.num_rows,
            "left_out": self.num_left_out,
            "candidate": numbers(self.candidate),
            "parent": numbers(self.parent),
            "base": numbers(self.base),
            "better": {name: _rounded(asdict(interval)) for name, interval in self.better.items()},
            "slices": [_rounded(asdict(part)) for part in self.slices],
            "final": None
            if self.final is None
            else {"rows": self.final.num_rows, **{name: _rounded(part) for name, part in self.final.metrics.items()}},
            "kl_to_parent": _rounded({"": self.kl_to_parent})[""],
            "bias": {"pairs": self.bias.num_pairs, "changed": _rounded(self.bias.changed)},
        }


def evaluate(
    client: Client,
    rows: Sequence[Row],
    prompts: Prompts,
    *,
    candidate: str,
    base: str,
    parent: str | None = None,
    replay: Sequence[Row] = (),
    final: Sequence[Row] = (),
    has_references: bool = True,
    grading: Grading | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a candidate, its parent and the base on the same rows.

    Rows that are longer than the server accepts are left out and counted.

    Args:
        client: the client of the server.
        rows: held-out examples, with reference answers; or texts, of which the first sequence is measured.
        prompts: the tokenizer and chat template of the base.
        candidate: the candidate's name in requests.
        base: the base's name in requests.
        parent: the parent's name in requests.
        replay: held-out examples of earlier rounds.
        final: held-out references for the final reading.
        has_references: whether the answers of the rows are right whatever the models say. Otherwise, as for feedback on
            answers of the parent, nothing is asked, and only losses are compared; so they are if no row is left.
        grading: the grader that judges the answers, in the place of references.
        max_tokens: maximum length of an answer; that of the longest reference answer, and `SPARE` more, by default.
        seed: of samples and intervals.

    Raises:
        GraftworkClientError: if a request fails.
        GraftworkError: if the grader fails.
    """
    random_generator = random.Random(seed)
    served = ServedModels(client, prompts, client.model(base).graftwork["max_length"])
    fitting = [row for row in rows if served.fits(row)]
    num_left_out = len(rows) - len(fitting)
    kind = _kind(fitting, grading) if (has_references or grading) and fitting else "feedback"
    asks = kind in ("labels", "texts", "graded")
    rows = sample_rows(fitting, MAX_ROWS if asks else MAX_LOSS_ROWS, random_generator)
    replay = sample_rows(replay, MAX_LOSS_ROWS, random_generator)
    final = sample_rows([row for row in final if row.kind != "text" and served.fits(row)], MAX_ROWS, random_generator)
    longest = max_tokens or max(map(served.answer_tokens, rows), default=0) + SPARE
    tokens = served.tokens(row for row in rows if row.kind != "question")
    scored = sample_rows(tokens, MAX_LOSS_ROWS, random_generator)
    scores: dict[str, list[Score]] = {}

    def measure(model: str) -> ModelMeasurement:
        scores[model] = served.scores(model, scored)
        answers: list[str] = []
        right: list[float] = []
        metrics: Mapping[str, float] = {}
        if asks:
            answers = served.answers(model, rows, longest)
            right, metrics = _compare(kind, grading, rows, answers)
        elif kind == "passages":
            right = likelihoods(scored, scores[model])
            metrics = {"log_likelihood": sum(right) / len(right)}
        return ModelMeasurement(
            model=model,
            answers=tuple(answers),
            right=tuple(right),
            metrics=metrics,
            losses=row_losses(scored, scores[model]),
            general=served.losses(model, served.texts(GENERAL_TEXTS)),
            replay=served.losses(model, served.tokens(replay)) if replay else None,
        )

    measured = {name: measure(model) for name, model in _parts(candidate, parent, base).items()}
    new, before = measured["candidate"], measured.get("parent", measured["base"])
    return Evaluation(
        kind=kind,
        metric=METRIC_BY_KIND[kind],
        num_rows=len(new.right),
        candidate=new,
        parent=measured.get("parent"),
        base=measured["base"],
        better={
            name: difference(kind, new.right, other.right, seed=seed)
            for name, other in measured.items()
            if name != "candidate" and new.right
        },
        slices=slices([row.answer for row in rows], new.right, before.right) if kind == "labels" else (),
        kl_to_parent=divergence(scored, scores[candidate], scores[before.model]) if scored else math.nan,
        bias=measure_bias(
            served,
            rows if asks else (),
            {name: part.model for name, part in measured.items()},
            longest,
            random_generator,
        ),
        examples=_examples(rows, measured) if asks else (),
        num_left_out=num_left_out,
        final=_read_final(served, final, {name: part.model for name, part in measured.items()}, grading, max_tokens)
        if final
        else None,
        judged_by=grading.name if grading is not None and kind == "graded" else None,
    )


def _read_final(
    served: ServedModels,
    rows: Sequence[Row],
    models: Mapping[str, str],
    grading: Grading | None,
    max_tokens: int | None,
) -> FinalReading:
    kind = _kind(rows, grading)
    longest = max_tokens or max(map(served.answer_tokens, rows)) + SPARE
    metrics = {
        name: _compare(kind, grading, rows, served.answers(model, rows, longest))[1] for name, model in models.items()
    }
    return FinalReading(num_rows=len(rows), metrics=metrics)


def difference(kind: EvaluationKind, new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the mean difference of a metric over the same rows, with its limits.

    Args:
        kind: the kind of the rows, which defines the metric.
        new: the metric of each row for one model.
        old: the metric of each row for the other model.
        seed: of the interval.
    """
    if kind != "passages":
        return paired_interval(new, old, seed=seed)
    return ratio_interval([one - other for one, other in zip(new, old, strict=True)], [1.0] * len(new), seed=seed)


def _compare(
    kind: EvaluationKind, grading: Grading | None, rows: Sequence[Row], answers: Sequence[str]
) -> tuple[list[float], dict[str, float]]:
    """Return the metric of each row, 0 to 1, and metrics over all rows by name."""
    if grading is None:
        return compare(kind, [row.answer for row in rows], answers)
    given = [
        GivenAnswer(text=text, item=row.grader_item, reference=row.answer)
        for row, text in zip(rows, answers, strict=True)
    ]
    grades = grading.grade(given)
    shares = [grading.share(grade) for grade in grades.grades]
    means = {f"grade_{name}": statistics.fmean(grade or 0.0 for grade in part) for name, part in grades.parts.items()}
    return shares, {"grade": statistics.fmean(shares), "passed": statistics.fmean(grades.passed), **means}


def _kind(rows: Sequence[Row], grading: Grading | None) -> EvaluationKind:
    if grading is not None:
        return "graded"
    return "passages" if all(row.kind == "text" for row in rows) else kind_of([row.answer for row in rows])


def _examples(rows: Sequence[Row], measured: Mapping[str, ModelMeasurement]) -> tuple[Example, ...]:
    """Choose examples, those with the most different answers first."""
    order = sorted(range(len(rows)), key=lambda index: -len({part.answers[index] for part in measured.values()}))
    return tuple(
        Example(
            question=rows[index].question,
            expected=rows[index].answer,
            answers={name: part.answers[index] for name, part in measured.items()},
        )
        for index in order[:EXAMPLES]
    )


def _parts(candidate: str, parent: str | None, base: str) -> dict[str, str]:
    return {"candidate": candidate, **({"parent": parent} if parent else {}), "base": base}


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Round to five digits, for JSON: what is not finite becomes None."""
    return {name: _rounded_float(value) if isinstance(value, float) else value for name, value in numbers.items()}


def _rounded_float(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
