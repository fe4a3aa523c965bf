"""Detection of keys, tokens and passwords, by the patterns of ``detect-secrets`` and those below."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final, Protocol

from graftwork.training.data.clean.findings import Finding

SECRET: Final = "secret"

MIN_PASSWORD_CHARS: Final = 6

_MAYBE_SECRET: Final = re.compile(r"[\w+/=.:-]{16}|://|-----BEGIN|pass|pwd|secret|key|contrase", re.IGNORECASE)
_KEYWORD: Final = re.compile(r"pass|pwd|secret|key|contrase", re.IGNORECASE)
_PATTERNS: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        r"(?<!\w)gw_[A-Za-z0-9]+_[0-9a-f]{64}(?!\w)",  # Graftwork
        r"(?<!\w)sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic and others with the same format
        r"(?<!\w)github_pat_[A-Za-z0-9_]{22,}",
        r"(?<!\w)hf_[A-Za-z0-9]{30,}",
        r"(?<!\w)AKC[A-Za-z0-9]{20,}",  # Artifactory
        r"(?<!\w)AIza[A-Za-z0-9_-]{35}",  # Google
        r"(?<!\w)(?:glpat|dop_v1|xox[abprs])[-_][A-Za-z0-9-]{16,}",
        r"(?<![\w-])eyJ[\w-]{10,}\.[\w-]{4,}(?:\.[\w-]*)?",  # JSON web tokens
        r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]{20,}=*",
        # In conversations: a word with a digit or a symbol in it, after "password is".
        r"(?i)(?<!\w)(?:password|passcode|passphrase|passwort|pwd)(?: is| was|:| =|=)\s*[\"'`]?"
        r"(?P<value>(?=\S*[\d#$%&*@^_])\S{5,63}[\w!#$%&*@^])",
    )
)


class _KeywordDetector(Protocol):
    def analyze_string(self, string: str) -> Iterable[str]: ...


@cache
def _known_keys() -> tuple[re.Pattern[str], ...]:
    """Return the patterns of the detectors of ``detect-secrets``.

    Excluded are entropy (it matches any quoted word), public addresses (personal data here), Artifactory (it matches
    many words in capitals), and private keys and web tokens, for which the patterns above find more.
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
def _keyword_detector() -> _KeywordDetector:
    """Return the detector of values that code assigns to ``password`` and similar names."""
    detector: _KeywordDetector = importlib.import_module("detect_secrets.plugins.keyword").KeywordDetector()
    return detector


def find_secrets(text: str) -> Iterator[Finding]:
    """Find keys, tokens and passwords. Findings are in no particular order and may overlap."""
    if not _MAYBE_SECRET.search(text):
        return
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
            # A group at the start of a match is the prefix of a key; any other group is the key itself.
            inside = [place for place in range(1, pattern.groups + 1) if match.start(place) > match.start()]
            yield match.span(inside[0] if inside else 0)
    if _KEYWORD.search(line):
        for value in {value for value in _keyword_detector().analyze_string(line) if len(value) >= MIN_PASSWORD_CHARS}:
            start = line.find(value)
            while start >= 0:
                yield start, start + len(value)
                start = line.find(value, start + len(value))
