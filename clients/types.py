"""What the server answers, as frozen dataclasses: one per noun of the HTTP contract, field names as on the wire.

Times are aware ``datetime`` in UTC. Fields whose set of values may grow (``residency``, ``action``,
``finish_reason``, ``status``) are plain strings. Knows nothing of HTTP or of how an answer was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Liveness: the process answers."""

    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether requests are served now. ``status``: ready, starting, draining or recovering."""

    status: str
    base: Any = None

    @property
    def ready(self) -> bool:
        return self.status == "ready"


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """One page of a list; iterate it, or read ``data``. With ``has_more``, ask again with ``after``."""

    data: tuple[T, ...]
    has_more: bool = False

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Something that can be named as ``model``: the base, an adapter, or a version."""

    id: str
    created: datetime
    owned_by: str
    parent: str | None = None
    root: str | None = None
    graftwork: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One immutable version of an adapter. ``id`` is ``name@version``; the digest identifies its files."""

    id: str
    name: str
    version: int
    digest: str
    base_digest: str | None
    verified: bool
    rank: int
    num_parameters: int
    num_bytes: int
    created_at: datetime
    parent: int | None = None
    data_digest: str | None = None
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    retired_at: datetime | None = None
    residency: str | None = None
    load_ms: float | None = None
    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PushedVersion(Version):
    """The version that a push ended in. ``created`` is false when the very same bytes were there already."""

    created: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A named task with its versions. ``residency`` is that of the live version: device, host or store."""

    name: str
    created_at: datetime
    aliases: Mapping[str, int]
    versions: tuple[Version, ...]
    residency: str | None = None
    requests: int = 0
    tokens: int = 0

    def aliases_of(self, version: int) -> tuple[str, ...]:
        """The aliases that point at a version, sorted."""
        return tuple(sorted(alias for alias, number in self.aliases.items() if number == version))


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of an adapter's append-only history. ``action``: push, promote, rollback or retire."""

    id: int
    at: datetime
    action: str
    name: str
    alias: str | None
    from_version: int | None
    to_version: int | None
    actor: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """An API key. ``secret`` is there once: in the answer that created it."""

    id: str
    name: str
    role: str
    created_at: datetime
    secret: str | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """What somebody said of one choice of an answer. ``adapter`` is the version that was rated, or the base's id.

    With ``erased_at``, what had been written in words was erased then.
    """

    id: int
    at: datetime
    interaction_id: str
    adapter: str
    choice: int = 0
    thumb: str | None = None
    score: float | None = None
    correction: str | None = None
    preferred_over: str | None = None
    preferred_over_choice: int | None = None
    comment: str | None = None
    metadata: Mapping[str, str] | None = None
    user: str | None = None
    experiment: str | None = None
    arm: str | None = None
    probability: float | None = None
    unit: str | None = None
    key_id: str | None = None
    erased_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SentFeedback(Feedback):
    """The feedback that a call ended in. ``created`` is false when its idempotency key had said it already."""

    created: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedCompletion:
    """One of a request's answers, as it was logged; ``finish_reason`` is ``None`` where it was broken off."""

    index: int
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Milliseconds from a request's admission: until the engine took it up, to its first token, to its end."""

    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """A logged request and its answers. ``status``: ok, error, cancelled. Either ``messages`` or ``prompt`` was asked.

    ``feedback`` is there where one interaction was asked for.
    """

    id: str
    created_at: datetime
    model: str
    base: str
    adapter: str
    status: str
    completions: tuple[LoggedCompletion, ...]
    usage: Usage
    timings: Timings
    error: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: tuple[Any, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    experiment: str | None = None
    arm: str | None = None
    probability: float | None = None
    unit: str | None = None
    key_id: str | None = None
    feedback: tuple[Feedback, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Erasure:
    """What was erased of a user: interactions, and feedback that lost its words. ``learned_from`` are the versions that
    were trained on any of it, ``continued`` those that were not, but continue one that was."""

    interactions: int
    feedback: int
    learned_from: tuple[str, ...] = ()
    continued: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPolicy:
    """Whether an adapter's or a key's interactions are logged. ``retention_days`` ``None``: as long as by default."""

    scope: str
    subject: str
    log: bool
    retention_days: float | None
    actor: str
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class LogDefault:
    """What holds where no policy says otherwise. ``retention_days`` ``None``: for good."""

    log: bool
    retention_days: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPolicies:
    """All policies, and the default."""

    data: tuple[LogPolicy, ...]
    default: LogDefault

    def __iter__(self) -> Iterator[LogPolicy]:
        return iter(self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """Of a prompt's tokens, ``cached_tokens`` did not have to be computed."""

    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens read and written for one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Who answered: ``name@version``, or the base's id when no adapter did; and as which arm of which experiment."""

    adapter: str
    experiment: str | None = None
    arm: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A token that could have stood here, and its log-probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A chosen token, its log-probability, and the most likely tokens at its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top_logprobs: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatLogprobs:
    """Log-probabilities of a chat answer, token by token."""

    content: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One turn as the model wrote it."""

    role: str
    content: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatChoice:
    """One of ``n`` answers."""

    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCompletion:
    """A whole chat answer."""

    id: str
    created: datetime
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    graftwork: Origin

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].message.content or ""

    @property
    def adapter(self) -> str:
        """The version that answered, ``intents@7``, or the base's id."""
        return self.graftwork.adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionLogprobs:
    """Four lists of one length, one entry per token. A prompt's first token has no log-probability."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[Mapping[str, float] | None, ...] | None = None
    text_offset: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionChoice:
    """One of ``n`` continuations."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A whole text completion."""

    id: str
    created: datetime
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage
    graftwork: Origin

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].text

    @property
    def adapter(self) -> str:
        """The version that answered, ``intents@7``, or the base's id."""
        return self.graftwork.adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely the model finds a text, token by token; ``None`` for the first, which nothing precedes."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Mapping[str, float] | None, ...] | None
    usage: Usage
    adapter: str

    @property
    def total(self) -> float:
        """Log-probability of the whole text after its first token, in nats."""
        return sum(logprob for logprob in self.logprobs if logprob is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatDelta:
    """What one chunk of a stream adds to choice ``index``."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionDelta:
    """What one chunk of a stream adds to choice ``index``."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
