"""Several processes: any split of the rows is whole again, and two equal one, started by accelerate itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
from pipeline import call  # noqa: E402
from ugr_fast.decisions import read_outcomes  # noqa: E402
from ugr_fast.team import ALONE, Team  # noqa: E402

QUIET = {"OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "error"}


@given(count=st.integers(0, 200), size=st.integers(1, 20))
def test_shares_hold_every_row_once_and_differ_by_one_at_most(count, size):
    shares = [Team(rank, size).share(count) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_happens():
    part = torch.randn(3, 2)
    assert ALONE.whole(part, 3) is part
    assert ALONE.total(2.5) == 2.5
    parameter = torch.nn.Parameter(part)
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None
    with ALONE.main_first():
        ALONE.wait()


@pytest.mark.parametrize("cutter", ["FSDP", "DEEPSPEED"])
def test_a_model_cut_in_pieces_is_refused(monkeypatch, cutter):
    monkeypatch.setenv(f"ACCELERATE_USE_{cutter}", "true")
    with pytest.raises(ValueError, match=f"data-parallel processes, got {cutter}: the model must fit one device"):
        Team.join(torch.device("cpu"))


def together(num_processes, *arguments):
    """Run Python with `arguments` in processes that `accelerate launch` starts, and return what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]  # its name for several on one machine
    settings = ["--num_processes", num_processes, "--num_machines", 1, "--main_process_port", port]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [str(word) for word in [*launch, *settings, *plain, *arguments]]
    done = subprocess.run(
        command, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


ROWS = """
import pathlib, sys, time, torch
from ugr_fast.team import Team
team = Team.join(torch.device("cpu"))
for count in (0, 1, 2, 3, 7, 8):
    for dtype in (torch.float64, torch.float32, torch.int64, torch.bool):
        rows = (torch.arange(3 * count) % 5 - 2).reshape(count, 3).to(dtype)
        if dtype.is_floating_point and count:
            rows[0, :2] = torch.tensor([torch.nan, -torch.inf])
        share = team.share(count)
        whole = team.whole(rows[share.start : share.stop], count)
        assert whole.dtype == dtype and torch.equal(whole.nan_to_num(7), rows.nan_to_num(7)), (count, dtype)
assert team.total(team.rank + 0.5) == 4.5
weight, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
if team.rank:
    weight.grad = torch.tensor([1.0, 10.0]) * team.rank
team.sum_gradients([weight, other])
assert weight.grad.tolist() == [3.0, 30.0] and other.grad.tolist() == [0.0, 0.0]
done = pathlib.Path(sys.argv[1])
with team.main_first():
    assert done.exists() == bool(team.rank)
    if team.is_main:
        time.sleep(0.3)  # for the others to come past, were they not held
        done.touch()
done.with_name(f"process {team.rank}").touch()
"""


CUT = """
import sys
import time
from ugr_fast import cli
from ugr_fast.run import Learner, Run

save, descend, saved = Run.save_checkpoint, Learner.descend, []

def counted(self, *args):
    save(self, *args)
    saved.append(args[0])

def dies(self, clip_grad):
    if saved and saved[-1] > 0:
        time.sleep(2)  # until the others have come as far: who leaves first would fail them in their last exchange
        sys.exit(0)
    return descend(self, clip_grad)

Run.save_checkpoint, Learner.descend = counted, dies
cli.main(sys.argv[1:])
"""


def test_rows_of_three_processes(tmp_path, temporary):
    script = tmp_path / "rows.py"
    script.write_text(ROWS)
    together(3, script, tmp_path / "main first")
    assert sorted(path.name for path in tmp_path.glob("process *")) == ["process 0", "process 1", "process 2"]
    assert list(temporary.glob("torchelastic_*"))  # the launcher's logs, where they go with the session


def final(folder):
    """Weights of the last checkpoint and the logged lines, without times."""
    weights = load_file(sorted(folder.glob("checkpoints/*"))[-1] / "model" / "model.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "prompts_per_second")
    return weights, [{key: line[key] for key in line if not key.startswith(timed)} for line in lines]


def flat(line):
    """Its numbers, those of the validation too, which is a dict inside."""
    return {**{key: value for key, value in line.items() if key != "valid"}, **line.get("valid", {})}


def check_equal(one, two):
    (weights, lines), (other_weights, other_lines) = final(one), final(two)
    assert weights.keys() == other_weights.keys()
    for name in weights:
        assert abs(weights[name] - other_weights[name]).max() <= 2e-5, name
    assert len(lines) == len(other_lines)
    for line, other in zip(lines, other_lines, strict=True):
        assert flat(line) == pytest.approx(flat(other), rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("command", ["sft", "rl"])
def test_two_processes_equal_one(pipeline, tmp_path, command):
    more = {
        "sft": ["--dropout", 0, "--muon-lr", 0, "--batch-size", 7],
        "rl": ["--batch-size", 7, "--rollout", "stochastic", "--normalize", "allowed", "--beta", 0.1],
    }[command]
    arguments = {"sft": pipeline.sft_args, "rl": pipeline.rl_args}[command]
    assert call(*arguments(tmp_path / "one", *more)).code == 0
    printed = together(2, "-m", "ugr_fast.cli", *arguments(tmp_path / "two", *more))
    assert printed.count("best on valid") == 1
    check_equal(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["environment"]["processes"] == 2
    refused = call(*arguments(tmp_path / "two", *more))  # a run goes on as it began
    assert "holds another run (environment: processes 2 -> 1)" in refused.err


def test_two_processes_go_on_where_they_were_interrupted(pipeline, tmp_path):
    """Cut short after the first checkpoint; dropout makes the random generator of each process matter."""
    arguments, more = pipeline.sft_args, ["--epochs", 3]
    script = tmp_path / "cut.py"
    script.write_text(CUT)
    together(2, "-m", "ugr_fast.cli", *arguments(tmp_path / "whole", *more))
    together(2, script, *arguments(tmp_path / "cut", *more))
    assert len(final(tmp_path / "cut")[1]) < len(final(tmp_path / "whole")[1])
    together(2, "-m", "ugr_fast.cli", *arguments(tmp_path / "cut", *more))
    for name in ("model/model.safetensors", "state.safetensors"):
        found = [sorted((tmp_path / run).glob(f"checkpoints/*/{name}"))[-1].read_bytes() for run in ("whole", "cut")]
        assert found[0] == found[1], name


CONFIDES = """
import sys, time
from ugr_fast.cli import main
from ugr_fast.run import Run
write = Run.save_readout
Run.save_readout = lambda *args: (time.sleep(3), write(*args))  # a slow disk: the other process must wait for it
for command in ("confide", "eval"):
    main([command, *sys.argv[1:]])
"""


def test_readout_and_evaluation_of_two_processes_are_those_of_one(pipeline, tmp_path):
    found, script = {}, tmp_path / "confides.py"
    script.write_text(CONFIDES)
    for name in ("one", "two"):
        shutil.copytree(pipeline.rl, tmp_path / name)
        arguments = ["--run", tmp_path / name, "--data", pipeline.data, "--num-beams", 10, "--threads", 1]
        arguments += ["--device", "cpu"]
        if name == "one":
            assert [call(command, *arguments).code for command in ("confide", "eval")] == [0, 0]
        else:
            assert together(2, script, *arguments).count('"strength"') == 1
        found[name] = json.loads((tmp_path / name / "eval-test.json").read_text())
        assert not [path for path in (tmp_path / name).iterdir() if path.name.endswith(".tmp")]
    one, two = found["one"], found["two"]
    assert (one["readout"], two["readout"]) == (True, True)
    assert two["num_rows"] == one["num_rows"]
    assert two["ranking"] == one["ranking"]
    said = [read_outcomes(tmp_path / name / "outcomes-test.safetensors")[1].confidence for name in ("one", "two")]
    np.testing.assert_allclose(said[1], said[0], rtol=1e-4)  # ranks among equals may differ, by rounding
    names = [[item["title"] for item in example["recommended"]] for example in two["examples"]]
    assert names == [[item["title"] for item in example["recommended"]] for example in one["examples"]]
