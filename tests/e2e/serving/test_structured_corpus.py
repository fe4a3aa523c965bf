"""Hundreds of schemas and of forced tool calls, answered at temperature 1: what is accepted is kept, always.

Schemas are of the JSON Schema Test Suite (draft 2020-12, as jsonschema 4.26.0 ships it, MIT licence) and of the models
that the official client is made of, as the client itself sends pydantic models. ``scripts/test --full``: some minutes
on two cores.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import openai.types
import pydantic
import pytest
from jsonschema.validators import validator_for
from openai.lib._pydantic import to_strict_json_schema

from tests.e2e.server_process import BASE, Server

pytestmark = pytest.mark.slow

SUITE = Path(__file__).with_name("json_schema_suite.json")
NUM_SCHEMAS, NUM_ACCEPTED, NUM_CALLS = 500, 400, 1000
MAX_TOKENS = 512
MOST_CUT = 0.15
AT_ONCE = 16

Schema = dict[str, Any]


def closed(schema: Any) -> Any:
    """A schema whose objects have no other fields than theirs, as of the models that applications write.

    The client's own models take any other field, so that an old client reads a new server's answers.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(part) for key, part in schema.items()}
    return {**parts, "additionalProperties": False} if "properties" in schema else parts


def of_the_clients_models() -> Iterator[Schema]:
    """The JSON schemas of the official client's own models, as the client sends those of applications."""
    for module in pkgutil.walk_packages(openai.types.__path__, "openai.types."):
        for _, model in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if model.__module__ == module.name and issubclass(model, pydantic.BaseModel):
                with contextlib.suppress(TypeError):  # some cannot be made strict
                    if len(json.dumps(schema := closed(to_strict_json_schema(model)))) < 3000:
                        yield schema


def schemas() -> list[Schema]:
    suite = [entry["schema"] for entry in json.loads(SUITE.read_text())]
    draw = random.Random(1)
    models = list(of_the_clients_models())
    return draw.sample(suite, 100) + draw.sample(models, NUM_SCHEMAS - 100)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client.with_options(timeout=600)


def test_what_is_accepted_of_500_schemas_is_kept(client: openai.OpenAI) -> None:
    def answer(schema: Schema) -> tuple[str, str]:
        """How the request ended, and with what."""
        format: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        try:
            completion = client.chat.completions.create(
                model=BASE,
                messages=[{"role": "user", "content": f"Answer with an example of the schema {json.dumps(schema)}"}],
                response_format=format,
                temperature=1.0,
                seed=len(json.dumps(schema)),
                max_tokens=MAX_TOKENS,
            )
        except openai.BadRequestError as refused:
            return "refused", refused.message
        choice = completion.choices[0]
        return choice.finish_reason, choice.message.content or ""

    given = schemas()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(answer, given))
    for schema, (ending, content) in zip(given, answers, strict=True):
        if ending == "stop":
            validator_for(schema, jsonschema.Draft202012Validator)(schema).validate(json.loads(content))
        elif ending == "refused":
            assert "response_format.json_schema.schema: " in content
    endings = Counter(ending for ending, _ in answers)
    print(endings)
    accepted = NUM_SCHEMAS - endings["refused"]
    assert accepted >= NUM_ACCEPTED
    assert endings["length"] <= MOST_CUT * accepted


def test_1000_forced_tool_calls_parse_and_keep_to_their_schemas(client: openai.OpenAI) -> None:
    draw = random.Random(2)
    objects = (schema for schema in of_the_clients_models() if schema.get("type") == "object")
    models = [schema for schema in objects if len(json.dumps(schema)) < 1000]  # three are in each prompt
    tools: list[Any] = [
        {"type": "function", "function": {"name": f"tool_{place}", "parameters": schema}}
        for place, schema in enumerate(draw.sample(models, 100))
    ]

    def answer(number: int) -> str:
        choice: Any = random.Random(number)
        shown = choice.sample(tools, 3)
        completion = client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": f"Do something with number {number}."}],
            tools=shown,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1.0,
            seed=number,
            max_tokens=MAX_TOKENS,
        )
        answered = completion.choices[0]
        if answered.finish_reason == "length":
            return "length"
        (call,) = answered.message.tool_calls or ()
        (tool,) = [tool for tool in shown if tool["function"]["name"] == call.function.name]
        jsonschema.Draft202012Validator(tool["function"]["parameters"]).validate(json.loads(call.function.arguments))
        return answered.finish_reason

    with ThreadPoolExecutor(AT_ONCE) as pool:
        endings = Counter(pool.map(answer, range(NUM_CALLS)))
    print(endings)
    assert endings.keys() <= {"tool_calls", "length"}
    assert endings["length"] <= MOST_CUT * NUM_CALLS
