"""From evaluation to an answer or none: choices kept with the run, promises tested on rows that made none of them."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny  # noqa: E402
from pipeline import call, snapshot  # noqa: E402
from test_decisions import world  # noqa: E402
from test_recommend import HISTORIES, colliding, recommender  # noqa: E402
from ugr_fast import decisions  # noqa: E402
from ugr_fast.confidence import Confidence  # noqa: E402
from ugr_fast.decisions import Outcomes, read_outcomes  # noqa: E402
from ugr_fast.recommend import Ranking, Recommender, beam_of_items, outcomes_of, rank  # noqa: E402
from ugr_fast.run import Run  # noqa: E402

HISTORY = "Film 03 (1983); Film 04 (1984)"
HOW = {"step": 0, "num_beams": 8, "normalize": "full", "precision": "float32", "rows": "-"}


def evaluated(valid, num_beams=8):
    """A recommender that knows what valid rows say."""
    known = recommender()
    choosing, _ = decisions.halves(valid.users)
    known.confidence = Confidence({**HOW, "num_beams": num_beams}, decisions.choose(valid.take(choosing)), valid)
    return known


# ---- outcomes


def test_outcomes_are_those_of_the_items():
    """With several items on a SID, of which one is the target: each item has what was said of its beam."""
    catalogue = colliding()
    ranking = rank(tiny.model(catalogue.vocabulary), catalogue, HISTORIES, num_beams=9)
    targets = np.array([5, 6, 29, 8, 9, 10, 11])
    found, beams = outcomes_of(ranking, catalogue, targets), beam_of_items(ranking, catalogue)
    for row, items in enumerate(ranking.items.tolist()):
        sids = [tuple(sid) for sid in ranking.tokens[row].tolist()]
        for at, item in enumerate(items):
            beam = sids.index(tuple(catalogue.item_tokens[item].tolist()))
            assert beams[row, at] == beam
            assert found.scores[row, at] == ranking.scores[row, beam]
            assert found.confidence[row, at] == ranking.confidence[row, beam]
        assert found.rank[row] == (items.index(targets[row]) if targets[row] in items else -1)
    assert len({*found.rank.tolist()} - {-1}) > 1


def test_outcomes_of_short_lists():
    catalogue = tiny.catalogue(num_items=5)
    ranking = rank(tiny.model(catalogue.vocabulary), catalogue, [[0], [1, 2]], num_beams=8)
    found = outcomes_of(ranking, catalogue, np.array([0, 1]))
    assert np.array_equal(found.present, ranking.items >= 0)
    assert np.array_equal(np.isnan(found.confidence), ranking.items < 0)
    nothing = Ranking(
        *(
            np.full_like(values, absent)
            for values, absent in zip([*vars(ranking).values()][:4], (-1, -np.inf, np.nan, -1), strict=True)
        )
    )
    empty = outcomes_of(nothing, catalogue, np.array([0, 1]))
    assert not empty.present.any()
    assert empty.rank.tolist() == [-1, -1]


# ---- promises


def test_a_promise_made_with_its_own_choices_is_kept():
    """Choices on one half, thresholds on the other, over worlds whose risk above a threshold many users tell."""
    many = world(n=60_000, seed=999)
    broken, answered = 0, 0
    for seed in range(100):
        valid = world(n=2500, seed=seed)
        choosing, _ = decisions.halves(valid.users)
        known = Confidence(HOW, decisions.choose(valid.take(choosing)), valid)
        rule = known.promise(0.7, k=1, delta=0.1)
        realised = rule.realised(known.certainty(many), many.rank == 0)
        answered += realised.answered > 0
        broken += realised.risk > 0.7
    assert answered > 60
    assert broken <= 0.1 * 100 + 3 * math.sqrt(0.1 * 0.9 * 100)


def test_rows_that_test_have_no_part_in_the_choices():
    valid = world(n=300, confidence="knows")
    choosing, testing = decisions.halves(valid.users)
    other = Outcomes(valid.scores, valid.confidence, np.where(np.isin(np.arange(300), testing), -1, valid.rank))
    one, two = (decisions.choose(rows.take(choosing)).to_json() for rows in (valid, other))
    assert one == two


def test_a_risk_at_a_k_that_no_list_has():
    known = evaluated(world(n=100))
    for k in (0, 13):
        with pytest.raises(
            ValueError, match=rf"`risk_at` must lie in 1..12, the length of the lists evaluated, got {k}"
        ):
            known.confidence.promise(0.5, k)


# ---- answers


def test_abstaining_is_the_threshold_on_certainty():
    known = evaluated(world(n=2000, confidence="knows"))
    plain = known(HISTORIES, k=3)
    ranking = rank(known.model, known.catalogue, [history[-4:] for history in HISTORIES], num_beams=8)
    told = outcomes_of(ranking, known.catalogue, np.full(7, -1))
    sure = known.confidence.certainty(told)
    found = known(HISTORIES, k=3, max_risk=0.9, risk_at=1)
    assert np.array_equal(found.abstained, sure < found.promise.threshold)
    assert found.promise.share > 0
    for row, answered in enumerate(found):
        assert answered == ([] if found.abstained[row] else plain[row])
        assert bool(found.reasons[row]) == found.abstained[row] == (not answered)
    assert (found.items[found.abstained] == -1).all()


def test_a_confidence_asked_for_is_that_of_the_first_item():
    known = evaluated(world(n=500))
    first = known(HISTORIES, k=3).first
    assert np.array_equal(known.confidence.choices.user[known.confidence.choices.signal](np.array([0.5])) >= 0, [True])
    middle = float(np.sort(first)[3])
    found = known(HISTORIES, k=3, min_confidence=middle)
    assert np.array_equal(found.abstained, first < middle)
    assert np.array_equal(found.first, first)
    assert all(r == "" or r.startswith("the first item is next with probability ") for r in found.reasons)
    assert known(HISTORIES, min_confidence=0.0).abstained.sum() == 0
    assert known(HISTORIES, min_confidence=1.0).abstained.sum() == 7


def test_calibrated_confidences_are_the_fitted_map_of_what_was_said():
    known = evaluated(world(n=500, confidence="knows"))
    assert known.confidence.choices.signal == "confidence"
    found = known(HISTORIES, k=5)
    fitted = known.confidence.choices.candidate["confidence"]
    assert np.allclose(found.calibrated[:, 1:], fitted(found.confidence.astype(np.float64))[:, 1:])
    assert np.array_equal(found.calibrated[:, 0], found.first)
    short = evaluated(world(n=500))
    short.catalogue = tiny.catalogue(num_items=3)
    few = short([[0]], k=8)
    assert np.array_equal(np.isnan(few.calibrated), few.items < 0)
    assert len(few[0]) == 3


def test_an_unattainable_risk_answers_nobody_and_says_why():
    found = evaluated(world(n=200))(HISTORIES, k=3, max_risk=0.001)
    assert found.abstained.all()
    assert list(map(len, found)) == [0] * 7
    assert all("nobody can be answered at a risk of 0.001: no candidate passes" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_confidence": 1.5}, r"`min_confidence` must lie in \[0, 1\], got 1.5"),
        ({"min_confidence": math.nan}, r"`min_confidence` must lie in \[0, 1\], got nan"),
        ({"max_risk": 0.0}, "`max_risk` must lie between 0 and 1, got 0"),
        ({"max_risk": 0.5, "delta": 1}, "`delta` must lie between 0 and 1, got 1"),
        (
            {"max_risk": 0.5, "hide_seen": True},
            "`max_risk` can be promised for lists like those evaluated, beam width 8",
        ),
        ({"max_risk": 0.5, "rerank": True}, "`max_risk` can be promised"),
        ({"max_risk": 0.5, "deny": [3]}, "`max_risk` can be promised"),
        ({"max_risk": 0.5, "allow": [3]}, "`max_risk` can be promised"),
        ({"max_risk": 0.5, "num_beams": 9}, "`max_risk` can be promised"),
        ({"max_risk": 0.5, "risk_at": 20}, "`risk_at` must lie in 1..12"),
        ({"max_risk": 0.5, "risk_at": 0}, "`risk_at` must lie in 1..12, the length of the lists evaluated, got 0"),
    ],
)
def test_what_cannot_be_promised_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluated(world(n=100))(HISTORIES, k=3, **options)


def test_a_threshold_needs_an_evaluation():
    for option in ("min_confidence", "max_risk", "rerank"):
        with pytest.raises(ValueError, match=f"`{option}` needs a run whose confidence was evaluated: the run was not"):
            recommender()(HISTORIES, **{option: 0.5})


# ---- in a run


def test_evaluations_of_both_splits_keep_one_confidence(pipeline, tmp_path):
    """Valid rows choose, whichever split is evaluated; and the ranking of valid rows is not made twice."""
    run = tmp_path / "rl"
    shutil.copytree(pipeline.rl, run)
    kept = (run / "confidence.json").read_bytes(), (run / "confidence.safetensors").read_bytes()
    names = "confidence.json confidence.safetensors outcomes-valid.safetensors outcomes-test.safetensors eval-test.json"
    for name in names.split():
        (run / name).unlink()
    arguments = ["eval", "--run", run, "--data", pipeline.data, "--num-beams", 10, "--threads", 1]
    done = call(*arguments)
    assert done.code == 0, done.err
    assert ((run / "confidence.json").read_bytes(), (run / "confidence.safetensors").read_bytes()) == kept
    assert (run / "eval-test.json").read_bytes() == (pipeline.rl / "eval-test.json").read_bytes()
    known = Confidence.load(Run.open(run))
    assert len(known.valid) == json.loads((run / "eval-valid.json").read_text())["num_rows"]
    wider = call(*arguments[:-4], "--num-beams", 12, "--threads", 1)
    assert wider.code == 0, wider.err
    assert Confidence.load(Run.open(run)).how["num_beams"] == 12


def test_what_an_evaluation_says(pipeline):
    found = json.loads((pipeline.rl / "eval-test.json").read_text())
    how, outcomes = read_outcomes(pipeline.rl / "outcomes-test.safetensors")
    assert (how["step"], how["num_beams"]) == (found["step"], 10)
    assert found["ranking"]["ndcg@10"] == pytest.approx(decisions.ndcg(outcomes.rank).mean())
    for name, (low, high) in found["intervals"].items():
        assert low <= found["ranking"][name] <= high
    assert found["decisions"]["rows"] == len(outcomes) == found["num_rows"]
    valid = json.loads((pipeline.rl / "eval-valid.json").read_text())["decisions"]
    assert valid["chosen_on"] + valid["rows"] == found["decisions"]["chosen_on"] * 2
    for source in ("confidence", "likelihood"):
        for level, n in (("user", len(outcomes)), ("candidate", int(outcomes.present.sum()))):
            part = found[source][level]
            assert part["before"]["n"] == part["after"]["n"] == n
            assert sum(part["histogram"]["hits"]) + sum(part["histogram"]["misses"]) == n
            assert sum(part["histogram"]["hits"]) == round(part["before"]["base_rate"] * n)
            assert part["before"]["ece_low"] <= part["before"]["ece_high"]
            for stage in ("before", "after"):
                assert sum(part["reliability"][stage]["count"]) == n
    risks = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
    assert [(p["k"], p["max_risk"]) for p in found["promises"]] == [(k, risk) for k in (1, 10) for risk in risks]
    assert 0 < found["reach"]["coverage@10"] <= 1
    assert found["baselines"]["popularity"]["popularity@10"] >= found["reach"]["popularity@10"]


def test_recommend_abstains_on_the_command_line(pipeline):
    arguments = ["recommend", "--run", pipeline.rl, "--history", HISTORY]
    text = call(*arguments, "--max-risk", 0.01)
    assert text.code == 0
    assert "No recommendation: nobody can be answered at a risk of 0.01: no candidate passes" in text.out
    found = json.loads(call(*arguments, "--max-risk", 0.01, "--json").out)
    assert (found["abstained"], found["items"], found["promise"]["threshold"]) == (True, [], None)
    assert "No recommendation: the first item is next with probability " in call(*arguments, "--min-confidence", 1).out
    assert "No recommendation" not in call(*arguments, "--min-confidence", 0).out
    before = snapshot(pipeline.rl)
    for more, message in (
        (["--min-confidence", 2], "`min_confidence` must be in [0, 1], got 2.0"),
        (["--max-risk", 0], "`max_risk` must be between 0 and 1, got 0.0"),
        (["--max-risk", 0.5, "--risk-delta", 1], "`risk_delta` must be between 0 and 1, got 1.0"),
        (["--max-risk", 0.5, "--k", 11], "beam width 10 and nothing left out, only"),
    ):
        done = call(*arguments, *more)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert message in done.err
    assert snapshot(pipeline.rl) == before


def test_a_run_that_was_not_evaluated_answers_and_says_so(pipeline, tmp_path):
    run = tmp_path / "rl"
    shutil.copytree(pipeline.rl, run)
    (run / "confidence.json").unlink()
    arguments = ["recommend", "--run", run, "--history", HISTORY]
    done = call(*arguments)
    assert done.code == 0
    assert f"not calibrated: {run}/confidence.json does not exist; `ugr-fast eval --run {run} --data" in done.err
    assert Recommender.load(run)([["Film 03 (1983)"]])[0][0].calibrated is None
    refused = call(*arguments, "--max-risk", 0.5)
    assert refused.code == 2
    assert "`max_risk` needs a run whose confidence was evaluated" in refused.err


def test_an_evaluation_of_another_checkpoint_does_not_count(pipeline, tmp_path):
    run = tmp_path / "rl"
    shutil.copytree(pipeline.rl, run)
    best = json.loads((run / "best.json").read_text())
    steps = Run.open(run).steps()
    other = run / "checkpoints" / "step-00000099"
    shutil.copytree(run / "checkpoints" / f"step-{steps[-1]:08d}", other)
    (run / "best.json").write_text(json.dumps({**best, "step": 99}))
    done = call("recommend", "--run", run, "--history", HISTORY)
    assert done.code == 0
    assert "confidence.json is not of step 99, the best one, as it is; `ugr-fast eval --run" in done.err


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("confidence.json", lambda data: data[:40]),
        ("confidence.json", lambda data: b"{}"),
        ("confidence.json", lambda data: data.replace(b'"top"', b'"tip"').replace(b'"mean"', b'"tip"')),
        ("confidence.safetensors", lambda data: data[:100]),
        ("confidence.safetensors", lambda data: b""),
        ("confidence.safetensors", None),
    ],
)
def test_altered_files_are_refused(pipeline, tmp_path, name, damage):
    run = tmp_path / "rl"
    shutil.copytree(pipeline.rl, run)
    path = run / name
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    done = call("recommend", "--run", run, "--history", HISTORY)
    assert done.code == 2, done.err
    assert "make it again with `ugr-fast eval --run" in done.err
    done = call("eval", "--run", run, "--data", pipeline.data, "--num-beams", 10, "--threads", 1)
    assert done.code == 0, done.err
    assert call("recommend", "--run", run, "--history", HISTORY).code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--risks", 0.2, 1], r"`risks` must lie between 0 and 1, got (0.2, 1.0)"),
        (["--risk-delta", 0], "`risk_delta` must be between 0 and 1, got 0.0"),
        (["--recalibration", "magic"], "magic"),
    ],
)
def test_settings_of_eval_are_checked_before_any_work(pipeline, more, message):
    before = snapshot(pipeline.rl)
    done = call("eval", "--run", pipeline.rl, "--data", pipeline.data, *more)
    assert done.code == 2
    assert message in done.err or message in done.out
    assert snapshot(pipeline.rl) == before


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic", "histogram"])
def test_every_recalibration_can_be_chosen(pipeline, tmp_path, method):
    run = tmp_path / "sft"
    shutil.copytree(pipeline.sft, run)
    done = call(
        "eval", "--run", run, "--data", pipeline.data, "--num-beams", 10, "--threads", 1, "--recalibration", method
    )
    assert done.code == 0, done.err
    known = Recommender.load(run).confidence.choices
    assert (known.signal, known.user["likelihood"].method) == ("likelihood", method)  # untrained confidence tokens
    assert json.loads((run / "eval-test.json").read_text())["recalibration"] == method


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_single_user_can_neither_choose_nor_measure(pipeline, tmp_path, split):
    parquet = pytest.importorskip("pyarrow.parquet")
    shutil.copytree(pipeline.data, tmp_path / "data")
    path = tmp_path / "data" / f"{split}.parquet"
    parquet.write_table(parquet.read_table(path).slice(0, 1), path)
    before = snapshot(pipeline.rl)
    done = call("eval", "--run", pipeline.rl, "--data", tmp_path / "data", "--num-beams", 10)
    assert done.code == 2
    assert f"`data` must have 2 {split} users or more, to choose and to measure; prepare it anew" in done.err
    assert snapshot(pipeline.rl) == before
