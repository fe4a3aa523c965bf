"""The settings by which a data set is made from its sources, with their defaults.

A policy is built once, passed down unchanged, and written to the manifest of the data set.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.clean.private import Action
from graftwork.training.data.splits import Shares

Conflicts = Literal["keep", "majority", "drop"]
"""What happens to rows with the same question and different answers. ``keep``: all are kept. ``majority``: those with
the most frequent answer are kept, or none in a tie. ``drop``: none is kept."""

FEW_BAD_ROWS: Final = 10
"""Number of bad rows that every data set may have, whatever `DataPolicy.max_bad` is."""


@dataclass(frozen=True, kw_only=True)
class DataPolicy:
    """The settings by which a data set is made.

    Raises:
        ConfigurationError: if a value is out of bounds; ``param`` is the field.
    """

    repair: bool = True
    """Whether wrongly decoded text is repaired and control characters are removed."""

    personal: Action = "mask"
    """What is done with e-mail addresses, phone numbers and other personal data in the messages of users and the
    model."""

    clean_system: bool = False
    """Whether `personal` also applies to system messages. By default they are kept, since the operator sends the same
    system message with each request to the adapter; the report counts the rows concerned."""

    secrets: Action = "mask"
    """What is done with keys and passwords, in messages of any role."""

    keep: tuple[str, ...] = ()
    """Values that are not private, such as one's own support address; ``@acme.com`` for all addresses of a domain."""

    region: str | None = "US"
    """Country of phone numbers without a country code; None finds only those with one."""

    finder: str | None = None
    """An additional finder of personal data, as ``module:function``."""

    near: float | None = 0.8
    """Jaccard similarity, 0.3 to 1, from which two rows are near duplicates; None turns the comparison off."""

    conflicts: Conflicts = "keep"
    """What is done with rows that have the same question and different answers."""

    shares: Shares = field(default_factory=Shares)
    """Shares of the held-out splits, for sources that do not assign their rows themselves."""

    max_bad: float = 0.1
    """Share of unusable rows, 0 to 1, above which the data set is refused; `FEW_BAD_ROWS` are always allowed."""

    def __post_init__(self) -> None:
        for name in ("personal", "secrets"):
            self._require(getattr(self, name) in get_args(Action), name, "must be mask, drop, refuse or keep")
        self._require(self.conflicts in get_args(Conflicts), "conflicts", "must be keep, majority or drop")
        self._require(self.near is None or 0.3 <= self.near <= 1, "near", "is a similarity: at least 0.3 and at most 1")
        self._require(0 <= self.max_bad <= 1, "max_bad", "is a share of the rows: at least 0 and at most 1")

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, in JSON's types."""
        return dataclasses.asdict(self)

    def _require(self, ok: bool, field: str, expectation: str) -> None:
        if not ok:
            raise ConfigurationError(f"{field} {expectation}; it is {getattr(self, field)!r}.", param=field)
