"""The interaction log: rows are read back in order, by every filter, also after erasures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.feedback import interactions
from graftwork.adapters.feedback.interactions import BARE_BASE, Completion, InteractionFilter
from tests.adapters.records import Records, outcome


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records.new(tmp_path / "graftwork.db")
    yield records
    records.database.close()


def ids(found: Any) -> list[str]:
    return [interaction.id for interaction in found]


def test_a_row_is_what_was_written_and_what_its_id_says(records: Records) -> None:
    unit = records.ids.unit(user="ann")
    id = records.mint(user="ann", experiment="seven", arm="b", probability=0.25)
    completions = (
        Completion(index=0, text="a", finish_reason="stop"),
        Completion(index=1, text="", finish_reason=None),
    )
    written = outcome(id, user="ann", metadata={"page": "7"}, completions=completions, status="cancelled")
    records.interactions.write([written])
    row = records.interactions.get(id)
    for field in vars(written):
        assert getattr(row, field) == getattr(written, field), field
    assert (row.adapter, row.kind, row.experiment, row.arm, row.probability) == (
        "intents@7", "chatcmpl", "seven", "b", 0.25,
    )  # fmt: skip
    assert (row.unit, row.created_at.timestamp()) == (unit, records.ids.read(id).at)
    assert row.texts == ("a", "")


def test_someone_with_sqlite_can_read_it(records: Records) -> None:
    records.log(records.mint())
    with records.database.read() as connection:
        query = "SELECT adapter, version, status, json_extract(completions, '$[0].text'), metadata FROM interactions"
        assert connection.execute(text(query)).all() == [("intents", 7, "ok", "card_arrival", None)]


def test_a_batch_may_be_written_again(records: Records) -> None:
    first, second = records.mint(), records.mint()
    records.log(first)
    records.interactions.write([outcome(first, model="another"), outcome(second), outcome(second)])
    assert set(ids(records.interactions.find())) == {first, second}
    assert records.interactions.get(first).model == "intents"


def test_a_row_needs_an_id_of_this_server(records: Records, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Records.new(tmp_path / "other" / "graftwork.db")
    for id in ("chatcmpl-123", other.mint()):
        with pytest.raises(InvalidRequest, match="no id of an answer of this server"):
            records.log(id)
        with pytest.raises(NotFound, match="is logged: check the id"):
            records.interactions.get(id)
    other.database.close()


def test_every_filter(records: Records) -> None:
    rows = {
        "v7": records.log(records.mint("intents@7", days_ago=1), user="ann", key_id="k1"),
        "v8": records.log(records.mint("intents@8", days_ago=2, experiment="e", arm="b", probability=1.0)),
        "other": records.log(records.mint("intents-old@7", days_ago=3), status="error", error="broke"),
        "base": records.log(records.mint(None, days_ago=4), user="bob"),
    }

    def found(**which: Any) -> list[str]:
        matching = ids(records.interactions.find(InteractionFilter(**which)))
        assert ids(records.interactions.each(InteractionFilter(**which))) == matching[::-1]
        return [name for name, id in rows.items() if id in matching]

    now = datetime.now(UTC)
    assert found() == ["v7", "v8", "other", "base"]
    assert found(adapter="intents") == ["v7", "v8"]
    assert found(adapter="intents@8") == ["v8"]
    assert found(adapter=BARE_BASE) == ["base"]
    assert found(adapter="intents@live") == found(adapter="intents@") == found(adapter="intents@" + "9" * 99) == []
    assert found(experiment="e") == found(arm="b") == ["v8"]
    assert found(status="error") == ["other"]
    assert found(user="ann") == found(key_id="k1") == ["v7"]
    assert found(since=now - timedelta(days=2.5)) == ["v7", "v8"]
    assert found(until=now - timedelta(days=2.5)) == ["other", "base"]
    assert found(adapter="intents", user="bob") == []
    boundary = records.interactions.get(rows["v8"]).created_at
    assert found(since=boundary) == ["v7", "v8"]
    assert found(until=boundary) == ["other", "base"]


def test_pages_are_newest_first_and_go_on_behind_a_row_that_is_gone(records: Records) -> None:
    # Many in the same second, where only the id tells them apart.
    made = [records.mint(days_ago=0.5) for _ in range(5)] + [records.mint(days_ago=day) for day in (2, 1)]
    records.interactions.write([outcome(id) for id in made])
    everything = records.interactions.find(limit=100)
    assert [row.created_at for row in everything] == sorted((row.created_at for row in everything), reverse=True)
    assert not everything.has_more
    seen: list[str] = []
    while len(seen) < 7:
        page = records.interactions.find(after=seen[-1] if seen else None, limit=3)
        assert page.has_more == (len(seen) < 4)
        seen += ids(page)
        with records.database.write() as connection:
            connection.execute(text("DELETE FROM interactions WHERE id = :id"), {"id": seen[-1]})
    assert seen == ids(everything)
    with pytest.raises(InvalidRequest) as refused:
        records.interactions.find(after="chatcmpl-1")
    assert refused.value.param == "after"


def test_a_long_read_goes_on_while_others_write(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "READ_AT_ONCE", 2)
    made = [records.mint(days_ago=day) for day in (5, 4, 3, 2)]
    records.interactions.write([outcome(id) for id in made])
    reading = records.interactions.each()
    assert next(reading).id == made[0]
    later, earlier = records.log(records.mint()), records.log(records.mint(days_ago=9))
    assert ids(reading) == [*made[1:], later]
    assert next(records.interactions.each()).id == earlier
