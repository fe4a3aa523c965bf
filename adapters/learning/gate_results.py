"""Whether the version that a job made passed its evaluation gates, read from the version's metadata."""

from __future__ import annotations

from graftwork.adapters.registry import Registry, Version


def version_by_id(registry: Registry, id: str) -> Version:
    """The version with the id ``name@n``.

    Raises:
        NotFound: It does not exist.
    """
    name, _, number = id.partition("@")
    return registry.version(name, int(number))


def gate_result(version: Version) -> tuple[bool | None, list[str]]:
    """Whether a version passed its gates, and the reasons if it did not.

    ``None``: it was not evaluated against gates.
    """
    gates = version.metadata.get("gates")
    if not isinstance(gates, dict):
        return None, []
    return bool(gates.get("passed")), [str(reason) for reason in gates.get("refusals") or ()]
