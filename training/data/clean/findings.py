"""Findings of private data in a text, and how they are masked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A span of private data.

    Attributes:
        start: index of the first character.
        end: index after the last character.
        kind: ``email``, ``phone``, ``secret``, …
    """

    start: int
    end: int
    kind: str


def mask(text: str, findings: Iterable[Finding]) -> str:
    """Replace each finding by its kind, as in ``[EMAIL]``. Findings must not overlap; their order does not matter."""
    parts, position = [], 0
    for finding in sorted(findings):
        parts += [text[position : finding.start], f"[{finding.kind.upper()}]"]
        position = finding.end
    return "".join((*parts, text[position:]))


def without_overlaps(findings: Iterable[Finding]) -> list[Finding]:
    """Remove overlaps: the finding that begins first is kept, of several with the same beginning the longest.

    Returns:
        The remaining findings, ordered by position.
    """
    chosen: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: (finding.start, -finding.end, finding.kind)):
        if not chosen or finding.start >= chosen[-1].end:
            chosen.append(finding)
    return chosen
