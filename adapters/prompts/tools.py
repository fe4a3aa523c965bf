"""OpenAI's tools, as chat templates show them: one reading for requests and training files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.messages import check_unicode

FUNCTION_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


def shown_tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool as templates show it. The order of its fields is part of the prompt."""
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Parse tools that no request has parsed before.

    Returns:
        The tools as templates show them: without ``strict``, which is for the server.

    Raises:
        InvalidRequest: They are invalid; ``param`` names the field.
    """
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list of functions.", param="tools")
    shown = [_read_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in shown]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"tools has two functions called {twice!r}.", param="tools")
    return shown


def _read_tool(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise InvalidRequest(
            f'{where} must be an object like {{"type": "function", "function": {{"name": "…", "parameters": {{…}}}}}}.',
            param=where,
        )
    name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.function.name must have 1 to 128 letters of a-z, A-Z, 0-9, _, . and -.",
            param=f"{where}.function.name",
        )
    if description is not None and not isinstance(description, str):
        raise InvalidRequest(f"{where}.function.description must be a string.", param=f"{where}.function.description")
    if parameters is not None and (not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object"):
        raise InvalidRequest(
            f"{where}.function.parameters must be a JSON schema of an object.", param=f"{where}.function.parameters"
        )
    shown = shown_tool(name, description, parameters)
    check_unicode(json.dumps(shown, ensure_ascii=False), where)
    return shown
