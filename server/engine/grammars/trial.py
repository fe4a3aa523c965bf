"""``python -m graftwork.server.engine.grammars.trial``: makes grammars and tries them out, in a process of its own.

Some schemas of a few hundred bytes take minutes to check, and nothing can stop a thread: the kernel ends this process
when one takes too much CPU time or memory, and whoever asked takes that for the answer. Questions come in on standard
input and answers go out on standard output, a line of JSON each.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from graftwork.server.engine.grammars.grammar import ProblemWithGrammar, make_and_try_out

#: CPU time for one grammar. Schemas that people write take a hundredth of it.
MAX_SECONDS = 1.0

#: Of address space.
MAX_BYTES = 2 << 30


def answer(question: dict[str, Any]) -> dict[str, str]:
    """The grammar that was asked for, or what is wrong with it."""
    try:
        return {"grammar": make_and_try_out(question["kind"], question["source"])}
    except ProblemWithGrammar as problem:
        return {"problem": str(problem), "field": problem.field or ""}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which says when to go
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # unhandled, its signal ends the process
        reply = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main()
