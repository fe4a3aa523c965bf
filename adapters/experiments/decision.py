"""Applies an experiment's decision rule to a reading: promote, roll back, widen, end or raise an alarm."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from graftwork.adapters.experiments.analysis import ExperimentAnalysis
from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.readings import Comparison, GuardrailReading, Reading


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the rule recommends.

    Attributes:
        kind: ``promote`` or ``roll_back`` an arm, ``end`` the experiment, ``widen`` an arm to ``weight``, or raise an
            ``alarm``, after which nothing else is recommended.
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
    """What the rule recommends now, the most urgent first. Guardrails come before everything else.

    Args:
        experiment: The experiment.
        analysis: Its statistics, for the number of units in the current epoch.
        reading: Its current reading.
        now: The time, in UTC.
    """
    plan, rule = experiment.plan, experiment.plan.rule
    running = {arm.name for arm in plan.treatments if experiment.weight(arm.name) > 0}
    recommended = [
        Recommendation(kind="roll_back", arm=rail.arm, is_breach=True, reason=_breach(rail))
        for rail in reading.guardrails
        if rail.breached and rail.arm in running
    ]
    if reading.sample_ratio.mismatch:
        what = "units, or of the rated ones," if plan.metric.rated else "units"
        reason = (
            f"the arms' shares of the {what} are not what their weights promise: something but chance decides who is "
            "counted where, and no difference can be trusted"
        )
        return [*recommended, Recommendation(kind="alarm", reason=reason)]
    for found in reading.comparisons:
        low, high = found.improvement_lower, found.improvement_upper
        if found.arm not in running or low is None or high is None:
            continue
        if rule.promote_above is not None and low >= rule.promote_above:
            why = f"better than {plan.control.name} by more than {rule.promote_above:g}: {describe(plan.metric, found)}"
            recommended.append(Recommendation(kind="promote", arm=found.arm, reason=why))
        elif rule.stop_below is not None and high <= rule.stop_below:
            short = "worse than" if rule.stop_below <= 0 else f"not better by {rule.stop_below:g} than"
            why = f"{short} {plan.control.name}: {describe(plan.metric, found)}"
            recommended.append(Recommendation(kind="roll_back", arm=found.arm, reason=why))
    if rule.max_units is not None and reading.units >= rule.max_units:
        recommended.append(Recommendation(kind="end", reason=f"undecided after {reading.units} units"))
    elif rule.until is not None and now >= rule.until:
        recommended.append(Recommendation(kind="end", reason=f"undecided at {rule.until:%Y-%m-%d %H:%M} UTC"))
    if not recommended and (wider := _next_weight(experiment, analysis, now)) is not None:
        recommended.append(wider)
    return recommended


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
