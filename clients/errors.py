"""Every error the client raises, as one tree.

::

    GraftworkClientError
    ├── SettingsError                 the URL or the key given to the client cannot be used
    ├── InvalidArgumentError          an argument that no server could make sense of
    ├── LocalFileError                a folder or file on this machine cannot be sent
    ├── GraftworkConnectionError      no server there, or the connection broke
    │   └── GraftworkTimeoutError     it took longer than the client waits
    ├── GraftworkProtocolError        something answered, but not in Graftwork's words
    └── GraftworkAPIError             the server said no: status, type, param, code, request_id
        ├── BadRequestError       400
        ├── AuthenticationError   401
        ├── ForbiddenError        403
        ├── NotFoundError         404
        ├── ConflictError         409
        ├── TooLargeError         413
        ├── OverloadedError       429     ``retry_after`` seconds, when the server says so
        ├── ServerError           5xx
        │   └── UnavailableError  503     starting, draining, or the engine is coming back
        └── InterruptedAnswerError        a stream began and then failed; its HTTP status was 200

A status without a class of its own raises ``GraftworkAPIError`` itself. This file does not know httpx.
"""

from __future__ import annotations


class GraftworkClientError(Exception):
    """Base of all; ``str()`` of any of them is fit to be shown to a user."""


class SettingsError(GraftworkClientError, ValueError):
    """The URL or the key given to the client cannot be used."""


class InvalidArgumentError(GraftworkClientError, ValueError):
    """An argument that no server could make sense of; nothing was sent."""


class LocalFileError(GraftworkClientError, ValueError):
    """A folder or file on this machine cannot be sent as it is."""


class GraftworkConnectionError(GraftworkClientError):
    """No server there, or the connection broke. ``url`` is the server that was asked."""

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class GraftworkTimeoutError(GraftworkConnectionError):
    """It took longer than the client waits."""


class GraftworkProtocolError(GraftworkClientError):
    """Something answered, but not in Graftwork's words: another service, a proxy, or a much newer server."""


class GraftworkAPIError(GraftworkClientError):
    """The server said no. ``param`` names the field it is about, ``code`` is for programs."""

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
    """400: the body, a field, or an id inside the body is wrong."""


class AuthenticationError(GraftworkAPIError):
    """401: no key, or an unknown one."""


class ForbiddenError(GraftworkAPIError):
    """403: the key's role does not allow this."""


class NotFoundError(GraftworkAPIError):
    """404: an id in the path, or the model, names nothing."""


class ConflictError(GraftworkAPIError):
    """409: the state does not allow this now."""


class TooLargeError(GraftworkAPIError):
    """413: more bytes than the server takes."""


class OverloadedError(GraftworkAPIError):
    """429: the queue or a quota is full."""


class ServerError(GraftworkAPIError):
    """5xx: the server, or something before it, broke."""


class UnavailableError(ServerError):
    """503: starting, draining, or the engine is coming back."""


class InterruptedAnswerError(GraftworkAPIError):
    """A streamed answer began and then failed."""


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
    """The class that an HTTP status of 300 or more is raised as."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else GraftworkAPIError)
