"""What is known of a unit before it has an arm: its own mean of a metric, from the log before the experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import select

from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.metrics import AnsweredRequest, unit_value
from graftwork.adapters.feedback.feedback import Feedback, FeedbackLog
from graftwork.adapters.feedback.interactions import interactions_table
from graftwork.adapters.storage.database import Database

PAST: Final = timedelta(days=30)
"""How far back a unit's past goes."""

_AT_ONCE: Final = 500


def past_means(
    database: Database, feedback: FeedbackLog, units: Collection[str], experiment: Experiment
) -> dict[str, float]:
    """An experiment's metric for each unit, over its past with the experiment's adapter, as a unit's outcome is
    computed; without those that have none.

    Only what was logged and said before the experiment counts, which no arm can have changed.

    Args:
        database: With the log.
        feedback: Of that log.
        units: Users and sessions, as ids of answers have them.
        experiment: The experiment.
    """
    adapter, metric, before = experiment.plan.adapter, experiment.plan.metric, experiment.started_at
    means: dict[str, float] = {}
    wanted = sorted(units)
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        answers = _answers(database, some, experiment) if not metric.rated else {}
        said: defaultdict[str, list[Feedback]] = defaultdict(list)
        if not metric.is_per_request:
            for entry in feedback.of_units(some, adapter=adapter, since=before - PAST, until=before):
                if entry.experiment != experiment.name:
                    said[entry.unit or ""].append(entry)
        for unit in some:
            value = unit_value(metric, answers.get(unit, ()), said[unit])
            if value is not None:
                means[unit] = value
    return means


def _answers(database: Database, units: Sequence[str], experiment: Experiment) -> dict[str, list[AnsweredRequest]]:
    """The adapter's logged answers to each of these units."""
    table, before = interactions_table.c, experiment.started_at
    query = select(table.unit, table.id, table.status, table.total_ms, table.completion_tokens).where(
        table.unit.in_(units),
        table.adapter == experiment.plan.adapter,
        table.created_at >= before - PAST,
        table.created_at < before,
        # A clock that was set back may order an arm's answer before the start.
        table.experiment.is_distinct_from(experiment.name),
    )
    answers: defaultdict[str, list[AnsweredRequest]] = defaultdict(list)
    with database.read() as connection:
        for unit, id, status, total_ms, completion_tokens in connection.execute(query):
            answers[unit or ""].append(
                AnsweredRequest(
                    interaction_id=id, status=status, total_ms=total_ms, completion_tokens=completion_tokens
                )
            )
    return answers
