"""Whether the version that a job ended with passed its evaluation gates, read from the version's metadata."""

from __future__ import annotations

from graftwork.adapters.registry import Registry, Version


def version_by_id(registry: Registry, id: str) -> Version:
    """The version that a job ended with, by its id ``name@n``."""
    name, _, number = id.partition("@")
    return registry.version(name, int(number))


def gate_result(version: Version) -> tuple[bool | None, list[str]]:
    """Whether it passed its gates, None when it was never held against any, and the reasons if it did not."""
    gates = version.metadata.get("gates")
    if not isinstance(gates, dict):
        return None, []
    return bool(gates.get("passed")), [str(reason) for reason in gates.get("refusals") or ()]
