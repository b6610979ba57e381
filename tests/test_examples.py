"""The examples run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
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


def test_verl_ugr_learns():
    if find_spec("verl") is None:
        pytest.skip("verl is not installed")
    done = run("verl_ugr.py")
    assert done.returncode == 0, done.stderr
    drawn = [float(rate) for rate in re.findall(r"^update .*: (\S+)$", done.stdout, re.MULTILINE)]
    assert drawn[0] < 0.3
    assert drawn[-1] > 0.6


def test_openrlhf_agent_scores_a_group():
    if find_spec("openrlhf") is None:
        pytest.skip("OpenRLHF is not installed")
    done = run("openrlhf_agent.py")
    assert done.returncode == 0, done.stderr
    earned = re.findall(r"^\[2, 5\] +(\S+) hit$", done.stdout, re.MULTILINE)
    missed = re.findall(r"^\[.*\] +(\S+) miss$", done.stdout, re.MULTILINE)
    assert len(earned) + len(missed) == 16
    assert min(map(float, earned)) > max(map(float, missed))


def test_vllm_sids_finds_items():
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    done = run("vllm_sids.py")
    assert done.returncode == 0, done.stderr
    for kind in ("beams", "draws"):
        items = [int(item) for item in re.search(rf"^{kind}: \[(.+)\]$", done.stdout, re.MULTILINE)[1].split(",")]
        assert len(items) == 5
        assert min(items) >= 0


def test_recommend_answers_and_abstains(pipeline):
    found = run("recommend.py", pipeline.rl, "Film 03 (1983)", "Film 04 (1984)", "-k", 3)
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(r"(0\.\d{3}  Film \d\d \(\d{4}\)\n){3}", found.stdout)
    unsure = run("recommend.py", pipeline.rl, "Film 03 (1983)", "--min-confidence", 1)
    assert unsure.returncode == 1
    assert unsure.stdout == ""
    assert re.fullmatch(r"no recommendation: the first item is next with probability \S+, below 1.0\n", unsure.stderr)
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
