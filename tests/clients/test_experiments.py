"""Experiments: both clients and the command line against the real routes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from graftwork.adapters.experiments.experiment import Assignment
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.storage.leases import Leases
from graftwork.clients import errors
from graftwork.clients.cli import experiment_charts
from graftwork.clients.cli import experiments as command
from graftwork.clients.types.experiments import ArmComparison, ExperimentMetric
from graftwork.server.background.experiments import ExperimentController
from tests.clients.test_records import ClientsHarness
from tests.clients.test_records import harness as one_adapter  # noqa: F401 - a fixture
from tests.server.fakes import adapter_files, form

MakeClient = Callable[..., Any]
ARMS = ({"version": 1}, {"version": 2, "weight": 0.5})


@pytest.fixture
def harness(one_adapter: ClientsHarness) -> ClientsHarness:  # noqa: F811
    """With three versions of ``intents``."""
    for seed in (1, 2):
        files = form(adapter_files(seed))
        httpx.post(f"{one_adapter.url}/v1/adapters/intents/versions", files=files, timeout=60).raise_for_status()
    return one_adapter


def traffic(harness: ClientsHarness, num: int, *, control: float, treatment: float, first: int = 0) -> None:
    """Users who ask once each and give a thumb, and a keeper that has seen them.

    They are chosen so that the arms take turns: what they meet by chance would now and then end an experiment between
    equals, as it must once in a while.
    """
    services, records, chance = harness.world.services, harness.records, random.Random(first)

    def draw(user: str) -> Assignment:
        drawn = services.experiments.assign("intents", records.ids.unit(user=user), chat=True)
        assert drawn is not None
        return drawn

    for number in range(first, first + num):
        draws = ((user, draw(user)) for user in (f"user-{number}-{turn}" for turn in range(64)))
        user, drawn = next((user, drawn) for user, drawn in draws if drawn.arm.version == 1 + number % 2)
        said = {"experiment": drawn.experiment, "arm": drawn.arm.name, "probability": drawn.probability}
        id = records.log(records.mint(f"intents@{drawn.arm.version}", user=user, days_ago=0.001, **said))
        good = chance.random() < (control if drawn.arm.version == 1 else treatment)
        records.feedback.add(SubmittedFeedback(interaction_id=id, thumb="up" if good else "down"), key_id="local")
    referee = ExperimentController(
        records.database,
        services.registry,
        services.experiments,
        records.interactions,
        records.feedback,
        records.ids,
        now=lambda: datetime.now(UTC) + timedelta(seconds=300),
    )
    lease = Leases(records.database).acquire("keeper", "me", seconds=600)
    assert lease is not None
    referee.run(lease)


def test_both_clients_start_read_widen_and_stop(make_client: MakeClient, harness: ClientsHarness) -> None:
    client = make_client(harness.url)
    started = client.experiments.start(
        "first",
        "intents",
        ARMS,
        {"name": "latency", "over": 2},
        guardrails=[{"metric": "error_rate", "limit": 0.1}],
        decision={"automatic": True, "until": 4e9},
        window_seconds=120,
    )
    assert (started.running, started.control.name, [arm.name for arm in started.treatments]) == (
        True,
        "intents@1",
        ["intents@2"],
    )
    assert (started.metric.label, started.guardrails[0].limit, started.window_seconds) == ("latency>2", 0.1, 120.0)
    assert started.decision.until == datetime.fromtimestamp(4e9, UTC)
    traffic(harness, 30, control=0.5, treatment=0.5)
    shown = client.experiments.get("first")
    assert shown.reading is not None
    assert (shown.reading.units, len(shown.readings), shown.history[-1].action) == (30, 1, "start")
    assert shown.reading.arms[0].means["thumb"] is not None
    assert [each.name for each in client.experiments.list(status="running", limit=1)] == ["first"]
    wider = client.experiments.set_weights("first", {"intents@2": 0.75}, reason="on we go")
    assert wider.epochs[-1].weights == {"intents@1": 0.25, "intents@2": 0.75}
    joined = client.experiments.add_arm("first", {"version": 3, "weight": 0.1}, reason="one more")
    assert (joined.treatments[-1].name, joined.treatments[-1].joined, joined.history[0].reason) == (
        "intents@3",
        3,
        "one more",
    )
    with pytest.raises(errors.ConflictError):
        client.experiments.set_weights("first", {"intents@2": 0.5})
    with pytest.raises(errors.ConflictError, match="end_experiment"):
        client.adapters.promote("intents", 3)
    with pytest.raises(errors.ConflictError):
        client.adapters.rollback("intents")
    ended = client.experiments.stop("first", promote="intents@2", reason="seen enough")
    assert ended.outcome is not None
    assert (ended.running, ended.outcome.decision, ended.outcome.reading.units) == (False, "promoted", 30)
    assert client.adapters.get("intents").aliases["live"] == 2
    with pytest.raises(errors.NotFoundError):
        client.experiments.get("second")
    client.experiments.start("second", "intents", ARMS, "thumb")
    assert client.adapters.promote("intents", 3, end_experiment=True).to_version == 3
    assert not client.experiments.get("second").running


def test_the_command_line_from_start_to_promotion(harness: ClientsHarness) -> None:
    started = harness.run("experiments", "start", "first", "--adapter", "intents", "--arm", "1", "--arm", "2",
                       "--guardrail", "error_rate:margin=0.05", "--automatic", "--window", "2m")  # fmt: skip
    assert started.exit_code == 0, started.output
    assert "intents@1 (control)" in started.stdout
    assert "50.0%" in started.stdout
    assert "graftwork experiments status first" in started.stderr
    assert "no units yet" in harness.run("experiments", "list").stdout
    for first in range(0, 80, 20):
        traffic(harness, 20, control=0.6, treatment=0.6, first=first)
    shown = harness.run("experiments", "status", "first")
    assert shown.exit_code == 0, shown.output
    for expected in ("running", "acts by itself", "intents@2 − intents@1", "├", "┤", "●", "80", "error_rate", "start"):
        assert expected in shown.stdout
    traffic(harness, 300, control=0.1, treatment=0.95, first=1000)
    shown = harness.run("experiments", "status", "first", "--watch")  # it has ended: nothing is waited for
    assert shown.exit_code == 0, shown.output
    assert "promoted by keeper" in shown.stdout
    assert "better than intents@1" in shown.stdout
    assert "No experiment runs" in harness.run("experiments", "list").stdout
    assert "promoted" in harness.run("experiments", "list", "--all").stdout
    said = harness.json("experiments", "status", "first")
    assert said["outcome"]["decision"] == "promoted"
    assert len(said["readings"]) == 5


def test_the_command_line_says_how_many_units_wait_and_until_when(harness: ClientsHarness) -> None:
    harness.run("experiments", "start", "first", "--adapter", "intents", "--arm", "1", "--arm", "2", "--window", "1h")
    traffic(harness, 20, control=0.5, treatment=0.5)
    reading = harness.json("experiments", "status", "first")["reading"]
    assert (reading["units"], reading["waiting"]) == (0, 20)
    at = datetime.fromtimestamp(reading["next_at"], UTC)
    assert timedelta(minutes=50) < at - datetime.now(UTC) < timedelta(hours=1)
    shown = " ".join(harness.run("experiments", "status", "first").stdout.split())
    assert f"20 units wait, the first counts at {at.astimezone():%Y-%m-%d %H:%M:%S}" in shown


def test_the_command_line_lets_an_arm_join(harness: ClientsHarness) -> None:
    harness.run("experiments", "start", "first", "--adapter", "intents", "--arm", "1", "--arm", "2", "--window", "9d",
                "--metric", "latency")  # fmt: skip
    joined = harness.run("experiments", "add-arm", "first", "3=0.2", "--name", "new", "--reason", "one more")
    assert joined.exit_code == 0, joined.output
    for expected in ("new − intents@1", "20.0%", "30.0%", "one more", "a window of 5 min fits"):
        assert expected in " ".join(joined.stdout.split())
    refused = harness.run("experiments", "add-arm", "first", "3")
    assert refused.exit_code == 2
    assert "3=0.2" in refused.output


def test_start_says_everything_that_the_server_takes(harness: ClientsHarness, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    arms = [{"version": 1}, {"version": 2, "system": "Be brief.", "sampling": {"temperature": 0.1}, "name": "brief"}]
    plan.write_text(json.dumps({"name": "other", "adapter": "intents", "arms": arms, "alpha": 0.1, "metric": "score"}))
    said = harness.json("experiments", "start", "first", "--plan", plan, "--alpha", "0.2", "--ramp", "0.05,0.5",
                     "--ramp-units", "7", "--ramp-wait", "90s", "--max-units", "900", "--for", "7d", "--promote-above",
                     "0.02", "--stop-below", "-0.1", "--unrated", "neutral", "--learned-days", "2",
                     "--ratings", "asked")  # fmt: skip
    assert (said["name"], said["alpha"], said["metric"]["name"], said["unrated"]) == ("first", 0.2, "score", "neutral")
    assert said["ratings"] == "asked"
    assert "no user of intents is asked" in said["warnings"][0]
    assert said["learned_days"] == 2.0
    assert (said["arms"][1]["name"], said["arms"][1]["system"], said["arms"][1]["weight"]) == (
        "brief",
        "Be brief.",
        0.05,
    )
    assert said["ramp"] == {"weights": [0.05, 0.5], "min_units": 7, "min_seconds": 90.0}
    decision = said["decision"]
    assert (decision["promote_above"], decision["stop_below"], decision["max_units"]) == (0.02, -0.1, 900)
    assert decision["until"] - datetime.now(UTC).timestamp() == pytest.approx(7 * 86400, abs=60)
    harness.run("experiments", "stop", "first")
    said = harness.json("experiments", "start", "second", "--adapter", "intents", "--arm", "live", "--arm", "base=0.25",
                     "--shadow", "3=0.5", "--metric", "metadata.minutes:high=60,goal=down", "--allocation", "fixed",
                     "--guardrail", "latency:over=2,limit=0.1,alpha=0.02",
                     "--guardrail", "thumb:margin=0.2")  # fmt: skip
    assert [(arm["name"], arm["weight"], arm["shadow"], arm["alias"]) for arm in said["arms"]] == [
        ("intents@1", 0.75, None, "live"),
        ("base", 0.25, None, None),
        ("intents@3", None, 0.5, None),
    ]
    assert (said["metric"]["range"], said["metric"]["goal"]) == ([0.0, 60.0], "down")
    assert [(rail["metric"]["label"], rail["limit"], rail["margin"], rail["alpha"]) for rail in said["guardrails"]] == [
        ("latency>2", 0.1, None, 0.02),
        ("thumb", None, 0.2, 0.01),
    ]


def test_ramp_goes_to_the_next_weight_or_to_the_one_that_is_said(harness: ClientsHarness) -> None:
    harness.run(
        "experiments", "start", "first", "--adapter", "intents", "--arm", "1", "--arm", "2", "--ramp", "0.1,0.3"
    )
    assert harness.json("experiments", "ramp", "first")["epochs"][-1]["weights"]["intents@2"] == 0.3
    refused = harness.run("experiments", "ramp", "first")
    assert (refused.exit_code, "--to" in refused.stderr) == (2, True)
    assert (
        harness.json("experiments", "ramp", "first", "--to", "0.9", "--reason", "now")["history"][0]["reason"] == "now"
    )
    assert harness.run("experiments", "ramp", "first", "--to", "0.2").exit_code == 1
    harness.run("experiments", "stop", "first")
    several = ["--arm", "1", "--arm", "2", "--arm", "3"]
    harness.run("experiments", "start", "second", "--adapter", "intents", *several)
    assert "--arm" in harness.run("experiments", "ramp", "second", "--to", "0.5").stderr
    assert harness.run("experiments", "ramp", "second", "--to", "0.5", "--arm", "intents@3").exit_code == 0


def test_promoting_and_rolling_back_can_end_it(harness: ClientsHarness) -> None:
    harness.run("adapters", "promote", "intents@2")
    harness.run("experiments", "start", "first", "--adapter", "intents", "--arm", "1", "--arm", "2")
    refused = harness.run("adapters", "rollback", "intents")
    assert (refused.exit_code, "first" in refused.stderr) == (1, True)
    assert harness.json("adapters", "rollback", "intents", "--end-experiment")["to_version"] == 1
    harness.run("experiments", "start", "second", "--adapter", "intents", "--arm", "1", "--arm", "2")
    assert harness.run("adapters", "promote", "intents@3", "--end-experiment").exit_code == 0
    assert harness.json("experiments", "status", "second")["outcome"]["decision"] == "stopped"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--arm", "1"),
        ("--adapter", "intents"),
        ("--adapter", "intents", "--arm", "1=x", "--arm", "2"),
        ("--adapter", "intents", "--arm", "1", "--shadow", "2"),
        ("--adapter", "intents", "--arm", "1", "--arm", "2", "--window", "soon"),
        ("--adapter", "intents", "--arm", "1", "--arm", "2", "--ramp", "some"),
        ("--adapter", "intents", "--arm", "1", "--arm", "2", "--guardrail", "error_rate:most=1"),
        ("--adapter", "intents", "--arm", "1", "--arm", "2", "--plan", "nothing.json"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_sent(harness: ClientsHarness, wrong: tuple[str, ...]) -> None:
    refused = harness.run("experiments", "start", "first", *wrong)
    assert refused.exit_code == 2 if "--plan" not in wrong else refused.exit_code != 0
    assert harness.json("experiments", "list", "--all") == []


# --- the picture ------------------------------------------------------------------------------------------------------


def drawn(points: list[tuple[int, ArmComparison]], goal: str = "up") -> list[str]:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(experiment_charts.intervals(points, ExperimentMetric(name="thumb", label="thumb", goal=goal)))
    return captured.get().splitlines()


def comparison(middle: float, half: float, units: int = 10) -> ArmComparison:
    return ArmComparison(arm="b", units=units, difference=middle, lower=middle - half, upper=middle + half)


def test_an_interval_is_drawn_where_it_is() -> None:
    *rows, scale = drawn([(10, comparison(0.1, 0.9)), (100, comparison(0.1, 0.3)), (1000, comparison(0.1, 0.05))])
    assert [row.split()[0] for row in rows] == ["10", "100", "1,000"]
    widths = [row.rindex("┤") - row.index("├") for row in rows if "├" in row and "┤" in row]
    assert widths == sorted(widths, reverse=True)
    assert rows[-1].index("│") < rows[-1].index("├") < rows[-1].index("●") < rows[-1].index("┤")
    assert "+0.100 [+0.050, +0.150]" in rows[-1]
    assert scale.split()[0] == "units"


def test_of_many_points_some_are_drawn_and_the_last_one_always() -> None:
    *rows, _ = drawn([(number, comparison(0.0, 1 / number)) for number in range(1, 201)])
    assert len(rows) <= experiment_charts.MAX_ROWS
    assert rows[-1].split()[0] == "200"


def test_without_an_interval_it_says_so() -> None:
    unknown = ArmComparison(arm="b", units=1, difference=None, lower=None, upper=None)
    assert "no interval yet" in drawn([(1, unknown)])[0]


def test_lengths_of_time() -> None:
    assert [command._seconds(text, "x") for text in ("30", "30s", "1.5m", "2h", "1d")] == [30, 30, 90, 7200, 86400]
