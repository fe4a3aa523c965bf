"""The loop of the demo: a first version, corrections by users, a second version, and an experiment between the two.

::

    rows → a job → intents@1, live → users ask and correct → a round of learning → intents@2 → an experiment → keeper

It only uses the HTTP API. The first version is a job on a file; the second one is what a learning policy makes of the
feedback, and the server decides about it. An observer gets all events.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from graftwork.clients.client import Client
from graftwork.clients.demo.observer import LoopObserver
from graftwork.clients.demo.queries import Query, QuerySplit
from graftwork.clients.demo.results import Accuracy, DemoResult
from graftwork.clients.demo.users import Users, Visit, conversation, run_concurrently
from graftwork.clients.errors import ConflictError, GraftworkClientError, InvalidArgumentError, NotFoundError
from graftwork.clients.types.experiments import Experiment
from graftwork.clients.types.learning.jobs import Job
from graftwork.clients.types.learning.rounds import Round

LEAST_WINDOW_SECONDS: Final = 4.0


WINDOW_PER_VISIT: Final = 3.0
"""Window of the experiment, as a multiple of the longest visit so far; later feedback would not count."""

DECIDE_SECONDS: Final = 30.0
"""Time after the last window in which the server must close it and decide."""

QUERIES_A_USER: Final = 2


@dataclass(frozen=True, kw_only=True)
class DemoSizes:
    """The sizes of the demo. ``epochs`` are those of the first and the second training."""

    epochs: tuple[int, int] = (8, 6)
    batch_size: int = 8
    poll_seconds: float = 0.5
    users: int = 600
    """Maximum number of users in the experiment; it ends undecided after that."""

    users_a_second: float = 10.0
    """Maximum rate of users, as their feedback counts only once their windows are over."""


@dataclass
class _ExperimentVisitors:
    """Statistics of the experiment's users, and of the versions that answered them."""

    versions_by_user: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, visit: Visit) -> None:
        for answer in visit.answers:
            if answer.arm is not None:  # after the end of the experiment everyone gets the winner
                self.versions_by_user[visit.user].add(answer.adapter)
            self.asked[answer.adapter] += 1
            self.right[answer.adapter] += answer.right

    def summary(self) -> str:
        shares = (f"{version} right {self.right[version] / self.asked[version]:.0%}" for version in sorted(self.asked))
        return " · ".join(shares)


class DemoFailedError(GraftworkClientError):
    """Raised when a training of the demo failed."""


class DemoLoop:
    """One execution of the loop, on a server that is ready.

    Args:
        client: the client of the server.
        adapter: the name of the adapter.
        dealt: the queries of each purpose.
        work: folder for the first rows.
        sizes: the sizes of the demo.
        seed: of the users' queries.
        watcher: the observer.
    """

    def __init__(
        self,
        client: Client,
        adapter: str,
        dealt: QuerySplit,
        *,
        work: Path,
        sizes: DemoSizes,
        seed: int,
        watcher: LoopObserver,
    ) -> None:
        self._client = client
        self._adapter = adapter
        self._dealt = dealt
        self._work = work
        self._sizes = sizes
        self._chance = random.Random(seed)
        self._watcher = watcher
        self._users = Users(client, adapter)
        self._slowest_visit = 0.0
        self._open = True

    def run(self) -> DemoResult:
        """Run the loop from the first training to the decision.

        Raises:
            GraftworkClientError: if the adapter exists already, or a request or command fails.
        """
        began = time.monotonic()
        self._check_free()
        first = self._train_first()
        before = self._measure(first)
        corrections, thumbs_up = self._listen()
        second = self._learn(corrections + thumbs_up)
        assert second.candidate is not None
        after = self._measure(second.candidate)
        crowd = _ExperimentVisitors()
        experiment = None if second.experiment is None else self._try_out(second.experiment, crowd)
        decided = self._decision(second.id)
        arms: dict[str, int] = defaultdict(int)
        for versions in crowd.versions_by_user.values():
            for version in versions:
                arms[version] += 1
        now = self._client.adapters.get(self._adapter)
        live = f"{self._adapter}@{now.aliases['live']}"
        return DemoResult(
            adapter=self._adapter,
            promoted=decided.state == "promoted" and live == second.candidate,
            decision=decided.state,
            reason=decided.reason or "",
            live=live,
            accuracy=(before, after),
            corrections=corrections,
            thumbs_up=thumbs_up,
            round=decided,
            experiment=experiment,
            visits=len(crowd.versions_by_user),
            arms=dict(arms),
            flips=sum(len(versions) > 1 for versions in crowd.versions_by_user.values()),
            history=self._client.adapters.history(self._adapter, limit=20).data,
            seconds=time.monotonic() - began,
        )

    def _check_free(self) -> None:
        """Check that the adapter does not exist, since the demo would move its ``live``.

        Raises:
            InvalidArgumentError: if it exists.
        """
        try:
            self._client.adapters.get(self._adapter)
        except NotFoundError:
            return
        raise InvalidArgumentError(
            f"{self._client.url} has an adapter {self._adapter} already, and the demo would move its live version: "
            "choose another name with --adapter."
        )

    # -- versions ------------------------------------------------------------------------------------------------
    def _train_first(self) -> str:
        """Train the first version by a job on a file, and return its id.

        Raises:
            DemoFailedError: if the job fails.
        """
        rows = self._work / "rows.jsonl"
        write_rows(rows, self._dealt.train)
        self._watcher.begin(f"Training version 1 on {len(self._dealt.train)} rows")
        base = next(iter(self._client.models())).id
        job = self._client.jobs.create(
            model=base,
            name=self._adapter,
            training_file=self._client.files.upload(rows).id,
            method="supervised",
            # All rows are learned from: who is better, users will say.
            hyperparameters={**self._hyperparameters(0), "validation": 0},
        )
        while not job.ended:
            self._watch(job)
            time.sleep(self._sizes.poll_seconds)
            job = self._client.jobs.get(job.id)
        if job.fine_tuned_model is None:
            raise DemoFailedError(f"{job.id} {job.status}: {job.error.message if job.error else 'no error is known'}")
        self._watcher.end(f"{job.fine_tuned_model}, from {len(self._dealt.train)} rows")
        return job.fine_tuned_model

    def _learn(self, judgements: int) -> Round:
        """Let the adapter learn by itself, and return its first round once that has a candidate that is tried out, or
        is set aside.

        Raises:
            DemoFailedError: if the round fails.
        """
        self._watcher.begin("Learning by itself from these, from what was right, and from old rows")
        window = float(max(LEAST_WINDOW_SECONDS, math.ceil(WINDOW_PER_VISIT * QUERIES_A_USER * self._slowest_visit)))
        self._client.learning_policies.set(
            self._adapter,
            after=judgements,
            every_days=None,
            method="supervised",
            hyperparameters=self._hyperparameters(1),
            experiment={"metric": "thumb", "window_seconds": window, "max_units": self._sizes.users, "days": 1},
        )
        while True:
            round_ = next(iter(self._client.rounds.list(adapter=self._adapter, limit=1)), None)
            if round_ is not None and (round_.ended or round_.experiment or round_.state == "awaiting_decision"):
                break
            if round_ is not None:
                self._watch(self._client.jobs.get(round_.job))
            time.sleep(self._sizes.poll_seconds)
        self._client.learning_policies.remove(self._adapter)  # the demo shows one round
        if round_.candidate is None:
            raise DemoFailedError(f"{round_.id} {round_.state}: {round_.reason}")
        counted = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in (round_.rows or {}).items() if count)
        gates = "not held against gates" if round_.gates is None else f"gates: {round_.gates.outcome}"
        self._watcher.end(f"{round_.candidate} ({counted}); {gates}")
        return round_

    def _hyperparameters(self, number: int) -> dict[str, int]:
        return {"n_epochs": self._sizes.epochs[number], "batch_size": self._sizes.batch_size}

    def _watch(self, job: Job) -> None:
        progress = job.graftwork.progress
        step, total = progress.get("step"), progress.get("total")
        self._watcher.progress(int(step or 0), None if total is None else int(total), str(progress.get("phase") or ""))

    def _decision(self, id: str) -> Round:
        """Return the round once the server has drawn its conclusion from the experiment."""
        deadline = time.monotonic() + DECIDE_SECONDS
        while not (round_ := self._client.rounds.get(id)).ended and time.monotonic() < deadline:
            time.sleep(self._sizes.poll_seconds)
        return round_

    def _measure(self, version: str) -> Accuracy:
        queries = self._dealt.test
        self._watcher.begin(f"Asking {version} {len(queries)} held-out queries")
        right = 0
        for done, told in enumerate(
            run_concurrently(lambda query: self._users.ask(query, version=version), queries), 1
        ):
            right += told.right
            self._watcher.progress(done, len(queries), f"{right / done:.0%} right")
        self._watcher.end(f"{version} answers {right} of {len(queries)} right: {right / len(queries):.1%}")
        return Accuracy(version=version, right=right, asked=len(queries))

    # -- feedback ------------------------------------------------------------------------------------------------
    def _listen(self) -> tuple[int, int]:
        """Let users query the live version, and return the number of corrections and of thumbs up."""
        queries = self._dealt.feedback
        self._watcher.begin(f"{len(queries)} users ask, and correct what is wrong")
        wrong = 0
        visits = run_concurrently(lambda item: self._users.visit(f"early-{item[0]}", [item[1]]), enumerate(queries))
        for done, visit in enumerate(visits, 1):
            self._slowest_visit = max(self._slowest_visit, visit.seconds)
            for told in visit.answers:
                wrong += not told.right
                self._watcher.told(told)
            self._watcher.progress(done, len(queries), f"{wrong} corrected")
        self._watcher.end(f"{wrong} corrections and {len(queries) - wrong} thumbs up")
        return wrong, len(queries) - wrong

    # -- the experiment ------------------------------------------------------------------------------------------
    def _try_out(self, name: str, crowd: _ExperimentVisitors) -> Experiment:
        """Send users, until the server has decided the experiment between the live version and the candidate."""
        self._watcher.begin(f"Users ask both versions, {QUERIES_A_USER} queries each, and never know which")
        running = self._client.experiments.get(name)
        self._watcher.experiment(running)
        deadline = math.inf
        visits = run_concurrently(lambda item: self._users.visit(*item), self._visitors())
        looked = time.monotonic()
        while running.running and time.monotonic() < deadline:
            visit = next(visits, None)
            if visit is None:
                deadline = min(deadline, time.monotonic() + running.window_seconds + DECIDE_SECONDS)
                time.sleep(0.5)
            else:
                crowd.add(visit)
                for told in visit.answers:
                    self._watcher.told(told)
            if time.monotonic() - looked > 0.5:
                running, looked = self._client.experiments.get(name), time.monotonic()
                self._watcher.progress(len(crowd.versions_by_user), self._sizes.users, crowd.summary())
                self._watcher.experiment(running)
        self._open = False
        for late in visits:  # visits that have begun
            crowd.add(late)
        if running.running:
            running = self._stop(name)
        outcome = running.outcome
        assert outcome is not None
        self._watcher.experiment(running)
        self._watcher.end(
            f"{len(crowd.versions_by_user)} users; {outcome.decision} by {outcome.actor}: {outcome.reason}"
        )
        return running

    def _visitors(self) -> Iterator[tuple[str, list[Query]]]:
        """Yield users with their queries at the configured rate, until the experiment has ended."""
        began = time.monotonic()
        for number in range(self._sizes.users):
            if not self._open:
                return
            early = began + number / self._sizes.users_a_second - time.monotonic()
            if early > 0:
                time.sleep(early)
            yield f"user-{number}", self._chance.sample(self._dealt.traffic, QUERIES_A_USER)

    def _stop(self, name: str) -> Experiment:
        """Stop the experiment, unless the server has just ended it."""
        try:
            return self._client.experiments.stop(name, reason="all users have come, and nothing is decided")
        except ConflictError:
            return self._client.experiments.get(name)


def write_rows(path: Path, queries: Iterable[Query]) -> None:
    """Write training data: a chat per line, with the label as its answer."""
    chats = ([*conversation(query), {"role": "assistant", "content": query.label}] for query in queries)
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
