"""Detection of personal data: e-mail addresses, phone numbers, card numbers, IBANs, public IP addresses, US social
security numbers. By patterns, check digits and Google's numbering plans; without a model and without a network.

Presidio's recognizers are not used: importing them loads spaCy and torch (11 s, 380 MB), and on the cases of the tests
they report reserved addresses, private networks and order numbers, and miss the social security number. python-stdnum
is not used for IBANs: it rejects BE68 5390 0754 7034, takes 49 µs instead of 13, and does not find where an IBAN ends.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

import phonenumbers

from graftwork.training.data.clean.findings import Finding

_MAYBE_PERSONAL: Final = re.compile(r"@|(?:\d\W{0,4}){6}\d|\d\.\d+\.\d+\.\d|:[0-9A-Fa-f]{0,4}:|[A-Z]{2}\d\d")
"""Matches every text that can have a finding, as a fast filter. The phone number matcher allows up to four other
characters between two digits."""

_EMAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_CARD: Final = re.compile(
    r"(?<![\w.-])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{5})(?![\w-])"
)
_IBAN: Final = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_IPV4: Final = re.compile(r"(?<![\w.])(?<![vV] )(?<!ersion )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\w)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+(?![\w:])")
_SSN: Final = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")

RESERVED_MAIL: Final = re.compile(r"[@.](?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$", re.IGNORECASE)
"""Reserved domains (RFC 2606), which documentation uses."""

IBAN_LENGTHS: Final = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
        "YE30",
    )
}
"""Length of an IBAN by country, from SWIFT's registry."""


def find_personal(text: str, region: str | None) -> Iterator[Finding]:
    """Find personal data. Findings are in no particular order and may overlap.

    Args:
        text: the text.
        region: country of phone numbers without a country code; None finds only those with one.
    """
    if not _MAYBE_PERSONAL.search(text):
        return
    for match in _EMAIL.finditer(text):
        if not RESERVED_MAIL.search(match[0]):
            yield Finding(*match.span(), "email")
    for match in _CARD.finditer(text):
        if _luhn([int(digit) for digit in match[0] if digit.isdecimal()]):
            yield Finding(*match.span(), "card")
    for match in _IBAN.finditer(text):
        if (end := _iban_end(match[0])) is not None:
            yield Finding(match.start(), match.start() + end, "iban")
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_public(match[0]):
                yield Finding(*match.span(), "ip")
    for match in _SSN.finditer(text):
        yield Finding(*match.span(), "ssn")
    # By default the matcher stops after some numbers that are not phone numbers; a list of orders has hundreds.
    numbers = phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID, max_tries=len(text))
    for number in numbers:
        # Ten digits in a row may be any number; a country code or grouping tells a phone number.
        if number.raw_string.startswith("+") or not number.raw_string.isdecimal():
            yield Finding(number.start, number.end, "phone")


def _luhn(digits: list[int]) -> bool:
    """Whether the check digit of a card number is correct (Luhn, ISO/IEC 7812)."""
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban_end(candidate: str) -> int | None:
    """Return the end index of the IBAN at the start of ``candidate``, by its country's length and check digits (ISO
    13616); None if it is not an IBAN."""
    length = IBAN_LENGTHS.get(candidate[:2])
    places = [place for place, character in enumerate(candidate) if character != " "]
    if length is None or len(places) < length:
        return None
    iban = candidate.replace(" ", "")[:length]
    number = int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4]))
    return places[length - 1] + 1 if number % 97 == 1 else None


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
