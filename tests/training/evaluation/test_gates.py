"""The three outcomes of the gates: literal numbers of rows, and what comes of them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from graftwork.training.evaluation import metrics
from graftwork.training.evaluation.bias import Bias
from graftwork.training.evaluation.evaluation import Evaluation, Example, ModelMeasurement, difference
from graftwork.training.evaluation.gates import GateDecision, GatePolicy, decide_gates
from graftwork.training.evaluation.metrics import RowLosses


def losses(*of_rows: float) -> RowLosses:
    return RowLosses(totals=of_rows, num_tokens=(1,) * len(of_rows))


def measured(model: str, right: list[float], *, general: float = 3.0, replay: float | None = None) -> ModelMeasurement:
    return ModelMeasurement(
        model=model,
        answers=tuple("yes" if one else "no" for one in right),
        right=tuple(right),
        metrics={"accuracy": sum(right) / len(right)} if right else {},
        losses=losses(1.0),
        general=losses(*[general] * 10),
        replay=None if replay is None else losses(*[replay] * 10),
    )


def evaluation(
    new: list[float],
    parent: list[float] | None,
    base: list[float],
    *,
    general: tuple[float, float, float] = (3.0, 3.0, 3.0),
    replay: tuple[float, float, float] | None = (2.0, 2.0, 2.0),
    labels: list[str] | None = None,
) -> Evaluation:
    """Losses are those of candidate, parent and base."""
    others = {"base": base} | ({"parent": parent} if parent else {})
    of_replay = replay or (None, None, None)
    labels = labels or ["a" if index % 2 else "b" for index in range(len(new))]
    return Evaluation(
        kind="labels",
        metric="accuracy",
        num_rows=len(new),
        candidate=measured("t@2", new, general=general[0], replay=of_replay[0]),
        parent=measured("t@1", parent, general=general[1], replay=of_replay[1]) if parent else None,
        base=measured("base", base, general=general[2], replay=of_replay[2]),
        better={name: difference("labels", new, old) for name, old in others.items()},
        slices=metrics.slices(labels, new, parent or base),
        kl_to_parent=0.1,
        bias=Bias(num_pairs=2, changed={"candidate": 0.5}),
        examples=(
            Example(question="<b>?", expected="yes", answers={"candidate": "<i>", "parent": "no", "base": "no"}),
        ),
    )


def pairs(won: int, lost: int, both: int, neither: int = 0) -> tuple[list[float], list[float]]:
    """The rows of candidate and parent: right for one alone, for both, for none."""
    return (
        [1.0] * won + [0.0] * lost + [1.0] * both + [0.0] * neither,
        [0.0] * won + [1.0] * lost + [1.0] * both + [0.0] * neither,
    )


GOOD, FAIR, POOR = [1.0] * 40, [1.0, 1.0, 1.0, 0.0] * 10, [0.0] * 40


def outcomes(decision: GateDecision) -> dict[str, str]:
    return {gate.name: gate.outcome for gate in decision.gates if gate.outcome != "pass"}


def test_a_better_one_passes() -> None:
    verdict = decide_gates(evaluation(GOOD, FAIR, POOR))
    assert (verdict.outcome, verdict.passed, verdict.refusals, verdict.doubts) == ("pass", True, (), ())
    assert {gate.name for gate in verdict.gates} == {
        "rows",
        "better_than_base",
        "not_worse_than_parent",
        "general_loss",
        "general_loss_to_base",
        "replay_loss",
        "replay_loss_to_base",
        "slices",
    }
    assert {"outcome": "pass", "passed": True, "refusals": [], "doubts": []}.items() <= verdict.to_json().items()


@pytest.mark.parametrize(
    ("found", "gate", "message"),
    [
        (
            evaluation(FAIR, GOOD, POOR),
            "not_worse_than_parent",
            r"accuracy against the parent -0\.250 .*, by more than",
        ),
        (evaluation(POOR, None, GOOD), "better_than_base", r"against the base -1\.000 .*: it is worse"),
        (evaluation(GOOD, FAIR, POOR, general=(3.09, 3, 3)), "general_loss", r"3\.0000 to 3\.0900 \(\+3\.0%.* \+2\.0%"),
        (
            evaluation(GOOD, FAIR, POOR, replay=(2.05, 2, 2)),
            "replay_loss",
            r"older rounds .* went from 2\.0000 to 2\.05",
        ),
        (
            evaluation([1.0, 0.0] * 20, FAIR, POOR),
            "slices",
            r"class 'a' changed most for the worse: 10 to 0 right of 20",
        ),
    ],
)
def test_a_refusal_says_which_gate_and_by_how_much(found: Evaluation, gate: str, message: str) -> None:
    verdict = decide_gates(found)
    assert verdict.outcome == "refuse"
    assert gate in {one.name for one in verdict.gates if one.outcome == "refuse"}
    assert any(re.search(message, refusal) for refusal in verdict.refusals), verdict.refusals


@pytest.mark.parametrize(
    ("found", "gate", "message"),
    [
        (evaluation(POOR, None, POOR), "better_than_base", r"base \+0\.000 .*: it is not certain that it is better"),
        (evaluation(GOOD[:19], None, POOR[:19]), "rows", r"19 held-out rows, and fewer than 20 let nothing pass"),
        (evaluation(*pairs(4, 4, 42), [0.0] * 50), "not_worse_than_parent", r"not certain that it is at most 0\.02"),
        (evaluation(GOOD, FAIR, POOR, general=(3.0, 2.9, 2.95)), "general_loss", None),
    ],
)
def test_what_rows_cannot_say_is_for_an_experiment(found: Evaluation, gate: str, message: str | None) -> None:
    verdict = decide_gates(found)
    if message is None:  # all ten texts agree that it is worse
        assert verdict.outcome == "refuse"
        return
    assert (verdict.outcome, verdict.passed, verdict.refusals) == ("inconclusive", False, ())
    assert gate in outcomes(verdict)
    assert any(re.search(message, doubt) for doubt in verdict.doubts), verdict.doubts


def test_what_chance_does_to_few_rows_is_no_reason_either_way() -> None:
    # 4:0 was certain by a bootstrap; one net row of 25 was a decrease of 0.04.
    assert outcomes(decide_gates(evaluation([1.0] * 4 + [0.0] * 21, None, [0.0] * 25))) == {
        "better_than_base": "inconclusive"
    }
    assert outcomes(decide_gates(evaluation(*pairs(0, 1, 24), [0.0] * 25))) == {"not_worse_than_parent": "inconclusive"}


def test_a_decrease_beyond_chance_does_not_pass_within_the_margin() -> None:
    found = decide_gates(evaluation(*pairs(0, 9, 991), [0.0] * 1000, labels=["a"] * 1000))
    assert outcomes(found) == {"not_worse_than_parent": "inconclusive"}
    assert "it is worse" in found.doubts[0]


def test_thresholds_are_met_exactly() -> None:
    """5 of 250 rows are 0.02, whatever their binary fractions are."""
    same = pairs(0, 0, 250)
    assert decide_gates(evaluation(*same, [0.0] * 250)).outcome == "pass"
    assert outcomes(decide_gates(evaluation(*pairs(0, 0, 249), [0.0] * 249))) == {
        "not_worse_than_parent": "inconclusive"
    }
    # A class of 10 may lose 2 net rows, however they come about: 0.9 - 0.7 is more than 0.2 in floats.
    lost = evaluation(*pairs(0, 8, 32), [0.0] * 40, labels=["a"] * 40)
    assert "slices" not in outcomes(decide_gates(lost))
    assert outcomes(decide_gates(evaluation(*pairs(0, 9, 31), [0.0] * 40, labels=["a"] * 40)))["slices"] == "refuse"


def test_many_classes_do_not_refuse_by_chance() -> None:
    labels = [f"class {index // 10}" for index in range(200)]
    three_of_ten = [0.0] * 3 + [1.0] * 197
    found = decide_gates(evaluation(three_of_ten, [1.0] * 200, [0.0] * 200, labels=labels))
    assert "slices" not in outcomes(found), "one class of twenty lost 0.3 of 10 rows"
    all_of_ten = [0.0] * 10 + [1.0] * 190
    assert outcomes(decide_gates(evaluation(all_of_ten, [1.0] * 200, [0.0] * 200, labels=labels)))["slices"] == "refuse"
    of_three = [f"class {index // 3}" for index in range(60)]
    none = decide_gates(evaluation([0.0] * 3 + [1.0] * 57, [1.0] * 60, [0.0] * 60, labels=of_three))
    assert "slices" not in {gate.name for gate in none.gates}


def test_small_increases_of_a_loss_do_not_add_up() -> None:
    """Each round rises by 1.5 %, which the gate against the parent lets pass."""
    general, passed = 3.0, 0
    while passed < 20:
        found = evaluation(GOOD, FAIR, POOR, general=(general * 1.015, general, 3.0), replay=None)
        if not decide_gates(found).passed:
            break
        general, passed = general * 1.015, passed + 1
    assert passed == 1
    assert outcomes(decide_gates(found)) == {"general_loss_to_base": "refuse"}


def test_too_few_older_rows_say_nothing() -> None:
    found = evaluation(GOOD, FAIR, POOR)
    few = {
        name: dataclasses.replace(model, replay=losses(2.0, 2.0))
        for name, model in (("candidate", found.candidate), ("parent", found.parent), ("base", found.base))
        if model
    }
    verdict = decide_gates(dataclasses.replace(found, **few))
    assert outcomes(verdict) == {"replay_loss": "inconclusive", "replay_loss_to_base": "inconclusive"}
    assert "(+0.0%, of too few rows)" in verdict.doubts[0]


def test_what_a_parent_lost_its_children_need_not_win_back() -> None:
    assert decide_gates(evaluation(GOOD, FAIR, POOR, general=(3.3, 3.3, 3.0))).passed
    more = decide_gates(evaluation(GOOD, FAIR, POOR, general=(3.33, 3.3, 3.0)))
    assert outcomes(more) == {"general_loss_to_base": "refuse"}


def test_the_bounds_are_the_policys() -> None:
    found = evaluation(GOOD, FAIR, POOR, general=(3.09, 3.0, 3.0))
    assert decide_gates(found, GatePolicy(general_loss=0.05)).passed


def test_feedback_decides_nothing_but_losses() -> None:
    def of(general: float) -> Evaluation:
        models: Any = {name: measured(name, [], general=value) for name, value in (("t@2", general), ("base", 3.0))}
        return Evaluation(
            kind="feedback",
            metric=None,
            num_rows=0,
            candidate=models["t@2"],
            parent=None,
            base=models["base"],
            better={},
            slices=(),
            kl_to_parent=0.1,
            bias=Bias(num_pairs=0, changed={}),
            examples=(),
        )

    verdict = decide_gates(of(3.0))
    assert verdict.outcome == "inconclusive"
    assert verdict.doubts == (
        "no held-out row says what is right, whoever answers, and no grader judges: which is better takes an "
        "experiment",
    )
    assert decide_gates(of(3.3)).outcome == "refuse"
