"""Who a request comes from: a name for the history, a role and the key's id."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.access.keys import Role


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from: the name that the history records, the role, and the key's id."""

    name: str
    role: Role
    key_id: str = "local"


LOCAL_PRINCIPAL = Principal("local", Role.ADMIN)
"""Whoever calls an open server."""
