"""What is known of units before an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from math import log

import pytest

from graftwork.adapters.experiments.experiment import Experiment
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.past.covariates import past_means
from tests.adapters.running_experiments import ExperimentsHarness, experiments_in, plan


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentsHarness]:
    """Ann asked three times and rated two; Bob another adapter; Carl too long ago; Dora after the start."""
    with experiments_in(tmp_path_factory.mktemp("past")) as harness:
        records = harness.records
        for days, seconds, thumb in ((3, 1.0, "up"), (2, 4.0, "down"), (1, 2.0, None)):
            id = records.log(records.mint("intents@1", days_ago=days, user="ann"), total_ms=1000 * seconds)
            if thumb is not None:
                harness.say(id, thumb=thumb)
        harness.say(records.log(records.mint("other@1", days_ago=1, user="bob")), thumb="up")
        harness.say(records.log(records.mint("intents@1", days_ago=40, user="carl")), thumb="up")
        harness.started = harness.start()  # type: ignore[attr-defined]
        harness.say(records.log(records.mint("intents@2", days_ago=1, user="dora")), thumb="up")
        harness.ask("emil", seconds_ago=86400, thumb="up")  # an arm's answer, though the clock says otherwise
        yield harness


@pytest.mark.parametrize(
    ("metric", "ann", "others"),
    [
        ("thumb", 0.5, {}),
        ("feedback_rate", 2 / 3, {"dora": 0.0}),
        ("latency", (log(1) + log(4) + log(2)) / 3, {"dora": log(0.04)}),
        ("metadata.stars", None, {}),
    ],
)
def test_a_units_past_is_computed_as_its_outcome(
    harness: ExperimentsHarness, metric: str, ann: float | None, others: dict[str, float]
) -> None:
    started: Experiment = harness.started  # type: ignore[attr-defined]
    experiment = replace(started, plan=replace(started.plan, metric=Metric.of(metric)))
    units = {user: str(harness.records.ids.unit(user=user)) for user in ("ann", "bob", "carl", "dora", "emil")}
    found = past_means(harness.database, harness.records.feedback, units.values(), experiment)
    expected = ({} if ann is None else {"ann": ann}) | others
    assert {user: found[unit] for user, unit in units.items() if unit in found} == pytest.approx(expected)


def test_there_is_no_past_before_it(harness: ExperimentsHarness) -> None:
    early = Experiment(
        name="early", plan=plan(), salt="", started_at=datetime(2020, 1, 1, tzinfo=UTC), started_by="", epochs=()
    )
    assert past_means(harness.database, harness.records.feedback, ["a", "b"], early) == {}
