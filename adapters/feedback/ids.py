"""The id of an answer, which is all that feedback needs: it carries version, arm and probability under a MAC.

An id is minted when a request is admitted and reads ``chatcmpl-…`` or ``cmpl-…``, as OpenAI's do; what follows is
URL-safe. Whoever has the secret can read it without any row having been written, in any process and after any crash,
and nobody else can make one: so nobody can forge which arm was rated.

What it carries is signed, not hidden: the answer's headers have the same, and a user is in it as a keyed hash only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import time
from dataclasses import dataclass
from typing import Final, Literal

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest

IdKind = Literal["chatcmpl", "cmpl"]

MAX_CHARS: Final = 1024
"""More than any id has: what is longer is refused unread."""

_KINDS: Final[dict[str, IdKind]] = {"chatcmpl": "chatcmpl", "cmpl": "cmpl"}
_FORMAT: Final = 1
_HEAD: Final = struct.Struct(">BBI8s")  # format, which of the fields below are there, seconds, nonce
_ADAPTER, _EXPERIMENT, _UNIT = 1, 2, 4
_PROBABILITY: Final = struct.Struct(">d")
_UNIT_BYTES: Final = 8
_MAC_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedId:
    """What an id says.

    Attributes:
        kind: of the answer, and the id's prefix.
        adapter: the version that answered, ``intents@7``; None is the bare base.
        experiment, arm, probability: which arm of which experiment answered, and how likely that was when it was
            assigned, above 0 to 1. All three or none.
        unit: the requester, as `InteractionIds.unit` makes it; None when nobody was named.
        at: when the request was admitted, in unix seconds.
        nonce: what tells it from all others, 16 hexadecimal digits.
    """

    kind: IdKind
    adapter: str | None
    experiment: str | None
    arm: str | None
    probability: float | None
    unit: str | None
    at: int
    nonce: str


class InteractionIds:
    """Mints and reads ids under one secret of at least 16 bytes; a server's is kept in `adapters.storage.settings`."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError(f"the secret has {len(secret)} bytes: at least 16 are needed")
        # One key a purpose, so that nothing made for the one can be passed off as the other.
        self._mac_key = hashlib.blake2b(b"interaction id", key=secret, digest_size=32).digest()
        self._unit_key = hashlib.blake2b(b"unit", key=secret, digest_size=32).digest()

    def mint(
        self,
        kind: IdKind,
        *,
        adapter: str | None,
        experiment: str | None = None,
        arm: str | None = None,
        probability: float | None = None,
        unit: str | None = None,
        at: int | None = None,
    ) -> str:
        """A new id. The fields are those of `ParsedId`; ``at`` is now unless it is given.

        ValueError for what no id can carry: that is the caller's mistake, not a user's.
        """
        if len({experiment is None, arm is None, probability is None}) > 1:
            raise ValueError("experiment, arm and probability belong together")
        if probability is not None and not 0 < probability <= 1:
            raise ValueError(f"an arm that answered cannot have had probability {probability}")
        at = int(time.time()) if at is None else at
        flags = _ADAPTER * (adapter is not None) | _EXPERIMENT * (experiment is not None) | _UNIT * (unit is not None)
        payload = _HEAD.pack(_FORMAT, flags, at, secrets.token_bytes(8))
        if adapter is not None:
            payload += _packed(adapter)
        if experiment is not None and arm is not None and probability is not None:
            payload += _packed(experiment) + _packed(arm) + _PROBABILITY.pack(probability)
        if unit is not None:
            payload += _unit_bytes(unit)
        signed = payload + self._mac(kind, payload)
        return f"{kind}-{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"

    def read(self, id: str, *, param: str = "interaction_id") -> ParsedId:
        """What an id of this server says. InvalidRequest, naming ``param``, for any other text."""
        prefix, _, encoded = id.partition("-") if len(id) <= MAX_CHARS else ("", "", "")
        kind = _KINDS.get(prefix)
        try:
            signed = base64.b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            signed = b""
        payload, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
        genuine = hmac.compare_digest(mac, self._mac(prefix, payload))
        # The last digit has bits to spare: an id with others there would be the same bytes under another name.
        canonical = base64.urlsafe_b64encode(signed).rstrip(b"=").decode() == encoded
        if kind is not None and genuine and canonical and payload[:1] == bytes([_FORMAT]):
            return _unpacked(kind, payload)
        raise InvalidRequest(
            f"{names.quoted(id)} is no id of an answer of this server: send the 'id' of the answer as it came, "
            "the whole of it",
            param=param,
            code="invalid_interaction_id",
        )

    def unit(self, *, user: str | None = None, session: str | None = None) -> str | None:
        """Who asked, as 16 hexadecimal digits that only this server can make of the name: the user if one is given,
        or else the session; None without either. The same name always gives the same unit."""
        if user is not None:
            named = b"user:" + user.encode("utf-8", "surrogatepass")
        elif session is not None:
            named = b"session:" + session.encode("utf-8", "surrogatepass")
        else:
            return None
        return hashlib.blake2b(named, key=self._unit_key, digest_size=_UNIT_BYTES).hexdigest()

    def _mac(self, kind: str, payload: bytes) -> bytes:
        return hashlib.blake2b(kind.encode() + b"-" + payload, key=self._mac_key, digest_size=_MAC_BYTES).digest()


def _packed(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= 255:
        raise ValueError(f"{text!r} has {len(data)} bytes: an id has room for names of 1 to 255")
    return bytes([len(data)]) + data


def _unit_bytes(unit: str) -> bytes:
    data = bytes.fromhex(unit)
    if len(data) != _UNIT_BYTES:
        raise ValueError(f"{unit!r} is no unit: use InteractionIds.unit")
    return data


def _unpacked(kind: IdKind, payload: bytes) -> ParsedId:
    """Its MAC was right: we wrote this, and it is whole."""
    _, flags, at, nonce = _HEAD.unpack_from(payload)
    place = _HEAD.size

    def take(num_bytes: int) -> bytes:
        nonlocal place
        place += num_bytes
        return payload[place - num_bytes : place]

    def text() -> str:
        return take(take(1)[0]).decode()

    adapter = text() if flags & _ADAPTER else None
    experiment, arm, probability = (
        (text(), text(), _PROBABILITY.unpack(take(_PROBABILITY.size))[0]) if flags & _EXPERIMENT else (None, None, None)
    )
    unit = take(_UNIT_BYTES).hex() if flags & _UNIT else None
    return ParsedId(
        kind=kind,
        adapter=adapter,
        experiment=experiment,
        arm=arm,
        probability=probability,
        unit=unit,
        at=at,
        nonce=nonce.hex(),
    )
