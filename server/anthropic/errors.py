"""Errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any, Final

from graftwork.adapters.errors import GraftworkError

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(status: int, message: str) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def body_of(error: GraftworkError) -> dict[str, Any]:
    """The JSON of one of ours."""
    return error_body(error.status, error.message)
