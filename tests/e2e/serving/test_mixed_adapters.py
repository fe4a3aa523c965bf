"""Many adapters at once: each answers as if it were alone, also during pushes and promotions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import NAMES
from tests.e2e.requests import INT8_TOLERANCE, OpenStream, StreamedAnswer, ask, ask_together
from tests.e2e.server_process import BASE, Server

MODELS = (BASE, *NAMES)
SIXTEEN = (BASE, *NAMES, *NAMES[1:])


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def alone(client: openai.OpenAI, adapters: tuple[str, ...]) -> dict[str, StreamedAnswer]:
    """What every model says when nobody else asks."""
    return {model: ask(client, model, max_tokens=64) for model in (BASE, *adapters)}


def test_adapters_answer_differently(alone: dict[str, StreamedAnswer]) -> None:
    assert len({answer.text for answer in alone.values()}) > len(MODELS) // 2
    assert len({answer.tokens[0].logprob for answer in alone.values()}) == len(MODELS)


def test_sixteen_streams_over_eight_adapters(client: openai.OpenAI, alone: dict[str, StreamedAnswer]) -> None:
    answers = ask_together(client, SIXTEEN, max_tokens=64)
    assert len(answers) == 16
    for answer in answers:
        assert answer.adapter == (BASE if answer.model == BASE else f"{answer.model}@1")
        answer.check_same(alone[answer.model], tolerance=INT8_TOLERANCE)
    # They did run at the same time.
    assert max(answer.began for answer in answers) < min(answer.ended for answer in answers)


def test_sixteen_streams_exactly(exact_server: Server) -> None:
    """In float32 no neighbour changes a word."""
    with exact_server.openai() as client:
        alone = {model: ask(client, model, max_tokens=8) for model in MODELS}
        for answer in ask_together(client, SIXTEEN, max_tokens=8):
            answer.check_same(alone[answer.model], tolerance=0)


def test_a_new_version_in_the_middle(server: Server, folders: dict[str, Path], client: openai.OpenAI) -> None:
    """New requests get it; streams that began before finish, on the version that they began with."""
    with server.client() as operator:
        operator.adapters.push("changing", folders["intents@1"])
        old = ask(client, "changing")
        before = [OpenStream(client, "changing", max_tokens=64) for _ in range(4)]
        longest = OpenStream(client, "changing", max_tokens=600)
        others = [OpenStream(client, model, max_tokens=24) for model in (*NAMES, *NAMES[:4])]
        for stream in (*before, longest):
            stream.wait_until_begun()
        pushed = operator.adapters.push("changing", folders["intents@2"])
        assert ask(client, "changing", max_tokens=1).adapter == "changing@1"
        operator.adapters.promote("changing", pushed.version)
        new = ask(client, "changing")
        assert longest.ended_at is None
        for stream in (*before, longest, *others):
            assert stream.wait_until_ended().error is None
            assert stream.finish_reason == "length"
    assert {stream.adapter for stream in (*before, longest)} == {"changing@1"}
    assert {stream.text for stream in before} == {before[0].text}
    assert before[0].text.startswith(old.text)
    assert new.adapter == "changing@2"
    assert new.text != old.text
    again = ask(client, "changing@1")
    assert again.adapter == "changing@1"
    again.check_same(old, tolerance=INT8_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [((), INT8_TOLERANCE), (("--dtype", "float32", "--quantize", "none"), 0.0)],
    ids=["default", "float32"],
)
def test_many_rounds(new_server: MakeServer, folders: dict[str, Path], mode: tuple[str, ...], tolerance: float) -> None:
    """Any neighbours, any order, several prompts: never another answer than alone."""
    server = new_server(*mode).start_and_wait()
    with server.client() as operator, server.openai() as client:
        for name in NAMES:
            operator.adapters.push(name, folders[f"{name}@1"])
        for prompt in ("Explain why the sky is blue.", "Write a poem about a lighthouse.", "My parcel is late."):
            alone = {model: ask(client, model, prompt=prompt, max_tokens=32) for model in MODELS}
            for first in range(0, len(SIXTEEN), 4):
                models = SIXTEEN[first:] + SIXTEEN[:first]
                for answer in ask_together(client, models, prompt=prompt, max_tokens=32):
                    answer.check_same(alone[answer.model], tolerance=tolerance)
    assert server.stop() == 0
