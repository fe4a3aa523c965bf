"""What one run is asked to do (``job.json``), and what a line of its ``progress.jsonl`` holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.storage.durable import write_durably
from graftwork.training.run.folder import SPEC_FILE

AUTO: Final = "auto"


class ProgressLine(TypedDict, total=False):
    """One line of ``progress.jsonl``. A line with a ``message`` is for people, one with a ``step`` is a measurement;
    one with a ``checkpoint`` says that ``checkpoints/step-N`` is whole."""

    step: int
    total: int
    loss: float | None
    learning_rate: float | None
    validation_loss: float | None
    reward: float | None
    validation_reward: float | None
    """Of GRPO: means of the answers that were tried."""
    num_tokens: int
    eta_seconds: float | None
    trial: int
    """Of a search: which one this is. Steps, tokens and the time that is left are then those of all ``trials``."""
    trials: int
    phase: str
    """``data``, ``model``, ``train``, ``evaluate``, ``gates``, …: what it is doing."""
    message: str
    level: Literal["info", "warn", "error"]
    checkpoint: int


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What one run is asked to do."""

    job_id: str
    name: str
    """The adapter that gets a version."""
    base: BaseInfo
    parent: int | None = None
    """The number of the version of ``name`` (or of ``parent_name``) to continue."""
    parent_name: str | None = None
    """Whose version the parent is; None: of ``name``."""
    parent_folder: Path | None = None
    """The parent's PEFT folder; there whenever ``parent`` is."""
    method: str = AUTO
    """``auto`` chooses by what the rows say, else one of training.routing's METHODS."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """By name (learning_rate, learning_rate_multiplier, num_epochs, batch_size, rank, alpha, beta, …): ``"auto"`` or a
    value. What is not there is ``"auto"``."""
    data: tuple[Path, ...]
    """Files of rows, or the folder of one kept data set."""
    validation: tuple[Path, ...] = ()
    """Files of rows that are never learned from; none: a share of ``data`` is kept back."""
    seed: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    server_url: str | None = None
    """Where candidates are judged, in the serving path; None: nobody is there to ask."""
    key_variable: str = "GRAFTWORK_API_KEY"
    """The environment variable that holds a key for that server, if it asks for one."""

    def write(self, folder: Path) -> None:
        """Leave it as the folder's ``job.json``, whole or not at all."""
        write_durably(folder / SPEC_FILE, json.dumps(self.to_json(), ensure_ascii=False, indent=1))

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "base": json.loads(self.base.to_json()),
            "parent_folder": None if self.parent_folder is None else str(self.parent_folder),
            "data": [str(path) for path in self.data],
            "validation": [str(path) for path in self.validation],
            "hyperparameters": dict(self.hyperparameters),
            "metadata": dict(self.metadata),
        }

    @classmethod
    def read(cls, folder: Path) -> JobSpec:
        """What a run's folder asks for."""
        fields = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        parent_folder = fields["parent_folder"]
        return cls(
            **{
                **fields,
                "base": BaseInfo.from_json(json.dumps(fields["base"])),
                "parent_folder": None if parent_folder is None else Path(parent_folder),
                "data": tuple(map(Path, fields["data"])),
                "validation": tuple(map(Path, fields["validation"])),
            }
        )
