"""Graders as data: what is read, what is refused and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.learning.graders.formulas import Formula
from graftwork.adapters.learning.graders.grader import LabelModel, Multi, ScoreModel, StringCheck, parts_of
from graftwork.adapters.learning.graders.reading import GraderRules, checked_grader, read_grader
from graftwork.adapters.learning.graders.reinforcement import from_grpo, to_grpo
from graftwork.adapters.learning.graders.response_format import ResponseFormat
from graftwork.adapters.learning.graders.templates import NotThere, Template

VALUES = {
    "item": {"city": "Paris", "tags": ["a", "b"], "count": 3, "odd name": "x"},
    "sample": {"output_text": "hello", "output_json": {"city": "Rome", "parts": [{"n": 1}]}},
}
CHECK = {
    "type": "string_check",
    "name": "city",
    "operation": "eq",
    "input": "{{ sample.output_json.city }}",
    "reference": "{{ item.city }}",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "intents",
    "range": [1, 5],
    "input": [{"role": "user", "content": "How good is {{ sample.output_text }}?"}],
}
LABEL = {
    "type": "label_model",
    "name": "kind",
    "model": "intents",
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Is {{ sample.output_text }} good?"}]}],
}
MULTI = {"type": "multi", "name": "all", "graders": {"city": CHECK}, "calculate_output": "city * 2"}


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{ item.city }}, {{sample.output_text}}!", "Paris, hello!"),
        ("{{ item.tags[1] }}{{ item.count }}", "b3"),
        ("{{ item['odd name'] }}", "x"),
        (
            "{{ sample.output_json.parts[0].n }} of {{ sample.output_json }}",
            '1 of {"city": "Rome", "parts": [{"n": 1}]}',
        ),
        ("a } b { c", "a } b { c"),
    ],
)
def test_a_template_is_filled_in(template: str, rendered: str) -> None:
    assert Template.parse(template, "input").render(VALUES) == rendered


@pytest.mark.parametrize(
    "template",
    [
        *("{{ item }}", "{{ sample }}", "{{ sample.output_text.upper }}", "{{ sample.choices }}", "{{ other.x }}"),
        *(
            "{{ item.x | upper }}",
            "{{ item.x() }}",
            "{{ 1 + 1 }}",
            "{% if item.x %}",
            "{{ item.x",
            "{{ item.tags[-1] }}",
        ),
    ],
)
def test_a_template_reads_paths_alone(template: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Template.parse(template, "method.reinforcement.grader.input")
    assert refused.value.param == "method.reinforcement.grader.input"


@pytest.mark.parametrize("template", ["{{" * 30_000, "{{ item." * 8_000, "x" * 70_000])
def test_a_long_template_is_refused_at_once(template: str) -> None:
    with pytest.raises(InvalidRequest):
        Template.parse(template, "input")


@pytest.mark.parametrize("path", ["item.gone", "item.city.x", "item.tags[9]", "sample.output_json.gone"])
def test_what_is_not_there_is_an_error_of_its_own(path: str) -> None:
    with pytest.raises(NotThere):
        Template.parse(f"{{{{ {path} }}}}", "input").render(VALUES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        ("2 + 3 * a - b / 4", 3.0),
        ("-b ^ 2", -4.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("(a + b) * -(1 - 3)", 5.0),
        ("min(a, b, 9) + max(a, b) - abs(-1)", 1.5),
        ("floor(2.7) + ceil(.2) + sqrt(4) + exp(0) + log(1)", 6.0),
    ],
)
def test_a_formula_is_arithmetic(text: str, value: float) -> None:
    assert Formula.parse(text, "calculate_output").compute({"a": 0.5, "b": 2.0}) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "a +", "a b", "1(2)", "f(a)", "min(a)", "abs(a, b)", "()", "a)", "(a", "a.b", "a[0]", "'x'", "a ** b"),
        *("__import__('os')", "lambda: 1", "a if b else c", "(" * 60 + "a" + ")" * 60, "a + " * 600 + "a"),
    ],
)
def test_a_formula_is_nothing_else(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Formula.parse(text, "grader.calculate_output")
    assert refused.value.param == "grader.calculate_output"


@pytest.mark.parametrize("text", ["1 / (a - a)", "sqrt(-a)", "log(0)", "exp(9999)", "(-a) ^ 0.5", "max((-a) ^ 0.5, 0)"])
def test_a_formula_without_a_value_says_so(text: str) -> None:
    with pytest.raises((ArithmeticError, TypeError, ValueError)):
        Formula.parse(text, "grader").compute({"a": 1.0})


def test_every_type_is_read() -> None:
    check, score, label, multi = map(read_grader, (CHECK, SCORE, LABEL, MULTI))
    assert isinstance(check, StringCheck)
    assert (check.range, check.pass_threshold) == ((0, 1), 1)
    assert isinstance(score, ScoreModel)
    assert (score.range, score.pass_threshold) == ((1, 5), 3)
    assert isinstance(label, LabelModel)
    assert label.passing_labels == ("good",)
    assert isinstance(multi, Multi)
    assert list(parts_of(multi)) == ["city"]
    assert set(multi.paths) == {("sample", "output_json", "city"), ("item", "city")}
    # OpenAI's client is typed for one grader where its API takes several by name.
    assert list(parts_of(read_grader({**MULTI, "graders": CHECK}))) == ["city"]


def test_models_become_the_versions_that_they_are() -> None:
    rules = GraderRules(resolve_model=lambda model: f"{model}@7")
    assert checked_grader(SCORE, "grader", rules) == {**SCORE, "model": "intents@7"}
    both = {**MULTI, "graders": {"a": LABEL, "b": CHECK}, "calculate_output": "a"}
    assert checked_grader(both, "grader", rules)["graders"] == {"a": {**LABEL, "model": "intents@7"}, "b": CHECK}


def unknown(model: str) -> str:
    raise NotFound(f"nobody is called {model}", code="model_not_found")


PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}
SIMILAR = {"type": "text_similarity", "name": "s", "evaluation_metric": "bleu", "input": "a", "reference": "b"}

BAD: dict[str, tuple[Any, str, str]] = {
    "no object": (["eq"], "", "must be an object"),
    "no type": ({"name": "x"}, ".type", "missing"),
    "an unknown type": ({**CHECK, "type": "magic"}, ".type", "string_check"),
    "no name": ({**CHECK, "name": ""}, ".name", "text"),
    "a further field": ({**CHECK, "weight": 2}, ".weight", "leave it out"),
    "an unknown operation": ({**CHECK, "operation": "regex"}, ".operation", "ilike"),
    "a number for a text": ({**CHECK, "reference": 7}, ".reference", "text"),
    "a bad template": ({**CHECK, "input": "{{ x }}"}, ".input", "item"),
    "cosine": ({**SIMILAR, "evaluation_metric": "cosine"}, ".evaluation_metric", "not supported"),
    "a metric of nobody": ({**SIMILAR, "evaluation_metric": "wer"}, ".evaluation_metric", "rouge_l"),
    "a threshold that is none": ({**SIMILAR, "pass_threshold": "high"}, ".pass_threshold", "number"),
    "no messages": ({**SCORE, "input": []}, ".input", "1 to 64 messages"),
    "an image": (
        {**SCORE, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        ".input[0].content",
        "texts alone",
    ),
    "a role of nobody": ({**SCORE, "input": [{"role": "judge", "content": "x"}]}, ".input[0].role", "developer"),
    "a range upside down": ({**SCORE, "range": [5, 1]}, ".range", "worst score"),
    "dice": ({**SCORE, "sampling_params": {"temperature": 1}}, ".sampling_params.temperature", "always alike"),
    "an effort": (
        {**SCORE, "sampling_params": {"reasoning_effort": "high"}},
        ".sampling_params.reasoning_effort",
        "not",
    ),
    "an unknown model": (SCORE, ".model", "nobody is called intents"),
    "a passing label of nobody": ({**LABEL, "passing_labels": ["great"]}, ".passing_labels", "none of the labels"),
    "a label twice": ({**LABEL, "labels": ["a", "a"]}, ".labels", "different"),
    "no formula": ({**MULTI, "calculate_output": ""}, ".calculate_output", "text"),
    "a formula of strangers": (
        {**MULTI, "calculate_output": "city + order"},
        ".calculate_output",
        "none of the graders",
    ),
    "several of several": ({**MULTI, "graders": {"a": MULTI}}, ".graders.a", "one"),
    "a part that is wrong": (
        {**MULTI, "graders": {"city": {**CHECK, "operation": "x"}}},
        ".graders.city.operation",
        "eq",
    ),
    "a name for no formula": ({**MULTI, "graders": {"a-b": CHECK}}, ".graders.a-b", "letters"),
    "a program": (PYTHON, ".type", "--allow-python-graders"),
    "a program within": (
        {**MULTI, "graders": {"p": PYTHON}, "calculate_output": "p"},
        ".graders.p.type",
        "--allow-python-graders",
    ),
    "no program": ({**PYTHON, "source": "def"}, ".source", "no Python program"),
    "an unknown reward": ({"type": "reward", "name": "r", "function": "os:system"}, ".function", "no reward function"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    grader, param, says = BAD[case]
    with pytest.raises(InvalidRequest) as refused:
        checked_grader(grader, "method.reinforcement.grader", GraderRules(resolve_model=unknown))
    assert refused.value.param == f"method.reinforcement.grader{param}"
    assert says in refused.value.message


def test_powers_of_whole_numbers_have_a_bound() -> None:
    with pytest.raises(OverflowError):
        Formula.parse("ceil(9) ^ ceil(9) ^ ceil(9) ^ ceil(9)", "grader").compute({})


def test_expressions_that_may_take_any_time_are_refused() -> None:
    named = {"type": "object", "properties": {"pattern": {"type": "string", "enum": ["pattern"]}}}
    assert ResponseFormat.read({"type": "json_schema", "json_schema": {"schema": named}}).schema == named
    for slow in ({"pattern": "^(a+)+$"}, {"patternProperties": {"^(a+)+$": {}}}):
        schema = {"type": "object", "properties": {"properties": slow}}
        with pytest.raises(InvalidRequest, match="whose expressions may take any time"):
            ResponseFormat.read({"type": "json_schema", "json_schema": {"schema": schema}})


def test_an_answer_must_be_the_json_that_is_asked_for() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = ResponseFormat.read({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert wanted.parse('{"n": 1}') == {"n": 1}
    for text in ("n", '{"n": "1"}', "[]", "[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011 - of whatever cause
            wanted.parse(text)
    assert ResponseFormat.read({"type": "text"}).parse("[1]") == [1]
    far = {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:1/schema.json"}}}
    with pytest.raises(ValueError, match="cannot be read"):
        ResponseFormat.read(far).parse("1")  # nothing is fetched
    for given, param in (
        ("json", "response_format"),
        ({"type": "xml"}, "response_format"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": 7}}}, "response_format.json_schema.schema"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            ResponseFormat.read(given)
        assert refused.value.param == param


def test_openais_hyperparameters_become_those_of_grpo_and_back() -> None:
    given = {
        "batch_size": 4,
        "compute_multiplier": 0.5,
        "n_epochs": 2,
        "eval_interval": 5,
        "reasoning_effort": "default",
    }
    found = to_grpo({"grader": CHECK, "hyperparameters": {**given, "answer_tokens": 48, "eval_samples": "auto"}}, "m")
    assert found == {
        **{"grader": CHECK, "generations": 4, "batch_size": 16, "n_epochs": 2, "eval_interval": 5, "answer_tokens": 48}
    }
    shown = from_grpo(found)
    assert shown["grader"] == CHECK
    assert shown["hyperparameters"].items() >= {**given, "answer_tokens": 48, "eval_samples": 1}.items()
    assert to_grpo({"grader": CHECK}, "m") == {"grader": CHECK, "batch_size": 32}


@pytest.mark.parametrize(
    ("hyperparameters", "name"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"eval_samples": 4}, "eval_samples"),
        ({"compute_multiplier": 100}, "compute_multiplier"),
        ({"compute_multiplier": 2, "generations": 4}, "compute_multiplier"),
        ({"batch_size": 0.5}, "batch_size"),
        ({"grader": CHECK}, "grader"),
    ],
)
def test_what_reinforcement_cannot_do_is_refused_by_name(hyperparameters: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        to_grpo({"grader": CHECK, "hyperparameters": hyperparameters}, "method.reinforcement")
    assert refused.value.param == f"method.reinforcement.hyperparameters.{name}"
