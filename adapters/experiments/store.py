"""The experiments of a database: started, assigned to requests, reweighted, rolled back and stopped.

Each change is one transaction with its event.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import (
    Connection,
    func,
    insert,
    select,
    update,
)

from graftwork.adapters import names
from graftwork.adapters.access import audit, scope
from graftwork.adapters.errors import Conflict, InvalidRequest
from graftwork.adapters.experiments.assignment import Split
from graftwork.adapters.experiments.experiment import (
    Assignment,
    Decision,
    Epoch,
    Experiment,
    ExperimentAction,
    ExperimentEvent,
    ExperimentOutcome,
    Json,
)
from graftwork.adapters.experiments.past.windows import suggest_window
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan, validate_joining, validate_plan
from graftwork.adapters.experiments.tables import (
    epochs_table,
    experiment_events_table,
    experiments_table,
    find_experiment,
    find_running,
    joined_arms_table,
    read_experiments,
    require_experiment,
)
from graftwork.adapters.names import LIVE
from graftwork.adapters.registry import Adapter, AliasEvent, Registry
from graftwork.adapters.storage.cache import DatabaseCache
from graftwork.adapters.storage.database import Database, Page, check_limit
from graftwork.adapters.storage.leases import Fence


@dataclass(frozen=True)
class _Snapshot:
    """The running experiments at one moment, by adapter. Replaced as a whole."""

    last_event: int
    running: Mapping[str, Experiment]


class Experiments:
    """The experiments of one database. Threads and processes may each have an instance.

    Args:
        database: Where they are stored.
        registry: Aliases are resolved and moved there.
    """

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database = database
        self._registry = registry
        self._snapshot = DatabaseCache(database, "experiments", _Snapshot(last_event=-1, running={}), self._refreshed)

    # -- for requests --------------------------------------------------------------------------------------------
    def running_on(self, adapter: str) -> Experiment | None:
        """The running experiment of an adapter; from memory."""
        return self._snapshot.get().running.get(adapter) if scope.visible(adapter) else None

    def assign(self, adapter: str, unit: str | None, *, chat: bool, episode: str | None = None) -> Assignment | None:
        """The arm that answers a request for ``adapter``; ``None`` if it takes part in no experiment.

        Args:
            adapter: A plain name.
            unit: The same unit gets the same arm; ``None``: the request is assigned by itself.
            chat: Whether it is a chat completion.
            episode: Takes the unit's place where the plan is about episodes.
        """
        experiment = self.running_on(adapter)
        if experiment is None or (experiment.plan.chat_only and not chat):
            return None
        if experiment.plan.unit == "episode" and episode is not None:
            unit = episode
        name = experiment.assigned_arm(secrets.token_hex(8) if unit is None else unit)
        return Assignment(
            experiment=experiment.name, arm=experiment.plan.arm(name), probability=experiment.weight(name)
        )

    # -- reading -------------------------------------------------------------------------------------------------
    def get(self, name: str) -> Experiment:
        """An experiment by name.

        Raises:
            NotFound: There is none.
        """
        with self._database.read() as connection:
            return require_experiment(connection, name)

    def find(self, *, running: bool | None = None, after: str | None = None, limit: int = 20) -> Page[Experiment]:
        """A page of experiments, by name.

        Args:
            running: Only those that run, or have ended.
            after: The last name of the page before.
            limit: 1 to 100.
        """
        check_limit(limit)
        query = select(experiments_table).order_by(experiments_table.c.name).limit(limit + 1)
        query = query.where(*scope.rows_about(experiments_table.c.adapter))
        if running is not None:
            ended = experiments_table.c.ended_at
            query = query.where(ended.is_(None) if running else ended.is_not(None))
        if after is not None:
            query = query.where(experiments_table.c.name > after)
        with self._database.read() as connection:
            return Page.of(read_experiments(connection, query), limit)

    def history(self, name: str) -> list[ExperimentEvent]:
        """All events of an experiment, newest first.

        Raises:
            NotFound: There is no such experiment.
        """
        query = (
            select(experiment_events_table)
            .where(experiment_events_table.c.experiment == name)
            .order_by(experiment_events_table.c.id.desc())
        )
        with self._database.read() as connection:
            require_experiment(connection, name)
            return [ExperimentEvent(**row._mapping) for row in connection.execute(query)]

    # -- changes -------------------------------------------------------------------------------------------------
    def start(
        self, name: str, plan: ExperimentPlan, *, base_digest: str, actor: str, within: Connection | None = None
    ) -> Experiment:
        """Start an experiment; requests take part from now on.

        Args:
            name: Used once: another experiment never gets it.
            plan: Arms with an alias are pinned to the version that it points to. Without a window it gets one that fits
                its metric; one that does not fit is warned of in the history.
            base_digest: The served base's.
            actor: For the history.
            within: A write transaction of the caller's to be part of.

        Raises:
            InvalidRequest: The plan or the name is invalid.
            NotFound: There is no such adapter.
            Conflict: The name is taken, the adapter has an experiment already, or an arm's version cannot be served.
        """
        if not names.is_name(name):
            raise InvalidRequest(
                f"{names.quoted(name)} cannot be an experiment's name: use 1 to 64 characters out of a-z, 0-9, '.', "
                "'_' and '-', the first one a letter or a digit",
                param="name",
                code="invalid_name",
            )
        self._registry.adapter(plan.adapter)
        with self._database.write(within) as connection:
            # The only writer: what is pinned here can be neither moved nor retired before it is stored.
            plan = validate_plan(self._pinned(plan, base_digest))
            if find_experiment(connection, name) is not None:
                raise Conflict(f"there was an experiment {name!r} already: names are used once, take another one")
            other = find_running(connection, plan.adapter)
            if other is not None:
                raise Conflict(
                    f"{plan.adapter!r} takes part in the experiment {other.name!r}: one at a time (graftwork "
                    f"experiments stop {other.name})",
                    code="under_experiment",
                )
            suggested = suggest_window(connection, plan.adapter, plan.metric)
            if plan.window_seconds is None:
                plan = replace(plan, window_seconds=suggested.seconds)
            warning = suggested.warning(plan.window.total_seconds())
            now = datetime.now(UTC)
            epoch = Epoch(number=1, at=now, split=Split.of(plan.control.name, plan.first_weights()))
            experiment = Experiment(
                name=name, plan=plan, salt=secrets.token_hex(16), started_at=now, started_by=actor, epochs=(epoch,)
            )
            values = {
                "name": name,
                "adapter": plan.adapter,
                "plan": plan.to_json(),
                "salt": experiment.salt,
                "started_at": now,
                "started_by": actor,
            }
            connection.execute(insert(experiments_table).values(values))
            _add_epoch(connection, name, epoch)
            details: Json = {"weights": experiment.weights}
            if warning is not None:
                details["warnings"] = [warning]
            _record(connection, name, "start", actor=actor, details=details)
            audit.made(name)
            return experiment

    def set_weights(
        self,
        name: str,
        weights: Mapping[str, float],
        *,
        actor: str,
        reason: str | None = None,
        fence: Fence | None = None,
    ) -> Experiment:
        """Begin a new epoch: the named treatments get these weights, and the control what is left.

        Treatments only grow, or go to 0 for good, so that no user who has seen one goes back (except under Thompson
        sampling, whose weights go up and down).

        Raises:
            InvalidRequest: A name is no treatment, or the weights do not add up.
            NotFound: There is no such experiment.
            Conflict: A treatment would shrink or come back, or the experiment has ended.
        """
        with self._change(name, fence) as (connection, experiment):
            split = _resized(experiment, weights)
            changed = _add_next_epoch(connection, experiment, split)
            _record(connection, name, "weights", actor=actor, reason=reason, details={"weights": changed.weights})
            return changed

    def add_arm(self, name: str, arm: Arm, *, base_digest: str, actor: str, reason: str | None = None) -> Experiment:
        """Let a treatment join a running experiment: a new epoch begins, in which it has its weight of the control's.

        Units of the other treatments keep theirs. It is compared with units of the control that first ask from now on.

        Args:
            name: The experiment's.
            arm: With a weight; one with an alias is pinned to the version that it points to.
            base_digest: The served base's.
            actor: For the history.
            reason: For the history.

        Raises:
            InvalidRequest: The arm is invalid, or the control has too little left.
            NotFound: There is no such experiment.
            Conflict: It has ended, its plan reserved nothing, or the arm's version cannot be served.
        """
        with self._change(name, None) as (connection, experiment):
            adapter = self._registry.adapter(experiment.plan.adapter)
            joined = replace(arm, joined=experiment.epochs[-1].number + 1)
            joined = _pinned_arm(adapter, joined, base_digest, param="version")
            plan = validate_joining(experiment.plan, joined, experiment.weights)
            split = experiment.epochs[-1].split.resized({joined.name: joined.weight})
            changed = _add_next_epoch(connection, replace(experiment, plan=plan), split)
            values = {"experiment": name, "epoch": joined.joined, "arm": asdict(joined)}
            connection.execute(insert(joined_arms_table).values(values))
            details = {"weights": changed.weights, "joined": values["arm"], "alpha": plan.alpha_of(joined)}
            _record(
                connection,
                name,
                "weights",
                arm=joined.name,
                actor=actor,
                reason=reason or f"{joined.name} joins",
                details=details,
            )
            return changed

    def roll_back(
        self,
        name: str,
        arm: str,
        *,
        decision: Literal["harm", "guardrail"],
        actor: str,
        reason: str,
        reading: Json,
        fence: Fence | None = None,
    ) -> Experiment:
        """Take a treatment out at once: its weight goes to 0, and ``live``, if it points there, to the control.

        Running requests finish. When no treatment is left the experiment ends.

        Raises:
            NotFound: There is no such experiment.
            Conflict: It has ended.
        """
        with self._change(name, fence) as (connection, experiment):
            experiment = _add_next_epoch(connection, experiment, experiment.epochs[-1].split.resized({arm: 0.0}))
            details = {"weights": experiment.weights, "decision": decision, "reading": reading}
            _record(connection, name, "rollback", arm=arm, actor=actor, reason=reason, details=details)
            out, control = experiment.plan.arm(arm), experiment.plan.control
            adapter = self._registry.adapter(experiment.plan.adapter)
            if control.version is not None and adapter.aliases[LIVE] == out.version != control.version:
                self._registry.set_alias(
                    adapter.name, LIVE, control.version, actor=actor, reason=f"{name}: {reason}", within=connection
                )
            if any(experiment.weight(other.name) for other in experiment.plan.treatments):
                return experiment
            outcome = ExperimentOutcome(decision=decision, arm=arm, reason=reason, actor=actor, reading=reading)
            return _end(connection, experiment, outcome)

    def stop(
        self,
        name: str,
        *,
        decision: Decision = "stopped",
        arm: str | None = None,
        actor: str,
        reason: str,
        reading: Json | None = None,
        fence: Fence | None = None,
        within: Connection | None = None,
    ) -> Experiment:
        """End an experiment, for good. With the decision ``promoted``, ``live`` then points to ``arm``'s version.

        Args:
            name: The experiment's.
            decision: What is decided.
            arm: The arm that it is about.
            actor: For the history.
            reason: For the history.
            reading: How the experiment stands.
            fence: Called with the connection, in the transaction; may raise.
            within: A write transaction of the caller's to be part of.

        Raises:
            InvalidRequest: There is no such arm.
            NotFound: There is no such experiment.
            Conflict: It has ended, or the arm is not promotable.
        """
        with self._change(name, fence, within) as (connection, experiment):
            if decision == "promoted":
                self._promote(connection, experiment, arm, actor, reason)
            outcome = ExperimentOutcome(decision=decision, arm=arm, reason=reason, actor=actor, reading=reading)
            return _end(connection, experiment, outcome)

    def add_event(
        self,
        name: str,
        action: Literal["advice", "alarm"],
        *,
        arm: str | None = None,
        reason: str,
        actor: str,
        details: Json | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Record advice or an alarm in the history; the experiment does not change.

        Raises:
            NotFound: There is no such experiment.
            Conflict: It has ended.
        """
        with self._change(name, fence) as (connection, _):
            _record(connection, name, action, arm=arm, actor=actor, reason=reason, details=details)

    def end_and_move(
        self, adapter: str, move: Callable[[Connection], AliasEvent], *, actor: str, reason: str
    ) -> AliasEvent:
        """Move an alias, and end the experiment that would forbid it, if there is one; both or neither."""
        with self._database.write() as connection:
            experiment = find_running(connection, adapter)
            if experiment is not None:
                outcome = ExperimentOutcome(decision="stopped", arm=None, reason=reason, actor=actor, reading=None)
                _end(connection, experiment, outcome)
            return move(connection)

    # -- helpers -------------------------------------------------------------------------------------------------
    @contextmanager
    def _change(
        self, name: str, fence: Fence | None, within: Connection | None = None
    ) -> Iterator[tuple[Connection, Experiment]]:
        """A transaction that changes a running experiment."""
        with self._database.write(within) as connection:
            if fence is not None:
                fence(connection)
            experiment = require_experiment(connection, name)
            if experiment.ended_at is not None:
                raise Conflict(
                    f"the experiment {name!r} ended on {experiment.ended_at:%Y-%m-%d %H:%M} UTC, which is final: start "
                    "another one",
                    code="experiment_ended",
                )
            yield connection, experiment

    def _pinned(self, plan: ExperimentPlan, base_digest: str) -> ExperimentPlan:
        """A plan with the version of every arm that names an alias; checks that this base can serve all versions."""
        adapter = self._registry.adapter(plan.adapter)
        arms = (
            _pinned_arm(adapter, arm, base_digest, param=f"arms[{place}].version")
            for place, arm in enumerate(plan.arms)
        )
        return replace(plan, arms=tuple(arms))

    def _promote(
        self, connection: Connection, experiment: Experiment, name: str | None, actor: str, reason: str
    ) -> None:
        arm = experiment.plan.arm(name or "")
        if arm.version is None or not arm.is_promotable:
            raise Conflict(
                f"no alias can point at the arm {arm.name}, which is more or less than a version: push what it stands "
                "for, or stop the experiment without promoting"
            )
        self._registry.set_alias(
            experiment.plan.adapter,
            LIVE,
            arm.version,
            actor=actor,
            reason=f"{experiment.name}: {reason}",
            within=connection,
        )

    def _refreshed(self, old: _Snapshot) -> _Snapshot:
        with self._database.read() as connection:
            last_event = connection.scalar(select(func.max(experiment_events_table.c.id))) or 0
            if last_event == old.last_event:
                return old
            running = read_experiments(
                connection, select(experiments_table).where(experiments_table.c.ended_at.is_(None))
            )
        by_adapter = {experiment.plan.adapter: experiment for experiment in running}
        return _Snapshot(last_event=last_event, running=by_adapter)


def _pinned_arm(adapter: Adapter, arm: Arm, base_digest: str, *, param: str) -> Arm:
    """The arm with the version that its alias points to, and a name.

    Raises:
        InvalidRequest: There is no such alias or version, or it is a reward model.
        Conflict: The version cannot be served.
    """
    if arm.alias is not None:
        if arm.alias not in adapter.aliases:
            there = ", ".join(adapter.aliases)
            raise InvalidRequest(
                f"{adapter.name!r} has no alias {names.quoted(arm.alias)}: it has {there}", param=param
            )
        arm = replace(arm, version=adapter.aliases[arm.alias])
    if arm.version is not None:
        if not 1 <= arm.version <= len(adapter.versions):
            raise InvalidRequest(
                f"{adapter.name!r} has versions 1 to {len(adapter.versions)}", param=param, code="version_not_found"
            )
        version = adapter.versions[arm.version - 1]
        version.check_answers()
        if version.retired_at is not None or version.base_digest != base_digest:
            why = "was retired" if version.retired_at is not None else "was pushed for another base"
            raise Conflict(f"{version.id} {why}: choose another version", param=param)
    default = "base" if arm.version is None else f"{adapter.name}@{arm.version}"
    return replace(arm, name=arm.name or default)


def _resized(experiment: Experiment, weights: Mapping[str, float]) -> Split:
    """The split with these weights.

    Raises:
        InvalidRequest: A name is no treatment, or the weights do not add up.
        Conflict: A treatment would shrink or come back.
    """
    plan = experiment.plan
    treatments = {arm.name for arm in plan.treatments}
    for name, weight in weights.items():
        if name not in treatments:
            raise InvalidRequest(
                f"{names.quoted(name)} is no treatment of this experiment: weights are set for "
                f"{', '.join(sorted(treatments)) or 'none'}, and the control gets what is left",
                param="weights",
            )
        if not 0 <= weight <= 1:
            raise InvalidRequest(f"the weight of {name} is from 0 to 1", param="weights")
        now = experiment.weight(name)
        if plan.allocation == "fixed" and 0 < weight < now - 1e-9:
            raise Conflict(
                f"{name} has {now:g} and would get {weight:g}: users who have seen it would go back. Arms only "
                "grow, or go to 0"
            )
        if now == 0 and weight > 0 and any(epoch.split.weights.get(name) for epoch in experiment.epochs):
            raise Conflict(f"{name} was taken out, which is final: start another experiment")
    split = experiment.epochs[-1].split
    if sum({**{name: split.weights.get(name, 0.0) for name in treatments}, **weights}.values()) > 1 + 1e-9:
        raise InvalidRequest("the treatments' weights add up to more than 1", param="weights")
    return split.resized(weights)


def _add_next_epoch(connection: Connection, experiment: Experiment, split: Split) -> Experiment:
    last = experiment.epochs[-1]
    # A clock that was set back must not order this before the epoch that it follows.
    epoch = Epoch(number=last.number + 1, at=max(datetime.now(UTC), last.at), split=split)
    _add_epoch(connection, experiment.name, epoch)
    return replace(experiment, epochs=(*experiment.epochs, epoch))


def _add_epoch(connection: Connection, name: str, epoch: Epoch) -> None:
    values = {"experiment": name, "number": epoch.number, "at": epoch.at, "arcs": epoch.split.to_json()}
    connection.execute(insert(epochs_table).values(values))


def _end(connection: Connection, experiment: Experiment, outcome: ExperimentOutcome) -> Experiment:
    now = max(datetime.now(UTC), experiment.epochs[-1].at)
    this = experiments_table.c.name == experiment.name
    connection.execute(update(experiments_table).where(this).values(ended_at=now, outcome=vars(outcome)))
    details = {"decision": outcome.decision, "reading": outcome.reading}
    _record(
        connection,
        experiment.name,
        "stop",
        arm=outcome.arm,
        actor=outcome.actor,
        reason=outcome.reason,
        details=details,
    )
    return replace(experiment, ended_at=now, outcome=outcome)


def _record(
    connection: Connection,
    experiment: str,
    action: ExperimentAction,
    *,
    arm: str | None = None,
    actor: str,
    reason: str | None = None,
    details: Json | None = None,
) -> None:
    names.check_text(actor, param="actor", max_chars=200)
    if reason is not None:
        names.check_text(reason, param="reason", max_chars=2000)
    values = {
        "at": datetime.now(UTC),
        "experiment": experiment,
        "action": action,
        "arm": arm,
        "actor": actor,
        "reason": reason,
        "details": details,
    }
    connection.execute(insert(experiment_events_table).values(values))
