"""The examples run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *args):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, args)], capture_output=True, text=True, timeout=120
    )


def test_own_loop_learns():
    done = run("own_loop.py")
    assert done.returncode == 0, done.stderr
    first = [float(rate) for rate in re.findall(r"first (\S+)", done.stdout)]
    assert first[0] < 0.2
    assert first[-1] > 0.8


def test_trl_ugr_learns():
    for package in ("trl", "datasets"):
        pytest.importorskip(package)
    done = run("trl_ugr.py")
    assert done.returncode == 0, done.stderr
    first = [float(rate) for rate in re.findall(r"^step .*first (\S+)$", done.stdout, re.MULTILINE)]
    assert first[0] < 0.4
    assert first[-1] > 0.55


def test_transformers_generate_stays_inside_the_trie():
    done = run("transformers_generate.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: `logits_processor` must be the only one")
    assert "processor: 64 of 64 answers are items\nbeam_generate: 64 of 64 answers are items\n" in done.stdout
    assert done.stdout.endswith("the same beams: True\n")


def test_recommend_answers_and_abstains(pipeline):
    found = run("recommend.py", pipeline.rl, "Film 03 (1983)", "Film 04 (1984)", "-k", 3)
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(r"(0\.\d{3}  Film \d\d \(\d{4}\)\n){3}", found.stdout)
    unsure = run("recommend.py", pipeline.rl, "Film 03 (1983)", "--min-confidence", 1)
    assert unsure.returncode == 1
    assert unsure.stdout == ""
    assert re.fullmatch(r"no recommendation: confidence \S+ is below 1.0\n", unsure.stderr)
    unknown = run("recommend.py", pipeline.rl, "No such film")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("recommend: `history` names 'No such film'")


def test_minionerec_migrate_trains_with_their_rewards():
    pytest.importorskip("pyarrow")
    done = run("minionerec_migrate.py")
    assert done.returncode == 0, done.stderr
    assert "'items': 40" in done.stdout
    found = dict(re.findall(r"^(\w+): ndcg@10 (\S+)$", done.stdout, re.M))
    assert found.keys() == {"ranking", "uncertainty_weighted"}
    assert all(float(ndcg) > 0.4 for ndcg in found.values())
