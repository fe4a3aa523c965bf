"""Windows that fit a metric, from how late feedback came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.past.windows import SuggestedWindow, in_words, suggest_window
from tests.adapters.running_experiments import ExperimentsHarness, experiments_in, plan

MINUTE, HOUR = 60.0, 3600.0


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentsHarness]:
    """30 thumbs, each 9 minutes after its answer, but 1 only after 5 hours; 5 corrections; 30 values of ``stars``."""
    with experiments_in(tmp_path_factory.mktemp("windows")) as harness:
        for number in range(30):
            seconds = 5 * HOUR if number == 7 else 9 * MINUTE
            id = harness.records.mint("intents@1", days_ago=seconds / 86400)
            harness.say(id, thumb="up")
            if number < 5:
                harness.say(id, correction="track")
            harness.say(harness.records.mint("intents@1", days_ago=1.9), metadata={"stars": "3"})
            harness.say(harness.records.mint("intents@1", days_ago=0), metadata={"colour": "red"})
        yield harness


@pytest.mark.parametrize(
    ("metric", "seconds", "num_delays"),
    [
        ("thumb", 10 * MINUTE, 30),
        ("correction_rate", HOUR, 0),  # too few
        ("metadata.stars", 2 * 24 * HOUR, 30),  # read from metadata with this key alone
        ("error_rate", 5 * MINUTE, 0),
        ("latency", 5 * MINUTE, 0),
    ],
)
def test_a_window_fits_its_metric(harness: ExperimentsHarness, metric: str, seconds: float, num_delays: int) -> None:
    with harness.database.read() as connection:
        suggested = suggest_window(connection, "intents", Metric.of(metric))
        other = suggest_window(connection, "another", Metric.of(metric))
    assert (suggested.seconds, len(suggested.delays)) == (seconds, num_delays)
    assert other.seconds == (HOUR if metric not in ("error_rate", "latency") else 5 * MINUTE)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (60.0, "is short: 97% of the last 30 judgements came later"),
        (10 * MINUTE, None),
        (HOUR, None),
        (24 * HOUR, "is long: of the last 30 judgements 95% came within 10 min"),
    ],
)
def test_a_window_that_does_not_fit_is_warned_of(seconds: float, said: str | None) -> None:
    suggested = SuggestedWindow(seconds=10 * MINUTE, delays=(30.0, *[9 * MINUTE] * 29))
    warning = suggested.warning(seconds)
    assert warning is None if said is None else said in (warning or "")
    assert said is None or "a window of 10 min fits (window_seconds 600)" in (warning or "")


def test_without_feedback_any_window_may_fit_it_but_not_what_answers_decide() -> None:
    assert SuggestedWindow(seconds=HOUR).warning(7 * 24 * HOUR) is None
    per_request = SuggestedWindow(seconds=5 * MINUTE, is_per_request=True)
    assert per_request.warning(0.0) is None
    assert "for what an answer decides by itself" in (per_request.warning(HOUR) or "")


def test_experiments_start_with_a_window_that_fits_or_a_warning(tmp_path: Path) -> None:
    with experiments_in(tmp_path) as harness:
        for _ in range(25):
            harness.say(harness.records.mint("intents@1", days_ago=20 * MINUTE / 86400), thumb="up")
        assert harness.start(of=plan(window_seconds=None)).plan.window_seconds == 30 * MINUTE
        harness.experiments.stop("first", actor="ann", reason="looked")
        assert harness.experiments.get("first").plan.window_seconds == 30 * MINUTE
        harness.start("second", of=plan(window_seconds=60.0))
        first, second = (harness.experiments.history(name)[-1].details or {} for name in ("first", "second"))
        assert "warnings" not in first
        assert "the window of 1 min is short" in second["warnings"][0]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (90, "90 s"), (60, "1 min"), (5400, "90 min"), (86400, "1 day"), (7200, "2 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
