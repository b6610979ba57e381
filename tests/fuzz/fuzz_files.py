"""Files that come from outside, valid and then damaged: each is refused with a message that says where, or read.

    make fuzz                                                  every target, ten minutes each
    python tests/fuzz/fuzz_files.py events -max_total_time=60  one of them; the options are those of libFuzzer

A case is a list of damages (see `damages`) to the files that a target makes, as JSON. `corpus/TARGET.jsonl` keeps the
cases worth repeating, one a line; tests/test_fuzz.py repeats them. Coverage guides the search, and a case grows and
shrinks by whole damages. One that fails is left in target/fuzz: mend what it shows, and add its line.

    trie       a trie file: checked, trusted, mapped         run      config, catalogue, checkpoint, confidence of a run
    events     what `prepare` reads, and then writes         report   what evaluations leave
    data       a data folder                                 migrate  folders of MiniOneRec and UGR
    sids       semantic IDs, their vectors, embeddings       arrays, changes   the kernels, in Rust: targets.rs
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from damages import damaged

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[2]
KERNELS = ("arrays", "changes")
"""What is fuzzed in Rust: see targets.rs."""
REFUSALS = (ValueError, OSError)
"""What a command line turns into one line, and what docstrings announce; all else is a bug."""
MOST = 6
"""Damages in a case."""

Case = list[list[int]]


class Target(NamedTuple):
    """What reads files."""

    write: Callable[[Path], None]
    """Writes valid ones into a folder."""
    read: Callable[[Path, set[str]], None]
    """Reads those of a folder, some of them damaged, and asks all of what it got."""


def check(name: str, case: Case) -> bool:
    """Read the files of a target after some damages; whether they were taken.

    Raises:
        AssertionError: they were refused by a message that does not say which file or argument.
        Exception: any other than a refusal.
    """
    files, meant = damaged(valid(name), case)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        folder = Path(root) / "f"
        fill(folder, files)
        try:
            with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                TARGETS[name].read(folder, meant)
        except REFUSALS as error:
            if str(folder) not in str(error) and "`" not in str(error):
                raise AssertionError(f"refused without a place: {error!r}") from error
            return False
    return True


def fill(folder: Path, files: dict[str, bytes]) -> None:
    """Write files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@cache
def valid(name: str) -> dict[str, bytes]:
    """The files that a target writes, by name."""
    with tempfile.TemporaryDirectory() as root:
        TARGETS[name].write(Path(root))
        paths = [path for path in Path(root).rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def numbers(data: bytes) -> Case:
    """The case that bytes stand for; the empty one if they are none."""
    try:
        case = json.loads(data)
        return [[abs(int(number)) for number in (*damage, 0, 0, 0, 0)[:4]] for damage in case][:MOST]
    except (ValueError, TypeError, RecursionError, OverflowError):
        return []


def corpus(name: str) -> list[Case]:
    """The cases that are kept."""
    path = CORPUS / f"{name}.jsonl"
    return [numbers(line.encode()) for line in path.read_text().splitlines()] if path.exists() else []


# ---- a trie


def write_trie(folder: Path) -> None:
    from ugr_fast import SidTrie

    SidTrie.build([[4, 7], [4, 9], [6, 7], [6, 7], [8, 1, 2]], items=[3, 1, 4, 15, 9]).save(folder / "a.safetensors")
    SidTrie.build([[4, 7], [4, 9], [6, 7]], items=[3, 2**40, 5]).save(folder / "b.safetensors")


def read_trie(folder: Path, meant: set[str]) -> None:
    from ugr_fast import SidTrie

    for path in sorted(folder.iterdir()):
        sign(path)
        refusals = {}
        for check in (False, True):
            for mmap in (False, True):
                try:
                    ask_trie(SidTrie.load(path, check=check, mmap=mmap))
                except ValueError as error:
                    refusals[check, mmap] = error
        assert ((True, False) in refusals) == ((True, True) in refusals), "a mapped file is read differently"
        if (True, True) in refusals:
            raise refusals[True, True]


def sign(path: Path) -> None:
    """Let the checksum be that of the arrays, so that what lies behind it is reached."""
    from ugr_fast import trie

    content = path.read_bytes()
    try:
        arrays, before = trie._read(path, mmap=False)
        path.write_bytes(content.replace(before.encode(), trie._checksum(arrays).encode()))
    except (ValueError, AttributeError):
        return


def ask_trie(trie: Any) -> None:
    """Ask everything; each question has an answer or a ValueError."""
    questions = (
        lambda: (repr(trie), trie.token_span, trie.prefix_free, trie.children([]), trie.items_at([4, 7])),
        lambda: trie.lookup([[4, 7], [6, 7], [70000, 7], [8, -1]]),
        lambda: trie.allowed(np.arange(-1, min(trie.num_nodes, 50))),
        lambda: trie.sids(),
        lambda: search(trie, None),
        lambda: search(trie, trie.filter(deny=[3, 15])),
        lambda: search(trie, trie.filter(allow=[1, 9, 2**40])),
        lambda: trie.remove(trie.sids()[1][:1]).add([[4, 5], [9]], [50, 51]).compact(),
    )
    for question in questions:
        with suppress(ValueError):
            question()


def search(trie: Any, filter: Any) -> None:
    from ugr_fast import BeamSearch

    found = BeamSearch(trie, 1, 3, filter=filter)
    while not found.done:
        assert found.depth <= trie.num_nodes
        found.step(np.zeros(found.candidates.shape), over="candidates")
    found.result().expand_items(4)


# ---- events, and the folder made of them


def write_events(folder: Path) -> None:
    import pyarrow.parquet
    from ugr_fast.data import read_table

    rows = [(f"u{user}", f"i{(user + time) % 5}", f"{time}") for user in range(5) for time in range(4)]
    text = "\n".join(map(",".join, [("user", "item", "timestamp"), *rows])) + "\n"
    (folder / "events.csv").write_text(text)
    (folder / "events.inter").write_text(text.replace("timestamp", "timestamp:float").replace(",", "\t"))
    (folder / "items.csv").write_text(
        "item,title,year\n" + "".join(f'i{item},"Film, {item}",19{item}0\n' for item in range(4))
    )
    for name, columns in (("events", ("user", "item", "timestamp")), ("items", ("item", "title", "year"))):
        pyarrow.parquet.write_table(read_table(folder / f"{name}.csv", columns), folder / f"{name}.parquet")


def read_events(folder: Path, meant: set[str]) -> None:
    from ugr_fast.configs import PrepareConfig
    from ugr_fast.data import prepare

    events = sorted({name for name in meant if name.startswith("events")} or {"events.csv"})
    items = sorted({name for name in meant if name.startswith("items")} or {"items.csv"})
    for number, name in enumerate(events):
        out = folder / f"out{number}"
        settings = {"items": folder / items[0], "items_title": "{title} ({year})", "items_text": ("year",)}
        split = ("temporal", "leave_one_out")[number % 2]
        prepare(PrepareConfig(folder / name, out, core=1, split=split, **settings))
        accepted(use_data, out)


def accepted(use: Callable[..., object], *args: Any) -> None:
    """Use what was written from files that were taken: it may not be refused any more."""
    try:
        use(*args)
    except REFUSALS as error:
        raise AssertionError("what was written is not accepted") from error


def write_data(folder: Path) -> None:
    from ugr_fast.configs import PrepareConfig
    from ugr_fast.data import prepare

    with tempfile.TemporaryDirectory() as root:
        write_events(Path(root))
        out = Path(root) / "out"
        prepare(PrepareConfig(Path(root) / "events.csv", out, core=1, items=Path(root) / "items.csv"))
        shutil.copytree(out, folder, dirs_exist_ok=True)


def use_data(folder: Path) -> None:
    """Use a data folder as training and evaluation do."""
    from ugr_fast import baselines, data

    found = data.load(folder)
    assert len(found.ids) == len(found.titles) == len(found.texts) == found.num_items
    sequences = data.sequences(found.train)
    data.windows(sequences, 4)
    baselines.Markov(sequences, found.num_items).rank(found.test.latest(3), 1)


def read_data(folder: Path, meant: set[str]) -> None:
    use_data(folder)


# ---- semantic IDs and embeddings


def write_sids(folder: Path) -> None:
    from ugr_fast import sids

    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(6, 3)).astype(np.float32)
    codes = np.array([[0, 1, -1], [0, 2, 0], [1, 0, 0], [1, 1, 1], [2, 0, 1], [2, 2, 2]])
    sids.write(folder, codes, [embeddings[:3], embeddings[3:]], {"source": "embeddings"})
    np.save(folder / "embeddings.npy", embeddings)


def read_sids(folder: Path, meant: set[str]) -> None:
    from ugr_fast import sids
    from ugr_fast.model import Catalogue, SidVocabulary
    from ugr_fast.sft import warm_start

    embeddings = sids.load_embeddings(folder / "embeddings.npy", 6)
    assert embeddings.shape[0] == 6
    assert embeddings.dtype == np.float32
    codes, vectors = sids.load_codes(folder), sids.load_code_vectors(folder)
    vocabulary = SidVocabulary.from_scratch([int(size) for size in codes.max(0) + 1])
    Catalogue.build(vocabulary, codes)
    if vocabulary.size < 1000:
        warm_start(small_model(vocabulary.size), vocabulary, vectors, 1.0)


def small_model(size: int) -> Any:
    """A model of one small layer."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    config = transformers.Qwen3Config(vocab_size=size, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    return transformers.Qwen3ForCausalLM(config).eval()


# ---- a run


def write_run(folder: Path) -> None:
    """What sft and eval leave."""
    import torch
    from ugr_fast.confidence import Confidence
    from ugr_fast.configs import SftConfig
    from ugr_fast.decisions import Outcomes, choose
    from ugr_fast.model import SidVocabulary
    from ugr_fast.run import Run

    run = Run.create(folder, "sft", SftConfig(Path("data"), Path("sids"), folder, history=3), torch.device("cpu"))
    codes = np.stack(np.divmod(np.arange(12), 4), 1)
    names = [f"Film {item}" for item in range(12)]
    run.save_catalogue(SidVocabulary.from_scratch((3, 4)), codes, names, [name[5:] for name in names])
    run.save_checkpoint(3, learner(), {"epoch": 1, "stale": 0, "seconds": 1.0}, {"step": 3, "ndcg@10": 0.5})
    (folder / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "valid": {{"hr@1": 0.5}}}}\n' for step in range(3))
    )
    rng = np.random.default_rng(0)
    scores, confidence = -np.sort(rng.exponential(2, (20, 10))), rng.random((20, 10))
    told = Outcomes(scores.astype("f4"), confidence.astype("f4"), rng.integers(-1, 10, 20))
    how = {**run.checkpoint_of(), "num_beams": 10, "normalize": "full", "precision": "float32"}
    Confidence(how, choose(told, method="isotonic"), told).save(run)


def write_one_readout(folder: Path) -> None:
    import torch
    from ugr_fast.data import Sequences
    from ugr_fast.evidence import Evidence
    from ugr_fast.readout import FOLDS, LeftOut, Readout, write_readout

    train = Sequences(np.array([0, 3, 5]), np.array([0, 1, 2, 0, 1]), np.array([0, 1]))
    evidence = Evidence.build(train, 4, np.arange(8.0).reshape(4, 2))
    weight, zeros = torch.linspace(-1, 1, 8, dtype=torch.float64), torch.zeros(FOLDS, dtype=torch.float64)
    left_out = LeftOut(np.array([2, 5]), np.array([4, 0]), weight.repeat(FOLDS, 1), zeros + 1, zeros)
    how = {"step": 3, "model": "0", "normalize": "full", "precision": "float32"}
    write_readout(folder / "readout.safetensors", Readout(weight, 1.1, -0.2, evidence, left_out), how)


def read_one_readout(folder: Path, meant: set[str]) -> None:
    import torch
    from ugr_fast.readout import read_readout

    how, readout = read_readout(folder / "readout.safetensors")
    assert how["readout"] == readout.digest
    states, logprobs = torch.ones(2, len(readout.weight)), torch.tensor([-0.1, -9.0])
    assert readout(states, logprobs).isfinite().all()
    if readout.left_out is not None:
        fold = readout.left_out.fold_of(np.array([2, 3]))
        assert readout(states[:, None], logprobs[:, None], fold).isfinite().all()
    if readout.evidence is not None and len(readout.evidence.popularity):
        assert np.isfinite(readout.evidence([[0], [0, 0]], np.array([[0, -1], [0, 0]]))).all()


def learner() -> Any:
    from ugr_fast.run import Learner

    return Learner.make(small_model(12), 1e-3, 0.0, average=0.5)


def read_run(folder: Path, meant: set[str]) -> None:
    from ugr_fast.recommend import Recommender
    from ugr_fast.run import Run

    reseal(folder, meant)
    run = Run.open(folder)
    recommender = Recommender.load(folder, "cpu")
    run.checkpoint_of("last")
    found = recommender([["#1", "Film 2"], [0, 3, 5, 4]], k=3)
    assert len(found[0]) == 3
    if recommender.confidence is not None:
        width = recommender.confidence.how["num_beams"]
        recommender([[1]], k=3, num_beams=max(3, width), min_confidence=0.1, max_risk=0.5)
    run.metrics()
    run.resume(learner())


def reseal(folder: Path, meant: set[str]) -> None:
    """Let the checksums be those of the damaged files, so that what lies behind them is reached."""
    from ugr_fast.files import CHECKSUMS, write_checksums

    for path in folder.rglob(CHECKSUMS):
        if path.relative_to(folder).as_posix() not in meant:
            names = [line.partition("  ")[2] for line in path.read_text().splitlines()]
            write_checksums(path.parent, [name for name in names if not name.startswith("model/")])


# ---- what evaluations leave, for a report


def write_report(folder: Path) -> None:
    from evaluated import make_run

    make_run(folder / "sft", "sft", num_rows=60, num_users=1)
    make_run(folder / "rl", "rl", num_rows=60, num_users=1)
    for log in folder.glob("*/metrics.jsonl"):
        log.write_text("".join(log.read_text().splitlines(keepends=True)[-4:]))


def read_report(folder: Path, meant: set[str]) -> None:
    """Compose everything but the pictures, which take seconds."""
    from matplotlib.figure import Figure
    from ugr_fast import report
    from ugr_fast.configs import ReportConfig

    runs = [folder / "sft", folder / "rl"]
    report.table(runs)
    unseen = mock.patch.object(Figure, "savefig", lambda _, file, format, **__: format == "svg" and file.write("<svg "))
    with unseen:
        report.write(ReportConfig(tuple(runs), folder / "report"))


# ---- folders of others


def write_migrate(folder: Path) -> None:
    index = {str(item): [f"<a_{item // 2}>", f"<b_{item % 2}>"] for item in range(4)}
    texts = {"0": {"title": "Kite", "description": ["Red.", "Blue."]}, "1": {"title": "Ball", "description": "Round"}}
    rows = [("7", ["0", "1"], "3"), ("8", ["2"], "1")]
    for layout in ("ugr", "minionerec"):
        (folder / layout).mkdir()
        (folder / layout / "Toys.index.json").write_text(json.dumps(index))
        (folder / layout / "Toys.item.json").write_text(json.dumps(texts))
    for split in ("train", "valid", "test"):
        lines = [f"{user}\t{' '.join(history)}\t{item}" for user, history, item in rows]
        header = "user_id:token\titem_id_list:token_seq\titem_id:token"
        (folder / "ugr" / f"Toys.{split}.inter").write_text("\n".join([header, *lines]) + "\n")
        lines = [f'{user},"[{", ".join(history)}]",{item},{"".join(index[item])}' for user, history, item in rows]
        header = "user_id,history_item_id,item_id,item_sid"
        (folder / "minionerec" / split).mkdir()
        (folder / "minionerec" / split / "Toys.csv").write_text("\n".join([header, *lines]) + "\n")


def read_migrate(folder: Path, meant: set[str]) -> None:
    from ugr_fast import sids
    from ugr_fast.configs import MigrateConfig
    from ugr_fast.migrate import migrate

    for layout in sorted({name.partition("/")[0] for name in meant} or {"ugr", "minionerec"}):
        out = folder / f"out-{layout}"
        migrate(MigrateConfig(folder / layout, out))
        accepted(use_data, out / "data")
        accepted(sids.load_codes, out / "sids")


# ---- the table

TARGETS = {
    "trie": Target(write_trie, read_trie),
    "events": Target(write_events, read_events),
    "data": Target(write_data, read_data),
    "sids": Target(write_sids, read_sids),
    "run": Target(write_run, read_run),
    "readout": Target(write_one_readout, read_one_readout),
    "report": Target(write_report, read_report),
    "migrate": Target(write_migrate, read_migrate),
}


# ---- the search


def vary(data: bytes, max_size: int, seed: int) -> bytes:
    """Another case: a damage more, a damage less, or one of the numbers changed."""
    rng = random.Random(seed)
    case, step = numbers(data), rng.random()
    if not case or (step < 0.3 and len(case) < MOST):
        case.insert(rng.randint(0, len(case)), [rng.randrange(64), rng.randrange(64), large(rng), large(rng)])
    elif step < 0.4:
        del case[rng.randrange(len(case))]
    else:
        damage = rng.choice(case)
        place = rng.choice((1, 2, 2, 3, 3, 3))
        damage[place] = abs(damage[place] + rng.choice((-1, 1))) if rng.random() < 0.3 else large(rng)
    return json.dumps(case).encode()


def large(rng: random.Random) -> int:
    """A number that is small as often as it is large."""
    return rng.randrange(4 ** rng.randint(1, 8))


def run_once(name: str) -> Callable[[bytes], None]:
    """What libFuzzer calls."""
    return lambda data: check(name, numbers(data)) and None


def main(name: str, options: Iterable[str]) -> None:
    """Search for cases, from those that are kept and those that were found before in target/fuzz."""
    found = ROOT / "target" / "fuzz" / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-artifact_prefix={found.parents[1]}/{name}-", *options]
    if name in KERNELS:
        for number, line in enumerate((CORPUS / f"{name}.hex").read_text().split()):
            (found / f"kept-{number}").write_bytes(bytes.fromhex(line))
        run = [
            "cargo",
            "+nightly",
            "fuzz",
            "run",
            "-s",
            "none",
            "--fuzz-dir",
            "tests/fuzz",
            "--target-dir",
            "target/fuzz",
        ]
        sys.exit(subprocess.run([*run, name, str(found), "--", *options], cwd=ROOT, check=False).returncode)
    import atheris

    with atheris.instrument_imports(include=["ugr_fast"]):
        assert check(name, []), f"the files of {name} are not valid"
    for number, case in enumerate([[], *corpus(name)]):
        (found / f"kept-{number}").write_text(json.dumps(case))
    atheris.Setup([sys.argv[0], *options, str(found)], run_once(name), custom_mutator=vary)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
