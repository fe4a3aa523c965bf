"""The gates: what a version must show on held-out rows, and what becomes of it.

Each gate has one of three outcomes. ``pass``: it is as good as is asked, beyond chance. ``refuse``: it is worse than is
allowed, beyond chance. ``inconclusive``: the rows cannot say; then users have to, in an experiment.

The decision depends on an evaluation and a policy only. A version that is refused is registered, too, with the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from graftwork.adapters.learning.gate_results import Outcome
from graftwork.training.evaluation.evaluation import Evaluation
from graftwork.training.evaluation.intervals import LEVEL, Interval, ratio_interval, sign_test
from graftwork.training.evaluation.metrics import RowLosses, Slice

_TOLERANCE: Final = 1e-9
"""Of sums in floating point: an increase as large as is allowed is allowed."""


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """The thresholds of the gates."""

    worse_than_parent: float = 0.02
    """Maximum decrease of the metric on held-out rows compared with the parent. A decrease beyond chance does not pass
    even within it."""

    general_loss: float = 0.02
    """Maximum relative increase of the loss on general texts, compared with the parent, and with the base."""

    replay_loss: float = 0.02
    """The same for held-out rows of earlier rounds."""

    worse_slice: float = 0.2
    """Maximum decrease of the metric of a class."""

    smallest_slice: int = 10
    """Minimum number of rows of a class for that gate."""

    fewest_rows: int = 20
    """Minimum number of held-out rows to pass."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The result of one gate: the measured value, the threshold (``asked``), and a sentence for people."""

    name: str
    outcome: Outcome
    found: float
    asked: float
    message: str

    @property
    def passed(self) -> bool:
        """Whether the gate passed."""
        return self.outcome == "pass"


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """The results of all gates for one candidate."""

    policy: GatePolicy
    gates: tuple[GateResult, ...]

    @property
    def outcome(self) -> Outcome:
        """``refuse`` if any gate refuses, ``pass`` if all pass, else ``inconclusive``."""
        if self.refusals:
            return "refuse"
        return "inconclusive" if self.doubts else "pass"

    @property
    def passed(self) -> bool:
        """Whether all gates passed."""
        return self.outcome == "pass"

    @property
    def refusals(self) -> tuple[str, ...]:
        """The messages of the gates that refuse."""
        return tuple(gate.message for gate in self.gates if gate.outcome == "refuse")

    @property
    def doubts(self) -> tuple[str, ...]:
        """The messages of the gates that are inconclusive."""
        return tuple(gate.message for gate in self.gates if gate.outcome == "inconclusive")

    def to_json(self) -> dict[str, Any]:
        """Return decision, policy and gates, for the version's metadata."""
        return {
            "outcome": self.outcome,
            "passed": self.passed,
            "refusals": list(self.refusals),
            "doubts": list(self.doubts),
            "policy": asdict(self.policy),
            "gates": [{**asdict(gate), "passed": gate.passed} for gate in self.gates],
        }


def decide_gates(evaluation: Evaluation, policy: GatePolicy | None = None) -> GateDecision:
    """Apply the gates to the evaluation of a candidate; with the default policy if None."""
    policy = policy or GatePolicy()
    gates = [_enough_rows(evaluation, policy)]
    if evaluation.metric is not None:
        gates.append(_better_than_base(evaluation))
        if evaluation.parent is not None:
            gates.append(_not_worse_than_parent(evaluation, policy))
    new, parent, base = evaluation.candidate, evaluation.parent, evaluation.base
    general, replay = (None, None) if parent is None else (parent.general, parent.replay)
    gates += _losses("general_loss", "general text", policy.general_loss, new.general, general, base.general)
    gates += _losses("replay_loss", "older rounds", policy.replay_loss, new.replay, replay, base.replay)
    gates += _slices(evaluation, policy)
    return GateDecision(policy=policy, gates=tuple(gates))


def _enough_rows(evaluation: Evaluation, policy: GatePolicy) -> GateResult:
    few = evaluation.num_rows < policy.fewest_rows
    message = f"{evaluation.num_rows} held-out rows, which is enough"
    if evaluation.metric is None:
        message = (
            "no held-out row says what is right, whoever answers, and no grader judges: which is better takes an "
            "experiment"
        )
        if evaluation.num_left_out:
            message = f"none of {evaluation.num_left_out} held-out rows fits into what the server serves"
    elif few:
        message = f"{evaluation.num_rows} held-out rows, and fewer than {policy.fewest_rows} let nothing pass"
    return GateResult(
        name="rows",
        outcome="inconclusive" if few else "pass",
        found=evaluation.num_rows,
        asked=policy.fewest_rows,
        message=message,
    )


def _metric(evaluation: Evaluation) -> str:
    """The metric, and by what it was judged if rows do not say what is right."""
    judge = evaluation.judged_by
    return f"{evaluation.metric}" if judge is None else f"{evaluation.metric} by the grader {judge}"


def _better_than_base(evaluation: Evaluation) -> GateResult:
    interval = evaluation.better["base"]
    outcome: Outcome = "pass" if interval.low > 0 else "refuse" if interval.high < 0 else "inconclusive"
    remarks = {"pass": "", "refuse": ": it is worse", "inconclusive": ": it is not certain that it is better"}
    return GateResult(
        name="better_than_base",
        outcome=outcome,
        found=interval.low,
        asked=0.0,
        message=f"{_metric(evaluation)} against the base {interval}{remarks[outcome]}",
    )


def _not_worse_than_parent(evaluation: Evaluation, policy: GatePolicy) -> GateResult:
    # Limits are whole numbers of rows divided once, as the threshold is a decimal fraction read once: equal is equal.
    interval, allowed = evaluation.better["parent"], policy.worse_than_parent
    outcome: Outcome = "inconclusive"
    remark = f": it is not certain that it is at most {allowed:g} worse"
    if interval.high < -allowed:
        outcome, remark = "refuse", f": it is worse, by more than the {allowed:g} that are allowed"
    elif interval.high < 0:
        remark = ": it is worse"
    elif interval.low >= -allowed:
        outcome, remark = "pass", ""
    return GateResult(
        name="not_worse_than_parent",
        outcome=outcome,
        found=interval.low,
        asked=-allowed,
        message=f"{_metric(evaluation)} against the parent {interval}{remark}",
    )


def _losses(
    name: str, noun: str, allowed: float, new: RowLosses | None, parent: RowLosses | None, base: RowLosses | None
) -> Iterator[GateResult]:
    """Yield the gates of a loss, against the parent and against the base; none where it was not measured.

    Against the base no more is allowed than against the parent, so that small increases do not add up over the rounds.
    What a parent has lost already, its children need not win back.
    """
    if new is None or base is None:
        return
    lost = 0.0
    if parent is not None:
        yield _increase(name, f"{noun} against the parent", new, parent, allowed)
        lost = _relative_increase(parent, base).mean
    yield _increase(f"{name}_to_base", f"{noun} against the base", new, base, max(allowed, lost))


def _increase(name: str, noun: str, new: RowLosses, old: RowLosses, allowed: float) -> GateResult:
    increase = _relative_increase(new, old)
    outcome: Outcome = "inconclusive"
    if increase.high <= allowed + _TOLERANCE:
        outcome = "pass"
    elif increase.low > allowed + _TOLERANCE:
        outcome = "refuse"
    remarks = {
        "pass": "",
        "refuse": f", and {allowed:+.1%} is the most that is allowed",
        "inconclusive": f", and it is not certain that it is at most the {allowed:+.1%} that are allowed",
    }
    limits = f"{increase.low:+.1%} to {increase.high:+.1%}" if math.isfinite(increase.low) else "of too few rows"
    return GateResult(
        name=name,
        outcome=outcome,
        found=increase.mean,
        asked=allowed,
        message=f"the loss on {noun} went from {old.mean:.4f} to {new.mean:.4f} ({increase.mean:+.1%}, {limits})"
        f"{remarks[outcome]}",
    )


def _relative_increase(new: RowLosses, old: RowLosses) -> Interval:
    return ratio_interval([one - other for one, other in zip(new.totals, old.totals, strict=True)], old.totals)


def _slices(evaluation: Evaluation, policy: GatePolicy) -> Iterator[GateResult]:
    """Yield the gate of the class that lost most, if any class is large enough.

    It refuses if a class lost more than is allowed and became worse beyond chance, by a test that is corrected for the
    number of classes (Bonferroni). Few classes have the rows to show that they lost nothing, so that is not asked.
    """
    large_enough = [part for part in evaluation.slices if part.num_rows >= policy.smallest_slice]
    if not large_enough:
        return
    level = LEVEL / len(large_enough)
    refused = [
        part
        for part in large_enough
        if _share_lost(part) > policy.worse_slice and sign_test(part.lost, part.won) <= level
    ]
    worst = max(refused or large_enough, key=_share_lost)
    remark = f", and {policy.worse_slice:g} is the most that a class may lose beyond chance" if refused else ""
    yield GateResult(
        name="slices",
        outcome="refuse" if refused else "pass",
        found=-_share_lost(worst),
        asked=-policy.worse_slice,
        message=f"the class {worst.label!r} changed most for the worse: {worst.against} to {worst.candidate} right of "
        f"{worst.num_rows} rows{remark}",
    )


def _share_lost(part: Slice) -> float:
    return (part.lost - part.won) / part.num_rows
