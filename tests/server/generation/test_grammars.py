"""What requests ask for becomes a grammar or a refusal in bounded time, whatever they ask for."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from graftwork.adapters.errors import InvalidRequest, Unavailable
from graftwork.server.engine.grammars import trial
from graftwork.server.engine.request import GrammarKind
from graftwork.server.generation import grammars
from graftwork.server.generation.grammars import Grammars
from graftwork.server.openai.requests.structured_output import GrammarSource


@pytest.fixture(scope="module")
def made() -> Iterator[Grammars]:
    made = Grammars()
    yield made
    made.close()


def source(kind: GrammarKind, text: Any) -> GrammarSource:
    return GrammarSource(kind, text if isinstance(text, str) else json.dumps(text), "the.field")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


OPTIONAL = {"type": "object", "properties": {f"property_{i}": {"type": "string"} for i in range(5000)}}

HOSTILE: dict[str, tuple[GrammarKind, Any, str]] = {
    "5,000 optional properties": ("json", OPTIONAL, "too complex"),
    "nested 200 deep": ("json", nested(200), "is nested too deeply"),
    "$ref loop": ("json", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "allows no answer"),
    "lenient": ("json", {"x-guidance": {"lenient": True}, "not": {}}, "not is not supported"),
    "enum of 50,000": ("json", {"enum": [f"value number {i}" for i in range(50_000)]}, "too large or too complex"),
    "repetitions": ("regex", "((((((a{10}){10}){10}){10}){10}){10}){10}", "too complex"),
    "remainders": ("json", {"type": "integer", "multipleOf": 999_983}, "too complex"),
    "remainders of remainders": (
        "json",
        {"type": "integer", "allOf": [{"multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]},
        "too complex",
    ),
    "patterns at once": (
        "json",
        {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(49)]},
        "too",
    ),
    "choices of objects": (
        "json",
        {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"type": t}}} for t in ("null", "string")]} for i in range(16)]},
        "too large",
    ),
    "many rules at once": ("grammar", "start: " + " ".join(["/a*b?/"] * 3000), "too large or too complex"),
    "parentheses": ("grammar", "start: " + "(" * 20_000, ""),
    "GBNF's parentheses": ("grammar", "root ::= " + "(" * 20_000, "neither Lark"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_hostile_is_refused_in_bounded_time(made: Grammars, name: str) -> None:
    kind, text, says = HOSTILE[name]
    with pytest.raises(InvalidRequest) as refused:
        await made.make(source(kind, text), "key")
    assert refused.value.message.startswith("the.field: ")
    assert says in refused.value.message
    assert refused.value.param == "the.field"
    assert await made.make(source("regex", "abc"), "key"), "the next one is served"


#: In themselves harmless, however they look: they are followed within the limits of a mask.
LARGE: dict[str, tuple[GrammarKind, Any]] = {
    "1 MB": ("json", {"enum": ["x" * 1000 + str(i) for i in range(1000)]}),
    "repetitions": ("regex", "(a{1,1000}){1,1000}"),
    "5,000 required properties": ("json", {**OPTIONAL, "required": list(OPTIONAL["properties"])}),  # type: ignore[call-overload]
    "nested 50 deep": ("json", nested(50)),
    "recursion": ("json", {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}),
    "without an end": ("json", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
}


@pytest.mark.parametrize("name", LARGE)
async def test_what_is_only_large_is_taken(made: Grammars, name: str) -> None:
    assert await made.make(source(*LARGE[name]), "key")


async def test_a_refusal_names_field_and_keyword(made: Grammars) -> None:
    for kind, text, message, code in (
        ("json", {"uniqueItems": True}, "the.field: uniqueItems is not supported", "unsupported_parameter"),
        ("json", {"type": "strng"}, "the.field: Invalid type: strng", "invalid_value"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await made.make(source(kind, text), "key")  # type: ignore[arg-type]
        assert (refused.value.message, refused.value.code) == (message, code)


async def test_the_same_is_tried_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MAX_KEPT", 2)
    made = Grammars()
    tried: list[str] = []
    true = made._try_out
    monkeypatch.setattr(made, "_try_out", lambda asked: tried.append(asked.text) or true(asked))
    for text in ("a", "a", "b", "a", "c", "b"):
        assert await made.make(source("regex", text), "key")
    with pytest.raises(InvalidRequest):
        await made.make(source("regex", "("), "key")
    assert tried == ["a", "b", "c", "("]
    made.close()


async def test_a_process_that_was_killed_is_started_again() -> None:
    made = Grammars()
    assert await made.make(source("regex", "a"), "key")
    assert made._child is not None
    os.kill(made._child.pid, signal.SIGKILL)
    made._child.wait()
    assert await made.make(source("regex", "b"), "key")
    made.close()


async def test_a_process_that_cannot_start_is_no_fault_of_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(grammars, "_TRIAL", "no_such_module")
    with pytest.raises(Unavailable):
        await Grammars().make(source("regex", "a"), "key")


async def test_the_process_ends_with_its_parent_and_not_by_ctrl_c() -> None:
    made = Grammars()
    await made.make(source("regex", "a"), "key")
    assert made._child is not None
    child = psutil.Process(made._child.pid)
    os.kill(child.pid, signal.SIGINT)
    assert await made.make(source("regex", "b"), "key")
    assert child.memory_info().rss < 200 << 20
    assert made._child.stdin is not None
    made._child.stdin.close()  # as the kernel does when the parent is gone
    assert made._child.wait(timeout=30) == 0


def test_only_that_process_loads_llguidance() -> None:
    command = "import sys, graftwork.server.app as app; print('llguidance' in sys.modules, 'torch' in sys.modules)"
    done = os.popen(f'{sys.executable} -c "{command}"').read()
    assert done.split() == ["False", "False"]


def test_an_answer_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In process, where a debugger sees it."""
    assert trial.answer({"kind": "regex", "source": "a"})["grammar"]
    assert trial.answer({"kind": "json", "source": "[]"})["problem"].startswith("is not a JSON schema")
    began = time.monotonic()
    assert "grammar" in trial.answer({"kind": "choice", "source": '["a", "b"]'})
    assert time.monotonic() - began < 60


async def test_keys_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks for many grammars delays its own."""
    made, order = Grammars(), []

    def slow(source: GrammarSource) -> dict[str, str]:
        time.sleep(0.02)
        order.append(source.text)
        return {"grammar": source.text}

    monkeypatch.setattr(made, "_try_out", slow)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(made.make, source("regex", f"many {number}"), "greedy")
        await anyio.sleep(0.01)
        tasks.start_soon(made.make, source("regex", "one"), "modest")
    assert order.index("one") <= 2
    assert len(order) == 21
