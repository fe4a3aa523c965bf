"""Helpers for tests of experiments: an adapter with versions, plans, and requests that were assigned to an arm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from graftwork.adapters.experiments import store
from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.guard import ExperimentGuard
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage import settings
from graftwork.adapters.storage.database import Database
from tests.adapters.records import Records
from tests.adapters.versions import BASE, push


def arm(version: int | None, weight: float = 0.0, **more: Any) -> Arm:
    return Arm(name=more.pop("name", ""), version=version, weight=weight, **more)


def plan(*arms: Arm, metric: str | Metric = "thumb", **more: Any) -> ExperimentPlan:
    """Version 1 against version 2, half and half, unless said otherwise; units close at once."""
    return ExperimentPlan(
        adapter="intents",
        arms=arms or (arm(1), arm(2, 0.5)),
        metric=metric if isinstance(metric, Metric) else Metric.of(metric),
        window_seconds=more.pop("window_seconds", 0.0),
        **more,
    )


@dataclass
class ExperimentsHarness:
    """A database with the adapter ``intents``, versions 1 to 3, of which 1 is live."""

    records: Records
    registry: Registry
    experiments: Experiments

    @classmethod
    def new(cls, folder: Path) -> ExperimentsHarness:
        records = Records.new(folder / "graftwork.db")
        harness = cls.on(records.database, records)
        for content in ("one", "two", "three"):
            push(harness.registry, content)
        return harness

    @classmethod
    def on(cls, database: Database, records: Records) -> ExperimentsHarness:
        registry = Registry(database, guard=ExperimentGuard())
        return cls(records, registry, Experiments(database, registry))

    @property
    def database(self) -> Database:
        return self.records.database

    def start(self, name: str = "first", of: ExperimentPlan | None = None) -> Experiment:
        return self.experiments.start(name, of or plan(), base_digest=BASE.digest, actor="ann")

    def ask(
        self,
        user: str | None,
        *,
        seconds_ago: float = 100,
        thumb: str | None = None,
        episode: str | None = None,
        asked: bool = False,
        **outcome: Any,
    ) -> str:
        """A request for ``intents`` as the gateway would send it: drawn, minted, logged; and what was said of it."""
        unit = self.records.ids.unit(user=user)
        hashed = None if episode is None else self.records.ids.episode(episode, key_id="local")
        drawn = self.experiments.assign("intents", unit, chat=True, episode=hashed)
        assert drawn is not None
        id = self.records.mint(
            None if drawn.arm.version is None else f"intents@{drawn.arm.version}",
            days_ago=seconds_ago / 86400,
            user=user,
            experiment=drawn.experiment,
            arm=drawn.arm.name,
            probability=drawn.probability,
            asked=asked,
        )
        self.records.log(id, user=user, episode=hashed, **outcome)
        if thumb is not None:
            self.say(id, thumb=thumb)
        return id

    def say(self, id: str, **said: Any) -> None:
        self.records.feedback.add(SubmittedFeedback(interaction_id=id, **said), key_id="local")

    def live(self) -> int:
        return self.registry.adapter("intents").aliases["live"]


@contextmanager
def same_draws() -> Iterator[None]:
    """Users meet the same arms in every run of the tests: as is promised, a draw in a hundred may raise an alarm."""
    chance = random.Random(7)
    seeded = SimpleNamespace(token_hex=lambda num_bytes: chance.randbytes(num_bytes).hex())
    with mock.patch.object(store, "secrets", seeded), mock.patch.object(settings, "randomness", seeded):
        yield


@contextmanager
def experiments_in(folder: Path) -> Iterator[ExperimentsHarness]:
    with same_draws():
        harness = ExperimentsHarness.new(folder)
        yield harness
        harness.database.close()
