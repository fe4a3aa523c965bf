"""Exported interactions and feedback become rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.feedback.interactions import Completion
from graftwork.training.data.read import feedback
from graftwork.training.data.read.source import file_sources
from graftwork.training.data.row import BadRow, Row
from tests.training.exports import ASKED, NOW, answer, said


def read(*records: dict[str, Any]) -> tuple[list[Row], list[BadRow]]:
    found = list(feedback.rows([("export.jsonl", enumerate(records, start=1))]))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]


def rows_of(*records: dict[str, Any]) -> list[Row]:
    rows, bad = read(*records)
    assert not bad
    return rows


def test_a_thumb_judges_the_answer() -> None:
    (row,) = rows_of(answer("a", unit="u1"), said("a", thumb="down"))
    assert (row.kind, row.label) == ("judged", False)
    assert row.messages == (*ASKED, {"role": "assistant", "content": "pause"})
    assert row.learned == (2,)
    assert row.interactions == ("a",)
    assert (row.source, row.line) == ("export.jsonl", 2)


def test_rows_know_whether_their_feedback_was_asked_for_and_learning_does_not() -> None:
    asked, by_whim = rows_of(answer("a"), answer("b"), said("a", thumb="up", asked=True), said("b", thumb="up"))
    assert (asked.asked, by_whim.asked) == (True, False)
    assert asked.digest() == by_whim.digest()
    assert Row.from_json(asked.to_json()) == asked


def test_rows_are_grouped_by_user_where_there_are_enough() -> None:
    def groups(users: list[str]) -> set[str | None]:
        asked = [answer(f"{number}", unit=user) for number, user in enumerate(users)]
        return {row.group for row in rows_of(*asked, *(said(f"{number}", thumb="up") for number in range(len(users))))}

    many = [f"user-{number}" for number in range(20)]
    assert len(groups([*many, *["ann"] * 19])) == 21
    assert groups([*many[:18], "ann"]) == {None}
    assert groups([*many, *["ann"] * 21]) == {None}, "half of all would fall on one side at once"


def test_a_correction_is_better_than_the_answer_and_says_more_than_a_thumb() -> None:
    (row,) = rows_of(answer("a"), said("a", thumb="down", score=0.1), said("a", 2, correction="delivery"))
    assert (row.kind, row.corrected, row.answer, row.rejected) == ("preference", True, "delivery", "pause")
    (liked,) = rows_of(answer("a"), said("a", correction=" pause\n"))
    assert (liked.kind, liked.label) == ("judged", True)


def test_a_preference_is_over_the_other_answer() -> None:
    records = (answer("a", "pause", "cancel"), said("a", preferred_over="a", preferred_over_choice=1))
    (row,) = rows_of(*records)
    assert (row.answer, row.rejected, row.interactions) == ("pause", "cancel", ("a",))
    (row,) = rows_of(said("a", preferred_over="b"), answer("b", "cancel"), answer("a"))
    assert (row.answer, row.rejected, row.interactions) == ("pause", "cancel", ("a", "b"))


def test_answers_of_arms_with_system_messages_of_their_own_are_compared_by_what_was_sent() -> None:
    brief = {"messages": [{"role": "system", "content": "Be brief."}, *ASKED[1:]], "replaced": ASKED[:1]}
    (row,) = rows_of(answer("a", prompt=brief), answer("b", "cancel"), said("a", preferred_over="b"))
    assert (row.messages[0]["content"], row.answer, row.rejected) == ("Be brief.", "pause", "cancel")
    (row,) = rows_of(answer("a", prompt=brief), answer("b", "cancel"), said("b", preferred_over="a"))
    assert (row.messages[0]["content"], row.answer, row.rejected) == ("Sort.", "cancel", "pause")
    other = {**brief, "replaced": []}
    _, (bad,) = read(answer("a", prompt=other), answer("b", "cancel"), said("a", preferred_over="b"))
    assert "another question" in bad.reason


def test_many_judgements_make_one_verdict() -> None:
    def thumbs(*votes: tuple[str, str]) -> list[Row]:
        cast = [said("a", number, user=user, thumb=thumb) for number, (user, thumb) in enumerate(votes, start=1)]
        return rows_of(answer("a"), *reversed(cast))

    assert [row.label for row in thumbs(("ann", "up"), ("bob", "up"), ("eve", "down"))] == [True]
    assert [row.label for row in thumbs(("ann", "up"), ("ann", "down"))] == [False]
    assert thumbs(("ann", "up"), ("bob", "down")) == []
    (row,) = rows_of(answer("a"), said("a", user="ann", score=0.2), said("a", 2, user="bob", score=0.7))
    assert row.score == pytest.approx(0.45)


def test_an_answer_that_is_gone_takes_nothing_else_with_it() -> None:
    rows, gone = read(answer("a"), said("a", preferred_over="b"), said("a", 2, thumb="up"), said("c", 3, thumb="up"))
    assert [row.label for row in rows] == [True]
    assert [row.expired for row in gone] == [True, True]
    assert "'b', which is not among the answers: its retention has ended" in gone[0].reason
    assert not any(row.expired for row in read(answer("a"), said("a", choice=3, thumb="up"))[1])


def test_choices_are_answers_of_their_own() -> None:
    records = (answer("a", "pause", "cancel"), said("a", choice=1, thumb="up"), said("a", 2, thumb="down"))
    assert [(row.answer, row.label) for row in rows_of(*records)] == [("pause", False), ("cancel", True)]


def test_a_completion_stays_plain_and_each_prompt_has_its_own_choices() -> None:
    prompt = {"prompt": ["One", "Two"]}
    logged = answer("a", " is", " was", " are", " were", prompt=prompt, sampling={"n": 2})
    (row,) = rows_of(logged, said("a", choice=2, thumb="up"))
    assert (row.prompt, row.completion, row.messages) == ("Two", " are", ())
    (row,) = rows_of(answer("a", " is", prompt={"prompt": "One"}), said("a", thumb="up"))
    assert row.prompt == "One"


def test_an_answer_that_was_cut_off_teaches_nothing_good() -> None:
    for finish in ("length", None):
        cut = answer("a", finish=finish)
        assert rows_of(cut, said("a", thumb="up")) == []
        assert rows_of(cut, said("a", score=0.9)) == []
        assert rows_of(cut, said("a", preferred_over="b"), answer("b", "cancel")) == []
        assert [row.label for row in rows_of(cut, said("a", thumb="down"))] == [False]
        assert [row.answer for row in rows_of(cut, said("a", correction="delivery"))] == ["delivery"]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ((answer("a"),), "there are answers and no feedback on any"),
        ((said("a", thumb="up"),), "feedback on 'a', which is not among the answers"),
        ((answer("a"), said("a", choice=3, thumb="up")), "choice 3 of 'a', which has no such choice"),
        ((answer("a", prompt={"prompt": [[1, 2]]}), said("a", thumb="up")), "sent as token ids"),
        ((answer("a"), answer("b", prompt={"messages": ASKED[1:]}), said("a", preferred_over="b")), "another question"),
        ((answer("a"), answer("b"), said("a", preferred_over="b")), "says the same"),
        ((answer("a"), said("a", correction=" ")), "'correction' must be a text that is not empty"),
        ((answer("a"), {"interaction_id": "a", "score": 7}), "'score' is 7; it must be 0 to 1"),
        ((answer("a", ""), said("a", thumb="up")), "is an empty answer"),
        (({"id": 1, "completions": []}, said("a", thumb="up")), "'id' must be a text"),
        (({"hello": 1}, answer("a"), said("a", thumb="up")), "neither an answer nor feedback"),
    ],
)
def test_what_cannot_be_used_is_said(records: tuple[dict[str, Any], ...], why: str) -> None:
    assert why in read(*records)[1][0].reason


def test_answers_and_feedback_may_stand_in_one_record_or_in_two_files(tmp_path: Path) -> None:
    nested = {**answer("a"), "feedback": [said("a", thumb="up")]}
    joined = {"interaction": answer("a"), "feedback": {"thumb": "up"}}
    assert rows_of(nested)[0].digest() == rows_of(joined)[0].digest()

    paths = tmp_path / "feedback.jsonl", tmp_path / "interactions.jsonl", tmp_path / "other.jsonl"
    contents = said("a", thumb="up"), answer("a"), {"prompt": "Q", "completion": "A"}
    for path, record in zip(paths, contents, strict=True):
        path.write_text(json.dumps(record) + "\n")
    other, export = file_sources(paths)
    (row,) = export.rows()
    assert isinstance(row, Row)
    assert row.digest() == rows_of(nested)[0].digest()
    assert (row.source, export.title) == ("feedback.jsonl", "feedback.jsonl + interactions.jsonl")
    assert dict(export.formats) == {"feedback": 1}
    assert len(list(other.rows())) == 1


TOOLS = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]


def calling(id: str, *cities: str, text: str = "", finish: str = "tool_calls") -> dict[str, Any]:
    """A logged answer with tool calls as the server exports it."""
    calls = [
        {"id": f"call_{city}", "type": "function", "function": {"name": "track", "arguments": json.dumps({"to": city})}}
        for city in cities
    ]
    completion = Completion(index=0, text=text, finish_reason=finish, tool_calls=calls)
    return answer(id, prompt={"messages": ASKED, "tools": TOOLS}, completions=(completion,))


def test_answers_with_tool_calls_are_judged_as_a_whole() -> None:
    (row,) = rows_of(calling("a", "Paris", "Rome", text="One moment."), said("a", thumb="up"))
    assert row.answer == 'One moment.\ntrack({"to": "Paris"})\ntrack({"to": "Rome"})'
    assert (row.label, row.tools, row.learned) == (True, tuple(TOOLS), (2,))
    # The worker's own file has the tools inside the prompt.
    logged = calling("a", "Paris")
    inside = {**logged, "prompt": {"messages": logged.pop("messages"), "tools": logged.pop("tools")}}
    assert rows_of(inside, said("a", thumb="up")) == rows_of(calling("a", "Paris"), said("a", thumb="up"))
    (row,) = rows_of(calling("a", "Paris"), calling("b", "Rome"), said("a", preferred_over="b"))
    assert (row.answer, row.rejected_answer) == ('track({"to": "Paris"})', 'track({"to": "Rome"})')
    assert "another question" in read(calling("a", "Paris"), answer("b"), said("a", preferred_over="b"))[1][0].reason
    assert rows_of(calling("a", "Paris", finish="length"), said("a", thumb="up")) == []


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_correction_of_an_empty_answer_is_an_example(text: str) -> None:
    (row,) = rows_of(answer("a", text), said("a", thumb="down", correction="delivery"))
    assert (row.kind, row.answer, row.rejected, row.interactions) == ("example", "delivery", None, ("a",))


def test_a_correction_of_tool_calls_is_an_answer_without_any() -> None:
    (row,) = rows_of(calling("a", "Paris"), said("a", correction="Which parcel?"))
    assert (row.kind, row.answer, row.rejected_answer) == ("preference", "Which parcel?", 'track({"to": "Paris"})')
    assert row.tools == tuple(TOOLS)


def test_texts_that_were_erased_leave_what_is_left() -> None:
    erased = said("a", thumb="down", erased_at=NOW)
    assert [row.label for row in rows_of(answer("a"), erased)] == [False]
    only_text_was_there = {**said("b", comment="gone"), "comment": None}
    assert rows_of(answer("b"), only_text_was_there) == []
