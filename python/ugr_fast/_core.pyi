"""The Rust kernels. Arguments are contiguous arrays of exactly these types; the facades see to that."""

from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Filter",
    "Ranks",
    "SidTrie",
    "StepRule",
    "calibration_add",
    "calibration_mass",
    "calibration_merge",
    "calibration_totals",
    "difficulty_weight_f32",
    "difficulty_weight_f64",
    "group_advantages_f32",
    "group_advantages_f64",
    "isotonic_hard",
    "isotonic_weighted",
    "log_loss",
    "log_sum_exp",
    "pack_prefixes",
    "simd",
    "ugr_signal_f32",
    "ugr_signal_f64",
    "uncertainty_weighted_f32",
    "uncertainty_weighted_f64",
]

_Ints: TypeAlias = NDArray[np.int64]
_Uints: TypeAlias = NDArray[np.uint32]
_Bools: TypeAlias = NDArray[np.bool_]
_Singles: TypeAlias = NDArray[np.float32]
_Doubles: TypeAlias = NDArray[np.float64]
_Narrow: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]

# ---- trie

@final
class SidTrie:
    # sids (N, L) right-padded with -1, items (N,)
    @staticmethod
    def build(sids: _Ints, items: _Ints, end: int | None, num_threads: int) -> SidTrie: ...
    # tokens (num_nodes,), first_child (last_level + 1,), ends, ranks, item_offsets, items; kept, not copied
    @staticmethod
    def from_arrays(
        tokens: _Narrow,
        first_child: _Uints,
        ends: _Uints,
        ranks: _Uints,
        item_offsets: _Uints,
        items: _Uints | _Ints,
        check: bool,
    ) -> SidTrie: ...
    # the arguments of `from_arrays`, without changes
    def arrays(self) -> tuple[_Narrow, _Uints, _Uints, _Uints, _Uints, _Uints | _Ints]: ...
    def add(self, sids: _Ints, items: _Ints, end: int | None) -> SidTrie: ...
    def remove(self, items: _Ints) -> SidTrie: ...
    @property
    def changed_nodes(self) -> int: ...
    # (ids of all lists, end of each list)
    def filter(self, allow: tuple[_Ints, _Ints] | None, deny: tuple[_Ints, _Ints] | None) -> Filter: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_items(self) -> int: ...
    @property
    def num_sids(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def token_span(self) -> tuple[int, int]: ...
    @property
    def prefix_free(self) -> bool: ...
    # prefixes (N, d) right-padded with -1 -> nodes (N,), -1 outside
    def walk(self, prefixes: _Ints) -> _Ints: ...
    # nodes (B, W) -> tokens (B * W, C), right-padded with -1
    def allowed(self, nodes: _Ints, filter: Filter | None) -> _Ints: ...
    # -> items (M,)
    def items_at(self, node: int) -> _Ints: ...
    # nodes (B, W) -> items (B, W), -1 for none
    def lowest_items(self, nodes: _Ints, filter: Filter | None) -> _Ints: ...
    # nodes (B, W) -> items (B, num_items), right-padded with -1
    def expand(self, nodes: _Ints, num_items: int, filter: Filter | None) -> _Ints: ...
    # -> tokens (num_items, depth) right-padded with -1, items (num_items,)
    def sids(self) -> tuple[_Ints, _Ints]: ...

@final
class Filter:
    @property
    def num_rows(self) -> int: ...

# ---- beam: nodes, totals, keys (B, W); scores (B * W, V or C) -> parents, tokens, nodes, totals, keys,
# logprobs, live, each (B, num_beams), and whether any is live

@final
class StepRule:
    # columns: normalise over these; live: over the live children; seed: of the draws and their first row, None for none
    def __new__(
        cls,
        num_beams: int,
        columns: tuple[int, int] | None,
        live: bool,
        sharpness: float,
        seed: tuple[int, int] | None,
        perturb: bool,
        groups: int,
        diversity: float,
        num_threads: int,
    ) -> StepRule: ...
    def step_f32(
        self,
        trie: SidTrie,
        filter: Filter | None,
        nodes: _Ints,
        totals: NDArray[np.float32],
        keys: NDArray[np.float32],
        scores: NDArray[np.float32],
        depth: int,
        over_candidates: bool,
        weight: float,
    ) -> tuple[
        _Ints,
        _Ints,
        _Ints,
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.bool_],
        bool,
    ]: ...
    def step_f64(
        self,
        trie: SidTrie,
        filter: Filter | None,
        nodes: _Ints,
        totals: NDArray[np.float64],
        keys: NDArray[np.float64],
        scores: NDArray[np.float64],
        depth: int,
        over_candidates: bool,
        weight: float,
    ) -> tuple[
        _Ints,
        _Ints,
        _Ints,
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.bool_],
        bool,
    ]: ...

# scores (N, V) -> (N,)
def log_sum_exp(scores: NDArray[np.float32], num_threads: int) -> NDArray[np.float64]: ...

# ---- packing: prompts flat, offsets (B + 1,), completions (B * G * L,), suffix (S,) -> tokens, position,
# exit (B * T,), length (B,), logit_index (B * G * L,), suffix_index (B * G,), T

def pack_prefixes(
    prompts: _Ints,
    offsets: _Ints,
    completions: _Ints,
    group: int,
    depth: int,
    suffix: _Ints,
    pad_token: int,
) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints, _Ints, int]: ...

# ---- advantage: rewards (N,), offsets (num_groups + 1,) -> (N,)

def group_advantages_f32(
    rewards: NDArray[np.float32], offsets: _Ints, scale: str, eps: float, ddof: int
) -> NDArray[np.float32]: ...
def group_advantages_f64(
    rewards: NDArray[np.float64], offsets: _Ints, scale: str, eps: float, ddof: int
) -> NDArray[np.float64]: ...

# ---- reward: hits, scores, lengths, mask (B, G) -> rewards (B * G,), weight (B,); tokens (B, G, L), target (B, L),
# scores, mask (B, G) -> hits, rewards (B * G,), weight (B,), advantages (B * G,)

def uncertainty_weighted_f32(
    hits: _Bools, scores: _Singles, lengths: _Doubles | None, temperature: float, mask: _Bools | None
) -> _Singles: ...
def difficulty_weight_f32(
    hits: _Bools, scores: _Singles, kind: str, alpha_min: float, mask: _Bools | None
) -> _Singles: ...
def ugr_signal_f32(
    tokens: _Ints,
    target: _Ints,
    scores: _Singles,
    mask: _Bools | None,
    by_length: bool,
    temperature: float,
    kind: str,
    alpha_min: float,
    scale: str,
    eps: float,
) -> tuple[_Bools, _Singles, _Singles, _Singles]: ...
def uncertainty_weighted_f64(
    hits: _Bools, scores: _Doubles, lengths: _Doubles | None, temperature: float, mask: _Bools | None
) -> _Doubles: ...
def difficulty_weight_f64(
    hits: _Bools, scores: _Doubles, kind: str, alpha_min: float, mask: _Bools | None
) -> _Doubles: ...
def ugr_signal_f64(
    tokens: _Ints,
    target: _Ints,
    scores: _Doubles,
    mask: _Bools | None,
    by_length: bool,
    temperature: float,
    kind: str,
    alpha_min: float,
    scale: str,
    eps: float,
) -> tuple[_Bools, _Doubles, _Doubles, _Doubles]: ...

# ---- calibration: confidence, correct, weight (N,); sums (bins, 8, 2), the low word of each number first

_Confidence: TypeAlias = _Singles | _Doubles
_Outcome: TypeAlias = NDArray[np.uint8] | _Doubles
_Words: TypeAlias = NDArray[np.uint64]

def calibration_add(
    sums: _Words, confidence: _Confidence, correct: _Outcome, weight: _Doubles | None, closed_right: bool
) -> _Words: ...
def calibration_merge(sums: _Words, other: _Words) -> _Words: ...

# -> lower edges (bins,), the last upper edge, sums
def calibration_mass(confidence: _Confidence, correct: _Outcome, bins: int) -> tuple[_Doubles, float, _Words]: ...

# -> samples (bins,), and (8, bins): w, w^2, wc, wy, wc^2, wcy, wy^2, wc - wy
def calibration_totals(sums: _Words) -> tuple[_Words, _Doubles]: ...
def log_loss(confidence: _Confidence, correct: _Outcome, from_logits: bool) -> float: ...

# ---- ranks

@final
class Ranks:
    # scores, correct (N,)
    def __new__(cls, scores: _Confidence, correct: _Bools) -> Ranks: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_errors(self) -> int: ...
    def auroc(self) -> float: ...
    def average_precision(self) -> float: ...
    def aurc(self) -> float: ...
    def best_aurc(self) -> float: ...
    def augrc(self) -> float: ...
    # -> samples kept, errors among them, threshold, one each per distinct score
    def curve(self) -> tuple[_Words, _Words, _Doubles]: ...

# ---- isotonic: confidence, correct, weight (N,) -> confidence, value (knots,)

def isotonic_hard(confidence: _Singles | _Doubles, correct: NDArray[np.uint8]) -> tuple[_Doubles, _Doubles]: ...
def isotonic_weighted(confidence: _Doubles, correct: _Doubles, weight: _Doubles) -> tuple[_Doubles, _Doubles]: ...

# ---- simd: name of the vector instructions that the kernels use here

def simd() -> str: ...
