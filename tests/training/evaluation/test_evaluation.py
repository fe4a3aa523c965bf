"""The evaluation of a candidate beside its parent and the base, and its report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.types.generation import ChatMessage, FunctionCall, Score, ToolCall, Usage
from graftwork.training.data.row import Row, assistant_message
from graftwork.training.data.tokens import IGNORED, LabeledTokens
from graftwork.training.evaluation import bias, report
from graftwork.training.evaluation import evaluation as evaluation_module
from graftwork.training.evaluation import metrics as metrics_module
from graftwork.training.evaluation.gates import decide_gates
from tests.training.evaluation.test_gates import FAIR, GOOD, POOR, evaluation


def test_labels_and_texts_are_told_apart_and_measured_as_what_they_are() -> None:
    assert metrics_module.kind_of(["card lost", "top up", "card lost", "top up"]) == "labels"
    assert metrics_module.kind_of(["a long answer of quite a few words indeed", "b"]) == "texts"
    right, metrics = metrics_module.compare("labels", ["a", "a", "b", "b"], ["A ", "b", "b", "z"])
    assert right == [1.0, 0.0, 1.0, 0.0]
    assert metrics["accuracy"] == 0.5
    assert metrics["precision"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["recall"] == pytest.approx(0.5)
    same = ["the parcel left the house on monday morning", "it comes tomorrow at noon if all goes well"]
    _, perfect = metrics_module.compare("texts", same, same)
    assert perfect == pytest.approx({"rouge_l": 1.0, "bleu": 1.0, "exact_match": 1.0})
    _, other = metrics_module.compare("texts", same, ["no", "never"])
    assert other["rouge_l"] == 0.0


def score(logprobs: list[float | None], top: list[dict[str, float] | None]) -> Score:
    usage = Usage(prompt_tokens=len(logprobs), completion_tokens=0, total_tokens=len(logprobs))
    tokens = tuple(map(str, range(len(logprobs))))
    return Score(tokens=tokens, logprobs=tuple(logprobs), top=tuple(top), usage=usage, adapter="a")


def test_losses_fall_on_answers_alone() -> None:
    tokens = [LabeledTokens(input_ids=[1, 2, 3], labels=[IGNORED, IGNORED, 3])]
    losses = metrics_module.row_losses(tokens, [score([None, -9.0, -0.5], [None, {}, {}])])
    assert (losses.totals, losses.num_tokens, losses.mean) == ((0.5,), (1,), 0.5)


def test_divergence_is_nothing_between_equals_and_never_more_than_the_true_one() -> None:
    tokens = [LabeledTokens(input_ids=[1, 2], labels=[1, 2])]
    one = {"a": math.log(0.7), "b": math.log(0.2)}
    other = {"a": math.log(0.2), "c": math.log(0.5)}
    same = score([None, -1.0], [None, one])
    assert metrics_module.divergence(tokens, [same], [same]) == pytest.approx(0)
    found = metrics_module.divergence(tokens, [same], [score([None, -1.0], [None, other])])
    full_new, full_old = [0.7, 0.2, 0.06, 0.04], [0.2, 0.1, 0.5, 0.2]
    true = sum(p * math.log(p / q) for p, q in zip(full_new, full_old, strict=True))
    assert 0 < found <= true


def test_pairs_for_bias_differ_in_the_person_alone() -> None:
    assert bias.swap_identity("My wife lost her card", 0) == ("My wife lost her card", "My husband lost his card")
    one, other = bias.swap_identity("Where is my card?", 0)
    assert one != other
    assert one.endswith(" here. Where is my card?")
    assert other.endswith(" here. Where is my card?")


def test_the_page_escapes_what_models_and_users_wrote() -> None:
    found = evaluation(GOOD, FAIR, POOR)
    page = report.render_page("<script>", found, decide_gates(found))
    assert "<script>" not in page
    assert "&lt;b&gt;?" in page
    assert "&lt;i&gt;" in page
    assert page.startswith("<!doctype html>")


def test_metadata_has_numbers_and_no_texts() -> None:
    found = dataclasses.replace(evaluation(GOOD, FAIR, POOR), slices=())
    assert "yes" not in str(found.to_json())
    assert found.to_json()["better"]["parent"]["mean"] == pytest.approx(0.25)


class Asked:
    """What of a client an evaluation needs; refuses, as the server does, what has no room."""

    def __init__(self, prompts: Prompts, max_length: int) -> None:
        self.prompts, self.max_length = prompts, max_length

    def model(self, id: str) -> Any:
        return SimpleNamespace(graftwork={"max_length": self.max_length})

    def chat(self, model: str, messages: Any, *, max_tokens: int, **options: Any) -> Any:
        tools = options.get("tools", ())
        assert len(self.prompts.chat(messages, tools=tools)) + max_tokens <= self.max_length
        for message in messages:
            assert all(isinstance(call["function"]["arguments"], str) for call in message.get("tool_calls", ()))
        message = ChatMessage(role="assistant", content="yes" if model == "new" else "no")
        if tools and model == "new":
            call = ToolCall(id="x", function=FunctionCall(name="track", arguments='{"b":2,"a":1}'))
            message = ChatMessage(role="assistant", content=None, tool_calls=(call,))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    def score(self, model: str, ids: list[int], *, top: int) -> Score:
        assert len(ids) <= self.max_length
        likely = {"new": -1.0, "old": -1.5, "base": -2.0}[model]
        return score([None, *[likely - token % 7 for token in ids[1:]]], [None, *[{"a": -1.0} for _ in ids[1:]]])


def asked(question: str, answer: str = "yes") -> Row:
    return Row(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}), learned=(1,))


def test_rows_that_the_server_has_no_room_for_are_left_out_and_counted(embedded_base: BaseInfo) -> None:
    prompts = Prompts(Path(embedded_base.path))
    length = len(prompts.chat([{"role": "user", "content": "Is it late?"}])) + 40
    near = asked("Is it late? " + "so " * 20)  # has room for its own answer, and not for the longest
    rows = [asked("Is it late?"), asked("Is it?", "yes " * 25), near, asked("late " * 500), asked("?", "yes " * 500)]
    client: Any = Asked(prompts, length)
    found = evaluation_module.evaluate(client, rows, prompts, candidate="new", base="base")
    assert (found.num_rows, found.num_left_out) == (3, 2)
    assert found.to_json()["left_out"] == 2
    assert "3 held-out rows, 2 left out" in report.render_page("t", found, decide_gates(found))
    nothing = evaluation_module.evaluate(client, rows[3:], prompts, candidate="new", base="base")
    assert (nothing.kind, nothing.num_rows, nothing.num_left_out) == ("feedback", 0, 2)
    assert decide_gates(nothing).doubts == ("none of 2 held-out rows fits into what the server serves",)
    assert nothing.to_json()["candidate"]["loss"] is None


def test_answers_that_users_judged_are_not_asked_for(embedded_base: BaseInfo) -> None:
    prompts = Prompts(Path(embedded_base.path))
    client: Any = Asked(prompts, 200)
    client.chat = None
    rows = [asked("Is it late?"), asked("Is it?", "no")]
    found = evaluation_module.evaluate(
        client, rows, prompts, candidate="new", parent="old", base="base", has_references=False
    )
    assert (found.kind, found.num_rows, found.better, found.examples) == ("feedback", 0, {}, ())
    assert found.candidate.loss < found.base.loss
    assert found.to_json()["metric"] is None
    assert "inconclusive" in report.render_page("t", found, decide_gates(found))


def test_tool_calls_are_asked_for_and_compared(embedded_base: BaseInfo) -> None:
    prompts = Prompts(Path(embedded_base.path))
    call = {"id": "a", "type": "function", "function": {"name": "track", "arguments": {"a": 1, "b": 2}}}
    calling = assistant_message("", [call])
    result = {"role": "tool", "tool_call_id": "a", "content": "lost", "name": "track"}
    tools = ({"type": "function", "function": {"name": "track"}},)
    user = {"role": "user", "content": "Where is it?"}
    once, twice = (user, calling), (user, calling, result, calling)
    rows = [Row(messages=turns, tools=tools, learned=(len(turns) - 1,)) for turns in (once, twice)]
    client: Any = Asked(prompts, 512)
    found = evaluation_module.evaluate(client, rows, prompts, candidate="new", base="base")
    assert (found.candidate.right, found.base.right) == ((1.0, 1.0), (0.0, 0.0))
    assert found.candidate.answers[0] == rows[0].answer == 'track({"a": 1, "b": 2})'
    assert found.bias.num_pairs == 0


def test_texts_without_questions_are_compared_by_how_likely_they_are(embedded_base: BaseInfo) -> None:
    prompts = Prompts(Path(embedded_base.path))
    rows = [Row(completion=f"Chapter {number}. The harbour lay still. " * (number + 1)) for number in range(30)]
    client: Any = Asked(prompts, 64)
    more: Any = {"base": "base", "replay": rows[:10]}
    found = evaluation_module.evaluate(client, rows, prompts, candidate="new", parent="old", **more)
    assert found.num_rows == 30
    assert found.better["base"].mean == pytest.approx(1.0)
    assert found.better["parent"].mean == pytest.approx(0.5)
    assert found.candidate.perplexity < found.base.perplexity
    verdict = decide_gates(found)
    assert verdict.passed, verdict.refusals
    assert {gate.name for gate in verdict.gates} >= {"rows", "better_than_base", "not_worse_than_parent"}
    assert "log_likelihood" in report.render_page("t", found, verdict)
    worse = decide_gates(evaluation_module.evaluate(client, rows, prompts, candidate="base", parent="old", **more))
    assert {gate.name for gate in worse.gates if not gate.passed} >= {"better_than_base", "not_worse_than_parent"}
    assert worse.outcome == "refuse"
