"""Personal data and secrets: where they stand in a text, and the text with names of their kinds in their place.

Found without any model and without a network: e-mail addresses, phone numbers, card numbers, IBANs, public IP
addresses, American social security numbers; keys and passwords by ``detect-secrets`` and the patterns below. Names of
people and postal addresses are not: a finder of one's own can be added, as ``module:function``.

Knows nothing of rows.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Protocol

import phonenumbers

from graftwork.adapters.errors import ConfigurationError

Action = Literal["mask", "drop", "refuse", "keep"]
"""What a finding leads to: it is masked, its row is left out, the data set is refused, or nothing happens."""

SECRET: Final = "secret"
PERSONAL: Final = ("email", "phone", "card", "iban", "ip", "ssn")
"""The kinds of personal data found here; a finder of one's own may name others."""

CustomFinder = Callable[[str], Iterable[tuple[int, int, str]]]
"""A text → where findings begin and end in it, and their kinds."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    start: int
    end: int
    kind: str


def mask(text: str, findings: Iterable[Finding]) -> str:
    """The text with ``[EMAIL]`` and the like in place of findings, which must not overlap."""
    parts, position = [], 0
    for finding in sorted(findings):
        parts += [text[position : finding.start], f"[{finding.kind.upper()}]"]
        position = finding.end
    return "".join((*parts, text[position:]))


class Finder:
    """Finds what is private in a text.

    ``region`` is where phone numbers without a country code are from (``US``, ``DE``); None finds only those with one.
    ``keep`` are values that are not private: whole ones, or the ends of e-mail addresses, as in ``@acme.com``. ``own``
    names one more finder; ConfigurationError when there is none by that name.
    """

    def __init__(self, *, region: str | None = "US", keep: Sequence[str] = (), own: str | None = None) -> None:
        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ConfigurationError(
                f"{region!r} is no region of phone numbers: use two letters, as in US, GB or DE.", param="region"
            )
        self._region = region
        self._keep = {value.casefold() for value in keep if not value.startswith("@")}
        self._keep_ends = tuple(value.casefold() for value in keep if value.startswith("@"))
        self._own = None if own is None else _load(own)

    def secrets(self, text: str) -> list[Finding]:
        """Keys, tokens and passwords, in order, none overlapping."""
        if not _MAYBE_SECRET.search(text):
            return []
        return _apart(text, self._unless_kept(text, _secrets(text)))

    def personal(self, text: str) -> list[Finding]:
        """Personal data, in order, none overlapping."""
        found = list(_personal(text, self._region)) if _MAYBE_PERSONAL.search(text) else []
        if self._own is not None:
            found += [
                Finding(start, end, kind) for start, end, kind in self._own(text) if 0 <= start < end <= len(text)
            ]
        return _apart(text, self._unless_kept(text, found)) if found else []

    def _unless_kept(self, text: str, found: Iterable[Finding]) -> Iterator[Finding]:
        for finding in found:
            value = text[finding.start : finding.end].casefold()
            if value not in self._keep and not (self._keep_ends and value.endswith(self._keep_ends)):
                yield finding


def _apart(text: str, found: Iterable[Finding]) -> list[Finding]:
    """Of findings that overlap the one that begins first, and of those the longest."""
    apart: list[Finding] = []
    for finding in sorted(found, key=lambda finding: (finding.start, -finding.end, finding.kind)):
        if not apart or finding.start >= apart[-1].end:
            apart.append(finding)
    return apart


def _load(name: str) -> CustomFinder:
    module, _, function = name.partition(":")
    try:
        finder: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{name!r} is no finder ({error}): name a function that can be imported, as module:function.",
            param="finder",
        ) from error
    if not callable(finder):
        raise ConfigurationError(f"{name!r} is no function.", param="finder")
    typed: CustomFinder = finder
    return typed


# --- personal data ----------------------------------------------------------------------------------------------------

_MAYBE_PERSONAL: Final = re.compile(r"@|(?:\d\W?){7}|\d\.\d+\.\d+\.\d|:[0-9A-Fa-f]{0,4}:|[A-Z]{2}\d\d")
_EMAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_CARD: Final = re.compile(
    r"(?<![\w.-])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{5})(?![\w-])"
)
_IBAN: Final = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_IPV4: Final = re.compile(r"(?<![\w.])(?<![vV] )(?<!ersion )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\w)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+(?![\w:])")
_SSN: Final = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")

RESERVED_MAIL: Final = re.compile(r"[@.](?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$", re.IGNORECASE)
"""Domains that belong to nobody (RFC 2606): addresses in them stand in manuals."""

# Lengths of IBANs by country, from the registry of SWIFT.
IBAN_LENGTHS: Final = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}


def _personal(text: str, region: str | None) -> Iterator[Finding]:
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
    for number in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID, max_tries=100):
        # Ten digits in a row may be any number; a country code or the way they are grouped makes them a phone's.
        if number.raw_string.startswith("+") or not number.raw_string.isdecimal():
            yield Finding(number.start, number.end, "phone")


def _luhn(digits: list[int]) -> bool:
    """The check digit of card numbers (ISO/IEC 7812)."""
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban_end(candidate: str) -> int | None:
    """Where the IBAN at the start of ``candidate`` ends, by its country's length and check digits (ISO 13616)."""
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


# --- secrets ----------------------------------------------------------------------------------------------------------

MIN_PASSWORD_CHARS: Final = 6

_MAYBE_SECRET: Final = re.compile(r"[\w+/=.:-]{16}|://|-----BEGIN|pass|pwd|secret|key|contrase", re.IGNORECASE)
_KEYWORD: Final = re.compile(r"pass|pwd|secret|key|contrase", re.IGNORECASE)
_PATTERNS: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        r"(?<!\w)gw_[A-Za-z0-9]+_[0-9a-f]{64}(?!\w)",  # our own
        r"(?<!\w)sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic and those who write keys as they do
        r"(?<!\w)github_pat_[A-Za-z0-9_]{22,}",
        r"(?<!\w)hf_[A-Za-z0-9]{30,}",
        r"(?<!\w)AKC[A-Za-z0-9]{20,}",  # Artifactory
        r"(?<!\w)AIza[A-Za-z0-9_-]{35}",  # Google
        r"(?<!\w)(?:glpat|dop_v1|xox[abprs])[-_][A-Za-z0-9-]{16,}",
        r"(?<![\w-])eyJ[\w-]{10,}\.[\w-]{4,}(?:\.[\w-]*)?",  # JSON web tokens
        r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]{20,}=*",
        # What people write in a chat: a word with a digit or a sign in it, after "password is".
        r"(?i)(?<!\w)(?:password|passcode|passphrase|passwort|pwd)(?: is| was|:| =|=)\s*[\"'`]?"
        r"(?P<value>(?=\S*[\d#$%&*@^_])\S{5,63}[\w!#$%&*@^])",
    )
)


class _Keywords(Protocol):
    def analyze_string(self, string: str) -> Iterable[str]: ...


@cache
def _known_keys() -> tuple[re.Pattern[str], ...]:
    """How keys look, as the detectors of ``detect-secrets`` know it.

    Left out: entropy (any quoted word of a text), public addresses (personal data here), Artifactory (many a word in
    capitals), and what the patterns above see more of: private keys and web tokens.
    """
    modules = (
        "aws:AWSKeyDetector azure_storage_key:AzureStorageKeyDetector basic_auth:BasicAuthDetector "
        "cloudant:CloudantDetector discord:DiscordBotTokenDetector github_token:GitHubTokenDetector "
        "gitlab_token:GitLabTokenDetector ibm_cloud_iam:IbmCloudIamDetector ibm_cos_hmac:IbmCosHmacDetector "
        "mailchimp:MailchimpDetector npm:NpmDetector openai:OpenAIDetector pypi_token:PypiTokenDetector "
        "sendgrid:SendGridDetector slack:SlackDetector softlayer:SoftlayerDetector square_oauth:SquareOAuthDetector "
        "stripe:StripeDetector telegram_token:TelegramBotTokenDetector twilio:TwilioKeyDetector"
    )
    patterns: list[re.Pattern[str]] = []
    for entry in modules.split():
        module, _, name = entry.partition(":")
        patterns += getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)().denylist
    return tuple(patterns)


@cache
def _keywords() -> _Keywords:
    """Knows what is assigned to ``password`` and its like in code."""
    found: _Keywords = importlib.import_module("detect_secrets.plugins.keyword").KeywordDetector()
    return found


def _secrets(text: str) -> Iterator[Finding]:
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            group = "value" if "value" in pattern.groupindex else 0
            yield Finding(*match.span(group), SECRET)
    position = 0
    for line in text.splitlines(keepends=True):
        if _MAYBE_SECRET.search(line):
            for start, end in _keys(line):
                yield Finding(position + start, position + end, SECRET)
        position += len(line)


def _keys(line: str) -> Iterator[tuple[int, int]]:
    for pattern in _known_keys():
        for match in pattern.finditer(line):
            # A group at the start of a match is the prefix of a key, any other the key itself.
            inside = [place for place in range(1, pattern.groups + 1) if match.start(place) > match.start()]
            yield match.span(inside[0] if inside else 0)
    if _KEYWORD.search(line):
        for value in {value for value in _keywords().analyze_string(line) if len(value) >= MIN_PASSWORD_CHARS}:
            start = line.find(value)
            while start >= 0:
                yield start, start + len(value)
                start = line.find(value, start + len(value))
