"""Learning policies: when an adapter is trained by itself, and whether a round is due now.

A round's job is an ordinary one from feedback that continues the live version. Every so many rounds one is a control
instead, which begins with the base and trains on everything that earlier jobs were trained on. Whether a round is due
follows from the rounds, the jobs and the feedback; it begins, and its job is submitted, in one transaction with that
check. So none begins twice, whatever crashes and however many processes check at once.

New judgements are those since the last job from feedback began, also one that was submitted by hand. After a round that
failed, as many are needed again, and some time must pass, longer after each failure.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Double,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    delete,
    func,
    insert,
    or_,
    select,
)

from graftwork.adapters import names
from graftwork.adapters.access import scope
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.feedback.feedback import feedback_table
from graftwork.adapters.learning.job import CONTROL_KEY, ENDED_STATUSES, FEEDBACK_FILE, Method, NewJob, NewJobEvent
from graftwork.adapters.learning.job_tables import jobs_table
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.experiment import RoundExperiment
from graftwork.adapters.learning.rounds.round import UNDER_WAY_STATES, Round
from graftwork.adapters.learning.rounds.table import insert_round, round_of, rounds_table
from graftwork.adapters.names import LIVE
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database, UtcDateTime, schema
from graftwork.adapters.storage.leases import Fence

KEY_ID: Final = "learning-policy"
"""The ``key_id`` of jobs that a policy submits."""

ACTOR: Final = "keeper"

DEFAULT_AFTER: Final = 50
DEFAULT_EVERY_DAYS: Final = 7.0
DEFAULT_AT_LEAST: Final = 10
MAX_JUDGEMENTS: Final = 1_000_000
MAX_DAYS: Final = 3650.0
MAX_ROUNDS: Final = 1000

BACKOFF: Final = timedelta(minutes=10)
LONGEST_BACKOFF: Final = timedelta(days=1)

ALL: Final = "all"
"""The key of all judgements in a count by kind."""


@dataclass(frozen=True, kw_only=True)
class LearningPolicy:
    """When an adapter is trained on the feedback on its answers.

    Attributes:
        name: The adapter.
        after: After so many new judgements; ``None``: never for their number alone.
        every_days: So long after the last round, if there are ``at_least`` new judgements; ``None``: never for time
            alone.
        at_least: For ``every_days``.
        control_every: Every so many rounds one is a control; ``None``: none is.
        method: Of its jobs.
        hyperparameters: Of its jobs.
        experiment: The experiment that decides about a candidate; ``None``: a person does.
        actor: Who set it last.
        created_at: When it was first set.
        updated_at: When it was last set.
    """

    name: str
    after: int | None
    every_days: float | None
    at_least: int
    control_every: int | None
    method: Method
    hyperparameters: Mapping[str, Any]
    experiment: RoundExperiment | None = None
    actor: str
    created_at: datetime
    updated_at: datetime

    def to_json(self) -> dict[str, Any]:
        """What the policy says of its rounds, as it is stored with each of them."""
        names_ = ("after", "every_days", "at_least", "control_every", "method")
        return {
            **{name: getattr(self, name) for name in names_},
            "hyperparameters": dict(self.hyperparameters),
            "experiment": None if self.experiment is None else self.experiment.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class PolicyStatus:
    """The state of a policy.

    Attributes:
        judgements: New ones since the last job from feedback that succeeded.
        by_kind: How many of these there are of each kind; one that is of two counts for both.
        rounds: How many rounds the adapter has in each state.
        last: Its last round.
        next_is_control: Whether the next one is.
        under_way: What goes on of the adapter, so that no round may begin, in words; empty if nothing does.
        waits_for: What the next round waits for, in words; empty when it is due.
    """

    judgements: int
    by_kind: Mapping[str, int]
    rounds: Mapping[str, int]
    last: Round | None
    next_is_control: bool
    under_way: str
    waits_for: str

    @property
    def due(self) -> bool:
        """Whether the next round is due."""
        return not self.waits_for

    @property
    def next_number(self) -> int:
        """The number of the next round."""
        return 1 if self.last is None else self.last.number + 1

    @property
    def num_rounds(self) -> int:
        """Rounds so far."""
        return sum(self.rounds.values())


class _LearningPolicyColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    after: Named[int | None] = Column(Integer)
    every_days: Named[float | None] = Column(Double)
    at_least: Named[int] = Column(Integer)
    control_every: Named[int | None] = Column(Integer)
    method: Named[str] = Column(Text)
    hyperparameters = Column(JSON, nullable=False)
    experiment = Column(JSON(none_as_null=True), nullable=True)
    actor: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    updated_at = Column(UtcDateTime, nullable=False)


_policies = Table("learning_policies", schema, _LearningPolicyColumns)


class LearningPolicies:
    """The policies of one database.

    Args:
        database: Where they are stored.
        registry: Has the live versions.
        queue: Where rounds are submitted.
        base_id: What controls begin with.
        now: The clock, in UTC.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        queue: Jobs,
        *,
        base_id: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._registry = registry
        self._queue = queue
        self._base_id = base_id
        self._now = now

    def all(self) -> list[tuple[LearningPolicy, PolicyStatus]]:
        """All policies by name, each with its status, at one moment."""
        with self._database.read() as connection:
            query = select(_policies).where(*scope.rows_about(_policies.c.name)).order_by(_policies.c.name)
            policies = [_policy(row) for row in connection.execute(query)]
            return [(policy, self._status(connection, policy)) for policy in policies]

    def get(self, name: str) -> tuple[LearningPolicy, PolicyStatus]:
        """The policy of an adapter, with its status.

        Raises:
            NotFound: It has none.
        """
        with self._database.read() as connection:
            policy = _get(connection, name)
            return policy, self._status(connection, policy)

    def set(
        self,
        name: str,
        *,
        after: int | None = DEFAULT_AFTER,
        every_days: float | None = DEFAULT_EVERY_DAYS,
        at_least: int = DEFAULT_AT_LEAST,
        control_every: int | None = None,
        method: Method = "auto",
        hyperparameters: Mapping[str, Any] | None = None,
        experiment: RoundExperiment | None = None,
        actor: str,
    ) -> LearningPolicy:
        """Set the policy of an adapter.

        Raises:
            NotFound: There is no such adapter.
            InvalidRequest: A number is out of range, or nothing would ever be due.
        """
        self._registry.adapter(name)
        if after is None and every_days is None:
            raise InvalidRequest(
                "after and every_days are both off, and so nothing would ever be learned: give one, or remove the "
                "policy",
                param="after",
            )
        _check("after", after, 1, MAX_JUDGEMENTS)
        _check("at_least", at_least, 1, MAX_JUDGEMENTS)
        _check("control_every", control_every, 1, MAX_ROUNDS)
        if every_days is not None and not 0 < every_days <= MAX_DAYS:
            raise InvalidRequest(
                f"every_days is {every_days:g}: use more than 0 and at most {MAX_DAYS:g}", param="every_days"
            )
        if experiment is not None:
            experiment.check()
        now = self._now()
        with self._database.write() as connection:
            before = _find(connection, name)
            policy = LearningPolicy(
                name=name,
                after=after,
                every_days=every_days,
                at_least=at_least,
                control_every=control_every,
                method=method,
                hyperparameters=dict(hyperparameters or {}),
                experiment=experiment,
                actor=actor,
                created_at=now if before is None else before.created_at,
                updated_at=now,
            )
            connection.execute(delete(_policies).where(_policies.c.name == name))
            stored = {"experiment": None if experiment is None else experiment.to_json()}
            connection.execute(insert(_policies).values(vars(policy) | stored))
        return policy

    def remove(self, name: str) -> LearningPolicy:
        """Remove a policy; a running round goes on.

        Raises:
            NotFound: There is none.
        """
        with self._database.write() as connection:
            policy = _get(connection, name)
            connection.execute(delete(_policies).where(_policies.c.name == name))
        return policy

    def begin(self, name: str, *, fence: Fence = lambda connection: None) -> Round | None:
        """Begin the next round if it is due, in one transaction with that check.

        Args:
            name: The adapter.
            fence: Called with the connection, in the transaction; may raise.

        Returns:
            The round; ``None`` if none is due.
        """
        with self._database.write() as connection:
            fence(connection)
            policy = _find(connection, name)
            if policy is None:
                return None
            status = self._status(connection, policy)
            return self._submit(connection, policy, status, ACTOR) if status.due else None

    def begin_now(self, name: str, *, actor: str) -> Round:
        """Begin the next round without waiting until it is due.

        Raises:
            NotFound: The adapter has no policy.
            Conflict: A round or a job of it is under way, or nobody has judged an answer yet.
        """
        with self._database.write() as connection:
            policy = _get(connection, name)
            status = self._status(connection, policy)
            if status.under_way:
                raise Conflict(f"{names.quoted(name)} waits for {status.under_way}: wait, too", code="round_under_way")
            if not judgements_by_kind(connection, name)[ALL]:
                raise Conflict(
                    f"nobody has judged an answer of {names.quoted(name)} yet: there is nothing to learn from",
                    code="no_judgements",
                )
            return self._submit(connection, policy, status, actor)

    def _submit(self, connection: Connection, policy: LearningPolicy, status: PolicyStatus, actor: str) -> Round:
        number = status.next_number
        # The only writer: what is live now is live when the job is committed.
        live = self._registry.resolve(f"{policy.name}@{LIVE}").id
        control = status.next_is_control
        begins = (
            f"a control beside {live}, from the base: all there is is learned again"
            if control
            else f"it continues {live}"
        )
        metadata = {"learning_policy": policy.name, "round": str(number)}
        job, _ = self._queue.submit(
            NewJob(
                model=self._base_id if control else live,
                name=policy.name,
                parent=None if control else live,
                method=policy.method,
                hyperparameters=policy.hyperparameters,
                training_file=FEEDBACK_FILE,
                metadata={**metadata, CONTROL_KEY: live} if control else metadata,
            ),
            actor=actor,
            key_id=KEY_ID,
            # The database itself refuses a second round of this number.
            idempotency_key=f"{policy.name}/{number}",
            events=[
                NewJobEvent(
                    message=f"Round {number} of the learning policy of {policy.name}: {status.judgements} new "
                    f"judgements; {begins}."
                )
            ],
            within=connection,
        )
        now = self._now()
        begun = Round(
            id=f"round-{secrets.token_hex(12)}",
            adapter=policy.name,
            number=number,
            state="collecting",
            reason=f"{status.judgements} new judgements; {begins}",
            control=control,
            continues=job.parent,
            live=live,
            judgements=status.by_kind,
            policy=policy.to_json(),
            job=job.id,
            created_by=actor,
            created_at=now,
            updated_at=now,
        )
        insert_round(connection, begun)
        return begun

    def _status(self, connection: Connection, policy: LearningPolicy) -> PolicyStatus:
        seen, rounds = connection.execute(_jobs_of(policy.name)).all(), _rounds_of(connection, policy.name)
        last = (
            connection.execute(select(rounds_table).where(rounds_table.c.id == rounds[-1].id)).one() if rounds else None
        )
        learned = [row for row in seen if row.training_file == FEEDBACK_FILE and row.status in ENDED_STATUSES]
        good = [row.created_at for row in learned if row.status == "succeeded"]
        succeeded = sum(row.key_id == KEY_ID and row.status == "succeeded" for row in seen)
        since = good[-1] if good else None
        by_kind = judgements_by_kind(connection, policy.name, since=since)
        under_way = _under_way(seen, rounds)
        return PolicyStatus(
            judgements=by_kind.pop(ALL),
            by_kind=by_kind,
            rounds=Counter(row.state for row in rounds),
            last=None if last is None else round_of(last),
            next_is_control=policy.control_every is not None and (succeeded + 1) % policy.control_every == 0,
            under_way=under_way,
            waits_for=under_way or self._waits_for(connection, policy, learned),
        )

    def _waits_for(
        self,
        connection: Connection,
        policy: LearningPolicy,
        learned: Sequence[Row[*tuple[Any, ...]]],
    ) -> str:
        """What the next round waits for.

        ``learned`` are the ended jobs from feedback, also failed ones, the oldest first.
        """
        now = self._now()
        failures = _failed_in_a_row([row.status for row in learned])
        if failures:
            again = learned[-1].finished_at + min(BACKOFF * 2 ** min(failures - 1, 16), LONGEST_BACKOFF)
            if now < again:
                return f"{_moment(again)}, since {'the last round' if failures == 1 else f'{failures} rounds'} failed"
        began = learned[-1].created_at if learned else None
        fresh = judgements_by_kind(connection, policy.name, since=began)[ALL]
        reasons = []
        if policy.after is not None:
            if fresh >= policy.after:
                return ""
            reasons.append(_more(policy.after - fresh))
        if policy.every_days is not None:
            time = (began or policy.created_at) + timedelta(days=policy.every_days)
            if now >= time and fresh >= policy.at_least:
                return ""
            missing = [_moment(time)] if now < time else []
            missing += [_more(policy.at_least - fresh)] if fresh < policy.at_least else []
            reasons.append(" with ".join(missing))
        return ", or ".join(dict.fromkeys(reasons))


# --- inside a transaction ---------------------------------------------------------------------------------------------


def _find(connection: Connection, name: str) -> LearningPolicy | None:
    row = connection.execute(select(_policies).where(_policies.c.name == name)).one_or_none()
    return None if row is None else _policy(row)


def _get(connection: Connection, name: str) -> LearningPolicy:
    policy = _find(connection, name)
    if policy is None or not scope.visible(name):
        raise NotFound(
            f"the adapter {names.quoted(name)} has no learning policy: graftwork train {names.quoted(name)} --watch "
            "sets one",
            code="policy_not_found",
        )
    return policy


def _jobs_of(name: str) -> Any:
    """The adapter's jobs, the oldest first, with the columns that decide whether a round is due."""
    columns = ("id", "status", "created_at", "finished_at", "key_id", "training_file")
    return (
        select(*(jobs_table.c[column] for column in columns))
        .where(jobs_table.c.name == name)
        .order_by(jobs_table.c.number)
    )


def _rounds_of(connection: Connection, name: str) -> Sequence[Row[*tuple[Any, ...]]]:
    """The adapter's rounds, the oldest first, with what decides whether another one may begin."""
    columns = (rounds_table.c[column] for column in ("id", "number", "state", "experiment"))
    query = select(*columns).where(rounds_table.c.adapter == name).order_by(rounds_table.c.number)
    return connection.execute(query).all()


def _under_way(seen: Sequence[Row[*tuple[Any, ...]]], rounds: Sequence[Row[*tuple[Any, ...]]]) -> str:
    """What goes on of an adapter, so that no round may begin, in words; empty if nothing does.

    Args:
        seen: Its jobs.
        rounds: Its rounds.
    """
    jobs = [row.id for row in seen if row.status not in ENDED_STATUSES]
    if jobs:
        return f"the end of {jobs[-1]}"
    for row in rounds:
        if row.state in UNDER_WAY_STATES:
            return f"the end of the experiment {row.experiment}" if row.experiment else f"the end of round {row.number}"
    return ""


def judgements_by_kind(connection: Connection, name: str, *, since: datetime | None = None) -> Counter[str]:
    """The number of judgements of an adapter's answers, by kind and as ``ALL``; comments and metadata are none."""
    table, after = feedback_table.c, 0
    if since is not None:
        # Times are in the order of ids, and an index on them finds the newest one.
        last = select(table.id).where(table.at <= since).order_by(table.at.desc(), table.id.desc()).limit(1)
        after = connection.scalar(last) or 0
    kinds = {kind: func.count(table[kind]) for kind in ("thumb", "score", "correction", "preferred_over")}
    judged = or_(*(table[kind].is_not(None) for kind in kinds))
    query = select(func.count().label(ALL), *(count.label(kind) for kind, count in kinds.items()))
    row = connection.execute(query.where(table.adapter == name, table.id > after, judged)).one()
    return Counter({kind: count for kind, count in row._mapping.items() if count or kind == ALL})


# --- plain values -----------------------------------------------------------------------------------------------------


def _failed_in_a_row(statuses: Sequence[str]) -> int:
    """Failures at the end. Cancelled jobs say nothing about whether the next one would fail."""
    count = 0
    for status in reversed(statuses):
        if status == "succeeded":
            break
        count += status == "failed"
    return count


def _check(param: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidRequest(f"{param} is {value}: use a whole number from {least} to {most}", param=param)


def _more(count: int) -> str:
    return f"{count} more judgement{'' if count == 1 else 's'}"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _policy(row: Row[*tuple[Any, ...]]) -> LearningPolicy:
    stored = row.experiment
    return LearningPolicy(
        **{**row._mapping, "experiment": None if stored is None else RoundExperiment.from_json(stored)}
    )
