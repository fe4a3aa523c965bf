"""Sessions of the page at ``/``: a cookie in the place of a key, so that no script of the page ever holds one.

The cookie names the id of the key that was signed in with, and when the session ends, under a MAC that the key's secret
is part of: nothing is stored. What the key may do is looked up at each request, so the session ends when the key is
revoked, or when another secret took the place of the one that was signed in with.

A cookie comes along with whatever the browser sends, also when another site makes it do so (CSRF). So it counts only in
a request with a header that no form or link can send, of the same origin as the page.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.settings import secret

COOKIE: Final = "graftwork_session"
HEADER: Final = "x-graftwork-page"
"""The header that the page sends with every request; any value will do."""

MAX_SECONDS: Final = 12 * 3600
"""A session ends after a working day at the latest."""

_SECRET_NAME: Final = "page-sessions"
_TOKEN = re.compile(r"([A-Za-z0-9-]{1,64})\.([0-9]{1,12})\.([0-9a-f]{64})")


class Sessions:
    """Makes and reads the tokens of sessions.

    Args:
        signing_key: For the MAC: all processes of a server have the same.
    """

    def __init__(self, signing_key: bytes) -> None:
        self._signing_key = signing_key

    @classmethod
    def of(cls, database: Database) -> Sessions:
        """Those of one database."""
        return cls(secret(database, _SECRET_NAME))

    def token(self, key_id: str, sha256: str) -> str:
        """A token for the cookie.

        Args:
            key_id: The id of the key that was signed in with.
            sha256: Of that key's secret, as it is stored.
        """
        signed = f"{key_id}.{int(time.time()) + MAX_SECONDS}"
        return f"{signed}.{self._mac(signed, sha256)}"

    def key_id(self, connection: HTTPConnection, hashes: Callable[[str], Sequence[str]]) -> str | None:
        """The id of the key whose session a request belongs to; ``None`` without a session that counts.

        Args:
            connection: The request.
            hashes: Those of the secrets that open the key with an id now.
        """
        found = _TOKEN.fullmatch(connection.cookies.get(COOKIE, ""))
        if found is None or not is_from_page(connection):
            return None
        key_id, ends_at, mac = found.groups()
        signed = f"{key_id}.{ends_at}"
        known = [hmac.compare_digest(mac, self._mac(signed, sha256)) for sha256 in hashes(key_id)]
        return key_id if any(known) and time.time() < int(ends_at) else None

    def _mac(self, signed: str, sha256: str) -> str:
        return hmac.new(self._signing_key, f"{signed}.{sha256}".encode(), hashlib.sha256).hexdigest()


def is_from_page(connection: HTTPConnection) -> bool:
    """Whether a request was sent by this server's own page.

    Browsers say so themselves in ``Sec-Fetch-Site``, but not over plain HTTP from another machine. There the origin is
    compared, which comes with all requests that change something.
    """
    headers = connection.headers
    if HEADER not in headers:
        return False
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] == "same-origin"
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:  # no address, like "http://["
        return False
