"""What the evaluation gates said of the version that a job made, read from the version's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftwork.adapters.registry import Registry, Version

Outcome = Literal["pass", "refuse", "inconclusive"]
"""``inconclusive``: the held-out rows cannot say; then users have to, in an experiment."""


@dataclass(frozen=True, kw_only=True)
class GateSummary:
    """What the gates said of a version.

    Attributes:
        outcome: the outcome of all gates.
        refusals: why it was refused.
        doubts: why they could not say.
    """

    outcome: Outcome
    refusals: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> GateSummary | None:
        """What the gates said of a version with this metadata; None if it was not evaluated against gates."""
        gates = metadata.get("gates")
        if not isinstance(gates, Mapping):
            return None
        refusals, doubts = (tuple(map(str, gates.get(name) or ())) for name in ("refusals", "doubts"))
        outcome: Outcome = "pass" if gates.get("passed") else "refuse"  # all that versions of 0.1.0 say
        if gates.get("outcome") == "inconclusive":
            outcome = "inconclusive"
        return cls(outcome=outcome, refusals=refusals, doubts=doubts)

    def __str__(self) -> str:
        match self.outcome:
            case "pass":
                return "gates passed"
            case "refuse":
                return f"gates refused it: {'; '.join(self.refusals)}"
            case "inconclusive":
                return f"gates cannot say, an experiment can: {'; '.join(self.doubts)}"


def version_by_id(registry: Registry, id: str) -> Version:
    """The version with the id ``name@n``.

    Raises:
        NotFound: It does not exist.
    """
    name, _, number = id.partition("@")
    return registry.version(name, int(number))
