"""LangChain's ``ChatOpenAI`` and its neighbours."""

from __future__ import annotations

from typing import Any, Literal

import openai
from examples import QUESTION, RESULT, Ticket, city
from features import API_KEY, BASE_URL, MODEL, feature, main, raised
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

SERVER: Any = {"base_url": BASE_URL, "api_key": API_KEY, "model": MODEL, "max_retries": 0}


def model(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{**SERVER, "temperature": 0, "max_tokens": 80, **options})


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return RESULT


@feature("chat")
def chat() -> None:
    answer = model().invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


@feature("streaming")
def streaming() -> None:
    whole: Any = None
    for chunk in model(max_tokens=16, stream_usage=True).stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole.content
    assert whole.usage_metadata["output_tokens"] > 0


@feature("logprobs")
def logprobs() -> None:
    answer = model(max_tokens=16, logprobs=True, top_logprobs=3).invoke(QUESTION)
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 3


@feature("structured output")
def structured() -> None:
    assert isinstance(model().with_structured_output(Ticket).invoke(QUESTION), Ticket)


@feature("completions")
def completions() -> None:
    assert OpenAI(**SERVER, temperature=0, max_tokens=4).invoke("The capital of France is")


@feature("tools: required")
def tools_required() -> None:
    bound = model().bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
    (call,) = bound.invoke(QUESTION).tool_calls
    assert call["name"] == "get_weather"
    city(call["args"])


@feature("tools: named")
def tools_named() -> None:
    (call,) = model().bind_tools([get_weather], tool_choice="get_weather").invoke(QUESTION).tool_calls
    city(call["args"])


@feature("tools: history")
def tools_history() -> None:
    called = AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}])
    messages = [HumanMessage(QUESTION[0]["content"]), called, ToolMessage(RESULT, tool_call_id="call_1")]
    answer = model(max_tokens=24).bind_tools([get_weather]).invoke(messages)
    assert answer.content or answer.tool_calls


@feature("tools: streaming")
def tools_streaming() -> None:
    whole: Any = None
    for chunk in model().bind_tools([get_weather], tool_choice="get_weather").stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    city(call["args"])


@feature("responses")
def responses() -> None:
    assert model(use_responses_api=True, max_tokens=16).invoke(QUESTION).text


@feature("responses: streaming")
def responses_streaming() -> None:
    assert "".join(chunk.text for chunk in model(use_responses_api=True, max_tokens=16).stream(QUESTION))


@feature("responses: tools")
def responses_tools() -> None:
    bound = model(use_responses_api=True).bind_tools([get_weather], tool_choice="get_weather")
    answer = bound.invoke(QUESTION)
    (call,) = answer.tool_calls
    city(call["args"])
    result = ToolMessage(RESULT, tool_call_id=call["id"])
    assert (
        model(use_responses_api=True)
        .bind_tools([get_weather])
        .invoke([HumanMessage(QUESTION[0]["content"]), answer, result])
    )


@feature("responses: structured output")
def responses_structured() -> None:
    asked = model(use_responses_api=True).with_structured_output(Ticket)
    assert isinstance(asked.invoke(QUESTION), Ticket)


@feature("embeddings")
def embeddings() -> None:
    # Unless told otherwise it sends token ids of an OpenAI model's tokenizer.
    embedder = OpenAIEmbeddings(**SERVER, check_embedding_ctx_length=False)
    first, second = embedder.embed_documents(["a lost card", "a transfer"])
    assert len(first) == len(second) > 100


@feature("error 400")
def error_400() -> str:
    return raised(lambda: model(temperature=5).invoke(QUESTION), openai.BadRequestError)


@feature("error 401")
def error_401() -> str:
    return raised(lambda: model(api_key="a-wrong-key").invoke(QUESTION), openai.AuthenticationError)


@feature("error 404")
def error_404() -> str:
    return raised(lambda: model(model="nobody").invoke(QUESTION), openai.NotFoundError)


@feature("error 429")
def error_429() -> str:
    return raised(lambda: model().invoke(QUESTION), openai.RateLimitError)


if __name__ == "__main__":
    main()
