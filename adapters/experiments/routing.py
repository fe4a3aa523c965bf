"""Which version answers a request: `model` resolved to the base, a version, an alias or an experiment's arm."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import Conflict
from graftwork.adapters.experiments.experiment import Assignment
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.ids import IdKind, InteractionIds
from graftwork.adapters.names import TRIAL, is_trial
from graftwork.adapters.registry import Registry


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the version that answers it (``None``: the bare base), by its public name; and, where an
    experiment chose it, what that drew."""

    name: str
    adapter: str | None
    digest: str | None
    draw: Assignment | None = None

    def labels(self) -> dict[str, str]:
        """What an answer says of it."""
        drawn = {} if self.draw is None else {"experiment": self.draw.experiment, "arm": self.draw.arm.name}
        return {"adapter": self.name, **drawn}

    def mint_id(self, ids: InteractionIds, kind: IdKind, *, unit: str | None, at: int) -> str:
        """An id that says it."""
        return ids.mint(
            kind,
            adapter=None if self.adapter is None else self.name,
            experiment=None if self.draw is None else self.draw.experiment,
            arm=None if self.draw is None else self.draw.arm.name,
            probability=None if self.draw is None else self.draw.probability,
            unit=unit,
            at=at,
        )


class ModelRouter:
    """Resolves ``model`` from memory: the base, a version, an alias, or an arm of the adapter's experiment."""

    def __init__(self, base: BaseInfo, registry: Registry, experiments: Experiments) -> None:
        self._base = base
        self._registry = registry
        self._experiments = experiments

    def resolve(self, model: str, unit: str | None, *, chat: bool) -> Route:
        """What ``model`` means for this ``unit``, the sticky key of whoever asks (None: nobody was named)."""
        base = self._base
        if model == base.id:
            return Route(base.id, None, None)
        # A plain name takes part in the adapter's experiment; who names a version or an alias gets that.
        drawn = self._experiments.assign(model, unit, chat=chat)
        if drawn is not None:
            return self.route_to_arm(drawn, model)
        version = self._registry.resolve(model)
        if version.base_digest != base.digest:
            raise Conflict(
                f"{version.id} was pushed for another base ({version.base_digest}); this server runs {base.id} "
                f"({base.digest}). Serve that base, or train and push the adapter again.",
                param="model",
                code="wrong_base",
            )
        # All trials are one in the metrics.
        return Route(version.id, TRIAL if is_trial(version.name) else version.name, version.digest)

    def route_to_arm(self, drawn: Assignment, adapter: str) -> Route:
        """To an arm. That its version fits this base and is not retired was seen to when the experiment began."""
        if drawn.arm.version is None:
            return Route(self._base.id, None, None, drawn)
        version = self._registry.version(adapter, drawn.arm.version)
        return Route(version.id, version.name, version.digest, drawn)
