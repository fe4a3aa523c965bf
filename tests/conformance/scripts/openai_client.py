"""OpenAI's own client for Python, with the check of every answer against OpenAI's types."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import openai
from examples import PARAMETERS, QUESTION, SHORT, Ticket, city
from features import API_KEY, BASE_URL, MODEL, feature, main, raised

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, _strict_response_validation=True)
lenient = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)

WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}
TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": PARAMETERS, "strict": True}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
CALLED: Any = [
    *QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
]
FLAT_WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}
FLAT_NAMED: Any = {"type": "function", "name": "get_weather"}


def chat(messages: Any = QUESTION, **options: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=messages, **{"temperature": 0, "max_tokens": 16, **options}
    )


@feature("models")
def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


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
    answer = chat(logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)


@feature("structured output")
def structured() -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Ticket, temperature=0, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Ticket)


@feature("completions")
def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert answer.choices[0].text


@feature("tools: required")
def tools_required() -> None:
    answer = chat(tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False, max_tokens=80)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name in ("get_weather", "get_time")
    city(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


@feature("tools: named")
def tools_named() -> None:
    (call,) = chat(tools=[WEATHER, TIME], tool_choice=NAMED, max_tokens=80).choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    city(call.function.arguments)


@feature("tools: history")
def tools_history() -> None:
    message = chat(CALLED, tools=[WEATHER, TIME], max_tokens=24).choices[0].message
    assert message.content or message.tool_calls


@feature("tools: streaming")
def tools_streaming() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=[WEATHER, TIME], tool_choice=NAMED, temperature=0, max_tokens=80
    ) as stream:
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"
    assert "".join(deltas) == call.function.arguments
    city(call.function.arguments)


@feature("responses")
def responses() -> None:
    answer = client.responses.create(model=MODEL, input=SHORT, temperature=0, max_output_tokens=64)
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0


@feature("responses: streaming")
def responses_streaming() -> None:
    with client.responses.stream(model=MODEL, input=SHORT, temperature=0, max_output_tokens=64) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text
        assert stream.get_final_response().output_text == text


@feature("responses: tools")
def responses_tools() -> None:
    options: Any = {"model": MODEL, "tools": [FLAT_WEATHER], "temperature": 0, "max_output_tokens": 80}
    answer = client.responses.create(input=QUESTION, tool_choice=FLAT_NAMED, **options)
    call = next(item for item in answer.output if item.type == "function_call")
    city(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}
    assert client.responses.create(input=[*QUESTION, *answer.output, result], **options).output


@feature("responses: structured output")
def responses_structured() -> None:
    answer = client.responses.parse(
        model=MODEL, input="My card is lost!", text_format=Ticket, temperature=0, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Ticket)


@feature("embeddings")
def embeddings() -> None:
    texts = ["a lost card", "a transfer"]
    answer = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    numbers = [item.embedding for item in answer.data]
    assert len(numbers) == 2
    assert len(numbers[0]) == len(numbers[1]) > 100
    # The client's own choice is base64, which it decodes after its strict check has refused it.
    decoded = lenient.embeddings.create(model=MODEL, input=texts).data[0].embedding
    assert max(abs(one - other) for one, other in zip(decoded, numbers[0], strict=True)) < 1e-5


@feature("batches")
def batches() -> None:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8}
    line = {"custom_id": "first", "method": "POST", "url": "/v1/chat/completions", "body": body}
    rows = io.BytesIO(json.dumps(line).encode() + b"\n")
    file = client.files.create(file=("rows.jsonl", rows), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "today"}
    )
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch.status
    assert batch.output_file_id is not None
    result = json.loads(client.files.content(batch.output_file_id).text)
    assert result["custom_id"] == "first"
    assert result["response"]["body"]["choices"][0]["message"]["content"]
    assert batch.id in [listed.id for listed in client.batches.list()]


@feature("error 400")
def error_400() -> str:
    return raised(lambda: chat(temperature=5), openai.BadRequestError)


@feature("error 401")
def error_401() -> str:
    stranger = client.with_options(api_key="a-wrong-key")
    return raised(lambda: stranger.chat.completions.create(model=MODEL, messages=QUESTION), openai.AuthenticationError)


@feature("error 404")
def error_404() -> str:
    return raised(lambda: client.chat.completions.create(model="nobody", messages=QUESTION), openai.NotFoundError)


@feature("error 429")
def error_429() -> str:
    return raised(chat, openai.RateLimitError)


if __name__ == "__main__":
    main()
