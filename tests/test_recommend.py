"""Recommendations are the beams, in their order, under the names that people use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny  # noqa: E402
from ugr_fast import data, decode  # noqa: E402
from ugr_fast.model import Catalogue, SidVocabulary, pad_left  # noqa: E402
from ugr_fast.recommend import (  # noqa: E402
    Ranking,
    Recommender,
    hits_at_sid,
    rank,
    ranking_metrics,
    sample_rows,
    validation_metrics,
)


def answer(known, history, **options):
    """What a single history is answered with."""
    return known([history], **options)[0]


HISTORIES = [[3], [1, 2], [7, 7, 7], [29, 0, 4, 5, 6, 1], [12, 8], [3, 1, 4, 1, 5, 9, 2, 6], [0]]


def recommender(num_items=30, titles=None, ids=None, history_length=4):
    catalogue = tiny.catalogue(num_items=num_items)
    titles = titles or [f"Film {item:02d}" for item in range(num_items)]
    ids = ids or [f"id-{item}" for item in range(num_items)]
    return Recommender(tiny.model(catalogue.vocabulary), catalogue, titles, ids, history_length)


def colliding(seed=0, num_items=30, num_sids=12):
    """A catalogue in which several items share most semantic IDs."""
    codes = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(seed)
    chosen = codes[rng.permutation(len(codes))[:num_sids]]
    return Catalogue.build(SidVocabulary.from_scratch((3, 3, 3)), chosen[rng.integers(num_sids, size=num_items)])


# --------------------------------------------------------------------------------------------------------- names


def test_find_by_title_id_number_and_part():
    titles = ["Heat (1995)", "The Heat (2013)", "Casino (1995)", "Æon Flux", "Se7en; the film"]
    found = recommender(5, titles, ["a1", "A1", "c", "42", "casino (1995)"])
    expected = {
        "Heat (1995)": 0,
        "heat (1995)": 0,
        "the HEAT (2013)": 1,
        "  2013 ": 1,
        "#3": 3,
        " #0": 0,
        "a1": 0,
        "A1": 1,
        "42": 3,
        "æon": 3,
        "se7en; THE film": 4,
        "casino (1995)": 4,  # as spelled comes before another case
        "Casino (1995)": 2,
    }
    assert {name: found.find(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heat", r"'heat', and 2 items match: Heat \(1995\); The Heat \(2013\)\. Name one in full, or by id"),
        ("Ronin", "'Ronin', and no item of the catalogue has that title or id"),
        ("#5", "'#5', and no item"),
        ("#-1", "'#-1', and no item"),
        ("#²", "'#²', and no item"),
        ("#", "'#', and no item"),
        ("", "one of them is empty"),
        ("  ", "one of them is empty"),
    ],
)
def test_find_refuses(name, message):
    titles = ["Heat (1995)", "The Heat (2013)", "Casino (1995)", "Æon Flux", "Alien"]
    with pytest.raises(ValueError, match=message):
        recommender(5, titles).find(name)


def test_two_items_of_one_title_are_told_apart_by_id():
    found = recommender(3, ["Dune", "Dune", "Dune II"], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"'Dune', and 2 items match: Dune; Dune. Name one"):
        found.find("Dune")
    assert [found.find(name) for name in ("a", "b", "dune ii")] == [0, 1, 2]


def test_an_id_that_is_the_title_of_another_item_is_ambiguous():
    found = recommender(3, ["1984", "Heat", "300"], ["300", "b", "c"])
    with pytest.raises(ValueError, match=r"'300', and 2 items match: 1984; 300. Name one in full, or by id or #number"):
        found.find("300")
    assert found.find("#2") == 2


# ------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("history", HISTORIES)
def test_order_and_confidence_are_those_of_the_beam_search(history):
    known = recommender(history_length=4)
    vocabulary, catalogue = known.catalogue.vocabulary, known.catalogue
    beams = decode.beam_search(
        known.model,
        *pad_left([catalogue.prompt(history[-4:])], vocabulary.pad),
        catalogue.trie,
        num_beams=6,
        vocabulary=vocabulary,
        confidence=True,
    )
    found = answer(known, history, k=6)
    assert [item.item for item in found] == beams.items[0].tolist()
    assert np.allclose([item.score for item in found], beams.scores[0].numpy(), atol=1e-5)
    assert np.allclose([item.confidence for item in found], beams.confidence[0].numpy(), atol=1e-6)
    assert all(item.title == known.titles[item.item] and item.id == known.ids[item.item] for item in found)


def test_numbers_names_and_ids_are_one_history():
    known = recommender()
    wanted = answer(known, [3, 1, 4], k=4)
    for history in (np.array([3, 1, 4]), ["Film 03", "id-1", "#4"], [np.int64(3), "film 01", 4], (3, 1, 4)):
        assert answer(known, history, k=4) == wanted


def test_a_wider_beam_keeps_k():
    known = recommender()
    assert len(answer(known, [3], k=2, num_beams=15)) == 2
    assert answer(known, [3], k=5, num_beams=2) == answer(known, [3], k=5)


def test_more_than_the_catalogue_holds_gives_all_of_it_once():
    known = recommender(num_items=9)
    found = answer(known, [3], k=50)
    assert sorted(item.item for item in found) == list(range(9))
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= item.confidence <= 1 for item in found)


def test_items_of_one_sid_share_its_score_and_come_by_number():
    catalogue = colliding()
    names = [str(item) for item in range(30)]
    known = Recommender(tiny.model(catalogue.vocabulary), catalogue, names, names, 4)
    found = answer(known, [3, 1], k=30)
    assert sorted(item.item for item in found) == list(range(30))
    sids = [tuple(catalogue.item_tokens[item.item]) for item in found]
    for one, other, sid, other_sid in zip(found, found[1:], sids, sids[1:], strict=False):
        assert one.score >= other.score
        if sid == other_sid:
            assert (one.score, one.confidence) == (other.score, other.confidence)
            assert one.item < other.item
    assert len(set(sids)) == len([0 for sid, other in zip(sids, [None, *sids], strict=False) if sid != other])


def test_filters_leave_the_order_of_the_rest():
    """Items on shared SIDs are filtered one by one, and what is left comes in the order that it had."""
    catalogue = colliding()
    names = [str(item) for item in range(30)]
    known = Recommender(tiny.model(catalogue.vocabulary), catalogue, names, names, 4)
    everything = [found.item for found in answer(known, [3, 1], k=30)]
    out = [0, 5, 6, 17]
    assert [found.item for found in answer(known, [3, 1], k=30, deny=out)] == [i for i in everything if i not in out]
    assert [found.item for found in answer(known, [3, 1], k=30, allow=out)] == [i for i in everything if i in out]
    assert [found.item for found in answer(known, [3, 1], k=30, hide_seen=True)] == [
        i for i in everything if i not in (3, 1)
    ]
    both = answer(known, [3, 1], k=30, allow=[1, 2, 3, 4], deny=[4], hide_seen=True)
    assert [found.item for found in both] == [2]
    assert answer(known, [3, 1], k=3, allow=[]) == []
    assert len(answer(known, [3, 1], k=5, deny=everything[:5])) == 5


def test_every_history_has_its_own_list_of_what_is_out():
    known = recommender()
    hidden = known(HISTORIES, k=30, hide_seen=True, batch_size=2)
    for history, found in zip(HISTORIES, hidden, strict=True):
        everything = answer(known, history, k=30)
        assert [x.item for x in found] == [x.item for x in everything if x.item not in history]
    with pytest.raises(ValueError, match="`deny` must have a list for each of 2 histories, got 1"):
        rank(known.model, known.catalogue, [[0], [1]], num_beams=2, deny=[[]])


def test_many_histories_at_once():
    known = recommender()
    found = known(HISTORIES, k=4, batch_size=3)
    assert len(found) == len(HISTORIES)
    assert found.items.shape == found.scores.shape == found.confidence.shape == found.calibrated.shape == (7, 4)
    assert not found.abstained.any()
    assert found.reasons == [""] * 7
    assert np.isnan(found.calibrated).all()
    assert np.isnan(found.first).all()
    for one, history in zip(found, HISTORIES, strict=True):
        alone = answer(known, history, k=4)
        assert [x.item for x in one] == [x.item for x in alone]
        assert [x.score for x in one] == pytest.approx([x.score for x in alone], abs=1e-5)
    assert list(known([])) == []
    assert [len(lists) for lists in known(np.array([[3, 1], [4, 1]]), k=2)] == [2, 2]


@pytest.mark.parametrize("history", [[3, 1], "Film 03", ["Film 03"], np.array([3, 1])])
def test_a_single_history_is_refused(history):
    with pytest.raises(
        ValueError, match=r"`histories` must be a list of histories, .* put brackets around a single one"
    ):
        recommender()(history)


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ([], {}, "`histories` must each name at least one item, and one is empty"),
        ([3], {"k": 0}, "`k` and `num_beams` must be at least 1, got 0"),
        ([3], {"num_beams": -2}, "`k` and `num_beams` must be at least 1"),
        ([30], {}, r"`history` must hold item numbers in \[0, 30\), got 30"),
        ([-1], {}, r"`history` must hold item numbers in \[0, 30\), got -1"),
        (["nothing"], {}, "`history` names 'nothing'"),
    ],
)
def test_bad_questions_are_refused(history, options, message):
    with pytest.raises(ValueError, match=message):
        recommender()([history], **options)


# ------------------------------------------------------------------------------------------------------- ranking


@settings(max_examples=12)
@given(st.permutations(range(len(HISTORIES))), st.integers(1, 8), st.sampled_from(["full", "sid", "allowed"]))
def test_rank_depends_neither_on_the_batch_nor_on_the_order(order, batch_size, normalize):
    catalogue = colliding()
    model = tiny.model(catalogue.vocabulary)
    options = {"num_beams": 8, "normalize": normalize}
    whole = rank(model, catalogue, HISTORIES, batch_size=64, **options)
    other = rank(model, catalogue, [HISTORIES[row] for row in order], batch_size=batch_size, **options)
    assert np.array_equal(other.tokens, whole.tokens[order])
    assert np.array_equal(other.items, whole.items[order])
    assert np.allclose(other.scores, whole.scores[order], atol=1e-5)
    assert np.allclose(other.confidence, whole.confidence[order], atol=1e-6)


def test_rank_pads_where_the_catalogue_ends():
    catalogue = tiny.catalogue(num_items=5)
    ranking = rank(tiny.model(catalogue.vocabulary), catalogue, [[0], [1, 2]], num_beams=8)
    assert np.array_equal(np.sort(ranking.items, axis=1), np.array([[-1, -1, -1, 0, 1, 2, 3, 4]] * 2))
    absent = ranking.items < 0
    assert np.array_equal(absent, ranking.scores == -np.inf)
    assert np.array_equal(absent, np.isnan(ranking.confidence))
    assert np.array_equal(absent, (ranking.tokens == -1).all(2))
    assert (np.diff(absent.astype(int), axis=1) >= 0).all()


def test_every_beam_is_a_sid_of_the_catalogue():
    catalogue = tiny.catalogue(num_items=40, ragged=True)
    ranking = rank(tiny.model(catalogue.vocabulary), catalogue, [[item] for item in range(40)], num_beams=12)
    assert (catalogue.trie.lookup(ranking.tokens.reshape(-1, catalogue.depth)) >= 0).all()
    assert all(len(set(map(tuple, beams))) == 12 for beams in ranking.tokens.tolist())


# ------------------------------------------------------------------------------------------------------- metrics


def test_hits_at_sid_count_every_item_of_the_sid():
    catalogue = colliding()
    ranking = rank(tiny.model(catalogue.vocabulary), catalogue, HISTORIES, num_beams=12)
    targets = np.arange(len(HISTORIES))
    hits = hits_at_sid(ranking, catalogue, targets)
    slow = [
        [tuple(beam) == tuple(catalogue.item_tokens[target]) for beam in beams]
        for beams, target in zip(ranking.tokens.tolist(), targets.tolist(), strict=True)
    ]
    assert np.array_equal(hits, slow)
    assert (hits.sum(1) == 1).all()  # as wide as the catalogue


@given(st.integers(0, 20), st.integers(1, 12))
def test_metrics_at_item_and_sid_level(seed, num_beams):
    """Against plain loops, on random beams of a catalogue with collisions."""
    catalogue, rng = colliding(seed % 4), np.random.default_rng(seed)
    sids = np.unique(catalogue.item_tokens, axis=0)
    num_beams = min(num_beams, len(sids))
    rows = 6
    tokens = np.stack([sids[rng.permutation(len(sids))[:num_beams]] for _ in range(rows)])
    lists = [[item for sid in beams for item in catalogue.trie.items_at(sid)][:num_beams] for beams in tokens]
    ranking = Ranking(tokens, np.zeros(tokens.shape[:2]), np.zeros(tokens.shape[:2]), np.array(lists))
    targets = rng.integers(30, size=rows)
    found = ranking_metrics(ranking, catalogue, targets)
    assert set(found) == {
        f"{level}{name}@{k}"
        for level in ("", "sid_")
        for name in ("hr", "ndcg", "mrr")
        for k in (1, 3, 5, 10)
        if k <= num_beams
    }
    wanted = catalogue.item_tokens[targets].tolist()
    for k in [k for k in (1, 3, 5, 10) if k <= num_beams]:
        places = [
            beams[:k].index(target) if target in beams[:k] else None
            for beams, target in zip(lists, targets.tolist(), strict=True)
        ]
        sid_places = [
            beams.tolist()[:k].index(sid) if sid in beams.tolist()[:k] else None
            for beams, sid in zip(tokens, wanted, strict=True)
        ]
        for level, at in (("", places), ("sid_", sid_places)):
            assert found[f"{level}hr@{k}"] == pytest.approx(np.mean([place is not None for place in at]))
            gains = [0 if place is None else 1 / np.log2(place + 2) for place in at]
            assert found[f"{level}ndcg@{k}"] == pytest.approx(np.mean(gains))
        assert found[f"sid_hr@{k}"] >= found[f"hr@{k}"]  # another item of the SID counts there only


def test_validation_metrics_come_from_the_ranking():
    catalogue = colliding()
    model = tiny.model(catalogue.vocabulary)
    rows = data.Rows.of(HISTORIES, targets=[5, 6, 7, 8, 9, 10, 11])
    found = validation_metrics(model, catalogue, rows, num_beams=10)
    ranking = rank(model, catalogue, HISTORIES, num_beams=10)
    assert ranking_metrics(ranking, catalogue, rows.item).items() <= found.items()
    assert set(found) - set(ranking_metrics(ranking, catalogue, rows.item)) == {"confidence_auroc", "likelihood_auroc"}


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 9))
def test_sampled_rows_are_a_fixed_subset_in_order(num_rows, count, seed):
    rows = data.Rows.of([[row] for row in range(num_rows)], targets=list(range(num_rows)))
    sampled = sample_rows(rows, count, seed)
    assert len(sampled) == (num_rows if count == 0 else min(count, num_rows))
    assert (np.diff(sampled.item) > 0).all()
    assert np.array_equal(sampled.items, sampled.item)
    assert np.array_equal(sampled.item, sample_rows(rows, count, seed).item)


def test_a_recommendation_is_plain_data():
    found = recommender()([[3]], k=1)[0][0]
    types = {name: type(value) for name, value in found._asdict().items()}
    plain = {"item": int, "id": str, "title": str, "score": float, "confidence": float}
    assert types == {**plain, "calibrated": type(None)}


def test_loaded_from_a_run(pipeline):
    known = Recommender.load(pipeline.rl, "cpu")
    dataset = data.load(pipeline.data)
    assert (known.titles, known.ids, known.history_length) == (dataset.titles, dataset.ids, 10)
    assert not known.model.training
    for row in range(5):
        found = answer(known, dataset.test.history(row), k=40)
        assert sorted(item.item for item in found) == list(range(40))
