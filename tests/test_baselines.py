"""The baselines rank as the slow reference does, and reach the values published with the data."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast import baselines, data

NUM_ITEMS = 8
ITEMS = st.integers(0, NUM_ITEMS - 1)
LISTS = st.lists(st.lists(ITEMS, min_size=1, max_size=12), min_size=1, max_size=6)


def as_sequences(lists):
    lengths = [len(items) for items in lists]
    return data.Sequences(np.cumsum([0, *lengths]), np.array(list(chain(*lists))), np.arange(len(lists)))


@given(
    LISTS,
    st.lists(st.lists(ITEMS, min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, NUM_ITEMS),
)
def test_markov_equals_the_reference(lists, histories, k):
    rows = data.Rows.of(histories, [0] * len(histories))
    ranked = baselines.Markov(as_sequences(lists), NUM_ITEMS).rank(rows, k)
    assert ranked.tolist() == [reference.markov_ranking(lists, NUM_ITEMS, history, k) for history in histories]


@given(LISTS, st.integers(1, NUM_ITEMS))
def test_popularity_ranks_by_count_then_number(lists, k):
    seen = list(chain(*lists))
    expected = sorted(range(NUM_ITEMS), key=lambda item: (-seen.count(item), item))[:k]
    ranked = baselines.Popularity(as_sequences(lists), NUM_ITEMS).rank(data.Rows.of([[0], [1]], [0, 0]), k)
    assert ranked.tolist() == [expected, expected]


@given(LISTS, ITEMS, st.integers(0, 9))
def test_cosine_markov_equals_its_formula(lists, last, seed):
    embeddings = np.random.default_rng(seed).normal(size=(NUM_ITEMS, 3))
    embeddings[seed % NUM_ITEMS] = 0  # an item without text
    model = baselines.CosineMarkov(as_sequences(lists), embeddings, shrink=2.0, cosine=0.5, popular=0.25)
    followers = [b for s in lists for a, b in pairwise(s) if a == last]
    seen = list(chain(*lists))
    most = max(map(seen.count, seen))
    norms = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)
    scores = model.scores(np.array([last]))[0].tolist()
    for item, score in enumerate(scores):
        cosine = embeddings[item] @ embeddings[last] / norms[item] / norms[last]
        share = followers.count(item) / (len(followers) + 2)
        assert score == pytest.approx(share + 0.5 * cosine + 0.25 * seen.count(item) / most, abs=1e-6)
    ranked = model.rank(data.Rows.of([[last]], [0]), NUM_ITEMS)[0]
    assert ranked.tolist() == sorted(range(NUM_ITEMS), key=lambda item: (-scores[item], item))


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 1.0, 2.0**60, 2.0**100])
def test_unit_rows_do_not_depend_on_lengths(scale):
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(baselines.unit_rows(rows * np.float32(scale)), expected)
    mixed = np.array([[scale, 0], [0, 0], [0, -1]])
    np.testing.assert_array_equal(baselines.unit_rows(mixed), np.sign(mixed))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`train_items` must lie in 0\.\.2, got 3"):
        baselines.popularity(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match=r"`k` must lie in 1\.\.3"):
        baselines.Popularity(as_sequences([[0, 1]]), 3).rank(data.Rows.of([[0]], [1]), 4)


def hit_and_ndcg(ranked, target):
    hit = ranked == target[:, None]
    return round(hit.any(1).mean(), 4), round((hit / np.log2(np.arange(10) + 2)).sum(1).mean(), 4)


@pytest.mark.data
def test_values_on_the_published_split(data_dir):
    dataset = data.load(data_dir / "industrial")
    train, test = data.sequences(dataset.train), dataset.test
    embeddings = np.load(data_dir / "industrial" / "embeddings.npy")
    popular = baselines.Popularity(train, dataset.num_items).rank(test, 10)
    assert hit_and_ndcg(popular, test.item) == (0.0587, 0.0387)
    # ties among equally frequent items decide the last digits: .1136/.0838 with items numbered otherwise
    markov = baselines.Markov(train, dataset.num_items).rank(test, 10)
    assert hit_and_ndcg(markov, test.item) == (0.1134, 0.0836)
    cosine = baselines.CosineMarkov(train, embeddings).rank(test, 10)
    assert hit_and_ndcg(cosine, test.item) == pytest.approx((0.1507, 0.0991), abs=2e-4)
