"""A version measured on rows it has not learned from, beside its parent and the bare base, as users meet it: over
HTTP."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.types.generation import Score
from graftwork.training.data.row import Row
from graftwork.training.evaluation.bias import Bias, measure_bias
from graftwork.training.evaluation.inference import SPARE, ServedModels, sample_rows
from graftwork.training.evaluation.metrics import (
    METRIC_BY_KIND,
    EvaluationKind,
    Interval,
    Slice,
    compare,
    divergence,
    kind_of,
    likelihoods,
    mean_loss,
    paired_difference,
    slices,
)
from graftwork.training.evaluation.texts import GENERAL_TEXTS

MAX_ROWS: Final = 500
"""Held-out rows that are asked; of more, as many are drawn."""

MAX_LOSS_ROWS: Final = 200


EXAMPLES: Final = 10


class NoMeasurableRows(ValueError):
    """No held-out row could be measured."""


@dataclass(frozen=True, kw_only=True)
class ModelMeasurement:
    """One model on the held-out rows.

    Attributes:
        answers: to each question. right: the metric of each row, 0 to 1; of a text without a question, nats a token.
        metrics: by name: accuracy, precision, recall, f1, exact_match, bleu, rouge_l, as the answers' kind has them.
        loss: nats per token of the right answers, or of the texts; replay_loss: of those of older rounds;
            general_loss: of plain texts.
    """

    model: str
    answers: tuple[str, ...]
    right: tuple[float, ...]
    metrics: Mapping[str, float]
    loss: float
    replay_loss: float | None
    general_loss: float

    @property
    def perplexity(self) -> float:
        """Of the right answers."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question and all answers to it, for a person to read."""

    question: str
    expected: str
    answers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A candidate beside the others. ``metric`` is the one that rows are compared by; ``better`` are its differences,
    candidate minus the other, by the other's part: ``parent``, ``base``."""

    kind: EvaluationKind
    metric: str
    num_rows: int
    candidate: ModelMeasurement
    parent: ModelMeasurement | None
    base: ModelMeasurement
    better: Mapping[str, Interval]
    slices: tuple[Slice, ...]
    kl_to_parent: float
    """Nats a token on the new questions, at least: over the most likely tokens and the rest together. To the base for
    a version without a parent."""
    bias: Bias
    examples: tuple[Example, ...] = field(repr=False)
    num_left_out: int = 0
    """Held-out rows that could not be measured, most since they have more tokens than the server takes."""

    @property
    def before(self) -> ModelMeasurement:
        """What the candidate would replace: its parent, or the base."""
        return self.parent or self.base

    def to_json(self) -> dict[str, Any]:
        """Numbers alone, for the version's metadata: no question, no answer."""

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
            "rows": self.num_rows,
            "left_out": self.num_left_out,
            "candidate": numbers(self.candidate),
            "parent": numbers(self.parent),
            "base": numbers(self.base),
            "better": {name: _rounded(asdict(interval)) for name, interval in self.better.items()},
            "slices": [_rounded(asdict(part)) for part in self.slices],
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
    max_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Ask all three and compare.

    Args:
        rows: held-out examples, whose answers are what is right; or texts, each measured by its beginning.
        prompts: of the base, to find an answer's tokens.
        candidate, parent, base: what ``model`` in a request calls them.
        replay: held-out examples of older rounds.
        max_tokens: of an answer; without, as many as the longest right one has and some more.

    Rows that are longer than what the server serves are left out and counted. Raises NoMeasurableRows when there are no
    others.
    """
    drawn = random.Random(seed)
    asker = ServedModels(client, prompts, client.model(base).graftwork["max_length"])
    fitting = [row for row in rows if asker.fits(row)]
    if not fitting:
        raise NoMeasurableRows(f"none of {len(rows)} held-out rows fits into what the server serves")
    num_left_out = len(rows) - len(fitting)
    passages = all(row.kind == "text" for row in fitting)
    rows = sample_rows(fitting, MAX_LOSS_ROWS if passages else MAX_ROWS, drawn)
    replay = sample_rows(replay, MAX_LOSS_ROWS, drawn)
    kind = "passages" if passages else kind_of([row.answer for row in rows])
    longest = max_tokens or max(len(prompts.encode(row.answer)) for row in rows) + SPARE
    tokens = asker.tokens(rows)
    scored = sample_rows(tokens, MAX_LOSS_ROWS, drawn)
    scores: dict[str, list[Score]] = {}

    def measure(model: str) -> ModelMeasurement:
        scores[model] = asker.scores(model, scored)
        if passages:
            answers = []
            right = likelihoods(scored, scores[model])
            metrics: Mapping[str, float] = {METRIC_BY_KIND[kind]: sum(right) / len(right)}
        else:
            answers = asker.answers(model, rows, longest)
            right, metrics = compare(kind, [row.answer for row in rows], answers)
        return ModelMeasurement(
            model=model,
            answers=tuple(answers),
            right=tuple(right),
            metrics=metrics,
            loss=mean_loss(scored, scores[model]),
            replay_loss=asker.loss(model, asker.tokens(replay)) if replay else None,
            general_loss=asker.loss(model, asker.texts(GENERAL_TEXTS)),
        )

    measured = {name: measure(model) for name, model in _parts(candidate, parent, base).items()}
    new, before = measured["candidate"], measured.get("parent", measured["base"])
    others = {name: other for name, other in measured.items() if name != "candidate"}
    return Evaluation(
        kind=kind,
        metric=METRIC_BY_KIND[kind],
        num_rows=len(rows),
        candidate=new,
        parent=measured.get("parent"),
        base=measured["base"],
        better={name: paired_difference(new.right, other.right, seed=seed) for name, other in others.items()},
        slices=slices([row.answer for row in rows], new.right, before.right) if kind == "labels" else (),
        kl_to_parent=divergence(scored, scores[candidate], scores[before.model]),
        bias=measure_bias(
            asker, () if passages else rows, {name: part.model for name, part in measured.items()}, longest, drawn
        ),
        examples=() if passages else _examples(rows, measured),
        num_left_out=num_left_out,
    )


# --- small things -----------------------------------------------------------------------------------------------------


def _examples(rows: Sequence[Row], measured: Mapping[str, ModelMeasurement]) -> tuple[Example, ...]:
    """First where the answers differ: there is something to see."""
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
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in numbers.items()}
