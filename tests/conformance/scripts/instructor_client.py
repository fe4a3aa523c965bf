"""Instructor around OpenAI's client, in its modes of JSON schemas and of tools."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from examples import QUESTION, Ticket
from features import API_KEY, BASE_URL, MODEL, feature, main, raised
from instructor.core import InstructorRetryException

plain = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)


def ask(mode: instructor.Mode, client: openai.OpenAI = plain, **options: Any) -> Any:
    return instructor.from_openai(client, mode=mode).chat.completions.create(
        response_model=Ticket,
        messages=QUESTION,
        **{"model": MODEL, "temperature": 0, "max_tokens": 80, "max_retries": 0, **options},
    )


@feature("structured output")
def structured() -> None:
    assert isinstance(ask(instructor.Mode.JSON_SCHEMA), Ticket)


@feature("streaming")
def streaming() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    *_, last = client.chat.completions.create_partial(
        response_model=Ticket, messages=QUESTION, model=MODEL, temperature=0, max_tokens=80
    )
    assert Ticket.model_validate(last.model_dump())


@feature("tools: named")
def tools_named() -> None:
    assert isinstance(ask(instructor.Mode.TOOLS), Ticket)


@feature("tools: streaming")
def tools_streaming() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    *_, last = client.chat.completions.create_partial(
        response_model=Ticket, messages=QUESTION, model=MODEL, temperature=0, max_tokens=80
    )
    assert Ticket.model_validate(last.model_dump())


@feature("responses: structured output")
def responses_structured() -> None:
    client: Any = instructor.from_openai(plain, mode=instructor.Mode.RESPONSES_TOOLS)
    answer = client.responses.create(
        response_model=Ticket, input=QUESTION, model=MODEL, temperature=0, max_output_tokens=80
    )
    assert isinstance(answer, Ticket)


def failed(status: int, **options: Any) -> str:
    """The class of the error, which tells the status that is expected."""
    return raised(
        lambda: ask(instructor.Mode.JSON_SCHEMA, **options),
        InstructorRetryException,
        lambda error: f"Error code: {status}" in str(error),
    )


@feature("error 400")
def error_400() -> str:
    return failed(400, temperature=5)


@feature("error 401")
def error_401() -> str:
    return failed(401, client=plain.with_options(api_key="a-wrong-key"))


@feature("error 404")
def error_404() -> str:
    return failed(404, model="nobody")


@feature("error 429")
def error_429() -> str:
    return failed(429)


if __name__ == "__main__":
    main()
