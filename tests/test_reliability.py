"""A killed run ends as an uninterrupted one; forked workers and threads get what one thread gets, and nothing hangs."""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny  # noqa: E402
from pipeline import snapshot  # noqa: E402
from processes import KILL, SECONDS, Change, live, waits  # noqa: E402
from threads import in_threads  # noqa: E402
from ugr_fast import BeamSearch, SidTrie, _core, decode, group_advantages, metrics, pack_prefixes, rewards  # noqa: E402

pytestmark = [
    pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
INTERRUPTED = "ugr-fast: interrupted; repeat the command to go on from the last checkpoint"
COMMANDS = {
    "sft": "sft --epochs 5 --patience 0",
    "sft now and then": "sft --epochs 5 --patience 0 --eval-every 2 --average 0 --muon-lr 0",
    "rl": "rl --updates 6 --eval-every 1 --lr 1e-2 --inner-updates 2",
    "rl from draws": "rl --updates 5 --eval-every 2 --lr 1e-2 --beta 0.1 --rollout stochastic --normalize allowed",
    "rl for long": "rl --updates 40 --eval-every 4 --lr 1e-2 --rollout sample --normalize allowed",
}

# ------------------------------------------------------------------------------------------------- what a run leaves


def outcome(folder: Path) -> dict:
    """Every file and folder of a run, byte for byte but for the times that it took and for TensorBoard's copy."""
    found: dict = {name: content for name, content in snapshot(folder).items() if "tensorboard" not in name}
    for name, content in found.items():
        if name.endswith("metrics.jsonl"):
            found[name] = [timeless(line) for line in content.splitlines()]
        elif name.endswith("state.json"):
            found[name] = timeless(content)
        elif name.endswith("SHA256SUMS"):
            found[name] = [line for line in content.splitlines() if not line.endswith(b"state.json")]
    return found


def timeless(content: bytes) -> dict:
    return {key: value for key, value in json.loads(content).items() if "second" not in key}


def check_whole(folder: Path) -> None:
    """Whatever has its name is whole: checkpoints to the last byte, JSON to the last brace; the best step is there."""
    checkpoints = sorted(folder.glob("checkpoints/step-*"))
    for checkpoint in checkpoints:
        recorded = (checkpoint / "SHA256SUMS").read_text().splitlines()
        files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
        found = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(checkpoint)}" for p in files]
        assert sorted(found) == sorted(recorded), checkpoint
    described = {path.name: json.loads(path.read_text()) for path in folder.glob("[!.]*.json")}
    if "best.json" in described:
        assert folder / "checkpoints" / f"step-{described['best.json']['step']:08d}" in checkpoints


@dataclass
class Run:
    """A run that dies and is started again; `deaths` tells how it went."""

    arguments: list
    folder: Path
    messages: Path
    wanted: dict = field(default_factory=dict)  # what it leaves when nothing stops it
    seconds: float = 0.0  # that it then takes
    deaths: list = field(default_factory=list)

    def live(self, *change: Change, **how) -> int:
        """Start the command, and look at once at what it leaves."""
        code = live(self.arguments, self.messages, *change, **how)
        self.deaths.append((*change, how, code))
        check_whole(self.folder)
        return code

    def live_for(self, share: float) -> None:
        """Live for a share of the time that the whole run takes."""
        end = time.monotonic() + share * self.seconds
        self.live(until=lambda: time.monotonic() > end)

    def live_until_there_is(self, pattern: str) -> None:
        """Live until a file or folder appears that was not there before."""
        pattern = str(self.folder / pattern)
        before = set(glob.glob(pattern))
        self.live(until=lambda: not before.issuperset(glob.glob(pattern)))

    def check_end(self) -> None:
        """Live to the end, which is the end of a run that nothing stopped."""
        assert self.live() == 0, (self.deaths, self.messages.read_text())
        found = outcome(self.folder)
        assert found.keys() == self.wanted.keys(), self.deaths
        assert [name for name in found if found[name] != self.wanted[name]] == [], self.deaths


@pytest.fixture(scope="module")
def new_run(pipeline, tmp_path_factory):
    """A function that returns a new run of a command by its name in COMMANDS."""
    known: dict[str, tuple[dict, float]] = {}

    def start(name: str) -> Run:
        folder = tmp_path_factory.mktemp("run")
        command, *more = COMMANDS[name].split()
        make = {"sft": pipeline.sft_args, "rl": pipeline.rl_args}[command]
        return Run(make(folder / "run", *more), folder / "run", folder / "messages")

    def run(name: str) -> Run:
        if name not in known:
            whole, started = start(name), time.monotonic()
            assert whole.live() == 0, whole.messages.read_text()
            known[name] = outcome(whole.folder), time.monotonic() - started
        made = start(name)
        made.wanted, made.seconds = known[name]
        return made

    return run


# ------------------------------------------------------------------------------------------------------ killed runs


@pytest.mark.parametrize("name", ["sft", "rl from draws"])
def test_killed_before_changes_to_the_disk(new_run, name):
    """Each life ends before a change drawn at random."""
    run, draws = new_run(name), random.Random(name)
    for _ in range(3):
        run.live(Change(draws.randrange(70)))
    run.check_end()


@pytest.mark.parametrize("name", ["sft now and then", "rl"])
def test_killed_at_random_times(new_run, name):
    run, draws = new_run(name), random.Random(name)
    for _ in range(3):
        run.live_for(draws.random())
    run.check_end()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_many_random_times(new_run, name):
    for seed in range(12):
        run, draws = new_run(name), random.Random(seed)
        for _ in range(5):
            run.live_for(draws.random())
        run.check_end()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sft now and then", "rl", "rl from draws"])
def test_killed_before_every_change_to_the_disk(new_run, name):
    for number in count():
        run = new_run(name)
        if run.live(Change(number)) == 0:
            break
        run.check_end()
    assert number > 80


def test_killed_at_the_moments_that_matter(new_run):
    """One life after the other: the next starts from what the last one left."""
    run = new_run("rl")
    for change in (
        Change(0, r"rename .*/config\.json$"),
        Change(0, r"open .*SHA256SUMS"),
        Change(0, r"rename .*step-\d+$"),  # the first checkpoint is whole and has no name
        Change(0, r"rename .*best\.json$"),  # it has its name, and nobody has recorded it
        Change(0, r"rename .*metrics\.jsonl$"),  # the log forgets what will run again
        Change(3, r"open .*metrics\.jsonl$"),
        Change(1, r"rename .*best\.json$"),  # a better checkpoint is there, and the one before is the best on record
        Change(2, r"os\.(remove|rmdir) [^/]+$"),  # a checkpoint is half removed
    ):
        assert run.live(change) == -signal.SIGKILL, (change, run.deaths)
    run.check_end()


def test_killed_as_soon_as_something_appears(new_run):
    run = new_run("rl")
    for pattern in ("checkpoints/.step-*.tmp", "checkpoints/.step-*.tmp/SHA256SUMS", "checkpoints/step-*"):
        run.live_until_there_is(pattern)
    run.check_end()


def test_interrupted(new_run):
    """Ctrl-C says in one line what to do, and leaves a run that goes on."""
    run, draws = new_run("rl from draws"), random.Random(0)
    for _ in range(3):
        assert run.live(Change(draws.randrange(20, 50)), sent=signal.SIGINT) == 130, run.messages.read_text()
        assert run.messages.read_text().splitlines()[-1] == INTERRUPTED
        assert "Traceback" not in run.messages.read_text()
    run.check_end()


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(KILL, marks=pytest.mark.slow)])
def test_interrupted_or_killed_on_the_command_line(new_run, sent):
    run = new_run("rl for long")
    command = [sys.executable, "-m", "ugr_fast.cli", *map(str, run.arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            waits(lambda: process.poll() is None, (run.folder / "best.json").exists)
            process.send_signal(sent)
            messages = process.communicate(timeout=SECONDS)[1]
        finally:
            process.kill()
    check_whole(run.folder)
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert (INTERRUPTED in messages) == (sent == signal.SIGINT)
    assert "Traceback" not in messages
    run.check_end()


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_prepare_leaves_nothing_that_looks_like_data(pipeline, tmp_path, seed):
    out = tmp_path / "data"
    events, items = pipeline.root / "events.csv", pipeline.root / "items.csv"
    arguments = ["prepare", "--events", events, "--items", items, "--out", out, "--core", 1]
    for number in (0, random.Random(seed).randrange(1, 8)):
        assert live(arguments, tmp_path / "messages", Change(number)) == -signal.SIGKILL
        assert not out.exists()
    assert live(arguments, tmp_path / "messages") == 0
    found, wanted = snapshot(out), snapshot(pipeline.data)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == ["meta.json"]  # which names the folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "messages"]


def test_a_killed_confide_leaves_what_was_there(pipeline, tmp_path):
    """No readout, or the one from before."""
    folder = Path(shutil.copytree(pipeline.rl, tmp_path / "rl"))
    arguments = ["confide", "--run", folder, "--data", pipeline.data, "--threads", 1, "--device", "cpu"]
    last = Change(0, r"rename .*readout\.safetensors$")

    def named() -> dict:
        return {name: found for name, found in snapshot(folder).items() if not name.endswith(".tmp")}

    before = named()
    assert live(arguments, tmp_path / "messages", last) == -signal.SIGKILL
    assert named() == before
    assert live(arguments, tmp_path / "messages") == 0
    made = named()
    assert made.keys() - before.keys() == {"readout.safetensors"}
    assert live([*arguments, "--normalize", "sid"], tmp_path / "messages", last) == -signal.SIGKILL
    assert named() == made


# ----------------------------------------------------------------------------------------------- workers and threads


@pytest.fixture(scope="module")
def trie():
    """A trie that several share: with changes, and with an index that the first filter makes."""
    sids = np.random.default_rng(0).integers(0, 30, (4000, 3))
    return SidTrie.build(sids).remove(range(0, 4000, 7)).add([[31, 31, 31]], [9999])


def answers(trie: SidTrie, number: int) -> dict[str, bytes]:
    """What every kernel makes of inputs drawn from `number`."""
    rng, num_threads = np.random.default_rng(number), 1 + number % 2
    built = SidTrie.build(rng.integers(0, 30, (3000, 3)), num_threads=num_threads)
    scores = rng.normal(size=(8, 5, 3, 32)).astype(np.float32)
    kept = trie.filter(deny=rng.integers(0, 4000, (8, 500)))
    search = BeamSearch(trie, 8, 5, filter=kept, normalize="full", num_threads=num_threads)
    while not search.done:
        search.step(scores[:, : search.width, search.depth].reshape(search.num_rows, -1))
    found = search.result()
    hits = found.items % 3 == 0
    earned = rewards.uncertainty_weighted(hits, found.scores, score="sum", mask=found.items >= 0)
    packed = pack_prefixes([[40, 41 + row] for row in range(8)], found.tokens, suffix=[50])
    bins = metrics.calibration(rng.random(2000), rng.random(2000) < 0.3)
    arrays = {
        **{f"trie.{name}": array for name, array in built.arrays().items()},
        **{f"beams.{name}": getattr(found, name) for name in ("tokens", "scores", "logprobs", "items")},
        **{f"packed.{name}": array for name, array in vars(packed).items()},
        **{f"bins.{name}": np.asarray(array) for name, array in vars(bins).items()},
        "items": found.expand_items(20),
        "lookup": trie.lookup(found.tokens[:, 0]),
        "rewards": earned,
        "ranking": rewards.ranking(hits),
        "weight": rewards.difficulty_weight(hits, found.scores),
        "advantages": group_advantages(earned),
        "totals": _core.log_sum_exp(scores.reshape(-1, 32), num_threads),
    }
    return {name: array.tobytes() for name, array in arrays.items()}


class Answers(torch.utils.data.Dataset):
    """`answers` as the items of a data set."""

    def __init__(self, trie: SidTrie) -> None:
        self.trie = trie

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> dict[str, bytes]:
        return answers(self.trie, number)


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_forked_workers_of_a_data_loader(trie, busy):
    """Workers may be forked from a process that has used the kernels, and even while its threads are in them."""
    data = Answers(trie)
    expected = list(map(data.__getitem__, range(len(data))))
    finished = threading.Event()

    def work() -> None:
        while busy and not finished.is_set():
            answers(trie, 1)

    def load() -> list:
        try:
            loader = torch.utils.data.DataLoader(
                data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=SECONDS
            )
            return list(loader)
        finally:
            finished.set()

    *_, found = in_threads(work, work, load)
    assert found == expected


def test_threads_share_tries():
    """Also one that nobody has used yet, whose index all of them make."""
    for seed in range(5):
        trie = SidTrie.build(np.random.default_rng(seed).integers(0, 30, (4000, 3)))
        found = in_threads(*[lambda n=n, trie=trie: answers(trie, n % 2) for n in range(4)])
        assert found == [answers(trie, 0), answers(trie, 1)] * 2


def test_threads_share_a_model():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary).float()
    prompts = torch.randint(1, 5, (4, 2, 6), generator=torch.Generator().manual_seed(0))

    def search(number: int) -> list[bytes]:
        torch.set_num_threads(1)  # which each thread chooses for itself
        found = decode.beam_search(
            model, prompts[number], None, catalogue.trie, num_beams=6, vocabulary=catalogue.vocabulary, confidence=True
        )
        return [found.tokens.numpy().tobytes(), found.scores.numpy().tobytes(), found.confidence.numpy().tobytes()]

    expected = [search(number) for number in range(4)]
    for _ in range(5):
        assert in_threads(*[lambda n=n: search(n) for n in range(4)]) == expected
