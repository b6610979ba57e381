"""What the data say of a candidate: counted and compared as the words say, kept and read back."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_baselines import ITEMS, LISTS, NUM_ITEMS, as_sequences
from ugr_fast.evidence import COMPARED, COUNTED, Evidence

CODES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=NUM_ITEMS, max_size=NUM_ITEMS)
APART = [(0, item) for item in range(NUM_ITEMS)]
HISTORIES = st.lists(st.lists(ITEMS, min_size=1, max_size=5), min_size=1, max_size=4)


def texts(seed, dim=3):
    embeddings = np.random.default_rng(seed).normal(size=(NUM_ITEMS, dim))
    embeddings[seed % NUM_ITEMS] = 0  # an item without text
    return embeddings


def direction(vectors):
    total = np.sum([vector / max(np.linalg.norm(vector), 1e-12) for vector in vectors], axis=0)
    return total / max(np.linalg.norm(total), 1e-12)


def slowly(lists, embeddings, codes, history, item):
    """What is said of one candidate, feature by feature."""
    if item < 0:
        return [0.0] * 6
    named = [[other for other in range(NUM_ITEMS) if codes[other] == code] for code in codes]
    followed = sum(a == history[-1] and b in named[item] for sequence in lists for a, b in pairwise(sequence))
    unit = [direction([embeddings[other] for other in of]) for of in named]
    alike = [float(unit[past] @ unit[item]) for past in history]
    occurs = sum(other in named[item] for other in chain(*lists))
    counted = [np.log1p(followed), np.log1p(occurs), float(any(past in named[item] for past in history))]
    return [*counted, alike[-1], np.mean(alike), max(alike)]


@given(LISTS, HISTORIES, st.integers(0, 9), CODES | st.just(APART), st.data())
def test_every_feature_is_what_it_says(lists, histories, seed, codes, draw):
    count = len(histories)
    items = np.array(draw.draw(st.lists(st.lists(st.integers(-1, NUM_ITEMS - 1), min_size=3, max_size=3),
                                        min_size=count, max_size=count)))  # fmt: skip
    embeddings = texts(seed)
    found = Evidence.build(as_sequences(lists), NUM_ITEMS, embeddings, np.array(codes))(histories, items)
    expected = [
        [slowly(lists, embeddings, codes, h, item) for item in row] for h, row in zip(histories, items, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # lengths of 1 in float16
    np.testing.assert_allclose(found[..., :3], np.array(expected)[..., :3], rtol=1e-15)


@given(LISTS, HISTORIES, CODES)
def test_items_of_one_semantic_id_are_said_the_same_of(lists, histories, codes):
    items = np.tile(np.arange(NUM_ITEMS), (len(histories), 1))
    found = Evidence.build(as_sequences(lists), NUM_ITEMS, texts(3), np.array(codes))(histories, items)
    for item, code in enumerate(codes):
        np.testing.assert_array_equal(found[:, item], found[:, codes.index(code)])


def test_without_codes_each_item_has_its_own():
    train = as_sequences([[0, 1, 2, 3], [1, 2]])
    one, other = (Evidence.build(train, NUM_ITEMS, texts(5), codes) for codes in (None, np.array(APART)))
    for name, array in one.to_arrays().items():
        np.testing.assert_array_equal(array, other.to_arrays()[name])


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
    with pytest.raises(ValueError, match=r"`codes` must be \(8, L\), got \(7, 2\)"):
        Evidence.build(train, NUM_ITEMS, codes=np.zeros((7, 2), np.int64))
    with pytest.raises(ValueError, match="`unit` must be finite"):
        Evidence.build(train, NUM_ITEMS, np.full((NUM_ITEMS, 2), np.nan))


@pytest.mark.parametrize(
    ("histories", "items", "message"),
    [
        ([[0], []], [[1], [1]], "`histories` must each name at least one item, and that of row 1 is empty"),
        ([[NUM_ITEMS]], [[1]], r"`histories` must lie in 0\.\.7, got 8\.\.8"),
        ([[0, -1]], [[1]], r"`histories` must lie in 0\.\.7, got -1\.\.0"),
        ([[0]], [[1, NUM_ITEMS]], r"`items` must lie in 0\.\.7, got 1\.\.8"),
    ],
)
def test_what_is_no_item_is_refused(histories, items, message):
    with pytest.raises(ValueError, match=message):
        Evidence.build(as_sequences([[0, 1]]), NUM_ITEMS, texts(1))(histories, np.array(items))


@given(LISTS, HISTORIES, CODES, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=3))
def test_new_items_are_what_they_share_a_semantic_id_with(lists, histories, codes, new):
    codes, whole = np.array(codes), np.array(codes + new)
    items = np.tile(np.arange(len(whole)), (len(histories), 1))
    train, embeddings = as_sequences(lists), texts(4)
    grown = Evidence.build(train, NUM_ITEMS, embeddings, codes).grown(whole)
    grown._check()
    found, counted = grown(histories, items), Evidence.build(train, len(whole), codes=whole)(histories, items)
    np.testing.assert_array_equal(found[..., :3], counted)
    for place, code in enumerate(whole.tolist()):
        like = whole.tolist().index(code)
        np.testing.assert_array_equal(found[:, place], found[:, like])
        if like >= NUM_ITEMS:
            assert not found[:, place].any()
    with pytest.raises(ValueError, match="`codes` must be of 8 items or more, got 7"):
        Evidence.build(train, NUM_ITEMS).grown(whole[:7])


def test_nobody_is_said_nothing():
    for embeddings in (None, texts(1)):
        evidence = Evidence.build(as_sequences([[0, 1]]), NUM_ITEMS, embeddings)
        assert evidence([], np.zeros((0, 3), np.int64)).shape == (0, 3, len(evidence.names))


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
        ({"same": np.array([0, 1])}, "`same` must name one of 3 items for each"),
        ({"same": np.array([0, 1, 3])}, "`same` must name one of 3"),
        ({"same": np.array([0, 0, 1])}, "`same` must name .* the lowest of its semantic ID"),
        ({"same": np.array([0, -1, 2])}, "`same` must name one of 3"),
        ({"unit": np.zeros((3, 2))}, r"`unit` must be float16 of \(3, dim\)"),
        ({"unit": np.zeros((2, 2), np.float16)}, r"`unit` must be float16 of \(3, dim\)"),
        ({"unit": np.full((3, 2), np.nan, np.float16)}, "`unit` must be finite"),
    ],
)
def test_arrays_of_no_evidence_are_refused(change, message):
    arrays = Evidence.build(as_sequences([[0, 1, 2]]), 3).to_arrays() | change
    with pytest.raises(ValueError, match=message):
        Evidence.from_arrays({name: array for name, array in arrays.items() if array is not None})
