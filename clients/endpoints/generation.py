"""Chat and text completions, complete or streamed, scores of texts, and the tokens of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from graftwork.clients.endpoints.parts import reader_of, without_none
from graftwork.clients.errors import GraftworkProtocolError
from graftwork.clients.http.calls import SLOW_TIMEOUT, Call, CallRequest, CallResponse, StreamCall
from graftwork.clients.http.streams import ChatChunk, CompletionChunk
from graftwork.clients.http.wire import parse
from graftwork.clients.types.generation import (
    ChatCompletion,
    ChatDelta,
    Completion,
    CompletionDelta,
    Detokenized,
    Score,
    Tokenized,
)

Messages = str | Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int]


class GenerationOptions(TypedDict, total=False):
    """Options of a generation, as in OpenAI's API. The server has defaults for those that are left out or None.

    ``session`` identifies a conversation or visitor, whose requests an experiment assigns to the same arm. ``episode``
    names several answers that are judged as one.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[str, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    n: int | None
    ignore_eos: bool | None
    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None
    prompt_logprobs: int | None
    skip_special_tokens: bool | None
    user: str | None
    store: bool | None
    metadata: Mapping[str, str] | None
    session: str | None
    episode: str | None


class ChatOptions(GenerationOptions, total=False):
    """`GenerationOptions` and the options of chat completions."""

    logprobs: bool | None
    top_logprobs: int | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None


class CompletionOptions(GenerationOptions, total=False):
    """`GenerationOptions` and the options of text completions."""

    logprobs: int | None
    echo: bool | None


def chat(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> Call[ChatCompletion]:
    """Generate a chat completion.

    Args:
        model: the base, an adapter, a version or an alias: ``intents``, ``intents@7``, ``intents@candidate``.
        messages: messages with ``role`` and ``content``, or the text of a single user message.
        **options: see ``ChatOptions``.

    Raises:
        BadRequestError: if the messages or an option are invalid.
        NotFoundError: if there is no such model.
        OverloadedError: if the server's queue is full.
    """
    return Call(request=_chat_request(model, messages, options), read=reader_of(ChatCompletion))


def chat_stream(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> StreamCall[ChatDelta]:
    """Stream a chat completion: iterate over its deltas. Arguments and errors as for ``chat``; while iterating,
    ``InterruptedAnswerError`` may be raised."""
    return StreamCall(request=_chat_request(model, messages, options, stream=True), chunk=ChatChunk)


def complete(model: str, prompt: Prompt, **options: Unpack[CompletionOptions]) -> Call[Completion]:
    """Generate a text completion.

    Args:
        model: as for ``chat``.
        prompt: a text, or token ids.
        **options: see ``CompletionOptions``.

    Raises:
        GraftworkAPIError: as for ``chat``.
    """
    return Call(request=_completion_request(model, prompt, options), read=reader_of(Completion))


def complete_stream(model: str, prompt: Prompt, **options: Unpack[CompletionOptions]) -> StreamCall[CompletionDelta]:
    """Stream a text completion: iterate over its deltas. Arguments and errors as for ``complete``."""
    return StreamCall(request=_completion_request(model, prompt, options, stream=True), chunk=CompletionChunk)


def score(model: str, prompt: Prompt, *, top: int = 1) -> Call[Score]:
    """Score a text without generating: the log-probability of each token, and the most likely tokens at each position.

    Args:
        model: as for ``chat``.
        prompt: a text, or token ids.
        top: number of most likely tokens.
    """
    options = CompletionOptions(echo=True, logprobs=top, max_tokens=0, temperature=0.0)
    return Call(request=_completion_request(model, prompt, options), read=_read_score)


def tokenize(
    prompt: Messages,
    *,
    model: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_special_tokens: bool | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    return_token_strs: bool | None = None,
) -> Call[Tokenized]:
    """Get the tokens of a prompt.

    Args:
        prompt: a text as for ``complete``, or messages as for ``chat``.
        model: anything that the server answers by; all have the tokenizer of the base.
        tools: the tools that the messages' answer may call.
        add_special_tokens: whether a text gets those that the tokenizer puts around it; by default it does.
        add_generation_prompt: whether messages end where an answer begins; by default they do.
        continue_final_message: whether messages end where the text of the last one does; by default they do not.
        chat_template_kwargs: what else the chat template may ask for.
        return_token_strs: whether the tokens' texts are returned, too.

    Raises:
        BadRequestError: if the prompt is too long, or the chat template refuses the messages.
        NotFoundError: if there is no such model.
    """
    body = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
    options = without_none(
        model=model,
        tools=None if tools is None else list(tools),
        add_special_tokens=add_special_tokens,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        chat_template_kwargs=chat_template_kwargs,
        return_token_strs=return_token_strs,
    )
    request = CallRequest(method="POST", path="/tokenize", json=body | options, idempotent=True)
    return Call(request=request, read=reader_of(Tokenized))


def detokenize(tokens: Sequence[int], *, model: str | None = None) -> Call[str]:
    """Get the text of token ids, special tokens included.

    Args:
        tokens: token ids.
        model: as for ``tokenize``.

    Raises:
        BadRequestError: if the base lacks one of the tokens.
    """
    body = {"tokens": list(tokens), **without_none(model=model)}
    request = CallRequest(method="POST", path="/detokenize", json=body, idempotent=True)
    return Call(request=request, read=lambda reply: parse(Detokenized, reply.json()).prompt)


def _read_score(reply: CallResponse) -> Score:
    completion = parse(Completion, reply.json())
    logprobs = completion.choices[0].logprobs if completion.choices else None
    if logprobs is None:
        raise GraftworkProtocolError("the server's answer has no log-probabilities, though echo and logprobs asked")
    return Score(
        tokens=logprobs.tokens,
        logprobs=logprobs.token_logprobs,
        top=logprobs.top_logprobs,
        usage=completion.usage,
        adapter=completion.adapter,
    )


def _chat_request(model: str, messages: Messages, options: ChatOptions, *, stream: bool = False) -> CallRequest:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return _generation("/v1/chat/completions", {"model": model, "messages": turns}, options, stream)


def _completion_request(model: str, prompt: Prompt, options: CompletionOptions, *, stream: bool = False) -> CallRequest:
    ids_or_text = prompt if isinstance(prompt, str) else list(prompt)
    return _generation("/v1/completions", {"model": model, "prompt": ids_or_text}, options, stream)


def _generation(path: str, body: dict[str, Any], options: Mapping[str, Any], stream: bool) -> CallRequest:
    fields = without_none(**options)
    labels = {f"x-graftwork-{name}": fields.pop(name, None) for name in ("session", "episode")}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return CallRequest(
        method="POST",
        path=path,
        json=body | fields,
        headers={header: label for header, label in labels.items() if label},
        read_timeout=None if stream else SLOW_TIMEOUT,
    )
