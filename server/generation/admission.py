"""An admitted request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from graftwork.adapters.experiments.routing import Route
from graftwork.adapters.feedback.ids import IdKind
from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.chat import ChatAnswer
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.generation import GenerationRequest
from graftwork.server.openai.vocabulary import Vocabulary


class MakeAnswer(Protocol):
    """``ChatAnswer``, or another answer that is made of the same."""

    def __call__(
        self,
        request: ChatCompletionRequest,
        head: AnswerHead,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        tool_calls: ToolCallFormat | None,
        /,
    ) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was accepted, before it is queued.

    Attributes:
        kind: Of the answer's id, which tells the route.
        id: The answer's id, which encodes its route.
        created: Unix time in seconds.
        unit: The unit of experiments that it belongs to: its user or session.
        episode: The episode that it is part of, as a hash.
        route: The version that answers, or the arm of an experiment.
        body: The parsed body as it was sent; of the routes that are like chats, the chat that it became.
        key_id: The caller's key.
        store: Whether it may be logged, as far as the request says.
        num_bytes: Size of its body.
        asked: Whether its user is to be asked for feedback on the answer.
        make_answer: Makes the answer to a chat, in the shape of the route.
    """

    kind: IdKind
    id: str
    created: int
    unit: str | None
    route: Route
    body: GenerationRequest
    key_id: str
    store: bool
    num_bytes: int
    asked: bool = False
    make_answer: MakeAnswer = ChatAnswer
    episode: str | None = None

    @property
    def answered_body(self) -> GenerationRequest:
        """The body as the model sees it and as it is logged: with the system message and the sampling of the arm."""
        return self.body if self.route.draw is None else self.body.with_arm(self.route.draw.arm)

    def labels(self) -> dict[str, Any]:
        """The ``graftwork`` of its answer: the version and arm, and whether the user is to be asked for feedback."""
        return {**self.route.labels(), **({"ask_feedback": True} if self.asked else {})}
