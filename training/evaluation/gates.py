"""What a version must show before an alias may move to it: the one place where that is decided.

Pure functions of an evaluation. A version that is refused is registered all the same, with the reasons; no alias moves
to it by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from graftwork.training.evaluation.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """How much is asked of a candidate."""

    worse_than_parent: float = 0.02
    """By how much the metric on held-out rows may be below the parent's on average, where the interval leaves it open
    whether it is worse at all. Where the interval says so, nothing is allowed."""

    general_loss: float = 0.02
    """Share by which the loss on general text may be above the parent's, or the base's for a version without one."""

    replay_loss: float = 0.02
    """The same on held-out rows of older rounds."""

    worse_slice: float = 0.2
    """By how much the metric of a class may be below what it was."""

    smallest_slice: int = 10
    """Rows a class must have to be looked at."""

    fewest_rows: int = 20
    """Held-out rows without which nothing can be said."""


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate: what was found, what was asked, and that in a sentence."""

    name: str
    passed: bool
    found: float
    asked: float
    message: str


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """All gates of one candidate."""

    policy: GatePolicy
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Which gates refuse, and by how much; for people."""
        return tuple(gate.message for gate in self.gates if not gate.passed)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "refusals": list(self.refusals),
            "policy": asdict(self.policy),
            "gates": [asdict(gate) for gate in self.gates],
        }


def decide_gates(evaluation: Evaluation, policy: GatePolicy | None = None) -> GateDecision:
    """Hold a candidate against the policy."""
    policy = policy or GatePolicy()
    gates = [_enough(evaluation, policy), _better_than_base(evaluation)]
    if evaluation.parent is not None:
        gates.append(_not_worse_than_parent(evaluation, policy))
    new, before = evaluation.candidate, evaluation.before
    gates.append(_risen("general_loss", "general text", new.general_loss, before.general_loss, policy.general_loss))
    if new.replay_loss is not None and before.replay_loss is not None:
        gates.append(_risen("replay_loss", "older rounds", new.replay_loss, before.replay_loss, policy.replay_loss))
    gates += _slices(evaluation, policy)
    return GateDecision(policy=policy, gates=tuple(gates))


def _enough(evaluation: Evaluation, policy: GatePolicy) -> GateResult:
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


def _risen(name: str, noun: str, new: float, old: float, allowed: float) -> GateResult:
    rise = (new - old) / old if old > 0 else float(new > old)
    ok = rise <= allowed
    return GateResult(
        name=name,
        passed=ok,
        found=rise,
        asked=allowed,
        message=f"the loss on {noun} went from {old:.4f} to {new:.4f} ({rise:+.1%})"
        + ("" if ok else f", and {allowed:+.1%} is the most that is allowed"),
    )


def _slices(evaluation: Evaluation, policy: GatePolicy) -> list[GateResult]:
    """One for the class that lost most, if there is a class to look at."""
    looked_at = [part for part in evaluation.slices if part.num_rows >= policy.smallest_slice]
    if not looked_at:
        return []
    worst = min(looked_at, key=lambda part: part.candidate - part.against)
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
