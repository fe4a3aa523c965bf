"""Simulated rounds of training: how often the gates (``training/evaluation/gates.py``) let a candidate pass, refuse it
or cannot say.

    python -m benchmarks.gates

prints the table of docs/learning.md as Markdown. Each round is decided by the same code that decides real ones, on made
up answers of three models to the same held-out rows.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from graftwork.adapters.learning.gate_results import Outcome
from graftwork.training.evaluation.bias import Bias
from graftwork.training.evaluation.evaluation import Evaluation, ModelMeasurement, difference
from graftwork.training.evaluation.gates import decide_gates
from graftwork.training.evaluation.metrics import RowLosses, slices
from graftwork.training.evaluation.texts import GENERAL_TEXTS

NUM_ROWS: Final = (12, 50, 200, 1000)
NUM_CLASSES: Final = 20
OUTCOMES: Final[tuple[Outcome, ...]] = ("pass", "refuse", "inconclusive")

PARENT_RIGHT: Final = 0.7
BASE_RIGHT: Final = 0.1

LOSS_NOISE: Final = 0.01
"""Standard deviation of the relative change of the loss on one general text."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A candidate beside its parent.

    Attributes:
        name: what it is, for the table.
        won: share of all rows that the candidate answers right and the parent wrong.
        lost: share of all rows that the parent answers right and the candidate wrong.
    """

    name: str
    won: float
    lost: float


SCENARIOS: Final = (
    Scenario(name="5 points worse", won=0.055, lost=0.105),
    Scenario(name="equal", won=0.08, lost=0.08),
    Scenario(name="5 points better", won=0.105, lost=0.055),
)


def simulate(scenario: Scenario, num_rows: int, *, num_rounds: int, seed: int = 0) -> Mapping[Outcome, float]:
    """Simulate rounds of training whose candidates are alike, and return the share of each outcome.

    Args:
        scenario: the candidate.
        num_rows: number of held-out rows.
        num_rounds: number of rounds.
        seed: of the rows and answers.
    """
    chance = np.random.default_rng(seed)
    outcomes: Counter[Outcome] = Counter()
    for _ in range(num_rounds):
        parent = chance.random(num_rows) < PARENT_RIGHT
        changed = chance.random(num_rows)
        lost = parent & (changed < scenario.lost / PARENT_RIGHT)
        won = ~parent & (changed < scenario.won / (1 - PARENT_RIGHT))
        base = chance.random(num_rows) < BASE_RIGHT
        classes = chance.integers(0, NUM_CLASSES, num_rows)
        losses = 3.0 * (1 + LOSS_NOISE * chance.standard_normal((3, len(GENERAL_TEXTS))))
        outcomes[decide_gates(_evaluation((parent & ~lost) | won, parent, base, classes, losses)).outcome] += 1
    return {outcome: outcomes[outcome] / num_rounds for outcome in OUTCOMES}


def _evaluation(
    candidate: Flags, parent: Flags, base: Flags, classes: NDArray[np.int64], losses: NDArray[np.float64]
) -> Evaluation:
    answers = dict(zip(("candidate", "parent", "base"), (candidate, parent, base), strict=True))
    right = {name: flags.astype(float).tolist() for name, flags in answers.items()}
    models = {name: _measurement(name, right[name], of_texts) for name, of_texts in zip(right, losses, strict=True)}
    return Evaluation(
        kind="labels",
        metric="accuracy",
        num_rows=len(classes),
        candidate=models["candidate"],
        parent=models["parent"],
        base=models["base"],
        better={name: difference("labels", right["candidate"], right[name]) for name in ("parent", "base")},
        slices=slices([f"class {number}" for number in classes], right["candidate"], right["parent"]),
        kl_to_parent=0.0,
        bias=Bias(num_pairs=0, changed={}),
        examples=(),
    )


def _measurement(name: str, right: Sequence[float], of_texts: NDArray[np.float64]) -> ModelMeasurement:
    losses = RowLosses(totals=tuple(map(float, of_texts)), num_tokens=(1,) * len(of_texts))
    return ModelMeasurement(model=name, answers=(), right=tuple(right), metrics={}, losses=losses, general=losses)


def table(num_rounds: int) -> str:
    """Return the rates of all outcomes as a Markdown table."""
    lines = ["| held-out rows | candidate | pass | refuse | inconclusive |", "| --- | --- | --- | --- | --- |"]
    for num_rows in NUM_ROWS:
        for scenario in SCENARIOS:
            rates = simulate(scenario, num_rows, num_rounds=num_rounds)
            shares = " | ".join(f"{100 * rates[outcome]:.1f} %" for outcome in OUTCOMES)
            lines.append(f"| {num_rows:,} | {scenario.name} | {shares} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gates", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000, help="rounds of each kind (default: %(default)s)")
    print(table(parser.parse_args(arguments).rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
