"""The finder of all that is private in a text: personal data, secrets, and what a custom finder adds.

Names of people and postal addresses are not found: that takes a model. A finder of them can be added, as
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
"""What a finding leads to: it is masked, its row is left out, the data set is refused, or nothing happens."""

CustomFinder = Callable[[str], Iterable[tuple[int, int, str]]]
"""A text → where findings begin and end in it, and their kinds."""


class Finder:
    """Finds what is private in a text.

    Args:
        region: where phone numbers without a country code are from (``US``, ``DE``); None finds only those with one.
        keep: values that are not private: whole ones, or the ends of e-mail addresses, as in ``@acme.com``.
        own: one more finder of personal data, as ``module:function``.

    Raises:
        ConfigurationError: for a region or a finder that is not there.
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
        """Keys, tokens and passwords, in order, none overlapping."""
        return without_overlaps(self._private(text, find_secrets(text)))

    def personal(self, text: str) -> list[Finding]:
        """Personal data, in order, none overlapping."""
        found = list(find_personal(text, self._region))
        if self._custom is not None:
            found += [
                Finding(start, end, kind) for start, end, kind in self._custom(text) if 0 <= start < end <= len(text)
            ]
        return without_overlaps(self._private(text, found))

    def _private(self, text: str, found: Iterable[Finding]) -> Iterator[Finding]:
        """Without values that are to be kept."""
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
