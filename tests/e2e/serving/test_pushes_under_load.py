"""Pushes and promotions under continuous load: no request fails, and no event is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork.clients.types.adapters import AdapterEvent
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import ask, asking_all_the_time
from tests.e2e.server_process import BASE, Server


@pytest.mark.parametrize(
    ("num_versions", "num_clients"), [(12, 3), pytest.param(200, 8, marks=pytest.mark.slow)], ids=["12", "200"]
)
def test_pushes_and_promotions(
    server: Server, small: SmallAdapters, tmp_path: Path, num_versions: int, num_clients: int
) -> None:
    name = f"rolling-{num_versions}"
    with server.client() as operator, server.openai() as client:
        operator.adapters.push(name, small.write(tmp_path / "1", seed=1))
        with asking_all_the_time(
            server, (name, f"{name}@1", name, BASE), num_clients=num_clients, max_tokens=3
        ) as load:
            for number in range(2, num_versions + 1):
                pushed = operator.adapters.push(name, small.write(tmp_path / str(number), seed=number))
                assert (pushed.version, pushed.created) == (number, True)
                operator.adapters.promote(name, number, reason=f"the {number}th")
                if number % 4 == 0:
                    assert ask(client, name, max_tokens=1).adapter == f"{name}@{number}"
        assert load.failures == []
        served = {answer.adapter for answer in load.answers if answer.model == name}
        assert len(served) > num_versions // 5
        assert {answer.adapter for answer in load.answers if answer.model == f"{name}@1"} == {f"{name}@1"}

        events: list[AdapterEvent] = []
        after = None
        while page := operator.adapters.history(name, after=after, limit=100).data:
            events += page
            after = page[-1].id
        events.reverse()
        assert [event.to_version for event in events if event.action == "push"] == list(range(1, num_versions + 1))
        moves = [(event.from_version, event.to_version) for event in events if event.alias == "live"]
        assert moves == [(None, 1), *((number - 1, number) for number in range(2, num_versions + 1))]
        assert len(events) == 2 * num_versions

        answers = [ask(client, f"{name}@{number}", max_tokens=1) for number in range(1, num_versions + 1)]
        assert [answer.adapter for answer in answers] == [f"{name}@{number}" for number in range(1, num_versions + 1)]
        # Each is another adapter: no version was mistaken for another one.
        assert len({answer.tokens[0].logprob for answer in answers}) == num_versions
        assert len(operator.adapters.get(name).versions) == num_versions


def test_the_same_bytes_are_the_same_version(server: Server, small: SmallAdapters, tmp_path: Path) -> None:
    """Whoever pushes them, however often, also at once: a pipeline may run again."""
    folder = small.write(tmp_path / "same", seed=77)
    with server.client() as operator:
        first = operator.adapters.push("same", folder)
        again = operator.adapters.push("same", folder, alias="candidate")
        assert (first.created, again.created) == (True, False)
        assert again.id == first.id
        assert operator.adapters.get("same").aliases == {"live": 1, "candidate": 1}
        other = operator.adapters.push("same-elsewhere", folder)
        assert (other.id, other.digest) == ("same-elsewhere@1", first.digest)
    with server.openai() as client:
        assert ask(client, "same").text == ask(client, "same-elsewhere").text
