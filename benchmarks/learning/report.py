"""What was measured of each version, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VersionResult:
    """One model on the held-out queries, and what it took to make it; None where there is nothing to say.

    Attributes:
        learned: rows with their labels that it has seen in all, in whatever way they came.
        general_loss: nats a token on plain texts.
        train_seconds: from the first step to the last; job_seconds: from the request to the version.
        run_bytes, server_bytes: memory at the peak.
        gates: why the gates refused it; empty if they did not.
    """

    model: str
    learned: int
    right: int
    asked: int
    general_loss: float | None = None
    train_seconds: float | None = None
    job_seconds: float | None = None
    tokens: int | None = None
    run_bytes: int | None = None
    server_bytes: int | None = None
    corrections: int = 0
    thumbs_up: int = 0
    gates: tuple[str, ...] | None = None

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.asked)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**asdict(self), "accuracy": self.accuracy, "low": low, "high": high}

    @classmethod
    def read(cls, path: Path) -> list[VersionResult]:
        """The steps of a run that wrote them there."""
        names = {each.name for each in fields(cls)}
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return [cls(**{name: value for name, value in step.items() if name in names}) for step in steps]


@dataclass(kw_only=True)
class LoopReport:
    """What is known so far; ``about`` says where and of what."""

    about: Mapping[str, Any]
    steps: list[VersionResult] = field(default_factory=list)
    peers: list[VersionResult] = field(default_factory=list)

    def to_json(self) -> str:
        found = {
            **self.about,
            "steps": [step.to_json() for step in self.steps],
            "peers": [peer.to_json() for peer in self.peers],
        }
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        head = ["", "labelled rows seen", "accuracy (95 %)", "general-text loss", "training", "job", "memory: run"]
        lines = [[*head, "server", "gates"], ["---"] * (len(head) + 2)]
        base_loss = self.steps[0].general_loss if self.steps else None
        lines += [_cells(each, base_loss) for each in (*self.steps, *self.peers)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, spread = right / asked, z * z / asked
    centre = (share + spread / 2) / (1 + spread)
    radius = z * math.sqrt(share * (1 - share) / asked + spread / (4 * asked)) / (1 + spread)
    return max(centre - radius, 0.0), min(centre + radius, 1.0)


# --- the command ------------------------------------------------------------------------------------------------------


def _cells(each: VersionResult, base_loss: float | None) -> list[str]:
    low, high = each.interval
    loss = "–"
    if each.general_loss is not None and base_loss:
        loss = f"{each.general_loss:.3f} ({100 * (each.general_loss / base_loss - 1):+.1f} %)"
    return [
        each.model,
        f"{each.learned:,}",
        f"{each.accuracy:.1%} ({low:.1%} to {high:.1%})",
        loss,
        _or_dash(each.train_seconds, "{:.0f} s"),
        _or_dash(each.job_seconds, "{:.0f} s"),
        _or_dash(each.run_bytes and each.run_bytes / 1e9, "{:.1f} GB"),
        _or_dash(each.server_bytes and each.server_bytes / 1e9, "{:.1f} GB"),
        "–" if each.gates is None else "; ".join(each.gates) or "passed",
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
