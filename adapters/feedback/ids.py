"""Ids of answers, which carry everything that feedback needs: version, arm, probability, and whether it was asked for.

All of it is under a MAC.

An id is minted when a request is admitted and begins as those of the API that was asked do: ``chatcmpl-``, ``cmpl-``,
``resp_`` or ``msg_``; the rest is URL-safe. With the secret it can be read before any row is written, in any process
and after any crash; without the secret nobody can make one, and so forge which arm was rated.

Its content is signed, not hidden: the answer's headers have the same, and a user is in it as a keyed hash only.
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

IdKind = Literal["chatcmpl", "cmpl", "resp", "msg"]

MAX_CHARS: Final = 1024
"""Longer texts are refused unread: no id has as many characters."""

_PREFIXES: Final[dict[IdKind, str]] = {"chatcmpl": "chatcmpl-", "cmpl": "cmpl-", "resp": "resp_", "msg": "msg_"}
_FORMAT: Final = 1
_HEAD: Final = struct.Struct(">BBI8s")  # format, which of the fields below are there, seconds, nonce
_ADAPTER, _EXPERIMENT, _UNIT, _CHOICES, _ASKED = 1, 2, 4, 8, 16
_PROBABILITY: Final = struct.Struct(">d")
_UNIT_BYTES: Final = 8
_MAC_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedId:
    """The content of an id.

    Attributes:
        kind: Of the answer, and the id's prefix.
        adapter: The version that answered, ``intents@7``; ``None`` is the bare base.
        experiment: The experiment that chose the arm; with arm and probability, or none of them.
        arm: The arm that answered.
        probability: Of that arm when it was assigned, above 0 to 1.
        unit: As ``InteractionIds.unit`` makes it; ``None`` if the request named nobody.
        at: When the request was admitted, Unix time in seconds.
        nonce: 16 random hexadecimal digits.
        choices: How many choices the answer has; ``None``: the id is of version 0.1.0, which did not say.
        asked: Whether a random draw marked the answer, so that its user is asked for feedback.
    """

    kind: IdKind
    adapter: str | None
    experiment: str | None
    arm: str | None
    probability: float | None
    unit: str | None
    at: int
    nonce: str
    choices: int | None = None
    asked: bool = False


class InteractionIds:
    """Mints and reads ids under one secret of at least 16 bytes, which ``adapters.storage.settings`` stores.

    Raises:
        ValueError: The secret is shorter.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError(f"the secret has {len(secret)} bytes: at least 16 are needed")
        # One key per purpose, so that a value made for one is invalid for the other.
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
        choices: int | None = None,
        asked: bool = False,
    ) -> str:
        """Make a new id. The arguments are the fields of ``ParsedId``; ``at`` is now unless given.

        Raises:
            ValueError: The fields contradict each other, or a name or the number of choices needs more than a byte.
        """
        if len({experiment is None, arm is None, probability is None}) > 1:
            raise ValueError("experiment, arm and probability belong together")
        if probability is not None and not 0 < probability <= 1:
            raise ValueError(f"an arm that answered cannot have had probability {probability}")
        at = int(time.time()) if at is None else at
        flags = _ADAPTER * (adapter is not None) | _EXPERIMENT * (experiment is not None) | _UNIT * (unit is not None)
        flags |= _CHOICES * (choices is not None) | _ASKED * asked
        payload = _HEAD.pack(_FORMAT, flags, at, secrets.token_bytes(8))
        if adapter is not None:
            payload += _packed(adapter)
        if experiment is not None and arm is not None and probability is not None:
            payload += _packed(experiment) + _packed(arm) + _PROBABILITY.pack(probability)
        if unit is not None:
            payload += _unit_bytes(unit)
        if choices is not None:
            payload += bytes([choices])
        signed = payload + self._mac(kind, payload)
        return f"{_PREFIXES[kind]}{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"

    def read(self, id: str, *, param: str = "interaction_id") -> ParsedId:
        """The content of an id.

        Raises:
            InvalidRequest: It is no id of this server; ``param`` names the field.
        """
        known = _PREFIXES if len(id) <= MAX_CHARS else ()
        kind = next((kind for kind in known if id.startswith(_PREFIXES[kind])), None)
        encoded = "" if kind is None else id.removeprefix(_PREFIXES[kind])
        try:
            signed = base64.b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            signed = b""
        payload, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
        genuine = kind is not None and hmac.compare_digest(mac, self._mac(kind, payload))
        # The last base64 digit has unused bits: with others there, the same bytes would have a second id.
        canonical = base64.urlsafe_b64encode(signed).rstrip(b"=").decode() == encoded
        if kind is not None and genuine and canonical and payload[:1] == bytes([_FORMAT]):
            return _unpacked(kind, payload)
        raise self.unknown(id, param)

    def unknown(self, id: str, param: str) -> InvalidRequest:
        """The error about an id that is none of this server's, or of an answer that the caller may not see."""
        return InvalidRequest(
            f"{names.quoted(id)} is no id of an answer of this server: send the 'id' of the answer as it came, "
            "the whole of it",
            param=param,
            code="invalid_interaction_id",
        )

    def unit(self, *, user: str | None = None, session: str | None = None) -> str | None:
        """The unit of a user, or else of a session; ``None`` without either.

        It is 16 hexadecimal digits, a keyed hash: the same name always gives the same unit, and only this server can
        compute it.
        """
        if user is not None:
            named = b"user:" + user.encode("utf-8", "surrogatepass")
        elif session is not None:
            named = b"session:" + session.encode("utf-8", "surrogatepass")
        else:
            return None
        return hashlib.blake2b(named, key=self._unit_key, digest_size=_UNIT_BYTES).hexdigest()

    def episode(self, name: str, *, key_id: str) -> str:
        """An episode, as a keyed hash like that of a unit. Two keys' episodes of the same name are two."""
        named = b"episode:" + key_id.encode() + b"\0" + name.encode("utf-8", "surrogatepass")
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
    """The content of a payload whose MAC was right."""
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
    choices = take(1)[0] if flags & _CHOICES else None
    return ParsedId(
        kind=kind,
        adapter=adapter,
        experiment=experiment,
        arm=arm,
        probability=probability,
        unit=unit,
        at=at,
        nonce=nonce.hex(),
        choices=choices,
        asked=bool(flags & _ASKED),
    )
