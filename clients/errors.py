"""The errors that the client raises, as one tree.

::

    GraftworkClientError
    ├── SettingsError                 the URL or the key given to the client is invalid
    ├── InvalidArgumentError          an argument is invalid; no request was sent
    ├── LocalFileError                a local folder or file cannot be read or sent
    ├── GraftworkConnectionError      the server cannot be reached, or the connection broke
    │   └── GraftworkTimeoutError     the server did not answer in time
    ├── GraftworkProtocolError        the answer is not one of a Graftwork server
    └── GraftworkAPIError             an error response: status, type, param, code, request_id
        ├── BadRequestError       400
        ├── AuthenticationError   401
        ├── ForbiddenError        403
        ├── NotFoundError         404
        ├── ConflictError         409
        ├── TooLargeError         413
        ├── OverloadedError       429     ``retry_after`` in seconds, if the server sends it
        ├── ServerError           5xx
        │   └── UnavailableError  503     starting, draining, or restarting the engine
        └── InterruptedAnswerError        a stream that began failed; its HTTP status was 200

A status without a class of its own raises `GraftworkAPIError` itself.
"""

from __future__ import annotations


class GraftworkClientError(Exception):
    """Base class of all errors of the client. Their messages can be shown to users."""


class SettingsError(GraftworkClientError, ValueError):
    """The URL or the key given to the client is invalid."""


class InvalidArgumentError(GraftworkClientError, ValueError):
    """An argument is invalid. No request was sent."""


class LocalFileError(GraftworkClientError, ValueError):
    """A local folder or file cannot be read, or cannot be sent as it is."""


class GraftworkConnectionError(GraftworkClientError):
    """The server cannot be reached, or the connection broke.

    Attributes:
        url: the address of the server.
    """

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class GraftworkTimeoutError(GraftworkConnectionError):
    """The server did not answer in time."""


class GraftworkProtocolError(GraftworkClientError):
    """The answer is not one of a Graftwork server, but of another service, a proxy, or a much newer version."""


class GraftworkAPIError(GraftworkClientError):
    """An error response of the server.

    Attributes:
        message: the message, for people.
        status: the HTTP status.
        type: the type of the error, as in OpenAI's API.
        param: the field that the error is about.
        code: the code, for programs.
        request_id: the id of the request in the server's log.
        retry_after: time in seconds after which the server asks for a retry.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(GraftworkAPIError):
    """400: the body, a field, or an id in the body is invalid."""


class AuthenticationError(GraftworkAPIError):
    """401: the key is missing or unknown."""


class ForbiddenError(GraftworkAPIError):
    """403: the key's role does not allow this."""


class NotFoundError(GraftworkAPIError):
    """404: the model, or an id in the path, does not exist."""


class ConflictError(GraftworkAPIError):
    """409: the current state does not allow this."""


class TooLargeError(GraftworkAPIError):
    """413: the request is larger than the server accepts."""


class OverloadedError(GraftworkAPIError):
    """429: the queue or a quota is full."""


class ServerError(GraftworkAPIError):
    """5xx: an internal error of the server, or of a proxy in front of it."""


class UnavailableError(ServerError):
    """503: the server is starting, draining, or restarting its engine."""


class InterruptedAnswerError(GraftworkAPIError):
    """A streamed answer failed after it began."""


_BY_STATUS: dict[int, type[GraftworkAPIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    429: OverloadedError,
    503: UnavailableError,
}


def error_class(status: int) -> type[GraftworkAPIError]:
    """Return the class of the error for an HTTP status of 300 or more."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else GraftworkAPIError)
