"""The baseline SASRec of docs/results.md: what it trains on, and that its lists are what its scores say."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what they import themselves
    for package in ("torch", "pyarrow", "rectools", "pytorch_lightning"):
        pytest.importorskip(package)
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from ugr_fast import data
    from ugr_fast.baselines import Popularity

    sys.path.insert(0, str(Path(__file__).parents[1] / "benches"))
    import sasrec

NUM_ITEMS, UNSEEN = 30, 29


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Users who walk up the items in a circle, two long ones among them; the last item is in no training row."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = {split: {"user": [], "history": [], "item": []} for split in data.SPLITS}
    for user in range(40):
        length = 25 if user < 2 else int(rng.integers(4, 9))
        walk = ((int(rng.integers(UNSEEN)) + np.arange(length)) % UNSEEN).tolist()
        for place in range(1, length):
            split = {length - 1: "test", length - 2: "valid"}.get(place, "train")
            for name, value in zip(rows[split], (user, walk[max(0, place - 10) : place], walk[place]), strict=True):
                rows[split][name].append(value)
    for history in ([UNSEEN], [3, UNSEEN, 4]):
        for name, value in zip(rows["test"], (90, history, 5), strict=True):
            rows["test"][name].append(value)
    pq.write_table(pa.table({"item": range(NUM_ITEMS)}), folder / "items.parquet")
    for split, columns in rows.items():
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return data.load(folder)


@pytest.fixture(scope="module")
def trained(dataset):
    return sasrec.fit(dataset, sasrec.Setting("softmax", 0.1, n_factors=16, lr=0.02), seed=0, epochs=6)


def scores(model, history):
    """Every item's score after a history, by the network itself."""
    ids = model.data_preparator.item_id_map
    known = [item for item in history.tolist() if item in ids.external_ids]
    session = torch.zeros(1, 10, dtype=torch.long)
    session[0, 10 - len(known) :] = torch.as_tensor(ids.convert_to_internal(known))
    model.torch_model.eval()
    with torch.no_grad():
        logits = model.torch_model({"x": session})[0, -1].numpy()
    found = np.full(NUM_ITEMS, -np.inf)
    for item in range(NUM_ITEMS):
        if item in ids.external_ids:
            found[item] = logits[ids.convert_to_internal([item])[0]]
    return found


def test_lists_are_what_the_scores_say(dataset, trained):
    popular = Popularity(data.sequences(dataset.train), NUM_ITEMS)
    ranked = sasrec.rank(trained.model, dataset.test, popular, 10)
    for row in range(len(dataset.test)):
        history = dataset.test.history(row)
        expected = popular.order if history.tolist() == [UNSEEN] else np.argsort(-scores(trained.model, history))
        np.testing.assert_array_equal(ranked[row], expected[:10])
    assert any(item in dataset.test.history(row) for row in range(len(ranked)) for item in ranked[row])


def test_the_best_epoch_is_kept_and_measured(dataset, trained):
    assert sasrec.measured(trained.model, dataset, "valid") == trained.valid
    popular = Popularity(data.sequences(dataset.train), NUM_ITEMS)
    ranked = sasrec.rank(trained.model, dataset.valid, popular, 10)
    places = [
        row.tolist().index(item) if item in row else None for row, item in zip(ranked, dataset.valid.item, strict=True)
    ]
    expected = np.mean([0 if place is None else 1 / np.log2(place + 2) for place in places])
    assert trained.ndcg == pytest.approx(expected)
    assert trained.ndcg > 0.5  # what follows is certain, and popularity knows nothing


def test_every_target_of_training_counts_once(dataset):
    train = sasrec.training(dataset).interactions.df
    assert train["weight"].sum() == len(dataset.train)
    assert train.groupby("user_id").size().max() == sasrec.HISTORY + 1


def test_the_loss_is_that_of_rectools(dataset, trained):
    module = trained.model.lightning_model.eval()
    sessions = [([3, 4, 5, 6], [1.0, 0.0, 1.0, 1.0], {}), ([11, 12], [1.0, 1.0], {})]
    batch = trained.model.data_preparator._collate_fn_train(sessions)
    theirs, losses = sasrec.TransformerLightningModule, []
    for kind in (theirs, sasrec.TargetsAlone):
        logits = kind.get_batch_logits(module, batch)
        losses.append(kind._calc_softmax_loss(logits, batch["y"], batch["yw"]))
    torch.testing.assert_close(*losses)


def test_a_setting_is_chosen_on_valid_and_test_is_read_once_per_seed(dataset, tmp_path, monkeypatch, capsys):
    grid = tuple(sasrec.Setting("softmax", dropout, n_factors=8) for dropout in (0.1, 0.9))
    monkeypatch.setattr(sasrec, "GRID", grid)
    monkeypatch.setattr(sasrec, "EPOCHS", 2)
    arguments = ["sasrec.py", "--data", str(dataset.folder), "--out", str(tmp_path / "found.json"), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    sasrec.main()
    found = json.loads((tmp_path / "found.json").read_text())
    best = max(found["tried"], key=lambda each: each["valid"]["ndcg@10"])
    assert [each["test"] for each in found["tried"]] == [None, None]
    assert found["setting"] == best["setting"]
    assert [(run["seed"], run["setting"]) for run in found["runs"]] == [(0, best["setting"]), (1, best["setting"])]
    assert found["runs"][0]["valid"] == best["valid"]
    means = {name: np.mean([run["test"][name] for run in found["runs"]]) for name in sasrec.SHOWN}
    assert found["test"] == pytest.approx(means)
    assert f"{means['ndcg@10']:.4f} |" in capsys.readouterr().out.splitlines()[-1]
