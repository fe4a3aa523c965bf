"""Streams give the same deltas however their bytes are divided."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.clients.errors import GraftworkProtocolError, InterruptedAnswerError
from graftwork.clients.http.streams import ChatChunk, CompletionChunk, EventReader

TEXTS = ["Grün", " \u2028 is", " a\x85line 🌳", "\n\n", "data: [DONE]"]
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def event(payload: object, newline: str = "\n") -> bytes:
    return f"data: {json.dumps(payload, ensure_ascii=False)}{newline}{newline}".encode()


def chat(text: str | None, finish: str | None = None, index: int = 0) -> dict[str, object]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}], "usage": None}


def whole(newline: str = "\n") -> bytes:
    frames = [event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}, newline)]
    frames += [event(chat(text), newline) for text in TEXTS]
    frames += [event(chat(None, "stop"), newline), event({"choices": [], "usage": USAGE}, newline)]
    return b": keep-alive\n\nevent: message\nid: 7\n" + b"".join(frames) + f"data: [DONE]{newline}{newline}".encode()


@given(st.lists(st.integers(0, len(whole()))), st.sampled_from(["\n", "\r\n"]))
def test_cuts_do_not_matter(cuts: list[int], newline: str) -> None:
    reader, data = EventReader(ChatChunk), whole(newline)
    places = [0, *sorted(cuts), len(data)]
    deltas = [d for start, end in itertools.pairwise(places) for d in reader.feed(data[start:end])]
    assert [delta.text for delta in deltas] == ["", *TEXTS, ""]
    assert deltas[-1].finish_reason == "stop"
    assert reader.done
    assert reader.usage is not None
    assert reader.usage.total_tokens == 8


def test_data_on_several_lines_is_one_event() -> None:
    lines = json.dumps(chat("hello"), indent=1).splitlines()
    data = b"".join(b"data: " + line.encode() + b"\n" for line in lines) + b"\n"
    assert [delta.text for delta in EventReader(ChatChunk).feed(data)] == ["hello"]


def test_completions_and_choices_keep_their_index() -> None:
    choices = [{"index": i, "text": f"t{i}", "finish_reason": None, "logprobs": None} for i in (1, 0)]
    deltas = list(EventReader(CompletionChunk).feed(event({"choices": choices})))
    assert [(delta.index, delta.text) for delta in deltas] == [(1, "t1"), (0, "t0")]


def test_an_error_in_the_stream_is_raised_after_what_came_before() -> None:
    reader = EventReader(ChatChunk)
    error = {"message": "the engine was restarted", "type": "server_error", "param": None, "code": "unavailable"}
    deltas = reader.feed(event(chat("half")) + event({"error": error}))
    assert next(deltas).text == "half"
    with pytest.raises(InterruptedAnswerError, match="the engine was restarted") as raised:
        next(deltas)
    assert raised.value.code == "unavailable"
    assert not reader.done


@pytest.mark.parametrize(
    "data", [b"data: {no json}\n\n", b'data: "text"\n\n', b'data: {"choices": 1}\n\n', b"data: \xff\n\n"]
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(GraftworkProtocolError):
        list(EventReader(ChatChunk).feed(data))


def test_a_huge_event_in_tiny_pieces_takes_linear_time() -> None:
    data = event(chat("x" * 2_000_000))
    reader, started = EventReader(ChatChunk), time.process_time()
    texts = [delta.text for at in range(0, len(data), 16) for delta in reader.feed(data[at : at + 16])]
    assert len(texts[0]) == 2_000_000
    assert time.process_time() - started < 5  # copying the rest each time would take minutes
