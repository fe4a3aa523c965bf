"""Evaluation of a finished adapter in the serving path, before it becomes a version.

The adapter is pushed under a temporary name that is not listed (`names.TRIAL`), evaluated, compared with the gates, and
retired. If that fails, no alias is moved, but the adapter is kept.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.methods import TrainingMethod
from graftwork.adapters.names import TRIAL
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkClientError
from graftwork.training.data.row import Row
from graftwork.training.evaluation.evaluation import Evaluation, NoMeasurableRows, evaluate
from graftwork.training.evaluation.gates import GateDecision, GatePolicy, decide_gates
from graftwork.training.methods.rows import rows_for_method

MIN_ROWS: Final = 2
"""Minimum number of rows for an evaluation."""


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
        """Return ``{"evaluation": …, "gates": …}`` for the version's metadata."""
        if self.evaluation is None or self.verdict is None:
            return {
                "evaluation": None,
                "gates": {"passed": False, "refusals": [self.not_measured_because], "gates": []},
            }
        return {"evaluation": self.evaluation.to_json(), "gates": self.verdict.to_json()}


def judge_candidate(
    client: Client,
    adapter: Path,
    held_out: Sequence[Row],
    *,
    base: BaseInfo,
    parent: str | None = None,
    replay: Sequence[Row] = (),
    policy: GatePolicy | None = None,
    seed: int = 0,
    job: str | None = None,
) -> CandidateResult:
    """Evaluate an adapter on a server, and apply the gates. Errors of the server are part of the result.

    Args:
        client: the client of the server.
        adapter: the PEFT folder.
        held_out: held-out rows of any kind. Those with a right answer are used; if there are none, texts are.
        base: the base of server and adapter.
        parent: the id of the version that the adapter would replace; None for the base.
        replay: held-out rows of earlier rounds.
        policy: the thresholds of the gates.
        seed: of samples and bootstraps.
        job: id of the job, stored with the temporary version so that it can be retired after a crash.
    """
    rows = rows_for_method(held_out, "sft").rows
    rows = tuple(row for row in rows if row.question.strip() and row.answer.strip())
    method: TrainingMethod = "sft"
    if len(rows) < MIN_ROWS and len(texts := rows_for_method(held_out, "pretrain").rows) >= MIN_ROWS:
        method, rows = "pretrain", texts
    if len(rows) < MIN_ROWS:
        return CandidateResult(
            not_measured_because=f"{len(rows)} held-out rows say what is right: nothing can be measured"
        )
    try:
        # A new name each time: after a crash the same bytes are pushed again, and a retired version stays retired.
        name = f"{TRIAL}{secrets.token_hex(8)}"
        trial = client.adapters.push(name, adapter, metadata={} if job is None else {"job": job})
        try:
            evaluation = evaluate(
                client,
                rows,
                Prompts(Path(base.path)),
                candidate=trial.id,
                base=base.id,
                parent=parent,
                replay=rows_for_method(replay, method).rows,
                seed=seed,
            )
        finally:
            with contextlib.suppress(GraftworkClientError):
                client.adapters.retire(name, trial.version)
    except (GraftworkClientError, NoMeasurableRows) as error:
        return CandidateResult(not_measured_because=f"it could not be tried: {error}")
    return CandidateResult(evaluation=evaluation, verdict=decide_gates(evaluation, policy))
