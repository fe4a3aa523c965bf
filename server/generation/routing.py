"""Which version answers a request: `model` resolved to the base, a version, an alias or an experiment's arm, and what
that arm changes in the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.adapters.experiments.experiment import Draw
from graftwork.adapters.feedback.ids import InteractionIds, Kind
from graftwork.server.openai.requests.chat import ChatCompletionRequest, Message
from graftwork.server.openai.requests.generation import Generation

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the version that answers it (``None``: the bare base), by its public name; and, where an
    experiment chose it, what that drew."""

    name: str
    adapter: str | None
    digest: str | None
    drawn: Draw | None = None

    def said(self) -> dict[str, str]:
        """What an answer says of it."""
        drawn = {} if self.drawn is None else {"experiment": self.drawn.experiment, "arm": self.drawn.arm.name}
        return {"adapter": self.name, **drawn}

    def mint(self, ids: InteractionIds, kind: Kind, *, unit: str | None, at: int) -> str:
        """An id that says it."""
        return ids.mint(
            kind,
            adapter=None if self.adapter is None else self.name,
            experiment=None if self.drawn is None else self.drawn.experiment,
            arm=None if self.drawn is None else self.drawn.arm.name,
            probability=None if self.drawn is None else self.drawn.probability,
            unit=unit,
            at=at,
        )


def under(drawn: Draw | None, body: Generation) -> Generation:
    """The body as the arm has it; ``max_tokens`` of an arm is a cap, which is for `Gateway._work`."""
    if drawn is None:
        return body
    changes: dict[str, Any] = {name: value for name, value in drawn.arm.sampling.items() if name != "max_tokens"}
    if drawn.arm.system is not None and isinstance(body, ChatCompletionRequest):
        was_told = body.messages[0].role in ("system", "developer")
        changes["messages"] = [Message(role="system", content=drawn.arm.system), *body.messages[was_told:]]
    return body.model_copy(update=changes)
