"""Makes the grammars of requests and tries them out before the engine sees them, in a process that may end of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import subprocess
import sys
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread

from graftwork.adapters.errors import InvalidRequest, Unavailable
from graftwork.server.openai.requests.structured_output import GrammarSource

log = logging.getLogger(__name__)

#: Of which the outcome is kept: people send the same few schemas.
MAX_KEPT = 128

#: How the trial's process ends when a grammar is too much for it: of CPU time, of memory, of stack.
_TOO_MUCH = (-signal.SIGPROF, -signal.SIGABRT, -signal.SIGSEGV)

#: It is not imported: only that process loads llguidance.
_TRIAL = "graftwork.server.engine.grammars.trial"


class Grammars:
    """From what requests ask for to grammars that the engine can follow.

    The child starts with the first grammar and ends when this process does: its standard input closes.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, dict[str, str]] = {}
        self._one = CapacityLimiter(1)  # thread beside the event loop, which alone talks to the child
        # One grammar of each key waits for it: keys take turns, and one that asks for much delays itself.
        self._turns: WeakValueDictionary[str, CapacityLimiter] = WeakValueDictionary()
        self._child: subprocess.Popen[str] | None = None

    async def make(self, source: GrammarSource, key_id: str) -> str:
        """The grammar of ``source``, for a request of a key. Takes a second of CPU time at most, of another process.

        Raises:
            InvalidRequest: It cannot be followed; the message names the field and the keyword.
            Unavailable: There is no telling at the moment.
        """
        key = hashlib.sha256(f"{source.kind}\n{source.text}".encode()).digest()
        if (outcome := self._kept.get(key)) is None:
            async with self._turns.setdefault(key_id, CapacityLimiter(1)):
                outcome = await to_thread.run_sync(self._try_once, key, source, limiter=self._one)
        if "grammar" in outcome:
            return outcome["grammar"]
        problem, field = outcome["problem"], outcome.get("field") or source.field
        code = "unsupported_parameter" if "not supported" in problem else "invalid_value"
        raise InvalidRequest(f"{field}: {problem}", param=field, code=code)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.communicate()
            self._child = None

    def _try_once(self, key: bytes, source: GrammarSource) -> dict[str, str]:
        if key not in self._kept:
            self._kept[key] = self._try_out(source)
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def _try_out(self, source: GrammarSource) -> dict[str, str]:
        question = json.dumps({"kind": source.kind, "source": source.text}) + "\n"
        for _ in range(2):
            if self._child is None:
                command = [sys.executable, "-m", _TRIAL]
                self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            try:
                self._child.stdin.write(question)
                self._child.stdin.flush()
                if line := self._child.stdout.readline():
                    outcome: dict[str, str] = json.loads(line)
                    return outcome
            except BrokenPipeError:
                pass
            with contextlib.suppress(BrokenPipeError):
                self._child.communicate()
            ended, self._child = self._child.returncode, None
            if ended in _TOO_MUCH:
                return {"problem": "is too complex: it takes too long or too much memory to check; simplify it"}
            log.warning("the process that tries grammars out ended with %d and is started again", ended)
        raise Unavailable("Structured output cannot be checked at the moment; try again.")
