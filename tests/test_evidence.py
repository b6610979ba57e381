"""What the data say of a candidate: counted and compared as the words say, kept and read back."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_baselines import ITEMS, LISTS, NUM_ITEMS, as_sequences
from ugr_fast.evidence import COMPARED, COUNTED, Evidence

HISTORIES = st.lists(st.lists(ITEMS, min_size=1, max_size=5), min_size=1, max_size=4)


def texts(seed, dim=3):
    embeddings = np.random.default_rng(seed).normal(size=(NUM_ITEMS, dim))
    embeddings[seed % NUM_ITEMS] = 0  # an item without text
    return embeddings


def slowly(lists, embeddings, history, item):
    """What is said of one candidate, feature by feature."""
    if item < 0:
        return [0.0] * 6
    followed = sum((a, b) == (history[-1], item) for sequence in lists for a, b in pairwise(sequence))
    norms = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)
    unit = embeddings / norms[:, None]
    alike = [float(unit[past] @ unit[item]) for past in history]
    counted = [np.log1p(followed), np.log1p([*chain(*lists)].count(item)), float(item in history)]
    return [*counted, alike[-1], np.mean(alike), max(alike)]


@given(LISTS, HISTORIES, st.integers(0, 9), st.data())
def test_every_feature_is_what_it_says(lists, histories, seed, draw):
    count = len(histories)
    items = np.array(draw.draw(st.lists(st.lists(st.integers(-1, NUM_ITEMS - 1), min_size=3, max_size=3),
                                        min_size=count, max_size=count)))  # fmt: skip
    embeddings = texts(seed)
    found = Evidence.build(as_sequences(lists), NUM_ITEMS, embeddings)(histories, items)
    expected = [[slowly(lists, embeddings, h, item) for item in row] for h, row in zip(histories, items, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # lengths of 1 in float16
    np.testing.assert_allclose(found[..., :3], np.array(expected)[..., :3], rtol=1e-15)


@given(LISTS, HISTORIES)
def test_without_embeddings_there_are_counts_alone(lists, histories):
    items = np.tile(np.arange(NUM_ITEMS), (len(histories), 1))
    train = as_sequences(lists)
    plain, whole = Evidence.build(train, NUM_ITEMS), Evidence.build(train, NUM_ITEMS, texts(1))
    assert (plain.names, whole.names) == (COUNTED, COUNTED + COMPARED)
    np.testing.assert_array_equal(plain(histories, items), whole(histories, items)[..., :3])


def test_a_history_says_the_same_whatever_it_is_batched_with():
    evidence = Evidence.build(as_sequences([[0, 1, 2, 3], [1, 2]]), NUM_ITEMS, texts(5))
    items = np.array([[2, 3, -1]])
    alone = evidence([[1]], items)
    among = evidence([[4, 3, 2, 1, 0], [1]], np.concatenate([items, items]))
    np.testing.assert_array_equal(among[1:], alone)


def test_one_item_each_leaves_nothing_that_followed():
    found = Evidence.build(as_sequences([[0], [0]]), NUM_ITEMS)([[0]], np.array([[0, 1]]))
    np.testing.assert_allclose(found, [[[0, np.log(3), 1], [0, 0, 0]]])


def test_what_does_not_fit_the_catalogue_is_refused():
    train = as_sequences([[0, 7]])
    with pytest.raises(ValueError, match=r"`train_items` must lie in 0\.\.6, got 7"):
        Evidence.build(train, 7)
    for wrong in (np.zeros((7, 2)), np.zeros(NUM_ITEMS)):
        with pytest.raises(ValueError, match=r"`embeddings` must be \(8, dim\), got"):
            Evidence.build(train, NUM_ITEMS, wrong)


@pytest.mark.parametrize("embeddings", [None, texts(2)])
def test_arrays_come_back(embeddings):
    evidence = Evidence.build(as_sequences([[0, 1, 2, 0, 1], [3]]), NUM_ITEMS, embeddings)
    again = Evidence.from_arrays(evidence.to_arrays())
    assert again.to_arrays().keys() == evidence.to_arrays().keys()
    for name, array in evidence.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": None}, "got no counts"),
        ({"counts": np.array([1.0, 1])}, "must be rows of int64"),
        ({"offsets": np.array([0, 1, 3, 3])}, "`offsets` must be 4 bounds from 0 to 2"),
        ({"offsets": np.array([0, 2, 2])}, "`offsets` must be 4 bounds"),
        ({"offsets": np.array([], np.int64), "popularity": np.array([], np.int64)}, "`offsets` must be 1 bounds"),
        ({"offsets": np.array([0, 3, 1, 2])}, "between bounds"),
        ({"followers": np.array([1, 3])}, r"items in 0\.\.2"),
        ({"followers": np.array([1, -1])}, r"items in 0\.\.2"),
        ({"counts": np.array([1])}, "with a count each"),
        ({"counts": np.array([1, 0])}, "`counts` be 1 or more"),
        ({"popularity": np.array([1, 1, -1])}, "`popularity` 0 or more"),
        ({"offsets": np.array([0, 2, 2, 2]), "followers": np.array([1, 1])}, "`followers` must ascend"),
        ({"unit": np.zeros((3, 2))}, r"`unit` must be float16 of \(3, dim\)"),
        ({"unit": np.zeros((2, 2), np.float16)}, r"`unit` must be float16 of \(3, dim\)"),
        ({"unit": np.full((3, 2), np.nan, np.float16)}, "`unit` must be finite"),
    ],
)
def test_arrays_of_no_evidence_are_refused(change, message):
    arrays = Evidence.build(as_sequences([[0, 1, 2]]), 3).to_arrays() | change
    with pytest.raises(ValueError, match=message):
        Evidence.from_arrays({name: array for name, array in arrays.items() if array is not None})
