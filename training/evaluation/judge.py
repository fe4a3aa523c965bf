"""Evaluation of a finished adapter in the serving path, before it becomes a version.

The adapter is pushed under a temporary name that is not listed (`names.TRIAL`), evaluated, compared with the gates, and
retired. If that fails, no alias is moved, but the adapter is kept.

Who is better is judged on references: rows whose answer is right whatever the models say. Feedback is none. An answer
with a thumb up is the parent's own, which a candidate can only equal; a corrected one is the parent's error, on which
anything is better. Where there are no references, a grader judges, if the job names one: it grades the answers of all
models to the same questions. A run that learned from a grader is judged by it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.learning.methods import TrainingMethod
from graftwork.adapters.names import TRIAL
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkClientError
from graftwork.training.config import TrainConfig
from graftwork.training.data.row import Row
from graftwork.training.evaluation.evaluation import Evaluation, evaluate
from graftwork.training.evaluation.gates import GateDecision, GatePolicy, decide_gates
from graftwork.training.methods.grading.grading import Grading, gradable_rows
from graftwork.training.methods.rows import is_reference, rows_for_method


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """The result of `judge_candidate`.

    Attributes:
        evaluation: the evaluation; None if it was not possible.
        verdict: the decision of the gates; None without an evaluation.
        not_measured_because: why there is no evaluation, for people.
    """

    evaluation: Evaluation | None = None
    verdict: GateDecision | None = None
    not_measured_because: str = ""

    @property
    def passed(self) -> bool:
        """Whether the candidate was evaluated and passed all gates."""
        return self.verdict is not None and self.verdict.passed

    def to_json(self) -> dict[str, Any]:
        """Return ``{"evaluation": …, "gates": …}`` for the version's metadata. What could not be tried is refused."""
        if self.evaluation is None or self.verdict is None:
            refused = {"outcome": "refuse", "passed": False, "refusals": [self.not_measured_because], "gates": []}
            return {"evaluation": None, "gates": refused}
        return {"evaluation": self.evaluation.to_json(), "gates": self.verdict.to_json()}


@dataclass(frozen=True, kw_only=True)
class JudgingGrader:
    """A grader that may judge candidates.

    Attributes:
        grader: the grader, as it came over HTTP.
        response_format: the JSON that answers have to be, likewise.
        max_tokens: maximum length of the answers.
        is_learned_from: whether the candidate learned from it, so that it judges whatever references there are.
    """

    grader: Mapping[str, Any]
    response_format: Mapping[str, Any] | None = None
    max_tokens: int
    is_learned_from: bool

    @classmethod
    def of(cls, config: TrainConfig) -> Self | None:
        """The grader that a run names, as its judge or to learn from; None if there is none."""
        if config.judged_by is None:
            return None
        return cls(
            grader=config.judged_by,
            response_format=config.response_format,
            max_tokens=config.answer_tokens,
            is_learned_from=config.grader is not None,
        )


@dataclass(frozen=True, kw_only=True)
class JudgedRows:
    """The rows that a candidate is judged on.

    Attributes:
        rows: the rows.
        method: the method whose rows they are, and those of earlier rounds beside them.
        are_references: whether they say what is right.
        by_grader: whether a grader judges the answers to them.
    """

    rows: tuple[Row, ...]
    method: TrainingMethod = "sft"
    are_references: bool = True
    by_grader: bool = False


def judged_rows(held_out: Sequence[Row], grader: JudgingGrader | None = None) -> JudgedRows:
    """Choose the rows that a candidate is judged on: references; or texts; or what a grader can judge; or, for its
    losses alone, feedback. What it learned from a grader comes first."""
    if grader is not None and grader.is_learned_from and (graded := _graded_rows(held_out, grader)):
        return JudgedRows(rows=graded, are_references=False, by_grader=True)
    answered = [row for row in rows_for_method(held_out, "sft").rows if row.question.strip() and row.answer.strip()]
    if references := tuple(filter(is_reference, answered)):
        return JudgedRows(rows=references)
    if texts := rows_for_method(held_out, "pretrain").rows:
        return JudgedRows(rows=texts, method="pretrain")
    if grader is not None and (graded := _graded_rows(held_out, grader)):
        return JudgedRows(rows=graded, are_references=False, by_grader=True)
    return JudgedRows(rows=tuple(answered), are_references=False)


def _graded_rows(held_out: Sequence[Row], grader: JudgingGrader) -> tuple[Row, ...]:
    """The rows whose answers a grader can judge, one for each question: the questions that were written for graders,
    or without such ones all."""
    asked = [row for row in held_out if row.kind == "question"] or [row for row in held_out if row.kind != "text"]
    rows, _ = gradable_rows([row for row in asked if row.question.strip()], grader.grader)
    return tuple({row.question_key(): row for row in rows}.values())


def judge_candidate(
    client: Client,
    adapter: Path,
    held_out: Sequence[Row],
    *,
    base: BaseInfo,
    parent: str | None = None,
    replay: Sequence[Row] = (),
    final: Sequence[Row] = (),
    policy: GatePolicy | None = None,
    seed: int = 0,
    job: str | None = None,
    grader: JudgingGrader | None = None,
) -> CandidateResult:
    """Evaluate an adapter on a server, and apply the gates. Errors of the server are part of the result.

    Args:
        client: the client of the server.
        adapter: the PEFT folder.
        held_out: held-out rows of any kind; see `judged_rows`.
        base: the base of server and adapter.
        parent: the id of the version that the adapter would replace; None for the base.
        replay: held-out rows of earlier rounds.
        final: held-out rows of any kind for the final reading, which the gates do not know.
        policy: the thresholds of the gates.
        seed: of samples and intervals.
        job: id of the job, stored with the temporary version so that it can be retired after a crash.
        grader: the grader that judges where there are no references.
    """
    judged, last = judged_rows(held_out, grader), judged_rows(final, grader)
    judging = grader if judged.by_grader else None
    try:
        grading = None
        if judging is not None:
            grading = Grading(judging.grader, response_format=judging.response_format, client=client)
        # A new name each time: after a crash the same bytes are pushed again, and a retired version stays retired.
        name = f"{TRIAL}{secrets.token_hex(8)}"
        trial = client.adapters.push(name, adapter, metadata={} if job is None else {"job": job})
        try:
            evaluation = evaluate(
                client,
                judged.rows,
                Prompts(Path(base.path)),
                candidate=trial.id,
                base=base.id,
                parent=parent,
                replay=rows_for_method(replay, judged.method).rows,
                final=_final_rows(last, judged),
                has_references=judged.are_references,
                grading=grading,
                max_tokens=None if judging is None else judging.max_tokens,
                seed=seed,
            )
        finally:
            with contextlib.suppress(GraftworkClientError):
                client.adapters.retire(name, trial.version)
    except (GraftworkClientError, GraftworkError) as error:
        return CandidateResult(not_measured_because=f"it could not be tried: {error}")
    return CandidateResult(evaluation=evaluation, verdict=decide_gates(evaluation, policy))


def _final_rows(last: JudgedRows, judged: JudgedRows) -> list[Row]:
    """The rows of the final reading, which are judged like the others."""
    if judged.by_grader:
        return list(last.rows) if last.by_grader else []
    return [row for row in last.rows if is_reference(row)]
