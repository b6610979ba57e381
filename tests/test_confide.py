"""`ugr-fast confide`: from rows that training has not seen to what `eval` and `recommend` say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pq = pytest.importorskip("pyarrow.parquet")
import tiny  # noqa: E402
from pipeline import call, snapshot  # noqa: E402
from test_cli import damage, edited, other_items, refused  # noqa: E402
from test_evaluate import retrain  # noqa: E402
from test_recommend import colliding  # noqa: E402
from ugr_fast import confide as confiding  # noqa: E402
from ugr_fast import data, decisions, demo  # noqa: E402
from ugr_fast import evaluate as evaluating  # noqa: E402
from ugr_fast.confide import candidates  # noqa: E402
from ugr_fast.confidence import Confidence  # noqa: E402
from ugr_fast.configs import ConfideConfig, DemoConfig, EvalConfig  # noqa: E402
from ugr_fast.decisions import read_outcomes  # noqa: E402
from ugr_fast.decode import beam_search  # noqa: E402
from ugr_fast.evidence import Evidence  # noqa: E402
from ugr_fast.readout import Readout, read_readout  # noqa: E402
from ugr_fast.recommend import Recommender, rank  # noqa: E402
from ugr_fast.run import READOUT, Run  # noqa: E402

HISTORY = "Film 03 (1983); Film 04 (1984)"
LESS = ["--threads", 1, "--device", "cpu"]
UNCALIBRATED = "as it is; `ugr-fast eval"


def confide(run, data, *more):
    done = call("confide", "--run", run, "--data", data, *LESS, *more)
    assert done.code == 0, done.err
    return done


def evaluate(run, data, *more):
    done = call("eval", "--run", run, "--data", data, "--num-beams", 10, *LESS, *more)
    assert done.code == 0, done.err
    return json.loads((run / f"eval-{'valid' if 'valid' in more else 'test'}.json").read_text())


@pytest.fixture
def run(pipeline, tmp_path):
    """A run that was evaluated and has no readout."""
    return Path(shutil.copytree(pipeline.rl, tmp_path / "rl"))


@pytest.fixture(scope="module")
def confided(pipeline, tmp_path_factory):
    """A run with a readout, evaluated with it; do not write into it."""
    run = Path(shutil.copytree(pipeline.rl, tmp_path_factory.mktemp("confided") / "rl"))
    confide(run, pipeline.data)
    evaluate(run, pipeline.data)
    return run


# ---- what it fits to


def catalogues():
    """Of semantic IDs of one length, of two lengths, with several items on one, and of fewer than there are beams."""
    return [tiny.catalogue(), tiny.catalogue(ragged=True), colliding(num_sids=14), tiny.catalogue(num_items=7)]


@pytest.mark.parametrize("number", range(4))
def test_candidates_are_the_beams_with_the_states_of_an_unpacked_forward(number):
    catalogue = catalogues()[number]
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    histories = [[1], [2, 3], [4, 5, 6, 0], [0], [6, 5]]
    rows = data.Rows.of(histories, targets=[2, 4, 1, 0, 3])
    found = candidates(model, catalogue, rows, ConfideConfig(Path(), Path(), batch_size=2))
    ranking = rank(model, catalogue, histories, num_beams=10)
    at = 0
    with torch.no_grad():
        for row, beams in enumerate(ranking.tokens.tolist()):
            target = [token for token in catalogue.item_tokens[rows.item[row]].tolist() if token >= 0]
            for place, beam in enumerate(beams):
                sid = [token for token in beam if token >= 0]
                if not sid:
                    continue
                tokens = torch.tensor([[*catalogue.prompt(histories[row]), *sid]])
                state = model.model(tokens).last_hidden_state[0, -1]
                torch.testing.assert_close(found.states[at], state.float(), rtol=1e-5, atol=1e-6)
                assert found.logprobs[at].item() == ranking.scores[row, place]
                assert (found.hits[at].item(), found.row[at], found.first[at]) == (sid == target, row, place == 0)
                at += 1
    assert at == len(found.states) == len(found.logprobs) == len(found.hits) == len(found.row) == len(found.first)
    assert found.hits.any()
    assert at == 5 * min(10, len({*tiny.sids_of(catalogue)}))


def told(catalogue, embeddings=True):
    """Evidence of a few sequences of a catalogue of eight items."""
    train = data.Sequences(np.array([0, 4, 6]), np.array([1, 2, 3, 1, 6, 5]), np.array([0, 1]))
    texts = np.random.default_rng(3).normal(size=(len(catalogue.item_tokens), 3)) if embeddings else None
    return Evidence.build(train, len(catalogue.item_tokens), texts)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("embeddings", [False, True])
def test_evidence_stands_after_the_state_and_is_weighed_like_it(number, embeddings):
    catalogue = catalogues()[number]
    model, evidence = tiny.model(catalogue.vocabulary, spread=2.0), told(catalogue, embeddings)
    histories = [[1], [2, 3], [4, 5, 6, 0], [0], [6, 5]]
    plain = rank(model, catalogue, histories, num_beams=10, states=True).states
    both = rank(model, catalogue, histories, num_beams=10, states=True, evidence=evidence, batch_size=2)
    width, features = plain.shape[2], len(evidence.names)
    np.testing.assert_allclose(both.states[..., :width], plain, rtol=1e-5, atol=1e-6)
    lowest = {sid: item for item, sid in reversed([*enumerate(tiny.sids_of(catalogue))])}
    for row, beams in enumerate(both.tokens.tolist()):
        items = [lowest[sid] for beam in beams if (sid := tuple(token for token in beam if token >= 0))]
        said = evidence([histories[row]], np.array([items]))[0]
        np.testing.assert_array_equal(both.states[row, : len(items), width:], said.astype(np.float32))
    weight = torch.randn(width + features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    readout = Readout(weight, slope=0.7, bias=-0.2, evidence=evidence)
    expected = readout(torch.from_numpy(both.states), torch.from_numpy(both.scores)).sigmoid().numpy()
    found = rank(model, catalogue, histories, num_beams=10, readout=readout).confidence
    np.testing.assert_allclose(found, np.where(np.isfinite(both.scores), expected, np.nan), rtol=1e-4)


def test_evidence_of_other_items_is_refused_and_a_search_alone_has_no_histories():
    catalogue, other = tiny.catalogue(num_items=7), tiny.catalogue()
    model, evidence = tiny.model(catalogue.vocabulary), told(other)
    size = model.config.hidden_size + len(evidence.names)
    readout = Readout(torch.zeros(size, dtype=torch.float64), 1.0, 0.0, evidence)
    for asked in ({"readout": readout}, {"states": True, "evidence": evidence}):
        with pytest.raises(ValueError, match=r"`evidence` must be of the 7 items of the catalogue, got \d+; fit the"):
            rank(model, catalogue, [[1]], num_beams=4, **asked)
    with pytest.raises(ValueError, match=r"`readout` must weigh states alone, .* use `recommend.rank`"):
        beam_search(
            model, torch.tensor([catalogue.prompt([1])]), None, catalogue.trie, num_beams=4,
            vocabulary=catalogue.vocabulary, confidence=True, readout=readout,
        )  # fmt: skip


def change_targets(path, rows):
    """Let another item come next."""
    item = np.array(pq.read_table(path)["item"].to_pylist())
    item[rows] = (item[rows] + 1) % 40
    edited(path, item=item.tolist())


def test_only_the_valid_rows_that_choose_have_a_part_in_it(pipeline, confided, run, tmp_path):
    folder = Path(shutil.copytree(pipeline.data, tmp_path / "data"))
    dataset = data.load(folder)
    choosing, testing = decisions.halves(dataset.valid.user)
    change_targets(folder / "valid.parquet", testing)
    change_targets(folder / "test.parquet", np.arange(len(dataset.test)))
    confide(run, folder)
    assert (run / READOUT).read_bytes() == (confided / READOUT).read_bytes()
    change_targets(folder / "valid.parquet", choosing)
    confide(run, folder)
    assert (run / READOUT).read_bytes() != (confided / READOUT).read_bytes()


# ---- what it writes and says


def test_it_writes_one_file_and_says_what_it_found(pipeline, run):
    before = snapshot(run)
    done = confide(run, pipeline.data)
    after = snapshot(run)
    assert after.keys() - before.keys() == {READOUT}
    assert {name: after[name] for name in before} == before

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    said = json.loads(done.out, parse_constant=refuse)
    assert (said["rows"], said["candidates"]) == (30, 300)
    assert said["log_loss"][said["strength"]] == min(said["log_loss"].values())
    assert done.err.startswith("rl: readout fitted on 30 valid rows, penalty ")
    assert done.err.count("\n") == 1
    how, readout = read_readout(run / READOUT)
    assert how == {**Run.open(run).checkpoint_of(), "normalize": "full", "precision": "float32"}
    assert (said["slope"], said["bias"]) == (readout.slope, readout.bias)
    again = confide(run, pipeline.data)
    assert (again.out, snapshot(run)) == (done.out, after)


def test_batches_change_it_by_rounding_alone(pipeline, run, confided):
    confide(run, pipeline.data, "--batch-size", 7)
    one, two = (Recommender.load(folder)([[3, 4], [7]], k=20).confidence for folder in (run, confided))
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_it_can_be_made_anew_where_it_is_damaged(pipeline, run, confided):
    for how in ("truncated", "flipped", "empty"):
        shutil.copy(confided / READOUT, run)
        damage(run / READOUT, how)
        for command in (["recommend", "--history", HISTORY], ["eval", "--data", pipeline.data]):
            message = r"^ugr-fast: \S*readout.safetensors is truncated or altered .* again with `ugr-fast confide`$"
            refused([command[0], "--run", run, *command[1:]], message, run)
        confide(run, pipeline.data)
        assert (run / READOUT).read_bytes() == (confided / READOUT).read_bytes()


# ---- what is made of it


def test_lists_and_scores_stay_and_what_is_said_of_them_changes(pipeline, confided):
    before, after = (read_outcomes(run / "outcomes-test.safetensors") for run in (pipeline.rl, confided))
    for name in ("scores", "rank", "user"):
        assert np.array_equal(getattr(before[1], name), getattr(after[1], name))
    assert not np.isclose(before[1].confidence, after[1].confidence).any()
    assert after[0] == {**before[0], "readout": read_readout(confided / READOUT)[1].digest}
    old, new = (json.loads((run / "eval-test.json").read_text()) for run in (pipeline.rl, confided))
    assert (old["readout"], new["readout"], new["trained"]) == (False, True, True)
    assert new["ranking"] == old["ranking"]
    assert new["likelihood"] == old["likelihood"]
    assert new["confidence"] != old["confidence"]


def test_what_was_found_of_valid_without_it_is_stale(pipeline, run):
    """Both files with outcomes of valid are there, of the same checkpoint and search: `eval` on test ranks anew."""
    assert {"confidence.safetensors", "outcomes-valid.safetensors"} <= {path.name for path in run.iterdir()}
    confide(run, pipeline.data)
    assert UNCALIBRATED in call("recommend", "--run", run, "--history", HISTORY).err
    found = evaluate(run, pipeline.data)
    known = Confidence.load(Run.open(run))
    assert known.how == {**found["how"], "rows": known.how["rows"]}
    before = read_outcomes(pipeline.rl / "confidence.safetensors")[1]
    assert np.array_equal(known.valid.scores, before.scores)
    assert not np.isclose(known.valid.confidence, before.confidence).any()
    kept = (run / "confidence.safetensors").read_bytes()
    assert evaluate(run, pipeline.data, "--split", "valid")["readout"]
    assert (run / "confidence.safetensors").read_bytes() == kept


def test_without_it_again_what_it_said_is_stale(pipeline, confided, tmp_path):
    run = Path(shutil.copytree(confided, tmp_path / "rl"))
    (run / READOUT).unlink()
    assert UNCALIBRATED in call("recommend", "--run", run, "--history", HISTORY).err
    assert not evaluate(run, pipeline.data)["readout"]
    assert (run / "confidence.safetensors").read_bytes() == (pipeline.rl / "confidence.safetensors").read_bytes()


def test_sft_that_taught_no_confidence_has_one_with_it(pipeline, tmp_path):
    run = Path(shutil.copytree(pipeline.sft, tmp_path / "sft"))
    assert not evaluate(run, pipeline.data)["trained"]
    confide(run, pipeline.data)
    found = evaluate(run, pipeline.data)
    assert (found["trained"], found["readout"]) == (True, True)


def test_a_readout_of_other_weights_is_as_if_it_were_not_there(pipeline, confided, tmp_path):
    run = Path(shutil.copytree(confided, tmp_path / "rl"))
    retrain(run)
    opened = Run.open(run)
    assert opened.load_readout() is None
    assert "readout" not in opened.checkpoint_of()
    assert Recommender.load(run).readout is None
    found = evaluate(run, pipeline.data)
    assert (found["readout"], "readout" in found["how"]) == (False, False)
    confide(run, pipeline.data)
    assert opened.checkpoint_of()["readout"] == opened.load_readout()[1].digest
    assert evaluate(run, pipeline.data)["readout"]


def test_the_last_checkpoint_has_none_of_the_best(pipeline, confided, tmp_path):
    run = Path(shutil.copytree(confided, tmp_path / "rl"))
    best = Run.open(run).model_folder().parent
    shutil.copytree(best, best.with_name("step-00000099"))
    opened = Run.open(run)
    assert opened.load_readout(opened.checkpoint_of("last", readout=False)) is None
    assert opened.load_readout()[0]["step"] == opened.checkpoint_of()["step"] < 99
    assert not evaluate(run, pipeline.data, "--checkpoint", "last")["readout"]
    assert evaluate(run, pipeline.data)["readout"]


def test_recommend_says_what_eval_measured(pipeline, confided):
    known, dataset = Recommender.load(confided, "cpu"), data.load(pipeline.data)
    rows = [dataset.test.history(row) for row in range(len(dataset.test))]
    found, told = known(rows, k=10), read_outcomes(confided / "outcomes-test.safetensors")[1]
    np.testing.assert_allclose(found.scores, told.scores, atol=1e-5)
    np.testing.assert_allclose(found.confidence, told.confidence, atol=1e-5)
    np.testing.assert_allclose(found.calibrated[:, 1:], known.confidence.candidate(told)[:, 1:], atol=1e-5)
    np.testing.assert_allclose(found.calibrated[:, 0], known.confidence.user(told), atol=1e-5)
    np.testing.assert_array_equal(found.first, found.calibrated[:, 0])


def test_recommend_searches_as_it_was_fitted_where_nobody_evaluated(pipeline, run):
    confide(run, pipeline.data, "--normalize", "allowed", "--precision", "bfloat16")
    known = Recommender.load(run, "cpu")
    assert known.confidence is None
    assert known.search["normalize"] == "allowed"
    found = known([[3, 4]], k=10)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = rank(known.model, known.catalogue, [[3, 4]], num_beams=10, normalize="allowed", readout=known.readout)
    assert np.array_equal(found.scores, wanted.scores)
    assert np.array_equal(found.confidence, wanted.confidence)


def test_settings_say_what_is_weighed(pipeline, run, tmp_path):
    texts = tmp_path / "texts.npy"
    np.save(texts, np.random.default_rng(0).normal(size=(40, 5)).astype(np.float16))
    widths = []
    for more in (["--no-evidence"], [], ["--embeddings", texts]):
        confide(run, pipeline.data, *more)
        readout = read_readout(run / READOUT)[1]
        names = () if readout.evidence is None else readout.evidence.names
        widths.append((len(readout.weight) - len(names), len(names)))
    assert [features for _, features in widths] == [0, 3, 6]
    assert len({width for width, _ in widths}) == 1
    assert readout.evidence.unit.shape == (40, 5)


def test_recommend_can_order_by_it(pipeline, confided):
    known, dataset = Recommender.load(confided, "cpu"), data.load(pipeline.data)
    rows = [dataset.test.history(row) for row in range(len(dataset.test))]
    outcomes = read_outcomes(confided / "outcomes-test.safetensors")[1]
    known.confidence.choices.weight["confidence"] = 3.0
    plain, found = known(rows, k=10), known(rows, k=10, rerank=True)
    worth = np.exp(found.scores) + 3.0 * found.confidence
    assert (np.diff(worth, axis=1) <= 1e-6).all()
    assert not np.array_equal(plain.items, found.items)
    np.testing.assert_array_equal(np.sort(plain.items), np.sort(found.items))
    np.testing.assert_array_equal(found.first, found.calibrated[:, 0])
    choices = known.confidence.choices
    np.testing.assert_allclose(found.first, choices.user["reranked"](found.confidence[:, 0]))
    np.testing.assert_allclose(found.calibrated[:, 1:], choices.candidate["confidence"](found.confidence[:, 1:]))
    sure = np.median(found.first)
    kept = known(rows, k=10, rerank=True, min_confidence=sure)
    np.testing.assert_array_equal(kept.abstained, found.first < sure)
    expected = decisions.reranked(outcomes, outcomes.said("confidence"), 3.0)
    wanted = zip(found.items.tolist(), dataset.test.item.tolist(), strict=True)
    ranks = [items.index(item) if item in items else -1 for items, item in wanted]
    assert np.mean(np.array(ranks) == expected) > 0.95  # but for ties that rounding breaks
    done = call("recommend", "--run", confided, "--history", HISTORY, "--rerank", "--json")
    assert done.code == 0, done.err


def test_choices_see_what_is_said_of_users_by_the_fit_that_left_them_out(pipeline, confided):
    known, rows = Recommender.load(confided, "cpu"), data.load(pipeline.data).valid
    told = read_outcomes(confided / "confidence.safetensors")[1]
    fold = known.readout.left_out.fold_of(rows.user)
    choosing, testing = decisions.halves(rows.user)
    assert (fold[choosing] >= 0).all()
    assert (fold[testing] == -1).all()
    search = {"num_beams": 10, "normalize": "full", "states": True}
    histories = [rows.history(row) for row in range(len(rows))]
    found = rank(known.model, known.catalogue, histories, evidence=known.readout.evidence, **search)
    states, scores = torch.from_numpy(found.states), torch.from_numpy(found.scores)
    fits = known.readout.left_out
    for row, part in enumerate(fold.tolist()):
        one = Readout(fits.weight[part], fits.slope[part].item(), fits.bias[part].item())
        reads = known.readout if part < 0 else one
        said = reads(states[row], scores[row]).sigmoid().numpy()
        np.testing.assert_allclose(told.confidence[row], said, rtol=1e-3, atol=1e-6)
    plain = rank(known.model, known.catalogue, histories, num_beams=10, readout=known.readout)
    np.testing.assert_allclose(told.confidence[testing], plain.confidence[testing], rtol=1e-4)
    assert not np.isclose(told.confidence[choosing], plain.confidence[choosing], rtol=1e-4).all()


def better_meanwhile(run, monkeypatch, of, name):
    """Let a training find a better checkpoint when `of.name` is first called."""
    real, best = getattr(of, name), Run.open(run).model_folder().parent

    def beside(*args, **kwargs):
        if not best.with_name("step-00000099").exists():
            shutil.copytree(best, best.with_name("step-00000099"))
            found = json.loads((run / "best.json").read_text())
            (run / "best.json").write_text(json.dumps({**found, "step": 99}))
        return real(*args, **kwargs)

    monkeypatch.setattr(of, name, beside)


def test_a_readout_is_of_the_model_that_it_was_fitted_to(pipeline, run, monkeypatch):
    step = Run.open(run).checkpoint_of()["step"]
    better_meanwhile(run, monkeypatch, confiding, "fit")
    confiding.confide(ConfideConfig(run=run, data=pipeline.data, threads=1, device="cpu"))
    assert Run.open(run).checkpoint_of()["step"] == 99
    assert read_readout(run / READOUT)[0]["step"] == step
    assert Run.open(run).load_readout() is None


def test_an_evaluation_is_of_the_model_that_it_ranked_with(pipeline, run, monkeypatch):
    step = Run.open(run).checkpoint_of()["step"]
    before = (run / "confidence.json").read_bytes()
    better_meanwhile(run, monkeypatch, evaluating, "outcomes_of")
    found = evaluating.evaluate(EvalConfig(run=run, data=pipeline.data, num_beams=10, threads=1, device="cpu"))
    assert (found["step"], found["how"]["step"]) == (step, step)
    assert (run / "confidence.json").read_bytes() == before  # `recommend` takes the best one, which this is no longer


def test_a_recommender_is_of_one_checkpoint(run, monkeypatch):
    better_meanwhile(run, monkeypatch, Run, "load_catalogue")
    known, wanted = Recommender.load(run, "cpu"), Run.open(run)
    assert wanted.checkpoint_of()["step"] == 99
    assert known.confidence is None
    assert "is not of step 99, the best one" in known.uncalibrated


# ---- what is refused


@pytest.mark.parametrize(
    ("fitted", "asked", "message"),
    [
        ([], ["--normalize", "allowed"], "`normalize` must be 'full', as the readout of .*rl was .* got 'allowed'"),
        (["--normalize", "sid"], [], "`normalize` must be 'sid', as the .* got 'full'; fit it anew .*, or remove .*"),
        ([], ["--precision", "bfloat16"], "`precision` must be 'float32', as the readout of .* got 'bfloat16'; fit it"),
    ],
)
def test_an_evaluation_must_search_as_it_was_fitted(pipeline, run, fitted, asked, message):
    confide(run, pipeline.data, *fitted)
    refused(["eval", "--run", run, "--data", pipeline.data, *asked], message, run)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-beams", 9], "`num_beams` must be at least 10"),
        (["--batch-size", 0], "`batch_size` must be at least 1"),
        (["--threads", -1], "`threads` must be 0"),
        (["--device", "cuda:99"], "`device` 'cuda:99' is not available"),
        (["--run", "/nowhere"], "/nowhere/config.json does not exist; `ugr-fast sft` makes it"),
        (["--data", "/nowhere"], "/nowhere/items.parquet does not exist"),
    ],
)
def test_settings(pipeline, more, message):
    refused(["confide", "--run", pipeline.rl, "--data", pipeline.data, *more], message, pipeline.rl)


def test_runs_and_data_that_do_not_fit(pipeline, run, tmp_path):
    other = other_items(pipeline, tmp_path)
    refused(["confide", "--run", run, "--data", other], "`data` has 'j.*' as item 0.* use the data", run)
    shutil.rmtree(run / "checkpoints")
    refused(["confide", "--run", run, "--data", pipeline.data], "has no checkpoint yet; let its training", run)


def first_users(pipeline, tmp_path, users):
    """A data folder with a valid row of so many users."""
    folder = Path(shutil.copytree(pipeline.data, tmp_path / "data"))
    path = folder / "valid.parquet"
    pq.write_table(pq.read_table(path).slice(0, users), path)
    return folder


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (1, "`data` must have 2 valid users or more, to choose and to measure; prepare it anew"),
        (2, r"`hits` must be of 5 users or more, and not all, got \d of 10 candidates, of [01] users; take more rows"),
        (8, r"`hits` must be of 5 users or more, and not all, got \d of 40 candidates, of [0-4] users; take more rows"),
    ],
)
def test_too_few_users(pipeline, run, tmp_path, users, message):
    refused(["confide", "--run", run, "--data", first_users(pipeline, tmp_path, users)], message, run)


def test_the_demo_says_so_and_goes_on(pipeline, run, tmp_path, capsys):
    first_users(pipeline, tmp_path, 8)
    demo._confide(DemoConfig(out=tmp_path, threads=1), run)
    assert "rl: its confidence stays that of the two tokens: `hits` must be of 5 users" in capsys.readouterr().err
    assert not (run / READOUT).exists()
