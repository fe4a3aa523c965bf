"""The experiment that a round's candidate has to win: its settings in a learning policy, and the plan they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import (
    DEFAULT_GUARDRAILS,
    Arm,
    DecisionRule,
    ExperimentPlan,
    Guardrail,
    Ratings,
    validate_plan,
)
from graftwork.adapters.names import LIVE

DEFAULT_DAYS: Final = 14.0
MAX_DAYS: Final = 365.0
MAX_UNITS: Final = 10_000_000


@dataclass(frozen=True, kw_only=True)
class RoundExperiment:
    """How a candidate that the gates do not refuse is compared with the live version.

    The comparison decides by itself: a candidate that is surely better becomes live, one that is surely worse is taken
    out at once, as one that breaches a guardrail.

    Attributes:
        metric: What is compared; ``None``: what users say most often, see ``usual_metric``.
        weight: The candidate's share of the users.
        guardrails: Metrics that must not become worse.
        ratings: Whether all ratings count, or only those that were asked for.
        window_seconds: How long a user's requests and feedback count; ``None``: as long as fits the metric.
        max_units: So many users without a verdict end it; ``None``: their number does not.
        days: So long without a verdict ends it.
        alpha: The largest probability of a wrong verdict.
    """

    metric: Metric | None = None
    weight: float = 0.5
    guardrails: tuple[Guardrail, ...] = DEFAULT_GUARDRAILS
    ratings: Ratings = "all"
    window_seconds: float | None = None
    max_units: int | None = None
    days: float = DEFAULT_DAYS
    alpha: float = 0.05

    def check(self) -> None:
        """Check the settings by the plan that they make.

        Raises:
            InvalidRequest: An experiment cannot have them.
        """
        if not 0 < self.weight < 1:
            raise InvalidRequest(
                "weight is the candidate's share of the users: above 0 and below 1", param="experiment.weight"
            )
        if not 0 < self.days <= MAX_DAYS:
            raise InvalidRequest(f"days is above 0 and at most {MAX_DAYS:g}", param="experiment.days")
        if self.max_units is not None and self.max_units > MAX_UNITS:
            raise InvalidRequest(f"max_units is at most {MAX_UNITS}", param="experiment.max_units")
        metric = self.metric or Metric.of("thumb")
        plan = self.plan("any", live=1, candidate=2, metric=metric, now=datetime.now(UTC))
        try:
            validate_plan(plan)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param=f"experiment.{error.param}", code=error.code) from None

    def plan(self, adapter: str, *, live: int, candidate: int, metric: Metric, now: datetime) -> ExperimentPlan:
        """The plan of the experiment.

        Args:
            adapter: The adapter.
            live: The number of the live version.
            candidate: The number of the version that is compared with it.
            metric: What is compared.
            now: When it starts.
        """
        return ExperimentPlan(
            adapter=adapter,
            arms=(
                Arm(name=f"{adapter}@{live}", version=live, alias=LIVE, weight=1 - self.weight),
                Arm(name=f"{adapter}@{candidate}", version=candidate, weight=self.weight),
            ),
            metric=metric,
            guardrails=self.guardrails,
            ratings=self.ratings,
            rule=DecisionRule(max_units=self.max_units, until=now + timedelta(days=self.days), automatic=True),
            window_seconds=self.window_seconds,
            alpha=self.alpha,
            reserve=0.0,  # it is about one candidate, and ends with it
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as they are stored."""
        stored = asdict(self)
        stored["metric"] = None if self.metric is None else self.metric.to_json()
        stored["guardrails"] = [{**asdict(rail), "metric": rail.metric.to_json()} for rail in self.guardrails]
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        metric = stored["metric"]
        return cls(
            **{
                **stored,
                "metric": None if metric is None else Metric.from_json(metric),
                "guardrails": tuple(
                    Guardrail(**{**rail, "metric": Metric.from_json(rail["metric"])}) for rail in stored["guardrails"]
                ),
            }
        )


def usual_metric(judgements: Mapping[str, int]) -> Metric:
    """The metric of what users say most often: thumbs, scores or corrections.

    Args:
        judgements: How many there are of each kind.
    """
    names = {"thumb": "thumb", "score": "score", "correction": "correction_rate"}
    kind = max(names, key=lambda kind: judgements.get(kind, 0))
    return Metric.of(names[kind])
