"""Detection of private data in a text: personal data, secrets, and what a custom finder adds.

Names of people and postal addresses are not detected, which would take a model. A finder for them can be added, as
``module:function``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import phonenumbers

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.clean.findings import Finding, without_overlaps
from graftwork.training.data.clean.personal import find_personal
from graftwork.training.data.clean.secrets import find_secrets

Action = Literal["mask", "drop", "refuse", "keep"]
"""What is done with a finding: it is masked, its row is dropped, the data set is refused, or it is kept."""

CustomFinder = Callable[[str], Iterable[tuple[int, int, str]]]
"""Maps a text to its findings: start, end and kind, as in `Finding`."""


class Finder:
    """Finds private data in texts.

    Args:
        region: country of phone numbers without a country code (``US``, ``DE``); None finds only those with one.
        keep: values that are not private: whole values, or the ends of e-mail addresses, as in ``@acme.com``. Case is
            ignored.
        own: an additional finder of personal data, as ``module:function``; see `CustomFinder`.

    Raises:
        ConfigurationError: if the region is unknown, or the finder cannot be imported.
    """

    def __init__(self, *, region: str | None = "US", keep: Sequence[str] = (), own: str | None = None) -> None:
        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ConfigurationError(
                f"{region!r} is no region of phone numbers: use two letters, as in US, GB or DE.", param="region"
            )
        self._region = region
        self._keep = {value.casefold() for value in keep if not value.startswith("@")}
        self._keep_ends = tuple(value.casefold() for value in keep if value.startswith("@"))
        self._custom = None if own is None else _load(own)

    def secrets(self, text: str) -> list[Finding]:
        """Find keys, tokens and passwords; ordered by position, without overlaps."""
        return without_overlaps(self._private(text, find_secrets(text)))

    def personal(self, text: str) -> list[Finding]:
        """Find personal data; ordered by position, without overlaps."""
        found = list(find_personal(text, self._region))
        if self._custom is not None:
            found += [
                Finding(start, end, kind) for start, end, kind in self._custom(text) if 0 <= start < end <= len(text)
            ]
        return without_overlaps(self._private(text, found))

    def _private(self, text: str, found: Iterable[Finding]) -> Iterator[Finding]:
        """Remove findings whose value is in ``keep``."""
        for finding in found:
            value = text[finding.start : finding.end].casefold()
            if value not in self._keep and not (self._keep_ends and value.endswith(self._keep_ends)):
                yield finding


def _load(name: str) -> CustomFinder:
    module, _, function = name.partition(":")
    try:
        finder: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{name!r} is no finder ({error}): name a function that can be imported, as module:function.",
            param="finder",
        ) from error
    if not callable(finder):
        raise ConfigurationError(f"{name!r} is no function.", param="finder")
    typed: CustomFinder = finder
    return typed
