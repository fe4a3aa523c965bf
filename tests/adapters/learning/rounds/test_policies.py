"""Learning policies: when a round is due, its job, and that it is submitted once, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.learning import jobs as jobs_module
from graftwork.adapters.learning.job import CONTROL_KEY, FEEDBACK_FILE, Job, NewJob
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds import policies as policies_module
from graftwork.adapters.learning.rounds.policies import KEY_ID, LearningPolicies, PolicyStatus
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Leases
from tests.adapters.records import BASE_ID, Records
from tests.adapters.versions import BASE, push

HAND = NewJob(model="intents", name="intents", training_file=FEEDBACK_FILE)


@dataclass
class Home:
    """A database with an adapter, and a clock that can be put forward."""

    records: Records
    ahead: timedelta = timedelta(0)
    registry: Registry = field(init=False)
    jobs: Jobs = field(init=False)
    policies: LearningPolicies = field(init=False)
    rounds: Rounds = field(init=False)

    def __post_init__(self) -> None:
        self.registry = Registry(self.records.database)
        self.jobs = Jobs(self.records.database)
        self.policies = LearningPolicies(
            self.records.database,
            self.registry,
            self.jobs,
            base_id=BASE_ID,
            now=lambda: datetime.now(UTC) + self.ahead,
        )
        experiments = Experiments(self.records.database, self.registry)
        self.rounds = Rounds(self.records.database, self.registry, self.jobs, experiments, base_digest=BASE.digest)

    def say(self, count: int = 1, adapter: str = "intents@1", **said: Any) -> None:
        for _ in range(count):
            what = SubmittedFeedback(interaction_id=self.records.mint(adapter), **(said or {"thumb": "up"}))
            self.records.feedback.add(what, key_id="k")

    @property
    def stands(self) -> PolicyStatus:
        return self.policies.get("intents")[1]

    def begin(self) -> Job:
        begun = self.policies.begin("intents")
        assert begun is not None, self.stands.waits_for
        return self.jobs.get(begun.job)

    def end(self, *, fail: bool = False) -> None:
        """What a worker does with the job under way."""
        claim = self.jobs.claim("w", "validating_files", seconds=60)
        assert claim is not None
        self.jobs.mark_validated(claim)
        claim = self.jobs.claim("w", "queued", seconds=60)
        assert claim is not None
        if fail:
            self.jobs.fail(claim, code="nan_loss", message="It diverged.")
        else:
            self.jobs.succeed(claim, "intents@1", metrics={}, trained_tokens=1)
        self.look()

    def look(self) -> None:
        """What the keeper does when a job has ended."""
        for round_ in self.rounds.unended():
            self.rounds.advance(round_.id, fence=lambda connection: None)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "graftwork.db"
    Records.new(path).database.close()
    return path


@pytest.fixture
def home(empty: Path, tmp_path: Path) -> Iterator[Home]:
    shutil.copy(empty, tmp_path / "graftwork.db")
    home = Home(Records.at(tmp_path / "graftwork.db"))
    push(home.registry, "a")
    yield home
    home.records.database.close()


def test_a_policy_is_set_replaced_and_removed(home: Home) -> None:
    first = home.policies.set("intents", after=3, actor="ann")
    assert (first.after, first.every_days, first.at_least, first.control_every, first.method) == (
        3,
        7.0,
        10,
        None,
        "auto",
    )
    second = home.policies.set("intents", after=None, every_days=1, hyperparameters={"rank": 8}, actor="bob")
    assert (second.created_at, second.updated_at > first.updated_at, second.actor) == (first.created_at, True, "bob")
    assert home.policies.get("intents")[0] == second
    assert [policy for policy, _ in home.policies.all()] == [second]
    assert home.policies.remove("intents") == second
    assert home.policies.all() == []
    for ask in (home.policies.get, home.policies.remove):
        with pytest.raises(NotFound, match="no learning policy"):
            ask("intents")
    assert home.policies.begin("intents") is None


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"after": None, "every_days": None}, "after"),
        ({"after": 0}, "after"),
        ({"at_least": 0}, "at_least"),
        ({"every_days": 0.0}, "every_days"),
        ({"every_days": 1e6}, "every_days"),
        ({"control_every": 0}, "control_every"),
    ],
)
def test_what_can_be_no_policy(home: Home, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        home.policies.set("intents", actor="ann", **wrong)
    assert refused.value.param == param
    with pytest.raises(NotFound):
        home.policies.set("nobody", actor="ann")
    assert home.policies.all() == []


def test_so_many_judgements_are_a_round(home: Home) -> None:
    home.say(2)
    home.policies.set("intents", after=3, method="kto", hyperparameters={"rank": 8}, actor="ann")
    home.say(comment="hm")
    home.say(metadata={"page": "7"})
    home.say(adapter="other@1")
    assert (home.stands.judgements, home.stands.due) == (2, False)
    assert home.stands.waits_for.startswith("1 more judgement, or 20")
    assert home.policies.begin("intents") is None
    home.say(correction="better")
    assert (home.stands.judgements, home.stands.due) == (3, True)
    job = home.begin()
    assert (job.name, job.model, job.parent, job.training_file, job.method, job.hyperparameters) == (
        "intents", "intents@1", "intents@1", FEEDBACK_FILE, "kto", {"rank": 8},
    )  # fmt: skip
    assert (job.key_id, job.created_by, job.metadata) == (
        KEY_ID, "keeper", {"learning_policy": "intents", "round": "1"},
    )  # fmt: skip
    assert next(event.message for event in home.jobs.events(job.id)) == (
        "Round 1 of the learning policy of intents: 3 new judgements; it continues intents@1."
    )


def test_nothing_begins_while_a_job_of_the_adapter_is_under_way(home: Home) -> None:
    home.policies.set("intents", after=1, actor="ann")
    by_hand, _ = home.jobs.submit(HAND, actor="ann", key_id="k")
    home.jobs.submit(NewJob(model="other", name="other", training_file=FEEDBACK_FILE), actor="ann", key_id="k")
    home.say()
    assert home.stands.waits_for == f"the end of {by_hand.id}"
    assert home.policies.begin("intents") is None
    home.end()
    job = home.begin()
    assert (home.policies.begin("intents"), home.stands.waits_for) == (None, f"the end of {job.id}")


def test_what_the_last_job_learned_is_not_new(home: Home) -> None:
    home.policies.set("intents", after=2, every_days=None, actor="ann")
    home.say(2)
    home.begin()
    home.say()  # it may be learned twice, and is not lost
    home.end()
    assert (home.stands.judgements, home.stands.waits_for) == (1, "1 more judgement")
    home.say()
    home.jobs.submit(HAND, actor="ann", key_id="k")
    home.jobs.claim("other", "validating_files", seconds=60)
    assert not home.stands.due
    claim = home.jobs.claim("w", "validating_files", seconds=60)
    assert claim is None
    home.jobs.release_owner("other")
    home.end()
    assert (home.stands.judgements, home.stands.waits_for) == (0, "2 more judgements")
    assert home.stands.rounds == {"set_aside": 1}


def test_a_week_is_a_reason_if_there_is_something_to_learn(home: Home) -> None:
    home.policies.set("intents", after=None, at_least=2, actor="ann")
    home.say()
    assert home.stands.waits_for.endswith("UTC with 1 more judgement")
    home.ahead = timedelta(days=7, minutes=1)
    assert home.stands.waits_for == "1 more judgement"
    home.say()
    home.begin()
    home.end()
    home.say(2)
    # The real clock made the job: a week after it.
    assert home.stands.due
    home.ahead = timedelta(days=6)
    assert not home.stands.due
    assert home.stands.waits_for.endswith("UTC")


def test_after_a_failure_as_many_must_come_again_and_time_must_pass(home: Home) -> None:
    home.policies.set("intents", after=2, every_days=None, actor="ann")
    home.say(2)
    home.begin()
    home.end(fail=True)
    assert home.stands.judgements == 2, "nothing has learned from them"
    assert "the last round failed" in home.stands.waits_for
    home.ahead = timedelta(minutes=11)
    assert home.stands.waits_for == "2 more judgements"
    home.say(2)
    home.begin()
    home.end(fail=True)
    home.say(2)
    assert "2 rounds failed" in home.stands.waits_for
    home.ahead = timedelta(minutes=21)
    assert (home.stands.due, home.stands.judgements) == (True, 6)
    home.begin()
    home.end()
    home.say(2)
    home.ahead = timedelta(0)
    job = home.begin()
    assert (job.metadata["round"], home.stands.rounds) == (
        "4", {"failed": 2, "set_aside": 1, "collecting": 1},
    )  # fmt: skip


def test_backing_off_has_an_end(home: Home) -> None:
    home.policies.set("intents", after=1, actor="ann")
    for _ in range(10):
        home.jobs.submit(HAND, actor="ann", key_id="k")
        home.end(fail=True)
    home.say()
    home.ahead = timedelta(hours=23)
    assert not home.stands.due
    home.ahead = timedelta(hours=25)
    assert home.stands.due


def test_a_cancelled_round_is_not_tried_again_at_once(home: Home) -> None:
    home.policies.set("intents", after=2, every_days=None, actor="ann")
    home.say(2)
    home.jobs.cancel(home.begin().id, actor="ann")
    home.look()
    assert home.stands.waits_for == "2 more judgements"
    home.say(2)
    assert home.stands.due, "it is no failure: no time must pass"


def test_every_third_round_is_a_control(home: Home) -> None:
    home.policies.set("intents", after=1, control_every=3, actor="ann")
    parents, failed = [], False
    while len(parents) < 7:
        home.say()
        assert home.stands.next_is_control == (len(parents) % 3 == 2)
        job = home.begin()
        assert (job.metadata.get(CONTROL_KEY) == "intents@1") == (job.parent is None) == (job.model == BASE_ID)
        if job.parent is None and not failed:
            failed = True
            home.end(fail=True)
            home.ahead += timedelta(hours=1)
            continue
        parents.append(job.parent)
        home.end()
    assert [parent is None for parent in parents] == [False, False, True, False, False, True, False]
    assert (
        "a control beside intents@1, from the base"
        in home.jobs.events(next(job.id for job in home.jobs.find(limit=100) if job.parent is None), limit=100)[
            -2
        ].message
    )


def test_it_continues_what_is_live_at_that_moment(home: Home) -> None:
    home.policies.set("intents", after=1, actor="ann")
    push(home.registry, "b")
    home.say()
    home.registry.set_alias("intents", "live", 2, actor="ann")
    assert home.begin().parent == "intents@2"


# --- once, whatever happens -------------------------------------------------------------------------------------------


def test_many_look_at_once_and_one_submits(home: Home, tmp_path: Path) -> None:
    home.policies.set("intents", after=5, actor="ann")
    home.say(5)
    others = [Home(Records.at(tmp_path / "graftwork.db")) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        begun = list(pool.map(lambda other: other.policies.begin("intents"), others))
    assert [job is not None for job in begun].count(True) == 1
    assert len(home.jobs.find()) == 1
    for other in others:
        other.records.database.close()


def test_who_lost_the_lease_submits_nothing(home: Home) -> None:
    home.policies.set("intents", after=1, actor="ann")
    home.say()
    leases = Leases(home.records.database)
    stale = leases.acquire("keeper", "a", seconds=60)
    assert stale is not None
    leases.release(stale)
    new = leases.acquire("keeper", "b", seconds=60)
    assert new is not None
    with pytest.raises(Conflict):
        home.policies.begin("intents", fence=lambda connection: leases.check(connection, stale))
    assert list(home.jobs.find()) == []
    assert home.policies.begin("intents", fence=lambda connection: leases.check(connection, new)) is not None


OURS = {policies_module.__file__, jobs_module.__file__, Database.write.__code__.co_filename}


@contextmanager
def killed_at(line: int | None, files: Collection[str] = OURS) -> Iterator[list[int]]:
    """Within it this process is killed as it comes to its ``line``-th line of some files; how many it came by."""
    seen = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        seen[0] += event == "line"
        if seen[0] == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(None)


def in_child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kills(home: Home, step: int | None) -> None:
    """Killed at every ``step``-th line; each time another one looks, whose round then ends."""
    home.policies.set("intents", after=1, actor="ann")
    home.say()
    with killed_at(None) as seen:
        home.begin()
    home.end()
    lines = range(1, seen[0] + 1, step or seen[0] // 5)
    assert len(lines) >= 5

    def begin(line: int) -> None:
        with killed_at(line):
            home.policies.begin("intents")

    for number, line in enumerate(lines, 2):
        home.say()
        assert in_child(lambda line=line: begin(line)) == -signal.SIGKILL
        home.policies.begin("intents")
        assert home.policies.begin("intents") is None
        assert home.stands.rounds == {"set_aside": number - 1, "collecting": 1}, line
        home.end()


def test_killed_at_some_lines_it_is_one_round(home: Home) -> None:
    kills(home, None)


@pytest.mark.slow
def test_killed_at_any_line_it_is_one_round(home: Home) -> None:
    kills(home, 1)
