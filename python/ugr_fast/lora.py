"""LoRA through peft: low-rank adapters on every linear layer, the embeddings and the head trained whole beside them.

    y = W x + (α / r) B A x        W frozen; A (r, in) random, B (out, r) zero at first

The semantic IDs and the confidence tokens are new to a language model, so their rows must move, as in UGR's released
settings (r 16, α 32, plus embeddings and head). A head tied to the embeddings stays tied: it is the same tensor.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ugr_fast.model import token_tables


def with_lora(model: Any, rank: int, alpha: int) -> Any:
    """Put LoRA adapters on every linear layer of `model` but its head, and freeze what they stand beside.

    Args:
        model: a causal language model of transformers; it is changed in place.
        rank: r ≥ 1.
        alpha: α > 0.

    Returns:
        The model in peft's hull; it computes what `model` did until it is trained.

    Raises:
        ModuleNotFoundError: peft is not installed.

    Source:
        LoRA, arXiv 2106.09685.
    """
    from peft import LoraConfig, get_peft_model

    tables = token_tables(model)
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )  # peft asks for it
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # GPT-2's, and peft sees to it
        adapted = get_peft_model(model, settings)
    for table in tables:
        table.requires_grad_(True)
    return adapted.eval()


def is_adapted(model: Any) -> bool:
    """Whether `model` is in peft's hull."""
    return hasattr(model, "peft_config")


def merged(model: Any) -> Any:
    """Return a plain model of transformers that computes the same: `model` itself, or a copy with adapters added in."""
    return copy.deepcopy(model).merge_and_unload() if is_adapted(model) else model


class Reference:
    """The model as it was when training began, for the KL term.

    A fully trained model is copied whole. An adapted one needs no copy of its frozen layers: its adapters are switched
    off, and the embeddings and the head of the start are put in their place for the while.

    Example:
        with reference.of(model) as frozen:
            expected = frozen(tokens)
    """

    def __init__(self, model: Any) -> None:
        self._tables = [table.detach().clone() for table in token_tables(model)] if is_adapted(model) else []
        self._copy = None if is_adapted(model) else copy.deepcopy(model).requires_grad_(False)

    @contextmanager
    def of(self, model: Any) -> Iterator[Any]:
        """Yield the start of `model`, without gradients; inside, `model` itself must not be used."""
        with torch.no_grad():
            if self._copy is not None:
                yield self._copy
                return
            with model.disable_adapter():
                self._swap(model)
                try:
                    yield model
                finally:
                    self._swap(model)

    def _swap(self, model: Any) -> None:
        for number, table in enumerate(token_tables(model)):
            table.data, self._tables[number] = self._tables[number], table.data
