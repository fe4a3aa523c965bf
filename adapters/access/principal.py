"""The caller of a request."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.access.keys import Role


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a request: the name that the history records, the role, and the key's id."""

    name: str
    role: Role
    key_id: str = "local"

    @property
    def owner(self) -> str | None:
        """The key whose files and batches alone this caller may see; ``None``: everybody's."""
        return self.key_id if self.role is Role.APP else None


LOCAL_PRINCIPAL = Principal("local", Role.ADMIN)
"""The caller of a server without keys."""
