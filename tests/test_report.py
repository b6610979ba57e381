from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from ugr_fast import metrics, report
from ugr_fast.configs import ReportConfig

TITLES = [f"Film {number} (19{number % 100:02d})" for number in range(60)]
TITLES[3] = "<script>alert('x')</script> & co | *stars* [link](javascript:0) $5"
SETTINGS = {
    "sft": {"data": "data", "epochs": 6, "model": None},
    "rl": {"data": "data", "reward": "uncertainty_weighted", "difficulty": "rank", "confidence": "brier", "lr": 1e-4},
}


def signal(confidence, correct, hit10, ndcg10):
    """The part of eval-SPLIT.json about one signal, as `ugr_fast.evaluate` writes it."""
    bins = metrics.calibration(confidence, correct, bins=15)
    filled = bins.count > 0
    count = bins.count[filled].astype(int)
    low, high = metrics.wilson(np.rint(bins.accuracy[filled] * count), count)
    coverage, risk, _ = metrics.risk_coverage(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    kept = [order[: max(1, round(share * len(order)))] for share in np.arange(1, 21) / 20]
    scalars = {"ece": bins.ece, "auroc": metrics.auroc(confidence, correct), "aurc": metrics.aurc(confidence, correct)}
    columns = {"lower": bins.lower, "upper": bins.upper, "confidence": bins.confidence, "accuracy": bins.accuracy}
    reliability = {name: column[filled].tolist() for name, column in columns.items()}
    rejection = {"hr@10": [hit10[rows].mean() for rows in kept], "ndcg@10": [ndcg10[rows].mean() for rows in kept]}
    return {
        "user": {**scalars, "brier_skill": None, "base_rate": correct.mean()},
        "reliability": {
            **reliability, "count": count.tolist(), "accuracy_low": low.tolist(), "accuracy_high": high.tolist()
        },
        "risk_coverage": {"coverage": coverage.tolist(), "risk": risk.tolist()},
        "rejection": {"coverage": (np.arange(1, 21) / 20).tolist(), **rejection},
    }  # fmt: skip


def evaluation(seed, skill, num_rows=400, num_users=5):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(1.2, 6, num_rows)
    correct = rng.random(num_rows) < confidence * skill
    hit10 = correct | (rng.random(num_rows) < 0.08)
    ndcg10 = np.where(correct, 1.0, np.where(hit10, 0.4, 0.0))
    likelihood = np.clip(confidence * 0.5 + rng.random(num_rows) * 0.1, 0, 1)
    found = {
        "confidence": signal(confidence, correct, hit10, ndcg10),
        "likelihood": signal(likelihood, correct, hit10, ndcg10),
    }
    names = ("hr@1", "hr@3", "hr@5", "hr@10", "ndcg@3", "ndcg@5", "ndcg@10")
    values = {name: 0.05 * skill + 0.01 * index for index, name in enumerate(names)}
    everyone = {"hr@10": hit10.mean(), "ndcg@10": ndcg10.mean()}
    halves = {name: {key: column[9] for key, column in part["rejection"].items() if key != "coverage"}
              for name, part in found.items()}  # fmt: skip
    baselines = {"popularity": dict.fromkeys(names, 0.0123), "markov": dict.fromkeys(names, 0.0456)}
    return {
        "split": "test", "num_rows": num_rows, "num_beams": 20, "normalize": "full", "checkpoint": "best", "step": 50,
        "ranking": {**values, **{f"sid_{name}": value + 0.001 for name, value in values.items()}},
        **found, "kept_half": {"random": everyone, **halves}, "baselines": baselines,
        "examples": [example(user, rng) for user in range(num_users)],
    }  # fmt: skip


def example(user, rng):
    target = 3 + user
    items = rng.permutation(len(TITLES))[:10]
    if user % 2 and target not in items:
        items[2] = target
    recommended = [
        {"title": TITLES[item], "confidence": 0.3 / rank, "likelihood": 0.1 / rank, "hit": bool(item == target)}
        for rank, item in enumerate(items, start=1)
    ]
    return {"user": user, "history": TITLES[user : user + 6], "target": TITLES[target], "recommended": recommended}


def valid_line(value):
    keys = ("ndcg@10", "hr@10", "hr@1", "confidence_auroc", "likelihood_auroc")
    return {key: value + 0.1 * index for index, key in enumerate(keys)}


def log_lines(command):
    if command == "sft":
        epochs = [{"step": 90 * e, "epoch": e, "loss": 5 - e / 3, "seconds": 60.0 * e} for e in range(1, 7)]
        return epochs + [{"step": 90 * e, "epoch": e, "valid": valid_line(0.01 * e)} for e in (2, 4, 6)]
    wave = [0.1 + 0.001 * u + 0.02 * math.sin(u) for u in range(1, 101)]
    updates = [
        {"step": u, "loss": -w, "reward": 1e-10 * w, "hit_rate": 2 * w, "confidence_auroc": 0.99, "seconds": 0.5 * u}
        for u, w in enumerate(wave, start=1)
    ]
    return updates + [{"step": u, "valid": valid_line(0.06 + u / 5000)} for u in (0, 25, 50, 75, 100)]


def make_run(folder, command="sft", seed=0, skill=0.9, **settings):
    folder.mkdir(parents=True)
    config = {
        "command": command,
        "settings": {**SETTINGS[command], **settings},
        "environment": {"torch": "2.10", "device": "cpu", "threads": 2},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_lines(command)))
    (folder / "best.json").write_text(json.dumps({"step": 50, **valid_line(0.06)}))
    (folder / "eval-test.json").write_text(json.dumps(evaluation(seed, skill)))
    return folder


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
        user, half = found[source]["user"], found["kept_half"][source]["hr@10"]
        assert row[1:] == [*ranking, f"{user['ece']:.3f}{mark}", f"{user['auroc']:.3f}{mark}", f"{half:.4f}{mark}"]


def test_markdown_table_marks_the_best_as_shown():
    rows = [
        ["m", "HR@10", "ECE", "AUROC"],
        ["a", "0.1", "0.30†", "–"],
        ["b", "0.2", "0.4", "0.6"],
        ["c", "0.2", "–", "–"],
    ]
    lines = report.markdown_table(rows).splitlines()
    assert lines[2:] == [
        "| a | 0.1 | **0.30†** | – |",  # a lower ECE is better
        "| b | **0.2** | 0.4 | 0.6 |",  # nothing to compare 0.6 with
        "| c | **0.2** | – | – |",
    ]
    assert "**" not in report.markdown_table(rows, bold=False)


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


def test_a_run_that_never_got_better_than_its_start_says_so(runs, tmp_path):
    edit(runs[1] / "eval-test.json", lambda found: found | {"step": 0})
    assert report.table(runs)[-1][6].endswith("†")  # the confidence tokens of update 0 are untrained
    out = report.write(ReportConfig(runs=runs[1:], out=tmp_path / "report"))
    assert "Evaluated at update 0" in (out / "report.md").read_text()


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
        found["confidence"]["user"]["auroc"] = None
        return found

    edit(runs[1] / "eval-test.json", drop)
    row = report.table(runs)[-1]
    assert (row[2], row[7]) == ("–", "–")


def test_report_has_every_section_in_both_forms(written):
    text, page = ((written / name).read_text() for name in ("report.md", "report.html"))
    for section in ("Comparison", "Training", "Reliability", "Risk and coverage", "Examples", "Settings"):
        assert f"\n## {section}\n" in text
        assert f">{section}</h2>" in page
    for cell in ("last-item Markov", "rl (UGR, brier confidence)", "0.0456", "threads", "uncertainty_weighted"):
        assert cell.replace("_", r"\_") in text
        assert cell in page
    assert report.FOOTNOTE in text
    assert "<b>0.1100</b>" in page
    assert "**0.1100**" in text


def test_figures_are_there(written):
    names = set(re.findall(r"\]\(figures/(.*?)\.png\)", (written / "report.md").read_text()))
    assert {path.name for path in (written / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    assert {"sft-loss", "sft-valid-ndcg10", "rl-valid-ndcg10", "rl-valid-hr1", "rl-valid-confidence-auroc"} <= names
    assert "rl-reward" not in names  # 0 in every group: nothing to see
    assert {"rl-hit-rate", "rl-loss", "reliability-0-sft", "reliability-1-rl", "risk-1-rl", "kept-hr10"} <= names
    assert (written / "report.html").read_text().count("<svg ") == len(names)
    for name in names:
        assert (written / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_fine_tuning_is_a_dashed_line_beside_reinforcement_learning(runs):
    read = report.read_runs(runs)
    figure = report._training_figure(read, "rl", report.CURVES["rl"][0])
    line, curve = figure.axes[0].get_lines()
    assert (curve.get_label(), line.get_label()) == ("rl", "sft: best")
    assert curve.get_xdata().tolist() == [0, 25, 50, 75, 100]
    assert curve.get_ydata().tolist() == pytest.approx([0.06, 0.065, 0.07, 0.075, 0.08])
    assert set(line.get_ydata()) == {0.06}
    assert line.get_linestyle() == "--"
    assert curve.get_color() != line.get_color()


def test_validation_and_rollout_values_of_one_name_are_kept_apart(runs):
    _, run = report.read_runs(runs)
    assert run.series("valid.confidence_auroc")[1] == pytest.approx([0.36, 0.365, 0.37, 0.375, 0.38])
    assert set(run.series("confidence_auroc")[1]) == {0.99}


def test_html_is_well_formed_and_needs_no_network(written):
    text = (written / "report.html").read_text()
    page = Page(text.removeprefix("<!doctype html>"))
    assert page.stack == []
    assert len(page.ids) == len(set(page.ids))
    assert not set(page.tags) & {"script", "link", "img", "iframe"}
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
    assert "<script" not in page + text
    assert r"&lt;script&gt;alert('x')&lt;/script&gt; &amp; co \| \*stars\* \[link\](javascript:0) \$5" in text


def test_examples_mark_hits_and_what_came_next(written):
    page = (written / "report.html").read_text()
    assert page.count('class="user') - page.count('class="users"') == 5
    assert page.count("<details open ") == 1
    assert "Next: <b>Film 4 (1904)</b>" in page
    assert "Film 4 (1904) ✓" in page
    assert "sft rank 3" in page


def test_an_older_report_is_replaced(runs, tmp_path):
    out = tmp_path / "report"
    report.write(ReportConfig(runs=runs, out=out))
    report.write(ReportConfig(runs=runs[1:], out=out))
    assert "supervised fine-tuning" not in (out / "report.md").read_text()
    assert not list((out / "figures").glob("*sft*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "rl", "sft"]


def test_the_same_runs_make_the_same_report_and_matplotlib_is_left_as_it_was(runs, written, tmp_path):
    before = dict(mpl.rcParams)
    report.write(ReportConfig(runs=runs, out=tmp_path / "report"))
    for name in ("report.md", "report.html", "figures/rl-loss.svg"):
        assert (tmp_path / "report" / name).read_bytes() == (written / name).read_bytes()
    assert dict(mpl.rcParams) == before


def test_a_failure_leaves_the_older_report(runs, tmp_path, monkeypatch):
    out = tmp_path / "report"
    report.write(ReportConfig(runs=runs[1:], out=out))
    before = (out / "report.html").read_bytes()

    def fail(_blocks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "_page", fail)
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
    edit(runs[1] / "eval-test.json", lambda found: found | {"num_rows": 7})
    with pytest.raises(ValueError, match="rl and sft were not"):
        report.table(runs)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("eval-test.json", '{"num_rows": 1', "make it again with `ugr-fast eval"),
        ("eval-test.json", "[]", "lacks num_rows.*ugr-fast eval"),
        ("config.json", '{"command": "rl"}', "lacks settings, environment"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n', "is not JSON in line 2"),
    ],
)
def test_altered_files_are_named(runs, name, text, message):
    (runs[1] / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        report.table(runs)
    assert str(runs[1] / name) in str(error.value)


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
