"""Repair of text, personal data and secrets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.clean.findings import Finding, mask
from graftwork.training.data.clean.private import Finder
from graftwork.training.data.clean.repair import repair


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("schÃ¶n, donâ€™t", "schön, don’t"),
        ("one\r\ntwo\x00\x1b[31m", "one\ntwo"),
        ("caf\u0065\u0301", "caf\u00e9"),
    ],
)
def test_broken_text_is_put_right(broken: str, whole: str) -> None:
    assert repair(broken) == whole


@pytest.mark.parametrize("text", ["“quoted” ﬁne ｗｉｄｅ", "&amp; <b>&lt;", "tab\tand\nline", "naïve – 日本語 🙂", ""])
def test_what_may_be_meant_stays(text: str) -> None:
    assert repair(text) == text


@given(st.text())
def test_repaired_text_needs_no_repair(text: str) -> None:
    assert repair(repair(text)) == repair(text)


def masked(text: str, **options: object) -> str:
    finder = Finder(**options)  # type: ignore[arg-type]
    text = mask(text, finder.secrets(text))
    return mask(text, finder.personal(text))


PRIVATE = [
    ("write to ann.lee+x@acme.co.uk, please", "write to [EMAIL], please"),
    ("call +1 415 555 2671 or (415) 555-2671.", "call [PHONE] or [PHONE]."),
    ("415 - 555 - 2671", "[PHONE]"),
    ("+49 (0) 30 - 12 34 56", "[PHONE]"),
    ("card 4111 1111 1111 1111, 378282246310005", "card [CARD], [CARD]"),
    ("my IBAN DE89 3704 0044 0532 0130 00 IS HERE", "my IBAN [IBAN] IS HERE"),
    ("GB82WEST12345698765432", "[IBAN]"),
    ("BE68 5390 0754 7034 or YE15CBYE0001018861234567891234", "[IBAN] or [IBAN]"),
    ("from 8.8.8.8 and 2001:4860:4860::8888", "from [IP] and [IP]"),
    ("ssn 123-45-6789", "ssn [SSN]"),
    ("My password is hunter2!", "My password is [SECRET]"),
    ("Passwort: 12345678", "Passwort: [SECRET]"),
    ("api_key = 'abcd1234efgh'", "api_key = '[SECRET]'"),
    ("sk-proj-abcdefghijklmnopqrstuvwxyz0123456789", "[SECRET]"),
    ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
    ("ghp_" + "a1B2" * 9, "[SECRET]"),
    ("xoxb-123456789012-abcdefghijkl and sk_live_abcdefghijklmnopqrstuvwx", "[SECRET] and [SECRET]"),
    ("github_pat_" + "a1B2" * 9, "[SECRET]"),
    ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz.123", "Authorization: Bearer [SECRET]"),
    ("gw_k1_" + "0a" * 32, "[SECRET]"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U", "[SECRET]"),
    ("https://bob:s3cr3t@host.com/x", "https://bob:[SECRET]@host.com/x"),
    ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n+a/b\n-----END RSA PRIVATE KEY-----\nb", "a\n[SECRET]\nb"),
]


@pytest.mark.parametrize(("text", "expected"), PRIVATE)
def test_private_data_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "write to someone@example.com or root@localhost",
        "order 4155552671, tracking 1Z999AA10123456784, #112-3456789-1234567",
        "card 4111 1111 1111 1112",
        "IBAN DE89 3704 0044 0532 0130 01",
        "at 192.168.0.1, 10.0.0.7, ::1, 12:30:45, version 10.15.7.1 or v1.2.3.4",
        "on 2024-05-12 at 10:11:12, ISBN 978-3-16-148410-0, $1,234.56, 1.234.567,89",
        "password is wrong, my password: please help! The secret: patience. I lost the key",
        "000-12-3456 and 123-00-4567",
    ],
)
def test_what_only_looks_private_stays(text: str) -> None:
    assert masked(text) == text


def test_a_phone_number_is_found_after_hundreds_of_order_numbers() -> None:
    orders = " ".join(f"order {4155550000 + number}," for number in range(500))
    assert masked(f"{orders} call (415) 555-2671") == f"{orders} call [PHONE]"


def test_values_that_are_not_private_are_kept() -> None:
    text = "write to Help@acme.com, ann@acme.com or bob@other.org"
    assert masked(text, keep=("help@acme.com",)) == "write to Help@acme.com, [EMAIL] or [EMAIL]"
    assert masked(text, keep=("@acme.com",)) == "write to Help@acme.com, ann@acme.com or [EMAIL]"


def test_numbers_of_a_country_are_found_where_they_are_from() -> None:
    text = "ring 020 7946 0958 or 030 123456"
    assert masked(text, region="GB") == "ring [PHONE] or 030 123456"
    assert masked(text, region="DE").endswith("or [PHONE]")
    assert masked("ring (415) 555-2671", region=None) == "ring (415) 555-2671"
    with pytest.raises(ConfigurationError, match="two letters"):
        Finder(region="Germany")


def find_names(text: str) -> list[tuple[int, int, str]]:
    """A finder of one's own, as ``tests.training.data.clean.test_cleaning:find_names``."""
    start = text.find("Ann")
    return [(start, start + 3, "name"), (start, start + 999, "name")] if start >= 0 else []


def test_a_finder_of_ones_own_finds_more() -> None:
    own = f"{__name__}:find_names"
    assert masked("Ask Ann, ann@acme.com", own=own) == "Ask [NAME], [EMAIL]"
    for wrong in ("no_such_module:f", f"{__name__}:none", f"{__name__}:PRIVATE", "nothing"):
        with pytest.raises(ConfigurationError, match="function"):
            Finder(own=wrong)


@settings(max_examples=200)
@given(st.text() | st.text(alphabet="0123456789 -.+@:aZ=/\n", max_size=200))
def test_findings_lie_apart_in_the_text(text: str) -> None:
    finder = Finder()
    for found in (finder.secrets(text), finder.personal(text)):
        ends = 0
        for finding in found:
            assert ends <= finding.start < finding.end <= len(text)
            ends = finding.end
        assert "[" in mask(text, found) or not found


def test_masks_replace_what_was_found_and_nothing_else() -> None:
    assert mask("abcdef", [Finding(4, 6, "b"), Finding(1, 3, "a")]) == "a[A]d[B]"


@pytest.mark.parametrize(
    "part", ["word and words. ", "12 345 6789 1. ", "a", "a@b.", "1-", ":::", "DE12 ", "key='", "="]
)
def test_long_texts_take_time_in_proportion_to_their_length(part: str) -> None:
    """A pattern that looks again and again at the same characters would take minutes."""
    finder, began = Finder(), time.thread_time()
    text = part * (60_000 // len(part))
    finder.secrets(text)
    finder.personal(text)
    assert time.thread_time() - began < 10
