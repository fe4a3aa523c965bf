"""Answers: formats that the official client accepts, and text without partial characters and stop strings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from graftwork.adapters.errors import GraftworkError, Unavailable
from graftwork.server.bodies import parse, write_json
from graftwork.server.engine.request import Delta, FinishReason, TokenLogprob
from graftwork.server.openai.answers.answer import Answer, AnswerHead
from graftwork.server.openai.answers.chat import ChatAnswer
from graftwork.server.openai.answers.choice import ChoiceDelta, GeneratedChoice
from graftwork.server.openai.answers.completions import CompletionAnswer
from graftwork.server.openai.events import error_frame
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.stop_strings import StopStrings
from graftwork.server.openai.vocabulary import Vocabulary
from tests.server.byte_tokens import EOS, WORDS, ByteTokens


def word(text: str) -> int:
    return 256 + WORDS.index(text)


TOKENS = ByteTokens()


VOCABULARY = Vocabulary(TOKENS)


HEAD = AnswerHead(
    id="x-1", created=1_700_000_000, model="intents", fingerprint="fp_1", graftwork={"adapter": "intents@7"}
)


def score(token_id: int, logprob: float = -0.5, top: Sequence[tuple[int, float]] = ()) -> TokenLogprob:
    return TokenLogprob(token_id, logprob, tuple(top))


def deltas(token_ids: Sequence[int], end: FinishReason, *, scored: bool = False) -> list[Delta]:
    """One delta per token and one for the end, as the engine sends them."""
    steps = [
        Delta("r", [token], [score(token, top=[(token, -0.5), (65, -2.0)])] if scored else []) for token in token_ids
    ]
    return [*steps, Delta("r", finish_reason=end)]


def chat(**fields: Any) -> ChatAnswer:
    body = {"model": "intents", "messages": [{"role": "user", "content": "hi"}], **fields}
    return ChatAnswer(parse(ChatCompletionRequest, json.dumps(body).encode()), HEAD, VOCABULARY, [1, 2, 3])


def completion(prompts: Sequence[Sequence[int]] = ((65, 66),), **fields: Any) -> CompletionAnswer:
    body = {"model": "intents", "prompt": [list(ids) for ids in prompts], **fields}
    return CompletionAnswer(parse(CompletionRequest, json.dumps(body).encode()), HEAD, VOCABULARY, prompts)


def stream(answer: Answer, steps: Iterable[tuple[int, Delta]]) -> list[dict[str, Any]]:
    """The chunks of a whole stream, as a client reads them."""
    wire = answer.opening() + b"".join(answer.frames(index, answer.push(index, delta)) for index, delta in steps)
    events = (wire + answer.closing()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") and "\n" not in event for event in events[:-2])
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


# -------------------------------------------------------------------------------------------------- stop strings


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The slow, obvious way: a character at a time, whichever stop string is complete first, the longest of them."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(
    st.text("ab\n", max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(0, 5)),
)
def test_stop_strings_do_not_depend_on_how_the_text_arrives(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, rest, written, stopped = StopStrings(stops), text, "", False
    for cut in [*cuts, len(text)]:
        piece, rest = rest[:cut], rest[cut:]
        out, stopped = matcher.push(piece)
        written += out
        expected, _ = first_stop(text, stops)
        assert expected.startswith(written)
        if stopped:
            break
        consumed = len(text) - len(rest)
        assert consumed - len(written) < max(map(len, stops)), "held back more than may still become a stop string"
    else:
        written += matcher.flush()
    assert (written, stopped) == first_stop(text, stops)


def test_stop_string_holds_back_only_a_beginning_of_it() -> None:
    matcher = StopStrings(["###"])
    assert matcher.push("a#") == ("a", False)
    assert matcher.push("#") == ("", False)
    assert matcher.push("b##") == ("##b", False)
    assert matcher.push("#tail") == ("", True)


# ------------------------------------------------------------------------------------------------------- choices


def run(choice: GeneratedChoice, steps: Iterable[Delta]) -> list[ChoiceDelta]:
    return [choice.push(delta) for delta in steps]


def test_a_character_of_several_tokens_comes_as_one_piece() -> None:
    pieces = run(GeneratedChoice(0, TOKENS), deltas(list("é€".encode()), FinishReason.STOP))
    assert [piece.text for piece in pieces] == ["", "é", "", "", "€", ""]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    choice = GeneratedChoice(0, TOKENS)
    run(choice, deltas([65, 0xE2, 0x82], FinishReason.LENGTH))
    assert (choice.text, choice.finish) == ("A\ufffd", "length")


def test_a_stop_string_over_several_tokens_ends_the_choice() -> None:
    choice = GeneratedChoice(0, TOKENS, stop=["lo wor"])
    pieces = run(choice, deltas([word("The"), word(" hello"), word(" world"), word(" end")], FinishReason.LENGTH))
    assert [piece.text for piece in pieces] == ["The", " hel", "", "", ""]
    assert [piece.finish for piece in pieces] == [None, None, "stop", None, None]
    assert (choice.text, choice.finish, choice.num_tokens) == ("The hel", "stop", 3)


def test_what_was_held_back_comes_when_the_text_ends() -> None:
    choice = GeneratedChoice(0, TOKENS, stop=["lo there"])
    pieces = run(choice, deltas([word(" hello")], FinishReason.STOP))
    assert [piece.text for piece in pieces] == [" hel", "lo"]


def test_scores_are_of_the_tokens_whose_text_is_given() -> None:
    choice = GeneratedChoice(0, TOKENS, stop=[" world"], scored=True)
    ids = [word("The"), word(" hello"), word(" world")]
    pieces = run(choice, deltas(ids, FinishReason.STOP, scored=True))
    assert [[item.token_id for item in piece.scored] for piece in pieces] == [ids[:1], ids[1:2], [], []]
    assert [item.offset for item in choice.scored or ()] == [0, 3]


def test_a_token_that_is_partly_held_back_is_scored_once_its_text_begins() -> None:
    choice = GeneratedChoice(0, TOKENS, stop=["d!"], scored=True)
    pieces = run(choice, deltas([word(" world"), 33], FinishReason.STOP, scored=True))
    assert [piece.text for piece in pieces] == [" worl", "", ""]
    assert [[item.token_id for item in piece.scored] for piece in pieces] == [[word(" world")], [], []]


def test_tokens_without_text_are_scored_too() -> None:
    choice = GeneratedChoice(0, TOKENS, scored=True)
    run(choice, deltas([EOS, 65, EOS], FinishReason.LENGTH, scored=True))
    assert [item.token_id for item in choice.scored or ()] == [EOS, 65, EOS]
    assert [item.offset for item in choice.scored or ()] == [0, 0, 1]


def test_an_engine_error_is_raised_with_its_reason() -> None:
    with pytest.raises(GraftworkError, match="not finite"):
        GeneratedChoice(0, TOKENS).push(
            Delta("r", finish_reason=FinishReason.ERROR, error="The output was not finite.")
        )


# ----------------------------------------------------------------------------------------------------------- chat


def test_chat_body_is_what_the_official_client_expects() -> None:
    answer = chat(n=2, logprobs=True, top_logprobs=2)
    for index, end in ((0, FinishReason.STOP), (1, FinishReason.LENGTH)):
        for delta in deltas([word("The"), 0xC3, 0xA9], end, scored=True):
            answer.push(index, delta)
    assert answer.done
    body = json.loads(answer.body())
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert [choice.finish_reason for choice in parsed.choices] == ["stop", "length"]
    assert parsed.choices[0].message.content == "Theé"
    assert parsed.choices[0].logprobs is not None
    content = parsed.choices[0].logprobs.content
    assert content is not None
    assert [entry.token for entry in content] == ["The", "\\xc3", "\\xa9"]
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode() == "Theé"
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [("The", -0.5), ("A", -2.0)]
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (3, 6, 9)
    assert body["graftwork"] == {"adapter": "intents@7"}
    assert (parsed.id, parsed.created, parsed.model, parsed.system_fingerprint) == (
        "x-1",
        1_700_000_000,
        "intents",
        "fp_1",
    )


def test_chat_chunks_are_what_the_official_client_expects() -> None:
    answer = chat(stream=True, stream_options={"include_usage": True}, n=2, logprobs=True, stop=[" end"])
    steps = [(i, d) for d in deltas([word("The"), word(" end")], FinishReason.STOP, scored=True) for i in (0, 1)]
    chunks = stream(answer, steps)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [
        {"role": "assistant", "content": "", "refusal": None}
    ] * 2
    assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [
        {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
    ]
    assert chunks[-1]["choices"] == []
    ends = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["finish_reason"]]
    assert [(end["index"], end["delta"], end["finish_reason"]) for end in ends] == [(0, {}, "stop"), (1, {}, "stop")]
    assert all(chunk["graftwork"] == {"adapter": "intents@7"} for chunk in chunks)


def test_cached_tokens_are_those_that_no_choice_computed() -> None:
    answer = completion([[1, 2, 3], [4, 5, 6, 7]], n=2, max_tokens=1)
    for index, num_cached in enumerate((0, 2, 3, 2)):
        answer.push(index, Delta(str(index), [65], num_cached=num_cached, finish_reason=FinishReason.LENGTH))
    usage = json.loads(answer.body())["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]) == (7, {"cached_tokens": 2})


def test_without_include_usage_no_chunk_has_the_field() -> None:
    chunks = stream(chat(stream=True), [(0, delta) for delta in deltas([65], FinishReason.STOP)])
    assert not any("usage" in chunk for chunk in chunks)


@given(st.lists(st.integers(0, 255) | st.integers(256, 260), max_size=20), st.booleans())
def test_a_stream_joined_is_the_body(token_ids: list[int], scored: bool) -> None:
    options = {"logprobs": scored, "stop": ["B", "end"]}
    whole, parts = chat(**options), chat(stream=True, **options)
    steps = [(0, delta) for delta in deltas(token_ids, FinishReason.LENGTH, scored=scored)]
    for index, delta in steps:
        whole.push(index, delta)
    (choice,) = json.loads(whole.body())["choices"]
    chunks = [chunk["choices"][0] for chunk in stream(parts, steps)]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == choice["message"]["content"]
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]
    entries = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
    assert entries == (choice["logprobs"]["content"] if scored else [])


def test_impossible_tokens_have_a_score_that_json_can_say() -> None:
    answer = chat(logprobs=True, top_logprobs=1)
    answer.push(0, Delta("r", [65], [score(65, -0.25, [(66, -math.inf)])], finish_reason=FinishReason.LENGTH))
    (entry,) = json.loads(answer.body())["choices"][0]["logprobs"]["content"]
    assert entry["top_logprobs"][0]["logprob"] == -9999.0


# ---------------------------------------------------------------------------------------------------- completions


def test_with_continuous_usage_every_chunk_has_it() -> None:
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    answer = completion([[65]], **options)
    frames = b"".join(answer.frames(0, answer.push(0, delta)) for delta in deltas([word(" hello")], FinishReason.STOP))
    usages = [json.loads(line[6:])["usage"] for line in frames.decode().splitlines() if line.startswith("data: {")]
    assert [usage["completion_tokens"] for usage in usages] == [1, 1]
    assert answer.closing() == b"data: [DONE]\n\n"


def test_completion_body_is_what_the_official_client_expects() -> None:
    answer = completion([[65], [66, 67]], n=2, logprobs=2)
    for index in range(4):
        for delta in deltas([word(" hello")], FinishReason.LENGTH, scored=True):
            answer.push(index, delta)
    parsed = Completion.model_validate(json.loads(answer.body()), strict=True)
    assert [choice.index for choice in parsed.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in parsed.choices} == {" hello"}
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (3, 4)
    logprobs = parsed.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == ([" hello"], [-0.5], [0])
    assert logprobs.top_logprobs == [{" hello": -0.5, "A": -2.0}]


def test_echo_scores_the_prompt_also_when_its_scores_come_in_parts() -> None:
    prompt = [word("The"), 0xC3, 0xA9, word(" end")]
    answer = completion([prompt], echo=True, logprobs=1, max_tokens=2)
    parts: list[Delta] = [
        Delta("r", prompt_logprobs=[None, score(0xC3, -1.0, [(65, -0.1)])]),
        Delta("r", prompt_logprobs=[score(0xA9), score(word(" end"))], token_ids=[65], logprobs=[score(65)]),
        Delta("r", [66], [score(66)], finish_reason=FinishReason.LENGTH),
    ]
    texts = [answer.push(0, part).text for part in parts]
    assert texts == ["", "Theé endA", "B"]
    (choice,) = json.loads(answer.body())["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "Theé endAB"
    assert logprobs["tokens"] == ["The", "bytes:\\xc3", "bytes:\\xa9", " end", "A", "B"]
    assert logprobs["token_logprobs"] == [None, -1.0, -0.5, -0.5, -0.5, -0.5]
    assert logprobs["top_logprobs"][:2] == [None, {"A": -0.1, "bytes:\\xc3": -1.0}]
    assert logprobs["text_offset"] == [0, 3, 3, 4, 8, 9]


def test_echo_with_no_new_tokens_scores_the_prompt_only() -> None:
    answer = completion([[65, 66]], echo=True, logprobs=0, max_tokens=0)
    answer.push(0, Delta("r", prompt_logprobs=[None, score(66)], finish_reason=FinishReason.LENGTH))
    (choice,) = json.loads(answer.body())["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("AB", "length")
    assert choice["logprobs"]["tokens"] == ["A", "B"]
    assert choice["logprobs"]["top_logprobs"] == [None, {"B": -0.5}]


def test_echo_returns_a_text_as_it_was_sent_and_stops_only_after_it() -> None:
    # The tokenizer added a token that the text does not show, and dropped the space that its words begin with.
    body = {"model": "m", "prompt": "hello world", "echo": True, "logprobs": 0, "stop": ["wor"]}
    request = parse(CompletionRequest, json.dumps(body).encode())
    prompt = [EOS, word(" hello"), word(" world")]
    answer = CompletionAnswer(request, HEAD, VOCABULARY, [prompt])
    answer.push(0, Delta("r", [65], [score(65)], prompt_logprobs=[None, score(prompt[1]), score(prompt[2])]))
    answer.push(0, Delta("r", finish_reason=FinishReason.STOP))
    (choice,) = json.loads(answer.body())["choices"]
    assert choice["text"] == "hello worldA"
    assert choice["logprobs"]["text_offset"] == [0, 0, 5, 11]


def test_completion_chunks_join_to_the_body() -> None:
    options = {"echo": True, "logprobs": 0, "max_tokens": 3}
    steps = [(0, delta) for delta in deltas([word(" hello"), 0xC3, 0xA9], FinishReason.LENGTH, scored=True)]
    steps[0][1].prompt_logprobs = [None, score(66)]
    whole, parts = completion(**options), completion(stream=True, **options)
    for index, delta in steps:
        whole.push(index, delta)
    (choice,) = json.loads(whole.body())["choices"]
    chunks = [chunk["choices"][0] for chunk in stream(parts, steps)]
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"] == "AB helloé"
    for member in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for chunk in chunks if chunk["logprobs"] for item in chunk["logprobs"][member]]
        assert joined == choice["logprobs"][member]
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


# ------------------------------------------------------------------------------------------------------------ wire


@pytest.mark.parametrize("text", ['"\\\n\r\t\0\x1c', "\u2028\u2029\u0085", "é€😀", "</script>"])
def test_quoted_text_survives_every_line_splitter(text: str) -> None:
    written = write_json({"text": text}).decode()
    assert json.loads(written) == {"text": text}
    assert len(written.splitlines()) == 1


def test_a_stream_ends_with_the_error_that_broke_it() -> None:
    frame = error_frame(Unavailable("the engine\nis coming back: try again"))
    assert frame.endswith(b"\n\n")
    assert json.loads(frame.removeprefix(b"data: ")) == {
        "error": {
            "message": "the engine\nis coming back: try again",
            "type": "server_error",
            "param": None,
            "code": "unavailable",
        }
    }


# ------------------------------------------------------------------------------------------- the official client


def official(body: bytes, *, stream: bool, strict: bool = True) -> openai.OpenAI:
    """The official client before a server that answers everything with ``body``."""
    app = FastAPI(openapi_url=None)

    @app.post("/v1/{path:path}")
    async def answer(path: str) -> Response:
        return Response(body, media_type="text/event-stream" if stream else "application/json")

    return openai.OpenAI(
        base_url="http://server/v1", api_key="k", http_client=TestClient(app), _strict_response_validation=strict
    )


def wire(answer: Answer, steps: Iterable[Delta]) -> bytes:
    frames = b"".join(answer.frames(0, answer.push(0, delta)) for delta in steps)
    return answer.opening() + frames + answer.closing()


def test_the_official_client_reads_a_stream_of_chat() -> None:
    answer = chat(stream=True, stream_options={"include_usage": True}, logprobs=True)
    body = wire(answer, deltas([*"né\u2028".encode()], FinishReason.STOP, scored=True))
    client = official(body, stream=True)
    chunks = list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "né\u2028"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[0].model_extra == {"graftwork": {"adapter": "intents@7"}}


def test_the_official_client_raises_what_breaks_a_stream() -> None:
    answer = chat(stream=True)
    body = answer.opening() + answer.frames(0, answer.push(0, Delta("r", [65]))) + error_frame(Unavailable("it died"))
    stream = official(body, stream=True).chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True
    )
    with pytest.raises(openai.APIError, match="it died"):
        list(stream)


def test_the_official_client_reads_completions() -> None:
    whole, parts = completion(logprobs=1), completion(stream=True, logprobs=1)
    steps = deltas([word(" hello")], FinishReason.LENGTH, scored=True)
    for delta in steps:
        whole.push(0, delta)
    parsed = official(whole.body(), stream=False).completions.create(model="m", prompt="x")
    assert parsed.choices[0].text == " hello"
    # Its types want a finish_reason in every chunk, which OpenAI itself sends as null until the last.
    client = official(wire(parts, steps), stream=True, strict=False)
    chunks = list(client.completions.create(model="m", prompt="x", stream=True))
    assert [(chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in chunks] == [
        (" hello", None),
        ("", "length"),
    ]
