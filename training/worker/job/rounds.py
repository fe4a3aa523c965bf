"""Earlier rounds: successful runs of an adapter that are still in their folders, and what each recorded of its rows.

A record has hashes and no texts. It saves cleaning and comparing the rows of a round again, and says which of them were
trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from graftwork.adapters.storage.durable import write_durably
from graftwork.training.data.kept import KeptRows
from graftwork.training.run.folder import RESULT_FILE, ROWS_FILE, SPEC_FILE
from graftwork.training.run.plan import LearnedBefore
from graftwork.training.worker.job.spec import JobSpec
from graftwork.version import __version__


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What a run recorded: the method that it learned by, and its rows."""

    method: str
    rows: KeptRows

    def write(self, folder: Path) -> None:
        """Write the record to the folder of the run, atomically and durably."""
        fields = {"version": __version__, "method": self.method, "rows": self.rows.to_json()}
        write_durably(folder / ROWS_FILE, json.dumps(fields))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the record of a run; None if it has none, or one of another version, which may clean otherwise."""
        path = folder / ROWS_FILE
        fields = json.loads(path.read_bytes()) if path.is_file() else {}
        if fields.get("version") != __version__:
            return None
        return cls(method=fields["method"], rows=KeptRows.from_json(fields["rows"]))


@dataclass(frozen=True, kw_only=True)
class Round:
    """An earlier round: its specification, and its record if there is one."""

    spec: JobSpec
    record: RoundRecord | None


def earlier_rounds(folder: Path, spec: JobSpec) -> Iterator[Round]:
    """Yield the successful runs of the same adapter whose data still exists, the oldest first.

    Args:
        folder: the folder of this run; those of earlier runs are beside it.
        spec: the specification of this run.
    """
    beside = [path for path in folder.parent.iterdir() if path != folder and (path / RESULT_FILE).is_file()]
    for path in sorted(beside, key=lambda path: (path / RESULT_FILE).stat().st_mtime_ns):
        if not (path / SPEC_FILE).is_file():
            continue
        earlier = JobSpec.read(path)
        succeeded = json.loads((path / RESULT_FILE).read_text(encoding="utf-8"))["status"] == "succeeded"
        wanted = earlier.name in {spec.name, spec.parent_name} and earlier.data != spec.data
        if succeeded and wanted and all(file.exists() for file in (*earlier.data, *earlier.validation)):
            yield Round(spec=earlier, record=RoundRecord.read(path))


def learned_before(rounds: Iterable[Round], ancestors: Sequence[str], method: str) -> LearnedBefore:
    """Return the rows of the rounds that made the parent and what it continues.

    Args:
        rounds: the earlier rounds.
        ancestors: ids of the jobs that made these versions.
        method: the method of this run; what was learned by another is not learned by this one.
    """
    records = [each.record for each in rounds if each.spec.job_id in ancestors and each.record is not None]
    return LearnedBefore(
        train=frozenset(row.same for found in records if found.method == method for row in found.rows.sides["train"]),
        held_out=frozenset(row.same for found in records for row in found.rows.sides["validation"]),
    )
