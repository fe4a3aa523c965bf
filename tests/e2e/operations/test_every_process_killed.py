"""Each process of a server is killed in turn: the server recovers within seconds, or ends with a message."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress

import openai
import psutil

from tests.e2e.conftest import MakeServer
from tests.e2e.server_process import BASE, Server, eventually

SECONDS = 60.0
"""How long a server may take, from the kill to either end."""

TRACKER = "resource tracker"
"""Python's own, of multiprocessing: it serves nobody, and comes back when a process is started."""


ROLES = {"main process", "API process", "engine worker", "training worker", "grammar trial", TRACKER}


def roles(server: Server) -> dict[str, psutil.Process]:
    """What each process of the server does, by what it was started as and by what the log says of it."""
    found: dict[str, psutil.Process] = {"main process": psutil.Process(server.process.pid)}
    for process in server.processes():
        words = " ".join(process.cmdline())
        if process.pid == server.process.pid:
            continue
        if process.pid == server.worker.pid:
            role = "engine worker"
        elif "graftwork.training.worker" in words:
            role = "training worker"
        elif "grammars.trial" in words:
            role = "grammar trial"
        elif "resource_tracker" in words:
            role = "resource tracker"
        else:
            role = "API process"
        assert role not in found, f"two processes are the {role}: {found[role]} and {process}"
        found[role] = process
    return found


NEW_WORDS = (f"yes, number {number}" for number in itertools.count())
"""Answers that were not asked for before: their grammars have to be tried out."""


def is_whole(server: Server) -> bool:
    """It answers, and every role is alive."""
    if server.status() != 200:
        return False
    with suppress(openai.APIError, psutil.NoSuchProcess), server.openai() as client:
        word = next(NEW_WORDS)
        structured = {"structured_outputs": {"choice": [word]}}
        answer = client.completions.create(model=BASE, prompt="Well?", max_tokens=20, extra_body=structured)
        assert answer.choices[0].text == word
        return {*roles(server), TRACKER} == ROLES
    return False


def spinning(server: Server, seconds: float = 1.5) -> list[str]:
    """Processes that keep half a core busy though nobody asks anything."""

    def used() -> dict[str, float]:
        found = {}
        for role, process in roles(server).items():
            times = process.cpu_times()
            found[role] = float(times.user + times.system)
        return found

    before = used()
    time.sleep(seconds)
    return [role for role, so_far in used().items() if so_far - before[role] > seconds / 2]


def test_every_process_is_killed(new_server: MakeServer) -> None:
    """One after another. That nothing is left of a server whose main process was killed, ``test_crashes`` holds."""
    server = new_server().start_and_wait()
    eventually(lambda: is_whole(server), SECONDS, "all its processes run")
    for role in sorted(set(roles(server)) - {"API process", "main process"}):
        victim = roles(server)[role]
        victim.kill()
        eventually(lambda gone=victim: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE, 5, "it is dead")
        eventually(lambda: is_whole(server), SECONDS, f"without its {role} it is whole again")
        eventually(lambda: not spinning(server), SECONDS, f"without its {role} no core spins, once all have started")
    roles(server)["API process"].kill()
    assert server.wait(SECONDS) == 1
    assert "an API process died" in server.log
