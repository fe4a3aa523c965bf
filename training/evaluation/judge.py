"""Evaluation of a finished adapter in the serving path, before it becomes a version.

The adapter is pushed under a temporary name that is not listed (`names.TRIAL`), evaluated, compared with the gates, and
retired. If that fails, no alias is moved, but the adapter is kept.

Who is better is judged on references: rows whose answer is right whatever the models say. Feedback is none. An answer
with a thumb up is the parent's own, which a candidate can only equal; a corrected one is the parent's error, on which
anything is better.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.methods import TrainingMethod
from graftwork.adapters.names import TRIAL
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkClientError
from graftwork.training.data.row import Row
from graftwork.training.evaluation.evaluation import Evaluation, evaluate
from graftwork.training.evaluation.gates import GateDecision, GatePolicy, decide_gates
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
class JudgedRows:
    """The rows that a candidate is judged on.

    Attributes:
        rows: the rows.
        method: the method whose rows they are, and those of earlier rounds beside them.
        are_references: whether they say what is right.
    """

    rows: tuple[Row, ...]
    method: TrainingMethod = "sft"
    are_references: bool = True


def judged_rows(held_out: Sequence[Row]) -> JudgedRows:
    """Choose the rows that a candidate is judged on: references; or texts; or, for its losses alone, feedback."""
    answered = [row for row in rows_for_method(held_out, "sft").rows if row.question.strip() and row.answer.strip()]
    if references := tuple(filter(is_reference, answered)):
        return JudgedRows(rows=references)
    if texts := rows_for_method(held_out, "pretrain").rows:
        return JudgedRows(rows=texts, method="pretrain")
    return JudgedRows(rows=tuple(answered), are_references=False)


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
    """
    judged = judged_rows(held_out)
    try:
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
                final=[row for row in judged_rows(final).rows if is_reference(row)],
                has_references=judged.are_references,
                seed=seed,
            )
        finally:
            with contextlib.suppress(GraftworkClientError):
                client.adapters.retire(name, trial.version)
    except GraftworkClientError as error:
        return CandidateResult(not_measured_because=f"it could not be tried: {error}")
    return CandidateResult(evaluation=evaluation, verdict=decide_gates(evaluation, policy))
