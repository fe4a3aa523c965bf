"""Topics that a thread reads: an outage at any moment ends when the database is back, and nothing outlives a close."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, create_engine, text

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.storage.topics import PolledTopics


class FlakyEngine:
    """An engine whose database may be away, or answer when it is let."""

    def __init__(self, file: Path) -> None:
        self.away = False
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()
        self.engine = create_engine(f"sqlite:///{file}")
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE topics (name TEXT, version INTEGER)"))
            connection.execute(text("INSERT INTO topics VALUES ('keys', 7)"))

    def connect(self) -> Any:
        self.asked.set()
        assert self.answers.wait(10)
        if self.away:
            raise Unavailable("it is away")
        return self.engine.connect()

    def dispose(self) -> None:
        self.engine.dispose()


@pytest.fixture
def engine(tmp_path: Path) -> FlakyEngine:
    return FlakyEngine(tmp_path / "topics.db")


@pytest.fixture
def topics(engine: FlakyEngine) -> Iterator[PolledTopics]:
    topics = PolledTopics(cast(Engine, engine))
    yield topics
    topics.close()


def test_a_first_look_that_fails_is_not_the_last(engine: FlakyEngine, topics: PolledTopics) -> None:
    engine.away = True
    with pytest.raises(Unavailable):
        topics.version("keys")
    assert topics.is_away
    engine.away = False
    deadline = time.monotonic() + 10
    while topics.is_away:  # which keeps everybody from asking
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert topics.version("keys") == 7


def test_a_look_during_a_close_leaves_nothing_behind(engine: FlakyEngine, topics: PolledTopics) -> None:
    assert topics.version("keys") == 7
    engine.answers.clear()
    engine.asked.clear()
    assert engine.asked.wait(10)  # the thread looks
    closing = threading.Thread(target=topics.close)
    closing.start()
    engine.answers.set()
    closing.join(10)
    assert (topics._versions, topics._stop, topics.is_away) == (None, None, False)
    with engine.engine.begin() as connection:
        connection.execute(text("UPDATE topics SET version = 8"))
    assert topics.version("keys") == 8
