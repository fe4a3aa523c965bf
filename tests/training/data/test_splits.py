"""Splits: by question, by user, as assigned by the source, and stable."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.row import SplitName
from graftwork.training.data.splits import EXPOSURE, Shares, SplitKey, assign, is_watched

SHARES = Shares()
HALF = Shares(validation=0.3, test=0.3)


def side_alone(question: int, shares: Shares = HALF) -> SplitName:
    (side,) = assign([SplitKey(question=question)], [], shares)
    assert side is not None
    return side


def question_on(side: SplitName, number: int = 0) -> int:
    """A question that falls on this side by itself."""
    return [question for question in range(200) if side_alone(question) == side][number]


def test_sides_have_the_shares_that_were_wished_for() -> None:
    counts = Counter(assign([SplitKey(question=number) for number in range(10_000)], [], SHARES))
    assert counts["train"] == pytest.approx(8000, rel=0.05)
    assert counts["validation"] == pytest.approx(1000, rel=0.15)
    assert counts["test"] == pytest.approx(1000, rel=0.15)
    nothing_held = Shares(validation=0, test=0)
    assert set(assign([SplitKey(question=number) for number in range(100)], [], nothing_held)) == {"train"}


def test_the_test_side_stays_when_the_validation_side_grows() -> None:
    for question in range(300):
        wider = side_alone(question, Shares(validation=0.4, test=0.1))
        if side_alone(question, SHARES) == "test":
            assert wider == "test"
        elif side_alone(question, SHARES) == "validation":
            assert wider == "validation"


def test_a_question_is_on_one_side_and_near_ones_follow_what_is_trained_on() -> None:
    train, test = question_on("train"), question_on("test")
    assert assign([SplitKey(question=test), SplitKey(question=test)], [], HALF) == ["test", "test"]
    assert assign([SplitKey(question=test), SplitKey(question=train)], [(0, 1)], HALF) == ["train", "train"]
    chain = [SplitKey(question=test), SplitKey(question=question_on("test", 1)), SplitKey(question=train)]
    assert assign(chain, [(0, 1), (1, 2)], HALF) == ["train"] * 3


def test_users_stay_together_or_leave() -> None:
    users = [SplitKey(question=number, group=f"user{number % 40}") for number in range(400)]
    sides = assign(users, [], HALF)
    for user in range(40):
        assert len({sides[number] for number in range(user, 400, 40)}) == 1
    assert set(sides) == {"train", "validation", "test"}

    held = next(user for user in range(40) if sides[user] == "test")
    trained = next(user for user in range(40) if sides[user] == "train")
    same = [
        SplitKey(question=7, group=f"user{trained}"),
        SplitKey(question=7, group=f"user{held}"),
        SplitKey(question=8),
    ]
    assert assign(same, [(0, 2)], HALF) == ["train", None, "train"]


def test_a_given_held_out_row_stays_and_what_is_near_it_leaves() -> None:
    places = [
        SplitKey(question=1, given="test"),
        SplitKey(question=1),
        SplitKey(question=2, given="train"),
        SplitKey(question=3),
        SplitKey(question=4, given="validation"),
        SplitKey(question=5),
        SplitKey(question=5, given="validation"),
    ]
    sides = assign(places, [(0, 2), (0, 3), (0, 4)], Shares(validation=0, test=0))
    assert sides == ["test", None, None, None, None, None, "validation"]


def test_what_was_once_on_a_side_stays_there() -> None:
    test, train = question_on("test"), question_on("train")
    for side in ("train", "validation", "test"):
        for question in (test, train):
            assert assign([SplitKey(question=question, earlier=side)], [], HALF) == [side]
            assert assign([SplitKey(question=question, earlier=side, group="ann")], [], HALF) == [side]
            assert assign([SplitKey(question=question, earlier=side)], [], Shares(validation=0, test=0)) == [side]


def test_who_holds_out_what_was_learned_holds_out_less() -> None:
    places = [
        SplitKey(question=1, given="validation", earlier="train"),
        SplitKey(question=2, given="train", earlier="test"),
        SplitKey(question=3, given="validation", earlier="validation"),
    ]
    assert assign(places, [], HALF) == [None, None, "validation"]


def test_a_new_question_near_to_a_known_one_is_on_its_side_or_leaves() -> None:
    test, train = question_on("test"), question_on("train")
    known = SplitKey(question=1000, earlier="train")
    assert assign([known, SplitKey(question=test)], [(0, 1)], HALF) == ["train", "train"]
    held = SplitKey(question=1000, earlier="validation")
    assert assign([held, SplitKey(question=train)], [(0, 1)], HALF) == ["validation", None]
    assert assign([held, SplitKey(question=1001, earlier="train")], [(0, 1)], HALF) == ["validation", None]


@settings(max_examples=200)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 40), st.sampled_from([None, None, "ann", "bob"])), max_size=20),
            st.sampled_from([Shares(), HALF, Shares(validation=0, test=0), Shares(validation=0.6, test=0.1)]),
        ),
        max_size=6,
    ),
    links=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=20),
)
def test_no_question_ever_changes_sides(
    rounds: list[tuple[list[tuple[int, str | None]], Shares]], links: list[tuple[int, int]]
) -> None:
    linked = {frozenset(link) for link in links}
    known: dict[int, SplitName] = {}
    for questions, shares in rounds:
        places = [SplitKey(question=key, group=group, earlier=known.get(key)) for key, group in questions]
        near = [
            (one, other)
            for other in range(len(places))
            for one in range(other)
            if frozenset((places[one].question, places[other].question)) in linked
        ]
        sides = assign(places, near, shares)
        for place, side in zip(places, sides, strict=True):
            if side is not None:
                assert known.setdefault(place.question, side) == side
        for one, other in near:
            assert sides[one] == sides[other] or None in (sides[one], sides[other])


def test_a_quarter_of_the_validation_side_is_watched() -> None:
    assert sum(map(is_watched, range(1000))) == 250


PLACES = st.lists(
    st.builds(SplitKey, question=st.integers(0, 30), group=st.none() | st.sampled_from(["ann", "bob", "eve"])),
    max_size=25,
)


@settings(max_examples=300)
@given(
    few=PLACES,
    more=PLACES,
    seed=st.integers(0, 1000),
    links=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))),
)
def test_rows_that_come_later_move_others_towards_training_alone(
    few: list[SplitKey], more: list[SplitKey], seed: int, links: list[tuple[int, int]]
) -> None:
    """And nothing that is near is ever on two sides, in whatever order rows come."""

    def near(places: list[SplitKey]) -> list[tuple[int, int]]:
        linked = {frozenset(link) for link in links}
        return [
            (one, other)
            for other in range(len(places))
            for one in range(other)
            if frozenset((places[one].question, places[other].question)) in linked
        ]

    order = list(range(len(few) + len(more)))
    random.Random(seed).shuffle(order)
    everything = [(*few, *more)[number] for number in order]
    before, after = assign(few, near(few), HALF), assign(everything, near(everything), HALF)
    for number, side in enumerate(before):
        later = after[order.index(number)]
        if side is not None and later is not None:
            assert EXPOSURE[later] >= EXPOSURE[side]
            assert later == side or few[number].group is None
    for places, sides in ((few, before), (everything, after)):
        same = [(a, b) for b in range(len(places)) for a in range(b) if places[a].question == places[b].question]
        for one, other in (*near(places), *same):
            assert sides[one] == sides[other] or None in (sides[one], sides[other])
        for group in ("ann", "bob", "eve"):
            assert len({s for s, place in zip(sides, places, strict=True) if place.group == group} - {None}) <= 1


@pytest.mark.parametrize(
    ("text", "validation", "test"),
    [("80/10/10", 0.1, 0.1), ("8/1/1", 0.1, 0.1), ("1/0/0", 0.0, 0.0), ("90/10/0", 0.1, 0.0)],
)
def test_shares_are_written_as_people_write_them(text: str, validation: float, test: float) -> None:
    shares = Shares.parse(text)
    assert (shares.validation, shares.test) == pytest.approx((validation, test))


@pytest.mark.parametrize("text", ["80/20", "a/b/c", "0/0/0", "0/50/50", "-1/1/1", "inf/1/1", ""])
def test_shares_that_leave_nothing_to_train_on_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Shares.parse(text)
    with pytest.raises(ConfigurationError, match="at least 0 and below 1"):
        Shares(test=1.0)
