"""The keeper's duty for experiments: closes units, computes readings, and applies what the experiments' rules decide.

One process does this, under the keeper's lease. Its state in memory can be rebuilt from the database at any time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from difflib import SequenceMatcher

from graftwork.adapters.experiments.analysis import ExperimentAnalysis, ShadowPair
from graftwork.adapters.experiments.assignment import is_sampled
from graftwork.adapters.experiments.contamination import TrainedOn, learned_from, prompt_hash
from graftwork.adapters.experiments.decision import Recommendation, recommend
from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.exposures import SHADOW_OF, ClosedUnit, Exposure, Exposures
from graftwork.adapters.experiments.metrics import unit_metrics
from graftwork.adapters.experiments.past.covariates import past_means
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
"""How long after its window a unit waits for rows that are not yet in the database."""

READING_GROWTH = 1.03
"""A reading becomes a point of the chart when it has this many times the units of the point before."""

THOMPSON_SECONDS = 60.0
"""The least time between two reallocations by Thompson sampling."""

_LATE = timedelta(hours=1)

MAX_COMPARED_CHARS = 4000
"""Shadow answers are compared up to this length."""


@dataclass(slots=True)
class _OpenUnit:
    """A unit whose window has not ended."""

    first: Exposure
    answers: list[Exposure] = field(default_factory=list)


class ExperimentController:
    """Runs the experiments of one database.

    Args:
        database: Holds the experiments.
        registry: Has the versions of the arms.
        experiments: Where decisions are applied.
        interactions: Prompts and answers, to compare shadows and to find requests that a version was trained on.
        feedback: What the metrics are computed from.
        ids: Reads the experiment and arm in an interaction's id.
        now: The clock, in UTC.
    """

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
        """Advance every running experiment once. A failing one does not hold up the others.

        Args:
            lease: Is checked in the transaction of every write.

        Raises:
            ExceptionGroup: The failures of single experiments.
        """
        running = {experiment.name: experiment for experiment in self._running()}
        self._states = {name: state for name, state in self._states.items() if name in running}
        failures: list[Exception] = []
        for name, experiment in running.items():
            try:
                self._advance(experiment, lambda connection: self._leases.check(connection, lease))
            except Exception as failure:
                # Its state in memory may be ahead of the database: rebuild it next time.
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
        state = self._states.get(experiment.name)
        # Where an arm has joined, all is read again: its version may have learned from others than the first ones.
        if state is None or state.experiment.plan.arms != experiment.plan.arms:
            state = self._states[experiment.name] = self._load_state(experiment)
        state.analysis.update_epochs(experiment)
        state.experiment = experiment
        self._collect(state)
        self._close_due(state, fence)
        reading = replace(state.analysis.reading(experiment.weights), waiting=len(state.open), next_at=state.next_at)
        self._store_reading(state, reading, fence)
        for move in recommend(experiment, state.analysis, reading, self._now()):
            if self._apply(state, move, reading, fence):
                # The next run sees what this changed.
                return
        if experiment.plan.allocation == "thompson" and not reading.sample_ratio.mismatch:
            self._reallocate(state, fence)

    # -- new requests and feedback -------------------------------------------------------------------------------
    def _load_state(self, experiment: Experiment) -> _ExperimentState:
        """Rebuild an experiment's state from the database."""
        plan = experiment.plan
        versions = {f"{plan.adapter}@{arm.version}" for arm in plan.arms if arm.version is not None}
        learned = learned_from(
            self._registry,
            versions,
            database=self._database,
            interactions=self._interactions,
            feedback=self._feedback,
        )
        state = _ExperimentState(experiment, ExperimentAnalysis(experiment), learned)
        for unit in self._exposures.closed(experiment.name):
            state.closed.add(unit.unit)
            state.analysis.add_unit(unit)
        for event in self._experiments.history(experiment.name):
            if event.action in ("advice", "alarm"):
                state.announced.add((str((event.details or {}).get("kind")), event.arm))
        last = self._exposures.last_reading(experiment.name)
        state.stored_units = last.units if last else 0
        return state

    def _collect(self, state: _ExperimentState) -> None:
        """Read requests and feedback that arrived since the last run."""
        experiment, shadows = state.experiment, []
        shadow_arms = {arm.name: arm.shadow or 0.0 for arm in experiment.plan.shadows}
        for exposure in self._exposures.since(experiment.name, state.seq):
            state.seq = exposure.seq
            if exposure.arm in shadow_arms:
                shadows.append(exposure)
                continue
            state.analysis.add_request(exposure)
            for arm, share in shadow_arms.items():
                sampled = is_sampled(experiment.salt, arm, exposure.interaction_id, share)
                state.analysis.add_shadow_counts(arm, sampled=int(sampled and exposure.status == "ok"))
            if exposure.unit in state.closed:
                continue
            if state.learned.units and state.is_taught(self._asker(exposure), exposure.created_at):
                state.analysis.leave_out(exposure.unit)
            else:
                state.open.setdefault(exposure.unit, _OpenUnit(exposure)).answers.append(exposure)
        self._compare(state, shadows)
        # Feedback on older requests belongs to units that closed long ago.
        too_old = self._now() - experiment.plan.window - _LATE
        for entry in self._feedback.each(FeedbackFilter(experiment=experiment.name), after=state.feedback_id):
            state.feedback_id = entry.id
            if entry.preferred_over is not None and entry.arm is not None:
                other = self._ids.read(entry.preferred_over)
                if other.experiment == experiment.name and other.arm is not None:
                    state.analysis.add_preference(entry.arm, other.arm)
            if entry.interaction_at < too_old:
                continue
            state.feedback.setdefault(entry.interaction_id, []).append(entry)

    def _compare(self, state: _ExperimentState, shadows: list[Exposure]) -> None:
        """Compare shadow arms' answers with those that users got."""
        for start in range(0, len(shadows), 100):
            some = shadows[start : start + 100]
            for exposure in some:
                state.analysis.add_shadow_counts(exposure.arm, answered=1, errors=int(exposure.failed))
            copies = self._interactions.get_many([exposure.interaction_id for exposure in some if not exposure.failed])
            shown = self._interactions.get_many([(copy.metadata or {}).get(SHADOW_OF, "") for copy in copies.values()])
            for copy in copies.values():
                original = shown.get((copy.metadata or {}).get(SHADOW_OF, ""))
                if original is not None and copy.arm is not None and copy.texts and original.texts:
                    state.analysis.add_shadow_pair(copy.arm, _compare_texts(original, copy))

    # -- units ---------------------------------------------------------------------------------------------------
    def _close_due(self, state: _ExperimentState, fence: Fence) -> None:
        """Close the units whose windows have ended, in the order in which they began.

        One that asked only what a version was trained on stays open for what else it asks, if anything.
        """
        before = self._now() - state.until_counted
        due = [unit for unit in state.open.values() if unit.first.created_at <= before]
        due.sort(key=lambda unit: (unit.first.created_at, unit.first.seq))
        closed: list[tuple[_OpenUnit, ClosedUnit]] = []
        for unit in due:
            if (settled := self._closed(state, unit)) is not None:
                closed.append((unit, settled))
                continue
            name, end = unit.first.unit, state.end_of(unit)
            state.analysis.leave_out(name)
            del state.open[name]
            if later := [answer for answer in unit.answers if answer.created_at >= end]:
                state.open[name] = _OpenUnit(later[0], later)
        if not closed:
            return
        closed = self._with_covariates(state.experiment, closed)
        self._exposures.close(state.experiment.name, [settled for _, settled in closed], fence=fence)
        for unit, settled in closed:
            del state.open[settled.unit]
            state.closed.add(settled.unit)
            state.analysis.add_unit(settled)
            for answer in unit.answers:
                state.feedback.pop(answer.interaction_id, None)

    def _closed(self, state: _ExperimentState, unit: _OpenUnit) -> ClosedUnit | None:
        """The unit's outcome, from requests and feedback within its window; ``None`` if none of these count."""
        end = state.end_of(unit)
        answers = [answer for answer in unit.answers if answer.arm == unit.first.arm and answer.created_at < end]
        answers = self._uncontaminated(state.learned, answers)
        if not answers:
            return None
        feedback = [f for answer in answers for f in state.feedback.get(answer.interaction_id, ()) if f.at < end]
        feedback.sort(key=lambda entry: entry.id)
        ids, plan = [answer.interaction_id for answer in answers], state.experiment.plan
        asked = None if plan.ratings == "all" else {id for id in ids if self._ids.read(id).asked}
        if asked and plan.unit == "episode":
            # A judgement of an episode stands at its last answer, whichever of its answers asked for one.
            asked |= {judgement.interaction_id for judgement in feedback if judgement.episode is not None}
        return ClosedUnit(
            unit=unit.first.unit,
            arm=unit.first.arm,
            epoch=_epoch_of(state.experiment, unit.first),
            first_at=unit.first.created_at,
            learned=False,
            outcome=unit_metrics(plan.metrics, answers, feedback, asked=asked),
        )

    def _asker(self, exposure: Exposure) -> str | None:
        """Who asked, whatever the unit: the user or session, ``None`` if nobody was named."""
        return self._ids.read(exposure.interaction_id).unit

    def _with_covariates(
        self, experiment: Experiment, closed: list[tuple[_OpenUnit, ClosedUnit]]
    ) -> list[tuple[_OpenUnit, ClosedUnit]]:
        """The closed units with what is known of who asked before the experiment."""
        if experiment.plan.covariate == "none":
            return closed
        asked_by = {settled.unit: self._asker(unit.first) for unit, settled in closed}
        askers = {asker for asker in asked_by.values() if asker is not None}
        past = past_means(self._database, self._feedback, askers, experiment)
        return [(unit, replace(settled, covariate=past.get(asked_by[settled.unit] or ""))) for unit, settled in closed]

    def _uncontaminated(self, learned: TrainedOn, answers: list[Exposure]) -> list[Exposure]:
        """Those of the requests on whose prompts no arm's version was trained."""
        if not learned.prompts:
            return answers
        logged = self._interactions.get_many([answer.interaction_id for answer in answers])
        known = {id for id, row in logged.items() if prompt_hash(row.prompt) in learned.prompts}
        return [answer for answer in answers if answer.interaction_id not in known]

    # -- decisions -----------------------------------------------------------------------------------------------
    def _apply(self, state: _ExperimentState, move: Recommendation, reading: Reading, fence: Fence) -> bool:
        """Apply a recommendation, or record it: an alarm, and a verdict where the rule is not automatic.

        Returns:
            Whether the experiment changed.
        """
        experiment, plan = state.experiment, state.experiment.plan
        reading_json = reading.to_json()
        is_verdict = move.kind in ("promote", "roll_back") and not move.is_breach
        if move.kind == "alarm" or (is_verdict and not plan.rule.automatic):
            if (move.kind, move.arm) not in state.announced:
                self._experiments.add_event(
                    experiment.name,
                    "alarm" if move.kind == "alarm" else "advice",
                    arm=move.arm,
                    reason=move.reason,
                    actor=ACTOR,
                    details={"kind": move.kind, "reading": reading_json},
                    fence=fence,
                )
                state.announced.add((move.kind, move.arm))
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
                reading=reading_json,
                fence=fence,
            )
        else:
            self._experiments.stop(
                experiment.name,
                decision="promoted" if move.kind == "promote" else "undecided",
                arm=move.arm,
                actor=ACTOR,
                reason=reason,
                reading=reading_json,
                fence=fence,
            )
        log.warning("experiment %s, %s %s: %s", experiment.name, move.kind, arm, reason)
        return True

    def _store_reading(self, state: _ExperimentState, reading: Reading, fence: Fence) -> None:
        """Store the reading if it changed; as a new point of the chart if there are clearly more units."""
        if reading == state.stored_reading:
            return
        new_point = reading.units >= max(state.stored_units * READING_GROWTH, state.stored_units + 1)
        self._exposures.save_reading(
            state.experiment.name, reading.units, reading.to_json(), new=new_point, fence=fence
        )
        state.stored_reading = reading
        if new_point:
            state.stored_units = reading.units

    def _reallocate(self, state: _ExperimentState, fence: Fence) -> None:
        """Set the weights by Thompson sampling, once a minute at most."""
        experiment = state.experiment
        if (self._now() - experiment.epochs[-1].at).total_seconds() < THOMPSON_SECONDS:
            return
        sums = state.analysis.successes_and_failures()
        arms = [name for name, weight in experiment.weights.items() if weight > 0]
        shares = thompson_shares(
            [sums[name][0] for name in arms],
            [sums[name][1] for name in arms],
            seed=state.analysis.num_units,
            floor=THOMPSON_FLOOR,
        )
        wanted = dict(zip(arms, shares, strict=True))
        control = wanted.pop(experiment.plan.control.name, 0.0)
        # All treatments may have been taken out, or none has begun.
        if all(abs(share - experiment.weight(name)) < 0.01 for name, share in wanted.items()):
            return
        reason = f"Thompson sampling after {state.analysis.num_units} units; the control keeps {control:.3g}"
        self._experiments.set_weights(experiment.name, wanted, actor=ACTOR, reason=reason, fence=fence)


@dataclass(slots=True)
class _ExperimentState:
    """One experiment's data in memory; all of it can be read again."""

    experiment: Experiment
    analysis: ExperimentAnalysis
    learned: TrainedOn
    seq: int = 0
    feedback_id: int = 0
    open: dict[str, _OpenUnit] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    feedback: dict[str, list[Feedback]] = field(default_factory=dict)
    announced: set[tuple[str, str | None]] = field(default_factory=set)
    stored_reading: Reading | None = None
    stored_units: int = 0

    @property
    def window(self) -> timedelta:
        """How long a unit's requests and feedback count."""
        return self.experiment.plan.window

    @property
    def until_counted(self) -> timedelta:
        """The time from a unit's first request until the unit counts."""
        return self.window + timedelta(seconds=GRACE_SECONDS)

    @property
    def next_at(self) -> float | None:
        """When the first of the open units counts, in Unix seconds; ``None`` if there is none."""
        first = min((unit.first.created_at for unit in self.open.values()), default=None)
        return None if first is None else (first + self.until_counted).timestamp()

    def end_of(self, unit: _OpenUnit) -> datetime:
        """The end of a unit's window. Times of requests are whole seconds."""
        return unit.first.created_at + self.window + timedelta(seconds=1)

    def is_taught(self, asker: str | None, asked_at: datetime) -> bool:
        """Whether a version learned from an answer to this user not long before."""
        taught_at = None if asker is None else self.learned.units.get(asker)
        days = timedelta(days=self.experiment.plan.learned_days)
        return taught_at is not None and asked_at < taught_at + days


def _epoch_of(experiment: Experiment, exposure: Exposure) -> int:
    """The epoch in which an arm was assigned: the last begun one with this probability. (Times are whole seconds.)"""
    begun = [epoch for epoch in experiment.epochs if epoch.at <= exposure.created_at + timedelta(seconds=1)]
    for epoch in reversed(begun):
        if math.isclose(epoch.split.weights.get(exposure.arm, 0.0), exposure.probability, abs_tol=1e-9):
            return epoch.number
    # The clock went back: take any epoch that could have assigned it.
    possible = [epoch.number for epoch in experiment.epochs if epoch.split.weights.get(exposure.arm, 0.0) > 0]
    return possible[0] if possible else experiment.epochs[0].number


def _compare_texts(original: Interaction, copy: Interaction) -> ShadowPair:
    """How a shadow arm's answer differs from the one that the user got."""
    mine, theirs = original.texts[0][:MAX_COMPARED_CHARS], copy.texts[0][:MAX_COMPARED_CHARS]
    return ShadowPair(
        agreement=SequenceMatcher(None, mine.split(), theirs.split(), autojunk=False).ratio(),
        identical=original.texts[0] == copy.texts[0],
        log_length=math.log((len(copy.texts[0]) + 1) / (len(original.texts[0]) + 1)),
        log_latency=math.log(max(copy.total_ms, 0.001) / max(original.total_ms, 0.001)),
    )
