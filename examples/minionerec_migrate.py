"""From a folder as MiniOneRec and UGR lay it out to a policy trained with their rewards; under a minute on one core.

40 toys in five clusters; users walk round one, a step or two at a time. With a folder of your own, start at `migrate`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from ugr_fast import evaluate, rl, sft
from ugr_fast.configs import EvalConfig, MigrateConfig, RlConfig, SftConfig
from ugr_fast.migrate import migrate

folder = tempfile.TemporaryDirectory()  # gone when this ends
root = Path(folder.name)
theirs = root / "Toys"
theirs.mkdir()
index = {item: [f"<a_{item // 8}>", f"<b_{item % 8 // 4}>", f"<c_{item % 4}>"] for item in range(40)}
(theirs / "Toys.index.json").write_text(json.dumps(index))
(theirs / "Toys.item.json").write_text(json.dumps({item: {"title": f"Toy {item}"} for item in index}))
rng = np.random.default_rng(0)
steps = np.cumsum(rng.integers(1, 3, size=(200, 9)), axis=1)  # (users, events)
walks = rng.integers(5, size=(200, 1)) * 8 + (rng.integers(8, size=(200, 1)) + steps) % 8
for split, targets in {"train": range(1, 7), "valid": [7], "test": [8]}.items():
    lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    lines += [f"{u}\t{' '.join(map(str, walk[:t]))}\t{walk[t]}" for t in targets for u, walk in enumerate(walks)]
    (theirs / f"Toys.{split}.inter").write_text("\n".join(lines) + "\n")

print("migrated:", migrate(MigrateConfig(theirs, root / "ours")))
data, tiny = root / "ours" / "data", {"device": "cpu", "threads": 1}
size = {"hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0, "epochs": 8, "eval_every": 4}
sft.train(SftConfig(data, root / "ours" / "sids", root / "sft", **size, **tiny))
for reward in ("ranking", "uncertainty_weighted"):
    # 4/3: their score is the mean over three tokens and the end token, for which a run here has no need
    out, scale = root / reward, {"reward_temperature": 4 / 3}
    rl.train(RlConfig(root / "sft", data, out, reward=reward, group=8, updates=20, eval_every=10, **scale, **tiny))
    found = evaluate.evaluate(EvalConfig(out, data, num_beams=10, **tiny))
    print(f"{reward}: ndcg@10 {found['ranking']['ndcg@10']:.3f}")
