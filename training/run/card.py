"""The model card of a version: its provenance and metrics, as metadata of the registry and as README of its folder."""

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

_NO_ANSWERS: Final = (
    "It has a scalar head and scores answers, at their last token, instead of giving them. Load the base with "
    "`AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)`, and this folder with PEFT."
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """The provenance and metrics of a version."""

    name: str
    """Name of the adapter."""
    base_id: str
    base_digest: str
    parent: int | None
    """Number of the version that was trained further; None for a fresh adapter."""
    data: str
    """Name of the data: a file name without its folder, or the id of a data set."""
    data_digest: str
    num_rows: int
    """Number of training sequences, including replayed and augmented ones."""
    num_validation_rows: int
    num_bad_rows: int
    """Number of rows of the data that could not be used."""
    config: TrainConfig
    metrics: RunMetrics
    trained_at: datetime
    parent_name: str | None = None
    """Name of the parent's adapter; `name` if None."""
    num_replayed: int = 0
    """Number of training sequences from earlier rounds."""
    num_augmented: int = 0
    """Number of training sequences with paraphrases by the base."""
    reason: str = ""
    """Why the method was chosen, if it was chosen automatically."""
    trials: tuple[SearchTrial, ...] = ()
    """All trials, if the version is the best one of a search."""

    @property
    def continues(self) -> str | None:
        """The id of the parent: ``intents@6``; None for a fresh adapter."""
        return None if self.parent is None else f"{self.parent_name or self.name}@{self.parent}"

    def to_json(self) -> dict[str, Any]:
        """Return the version's metadata for the registry, which stores name, parent and digests separately."""
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
        """Render the model card in Markdown, with the front matter of the Hugging Face Hub."""
        full = self.config.variant == "full"
        library = "transformers" if full else "peft"
        scores = self.config.method == "reward_model"
        pipeline = "text-classification" if scores else "text-generation"
        front = [f"base_model: {self.base_id}", f"library_name: {library}", f"pipeline_tag: {pipeline}"]
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
                *(("", _NO_ANSWERS) if scores else ()),
                *("", *_table("fact", "value", facts)),
                *("", "## Metrics", "", f"Losses are in nats per {'pair' if scores else 'learned token'}.", ""),
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
    """Write the model card into a folder, and the base's digest into ``adapter_config.json``, unless it is a fully
    fine-tuned model. The same run results in the same bytes.

    Args:
        folder: a PEFT folder, or the folder of a model.
        card: the card.
    """
    (folder / CARD_FILE).write_text(card.markdown(), encoding="utf-8")
    if card.config.variant == "full":
        return
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["graftwork"] = {"base_digest": card.base_digest}
    # PEFT writes a set in arbitrary order; the same run must result in the same bytes.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
