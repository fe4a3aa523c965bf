"""The gates: quality criteria that a version must meet before an alias is moved to it automatically.

The decision depends on an evaluation and a policy only. A version that is refused is registered, too, with the reasons.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from graftwork.training.evaluation.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """The thresholds of the gates."""

    worse_than_parent: float = 0.02
    """Maximum decrease of the metric on held-out rows compared with the parent, provided that it is within the
    confidence interval. A significant decrease is never allowed."""

    general_loss: float = 0.02
    """Maximum relative increase of the loss on general texts, compared with the parent, or with the base for a version
    without one."""

    replay_loss: float = 0.02
    """The same for held-out rows of earlier rounds."""

    worse_slice: float = 0.2
    """Maximum decrease of the metric of a class."""

    smallest_slice: int = 10
    """Minimum number of rows of a class for that gate."""

    fewest_rows: int = 20
    """Minimum number of held-out rows."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The result of one gate: the measured value, the threshold (``asked``), and a sentence for people."""

    name: str
    passed: bool
    found: float
    asked: float
    message: str


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """The results of all gates for one candidate."""

    policy: GatePolicy
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def refusals(self) -> tuple[str, ...]:
        """The messages of the gates that did not pass."""
        return tuple(gate.message for gate in self.gates if not gate.passed)

    def to_json(self) -> dict[str, Any]:
        """Return decision, policy and gates, for the version's metadata."""
        return {
            "passed": self.passed,
            "refusals": list(self.refusals),
            "policy": asdict(self.policy),
            "gates": [asdict(gate) for gate in self.gates],
        }


def decide_gates(evaluation: Evaluation, policy: GatePolicy | None = None) -> GateDecision:
    """Apply the gates to the evaluation of a candidate; with the default policy if None."""
    policy = policy or GatePolicy()
    gates = [_enough_rows(evaluation, policy), _better_than_base(evaluation)]
    if evaluation.parent is not None:
        gates.append(_not_worse_than_parent(evaluation, policy))
    new, before = evaluation.candidate, evaluation.before
    gates.append(_increase("general_loss", "general text", new.general_loss, before.general_loss, policy.general_loss))
    if new.replay_loss is not None and before.replay_loss is not None:
        gates.append(_increase("replay_loss", "older rounds", new.replay_loss, before.replay_loss, policy.replay_loss))
    gates += _slices(evaluation, policy)
    return GateDecision(policy=policy, gates=tuple(gates))


def _enough_rows(evaluation: Evaluation, policy: GatePolicy) -> GateResult:
    few = evaluation.num_rows < policy.fewest_rows
    return GateResult(
        name="rows",
        passed=not few,
        found=evaluation.num_rows,
        asked=policy.fewest_rows,
        message=f"{evaluation.num_rows} held-out rows, "
        + (f"and with fewer than {policy.fewest_rows} nothing can be said" if few else "which is enough"),
    )


def _better_than_base(evaluation: Evaluation) -> GateResult:
    interval = evaluation.better["base"]
    ok = interval.low > 0
    return GateResult(
        name="better_than_base",
        passed=ok,
        found=interval.low,
        asked=0.0,
        message=f"{evaluation.metric} against the base {interval}"
        + ("" if ok else ": it is not certain that it is better, its interval must lie above 0"),
    )


def _not_worse_than_parent(evaluation: Evaluation, policy: GatePolicy) -> GateResult:
    interval = evaluation.better["parent"]
    ok = interval.high >= 0 and interval.mean >= -policy.worse_than_parent
    return GateResult(
        name="not_worse_than_parent",
        passed=ok,
        found=interval.mean,
        asked=-policy.worse_than_parent,
        message=f"{evaluation.metric} against the parent {interval}"
        + ("" if ok else f": it is worse, and at most {policy.worse_than_parent:g} within chance is allowed"),
    )


def _increase(name: str, noun: str, new: float, old: float, allowed: float) -> GateResult:
    increase = (new - old) / old if old > 0 else float(new > old)
    ok = increase <= allowed
    return GateResult(
        name=name,
        passed=ok,
        found=increase,
        asked=allowed,
        message=f"the loss on {noun} went from {old:.4f} to {new:.4f} ({increase:+.1%})"
        + ("" if ok else f", and {allowed:+.1%} is the most that is allowed"),
    )


def _slices(evaluation: Evaluation, policy: GatePolicy) -> list[GateResult]:
    """Return the gate of the class with the largest decrease, if any class is large enough."""
    large_enough = [part for part in evaluation.slices if part.num_rows >= policy.smallest_slice]
    if not large_enough:
        return []
    worst = min(large_enough, key=lambda part: part.candidate - part.against)
    change = worst.candidate - worst.against
    ok = change >= -policy.worse_slice
    return [
        GateResult(
            name="slices",
            passed=ok,
            found=change,
            asked=-policy.worse_slice,
            message=f"the class {worst.label!r} changed most for the worse: {worst.against:.2f} to "
            f"{worst.candidate:.2f} of {worst.num_rows} rows"
            + ("" if ok else f", and a loss of {policy.worse_slice:g} is the most that is allowed"),
        )
    ]
