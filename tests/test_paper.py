"""The experiments behind docs/results.md: what is planned can be done, and tables say what the runs say."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("torch", "pyarrow", "matplotlib", "scipy", "tyro"):
    pytest.importorskip(package)
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import tyro  # noqa: E402
from evaluated import make_run  # noqa: E402
from ugr_fast import cli, data, decisions  # noqa: E402
from ugr_fast.configs import check  # noqa: E402
from ugr_fast.evidence import Evidence  # noqa: E402
from ugr_fast.recommend import Ranking  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "benches"))
import paper  # noqa: E402
import paper_baseline  # noqa: E402
import paper_evidence  # noqa: E402
import paper_figures  # noqa: E402
import paper_numbers  # noqa: E402
import paper_records  # noqa: E402
import paper_tables  # noqa: E402

SMALL = {
    "first": paper.Set("first", paper.INDUSTRIAL, 100, paper.arms(2, 1)),
    "second": paper.Set("second", paper.SCIENTIFIC, 100, paper.arms(1, names=paper.FEWER)),
}


@pytest.fixture
def sources(tmp_path):
    """Given folders: one is a data folder, one holds sequences."""
    first, second = tmp_path / "given" / "first", tmp_path / "given" / "second"
    for folder in (first, second):
        folder.mkdir(parents=True)
        np.save(folder / "embeddings.npy", np.zeros((6, 2), np.float16))
    (first / "train.parquet").touch()
    pq.write_table(pa.table({"user": [7, 9], "items": [[0, 1, 2, 3], [5, 4]]}), second / "sequences.parquet")
    pq.write_table(pa.table({"item": range(6), "title": list("abcdef")}), second / "items.parquet")
    return tmp_path / "given"


def test_every_step_is_a_command_with_settings_that_hold_and_comes_after_what_it_needs(sources, tmp_path):
    todo = paper.steps(tmp_path / "out", sources, SMALL)
    made = set()
    for step in todo:
        name, *arguments = step.command
        check(tyro.cli(cli.COMMANDS[name][0], args=arguments))
        assert {*step.needs, *([step.copies] if step.copies else [])} <= made
        made.add(step.folder)
    assert len({(step.folder, step.name) for step in todo}) == len(todo)
    assert {step.folder.name for step in todo if step.folder.parent.name == "first" and step.name == "eval"} == {
        *(f"{arm}-{seed}" for arm in paper.MAIN for seed in (0, 1)), *(f"{arm}-0" for arm in paper.REST)
    }  # fmt: skip


def test_the_last_update_is_measured_on_a_copy_of_its_run(sources, tmp_path):
    each = paper.Set("first", paper.INDUSTRIAL, 100, paper.arms(1, names=("sft", "ugr", "ugr-last")))
    todo = paper.steps(tmp_path / "out", sources, {"first": each})
    *_, last = todo
    assert [step.folder.name for step in todo].count("ugr-last-0") == 1
    assert (last.name, last.copies.name) == ("eval", "ugr-0")
    assert last.command[-2:] == ("--checkpoint", "last")
    assert [arm for arm in paper_numbers.NAMES if not paper.trains(arm)] == [*paper.LASTS, *(
        f"{arm}{kind}" for kind in paper.CONFIDE for arm in ("sft", "ugr"))]  # fmt: skip


def test_sequences_become_a_data_folder_split_leave_one_out(sources, tmp_path):
    paper.leave_one_out(sources / "second", tmp_path / "data")
    found = data.load(tmp_path / "data")
    rows = {
        split: [(list(each.history(row)), int(each.item[row])) for row in range(len(each))]
        for split, each in (("train", found.train), ("valid", found.valid), ("test", found.test))
    }
    assert rows == {"train": [([0], 1)], "valid": [([0, 1], 2)], "test": [([0, 1, 2], 3), ([5], 4)]}


def step(folder, name="train", needs=(), done=False):
    if done:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "costs.json").write_text(json.dumps({name: {"command": [], "seconds": 1.0, "wall": 1.0}}))
    return paper.Step(folder, name, ("doctor",), tuple(needs))


def test_steps_run_when_what_they_need_is_done_and_never_again(tmp_path, monkeypatch):
    a, b, c = (tmp_path / "set" / name for name in "abc")
    todo = [step(a, done=True), step(b), step(b, "eval"), step(c, needs=[a]), step(c, "eval", needs=[b])]
    order, together = [], threading.Barrier(2, timeout=20)

    def note(one):
        if one.name == "train":
            together.wait()  # b and c train at the same time, or this fails
        order.append(str(one))
        return 0.0

    monkeypatch.setattr(paper, "perform", note)
    paper.do(todo, jobs=2)
    assert sorted(order[:2]) == ["set/b train", "set/c train"]
    assert order[2:] == ["set/b eval", "set/c eval"]


def test_a_real_command_leaves_its_cost_and_a_failing_one_stops_everything(tmp_path):
    folder = tmp_path / "set" / "run-0"
    folder.mkdir(parents=True)
    good = paper.Step(folder, "look", ("doctor", "--json"))
    bad = paper.Step(folder, "fall", ("eval", "--run", str(tmp_path / "nowhere"), "--data", str(tmp_path)))
    never = paper.Step(folder, "never", ("doctor",))
    with pytest.raises(SystemExit, match=r"set/run-0 fall failed, exit 2.*see .*run-0-fall\.log"):
        paper.do([good, bad, never], jobs=1)
    assert [*paper.costs(folder)] == ["look"]
    assert paper.costs(folder)["look"]["seconds"] > 0
    assert "ugr-fast:" in (tmp_path / "set" / "logs" / "run-0-fall.log").read_text()


def test_a_copy_of_a_run_has_nothing_that_was_found_of_it(tmp_path):
    source = make_run(tmp_path / "sft-0")
    (source / "costs.json").write_text("{}")
    (source / "readout.safetensors").touch()
    paper.copy_run(source, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"config.json", "best.json", "metrics.jsonl"}


@pytest.fixture
def runs(tmp_path):
    """Three seeds of SFT and of UGR, and one of a readout, evaluated."""
    out = tmp_path / "industrial"
    for seed in range(3):
        make_run(out / f"sft-{seed}", seed=seed)
        make_run(out / f"ugr-{seed}", "rl", seed=seed, skill=1.0)
    make_run(out / "ugr-readout-0", "rl", seed=0)
    make_run(out / "ugr-9", "rl", seed=9)  # not finished
    for folder in out.iterdir():
        if folder.name != "ugr-9":
            cost = {"command": ["eval", "--run", str(folder)], "seconds": 1800.0, "wall": 1800.0}
            (folder / "costs.json").write_text(json.dumps({"train": cost, "eval": cost}))
    return paper_tables.load(tmp_path, "industrial")


def test_tables_say_what_the_runs_say(runs, tmp_path):
    assert {arm: [*of] for arm, of in runs.items()} == {"sft": [0, 1, 2], "ugr": [0, 1, 2], "ugr-readout": [0]}
    values = [decisions.ndcg(run.rank).mean() for run in runs["ugr"].values()]
    row = next(line for line in paper_tables.accuracy(runs).splitlines() if "| UGR as released" in line)
    assert f"{np.mean(values):.4f}".lstrip("0") in row
    for make in paper_tables.TABLES.values():
        lines = make(runs).splitlines()
        assert len({line.count("|") for line in lines}) == 1
    cost = paper_tables.cost({"industrial": runs, "scientific": {"sft": runs["sft"]}})
    assert "| industrial | 7 | 3.50 | 0.00 | 3.50 | 7.00 |" in cost
    assert "| all |  | 5.00 | 0.00 | 5.00 | 10.00 |" in cost


def test_sasrec_stands_beside_them_where_it_was_measured(runs, tmp_path):
    assert paper_tables.load_sasrec(tmp_path, "industrial") == []
    found = [{"test": {f"{kind}@{k}": 0.1 * seed for kind, k in paper_tables.COLUMNS}} for seed in (1, 2)]
    (tmp_path / "sasrec-industrial.json").write_text(json.dumps({"runs": found}))
    rows = paper_tables.accuracy(runs, paper_tables.load_sasrec(tmp_path, "industrial")).splitlines()
    assert [row.split(" | ")[:3] for row in rows if "SASRec" in row] == [["| SASRec", "2", ".1500 ± .6353"]]
    assert not any("SASRec" in row for row in paper_tables.accuracy(runs).splitlines())


def test_a_difference_is_of_the_same_users_and_seeds(runs):
    mean, users, seeds = paper_numbers.difference(runs, "ugr", "sft")
    by_seed = [
        (decisions.ndcg(runs["ugr"][seed].rank) - decisions.ndcg(runs["sft"][seed].rank)).mean() for seed in range(3)
    ]
    assert mean == pytest.approx(np.mean(by_seed))
    half = 4.302653 * np.std(by_seed, ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert seeds == pytest.approx((mean - half, mean + half), rel=1e-6)
    assert users[0] < mean < users[1]
    alone = paper_numbers.difference(runs, "ugr-readout", "ugr")
    assert np.isnan(alone[2]).all()


def test_a_readout_is_measured_on_re_ranked_lists(runs, tmp_path):
    def said(run):
        return decisions.read_outcomes(tmp_path / "industrial" / run / "outcomes-test.safetensors")[1]

    outcomes, run = said("ugr-readout-0"), runs["ugr-readout"][0]
    weight = run.test["decisions"]["rerank"]["confidence"]["weight"]
    np.testing.assert_array_equal(run.rank, decisions.reranked(outcomes, outcomes.said("confidence"), weight))
    np.testing.assert_array_equal(runs["ugr"][0].rank, said("ugr-0").rank)


def test_records_say_what_the_runs_say_and_name_no_folder_of_the_machine(runs, tmp_path):
    paper_records.write(tmp_path / "records", "industrial", runs)
    kept = paper_tables.load(tmp_path / "records", "industrial")
    assert {arm: [*of] for arm, of in kept.items()} == {arm: [*of] for arm, of in runs.items()}
    for make in paper_tables.TABLES.values():
        assert make(kept) == make(runs)
    assert str(tmp_path) not in (tmp_path / "records" / "industrial.json").read_text()
    assert kept["sft"][1].costs["eval"]["command"] == ["eval", "--run", "industrial/sft-1"]


def test_records_of_other_runs_stay_and_of_the_same_are_replaced(runs, tmp_path, monkeypatch):
    old = {"sft": {0: runs["ugr"][0], 7: runs["sft"][1]}, "grpo": runs["sft"]}
    paper_records.write(tmp_path / "records", "industrial", old)
    arguments = ["paper_records.py", "--out", str(tmp_path), "--into", str(tmp_path / "records")]
    monkeypatch.setattr(sys, "argv", arguments)
    paper_records.main()
    kept = paper_records.read(tmp_path / "records", "industrial")
    assert {arm: sorted(of) for arm, of in kept.items()} == {
        "grpo": [0, 1, 2], "sft": [0, 1, 2, 7], "ugr": [0, 1, 2], "ugr-readout": [0],
    }  # fmt: skip
    np.testing.assert_array_equal(kept["sft"][0].rank, runs["sft"][0].rank)


def changed(run, **changes):
    return replace(run, test={**run.test, **changes})


def test_ends_are_compared_seed_by_seed(runs):
    last = {arm: [line["ndcg@10"] for line in (run.valid[-1] for run in runs[arm].values())] for arm in ("sft", "ugr")}
    assert paper_tables.ends(runs, "ugr", "sft") == pytest.approx(np.subtract(last["ugr"], last["sft"]).tolist())
    few = {**runs, "grpo": {1: runs["sft"][1]}}
    assert paper_tables.ends(few, "ugr", "grpo") == pytest.approx([last["ugr"][1] - last["sft"][1]])
    assert paper_tables.ends(few, "grpo", "grpo") == paper_tables.ends(runs, "ugr", "grpo") == []


def test_what_is_undefined_is_left_empty_and_a_single_seed_has_no_interval(runs):
    one = runs["ugr"][0]
    levels = {name: {"user": {stage: {**values, "auroc": None, "aurc": None}
              for stage, values in one.test[name]["user"].items()}} for name in paper_tables.SOURCES}  # fmt: skip
    undefined = {"sft": {0: runs["sft"][0]}, "ugr": {0: changed(one, trained=True, **levels)}}
    *_, likelihood = paper_tables.confidence(undefined).splitlines()
    assert likelihood.endswith("|  |  |")
    assert paper_tables.aurc_difference(undefined).splitlines()[-1] == "| UGR as released |  |  |"
    for make in paper_tables.TABLES.values():
        assert "± |" not in make(undefined)


def test_a_promise_says_who_gave_it_and_how_often_it_was_broken(runs):
    def promise(threshold, realised):
        return {"k": 1, "max_risk": 0.6, "threshold": threshold, "calibration": {"share": 0.1, "risk": 0.5},
                "realised": {"share": 0.1, "risk": realised}}  # fmt: skip

    made = [promise(0.3, 0.7), promise(None, None), promise(0.4, None)]
    told = {"sft": {seed: changed(runs["sft"][seed], promises=[each]) for seed, each in enumerate(made)}}
    assert paper_tables.promises(told).splitlines()[2:] == ["| SFT | 0.6 | 1 | 2 of 3 | 10% | .500 | .700 | 1 of 1 |"]
    told = {"sft": {0: changed(runs["sft"][0], promises=[promise(None, None)])}}
    assert len(paper_tables.promises(told).splitlines()) == 2


def test_runs_of_other_users_are_not_compared_nor_kept_together(runs, tmp_path):
    other = replace(runs["ugr"][1], users=runs["ugr"][1].users[::-1])
    mixed = {**runs, "ugr": {**runs["ugr"], 1: other}}
    for make in (lambda: paper_numbers.difference(mixed, "ugr", "sft"),
                 lambda: paper_records.write(tmp_path / "records", "industrial", mixed)):  # fmt: skip
        with pytest.raises(ValueError, match="must be of the same users, and some were evaluated on other data"):
            make()
    assert not (tmp_path / "records").exists()


def test_tables_go_between_their_marks_and_those_that_nobody_made_stay():
    text = "a\n<!-- paper: cost -->\nold\n<!-- end -->\nb <!-- paper: industrial sid --><!-- end -->"
    filled = paper_tables.filled(text, {"cost": "| new |", "industrial sid": "1"})
    assert filled == (
        "a\n<!-- paper: cost -->\n| new |\n<!-- end -->\nb <!-- paper: industrial sid -->\n1\n<!-- end -->"
    )
    assert paper_tables.filled(filled, {"cost": "| new |", "industrial sid": "1"}) == filled
    assert paper_tables.filled(filled, {}) == filled
    with pytest.raises(ValueError, match="names the table 'industrial costs', which is none of cost, industrial acc"):
        paper_tables.filled("<!-- paper: industrial costs --><!-- end -->", {})


def paired_with(records, name):
    return lambda runs: paper_tables.paired(runs, paper_tables.load_baseline(records, name))


def test_runs_are_compared_with_a_baseline_that_has_no_seed(runs, tmp_path):
    assert paper_tables.load_baseline(tmp_path, "industrial") is None
    users = runs["sft"][0].users
    np.savez(tmp_path / "baseline-industrial.npz", rank=np.zeros(len(users), np.int8), users=users)
    [row] = [line for line in paired_with(tmp_path, "industrial")(runs).splitlines() if line.startswith("| SFT |")]
    below = np.mean([decisions.ndcg(run.rank).mean() for run in runs["sft"].values()]) - 1  # which is always right
    assert row.split(" | ")[7] == paper_tables.short(below, sign=True)


def test_the_baseline_is_placed_where_it_ranks_the_next_item():
    """Of twelve items that look alike, 1 followed 0 and 2 followed 1; the last is beyond the first ten."""
    rows = data.Rows.of([[0], [1], [0]], [1, 2, 11])
    dataset = SimpleNamespace(train=data.Rows.of([[0], [0, 1]], [1, 2], users=[5, 5]), test=rows)
    assert paper_baseline.places(dataset, np.ones((12, 3))).tolist() == [0, 0, -1]


def test_the_page_has_a_place_for_every_table_that_is_kept():
    root = Path(paper_tables.__file__).parent
    page, kept = (
        (root.parent / "docs" / "results.md").read_text(encoding="utf-8"),
        [path for path in (root / "records").glob("*.npz") if not path.stem.startswith("baseline-")],
    )
    assert kept
    for path in kept:
        runs = paper_tables.load(path.parent, path.stem)
        tables = {**paper_tables.TABLES, "paired": paired_with(path.parent, path.stem)}
        made = {f"{path.stem} {kind}": make(runs) for kind, make in tables.items() if kind != "accuracy"}
        assert paper_tables.filled(page, made) == page  # as the records have it


def of_user(runs, arm, source, name):
    """Mean over seeds of what the confidence of the first item, or its likelihood, is worth."""
    return np.mean([run.test[source]["user"]["before"][name] for run in runs[arm].values()])


def measured(runs, arm):
    """Mean test NDCG@10."""
    return np.mean([decisions.ndcg(run.rank).mean() for run in runs[arm].values()])


def gap(runs, arm, other):
    """Write a difference in NDCG@10 and its interval over seeds."""
    mean, _, seeds = paper_numbers.difference(runs, arm, other)
    return f"{paper_tables.short(mean, sign=True)} {paper_tables.between(*seeds)}"


def among(runs, records, name):
    """The runs, and the baseline as an arm that is the same for every seed."""
    return {**runs, paper_tables.COSINE: dict.fromkeys(range(5), paper_tables.load_baseline(records, name))}


def cells(make, runs, arm):
    """Return a row of a table of the page."""
    [line] = [line for line in make(runs).splitlines() if line.startswith(f"| {paper_numbers.NAMES[arm]} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def short(value, digits=2):
    return paper_tables.short(float(value), digits)


def words_of(first, second, larger, films):
    """What is said in words of two sets, a larger model and MovieLens, by their records: on the page, and in README."""
    both = (first, second)
    bare = [{arm: of for arm, of in runs.items() if arm in paper_numbers.NAMES} for runs in (*both, larger)]
    training = [
        {arm: cells(paper_tables.training, runs, arm) for arm in ("grpo", "ranking", "ugr")} for runs in bare[:2]
    ]
    ends = [", ".join(row[4] for row in rows.values()) for rows in training]
    below = [rows["ugr"][5].replace("−", "") for rows in training]
    wide_below = cells(paper_tables.training, bare[2], "ugr")[5].replace("−", "")
    entropies = [[rows[arm][8] for rows in training] for arm in ("ugr", "grpo")]
    alone = [
        paper_tables.short(paper_numbers.difference(first, f"ugr-{part}", "sft")[0], sign=True)
        for part in ("reward", "weight", "confidence")
    ]
    tokens, likelihood = ([of_user(runs, "ugr", source, "auroc") for runs in both] for source in paper_tables.SOURCES)
    ece = [short(of_user(runs, "ugr", "confidence", "ece")) for runs in both]
    best = [[of_user(runs, "sft-evidence", "confidence", name) for runs in both] for name in ("ece", "brier_skill")]
    surest = [cells(paper_tables.acting, runs, "ugr")[3].split(" ")[0] for runs in bare[:2]]
    aurocs = "{} and {} against {} and {}".format(*map(short, (*tokens, *likelihood)))
    changed = [
        paper_numbers.difference(first, f"ugr-{name}", "sft")[0]
        for name in ("sum", "logit", "brier", "allowed", "stochastic", "similar")
    ]
    least, most = (paper_tables.short(bound(changed), sign=True) for bound in (min, max))
    falls = [cells(paper_tables.training, bare[0], f"ugr-{name}")[4] for name in ("similar", "brier")]
    drawn = cells(paper_tables.acting, bare[0], "ugr-stochastic")[2].split(" ")[0]
    cosine = paper_tables.COSINE
    ahead = [short(-paper_numbers.difference(runs, "sft", cosine)[0], 4) for runs in both]
    level, behind = (gap(runs, "sft-evidence", cosine) for runs in both)
    reached = [[short(measured(runs, arm), 3) for runs in both] for arm in ("ugr", "sft-evidence")]
    return [
        f"differs from SFT by {' and '.join(gap(runs, 'ugr', 'sft') for runs in both)} in NDCG@10",
        f"GRPO with a 0/1 reward by {' and '.join(gap(runs, 'ugr', 'grpo') for runs in both)};",
        "(its reward {}, its weight {}, its confidence {} to SFT on industrial)".format(*alone),
        f"UGR with one thing changed (between {least} and {most})",
        f"changes valid NDCG@10 by {falls[0]} from start to end, which UGR's own reward beside it does not prevent; "
        f"the brier objective changes it by {falls[1]} |",
        f"AUROC {short(of_user(first, 'ugr-stochastic', 'confidence', 'auroc'))} on industrial",
        f"({short(float(drawn))} on industrial with drawn beams)",
        f"({ends[0]} on industrial; {ends[1]} on scientific)",
        f"UGR ends {below[1]} below GRPO on scientific, in all five seeds, and {wide_below} below it with the larger",
        f"almost four times as large ({gap(larger, 'ugr', 'sft')} to its SFT)",
        "{} and {} nats against {} and {}".format(*entropies[0], *entropies[1]),
        f"user-level ECE {' and '.join(ece)}, Brier skill far below 0, AUROC {' and '.join(map(short, tokens))},",
        f"which needs no training, has {' and '.join(map(short, likelihood))}",
        f"the fifth by likelihood {' and '.join(short(float(value)) for value in surest)}",
        f"(by {' and '.join(ahead)} of SFT's NDCG@10); re-ranked lists are level with it on industrial ({level}) "
        f"and behind it on scientific ({behind})",
        f"its last update differs from its best by {' and '.join(gap(runs, 'ugr-last', 'ugr') for runs in both)}.",
        f"has ECE {' and '.join(short(value, 3) for value in best[0])}, "
        f"Brier skill {' and '.join(map(short, best[1]))},",
        f"its order gains {' and '.join(gap(runs, 'sft-evidence', 'sft') for runs in both)} in NDCG@10 "
        f"(on MovieLens, without texts, {gap(films, 'sft-evidence', 'sft')})",
    ], [
        f"(NDCG@10 {' and '.join(reached[0])}, differences below .001 within the noise)",
        f"(AUROC {aurocs})",
        f"re-ranked by it, the same lists have NDCG@10 {' and '.join(reached[1])},",
    ]  # fmt: skip


def test_pages_say_in_words_what_the_records_say():
    root = Path(paper_tables.__file__).parents[1]
    sets, records = ("industrial", "scientific", "industrial-256", "movielens"), root / "benches" / "records"
    said = words_of(*(among(paper_tables.load(records, name), records, name) for name in sets))
    for name, sentences in zip(("docs/results.md", "README.md"), said, strict=True):
        page = " ".join((root / name).read_text(encoding="utf-8").split())
        assert [sentence for sentence in sentences if sentence not in page] == []


def test_figures_are_drawn_of_what_there_is(runs):
    drawn = {picture.name: picture.png for picture in paper_figures.draw_all(runs, "industrial")}
    assert [*drawn] == [f"paper-industrial-{name}" for name in ("training", "gains", "answered")]
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    alone = paper_figures.draw_all({"sft": runs["sft"]}, "industrial")
    assert [picture.name for picture in alone] == ["paper-industrial-answered"]


def test_curves_begin_with_the_fine_tuned_model(runs):
    ugr, start = paper_numbers.curves(runs, "ugr"), [max(run.curve("ndcg@10").values()) for run in runs["sft"].values()]
    logged = [run.curve("ndcg@10") for run in runs["ugr"].values()]
    for curve, first, own in zip(ugr, start, logged, strict=True):
        assert curve == {0: first, **own}


def test_parts_of_a_readout_are_measured_on_users_that_it_was_not_fitted_to():
    rng = np.random.default_rng(0)
    users, beams = 400, paper_evidence.BEAMS
    scores = np.sort(rng.normal(-5, 1, (users, beams)).astype(np.float32))[:, ::-1].copy()
    knows = rng.normal(size=(users, beams))
    target = np.argmax(scores + 2 * knows + rng.gumbel(size=scores.shape), axis=1)
    rank = np.where(rng.random(users) < 0.7, target, -1)
    outcomes = decisions.Outcomes(scores, np.full(scores.shape, np.nan, np.float32), rank)
    states = np.stack([knows, rng.normal(size=scores.shape)], 2).astype(np.float32)
    absent = np.zeros((users, beams, 1), np.int64)
    ranking = Ranking(absent, scores, outcomes.confidence, absent[..., 0], states)
    gains = [paper_evidence.measured(ranking, outcomes, outcomes.hits, [column])[0] for column in (0, 1)]
    assert gains[0] > 0.1
    assert abs(gains[1]) < 0.02


def test_a_part_takes_its_own_columns():
    train = data.Sequences(np.array([0, 2]), np.array([0, 1]), np.array([0]))
    evidence = Evidence.build(train, 2, np.eye(2))
    taken = {name: paper_evidence.columns(4, evidence, *part) for name, part in paper_evidence.PARTS.items()}
    assert taken["the state"] == [0, 1, 2, 3]
    assert taken["the state, counts, repeated"] == [0, 1, 2, 3, 4, 5, 6]
    assert taken["all evidence without the state"] == [4, 5, 6, 7, 8, 9]
    assert sorted(taken["the state and all evidence"]) == [*range(10)]


@pytest.mark.slow
def test_the_quick_version_runs_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    arguments = ["paper.py", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    paper.main()
    first = {path: path.read_bytes() for path in tmp_path.rglob("costs.json")}
    assert "core-hours" in capsys.readouterr().out
    paper.main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("costs.json")} == first
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--out", str(tmp_path)])
    paper_tables.main()
    assert "UGR + readout" in capsys.readouterr().out
