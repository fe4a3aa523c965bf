"""Of which answers a log policy has users asked for feedback."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.policies import LogPolicies
from tests.adapters.records import Records


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records.new(tmp_path / "graftwork.db")
    yield records
    records.database.close()


def test_a_random_share_is_asked_about_the_same_in_every_run(records: Records) -> None:
    def asked() -> list[bool]:
        policies = LogPolicies(records.database, draw=random.Random(12).random)
        return [policies.draws_feedback(adapter="intents", key_id="k") for _ in range(4000)]

    LogPolicies(records.database).set("adapter", "intents", log=True, ask_feedback=0.05, actor="ann")
    drawn = asked()
    assert 160 < sum(drawn) < 240
    assert asked() == drawn


def test_of_an_adapters_share_and_a_keys_the_smaller_holds(records: Records) -> None:
    policies = LogPolicies(records.database, draw=lambda: 0.3)

    def asked(adapter: str, key: str) -> bool:
        return policies.draws_feedback(adapter=adapter, key_id=key)

    assert not asked("intents", "k"), "without a policy nobody is asked"
    policies.set("adapter", "intents", log=True, ask_feedback=0.5, actor="ann")
    policies.set("adapter", "silent", log=True, actor="ann")
    policies.set("key", "nightly", log=True, ask_feedback=0, actor="ann")
    policies.set("key", "rare", log=True, ask_feedback=0.3, actor="ann")
    policies.set("key", "often", log=True, ask_feedback=1, actor="ann")
    assert [asked("intents", key) for key in ("k", "nightly", "rare", "often")] == [True, False, False, True]
    assert [asked("silent", key) for key in ("k", "nightly", "rare", "often")] == [False, False, False, True]


def test_whether_anybody_may_be_asked(records: Records) -> None:
    policies = LogPolicies(records.database)
    policies.set("adapter", "intents", log=True, ask_feedback=0.01, actor="ann")
    policies.set("adapter", "never", log=True, ask_feedback=0, actor="ann")
    assert [policies.may_ask(name) for name in ("intents", "never", "silent")] == [True, False, False]
    policies.set("key", "app", log=True, ask_feedback=0.5, actor="ann")
    assert [policies.may_ask(name) for name in ("intents", "never", "silent")] == [True, False, True]


def test_a_share_is_from_0_to_1_of_what_is_logged(records: Records) -> None:
    policies = LogPolicies(records.database)
    for share in (-0.1, 1.01, float("nan")):
        with pytest.raises(InvalidRequest, match="ask_feedback is"):
            policies.set("adapter", "intents", log=True, ask_feedback=share, actor="ann")
    with pytest.raises(InvalidRequest, match="log is false") as refused:
        policies.set("adapter", "intents", log=False, ask_feedback=0.1, actor="ann")
    assert refused.value.param == "ask_feedback"
    assert policies.all() == ()
