"""Feedback on answers: append-only, at any later time, by the answer's id alone.

The id carries the version, arm and probability that are rated, and whether the user was asked, under a MAC. So feedback
is accepted before the answer's row is logged, if it never is, and after it was erased. Rows are never changed; texts
can be erased (``erasure``), and thumbs, scores and preferences stay. Feedback is corrected by sending it again: of two
rows with the same kind of feedback on the same choice, the later one counts.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    insert,
    select,
)

from graftwork.adapters import names
from graftwork.adapters.access import scope
from graftwork.adapters.errors import Conflict, InvalidRequest, Unavailable
from graftwork.adapters.feedback.ids import InteractionIds, ParsedId
from graftwork.adapters.feedback.interactions import READ_AT_ONCE, conditions_on, version_columns
from graftwork.adapters.storage.database import UNREACHABLE, Database, Page, UtcDateTime, schema
from graftwork.adapters.storage.paging import newest_page, rows_in_order
from graftwork.adapters.storage.spool import Spool

Thumb = Literal["up", "down"]
FeedbackKind = Literal["thumb", "score", "correction", "preferred_over", "comment", "metadata"]
FEEDBACK_KINDS: Final[tuple[FeedbackKind, ...]] = get_args(FeedbackKind)

MAX_TEXT_CHARS: Final = 1 << 18
MAX_LABEL_CHARS: Final = 256
MAX_CHOICE: Final = 255
"""More choices than any request may ask for."""


@dataclass(frozen=True, kw_only=True)
class SubmittedFeedback:
    """Feedback on one choice of an answer, as it is sent: at least one of ``FEEDBACK_KINDS``.

    Attributes:
        interaction_id: The answer's id.
        choice: The index of the choice in it.
        thumb: ``up`` or ``down``.
        score: 0 (worst) to 1 (best).
        correction: What the answer should have been.
        preferred_over: The id of an answer to the same prompt that this one is better than.
        preferred_over_choice: Which of its choices.
        comment: Any text, for people.
        metadata: Any pairs, for programs.
        user: Who gives the feedback, if the answer's request named no user.
        episode: The episode that was judged, whose last answer this is; ``None``: the answer alone was.
    """

    interaction_id: str
    choice: int = 0
    thumb: Thumb | None = None
    score: float | None = None
    correction: str | None = None
    preferred_over: str | None = None
    preferred_over_choice: int | None = None
    comment: str | None = None
    metadata: Mapping[str, str] | None = None
    user: str | None = None
    episode: str | None = None

    @property
    def kinds(self) -> tuple[FeedbackKind, ...]:
        """The kinds of feedback that it has."""
        return tuple(kind for kind in FEEDBACK_KINDS if getattr(self, kind) is not None)


@dataclass(frozen=True, kw_only=True)
class Feedback(SubmittedFeedback):
    """A stored row: the feedback, when it was sent and with which key, and the version and arm that it rates.

    ``asked`` is whether a random draw marked the answer, so that its user was asked. ``erased_at`` is when its texts
    were erased. ``id`` is 0 while it waits for the database.
    """

    id: int
    at: datetime
    interaction_at: datetime
    adapter: str | None
    experiment: str | None
    arm: str | None
    probability: float | None
    unit: str | None
    asked: bool = False
    key_id: str
    erased_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackFilter:
    """Selects rows that match all given fields.

    Attributes:
        adapter: A name, a version's id or ``interactions.BARE_BASE``.
        kind: Rows that have this kind of feedback.
        asked: Whether it was asked for.
        since: Sent at this time or later.
        until: Sent before this time.
    """

    interaction_id: str | None = None
    adapter: str | None = None
    experiment: str | None = None
    arm: str | None = None
    kind: FeedbackKind | None = None
    user: str | None = None
    episode: str | None = None
    asked: bool | None = None
    since: datetime | None = None
    until: datetime | None = None


class _FeedbackColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    interaction_id: Named[str] = Column(Text)
    interaction_at = Column(UtcDateTime, nullable=False)
    adapter: Named[str | None] = Column(Text)
    version: Named[int | None] = Column(Integer)
    experiment: Named[str | None] = Column(Text)
    arm: Named[str | None] = Column(Text)
    probability: Named[float | None] = Column(Double)
    unit: Named[str | None] = Column(Text)
    episode: Named[str | None] = Column(Text)
    asked: Named[bool] = Column(Boolean)
    choice: Named[int] = Column(Integer)
    thumb: Named[str | None] = Column(Text)
    score: Named[float | None] = Column(Double)
    correction: Named[str | None] = Column(Text)
    preferred_over: Named[str | None] = Column(Text)
    preferred_over_choice: Named[int | None] = Column(Integer)
    comment: Named[str | None] = Column(Text)
    metadata = Column(JSON(none_as_null=True), nullable=True)
    end_user: Named[str | None] = Column(Text)
    key_id: Named[str] = Column(Text)
    idempotency_key: Named[str | None] = Column(Text)
    erased_at = Column(UtcDateTime, nullable=True)


feedback_table = Table("feedback", schema, _FeedbackColumns)

#: What erasure sets columns to.
ERASED_VALUES: Final = {"correction": None, "comment": None, "metadata": None, "end_user": None}


class FeedbackLog:
    """The feedback of one database. Threads and processes may each have an instance.

    Args:
        database: Where it is stored.
        ids: Reads answers' ids.
        spool: Where it waits while the database is away; ``None``: it is not taken then.
    """

    def __init__(self, database: Database, ids: InteractionIds, spool: Spool | None = None) -> None:
        self._database = database
        self._ids = ids
        self._spool = spool

    def add(
        self, feedback: SubmittedFeedback, *, key_id: str, idempotency_key: str | None = None
    ) -> tuple[Feedback, bool]:
        """Store feedback; it is durable when this returns, also while the database is away, if there is a spool.

        Args:
            feedback: On one choice of an answer.
            key_id: The caller's key.
            idempotency_key: If this key has used it before for the same feedback, nothing is stored.

        Returns:
            The row, and whether it is new. One that waits for the database has no id yet.

        Raises:
            InvalidRequest: The id is none of this server's or out of the caller's scope, or the feedback is empty or
                invalid.
            Conflict: The idempotency key was used for other feedback.
            Unavailable: The database is away, and there is no spool, or no room in it.
        """
        answer = self._visible(feedback.interaction_id, "interaction_id")
        if feedback.preferred_over is not None:
            self._visible(feedback.preferred_over, "preferred_over")
        feedback = _validate(feedback, self._ids)
        _check_choice(feedback.choice, answer, "choice")
        if idempotency_key is not None:
            names.check_text(idempotency_key, param="idempotency_key", max_chars=MAX_LABEL_CHARS)
        elif self._spool is not None:
            # Whether a commit came through cannot be known when the connection breaks in it: the second time it must
            # be recognised.
            idempotency_key = uuid.uuid4().hex
        try:
            return self._store(feedback, key_id, idempotency_key)
        except Unavailable as error:
            if self._spool is None or idempotency_key is None or error.code != UNREACHABLE:
                raise
            return self._keep(self._spool, feedback, key_id, idempotency_key)

    def deliver(self, waiting: Mapping[str, Any]) -> None:
        """Store feedback that has waited in the spool, unless it is there already.

        Raises:
            Conflict: The idempotency key was used for other feedback meanwhile.
            Unavailable: The database is away.
        """
        self._store(SubmittedFeedback(**waiting["feedback"]), waiting["key_id"], waiting["idempotency_key"])

    def _store(self, feedback: SubmittedFeedback, key_id: str, idempotency_key: str | None) -> tuple[Feedback, bool]:
        row = self._row(feedback, key_id, idempotency_key)
        # Its own keys are all that is decided by, and whoever adds feedback waits for the others who do.
        with self._database.append("feedback") as connection:
            known = None if idempotency_key is None else _known(connection, key_id, idempotency_key)
            if known is not None:
                return _repeated(known, feedback), False
            # Read inside the transaction, so that times are in the order of ids.
            row["at"] = datetime.now(UTC)
            (id,) = connection.execute(insert(feedback_table).values(row)).inserted_primary_key or (None,)
            return _feedback(connection.execute(select(feedback_table).where(feedback_table.c.id == id)).one()), True

    def _keep(
        self, spool: Spool, feedback: SubmittedFeedback, key_id: str, idempotency_key: str
    ) -> tuple[Feedback, bool]:
        """Keep feedback until the database is back."""
        key = json.dumps([key_id, idempotency_key])
        body = {"feedback": asdict(feedback), "key_id": key_id, "idempotency_key": idempotency_key}
        kept = spool.keep("feedback", {key: body})[key]
        known = SubmittedFeedback(**kept["feedback"])
        row = self._row(known, key_id, idempotency_key)
        waiting = _feedback(SimpleNamespace(**row, id=0, at=datetime.now(UTC), erased_at=None))
        return (waiting, True) if kept is body else (_repeated(waiting, feedback), False)

    def _row(self, feedback: SubmittedFeedback, key_id: str, idempotency_key: str | None) -> dict[str, Any]:
        answer = self._ids.read(feedback.interaction_id)
        adapter, version = version_columns(answer.adapter)
        return {
            **{field: getattr(feedback, field) for field in _SUBMITTED_FIELDS},
            "end_user": feedback.user,
            "interaction_at": datetime.fromtimestamp(answer.at, UTC),
            "adapter": adapter,
            "version": version,
            "experiment": answer.experiment,
            "arm": answer.arm,
            "probability": answer.probability,
            "unit": answer.unit,
            "asked": answer.asked,
            "key_id": key_id,
            "idempotency_key": idempotency_key,
        }

    def _visible(self, id: str, param: str) -> ParsedId:
        """The content of the id of an answer that the present caller may see."""
        answer = self._ids.read(id, param=param)
        adapter, _ = version_columns(answer.adapter)
        seen = scope.visible(adapter)
        if adapter is None and answer.experiment is not None and scope.current() is not None:
            try:
                with self._database.read() as connection:
                    seen = scope.experiment_visible(connection, answer.experiment)
            except Unavailable as error:
                if error.code != UNREACHABLE:
                    raise
                # Whose experiment it is cannot be read now. Nobody can make an id up, so the caller was given this one.
                seen = True
        if not seen:
            raise self._ids.unknown(id, param)
        return answer

    def find(
        self, which: FeedbackFilter = FeedbackFilter(), *, after: int | None = None, limit: int = 20
    ) -> Page[Feedback]:
        """A page of rows, newest first.

        Args:
            which: Selects rows.
            after: The last id of the page before.
            limit: 1 to 100.
        """
        query = select(feedback_table).where(*_conditions(which))
        return newest_page(self._database, query, feedback_table.c.id, _feedback, after=after, limit=limit)

    def each(self, which: FeedbackFilter = FeedbackFilter(), *, after: int = 0) -> Iterator[Feedback]:
        """All rows, oldest first, beginning after the id ``after``, read in batches.

        Ids grow in the order in which rows become visible: continuing after the last one misses nothing.
        """
        query = select(feedback_table).where(*_conditions(which))
        rows = rows_in_order(self._database, query, feedback_table.c.id, after=after, at_once=READ_AT_ONCE)
        return map(_feedback, rows)

    def of_units(self, units: Collection[str], *, adapter: str, since: datetime, until: datetime) -> list[Feedback]:
        """What was said of an adapter's answers to these units, oldest first.

        Args:
            units: At most some hundred.
            adapter: A name.
            since: Of answers of this time or later.
            until: Of answers, and said, before this time.
        """
        columns = feedback_table.c
        query = select(feedback_table).where(
            columns.unit.in_(units), columns.adapter == adapter, columns.interaction_at >= since, columns.at < until
        )
        with self._database.read() as connection:
            return [_feedback(row) for row in connection.execute(query.order_by(columns.id))]


def _validate(feedback: SubmittedFeedback, ids: InteractionIds) -> SubmittedFeedback:
    if not feedback.kinds:
        raise InvalidRequest(
            f"nothing is said of the answer: send at least one of {', '.join(FEEDBACK_KINDS)}",
            code="missing_required_parameter",
        )
    for field, max_chars in (("correction", MAX_TEXT_CHARS), ("comment", MAX_TEXT_CHARS), ("user", MAX_LABEL_CHARS)):
        if (text := getattr(feedback, field)) is not None:
            names.check_text(text, param=field, max_chars=max_chars)
    if feedback.score is not None and not 0 <= feedback.score <= 1:
        raise InvalidRequest(f"score is {feedback.score}: use 0 (worst) to 1 (best)", param="score")
    for field in ("choice", "preferred_over_choice"):
        if not 0 <= (getattr(feedback, field) or 0) <= MAX_CHOICE:
            raise InvalidRequest(f"{field} is the index of a choice, from 0", param=field)
    if feedback.preferred_over is None:
        if feedback.preferred_over_choice is not None:
            raise InvalidRequest(
                "preferred_over_choice is the choice of another answer: name that answer in preferred_over",
                param="preferred_over_choice",
            )
        return feedback
    other = feedback.preferred_over_choice or 0
    _check_choice(other, ids.read(feedback.preferred_over, param="preferred_over"), "preferred_over_choice")
    if (feedback.preferred_over, other) == (feedback.interaction_id, feedback.choice):
        raise InvalidRequest(
            "an answer cannot be preferred over itself: name the other one, or another of its choices with "
            "preferred_over_choice",
            param="preferred_over",
        )
    return SubmittedFeedback(**{**vars(feedback), "preferred_over_choice": other})


def _check_choice(choice: int, answer: ParsedId, param: str) -> None:
    if answer.choices is not None and choice >= answer.choices:
        has = "one choice, 0" if answer.choices == 1 else f"choices from 0 to {answer.choices - 1}"
        raise InvalidRequest(f"{param} is {choice}, but that answer has {has}", param=param)


def _known(connection: Connection, key_id: str, idempotency_key: str) -> Feedback | None:
    same = (feedback_table.c.key_id == key_id, feedback_table.c.idempotency_key == idempotency_key)
    row = connection.execute(select(feedback_table).where(*same)).one_or_none()
    return None if row is None else _feedback(row)


def _repeated(known: Feedback, feedback: SubmittedFeedback) -> Feedback:
    """The stored row, if the same feedback was sent again. Erased texts cannot be compared any more."""
    compared = _FIELDS_AFTER_ERASURE if known.erased_at is not None else (*_SUBMITTED_FIELDS, "user")
    # An episode may have got another answer since.
    same_episode = known.episode is not None and known.episode == feedback.episode
    for field in compared:
        if field == "interaction_id" and same_episode:
            continue
        if getattr(known, field) != getattr(feedback, field):
            raise Conflict(
                f"this idempotency key was used before, for feedback with another {field}: "
                "use a new key for every new thing to say",
                param="idempotency_key",
                code="idempotency_key_reused",
            )
    return known


def _conditions(which: FeedbackFilter) -> list[ColumnElement[bool]]:
    conditions = conditions_on(
        feedback_table,
        feedback_table.c.at,
        which,
        interaction_id=which.interaction_id,
        experiment=which.experiment,
        arm=which.arm,
        end_user=which.user,
        episode=which.episode,
    )
    if which.kind is not None:
        conditions.append(feedback_table.c[which.kind].is_not(None))
    if which.asked is not None:
        conditions.append(feedback_table.c.asked == which.asked)
    return conditions


def _feedback(row: Row[*tuple[Any, ...]] | SimpleNamespace) -> Feedback:
    return Feedback(
        **{field: getattr(row, field) for field in (*_SUBMITTED_FIELDS, *_ROW_FIELDS)},
        user=row.end_user,
        adapter=None if row.adapter is None else f"{row.adapter}@{row.version}",
    )


_SUBMITTED_FIELDS = tuple(field for field in SubmittedFeedback.__dataclass_fields__ if field != "user")
_FIELDS_AFTER_ERASURE = tuple(field for field in _SUBMITTED_FIELDS if field not in ERASED_VALUES)
_ROW_FIELDS = ("id", "at", "interaction_at", "experiment", "arm", "probability", "unit", "asked", "key_id", "erased_at")
