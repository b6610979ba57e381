"""The demo from end to end, in its quick form: minutes, so only `make test-slow` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*args, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "ugr_fast.cli", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return done


def test_quick_demo_ends_in_a_report_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("faiss")
    first = run("demo", "--quick", cwd=tmp_path)
    folder = tmp_path / "runs" / "demo"
    assert str(Path("runs/demo/report/report.html")) in first.stdout
    report = (folder / "report" / "report.md").read_text(encoding="utf-8")
    for part in ("popularity", "last-item Markov", "supervised fine-tuning", "UGR", "ECE", "AUROC", "HR@10 kept half"):
        assert part in report
    for name in ("sft", "rl"):
        found = json.loads((folder / name / "eval-test.json").read_text(encoding="utf-8"))
        assert (found["num_rows"], found["readout"]) == (943, True)
        assert found["ranking"]["hr@10"] > found["baselines"]["popularity"]["hr@10"]
    steps = [sorted(path.name for path in (folder / name / "checkpoints").iterdir()) for name in ("sft", "rl")]
    again = run("demo", "--quick", cwd=tmp_path)
    assert "sft epoch" not in again.stderr
    assert steps == [sorted(path.name for path in (folder / name / "checkpoints").iterdir()) for name in ("sft", "rl")]
    answer = run(
        "recommend", "--run", folder / "rl", "--history", "Star Wars (1977); Alien (1979)", "--json", cwd=tmp_path
    )
    items = json.loads(answer.stdout)["items"]
    assert len(items) == 10
    assert all(0 <= item["confidence"] <= 1 for item in items)
