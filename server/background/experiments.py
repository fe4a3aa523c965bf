"""The keeper's duty for experiments: closes units, reads how experiments stand, and applies what their rules demand.
One process does it, under the keeper's lease; all that it holds in memory can be read again from the database.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import SequenceMatcher

from graftwork.adapters.experiments.analysis import ExperimentAnalysis, ShadowPair
from graftwork.adapters.experiments.assignment import is_sampled
from graftwork.adapters.experiments.contamination import TrainedOn, learned_from, prompt_hash
from graftwork.adapters.experiments.decision import Recommendation, recommend
from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.exposures import SHADOW_OF, ClosedUnit, Exposure, Exposures
from graftwork.adapters.experiments.metrics import unit_metrics
from graftwork.adapters.experiments.plan import THOMPSON_FLOOR
from graftwork.adapters.experiments.readings import Reading
from graftwork.adapters.experiments.statistics import thompson_shares
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.feedback import Feedback, FeedbackFilter, FeedbackLog
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import Interaction, Interactions
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Fence, Lease, Leases

log = logging.getLogger(__name__)

ACTOR = "keeper"

GRACE_SECONDS = 2.0
"""How long after its window a unit waits for rows that are on their way to the database."""

READING_GROWTH = 1.03
"""A reading is kept for the picture when there are this many times the units of the one before."""

THOMPSON_SECONDS = 60.0


_LATE = timedelta(hours=1)


MAX_COMPARED_CHARS = 4000


@dataclass(slots=True)
class _OpenUnit:
    """A unit whose window is not over."""

    first: Exposure
    answers: list[Exposure] = field(default_factory=list)


class ExperimentController:
    """Of all experiments of one database."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        experiments: Experiments,
        interactions: Interactions,
        feedback: FeedbackLog,
        ids: InteractionIds,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._registry = registry
        self._experiments = experiments
        self._exposures = Exposures(database)
        self._interactions = interactions
        self._feedback = feedback
        self._ids = ids
        self._leases = Leases(database)
        self._now = now
        self._states: dict[str, _ExperimentState] = {}

    def run(self, lease: Lease) -> None:
        """Do everything that is due, for every experiment that runs. A failing one does not hold up the others."""
        running = {experiment.name: experiment for experiment in self._running()}
        self._states = {name: watch for name, watch in self._states.items() if name in running}
        failures: list[Exception] = []
        for name, experiment in running.items():
            try:
                self._advance(experiment, lambda connection: self._leases.check(connection, lease))
            except Exception as failure:
                # What it had in memory may be ahead of the database: it is read again.
                self._states.pop(name, None)
                failures.append(failure)
        if failures:
            raise ExceptionGroup("experiments that could not be tended to", failures)

    def _running(self) -> Iterable[Experiment]:
        after: str | None = None
        while True:
            page = self._experiments.find(running=True, after=after, limit=100)
            yield from page
            if not page.has_more:
                return
            after = page[-1].name

    def _advance(self, experiment: Experiment, fence: Fence) -> None:
        watch = self._states.get(experiment.name)
        if watch is None:
            watch = self._states[experiment.name] = self._load_state(experiment)
        watch.judge.update_epochs(experiment)
        watch.experiment = experiment
        self._collect(watch)
        self._close_due(watch, fence)
        reading = watch.judge.reading(experiment.weights)
        self._store_reading(watch, reading, fence)
        for move in recommend(experiment, watch.judge, reading, self._now()):
            if self._apply(watch, move, reading, fence):
                # The next look sees what it changed.
                return
        if experiment.plan.allocation == "thompson" and not reading.sample_ratio.mismatch:
            self._reallocate(watch, fence)

    # -- what is new ---------------------------------------------------------------------------------------------
    def _load_state(self, experiment: Experiment) -> _ExperimentState:
        plan = experiment.plan
        versions = {f"{plan.adapter}@{arm.version}" for arm in plan.arms if arm.version is not None}
        learned = learned_from(
            self._registry,
            versions,
            database=self._database,
            interactions=self._interactions,
            feedback=self._feedback,
        )
        watch = _ExperimentState(experiment, ExperimentAnalysis(experiment), learned)
        for unit in self._exposures.closed(experiment.name):
            watch.closed.add(unit.unit)
            watch.judge.add_unit(unit)
        for event in self._experiments.history(experiment.name):
            if event.action in ("advice", "alarm"):
                watch.announced.add((str((event.details or {}).get("kind")), event.arm))
        last = self._exposures.last_reading(experiment.name)
        watch.stored_units = last.units if last else 0
        return watch

    def _collect(self, watch: _ExperimentState) -> None:
        """Take in requests and feedback that came since the last time."""
        experiment, shadows = watch.experiment, []
        shadow_arms = {arm.name: arm.shadow or 0.0 for arm in experiment.plan.shadows}
        for exposure in self._exposures.since(experiment.name, watch.seq):
            watch.seq = exposure.seq
            if exposure.arm in shadow_arms:
                shadows.append(exposure)
                continue
            watch.judge.add_request(exposure)
            for arm, share in shadow_arms.items():
                sampled = is_sampled(experiment.salt, arm, exposure.interaction_id, share)
                watch.judge.add_shadow_counts(arm, sampled=int(sampled and exposure.status == "ok"))
            if exposure.unit not in watch.closed:
                watch.open.setdefault(exposure.unit, _OpenUnit(exposure)).answers.append(exposure)
        self._compare(watch, shadows)
        # Of a unit that closed long ago.
        too_old = self._now() - timedelta(seconds=experiment.plan.window_seconds) - _LATE
        for said in self._feedback.each(FeedbackFilter(experiment=experiment.name), after=watch.feedback_id):
            watch.feedback_id = said.id
            if said.preferred_over is not None and said.arm is not None:
                other = self._ids.read(said.preferred_over)
                if other.experiment == experiment.name and other.arm is not None:
                    watch.judge.add_preference(said.arm, other.arm)
            if said.interaction_at < too_old:
                continue
            watch.feedback.setdefault(said.interaction_id, []).append(said)

    def _compare(self, watch: _ExperimentState, shadows: list[Exposure]) -> None:
        """Shadow arms' answers with those that users got."""
        for start in range(0, len(shadows), 100):
            some = shadows[start : start + 100]
            for exposure in some:
                watch.judge.add_shadow_counts(exposure.arm, answered=1, errors=int(exposure.failed))
            copies = self._interactions.get_many([exposure.interaction_id for exposure in some if not exposure.failed])
            shown = self._interactions.get_many([(copy.metadata or {}).get(SHADOW_OF, "") for copy in copies.values()])
            for copy in copies.values():
                original = shown.get((copy.metadata or {}).get(SHADOW_OF, ""))
                if original is not None and copy.arm is not None and copy.texts and original.texts:
                    watch.judge.add_shadow_pair(copy.arm, _compare_texts(original, copy))

    # -- units ---------------------------------------------------------------------------------------------------
    def _close_due(self, watch: _ExperimentState, fence: Fence) -> None:
        """Settle the units whose windows are over, in the order in which they began."""
        window = timedelta(seconds=watch.experiment.plan.window_seconds)
        before = self._now() - window - timedelta(seconds=GRACE_SECONDS)
        due = [unit for unit in watch.open.values() if unit.first.created_at <= before]
        if not due:
            return
        due.sort(key=lambda unit: (unit.first.created_at, unit.first.seq))
        closed = [self._closed(watch, unit, window) for unit in due]
        self._exposures.close(watch.experiment.name, closed, fence=fence)
        for unit, settled in zip(due, closed, strict=True):
            del watch.open[settled.unit]
            watch.closed.add(settled.unit)
            watch.judge.add_unit(settled)
            for answer in unit.answers:
                watch.feedback.pop(answer.interaction_id, None)

    def _closed(self, watch: _ExperimentState, unit: _OpenUnit, window: timedelta) -> ClosedUnit:
        # Times of requests are whole seconds.
        end = unit.first.created_at + window + timedelta(seconds=1)
        answers = [answer for answer in unit.answers if answer.arm == unit.first.arm and answer.created_at < end]
        untaught = self._uncontaminated(watch.learned, answers)
        counted = untaught or answers
        said = [f for answer in counted for f in watch.feedback.get(answer.interaction_id, ()) if f.at < end]
        said.sort(key=lambda judgement: judgement.id)
        return ClosedUnit(
            unit=unit.first.unit,
            arm=unit.first.arm,
            epoch=_epoch_of(watch.experiment, unit.first),
            first_at=unit.first.created_at,
            learned=not untaught,
            outcome=unit_metrics(watch.experiment.plan.metrics, counted, said),
        )

    def _uncontaminated(self, learned: TrainedOn, answers: list[Exposure]) -> list[Exposure]:
        """Those from which no arm's version has learned anything."""
        if not learned:
            return answers
        if answers[0].unit in learned.units:
            return []
        logged = self._interactions.get_many([answer.interaction_id for answer in answers])
        known = {id for id, row in logged.items() if prompt_hash(row.prompt) in learned.prompts}
        return [answer for answer in answers if answer.interaction_id not in known]

    # -- what follows --------------------------------------------------------------------------------------------
    def _apply(self, watch: _ExperimentState, move: Recommendation, reading: Reading, fence: Fence) -> bool:
        """Do it, or say it where only advice was asked for. Whether that changed the experiment."""
        experiment, plan = watch.experiment, watch.experiment.plan
        stands = reading.to_json()
        if move.kind == "alarm" or (move.kind != "widen" and not move.is_breach and not plan.rule.automatic):
            if (move.kind, move.arm) not in watch.announced:
                self._experiments.add_event(
                    experiment.name,
                    "alarm" if move.kind == "alarm" else "advice",
                    arm=move.arm,
                    reason=move.reason,
                    actor=ACTOR,
                    details={"kind": move.kind, "reading": stands},
                    fence=fence,
                )
                watch.announced.add((move.kind, move.arm))
                log.warning("experiment %s, %s: %s", experiment.name, move.kind, move.reason)
            return False
        arm, reason = move.arm or "", move.reason
        if move.kind == "widen":
            weights = {arm: move.weight or 0.0}
            self._experiments.set_weights(experiment.name, weights, actor=ACTOR, reason=reason, fence=fence)
        elif move.kind == "roll_back":
            self._experiments.roll_back(
                experiment.name,
                arm,
                decision="guardrail" if move.is_breach else "harm",
                actor=ACTOR,
                reason=reason,
                reading=stands,
                fence=fence,
            )
        else:
            self._experiments.stop(
                experiment.name,
                decision="promoted" if move.kind == "promote" else "undecided",
                arm=move.arm,
                actor=ACTOR,
                reason=reason,
                reading=stands,
                fence=fence,
            )
        log.warning("experiment %s, %s %s: %s", experiment.name, move.kind, arm, reason)
        return True

    def _store_reading(self, watch: _ExperimentState, reading: Reading, fence: Fence) -> None:
        """Store how it stands, if that is news; as a point of the picture, if there are clearly more units."""
        if reading == watch.stored_reading:
            return
        new_point = reading.units >= max(watch.stored_units * READING_GROWTH, watch.stored_units + 1)
        self._exposures.save_reading(
            watch.experiment.name, reading.units, reading.to_json(), new=new_point, fence=fence
        )
        watch.stored_reading = reading
        if new_point:
            watch.stored_units = reading.units

    def _reallocate(self, watch: _ExperimentState, fence: Fence) -> None:
        """Thompson sampling: weights that follow what is known, once a minute at most."""
        experiment = watch.experiment
        if (self._now() - experiment.epochs[-1].at).total_seconds() < THOMPSON_SECONDS:
            return
        sums = watch.judge.successes_and_failures()
        arms = [name for name, weight in experiment.weights.items() if weight > 0]
        shares = thompson_shares(
            [sums[name][0] for name in arms],
            [sums[name][1] for name in arms],
            seed=watch.judge.num_units,
            floor=THOMPSON_FLOOR,
        )
        wanted = dict(zip(arms, shares, strict=True))
        control = wanted.pop(experiment.plan.control.name, 0.0)
        if max(abs(share - experiment.weight(name)) for name, share in wanted.items()) < 0.01:
            return
        reason = f"Thompson sampling after {watch.judge.num_units} units; the control keeps {control:.3g}"
        self._experiments.set_weights(experiment.name, wanted, actor=ACTOR, reason=reason, fence=fence)


@dataclass(slots=True)
class _ExperimentState:
    """What the referee has in mind of one experiment; all of it can be read again."""

    experiment: Experiment
    judge: ExperimentAnalysis
    learned: TrainedOn
    seq: int = 0
    feedback_id: int = 0
    open: dict[str, _OpenUnit] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    feedback: dict[str, list[Feedback]] = field(default_factory=dict)
    announced: set[tuple[str, str | None]] = field(default_factory=set)
    stored_reading: Reading | None = None
    stored_units: int = 0


def _epoch_of(experiment: Experiment, exposure: Exposure) -> int:
    """Which epoch drew an arm: the last one that gave it this probability, and had begun. (Times are whole seconds.)"""
    begun = [epoch for epoch in experiment.epochs if epoch.at <= exposure.created_at + timedelta(seconds=1)]
    for epoch in reversed(begun):
        if math.isclose(epoch.split.weights.get(exposure.arm, 0.0), exposure.probability, abs_tol=1e-9):
            return epoch.number
    # A clock that went back: any epoch that could have drawn it.
    could = [epoch.number for epoch in experiment.epochs if epoch.split.weights.get(exposure.arm, 0.0) > 0]
    return could[0] if could else experiment.epochs[0].number


def _compare_texts(original: Interaction, copy: Interaction) -> ShadowPair:
    mine, theirs = original.texts[0][:MAX_COMPARED_CHARS], copy.texts[0][:MAX_COMPARED_CHARS]
    return ShadowPair(
        agreement=SequenceMatcher(None, mine.split(), theirs.split(), autojunk=False).ratio(),
        identical=original.texts[0] == copy.texts[0],
        log_length=math.log((len(copy.texts[0]) + 1) / (len(original.texts[0]) + 1)),
        log_latency=math.log(max(copy.total_ms, 0.001) / max(original.total_ms, 0.001)),
    )
