"""Engine workers that end: started again, tried again later, or given up together with the server."""

from __future__ import annotations

from graftwork.server.transport.restarts import RETRY_SECONDS, WorkerRestarts
from graftwork.server.transport.worker import EXIT_CONFIGURATION


def test_a_worker_that_was_ready_is_always_started_again() -> None:
    restarts = WorkerRestarts()
    for num_ready in range(1, 10):
        assert restarts.decide(-9, num_ready=num_ready, others_serve=False, now=0) == "start"


def test_the_only_worker_is_given_up_after_three_failures() -> None:
    restarts = WorkerRestarts()
    decisions = [restarts.decide(1, num_ready=0, others_serve=False, now=0) for _ in range(3)]
    assert decisions == ["start", "start", "stop"]


def test_settings_that_never_worked_stop_the_server_at_once() -> None:
    assert WorkerRestarts().decide(EXIT_CONFIGURATION, num_ready=0, others_serve=True, now=0) == "stop"


def test_while_others_serve_a_worker_that_worked_once_is_tried_again_later() -> None:
    restarts = WorkerRestarts()
    assert restarts.decide(EXIT_CONFIGURATION, num_ready=1, others_serve=True, now=5) == "wait"
    assert restarts.decide(EXIT_CONFIGURATION, num_ready=1, others_serve=True, now=4 + RETRY_SECONDS) == "wait"
    assert restarts.decide(EXIT_CONFIGURATION, num_ready=1, others_serve=True, now=5 + RETRY_SECONDS) == "start"
    later = 6 + RETRY_SECONDS
    assert restarts.decide(EXIT_CONFIGURATION, num_ready=1, others_serve=True, now=later) == "wait"
    assert restarts.decide(1, num_ready=1, others_serve=False, now=later + RETRY_SECONDS) == "start"
    assert restarts.decide(EXIT_CONFIGURATION, num_ready=1, others_serve=False, now=later + 99) == "stop"
