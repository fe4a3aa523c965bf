"""Erasure: a user's rows when an operator asks for it, and every row when its retention has ended.

Interactions are deleted. Feedback is append-only: its texts are cleared (corrections, comments, metadata, its user),
and what identifies nobody stays, thumbs, scores and preferences, so that an experiment counts the same afterwards.
Which versions were trained on erased rows stays recorded (``lineage``) and is part of the result. Texts are also in
files, in data sets and the folders of jobs: what must be erased there is recorded in the same transaction, as
``PendingErasure``, until the training worker has erased it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, func, not_, or_, select, update

from graftwork.adapters.feedback.feedback import ERASED_VALUES, feedback_table
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import interactions_table
from graftwork.adapters.feedback.lineage import Lineage, versions_trained_on
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage import settings
from graftwork.adapters.storage.database import Database

_PENDING = "erasure-"
_AT_ONCE = 500
"""Rows of one transaction: between two, other writers get their turn."""


@dataclass(frozen=True, kw_only=True)
class ErasureResult:
    """What was erased.

    Attributes:
        num_interactions: Interactions that were deleted.
        num_feedback: Feedback whose texts were cleared.
        learned_from: Versions that were trained on any of it.
        continued: Versions that were not, but continue one that was.
    """

    num_interactions: int
    num_feedback: int
    learned_from: tuple[str, ...] = ()
    continued: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PendingErasure:
    """Answers whose texts must still be erased from files: of an erased user, or with feedback by one."""

    name: str
    answers: frozenset[str]


class Erasure:
    """Erases rows of one database. ``base_id`` is the name of the bare base in policies."""

    def __init__(self, database: Database, ids: InteractionIds, registry: Registry, *, base_id: str) -> None:
        self._database = database
        self._ids = ids
        self._registry = registry
        self._lineage = Lineage(database)
        self._base_id = base_id

    def erase_user(self, user: str) -> ErasureResult:
        """Erase all requests and feedback that named this user, in one transaction.

        Feedback is found by its own ``user``, by its interaction, and by the id of the answer, which has a keyed hash
        of the user who asked: also when the interaction was never logged.
        """
        logged = interactions_table.c.end_user == user
        about_user = or_(
            feedback_table.c.end_user == user,
            feedback_table.c.unit == self._ids.unit(user=user),
            feedback_table.c.interaction_id.in_(select(interactions_table.c.id).where(logged)),
        )
        with self._database.write() as connection:
            answers = {
                *connection.scalars(select(interactions_table.c.id).where(logged)),
                *connection.scalars(select(feedback_table.c.interaction_id).where(about_user).distinct()),
            }
            erasing = (
                update(feedback_table)
                .where(about_user, _has_texts())
                .values(**ERASED_VALUES, erased_at=datetime.now(UTC))
            )
            num_feedback = connection.execute(erasing).rowcount
            num_interactions = connection.execute(delete(interactions_table).where(logged)).rowcount
            if answers:
                settings.put(connection, f"{_PENDING}{secrets.token_hex(8)}", json.dumps(sorted(answers)))
        learned, continued = versions_trained_on(self._registry, self._lineage.data_digests(answers))
        return ErasureResult(
            num_interactions=num_interactions,
            num_feedback=num_feedback,
            learned_from=tuple(version.id for version in learned),
            continued=tuple(version.id for version in continued),
        )

    def erase_interaction(self, id: str) -> bool:
        """Erase one interaction; feedback on it stays.

        Returns:
            Whether it was there.
        """
        with self._database.write() as connection:
            there = connection.execute(delete(interactions_table).where(interactions_table.c.id == id)).rowcount > 0
            if there:
                settings.put(connection, f"{_PENDING}{secrets.token_hex(8)}", json.dumps([id]))
        return there

    def expire(self, policies: LogPolicies, *, now: datetime | None = None) -> ErasureResult:
        """Erase everything older than its policies, or else the default, allow. ``now`` is in UTC.

        It takes transactions of some hundred rows.
        """
        now = now or datetime.now(UTC)
        aged = _aged(policies, now)
        rows = aged(
            interactions_table,
            interactions_table.c.created_at,
            func.coalesce(interactions_table.c.adapter, interactions_table.c.base),
        )
        words = aged(feedback_table, feedback_table.c.at, func.coalesce(feedback_table.c.adapter, self._base_id))
        old_rows = select(interactions_table.c.id).where(rows).limit(_AT_ONCE)
        old_words = select(feedback_table.c.id).where(words, _has_texts()).limit(_AT_ONCE)
        return ErasureResult(
            num_interactions=self._in_parts(
                lambda ids: delete(interactions_table).where(interactions_table.c.id.in_(ids)), old_rows
            ),
            num_feedback=self._in_parts(
                lambda ids: (
                    update(feedback_table).where(feedback_table.c.id.in_(ids)).values(**ERASED_VALUES, erased_at=now)
                ),
                old_words,
            ),
        )

    def _in_parts(self, change: Callable[[Sequence[Any]], Any], those: Any) -> int:
        total = 0
        while True:
            # A read first, so that finding nothing, as is usual, does not block writers.
            with self._database.read() as connection:
                ids = connection.scalars(those).all()
            if ids:
                with self._database.write() as connection:
                    total += connection.execute(change(ids)).rowcount
            if len(ids) < _AT_ONCE:
                return total


def pending_erasures(database: Database) -> list[PendingErasure]:
    """What must still be erased from files, the oldest first."""
    pending = settings.find_by_prefix(database, _PENDING)
    return [PendingErasure(name=name, answers=frozenset(json.loads(answers))) for name, answers in pending.items()]


def finish_erasure(database: Database, what: PendingErasure) -> None:
    """Record that the files no longer have these texts."""
    settings.remove(database, what.name)


def _has_texts() -> ColumnElement[bool]:
    return or_(*[feedback_table.c[name].is_not(None) for name in ERASED_VALUES])


def _aged(
    policies: LogPolicies, now: datetime
) -> Callable[[Table, ColumnElement[Any], ColumnElement[Any]], ColumnElement[bool]]:
    """A function from a table, its time and its answerer's name to the condition that a row's retention has ended."""
    limited = [(policy, policy.retention_days) for policy in policies.all() if policy.retention_days is not None]

    def aged(table: Table, at: ColumnElement[Any], name: ColumnElement[Any]) -> ColumnElement[bool]:
        subject = {"adapter": name, "key": table.c.key_id}
        theirs = [(subject[policy.scope] == policy.subject, days) for policy, days in limited]
        over = [and_(about, at < now - timedelta(days=days)) for about, days in theirs]
        if policies.retention_days is not None:
            nobodys = [not_(about) for about, _ in theirs]
            over.append(and_(at < now - timedelta(days=policies.retention_days), *nobodys))
        return _any(over)

    return aged


def _any(conditions: Iterable[ColumnElement[bool]]) -> ColumnElement[bool]:
    return or_(False, *conditions)
