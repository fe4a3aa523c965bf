"""The evaluation of a candidate, and the decision of the gates."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.types.generation import ChatMessage, FunctionCall, Score, ToolCall, Usage
from graftwork.training.data.row import Row, assistant_message
from graftwork.training.data.tokens import IGNORED, LabeledTokens
from graftwork.training.evaluation import bias, report
from graftwork.training.evaluation import evaluation as evaluation_module
from graftwork.training.evaluation import metrics as metrics_module
from graftwork.training.evaluation.bias import Bias
from graftwork.training.evaluation.evaluation import Evaluation, Example, ModelMeasurement
from graftwork.training.evaluation.gates import GatePolicy, decide_gates
from graftwork.training.evaluation.metrics import paired_difference


def measured(model: str, right: list[float], *, general: float = 3.0, replay: float | None = None) -> ModelMeasurement:
    return ModelMeasurement(
        model=model,
        answers=tuple("yes" if one else "no" for one in right),
        right=tuple(right),
        metrics={"accuracy": sum(right) / len(right)},
        loss=1.0,
        replay_loss=replay,
        general_loss=general,
    )


def evaluation(new: list[float], parent: list[float] | None, base: list[float], **losses: Any) -> Evaluation:
    others = {"base": base} | ({"parent": parent} if parent else {})
    labels = ["a" if index % 2 else "b" for index in range(len(new))]
    return Evaluation(
        kind="labels",
        metric="accuracy",
        num_rows=len(new),
        candidate=measured("t@2", new, general=losses.get("general", 3.0), replay=losses.get("replay", 2.0)),
        parent=measured("t@1", parent, replay=2.0) if parent else None,
        base=measured("base", base, replay=2.0),
        better={name: paired_difference(new, old) for name, old in others.items()},
        slices=metrics_module.slices(labels, new, parent or base),
        kl_to_parent=0.1,
        bias=Bias(num_pairs=2, changed={"candidate": 0.5}),
        examples=(
            Example(question="<b>?", expected="yes", answers={"candidate": "<i>", "parent": "no", "base": "no"}),
        ),
    )


GOOD, FAIR, POOR = [1.0] * 40, [1.0, 1.0, 1.0, 0.0] * 10, [0.0] * 40


def test_a_better_one_passes() -> None:
    verdict = decide_gates(evaluation(GOOD, FAIR, POOR))
    assert verdict.passed
    assert verdict.refusals == ()
    assert {gate.name for gate in verdict.gates} == {
        "rows",
        "better_than_base",
        "not_worse_than_parent",
        "general_loss",
        "replay_loss",
        "slices",
    }


@pytest.mark.parametrize(
    ("found", "gate", "message"),
    [
        (evaluation(FAIR, GOOD, POOR), "not_worse_than_parent", r"accuracy against the parent -0\.250 .* it is worse"),
        (evaluation(POOR, None, POOR), "better_than_base", r"against the base \+0\.000 .* not certain"),
        (evaluation(GOOD, FAIR, POOR, general=3.09), "general_loss", r"3\.0000 to 3\.0900 \(\+3\.0%\), and \+2\.0%"),
        (evaluation(GOOD, FAIR, POOR, replay=2.05), "replay_loss", r"older rounds went from 2\.0000 to 2\.0500"),
        (evaluation([1.0, 0.0] * 20, FAIR, POOR), "slices", r"the class 'a' changed most"),
        (evaluation(GOOD[:10], None, POOR[:10]), "rows", r"10 held-out rows, and with fewer than 20"),
    ],
)
def test_a_refusal_says_which_gate_and_by_how_much(found: Evaluation, gate: str, message: str) -> None:
    verdict = decide_gates(found)
    assert not verdict.passed
    assert gate in {one.name for one in verdict.gates if not one.passed}
    assert any(re.search(message, refusal) for refusal in verdict.refusals), verdict.refusals


def test_the_bounds_are_the_policys() -> None:
    found = evaluation(GOOD, FAIR, POOR, general=3.09)
    assert decide_gates(found, GatePolicy(general_loss=0.05)).passed


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = numpy.random.default_rng(0)
    covered = 0
    for round_ in range(200):
        new, old = (random.random(100) < share for share in (0.7, 0.5))
        interval = paired_difference(new.astype(float).tolist(), old.astype(float).tolist(), seed=round_)
        covered += interval.low <= 0.2 <= interval.high
    assert 180 <= covered <= 198


def test_pairs_are_compared_and_not_two_crowds() -> None:
    """The same difference on every row is certain, however much the rows differ among themselves."""
    old = [0.0, 0.9] * 20
    interval = paired_difference([value + 0.1 for value in old], old)
    assert interval.low == pytest.approx(interval.high) == pytest.approx(0.1)


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
    assert metrics_module.mean_loss(tokens, [score([None, -9.0, -0.5], [None, {}, {}])]) == 0.5


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
    with pytest.raises(evaluation_module.NoMeasurableRows, match="none of 2 held-out rows"):
        evaluation_module.evaluate(client, rows[3:], prompts, candidate="new", base="base")


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
    more: Any = {"base": "base", "replay": rows[:3]}
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
