"""The rows of each training method, and the automatic choice of a method."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.learning.methods import METHOD_TRAITS, TRAINING_METHODS, TrainingMethod
from graftwork.training.data.row import Row, assistant_message
from graftwork.training.methods.rows import (
    Signal,
    choose_method,
    count_signals,
    kto_weights,
    rows_for_method,
    signal_of,
)


def row(answer: str = "A", question: str = "Q", **said: Any) -> Row:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Row(messages=messages, learned=(1,), **said)


EXAMPLE = row("example")
CORRECTION = row("fixed", "C", rejected="wrong", corrected=True, interactions=("c",))
PREFERENCE = row("better", "P", rejected="worse", interactions=("p", "q"))
LIKED, DISLIKED = row("liked", "L", label=True), row("disliked", "D", label=False)
GOOD, MIDDLING, POOR = row("good", "G", score=0.9), row("middling", "M", score=0.55), row("poor", "B", score=0.1)
TEXT = Row(completion="A text")
ALL = (EXAMPLE, CORRECTION, PREFERENCE, LIKED, DISLIKED, GOOD, MIDDLING, POOR, TEXT)


def routed(method: TrainingMethod, *rows: Row) -> list[tuple[str, Any]]:
    return [(one.answer, one.rejected or one.label) for one in rows_for_method(rows or ALL, method).rows]


def test_every_method_learns_from_its_column_of_the_table() -> None:
    learned = ["example", "fixed", "better", "liked", "good"]
    assert routed("sft") == [(answer, None) for answer in learned]
    assert routed("weighted_sft") == [(answer, None) for answer in [*learned, "middling"]]
    assert routed("dpo") == [("fixed", "wrong"), ("better", "worse")]
    assert routed("kto") == [
        *(("fixed", True), ("wrong", False), ("better", True), ("worse", False)),
        *(("liked", True), ("disliked", False), ("good", True), ("poor", False)),
    ]
    assert routed("pretrain") == [("A text", None)]
    assert routed("grpo") == routed("sft")
    assert routed("distillation") == [
        (answer, None) for answer in ("example", "fixed", "better", "liked", "disliked", "good", "middling", "poor")
    ]


def test_rows_come_out_in_the_kind_that_the_method_takes() -> None:
    kinds = {"answers": "example", "pairs": "preference", "judgements": "judged", "questions": "example"}
    for method, traits in METHOD_TRAITS.items():
        kind = "text" if method == "pretrain" else kinds[traits.learns_from]
        assert {one.kind for one in rows_for_method(ALL, method).rows} == {kind}
        assert not any(one.corrected for one in rows_for_method(ALL, method).rows if kind != "preference")


def test_what_a_method_cannot_use_is_counted() -> None:
    assert rows_for_method(ALL, "sft").unused == {"disliked": 1, "score": 2, "text": 1}
    assert rows_for_method(ALL, "dpo").unused == {"example": 1, "liked": 1, "disliked": 1, "score": 3, "text": 1}
    assert rows_for_method(ALL, "kto").unused == {"example": 1, "score": 1, "text": 1}
    for method in TRAINING_METHODS:
        assert count_signals(ALL).total() == len(ALL)
        assert sum(rows_for_method(ALL, method).unused.values()) < len(ALL)


def test_a_score_is_a_weight_above_the_dead_zone() -> None:
    learned = rows_for_method((GOOD, MIDDLING, POOR, row("best", score=1.0)), "weighted_sft").rows
    weights = {one.answer: one.weight for one in learned}
    assert weights == {"good": pytest.approx(5 / 6), "middling": pytest.approx(0.25), "best": pytest.approx(1)}


def test_separate_judgements_of_one_question_are_paired() -> None:
    thumbs = [row("one", label=True), row("two", label=False), row("three", label=True)]
    thumbs.append(row("four", "other", label=False))
    routing = rows_for_method(thumbs, "dpo")
    assert [(one.answer, one.rejected) for one in routing.rows] == [("one", "two")]
    assert routing.unused == {"liked": 1, "disliked": 1}
    scores = [row("a", score=0.9), row("b", score=0.2), row("c", score=0.6), row("d", score=0.5)]
    assert [(one.answer, one.rejected) for one in rows_for_method(scores, "dpo").rows] == [("a", "b")]
    assert not rows_for_method([row("same", label=True), row(" same", label=False)], "dpo").rows
    system = Row(messages=({"role": "system", "content": "S"}, *thumbs[1].messages), learned=(2,), label=False)
    assert not rows_for_method([thumbs[0], system], "dpo").rows


def test_tool_calls_go_where_answers_go() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "track", "arguments": {}}}
    tools = ({"type": "function", "function": {"name": "track"}},)
    asked = {"role": "user", "content": "Q"}
    said = Row(messages=(asked, assistant_message("No idea.")), tools=tools, learned=(1,))
    called = Row(messages=(asked, assistant_message("", [call])), tools=tools, learned=(1,))
    preference = called.over(said)
    good, bad = rows_for_method([said.over(called)], "kto").rows
    assert [(one.messages, one.tools, one.label) for one in (good, bad)] == [
        (said.messages, tools, True),
        (called.messages, tools, False),
    ]
    assert (good.rejected_calls, bad.rejected_calls) == ((), ())
    assert rows_for_method([preference], "sft").rows == (called,)
    thumbs = [replace(called, label=True), replace(said, label=False)]
    assert rows_for_method(thumbs, "dpo").rows == (preference,)
    assert not rows_for_method([thumbs[0], replace(thumbs[1], tools=())], "dpo").rows


def test_the_same_said_twice_of_an_answer_is_learned_once() -> None:
    rows = [row("one", label=True), row("one", rejected="two"), row("one")]
    assert routed("sft", *rows) == [("one", None)]


def test_where_rows_came_from_stays_with_them() -> None:
    (fix,) = rows_for_method([CORRECTION], "sft").rows
    assert fix.interactions == ("c",)
    pair = rows_for_method(
        [row("a", label=True, interactions=("x",)), row("b", label=False, interactions=("y",))], "dpo"
    ).rows[0]
    assert pair.interactions == ("x", "y")


@pytest.mark.parametrize(
    ("signals", "method", "why"),
    [
        ({"example": 300}, "sft", "300 examples say what the right answer is."),
        ({"correction": 1}, "sft", "1 correction say"),
        ({"correction": 30, "liked": 60, "disliked": 20}, "sft", "30 corrections say"),
        ({"example": 5, "correction": 30, "score": 2}, "weighted_sft", "5 examples and 30 corrections say what"),
        ({"preference": 40}, "dpo", "40 preferences say which of two answers is better."),
        ({"preference": 40, "correction": 5}, "dpo", "5 corrections and 40 preferences"),
        ({"preference": 3, "liked": 100, "disliked": 40}, "kto", "100 thumbs up and 40 thumbs down say which"),
        ({"liked": 20, "disliked": 8}, "kto", "20 thumbs up and 8 thumbs down"),
        ({"liked": 20, "disliked": 2}, "sft", "fewer than 8 thumbs in one direction"),
        ({"score": 50, "liked": 9}, "weighted_sft", "50 scores say how good answers are"),
        ({"text": 12}, "pretrain", "All 12 rows are texts"),
        ({"text": 12, "example": 3}, "sft", "3 examples"),
    ],
)
def test_a_method_is_chosen_for_what_there_is(signals: dict[Signal, int], method: TrainingMethod, why: str) -> None:
    choice = choose_method(signals)
    assert choice.method == method
    assert why in choice.reason
    assert choice.signals == signals


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no row and no feedback"):
        choose_method({"liked": 0})
    with pytest.raises(InvalidRequest, match=r"9 thumbs down say what is wrong.*Collect corrections"):
        choose_method({"disliked": 9})


SIGNALS = st.dictionaries(
    st.sampled_from(["example", "correction", "preference", "liked", "disliked", "score", "text"]), st.integers(0, 99)
)
ONE_OF_EACH = {signal_of(one): one for one in ALL}


@given(SIGNALS)
def test_the_chosen_method_always_has_rows(signals: dict[Signal, int]) -> None:
    rows = [one for name, number in signals.items() for one in [ONE_OF_EACH[name]] * number]
    # Of scores there are good ones.
    rows = [GOOD if one.kind == "scored" else one for one in rows]
    try:
        choice = choose_method(count_signals(rows))
    except InvalidRequest:
        assert set(Counter(map(signal_of, rows))) <= {"disliked", "text"}
        return
    assert rows_for_method(rows, choice.method).rows


def test_both_sides_of_kto_weigh_the_same() -> None:
    for liked, disliked in ((10, 40), (40, 10), (7, 7)):
        up, down = kto_weights(liked, disliked)
        assert up * liked == pytest.approx(down * disliked)
        assert min(up, down) == 1
    with pytest.raises(ConfigurationError, match="both kinds"):
        kto_weights(0, 3)
    with pytest.raises(ConfigurationError, match="no method"):
        rows_for_method([], "ppo")  # type: ignore[arg-type]
