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
from examples import RESULT, SHORT, Ticket
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
    """The tool is called and run, and the model answers when it has seen what the tool said."""
    settings = {"tool_choice": "get_weather", "parallel_tool_calls": False}
    options: Any = {"tools": [get_weather], "tool_use_behavior": "stop_on_first_tool"}
    asked = await Runner.run(agent(kind, settings=settings, **options), TEXT)
    assert [item.type for item in asked.new_items] == ["tool_call_item", "tool_call_output_item"]
    assert asked.final_output == RESULT
    answering = agent(kind, tools=[get_weather], settings={"tool_choice": "none"}, output_type=Ticket)
    assert isinstance((await Runner.run(answering, asked.to_input_list())).final_output, Ticket)


async def streams(kind: Any) -> None:
    run = Runner.run_streamed(agent(kind), SHORT)
    events = [event async for event in run.stream_events()]
    assert any(getattr(event, "data", None) is not None and event.data.type.endswith("text.delta") for event in events)
    assert run.final_output


@feature("chat")
async def chat() -> None:
    assert (await Runner.run(agent(), SHORT)).final_output


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
    assert (await Runner.run(agent(OpenAIResponsesModel), SHORT)).final_output


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
