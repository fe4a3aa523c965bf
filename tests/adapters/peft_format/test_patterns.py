"""Bounded pattern matching agrees with ``re`` and always terminates."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.peft_format.patterns import BoundedPattern, Budget


def pattern(text: str, template: str = "{}") -> BoundedPattern:
    return BoundedPattern(text, source="here", template=template, budget=Budget())


ATOMS = [
    "a",
    "b",
    ".",
    r"\.",
    "[ab]",
    "[^a]",
    "[a-b1]",
    r"\w",
    r"\D",
    r"\d",
    "1",
    "^",
    "$",
    r"\b",
    r"\A",
    r"\Z",
    "",
    "_",
]
REPEATS = ["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,2}?", "{2,}"]

expressions = st.recursive(
    st.sampled_from([*ATOMS, "(?=a)", "(?!b)"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: f"({'|'.join(branches)})"),
        st.tuples(inner, st.sampled_from(REPEATS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        inner.map(lambda ahead: f"(?={ahead})"),
    ),
    max_leaves=12,
)


@given(expressions, st.text("ab.1_x", max_size=8))
@settings(max_examples=1000)
def test_as_re(expression: str, name: str) -> None:
    compiled, ours = re.compile(expression), pattern(expression)
    assert ours.match(name) is (compiled.match(name) is not None)
    assert ours.fullmatch(name) is (compiled.fullmatch(name) is not None)


@given(st.text(r"ab.\()[]{}|*+?^$-1,:=!<P>", max_size=14), st.text("ab.1", max_size=6))
@settings(max_examples=1000)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_any_text_is_as_re_or_refused(text: str, name: str) -> None:
    try:
        ours = pattern(text)
    except InvalidAdapter as error:
        assert "here" in error.message  # noqa: PT017
        return
    assert ours.fullmatch(name) is (re.fullmatch(text, name) is not None)


@pytest.mark.parametrize(
    "text",
    [
        r"(a+)+$",
        r"(a|a)*b",
        r"(.*)*x",
        r"(a|aa|aaa)*b",
        r".*.*.*.*.*.*.*.*.*.*x",
        r"((((.?){60}){60}){60}){60}x",
        r"(?:a?){60}a{60}b",
        r"(?:(?=(?:(?=.*a).)*).)*b",
        r"(.{0,30}){0,30}x" * 40,
        r"(?:){4294967294}a{4294967294}",
    ],
)
def test_catastrophes_do_not_happen(text: str) -> None:
    assert not pattern(text, r"(.*\.)?({})$").match("a" * 100 + "!")


def test_a_budget_is_shared() -> None:
    budget = Budget(steps=1000)
    patterns = [BoundedPattern(f"(.*{number})+", source="here", budget=budget) for number in range(100)]
    with pytest.raises(InvalidAdapter, match=r"here: the pattern '.*' takes too long"):
        any(each.match("a" * 50) for each in patterns)


@pytest.mark.parametrize(
    "text",
    ["(", "a)(b", "*", "[", "(?i)a", "(?i:a)", "(?x) a", r"(a)\1", "(?<=a)b", "(?<!a)b", "(?>a)", "a++",
     "(a)?(?(1)b|c)", r"\B", "a{99999999999}", "(" * 31 + ")" * 31, "(" * 999 + ")" * 999,
     "a" * 2001, "(" + "a" * 2000 + ")"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidAdapter, match="here: the pattern") as refusal:
        pattern(text)
    assert len(refusal.value.message) < 400


def test_names_without_operators() -> None:
    suffix = r"(.*\.)?({})$"
    assert pattern("q_proj", suffix).match("model.layers.0.self_attn.q_proj")
    assert not pattern("proj", suffix).match("model.layers.0.self_attn.q_proj")
    assert pattern("^model.norm", suffix).match("model.norm")
    assert not pattern("^norm", suffix).match("model.norm")
    assert pattern("q.proj", suffix).match("q_proj")
