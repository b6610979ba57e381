"""Every kernel from eight threads at once, on objects that all use, gives what it gives one thread, bit for bit."""

from __future__ import annotations

import _thread
import ast
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
import pytest
import ugr_fast
from processes import SECONDS
from threads import in_threads
from ugr_fast import BeamSearch, SidTrie, _core

STUB = Path(ugr_fast.__file__).with_name("_core.pyi")
NUM_THREADS = 8
TOKENS = 40
WORTH_A_THREAD = 2**15  # rows that more than one thread sorts; see rust/trie/build.rs
SIGNAL = (True, 0.5, "rank", 0.1, "std", 1e-4)  # by_length, temperature, kind, alpha_min, scale, eps
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# ----------------------------------------------------------------------------------------------------- what is called


class Shared:
    """What all threads use at once. A new one has a trie without the index that the first filter or change makes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.sids = rng.integers(0, TOKENS, (WORTH_A_THREAD + 1, 4))
        self.items = rng.permutation(len(self.sids))
        self.some = (self.sids[:2000].copy(), self.items[:2000].copy())
        self.new = (self.sids[2000:2100].copy(), self.items[2000:2100].copy())
        self.old = self.items[:2000:5].copy()
        self.lists = (rng.integers(0, len(self.sids), 8000), np.arange(1000, 8001, 1000))  # one for each row of a batch
        self.trie = SidTrie.build(*self.some)
        self.changed = SidTrie.build(*self.some).remove(self.old).add(*self.new)
        self.kept = self.changed.filter(deny=self.lists[0].reshape(8, 1000))
        self.rules = {num_threads: rule(num_threads) for num_threads in (1, 2)}
        self.prefixes = self.sids[:400, :2].copy()
        self.nodes = rng.integers(-1, 1000, (8, 5))
        self.correct = rng.random(4000) < 0.3
        self.hits = self.correct.view(np.uint8)
        self.group = self.correct.reshape(250, 16)
        self.mask = rng.random((250, 16)) < 0.9
        self.tokens = rng.integers(0, 3, (250, 16, 3))
        self.target = rng.integers(0, 3, (250, 3))
        self.groups = np.arange(0, 4001, 16)
        self.sums = rng.integers(0, 2**40, (15, 8, 2)).astype(np.uint64)
        self.singles, self.doubles = (numbers(dtype) for dtype in (np.float32, np.float64))
        self.ranks = _core.Ranks(self.singles.confidence, self.correct)

    def rated(self, given: SimpleNamespace) -> tuple:
        return self.group, given.logprobs

    def generated(self, given: SimpleNamespace) -> tuple:
        return self.tokens, self.target, given.logprobs, self.mask


def numbers(dtype: type) -> SimpleNamespace:
    """The same numbers in one of the two precisions."""
    rng = np.random.default_rng(1)
    arrays = {
        "scores": rng.normal(size=(48, TOKENS)),
        "confidence": rng.integers(0, 200, 4000) / 199,  # with ties
        "soft": rng.random(4000),
        "weight": rng.random(4000),
        "rewards": rng.normal(size=4000),
        "logprobs": -rng.random((250, 16)),
    }
    return SimpleNamespace(**{name: array.astype(dtype) for name, array in arrays.items()})


def rule(num_threads: int) -> _core.StepRule:
    return _core.StepRule(5, None, True, 0.5, None, False, 1, 0.0, num_threads)


def step(shared: Shared, rule: _core.StepRule, dtype: type) -> tuple:
    """A step by a rule, which does not change and may be everyone's."""
    kernel, given = (rule.step_f32, shared.singles) if dtype is np.float32 else (rule.step_f64, shared.doubles)
    root, zeros = np.zeros((8, 1), np.int64), np.zeros((8, 1), dtype)
    return kernel(shared.changed._inner, shared.kept._inner, root, zeros, zeros, given.scores[:8], 0, False, 1.0)


def search(shared: Shared, dtype: type, num_threads: int) -> list:
    """Whole searches of the shared tries, each by an object of its own."""
    scores = (shared.singles if dtype is np.float32 else shared.doubles).scores
    fresh = shared.trie.filter(deny=shared.old)
    arrays = []
    for trie, kept, settings in (
        (shared.changed, shared.kept, {"normalize": "full"}),
        (shared.changed, shared.kept, {"normalize": "allowed", "num_groups": 5, "diversity": 0.5}),
        (shared.trie, fresh, {"method": "stochastic", "seed": 3}),
        (shared.trie, None, {"method": "sample", "seed": 4}),
    ):
        found = BeamSearch(trie, 8, 5, filter=kept, num_threads=num_threads, **settings)
        while not found.done:
            found.step(scores[: found.num_rows])
        result = found.result()
        arrays += [result.tokens, result.scores, result.logprobs, result.items, result.expand_items(9)]
    return arrays


Call: TypeAlias = Callable[[Shared, int], object]
"""A call of one kernel, given what is shared and the number of threads that it may use itself."""

CALLS: dict[str, Call] = {
    "SidTrie.build": lambda s, n: _core.SidTrie.build(s.sids, s.items, None, n),
    "SidTrie.from_arrays": lambda s, n: _core.SidTrie.from_arrays(*s.trie._inner.arrays(), True),
    "SidTrie.arrays": lambda s, n: s.trie._inner.arrays(),
    "SidTrie.add": lambda s, n: s.trie._inner.add(*s.new, None),
    "SidTrie.remove": lambda s, n: s.trie._inner.remove(s.old),
    "SidTrie.changed_nodes": lambda s, n: s.changed._inner.changed_nodes,
    "SidTrie.filter": lambda s, n: s.trie._inner.allowed(s.nodes, s.trie._inner.filter(s.lists, None)),
    "SidTrie.num_nodes": lambda s, n: (s.trie._inner.num_nodes, s.changed._inner.num_nodes),
    "SidTrie.num_items": lambda s, n: (s.trie._inner.num_items, s.changed._inner.num_items),
    "SidTrie.num_sids": lambda s, n: (s.trie._inner.num_sids, s.changed._inner.num_sids),
    "SidTrie.depth": lambda s, n: (s.trie._inner.depth, s.changed._inner.depth),
    "SidTrie.token_span": lambda s, n: (s.trie._inner.token_span, s.changed._inner.token_span),
    "SidTrie.prefix_free": lambda s, n: (s.trie._inner.prefix_free, s.changed._inner.prefix_free),
    "SidTrie.walk": lambda s, n: (s.trie._inner.walk(s.prefixes), s.changed._inner.walk(s.prefixes)),
    "SidTrie.allowed": lambda s, n: s.changed._inner.allowed(s.nodes, s.kept._inner),
    "SidTrie.items_at": lambda s, n: s.changed._inner.items_at(s.changed.num_nodes - 2),
    "SidTrie.lowest_items": lambda s, n: s.changed._inner.lowest_items(s.nodes, s.kept._inner),
    "SidTrie.expand": lambda s, n: s.changed._inner.expand(s.nodes, 9, s.kept._inner),
    "SidTrie.sids": lambda s, n: s.changed.compact()._inner,
    "Filter.num_rows": lambda s, n: s.kept._inner.num_rows,
    "StepRule.__new__": lambda s, n: step(s, rule(n), np.float64),
    "StepRule.step_f32": lambda s, n: (step(s, s.rules[n], np.float32), *search(s, np.float32, n)),
    "StepRule.step_f64": lambda s, n: (step(s, s.rules[n], np.float64), *search(s, np.float64, n)),
    "log_sum_exp": lambda s, n: _core.log_sum_exp(s.singles.scores, n),
    "pack_prefixes": lambda s, n: _core.pack_prefixes(s.items[:4000], s.groups, s.tokens.ravel(), 16, 3, s.old, 7),
    "calibration_add": lambda s, n: _core.calibration_add(s.sums, s.singles.confidence, s.hits, s.doubles.weight, True),
    "calibration_merge": lambda s, n: _core.calibration_merge(s.sums, s.sums),
    "calibration_mass": lambda s, n: _core.calibration_mass(s.doubles.confidence, s.doubles.soft, 15),
    "calibration_totals": lambda s, n: _core.calibration_totals(s.sums),
    "log_loss": lambda s, n: _core.log_loss(s.doubles.confidence, s.doubles.soft, True),
    "Ranks.__new__": lambda s, n: _core.Ranks(s.doubles.confidence, s.correct).curve(),
    "Ranks.num_samples": lambda s, n: s.ranks.num_samples,
    "Ranks.num_errors": lambda s, n: s.ranks.num_errors,
    "Ranks.auroc": lambda s, n: s.ranks.auroc(),
    "Ranks.average_precision": lambda s, n: s.ranks.average_precision(),
    "Ranks.aurc": lambda s, n: s.ranks.aurc(),
    "Ranks.best_aurc": lambda s, n: s.ranks.best_aurc(),
    "Ranks.augrc": lambda s, n: s.ranks.augrc(),
    "Ranks.curve": lambda s, n: s.ranks.curve(),
    "isotonic_hard": lambda s, n: _core.isotonic_hard(s.singles.confidence, s.hits),
    "isotonic_weighted": lambda s, n: _core.isotonic_weighted(s.doubles.confidence, s.doubles.soft, s.doubles.weight),
    "group_advantages_f32": lambda s, n: _core.group_advantages_f32(s.singles.rewards, s.groups, "std", 1e-4, 1),
    "group_advantages_f64": lambda s, n: _core.group_advantages_f64(s.doubles.rewards, s.groups, "std", 1e-4, 1),
    "uncertainty_weighted_f32": lambda s, n: _core.uncertainty_weighted_f32(*s.rated(s.singles), None, 0.5, s.mask),
    "uncertainty_weighted_f64": lambda s, n: _core.uncertainty_weighted_f64(*s.rated(s.doubles), None, 0.5, s.mask),
    "difficulty_weight_f32": lambda s, n: _core.difficulty_weight_f32(*s.rated(s.singles), "rank", 0.1, s.mask),
    "difficulty_weight_f64": lambda s, n: _core.difficulty_weight_f64(*s.rated(s.doubles), "rank", 0.1, s.mask),
    "ugr_signal_f32": lambda s, n: _core.ugr_signal_f32(*s.generated(s.singles), *SIGNAL),
    "ugr_signal_f64": lambda s, n: _core.ugr_signal_f64(*s.generated(s.doubles), *SIGNAL),
    "simd": lambda s, n: _core.simd(),
}


def declared() -> set[str]:
    """Every function, method and property of the stub."""
    found = set()
    for node in ast.parse(STUB.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_every_kernel_is_called():
    assert declared() == set(CALLS), "a kernel without a call in the table, or a call without its kernel"


# ------------------------------------------------------------------------------------------------------------ answers


def bits(value: object) -> object:
    """A result down to its bits; a trie is its arrays and what one reads in them."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, tuple):
        return tuple(map(bits, value))
    if isinstance(value, _core.SidTrie):
        return bits((*value.arrays(), *value.sids(), value.changed_nodes))
    return value.hex() if isinstance(value, float) else value


@pytest.fixture(scope="module")
def expected():
    """What one thread gets that does nothing else."""
    shared = Shared()
    return {name: bits(call(shared, 1)) for name, call in CALLS.items()}


def wrong(shared: Shared, expected: dict[str, object], seed: int) -> list[str]:
    """The kernels that answer otherwise, called in an order of their own with one and two threads in turn."""
    names = random.Random(seed).sample(list(CALLS), len(CALLS))
    return [name for i, name in enumerate(names) if bits(CALLS[name](shared, 1 + (seed + i) % 2)) != expected[name]]


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_threads_get_what_one_gets_alone(expected, rounds):
    """In every round all threads begin with a trie that has no index, and each comes to make it from another call."""
    for first in range(0, rounds * NUM_THREADS, NUM_THREADS):
        shared = Shared()
        calls = [lambda seed=first + i, shared=shared: wrong(shared, expected, seed) for i in range(NUM_THREADS)]
        assert in_threads(*calls) == [[]] * NUM_THREADS


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("forks", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_fork_in_the_middle(expected, forks):
    """A child that is forked while others are in the kernels can call them all, and the others notice nothing."""
    shared, finished = [Shared()], threading.Event()

    def call(seed: int) -> list[str]:
        found = []
        while not finished.is_set():
            found += wrong(shared[0], expected, seed)
        return found

    def fork() -> list[int]:
        try:
            return [forked(expected, shared, seed) for seed in range(forks)]
        finally:
            finished.set()

    *found, codes = in_threads(*[lambda seed=seed: call(seed) for seed in range(NUM_THREADS - 1)], fork)
    assert found == [[]] * (NUM_THREADS - 1)
    assert codes == [0] * forks


def forked(expected: dict[str, object], shared: list[Shared], seed: int) -> int:
    """The exit code of a child in which all kernels are called: 0 if they answer as expected."""
    shared[0] = Shared()  # the others make its index just now
    child = os.fork()
    if child == 0:
        try:
            os._exit(len(wrong(shared[0], expected, seed)))
        finally:
            os._exit(99)  # an exception must not go on in the copy of the test that the child is
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a child hangs that was forked with seed {seed}")


@pytest.mark.parametrize("interrupts", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_an_interrupt_comes_between_calls(expected, interrupts):
    """Control-C during a kernel ends no thread of it half-way and leaves nothing locked."""
    shared, pause = Shared(), random.Random(0)
    for seed in range(interrupts):
        timer = threading.Timer(pause.uniform(0, 0.05), _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  (it may come anywhere)
            timer.start()
            while True:
                wrong(shared, expected, seed)
        timer.join()
    assert wrong(shared, expected, 0) == []


# ---------------------------------------------------------------------------------------------------- a shared search


def searched(shared: Shared, number: int = 1) -> tuple[BeamSearch, list[str]]:
    """A search that `number` threads step until it is done, and what it refused them with."""
    search = BeamSearch(shared.changed, 8, 5, filter=shared.kept, normalize="full", num_threads=2)

    refusals = []

    def go_on() -> None:
        while not search.done:
            try:
                search.step(shared.doubles.scores[: search.num_rows])
            except (RuntimeError, ValueError) as error:
                refusals.append(str(error))

    in_threads(*[go_on] * number)
    return search, refusals


def outcome(search: BeamSearch) -> list[object]:
    result = search.result()
    return [bits(array) for array in (result.tokens, result.scores, result.logprobs, result.items)]


@pytest.mark.parametrize("rounds", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_a_search_that_two_threads_step_is_never_wrong(rounds):
    """Their scores do not depend on the beams, so steps in turn end as those of one thread do."""
    shared = Shared()
    alone, refusals = searched(shared)
    assert not refusals
    for _ in range(rounds):
        search, refusals = searched(shared, 2)
        assert search.depth == alone.depth
        assert outcome(search) == outcome(alone)
        for said in refusals:  # the search is busy, or has become another since the thread looked at it
            assert any(reason in said for reason in ("must be called by one thread", "is done", "must have shape"))


def test_a_second_thread_is_refused_during_a_step():
    class Awaited:
        """Scores that are there only when the other thread has tried."""

        def __array__(self, *_, **__) -> np.ndarray:
            asked.set()
            assert tried.wait(SECONDS)
            return np.log([[0.5, 0.25]])

    trie, asked, tried = SidTrie.build([[0], [1]]), threading.Event(), threading.Event()
    search = BeamSearch(trie, 1, 2)

    def try_too() -> None:
        assert asked.wait(SECONDS)
        try:
            with pytest.raises(RuntimeError, match="must be called by one thread at a time, and another is in it"):
                search.step(np.log([[0.25, 0.5]]))
        finally:
            tried.set()

    in_threads(lambda: search.step(Awaited()), try_too)
    assert search.result().items.tolist() == [[0, 1]]
    with pytest.raises(RuntimeError, match="the search is done"):
        search.step(np.log([[0.25, 0.5]]))


def test_a_search_goes_on_after_an_interrupt():
    """A step that control-C has ended is done or is not; the thread that it hit may go on."""

    class Interrupted:
        def __array__(self, *_, **__) -> np.ndarray:
            raise KeyboardInterrupt

    search = BeamSearch(SidTrie.build([[0], [1]]), 1, 2)
    with pytest.raises(KeyboardInterrupt):
        search.step(Interrupted())
    search.step(np.log([[0.25, 0.5]]))
    assert search.result().items.tolist() == [[1, 0]]
