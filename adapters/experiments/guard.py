"""The registry's guard for experiments: while one runs, its aliases do not move and its versions are not retired."""

from __future__ import annotations

from sqlalchemy import (
    Connection,
)

from graftwork.adapters.errors import Conflict
from graftwork.adapters.experiments.tables import find_running
from graftwork.adapters.names import LIVE


class ExperimentGuard:
    """A ``RegistryGuard`` that protects what running experiments use."""

    def check_move(self, connection: Connection, name: str, alias: str) -> None:
        """Check whether an alias may move.

        Raises:
            Conflict: A running experiment uses it.
        """
        found = find_running(connection, name)
        if found is not None and (alias == LIVE or any(arm.alias == alias for arm in found.plan.arms)):
            raise Conflict(
                f"{name}@{alias} takes part in the experiment {found.name!r}: stop that first (graftwork experiments "
                f"stop {found.name}), or send end_experiment true, which ends it",
                code="under_experiment",
            )

    def check_retirement(self, connection: Connection, name: str, number: int) -> None:
        """Check whether a version may be retired.

        Raises:
            Conflict: It is an arm of a running experiment.
        """
        found = find_running(connection, name)
        if found is not None and any(arm.version == number for arm in found.plan.arms):
            raise Conflict(
                f"{name}@{number} is an arm of the experiment {found.name!r}: stop that first (graftwork experiments "
                f"stop {found.name})",
                code="under_experiment",
            )
