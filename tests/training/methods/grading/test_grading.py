"""Grades of answers, by graders that need no server."""

from __future__ import annotations

import os
from typing import Any

import pytest

from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.training.data.row import Row
from graftwork.training.methods.grading.grading import GivenAnswer, Grading, gradable_rows

ITEM = {"city": "Paris", "reference": "the cat sat on the mat"}


def graded(grader: dict[str, Any], *texts: str, **more: Any) -> tuple[float | None, ...]:
    return Grading(grader, **more).grade([GivenAnswer(text=text, item=ITEM) for text in texts]).grades


def check(operation: str, text: str = "{{ sample.output_text }}", reference: str = "{{ item.city }}") -> dict[str, Any]:
    return {"type": "string_check", "name": operation, "operation": operation, "input": text, "reference": reference}


@pytest.mark.parametrize(
    ("operation", "grades"),
    [("eq", (1, 0, 0, 0)), ("ne", (0, 1, 1, 1)), ("like", (1, 0, 1, 0)), ("ilike", (1, 1, 1, 0))],
)
def test_texts_are_checked(operation: str, grades: tuple[float, ...]) -> None:
    assert graded(check(operation), "Paris", "PARIS", "in Paris now", "Rome") == grades


@pytest.mark.parametrize(
    ("metric", "half"),
    [("rouge_1", 0.5), ("rouge_l", 0.5), ("rouge_2", 0.2), ("rouge_5", 0.0), ("bleu", 0.1), ("gleu", 0.1)],
)
def test_texts_are_compared(metric: str, half: float) -> None:
    grader = {
        "type": "text_similarity",
        "name": "s",
        "evaluation_metric": metric,
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference }}",
    }
    same, other, some = graded(grader, ITEM["reference"], "entirely other words", "the cat lay on a bed")
    assert (same, other) == (pytest.approx(1.0), pytest.approx(0.0, abs=0.05))
    assert some is not None
    assert half <= some < 1


def test_an_answer_without_its_json_gets_the_worst_grade() -> None:
    city = check("eq", "{{ sample.output_json.city }}")
    texts = ('{"city": "Paris"}', '{"city": "Rome"}', '{"town": "Paris"}', "Paris", "")
    assert graded(city, *texts) == (1, 0, 0, 0, 0)
    assert graded({**city, "operation": "ne"}, *texts) == (0, 1, 0, 0, 0)
    strict = {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "object", "required": ["city", "day"]}},
    }
    assert graded(city, '{"city": "Paris"}', '{"city": "Paris", "day": 1}', response_format=strict) == (0, 1)


def test_several_graders_make_one() -> None:
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": check("eq"), "named": check("ilike")},
        "calculate_output": "0.25 * named + 0.75 * exact",
    }
    grades = Grading(grader).grade([GivenAnswer(text=text, item=ITEM) for text in ("Paris", "in paris", "Rome")])
    assert grades.grades == (1.0, 0.25, 0.0)
    assert grades.passed == (True, False, False)
    assert grades.parts == {"exact": (1, 0, 0), "named": (1, 1, 0)}
    with pytest.raises(GraftworkError, match="has no value") as failed:
        graded({**grader, "calculate_output": "1 / named"}, "Rome")
    assert failed.value.code == "reward_failed"


def test_reward_functions_are_graders() -> None:
    grading = Grading({"type": "reward", "name": "same", "function": "exact"})
    answers = [GivenAnswer(text=text, item=ITEM, reference="card arrival") for text in ("Card arrival", "card")]
    assert grading.grade(answers).grades == (1.0, 0.0)
    assert grading.share(0.25) == 0.25


def test_a_model_can_only_be_asked_where_there_is_a_server() -> None:
    grader = {
        "type": "score_model",
        "name": "judge",
        "model": "base",
        "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    }
    with pytest.raises(ConfigurationError, match="no server to ask"):
        Grading(grader)


def test_rows_that_lack_what_is_read_are_told_apart() -> None:
    turns = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": ""})
    good, bad = (Row(messages=turns, item=item, line=line) for line, item in ((1, ITEM), (2, {"town": "Rome"})))
    kept, left_out = gradable_rows([good, bad], check("eq"))
    assert kept == [good]
    assert [str(row) for row in left_out] == ["line 2: has no city, which the grader reads"]
    assert gradable_rows([good, bad], check("eq", reference="{{ item.question }}"))[1] == []


def program(body: str) -> dict[str, Any]:
    return {"type": "python", "name": "own", "source": f"def grade(sample, item):\n    {body}"}


def test_a_program_grades() -> None:
    own = program("return len(item['city']) + (sample['output_json'] or {'n': 0})['n']")
    assert graded(own, '{"n": 2}', "none") == (7.0, 5.0)
    many = graded(
        program("import re; return len(re.findall('a', sample['output_text']))"), *("a" * n for n in range(70))
    )
    assert many == tuple(range(70))
    dates = program("import datetime; return datetime.datetime.strptime(sample['output_text'], '%Y-%m-%d').day")
    assert graded(dates, "2024-01-02") == (2.0,)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return len(open('/etc/hostname').read())", "PermissionError"),
        ("import os; return len(os.listdir('/'))", "PermissionError"),
        ("import os; return os.fork()", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import posix; posix.execv('/bin/true', ['true'])", "PermissionError"),
        ("import socket", "ModuleNotFoundError"),
        ("import ctypes; return ctypes.CDLL(None).socket(2, 1, 0)", ""),
        ("return len([0] * 10**10)", "MemoryError"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("return float('nan')", "no number"),
        ("return 'good'", "ValueError"),
        # What the program writes in place of the process is no answer of it, and no more than a mebibyte of it is read.
        ("import os; os.write(1, b'5'); os._exit(0)", "did not return a grade for each"),
        ("import os; os.write(1, b'{\"grades\": [1, 2]}'); os._exit(0)", "did not return a grade for each"),
        ("import os\n    while True: os.write(1, b'x' * (1 << 20))", "OSError|its process ended"),
    ],
)
def test_a_program_can_do_nothing_but_compute(body: str, says: str) -> None:
    parent = os.getpid()
    if "socket(2" in body:
        assert graded(program(body), "x") == (-1.0,)  # what the kernel answers to who may not
        return
    with pytest.raises(GraftworkError, match=says) as failed:
        graded(program(body), "x")
    assert (failed.value.code, os.getpid()) == ("reward_failed", parent)


def test_a_program_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.training.methods.grading.python_graders.MAX_SECONDS", 1)
    with pytest.raises(GraftworkError, match=r"its process ended|took more than"):
        graded(program("\n    while True: pass"), "x")
    with pytest.raises(GraftworkError, match="took more than 2 s"):
        graded(program("import time; time.sleep(60)"), "x")
