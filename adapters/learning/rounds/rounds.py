"""The rounds of a database: read, carried on step by step, undone.

Each step is one transaction that checks the state it begins with and stores the state it ends with. So each is taken
once, whoever is killed, and however many processes carry the rounds on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, func, select

from graftwork.adapters import names
from graftwork.adapters.access import scope
from graftwork.adapters.errors import Conflict, GraftworkError, InvalidRequest
from graftwork.adapters.experiments.guard import ExperimentGuard
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.experiments.tables import require_experiment
from graftwork.adapters.learning.gate_results import GateSummary, version_by_id
from graftwork.adapters.learning.job import Job
from graftwork.adapters.learning.jobs import Jobs, get_job
from graftwork.adapters.learning.rounds.experiment import RoundExperiment, usual_metric
from graftwork.adapters.learning.rounds.policies import ACTOR, judgements_by_kind
from graftwork.adapters.learning.rounds.round import (
    ENDED_STATES,
    JOB_STATES,
    UNDER_WAY_STATES,
    Round,
    RoundDecision,
    RoundState,
)
from graftwork.adapters.learning.rounds.table import change_round, get_round, round_of, rounds_table
from graftwork.adapters.names import CANDIDATE, LIVE
from graftwork.adapters.registry import AliasEvent, Registry
from graftwork.adapters.registry.tables import alias_events_table, event_of
from graftwork.adapters.storage.database import Database, Page, check_limit
from graftwork.adapters.storage.leases import Fence

_SUPERSEDES: Final = ("awaiting_decision", "experimenting", "promoted")
"""States of a later round in which an earlier candidate need no longer be decided about."""


class Rounds:
    """The rounds of one database.

    Args:
        database: Where they are stored.
        registry: Has the candidates; live versions are moved there.
        jobs: Has the rounds' jobs.
        experiments: Where candidates are compared.
        base_digest: The served base's.
        now: The clock, in UTC.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        jobs: Jobs,
        experiments: Experiments,
        *,
        base_digest: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._registry = registry
        self._jobs = jobs
        self._experiments = experiments
        self._base_digest = base_digest
        self._now = now

    # -- reading ---------------------------------------------------------------------------------------------------
    def get(self, id: str) -> Round:
        """A round by its id.

        Raises:
            NotFound: There is none.
        """
        with self._database.read() as connection:
            return get_round(connection, id)

    def find(
        self,
        *,
        adapter: str | None = None,
        state: RoundState | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[Round]:
        """A page of rounds, newest first.

        Args:
            adapter: Rounds of this adapter.
            state: Rounds in this state.
            after: The last id of the page before.
            limit: 1 to 100.

        Raises:
            InvalidRequest: ``limit`` is out of range, or ``after`` names no round.
        """
        check_limit(limit)
        table = rounds_table.c
        visible = scope.rows_about(table.adapter)
        newest = (table.created_at.desc(), table.id.desc())
        query = select(rounds_table).where(*visible).order_by(*newest).limit(limit + 1)
        if adapter is not None:
            query = query.where(table.adapter == adapter)
        if state is not None:
            query = query.where(table.state == state)
        with self._database.read() as connection:
            if after is not None:
                last = connection.execute(select(rounds_table).where(table.id == after, *visible)).one_or_none()
                if last is None:
                    raise InvalidRequest(
                        "after names no round: give the id of the last one of the page before", param="after"
                    )
                earlier = (table.created_at == last.created_at) & (table.id < last.id)
                query = query.where((table.created_at < last.created_at) | earlier)
            return Page.of([round_of(row) for row in connection.execute(query)], limit)

    def unended(self) -> list[Round]:
        """The rounds that have not ended, the oldest first."""
        table = rounds_table.c
        query = select(rounds_table).where(table.state.not_in(ENDED_STATES)).order_by(table.created_at, table.number)
        with self._database.read() as connection:
            return [round_of(row) for row in connection.execute(query)]

    # -- changes ---------------------------------------------------------------------------------------------------
    def advance(self, id: str, *, fence: Fence) -> Round | None:
        """Take a round's next step, if it can be taken.

        Args:
            id: The round.
            fence: Called with the connection, in the transaction; may raise.

        Returns:
            The round as it is now; ``None`` if it has to wait.
        """
        # Most of the time there is nothing: a read does not block writers.
        with self._database.read() as connection:
            round_ = get_round(connection, id)
            if round_.ended or self._waits(connection, round_):
                return None
        with self._database.write() as connection:
            fence(connection)
            round_ = get_round(connection, id)
            return None if round_.ended else self._step(connection, round_)

    def undo(self, id: str, *, actor: str, reason: str | None = None) -> Round:
        """Take back what a round has done, whatever its state: its job is cancelled, or its experiment stopped, or the
        version that it replaced goes live again. The next round learns from what users said, also to this one.

        Raises:
            NotFound: There is no such round.
            Conflict: Nothing of it is in effect any more, or it cannot be taken back now: another round builds on it,
                an experiment runs, or its version is being registered.
        """
        if reason is not None:
            names.check_text(reason, param="reason", max_chars=2000)
        with self._database.write() as connection:
            # The keeper may not have seen yet how a job or an experiment ended, or what a person decided.
            round_ = self._caught_up(connection, get_round(connection, id))
            why = reason or f"{round_.id} was undone by {actor}"
            if round_.state in JOB_STATES:
                self._jobs.cancel(round_.job, actor=actor, within=connection)
            elif round_.state == "experimenting":
                if round_.experiment is not None:
                    self._experiments.stop(round_.experiment, actor=actor, reason=why, within=connection)
            elif round_.state == "promoted" or round_.candidate == self._live(round_.adapter) != round_.live:
                self._put_back(connection, round_, actor, why)
            elif round_.state != "awaiting_decision":
                raise Conflict(
                    f"round {round_.number} of {round_.adapter} is {round_.state.replace('_', ' ')}: nothing of it is "
                    "in effect that could be undone",
                    code="round_ended",
                )
            self._withdraw_candidate(connection, round_, actor, why)
            now = self._now()
            decision = RoundDecision(by=actor, at=now.timestamp(), reason=reason)
            return change_round(connection, round_, now, state="undone", reason=why, decision=decision)

    def _caught_up(self, connection: Connection, round_: Round) -> Round:
        """The round after all steps that can be taken, but that of starting its experiment."""
        while not round_.ended and not (round_.state == "experimenting" and round_.experiment is None):
            stepped = self._step(connection, round_)
            if stepped is None:
                break
            round_ = stepped
        return round_

    def _step(self, connection: Connection, round_: Round) -> Round | None:
        """Take the next step; ``None`` if there is none."""
        changes = self._changes(connection, round_)
        return change_round(connection, round_, self._now(), **changes) if changes else None

    def _put_back(self, connection: Connection, round_: Round, actor: str, why: str) -> None:
        live, event = self._live(round_.adapter), self._promotion(connection, round_)
        if live != round_.candidate:
            raise Conflict(
                f"{round_.candidate} is not live any more, {live} is: nothing of round {round_.number} is in effect",
                code="round_ended",
            )
        if event is None or event.from_version is None:
            raise Conflict(f"no version was live before {round_.candidate}: there is none to go back to")
        table = rounds_table.c
        on_top = select(table.id).where(table.continues == round_.candidate, table.state.in_(UNDER_WAY_STATES))
        if (other := connection.scalar(on_top)) is not None:
            raise Conflict(
                f"{other} is under way on top of {round_.candidate}: undo it first (graftwork rounds undo {other})",
                code="round_under_way",
            )
        ExperimentGuard().check_move(connection, round_.adapter, LIVE)
        back = self._registry.rollback(round_.adapter, actor=actor, reason=why, within=connection)
        if back.to_version != event.from_version:
            self._registry.set_alias(
                round_.adapter, LIVE, event.from_version, actor=actor, reason=why, within=connection
            )

    def _withdraw_candidate(self, connection: Connection, round_: Round, actor: str, why: str) -> None:
        """Move the alias for candidates back to where it was before this one, if there is such a version."""
        aliases = self._registry.adapter(round_.adapter).aliases
        if round_.candidate is None or aliases.get(CANDIDATE) != _number(round_.candidate):
            return
        with suppress(Conflict):
            self._registry.rollback(round_.adapter, alias=CANDIDATE, actor=actor, reason=why, within=connection)

    # -- the steps -------------------------------------------------------------------------------------------------
    def _waits(self, connection: Connection, round_: Round) -> bool:
        """Whether a round certainly has no next step now, found out by reading alone."""
        starts = round_.state == "experimenting" and round_.experiment is None
        return not starts and not self._changes(connection, round_)

    def _changes(self, connection: Connection, round_: Round) -> dict[str, Any]:
        """The fields that a round's next step gives other values, with these; empty if it has to wait."""
        after = self._next(connection, round_)
        return {name: value for name, value in after.items() if getattr(round_, name) != value}

    def _next(self, connection: Connection, round_: Round) -> dict[str, Any]:
        """The fields of a round after its next step, of those that the step is about."""
        if round_.state in JOB_STATES:
            return self._after_job(connection, round_)
        if round_.state == "awaiting_decision":
            return self._decided_by_people(connection, round_)
        if round_.experiment is None:
            return self._start_experiment(connection, round_)
        return self._after_experiment(connection, round_)

    def _after_job(self, connection: Connection, round_: Round) -> dict[str, Any]:
        job = get_job(connection, round_.job)
        stage = _stage(job)
        if stage is not None:
            return {"state": stage}
        if job.status != "succeeded" or job.version is None:
            failed = job.status == "failed"
            reason = str((job.error or {}).get("message", "")) if failed else "its job was cancelled"
            return {"state": "failed" if failed else "cancelled", "reason": reason}
        version = version_by_id(self._registry, job.version)
        gates = GateSummary.from_metadata(version.metadata)
        known = {
            "candidate": version.id,
            "data_digest": version.data_digest,
            "rows": version.metadata.get("rows"),
            "gates": gates,
        }
        if version.id == round_.live:
            return {**known, "state": "set_aside", "reason": f"it is {version.id} again, which was live already"}
        if gates is not None and gates.outcome == "refuse":
            return {**known, "state": "set_aside", "reason": str(gates)}
        if round_.policy.get("experiment") is None:
            held = "it was not held against gates" if gates is None else str(gates)
            return {**known, "state": "awaiting_decision", "reason": f"{held}; nobody has promoted it yet"}
        return {**known, "state": "experimenting", "reason": "its experiment is about to start"}

    def _start_experiment(self, connection: Connection, round_: Round) -> dict[str, Any]:
        settings, now = RoundExperiment.from_json(round_.policy["experiment"]), self._now()
        judgements = judgements_by_kind(connection, round_.adapter)
        live, candidate = self._live(round_.adapter), round_.candidate or ""
        if live == candidate:
            return {"state": "awaiting_decision", "reason": f"{candidate} is live already"}
        metric = settings.metric or usual_metric(judgements)
        plan = settings.plan(round_.adapter, live=_number(live), candidate=_number(candidate), metric=metric, now=now)
        try:
            started = self._experiments.start(
                experiment_name(round_), plan, base_digest=self._base_digest, actor=ACTOR, within=connection
            )
        except GraftworkError as error:
            if error.code == "under_experiment":
                return {"reason": f"it waits for another experiment: {error.message}"}
            return {"state": "awaiting_decision", "reason": f"its experiment could not start: {error.message}"}
        return {"experiment": started.name, "reason": f"{candidate} against {live}, by {metric.label}"}

    def _after_experiment(self, connection: Connection, round_: Round) -> dict[str, Any]:
        outcome = require_experiment(connection, round_.experiment or "").outcome
        if outcome is None:
            return {}
        # A person may also have promoted it and ended the experiment with that.
        if (event := self._promotion(connection, round_)) is not None:
            return _promoted(event)
        decision = RoundDecision(by=outcome.actor, at=self._now().timestamp(), reason=outcome.reason)
        return {"state": "set_aside", "reason": f"{outcome.decision}: {outcome.reason}", "decision": decision}

    def _decided_by_people(self, connection: Connection, round_: Round) -> dict[str, Any]:
        if (event := self._promotion(connection, round_)) is not None:
            return _promoted(event)
        candidate = version_by_id(self._registry, round_.candidate or "")
        if candidate.retired_at is not None:
            return {"state": "set_aside", "reason": f"{candidate.id} was retired"}
        table = rounds_table.c
        later = select(func.min(table.number)).where(
            table.adapter == round_.adapter, table.number > round_.number, table.state.in_(_SUPERSEDES)
        )
        if (number := connection.scalar(later)) is not None:
            return {"state": "set_aside", "reason": f"round {number} has a newer candidate"}
        return {}

    def _promotion(self, connection: Connection, round_: Round) -> AliasEvent | None:
        """The event by which the candidate last became live since the round began, if it did."""
        table = alias_events_table
        query = (
            select(table)
            .where(
                table.c.name == round_.adapter,
                table.c.alias == LIVE,
                table.c.to_version == _number(round_.candidate or ""),
                table.c.at >= round_.created_at,
            )
            .order_by(table.c.id.desc())
            .limit(1)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else event_of(row)

    def _live(self, adapter: str) -> str:
        return self._registry.resolve(f"{adapter}@{LIVE}").id


def experiment_name(round_: Round) -> str:
    """The name of a round's experiment: one that no other round gets, and not longer than names may be."""
    end = f"-round-{round_.number}"
    room = 64 - len(end)
    if len(round_.adapter) <= room:
        return f"{round_.adapter}{end}"
    digest = hashlib.sha256(round_.adapter.encode()).hexdigest()[:8]
    return f"{round_.adapter[: room - 9]}-{digest}{end}"


def _promoted(event: AliasEvent) -> dict[str, Any]:
    replaced = None if event.from_version is None else f"{event.name}@{event.from_version}"
    decision = RoundDecision(by=event.actor, at=event.at.timestamp(), reason=event.reason, replaced=replaced)
    return {"state": "promoted", "reason": event.reason or f"promoted by {event.actor}", "decision": decision}


def _stage(job: Job) -> RoundState | None:
    """The state of a round whose job has not ended; ``None`` if it has."""
    if job.ended:
        return None
    if job.status == "validating_files":
        return "collecting"
    return "gating" if job.publishing or job.progress.get("phase") == "gates" else "training"


def _number(version_id: str) -> int:
    return int(version_id.rpartition("@")[2])
