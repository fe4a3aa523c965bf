"""The garbage collector while a process starts. What is made then lives as long as the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """A context for importing large libraries and for loading a model: nothing is collected in it.

    The collector would look through a million objects again and again, a sixth of the time that such a start takes.
    What is there at the end it never looks through again (``gc.freeze``): in a serving process that would stop all
    answers for 0.4 s, now and then.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
