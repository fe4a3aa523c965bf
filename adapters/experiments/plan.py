"""The plan of an experiment: arms, metric, guardrails, decision rule, ramp. Validated as a whole; immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

from graftwork.adapters import names
from graftwork.adapters.errors import Conflict, InvalidRequest
from graftwork.adapters.experiments.metrics import Metric

Allocation = Literal["fixed", "thompson"]
"""Whether weights are set by operators, or follow the outcomes by Thompson sampling."""
Unrated = Literal["leave_out", "neutral"]
"""What to do with units without feedback: leave them out, or count them as the middle of the bounds."""
Ratings = Literal["all", "asked"]
"""Whose feedback counts: everybody's, or only what a random draw asked for, whoever likes to rate."""

Unit = Literal["user", "episode"]
"""What is randomized: a user (or else a session, or a single request), or an episode of several requests."""
Covariate = Literal["past", "none"]
"""What is known of a unit before it has an arm: its own mean of the metric before the experiment, or nothing."""

BASE: Final = "base"
"""The version of an arm that is the base without any adapter."""

MAX_ARMS: Final = 8
MAX_SYSTEM_CHARS: Final = 1 << 16
MAX_WINDOW_SECONDS: Final = 30 * 86_400.0
MAX_LEARNED_DAYS: Final = 365.0
THOMPSON_FLOOR: Final = 0.05
"""The least weight of an arm under Thompson sampling, so that an improvement would be noticed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to answer.

    Attributes:
        name: Its name in answers, ids and readings.
        version: The number of the adapter's version; ``None`` is the bare base.
        alias: The alias by which the version was chosen.
        weight: Its share of the units.
        shadow: Instead of a weight: the share of the requests of which it gets a copy.
        system: A system prompt instead of the request's.
        sampling: Fields of the request that it overrides.
        joined: The epoch with which it joined a running experiment; ``None``: it was there from the start.
    """

    name: str
    version: int | None
    alias: str | None = None
    weight: float = 0.0
    shadow: float | None = None
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    joined: int | None = None

    @property
    def is_promotable(self) -> bool:
        """Whether it is a version and nothing else, so that an alias can point to it."""
        return self.version is not None and self.system is None and not self.sampling


@dataclass(frozen=True, kw_only=True)
class Guardrail:
    """No treatment may be worse than ``limit``, or worse than the control by more than ``margin``.

    ``alpha`` is the largest probability of a false alarm, per treatment.
    """

    metric: Metric
    limit: float | None = None
    margin: float | None = None
    alpha: float = 0.01


@dataclass(frozen=True, kw_only=True)
class DecisionRule:
    """When an experiment is decided. An improvement is a difference for the better.

    Attributes:
        promote_above: Promote a treatment once its improvement is surely above this; ``None``: never.
        stop_below: Roll one back once its improvement is surely below this; ``None``: never.
        max_units: End undecided after so many units.
        until: End undecided at this time.
        automatic: Apply promotions and roll-backs; otherwise they are only advice. The end comes in either case.
    """

    promote_above: float | None = 0.0
    stop_below: float | None = 0.0
    max_units: int | None = None
    until: datetime | None = None
    automatic: bool = False


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Weights of the one treatment, one after another.

    The next one follows when ``min_units`` units and ``min_seconds`` have passed and no guardrail was breached.
    """

    weights: tuple[float, ...]
    min_units: int = 100
    min_seconds: float = 0.0


DEFAULT_GUARDRAILS: Final = (Guardrail(metric=Metric.of("error_rate"), margin=0.05),)


@dataclass(frozen=True, kw_only=True)
class ExperimentPlan:
    """The plan of an experiment. The first arm without ``shadow`` is the control.

    Attributes:
        adapter: The adapter whose requests take part.
        arms: At least two.
        metric: The primary metric.
        guardrails: Metrics that must not become worse.
        rule: When to decide.
        ramp: Weights of the treatment over time.
        unit: What is randomized and counts once.
        window_seconds: How long a unit's requests and feedback count, from its first request on; ``None`` before the
            start: as long as fits the metric.
        alpha: The largest probability of taking a treatment for better that is not, or for worse that is not.
        reserve: The part of ``alpha`` that is kept for arms that join later.
        unrated: What to do with units without feedback, where the metric is about feedback.
        covariate: What the units' outcomes are compared with, beside each other.
        ratings: Which feedback counts, for every metric that is about feedback.
        learned_days: How long a user's requests do not count after an answer that an arm's version learned from.
        allocation: Who sets the weights.
    """

    adapter: str
    arms: tuple[Arm, ...]
    metric: Metric
    guardrails: tuple[Guardrail, ...] = DEFAULT_GUARDRAILS
    rule: DecisionRule = DecisionRule()
    ramp: Ramp | None = None
    unit: Unit = "user"
    window_seconds: float | None = None
    alpha: float = 0.05
    reserve: float = 0.2
    unrated: Unrated = "leave_out"
    covariate: Covariate = "past"
    ratings: Ratings = "all"
    learned_days: float = 7.0
    allocation: Allocation = "fixed"

    @cached_property
    def control(self) -> Arm:
        """The arm that treatments are compared with."""
        return next(arm for arm in self.arms if arm.shadow is None)

    @cached_property
    def treatments(self) -> tuple[Arm, ...]:
        """The other arms with a weight."""
        return tuple(arm for arm in self.arms if arm.shadow is None and arm is not self.control)

    @cached_property
    def shadows(self) -> tuple[Arm, ...]:
        """The arms that get copies of requests."""
        return tuple(arm for arm in self.arms if arm.shadow is not None)

    @cached_property
    def chat_only(self) -> bool:
        """Whether an arm has a system prompt, which text completions cannot have: these then do not take part."""
        return any(arm.system is not None for arm in self.arms)

    @property
    def window(self) -> timedelta:
        """How long a unit's requests and feedback count, of an experiment that was started."""
        assert self.window_seconds is not None
        return timedelta(seconds=self.window_seconds)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The primary metric, then the guardrails'."""
        return (self.metric, *(guardrail.metric for guardrail in self.guardrails))

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            InvalidRequest: There is none.
        """
        found = next((arm for arm in self.arms if arm.name == name), None)
        if found is None:
            there = ", ".join(arm.name for arm in self.arms)
            raise InvalidRequest(f"there is no arm {names.quoted(name)}: the arms are {there}", param="arm")
        return found

    def alpha_of(self, arm: Arm) -> float:
        """The error rate at which a treatment is compared with the control; all together do not exceed ``alpha``.

        The treatments of the start share what is not reserved, in equal parts. Of the reserve, the first one that joins
        gets half, the next a quarter, and so on. Nobody's part changes when another joins: intervals that were read
        hold.
        """
        joined = [each for each in self.treatments if each.joined is not None]
        if arm.joined is None:
            return self.alpha * (1 - self.reserve) / max(len(self.treatments) - len(joined), 1)
        return float(self.alpha * self.reserve * 0.5 ** (1 + joined.index(arm)))

    def first_weights(self) -> dict[str, float]:
        """The treatments' weights at the start."""
        if self.ramp is not None:
            return {self.treatments[0].name: self.ramp.weights[0]}
        return {arm.name: arm.weight for arm in self.treatments if arm.joined is None}

    def to_json(self) -> dict[str, Any]:
        """The plan as it is stored."""
        stored = asdict(self)
        stored["metric"] = self.metric.to_json()
        for guardrail, plain in zip(stored["guardrails"], self.guardrails, strict=True):
            guardrail["metric"] = plain.metric.to_json()
        if self.rule.until is not None:
            stored["rule"]["until"] = self.rule.until.timestamp()
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ExperimentPlan:
        """The inverse of ``to_json``."""
        rule, ramp = dict(stored["rule"]), stored["ramp"]
        if rule["until"] is not None:
            rule["until"] = datetime.fromtimestamp(rule["until"], UTC)
        return cls(
            **{
                # What plans of earlier versions lack: they compared without covariates, and reserved nothing.
                "covariate": "none",
                "reserve": 0.0,
                **stored,
                "arms": tuple(Arm(**arm) for arm in stored["arms"]),
                "metric": Metric.from_json(stored["metric"]),
                "guardrails": tuple(
                    Guardrail(**{**guardrail, "metric": Metric.from_json(guardrail["metric"])})
                    for guardrail in stored["guardrails"]
                ),
                "rule": DecisionRule(**rule),
                "ramp": None if ramp is None else Ramp(**{**ramp, "weights": tuple(ramp["weights"])}),
            }
        )


def validate_plan(plan: ExperimentPlan) -> ExperimentPlan:
    """Validate a plan and fill in the control's weight.

    Raises:
        InvalidRequest: The plan is contradictory; ``param`` names the field.
    """
    _check_arms(plan)
    if plan.ramp is not None:
        _check_ramp(plan, plan.ramp)
    weights = plan.first_weights()
    left = 1 - sum(weights.values())
    if not -1e-9 <= left <= 1 or (plan.control.weight and abs(plan.control.weight - left) > 1e-6):
        raise InvalidRequest(
            f"the weights add up to {plan.control.weight + sum(weights.values()):g}: they must add up to 1 "
            "(leave the first arm's out, and it gets what the others leave)",
            param="arms",
        )
    for place, guardrail in enumerate(plan.guardrails):
        _check_guardrail(guardrail, f"guardrails[{place}]")
    _check_rule(plan)
    if plan.window_seconds is not None and not 0 <= plan.window_seconds <= MAX_WINDOW_SECONDS:
        raise InvalidRequest("window_seconds is from 0 to 30 days", param="window_seconds")
    if not 0 <= plan.learned_days <= MAX_LEARNED_DAYS:
        raise InvalidRequest("learned_days is from 0 to 365", param="learned_days")
    if not 0 < plan.alpha <= 0.5:
        raise InvalidRequest("alpha is above 0 and at most 0.5: 0.05, say", param="alpha")
    if not 0 <= plan.reserve < 1:
        raise InvalidRequest("reserve is the part of alpha for arms that join: from 0, below 1", param="reserve")
    if plan.unrated == "neutral" and (not plan.metric.rated or plan.metric.bounds is None):
        raise InvalidRequest(
            "unrated says what becomes of units that nobody rated: it is for thumb, score, and metadata with a range",
            param="unrated",
        )
    if plan.ratings == "asked" and all(metric.is_per_request for metric in plan.metrics):
        raise InvalidRequest(
            "ratings says whose feedback counts, and no metric of this plan is about feedback: leave it out",
            param="ratings",
        )
    if plan.allocation == "thompson" and plan.metric.bounds is None:
        raise InvalidRequest(
            f"Thompson sampling needs a metric with bounds, and {plan.metric.label} has none: give over or range",
            param="allocation",
        )
    if plan.allocation == "thompson" and not any(weights.values()):
        raise InvalidRequest(
            "Thompson sampling shifts weight between the control and treatments that have some, and none has any: give "
            "one a weight, or leave allocation out",
            param="allocation",
        )
    shares = {plan.control.name: max(left, 0.0), **weights}
    return replace(plan, arms=tuple(replace(arm, weight=shares.get(arm.name, 0.0)) for arm in plan.arms))


def validate_joining(plan: ExperimentPlan, arm: Arm, weights: Mapping[str, float]) -> ExperimentPlan:
    """Validate that a treatment may join, and return the plan with it.

    Args:
        plan: Of the running experiment.
        arm: With its weight, which it takes from the control.
        weights: The current ones.

    Raises:
        InvalidRequest: The arm contradicts the plan; ``param`` names the field.
        Conflict: The plan reserved nothing for arms that join.
    """
    if plan.reserve == 0:
        raise Conflict(
            "this experiment shares all of its alpha among the arms of its start, so that none can join: start another "
            "one with all arms, and with a reserve if more are to come",
            code="no_reserve",
        )
    if arm.shadow is not None:
        raise InvalidRequest("an arm that joins has a weight: shadow arms are there from the start", param="shadow")
    if not 0 < arm.weight <= 1:
        raise InvalidRequest("the weight of an arm that joins is above 0 and at most 1: 0.2, say", param="weight")
    room = weights[plan.control.name] - arm.weight
    if plan.ramp is not None and (now := weights.get(plan.treatments[0].name, 0.0)) > 0:
        room -= max(plan.ramp.weights[-1] - now, 0.0)
    if room < 1e-6:
        raise InvalidRequest(
            f"the control has {weights[plan.control.name]:g}, of which the arm takes {arm.weight:g} and a ramp what it "
            "grows by: something must be left, since the arm is compared with units of the control that ask meanwhile",
            param="weight",
        )
    grown = replace(plan, arms=(*plan.arms, arm))
    _check_arms(grown, joining=True)
    _check_rule(grown)
    return grown


def _check_arms(plan: ExperimentPlan, *, joining: bool = False) -> None:
    assigned_arms = [arm for arm in plan.arms if arm.shadow is None]
    if not assigned_arms or len(plan.arms) < 2 or len(plan.arms) > MAX_ARMS:
        raise InvalidRequest(
            f"an experiment has 2 to {MAX_ARMS} arms, the first one without shadow being the control", param="arms"
        )
    seen: set[str] = set()
    for place, arm in enumerate(plan.arms):
        at = "" if joining else f"arms[{place}]."
        if arm.name in seen:
            raise InvalidRequest(
                f"two arms are called {arm.name!r}: give arms of the same version a name each", param=f"{at}name"
            )
        seen.add(arm.name)
        if arm.shadow is not None and (arm.weight or not 0 < arm.shadow <= 1):
            raise InvalidRequest(
                "a shadow arm has no weight, and shadow says which share of the requests it gets a copy of: above 0, "
                "at most 1",
                param=f"{at}shadow",
            )
        if not 0 <= arm.weight <= 1:
            raise InvalidRequest("a weight is from 0 to 1", param=f"{at}weight")
        if arm.system is not None:
            names.check_text(arm.system, param=f"{at}system", max_chars=MAX_SYSTEM_CHARS)


def _check_ramp(plan: ExperimentPlan, ramp: Ramp) -> None:
    steps = ramp.weights
    growing = all(before < after for before, after in pairwise((0.0, *steps)))
    if not steps or not growing or steps[-1] > 1:
        raise InvalidRequest(
            "a ramp's weights grow, from above 0 to 1 at most, as in [0.01, 0.1, 0.5]", param="ramp.weights"
        )
    if len(plan.treatments) != 1 or plan.treatments[0].weight not in (0.0, steps[0]):
        raise InvalidRequest(
            "a ramp is for one treatment beside the control, and sets its weight: leave the arms' weights out",
            param="ramp",
        )
    if plan.allocation != "fixed":
        raise InvalidRequest("a ramp and Thompson sampling both set the weights: choose one", param="ramp")
    if ramp.min_units < 1 or ramp.min_seconds < 0:
        raise InvalidRequest("min_units is at least 1, min_seconds at least 0", param="ramp")


def _check_guardrail(guardrail: Guardrail, param: str) -> None:
    metric = guardrail.metric
    if metric.bounds is None:
        raise InvalidRequest(
            f"a guardrail needs a metric with bounds, and {metric.label} has none: give over or range", param=param
        )
    if (guardrail.limit is None) == (guardrail.margin is None):
        raise InvalidRequest("a guardrail has a limit, or a margin to the control, one of the two", param=param)
    low, high = metric.bounds
    if guardrail.limit is not None and not low < guardrail.limit < high:
        raise InvalidRequest(f"the limit of {metric.label} lies between {low:g} and {high:g}", param=f"{param}.limit")
    if guardrail.margin is not None and not 0 <= guardrail.margin < high - low:
        raise InvalidRequest(f"the margin is at least 0 and below {high - low:g}", param=f"{param}.margin")
    if not 0 < guardrail.alpha <= 0.5:
        raise InvalidRequest("alpha is above 0 and at most 0.5: 0.01, say", param=f"{param}.alpha")


def _check_rule(plan: ExperimentPlan) -> None:
    rule = plan.rule
    if rule.max_units is not None and rule.max_units < 1:
        raise InvalidRequest("max_units is at least 1", param="decision.max_units")
    if not plan.treatments:
        return
    if plan.metric.bounds is not None:
        reach = plan.metric.bounds[1] - plan.metric.bounds[0]
        for field_ in ("promote_above", "stop_below"):
            if not -reach < (getattr(rule, field_) or 0.0) < reach:
                raise InvalidRequest(f"no difference can be that large: {reach:g} is all", param=f"decision.{field_}")
    if rule.promote_above is not None and rule.stop_below is not None and rule.stop_below > rule.promote_above:
        raise InvalidRequest("stop_below is at most promote_above", param="decision.stop_below")
    if rule.automatic and rule.promote_above is not None:
        for arm in plan.treatments:
            if not arm.is_promotable:
                raise InvalidRequest(
                    f"no alias can point at the arm {arm.name}, which is more or less than a version: let the decision "
                    "be advice, or set promote_above to null",
                    param="decision.automatic",
                )
