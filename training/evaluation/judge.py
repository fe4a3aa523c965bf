"""A finished adapter tried in the serving path before it gets its number: measured, and held against the gates.

It is pushed under a name that stands in no list (`names.TRIAL`), and taken out of service afterwards. Whatever goes
wrong is a reason not to move an alias, and never one to lose the adapter.
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


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """What came of a trial; without an evaluation ``why_not`` says why there is none."""

    evaluation: Evaluation | None = None
    verdict: GateDecision | None = None
    not_measured_because: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.passed

    def to_json(self) -> dict[str, Any]:
        """For the version's metadata: ``{"evaluation", "gates"}``."""
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
    """Try the adapter in ``adapter``, a PEFT folder, on rows it has not learned from. ``held_out`` and ``replay`` may
    be of any kind; those that say what is right are asked, and where none do, texts are measured. ``parent`` is the
    version that it would replace, by its id. ``job`` is on record with the trial, for whoever has to end what a kill
    left behind."""
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
        # A name of its own each time: the same bytes are tried again when a run was killed, and retired is for good.
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
