"""Bearer keys: who may call the server, and in which role.

A key is ``gw_<id>_<secret>``. The id is public: lists and logs show it. The secret is shown once, and only a SHA-256 of
the whole key is stored. A slow password hash is not needed: it makes up for guessable passwords, while 256 random bits
cannot be guessed from any hash, and every request would pay for it.

What a role may do is decided by the routes, each of which requires one.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Named, Row, Table, Text, TypedColumns, insert, select, update

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.storage.cache import DatabaseCache
from graftwork.adapters.storage.database import Database, UtcDateTime, schema

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
    """A key without its secret."""

    id: str
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None = None


class _KeyColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    name: Named[str] = Column(Text)
    role: Named[str] = Column(Text)
    secret_sha256: Named[str] = Column(Text)
    created_at = Column(UtcDateTime, nullable=False)
    revoked_at = Column(UtcDateTime, nullable=True)


_keys = Table("keys", schema, _KeyColumns)


class Keys:
    """All keys of a database.

    Args:
        database: Where they are stored.
        admin_key: The first admin's key, from the server's settings; it is not stored.
    """

    def __init__(self, database: Database, *, admin_key: str | None = None) -> None:
        self._database = database
        self._admin_sha256 = _sha256(admin_key) if admin_key else None
        self._admin = Key(id="first-admin", name="first admin key", role=Role.ADMIN, created_at=datetime.now(UTC))
        # All of them, so that their holders are known while the database is away. Replaced as a whole.
        self._found: DatabaseCache[dict[str, tuple[str, Key]]] = DatabaseCache(
            database, "keys", {}, lambda old: self._all()
        )

    def create(self, name: str, role: Role | str) -> tuple[str, Key]:
        """Create a key.

        Args:
            name: For people: who or what uses it.
            role: What it may do.

        Returns:
            The key itself, to be shown once, and its record.

        Raises:
            InvalidRequest: The name is empty or too long, or there is no such role.
        """
        if not name.strip():
            raise InvalidRequest("a key needs a name that says who or what uses it", param="name")
        names.check_text(name, param="name", max_chars=100)
        role = role if isinstance(role, Role) else Role.parse(role)
        key = Key(id=secrets.token_hex(6), name=name, role=role, created_at=datetime.now(UTC))
        bearer = f"gw_{key.id}_{secrets.token_hex(32)}"
        with self._database.write() as connection:
            connection.execute(
                insert(_keys).values(
                    id=key.id,
                    name=key.name,
                    role=role.value,
                    secret_sha256=_sha256(bearer),
                    created_at=key.created_at,
                )
            )
        return bearer, key

    def list(self) -> tuple[Key, ...]:
        """All keys of the database, oldest first, also revoked ones."""
        with self._database.read() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.created_at, _keys.c.id)).all()
        return tuple(_key(row) for row in rows)

    def revoke(self, key_id: str) -> Key:
        """Revoke a key; all processes refuse it from now on. Revoking it twice changes nothing.

        Raises:
            NotFound: There is no such key.
        """
        this = _keys.c.id == key_id
        if _ID.fullmatch(key_id):
            with self._database.write() as connection:
                revoke = update(_keys).where(this, _keys.c.revoked_at.is_(None))
                connection.execute(revoke.values(revoked_at=datetime.now(UTC)))
                row = connection.execute(select(_keys).where(this)).one_or_none()
            if row is not None:
                return _key(row)
        raise NotFound(
            f"there is no key {names.quoted(key_id)}: give its id, the part after gw_, as the list of keys shows it",
            param="id",
            code="key_not_found",
        )

    def configured(self) -> bool:
        """Whether callers must have a key: there is a first admin key, or one was ever created.

        Revoked keys count: revoking the last one must not open the server to everybody.
        """
        if self._admin_sha256 is not None:
            return True
        return bool(self._found.get())

    def authenticate(self, bearer: str) -> Key | None:
        """The key with this secret, or ``None`` when it is unknown or revoked.

        A row is found by the key's public id; the hashes, and so the secret, are compared in constant time.
        """
        sha256 = _sha256(bearer)
        if self._admin_sha256 is not None and hmac.compare_digest(sha256, self._admin_sha256):
            return self._admin
        match = _KEY.fullmatch(bearer)
        found = self._find(match[1]) if match else None
        if found is None:
            return None
        secret_sha256, key = found
        return key if hmac.compare_digest(sha256, secret_sha256) and key.revoked_at is None else None

    def get(self, key_id: str) -> Key | None:
        """The key with this id, or ``None`` when it is unknown or revoked."""
        if key_id == self._admin.id:
            return self._admin if self._admin_sha256 is not None else None
        found = self._find(key_id)
        return None if found is None or found[1].revoked_at is not None else found[1]

    def _find(self, key_id: str) -> tuple[str, Key] | None:
        """The stored hash and the record, from memory; a key that another server has just created is looked up."""
        found = self._found.get()
        if key_id not in found:
            with self._database.read() as connection:
                row = connection.execute(select(_keys).where(_keys.c.id == key_id)).one_or_none()
            if row is None:
                # Not cached: anybody can make up ids.
                return None
            found[key_id] = (row.secret_sha256, _key(row))
        return found[key_id]

    def _all(self) -> dict[str, tuple[str, Key]]:
        with self._database.read() as connection:
            return {row.id: (row.secret_sha256, _key(row)) for row in connection.execute(select(_keys))}


def _sha256(text: str) -> str:
    # A header may hold anything: what cannot be UTF-8 matches no key, and need not raise either.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: Row[*tuple[Any, ...]]) -> Key:
    return Key(id=row.id, name=row.name, role=Role(row.role), created_at=row.created_at, revoked_at=row.revoked_at)
