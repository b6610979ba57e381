from __future__ import annotations

import functools
import json
import operator
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from evaluated import TITLES, make_run
from pipeline import call
from safetensors.numpy import save_file
from ugr_fast import report
from ugr_fast.configs import ReportConfig
from ugr_fast.decisions import read_outcomes, write_outcomes
from ugr_fast.report import comparison, confidence, decisions, page, settings, training
from ugr_fast.report.blocks import Block, gallery
from ugr_fast.report.figures import DARK, INK, MUTED, PAPER, RUN_COLOURS
from ugr_fast.report.read import read_runs
from ugr_fast.report.shape import EVALUATION, Each, _parts, check_shape
from ugr_fast.report.tables import html_table, markdown_table


@pytest.fixture
def runs(tmp_path):
    return make_run(tmp_path / "sft"), make_run(tmp_path / "rl", "rl", seed=1, skill=1.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of one fine-tuned and one UGR run, written once for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("runs")
    runs = make_run(folder / "sft"), make_run(folder / "rl", "rl", seed=1, skill=1.0)
    assert report.write(ReportConfig(runs=runs, out=folder / "report")) == folder / "report"
    return folder / "report"


class Page(HTMLParser):
    """What a browser would find: open tags, ids, references, text."""

    VOID = frozenset({"meta", "input", "path", "use", "rect", "br"})

    def __init__(self, text):
        super().__init__()
        self.stack, self.ids, self.refs, self.tags, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.refs += [value for name, value in attrs if name in ("href", "xlink:href", "src", "for")]
        self.refs += [found for _, value in attrs for found in re.findall(r"url\((#[^)]*)\)", value or "")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_table_holds_the_numbers_of_the_evaluations(runs):
    rows = report.table(runs)
    names = [row[0] for row in rows]
    assert names == [
        "model (beam width 20)",
        "popularity",
        "last-item Markov",
        "sft (supervised fine-tuning)",
        "rl (UGR, brier confidence)",
    ]
    assert rows[1][1:] == ["0.0123"] * 5 + ["–"] * 3
    assert rows[2][1] == "0.0456"
    for row, folder, source, mark in ((rows[3], runs[0], "likelihood", "†"), (rows[4], runs[1], "confidence", "")):
        found = json.loads((folder / "eval-test.json").read_text())
        ranking = [f"{found['ranking'][key]:.4f}" for key in ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")]
        user, half = found[source]["user"]["before"], found["decisions"]["reject"][source]["hr@10"]["value"][9]
        assert row[1:] == [*ranking, f"{user['ece']:.3f}{mark}", f"{user['auroc']:.3f}{mark}", f"{half:.4f}{mark}"]


def test_markdown_table_marks_the_best_as_shown():
    rows = [
        ["m", "HR@10", "ECE", "AUROC"],
        ["a", "0.1", "0.30†", "–"],
        ["b", "0.2", "0.4", "0.6"],
        ["c", "0.2", "–", "–"],
    ]
    lines = markdown_table(rows, bold=True).splitlines()
    assert lines[2:] == [
        "| a | 0.1 | **0.30†** | – |",  # a lower ECE is better
        "| b | **0.2** | 0.4 | 0.6 |",  # nothing to compare 0.6 with
        "| c | **0.2** | – | – |",
    ]
    assert "**" not in markdown_table(rows)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "UGR, brier confidence"),
        ({"reward": "match", "difficulty": "none", "confidence": "none"}, "GRPO, 0/1 reward"),
        ({"reward": "ranking", "difficulty": "none", "confidence": "none"}, "ranking reward, no confidence"),
        ({"difficulty": "none"}, "uncertainty-weighted reward, brier confidence"),
        ({"scale": "none", "lora": 16}, "UGR, brier confidence, scale none, lora 16"),
        ({"difficulty": "discount"}, "uncertainty-weighted reward, difficulty by discount, brier confidence"),
        ({"confidence": "none"}, "uncertainty-weighted reward, difficulty weight, no confidence"),
    ],
)
def test_runs_are_named_in_words(tmp_path, settings, words):
    rows = report.table([make_run(tmp_path / "x", "rl", **settings)])
    assert rows[-1][0] == f"x ({words})"
    assert rows[-1][6].endswith("†") == (settings.get("confidence") == "none")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": None, "lora": 0}, "supervised fine-tuning"),
        ({"model": "models/smollm2", "lora": 16}, "supervised fine-tuning of smollm2, lora 16"),
        ({"model": "models/smollm2/"}, "supervised fine-tuning of smollm2"),
    ],
)
def test_a_fine_tuned_language_model_is_named(tmp_path, settings, words):
    assert report.table([make_run(tmp_path / "x", "sft", **settings)])[-1][0] == f"x ({words})"


def test_runs_whose_weights_were_chosen_from_others_stand_at_their_own_places(runs, monkeypatch):
    """An evaluation from before a weight was added is compared with one from after."""

    def fewer(found):
        ranked = found["decisions"]["rerank"]
        for source in ("confidence", "random"):
            ranked[source] |= {"by_weight": ranked[source]["by_weight"][1:-2], "weight": ranked["weights"][1]}
        ranked["weights"] = ranked["weights"][1:-2]
        return found

    for run in runs:
        edit(run / "eval-test.json", lambda found: found | {"trained": True})
    edit(runs[0] / "eval-test.json", fewer)
    drawn = []
    monkeypatch.setattr(decisions, "draw", lambda *args: drawn.append(args[-1]))
    decisions.rerank_picture(read_runs(runs))
    [axes] = drawn[0].axes
    places = {len(line.get_xdata()): line.get_xdata().tolist() for line in axes.lines}
    count = len(axes.get_xticks())
    assert places == {1: places[1], count - 3: [*range(1, count - 2)], count: [*range(count)]}
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["0", ".01", ".02"]


def test_a_run_that_never_got_better_than_its_start_says_so(runs):
    edit(runs[1] / "eval-test.json", lambda found: found | {"step": 0, "trained": False, "signal": "likelihood"})
    assert report.table(runs)[-1][6].endswith("†")  # the confidence tokens of update 0 are untrained
    assert any("Evaluated at update 0" in text for text in comparison.headline(read_runs(runs)))


def test_a_confidence_that_is_read_off_the_states_is_called_so(runs, monkeypatch):
    """Evaluations from before there were any lack the key, and mean the two tokens."""
    monkeypatch.setattr(confidence, "gallery", lambda *_: Block("", ""))
    for name in ("reliability_picture", "histogram_picture", "risk_picture"):
        monkeypatch.setattr(confidence, name, lambda *_: None)

    def said():
        return "\n".join(block.markdown for block in confidence.section(read_runs(runs)))

    assert "readout" not in said()
    assert "† Untrained confidence tokens." in said()
    edit(runs[0] / "eval-test.json", lambda found: found | {"trained": True, "readout": True})
    edit(runs[1] / "eval-test.json", lambda found: found | {"readout": False})
    assert [row[0] for row in report.table(runs)][3:] == [
        "sft (supervised fine-tuning, readout)",
        "rl (UGR, brier confidence)",
    ]
    assert "fitted to valid rows: sft. By the two confidence tokens: rl." in said()
    assert "ntrained" not in said()
    edit(runs[1] / "eval-test.json", lambda found: found | {"readout": True})
    assert "fitted to valid rows: sft, rl." in said()
    assert "tokens" not in said() + report.FOOTNOTE


def test_beam_width_stands_beside_each_run_where_they_differ(runs):
    edit(runs[1] / "eval-test.json", lambda found: found | {"num_beams": 50})
    rows = report.table(runs)
    assert [row[0] for row in rows][3:] == [
        "sft (supervised fine-tuning), beam width 20",
        "rl (UGR, brier confidence), beam width 50",
    ]


def test_folders_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / name / "rl", "rl") for name in ("a", "b")]
    assert [row[0].split(" ")[0] for row in report.table(folders)][3:] == ["a/rl", "b/rl"]


def test_missing_values_are_dashes(runs):
    def drop(found):
        found["ranking"]["hr@5"] = float("nan")
        found["confidence"]["user"]["before"]["auroc"] = None
        return found

    edit(runs[1] / "eval-test.json", drop)
    row = report.table(runs)[-1]
    assert (row[2], row[7]) == ("–", "–")


def test_intervals_stand_below_the_values(runs):
    rows = comparison.comparison_table(read_runs(runs))
    found = json.loads((runs[1] / "eval-test.json").read_text())
    value, (low, high) = found["ranking"]["ndcg@10"], found["intervals"]["ndcg@10"]
    assert rows[-1][5] == f"{value:.4f} ({low:.4f}–{high:.4f})"
    assert rows[-2][6].startswith(report.table(runs)[-2][6] + " (")  # the mark stays at the number
    assert f"{value:.4f}</b><small>{low:.4f}–{high:.4f}</small>" in html_table(rows, "x", bold=True)
    assert [row[1:] for row in rows[1:3]] == [row[1:] for row in report.table(runs)[1:3]]  # baselines have none


def test_differences_are_paired_and_told_only_beyond_chance():
    rng = np.random.default_rng(0)
    theirs = rng.random(300)
    better = comparison.difference(theirs + 0.01, theirs)  # a constant: users differ far more than runs do
    assert better.value == pytest.approx(0.01)
    assert (better.low, better.high) == pytest.approx((0.01, 0.01))
    assert better.verdict == "higher"
    assert comparison.difference(theirs, theirs + 0.01).verdict == "lower"
    assert comparison.difference(theirs, theirs).verdict == comparison.NOT_TOLD
    noise = rng.normal(0, 1, 300)
    found = comparison.difference(theirs + noise - noise.mean() + 0.01, theirs)
    assert found.low < 0 < found.high
    assert found.verdict == comparison.NOT_TOLD
    error = noise.std() / np.sqrt(300)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_runs_are_compared_on_the_same_users(runs):
    sft, rl = read_runs(runs)
    cells = comparison.paired_table([sft, rl])[1]
    for cell, ours, theirs in ((cells[1], rl.ndcg10, sft.ndcg10), (cells[2], rl.hit10, sft.hit10)):
        assert cell.startswith(f"{(ours - theirs).mean():+.4f}".replace("-", "−"))
    assert rl.ndcg10.mean() == pytest.approx(rl.found["ranking"]["ndcg@10"])
    assert comparison.paired_table([sft, sft])[1][3] == comparison.NOT_TOLD


def test_gains_of_reranking_are_told_only_beyond_chance(runs):
    def gain(low, high):
        def change(found):
            found["decisions"]["rerank"]["confidence"] |= {"weight": 0.5, "gain": [(low + high) / 2, low, high]}
            return found

        edit(runs[1] / "eval-test.json", change)
        return next(row for row in decisions.rerank_table(read_runs(runs)) if row[0] == "rl: confidence")

    assert gain(-0.01, 0.03)[4:] == ["+0.0100 (−0.0100 to +0.0300)", comparison.NOT_TOLD]
    assert gain(0.01, 0.03)[5] == "higher"
    assert gain(-0.03, -0.01)[5] == "lower"


def test_promises_say_what_was_kept(runs):
    header, *rows = decisions.promise_table(read_runs(runs[1:]))
    assert header[-4:] == ["risk, valid", "answered", "realised risk", "in words"]
    assert [row[-4:] for row in rows] == [
        ["0.410 (at most 0.490)", "27.5%", "0.450", "within what was asked"],
        ["0.410 (at most 0.490)", "25.0%", "0.460", "above what was asked"],
        ["0.410 (at most 0.490)", "100.0%", "0.700", "within what was asked"],
        ["–", "0.0%", "–", "nobody answered (no candidate passes)"],
    ]
    assert "at most 45% of those answered" in decisions.headline(read_runs(runs)[1])  # the boldest that answers anybody
    edit(runs[1] / "eval-test.json", lambda found: found | {"promises": found["promises"][-1:]})
    assert "nobody is answered" in decisions.headline(read_runs(runs)[1])


def test_the_time_of_an_update_is_split(runs):
    times = training.step_times(read_runs(runs)[1])
    assert times == pytest.approx({"rollout": 0.25, "reward": 0.05, "update": 0.15, "other": 0.05})
    assert training.time_table({"rl": times})[1] == ["rl", "0.500", "50.0%", "10.0%", "30.0%", "10.0%"]
    assert "other" not in training.time_table({"rl": times | {"other": 0.0}})[0]
    assert training.step_times(read_runs(runs)[0]) == {}  # fine-tuning has no parts


def test_report_has_every_section_in_both_forms(written):
    text, page = ((written / name).read_text() for name in ("report.md", "report.html"))
    for section in ("Comparison", "Training", "Confidence", "Decisions", "Promises", "Users", "Settings"):
        assert f"\n## {section}\n" in text
        assert f">{section}</h2>" in page
    for cell in ("last-item Markov", "rl (UGR, brier confidence)", "0.0456", "threads", "uncertainty_weighted"):
        assert cell.replace("_", r"\_") in text
        assert cell in page
    assert report.FOOTNOTE in text
    best = max(report.table([written.parent / name for name in ("sft", "rl")])[1:], key=lambda row: float(row[5]))[5]
    assert f"<b>{best}</b><small>" in page
    assert f"**{best}** (" in text


def test_figures_are_there(written):
    names = set(re.findall(r"\]\(figures/(.*?)\.png\)", (written / "report.md").read_text()))
    assert {path.name for path in (written / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    assert {"sft-loss", "sft-valid-ndcg10", "rl-valid-ndcg10", "rl-valid-hr1", "rl-valid-confidence-auroc"} <= names
    assert "rl-reward" not in names  # 0 in every group: nothing to see
    assert {"rl-hit-rate", "rl-loss", "rl-time-of-an-update", "reliability-user-1-rl", "rerank"} <= names
    own = ("reliability-user", "reliability-candidate", "histogram", "risk", "reject-ndcg10", "reject-hr10")
    assert {f"{kind}-{run}" for kind in (*own, "cut-precision", "cut-recall") for run in ("0-sft", "1-rl")} <= names
    assert (written / "report.html").read_text().count("<svg ") == len(names)
    for name in names:
        assert (written / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_fine_tuning_is_a_dashed_line_beside_reinforcement_learning(runs):
    read = read_runs(runs)
    figure = training.training_figure(read, "rl", training.CURVES["rl"][0])
    line, curve = figure.axes[0].get_lines()
    assert (curve.get_label(), line.get_label()) == ("rl", "sft: best")
    assert curve.get_xdata().tolist() == [0, 25, 50, 75, 100]
    assert curve.get_ydata().tolist() == pytest.approx([0.06, 0.065, 0.07, 0.075, 0.08])
    assert set(line.get_ydata()) == {0.06}
    assert line.get_linestyle() == "--"
    assert curve.get_color() != line.get_color()


def test_validation_and_rollout_values_of_one_name_are_kept_apart(runs):
    _, run = read_runs(runs)
    assert run.series("valid.confidence_auroc")[1] == pytest.approx([0.36, 0.365, 0.37, 0.375, 0.38])
    assert set(run.series("confidence_auroc")[1]) == {0.99}


def test_html_is_well_formed_and_needs_no_network(written):
    text = (written / "report.html").read_text()
    page = Page(text.removeprefix("<!doctype html>"))
    assert page.stack == []
    assert len(page.ids) == len(set(page.ids))
    assert not set(page.tags) & {"link", "img", "iframe", "object", "embed"}
    assert {ref.lstrip("#") for ref in page.refs} <= set(page.ids)  # nothing is fetched, nothing dangles
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_figures_in_the_page_take_their_colours_from_it(written):
    text = (written / "report.html").read_text()
    drawn = text[text.index("<body>") :]
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert set(re.findall(r"var\((--\w+)\)", drawn)) <= set(re.findall(r"(--\w+):", text))


def test_titles_are_shown_as_they_are(written):
    text, page = ((written / name).read_text() for name in ("report.md", "report.html"))
    assert TITLES[3] in "".join(Page(page.removeprefix("<!doctype html>")).words)
    assert "<script" not in text
    assert re.findall(r"<script.{7}", page) == ['<script>"use s']  # the one that is ours
    assert r"&lt;script&gt;alert('x')&lt;/script&gt; &amp; co \| \*stars\* \[link\](javascript:0) \$5" in text


def test_a_digest_of_the_start_is_told_in_twelve_digits(runs):
    start = "0123456789ab" + 52 * "c"
    edit(runs[1] / "config.json", lambda found: found | {"environment": found["environment"] | {"start": start}})
    text = "".join(block.markdown for block in settings.section(read_runs(runs)))
    assert "| start | – | 0123456789ab |" in text


def test_examples_mark_hits_and_what_came_next(written):
    page = (written / "report.html").read_text()
    assert page.count('<details class="user') + page.count('<details open class="user') == 5
    assert page.count("<details open ") == 1
    assert "Next: <b>Film 4 (1904)</b>" in page
    assert "Film 4 (1904) ✓" in page
    assert "sft rank 3" in page


@pytest.fixture
def short(monkeypatch):
    """A report of one section and a figure for each run, for the tests of how it is written."""
    blocks = lambda runs, split: [*comparison.section(runs, split), gallery([*map(confidence.risk_picture, runs)])]  # noqa: E731
    monkeypatch.setattr(page, "compose", blocks)


@pytest.mark.usefixtures("short")
def test_an_older_report_is_replaced(runs, tmp_path):
    out, theirs = tmp_path / "report", [".report.new", ".report.old"]  # folders that the user happens to have
    for name in theirs:
        (tmp_path / name).mkdir()
    report.write(ReportConfig(runs=runs, out=out))
    report.write(ReportConfig(runs=runs[1:], out=out))
    assert "supervised fine-tuning" not in (out / "report.md").read_text()
    assert not list((out / "figures").glob("*sft*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*theirs, "report", "rl", "sft"]


def test_the_same_runs_make_the_same_report_and_matplotlib_is_left_as_it_was(runs, written, tmp_path):
    before = dict(mpl.rcParams)
    report.write(ReportConfig(runs=runs, out=tmp_path / "report"))
    for name in ("report.md", "report.html", "figures/rl-loss.svg"):
        assert (tmp_path / "report" / name).read_bytes() == (written / name).read_bytes()
    assert dict(mpl.rcParams) == before


@pytest.mark.usefixtures("short")
def test_a_failure_leaves_the_older_report(runs, tmp_path, monkeypatch):
    out = tmp_path / "report"
    report.write(ReportConfig(runs=runs[1:], out=out))
    before = (out / "report.html").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "page", fail)
    with pytest.raises(OSError, match="No space left"):
        report.write(ReportConfig(runs=runs, out=out))
    assert (out / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "rl", "sft"]


@pytest.mark.parametrize("names", [["notes.txt"], ["report.md", "notes.txt"]])
def test_a_folder_of_something_else_is_refused(runs, tmp_path, names):
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("mine")
    with pytest.raises(FileExistsError, match="`out`"):
        report.write(ReportConfig(runs=runs, out=out))
    assert sorted(path.name for path in out.iterdir()) == sorted(names)


@pytest.mark.parametrize(("split", "flag"), [("test", ""), ("valid", " --split valid")])
def test_a_run_without_evaluation_is_told_the_command(runs, tmp_path, split, flag):
    (runs[0] / "eval-test.json").unlink()
    command = re.escape(f"`ugr-fast eval --run {runs[0]} --data data{flag}`")
    with pytest.raises(FileNotFoundError, match=command):
        report.write(ReportConfig(runs=runs, out=tmp_path / "report", split=split))
    assert not (tmp_path / "report").exists()


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="at least one run directory"):
        report.table([])
    with pytest.raises(ValueError, match="each once"):
        report.table([runs[0], tmp_path / "rl" / ".." / "sft"])
    edit(runs[1] / "eval-test.json", lambda found: found | {"baselines": {}})
    with pytest.raises(ValueError, match="rl and sft were not"):
        report.table(runs)


def test_a_run_evaluated_by_an_older_version_is_told_the_command(runs):
    edit(
        runs[0] / "eval-test.json", lambda found: {key: found[key] for key in found if key not in ("reach", "promises")}
    )
    with pytest.raises(ValueError, match=f"lacks reach, promises; make it again with `ugr-fast eval --run {runs[0]} "):
        report.table(runs)


def test_ranks_that_do_not_fit_the_evaluation_are_told(runs):
    path = runs[1] / "outcomes-test.safetensors"
    how, told = read_outcomes(path)
    write_outcomes(path, told.take(np.s_[1:]), how)
    with pytest.raises(ValueError, match=r"outcomes-test.safetensors must be of the evaluation in eval-\*.json"):
        report.table(runs)
    for damage in (lambda: save_file({"place": np.zeros(400)}, path), lambda: path.write_bytes(b"cut off")):
        damage()
        with pytest.raises(ValueError, match=r"outcomes-test.safetensors is truncated or altered.*ugr-fast eval --run"):
            report.table(runs)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist; `ugr-fast eval --run"):
        report.table(runs)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("eval-test.json", '{"num_rows": 1', "make it again with `ugr-fast eval"),
        ("eval-test.json", "[]", "lacks how, num_rows.*ugr-fast eval"),
        ("config.json", '{"command": "rl"}', "lacks settings, environment"),
        ("config.json", '{"command": "rl", "settings": 1, "environment": {}}', "must have objects for settings"),
        ("best.json", "[]", "must be an object"),
        ("metrics.jsonl", '3\n{"step": 2}\n', "is not JSON in line 1"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n', "is not JSON in line 2"),
    ],
)
def test_altered_files_are_named(runs, name, text, message):
    (runs[1] / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        report.table(runs)
    assert str(runs[1] / name) in str(error.value)


def places(value, shape, at=()):
    """The keys that lead to every part of a value that has a shape; of a list its first entry."""
    for key, expected in _parts(value, shape).items():
        if key == 0 or isinstance(key, str):
            yield (*at, key)
            yield from places(value[key], expected, (*at, key))


def changed(value, at, how):
    """A copy that holds something else at a place, or nothing for None."""
    copy = json.loads(json.dumps(value))
    *above, key = at
    inside = functools.reduce(operator.getitem, above, copy)
    if how is None:
        del inside[key]
    else:
        inside[key] = how
    return copy


def test_an_evaluation_that_was_altered_anywhere_is_refused_by_key(tmp_path):
    run = make_run(tmp_path / "rl", "rl", num_rows=40, num_users=1)
    whole = json.loads((run / "eval-test.json").read_text())
    check_shape(whole, EVALUATION)
    for at in places(whole, EVALUATION):
        optional = at[-1] == 0 or (len(at) > 1 and isinstance(EVALUATION[at[0]], Each))
        for how in [*([] if optional else [None]), *([] if at == ("how",) else [{"x": "y"}]), [[]]]:
            with pytest.raises(ValueError, match=f"^`{re.escape('.'.join(map(str, at)))}[.`]"):
                check_shape(changed(whole, at, how), EVALUATION)


def test_an_altered_evaluation_is_one_line_that_names_file_and_key(runs, tmp_path):
    path = runs[1] / "eval-test.json"
    edit(path, lambda found: changed(found, ("decisions", "rerank", "confidence", "gain"), "lots"))
    done = call("report", *runs, "--out", tmp_path / "report")
    assert (done.code, done.err) == (
        2,
        f"ugr-fast: {path} is altered: `decisions.rerank.confidence.gain` must be a list of 3, got 'lots'; make it "
        f"again with `ugr-fast eval --run {runs[1]} --data data`\n",
    )


def test_a_report_needs_no_baseline(runs):
    for run in runs:
        edit(run / "eval-test.json", lambda found: found | {"baselines": {}})
    assert re.fullmatch(r"Highest NDCG@10: (sft|rl), 0\.\d{4}\.", comparison.headline(read_runs(runs))[0])


def test_a_run_without_logs_is_still_reported(tmp_path):
    run = make_run(tmp_path / "_odd $x$ <b>", "rl")
    (run / "best.json").unlink()
    (run / "metrics.jsonl").write_text('{"step": 1, "lo')  # cut off
    out = report.write(ReportConfig(runs=(run,), out=tmp_path / "report"))
    page = (out / "report.html").read_text()
    assert "The runs logged nothing." in page
    assert "/_odd $x$ &lt;b&gt;" in page
    assert Page(page.removeprefix("<!doctype html>")).stack == []


def test_without_matplotlib_the_error_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install ugr-fast\[plot\]"):
        report.write(ReportConfig(runs=runs, out=tmp_path / "report"))
    assert len(report.table(runs)) == 5  # tables need no figures


def test_reading_reports_needs_neither_torch_nor_matplotlib():
    code = "import sys, ugr_fast.report; sys.exit(sum(name in sys.modules for name in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def edit(path: Path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def contrast(one, other):
    """WCAG 2.2: (lighter + 0.05) / (darker + 0.05) of relative luminances."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("night", [False, True], ids=["light", "dark"])
def test_colours_stand_out_from_the_ground(night):
    shown = DARK if night else {colour: colour for colour in DARK}
    assert contrast(shown[INK], shown[PAPER]) > 7
    assert contrast(shown[MUTED], shown[PAPER]) > 4.5
    for light, dark in RUN_COLOURS.items():
        assert contrast(dark if night else light, shown[PAPER]) > 4.5  # lines, and the titles of hits


MEASURE = """
<script>
const bright = (css) => {
  const c = css.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255);
  const [r, g, b] = c.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
};
const ground = bright(getComputedStyle(document.body).backgroundColor);
const texts = [...document.querySelectorAll("main *, nav *")].filter((e) =>
  e.getClientRects().length && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
const ratios = texts.map((e) => {
  const style = getComputedStyle(e), own = bright(e.closest("svg") ? style.fill : style.color);
  return Math.max(own, ground) / Math.min(own, ground);
});
const box = document.getElementById("search"), at = () => document.getElementById("found").textContent;
const counted = (words) => { box.value = words; box.dispatchEvent(new Event("input")); return at(); };
const found = [counted("FILM 9 (1909)"), counted("")];
document.getElementById("only-misses").click();
found.push(at());
const measured = {
  width: innerWidth, reach: document.documentElement.scrollWidth, contrast: Math.min(...ratios), texts: texts.length,
  dark: matchMedia("(prefers-color-scheme: dark)").matches, found: found,
  fetched: performance.getEntriesByType("resource").map((entry) => entry.name),
  cut: [...document.querySelectorAll("figure svg")].filter((s) => s.getBoundingClientRect().right > innerWidth).length,
};
parent.postMessage(JSON.stringify(measured), "*");
</script>
"""
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<script>onmessage = (message) => { document.body.textContent = message.data; };</script>
<iframe src="report.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
"""  # no window is as narrow as a phone


@pytest.mark.parametrize(("width", "night"), [(390, False), (390, True), (1280, True)])
def test_a_browser_shows_it_whole_and_fetches_nothing(written, tmp_path, width, night):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    (tmp_path / "report.html").write_text((written / "report.html").read_text() + MEASURE)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={0 if night else 1}"]
    command = [browser, *flags, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(re.search(r"<body>\s*(\{.*\})", done.stdout)[1])
    assert ":CONSOLE" not in done.stderr
    assert (found["width"], found["dark"]) == (width, night)
    assert found["reach"] == width  # the page does not scroll sideways; tables do, in their boxes
    assert found["cut"] == 0
    assert found["fetched"] == []
    assert found["texts"] > 500
    assert found["contrast"] >= 4.5
    examples = json.loads((written.parent / "rl" / "eval-test.json").read_text())["examples"]
    named = sum("Film 9 (1909)" in json.dumps(example) for example in examples)
    assert 0 < named < 5
    assert found["found"] == [f"{named} of 5 users", "5 of 5 users", "3 of 5 users"]
