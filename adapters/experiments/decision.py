"""Applies an experiment's decision rule to a reading: promote, roll back, widen, end or raise an alarm."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from graftwork.adapters.experiments.analysis import ExperimentAnalysis
from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import ExperimentPlan
from graftwork.adapters.experiments.readings import Comparison, GuardrailReading, Reading


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the rule recommends.

    Attributes:
        kind: ``promote`` or ``roll_back`` an arm, ``end`` the experiment undecided, ``widen`` an arm to ``weight``, or
            raise an ``alarm``, after which no difference between arms is relied on.
        reason: In words.
        arm: The arm that it is about.
        weight: The new weight, for ``widen``.
        is_breach: Whether a guardrail is the reason.
    """

    kind: Literal["promote", "roll_back", "end", "widen", "alarm"]
    reason: str
    arm: str | None = None
    weight: float | None = None
    is_breach: bool = False


def recommend(
    experiment: Experiment, analysis: ExperimentAnalysis, reading: Reading, now: datetime
) -> list[Recommendation]:
    """What the rule recommends now, the most urgent first: guardrails, an alarm, verdicts, the end, the next weight.

    The end comes after so many units or at its time, whatever else there is: no alarm keeps an experiment going.

    Args:
        experiment: The experiment.
        analysis: Its statistics, for the number of units in the current epoch.
        reading: Its current reading.
        now: The time, in UTC.
    """
    plan = experiment.plan
    running = {arm.name for arm in plan.treatments if experiment.weight(arm.name) > 0}
    recommended = [
        Recommendation(kind="roll_back", arm=rail.arm, is_breach=True, reason=_breach(rail))
        for rail in reading.guardrails
        if rail.breached and rail.arm in running
    ]
    if reading.sample_ratio.mismatch:
        recommended.append(Recommendation(kind="alarm", reason=_mismatch(plan)))
    else:
        recommended += _verdicts(plan, reading, running)
    if (moment := _end(plan, reading, now)) is not None:
        recommended.append(Recommendation(kind="end", reason=f"undecided {moment}"))
    if not recommended and (wider := _next_weight(experiment, analysis, now)) is not None:
        recommended.append(wider)
    return recommended


def _mismatch(plan: ExperimentPlan) -> str:
    what = "units, or of the rated ones," if plan.metric.rated and plan.unrated == "leave_out" else "units"
    return (
        f"the arms' shares of the {what} are not what their weights promise: something but chance decides who is "
        "counted where, and no difference can be trusted"
    )


def _verdicts(plan: ExperimentPlan, reading: Reading, running: Collection[str]) -> list[Recommendation]:
    """What the comparisons of running arms say: which to roll back, and then the one to promote, if there is any.

    Several arms may be better than the control. Each was compared at its part of alpha, so any may be chosen of them.
    """
    rule, control = plan.rule, plan.control.name
    harmful, better = [], []
    for found in reading.comparisons:
        low, high = found.improvement_lower, found.improvement_upper
        if found.arm not in running or low is None or high is None:
            continue
        if rule.promote_above is not None and low >= rule.promote_above:
            better.append(found)
        elif rule.stop_below is not None and high <= rule.stop_below:
            short = "worse than" if rule.stop_below <= 0 else f"not better by {rule.stop_below:g} than"
            reason = f"{short} {control}: {describe(plan.metric, found)}"
            harmful.append(Recommendation(kind="roll_back", arm=found.arm, reason=reason))
    if not better:
        return harmful
    sign = 1 if plan.metric.goal == "up" else -1
    # Of equal ones the first of the plan.
    best = max(better, key=lambda found: (sign * (found.difference or 0.0), found.improvement_lower or 0.0))
    reason = f"better than {control} by more than {rule.promote_above:g}: {describe(plan.metric, best)}"
    if len(better) > 1:
        reason += f"; the best of {', '.join(found.arm for found in better)}"
    return [*harmful, Recommendation(kind="promote", arm=best.arm, reason=reason)]


def _end(plan: ExperimentPlan, reading: Reading, now: datetime) -> str | None:
    """When the experiment ends without a verdict, in words; ``None``: not yet."""
    rule = plan.rule
    if rule.max_units is not None and reading.units >= rule.max_units:
        return f"after {reading.units} units"
    if rule.until is not None and now >= rule.until:
        return f"at {rule.until:%Y-%m-%d %H:%M} UTC"
    return None


def describe(metric: Metric, found: Comparison) -> str:
    """A comparison in words, for histories."""
    if found.difference is None or found.lower is None or found.upper is None:
        return f"{metric.label}: nothing is known after {found.units} units"
    return (
        f"{metric.label} {found.difference:+.4g}, between {found.lower:+.4g} and {found.upper:+.4g}, "
        f"after {found.units} units"
    )


def _next_weight(experiment: Experiment, analysis: ExperimentAnalysis, now: datetime) -> Recommendation | None:
    ramp, epoch = experiment.plan.ramp, experiment.epochs[-1]
    if ramp is None:
        return None
    arm = experiment.plan.treatments[0].name
    weight = experiment.weight(arm)
    wider = next((step for step in ramp.weights if step > weight + 1e-9), None)
    seen = analysis.units_in_epoch(epoch.number, arm)
    waited = (now - epoch.at).total_seconds()
    if weight == 0 or wider is None or seen < ramp.min_units or waited < ramp.min_seconds:
        return None
    reason = f"{seen} units at {weight:.3g} and no guardrail breached"
    return Recommendation(kind="widen", arm=arm, weight=wider, reason=reason)


def _breach(rail: GuardrailReading) -> str:
    bound = (
        f"beyond {rail.limit:g}" if rail.limit is not None else f"worse than the control by more than {rail.margin:g}"
    )
    return (
        f"guardrail: {rail.metric} is {bound} (evidence {rail.evidence:.3g}, {rail.threshold:.3g} were enough, after "
        f"{rail.observations} observations)"
    )
