"""Decisions are measured on rows that chose nothing, ties in closed form, and a useless confidence gains nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import decisions, metrics
from ugr_fast.decisions import Bootstrap, Choices, Kept, Outcomes

few = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def world(n=600, k=12, seed=0, confidence="useless", short=False):
    """Users whose next item is at place p with probability exp(score); the confidence may know where it is."""
    rng = np.random.default_rng(seed)
    likelihood = -np.sort(-rng.dirichlet(np.full(k, 0.3), size=n), axis=1) * rng.random((n, 1))
    left = 1 - likelihood.sum(1, keepdims=True)
    place = (rng.random((n, 1)) < np.cumsum(np.concatenate([likelihood, left], 1), 1)).argmax(1)
    rank = np.where(place < k, place, -1)
    said = rng.random((n, k))
    if confidence == "knows":
        said = np.where(np.arange(k) == rank[:, None], 0.6 + 0.4 * said, 0.4 * said)
    scores = np.log(np.maximum(likelihood, 1e-30)).astype(np.float32)
    if short:
        absent = np.arange(k) >= rng.integers(1, k + 1, size=n)[:, None]
        scores, said = np.where(absent, -np.inf, scores), np.where(absent, np.nan, said)
        rank = np.where(np.take_along_axis(absent, np.maximum(rank, 0)[:, None], 1)[:, 0], -1, rank)
    return Outcomes(scores, said.astype(np.float32), rank)


# ---- what is kept


@given(st.data())
def test_kept_is_the_mean_over_all_orders_of_equal_entries(data):
    n = data.draw(st.integers(1, 6))
    signal, value = (data.draw(st.lists(few, min_size=n, max_size=n)) for _ in range(2))
    times = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    kept = Kept(np.array(signal), np.array([value, [1.0] * n]))
    repeated = [np.repeat(column, times).tolist() for column in (signal, value)]
    amounts = np.arange(sum(times) + 1)
    found = kept(np.array(times, float), amounts)
    assert found[0] == pytest.approx([float(reference.value_kept(*repeated, amount)) for amount in amounts])
    assert found[1] == pytest.approx(amounts)


@given(st.data())
def test_reranking_is_a_stable_sort(data):
    n, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    table = st.lists(st.lists(few, min_size=k, max_size=k), min_size=n, max_size=n)
    likelihood, said, present = data.draw(table), data.draw(table), data.draw(st.integers(1, k))
    rank = np.array(data.draw(st.lists(st.integers(-1, present - 1), min_size=n, max_size=n)))
    with np.errstate(divide="ignore"):
        scores = np.log(np.maximum(np.array(likelihood), 1e-9))
    scores[:, present:] = -np.inf
    outcomes = Outcomes(scores, np.array(said), rank)
    weight = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    value = outcomes.said("likelihood") + weight * outcomes.said("confidence")
    slow = [
        reference.place_after(v[:present], at) if at >= 0 else -1 for v, at in zip(value.tolist(), rank, strict=True)
    ]
    assert decisions.reranked(outcomes, outcomes.said("confidence"), weight).tolist() == slow


def test_no_weight_leaves_lists_as_they_are():
    outcomes = world(short=True)
    assert np.array_equal(decisions.reranked(outcomes, outcomes.said("confidence"), 0.0), outcomes.rank)


# ---- intervals


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [
        low <= 0.3 <= high
        for _ in range(300)
        for _, low, high in Bootstrap(np.arange(150)).means((rng.random((1, 150)) < 0.3).astype(float))
    ]
    assert 0.90 <= np.mean(held) <= 0.985


def test_the_same_users_are_drawn_for_everything():
    a, b = np.random.default_rng(0).random((2, 80))
    one, two, both = (Bootstrap(np.arange(80)).means(x) for x in (a[None], b[None], np.stack([a, b])))
    assert np.allclose(both, [*one, *two], rtol=1e-12)
    difference = Bootstrap(np.arange(80)).means((a - (a + 1e-3))[None])[0]
    assert difference == pytest.approx([-1e-3] * 3)  # paired: as narrow as it gets


def test_few_resamples_of_many_users():
    assert [Bootstrap(np.arange(n)).resamples for n in (2, 20_000, 50_000, 10**6)] == [1000, 1000, 400, 200]


# ---- choices


def test_a_confidence_that_knows_is_chosen_and_one_that_does_not_is_not():
    knows, useless = (decisions.choose(world(confidence=kind)) for kind in ("knows", "useless"))
    assert (knows.signal, useless.signal) == ("confidence", "likelihood")
    assert knows.weight["confidence"] >= 1
    assert useless.weight["confidence"] <= 0.02
    assert max(choices.weight["random"] for choices in (knows, useless)) <= 0.02


def test_an_untrained_confidence_is_never_the_signal():
    assert decisions.choose(world(confidence="knows"), trained=False).signal == "likelihood"


def test_the_aggregate_that_tells_users_apart_is_chosen():
    base = world(n=2000)
    rng, n = np.random.default_rng(0), len(base)
    sure = np.where(base.rank >= 0, 0.6, 0.3) + 0.2 * rng.random(n)
    hidden = rng.random(base.scores.shape) * 0.2
    hidden[np.arange(n), rng.integers(1, 10, n)] = sure  # anywhere but in the first place
    assert decisions.choose(Outcomes(base.scores, hidden, base.rank)).aggregate["confidence"] == "max"


def test_choices_survive_json_bit_for_bit():
    choices = decisions.choose(world(confidence="knows"), method="isotonic")
    again = Choices.from_json(json.loads(json.dumps(choices.to_json())))
    said = np.random.default_rng(1).random(50)
    for one, other in ((choices.user, again.user), (choices.candidate, again.candidate)):
        assert all(np.array_equal(one[source](said), other[source](said)) for source in one)
    assert again.to_json() == choices.to_json()


def test_the_first_of_re_ranked_lists_is_calibrated_by_itself():
    """What a partly random confidence puts first is neither as likely as any entry nor as the first of the search."""

    def noisy(seed):
        base = world(n=20_000, seed=seed, confidence="knows")
        noise, kept = np.random.default_rng(seed).random((2, *base.scores.shape))
        return Outcomes(base.scores, np.where(kept < 0.8, base.confidence, noise).astype(np.float32), base.rank)

    told, choices = noisy(1), decisions.choose(noisy(0), method="isotonic")
    assert choices.signal == "confidence"
    order = decisions.reordered(told, told.said("confidence"), choices.weight["confidence"])[:, :1]
    said, hits = (np.take_along_axis(x, order, 1)[:, 0] for x in (told.said("confidence"), told.hits))
    assert choices.user["reranked"](said).mean() == pytest.approx(hits.mean(), abs=0.01)
    for other in (choices.user, choices.candidate):
        assert abs(other["confidence"](said).mean() - hits.mean()) > 0.03


@pytest.mark.parametrize("method", ["temperature", "platt", "beta", "isotonic", "histogram"])
def test_few_rows_without_a_hit_do_not_show_that_none_will_come(method):
    base = world(n=30)
    nobody = Outcomes(base.scores, base.confidence, np.full(30, -1))
    calibrated = decisions.choose(nobody, method=method).user["confidence"](nobody.said("confidence")[:, 0])
    if method != "temperature":  # which keeps 0.5 where it is
        assert calibrated.mean() == pytest.approx(1 / 32, rel=1e-6)
    assert calibrated.min() > 1e-6


@pytest.mark.parametrize("n", [0, 1])
def test_one_user_cannot_choose_and_test(n):
    with pytest.raises(ValueError, match=f"`user` must name at least 2, one to choose and one to test, got {n}"):
        decisions.halves(np.arange(n))


@given(st.integers(2, 400))
def test_halves_are_a_partition(n):
    choosing, testing = decisions.halves(np.arange(n))
    assert sorted([*choosing, *testing]) == list(range(n))
    assert 0 <= len(testing) - len(choosing) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["user"].pop("reranked"), "`values` must be what `Choices.to_json` returns"),
        (lambda v: v.pop("user"), "`values` must be what `Choices.to_json` returns"),
        (lambda v: v.update(signal="charm"), "`values` must name sources and aggregates, got 'charm'"),
        (lambda v: v["aggregate"].update(confidence="median"), "`values` must name sources and aggregates"),
        (lambda v: v["user"].update(confidence={"beta.a": 1}), "`arrays` of beta must hold"),
        (lambda v: v.update(user=[1]), "`values` must be what"),
    ],
)
def test_altered_choices_are_refused(change, message):
    values = decisions.choose(world(n=50)).to_json()
    change(values)
    with pytest.raises(ValueError, match=message):
        Choices.from_json(values)


# ---- the decisions


def test_rejection_of_the_surest_is_their_mean():
    outcomes = world(n=400)
    choices = decisions.choose(world(seed=1))
    found = decisions.reject(outcomes, choices)
    for source in ("confidence", "likelihood"):
        order = np.argsort(-decisions.certainty(outcomes, source, choices.aggregate[source]), kind="stable")
        for at, share in enumerate(found["coverage"]):
            kept = outcomes.rank[order[: round(share * 400)]]
            assert found[source]["ndcg@10"]["value"][at] == pytest.approx(decisions.ndcg(kept).mean())
            assert found[source]["hr@10"]["value"][at] == pytest.approx(decisions.hit(kept).mean())
    everyone = decisions.ndcg(outcomes.rank).mean()
    assert found["random"]["ndcg@10"]["value"] == pytest.approx([everyone] * 20)
    assert found["likelihood"]["ndcg@10"]["value"][-1] == pytest.approx(everyone)
    assert found["likelihood"]["ndcg@10"]["value"][4] > 1.5 * everyone
    for band in (found["confidence"]["ndcg@10"], found["random"]["hr@10"]):
        assert (np.array(band["low"]) <= band["value"]).all()
        assert (np.array(band["value"]) <= band["high"]).all()


def test_measures_are_those_of_metrics():
    rank = world().rank
    ranked = np.tile(np.arange(1, 13), (len(rank), 1))
    target = np.where(rank < 0, 99, rank + 1)
    assert np.array_equal(decisions.ndcg(rank), metrics.ndcg_at(ranked, target, 10))
    for k in (1, 5, 10):
        assert np.array_equal(decisions.hit(rank, k), metrics.recall_at(ranked, target, k))


@pytest.mark.parametrize("short", [False, True])
def test_lists_of_one_length_are_what_the_first_entries_are_worth(short):
    outcomes = world(short=short)
    found, n = decisions.cut(outcomes), len(outcomes)
    there = outcomes.present[:, :10]
    for at, length in enumerate(found["length"]):
        blocks = there.cumsum(1)[:, -1:] if short else None
        if blocks is None and length == int(length):
            hits = decisions.hit(outcomes.rank, int(length)).sum()
            assert found["fixed"]["precision"]["value"][at] == pytest.approx(hits / (n * length))
            assert found["fixed"]["recall"]["value"][at] == pytest.approx(hits / n)
        share = min(1, length * n / there.sum())
        assert found["random"]["recall"]["value"][at] == pytest.approx(share * decisions.hit(outcomes.rank).mean())
    everything = decisions.hit(outcomes.rank).sum()
    assert found["confidence"]["precision"]["value"][-1] == pytest.approx(everything / there.sum())
    assert found["confidence"]["recall"]["value"][-1] == pytest.approx(everything / n)


def test_a_confidence_that_knows_cuts_and_ranks_best():
    outcomes, choices = world(seed=2, confidence="knows"), decisions.choose(world(seed=3, confidence="knows"))
    cut, ranked = decisions.cut(outcomes), decisions.rerank(outcomes, choices)
    assert cut["confidence"]["recall"]["value"][1] == pytest.approx(decisions.hit(outcomes.rank).mean())
    assert ranked["confidence"]["by_weight"][-1] == pytest.approx((outcomes.rank >= 0).mean())
    value, low, high = ranked["confidence"]["gain"]
    assert 0 < low < value < high
    assert value == pytest.approx(ranked["confidence"]["ndcg@10"][0] - ranked["likelihood"]["ndcg@10"][0])
    assert ranked["random"]["gain"][1] <= 0 <= ranked["random"]["gain"][2]
    assert ranked["confidence"]["by_weight"][0] == pytest.approx(ranked["likelihood"]["ndcg@10"][0])


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_any_shape_is_measured(n, k, seed):
    outcomes = world(n, k, seed, short=True)
    choices = decisions.choose(outcomes)
    json.dumps([decisions.rerank(outcomes, choices), decisions.reject(outcomes, choices), decisions.cut(outcomes)])


def test_outcomes_survive_files_and_altered_ones_are_refused():
    outcomes = world(n=5, short=True)
    arrays = outcomes.to_arrays()
    again = Outcomes.from_arrays(arrays)
    assert all(np.array_equal(getattr(again, n), getattr(outcomes, n), equal_nan=True) for n in arrays if n != "user")
    assert np.array_equal(again.users, outcomes.users)
    for change, message in (
        ({"rank": arrays["rank"][:-1]}, r"`arrays` must be scores and confidence \(N, K\)"),
        ({"confidence": arrays["confidence"][:, 1:]}, r"`arrays` must be scores and confidence \(N, K\)"),
        ({"user": arrays["user"][:-1]}, r"`arrays` must be scores and confidence \(N, K\)"),
        ({"rank": arrays["rank"].astype(float)}, "two of real and two of whole numbers, got kinds fffi"),
        ({"confidence": arrays["confidence"] + np.float32(2)}, r"`confidence` must lie in \[0, 1\]"),
        ({"confidence": np.full_like(arrays["confidence"], np.nan)}, r"`confidence` must lie in \[0, 1\]"),
        ({"scores": np.full_like(arrays["scores"], np.nan), "rank": arrays["rank"] * 0}, "an entry that is there"),
        ({"rank": arrays["rank"] + 12}, r"`rank` must lie in \[-1, 12\), got"),
    ):
        with pytest.raises(ValueError, match=message):
            Outcomes.from_arrays({**arrays, **change})
