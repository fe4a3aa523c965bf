"""Where something private stands in a text, and the text without it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Characters ``start`` to ``end`` of a text, and the kind of what stands there."""

    start: int
    end: int
    kind: str


def mask(text: str, findings: Iterable[Finding]) -> str:
    """The text with ``[EMAIL]`` and the like in place of findings, which must not overlap."""
    parts, position = [], 0
    for finding in sorted(findings):
        parts += [text[position : finding.start], f"[{finding.kind.upper()}]"]
        position = finding.end
    return "".join((*parts, text[position:]))


def without_overlaps(findings: Iterable[Finding]) -> list[Finding]:
    """Of findings that overlap the one that begins first, and of those the longest."""
    chosen: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: (finding.start, -finding.end, finding.kind)):
        if not chosen or finding.start >= chosen[-1].end:
            chosen.append(finding)
    return chosen
