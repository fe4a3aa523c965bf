"""Pydantic AI, over chat completions, responses and messages."""

from __future__ import annotations

from typing import Any, Literal

import openai
from anthropic import AsyncAnthropic
from examples import RESULT, Ticket
from features import API_KEY, BASE_URL, MODEL, URL, feature, main, raised
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.embeddings import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

TEXT = "What is the weather like in Paris?"


def provider(api_key: str = API_KEY) -> OpenAIProvider:
    return OpenAIProvider(openai_client=openai.AsyncOpenAI(base_url=BASE_URL, api_key=api_key, max_retries=0))


def agent(model: Any = None, max_tokens: int = 80, **options: Any) -> Any:
    settings: Any = {"temperature": 0, "max_tokens": max_tokens, "parallel_tool_calls": False}
    return Agent(model or OpenAIChatModel(MODEL, provider=provider()), model_settings=settings, **options)


def responses_model() -> OpenAIResponsesModel:
    return OpenAIResponsesModel(MODEL, provider=provider())


def messages_model() -> AnthropicModel:
    client = AsyncAnthropic(base_url=URL, api_key=API_KEY, max_retries=0)
    return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return RESULT


@feature("chat")
def chat() -> None:
    run = agent(max_tokens=16).run_sync(TEXT)
    assert run.output
    assert run.usage.output_tokens > 0


@feature("streaming")
async def streaming() -> None:
    async with agent(max_tokens=16).run_stream(TEXT) as run:
        texts = [text async for text in run.stream_text(delta=True)]
    assert "".join(texts)


@feature("logprobs")
def logprobs() -> None:
    settings: Any = {"openai_logprobs": True, "openai_top_logprobs": 3}
    run = agent(max_tokens=16).run_sync(TEXT, model_settings=settings)
    details = run.all_messages()[-1].provider_details
    assert len(details["logprobs"][0]["top_logprobs"]) == 3


@feature("structured output")
def structured() -> None:
    assert isinstance(agent(output_type=NativeOutput(Ticket)).run_sync(TEXT).output, Ticket)


@feature("tools: required")
def tools_required() -> None:
    assert isinstance(agent(output_type=ToolOutput(Ticket)).run_sync(TEXT).output, Ticket)


@feature("tools: history")
def tools_history() -> None:
    history = [
        ModelRequest([UserPromptPart(TEXT)]),
        ModelResponse([ToolCallPart("get_weather", {"city": "Paris"}, "call_1")]),
        ModelRequest([ToolReturnPart("get_weather", RESULT, "call_1")]),
    ]
    assert agent(max_tokens=24, tools=[get_weather]).run_sync(message_history=history).output


@feature("tools: streaming")
async def tools_streaming() -> None:
    async with agent(output_type=ToolOutput(Ticket)).run_stream(TEXT) as run:
        assert isinstance(await run.get_output(), Ticket)


@feature("responses")
def responses() -> None:
    assert agent(responses_model(), 16).run_sync(TEXT).output


@feature("responses: streaming")
async def responses_streaming() -> None:
    async with agent(responses_model(), 16).run_stream(TEXT) as run:
        assert await run.get_output()


@feature("responses: tools")
def responses_tools() -> None:
    assert isinstance(agent(responses_model(), output_type=ToolOutput(Ticket)).run_sync(TEXT).output, Ticket)


@feature("responses: structured output")
def responses_structured() -> None:
    assert isinstance(agent(responses_model(), output_type=NativeOutput(Ticket)).run_sync(TEXT).output, Ticket)


@feature("messages")
def messages() -> None:
    assert agent(messages_model(), 16).run_sync(TEXT).output


@feature("messages: streaming")
async def messages_streaming() -> None:
    async with agent(messages_model(), 16).run_stream(TEXT) as run:
        assert await run.get_output()


@feature("messages: tools")
def messages_tools() -> None:
    assert isinstance(agent(messages_model(), output_type=ToolOutput(Ticket)).run_sync(TEXT).output, Ticket)


@feature("embeddings")
def embeddings() -> None:
    embedder = Embedder(OpenAIEmbeddingModel(MODEL, provider=provider()))
    assert len(embedder.embed_documents_sync(["a lost card", "a transfer"]).embeddings) == 2


def failed(call: Any, status: int) -> str:
    """The class of the error, whose status is the one that is expected."""
    return raised(call, ModelHTTPError, lambda error: error.status_code == status)


@feature("error 400")
def error_400() -> str:
    return failed(lambda: agent().run_sync(TEXT, model_settings={"temperature": 5}), 400)


@feature("error 401")
def error_401() -> str:
    return failed(lambda: agent(OpenAIChatModel(MODEL, provider=provider("a-wrong-key"))).run_sync(TEXT), 401)


@feature("error 404")
def error_404() -> str:
    return failed(lambda: agent(OpenAIChatModel("nobody", provider=provider())).run_sync(TEXT), 404)


@feature("error 429")
def error_429() -> str:
    return failed(lambda: agent().run_sync(TEXT), 429)


if __name__ == "__main__":
    main()
