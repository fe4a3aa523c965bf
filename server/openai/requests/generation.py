"""What chat completions and completions have in common, and how they become the engine's ``SamplingParams``.

A new sampling parameter begins here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    model_validator,
)

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.plan import Arm
from graftwork.adapters.prompts.tool_calls import ToolCallFormat
from graftwork.server.bodies import (
    Label,
    Metadata,
    ModelName,
    StrictModel,
    Text,
    body_error,
    field_error,
    json_type,
    only_off,
    reject_nul,
    short_repr,
)
from graftwork.server.engine.request import GrammarKind, SamplingParams
from graftwork.server.openai.requests.structured_output import (
    Choices,
    GrammarSource,
    ResponseFormat,
    Schema,
    StructuredOutputs,
)

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 64

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def _logit_bias(value: Any) -> dict[int, float] | None:
    """OpenAI's form: token ids as strings, each with what is added to its logit."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise body_error("invalid_type", f"must be an object of token ids and numbers, not {json_type(value)}")
    if len(value) > MAX_LOGIT_BIASES:
        raise body_error("invalid_value", f"takes at most {MAX_LOGIT_BIASES} tokens, got {len(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not re.fullmatch(r"0|[1-9]\d{0,8}", key, re.ASCII):
            raise body_error(
                "invalid_value", f"[{short_repr(key)}] is not a token id: keys are whole numbers in quotes"
            )
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise body_error("invalid_value", f"[{short_repr(key)}] must be a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


def _top_k(value: Any) -> Any:
    """vLLM writes -1 where all tokens may be drawn."""
    return 0 if type(value) is int and value == -1 else value


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise body_error("invalid_type", f"must be a string or a list of at most {MAX_STOPS} strings")
    if len(stops) > MAX_STOPS:
        raise body_error("invalid_value", f"takes at most {MAX_STOPS} strings, got {len(stops)}")
    if not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise body_error("invalid_value", f"strings must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(map(reject_nul, stops))


#: What answers are held to: at most one of these. The older names of vLLM's are parts of ``structured_outputs``.
_FORMATS: dict[str, GrammarKind | None] = {
    "response_format": None,
    "structured_outputs": None,
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


_NOT_SAMPLING = {
    *("model", "messages", "prompt", "user", "metadata", "store", "stream_options"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_salt", "tools", "chat_template_kwargs"),
}


def check_token_ids(param: str, ids: Iterable[int], vocab_size: int) -> None:
    """Check that a base has these tokens.

    Args:
        param: Where they stand in the body.
        ids: Token ids.
        vocab_size: The base's.

    Raises:
        InvalidRequest: It lacks one.
    """
    if (largest := max(ids, default=0)) >= vocab_size:
        raise InvalidRequest(
            f"{param} has token id {short_repr(largest)}, but this model's ids go from 0 to {vocab_size - 1}",
            param=param,
        )


class StreamOptions(StrictModel):
    """OpenAI's options of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's
    include_obfuscation: Annotated[Any, only_off(False, instead="chunks are not padded; leave it out")] = None


class GenerationRequest(StrictModel):
    """What chat completions and completions have in common."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    cache_salt: Label | None = None  # vLLM's: prompts of another salt share no prefixes with it
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT32_MAX), BeforeValidator(_top_k)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Annotated[
        dict[int, float] | None, PlainValidator(_logit_bias, json_schema_input_type=dict[str, float] | None)
    ] = None
    seed: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(_stops, json_schema_input_type=str | list[str] | None)] = ()
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, le=INT32_MAX)]], Field(max_length=MAX_STOP_TOKEN_IDS)] | None
    ) = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Annotated[Text, Field(min_length=1)] | None = None
    guided_choice: Choices | None = None
    guided_grammar: Annotated[Text, Field(min_length=1)] | None = None
    # vLLM's: what of prompt and answer is shown.
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    skip_special_tokens: bool | None = None
    user: Label | None = None
    metadata: Metadata = None
    store: bool | None = None
    # vLLM's, at the value that changes nothing.
    use_beam_search: Annotated[Any, only_off(False, instead="answers are sampled; leave it out")] = None

    prompt_field: ClassVar[str]

    #: An arm's ``max_tokens``: it shortens an answer, and makes no request impossible that would be answered without.
    _token_cap: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise field_error(
                "stream_options", "invalid_value", "is only for streams: set stream to true or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_need_a_whole_answer(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise field_error("prompt_logprobs", "invalid_value", "is not for streams: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        given = self._formats()
        if len(given) > 1:
            raise field_error(given[1], "invalid_value", f"and {given[0]} both say what to answer in: give one of them")
        return self

    @property
    def choices(self) -> int:
        """How many answers to generate for each prompt."""
        return self.n or 1

    @property
    def shows_special_tokens(self) -> bool:
        """Whether answers have special tokens in their text."""
        return self.skip_special_tokens is False

    @property
    def num_answers(self) -> int:
        """How many answers the engine computes for the whole request."""
        return self.choices

    @property
    def session(self) -> str | None:
        """The conversation or visitor that the metadata name, for experiments."""
        return (self.metadata or {}).get("session") or None

    @property
    def episode(self) -> str | None:
        """The episode that the metadata name: several answers that are judged as one."""
        return (self.metadata or {}).get("episode") or None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def grammar_source(self, tool_calls: ToolCallFormat) -> GrammarSource | None:
        """What the answer is held to; ``None``: nothing.

        Args:
            tool_calls: How the base writes them.

        Raises:
            InvalidRequest: It is too long, or cannot be combined.
        """
        if self.response_format is not None and self.response_format.type != "text":
            return self.response_format.source()
        if self.structured_outputs is not None:
            return self.structured_outputs.source()
        for name in self._formats():
            if kind := _FORMATS[name]:
                return GrammarSource.of(kind, getattr(self, name), name)
        return None

    def _formats(self) -> list[str]:
        """The fields that are given and hold the answer to anything."""
        given = [name for name in _FORMATS if getattr(self, name) is not None]
        if self.response_format is not None and self.response_format.type == "text":
            given.remove("response_format")
        return given

    def with_arm(self, arm: Arm) -> Self:
        """A copy with an experiment arm's sampling parameters, as the model sees it; ``max_tokens`` is a bound."""
        changes = {name: value for name, value in arm.sampling.items() if name != "max_tokens"}
        changed = self.model_copy(update=changes)
        changed._token_cap = arm.sampling.get("max_tokens")
        return changed

    def logged_prompt(self) -> dict[str, Any]:
        """The prompt as it is logged: ``{"messages": […]}`` or ``{"prompt": […]}``."""
        raise NotImplementedError

    def logged_sampling(self) -> dict[str, Any]:
        """The sampling parameters as they are logged: given fields only, and none that has text or names a user."""
        logged = self.model_dump(exclude_none=True, exclude_unset=True, exclude=_NOT_SAMPLING, by_alias=True)
        if self._token_cap is None:
            return logged
        field, requested = self._limit()
        limit = self._capped(self._default_tokens(self._token_cap) if requested is None else requested)
        return logged | dict.fromkeys({field, *logged.keys() & {"max_tokens"}}, limit)

    def _capped(self, max_tokens: int) -> int:
        """At most as many tokens as an arm allows, and at least as many as the request wants."""
        cap = max_tokens if self._token_cap is None else self._token_cap
        return max(min(max_tokens, cap), self.min_tokens or 0)

    def _limit(self) -> tuple[str, int | None]:
        """The field that bounds the generated tokens, and its value."""
        return "max_tokens", self.max_tokens

    def _default_tokens(self, left: int) -> int:
        """The most generated tokens if the request does not say, with ``left`` in the context."""
        raise NotImplementedError

    def _logprobs(self) -> tuple[int | None, int | None]:
        """The number of alternatives at each generated and at each prompt token; ``None``: no log-probabilities."""
        raise NotImplementedError

    def check_token_ids(self, vocab_size: int) -> None:
        """Refuse what names a token that the vocabulary does not have. Raises :class:`InvalidRequest`."""
        check_token_ids("logit_bias", self.logit_bias or (), vocab_size)
        check_token_ids("stop_token_ids", self.stop_token_ids or (), vocab_size)

    def sampling_params(
        self,
        num_prompt_tokens: int,
        max_positions: int,
        eos_token_ids: Collection[int],
        *,
        choice: int = 0,
        grammar: str | None = None,
    ) -> SamplingParams:
        """The engine's parameters for one prompt.

        Args:
            num_prompt_tokens: Its length.
            max_positions: Of the model's context, prompt and answer together.
            eos_token_ids: Stop tokens of the base.
            choice: From 0 to ``n - 1``. With a seed, each choice has its own: seed + choice.
            grammar: What became of ``grammar_source``. Its end is the answer's, whatever ``ignore_eos`` says.

        Raises:
            InvalidRequest: Prompt and generated tokens do not fit into the context.
        """
        field, requested = self._limit()
        left = max_positions - num_prompt_tokens
        if num_prompt_tokens == 0:
            raise InvalidRequest("the prompt has no tokens: send some text", param=self.prompt_field)
        if left < 0 or (left == 0 and requested != 0):
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, but this model's context is {max_positions} tokens, "
                "prompt and answer together: shorten the prompt",
                param=self.prompt_field,
                code="context_length_exceeded",
            )
        if requested is not None and requested > left:
            raise InvalidRequest(
                f"{field} is {requested} and the prompt has {num_prompt_tokens} tokens, together "
                f"{requested + num_prompt_tokens}, but this model's context is {max_positions} tokens: "
                f"ask for at most {left} or shorten the prompt",
                param=field,
                code="context_length_exceeded",
            )
        max_tokens = self._default_tokens(left) if requested is None else requested
        min_tokens = self.min_tokens or 0
        if min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens is {min_tokens}, but at most {max_tokens} tokens will be generated: "
                f"lower it or raise {field}",
                param="min_tokens",
            )
        top_logprobs, prompt_logprobs = self._logprobs()
        ends = () if self.ignore_eos and grammar is None else eos_token_ids
        return SamplingParams(
            max_tokens=self._capped(max_tokens),
            min_tokens=min_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=self.logit_bias or {},
            seed=_choice_seed(self.seed, choice),
            stop_token_ids=frozenset(ends).union(self.stop_token_ids or ()),
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
        )


def _choice_seed(seed: int | None, choice: int) -> int | None:
    # 63 bits, which every generator accepts and no request can overflow.
    return None if seed is None else (seed + choice) & INT64_MAX
