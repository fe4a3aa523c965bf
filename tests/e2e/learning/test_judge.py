"""The evaluation of a candidate on a real server, and the cleanup afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.names import TRIAL
from graftwork.clients.errors import NotFoundError
from graftwork.training.data.row import Row
from graftwork.training.evaluation.judge import JudgingGrader, judge_candidate, judged_rows
from tests.e2e.server_process import Server


def row(question: str, answer: str) -> Row:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Row(messages=turns, learned=(1,))


ROWS = [row("Is my parcel late?", "delivery"), row("Stop my plan.", "pause"), row("Where is it?", "delivery")]


def test_a_trial_measures_all_three_and_leaves_nothing_to_call(
    server: Server, adapters: tuple[str, ...], folders: dict[str, Path], embedded_base: BaseInfo
) -> None:
    name = adapters[0]
    with server.client() as client:
        parent = f"{name}@1"
        other = folders[f"{adapters[1]}@1"]
        found = judge_candidate(client, other, ROWS, base=embedded_base, parent=parent, replay=ROWS[:1])
        assert found.not_measured_because == ""
        evaluation, verdict = found.evaluation, found.verdict
        assert evaluation is not None
        assert verdict is not None
        assert evaluation.num_rows == 3
        assert evaluation.parent is not None
        assert evaluation.candidate.general_loss != evaluation.base.general_loss
        assert 3 < evaluation.base.general_loss < 5  # in nats; a model that knew no English would have 10.8
        assert evaluation.candidate.replay_loss is not None
        assert evaluation.kl_to_parent > 0
        assert not found.passed  # three rows prove nothing
        assert "3 held-out rows" in verdict.doubts[0]

        # The very same adapter as the parent is neither better nor worse.
        same = judge_candidate(client, folders[f"{name}@1"], ROWS, base=embedded_base, parent=parent)
        assert same.evaluation is not None
        assert same.evaluation.kl_to_parent == 0
        assert same.evaluation.better["parent"].mean == 0

        again = judge_candidate(client, other, ROWS, base=embedded_base, parent=parent, replay=ROWS[:1])
        assert again.not_measured_because == "", "a run that was killed tries the same bytes again"
        assert not [one.name for one in client.adapters.list() if one.name.startswith(TRIAL)]
        assert not [model.id for model in client.models() if model.id.startswith(TRIAL)]
        assert evaluation.candidate.model.startswith(TRIAL)
        with pytest.raises(NotFoundError):
            client.complete(evaluation.candidate.model, "Hello")


def test_texts_are_measured_and_rows_without_room_are_left_out(
    server: Server, adapters: tuple[str, ...], folders: dict[str, Path], embedded_base: BaseInfo
) -> None:
    folder = folders[f"{adapters[0]}@1"]
    texts = [Row(completion="The harbour lay still."), Row(completion="Nobody spoke of the storm.")]
    with server.client() as client:
        read = judge_candidate(client, folder, texts, base=embedded_base)
        mixed = judge_candidate(client, folder, [*ROWS, row("late " * 9000, "delivery")], base=embedded_base)
    assert read.evaluation is not None, read.not_measured_because
    assert (read.evaluation.metric, read.evaluation.num_rows) == ("log_likelihood", 2)
    assert mixed.evaluation is not None, mixed.not_measured_because
    assert (mixed.evaluation.num_rows, mixed.evaluation.num_left_out) == (3, 1)


def test_what_cannot_be_tried_is_a_reason_and_no_error(server: Server, tmp_path: Path, embedded_base: BaseInfo) -> None:
    with server.client() as client:
        (tmp_path / "adapter_config.json").write_text("{}")
        broken = judge_candidate(client, tmp_path, ROWS, base=embedded_base)
    assert broken.not_measured_because.startswith("it could not be tried: ")
    assert broken.to_json()["gates"]["passed"] is False
    assert broken.to_json()["gates"]["outcome"] == "refuse"


def test_feedback_says_nothing_of_who_is_better(
    server: Server, adapters: tuple[str, ...], folders: dict[str, Path], embedded_base: BaseInfo
) -> None:
    """30 likes of the parent's own answers, which a candidate could only lose; 25 of its errors corrected, of which
    anything could only win."""
    liked = [replace(row(f"Question {i}?", "fine"), label=True, interactions=(f"c-{i}",)) for i in range(30)]
    corrected = [
        replace(
            row(f"Problem {i}?", "better").over(row(f"Problem {i}?", "worse")), corrected=True, interactions=(f"d-{i}",)
        )
        for i in range(25)
    ]
    with server.client() as client:
        for held_out in (liked, corrected, []):
            parent, other = f"{adapters[0]}@1", folders[f"{adapters[1]}@1"]
            found = judge_candidate(client, other, held_out, base=embedded_base, parent=parent)
            assert found.evaluation is not None, found.not_measured_because
            assert found.verdict is not None
            assert (found.evaluation.kind, found.evaluation.better) == ("feedback", {})
            rows = next(gate for gate in found.verdict.gates if gate.name == "rows")
            assert rows.outcome == "inconclusive"
            assert "takes an experiment" in rows.message


def test_a_grader_judges_where_nothing_says_what_is_right(
    server: Server, adapters: tuple[str, ...], folders: dict[str, Path], embedded_base: BaseInfo
) -> None:
    liked = [replace(row(f"Question {i}?", "fine"), label=True, interactions=(f"c-{i}",)) for i in range(6)]
    grader = JudgingGrader(
        grader={
            "type": "multi",
            "name": "taste",
            "graders": {
                "delivery": {
                    "type": "string_check",
                    "name": "delivery",
                    "operation": "ilike",
                    "input": "{{ item.question }}",
                    "reference": "Question",
                },
                "judge": {
                    "type": "score_model",
                    "name": "judge",
                    "model": embedded_base.id,
                    "range": [0, 4],
                    "input": [{"role": "user", "content": "Rate from 0 to 4: {{ sample.output_text }}"}],
                },
                "label": {
                    "type": "label_model",
                    "name": "label",
                    "model": f"{adapters[0]}@1",
                    "labels": ["good", "bad"],
                    "passing_labels": ["good", "bad"],
                    "input": [{"role": "user", "content": "{{ sample.output_text }}: good or bad?"}],
                },
            },
            "calculate_output": "(delivery + judge / 4 + label) / 3",
        },
        max_tokens=8,
        is_learned_from=False,
    )
    with server.client() as client:
        parent, other = f"{adapters[0]}@1", folders[f"{adapters[1]}@1"]
        found = judge_candidate(client, other, liked, base=embedded_base, parent=parent, grader=grader)
        again = judge_candidate(client, other, liked, base=embedded_base, parent=parent, grader=grader)
    assert found.evaluation is not None, found.not_measured_because
    assert found.verdict is not None
    evaluation = found.evaluation
    assert (evaluation.kind, evaluation.metric, evaluation.judged_by) == ("graded", "grade", "taste")
    assert evaluation.num_rows == 6
    metrics = evaluation.candidate.metrics
    assert (metrics["grade_delivery"], metrics["grade_label"]) == (1, 1)
    assert 0 <= metrics["grade_judge"] <= 4
    assert 2 / 3 <= metrics["grade"] <= 1
    assert again.evaluation is not None
    assert again.evaluation.candidate.right == evaluation.candidate.right  # it grades the same answers always alike
    assert evaluation.to_json()["judged_by"] == "taste"
    assert any("grade by the grader taste against the parent" in gate.message for gate in found.verdict.gates)

    # References say more than a grader, but for what was learned from it.
    assert judged_rows([*liked, *ROWS], grader).rows == tuple(ROWS)
    learned = replace(grader, is_learned_from=True)
    questions = [replace(row(f"Where is {i}?", ""), item={"city": "Rome"}, learned=()) for i in range(3)]
    assert judged_rows([*liked, *ROWS, *questions], learned).rows == tuple(questions)


def test_references_are_judged_on_beside_feedback() -> None:
    liked = [replace(row(f"Question {i}?", "fine"), label=True, interactions=(f"c-{i}",)) for i in range(5)]
    chosen = judged_rows([*liked, *ROWS])
    assert (chosen.rows, chosen.are_references) == (tuple(ROWS), True)
    assert not judged_rows(liked).are_references
