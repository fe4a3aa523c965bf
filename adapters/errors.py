"""Every error that a user can meet, as one tree. Each class has its HTTP status.

::

    GraftworkError                500  something of ours broke
    ├── InvalidRequest            400  the body, a field or an id inside the body is wrong
    │   └── InvalidAdapter        400  a pushed adapter was refused; the message names the field or file
    ├── Unauthorized              401  no key, or an unknown one
    ├── Forbidden                 403  the key's role does not allow this
    ├── NotFound                  404  an id in the path, or the model, names nothing
    ├── Conflict                  409  the state does not allow this now
    ├── TooLarge                  413  more bytes than the server takes
    ├── Overloaded                429  the queue is full; try again after ``retry_after`` seconds
    │   └── LimitExceeded         429  the key's limit is reached; ``retry_after`` says when there is room
    ├── Unavailable               503  starting, draining, or the engine is restarting
    └── ConfigurationError        500  the server was started with settings that cannot work

A message says what was wrong *and* what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class GraftworkError(Exception):
    """Base of all errors.

    Args:
        message: For the user: what was wrong and what to do.
        param: The field of the request that is wrong.
        code: For programs; the class's ``default_code`` unless given.
    """

    status: ClassVar[int] = 500
    type: str = "server_error"
    default_code: ClassVar[str | None] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    def body(self) -> dict[str, Any]:
        """The JSON of the response, in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(GraftworkError):
    """The body, a field or an id inside the body is wrong."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class InvalidAdapter(InvalidRequest):
    """A pushed adapter was refused; the message names the field or file."""

    default_code = "invalid_adapter"


class Unauthorized(GraftworkError):
    """There is no key, or an unknown one."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(GraftworkError):
    """The key's role does not allow this."""

    status = 403
    type = "permission_error"
    default_code = "insufficient_role"


class NotFound(GraftworkError):
    """An id in the path, or the model, names nothing."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class Conflict(GraftworkError):
    """The state does not allow this now."""

    status = 409
    type = "conflict_error"
    default_code = "conflict"


class TooLarge(GraftworkError):
    """The request has more bytes than the server takes."""

    status = 413
    type = "invalid_request_error"
    default_code = "too_large"


class Overloaded(GraftworkError):
    """The queue is full; try again after ``retry_after`` seconds."""

    status = 429
    type = "rate_limit_error"
    default_code = "overloaded"

    def __init__(
        self, message: str, *, retry_after: int = 1, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class LimitExceeded(Overloaded):
    """A limit of the key is reached.

    Args:
        message: For the user: which limit, how much of it is used, and when there is room.
        kind: OpenAI's ``type``: ``requests`` or ``tokens``, or ``insufficient_quota`` for a budget.
        retry_after: After so many seconds there is room, if nothing else is asked meanwhile; ``None``: never.
        headers: How the key stands, for the response.
    """

    default_code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, kind: str, retry_after: int | None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after or 0, code=kind if kind == "insufficient_quota" else None)
        self.type = kind
        self.never = retry_after is None
        self.headers = headers or {}


class Unavailable(GraftworkError):
    """The server is starting or draining, or the engine is restarting."""

    status = 503
    type = "server_error"
    default_code = "unavailable"


class ConfigurationError(GraftworkError):
    """The server was started with settings that cannot work."""

    default_code = "configuration_error"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, to quote it in one of ours."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
