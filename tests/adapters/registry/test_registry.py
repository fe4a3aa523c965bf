"""The registry compared with a plain dict, and under threads, processes and kill -9."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graftwork.adapters import names
from graftwork.adapters.access.keys import Keys
from graftwork.adapters.errors import Conflict, GraftworkError, InvalidAdapter, InvalidRequest, NotFound
from graftwork.adapters.registry import Registry, change, snapshot
from graftwork.adapters.storage.database import Database, migrate
from tests.adapters.versions import BASE, push, spec


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


# Pushing


def test_versions_are_numbered_and_the_first_is_live(registry: Registry) -> None:
    assert [push(registry, content).id for content in "abc"] == ["intents@1", "intents@2", "intents@3"]
    assert push(registry, "a", "other").id == "other@1", "the same bytes under another name are another version"
    assert registry.adapter("intents").aliases == {"live": 1}
    assert registry.resolve("intents") == registry.resolve("intents@1") == registry.version("intents", 1)


def test_a_version_is_read_back_as_it_was_pushed(registry: Registry, database: Database) -> None:
    registry.add_version("intents", spec("a"), base=BASE, alias=None)
    version, created = registry.add_version(
        "intents",
        spec("b", base_digest="sha256:base", config={"targets": ("q", "v"), "größe": 1.5}),
        base=BASE,
        alias="candidate",
        parent=1,
        data_digest="sha256:data",
        metadata={"loss": 0.25, "note": "half \ud83d"},
        actor="ci",
    )
    assert created
    assert version.verified
    assert version.config == {"targets": ["q", "v"], "größe": 1.5}
    assert (version.parent, version.data_digest, version.metadata["loss"]) == (1, "sha256:data", 0.25)
    assert version.created_at.tzinfo is UTC
    assert Registry(database).resolve("intents@candidate") == version == registry.version("intents", 2)
    assert not registry.resolve("intents").verified


def test_the_same_bytes_are_the_same_version(registry: Registry) -> None:
    first = push(registry, "a")
    push(registry, "b")
    events = len(registry.history("intents"))
    again, created = registry.add_version("intents", spec("a"), base=BASE, alias=None, metadata={"new": 1})
    assert (again, created) == (first, False)
    assert len(registry.history("intents")) == events, "nothing happened"
    registry.add_version("intents", spec("a"), base=BASE, alias="candidate")
    assert registry.resolve("intents@candidate") == first


def test_retired_bytes_do_not_come_back(registry: Registry) -> None:
    push(registry, "a")
    push(registry, "b")
    registry.retire("intents", 2, actor="me")
    with pytest.raises(Conflict, match=r"intents@2 was retired on .* push a changed adapter") as caught:
        push(registry, "b", alias="live")
    assert caught.value.code == "version_retired"
    assert registry.resolve("intents").number == 1


def test_bytes_belong_to_one_base(registry: Registry) -> None:
    push(registry, "a")
    with pytest.raises(Conflict, match="push them under another name"):
        registry.add_version("intents", spec("a"), base=replace(BASE, digest="sha256:other"), alias=None)
    with pytest.raises(InvalidAdapter, match="train it again on this one"):
        registry.add_version("intents", spec("b", base_digest="sha256:other"), base=BASE, alias=None)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"name": "Intents"}, "name"),
        ({"name": "smollm2"}, "name"),
        ({"alias": "7"}, "alias"),
        ({"alias": "base"}, "alias"),
        ({"parent": 2}, "parent"),
        ({"parent": 0}, "parent"),
        ({"parent": 10**5000}, "parent"),
        ({"metadata": {"loss": float("nan")}}, "metadata"),
        ({"metadata": {"object": object()}}, "metadata"),
        ({"metadata": {"long": "x" * 70_000}}, "metadata"),
        ({"data_digest": "x" * 201}, "data_digest"),
        ({"data_digest": "a\0b"}, "data_digest"),
        ({"actor": "\ud800"}, "actor"),
    ],
)
def test_bad_pushes_change_nothing(registry: Registry, arguments: dict[str, Any], param: str) -> None:
    push(registry, "a")
    before = registry.adapters(), registry.history("intents")
    plain: dict[str, Any] = {"name": "intents", "spec": spec("b"), "base": BASE, "alias": None}
    with pytest.raises(InvalidRequest) as caught:
        registry.add_version(**{**plain, **arguments})
    assert caught.value.param == param
    assert (registry.adapters(), registry.history("intents")) == before


# Resolving


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("intent", "did you mean 'intents'"),
        ("nothing-like-it", "GET /v1/models"),
        ("", "there is no adapter ''"),
        ("Intents", "there is no adapter 'Intents': did you mean 'intents'"),
        ("openai/intents", "did you mean 'intents'"),
        ("openai/Intent", "did you mean 'intents'"),
        ("x" * 100_000, "…"),
        ("intents@", "has versions 1 to 3"),
        ("intents@4", "has versions 1 to 3"),
        ("intents@03", "has versions 1 to 3"),
        ("intents@-1", "has versions 1 to 3"),
        ("intents@+1", "has versions 1 to 3"),
        ("intents@9" + "9" * 5000, "has versions 1 to 3"),
        ("intents@canary", "candidate (version 3), live (version 1)"),
        ("intents@live@1", "names nothing"),
        ("intents@\ud800", "names nothing"),
        ("intents@2", "was retired on"),
    ],
)
def test_what_names_nothing_is_not_found(registry: Registry, model: str, says: str) -> None:
    push(registry, "a")
    push(registry, "b")
    push(registry, "c", alias="candidate")
    registry.retire("intents", 2, actor="me")
    with pytest.raises(NotFound) as caught:
        registry.resolve(model)
    assert says in caught.value.message
    assert len(caught.value.message) < 400
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_an_empty_registry_says_so(registry: Registry) -> None:
    with pytest.raises(NotFound, match="push one first"):
        registry.resolve("intents")
    assert registry.adapters() == []


def test_resolve_reads_nothing_while_nothing_changes(
    registry: Registry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(registry, "a")
    registry.resolve("intents")
    with monkeypatch.context() as patch:
        patch.setattr(database, "read", lambda: pytest.fail("asked the database"))
        assert registry.resolve("intents@live").number == 1
    Keys(database).create("someone", "app")  # a commit, but none of the registry's
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_entries", lambda *_, **__: pytest.fail("read adapters"))
        assert registry.resolve("intents@live").number == 1


def push_from_another_process(path: Path, contents: str, alias: str | None) -> None:
    database = Database(path)
    for content in contents:
        push(Registry(database), content, alias=alias)


def test_other_processes_changes_are_seen(registry: Registry, tmp_path: Path) -> None:
    push(registry, "a")
    assert registry.resolve("intents").number == 1
    other = get_context("spawn").Process(
        target=push_from_another_process, args=(tmp_path / "graftwork.db", "bc", "live")
    )
    other.start()
    other.join()
    assert registry.resolve("intents").number == 3


def test_a_moving_alias_always_resolves(registry: Registry) -> None:
    push(registry, "a")
    push(registry, "b")
    moving = threading.Event()
    moving.set()

    def ask() -> set[int]:
        seen = set()
        while moving.is_set():
            seen.add(registry.resolve("intents").number)
        return seen

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask) for _ in range(3)]
        for number in [2, 1] * 15:
            registry.set_alias("intents", "live", number, actor="me")
            assert registry.resolve("intents").number == number
        moving.clear()
        assert [answer.result() for answer in answers] == [{1, 2}] * 3


# Aliases, their past, retirement


def test_promoting_what_is_promoted_changes_nothing(registry: Registry) -> None:
    push(registry, "a")
    push(registry, "b")
    event = registry.set_alias("intents", "live", 2, actor="me", reason="better")
    assert (event.action, event.from_version, event.to_version, event.reason) == ("promote", 1, 2, "better")
    assert registry.set_alias("intents", "live", 2, actor="you", reason="again") == event
    assert registry.history("intents", limit=1) == [event]


def test_rollback_walks_back_and_never_forward(registry: Registry) -> None:
    for content in "abcd":
        push(registry, content, alias="live")
    assert [registry.rollback("intents", actor="me").to_version for _ in range(3)] == [3, 2, 1]
    with pytest.raises(Conflict, match="version 1, with none before it"):
        registry.rollback("intents", actor="me")
    registry.set_alias("intents", "live", 4, actor="me")
    registry.set_alias("intents", "live", 3, actor="me")
    registry.rollback("intents", actor="me")
    registry.set_alias("intents", "live", 2, actor="me")
    assert [registry.rollback("intents", actor="me").to_version for _ in range(2)] == [4, 1]


def test_rollback_passes_over_the_retired(registry: Registry) -> None:
    for content in "abc":
        push(registry, content, alias="live")
    registry.retire("intents", 2, actor="me", reason="says things")
    event = registry.rollback("intents", actor="me", reason="worse")
    assert (event.action, event.from_version, event.to_version) == ("rollback", 3, 1)
    push(registry, "d", alias="live")
    registry.retire("intents", 1, actor="me")
    with pytest.raises(Conflict, match=r"none before it to go back to \(retired: 1\): promote"):
        registry.rollback("intents", actor="me")


def test_rollback_leads_somewhere_else(registry: Registry) -> None:
    for content in "abc":
        push(registry, content, alias="live")
    registry.set_alias("intents", "live", 2, actor="me")
    registry.retire("intents", 3, actor="me")  # what lies between 2 and 2 is gone
    assert registry.rollback("intents", actor="me").to_version == 1
    with pytest.raises(Conflict):
        registry.rollback("intents", actor="me")


def test_rollback_of_another_alias(registry: Registry) -> None:
    push(registry, "a", alias="candidate")
    push(registry, "b", alias="candidate")
    assert registry.rollback("intents", alias="candidate", actor="me").to_version == 1
    with pytest.raises(InvalidRequest, match=r"no alias 'canary': it has candidate \(version 1\)") as caught:
        registry.rollback("intents", alias="canary", actor="me")
    assert caught.value.param == "alias"


def test_retire(registry: Registry) -> None:
    push(registry, "a")
    push(registry, "b", alias="candidate")
    with pytest.raises(Conflict, match="still pointed at by live: promote another"):
        registry.retire("intents", 1, actor="me")
    registry.set_alias("intents", "live", 2, actor="me")
    retired = registry.retire("intents", 1, actor="me", reason="old")
    assert retired.retired_at is not None
    assert registry.version("intents", 1) == retired == registry.retire("intents", 1, actor="you")
    event = registry.history("intents", limit=1)[0]
    assert (event.action, event.alias, event.from_version, event.to_version) == ("retire", None, 1, None)
    assert event.at == retired.retired_at
    with pytest.raises(Conflict, match="choose another version"):
        registry.set_alias("intents", "live", 1, actor="me")


@pytest.mark.parametrize(
    ("call", "error", "param"),
    [
        (lambda it: it.adapter("none"), NotFound, "name"),
        (lambda it: it.version("none", 1), NotFound, "name"),
        (lambda it: it.version("intents", 2), NotFound, "version"),
        (lambda it: it.version("intents", 0), NotFound, "version"),
        (lambda it: it.set_alias("none", "live", 1, actor="me"), NotFound, "name"),
        (lambda it: it.set_alias("intents", "live", 2, actor="me"), InvalidRequest, "version"),
        (lambda it: it.set_alias("intents", "live", 2**70, actor="me"), InvalidRequest, "version"),
        (lambda it: it.set_alias("intents", "Live", 1, actor="me"), InvalidRequest, "alias"),
        (lambda it: it.set_alias("intents", "live", 1, actor="me", reason="x" * 2001), InvalidRequest, "reason"),
        (lambda it: it.rollback("\ud800", actor="me"), NotFound, "name"),
        (lambda it: it.retire("intents", 10**5000, actor="me"), NotFound, "version"),
        (lambda it: it.retire("none", 1, actor="me"), NotFound, "name"),
        (lambda it: it.history("none"), NotFound, "name"),
        (lambda it: it.history("intents", limit=0), InvalidRequest, "limit"),
        (lambda it: it.adapters(limit=101), InvalidRequest, "limit"),
        (lambda it: it.at("none", "live", datetime.now(UTC)), NotFound, "name"),
        (lambda it: it.at("intents", "live", datetime(2020, 1, 1, tzinfo=UTC)), NotFound, "alias"),
        (lambda it: it.at("intents", "live", datetime(2020, 1, 1)), InvalidRequest, "when"),
    ],
)
def test_errors_name_what_was_wrong(
    registry: Registry, call: Callable[[Registry], object], error: type[GraftworkError], param: str
) -> None:
    push(registry, "a")
    with pytest.raises(error) as caught:
        call(registry)
    assert caught.value.param == param


def test_what_served_at_a_time(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch)
    start = clock.present
    push(registry, "a")
    push(registry, "b")
    clock.present += timedelta(hours=1)
    registry.set_alias("intents", "live", 2, actor="me")
    clock.present += timedelta(hours=1)
    registry.rollback("intents", actor="me")
    registry.retire("intents", 2, actor="me")

    def at(hours: float) -> int:
        return registry.at("intents", "live", start + timedelta(hours=hours)).number

    assert [at(hours) for hours in (0, 0.9, 1, 1.9, 2, 100)] == [1, 1, 2, 2, 1, 1]


def test_a_clock_set_back_does_not_reorder_history(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch)
    push(registry, "a")
    clock.present -= timedelta(days=1)
    push(registry, "b", alias="live")
    times = [event.at for event in registry.history("intents")]
    assert times == sorted(times, reverse=True)
    assert registry.at("intents", "live", times[0]).number == 2


class Clock(datetime):
    present = datetime(2026, 11, 22, 12, tzinfo=UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return cls.present


def set_clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    clock = type("OwnClock", (Clock,), {})
    monkeypatch.setattr(change, "datetime", clock)
    return clock


# Lists


def test_adapters_are_listed_by_name(registry: Registry) -> None:
    for name in ["b", "a", "c.d", "c-d", "9"]:
        push(registry, "same", name)
    page = registry.adapters(limit=2)
    assert ([adapter.name for adapter in page], page.has_more) == (["9", "a"], True)
    page = registry.adapters(after="a", limit=3)
    assert ([adapter.name for adapter in page], page.has_more) == (["b", "c-d", "c.d"], False)
    assert [adapter.name for adapter in registry.adapters(after="bb")] == ["c-d", "c.d"]


def test_history_is_listed_newest_first(registry: Registry) -> None:
    for content in "abc":
        push(registry, content, alias="live")
        push(registry, content, "other", alias="live")
    whole = registry.history("intents")
    assert [(event.action, event.alias, event.from_version, event.to_version) for event in whole] == [
        ("promote", "live", 2, 3),
        ("push", None, None, 3),
        ("promote", "live", 1, 2),
        ("push", None, None, 2),
        ("promote", "live", None, 1),
        ("push", None, None, 1),
    ]
    assert not whole.has_more
    page = registry.history("intents", after=whole[1].id, limit=3)
    assert (page, page.has_more) == (whole[2:5], True)
    assert registry.history("intents", after=10**5000, limit=100) == whole


# What the database itself refuses


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET digest = 'sha256:x' WHERE number = 1",
        "UPDATE versions SET config = '{}'",
        "UPDATE versions SET metadata = '{}', retired_at = NULL",
        "UPDATE versions SET retired_at = NULL WHERE number = 2",
        "UPDATE versions SET retired_at = '2026-01-01T00:00:00.000000Z' WHERE number = 2",
        "DELETE FROM versions",
        "REPLACE INTO versions SELECT * FROM versions",
        "UPDATE alias_events SET actor = 'nobody'",
        "DELETE FROM alias_events WHERE id = 1",
        "REPLACE INTO alias_events SELECT * FROM alias_events",
        "UPDATE aliases SET number = 9",
        "DELETE FROM adapters",
        "INSERT INTO alias_events (at, action, name, actor) VALUES ('2026-01-01T00:00:00Z', 'delete', 'intents', '')",
    ],
)
def test_the_database_refuses_to_change_the_past(registry: Registry, tmp_path: Path, statement: str) -> None:
    push(registry, "a")
    push(registry, "b")
    registry.retire("intents", 2, actor="me")
    connection = sqlite3.connect(tmp_path / "graftwork.db")
    connection.execute("PRAGMA foreign_keys = ON")
    before = list(connection.iterdump())
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    assert list(connection.iterdump()) == before
    connection.close()


# Many at once


def test_threads_that_push_the_same_make_each_version_once(registry: Registry) -> None:
    def push_all(seed: int) -> list[tuple[str, int, bool]]:
        contents = random.Random(seed).sample("abcde", 5)
        added = [registry.add_version("intents", spec(content), base=BASE, alias=None) for content in contents]
        return [(version.digest, version.number, created) for version, created in added]

    with ThreadPoolExecutor(6) as pool:
        results = [result for each in pool.map(push_all, range(6)) for result in each]
    assert {number for _, number, _ in results} == {1, 2, 3, 4, 5}
    assert len({(digest, number) for digest, number, _ in results}) == 5
    assert sum(created for _, _, created in results) == 5
    assert sum(event.action == "push" for event in registry.history("intents")) == 5


def test_processes_that_push_the_same_make_each_version_once(registry: Registry, tmp_path: Path) -> None:
    processes = [
        get_context("spawn").Process(
            target=push_from_another_process, args=(tmp_path / "graftwork.db", contents, "candidate")
        )
        for contents in ("abcdef", "fedcba", "abcfed")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    versions = registry.adapter("intents").versions
    assert [version.number for version in versions] == [1, 2, 3, 4, 5, 6]
    assert {version.digest for version in versions} == {f"sha256:{content}" for content in "abcdef"}


PUSH_FOREVER = """
import sys
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database
from tests.adapters.versions import BASE, push
registry = Registry(Database(sys.argv[1]))
count = 0
while True:
    count += 1
    version = push(registry, f"{sys.argv[2]}-{count}", alias="live")
    print(version.number, version.digest, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "graftwork.db"
    acknowledged: dict[int, str] = {}
    chance = random.Random(7)
    for round_ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", PUSH_FOREVER, str(path), f"{round_}{writer}"],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[3],
            )
            for writer in "ab"
        ]
        outputs = [[writer.stdout.readline()] for writer in writers if writer.stdout]  # both have begun
        time.sleep(chance.uniform(0.05, 0.3))
        for writer, output in zip(writers, outputs, strict=True):
            writer.send_signal(signal.SIGKILL)
            output += writer.communicate()[0].splitlines(keepends=True)
        for line in (line for output in outputs for line in output if line.endswith("\n")):
            number, digest = line.split()
            acknowledged[int(number)] = digest
        stored = registry.adapter("intents").versions
        assert len(acknowledged) > 2 * round_
        assert acknowledged.items() <= {version.number: version.digest for version in stored}.items()
        assert registry.resolve("intents") == stored[-1], "a push and its promotion happen together"
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert check.execute("PRAGMA foreign_key_check").fetchall() == []
    check.close()


# Everything in any order, against a plain dict


class Oracle:
    """What an adapter should be: its digests in order, who is retired, and each alias's stack of versions."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.retired: set[int] = set()
        self.stacks: dict[str, list[int]] = {}
        self.events: list[tuple[str, str | None, int | None, int | None]] = []

    def point(self, alias: str, number: int) -> None:
        stack = self.stacks.setdefault(alias, [])
        if not stack or stack[-1] != number:
            self.events.append(("promote", alias, stack[-1] if stack else None, number))
            stack.append(number)

    def served(self) -> dict[str, int]:
        numbers = {str(n): n for n in range(1, len(self.digests) + 1) if n not in self.retired}
        return numbers | {alias: stack[-1] for alias, stack in self.stacks.items()}


NAMES = st.sampled_from(["a", "b"])


ALIASES = st.sampled_from(["live", "candidate"])


NUMBERS = st.integers(1, 4)


class RegistryMachine(RuleBasedStateMachine):
    """One registry is written to, another on the same file is asked."""

    def __init__(self) -> None:
        super().__init__()
        location = self.create()
        self.databases = [Database(location) for _ in range(2)]
        migrate(self.databases[0])
        self.writer, self.reader = map(Registry, self.databases)
        self.oracles: dict[str, Oracle] = {}
        self.moments: list[tuple[datetime, dict[tuple[str, str], int]]] = []

    def create(self) -> str | Path:
        """A place for a new database."""
        self.folder = Path(tempfile.mkdtemp())
        return self.folder / "graftwork.db"

    def drop(self) -> None:
        shutil.rmtree(self.folder)

    def notice(self) -> None:
        """Where changes of others are noticed in some time: now."""

    def teardown(self) -> None:
        for when, pointed in self.moments:
            for (name, alias), number in pointed.items():
                assert self.reader.at(name, alias, when).number == number
        for database in self.databases:
            database.close()
        self.drop()

    @rule(name=NAMES, content=st.sampled_from("uvwxyz"), alias=st.none() | ALIASES)
    def push(self, name: str, content: str, alias: str | None) -> None:
        oracle = self.oracles.get(name) or Oracle()
        digest = f"sha256:{content}"
        known = digest in oracle.digests
        if known and oracle.digests.index(digest) + 1 in oracle.retired:
            with pytest.raises(Conflict):
                self.writer.add_version(name, spec(content), base=BASE, alias=alias)
            return
        version, created = self.writer.add_version(name, spec(content), base=BASE, alias=alias)
        assert created is not known
        self.oracles[name] = oracle
        if created:
            oracle.digests.append(digest)
            oracle.events.append(("push", None, None, len(oracle.digests)))
            if len(oracle.digests) == 1:
                oracle.point("live", 1)
        assert version.number == oracle.digests.index(digest) + 1
        if alias:
            oracle.point(alias, version.number)

    @rule(name=NAMES, alias=ALIASES, number=NUMBERS)
    def promote(self, name: str, alias: str, number: int) -> None:
        oracle = self.oracles.get(name)
        expected: type[GraftworkError] | None = None
        if oracle is None:
            expected = NotFound
        elif number > len(oracle.digests):
            expected = InvalidRequest
        elif number in oracle.retired:
            expected = Conflict
        if oracle is None or expected:
            with pytest.raises(expected or NotFound):
                self.writer.set_alias(name, alias, number, actor="me")
            return
        assert self.writer.set_alias(name, alias, number, actor="me").to_version == number
        oracle.point(alias, number)

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name: str, alias: str) -> None:
        oracle = self.oracles.get(name)
        stack = oracle.stacks.get(alias) if oracle else None
        if oracle is None or stack is None:
            with pytest.raises(NotFound if oracle is None else InvalidRequest):
                self.writer.rollback(name, alias=alias, actor="me")
            return
        shorter = stack[:-1]
        while shorter and (shorter[-1] == stack[-1] or shorter[-1] in oracle.retired):
            shorter.pop()
        if not shorter:
            with pytest.raises(Conflict):
                self.writer.rollback(name, alias=alias, actor="me")
            return
        assert self.writer.rollback(name, alias=alias, actor="me").to_version == shorter[-1]
        oracle.events.append(("rollback", alias, stack[-1], shorter[-1]))
        oracle.stacks[alias] = shorter

    @rule(name=NAMES, number=NUMBERS)
    def retire(self, name: str, number: int) -> None:
        oracle = self.oracles.get(name)
        if oracle is None or number > len(oracle.digests):
            with pytest.raises(NotFound):
                self.writer.retire(name, number, actor="me")
        elif number in {stack[-1] for stack in oracle.stacks.values()}:
            with pytest.raises(Conflict):
                self.writer.retire(name, number, actor="me")
        else:
            assert self.writer.retire(name, number, actor="me").retired_at
            if number not in oracle.retired:
                oracle.events.append(("retire", None, number, None))
                oracle.retired.add(number)

    @invariant()
    def both_registries_say_what_the_oracle_says(self) -> None:
        self.notice()
        for registry in (self.writer, self.reader):
            assert {adapter.name for adapter in registry.adapters()} == set(self.oracles)
            for name, oracle in self.oracles.items():
                adapter = registry.adapter(name)
                assert [version.digest for version in adapter.versions] == oracle.digests
                assert adapter.aliases == {alias: stack[-1] for alias, stack in oracle.stacks.items()}
                served = oracle.served()
                for selector in {"1", "2", "3", "4", "live", "candidate"}:
                    if selector in served:
                        assert registry.resolve(f"{name}@{selector}").number == served[selector]
                    else:
                        with pytest.raises(NotFound):
                            registry.resolve(f"{name}@{selector}")
                events = registry.history(name, limit=100)
                assert [
                    (event.action, event.alias, event.from_version, event.to_version) for event in reversed(events)
                ] == oracle.events[-100:]
        pointed = {(name, alias): stack[-1] for name, it in self.oracles.items() for alias, stack in it.stacks.items()}
        self.moments.append((datetime.now(UTC), pointed))


TestRegistryAgainstADict = RegistryMachine.TestCase


TestRegistryAgainstADict.settings = settings(
    max_examples=60, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)


def test_what_is_tried_can_be_called_for_so_long_and_stands_in_no_list(registry: Registry) -> None:
    push(registry, "a")
    name = f"{names.TRIAL}0123456789abcdef"
    tried = push(registry, "b", name)
    assert registry.resolve(f"{name}@1") == tried
    assert registry.trials() == [tried]
    assert [adapter.name for adapter in registry.adapters()] == ["intents"]
    assert registry.with_digest("sha256:b") == [tried], "its files are in use"
    for unnamed in (name, f"{name}@live", f"{name}@2"):
        with pytest.raises(NotFound, match="there is no adapter"):
            registry.resolve(unnamed)
    for ask in (registry.adapter, registry.history, lambda name: registry.set_alias(name, "live", 1, actor="ann")):
        with pytest.raises(NotFound, match="there is no adapter"):
            ask(name)
    with pytest.raises(InvalidRequest, match="has no alias"):
        push(registry, "c", name, alias="live")
    registry.retire(name, 1, actor="ann")
    assert registry.trials() == []
    with pytest.raises(NotFound):
        registry.resolve(f"{name}@1")
    assert push(registry, "b").id == "intents@2", "what was tried becomes a version"
    for similar in (names.TRIAL, f"{names.TRIAL}x", name.upper()):
        with pytest.raises(InvalidRequest, match="cannot be an adapter's name"):
            push(registry, "d", similar)
