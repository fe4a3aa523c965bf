"""How good a reward model is: whether it finds the better answer of held-out pairs, beside chance and its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.base import BaseInfo
from graftwork.training.data.row import Row
from graftwork.training.evaluation.gates import GateDecision, GatePolicy, better_than_chance, enough_rows, not_worse
from graftwork.training.evaluation.intervals import Interval, paired_interval, share_interval
from graftwork.training.methods.rows import rows_for_method
from graftwork.training.model.reward_model import RewardModel

METRIC: Final = "pair_accuracy"


@dataclass(frozen=True, kw_only=True)
class PairEvaluation:
    """A reward model on held-out pairs.

    Attributes:
        num_rows: number of pairs.
        accuracy: share of them whose better answer has the higher score. None without pairs.
        parent_accuracy: the same of the version that it continues.
        against_parent: difference of the two.
    """

    num_rows: int
    accuracy: Interval | None = None
    parent_accuracy: float | None = None
    against_parent: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation for the version's metadata."""
        return {
            "rows": self.num_rows,
            "metric": METRIC,
            "candidate": None if self.accuracy is None else self.accuracy.mean,
            "parent": self.parent_accuracy,
        }


def evaluate_pairs(
    held_out: Sequence[Row], adapter: Path, base: BaseInfo, *, parent: Path | None = None
) -> PairEvaluation:
    """Evaluate a reward model on held-out rows, in this process.

    Args:
        held_out: rows of any kind; those that make pairs are used.
        adapter: its PEFT folder.
        base: its base.
        parent: the PEFT folder of the reward model that it continues.
    """
    pairs = rows_for_method(held_out, "reward_model").rows
    if not pairs:
        return PairEvaluation(num_rows=0)
    right = _right(pairs, adapter, base)
    before = None if parent is None else _right(pairs, parent, base)
    return PairEvaluation(
        num_rows=len(pairs),
        accuracy=share_interval(sum(right), len(right)),
        parent_accuracy=None if before is None else sum(before) / len(before),
        against_parent=None if before is None else paired_interval(right, before),
    )


def decide_pair_gates(evaluation: PairEvaluation, policy: GatePolicy | None = None) -> GateDecision:
    """Apply the gates to a reward model; with the default policy if None."""
    policy = policy or GatePolicy()
    gates = [enough_rows(evaluation.num_rows, policy)]
    if evaluation.accuracy is not None:
        gates.append(better_than_chance(METRIC, evaluation.accuracy))
    if evaluation.against_parent is not None:
        gates.append(not_worse(METRIC, evaluation.against_parent, policy))
    return GateDecision(policy=policy, gates=tuple(gates))


def _right(pairs: Sequence[Row], folder: Path, base: BaseInfo) -> list[bool]:
    model = RewardModel.load(folder, base)
    better = model.row_scores(pairs)
    worse = model.row_scores(pair.with_rejected() for pair in pairs)
    return [one > other for one, other in zip(better, worse, strict=True)]
