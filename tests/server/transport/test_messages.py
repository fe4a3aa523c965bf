"""Messages to the engine arrive unchanged, however the bytes are divided."""

from __future__ import annotations

import pytest

from graftwork.server.engine.request import Delta, FinishReason, Request, SamplingParams, TokenLogprob
from graftwork.server.transport.messages import (
    AdapterState,
    Cancel,
    EngineMessage,
    Frame,
    Generate,
    Hello,
    MessageBuffer,
    Stats,
    StatsRequest,
    decode_frame,
    decode_message,
    encode,
)

SAMPLING = SamplingParams(
    max_tokens=4,
    temperature=0.1 + 0.2,
    seed=(1 << 63) - 1,
    stop_token_ids=frozenset({2, 0}),
    top_logprobs=3,
    logit_bias={49151: -0.1, 0: 100.0},
)
MESSAGES: list[EngineMessage] = [
    Generate([Request(id="0-1", prompt=(1, 2, 49151), sampling=SAMPLING, adapter="sha256:ab")]),
    Generate([Request(id=f"0-{n}", prompt=(), sampling=SamplingParams(max_tokens=1)) for n in range(3)]),
    Cancel(["0-1", "0-2"]),
    StatsRequest("q0-7"),
]
INFINITE = float("-inf")
FRAMES = [
    Frame(hello=Hello(77, {"quantize": "int8", "max_length": 64, "reason": "ü"})),
    Frame(
        [
            Delta("0-1", [5, 6], [TokenLogprob(5, -0.1, ((5, -0.1), (7, INFINITE))), TokenLogprob(6, -1e-300)]),
            Delta("0-2", prompt_logprobs=[None, TokenLogprob(1, -2.5)], num_cached=3, queued_seconds=0.25),
            Delta("0-3", finish_reason=FinishReason.ERROR, error="it broke\nin two lines"),
        ]
    ),
    Frame(stats=[("q", Stats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, {"sha256:ab": AdapterState("host", None, 12)}))]),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_arrive_as_they_were_sent(message: EngineMessage) -> None:
    (body,) = MessageBuffer().feed(encode(message))
    assert decode_message(body) == message


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_arrive_as_they_were_sent(frame: Frame) -> None:
    (body,) = MessageBuffer().feed(encode(frame))
    assert decode_frame(body) == frame


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000, 1 << 20])
def test_bytes_may_be_cut_anywhere(size: int) -> None:
    data, buffer = b"".join(map(encode, FRAMES)), MessageBuffer()
    bodies = [body for start in range(0, len(data), size) for body in buffer.feed(data[start : start + size])]
    assert [decode_frame(body) for body in bodies] == FRAMES
