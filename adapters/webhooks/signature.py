"""The signature of a webhook's request, as https://www.standardwebhooks.com has it and OpenAI's clients verify it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import datetime
from typing import Final

PREFIX: Final = "whsec_"


def new_secret() -> str:
    """A new secret, from 32 random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, *, id: str, at: datetime, body: str) -> dict[str, str]:
    """The headers that sign a request.

    Args:
        secret: The webhook's.
        id: The event's; it is the same in every attempt.
        at: When the request is sent: receivers refuse old ones.
        body: The body's text.
    """
    timestamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix(PREFIX))
    digest = hmac.new(key, f"{id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
