"""The caller of a request."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.scope import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a request: the name that the history records, the role, the key's id, and the key's scope."""

    name: str
    role: Role
    key_id: str = "local"
    scope: Scope = None

    @property
    def owner(self) -> str | None:
        """The key whose files and batches alone this caller may see; ``None``: everybody's."""
        return self.key_id if self.role is Role.APP or self.scope is not None else None


LOCAL_PRINCIPAL = Principal("local", Role.ADMIN)
"""The caller of a server without keys."""
