"""Which version answers a request: `model` resolved to the base, a version, an alias or an experiment's arm, and what
that arm changes in the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.adapters.experiments.experiment import Assignment
from graftwork.adapters.feedback.ids import IdKind, InteractionIds
from graftwork.server.openai.requests.chat import ChatCompletionRequest, Message
from graftwork.server.openai.requests.generation import GenerationRequest

if TYPE_CHECKING:
    pass


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


def apply_arm(drawn: Assignment | None, body: GenerationRequest) -> GenerationRequest:
    """The body as the arm has it; ``max_tokens`` of an arm is a cap, which is for `Gateway._work`."""
    if drawn is None:
        return body
    changes: dict[str, Any] = {name: value for name, value in drawn.arm.sampling.items() if name != "max_tokens"}
    if drawn.arm.system is not None and isinstance(body, ChatCompletionRequest):
        was_told = body.messages[0].role in ("system", "developer")
        changes["messages"] = [Message(role="system", content=drawn.arm.system), *body.messages[was_told:]]
    return body.model_copy(update=changes)
