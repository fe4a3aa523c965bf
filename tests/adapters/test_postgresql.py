"""PostgreSQL is a URL away: the same promises, kept by a server that this file starts for itself.

Skips where there are no PostgreSQL binaries or no driver (psycopg).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from graftwork.adapters.access.audit import AuditLog, Change, begin, entered
from graftwork.adapters.access.keys import Keys, Role
from graftwork.adapters.access.limits import Limits
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.access.usage import Usage, UsageLedger
from graftwork.adapters.batches.batch import BatchError, BatchResult, NewBatch
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.errors import ConfigurationError, Conflict, InvalidRequest, LimitExceeded, Unavailable
from graftwork.adapters.experiments.exposures import ClosedUnit, Exposures
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.erasure import Erasure, ErasureResult
from graftwork.adapters.feedback.feedback import FeedbackFilter, FeedbackLog, SubmittedFeedback
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import BARE_BASE, InteractionFilter
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage import database as db
from graftwork.adapters.storage.database import UNREACHABLE, Database, migrate
from graftwork.adapters.storage.leases import Leases
from graftwork.adapters.storage.move import move
from graftwork.adapters.storage.settings import DATABASE_ID, INTERACTION_IDS, secret
from graftwork.adapters.storage.topics import Topic
from graftwork.server.generation.limiter import Limiter
from tests.adapters.records import BASE_ID, Records
from tests.adapters.registry.test_registry import RegistryMachine
from tests.adapters.running_experiments import ExperimentsHarness, arm, plan
from tests.adapters.storage.test_database import MODULES_WITH_TABLES
from tests.adapters.versions import BASE, push, spec
from tests.homes.earlier import restore
from tests.postgresql import PostgresqlServer, needs_postgresql, postgresql_server

pytestmark = needs_postgresql


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
def create(server: PostgresqlServer) -> Callable[[], str]:
    """A function that makes an empty database, and gives its URL."""
    return server.create_database


@pytest.fixture
def database(create: Callable[[], str]) -> Iterator[Database]:
    database = Database(create())
    migrate(database)
    yield database
    database.close()


def test_the_registry_against_a_dict(create: Callable[[], str]) -> None:
    class Machine(RegistryMachine):
        def create(self) -> str:
            return create()

        def drop(self) -> None:
            pass

        def notice(self) -> None:
            self.databases[1]._topics.look()

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=8, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]),
    )


def test_threads_take_turns_and_each_version_is_made_once(create: Callable[[], str]) -> None:
    url = create()
    with ThreadPoolExecutor(4) as pool:
        databases = list(pool.map(lambda _: Database(url), range(4)))
        list(pool.map(migrate, databases))  # at once
        added = pool.map(
            lambda number: Registry(databases[number % 4]).add_version(
                "intents", spec(number % 7), base=BASE, alias="candidate"
            ),
            range(40),
        )
        assert sum(created for _, created in added) == 7
    versions = Registry(databases[0]).adapter("intents").versions
    assert [version.number for version in versions] == [1, 2, 3, 4, 5, 6, 7]
    for database in databases:
        database.close()


def test_changes_are_noticed(database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    here, there = Registry(database), Registry(other)
    push(here, "a")
    assert there.resolve("intents").number == 1
    keys_there = Keys(other)
    assert keys_there.configured() is False
    push(here, "b", alias="live")
    assert here.resolve("intents").number == 2, "a process sees its own changes at once"
    wait_until(lambda: there.resolve("intents").number == 2)
    bearer, key = Keys(database).create("ci", "operator")
    wait_until(lambda: keys_there.authenticate(bearer) == key)
    Keys(database).revoke(key.id)
    wait_until(lambda: keys_there.authenticate(bearer) is None)
    other.close()


def test_what_is_logged_changes_no_topic(create: Callable[[], str]) -> None:
    records = Records.new(create())
    topics: tuple[Topic, ...] = ("registry", "keys", "experiments", "log_policies")
    before = [records.database.topic_version(topic) for topic in topics]
    rated = records.log(records.mint())
    records.feedback.add(SubmittedFeedback(interaction_id=rated, thumb="up"), key_id="k")
    Leases(records.database).acquire("keeper", "a", seconds=60)
    assert [records.database.topic_version(topic) for topic in topics] == before
    LogPolicies(records.database).set("key", "k", log=False, actor="me")
    assert [records.database.topic_version(topic) for topic in topics] != before
    records.database.close()


def test_what_is_decided_in_a_transaction_is_decided_by_the_latest(database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    here, there = Registry(database), Registry(other)
    push(here, "a")
    for number in range(2, 12):
        assert there.find("intents") is not None
        push(here, str(number), alias="live")
        with other.write():
            assert there.resolve("intents").number == number
    other.close()


def test_rows_that_are_only_added_wait_for_no_writer(create: Callable[[], str]) -> None:
    records = Records.new(create())
    ids = [records.mint() for _ in range(3)]
    with records.database.write() as connection:
        connection.execute(text("SELECT 1"))
        records.log(ids[0])
        records.feedback.add(SubmittedFeedback(interaction_id=ids[0], thumb="up"), key_id="k")
    with records.database.append("exposures"):
        records.log(ids[1])
    records.log(ids[1])
    assert len(records.interactions.find()) == 2
    records.database.close()


def test_numbers_of_feedback_become_visible_in_order(create: Callable[[], str]) -> None:
    records = Records.new(create())
    id = records.log(records.mint())
    seen: list[int] = []
    done = threading.Event()

    def follow() -> None:
        while not done.is_set():
            seen.extend(row.id for row in records.feedback.each(after=seen[-1] if seen else 0))

    follower = threading.Thread(target=follow)
    follower.start()
    with ThreadPoolExecutor(8) as pool:
        said = pool.map(
            lambda _: records.feedback.add(SubmittedFeedback(interaction_id=id, thumb="up"), key_id="k")[0].id,
            range(200),
        )
        added = sorted(said)
    done.set()
    follower.join()
    seen.extend(row.id for row in records.feedback.each(after=seen[-1] if seen else 0))
    assert seen == added, "who reads from where they left off misses nothing"
    records.database.close()


def test_a_home_is_taken_along(create: Callable[[], str], tmp_path: Path) -> None:
    home = restore(tmp_path / "home")
    source = Database(home.path / "graftwork.db")
    target = Database(create())
    counts = move(source, target)
    assert counts["interactions"] > 0 < counts["feedback"]
    registry = Registry(target)
    assert (registry.resolve("intents").id, registry.resolve("intents@candidate").id) == ("intents@1", "intents@2")
    assert secret(target, DATABASE_ID) != secret(source, DATABASE_ID), "a home belongs to one of the two"
    ids = InteractionIds(secret(target, INTERACTION_IDS))
    before = FeedbackLog(source, ids).find()
    assert FeedbackLog(target, ids).find() == before
    exposures = list(Exposures(source).since(home.experiment, 0))
    assert list(Exposures(target).since(home.experiment, 0)) == exposures
    late = SubmittedFeedback(interaction_id=home.interactions["not_logged"], thumb="down")
    row, is_new = FeedbackLog(target, ids).add(late, key_id="k")
    assert (is_new, row.id) == (True, max(known.id for known in before) + 1)
    with pytest.raises(IntegrityError, match="append-only"), target.write() as connection:
        connection.execute(text("DELETE FROM feedback"))  # triggers are as they were
    with pytest.raises(Conflict, match="in use"):
        move(source, target)
    with pytest.raises(ConfigurationError):
        move(source, source)
    source.close()
    target.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_schema_is_what_the_code_expects(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": lambda item, name, kind, *_: kind in ("table", "column")}
        )
        differences = compare_metadata(context, db.schema)
        comments = connection.scalars(
            text("SELECT obj_description(oid) FROM pg_class WHERE relkind = 'r' AND relname = 'versions'")
        ).all()
    assert MODULES_WITH_TABLES  # imported for their tables
    # The code's tables carry no comments: those are said once, in the migrations.
    assert [difference for difference in differences if difference[0] != "remove_table_comment"] == []
    assert comments[0].startswith("every pushed adapter folder")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET digest = 'sha256:x' WHERE number = 1",
        "UPDATE versions SET retired_at = NULL WHERE number = 2",
        "DELETE FROM versions",
        "TRUNCATE versions CASCADE",
        "UPDATE alias_events SET actor = 'nobody'",
        "DELETE FROM alias_events",
        "TRUNCATE alias_events",
        "UPDATE aliases SET number = 9",
    ],
)
def test_the_database_refuses_to_change_the_past(database: Database, statement: str) -> None:
    registry = Registry(database)
    push(registry, "a")
    push(registry, "b")
    registry.retire("intents", 2, actor="me")
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(text(statement))


def test_values_that_only_one_of_the_two_would_take(database: Database) -> None:
    registry = Registry(database)
    push(registry, "a")
    for text_ in ("a\0b", "\ud800"):
        with pytest.raises(InvalidRequest):
            registry.add_version("intents", spec("b"), base=BASE, alias=None, data_digest=text_)
    metadata = {"nul": "a\0b", "half": "\ud800", "größe": 1e300}
    version, _ = registry.add_version("intents", spec("b"), base=BASE, alias=None, metadata=metadata)
    assert Registry(database).version("intents", 2) == version
    assert version.metadata == metadata
    assert version.created_at.tzinfo is UTC
    assert version.created_at <= datetime.now(UTC)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        migrate(Database(f"postgresql:///none?host={tmp_path}"))


def test_a_password_is_not_shown() -> None:
    database = Database("postgresql://me:secret@host/graftwork")
    assert str(database) == "postgresql+psycopg://me:***@host/graftwork"
    with pytest.raises(ConfigurationError) as refused:
        Database("postgresql://me:se cr/et@host:port/x")
    assert "cr/et" not in refused.value.message


def test_a_server_that_stops_and_comes_back(server: PostgresqlServer) -> None:
    database = Database(server.create_database())
    migrate(database)
    registry, keys = Registry(database), Keys(database)
    push(registry, "a")
    bearer, key = keys.create("app", "app")
    assert keys.authenticate(bearer) == key
    assert registry.resolve("intents").number == 1
    for how in (signal.SIGINT, signal.SIGQUIT):
        server.stop(how)
        try:
            began = time.monotonic()
            for _ in range(3):
                with pytest.raises(Unavailable) as refused:
                    push(registry, "b")
                assert refused.value.code == UNREACHABLE
                assert registry.resolve("intents").number == 1, "what was seen goes on being served"
                assert keys.authenticate(bearer) == key
            wait_until(lambda: database.is_away)
            with pytest.raises(Unavailable), database.read():
                pass
            assert time.monotonic() - began < 10
        finally:
            server.start()
        wait_until(lambda: not database.is_away)
        keys.create(f"after {how.name}", "app")
    push(registry, "b", alias="live")
    assert registry.resolve("intents").number == 2
    database.close()


def test_who_waits_too_long_gets_unavailable(create: Callable[[], str]) -> None:
    url = create()
    holder, other = Database(url), Database(f"{url}&options=-c statement_timeout=100ms -c lock_timeout=50ms")
    migrate(holder)
    with holder.write(), pytest.raises(Unavailable, match="locked by another writer"), other.write():
        pass
    with pytest.raises(Unavailable, match="was stopped at this"), other.read() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    with other.write():
        pass
    holder.close()
    other.close()


def test_time_is_the_database_s(database: Database) -> None:
    leases = Leases(database)
    lease = leases.acquire("keeper", "a", seconds=60)
    assert lease is not None
    with database.read() as connection:
        assert 0 < (lease.expires_at - database.now(connection)).total_seconds() <= 60


def test_interactions_feedback_and_what_is_forgotten(create: Callable[[], str]) -> None:
    records = Records.new(create())
    erasure = Erasure(records.database, records.ids, Registry(records.database), base_id=BASE_ID)
    old, mine = records.mint(None, days_ago=99), records.mint("intents@7", user="ann", days_ago=1)
    records.log(old)
    records.log(mine, user="ann", metadata={"a": "b"})
    records.log(mine, user="ann", metadata={"a": "b"})
    assert [row.id for row in records.interactions.find()] == [mine, old]
    assert [row.id for row in records.interactions.find(after=mine)] == [old]
    assert [row.id for row in records.interactions.each(InteractionFilter(adapter=BARE_BASE))] == [old]
    assert records.interactions.get(mine).metadata == {"a": "b"}
    said = SubmittedFeedback(interaction_id=mine, thumb="down", correction="better", metadata={"page": "7"})
    row, new = records.feedback.add(said, key_id="k", idempotency_key="a")
    assert (new, records.feedback.add(said, key_id="k", idempotency_key="a")) == (True, (row, False))
    assert list(records.feedback.find(FeedbackFilter(kind="metadata", adapter="intents@7"))) == [row]
    for statement in (
        "UPDATE feedback SET thumb = 'up'",
        "UPDATE feedback SET correction = 'x'",
        "DELETE FROM feedback",
    ):
        with pytest.raises(IntegrityError, match="append-only"), records.database.write() as connection:
            connection.execute(text(statement))
    assert erasure.expire(LogPolicies(records.database, retention_days=30)).num_interactions == 1
    assert erasure.erase_user("ann") == ErasureResult(num_interactions=1, num_feedback=1)
    (left,) = records.feedback.each()
    assert (left.thumb, left.correction, left.metadata) == ("down", None, None)
    leases = Leases(records.database)
    lease = leases.acquire("keeper", "a", seconds=60)
    assert (lease, leases.acquire("keeper", "b", seconds=60)) == (leases.holder("keeper"), None)
    records.database.close()


def test_experiments_and_what_is_recorded_of_them(create: Callable[[], str]) -> None:
    records = Records.new(create())
    harness = ExperimentsHarness.on(records.database, records)
    for content in ("one", "two"):
        push(harness.registry, content)
    harness.start()
    asked = [harness.ask(f"user-{number % 30}") for number in range(40)]
    harness.say(asked[0], thumb="up", episode=records.ids.episode("trip", key_id="local"))
    exposures = Exposures(records.database)
    shown = list(exposures.since("first", 0))
    assert [exposure.interaction_id for exposure in shown] == asked
    assert {exposure.arm for exposure in shown} == {"intents@1", "intents@2"}
    unit = ClosedUnit(
        unit=shown[0].unit,
        arm=shown[0].arm,
        epoch=1,
        first_at=shown[0].created_at,
        learned=False,
        outcome={"thumb": None},
        covariate=0.25,
    )
    exposures.close("first", [unit])
    assert list(exposures.closed("first")) == [unit]
    exposures.save_reading("first", 1, {"units": 1}, new=True)
    exposures.save_reading("first", 2, {"units": 2}, new=False)
    assert [reading.units for reading in exposures.readings("first")] == [2]
    with pytest.raises(Conflict):
        harness.registry.set_alias("intents", "live", 2, actor="ann")
    harness.experiments.set_weights("first", {"intents@2": 0.8}, actor="ann")
    joining = arm(None, 0.1, name="late", system="Be brief.")
    joined = harness.experiments.add_arm("first", joining, base_digest=BASE.digest, actor="ann")
    assert harness.experiments.get("first").plan.arms == joined.plan.arms
    ended = harness.experiments.stop("first", decision="promoted", arm="intents@2", actor="ann", reason="better")
    assert harness.experiments.get("first") == ended
    assert harness.live() == 2
    for statement in (
        "UPDATE experiments SET ended_at = NULL, outcome = NULL",
        "DELETE FROM experiments",
        "UPDATE exposures SET arm = 'other'",
        "DELETE FROM experiment_units",
        "UPDATE experiment_events SET reason = 'other'",
        "UPDATE experiment_arms SET epoch = 1",
        "UPDATE feedback SET episode = 'other'",
    ):
        with pytest.raises(IntegrityError), records.database.write() as connection:
            connection.execute(text(statement))
    records.database.close()


def test_episodes_are_units_where_the_plan_says_so(create: Callable[[], str]) -> None:
    records = Records.new(create())
    harness = ExperimentsHarness.on(records.database, records)
    for content in ("one", "two"):
        push(harness.registry, content)
    episode = records.ids.episode("trip", key_id="local")
    for name, of, unit in (("first", plan(), records.ids.unit(user="ann")), ("second", plan(unit="episode"), episode)):
        harness.start(name, of=of)
        # Times are whole seconds: those of the second experiment are later.
        asked = [
            harness.ask("ann", episode="trip", seconds_ago=ago) for ago in ((100, 90) if name == "first" else (60, 50))
        ]
        assert {exposure.unit for exposure in Exposures(records.database).since(name, 0)} == {unit}
        harness.experiments.stop(name, actor="ann", reason="enough")
    assert records.interactions.last_of_episode(episode) in asked
    assert len(records.interactions.find(InteractionFilter(episode=episode))) == 4
    records.database.close()


def test_a_batch_and_its_files(create: Callable[[], str], tmp_path: Path) -> None:
    database = Database(create())
    migrate(database)
    batches, files = Batches(database), Files(database, tmp_path / "files")
    shop, ann = Principal("shop", Role.APP, "k1"), Principal("ann", Role.OPERATOR, "k2")
    with files.upload() as upload:
        upload.write(b"{}\n")
        file = files.keep(upload, filename="a.jsonl", purpose="batch", key_id=shop.key_id)
    assert list(files.find(owner="k1")) == [file]
    assert list(files.find(owner="k3")) == []
    new = NewBatch(endpoint="/v1/completions", input_file=file.id, metadata={"größe": "1"})
    made = [batches.create(new, who)[0].id for who in (shop, shop, ann)]
    assert [batch.id for batch in batches.unfinished(9)] == [made[0], made[2], made[1]]
    batches.cancel(made[1], owner=shop.owner)
    assert [batch.id for batch in batches.unfinished(1)] == [made[1]]
    batches.begin(made[0], 2, fence=lambda _: None)
    results = [BatchResult(line=line, failed=line == 2, content='"\\u0000"') for line in (1, 2)]
    batches.add_results(made[0], results, fence=lambda _: None)
    with pytest.raises(IntegrityError):
        batches.add_results(made[0], results[:1], fence=lambda _: None)
    assert [list(batches.results(made[0], failed=failed)) for failed in (False, True)] == [results[:1], results[1:]]
    batches.finalize(made[0], fence=lambda _: None)
    ended = batches.end(made[0], output_file="file-1", error_file=None, fence=lambda _: None)
    assert (ended.status, ended.completed, ended.failed, ended.metadata) == ("completed", 1, 1, {"größe": "1"})
    batches.delete_results()
    assert batches.answered_lines(made[0]) == set()
    error = BatchError(code="invalid_json_line", message="no JSON", line=3)
    assert batches.fail(made[2], [error], fence=lambda _: None).errors == (error,)
    for statement in ("UPDATE batches SET total = 9", "DELETE FROM batches", "TRUNCATE batches CASCADE"):
        with pytest.raises(IntegrityError), database.write() as connection:
            connection.execute(text(statement))
    database.close()


def test_a_round_of_a_learning_policy(create: Callable[[], str]) -> None:
    records = Records.new(create())
    registry, jobs = Registry(records.database), Jobs(records.database)
    policies = LearningPolicies(records.database, registry, jobs, base_id=BASE_ID)
    push(registry, "a")
    policies.set("intents", after=2, hyperparameters={"rank": 8}, control_every=1, actor="ann")
    for thumb in ("up", "down"):
        assert policies.begin("intents") is None
        records.feedback.add(SubmittedFeedback(interaction_id=records.mint("intents@1"), thumb=thumb), key_id="k")
    with ThreadPoolExecutor(4) as pool:
        begun = [found for found in pool.map(lambda _: policies.begin("intents"), range(4)) if found is not None]
    job = jobs.get(begun[0].job)
    assert (len(begun), job.model, job.hyperparameters) == (1, BASE_ID, {"rank": 8})
    rounds = Rounds(
        records.database, registry, jobs, Experiments(records.database, registry), base_digest="sha256:base"
    )
    assert rounds.get(begun[0].id) == begun[0] == rounds.find(adapter="intents", state="collecting")[0]
    assert rounds.undo(begun[0].id, actor="ann", reason="a try").state == "undone"
    assert (jobs.get(job.id).status, rounds.unended()) == ("cancelled", [])
    ((policy, standing),) = policies.all()
    assert (standing.judgements, standing.rounds, standing.waits_for[:19]) == (
        2,
        {"undone": 1},
        "2 more judgements, ",
    )
    assert policies.remove("intents") == policy
    records.database.close()


def test_keys_what_they_used_and_who_changed_them(create: Callable[[], str]) -> None:
    url = create()
    database, other = Database(url), Database(url)
    migrate(database)
    log, keys = AuditLog(database), Keys(database)
    change = Change(actor="ann", key_id="k", action="create_key", target="keys", request_id="req-1", remote="10.0.0.1")
    with entered():
        begin(change)
        secret, key = keys.create("shop", Role.APP, scope=frozenset({"intents"}), limits=Limits(tokens_per_day=100))
    log.end(change, 201)
    (entry,) = log.find()
    assert (entry.actor, entry.target, entry.outcome) == ("ann", f"keys/{key.id}", "done")
    with pytest.raises(DBAPIError, match="append-only"), database.write() as connection:
        connection.execute(text("DELETE FROM audit_log"))
    there = Keys(other)
    assert there.authenticate(secret) == key
    newer, rotated = keys.rotate(key.id)
    assert {there.authenticate(newer), there.authenticate(secret)} <= {rotated, key, None}
    today = datetime.now(UTC).date()
    here, there_too = (Limiter(UsageLedger(each), keys.limits_of) for each in (database, other))
    for limiter in (here, there_too, here, there_too):
        limiter.begin(key.id, 40).settle(20)
        limiter.save()
    here.save()
    assert here.standing(key.id).today == Usage(4, 80) == UsageLedger(other).since(today)[key.id, today]
    with pytest.raises(LimitExceeded):
        here.begin(key.id, 21)
    for each in (database, other):
        each.close()
