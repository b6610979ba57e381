"""Uncertainty-aware generative recommendation: exact constrained decoding, packed training, confidence.

The names below need numpy alone. The submodules `decode, device, losses, model, sids, sft, rl, evaluate, data, rewards,
metrics, abstention, recommend, report` are imported on first use, so that `import ugr_fast` never imports torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from ugr_fast.advantages import group_advantages, importance_weighted_advantages
from ugr_fast.beam import BeamResult, BeamSearch, beam_search
from ugr_fast.extras import Signpost
from ugr_fast.packing import Packed, pack_prefixes
from ugr_fast.recalibration import Recalibrator
from ugr_fast.trie import Filter, SidTrie

__version__: str  # read from the installed package when asked for, which takes as long as half of numpy

_SUBMODULES = {
    *("decode", "device", "losses", "model", "readout", "sids", "sft", "rl", "confide", "evaluate"),
    *("data", "rewards", "metrics", "abstention", "evidence", "recommend", "report"),
}

__all__ = [
    "BeamResult",
    "BeamSearch",
    "Filter",
    "Packed",
    "Recalibrator",
    "SidTrie",
    "beam_search",
    "group_advantages",
    "importance_weighted_advantages",
    "pack_prefixes",
]


sys.meta_path.insert(0, Signpost)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ugr-fast")
    if name in _SUBMODULES:
        return import_module(f"ugr_fast.{name}")
    raise AttributeError(f"module 'ugr_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, "__version__"})
