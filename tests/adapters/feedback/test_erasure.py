"""Erasure: what is deleted, what is kept, and which versions are reported."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.experiments.contamination import learned_from
from graftwork.adapters.feedback.erasure import Erasure, ErasureResult
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.feedback.lineage import Lineage, jobs_behind
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.registry import Registry
from tests.adapters.records import BASE_ID, Records
from tests.adapters.versions import BASE, spec


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records.new(tmp_path / "graftwork.db")
    yield records
    records.database.close()


@pytest.fixture
def erasure(records: Records) -> Erasure:
    return Erasure(records.database, records.ids, Registry(records.database), base_id=BASE_ID)


def add(records: Records, id: str, **said: Any) -> int:
    return records.feedback.add(SubmittedFeedback(interaction_id=id, **said), key_id=said.pop("key_id", "local"))[0].id


def words(records: Records) -> dict[int, str | None]:
    """By feedback, what is left of its correction."""
    return {row.id: row.correction for row in records.feedback.each()}


def test_a_users_rows_go_and_their_judgements_stay(records: Records, erasure: Erasure) -> None:
    mine, other = (records.log(records.mint(user=user), user=user) for user in ("ann", "bob"))
    unlogged = records.mint(user="ann")
    by_me = add(records, other, correction="c", user="ann", thumb="down")
    kept = add(records, other, correction="c", user="bob")
    on_mine = add(records, mine, correction="c", comment="d", metadata={"e": "f"}, score=0.5)
    on_unlogged = add(records, unlogged, correction="c")
    wordless = add(records, mine, thumb="up")
    assert erasure.erase_user("ann") == ErasureResult(num_interactions=1, num_feedback=3)
    assert [row.id for row in records.interactions.find()] == [other]
    assert words(records) == {by_me: None, kept: "c", on_mine: None, on_unlogged: None, wordless: None}
    rows = {row.id: row for row in records.feedback.each()}
    assert (rows[on_mine].comment, rows[on_mine].metadata, rows[on_mine].score) == (None, None, 0.5)
    assert (rows[by_me].user, rows[by_me].thumb) == (None, "down")
    assert rows[on_mine].erased_at is not None
    assert rows[wordless].erased_at is None
    assert rows[wordless].thumb == "up"
    assert erasure.erase_user("ann") == ErasureResult(num_interactions=0, num_feedback=0)


def test_what_was_erased_cannot_be_read_from_the_file(records: Records, erasure: Erasure, tmp_path: Path) -> None:
    id = records.log(records.mint(), user="ann", prompt={"messages": [{"content": "a very secret sentence"}]})
    for _ in range(50):
        add(records, id, correction="another secret sentence " * 20)
    erasure.erase_user("ann")
    records.database.close()  # the write-ahead log is folded into the file when the last connection closes
    files = [path for path in tmp_path.iterdir() if path.name.startswith("graftwork.db")]
    assert not [path for path in files if b"secret sentence" in path.read_bytes()]


def test_a_repeated_request_does_not_bring_back_what_was_erased(records: Records, erasure: Erasure) -> None:
    id = records.mint(user="ann")
    said = SubmittedFeedback(interaction_id=id, thumb="down", correction="my address is …")
    first, _ = records.feedback.add(said, key_id="k", idempotency_key="a")
    erasure.erase_user("ann")
    again, new = records.feedback.add(said, key_id="k", idempotency_key="a")
    assert (again.id, new, again.correction) == (first.id, False, None)


def test_erasing_names_the_versions_that_learned(records: Records, erasure: Erasure) -> None:
    registry, lineage = Registry(records.database), Lineage(records.database)
    mine, bobs, unlogged = (
        records.log(records.mint(user="ann"), user="ann"),
        records.log(records.mint(user="bob"), user="bob"),
        records.mint(user="ann"),
    )
    add(records, unlogged, correction="c")
    lineage.record("sha256:one", [mine, bobs])
    lineage.record("sha256:one", [mine])
    lineage.record("sha256:two", [bobs])
    lineage.record("sha256:three", [unlogged])

    def push(name: str, content: int, **facts: Any) -> None:
        registry.add_version(name, spec(content), base=BASE, alias=None, **facts)

    push("intents", 1, data_digest="sha256:two")
    push("intents", 2, data_digest="sha256:one", parent=1)
    push("intents", 3, parent=2)
    push("intents", 4, parent=3, data_digest="sha256:two")
    push("intents", 5, parent=1)
    push("other", 6, data_digest="sha256:three")
    erased = erasure.erase_user("ann")
    assert erased.learned_from == ("intents@2", "other@1")
    assert erased.continued == ("intents@3", "intents@4")
    again = erasure.erase_user("ann")
    assert (again.learned_from, again.num_interactions) == (("other@1",), 0), "known by its feedback, whose hash stays"
    assert erasure.erase_user("bob").learned_from == ("intents@1", "intents@2", "intents@4")
    assert erasure.erase_user("nobody").learned_from == ()
    # The record itself outlives the rows.
    assert lineage.data_digests([mine]) == {"sha256:one"}


def test_a_version_continues_one_of_another_adapter(records: Records, erasure: Erasure) -> None:
    """Which is no parent in the registry; and what else a pushed folder says of itself does no harm."""
    registry, lineage = Registry(records.database), Lineage(records.database)
    mine = records.log(records.mint(user="ann"), user="ann")
    lineage.record("sha256:one", [mine])

    def push(name: str, content: int, **facts: Any) -> None:
        registry.add_version(name, spec(content), base=BASE, alias=None, **facts)

    push("intents", 1, data_digest="sha256:one", metadata={"continues": "circle@1"})
    push("circle", 2, metadata={"continues": "intents@1"})
    push("circle", 3, parent=1, metadata={"continues": "circle@1"})
    push("above", 4, metadata={"continues": "circle@2"})
    push("odd", 5, metadata={"continues": ["intents@1"]})
    push("odd", 6, metadata={"continues": "nothing@x"})
    log: Any = {"database": records.database, "interactions": records.interactions, "feedback": records.feedback}
    assert learned_from(registry, ["above@1"], **log).units.keys() == {records.ids.unit(user="ann")}
    assert not learned_from(registry, ["odd@1", "odd@2"], **log)
    erased = erasure.erase_user("ann")
    assert (erased.learned_from, erased.continued) == (("intents@1",), ("above@1", "circle@1", "circle@2"))


def test_the_jobs_behind_a_version_are_those_of_what_it_continues(records: Records) -> None:
    registry = Registry(records.database)

    def push(name: str, content: int, job: Any = None, **facts: Any) -> None:
        facts["metadata"] = {**facts.get("metadata", {}), "job": job}
        registry.add_version(name, spec(content), base=BASE, alias=None, **facts)

    push("intents", 1, "ftjob-1")
    push("intents", 2, parent=1)  # by hand
    push("intents", 3, "ftjob-3", parent=2)
    push("intents", 4, "ftjob-4", parent=1)
    push("above", 5, "ftjob-5", metadata={"continues": "intents@3"})
    push("circle", 6, ["ftjob-6"], metadata={"continues": "circle@1"})
    push("odd", 7, "ftjob-7", metadata={"continues": f"odd@{'9' * 5000}"})
    behind = {id: jobs_behind(registry, registry.version(*id)) for id in (("above", 1), ("circle", 1), ("odd", 1))}
    assert behind == {("above", 1): ("ftjob-5", "ftjob-3", "ftjob-1"), ("circle", 1): (), ("odd", 1): ("ftjob-7",)}
    assert jobs_behind(registry, registry.version("intents", 4)) == ("ftjob-4", "ftjob-1")


@pytest.fixture
def policies(records: Records) -> LogPolicies:
    return LogPolicies(records.database, retention_days=30)


def test_rows_go_when_their_time_is_over(records: Records, erasure: Erasure, policies: LogPolicies) -> None:
    policies.set("adapter", "short", log=True, retention_days=1, actor="ann")
    policies.set("adapter", "long", log=True, retention_days=300, actor="ann")
    policies.set("adapter", "unsaid", log=False, actor="ann")
    policies.set("adapter", BASE_ID, log=True, retention_days=2, actor="ann")
    policies.set("key", "quick", log=True, retention_days=0.5, actor="ann")
    adapters = ("short@1", "long@1", "unsaid@1", "plain@1", None)
    ages = (0.25, 0.75, 1.5, 3, 29, 31, 299, 301)
    rows = {
        (adapter, age, key): records.log(records.mint(adapter, days_ago=age), key_id=key)
        for adapter in adapters
        for age in ages
        for key in ("local", "quick")
    }
    limits = {"short@1": 1, "long@1": 300, "unsaid@1": 30, "plain@1": 30, None: 2}
    kept = {
        (adapter, age, key) for adapter, age, key in rows if age < limits[adapter] and (key == "local" or age < 0.5)
    }
    erased = erasure.expire(policies)
    left = {row.id for row in records.interactions.each()}
    assert {place for place, id in rows.items() if id in left} == kept
    assert erased == ErasureResult(num_interactions=len(rows) - len(kept), num_feedback=0)
    watching = sqlite3.connect(str(records.database))
    before = watching.execute("PRAGMA data_version").fetchone()
    assert erasure.expire(policies) == ErasureResult(num_interactions=0, num_feedback=0)
    assert watching.execute("PRAGMA data_version").fetchone() == before, "nothing to do, nothing written"
    watching.close()


def test_words_of_feedback_go_too_and_the_judgement_stays(
    records: Records, erasure: Erasure, policies: LogPolicies
) -> None:
    policies.set("adapter", "long", log=True, retention_days=300, actor="ann")
    # What counts is when it was said, not when the answer was given.
    plain, base = (add(records, records.mint(a, days_ago=99), thumb="up", correction="c") for a in ("p@1", None))
    long = add(records, records.mint("long@1"), correction="c")
    assert erasure.expire(policies) == ErasureResult(num_interactions=0, num_feedback=0)
    soon = datetime.now(UTC) + timedelta(days=31)
    assert erasure.expire(policies, now=soon) == ErasureResult(num_interactions=0, num_feedback=2)
    assert words(records) == {plain: None, base: None, long: "c"}
    assert {row.thumb for row in records.feedback.each()} == {"up", None}
    assert erasure.expire(policies, now=soon + timedelta(days=300)).num_feedback == 1


def test_many_rows_go_in_parts(records: Records, erasure: Erasure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.adapters.feedback.erasure._AT_ONCE", 2)
    for _ in range(5):
        records.log(records.mint(days_ago=99))
    assert erasure.expire(LogPolicies(records.database, retention_days=1)).num_interactions == 5


def test_without_a_default_only_policies_forget(records: Records, erasure: Erasure) -> None:
    policies = LogPolicies(records.database, retention_days=None)
    records.log(records.mint(days_ago=9999))
    assert erasure.expire(policies).num_interactions == 0
    policies.set("adapter", "intents", log=True, retention_days=1, actor="ann")
    assert erasure.expire(policies).num_interactions == 1


@pytest.mark.parametrize("default", [True, False])
def test_who_is_logged(records: Records, default: bool) -> None:
    policies = LogPolicies(records.database, log=default)

    def logged(adapter: str, key: str) -> bool:
        return policies.is_logged(adapter=adapter, key_id=key)

    assert logged("intents", "k") is default
    policies.set("adapter", "on", log=True, actor="ann")
    policies.set("adapter", "off", log=False, actor="ann")
    policies.set("key", "kon", log=True, actor="ann")
    policies.set("key", "koff", log=False, actor="ann")
    assert [logged(adapter, "k") for adapter in ("on", "off", "none", "kon")] == [True, False, default, default]
    assert [logged("none", key) for key in ("kon", "koff")] == [True, False]
    assert [logged("on", key) for key in ("kon", "koff")] == [True, False]
    assert [logged("off", key) for key in ("kon", "koff")] == [False, False]
    assert LogPolicies(records.database, log=default).is_logged(adapter="off", key_id="k") is False
    policies.remove("adapter", "off")
    assert logged("off", "k") is default
    with pytest.raises(NotFound, match="has no policy of its own"):
        policies.remove("adapter", "off")


def test_a_policy_is_replaced_as_a_whole(records: Records) -> None:
    policies = LogPolicies(records.database)
    policies.set("adapter", "intents", log=False, retention_days=7, actor="ann")
    policy = policies.set("adapter", "intents", log=True, actor="bob")
    assert policies.all() == (policy,)
    assert (policy.log, policy.retention_days, policy.actor) == (True, None, "bob")
    for days in (0, -1, 1e9, float("nan")):
        with pytest.raises(InvalidRequest, match="retention_days"):
            policies.set("adapter", "intents", log=True, retention_days=days, actor="bob")
    assert policies.all() == (policy,)
