"""What every test may use. Heavy things are made once and kept below the checkout's ``.graftwork`` between runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from graftwork.adapters.base import BaseInfo, prepare

CHECKOUT = Path(__file__).resolve().parent.parent
TEST_HOME = Path(os.environ.get("GRAFTWORK_TEST_HOME", CHECKOUT / ".graftwork" / "test"))

# A run in the background inherits an ignored Ctrl-C, and so would everything that tests send one to.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every home of every test would build its own otherwise.
os.environ.setdefault("GRAFTWORK_KERNEL_CACHE", str(TEST_HOME / "kernels"))


@pytest.fixture(scope="session")
def embedded_base() -> BaseInfo:
    """The real embedded base, fetched and converted on the first run."""

    def progress(title: str, fraction: float | None) -> None:
        if fraction is None:
            print(title, file=sys.stderr)

    return prepare(None, TEST_HOME, progress)
