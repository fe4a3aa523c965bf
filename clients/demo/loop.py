"""The loop of the demo: a first version, corrections by users, a second version, and an experiment between the two.

::

    rows → intents@1, live → users ask and correct → export → intents@2, candidate → A/B with sticky users → the keeper

It only uses the HTTP API and ``graftwork`` commands. The server decides the experiment. An observer gets all events.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from graftwork.clients.client import Client
from graftwork.clients.demo.observer import LoopObserver
from graftwork.clients.demo.queries import Query, QuerySplit
from graftwork.clients.demo.results import Accuracy, DemoResult
from graftwork.clients.demo.users import Users, Visit, conversation, run_concurrently
from graftwork.clients.errors import ConflictError, InvalidArgumentError, NotFoundError
from graftwork.clients.http.wire import dump
from graftwork.clients.types.experiments import Experiment

LEAST_WINDOW_SECONDS: Final = 4.0


WINDOW_PER_VISIT: Final = 3.0
"""Window of the experiment, as a multiple of the longest visit so far; later feedback would not count."""

DECIDE_SECONDS: Final = 30.0
"""Time after the last window in which the server must close it and decide."""

QUERIES_A_USER: Final = 2

Run = Callable[[str, list[str]], Any]
"""Runs a ``graftwork`` command: takes the name of its log and its arguments, returns the JSON that it printed."""


@dataclass(frozen=True, kw_only=True)
class DemoSizes:
    """The sizes of the demo. ``epochs`` are those of the first and the second training."""

    epochs: tuple[float, float] = (8.0, 4.0)
    batch_size: int = 8
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


class DemoLoop:
    """One execution of the loop, on a server that is ready.

    Args:
        client: the client of the server.
        run: runs a ``graftwork`` command.
        adapter: the name of the adapter.
        dealt: the queries of each purpose.
        home: folder of the base.
        work: folder for exports and trained adapters.
        sizes: the sizes of the demo.
        seed: of the users' queries.
        watcher: the observer.
    """

    def __init__(
        self,
        client: Client,
        run: Run,
        adapter: str,
        dealt: QuerySplit,
        *,
        home: Path,
        work: Path,
        sizes: DemoSizes,
        seed: int,
        watcher: LoopObserver,
    ) -> None:
        self._client = client
        self._run = run
        self._adapter = adapter
        self._dealt = dealt
        self._home = home
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
        first_rows = self._work / "rows.jsonl"
        write_rows(first_rows, self._dealt.train)
        first = self._train(1, str(first_rows), len(self._dealt.train))
        before = self._measure(first)
        corrections, thumbs_up = self._listen()
        second = self._train(2, self._collect(first_rows), None)
        after = self._measure(second)
        experiment, crowd = self._try_out()
        arms: dict[str, int] = defaultdict(int)
        for versions in crowd.versions_by_user.values():
            for version in versions:
                arms[version] += 1
        now = self._client.adapters.get(self._adapter)
        live = f"{self._adapter}@{now.aliases['live']}"
        decided = experiment.outcome
        assert decided is not None
        return DemoResult(
            adapter=self._adapter,
            promoted=decided.decision == "promoted" and live == second,
            decision=decided.decision,
            reason=decided.reason,
            live=live,
            accuracy=(before, after),
            corrections=corrections,
            thumbs_up=thumbs_up,
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
    def _train(self, number: int, data: str, rows: int | None) -> str:
        """Train and push the next version, and return its id."""
        what = f"on {rows} rows" if rows else "on these, on the corrections and on what was right"
        self._watcher.begin(f"Training version {number} {what}")
        words = ["train", self._adapter, "--local", "--data", data, "--home", str(self._home)]
        words += ["--out", str(self._work / f"adapter-{number}"), "--validation", "0"]
        words += ["--epochs", str(self._sizes.epochs[number - 1])]
        words += ["--batch-size", str(self._sizes.batch_size)]
        words += ["--alias", "candidate"] if number > 1 else []
        card = self._run(f"train-{number}", words)
        metrics, version = card["metrics"], str(card["version"])
        self._watcher.end(
            f"{version} from {card['rows']['train']} rows, {metrics['num_steps']} steps in {metrics['seconds']:.0f} s: "
            f"loss {metrics['first_loss']:.2f} → {metrics['last_loss']:.2f}"
        )
        return version

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

    def _collect(self, rows: Path) -> str:
        """Make a data set of the feedback and the first rows, and return its id."""
        self._watcher.begin("Exporting what they said, and making a data set of it")
        interactions, feedback = self._work / "interactions.jsonl", self._work / "feedback.jsonl"
        said = write_lines(feedback, self._client.feedback.export(adapter=self._adapter))
        answers = write_lines(interactions, self._client.interactions.export(adapter=self._adapter))
        words = ["data", "check", str(rows), str(interactions), str(feedback), "--home", str(self._home)]
        kept = self._run("data", [*words, "--split", "100/0/0", "--save", self._adapter])
        self._watcher.end(f"{answers} answers with {said} judgements, and {len(self._dealt.train)} old rows")
        return str(kept["data_set"])

    # -- the experiment ------------------------------------------------------------------------------------------
    def _try_out(self) -> tuple[Experiment, _ExperimentVisitors]:
        """Run an experiment between the live version and the candidate, until the server has decided."""
        self._watcher.begin(f"Users ask both versions, {QUERIES_A_USER} queries each, and never know which")
        name = f"{self._adapter}-second"
        window = float(max(LEAST_WINDOW_SECONDS, math.ceil(WINDOW_PER_VISIT * QUERIES_A_USER * self._slowest_visit)))
        running = self._client.experiments.start(
            name,
            self._adapter,
            [{"version": "live"}, {"version": "candidate", "weight": 0.5}],
            "thumb",
            decision={"promote_above": 0.0, "automatic": True, "max_units": self._sizes.users},
            window_seconds=window,
        )
        self._watcher.experiment(running)
        crowd = _ExperimentVisitors()
        deadline = math.inf
        visits = run_concurrently(lambda item: self._users.visit(*item), self._visitors())
        looked = time.monotonic()
        while running.running and time.monotonic() < deadline:
            visit = next(visits, None)
            if visit is None:
                deadline = min(deadline, time.monotonic() + window + DECIDE_SECONDS)
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
        return running, crowd

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


def write_lines(path: Path, rows: Iterable[Any]) -> int:
    """Write exported records as JSON lines, as ``graftwork feedback export`` does, and return their number."""
    with path.open("w", encoding="utf-8") as file:
        return sum(1 for row in rows if file.write(json.dumps(dump(row)) + "\n"))
