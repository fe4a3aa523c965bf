"""Requests to the application in process, and its errors."""

from __future__ import annotations

from typing import Any

HERE = ("127.0.0.1", 50000)


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of a refused request, which has the one shape and a message that says something."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert 10 < len(body["error"]["message"]) < 500
    found: dict[str, Any] = body["error"]
    return found
