"""kill -9 of a process at a random moment of a whole round: it ends as the round that nobody disturbed."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.clients.errors import GraftworkClientError
from graftwork.clients.types.learning.rounds import Round
from tests.conftest import make_home
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.server_process import Server

QUESTIONS = {
    "Where is my card?": "card",
    "I want my money back.": "refund",
    "My parcel did not arrive.": "delivery",
    "The app shows an error.": "app",
    "How do I top up?": "topup",
    "Who took 5 EUR from me?": "fee",
}
POLICY = {
    "after": len(QUESTIONS),
    "method": "supervised",
    "hyperparameters": {"n_epochs": 3, "batch_size": 2, "checkpoint_steps": 2},
    # Undecided after six users, whatever they are answered.
    "experiment": {"metric": "error_rate", "window_seconds": 1, "max_units": 6, "guardrails": []},
}
SECONDS = 420.0
"""How long a round may take, restarts included."""

FLAGS = ("--trainer-nice", "0", "--trainer-threads", "1")


@pytest.fixture(scope="module")
def prepared(embedded_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a version, whose answers were corrected."""
    folder = tmp_path_factory.mktemp("prepared")
    home = make_home(folder / "home", embedded_base)
    server = Server(home, "--no-trainer").start_and_wait()
    try:
        with server.client() as client:
            client.adapters.push("intents", SmallAdapters(embedded_base, folder).write(folder / "first", seed=900))
            for question, label in QUESTIONS.items():
                answer = client.chat("intents", [{"role": "user", "content": question}], max_tokens=4)
                client.feedback.send(answer.id, correction=label)
    finally:
        server.stop()
    return home


class WholeRound:
    """A server on a copy of the home, on which one round runs."""

    def __init__(self, prepared: Path, home: Path) -> None:
        shutil.copytree(prepared, home, symlinks=True)
        self.server = Server(home, *FLAGS).start_and_wait()
        self.began = time.monotonic()
        url = f"{self.server.url}/v1/adapters/intents/learning_policy"
        httpx.put(url, json=POLICY, timeout=60).raise_for_status()

    def go_on(self, disturb: Callable[[], None]) -> Round:
        """Until the round has ended, with users who ask all the while."""
        visitor = 0
        while time.monotonic() - self.began < SECONDS:
            disturb()
            if self.server.process.poll() is not None:
                self.server.start_and_wait()
            with suppress(GraftworkClientError), self.server.client(max_retries=0) as client:
                found = next(iter(client.rounds.list()), None)
                if found is not None and found.state == "experimenting" and found.experiment:
                    visitor += 1
                    client.chat("intents", [{"role": "user", "content": "Well?"}], max_tokens=2, user=f"user-{visitor}")
                if found is not None and found.ended:
                    return found
            time.sleep(0.2)
        raise AssertionError(f"the round has not ended:\n{self.server.log[-4000:]}")

    def outcome(self, ended: Round) -> dict[str, Any]:
        """All that must be as if nothing had happened, the adapter's bytes included."""
        with self.server.client() as client:
            adapter = client.adapters.get("intents")
            assert ended.experiment is not None
            history = client.experiments.get(ended.experiment).history
            return {
                "state": ended.state,
                "undecided": (ended.reason or "").startswith("undecided"),
                "rounds": len(list(client.rounds.list())),
                "jobs": len(list(client.jobs.list())),
                "digests": [version.digest for version in adapter.versions],
                "live": adapter.aliases["live"],
                "rows": ended.rows,
                "gates": ended.gates and ended.gates.outcome,
                "experiments": [experiment.name for experiment in client.experiments.list()],
                "history": [event.action for event in history],
            }

    def end(self) -> None:
        self.server.put_down()


def victims(server: Server) -> list[psutil.Process]:
    """Everything that may be killed: the server as a whole, the engine, the training worker, and the run."""
    found = [psutil.Process(server.process.pid)]
    with suppress(psutil.NoSuchProcess, IndexError):
        found.append(server.worker)
    for module in ("graftwork.training.worker", "graftwork.training.worker.job"):
        found += server.processes_of(module)
    return found


def killing(whole: WholeRound, chance: random.Random, moment: float) -> Callable[[], None]:
    """Something that kills one of the processes once, at a moment after the round's begin."""
    left = [moment]

    def disturb() -> None:
        if left and time.monotonic() - whole.began >= left[0]:
            left.clear()
            with suppress(psutil.NoSuchProcess):
                victim = chance.choice(victims(whole.server))
                victim.kill()
                victim.wait(30)

    return disturb


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.soak)])
def test_a_round_ends_as_it_would_have(prepared: Path, tmp_path: Path, kills: int) -> None:
    undisturbed = WholeRound(prepared, tmp_path / "undisturbed")
    try:
        expected = undisturbed.outcome(undisturbed.go_on(lambda: None))
        took = time.monotonic() - undisturbed.began
    finally:
        undisturbed.end()
    assert (expected["state"], expected["undecided"], expected["rounds"], len(expected["digests"])) == (
        "set_aside", True, 1, 2,
    )  # fmt: skip
    chance = random.Random(kills)
    for number in range(kills):
        home = tmp_path / f"home-{number}"
        whole = WholeRound(prepared, home)
        moment = took * (number + chance.random()) / kills
        try:
            assert whole.outcome(whole.go_on(killing(whole, chance, moment))) == expected, (
                f"killed after {moment:.1f} s"
            )
        finally:
            whole.end()
        shutil.rmtree(home)
