"""The registry's guard while an experiment runs: its aliases do not move, and its versions are not retired."""

from __future__ import annotations

from sqlalchemy import (
    Connection,
)

from graftwork.adapters.errors import Conflict
from graftwork.adapters.experiments.tables import find_running
from graftwork.adapters.names import LIVE


class ExperimentGuard:
    """The registry's guard: what an experiment is about stays as it is until it ends."""

    def check_move(self, connection: Connection, name: str, alias: str) -> None:
        found = find_running(connection, name)
        if found is not None and (alias == LIVE or any(arm.alias == alias for arm in found.plan.arms)):
            raise Conflict(
                f"{name}@{alias} takes part in the experiment {found.name!r}: stop that first (graftwork experiments "
                f"stop {found.name}), or send end_experiment true, which ends it",
                code="under_experiment",
            )

    def check_retirement(self, connection: Connection, name: str, number: int) -> None:
        found = find_running(connection, name)
        if found is not None and any(arm.version == number for arm in found.plan.arms):
            raise Conflict(
                f"{name}@{number} is an arm of the experiment {found.name!r}: stop that first (graftwork experiments "
                f"stop {found.name})",
                code="under_experiment",
            )
