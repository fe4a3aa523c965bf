"""The limits of keys and adapters, kept while requests are answered.

A request is charged to its key when it begins, and to its adapter if that has limits: its prompt, and as many tokens as
its answer may have. When it ends, for whatever reason, what it used takes the place of that. So limits hold exactly,
however many requests begin at once: no more is begun than they allow, and what is refused had no room at that moment.

- ``requests_per_minute`` and ``tokens_per_minute`` count what began in the last 60 seconds: a sliding window.
- ``concurrent`` counts what has begun and not ended.
- ``tokens_per_day`` and ``tokens_per_month`` count by the calendar, in UTC. A request belongs to the day on which it
  began. For requests of batches only these two hold.

The first three are this process's own. Budgets are the database's: every second what was used meanwhile is added there,
and what other processes added is read. A process that is killed loses what ended in its last second, and the answers
that were under way.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

from graftwork.adapters.access.limits import NO_LIMITS, Limits
from graftwork.adapters.access.usage import Usage, UsageLedger
from graftwork.adapters.errors import LimitExceeded

log = logging.getLogger(__name__)

WINDOW_SECONDS: Final = 60.0
SAVE_SECONDS: Final = 1.0

#: When answers that are under way will end is not known: whoever waits for that may ask again so soon.
RETRY_SECONDS: Final = 1.0

_ADAPTER: Final = "adapter:"


@dataclass(eq=False, slots=True)
class Charge:
    """What one request is charged with.

    Attributes:
        at: When it began, on the clock of windows.
        day: On which day.
        tokens: What it may use; when it has ended, what it used.
        background: Whether it is a batch's.
    """

    at: float
    day: date
    tokens: int
    background: bool


@dataclass(slots=True)
class Account:
    """What one key or adapter has used.

    Attributes:
        window: The requests that began in the last 60 seconds, oldest first.
        window_tokens: Their tokens.
        open: Requests that have begun and not ended.
        reserved: Tokens that these may still use, by the day on which they began.
        used: What requests that ended used, by day: since the month began at least.
    """

    window: deque[Charge] = field(default_factory=deque)
    window_tokens: int = 0
    open: int = 0
    reserved: dict[date, int] = field(default_factory=lambda: defaultdict(int))
    used: dict[date, Usage] = field(default_factory=lambda: defaultdict(Usage))

    def expire(self, now: float) -> None:
        """Drop from the window what began too long ago."""
        while self.window and self.window[0].at <= now - WINDOW_SECONDS:
            self.window_tokens -= self.window.popleft().tokens

    def begin(self, charge: Charge) -> None:
        """Charge a request."""
        self.reserved[charge.day] += charge.tokens
        if not charge.background:
            self.open += 1
            self.window.append(charge)
            self.window_tokens += charge.tokens

    def end(self, charge: Charge, tokens: int, now: float) -> None:
        """Let what a request used take the place of what it was charged. The charge itself is changed afterwards."""
        self.expire(now)
        if not charge.background and charge.at > now - WINDOW_SECONDS:
            self.window_tokens += tokens - charge.tokens
        self._release(charge)
        self.used[charge.day] += Usage(1, tokens)

    def withdraw(self, charge: Charge) -> None:
        """Forget a request."""
        if self.window and self.window[-1] is charge:  # nearly always: it was charged just now
            self.window.pop()
            self.window_tokens -= charge.tokens
        elif charge in self.window:
            self.window.remove(charge)
            self.window_tokens -= charge.tokens
        self._release(charge)

    def until_requests(self, limit: int, now: float) -> float:
        """Seconds until the window has room for one more request."""
        return 0.0 if len(self.window) < limit else self.window[-limit].at + WINDOW_SECONDS - now

    def until_tokens(self, tokens: int, limit: int, now: float) -> float:
        """Seconds until the window has room for so many tokens, at most ``limit``."""
        excess = self.window_tokens + tokens - limit
        if excess <= 0:
            return 0.0
        for charge in self.window:
            excess -= charge.tokens
            if excess <= 0:
                return charge.at + WINDOW_SECONDS - now
        raise AssertionError("an empty window has room for everything that the limit allows")

    def used_since(self, first: date) -> Usage:
        """What requests used that ended, and that began on this day or later."""
        return sum((used for day, used in self.used.items() if day >= first), Usage())

    def _release(self, charge: Charge) -> None:
        self.reserved[charge.day] -= charge.tokens
        if not self.reserved[charge.day]:
            del self.reserved[charge.day]
        self.open -= not charge.background


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key or an adapter stands with its limits.

    Attributes:
        limits: The limits.
        requests: Requests that began in the last 60 seconds.
        tokens: Their tokens; of those under way what they may still use.
        reset_seconds: Until all of them began longer ago.
        open: Requests under way.
        today: What ended requests of today used.
        month: What ended requests of this month used.
    """

    limits: Limits
    requests: int
    tokens: int
    reset_seconds: float
    open: int
    today: Usage
    month: Usage

    def headers(self) -> dict[str, str]:
        """OpenAI's headers of the limits per minute, as far as there are any."""
        headers = {}
        for what, used, limit in (
            ("requests", self.requests, self.limits.requests_per_minute),
            ("tokens", self.tokens, self.limits.tokens_per_minute),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(max(limit - used, 0))
                headers[f"x-ratelimit-reset-{what}"] = duration(self.reset_seconds)
        return headers


class Reservation:
    """What a request is charged with until it ends. It ends once: what is said later changes nothing."""

    __slots__ = ("_charge", "_limiter", "_subjects")

    def __init__(self, limiter: Limiter, subjects: Sequence[str], charge: Charge) -> None:
        self._limiter = limiter
        self._subjects = subjects
        self._charge: Charge | None = charge

    def settle(self, tokens: int) -> None:
        """The request has ended, and used so many tokens."""
        charge, self._charge = self._charge, None
        if charge is not None:
            self._limiter.settle(self._subjects, charge, tokens)

    def withdraw(self) -> None:
        """The request did not begin, or will begin again: it counts for nothing."""
        charge, self._charge = self._charge, None
        if charge is not None:
            self._limiter.withdraw(self._subjects, charge)


def subject_of(adapter: str) -> str:
    """An adapter among the subjects that have limits, which else are the ids of keys."""
    return f"{_ADAPTER}{adapter}"


class Limiter:
    """Keeps the limits of all keys and adapters in one process. Its methods take microseconds, but for ``save``.

    Args:
        ledger: Where usage is stored.
        key_limits: The limits of the key with an id; from memory.
        adapter_limits: The limits of the adapter with a name; from memory.
        clock: Seconds, for windows.
        now: The time, for days and months.
    """

    def __init__(
        self,
        ledger: UsageLedger,
        key_limits: Callable[[str], Limits],
        adapter_limits: Callable[[str], Limits] = lambda name: NO_LIMITS,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ledger = ledger
        self._key_limits = key_limits
        self._adapter_limits = adapter_limits
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = defaultdict(Account)
        self._unsaved: dict[tuple[str, date], Usage] = defaultdict(Usage)
        self._saving = threading.Lock()
        self._read_on: date | None = None
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._save_all_the_time, name="usage", daemon=True)

    # -- requests --------------------------------------------------------------------------------------------------
    def check(self, key_id: str) -> None:
        """Refuse a request that could not begin, however small it is, before any work is done for it.

        Raises:
            LimitExceeded: A limit of the key is reached.
        """
        limits, now = {key_id: self._limits_of(key_id)}, self._clock()
        with self._lock:
            self._refuse(limits, now, tokens=1, background=False)

    def begin(self, key_id: str, tokens: int, *, adapter: str | None = None, background: bool = False) -> Reservation:
        """Charge a request that begins now.

        Args:
            key_id: The caller's key.
            tokens: Of its prompt, and as many as its answer may have.
            adapter: The adapter that answers; ``None``: the bare base.
            background: Whether it is a batch's.

        Raises:
            LimitExceeded: A limit of the key or the adapter is reached, or is less than this request needs.
        """
        limits = {key_id: self._limits_of(key_id)}
        if adapter is not None and (shared := self._limits_of(subject_of(adapter))):
            limits[subject_of(adapter)] = shared
        with self._lock:
            now = self._clock()  # in the order of the windows
            self._refuse(limits, now, tokens=tokens, background=background)
            charge = Charge(now, self._now().date(), tokens, background)
            for subject in limits:
                self._accounts[subject].begin(charge)
        return Reservation(self, tuple(limits), charge)

    def settle(self, subjects: Sequence[str], charge: Charge, tokens: int) -> None:
        """See ``Reservation.settle``."""
        with self._lock:
            now = self._clock()
            for subject in subjects:
                self._accounts[subject].end(charge, tokens, now)
                self._unsaved[subject, charge.day] += Usage(1, tokens)
            charge.tokens = tokens

    def withdraw(self, subjects: Sequence[str], charge: Charge) -> None:
        """See ``Reservation.withdraw``."""
        with self._lock:
            for subject in subjects:
                self._accounts[subject].withdraw(charge)

    def standing(self, subject: str) -> Standing:
        """How a key, by its id, or ``subject_of`` an adapter stands with its limits."""
        limits, now = self._limits_of(subject), self._clock()
        with self._lock:
            return self._standing(self._account(subject, now), limits, now)

    def _limits_of(self, subject: str) -> Limits:
        if subject.startswith(_ADAPTER):
            return self._adapter_limits(subject.removeprefix(_ADAPTER))
        return self._key_limits(subject)

    def _account(self, subject: str, now: float) -> Account:
        """An account, with what lies in the window now."""
        account = self._accounts[subject]
        account.expire(now)
        return account

    def _standing(self, account: Account, limits: Limits, now: float) -> Standing:
        today = self._now().date()
        last = account.window[-1].at if account.window else -math.inf
        return Standing(
            limits=limits,
            requests=len(account.window),
            tokens=account.window_tokens,
            reset_seconds=max(last + WINDOW_SECONDS - now, 0.0),
            open=account.open,
            today=account.used.get(today, Usage()),
            month=account.used_since(today.replace(day=1)),
        )

    def _refuse(self, limits: Mapping[str, Limits], now: float, *, tokens: int, background: bool) -> None:
        """Raise why a request cannot begin now, if so: of several reasons the one that takes longest to pass.

        Args:
            limits: By subject, that of the key first.
            now: On the clock of windows.
            tokens: That it may use.
            background: Whether it is a batch's.
        """
        reasons: list[_Refusal] = []
        accounts = [self._account(subject, now) for subject in limits]
        for (subject, each), account in zip(limits.items(), accounts, strict=True):
            reasons += self._of_budgets(subject, account, each, tokens)
            if not background:
                reasons += self._of_windows(subject, account, each, now, tokens)
        if reasons:
            reason = max(reasons, key=lambda reason: reason.seconds)
            raise reason.error(self._standing(accounts[0], next(iter(limits.values())), now).headers())

    def _of_windows(
        self, subject: str, account: Account, limits: Limits, now: float, tokens: int
    ) -> Iterator[_Refusal]:
        who, requests, most = _named(subject), limits.requests_per_minute, limits.tokens_per_minute
        if limits.concurrent is not None and account.open >= limits.concurrent:
            message = f"at most {limits.concurrent} requests of {who} are answered at once"
            yield _Refusal("requests", message, RETRY_SECONDS)
        if requests is not None and (seconds := account.until_requests(requests, now)):
            yield _Refusal("requests", f"at most {requests} requests of {who} begin a minute", seconds)
        if most is not None and tokens > most:
            yield _too_large(who, tokens, most, "minute")
        elif most is not None and (seconds := account.until_tokens(tokens, most, now)):
            yield _Refusal("tokens", _too_little(who, tokens, most, "minute", account.window_tokens), seconds)

    def _of_budgets(self, subject: str, account: Account, limits: Limits, tokens: int) -> Iterator[_Refusal]:
        who, now = _named(subject), self._now()
        today = now.date()
        month = today.replace(day=1)
        for name, most, first, end in (
            ("day", limits.tokens_per_day, today, today + timedelta(days=1)),
            ("month", limits.tokens_per_month, month, (month + timedelta(days=31)).replace(day=1)),
        ):
            if most is None:
                continue
            used = account.used_since(first).tokens
            reserved = sum(reserved for day, reserved in account.reserved.items() if day >= first)
            message = _too_little(who, tokens, most, name, used + reserved)
            if tokens > most:
                yield _too_large(who, tokens, most, name)
            elif used + tokens > most:
                until = datetime(end.year, end.month, end.day, tzinfo=UTC) - now
                yield _Refusal("insufficient_quota", message, until.total_seconds())
            elif used + reserved + tokens > most:  # what is under way may take less
                yield _Refusal("tokens", message, RETRY_SECONDS)

    # -- what is stored --------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Read what is stored, and begin to store what is used, until ``stop``."""
        self._try_to_save()
        self._thread.start()

    def stop(self) -> None:
        """Store what is not stored yet."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._try_to_save()

    def save(self) -> None:
        """Store what is not stored yet, and read what all processes have used this month."""
        with self._saving:
            with self._lock:
                unsaved, self._unsaved = self._unsaved, defaultdict(Usage)
            try:
                self._ledger.add(unsaved)
            except BaseException:
                with self._lock:
                    for which, used in unsaved.items():
                        self._unsaved[which] += used
                raise
            today = self._now().date()
            # No request lasts longer than from yesterday to today: days before do not change any more.
            first = today.replace(day=1) if today != self._read_on else today - timedelta(days=1)
            stored, self._read_on = self._ledger.since(first), today
            with self._lock:
                for (subject, day), used in stored.items():
                    self._accounts[subject].used[day] = used + self._unsaved.get((subject, day), Usage())
                if first.day == 1:  # of months before nothing is asked any more
                    for account in self._accounts.values():
                        for day in [day for day in account.used if day < first]:
                            del account.used[day]

    def _save_all_the_time(self) -> None:
        while not self._stopping.wait(SAVE_SECONDS):
            self._try_to_save()

    def _try_to_save(self) -> None:
        try:
            self.save()
        except Exception as failure:
            if not self._failing:
                log.error("what was used cannot be stored now, and is kept until it can: %s", failure)
            self._failing = True
        else:
            self._failing = False


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a request cannot begin, OpenAI's type of that, and for how many seconds it holds; infinite: for good."""

    kind: str
    message: str
    seconds: float

    def error(self, headers: dict[str, str]) -> LimitExceeded:
        if self.seconds == math.inf:
            return LimitExceeded(self.message, kind=self.kind, retry_after=None, headers=headers)
        seconds = math.ceil(self.seconds)
        return LimitExceeded(
            f"{self.message}: try again in {duration(seconds)}", kind=self.kind, retry_after=seconds, headers=headers
        )


def _named(subject: str) -> str:
    return f"the adapter {subject.removeprefix(_ADAPTER)}" if subject.startswith(_ADAPTER) else "this key"


def _too_large(who: str, tokens: int, limit: int, per: str) -> _Refusal:
    message = (
        f"the request may take {tokens} tokens, prompt and answer together, and {who} has {limit} a {per}: shorten it, "
        "or set a smaller max_tokens"
    )
    return _Refusal("tokens", message, math.inf)


def _too_little(who: str, tokens: int, limit: int, per: str, used: int) -> str:
    return (
        f"{who} has {limit} tokens a {per}, of which {max(limit - used, 0)} are left, and the request may take "
        f"{tokens}, prompt and answer together"
    )


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: ``17ms``, ``1.5s``, ``6m0s``, ``2h0m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    hours, rest = divmod(math.ceil(seconds * 1000) / 1000, 3600)
    minutes, rest = divmod(rest, 60)
    shown = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{int(hours)}h{int(minutes)}m{shown}"
    return f"{int(minutes)}m{shown}" if minutes else shown
