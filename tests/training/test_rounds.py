"""Rounds of a learning policy from what was said to a version: keeper and worker together; runs are stand-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from graftwork.adapters.db import Database
from graftwork.adapters.feedback import Said
from graftwork.adapters.jobs import CONTROL, Jobs
from graftwork.adapters.learning_policies import LearningPolicies
from graftwork.adapters.leases import Leases
from graftwork.adapters.registry import Registry
from graftwork.server.auto_loop import AutoLoop
from graftwork.server.keeper import Keeper
from tests.adapters.records import Records
from tests.e2e.running import eventually
from tests.server.stand_ins import World, adapter_files, form
from tests.training.test_worker import SECONDS, working
from tests.training.test_worker import url as url  # the fixtures
from tests.training.test_worker import world as world


@contextmanager
def keeping(world: World) -> Iterator[None]:
    database = Database(world.home / "graftwork.db")
    registry, jobs = Registry(database), Jobs(database)
    policies = LearningPolicies(database, registry, jobs, base_id=world.services.base.id)
    keeper = Keeper(Leases(database), seconds=5)
    keeper.duty("learning", AutoLoop(policies, jobs, registry, Leases(database)).run, every=0.1)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()
        database.close()


def test_what_users_say_becomes_versions(world: World, url: str) -> None:
    records = Records.at(world.home / "graftwork.db")
    httpx.post(f"{url}/v1/adapters/intents/versions", files=form(adapter_files(0))).raise_for_status()

    def set_policy(**settings: Any) -> None:
        httpx.put(f"{url}/v1/adapters/intents/learning_policy", json={"after": 2, **settings}).raise_for_status()

    def say() -> None:
        for _ in range(2):
            said = Said(interaction_id=records.log(records.mint("intents@1")), correction="card_lost")
            records.feedback.add(said, key_id="k")

    def last_round(number: int) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            last = httpx.get(f"{url}/v1/adapters/intents/learning_policy").json()["last_round"]
            return last if last and last["number"] == number and last["finished_at"] else None

        found: dict[str, Any] = eventually(ended, SECONDS, f"round {number} has ended")
        return found

    set_policy(hyperparameters={"batch_size": 5}, control_every=2)
    with working(world, url), keeping(world):
        say()
        first = last_round(1)
        assert (first["status"], first["version"], first["continues"]) == ("succeeded", "intents@2", "intents@1"), first
        set_policy(hyperparameters={"batch_size": 7}, control_every=2)
        say()
        second = last_round(2)
        assert (second["status"], second["version"], second["control"]) == ("succeeded", "intents@3", True), second
    adapter = world.services.registry.adapter("intents")
    assert [version.parent for version in adapter.versions] == [None, 1, None]
    assert adapter.aliases == {"live": 1}
    spec = json.loads((world.home / "jobs" / second["job"] / "job.json").read_text())
    assert (spec["metadata"][CONTROL], spec["parent"]) == ("intents@1", None)
    assert len(world.services.jobs.find()) == 2
    records.database.close()
