"""Where cosine + Markov puts each test row's next item: what a model, or a readout of one, is compared with row by row.

    folder=data/industrial
    python benches/paper_baseline.py --data $folder --embeddings $folder/embeddings.npy --set industrial

Writes baseline-SET.npz into `--into`, beside the records of the runs; `paper_tables.py` takes it from there. The
baseline counts the training split and has nothing to train: it is the same for every seed.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from paper import SETS
from ugr_fast import baselines, data, sids
from ugr_fast.configs import METRIC_DEPTH
from ugr_fast.files import new_file


def places(dataset: data.Dataset, embeddings: np.ndarray) -> np.ndarray:
    """Return (N,) the place of each test row's item among the first ten, -1 where it is not there."""
    rows = dataset.test
    model = baselines.CosineMarkov(data.sequences(dataset.train), embeddings)
    hits = model.rank(rows, METRIC_DEPTH) == rows.item[:, None]
    found: np.ndarray = np.where(hits.any(1), hits.argmax(1), -1)
    return found


def main() -> None:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--embeddings", type=Path, required=True, help=".npy file of item embeddings")
    parser.add_argument("--set", choices=[*SETS], required=True, help="whose runs it is compared with")
    parser.add_argument("--into", type=Path, default=Path("benches/records"), help="folder of the records")
    args = parser.parse_args()
    dataset = data.load(args.data)
    rank = places(dataset, sids.load_embeddings(args.embeddings, dataset.num_items))
    with new_file(args.into / f"baseline-{args.set}.npz") as path:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, rank=rank.astype(np.int8), users=dataset.test.user)
        path.write_bytes(buffer.getvalue())
    print(f"{len(rank)} rows, {(rank >= 0).mean():.4f} of them among the first ten")


if __name__ == "__main__":
    main()
