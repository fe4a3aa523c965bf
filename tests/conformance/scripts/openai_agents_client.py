"""OpenAI's Agents SDK, which prefers responses and can be told to use chat completions."""

from __future__ import annotations

from typing import Any, Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from examples import RESULT, Ticket
from features import API_KEY, BASE_URL, MODEL, feature, main, raised_async

TEXT = "What is the weather like in Paris?"

client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)


@function_tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return RESULT


def agent(kind: Any = OpenAIChatCompletionsModel, model: str = MODEL, client: Any = client, **options: Any) -> Any:
    settings = ModelSettings(**{"temperature": 0, "max_tokens": 80, **options.pop("settings", {})})
    return Agent(name="weather", model=kind(model, client), model_settings=settings, **options)


async def calls_tool(kind: Any) -> None:
    """The tool is run, and its result is the model's to answer."""
    settings = {"tool_choice": "get_weather", "parallel_tool_calls": False}
    run = await Runner.run(agent(kind, tools=[get_weather], settings=settings), TEXT, max_turns=4)
    kinds = [item.type for item in run.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"], kinds
    assert kinds[-1] == "message_output_item" or "tool_call_item" in kinds[2:], kinds


async def streams(kind: Any) -> None:
    run = Runner.run_streamed(agent(kind, settings={"max_tokens": 16}), TEXT)
    events = [event async for event in run.stream_events()]
    assert any(getattr(event, "data", None) is not None and event.data.type.endswith("text.delta") for event in events)
    assert run.final_output


@feature("chat")
async def chat() -> None:
    assert (await Runner.run(agent(settings={"max_tokens": 16}), TEXT)).final_output


@feature("streaming")
async def streaming() -> None:
    await streams(OpenAIChatCompletionsModel)


@feature("structured output")
async def structured() -> None:
    assert isinstance((await Runner.run(agent(output_type=Ticket), TEXT)).final_output, Ticket)


@feature("tools: named")
async def tools_named() -> None:
    await calls_tool(OpenAIChatCompletionsModel)


@feature("responses")
async def responses() -> None:
    assert (await Runner.run(agent(OpenAIResponsesModel, settings={"max_tokens": 16}), TEXT)).final_output


@feature("responses: streaming")
async def responses_streaming() -> None:
    await streams(OpenAIResponsesModel)


@feature("responses: tools")
async def responses_tools() -> None:
    await calls_tool(OpenAIResponsesModel)


@feature("responses: structured output")
async def responses_structured() -> None:
    assert isinstance((await Runner.run(agent(OpenAIResponsesModel, output_type=Ticket), TEXT)).final_output, Ticket)


@feature("error 400")
async def error_400() -> str:
    return await raised_async(Runner.run(agent(settings={"temperature": 5}), TEXT), openai.BadRequestError)


@feature("error 401")
async def error_401() -> str:
    stranger = client.with_options(api_key="a-wrong-key")
    return await raised_async(Runner.run(agent(client=stranger), TEXT), openai.AuthenticationError)


@feature("error 404")
async def error_404() -> str:
    return await raised_async(Runner.run(agent(model="nobody"), TEXT), openai.NotFoundError)


@feature("error 429")
async def error_429() -> str:
    return await raised_async(Runner.run(agent(), TEXT), openai.RateLimitError)


if __name__ == "__main__":
    main()
