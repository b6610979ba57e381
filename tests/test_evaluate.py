"""What an evaluation finds: rows that are alike, files that do not belong together, hostile values."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
from evaluated import HOW, make_run, outcomes  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pipeline import call  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from test_confidence import HISTORY  # noqa: E402
from test_decisions import world  # noqa: E402
from test_report import edit  # noqa: E402
from ugr_fast import data, decisions, report  # noqa: E402
from ugr_fast.confidence import Confidence  # noqa: E402
from ugr_fast.decisions import Bootstrap, Outcomes, read_outcomes, write_outcomes  # noqa: E402
from ugr_fast.evaluate import baseline_metrics  # noqa: E402
from ugr_fast.files import write_checksums  # noqa: E402
from ugr_fast.report import comparison  # noqa: E402
from ugr_fast.report.read import read_runs  # noqa: E402
from ugr_fast.run import Run  # noqa: E402

USERS = st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda users: len(set(users)) > 1).map(np.array)

# ---- several rows of one user, as a temporal split has


@given(USERS)
def test_no_user_chooses_and_tests(user):
    choosing, testing = decisions.halves(user)
    assert sorted([*choosing, *testing]) == list(range(len(user)))
    assert not set(user[choosing]) & set(user[testing])
    assert 0 <= len(set(user[testing])) - len(set(user[choosing])) <= 1


@given(USERS)
def test_each_user_lends_one_row(user):
    rows = decisions.once(user)
    assert sorted(user[rows]) == sorted(set(user))
    assert (np.diff(rows) > 0).all()


def test_any_row_of_a_user_may_be_lent():
    rows = decisions.once(np.repeat(np.arange(3000), 3)) % 3
    assert np.bincount(rows) == pytest.approx([1000] * 3, abs=100)


def test_rows_that_are_copies_do_not_narrow_an_interval():
    value, user = np.random.default_rng(0).random(50), np.arange(50)
    once, often = (Bootstrap(np.repeat(user, n)).means(np.repeat(value, n)[None])[0] for n in (1, 7))
    assert often == pytest.approx(once, rel=1e-12)


def alike(seed, num_users=60, per=25, mean=0.6):
    """Users, each right in a share of rows of their own, `mean` over all, each with a confidence that tells nothing."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), per)
    right = rng.random(len(user)) < np.repeat(rng.beta(2 * mean, 2 * (1 - mean), num_users), per)
    said = (0.95 * rng.random(num_users)[user] + 0.05 * rng.random(len(user)))[:, None].astype(np.float32)
    return Outcomes(np.log(said), said, np.where(right, 0, -1), user)


def test_an_interval_covers_users_who_are_alike():
    held = []
    for seed in range(80):
        rows = alike(seed)
        _, low, high = Bootstrap(rows.users).means((rows.rank == 0)[None].astype(float))[0]
        held.append(low <= 0.6 <= high)
    assert np.mean(held) >= 0.86  # 0.95 less 3.7 standard errors; rows taken for users: 0.4


def test_a_promise_is_kept_for_users_who_are_alike():
    """The risk is 0.4 at any threshold: at most a share delta of the valid sets may promise less."""
    choices = decisions.choose(alike(999))
    made = [
        Confidence({}, choices, alike(seed, 200, 20)).promise(0.399, 1, 0.1).threshold is not None
        for seed in range(200)
    ]
    assert np.mean(made) <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 200)


def test_decisions_of_copies_are_those_of_the_users():
    base = world(n=120)
    twice = base.take(np.repeat(np.arange(120), 2))
    choices = decisions.choose(base)
    for measure in (
        lambda rows: decisions.rerank(rows, choices),
        lambda rows: decisions.reject(rows, choices),
        decisions.cut,
    ):
        one, two = (json.loads(json.dumps(measure(rows))) for rows in (base, twice))
        for source in ("likelihood", "confidence"):
            for name in one[source].keys() - {"by_weight", "weight", "aggregate"}:
                bands = [found[source][name] for found in (one, two)]
                flat = [[*b.values()] if isinstance(b, dict) else b for b in bands]
                np.testing.assert_allclose(*flat, rtol=1e-9, atol=1e-12)


def test_differences_between_runs_are_over_users(tmp_path):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", "rl", seed=1)
    narrow = comparison.paired_table(read_runs(runs))[1]
    for run, seed in zip(runs, (0, 1), strict=True):
        told = outcomes(seed, 0.9, 400)
        several = Outcomes(told.scores, told.confidence, told.rank, np.repeat(np.arange(8), 50))
        write_outcomes(run / "outcomes-test.safetensors", several, HOW)
    assert comparison.paired_table(read_runs(runs))[1] != narrow


# ---- an evaluation on valid


def test_an_evaluation_on_valid_measures_on_rows_that_chose_nothing(pipeline):
    found = json.loads((pipeline.rl / "eval-valid.json").read_text())
    valid = read_outcomes(pipeline.rl / "outcomes-valid.safetensors")[1]
    chose, rest = decisions.halves(valid.users)
    assert found["decisions"]["rows"] == found["confidence"]["user"]["after"]["n"] == len(rest)
    everybody = [made for made in found["promises"] if made["realised"]["share"] == 1]
    assert all(made["realised"]["answered"] == len(chose) for made in everybody)


def test_an_evaluation_loads_the_model_once(run, pipeline, monkeypatch):
    for path in run.glob("*outcomes-*"):
        path.unlink()
    (run / "confidence.safetensors").unlink()  # so that valid is ranked too
    loaded, load = [], Run.load_model
    monkeypatch.setattr(Run, "load_model", lambda self, *args: loaded.append(args) or load(self, *args))
    evaluate(run, pipeline.data)
    assert len(loaded) == 1
    assert (run / "confidence.safetensors").exists()


def test_a_curve_is_kept_for_those_who_see_it(pipeline):
    found = json.loads((pipeline.rl / "eval-test.json").read_text())
    for source in ("confidence", "likelihood"):
        curve = found[source]["user"]["risk_coverage"]
        assert curve["coverage"][-1] == 1
        assert curve["risk"][-1] == pytest.approx(1 - found[source]["user"]["before"]["base_rate"])
        assert "risk_coverage" not in found[source]["candidate"]  # the report draws users


# ---- files that do not belong together


def evaluate(run, data, *more):
    done = call("eval", "--run", run, "--data", data, "--num-beams", 10, "--threads", 1, *more)
    assert done.code == 0, done.err


@pytest.fixture
def run(pipeline, tmp_path):
    return Path(shutil.copytree(pipeline.rl, tmp_path / "rl"))


def retrain(run):
    """Other weights at the step of the best checkpoint."""
    folder = Run.open(run).model_folder()
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    noise = np.random.default_rng(0)
    save_file(
        {name: x + noise.standard_normal(x.shape).astype(x.dtype) for name, x in weights.items()},
        path,
        {"format": "pt"},
    )
    names = [
        str(p.relative_to(folder.parent)) for p in folder.parent.rglob("*") if p.is_file() and p.name != "SHA256SUMS"
    ]
    write_checksums(folder.parent, names)


def test_a_run_trained_anew_is_evaluated_anew(run, pipeline):
    before = (run / "confidence.safetensors").read_bytes()
    retrain(run)
    done = call("recommend", "--run", run, "--history", HISTORY)
    assert "as it is; `ugr-fast eval" in done.err
    assert call("recommend", "--run", run, "--history", HISTORY, "--max-risk", 0.5).code == 2
    evaluate(run, pipeline.data)
    assert (run / "confidence.safetensors").read_bytes() != before
    assert "not calibrated" not in call("recommend", "--run", run, "--history", HISTORY).err


def test_an_evaluation_of_the_last_checkpoint_leaves_what_the_best_says(run, pipeline):
    best = Run.open(run).model_folder().parent
    shutil.copytree(best, best.with_name("step-00000099"))
    kept = [(run / name).read_bytes() for name in ("confidence.json", "confidence.safetensors")]
    evaluate(run, pipeline.data, "--checkpoint", "last", "--split", "valid")
    assert json.loads((run / "eval-valid.json").read_text())["step"] == 99
    assert [(run / name).read_bytes() for name in ("confidence.json", "confidence.safetensors")] == kept
    assert "not calibrated" not in call("recommend", "--run", run, "--history", HISTORY).err


def test_a_wider_evaluation_of_test_leaves_that_of_valid_whole(run, pipeline, tmp_path):
    evaluate(run, pipeline.data, "--num-beams", 12)
    found = json.loads((run / "eval-valid.json").read_text())
    how, valid = read_outcomes(run / "outcomes-valid.safetensors")
    assert found["how"] == how
    assert found["ranking"]["ndcg@10"] == pytest.approx(decisions.ndcg(valid.rank).mean())
    assert len(report.table([run], "valid")) > 1


def test_outcomes_of_another_evaluation_are_not_reported(tmp_path):
    run = make_run(tmp_path / "rl", "rl")
    write_outcomes(run / "outcomes-test.safetensors", outcomes(7, 0.1, 400), {"step": 49})
    with pytest.raises(ValueError, match=r"must be of the evaluation in eval-\*.json.*repeat `ugr-fast eval"):
        report.table([run])


def test_an_evaluation_with_embeddings_compares_with_one_without(tmp_path):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    edit(runs[1] / "eval-test.json", lambda found: found | {"baselines": found["baselines"] | {"cosine_markov": {}}})
    assert len(report.table(runs)) == 5


@pytest.mark.parametrize(
    "change",
    [{"num_beams": "ten"}, {"num_beams": -3}, {"num_beams": 10**12}, {"normalize": "no"}, {"precision": "int8"}],
)
def test_a_way_to_rank_that_there_is_not_is_refused(run, change):
    how, valid = read_outcomes(run / "confidence.safetensors")
    write_outcomes(run / "confidence.safetensors", valid, how | change)
    edit(run / "confidence.json", lambda found: found | {"how": how | change})
    done = call("recommend", "--run", run, "--history", HISTORY)
    assert done.code == 2
    assert "confidence.json is altered" in done.err
    assert "make it again with `ugr-fast eval" in done.err


def test_a_list_is_no_way_to_rank(run):
    edit(run / "confidence.json", lambda found: found | {"how": []})
    done = call("recommend", "--run", run, "--history", HISTORY)
    assert done.code == 2
    assert "confidence.json is altered" in done.err


# ---- injection


@pytest.mark.parametrize("num_items", [2, 9, 12])
def test_baselines_of_a_catalogue_of_few_items(num_items):
    """The target, item 1, follows the last item; there may be fewer items than metrics look at."""
    train = data.Sequences(np.array([0, 4]), np.array([0, 1, 0, 1]), np.array([0]))
    counts, rows = np.bincount(train.items, minlength=num_items), data.Rows.of([[0], [1, 0]], [1, 1])
    found = baseline_metrics(train, counts, rows, np.eye(num_items))
    for of in found.values():
        assert of["hr@10"] == 1
        assert of["coverage@10"] == min(10, num_items) / num_items
    assert found["markov"]["ndcg@1"] == 1


def test_a_user_is_a_number(tmp_path):
    run = make_run(tmp_path / "rl", "rl")

    def change(found):
        found["examples"][0]["user"] = "<img src=x onerror=alert(1)>"
        return found

    edit(run / "eval-test.json", change)
    with pytest.raises(ValueError, match=r"`examples\.0\.user` must be a number, got '<img"):
        read_runs([run])
