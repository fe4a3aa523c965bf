"""LlamaIndex's ``OpenAILike`` and ``OpenAILikeEmbedding``."""

# It reads the annotations of functions: no strings, and so no import from __future__.

from typing import Any, Literal

import openai
from examples import QUESTION, RESULT, Ticket
from features import API_KEY, BASE_URL, MODEL, feature, main, raised
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

TEXT = QUESTION[0]["content"]


def llm(**options: Any) -> OpenAILike:
    settings: Any = {"api_base": BASE_URL, "api_key": API_KEY, "model": MODEL, "max_retries": 0}
    settings |= {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8192}
    return OpenAILike(**{**settings, "temperature": 0, "max_tokens": 80, **options})


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return RESULT


TOOL = FunctionTool.from_defaults(get_weather)


@feature("chat")
def chat() -> None:
    assert llm(max_tokens=16).chat([ChatMessage(TEXT)]).message.content


@feature("streaming")
def streaming() -> None:
    *_, last = llm(max_tokens=16).stream_chat([ChatMessage(TEXT)])
    assert last.message.content


@feature("logprobs")
def logprobs() -> None:
    answer = llm(max_tokens=16, logprobs=True, top_logprobs=3).chat([ChatMessage(TEXT)])
    assert answer.logprobs


@feature("structured output")
def structured() -> None:
    answer = llm(should_use_structured_outputs=True).as_structured_llm(Ticket).chat([ChatMessage(TEXT)])
    assert isinstance(answer.raw, Ticket)


@feature("completions")
def completions() -> None:
    assert llm(is_chat_model=False, max_tokens=4).complete("The capital of France is").text


@feature("tools: required")
def tools_required() -> None:
    answer = llm().chat_with_tools([TOOL], TEXT, tool_required=True, allow_parallel_tool_calls=False)
    (call,) = llm().get_tool_calls_from_response(answer)
    assert call.tool_kwargs["city"] in ("Paris", "Rome")


@feature("tools: named")
def tools_named() -> None:
    answer = llm().chat_with_tools([TOOL], TEXT, tool_choice="get_weather")
    (call,) = llm().get_tool_calls_from_response(answer)
    assert call.tool_kwargs["city"] in ("Paris", "Rome")


@feature("tools: history")
def tools_history() -> None:
    asked = llm().chat_with_tools([TOOL], TEXT, tool_choice="get_weather")
    (call,) = llm().get_tool_calls_from_response(asked)
    result = ChatMessage(RESULT, role="tool", additional_kwargs={"tool_call_id": call.tool_id})
    history = [ChatMessage(TEXT), asked.message, result]
    assert llm(max_tokens=24).chat_with_tools([TOOL], chat_history=history).message.blocks


@feature("tools: streaming")
def tools_streaming() -> None:
    *_, last = llm().stream_chat_with_tools([TOOL], TEXT, tool_choice="get_weather")
    (call,) = llm().get_tool_calls_from_response(last)
    assert call.tool_kwargs["city"] in ("Paris", "Rome")


@feature("embeddings")
def embeddings() -> None:
    embedder = OpenAILikeEmbedding(model_name=MODEL, api_base=BASE_URL, api_key=API_KEY, max_retries=0)
    first, second = embedder.get_text_embedding_batch(["a lost card", "a transfer"])
    assert len(first) == len(second) > 100


@feature("error 400")
def error_400() -> str:
    return raised(lambda: llm(temperature=2, top_p=7).complete(TEXT, top_p=7), openai.BadRequestError)


@feature("error 401")
def error_401() -> str:
    return raised(lambda: llm(api_key="a-wrong-key").complete(TEXT), openai.AuthenticationError)


@feature("error 404")
def error_404() -> str:
    return raised(lambda: llm(model="nobody").complete(TEXT), openai.NotFoundError)


@feature("error 429")
def error_429() -> str:
    return raised(lambda: llm().complete(TEXT), openai.RateLimitError)


if __name__ == "__main__":
    main()
