"""The command line from events to recommendations, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402
from pipeline import call, snapshot  # noqa: E402
from ugr_fast import cli, data  # noqa: E402
from ugr_fast.files import CHECKSUMS  # noqa: E402

HISTORY = "Film 03 (1983); i4; #5"


def copied(folder, tmp_path):
    """A copy of a run that may be damaged."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


# ------------------------------------------------------------------------------------------------ what works


def test_every_step_writes_what_it_says(pipeline):
    files = {
        "data": "items.parquet train.parquet valid.parquet test.parquet meta.json",
        "sids": "sids.parquet vectors.safetensors meta.json",
        "sft": "config.json vocabulary.json codes.safetensors items.json metrics.jsonl best.json SHA256SUMS "
        "checkpoints tensorboard eval-valid.json eval-test.json confidence.json "
        "confidence.safetensors outcomes-valid.safetensors outcomes-test.safetensors",
    }
    files["rl"] = files["sft"]
    for folder, names in files.items():
        assert set(os.listdir(pipeline.root / folder)) == set(names.split())
    assert not [name for name in snapshot(pipeline.root) if name.endswith(".tmp")]
    assert json.loads((pipeline.data / "meta.json").read_text())["counts"]["events"] == 720


def test_every_recommendation_is_an_item(pipeline):
    titles = set(data.load(pipeline.data).titles)
    for run in (pipeline.sft, pipeline.rl):
        found = json.loads((run / "eval-test.json").read_text())
        assert found["num_beams"] == 10
        for example in found["examples"]:
            recommended = [item["title"] for item in example["recommended"]]
            assert set(recommended) <= titles
            assert len(set(recommended)) == len(recommended) == 10


def test_item_and_sid_level_agree_without_collisions(pipeline):
    ranking = json.loads((pipeline.rl / "eval-test.json").read_text())["ranking"]
    for name in [name for name in ranking if not name.startswith("sid_")]:
        assert 0 <= ranking[name] == ranking[f"sid_{name}"] <= 1


def test_recommend_as_text_and_as_json(pipeline):
    text = call("recommend", "--run", pipeline.rl, "--history", HISTORY, "--k", 5)
    assert text.code == 0
    found = call("recommend", "--run", pipeline.rl, "--history", HISTORY, "--k", 5, "--json")
    answer = json.loads(found.out)
    items = answer["items"]
    assert (answer["abstained"], answer["reason"], answer["promise"]) == (False, None, None)
    assert 0 <= answer["first"] <= 1
    assert [set(item) for item in items] == [{"item", "id", "title", "score", "confidence", "calibrated"}] * 5
    assert all(item["title"] in text.out and f"{item['confidence']:.3f}" in text.out for item in items)
    assert all(f"{item['calibrated']:.1%}" in text.out for item in items)
    dataset = data.load(pipeline.data)
    assert all(dataset.titles[item["item"]] == item["title"] for item in items)
    assert text.err == found.err == ""


def test_recommend_can_leave_out_what_was_seen(pipeline):
    wide = ("recommend", "--run", pipeline.rl, "--history", HISTORY, "--json", "--k", 1000)
    everything, fresh = (json.loads(call(*wide, *more).out)["items"] for more in ((), ("--hide-seen",)))
    seen = [item for item in everything if item not in fresh]
    assert len(seen) == len(HISTORY.split(";"))
    assert [item for item in everything if item in fresh] == fresh


def test_report_names_what_it_wrote(pipeline, tmp_path):
    pytest.importorskip("matplotlib")
    done = call("report", pipeline.sft, pipeline.rl, "--out", tmp_path / "report")
    assert done.code == 0, done.err
    assert str(tmp_path / "report") in done.out
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "report" / "report.md").is_file()


def test_eval_prints_tables_of_what_it_wrote(pipeline, tmp_path):
    run, items = copied(pipeline.rl, tmp_path), tmp_path / "items.npy"
    np.save(items, np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    how = ["--num-beams", 10, "--threads", 1]
    done = call("eval", "--run", run, "--data", pipeline.data, *how, "--embeddings", items)
    found = json.loads((run / "eval-test.json").read_text())
    lines = done.out.splitlines()
    assert max(map(len, lines[:-3])) <= 80
    assert "…" not in done.out  # nothing is cut off
    shown = {line.split()[0]: line.split()[1:] for line in lines if line}
    plain = lambda value, digits=4: f"{value:.{digits}f}".removeprefix("0")  # noqa: E731
    for name in ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10"):
        cells, key = shown[name], name.lower()
        levels = [(found["ranking"][level + key], *found["intervals"][level + key]) for level in ("", "sid_")]
        expected = [[plain(value), f"({plain(low)}–{plain(high)})"] for value, low, high in levels]
        assert [cells[:2], cells[2:4]] == expected
        assert cells[4:] == [plain(found["baselines"][of][key]) for of in ("popularity", "markov", "cosine_markov")]
    for source in ("confidence", "likelihood"):
        user = found[source]["user"]
        assert [shown[source][at] for at in (0, 2, 4)] == [
            plain(value, 3) for value in (user["before"]["ece"], user["after"]["ece"], user["before"]["auroc"])
        ]
    assert lines[-3:] == [
        f"Written: {run / 'eval-test.json'}, with all other numbers",
        f"Next:    ugr-fast report {run}",
        f"         ugr-fast recommend --run {run} --history '...'",
    ]


def test_eval_says_where_confidences_are_untrained(pipeline, tmp_path):
    run = copied(pipeline.sft, tmp_path)
    done = call("eval", "--run", run, "--data", pipeline.data, "--split", "valid", "--num-beams", 10, "--threads", 1)
    assert "confidence (untrained) " in done.out
    assert f"ugr-fast report {run} --split valid\n" in done.out


def test_a_misspelt_title_is_told_before_torch_is_loaded(pipeline):
    code = f"""
import sys
from ugr_fast.cli import main
try:
    main(["recommend", "--run", {str(pipeline.rl)!r}, "--history", "The Third Man"])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("ugr-fast: `history` names 'The Third Man'")


@pytest.mark.parametrize("arguments", [["rl", "--help"], ["doctor", "--json"]])
def test_a_reader_that_goes_is_no_error(arguments):
    command = [sys.executable, "-m", "ugr_fast.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1
    process.stderr.close()


def test_in_a_process_of_its_own(pipeline, tmp_path):
    command = [sys.executable, "-W", "error::UserWarning", "-m", "ugr_fast.cli"]
    arguments = ["recommend", "--run", str(pipeline.rl), "--history", HISTORY, "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["items"]) == 10
    assert done.stderr == ""
    done = subprocess.run(
        [*command, "eval", "--run", str(tmp_path), "--data", "d"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ugr-fast: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_a_finished_command_repeated_changes_nothing(pipeline, name):
    folder = getattr(pipeline, name)
    before = snapshot(folder)
    done = call(*getattr(pipeline, f"{name}_args")(folder))
    assert done.code == 0, done.err
    assert done.out.startswith("best on valid: ")
    assert snapshot(folder) == before


def test_evaluation_repeats_itself(pipeline, tmp_path):
    run = copied(pipeline.rl, tmp_path)
    done = call("eval", "--run", run, "--data", pipeline.data, "--num-beams", 10, "--batch-size", 7, "--threads", 1)
    assert done.code == 0, done.err
    again, before = (json.loads((folder / "eval-test.json").read_text())["ranking"] for folder in (run, pipeline.rl))
    assert again == before  # the batch size changes nothing


def test_version_help_and_unknown_commands(capsys):
    cli.main(["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
    for arguments in (["--help"], ["sft", "--help"]):
        assert call(*arguments).code == 0


EVAL = ["eval", "--run", "r", "--data", "d"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of {demo, prepare, .*}; see: ugr-fast --help"),
        (["fly"], "Unrecognized options: fly; Available subcommands: demo, .*, doctor; see: ugr-fast --help"),
        (["rl", "--out", "o"], "Missing from ugr-fast rl: --run PATH --data PATH; see: ugr-fast rl --help"),
        ([*EVAL, "--bogus", "3"], "Unrecognized options: --bogus, 3; see: ugr-fast eval --help"),
        ([*EVAL, "--splt", "valid"], "Unrecognized options: --splt, valid; .*--split.*; see: ugr-fast eval --help"),
        ([*EVAL, "--split"], "Missing value for argument '--split'.*; see: ugr-fast eval --help"),
        ([*EVAL, "--split", "all"], "invalid choice 'all' for argument '--split'.*; see: ugr-fast eval --help"),
        ([*EVAL, "--num-beams", "x"], "Error parsing --num-beams: invalid .*'x'; see: ugr-fast eval --help"),
    ],
)
def test_arguments_that_are_wrong_are_told_in_a_line(arguments, message, encoding, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    err.seek(0)
    assert stop.value.code == 2
    assert re.fullmatch(f"ugr-fast: {message}\n", err.read())


def test_interrupts_and_tracebacks(monkeypatch):
    def interrupted(_config):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "recommend", (cli.RecommendConfig, interrupted))
    done = call("recommend", "--run", "r", "--history", "h")
    assert done.code == 130
    assert done.err.startswith("ugr-fast: interrupted; repeat the command")
    monkeypatch.setenv("UGR_FAST_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["eval", "--run", "nowhere", "--data", "nowhere"])


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    def unable(_config):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(cli.COMMANDS, "recommend", (cli.RecommendConfig, unable))
    assert call("recommend", "--run", "r", "--history", "h").err == (
        "ugr-fast: No module named 'torch'; pip install 'ugr-fast[train]'\n"
    )


# ---------------------------------------------------------------------------------------------- what is refused


def refused(arguments, message, unchanged):
    """Assert that the command ends with one line that matches `message`, and that `unchanged` is as it was."""
    before = snapshot(unchanged)
    done = call(*arguments)
    assert done.code == 2, done
    assert done.err.startswith("ugr-fast: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    assert re.search(message, done.err), done.err
    assert snapshot(unchanged) == before


EVENTS = {
    "empty.csv": (b"", "empty.csv has no column `user`"),
    "header.csv": (b"user,item,timestamp\n", "header.csv holds no rows"),
    "columns.csv": (b"user,thing,timestamp\na,b,1\n", r"columns.csv has no column `item`; its columns are user, thing"),
    "ragged.csv": (b"user,item,timestamp\na,b,1\na,b\n", "ragged.csv is malformed: .*Expected 3 columns, got 2"),
    "latin.csv": ("user,item,timestamp\né,b,1\n".encode("latin-1"), "latin.csv is malformed"),
    "user.csv": (b"user,item,timestamp\n,b,1\n", "`user` is empty in row 0"),
    "time.csv": (
        b"user,item,timestamp\na,b,1\na,c,soon\n",
        "`timestamp` must be a number or an ISO date.*'soon' in row 1",
    ),
    "nan.csv": (b"user,item,timestamp\na,b,1\na,c,nan\n", "`timestamp` must be a number.*'nan' in row 1"),
    "few.csv": (b"user,item,timestamp\na,b,1\na,c,2\n", "leaves no row for .*lower `core` or give more"),
    "noise.parquet": (bytes(range(256)) * 9, "noise.parquet is not a readable parquet file"),
    "empty.parquet": (b"", "empty.parquet is not a readable parquet file"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events(name, tmp_path):
    content, message = EVENTS[name]
    (tmp_path / name).write_bytes(content)
    refused(["prepare", "--events", tmp_path / name, "--out", tmp_path / "data", "--core", 1], message, tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--core", 0], "`core` must be at least 1, got 0"),
        (["--history", -1], "`history` must be at least 1, got -1"),
        (["--core", 99], "no event .* is left with `core` 99; lower `core`"),
        (["--user", "who"], "no column `who`"),
        (["--events", "/nowhere/x.csv"], "/nowhere/x.csv does not exist"),
        (["--items", "/nowhere/y.csv"], "/nowhere/y.csv does not exist"),
        (["--items-key", "name"], "items.csv has no column `name`"),
        (["--items-title", "{name} {item}"], "items.csv has no column `name`"),
        (["--items-title", "{item"], "`items_title`"),
        (["--items-title", "{}"], "items.csv has no column `{}`"),
    ],
)
def test_prepare(pipeline, tmp_path, more, message):
    arguments = ["--events", pipeline.root / "events.csv", "--items", pipeline.root / "items.csv"]
    refused(["prepare", *arguments, "--out", tmp_path / "data", *more], message, tmp_path)


def test_truncated_parquet_of_events(pipeline, tmp_path):
    whole = (pipeline.data / "train.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    arguments = ["prepare", "--events", tmp_path / "cut.parquet", "--out", tmp_path / "data", "--time", "ts"]
    refused(arguments, "cut.parquet is not a readable parquet file .*; make it again", tmp_path)


def edited(path, **columns):
    """Replace columns of a parquet file."""
    pq.write_table(pa.table(pq.read_table(path).to_pydict() | columns), path)


def first(path, column, value):
    """The column with another first value."""
    return {column: [value, *pq.read_table(path).column(column).to_pylist()[1:]]}


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("items", "item", 1, r"items.parquet: `item` 1 occurs more than once; keep one row per item"),
        ("items", "item", 40, r"items.parquet: `item` must be the numbers 0..39"),
        ("items", "item", -1, r"items.parquet: `item` must be the numbers 0..39"),
        ("train", "item", 40, r"train.parquet: `item` holds item 40 in row 0 .* catalogue has 40 items"),
        ("valid", "history", [3, 77], r"valid.parquet: `history` holds item 77 in row 0"),
        ("test", "history", [-1], r"test.parquet: `history` holds item -1 in row 0"),
        ("test", "history", [], r"test.parquet: `history` is empty in row 0; leave out rows without a history"),
        ("test", "history", None, r"test.parquet: `history` is null in row 0"),
        ("train", "user", None, r"train.parquet: `user` is null in row 0"),
    ],
)
def test_data_folders(pipeline, tmp_path, name, column, value, message):
    folder = copied(pipeline.data, tmp_path)
    path = folder / f"{name}.parquet"
    edited(path, **first(path, column, value))
    refused(["sids", "--data", folder, "--out", tmp_path / "o", "--source", "cooccurrence"], message, tmp_path)
    refused([*pipeline.sft_args(tmp_path / "o"), "--data", folder], message, tmp_path)


def test_damaged_data_folders(pipeline, tmp_path):
    folder = copied(pipeline.data, tmp_path)
    arguments = ["eval", "--run", pipeline.rl, "--data", folder]
    for name in ("items", "train", "valid", "test"):
        path = folder / f"{name}.parquet"
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        refused(arguments, f"{name}.parquet is not a readable parquet file", tmp_path)
        path.unlink()
        refused(arguments, f"{name}.parquet does not exist; `ugr-fast prepare` makes", tmp_path)
        path.write_bytes(whole)


def save(path, array):
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((40, 4), np.nan), r"e.npy holds NaN or infinity in row 0 .*; give finite numbers"),
        (
            np.full((40, 4), 1e200),
            r"e.npy holds NaN or infinity in row 0 .*; give finite numbers that float32 can hold",
        ),
        (np.zeros((40, 4)), "e.npy holds zeros alone, which tell no item from another; give embeddings"),
        (
            np.ones((39, 4)),
            r"e.npy must hold a floating-point array \(40, dim\), a row per item, got float64 \(39, 4\)",
        ),
        (np.ones(40), r"e.npy must hold a floating-point array"),
        (np.ones((40, 0)), r"e.npy must have shape \(num_items, dim\), got \(40, 0\)"),
        (np.full((40, 2), None), r"e.npy (is not a readable .npy file|must hold a floating-point)"),
        (np.ones((40, 2), int), r"e.npy must hold a floating-point array .* got int64"),
    ],
)
def test_embeddings(pipeline, tmp_path, array, message):
    arguments = ["--source", "embeddings", "--embeddings", save(tmp_path / "e.npy", array), "--out", tmp_path / "o"]
    refused(["sids", "--data", pipeline.data, *arguments], message, tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--source", "cooccurrence", "--levels", 0], "`levels` must be at least 1, got 0"),
        (["--source", "cooccurrence", "--codes", -4], "`codes` must be at least 1, got -4"),
        (["--source", "cooccurrence", "--seed", -1], r"`seed` must be in 0 .. 2\*\*32 - 1, got -1"),
        (["--source", "embeddings"], "needs `embeddings`"),
        (["--source", "embeddings", "--embeddings", "/nowhere.npy"], "`embeddings` /nowhere.npy does not exist"),
        (["--source", "file"], "needs `file`"),
        (["--source", "file", "--file", "/nowhere.parquet"], "/nowhere.parquet does not exist"),
        (["--source", "text", "--encoder", "/nowhere"], "`encoder` /nowhere does not exist"),
        (["--source", "cooccurrence", "--data", "/nowhere"], "/nowhere/items.parquet does not exist"),
    ],
)
def test_sids(pipeline, tmp_path, more, message):
    refused(["sids", "--data", pipeline.data, "--out", tmp_path / "o", *more], message, tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item", 1, "`item` 1 occurs more than once"),
        ("item", 40, "`item` must be the numbers 0..39"),
        ("code_0", -1, "`code_0` must lie in 0..16777215"),
        ("code_1", None, "`code_1` is null in row 0"),
    ],
)
def test_codes_of_a_file(pipeline, tmp_path, column, value, message):
    path = Path(shutil.copy(pipeline.sids / "sids.parquet", tmp_path))
    edited(path, **first(path, column, value))
    arguments = ["--source", "file", "--file", path, "--out", tmp_path / "o"]
    refused(["sids", "--data", pipeline.data, *arguments], f"sids.parquet: {message}", tmp_path)
    refused([*pipeline.sft_args(tmp_path / "o"), "--sids", tmp_path], f"sids.parquet: {message}", tmp_path)


def fewer_items(pipeline, tmp_path):
    """A data folder of the first users only, with another number of items."""
    lines = (pipeline.root / "events.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:49]))
    assert call("prepare", "--events", tmp_path / "few.csv", "--out", tmp_path / "few", "--core", 1).code == 0
    return tmp_path / "few"


def other_items(pipeline, tmp_path):
    """A data folder of as many items under other ids."""
    events = (pipeline.root / "events.csv").read_text().replace(",i", ",j").replace("jtem", "item")
    (tmp_path / "other.csv").write_text(events)
    assert call("prepare", "--events", tmp_path / "other.csv", "--out", tmp_path / "other", "--core", 1).code == 0
    return tmp_path / "other"


def test_data_of_another_catalogue(pipeline, tmp_path):
    few, other = fewer_items(pipeline, tmp_path), other_items(pipeline, tmp_path)
    refused([*pipeline.sft_args(tmp_path / "o"), "--data", few], "`sids` has codes for 40 items, and `data`", tmp_path)
    refused([*pipeline.rl_args(tmp_path / "o"), "--data", few], "`data` has .* items, and run .* on 40", tmp_path)
    refused(["eval", "--run", pipeline.rl, "--data", few], "`data` has .* items, and run .* trained on 40", tmp_path)
    refused(["eval", "--run", pipeline.rl, "--data", other], "`data` has 'j.*' as item 0.* use the data", tmp_path)


SETTINGS = [
    (["--num-beams", 0], "`num_beams` must be at least 10, the depth of HR@10, got 0"),
    (["--num-beams", 9], "`num_beams` must be at least 10"),
    (["--batch-size", 0], "`batch_size` must be at least 1, got 0"),
    (["--lr", -1], "`lr` must be a finite number above 0, got -1"),
    (["--lr", "nan"], "`lr` must be a finite number above 0, got nan"),
    (["--clip-grad", 0], "`clip_grad` must be a finite number above 0"),
    (["--weight-decay", "inf"], "`weight_decay` must be a finite number, 0 or more, got inf"),
    (["--eval-every", 0], "`eval_every` must be at least 1"),
    (["--valid-rows", -1], "`valid_rows` must be 0 or more"),
    (["--history", 0], "`history` must be"),
    (["--seed", -1], "`seed` must be in"),
    (["--threads", -1], "`threads` must be 0"),
    (["--device", "tpu"], "`device` must be auto, cpu, cuda or cuda:NUMBER, got 'tpu'"),
    (["--device", "cuda:99"], "`device` 'cuda:99' is not available here; use cpu or auto"),
]
SFT_SETTINGS = [
    *SETTINGS,
    (["--epochs", -1], "`epochs` must be at least 1, got -1"),
    (["--hidden", 30, "--heads", 4], "`hidden` must be a multiple of twice `heads`"),
    (["--hidden", 0], "`hidden` must be at least 1"),
    (["--heads", 0], "`heads` must be at least 1"),
    (["--layers", 0], "`layers` must be at least 1"),
    (["--dropout", 1], r"`dropout` must be in \[0, 1\), got 1"),
    (["--average", 1], r"`average` must be in \[0, 1\), got 1"),
    (["--warm-start", -1], "`warm_start` must be a finite number, 0 or more"),
    (["--muon-lr", -1], "`muon_lr` must be a finite number, 0 or more"),
    (["--patience", -1], "`patience` must be 0 or more"),
    (["--lora", -1], "`lora` must be 0 or more"),
    (["--lora", 4], "`lora` must be 0 for a decoder from scratch, got 4; give a `model` to adapt"),
    (["--data", "/nowhere"], "/nowhere/items.parquet does not exist"),
    (["--sids", "/nowhere"], "/nowhere/sids.parquet does not exist"),
]
RL_SETTINGS = [
    *SETTINGS,
    (["--updates", 0], "`updates` must be at least 1"),
    (["--group", 0], "`group` must be at least 1"),
    (["--micro-batch-size", -1], "`micro_batch_size` must be 0 or more"),
    (["--inner-updates", 0], "`inner_updates` must be at least 1"),
    (["--clip", 0], "`clip` must be a finite number above 0"),
    (["--rollout", "sample"], "`normalize` must be allowed, what `rollout` sample draws from, got full"),
    (["--reward-temperature", 0], "`reward_temperature` must be a finite number above 0"),
    (["--alpha-min", 2], r"`alpha_min` must be in \[0, 1\]"),
    (["--gamma", -0.5], r"`gamma` must be in \[0, 1\]"),
    (["--beta", -1], "`beta` must be a finite number, 0 or more"),
    (["--lambda-wrong", "nan"], "`lambda_wrong` must be a finite number"),
    (["--lora-alpha", 0], "`lora_alpha` must be at least 1"),
    (["--scale", "importance"], "`rollout` must be stochastic for `scale` importance, .* got beam"),
    (
        ["--scale", "importance", "--rollout", "stochastic", "--normalize", "allowed"],
        "`loss` must be dr_grpo or dapo for `scale` importance: .* got grpo",
    ),
    (["--loss", "cispo"], "`clip_high` must be the largest ratio itself for `loss` cispo, at least 1; .* got None"),
    (["--loss", "cispo", "--clip-high", 0.28], "`clip_high` must be the largest ratio itself .* got 0.28"),
    (["--loss", "cispo", "--clip-high", 5, "--delta", 9], "`delta` must be left out for `loss` cispo"),
    (["--reward", "0*match"], "`reward` must be uncertainty_weighted, .* got '0.match'"),
    (["--clip-high", -1], "`clip_high` must be a finite number, 0 or more, got -1"),
    (["--delta", 0], "`delta` must be a finite number above 0, got 0"),
    (["--delta", 1.2], "`delta` must be above the upper clip bound, 1.2, got 1.2"),
    (["--attention", "flex", "--recompute"], "`attention` must be sdpa with `recompute`, got flex"),
    (["--attention", "flex"], "`attention` must be"),
    (["--reward", "matches"], '`reward` must be uncertainty_weighted, ranking, .* "match . 0.3.similarity", got'),
    (["--reward", "match + match"], "`reward` must be uncertainty_weighted, .* got 'match . match'"),
    (["--reward", "x*match"], "`reward` must be uncertainty_weighted, .* got 'x.match'"),
    (["--reward", "no_such_module:f"], "`reward` no_such_module:f must name a function in a module on Python's path"),
    (["--reward", "similarity"], "`embeddings` must be a file for the reward similarity, got None"),
    (["--embeddings", "/nowhere.npy"], "`embeddings` must be left out without the reward similarity, got /nowhere.npy"),
    (["--reward", "similarity", "--embeddings", "/nowhere.npy"], "/nowhere.npy"),
    (["--history", 9], "`history` must be that of the fine-tuned run, 10, got 9"),
    (["--run", "/nowhere"], "/nowhere/config.json does not exist; `ugr-fast sft` makes it"),
]


@pytest.mark.parametrize(("more", "message"), SFT_SETTINGS, ids=str)
def test_settings_of_sft(pipeline, tmp_path, more, message):
    refused(pipeline.sft_args(tmp_path / "o", *more), message, tmp_path)


@pytest.mark.parametrize(("more", "message"), RL_SETTINGS, ids=str)
def test_settings_of_rl(pipeline, tmp_path, more, message):
    refused(pipeline.rl_args(tmp_path / "o", *more), message, tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-beams", 0], "`num_beams` must be at least 10"),
        (["--num-beams", 9], "`num_beams` must be at least 10"),
        (["--batch-size", 0], "`batch_size` must be at least 1"),
        (["--device", "cuda:99"], "`device` 'cuda:99' is not available"),
        (["--run", "/nowhere"], "/nowhere/config.json does not exist"),
        (["--data", "/nowhere"], "/nowhere/items.parquet does not exist"),
    ],
)
def test_settings_of_eval(pipeline, more, message):
    refused(["eval", "--run", pipeline.rl, "--data", pipeline.data, *more], message, pipeline.rl)


@pytest.mark.parametrize(
    ("history", "more", "message"),
    [
        ("The Third Man", [], "`history` names 'The Third Man', and no item of the catalogue has that title or id"),
        ("Film 03 (1983); #40", [], "`history` names '#40', and no item"),
        ("#-1", [], "`history` names '#-1', and no item"),
        ("Film", [], r"`history` names 'Film', and 40 items match: Film .*; Film .* Name one in full, or by id"),
        (" ; ;", [], "`history` must name at least one item, got ' ; ;'"),
        (HISTORY, ["--k", 0], "`k` must be at least 1, got 0"),
        (HISTORY, ["--num-beams", -1], "`num_beams` must be 0"),
        (HISTORY, ["--run", "/nowhere"], "/nowhere/items.json does not exist; `ugr-fast sft` makes it"),
        (HISTORY, ["--device", "cuda:99"], "`device` 'cuda:99' is not available"),
    ],
)
def test_recommend(pipeline, history, more, message):
    refused(["recommend", "--run", pipeline.rl, "--history", history, *more], message, pipeline.rl)


def test_report_of_a_run_that_was_not_evaluated(pipeline, tmp_path):
    run = copied(pipeline.rl, tmp_path)
    (run / "eval-test.json").unlink()
    refused(["report", run, "--out", tmp_path / "o"], "eval-test.json", tmp_path)


def test_a_run_without_a_checkpoint(pipeline, tmp_path):
    run = copied(pipeline.rl, tmp_path)
    shutil.rmtree(run / "checkpoints")
    refused(["recommend", "--run", run, "--history", HISTORY], "has no checkpoint yet; let its training", tmp_path)
    refused(["eval", "--run", run, "--data", pipeline.data], "has no checkpoint yet", tmp_path)


# ------------------------------------------------------------------------------------------- where it is written


def commands_with_out(pipeline, out):
    return [
        ["prepare", "--events", pipeline.root / "events.csv", "--out", out],
        ["sids", "--data", pipeline.data, "--out", out, "--source", "cooccurrence"],
        pipeline.sft_args(out),
        pipeline.rl_args(out),
    ]


@pytest.mark.parametrize("number", range(4), ids=["prepare", "sids", "sft", "rl"])
def test_out_that_is_taken(pipeline, tmp_path, number):
    for name in ("file", "foreign/file", "below/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    places = {
        "file": "`out` must be a new .*file",
        "foreign": "`out` must be a new .*foreign",
        "below/file/deep/out": "`out` must lie in a folder, and .*below/file is a file; name another place",
    }
    for place, message in places.items():
        refused(commands_with_out(pipeline, tmp_path / place)[number], message, tmp_path)
    refused(commands_with_out(pipeline, Path(os.devnull))[number], "`out` must be a new", tmp_path)
    refused(commands_with_out(pipeline, Path("/dev/full/out"))[number], "/dev/full is a file", tmp_path)


@pytest.mark.parametrize("number", range(4), ids=["prepare", "sids", "sft", "rl"])
def test_out_that_holds_another_run(pipeline, tmp_path, number):
    out = copied(pipeline.rl if number == 2 else pipeline.sft, tmp_path)
    refused(commands_with_out(pipeline, out)[number], "`out` .* (holds another run|exists; name another)", tmp_path)


def test_other_settings_on_the_same_run(pipeline, tmp_path):
    for arguments, change, message in (
        (pipeline.sft_args(copied(pipeline.sft, tmp_path)), ["--lr", 0.5], "settings: lr None -> 0.5"),
        (pipeline.rl_args(copied(pipeline.rl, tmp_path)), ["--group", 5], "settings: group 4 -> 5"),
    ):
        refused([*arguments, *change], f"holds another run .*{message}.*choose another `out`, or repeat", tmp_path)


def test_other_items_on_the_same_run(pipeline, tmp_path):
    sids, out = copied(pipeline.sids, tmp_path), tmp_path / "o"
    assert call(*pipeline.sft_args(out), "--sids", sids, "--epochs", 1).code == 0
    codes = pq.read_table(sids / "sids.parquet")["code_0"].to_pylist()
    edited(sids / "sids.parquet", code_0=codes[::-1])
    refused([*pipeline.sft_args(out), "--sids", sids, "--epochs", 1], "started with other semantic IDs", tmp_path)


def test_a_model_that_is_not_there(pipeline, tmp_path):
    message = "`model` must be a local folder with config.json and weights, and /nowhere is not one"
    refused(pipeline.sft_args(tmp_path / "o", "--model", "/nowhere"), message, tmp_path)


def test_vectors_that_are_damaged(pipeline, tmp_path):
    sids = copied(pipeline.sids, tmp_path)
    damage(sids / "vectors.safetensors", "truncated")
    message = r"vectors.safetensors is truncated or altered .*; make it again with `ugr-fast sids`"
    refused([*pipeline.sft_args(tmp_path / "o"), "--sids", sids], message, tmp_path)


def test_a_fine_tuned_model_that_is_damaged(pipeline, tmp_path):
    run = copied(pipeline.sft, tmp_path)
    for path in run.glob("checkpoints/*/model/model.safetensors"):
        damage(path, "flipped")
    refused([*pipeline.rl_args(tmp_path / "o"), "--run", run], "model.safetensors is truncated or altered", tmp_path)


# --------------------------------------------------------------------------------------------------- damaged runs


def damage(path, how):
    whole = bytearray(path.read_bytes())
    if how == "truncated":
        whole = whole[: len(whole) // 2]
    elif how == "flipped":
        whole[len(whole) * 2 // 3] ^= 1
    path.write_bytes(b"" if how == "empty" else whole)


DAMAGED = [
    "config.json",
    "vocabulary.json",
    "codes.safetensors",
    "items.json",
    "best.json",
    "checkpoints/*/model/config.json",
    "checkpoints/*/model/model.safetensors",
    "checkpoints/*/state.safetensors",
    "checkpoints/*/state.json",
]


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_run(pipeline, tmp_path, name, how):
    run = copied(pipeline.sft, tmp_path)
    paths = sorted(run.glob(name))
    for path in paths:
        damage(path, how)
    message = f"{Path(name).name}.* (truncated or altered|not readable JSON).*; (make|remove|repeat)"
    if name == "best.json" and how == "flipped":
        return  # a digit of a metric: seen, and no harm done
    refused(["recommend", "--run", run, "--history", HISTORY], message, tmp_path)
    if name != "best.json":  # written anew from the checkpoint
        refused(pipeline.sft_args(run), message, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "items.json", "vocabulary.json", "best.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "null", "{", '{"step": "x"}', "\x00"])
def test_json_of_another_kind(pipeline, tmp_path, name, content):
    run = copied(pipeline.sft, tmp_path)
    for sums in run.rglob(CHECKSUMS):
        sums.unlink()  # as after a careless edit by hand
    (run / name).write_text(content)
    done = call("recommend", "--run", run, "--history", HISTORY)
    assert done.code in (0, 2)
    if done.code or name != "best.json":
        refused(["recommend", "--run", run, "--history", HISTORY], f"{name}.*; ", tmp_path)


def test_checksums_are_those_of_sha256sum(pipeline):
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("needs sha256sum")
    sums = sorted(pipeline.root.rglob(CHECKSUMS))
    assert len(sums) >= 4
    for path in sums:
        subprocess.run([tool, "--check", "--strict", "--quiet", path], cwd=path.parent, check=True)


def test_a_damaged_log(pipeline, tmp_path):
    run = copied(pipeline.sft, tmp_path)
    path = run / "metrics.jsonl"
    whole = path.read_text()
    path.write_text("no JSON\n" + whole)
    refused(pipeline.sft_args(run), r"metrics.jsonl .*line 1.*; ", tmp_path)
    path.write_text(whole + '{"step": 4, "lo')  # the last line, cut off by a crash
    assert call(*pipeline.sft_args(run)).code == 0
    assert path.read_text() == whole


# ------------------------------------------------------------------------------------------------------ full disk


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    arguments = ["-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if mount is None or subprocess.run([mount, *arguments], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, leave):
    """Leave about `leave` KiB free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize // 1024
    (folder / "filler").write_bytes(bytes(1024 * max(0, free - leave)))


FULL = r"^ugr-fast: cannot write .*(No space left on device|os error 28).*; free space there or choose another place"


@pytest.mark.parametrize("leave", [0, 4])
@pytest.mark.parametrize("number", range(4), ids=["prepare", "sids", "sft", "rl"])
def test_a_full_disk(pipeline, small_disk, number, leave):
    fill(small_disk, leave)
    done = call(*commands_with_out(pipeline, small_disk / "out")[number])
    assert done.code == 2
    assert re.search(FULL, done.err.splitlines()[-1]), done.err
    assert "Traceback" not in done.err
    assert not [name for name in snapshot(small_disk) if name.endswith(".tmp")]
    if number < 2 or leave == 0:
        assert os.listdir(small_disk) == ["filler"]


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_a_run_goes_on_when_the_disk_has_room_again(pipeline, small_disk, name):
    fill(small_disk, leave=36)  # room for a catalogue, not for a checkpoint
    arguments = getattr(pipeline, f"{name}_args")(small_disk / name)
    done = call(*arguments)
    assert done.code == 2
    assert re.search(FULL, done.err.splitlines()[-1]), done.err
    assert not [path for path in snapshot(small_disk) if "checkpoints/" in path or path.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert call(*arguments).code == 0
    assert (small_disk / name / "best.json").read_bytes() == (pipeline.root / name / "best.json").read_bytes()


@pytest.mark.parametrize("command", ["eval", "confide"])
def test_an_evaluation_onto_a_full_disk_keeps_the_old_one(pipeline, small_disk, command):
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    run = copied(pipeline.rl, small_disk)
    fill(small_disk, leave=0)
    before = snapshot(run)
    done = call(command, "--run", run, "--data", pipeline.data, "--num-beams", 10)
    assert done.code == 2
    assert re.search(FULL, done.err.splitlines()[-1]), done.err
    assert snapshot(run) == before


@pytest.mark.parametrize("number", range(4), ids=["prepare", "sids", "sft", "rl"])
def test_a_file_size_limit(pipeline, tmp_path, number):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))  # the kernel stops each write half way
    try:
        done = call(*commands_with_out(pipeline, tmp_path / "out")[number])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2
    assert done.err.startswith("ugr-fast: cannot write ")
    assert not [name for name in snapshot(tmp_path) if name.endswith(".tmp")]


@pytest.mark.parametrize("number", range(4), ids=["prepare", "sids", "sft", "rl"])
def test_a_read_only_place(pipeline, small_disk, number):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    arguments = commands_with_out(pipeline, small_disk / "out")[number]
    refused(arguments, "`out` must lie where it can be written, and .*disk is read-only; name another", small_disk)
