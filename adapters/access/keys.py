"""Bearer keys: who may call the server, in which role, for which adapters, and how long.

A key is ``gw_<id>_<secret>``. The id is public: lists and logs show it. The secret is shown once, and only a SHA-256 of
the whole key is stored. A slow password hash is not needed: it makes up for guessable passwords, while 256 random bits
cannot be guessed from any hash, and every request would pay for it.

A key that is rotated gets a new secret; its id, its name and all else stay, and so does what was recorded about it. The
secret before stays valid for a while, so that clients can be changed one after the other.

What a role may do is decided by the routes, each of which requires one.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import JSON, Column, Connection, Named, Row, Table, Text, TypedColumns, insert, select, update

from graftwork.adapters import names
from graftwork.adapters.access import audit
from graftwork.adapters.access.limits import NO_LIMITS, Limits
from graftwork.adapters.access.scope import Scope
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.storage.cache import DatabaseCache
from graftwork.adapters.storage.database import Database, UtcDateTime, schema

FIRST_ADMIN: Final = "first admin key"
RESERVED_NAMES: Final = frozenset({FIRST_ADMIN, "first-admin", "local", "system", "trainer", "keeper"})
"""What histories call callers without a key of the database, and the server itself."""

MAX_NAME_CHARS: Final = 100
MAX_OVERLAP: Final = timedelta(days=30)
DEFAULT_OVERLAP: Final = timedelta(days=1)

_ID = re.compile(r"[0-9a-f]{12}")
_KEY = re.compile(rf"gw_({_ID.pattern})_[0-9a-f]{{64}}")


@functools.total_ordering
class Role(enum.Enum):
    """Roles in ascending order: APP, OPERATOR, ADMIN. Each may do what those below it may."""

    APP = "app"
    OPERATOR = "operator"
    ADMIN = "admin"

    def __lt__(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) < order.index(other)

    @classmethod
    def parse(cls, text: str) -> Role:
        """The role of that name.

        Raises:
            InvalidRequest: There is none.
        """
        try:
            return cls(text)
        except ValueError:
            raise InvalidRequest(
                f"{names.quoted(text)} is no role: use one of {', '.join(role.value for role in cls)}", param="role"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key without its secrets.

    Attributes:
        id: Its public part.
        name: For people: who or what uses it.
        role: What it may do.
        created_at: When it was made.
        expires_at: From when on it is refused; ``None``: never.
        scope: The adapters that it is for.
        limits: How much it may ask for.
        rotated_at: When it got the secret that it has.
        previous_until: Until when the secret before is valid.
        revoked_at: When it was revoked.
    """

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    scope: Scope = None
    limits: Limits = NO_LIMITS
    rotated_at: datetime | None = None
    previous_until: datetime | None = None
    revoked_at: datetime | None = None

    def valid(self, now: datetime) -> bool:
        """Whether it opens anything: it was not revoked and has not expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class _StoredKey:
    """A key with the hashes of its secrets."""

    key: Key
    sha256: str
    previous_sha256: str | None

    def hashes(self, now: datetime) -> tuple[str, ...]:
        """The hashes of the secrets that open the key now: none when it was revoked or has expired."""
        if not self.key.valid(now):
            return ()
        overlaps = self.key.previous_until is not None and now < self.key.previous_until
        return (self.sha256, self.previous_sha256) if overlaps and self.previous_sha256 else (self.sha256,)


class _KeyColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    name: Named[str] = Column(Text)
    role: Named[str] = Column(Text)
    secret_sha256: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    revoked_at = Column(UtcDateTime, nullable=True)
    expires_at = Column(UtcDateTime, nullable=True)
    adapters = Column(JSON(none_as_null=True), nullable=True)
    limits = Column(JSON(none_as_null=True), nullable=True)
    rotated_at = Column(UtcDateTime, nullable=True)
    previous_sha256: Named[str | None] = Column(Text)
    previous_until = Column(UtcDateTime, nullable=True)


_keys = Table("keys", schema, _KeyColumns)


class Keys:
    """All keys of a database.

    Args:
        database: Where they are stored.
        admin_key: The first admin's key, from the server's settings; it is not stored.
        now: The time.
    """

    def __init__(
        self,
        database: Database,
        *,
        admin_key: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._now = now
        self._admin_sha256 = sha256_of(admin_key) if admin_key else None
        self._admin = Key(id="first-admin", name=FIRST_ADMIN, role=Role.ADMIN, created_at=now())
        # All of them, so that their holders are known while the database is away. Replaced as a whole.
        self._found: DatabaseCache[dict[str, _StoredKey]] = DatabaseCache(database, "keys", {}, lambda old: self._all())

    # -- changes ---------------------------------------------------------------------------------------------------
    def create(
        self,
        name: str,
        role: Role | str,
        *,
        expires_at: datetime | None = None,
        scope: Scope = None,
        limits: Limits = NO_LIMITS,
    ) -> tuple[str, Key]:
        """Create a key.

        Args:
            name: For people: who or what uses it. No other key that is not revoked has it.
            role: What it may do.
            expires_at: From when on it is refused; ``None``: never.
            scope: The adapters that it is for.
            limits: How much it may ask for.

        Returns:
            The key itself, to be shown once, and its record.

        Raises:
            InvalidRequest: The name is empty, too long or reserved, there is no such role, the time is past, or an
                admin's key has a scope.
            Conflict: Another key has the name.
        """
        role = role if isinstance(role, Role) else Role.parse(role)
        now = self._now()
        key = Key(
            id=secrets.token_hex(6),
            name=name,
            role=role,
            created_at=now,
            expires_at=expires_at,
            scope=scope,
            limits=limits,
        )
        _check(key, now)
        bearer = _new_bearer(key.id)
        with self._database.write() as connection:
            _check_name(connection, key)
            connection.execute(insert(_keys).values(secret_sha256=sha256_of(bearer), **_values(key)))
            audit.made(key.id)
        return bearer, key

    def change(self, key_id: str, changes: Mapping[str, Any]) -> Key:
        """Change a key's ``name``, ``expires_at``, ``scope`` or ``limits``; what is not among the changes stays.

        Raises:
            NotFound: There is no such key.
            InvalidRequest: As for ``create``.
            Conflict: Another key has the name, or this one was revoked.
        """
        with self._database.write() as connection:
            before = _get(connection, key_id)
            key = replace(before, **changes)
            _check(key, self._now() if key.expires_at != before.expires_at else None)
            if key.name != before.name:
                _check_name(connection, key)
            connection.execute(update(_keys).where(_keys.c.id == key.id).values(_values(key)))
        return key

    def rotate(self, key_id: str, *, overlap: timedelta = DEFAULT_OVERLAP) -> tuple[str, Key]:
        """Give a key a new secret.

        Args:
            key_id: The key.
            overlap: How long the secret that it has stays valid beside the new one. One from an earlier rotation is not
                valid any more.

        Returns:
            The new key itself, to be shown once, and its record.

        Raises:
            NotFound: There is no such key.
            InvalidRequest: ``overlap`` is negative or too long.
            Conflict: It was revoked.
        """
        if not timedelta(0) <= overlap <= MAX_OVERLAP:
            raise InvalidRequest(
                f"overlap_seconds is {overlap.total_seconds():g}: use 0 (the old secret ends at once) to "
                f"{MAX_OVERLAP.total_seconds():g}",
                param="overlap_seconds",
            )
        now = self._now()
        with self._database.write() as connection:
            key = replace(_get(connection, key_id), rotated_at=now, previous_until=now + overlap if overlap else None)
            bearer = _new_bearer(key.id)
            secrets_now = {
                "secret_sha256": sha256_of(bearer),
                "previous_sha256": _keys.c.secret_sha256 if overlap else None,
            }
            connection.execute(update(_keys).where(_keys.c.id == key.id).values({**_values(key), **secrets_now}))
        return bearer, key

    def revoke(self, key_id: str) -> Key:
        """Revoke a key; all processes refuse it from now on. Revoking it twice changes nothing.

        Raises:
            NotFound: There is no such key.
        """
        with self._database.write() as connection:
            key = _get(connection, key_id, revoked=True)
            if key.revoked_at is None:
                key = replace(key, revoked_at=self._now())
                connection.execute(update(_keys).where(_keys.c.id == key.id).values(revoked_at=key.revoked_at))
        return key

    # -- reading ---------------------------------------------------------------------------------------------------
    def list(self) -> tuple[Key, ...]:
        """All keys of the database, oldest first, also revoked and expired ones."""
        with self._database.read() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.created_at, _keys.c.id)).all()
        return tuple(_key(row) for row in rows)

    def record(self, key_id: str) -> Key:
        """A key of the database, also a revoked or expired one.

        Raises:
            NotFound: There is none.
        """
        with self._database.read() as connection:
            return _get(connection, key_id, revoked=True)

    def read(self) -> None:
        """Read all keys into memory: with a first admin key nothing else does before one is asked for."""
        self._found.get()

    def configured(self) -> bool:
        """Whether callers must have a key: there is a first admin key, or one was ever created.

        Revoked keys count: revoking the last one must not open the server to everybody.
        """
        if self._admin_sha256 is not None:
            return True
        return bool(self._found.get())

    def authenticate(self, bearer: str) -> Key | None:
        """The key with this secret, or ``None`` when it is unknown, revoked or expired.

        A row is found by the key's public id; the hashes, and so the secret, are compared in constant time.
        """
        sha256 = sha256_of(bearer)
        if self._admin_sha256 is not None and hmac.compare_digest(sha256, self._admin_sha256):
            return self._admin
        match = _KEY.fullmatch(bearer)
        found = self._find(match[1]) if match else None
        if found is None:
            return None
        opened = [hmac.compare_digest(sha256, valid) for valid in found.hashes(self._now())]
        return found.key if any(opened) else None

    def get(self, key_id: str) -> Key | None:
        """The key with this id, or ``None`` when it is unknown, revoked or expired."""
        if key_id == self._admin.id:
            return self._admin if self._admin_sha256 is not None else None
        found = self._find(key_id)
        return found.key if found is not None and found.key.valid(self._now()) else None

    def hashes(self, key_id: str) -> tuple[str, ...]:
        """The hashes of the secrets with which a key is authenticated now; none when it is unknown."""
        if key_id == self._admin.id:
            return (self._admin_sha256,) if self._admin_sha256 is not None else ()
        found = self._find(key_id)
        return () if found is None else found.hashes(self._now())

    def limits_of(self, key_id: str) -> Limits:
        """The limits of a key; there are none for callers without a key of the database."""
        found = self._find(key_id) if _ID.fullmatch(key_id) else None
        return NO_LIMITS if found is None else found.key.limits

    def _find(self, key_id: str) -> _StoredKey | None:
        """The stored hashes and the record, from memory: what a stranger makes up costs no query."""
        return self._found.get().get(key_id)

    def _all(self) -> dict[str, _StoredKey]:
        with self._database.read() as connection:
            return {row.id: _stored(row) for row in connection.execute(select(_keys))}


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(key: Key, now: datetime | None) -> None:
    """Check what a new or changed key says of itself; ``now``: its end is new and must lie in the future."""
    if not key.name.strip():
        raise InvalidRequest("a key needs a name that says who or what uses it", param="name")
    names.check_text(key.name, param="name", max_chars=MAX_NAME_CHARS)
    if now is not None and key.expires_at is not None and key.expires_at <= now:
        raise InvalidRequest(
            "expires_at has passed: give a later moment in unix seconds, or revoke the key to end it now",
            param="expires_at",
        )
    if key.role is Role.ADMIN and key.scope is not None:
        raise InvalidRequest(
            "an admin's key cannot be limited to adapters, since it makes keys: leave adapters out, or choose the role "
            "operator or app",
            param="adapters",
        )


def _check_name(connection: Connection, key: Key) -> None:
    """Check that no other key has the name, or one that looks the same. Names of old databases may be double."""
    name = _compared(key.name)
    if name in RESERVED_NAMES:
        raise InvalidRequest(
            f"{names.quoted(key.name)} cannot be a key's name: histories call somebody else so", param="name"
        )
    others = select(_keys.c.name).where(_keys.c.revoked_at.is_(None), _keys.c.id != key.id)
    if any(_compared(other) == name for other in connection.scalars(others)):
        raise Conflict(
            f"there is a key called {names.quoted(key.name)} already: choose another name, or rotate that key to give "
            "it a new secret",
            param="name",
            code="name_taken",
        )


def _compared(name: str) -> str:
    return " ".join(name.casefold().split())


# --- rows -------------------------------------------------------------------------------------------------------------


def _get(connection: Connection, key_id: str, *, revoked: bool = False) -> Key:
    """A key by its id; one that is revoked only if ``revoked``."""
    known = _ID.fullmatch(key_id) is not None
    row = connection.execute(select(_keys).where(_keys.c.id == key_id)).one_or_none() if known else None
    if row is None:
        raise NotFound(
            f"there is no key {names.quoted(key_id)}: give its id, the part after gw_, as the list of keys shows it",
            param="id",
            code="key_not_found",
        )
    if row.revoked_at is not None and not revoked:
        raise Conflict(f"the key {key_id} was revoked, which is for good: make a new one", code="key_revoked")
    return _key(row)


def _new_bearer(key_id: str) -> str:
    return f"gw_{key_id}_{secrets.token_hex(32)}"


def sha256_of(text: str) -> str:
    """What is stored of a key, in hexadecimal digits."""
    # A header may hold anything: what cannot be UTF-8 matches no key, and need not raise either.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _values(key: Key) -> dict[str, Any]:
    """The columns of a key, but for its secrets."""
    values = {name: getattr(key, name) for name in _PLAIN_FIELDS}
    scope = None if key.scope is None else sorted(key.scope)
    return {**values, "role": key.role.value, "adapters": scope, "limits": key.limits.to_json() or None}


def _stored(row: Row[*tuple[Any, ...]]) -> _StoredKey:
    return _StoredKey(_key(row), row.secret_sha256, row.previous_sha256)


def _key(row: Row[*tuple[Any, ...]]) -> Key:
    return Key(
        **{name: getattr(row, name) for name in _PLAIN_FIELDS},
        role=Role(row.role),
        scope=None if row.adapters is None else frozenset(row.adapters),
        limits=Limits.from_json(row.limits),
    )


_PLAIN_FIELDS = [name for name in Key.__dataclass_fields__ if name not in ("role", "scope", "limits")]
