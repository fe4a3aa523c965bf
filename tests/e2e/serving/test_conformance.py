"""The official client's script of the conformance run, on the server that tests share.

``python -m tests.conformance`` tries many more clients, in environments of their own.
"""

from __future__ import annotations

import sys

import pytest

from graftwork.adapters.base.info import BaseInfo
from tests.conformance import table
from tests.conformance.clients import BUSY, FEATURES, OPENAI_PYTHON
from tests.conformance.run import run_script, script_of
from tests.e2e.server_process import Server


@pytest.mark.usefixtures("adapters")
def test_the_official_client_does_what_the_page_says(server: Server, embedded_base: BaseInfo) -> None:
    """But for the errors that need a key, or a server that is full."""
    features = {feature for features in FEATURES.values() for feature in features} - {BUSY, "error 401"}
    results = run_script(
        OPENAI_PYTHON,
        [sys.executable, str(script_of(OPENAI_PYTHON))],
        features,
        url=server.url,
        key="none",
        model="intents",
        tokenizer=embedded_base.path,
    )
    now = table.cells_of(results)
    before = {
        (client, feature): cell
        for (client, feature), cell in table.read().items()
        if client == OPENAI_PYTHON.title and feature in features
    }
    assert before
    assert not table.worse(before, now), [result for result in results if not result.ok]
