"""Tools of training files become what requests make of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.tools import read_tools
from graftwork.server.openai.requests.tools import Tool

PARAMETERS = {"properties": {"city": {"type": ["string", "null"], "default": None}}, "type": "object"}


@pytest.mark.parametrize(
    "function",
    [
        {"name": "weather"},
        {"parameters": PARAMETERS, "strict": True, "name": "weather", "description": "The weather"},
        {"name": "a.b-c_1", "description": None, "parameters": {}, "strict": None},
    ],
)
def test_a_tool_is_read_as_in_a_request(function: dict[str, Any]) -> None:
    tool = {"function": function, "type": "function"}
    (read,) = read_tools([tool])
    # As texts, since the order of the fields is part of the prompt.
    assert json.dumps(read) == json.dumps(Tool.model_validate(tool).as_json())
    assert read_tools([read]) == [read]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ([{"type": "web_search"}], "tools[0]"),
        ([{"type": "function", "name": "weather"}], "tools[0]"),
        ([{"type": "function", "function": {"name": "the weather"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "w", "description": 1}}], "tools[0].function.description"),
        ([{"type": "function", "function": {"name": "w", "parameters": []}}], "tools[0].function.parameters"),
        (
            [{"type": "function", "function": {"name": "w", "parameters": {"type": "string"}}}],
            "tools[0].function.parameters",
        ),
        ([{"type": "function", "function": {"name": "w", "description": "\ud800"}}], "tools[0]"),
        ([{"type": "function", "function": {"name": "w"}}] * 2, "tools"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named(tools: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_tools(tools)
    assert caught.value.param == param
