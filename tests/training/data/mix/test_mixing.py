"""Class weights, curriculum and replay."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.data.mix.balance import balanced, class_weights
from graftwork.training.data.mix.curriculum import easy_to_hard
from graftwork.training.data.mix.replay import sample_replay, split_learned
from graftwork.training.data.row import Row


def row(question: str, answer: str, **more: object) -> Row:
    return Row(prompt=question, completion=answer, **more)  # type: ignore[arg-type]


def test_full_balance_lets_every_class_count_the_same_and_rows_one_on_average() -> None:
    counts = {"pause": 90, "gift": 10}
    full, half = class_weights(counts, "full"), class_weights(counts, "sqrt")
    assert full["pause"] * 90 == pytest.approx(full["gift"] * 10)
    assert half["gift"] / half["pause"] == pytest.approx(3)
    for weights in (full, half, class_weights(counts, "none")):
        assert sum(weights[label] * count for label, count in counts.items()) == pytest.approx(100)
    assert class_weights(counts, "none") == {"pause": 1, "gift": 1}
    assert class_weights({}, "full") == {}


def test_a_class_weight_comes_on_top_of_a_rows_own() -> None:
    rows = balanced([row("a", "x", weight=0.5), row("b", "x"), row("c", "x"), row("d", "y")], "full")
    assert [one.weight for one in rows] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2])


@given(st.lists(st.floats(allow_nan=False), max_size=40), st.integers(1, 50), st.integers(0, 5))
def test_a_curriculum_is_a_permutation_that_climbs_by_stages(values: list[float], stages: int, seed: int) -> None:
    order = easy_to_hard(values, seed=seed, stages=stages)
    assert sorted(order) == list(range(len(values)))
    assert order == easy_to_hard(values, seed=seed, stages=stages)
    if stages >= len(values):
        assert [values[index] for index in order] == sorted(values)
    easiest = order[: len(order) // stages]
    assert all(values[index] <= value for index in easiest for value in sorted(values)[len(easiest) :])


def test_a_curriculum_is_shuffled_within_its_stages() -> None:
    lengths = list(range(100))
    order = easy_to_hard(lengths, seed=1)
    assert {index // 25 for index in order[:25]} == {0}
    assert order[:25] != list(range(25))
    assert order != easy_to_hard(lengths, seed=2)
    for wrong in ([1.0, math.nan], [1.0]):
        with pytest.raises(ConfigurationError):
            easy_to_hard(wrong, seed=0, stages=len(wrong) - 1)


def test_replay_is_a_share_of_the_whole_and_in_proportion() -> None:
    first = [row(f"one {number}", ("pause", "gift")[number % 4 == 0]) for number in range(80)]
    second = [row(f"two {number}", "swap") for number in range(40)]
    again = sample_replay({"v1": first, "v2": second}, num_new=90, share=0.25, seed=3)
    assert len(again) == 30
    assert Counter(one.answer for one in again) == {"pause": 15, "gift": 5, "swap": 10}
    assert len({one.prompt for one in again}) == 30


def test_replay_is_decided_by_its_seed_and_stays_much_the_same_as_rounds_grow() -> None:
    rows = [row(f"question {number}", f"a free text, {number}") for number in range(100)]
    chosen = sample_replay({"v1": rows}, num_new=60, seed=1)
    assert sample_replay({"v1": rows[::-1]}, num_new=60, seed=1) == chosen
    assert sample_replay({"v1": rows}, num_new=60, seed=2) != chosen
    more = [row(f"new question {number}", f"a free text, {number}") for number in range(20)]
    grown = sample_replay({"v1": rows + more}, num_new=60, seed=1)
    assert len(set(grown) & set(chosen)) >= 14


def test_small_classes_are_replayed_in_turn() -> None:
    rows = [row(f"{number} of {label}", f"class {label}") for label in range(77) for number in range(5 + label % 3)]
    turns = [sample_replay({"v1": rows}, num_new=60, turn=turn) for turn in range(8)]
    assert [len({one.answer for one in chosen}) for chosen in turns] == [20] * 8
    assert {one.answer for chosen in turns for one in chosen} == {f"class {label}" for label in range(77)}
    often = Counter(one.answer for turn in range(77) for one in sample_replay({"v1": rows}, num_new=60, turn=turn))
    assert 15 <= min(often.values()) <= max(often.values()) <= 25
    # Larger strata, too: not the same rows of them each time.
    one_class = [row(f"{number}", "x") for number in range(40)]
    assert sample_replay({"v1": one_class}, num_new=30, turn=1) != sample_replay({"v1": one_class}, num_new=30, turn=2)


def test_what_was_learned_before_is_learned_again_while_rows_are_few() -> None:
    before, new = (
        [row(f"old {number}", "x") for number in range(30)],
        [row(f"new {number}", "x") for number in range(9)],
    )
    learned = {one.same_key() for one in before}
    assert split_learned([*before, *new], learned, fewest=39) == ([*before, *new], [])
    now, left = split_learned([*before, *new], learned, fewest=20)
    assert (len(now), now[-9:], len(left)) == (20, new, 19)
    assert sorted(one.prompt for one in (*now, *left)) == sorted(one.prompt for one in (*before, *new))
    assert split_learned([*before, *new], learned, fewest=5)[0] == new
    corrected = row("old 3", "y")
    assert split_learned([*before, corrected], learned, fewest=0) == (
        [before[3], corrected],
        [one for one in before if one != before[3]],
    )


def test_replay_gives_what_there_is() -> None:
    rows = [row(f"{number}", "x") for number in range(5)]
    assert len(sample_replay({"v1": rows}, num_new=1000)) == 5
    assert (
        sample_replay({}, num_new=1000)
        == sample_replay({"v1": []}, num_new=9)
        == sample_replay({"v1": rows}, num_new=0)
        == []
    )
    assert sample_replay({"v1": rows}, num_new=10, share=0) == []
    with pytest.raises(ConfigurationError, match="below 1"):
        sample_replay({"v1": rows}, num_new=10, share=1)
