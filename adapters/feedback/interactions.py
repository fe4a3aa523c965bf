"""The log of requests and their answers: written in batches, read by filter.

A row is written once, when its answer has ended, completely or not. What its id carries (time, version, arm) is taken
from the id, so that row and id cannot disagree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Double,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    select,
    tuple_,
)

from graftwork.adapters import names
from graftwork.adapters.access import scope
from graftwork.adapters.errors import NotFound
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.storage.database import Database, Page, UtcDateTime, check_limit, schema

InteractionStatus = Literal["ok", "error", "cancelled"]

BARE_BASE: Final = ""
"""A filter's ``adapter`` for answers of the base without any adapter."""

READ_AT_ONCE: Final = 200
"""Rows that are read in one query. No transaction is open between two of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One of a request's answers.

    Attributes:
        finish_reason: ``None`` if it was interrupted.
        tool_calls: As OpenAI's messages have them.
    """

    index: int
    text: str
    finish_reason: str | None
    tool_calls: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class NewInteraction:
    """What is logged of a request beside what its id carries.

    Attributes:
        id: The answer's.
        base: The base's id.
        model: What the request named.
        status: ``ok``; ``error``; or ``cancelled``, because the client left.
        error: The message of an error.
        prompt: What the model saw: ``{"messages": […]}``, or ``{"prompt": […]}`` with texts or lists of token ids. See
            ``prompt_as_sent`` for what the client sent.
        sampling: The sampling parameters that the request gave, or the arm of an experiment instead.
        completions: One per choice, as far as they were generated.
        prompt_tokens: Of all prompts.
        completion_tokens: Generated tokens of all choices.
        queue_ms: From admission to the first step in the engine; ``None`` if unknown.
        first_token_ms: From admission to the first token; ``None`` without one.
        total_ms: From admission to the answer's end.
        user: As the request named it.
        metadata: As the request gave it.
        key_id: The caller's key, or ``local``.
        episode: The episode that it is part of, as ``InteractionIds.episode`` makes it.
    """

    id: str
    base: str
    model: str
    status: InteractionStatus
    error: str | None = None
    prompt: Mapping[str, Any]
    sampling: Mapping[str, Any]
    completions: tuple[Completion, ...]
    prompt_tokens: int
    completion_tokens: int
    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    key_id: str
    episode: str | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> NewInteraction:
        """From what ``dataclasses.asdict`` made of one, as JSON."""
        return cls(**{**fields, "completions": tuple(Completion(**item) for item in fields["completions"])})


@dataclass(frozen=True, kw_only=True)
class Interaction(NewInteraction):
    """A logged row: what was written, and what its id carries (``ids.ParsedId``)."""

    created_at: datetime
    kind: str
    adapter: str | None
    experiment: str | None
    arm: str | None
    probability: float | None
    unit: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of all choices."""
        return tuple(completion.text for completion in self.completions)


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionFilter:
    """Selects rows that match all given fields.

    Attributes:
        adapter: A name, a version's id or ``BARE_BASE``.
        since: Admitted at this time or later.
        until: Admitted before this time.
    """

    adapter: str | None = None
    experiment: str | None = None
    arm: str | None = None
    status: InteractionStatus | None = None
    user: str | None = None
    key_id: str | None = None
    episode: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class _InteractionColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    created_at = Column(UtcDateTime, nullable=False)
    kind: Named[str] = Column(Text)
    base: Named[str] = Column(Text)
    model: Named[str] = Column(Text)
    adapter: Named[str | None] = Column(Text)
    version: Named[int | None] = Column(Integer)
    experiment: Named[str | None] = Column(Text)
    arm: Named[str | None] = Column(Text)
    probability: Named[float | None] = Column(Double)
    unit: Named[str | None] = Column(Text)
    status: Named[str] = Column(Text)
    error: Named[str | None] = Column(Text)
    prompt = Column(JSON, nullable=False)
    sampling = Column(JSON, nullable=False)
    completions = Column(JSON, nullable=False)
    prompt_tokens: Named[int] = Column(Integer)
    completion_tokens: Named[int] = Column(Integer)
    queue_ms: Named[float | None] = Column(Double)
    first_token_ms: Named[float | None] = Column(Double)
    total_ms: Named[float] = Column(Double)
    # "user" is a reserved word of PostgreSQL.
    end_user: Named[str | None] = Column(Text)
    metadata = Column(JSON(none_as_null=True), nullable=True)
    key_id: Named[str] = Column(Text)
    episode: Named[str | None] = Column(Text)


interactions_table = Table("interactions", schema, _InteractionColumns)


class Interactions:
    """The interactions of one database. Threads and processes may each have an instance.

    Args:
        database: Where they are stored.
        ids: Reads answers' ids.
    """

    def __init__(self, database: Database, ids: InteractionIds) -> None:
        self._database = database
        self._ids = ids

    def write(self, outcomes: Sequence[NewInteraction]) -> None:
        """Write rows in one transaction; they are durable when this returns.

        A row that is there already stays as it is, so that a batch may be written again after a failure.
        """
        rows = {outcome.id: self._values(outcome) for outcome in outcomes}
        # Those of experiments become exposures, which are read in order.
        exposed = any(row["experiment"] is not None for row in rows.values())
        with self._database.append("exposures" if exposed else None) as connection:
            connection.execute(self._database.insert_new(interactions_table), list(rows.values()))

    def get(self, id: str) -> Interaction:
        """A row by its id.

        Raises:
            NotFound: It was not logged, or was erased.
        """
        found = self.get_many([id])
        if id not in found:
            raise NotFound(
                f"no interaction {names.quoted(id)} is logged: check the id; what was sent with store false or under "
                "a policy is not logged, and what is logged goes when its time is over",
                param="id",
                code="interaction_not_found",
            )
        return found[id]

    def get_many(self, ids: Collection[str]) -> dict[str, Interaction]:
        """The rows of these ids that are there, by id. At most some thousand at a time."""
        query = select(interactions_table).where(interactions_table.c.id.in_(list(ids)), *_visible())
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {row.id: _interaction(row) for row in rows}

    def last_of_episode(self, episode: str) -> str | None:
        """The id of an episode's last answer that is complete, or else of its last one; ``None``: none is logged."""
        columns = interactions_table.c
        # Times are whole seconds: of two answers in one, the later one's prompt has the earlier one's answer in it.
        order = (
            (columns.status == "ok").desc(),
            columns.created_at.desc(),
            columns.prompt_tokens.desc(),
            columns.id.desc(),
        )
        with self._database.read() as connection:
            query = select(columns.id).where(columns.episode == episode, *_visible())
            return connection.scalar(query.order_by(*order).limit(1))

    def find(
        self, which: InteractionFilter = InteractionFilter(), *, after: str | None = None, limit: int = 20
    ) -> Page[Interaction]:
        """A page of rows, newest first.

        Args:
            which: Selects rows.
            after: The last id of the page before, whether or not that row is still there.
            limit: 1 to 100.
        """
        check_limit(limit)
        query = select(interactions_table).where(*_conditions(which))
        if after is not None:
            query = query.where(_sort_key < (self._moment(after), after))
        query = query.order_by(interactions_table.c.created_at.desc(), interactions_table.c.id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            return Page.of([_interaction(row) for row in connection.execute(query)], limit)

    def each(self, which: InteractionFilter = InteractionFilter()) -> Iterator[Interaction]:
        """All rows, oldest first, read in batches. Rows that are written meanwhile may or may not be among them."""
        query = select(interactions_table).where(*_conditions(which))
        query = query.order_by(interactions_table.c.created_at, interactions_table.c.id).limit(READ_AT_ONCE)
        place: tuple[datetime, str] | None = None
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query if place is None else query.where(_sort_key > place)).all()
            yield from map(_interaction, rows)
            if len(rows) < READ_AT_ONCE:
                return
            place = (rows[-1].created_at, rows[-1].id)

    def _moment(self, id: str) -> datetime:
        return datetime.fromtimestamp(self._ids.read(id, param="after").at, UTC)

    def _values(self, outcome: NewInteraction) -> dict[str, Any]:
        parsed = self._ids.read(outcome.id)
        adapter, version = version_columns(parsed.adapter)
        return {
            **{field: getattr(outcome, field) for field in _PLAIN_FIELDS},
            "completions": [asdict(completion) for completion in outcome.completions],
            "end_user": outcome.user,
            "created_at": datetime.fromtimestamp(parsed.at, UTC),
            "kind": "cmpl" if parsed.kind == "cmpl" else "chatcmpl",  # of the prompt: the other routes have messages
            "adapter": adapter,
            "version": version,
            "experiment": parsed.experiment,
            "arm": parsed.arm,
            "probability": parsed.probability,
            "unit": parsed.unit,
        }


def prompt_as_sent(prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    """A logged prompt as the client sent it, without an arm's system message.

    Where an arm's system message stands first, ``replaced`` has the messages that stood there: one or none.
    """
    if "replaced" not in prompt:
        return prompt
    sent = {name: value for name, value in prompt.items() if name != "replaced"}
    return sent | {"messages": [*prompt["replaced"], *prompt["messages"][1:]]}


_PLAIN_FIELDS = [field for field in NewInteraction.__dataclass_fields__ if field not in ("completions", "user")]
_sort_key = tuple_(interactions_table.c.created_at, interactions_table.c.id)


def version_columns(adapter: str | None) -> tuple[str | None, int | None]:
    """``intents@7`` as the columns ``adapter`` and ``version``; both ``None`` for the bare base."""
    if adapter is None:
        return None, None
    name, _, number = adapter.rpartition("@")
    return name, int(number)


def answered_by(table: Table, adapter: str) -> list[ColumnElement[bool]]:
    """The conditions on those two columns for a filter's ``adapter``; a malformed version matches nothing."""
    if adapter == BARE_BASE:
        return [table.c.adapter.is_(None)]
    name, at, number = adapter.partition("@")
    if not at:
        return [table.c.adapter == name]
    return [table.c.adapter == name, table.c.version == (int(number) if number.isdecimal() and len(number) < 10 else 0)]


class LogFilter(Protocol):
    """The fields that filters of several tables have in common."""

    @property
    def adapter(self) -> str | None:
        """A name, a version's id or ``BARE_BASE``."""

    @property
    def since(self) -> datetime | None:
        """At this time or later."""

    @property
    def until(self) -> datetime | None:
        """Before this time."""


def conditions_on(
    table: Table, at: ColumnElement[Any], which: LogFilter, **equal: str | None
) -> list[ColumnElement[bool]]:
    """The conditions of a filter on a table, and of what the present caller may see.

    Args:
        table: With the columns ``adapter``, ``version`` and ``experiment``.
        at: The column of a row's time.
        which: The filter.
        equal: Values by column; ``None`` is any.
    """
    return [
        *scope.answers_of(table.c.adapter, table.c.experiment),
        *([] if which.adapter is None else answered_by(table, which.adapter)),
        *(table.c[column] == value for column, value in equal.items() if value is not None),
        *([] if which.since is None else [at >= which.since]),
        *([] if which.until is None else [at < which.until]),
    ]


def _conditions(which: InteractionFilter) -> list[ColumnElement[bool]]:
    return conditions_on(
        interactions_table,
        interactions_table.c.created_at,
        which,
        experiment=which.experiment,
        arm=which.arm,
        status=which.status,
        end_user=which.user,
        key_id=which.key_id,
        episode=which.episode,
    )


def _visible() -> list[ColumnElement[bool]]:
    return scope.answers_of(interactions_table.c.adapter, interactions_table.c.experiment)


def _interaction(row: Row[*tuple[Any, ...]]) -> Interaction:
    return Interaction(
        **{field: getattr(row, field) for field in (*_PLAIN_FIELDS, *_ID_FIELDS)},
        adapter=None if row.adapter is None else f"{row.adapter}@{row.version}",
        completions=tuple(
            Completion(**{**completion, "tool_calls": tuple(completion.get("tool_calls", ()))})
            for completion in row.completions
        ),
        user=row.end_user,
    )


_ID_FIELDS = ("created_at", "kind", "experiment", "arm", "probability", "unit")
