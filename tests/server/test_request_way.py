"""A chat request passes exactly the files that CONTRIBUTING lists."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.conftest import CHECKOUT
from tests.server.fakes import adapter_files, form, make_world
from tests.server.scripted_engine import ASK, CHAT, GatewayHarness

SERVER = CHECKOUT / "server"
MAX_FILES = 13
#: Of the line to the engine, what a scripted engine stands in for.
BEYOND_THE_LINE = {"transport/messages.py", "transport/worker.py"}
#: Told of the request; the answer does not depend on what they do.
LISTENERS = {
    *("generation/accounting.py", "generation/interaction_log.py", "generation/limiter.py"),
    *("observability/metrics.py", "observability/traffic.py"),
    *("processes.py", "http/leaving.py", "http/sessions.py"),
}
#: Data, its iteration and its look-up.
CARRIERS = {"engine/request.py", "generation/admission.py", "transport/engine.py", "openai/vocabulary.py"}


def listed() -> list[str]:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    section = text[text.index("## A request's way") : text.index("## How to add")]
    return re.findall(r"^\d+\. `([a-z_/]+\.py)`", section, re.MULTILINE)


async def test_a_chat_passes_the_files_that_contributing_lists(tmp_path: Path) -> None:
    way = listed()
    assert len(way) == len(set(way)) <= MAX_FILES
    harness = GatewayHarness(make_world(tmp_path))
    harness.engine.connect()
    await harness.http.post("/v1/adapters/intents/versions", files=form(adapter_files(1)))
    await harness.ask()  # what is made once, on the first request
    passed: set[str] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename).resolve()
        if event == "call" and file.is_relative_to(SERVER):
            passed.add(file.relative_to(SERVER).as_posix())

    sys.setprofile(look)
    try:
        answer = await harness.http.post(CHAT, json=ASK)
    finally:
        sys.setprofile(None)
    assert answer.status_code == 200
    assert passed - LISTENERS - CARRIERS == set(way) - BEYOND_THE_LINE
