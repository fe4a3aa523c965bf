"""Valid names, and the parsing of ``model``."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest

GOOD = ["a", "7", "intents", "intents.v2", "a_b-c.d", "0" * 64]
BAD = ["", "A", "Intents", ".a", "-a", "_a", "a b", "a/b", "a@1", "a:1", "ä", "a\n", "..", "a\0", "0" * 65, "٣"]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    names.check_name(name, base_id="smollm2")


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 64 characters") as caught:
        names.check_name(name, base_id="smollm2")
    assert (caught.value.param, caught.value.code) == ("name", "invalid_name")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Intents", "intents"),
        ("acme/Support", "acme-support"),
        ("registry.example/acme/support:v2", "registry.example-acme-support-v2"),
        ("Café 7", "cafe-7"),
        ("_hidden", "hidden"),
        ("x" * 80, "x" * 64),
    ],
)
def test_the_nearest_valid_name_is_proposed(name: str, nearest: str) -> None:
    with pytest.raises(InvalidRequest, match=f"for example '{re.escape(nearest)}'"):
        names.check_name(name, base_id="smollm2")
    names.check_name(nearest, base_id="smollm2")


@given(st.text())
def test_what_is_proposed_is_valid(text: str) -> None:
    nearest = names.nearest_name(text)
    assert nearest is None or names.is_name(nearest)


def test_base_is_reserved() -> None:
    with pytest.raises(InvalidRequest, match="without an adapter"):
        names.check_name("base", base_id="smollm2")


def test_the_bases_own_id_is_taken() -> None:
    with pytest.raises(InvalidRequest, match="choose another name"):
        names.check_name("smollm2", base_id="smollm2")


@pytest.mark.parametrize("alias", ["live", "candidate", "canary-2", "x"])
def test_good_aliases(alias: str) -> None:
    names.check_alias(alias)


@pytest.mark.parametrize("alias", ["", "7", "7a", "Live", "a@b", "base", "a" * 65, "live\n"])
def test_bad_aliases(alias: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        names.check_alias(alias)
    assert caught.value.param == "alias"


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("intents", ("intents", "live")),
        ("intents@7", ("intents", "7")),
        ("intents@candidate", ("intents", "candidate")),
        ("intents@", ("intents", "")),
        ("@7", ("", "7")),
        ("a@b@c", ("a", "b@c")),
    ],
)
def test_split(model: str, parts: tuple[str, str]) -> None:
    assert names.split_model(model) == parts


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True), st.integers(1, 10**9))
def test_a_versions_id_splits_into_its_parts(name: str, number: int) -> None:
    assert names.is_name(name)
    assert names.split_model(f"{name}@{number}") == (name, str(number))


@pytest.mark.parametrize("text", ["a\0b", "half \ud83d", "x" * 11])
def test_text_that_no_database_should_be_given(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        names.check_text(text, param="reason", max_chars=10)
    assert caught.value.param == "reason"


def test_text_may_be_in_any_language() -> None:
    names.check_text("größer 😀", param="reason", max_chars=10)


def test_quoted_is_short_and_plain() -> None:
    assert names.quoted("a\nb\ud800") == r"'a\nb\ud800'"
    assert len(names.quoted("x" * 10_000)) < 100
