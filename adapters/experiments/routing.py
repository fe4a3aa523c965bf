"""Resolves a request's ``model`` to the base, a version, an alias or an arm of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graftwork.adapters.access.scope import visible
from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import Conflict
from graftwork.adapters.experiments.experiment import Assignment
from graftwork.adapters.experiments.plan import Arm
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.ids import IdKind, InteractionIds
from graftwork.adapters.names import TRIAL, is_trial
from graftwork.adapters.registry import Registry


@dataclass(frozen=True, slots=True)
class Route:
    """The version that answers a request.

    Attributes:
        name: Its public name: ``name@number``, or the base's id.
        adapter: The adapter's label in metrics; ``None``: the bare base.
        digest: Its digest; ``None``: the bare base.
        draw: The arm, if an experiment chose it.
    """

    name: str
    adapter: str | None
    digest: str | None
    draw: Assignment | None = None

    @property
    def label(self) -> str:
        """What metrics and log policies know it by: its adapter's label, or the base's id."""
        return self.adapter or self.name

    def labels(self) -> dict[str, str]:
        """The fields of an answer that name the version and arm."""
        assigned = {} if self.draw is None else {"experiment": self.draw.experiment, "arm": self.draw.arm.name}
        return {"adapter": self.name, **assigned}

    def mint_id(
        self,
        ids: InteractionIds,
        kind: IdKind,
        *,
        unit: str | None,
        at: int,
        choices: int | None,
        asked: bool = False,
    ) -> str:
        """A new answer's id, which encodes the version, the arm and its probability, and the other arguments."""
        return ids.mint(
            kind,
            adapter=None if self.adapter is None else self.name,
            experiment=None if self.draw is None else self.draw.experiment,
            arm=None if self.draw is None else self.draw.arm.name,
            probability=None if self.draw is None else self.draw.probability,
            unit=unit,
            at=at,
            choices=choices,
            asked=asked,
        )


class ModelRouter:
    """Resolves ``model`` from memory: the base, a version, an alias, or an arm of the adapter's experiment."""

    def __init__(self, base: BaseInfo, registry: Registry, experiments: Experiments) -> None:
        self._base = base
        self._registry = registry
        self._experiments = experiments

    def resolve(self, model: str, unit: str | None, *, chat: bool, episode: str | None = None) -> Route:
        """Resolve ``model``.

        Args:
            model: As the request names it.
            unit: The unit of experiments that the request belongs to; ``None``: it is assigned by itself.
            chat: Whether it is a chat completion.
            episode: The episode that it is part of.

        Raises:
            NotFound: Nothing has that name.
            InvalidRequest: It is a reward model.
            Conflict: The version was made for another base.
        """
        # A plain name takes part in the adapter's experiment; a version or an alias is answered as it is.
        assigned = self._experiments.assign(model, unit, chat=chat, episode=episode)
        return self._version(model) if assigned is None else self.route_to_arm(assigned, model)

    def resolve_control(self, model: str) -> Route:
        """Resolve ``model`` for what is no part of any experiment: under one, a plain name is its control.

        Raises:
            NotFound: Nothing has that name.
            InvalidRequest: It is a reward model.
            Conflict: The version was made for another base.
        """
        experiment = self._experiments.running_on(model)
        return self._version(model) if experiment is None else self._arm(experiment.plan.control, model)

    def route_to_arm(self, assigned: Assignment, adapter: str) -> Route:
        """The route to an arm. Its version was checked when the experiment began."""
        return replace(self._arm(assigned.arm, adapter), draw=assigned)

    def _version(self, model: str) -> Route:
        base = self._base
        if model == base.id and visible(None):
            return Route(base.id, None, None)
        version = self._registry.resolve(model)
        version.check_answers()
        if version.base_digest != base.digest:
            raise Conflict(
                f"{version.id} was pushed for another base ({version.base_digest}); this server runs {base.id} "
                f"({base.digest}). Serve that base, or train and push the adapter again.",
                param="model",
                code="wrong_base",
            )
        # All trials share one label in the metrics.
        return Route(version.id, TRIAL if is_trial(version.name) else version.name, version.digest)

    def _arm(self, arm: Arm, adapter: str) -> Route:
        if arm.version is None:
            return Route(self._base.id, None, None)
        version = self._registry.version(adapter, arm.version)
        return Route(version.id, version.name, version.digest)
