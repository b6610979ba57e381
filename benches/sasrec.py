"""SASRec, by RecTools, on the rows that every model of docs/results.md is measured on.

    pip install 'rectools[torch]==0.19.0'                                # before Python 3.13 with 'pyarrow==23.0.1'
    python benches/sasrec.py --data folder --out sasrec.json             # ten minutes of one core
    python benches/sasrec.py --data folder --out sasrec.json --quick     # a smoke version: half a minute

`folder` is a data folder of `ugr-fast prepare`, or one that benches/paper.py made. RecTools wants an environment of its
own: before Python 3.13 it holds NumPy at 1, which a newer pyarrow refuses.

It is trained on the training split alone, cut into the windows that fine-tuning takes, each a user. A row of valid or
test is a user too, whose interactions are the row's history; the whole catalogue is ranked for it, items of the history
included. Loss, dropout and the number of epochs are chosen by NDCG@10 on valid, the first two with seed 0; test is read
once per seed, in the end.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import table_head, table_row
from ugr_fast import data as ugr_data
from ugr_fast import metrics
from ugr_fast.baselines import Popularity
from ugr_fast.configs import METRIC_DEPTH
from ugr_fast.files import write_json
from ugr_fast.progress import bar, say

try:
    import pandas as pd
    from pytorch_lightning import seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.transformers.lightning import TransformerLightningModule
except ModuleNotFoundError as error:
    sys.exit(f"benches/sasrec.py needs {error.name}: pip install 'rectools[torch]==0.19.0'")

Ints = NDArray[np.int64]

HISTORY = 10
EPOCHS, LEAST, PATIENCE = 60, 20, 5
"""Epochs at most and at least, as the first ten may teach popularity alone; looks at valid that find nothing better."""
SHOWN = ("hr@1", "hr@3", "hr@5", "hr@10", "ndcg@3", "ndcg@5", "ndcg@10")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Setting:
    """What is chosen on valid."""

    loss: str
    dropout_rate: float
    n_factors: int = 64
    lr: float = 2e-3
    every: int = 1
    """Epochs from one look at valid to the next: with one negative per target an epoch is short and teaches little."""


GRID = (Setting("softmax", 0.2), Setting("softmax", 0.5), Setting("BCE", 0.2, every=5))


@dataclass(frozen=True)
class Fit:
    """A trained model, as it was at its best on valid."""

    setting: Setting
    seed: int
    epochs: int
    """That were the best number."""
    seconds: float
    """Of processor, with the epochs that came after."""
    valid: dict[str, float]
    test: dict[str, float] | None
    """None until it is asked for."""
    model: SASRecModel

    @property
    def ndcg(self) -> float:
        """What everything is chosen by."""
        return self.valid["ndcg@10"]

    def record(self) -> dict[str, Any]:
        """Return what the file says of it."""
        fields = {name: value for name, value in vars(self).items() if name != "model"}
        return fields | {"setting": asdict(self.setting)}


class TargetsAlone(TransformerLightningModule):
    """RecTools' softmax loss, without what it computes of padding: the same number in half the time."""

    def get_batch_logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (targets, items) logits, in the place of (sessions, positions, items)."""
        if self.loss != "softmax":
            return super().get_batch_logits(batch)
        items = self.torch_model.item_model.get_all_embeddings()
        sessions = self.torch_model.encode_sessions(batch, items)
        return self.torch_model.similarity_module(sessions[batch["yw"] > 0], items)

    @classmethod
    def _calc_softmax_loss(cls, logits: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, y[w > 0])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Lightning and pandas warn of in RecTools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- training


def fit(dataset: ugr_data.Dataset, setting: Setting, seed: int, epochs: int = EPOCHS) -> Fit:
    """Train until `PATIENCE` looks at valid have found nothing better, and keep the weights of the best."""
    start = time.process_time()
    seed_everything(seed, verbose=False)
    known = {name: value for name, value in asdict(setting).items() if name != "every"}
    model = SASRecModel(**known, session_max_len=HISTORY, lightning_module_type=TargetsAlone)
    train, best, weights = training(dataset), 0, {}
    valid: dict[str, float] = {}
    with bar(f"{setting.loss}, dropout {setting.dropout_rate}, seed {seed}", epochs) as advance:
        for epoch in range(setting.every, epochs + 1, setting.every):
            with quiet():
                model.fit_partial(train, setting.every, setting.every)
            found = measured(model, dataset, "valid")
            if not valid or found["ndcg@10"] > valid["ndcg@10"]:
                best, valid = epoch, found
                weights = {name: value.clone() for name, value in model.torch_model.state_dict().items()}
            advance(setting.every, f"NDCG@10 {found['ndcg@10']:.4f}, best {valid['ndcg@10']:.4f} at {best}")
            if epoch >= LEAST and epoch - best >= PATIENCE * setting.every:
                break
    model.torch_model.load_state_dict(weights)
    return Fit(setting, seed, best, time.process_time() - start, valid, None, model)


def training(dataset: ugr_data.Dataset) -> Dataset:
    """Return the windows of the training split; an item that is only there for context weighs nothing as a target."""
    windows = ugr_data.windows(ugr_data.sequences(dataset.train), HISTORY + 1)
    lengths = np.diff(windows.offsets)
    position = np.arange(len(windows.items)) - np.repeat(windows.offsets[:-1], lengths)
    return interactions(windows.offsets, windows.items, position >= np.repeat(windows.first_target, lengths))


def interactions(offsets: Ints, items: Ints, weights: NDArray[np.bool_] | None = None) -> Dataset:
    """Return each stretch `items[offsets[i]:offsets[i + 1]]` as the interactions of user i."""
    columns = {
        Columns.User: np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
        Columns.Item: items,
        Columns.Weight: 1.0 if weights is None else weights.astype(float),
        Columns.Datetime: pd.to_datetime(np.arange(len(items)), unit="s"),  # only their order is read
    }
    return Dataset.construct(pd.DataFrame(columns))


# ---- measuring


def measured(model: SASRecModel, dataset: ugr_data.Dataset, split: str) -> dict[str, float]:
    """Return HR and NDCG on a split."""
    rows: ugr_data.Rows = getattr(dataset, split).latest(HISTORY)
    popular = Popularity(ugr_data.sequences(dataset.train), dataset.num_items)
    ranked = rank(model, rows, popular, METRIC_DEPTH)
    return {
        f"{label}@{k}": float(metric(ranked, rows.item, k).mean())
        for k in (1, 3, 5, 10)
        for label, metric in (("hr", metrics.recall_at), ("ndcg", metrics.ndcg_at))
    }


def rank(model: SASRecModel, rows: ugr_data.Rows, popular: Popularity, k: int) -> Ints:
    """(N, k) items for N rows, best first.

    RecTools knows the items of the training split alone, and skips the others in a history; where that leaves nothing,
    the list is the most popular items.
    """
    ranked = popular.rank(rows, k)
    with quiet():
        found = model.recommend(
            np.arange(len(rows)),
            interactions(rows.offsets, rows.items),
            k,
            filter_viewed=False,
            on_unsupported_targets="ignore",
        )
    ranked[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
    return ranked


# ---- the whole


def study(dataset: ugr_data.Dataset, out: Path, grid: tuple[Setting, ...], seeds: int, epochs: int) -> list[Fit]:
    """Choose a setting with the first seed, train the others with it, and write what is known after each."""
    tried = [fit(dataset, setting, 0, epochs) for setting in grid]
    chosen = max(tried, key=lambda each: each.ndcg)
    runs: list[Fit] = []
    for seed in range(seeds):
        run = fit(dataset, chosen.setting, seed, epochs) if seed else chosen
        runs.append(replace(run, test=measured(run.model, dataset, "test")))
        found = {
            "versions": {name: version(name) for name in ("rectools", "torch")},
            "rows": {split: len(getattr(dataset, split)) for split in ugr_data.SPLITS},
            "tried": [each.record() for each in tried],
            "setting": asdict(chosen.setting),
            "runs": [each.record() for each in runs],
            "test": {name: float(np.mean([each.test[name] for each in runs if each.test])) for name in SHOWN},
        }
        write_json(out, found)
    return [each for each in tried if each is not chosen] + runs


def table(fits: list[Fit]) -> str:
    """Return a line for every training; test where it was read, and its mean."""
    lines = [table_head("loss, dropout, seed", "epochs", "CPU min", "valid NDCG@10", *(name.upper() for name in SHOWN))]
    for each in fits:
        name = f"{each.setting.loss}, {each.setting.dropout_rate}, {each.seed}"
        cells = (f"{each.test[name]:.4f}" if each.test else None for name in SHOWN)
        lines.append(table_row(name, str(each.epochs), each.seconds / 60, f"{each.ndcg:.4f}", *cells))
    tests = [each.test for each in fits if each.test]
    means = (f"{np.mean([test[name] for test in tests]):.4f}" for name in SHOWN)
    valid = f"{np.mean([each.ndcg for each in fits if each.test]):.4f}"
    return "\n".join([*lines, table_row("mean of the seeds", None, None, valid, *means)])


def main() -> None:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--quick", action="store_true", help="a smoke version: one setting, one seed, two epochs")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    torch.set_num_threads(1)
    dataset = ugr_data.load(args.data)
    grid, seeds, epochs = (GRID[:1], 1, 2) if args.quick else (GRID, args.seeds, EPOCHS)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(table(study(dataset, args.out, grid, seeds, epochs)))
    say(f"written to {args.out}")


if __name__ == "__main__":
    main()
