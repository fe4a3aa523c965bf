"""The specification of a run (``job.json``), and the lines of its ``progress.jsonl``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.graders.reinforcement import is_graded
from graftwork.adapters.storage.durable import write_durably
from graftwork.training.run.folder import SPEC_FILE

AUTO: Final = "auto"
"""The value of a method or hyperparameter that is chosen automatically."""


class ProgressLine(TypedDict, total=False):
    """A line of ``progress.jsonl``. A line with a ``message`` is for people, one with a ``step`` is a measurement, and
    one with a ``checkpoint`` reports that ``checkpoints/step-N`` was published."""

    step: int
    total: int
    loss: float | None
    learning_rate: float | None
    validation_loss: float | None
    reward: float | None
    validation_reward: float | None
    """For GRPO: mean reward of the completions."""
    passed: float
    validation_passed: float
    """With a grader: share of the completions that pass."""
    grades: Mapping[str, float]
    validation_grades: Mapping[str, float]
    """With a grader of several: mean grade by each."""
    num_tokens: int
    eta_seconds: float | None
    trial: int
    """In a search: the number of the trial. Steps, tokens and the remaining time are then those of all ``trials``."""
    trials: int
    phase: str
    """What the run is doing: ``data``, ``model``, ``train``, ``evaluate`` or ``gates``."""
    message: str
    level: Literal["info", "warn", "error"]
    checkpoint: int


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """The specification of a run."""

    job_id: str
    name: str
    """The adapter that gets a new version."""
    base: BaseInfo
    parent: int | None = None
    """Number of the version that is trained further; None for a fresh adapter."""
    parent_name: str | None = None
    """Name of the parent's adapter; `name` if None."""
    parent_folder: Path | None = None
    """PEFT folder of the parent; set if and only if ``parent`` is."""
    ancestors: tuple[str, ...] = ()
    """Ids of the jobs that made the parent and the versions that it continues."""
    method: str = AUTO
    """``auto``, which chooses by the rows, or one of TRAINING_METHODS."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters by name (learning_rate, learning_rate_multiplier, num_epochs, batch_size, …). A value may be
    ``"auto"``, which is the default of each."""
    data: tuple[Path, ...]
    """Files of rows, or the folder of a stored data set."""
    validation: tuple[Path, ...] = ()
    """Files of validation rows; if there are none, a share of ``data`` is held out."""
    seed: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    server_url: str | None = None
    """Address of the server that candidates are evaluated on; None skips the evaluation."""
    key_variable: str = "GRAFTWORK_API_KEY"
    """Environment variable with the API key of that server, if it requires one."""
    allow_python_graders: bool = False
    """Whether graders may be Python programs."""

    @property
    def is_graded(self) -> bool:
        """Whether rows are questions for a grader to learn from."""
        return is_graded(self.hyperparameters)

    def write(self, folder: Path) -> None:
        """Write ``job.json`` to a folder, atomically and durably."""
        write_durably(folder / SPEC_FILE, json.dumps(self.to_json(), ensure_ascii=False, indent=1))

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, in JSON's types."""
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
        """Read ``job.json`` from a folder.

        Raises:
            OSError, ValueError, KeyError: if it does not exist or was not written by `write`.
        """
        fields = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        parent_folder = fields["parent_folder"]
        return cls(
            **{
                **fields,
                "base": BaseInfo.from_json(json.dumps(fields["base"])),
                "parent_folder": None if parent_folder is None else Path(parent_folder),
                "ancestors": tuple(fields.get("ancestors", ())),
                "data": tuple(map(Path, fields["data"])),
                "validation": tuple(map(Path, fields["validation"])),
            }
        )
