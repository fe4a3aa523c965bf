"""Anthropic's client for Python, with the check of every answer against Anthropic's types."""

from __future__ import annotations

from typing import Any

import anthropic
from examples import PARAMETERS, QUESTION, RESULT, city
from features import API_KEY, MODEL, URL, feature, main, raised

client = anthropic.Anthropic(base_url=URL, api_key=API_KEY, max_retries=0, _strict_response_validation=True)

WEATHER: Any = {"name": "get_weather", "description": "The weather of a city.", "input_schema": PARAMETERS}


def message(messages: Any = QUESTION, **options: Any) -> Any:
    return client.messages.create(model=MODEL, messages=messages, **{"max_tokens": 16, **options})


@feature("models")
def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]


@feature("messages")
def messages() -> None:
    answer = message(system="You answer briefly.")
    assert answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens > 0


@feature("messages: streaming")
def streaming() -> None:
    with client.messages.stream(model=MODEL, messages=QUESTION, max_tokens=16) as stream:
        text = "".join(stream.text_stream)
        final: Any = stream.get_final_message()
    assert text
    assert final.content[0].text == text
    assert final.stop_reason in ("end_turn", "max_tokens")


@feature("messages: tools")
def tools() -> None:
    options: Any = {"tools": [WEATHER], "max_tokens": 80}
    answer = message(tool_choice={"type": "tool", "name": "get_weather"}, **options)
    call = next(block for block in answer.content if block.type == "tool_use")
    city(call.input)
    assert answer.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    turns = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert message(turns, **options).stop_reason
    with client.messages.stream(model=MODEL, messages=QUESTION, tool_choice={"type": "any"}, **options) as stream:
        streamed: Any = stream.get_final_message()
    city(next(block for block in streamed.content if block.type == "tool_use").input)


@feature("messages: token count")
def token_count() -> None:
    assert client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > 0


@feature("error 400")
def error_400() -> str:
    return raised(lambda: message(extra_body={"temperature": 5}), anthropic.BadRequestError)


@feature("error 401")
def error_401() -> str:
    stranger = client.with_options(api_key="a-wrong-key")
    return raised(
        lambda: stranger.messages.create(model=MODEL, messages=QUESTION, max_tokens=1), anthropic.AuthenticationError
    )


@feature("error 404")
def error_404() -> str:
    return raised(
        lambda: client.messages.create(model="nobody", messages=QUESTION, max_tokens=1), anthropic.NotFoundError
    )


@feature("error 429")
def error_429() -> str:
    return raised(message, anthropic.RateLimitError)


if __name__ == "__main__":
    main()
