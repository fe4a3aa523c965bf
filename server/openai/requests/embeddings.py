"""The body of ``POST /v1/embeddings``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from graftwork.adapters.errors import InvalidRequest
from graftwork.server.bodies import (
    Label,
    ModelName,
    StrictModel,
    only_off,
)
from graftwork.server.engine.request import Pooling
from graftwork.server.openai.requests.generation import INT64_MAX
from graftwork.server.openai.requests.prompts import Prompt, prompts_field

#: OpenAI's.
MAX_INPUTS = 2048


class EmbeddingRequest(StrictModel):
    """The body of ``POST /v1/embeddings``."""

    model: ModelName
    input: Annotated[tuple[Prompt, ...], prompts_field(most=MAX_INPUTS, noun="inputs")]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    pooling: Pooling | None = None
    user: Label | None = None
    # vLLM's, at the value that says what happens anyway.
    normalize: Annotated[Any, only_off(True, instead="embeddings have length 1; leave it out")] = None
    add_special_tokens: Annotated[Any, only_off(True, instead="send token ids to decide on each token")] = None
    truncate_prompt_tokens: Annotated[Any, only_off(instead="nothing is cut off; send shorter inputs")] = None

    @property
    def num_answers(self) -> int:
        """How many vectors are computed."""
        return len(self.input)

    def check_dimensions(self, width: int) -> None:
        """Refuse a width that is not the model's. Raises :class:`InvalidRequest`."""
        if self.dimensions is not None and self.dimensions != width:
            raise InvalidRequest(
                f"dimensions is {self.dimensions}, but this model's embeddings have {width}, and a part of one says "
                "little (it is no Matryoshka model): leave it out",
                param="dimensions",
                code="unsupported_parameter",
            )
