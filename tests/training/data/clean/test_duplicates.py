"""Near-duplicate detection."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from graftwork.training.data.clean.duplicates import COMMON_SHARE, CommonShingles, Signatures, shingles

WORDS = [
    "".join(random.Random(seed).choices(string.ascii_lowercase, k=random.Random(seed).randrange(3, 9)))
    for seed in range(900)
]


def sentence(seed: int, num_words: int = 30) -> list[str]:
    return random.Random(seed).choices(WORDS, k=num_words)


def near(texts: list[str], threshold: float = 0.8) -> list[tuple[int, int]]:
    signatures = Signatures(threshold)
    for text in texts:
        signatures.add(shingles(text))
    return list(signatures.near())


def test_shingles_are_of_words_alone() -> None:
    assert np.array_equal(shingles("Where's  my CARD?"), shingles("where s my card"))
    assert len(shingles("")) == len(shingles("?!")) == len(shingles("hi")) == 1
    assert not np.array_equal(shingles("??"), shingles("!!"))
    assert len(shingles("abcdefgh")) == 4


def test_pairs_are_those_of_the_obvious_way() -> None:
    """At every similarity from none to all: pairs well above the threshold are found, those well below are not."""
    texts = []
    for seed in range(120):
        words = sentence(seed)
        changed = list(words)
        for place in random.Random(-seed).sample(range(len(words)), seed % 12):
            changed[place] = WORDS[(seed * 7 + place) % len(WORDS)]
        texts += [" ".join(words), " ".join(changed)]
    found = set(near(texts))
    sets = [set(shingles(text).tolist()) for text in texts]
    every = [(one, other) for other in range(len(texts)) for one in range(other)]
    similar = {(one, other): len(sets[one] & sets[other]) / len(sets[one] | sets[other]) for one, other in every}
    assert {pair for pair in every if similar[pair] > 0.9} <= found
    assert all(similar[pair] > 0.68 for pair in found)
    assert len(found) > 20


def test_pairs_come_in_the_order_of_the_later_text_and_once() -> None:
    texts = [" ".join(sentence(seed % 5)) for seed in range(40)]
    found = near(texts)
    assert found == sorted(set(found), key=lambda pair: (pair[1], pair[0]))
    assert all(one < other and one % 5 == other % 5 for one, other in found)
    assert {other for _, other in found} == set(range(5, 40))


def test_many_copies_are_found_without_comparing_all_with_all() -> None:
    text = " ".join(sentence(1))
    found = near([text] * 2000)
    assert {other for _, other in found} == set(range(1, 2000))
    assert len(found) < 2000 * 20


def test_a_template_around_every_text_does_not_make_them_near() -> None:
    template = f"You sort tickets. {' '.join(sentence(-1, 80))} The ticket:"
    texts = [f"{template} {' '.join(sentence(seed, 6))}" for seed in range(60)]
    assert len(near(texts)) > 1000
    common = CommonShingles()
    for text in texts:
        common.count(shingles(text))
    signatures = Signatures(0.8)
    for text in (*texts, texts[7].replace("ticket:", "ticket :")):
        signatures.add(common.without(shingles(text)))
    assert list(signatures.near()) == [(7, 60)]


def test_among_few_texts_nothing_is_common_and_something_is_always_left() -> None:
    common = CommonShingles()
    for _ in range(49):
        common.count(shingles("hello world"))
    assert len(common.without(shingles("hello world"))) == len(shingles("hello world"))
    common.count(shingles("hello world"))
    assert len(common.without(shingles("hello world"))) == len(shingles("hello world"))
    assert len(common.without(shingles("hello world, and more"))) < len(shingles("hello world, and more"))
    assert COMMON_SHARE < 0.5


def test_a_long_text_needs_no_more_memory_than_a_short_one() -> None:
    signatures = Signatures(0.8)
    signatures.add(shingles("word " * 50_000 + "end"))
    signatures.add(shingles("word " * 50_000 + "end."))
    assert signatures.similar(0, 1)
    assert len(signatures._low_bytes) == 2 * 128


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.95, 1.0])
def test_what_is_equal_is_near_at_any_threshold(threshold: float) -> None:
    texts = ["one and the same text", "something else altogether", "one and the same text"]
    assert near(texts, threshold) == [(0, 2)]
    assert near(texts[:1], threshold) == near([], threshold) == []
