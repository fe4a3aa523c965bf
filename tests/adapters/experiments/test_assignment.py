"""Assignment of units to arms: configured shares, deterministic, and stable when weights increase."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters.experiments.assignment import BucketRange, Split, bucket

#: The 99.9 % points of chi-square with 1 to 4 degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}


@pytest.mark.parametrize(
    "weights", [{"b": 0.5}, {"b": 0.1}, {"b": 0.01}, {"b": 0.2, "c": 0.3}, {"b": 0.25, "c": 0.25, "d": 0.4}]
)
def test_a_hundred_thousand_keys_get_the_promised_shares(weights: dict[str, float]) -> None:
    split = Split.of("a", weights)
    arms = [split.arm_at(bucket("a salt", f"user:{number}")) for number in range(100_000)]
    shares = {"a": 1 - sum(weights.values()), **weights}
    chi_square = sum((arms.count(arm) - 1e5 * share) ** 2 / (1e5 * share) for arm, share in shares.items())
    assert chi_square < CHI_SQUARE[len(weights)]
    assert split.weights == pytest.approx(shares)


def test_other_salts_draw_independently() -> None:
    """Who was in the treatment of one experiment is in the next one's no more often than anybody else."""
    split = Split.of("a", {"b": 0.5})
    both = [[split.arm_at(bucket(salt, str(n))) == "b" for n in range(20_000)] for salt in ("one", "other")]
    assert abs(np.corrcoef(both)[0, 1]) < 0.025


def test_a_key_has_the_same_point_in_every_process() -> None:
    script = "from graftwork.adapters.experiments.assignment import bucket; print(repr(bucket('salt', 'user:ünï')))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    # The number itself: a change of the function would move the users of every running experiment.
    assert said == repr(bucket("salt", "user:ünï")) == POINT


POINT = "0.6454402891429508"


ramps = st.lists(st.tuples(st.sampled_from("bcd"), st.floats(0, 0.33)), max_size=8)


@given(ramps=ramps, keys=st.lists(st.integers(), min_size=1, max_size=50))
def test_nobody_flips_back_while_arms_grow(ramps: list[tuple[str, float]], keys: list[int]) -> None:
    points = [bucket("s", str(key)) for key in keys]
    weights: dict[str, float] = {}
    split = Split.of("a", weights)
    before = [split.arm_at(at) for at in points]
    for arm, weight in ramps:
        weights[arm] = max(weight, weights.get(arm, 0.0))
        split = split.resized(weights)
        now = [split.arm_at(at) for at in points]
        assert all(old in ("a", new) for old, new in zip(before, now, strict=True))
        shares = {"a": 1 - sum(weights.values()), **weights}
        assert [split.weights.get(arm, 0.0) for arm in shares] == pytest.approx(list(shares.values()), abs=1e-9)
        before = now


@given(st.lists(st.dictionaries(st.sampled_from("bcd"), st.floats(0, 0.33)), max_size=8))
def test_arcs_always_cover_the_circle(steps: list[dict[str, float]]) -> None:
    split = Split.of("a", {})
    for weights in steps:
        split = split.resized(weights)
        assert split.arcs[0].start == 0
        assert split.arcs[-1].end == 1
        assert all(one.end == next_.start for one, next_ in zip(split.arcs, split.arcs[1:], strict=False))
        assert all(arc.length > 0 for arc in split.arcs)
        assert Split.from_json("a", split.to_json()) == split


def test_what_an_arm_gives_up_goes_to_the_control_and_moves_nobody_else() -> None:
    split = Split.of("a", {"b": 0.2, "c": 0.3})
    smaller = split.resized({"b": 0.05})
    assert split.arcs == (BucketRange(0.0, 0.2, "b"), BucketRange(0.2, 0.5, "c"), BucketRange(0.5, 1.0, "a"))
    assert [arc.arm for arc in smaller.arcs] == ["b", "a", "c", "a"]
    assert [arc.end for arc in smaller.arcs] == pytest.approx([0.05, 0.2, 0.5, 1.0])
    assert smaller.resized({"b": 0.0}).weights == {"a": 0.7, "c": 0.3}


def test_nobody_can_be_given_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="cannot give"):
        Split.of("a", {"b": 0.7, "c": 0.4})
