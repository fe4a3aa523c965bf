"""The demo's queries, users and child processes. The loop on a real server is tested in ``tests/e2e``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork.clients.demo.queries import Query, QuerySplit, read, split_queries
from graftwork.clients.demo.server import DemoServer, ServerFailedError
from graftwork.clients.demo.users import run_concurrently
from graftwork.clients.errors import LocalFileError


def queries(labels: int, each: int) -> list[Query]:
    return [Query(f"{label} {number}", f"label-{label}") for label in range(labels) for number in range(each)]


def dealt(some: list[Query], *, classes: int = 3, first: int = 2, seed: int = 0) -> QuerySplit:
    return split_queries(some, classes=classes, first=first, judged=4, asked=5, traffic=6, seed=seed)


def test_no_query_is_dealt_twice_and_every_label_is_in_every_hand() -> None:
    hands = dealt(queries(5, 40))
    all_hands = (hands.train, hands.test, hands.feedback, hands.traffic)
    texts = [query.text for hand in all_hands for query in hand]
    assert len(texts) == len(set(texts)) == 3 * (2 + 4 + 5 + 6)
    for hand, size in zip(all_hands, (2, 4, 5, 6), strict=True):
        assert Counter(query.label for query in hand) == dict.fromkeys(hands.labels, size)


def test_a_small_file_leaves_something_for_everybody() -> None:
    hands = dealt(queries(3, 10))
    sizes = [len(hand) for hand in (hands.train, hands.test, hands.feedback, hands.traffic)]
    assert sizes == [3 * 2, 3 * 2, 3 * 3, 3 * 3]


def test_the_seed_chooses() -> None:
    some = queries(20, 20)
    assert dealt(some) == dealt(some)
    assert dealt(some).labels != dealt(some, seed=1).labels


def test_too_little_is_refused_with_a_way_out() -> None:
    with pytest.raises(LocalFileError, match=r"3 labels of 10 queries .* has 2: ask for fewer --classes"):
        dealt([*queries(2, 30), Query("one", "rare")])


def test_tables_and_chats_are_read_and_a_text_counts_once(tmp_path: Path) -> None:
    table, chats = tmp_path / "bank.csv", tmp_path / "tickets.jsonl"
    table.write_text('text,category\nWhere is it?,card\n"Two\nlines, one query",card\nWhere is it?,other\n,card\n')
    chat = [
        {"role": "system", "content": "…"},
        {"role": "user", "content": "Stop"},
        {"role": "assistant", "content": "end"},
    ]
    chats.write_text(json.dumps({"messages": chat}) + "\n")
    assert read(table, chats) == (
        Query("Where is it?", "card"),
        Query("Two lines, one query", "card"),
        Query("Stop", "end"),
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "subject,team\nx,y\n", "has the columns subject, team"),
        ("a.csv", "", "has the columns none"),
        ("a.jsonl", '{"messages": []}\n', "line 1 is no chat"),
        ("a.jsonl", "{}\nno JSON\n", "line 1 is no chat"),
    ],
)
def test_what_is_no_data_is_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(LocalFileError, match=said):
        read(path)


def test_users_come_as_there_is_room_and_all_are_answered() -> None:
    taken: list[int] = []
    answered = 0

    def come() -> Iterator[int]:
        for number in range(40):
            assert len(taken) - answered <= 3
            taken.append(number)
            yield number

    for _ in run_concurrently(lambda number: -number, come(), at_once=3):
        answered += 1
    assert answered == len(taken) == 40


def test_a_failing_user_is_heard() -> None:
    def work(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        list(run_concurrently(work, [2, 1, 0]))


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("no folder")
    with DemoServer(tmp_path / "logs") as server, pytest.raises(ServerFailedError, match="The server did not start"):
        server.serve(home, watch=lambda line: None)
