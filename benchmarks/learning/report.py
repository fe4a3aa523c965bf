"""The results of the loop benchmark, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VersionResult:
    """The results of one model, and the cost of its training. None where something was not measured.

    Attributes:
        model: its name.
        learned: number of labelled rows that it has seen in all.
        right: number of right answers.
        asked: number of held-out queries.
        general_loss: loss on plain texts, in nats per token.
        train_seconds: time from the first step to the last, in seconds.
        job_seconds: time from the creation of the job to the version, in seconds.
        tokens: number of tokens processed in training.
        run_bytes: peak memory of the training run, in bytes.
        server_bytes: peak memory of the server, in bytes.
        corrections: number of corrections that it was trained on.
        thumbs_up: number of thumbs up that it was trained on.
        gates: what the gates refuse or doubt; empty if all passed.
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
        """Share of right answers, 0 to 1."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy."""
        return wilson(self.right, self.asked)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the accuracy and its interval, in JSON's types."""
        low, high = self.interval
        return {**asdict(self), "accuracy": self.accuracy, "low": low, "high": high}

    @classmethod
    def read(cls, path: Path) -> list[VersionResult]:
        """Read the steps of an earlier report from its JSON file."""
        names = {each.name for each in fields(cls)}
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return [cls(**{name: value for name, value in step.items() if name in names}) for step in steps]


@dataclass(kw_only=True)
class LoopReport:
    """The results so far. ``about`` describes the machine and the data."""

    about: Mapping[str, Any]
    steps: list[VersionResult] = field(default_factory=list)
    peers: list[VersionResult] = field(default_factory=list)

    def to_json(self) -> str:
        """Format the results as JSON."""
        found = {
            **self.about,
            "steps": [step.to_json() for step in self.steps],
            "peers": [peer.to_json() for peer in self.peers],
        }
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Format the results as a Markdown table."""
        head = ["", "labelled rows seen", "accuracy (95 %)", "general-text loss", "training", "job", "memory: run"]
        lines = [[*head, "server", "gates"], ["---"] * (len(head) + 2)]
        base_loss = self.steps[0].general_loss if self.steps else None
        lines += [_cells(each, base_loss) for each in (*self.steps, *self.peers)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the confidence interval of a share, 95 % by default (Wilson, 1927)."""
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
