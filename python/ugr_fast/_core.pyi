"""The Rust kernels. Arguments are contiguous arrays of exactly these types; the facades see to that."""

from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SidTrie",
    "beam_step_f32",
    "beam_step_f64",
    "calibration_bins",
    "group_advantages_f32",
    "group_advantages_f64",
    "pack_prefixes",
]

_Ints: TypeAlias = NDArray[np.int64]
_Uints: TypeAlias = NDArray[np.uint32]

# ---- trie

@final
class SidTrie:
    # sids (N, L) right-padded with -1, items (N,)
    @staticmethod
    def build(sids: _Ints, items: _Ints, end: int | None) -> SidTrie: ...
    # tokens (num_nodes,), first_child (num_nodes + 1,), terminals (num_sids,), item_offsets
    # (num_sids + 1,), items (num_items,)
    @staticmethod
    def from_arrays(
        tokens: _Uints,
        first_child: _Uints,
        terminals: _Uints,
        item_offsets: _Uints,
        items: _Ints,
    ) -> SidTrie: ...
    # the arguments of `from_arrays`
    def arrays(self) -> tuple[_Uints, _Uints, _Uints, _Uints, _Ints]: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_items(self) -> int: ...
    @property
    def num_sids(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def max_token(self) -> int: ...
    @property
    def prefix_free(self) -> bool: ...
    # prefixes (N, d) right-padded with -1 -> nodes (N,), -1 outside
    def walk(self, prefixes: _Ints) -> _Ints: ...
    # nodes (N,) -> tokens (N, C), right-padded with -1
    def allowed(self, nodes: _Ints) -> _Ints: ...
    # -> items (M,)
    def items_at(self, node: int) -> _Ints: ...
    # nodes (N,) -> items (N,), -1 for none
    def lowest_items(self, nodes: _Ints) -> _Ints: ...
    # -> tokens (num_items, depth) right-padded with -1, items (num_items,)
    def sids(self) -> tuple[_Ints, _Ints]: ...

# ---- beam: nodes, totals (B, W); scores (B * W, V or C) -> parents, tokens, nodes, scores, logprobs,
# live, each (B, num_beams)

def beam_step_f32(
    trie: SidTrie,
    nodes: _Ints,
    totals: NDArray[np.float32],
    scores: NDArray[np.float32],
    num_beams: int,
    over_candidates: bool,
) -> tuple[_Ints, _Ints, _Ints, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]: ...
def beam_step_f64(
    trie: SidTrie,
    nodes: _Ints,
    totals: NDArray[np.float64],
    scores: NDArray[np.float64],
    num_beams: int,
    over_candidates: bool,
) -> tuple[_Ints, _Ints, _Ints, NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]: ...

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

# ---- calibration: confidence, correct (N,) -> lower, upper, count, confidence, accuracy (bins,), Brier score

def calibration_bins(
    confidence: NDArray[np.float32] | NDArray[np.float64],
    correct: NDArray[np.uint8] | NDArray[np.float64],
    bins: int,
    mass: bool,
) -> tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.uint64],
    NDArray[np.float64],
    NDArray[np.float64],
    float,
]: ...
