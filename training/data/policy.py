"""How a data set is made of its sources: every choice, its default, and why.

Built once, passed down, written into the data set's manifest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.clean.private import Action
from graftwork.training.data.splits import Shares

Conflicts = Literal["keep", "majority", "drop"]
"""What happens to one question with several answers: nothing; what most rows say stays, or none where there is no most;
none stays."""

FEW_BAD_ROWS: Final = 10
"""So many rows may be bad in any data set."""


@dataclass(frozen=True, kw_only=True)
class DataPolicy:
    """ConfigurationError, naming the field, for a value that cannot work."""

    repair: bool = True
    """Text that was decoded wrongly, and control characters, are put right."""

    personal: Action = "mask"
    """What becomes of e-mail addresses, phone numbers and the like in what users and the model wrote."""

    clean_system: bool = False
    """Whether the same becomes of those in system messages. By default they stay, since the operator sends a system
    message as it is when the adapter is asked; the report says in how many rows."""

    secrets: Action = "mask"
    """What becomes of keys and passwords, wherever they stand."""

    keep: tuple[str, ...] = ()
    """Values that are not private, such as the own support address; ``@acme.com`` for all addresses of a domain."""

    region: str | None = "US"
    """Where phone numbers without a country code are from; None finds only those with one."""

    finder: str | None = None
    """One more finder of personal data, as ``module:function``."""

    near: float | None = 0.8
    """Jaccard similarity from which two rows are the same; None compares nothing."""

    conflicts: Conflicts = "keep"

    shares: Shares = field(default_factory=Shares)
    """How many rows are held out, unless their source says."""

    max_bad: float = 0.1
    """Share of rows that may be unusable before the data set is refused; a few always may."""

    def __post_init__(self) -> None:
        for name in ("personal", "secrets"):
            self._require(getattr(self, name) in get_args(Action), name, "must be mask, drop, refuse or keep")
        self._require(self.conflicts in get_args(Conflicts), "conflicts", "must be keep, majority or drop")
        self._require(self.near is None or 0.3 <= self.near <= 1, "near", "is a similarity: at least 0.3 and at most 1")
        self._require(0 <= self.max_bad <= 1, "max_bad", "is a share of the rows: at least 0 and at most 1")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _require(self, ok: bool, field: str, expectation: str) -> None:
        if not ok:
            raise ConfigurationError(f"{field} {expectation}; it is {getattr(self, field)!r}.", param=field)
