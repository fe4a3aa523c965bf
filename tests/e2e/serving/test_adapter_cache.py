"""More adapters than device and host memory hold: all answers are correct, and residency is reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork.clients.errors import BadRequestError
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import NAMES, SmallAdapters
from tests.e2e.requests import INT8_TOLERANCE, ask, ask_together
from tests.e2e.server_process import BASE, Server

SIX = NAMES[:6]


@pytest.fixture(scope="module")
def narrow(new_server: MakeServer, folders: dict[str, Path]) -> Iterator[Server]:
    """Two adapters fit on the device, one more in host memory, six are there: 6 MB each, as the engine packs them."""
    server = new_server("--slots", "2", "--host-memory-gb", "0.019").start_and_wait()
    with server.client() as client:
        for name in SIX:
            client.adapters.push(name, folders[f"{name}@1"])
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log


def tiers(server: Server) -> dict[str, str | None]:
    with server.client() as client:
        return {adapter.name: adapter.residency for adapter in client.adapters.list() if adapter.name in SIX}


def test_all_answer_right(narrow: Server) -> None:
    with narrow.openai() as client:
        alone = {model: ask(client, model, max_tokens=8) for model in (BASE, *SIX)}
        assert len({answer.tokens[0].logprob for answer in alone.values()}) == 7
        for answer in ask_together(client, (BASE, *SIX, *SIX), max_tokens=8):
            assert answer.adapter == (BASE if answer.model == BASE else f"{answer.model}@1")
            answer.check_same(alone[answer.model], tolerance=INT8_TOLERANCE)


def test_where_they_are(narrow: Server) -> None:
    with narrow.openai() as client:
        for name in SIX:
            ask(client, name, max_tokens=1)
    assert tiers(narrow) == {
        SIX[5]: "device",
        SIX[4]: "device",
        SIX[3]: "host",
        SIX[2]: "store",
        SIX[1]: "store",
        SIX[0]: "store",
    }
    for tier, count in (("device", 2), ("host", 1), ("store", 3)):
        assert narrow.metric("resident_versions", tier=tier) == count
    assert narrow.metric("live_on_device", adapter=SIX[5]) == 1
    assert narrow.metric("live_on_device", adapter=SIX[0]) == 0


def test_moves_are_counted(narrow: Server) -> None:
    with narrow.openai() as client:
        for name in (SIX[0], SIX[1]):
            ask(client, name, max_tokens=1)
        evictions, loads = narrow.metric("adapter_evictions_total"), narrow.metric("adapter_loads_total")
        for name in (SIX[0], SIX[1]):
            ask(client, name, max_tokens=1)
        assert narrow.metric("adapter_evictions_total") == evictions
        ask(client, SIX[2], max_tokens=1)
        assert narrow.metric("adapter_evictions_total") == evictions + 1
        assert narrow.metric("adapter_loads_total") <= loads + 1
    with narrow.client() as client_of_ours:
        (version,) = client_of_ours.adapters.get(SIX[2]).versions
        assert version.residency == "device"
        assert version.load_ms is not None
        assert version.requests >= 1


def test_what_can_never_fit_is_refused(narrow: Server, small: SmallAdapters, tmp_path: Path) -> None:
    too_wide = small.write(tmp_path / "wide", seed=1, r=64)
    with narrow.client() as client, pytest.raises(BadRequestError, match="ranks up to 32"):
        client.adapters.push("wide", too_wide)
