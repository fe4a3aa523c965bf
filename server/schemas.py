"""The wire models of the generation routes: OpenAI's fields, strictly, and how they become sampling parameters.

What the server does is accepted; OpenAI fields that it does not do are accepted at the value that means "off" and
refused by name at any other; everything else is an unknown field. Nothing is dropped in silence.

Knows nothing of HTTP, tokenizers, adapters or the registry: ``model`` is a string and a prompt has a length.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from graftwork.adapters.errors import InvalidRequest
from graftwork.server.engine.request import SamplingParams

MAX_CHOICES = 8
MAX_PROMPTS = 32
MAX_MESSAGES = 4096
MAX_PROMPT_TOKENS = 2**20  # any model's context; what really fits is known only after the model is
MAX_LABEL_CHARS = 256
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

WireModel = TypeVar("WireModel", bound="Wire")
Place = tuple[int | str, ...]  # where in the body: ("messages", 0, "content")


def parse(model: type[WireModel], raw: bytes) -> WireModel:
    """The request in ``raw``, or :class:`InvalidRequest` for its first error, with the field's path as ``param``."""
    if not raw.strip():
        raise InvalidRequest("the body is empty: send a JSON object", code="invalid_json")
    try:
        return model.model_validate_json(raw)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    first = errors[0]
    place = (*first["loc"], *first.get("ctx", {}).get("field", ()))
    code, message = _explain(first, place, model)
    if others := len(errors) - 1:
        message += f" (and {others} more {'problem' if others == 1 else 'problems'} in this body)"
    raise InvalidRequest(message, param=_path(place) or None, code=code)


# ------------------------------------------------------------------------------------------------- field types


def _refuse(code: str, message: str) -> PydanticCustomError:
    # The message travels as context, so that braces in a user's value are never read as a template.
    return PydanticCustomError("graftwork", "{message}", {"code": code, "message": message})


def _text(value: str) -> str:
    if "\0" in value:
        raise _refuse("invalid_value", "contains a NUL character (\\u0000): remove it")
    return value


Text = Annotated[str, AfterValidator(_text)]
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS), AfterValidator(_text)]


def _off(*values: Any, instead: str) -> BeforeValidator:
    """A field that is accepted at ``None`` or one of ``values``, all of which mean that it does nothing."""

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(off) and value == off for off in values):
            return value
        raise _refuse("unsupported_parameter", f"is not supported: {instead}")

    return BeforeValidator(check)


def _metadata(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _refuse("invalid_type", "must be an object of strings")
    if len(value) > 16:
        raise _refuse("invalid_value", f"takes at most 16 pairs, got {len(value)}")
    for key, item in value.items():
        if not isinstance(item, str):
            raise _refuse("invalid_type", f"[{_show(key)}] must be a string, not {_kind(item)}")
        if not 1 <= len(key) <= 64 or len(item) > 512:
            raise _refuse("invalid_value", f"[{_show(key)}] is too long: keys take 1 to 64 characters, values 512")
        _text(key + item)
    return value


Metadata = Annotated[Mapping[str, str] | None, PlainValidator(_metadata)]


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _refuse("invalid_type", f"must be a string or a list of at most {MAX_STOPS} strings")
    if len(stops) > MAX_STOPS:
        raise _refuse("invalid_value", f"takes at most {MAX_STOPS} strings, got {len(stops)}")
    if not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise _refuse("invalid_value", f"strings must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(map(_text, stops))


def _content(value: Any) -> str | list[dict[str, str]]:
    """A message's text: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return _text(value)
    if value is None:
        raise _refuse("invalid_type", "must be text, not null: a message without content has nothing to say")
    if not isinstance(value, list):
        raise _refuse("invalid_type", f"must be a string or a list of text parts, not {_kind(value)}")
    if not value:
        raise _refuse("invalid_value", "is an empty list: give a string or at least one text part")
    return [_part(index, part) for index, part in enumerate(value)]


def _part(index: int, part: Any) -> dict[str, str]:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _refuse("invalid_type", f'[{index}] must be an object like {{"type": "text", "text": "…"}}')
    if part["type"] != "text":
        raise _refuse("unsupported_parameter", f"[{index}] is of type {_show(part['type'])}: only text is supported")
    if unknown := sorted(part.keys() - {"type", "text"}):
        raise _refuse("unknown_parameter", f"[{index}] has an unknown field {_show(unknown[0])}: remove it")
    if not isinstance(text := part.get("text"), str):
        raise _refuse("invalid_type", f"[{index}].text must be a string, not {_kind(text)}")
    return {"type": "text", "text": _text(text)}


Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """The four forms of a completion's prompt as one: each prompt is a text or token ids."""
    if isinstance(value, str):
        return (_text(value),)
    if not isinstance(value, list):
        raise _refuse("invalid_type", f"must be a string, token ids, or a list of either, not {_kind(value)}")
    if not value:
        raise _refuse("invalid_value", "is an empty list: give at least one prompt")
    if type(value[0]) is int:
        return (_token_ids("", value),)
    if len(value) > MAX_PROMPTS:
        raise _refuse("invalid_value", f"takes at most {MAX_PROMPTS} prompts in one request, got {len(value)}")
    if all(isinstance(item, str) for item in value):
        return tuple(map(_text, value))
    if all(isinstance(item, list) for item in value):
        return tuple(_token_ids(f"[{index}]", item) for index, item in enumerate(value))
    raise _refuse("invalid_type", "must not mix kinds: a list of strings, of token ids, or of lists of token ids")


def _token_ids(where: str, value: list[Any]) -> tuple[int, ...]:
    if not value:
        raise _refuse("invalid_value", f"{where} is an empty list of token ids: give at least one")
    if len(value) > MAX_PROMPT_TOKENS:
        raise _refuse("invalid_value", f"{where} has {len(value)} token ids: no model here takes that many")
    for index, item in enumerate(value):
        if type(item) is not int or item < 0:
            raise _refuse("invalid_type", f"{where}[{index}] must be a token id, not {_show(item)}")
    return tuple(value)


_NO_WISHES = {
    *("model", "messages", "prompt", "user", "metadata", "store", "stream_options"),
    *("safety_identifier", "prompt_cache_key"),
}
_SPOKEN = {"role", "content", "name", "reasoning_content"}
NO_TOOLS = "this server makes no tool calls; leave it out"


# ------------------------------------------------------------------------------------------------------ models


class Wire(BaseModel):
    """Base of all bodies: no coercion, no unknown fields, no infinities, never changed after parsing."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, _off(False, instead="chunks are not padded; leave it out")] = None


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[dict[str, str]], PlainValidator(_content)]
    # For templates that know them.
    name: Label | None = None
    reasoning_content: Text | None = None
    # What the official client sends back when an answer's message is appended to the conversation.
    refusal: Annotated[Any, _off(instead="put the text into the content")] = None
    annotations: Annotated[Any, _off([], instead="leave it out")] = None
    audio: Annotated[Any, _off(instead="only text is supported")] = None
    tool_calls: Annotated[Any, _off([], instead=NO_TOOLS)] = None
    function_call: Annotated[Any, _off(instead=NO_TOOLS)] = None


class Generation(Wire):
    """What chat and plain completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS), AfterValidator(_text)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    user: Label | None = None
    metadata: Metadata = None
    store: bool | None = None
    logit_bias: Annotated[Any, _off({}, instead="leave it out")] = None

    prompt_field: ClassVar[str]

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _at("stream_options", "invalid_value", "is only for streams: set stream to true or leave it out")
        return self

    @property
    def choices(self) -> int:
        """How many answers to give to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def asked(self) -> dict[str, Any]:
        """The field that was asked, as the log keeps it: ``{"messages": […]}`` or ``{"prompt": […]}``."""
        raise NotImplementedError

    def wishes(self) -> dict[str, Any]:
        """How it was asked to be answered, as the log keeps it: what was given and names neither text nor anybody."""
        return self.model_dump(exclude_none=True, exclude_unset=True, exclude=_NO_WISHES)

    def _limit(self) -> tuple[str, int | None]:
        """The field that bounds the new tokens, and its value."""
        return "max_tokens", self.max_tokens

    def _default_tokens(self, left: int) -> int:
        raise NotImplementedError

    def _logprobs(self) -> tuple[int | None, int | None]:
        """Alternatives asked for at each new token and at each of the prompt's; ``None``: no log-probabilities."""
        raise NotImplementedError

    def sampling(
        self, num_prompt_tokens: int, max_positions: int, eos_token_ids: Collection[int], *, choice: int = 0
    ) -> SamplingParams:
        """How to continue one prompt of ``num_prompt_tokens`` in a context of ``max_positions`` tokens.

        ``choice`` counts from 0 to ``n - 1``; with a seed, each choice draws from its own: seed + choice.
        Raises :class:`InvalidRequest` when prompt and new tokens do not fit.
        """
        field, asked = self._limit()
        left = max_positions - num_prompt_tokens
        if num_prompt_tokens == 0:
            raise InvalidRequest("the prompt has no tokens: send some text", param=self.prompt_field)
        if left < 0 or (left == 0 and asked != 0):
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, but this model's context is {max_positions} tokens, "
                "prompt and answer together: shorten the prompt",
                param=self.prompt_field,
                code="context_length_exceeded",
            )
        if asked is not None and asked > left:
            raise InvalidRequest(
                f"{field} is {asked} and the prompt has {num_prompt_tokens} tokens, together "
                f"{asked + num_prompt_tokens}, but this model's context is {max_positions} tokens: "
                f"ask for at most {left} or shorten the prompt",
                param=field,
                code="context_length_exceeded",
            )
        max_tokens = self._default_tokens(left) if asked is None else asked
        min_tokens = self.min_tokens or 0
        if min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens is {min_tokens}, but at most {max_tokens} tokens will be generated: "
                f"lower it or raise {field}",
                param="min_tokens",
            )
        top_logprobs, prompt_logprobs = self._logprobs()
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            seed=_choice_seed(self.seed, choice),
            stop_token_ids=frozenset() if self.ignore_eos else frozenset(eos_token_ids),
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class ChatCompletionRequest(Generation):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    # Hints that change no answer.
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    # Accepted where they ask for what happens anyway.
    response_format: Annotated[
        Any, _off({"type": "text"}, instead="only text can be asked for; say in the messages what to write")
    ] = None
    modalities: Annotated[Any, _off(["text"], instead='only ["text"] can be asked for')] = None
    service_tier: Annotated[Any, _off("auto", "default", instead="there is one tier; leave it out")] = None
    reasoning_effort: Annotated[Any, _off("none", instead="this server's models do not reason apart")] = None
    verbosity: Annotated[Any, _off("medium", instead="say in the messages how long the answer should be")] = None
    tools: Annotated[Any, _off([], instead=NO_TOOLS)] = None
    tool_choice: Annotated[Any, _off("none", "auto", instead=NO_TOOLS)] = None
    parallel_tool_calls: Annotated[Any, _off(True, False, instead=NO_TOOLS)] = None
    functions: Annotated[Any, _off([], instead=NO_TOOLS)] = None
    function_call: Annotated[Any, _off("none", "auto", instead=NO_TOOLS)] = None
    audio: Annotated[Any, _off(instead="only text can be asked for")] = None
    prediction: Annotated[Any, _off(instead="leave it out")] = None
    moderation: Annotated[Any, _off(instead="leave it out")] = None
    prompt_cache_options: Annotated[Any, _off(instead="leave it out")] = None
    prompt_cache_retention: Annotated[Any, _off(instead="leave it out")] = None
    web_search_options: Annotated[Any, _off(instead="leave it out")] = None

    prompt_field: ClassVar[str] = "messages"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens == 0:
            raise _at("max_tokens", "invalid_value", "must be at least 1")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _at(
                "max_tokens",
                "invalid_value",
                f"is {self.max_tokens} and max_completion_tokens is {self.max_completion_tokens}: give one of the two",
            )
        if self.top_logprobs and not self.logprobs:
            raise _at("top_logprobs", "invalid_value", "needs logprobs to be true")
        return self

    def chat_messages(self) -> list[dict[str, Any]]:
        """The conversation as :meth:`graftwork.adapters.prompts.Prompts.chat` takes it."""
        return [message.model_dump(exclude_none=True, include=_SPOKEN) for message in self.messages]

    def asked(self) -> dict[str, Any]:
        return {"messages": self.chat_messages()}

    def _limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def _default_tokens(self, left: int) -> int:
        return left

    def _logprobs(self) -> tuple[int | None, int | None]:
        return (self.top_logprobs or 0) if self.logprobs else None, None


class CompletionRequest(Generation):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    suffix: Annotated[Any, _off("", instead="text cannot be inserted; leave it out")] = None

    prompt_field: ClassVar[str] = "prompt"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise _at("max_tokens", "invalid_value", "must be at least 1; 0 is only for echo, which scores the prompt")
        if self.best_of is not None and self.best_of != self.choices:
            raise _at("best_of", "unsupported_parameter", "is not supported beyond n: leave it out")
        return self

    def asked(self) -> dict[str, Any]:
        return {"prompt": [prompt if isinstance(prompt, str) else list(prompt) for prompt in self.prompt]}

    def prompts(self, encode: Callable[[str], list[int]], vocab_size: int) -> list[tuple[int, ...]]:
        """Every prompt as token ids. Raises :class:`InvalidRequest` for an id that the vocabulary does not have."""
        tokens = [tuple(encode(prompt)) if isinstance(prompt, str) else prompt for prompt in self.prompt]
        for ids in tokens:
            if (largest := max(ids, default=0)) >= vocab_size:
                raise InvalidRequest(
                    f"the prompt has token id {_show(largest)}, but this model's ids go from 0 to {vocab_size - 1}",
                    param="prompt",
                )
        return tokens

    def _default_tokens(self, left: int) -> int:
        return min(DEFAULT_COMPLETION_TOKENS, left)

    def _logprobs(self) -> tuple[int | None, int | None]:
        return self.logprobs, self.logprobs if self.echo else None


def _choice_seed(seed: int | None, choice: int) -> int | None:
    # 63 bits: what every generator takes, and nothing that a client can send overflows it.
    return None if seed is None else (seed + choice) & INT64_MAX


# ---------------------------------------------------------------------------------- errors, in words for people


def _at(field: str, code: str, message: str) -> PydanticCustomError:
    """An error of the whole body that belongs to one field."""
    return PydanticCustomError("graftwork", "{message}", {"code": code, "message": message, "field": (field,)})


_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "dict_type": "an object",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _explain(error: ErrorDetails, place: Place, model: type[Wire]) -> tuple[str, str]:
    """The code and the message for one of pydantic's errors."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    field = _path(place) or "the body"
    if kind == "graftwork":
        message = context["message"]
        return context["code"], field + message if message.startswith("[") else f"{field} {message}"
    if kind == "json_invalid":
        reason = context["error"]
        if "hex escape" in reason:
            reason += " (half a surrogate pair is no character)"
        return "invalid_json", f"the body is not valid JSON: {reason}"
    if kind == "missing":
        return "missing_required_parameter", f"{field} is required"
    if kind == "extra_forbidden":
        return "unknown_parameter", _unknown(place, model)
    if kind in _TYPES:
        shown = _show(value) if kind == "finite_number" else _kind(value)
        return "invalid_type", f"{field} must be {_TYPES[kind]}, not {shown}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return "invalid_value", f"{field} must be {words} {_number(context[key])}, got {_show(value)}"
    if kind == "literal_error":
        return "invalid_value", f"{field} must be {context['expected']}, got {_show(value)}"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        return "invalid_value", f"{field} is too long: at most {context['max_length']} {unit}"
    if kind in ("string_too_short", "too_short"):
        return "invalid_value", f"{field} must not be empty"
    return "invalid_value", f"{field}: {error['msg']}"


def _unknown(place: Place, model: type[Wire]) -> str:
    """What to say of a field that nobody knows, with the field that was probably meant."""
    name, where = str(place[-1]), _path(place)
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.75) if len(place) == 1 else []
    return f"{_show(where)} is not a field of this request: {f'did you mean {near[0]}?' if near else 'remove it'}"


def _path(place: Place) -> str:
    """A field's place as people write it: ``messages[0].content``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    return path if len(path) <= 128 else path[:127] + "…"


def _show(value: Any) -> str:
    """A user's value for a message: short, on one line."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number with very many digits"
    text = repr(value)
    return text if len(text) <= 64 else text[:63] + "…"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _kind(value: Any) -> str:
    """What JSON calls the type of ``value``."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else "an object")
