"""The tools that an answer may call, and what it is told to do with them: OpenAI's ``tools`` and ``tool_choice``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.adapters.prompts.tools import FUNCTION_NAME, shown_tool
from graftwork.server.bodies import StrictModel, Text, body_error, field_error, json_type, short_repr
from graftwork.server.engine.request import ToolCallsSpec, ToolSchema
from graftwork.server.openai.requests.structured_output import GrammarSource, Schema

MAX_TOOLS = 128


def _function_name(value: str) -> str:
    if not FUNCTION_NAME.fullmatch(value):
        raise body_error("invalid_value", "must have 1 to 128 letters of a-z, A-Z, 0-9, _, . and -")
    return value


FunctionName = Annotated[str, AfterValidator(_function_name)]


def _parameters(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if schema.get("type", "object") != "object":
        raise body_error("invalid_value", f"must be of type object, got {short_repr(schema['type'])}")
    return schema


class Function(StrictModel):
    """A function that an answer may call. ``parameters`` is a JSON schema; without one it takes no arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: Annotated[Schema, AfterValidator(_parameters)] | None = None
    strict: bool | None = None


def only_functions(tool: Any, *others: str | None) -> Any:
    """A validator of whole tools, before their fields: whatever else another type of tool has, its type is the problem.

    Args:
        tool: As it was sent.
        others: Types that are taken for functions as well.
    """
    if isinstance(tool, dict) and (kind := tool.get("type")) not in ("function", *others):
        raise field_error("type", "unsupported_parameter", f"is {short_repr(kind)}: only functions are supported")
    return tool


class Tool(StrictModel):
    """One of OpenAI's ``tools``."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        return only_functions(value)

    def as_json(self) -> dict[str, Any]:
        """The tool as templates show it: what was sent, without ``strict``, which is for the server."""
        return shown_tool(self.function.name, self.function.description, self.function.parameters)


class FunctionCall(StrictModel):
    """A function that an answer called, with the text of its JSON arguments."""

    name: FunctionName
    arguments: Text


class MessageToolCall(StrictModel):
    """A call in a conversation's history. ``index`` comes back from clients that add up streams."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Annotated[int, Field(ge=0)] | None = None


class NamedTool(str):
    """The name of the function that an answer has to call."""

    __slots__ = ()


def _tool_choice(value: Any) -> Any:
    if value in (None, "none", "auto", "required"):
        return value
    if isinstance(value, str):
        raise body_error("invalid_value", f"must be none, auto, required or a function, got {short_repr(value)}")
    if not isinstance(value, dict):
        raise body_error("invalid_type", f"must be a string or an object, not {json_type(value)}")
    if value.get("type") != "function":
        kind = short_repr(value.get("type"))
        raise body_error("unsupported_parameter", f"[type] is {kind}: only none, auto, required or a function")
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or len(function) > 1:
        raise body_error("invalid_value", 'must be like {"type": "function", "function": {"name": "…"}}')
    return NamedTool(function["name"])


#: OpenAI's ``tool_choice``: ``none``, ``auto``, ``required``, or a ``NamedTool``.
ToolChoice = Annotated[Any, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any] | None)]


def check_names(tools: Sequence[Tool], choice: Any) -> None:
    """Check that the names of tools differ, and that the one to call is among them.

    Raises:
        PydanticCustomError: They do not; for a validator of the body.
    """
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise field_error("tools", "invalid_value", f"has two functions called {short_repr(twice)}")
    if not tools and (choice == "required" or isinstance(choice, NamedTool)):
        raise field_error("tool_choice", "invalid_value", "needs tools: give them, or leave it out")
    if isinstance(choice, NamedTool) and choice not in names:
        raise field_error("tool_choice", "invalid_value", f"names {short_repr(str(choice))}, which is not among tools")


def tool_calls_source(
    tools: Sequence[Tool], choice: Any, format: ToolCallFormat, *, parallel: bool, answer: GrammarSource | None
) -> GrammarSource | None:
    """What holds an answer to calls of its tools.

    Args:
        tools: All of them.
        choice: As ``tool_choice`` was read; ``None`` is ``auto``.
        format: How the base writes calls.
        parallel: Whether there may be several.
        answer: What an answer without calls is held to.

    Returns:
        ``None`` if nothing does: where no call is required, only ``strict`` functions are held to their schema.

    Raises:
        InvalidRequest: The schemas are too long, or ``answer`` cannot stand beside calls.
    """
    required = choice == "required" or isinstance(choice, NamedTool)
    if not required and answer is None and not any(tool.function.strict for tool in tools):
        return None
    if not required and answer is not None and (answer.kind != "json" or not format.marker):
        raise InvalidRequest(
            f"{answer.field} beside tools is not supported here: set tool_choice to none or required, or leave one out",
            param=answer.field,
            code="unsupported_parameter",
        )
    opening = format.opening.lstrip()
    assert opening.startswith(format.marker)
    spec = ToolCallsSpec(
        tools=[
            ToolSchema(
                name=tool.function.name,
                parameters=_arguments(tool.function) if required or tool.function.strict else _ANY_ARGUMENTS,
                field=f"tools[{place}].function.parameters",
            )
            for place, tool in enumerate(tools)
            if not isinstance(choice, NamedTool) or tool.function.name == choice
        ],
        marker=format.pieces(format.marker),
        opening=format.pieces(opening[len(format.marker) :]),
        middle=format.pieces(format.middle),
        between=format.pieces(format.between) if parallel and format.between is not None else None,
        closing=format.pieces(format.closing),
        required=required,
        answer=None if required or answer is None else json.loads(answer.text),
        answer_field="" if answer is None else answer.field,
    )
    return GrammarSource.of("tool_calls", asdict(spec), "tools")


_ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}

#: Keywords with which a schema may say more about properties than ``properties`` does.
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf"}


def _arguments(function: Function) -> Mapping[str, Any]:
    """The schema of a call's arguments: a function takes those that it declares, unless its schema says otherwise."""
    schema = function.parameters or {"properties": {}}
    if _OPEN & schema.keys():
        return schema
    return {"type": "object", **schema, **({"additionalProperties": False} if "properties" in schema else {})}
