"""The card of a version: how it came about, as the registry's metadata and as the README of its PEFT folder; and the
base digest written into its config.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from graftwork.adapters.learning.methods import METHOD_TRAITS
from graftwork.training.config import TrainConfig
from graftwork.training.run.progress import RunMetrics, SearchTrial
from graftwork.version import __version__

CONFIG_FILE = "adapter_config.json"


CARD_FILE = "README.md"

_NO_ADAPTER: Final = (
    "It is a model of its own and no adapter: it takes a base's memory and cannot be swapped while serving. Serve it "
    "with `graftwork serve --base FOLDER`."
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """How a version came about."""

    name: str
    base_id: str
    base_digest: str
    parent: int | None
    """The number of the version it continues; None for one that began from the base."""
    data: str
    """The file's name, without its folder."""
    data_digest: str
    num_rows: int
    """Sequences trained on, replayed ones among them."""
    num_validation_rows: int
    num_bad_rows: int
    """Rows of the file that could not be used."""
    config: TrainConfig
    metrics: RunMetrics
    trained_at: datetime
    parent_name: str | None = None
    """Whose version the parent is."""
    num_replayed: int = 0
    """Sequences of older rounds."""
    num_augmented: int = 0
    """Sequences that ask a question in other words, which the base wrote."""
    reason: str = ""
    """Why this method, if it was chosen by itself."""
    trials: tuple[SearchTrial, ...] = ()
    """Of a search: all of them; this version is the best one."""

    @property
    def continues(self) -> str | None:
        """``intents@6``."""
        return None if self.parent is None else f"{self.parent_name or self.name}@{self.parent}"

    def to_json(self) -> dict[str, Any]:
        """What the registry keeps as the version's metadata; the name, parent and digests it keeps itself."""
        return {
            "method": self.config.method,
            **({"reason": self.reason} if self.reason else {}),
            "continues": self.continues,
            "data": self.data,
            "rows": {
                "train": self.num_rows,
                "replayed": self.num_replayed,
                "augmented": self.num_augmented,
                "validation": self.num_validation_rows,
                "left_out": self.num_bad_rows,
            },
            "config": self.config.to_json(),
            "metrics": self.metrics.to_json(),
            **({"search": [trial.to_json() for trial in self.trials]} if self.trials else {}),
            "trained_at": self.trained_at.isoformat(timespec="seconds"),
            "graftwork": __version__,
        }

    def markdown(self) -> str:
        """A model card with the front matter that the hub and PEFT know."""
        full = self.config.variant == "full"
        library = "transformers" if full else "peft"
        front = [f"base_model: {self.base_id}", f"library_name: {library}", "pipeline_tag: text-generation"]
        facts = {
            "base": f"`{self.base_id}`",
            "base digest": f"`{self.base_digest}`",
            "parent": f"`{self.continues}`" if self.parent else "none: trained from the base",
            "data": f"`{self.data}`",
            "data digest": f"`{self.data_digest}`",
            "rows": f"{self.num_rows} trained on ({self.num_replayed} of them of older rounds, "
            f"{self.num_augmented} in other words by the base), "
            f"{self.num_validation_rows} held out for validation, "
            f"{self.num_bad_rows} left out as unusable",
            "trained at": self.trained_at.isoformat(timespec="seconds"),
        }
        return "\n".join(
            [
                *("---", *front, f"tags: [{'full' if full else 'lora'}, graftwork]", "---", ""),
                *(f"# {self.name}", ""),
                f"{'All weights of' if full else 'A LoRA adapter for'} `{self.base_id}`, trained with Graftwork "
                f"{__version__} ({METHOD_TRAITS[self.config.method].full_name}).",
                *(("", _NO_ADAPTER) if full else ()),
                *("", *_table("fact", "value", facts)),
                *("", "## Metrics", "", "Losses are in nats per learned token.", ""),
                *_table("metric", "value", self.metrics.to_json()),
                *_search(self.trials),
                *("", "## Configuration", "", *_table("field", "value", self.config.to_json()), ""),
            ]
        )


def _table(left: str, right: str, rows: dict[str, Any]) -> list[str]:
    cells = [f"| {name} | {'–' if value is None else value} |" for name, value in rows.items()]
    return [f"| {left} | {right} |", "| --- | --- |", *cells]


def _search(trials: Sequence[SearchTrial]) -> list[str]:
    if not trials:
        return []
    rows = [
        f"| {trial.number}{' (this version)' if trial.best else ''} | {trial.learning_rate:.4g} | {trial.rank} "
        f"| {trial.epochs:g} | {'–' if trial.loss is None else f'{trial.loss:.4f}'} | {trial.outcome} |"
        for trial in trials
    ]
    head = ["| trial | learning rate | rank | epochs | validation loss | |", "| --- | --- | --- | --- | --- | --- |"]
    return ["", "## Search", "", "Chosen by the loss on the held-out rows.", "", *head, *rows]


def seal(folder: Path, card: Card) -> None:
    """Write into a PEFT folder which base it belongs to, and its card; into a whole model's, the card."""
    (folder / CARD_FILE).write_text(card.markdown(), encoding="utf-8")
    if card.config.variant == "full":
        return
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["graftwork"] = {"base_digest": card.base_digest}
    # PEFT writes a set in whatever order it has today; the same run must end in the same bytes.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
