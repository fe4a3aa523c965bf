"""LiteLLM, which speaks to servers like this one as ``openai/MODEL``."""

from __future__ import annotations

from typing import Any

import litellm
from examples import PARAMETERS, QUESTION, RESULT, SHORT, Ticket, city
from features import API_KEY, BASE_URL, MODEL, URL, feature, main, raised

litellm.suppress_debug_info = True

SERVER: Any = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": API_KEY}
LIKE_ANTHROPIC: Any = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": API_KEY}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CALLED: Any = [
    *QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": RESULT},
]


def chat(messages: Any = QUESTION, **options: Any) -> Any:
    return litellm.completion(
        messages=messages, **{**SERVER, "temperature": 0, "max_tokens": 16, "max_retries": 0, **options}
    )


@feature("models")
def models() -> None:
    assert MODEL in litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_key=API_KEY, api_base=BASE_URL
    )


@feature("chat")
def answer() -> None:
    answer = chat()
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


@feature("streaming")
def streaming() -> None:
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat().choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0


@feature("logprobs")
def logprobs() -> None:
    tokens = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)


@feature("structured output")
def structured() -> None:
    answer = chat(response_format=Ticket, max_tokens=80)
    Ticket.model_validate_json(answer.choices[0].message.content)


@feature("completions")
def completions() -> None:
    server = {**SERVER, "model": f"text-completion-openai/{MODEL}"}
    answer = litellm.text_completion(prompt="The capital of France is", temperature=0, max_tokens=4, **server)
    assert answer.choices[0].text


@feature("tools: required")
def tools_required() -> None:
    (call,) = (
        chat(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=80)
        .choices[0]
        .message.tool_calls
    )
    city(call.function.arguments)


@feature("tools: named")
def tools_named() -> None:
    (call,) = chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=80).choices[0].message.tool_calls
    city(call.function.arguments)


@feature("tools: history")
def tools_history() -> None:
    message = chat(CALLED, tools=[WEATHER], max_tokens=24).choices[0].message
    assert message.content or message.tool_calls


@feature("tools: streaming")
def tools_streaming() -> None:
    chunks = list(chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=80, stream=True))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    city(call.function.arguments)


@feature("responses")
def responses() -> None:
    answer = litellm.responses(input=SHORT, temperature=0, max_output_tokens=64, **SERVER)
    assert answer.output[0].content[0].text


@feature("responses: streaming")
def responses_streaming() -> None:
    events = list(litellm.responses(input=SHORT, temperature=0, max_output_tokens=64, stream=True, **SERVER))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type in ("response.completed", "response.incomplete")


@feature("messages")
def messages() -> None:
    assert chat(**LIKE_ANTHROPIC).choices[0].message.content


@feature("messages: streaming")
def messages_streaming() -> None:
    chunks = chat(stream=True, **LIKE_ANTHROPIC)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@feature("messages: tools")
def messages_tools() -> None:
    (call,) = chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=80, **LIKE_ANTHROPIC).choices[0].message.tool_calls
    city(call.function.arguments)


@feature("embeddings")
def embeddings() -> None:
    answer = litellm.embedding(input=["a lost card", "a transfer"], **SERVER)
    assert len(answer.data[0]["embedding"]) == len(answer.data[1]["embedding"]) > 100


@feature("error 400")
def error_400() -> str:
    return raised(lambda: chat(temperature=5), litellm.BadRequestError)


@feature("error 401")
def error_401() -> str:
    return raised(lambda: chat(api_key="a-wrong-key"), litellm.AuthenticationError)


@feature("error 404")
def error_404() -> str:
    return raised(lambda: chat(model="openai/nobody"), litellm.NotFoundError)


@feature("error 429")
def error_429() -> str:
    return raised(chat, litellm.RateLimitError)


if __name__ == "__main__":
    main()
