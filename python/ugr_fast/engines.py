"""How a model runs under a beam search: as one tree per prompt, or as one row per beam.

Both engines are lazy. `follow` only notes which tokens the beams now hold; `logits` runs what the asked beams hold and
has not been run, so a token whose beam never needs another decision is never run at all.

`TreeEngine` copies no key and no value. The beams of a prompt are queries of one row, and `path` says where, among
the cached columns, each beam finds its ancestors::

    columns  | prompt (P)     | x0 x1 x2 | y0 y1 ...
    query y0 | prompt's mask  |  1       |  1          path[y0] = [P - 1, P + 0, P + 3]
    query y1 | prompt's mask  |        1 |     1       path[y1] = [P - 1, P + 2, P + 4]

Cost per prompt: P + K·(L - 1) token forwards at most, against the K·(P + L - 1) of a search over expanded rows.

`RowEngine` is for models that make their own mask. It prefills each prompt once, then repeats and reorders the cache,
and everything that is special about the model is left to the model's own forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from ugr_fast.model import (
    cache_argument,
    confidence_logit,
    forward_arguments,
    head_logits,
    hidden_states,
    refuse_strangers,
    refuse_windows,
    takes_pattern,
    unwrapped,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ugr_fast.model import SidVocabulary


class Engine(Protocol):
    """What `decode.beam_search` needs of a model."""

    def follow(self, parents: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Replace the beams by children of theirs.

        Args:
            parents: (B, K) the beam that each new one extends, -1 for a dead one.
            tokens: (B, K) the token that it adds, -1 for none.
        """

    def logits(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """Return the next token's logits (n, columns) of the beams in `wanted` (B, K), row by row."""

    def states(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """Return the states (n, D) at the last tokens, not run before, of the beams in `wanted` (B, K), row by row."""

    def confidence(self, wanted: NDArray[np.bool_], vocabulary: SidVocabulary) -> torch.Tensor:
        """Return the logit of the confidence (n,) of the beams in `wanted` (B, K), row by row; call it last."""


class TreeEngine:
    """One tree per prompt, for models that attend as an explicit mask says.

    Args:
        model: causal language model.
        input_ids: (B, P), on the model's device.
        attention_mask: (B, P), on the model's device.
        columns: the vocabulary columns that `logits` returns, see `model.head_logits`.

    Raises:
        ValueError: the model narrows its mask, or counts positions itself.
    """

    def __init__(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, columns: tuple[int, int] | None
    ) -> None:
        refuse_strangers(unwrapped(model).config)
        refuse_windows(unwrapped(model).config)
        if not takes_pattern(model):
            raise ValueError("`model` must take 4-D masks and `position_ids`, and this one does not; use engine='rows'")
        self._model = model
        self._columns = columns
        self._mask = attention_mask.bool()
        self._ids = input_ids.masked_fill(~self._mask, 0)  # padding need not be a token
        self._cache = DynamicCache()
        self._length = self._mask.sum(1).cpu().numpy()  # (B,)
        ends = input_ids.shape[1] - 1 - self._mask.flip(1).long().argmax(1)  # (B,)
        # Level 0 of every beam is the prompt's last token: beams without tokens of their own are no special case.
        self._path = ends.cpu().numpy()[:, None, None]  # (B, K, levels): cached column of each token, -1 if not run
        self._real = np.ones_like(self._path, dtype=np.bool_)  # (B, K, levels): False where a beam had ended
        self._tokens = np.zeros_like(self._path)  # (B, K, levels); that of level 0 is never read

    def follow(self, parents: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """See `Engine.follow`."""
        self._path, self._tokens, self._real = (
            np.take_along_axis(array, parents.clip(min=0)[..., None], axis=1)
            for array in (self._path, self._tokens, self._real)
        )
        self._add(tokens[..., None])

    def logits(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """See `Engine.logits`."""
        return head_logits(self._model, self._hidden(wanted), self._columns)

    def states(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """See `Engine.states`."""
        return self._hidden(wanted)

    def confidence(self, wanted: NDArray[np.bool_], vocabulary: SidVocabulary) -> torch.Tensor:
        """See `Engine.confidence`: every beam gets the suffix as a chain of its own."""
        self._add(np.broadcast_to(vocabulary.suffix, (*wanted.shape, len(vocabulary.suffix))))
        return confidence_logit(self._model, self._hidden(wanted), vocabulary)

    def _add(self, tokens: NDArray[np.int64]) -> None:
        """Give the beams further levels (B, K, n), not run yet."""
        self._tokens = np.concatenate([self._tokens, tokens], axis=2)
        self._real = np.concatenate([self._real, tokens >= 0], axis=2)
        self._path = np.concatenate([self._path, np.full_like(tokens, -1)], axis=2)

    def _hidden(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """Run all that the beams in `wanted` (B, K) hold and return the states (n, D) of their last tokens."""
        cached = self._cache.get_seq_length()
        hidden = self._run(*self._chunk(wanted, first=cached or self._ids.shape[1]))
        ends = self._path.max(2)[wanted] - cached  # columns ascend along a path
        rows = np.nonzero(wanted)[0]
        return hidden[torch.from_numpy(rows).to(hidden.device), torch.from_numpy(ends).to(hidden.device)]

    def _chunk(self, wanted: NDArray[np.bool_], first: int) -> tuple[NDArray[np.int64], ...]:
        """Give columns from `first` on to all that the beams in `wanted` hold and that has not been run.

        Returns:
            Tokens (B, Q) and positions (B, Q) of the new columns, and the tree's columns (B, Q, levels) that each of
            them attends to. Q is the largest number in any row; what pads the others attends to the prompt and itself.
        """
        pending = wanted[..., None] & self._real & (self._path < 0)  # (B, K, levels)
        place = pending.reshape(len(pending), -1).cumsum(1).reshape(pending.shape) - 1
        self._path = np.where(pending, first + place, self._path)
        row, beam, level = np.nonzero(pending)
        query = place[pending]
        width = int(pending.sum((1, 2)).max())
        tokens, positions = np.zeros((2, len(pending), width), dtype=np.int64)
        tokens[row, query] = self._tokens[pending]
        positions[row, query] = (self._length[:, None, None] + self._real.cumsum(2) - 2)[pending]
        own = first + np.arange(width)
        columns = np.tile(own[:, None], (len(pending), 1, pending.shape[2]))  # (B, Q, levels)
        path = self._path[row, beam]  # (m, levels)
        known = (np.arange(path.shape[1]) <= level[:, None]) & (path >= 0)
        columns[row, query] = np.where(known, path, own[query, None])
        return tokens, positions, columns

    def _run(self, *chunk: NDArray[np.int64]) -> torch.Tensor:
        """Run a `_chunk`, the first time with the prompt before it: states of all that was run."""
        tokens, positions, columns = (torch.from_numpy(array).to(self._ids.device) for array in chunk)
        cached, prompt = self._cache.get_seq_length(), self._ids.shape[1]
        total = (cached or prompt) + tokens.shape[1]
        allowed = torch.nn.functional.pad(self._mask, (0, total - prompt))[:, None].repeat(1, tokens.shape[1], 1)
        allowed.scatter_(2, columns, True)
        if not cached:
            causal = torch.ones((prompt, prompt), dtype=torch.bool, device=tokens.device).tril() & self._mask[:, None]
            causal |= torch.eye(prompt, dtype=torch.bool, device=tokens.device)  # padding attends to itself alone
            allowed = torch.cat([torch.nn.functional.pad(causal, (0, total - prompt)), allowed], dim=1)
            tokens = torch.cat([self._ids, tokens], dim=1)
            positions = torch.cat([(self._mask.long().cumsum(1) - 1).clamp(min=0), positions], dim=1)
        return hidden_states(self._model, tokens, allowed, positions, self._cache)


class RowEngine:
    """One row per beam, for any causal language model of transformers: its own masks, its own cache, its own logits.

    Args:
        model: causal language model.
        input_ids: (B, P), on the model's device.
        attention_mask: (B, P), on the model's device.
        columns: the vocabulary columns that `logits` returns, as a half-open range; all if None.
    """

    def __init__(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, columns: tuple[int, int] | None
    ) -> None:
        self._model = unwrapped(model)
        refuse_strangers(self._model.config)
        self._accepted = forward_arguments(self._model)
        self._columns = slice(*(columns or (0, None)))
        self._ids, self._mask = left_aligned(input_ids, attention_mask.bool())
        self._cache: Any = None
        self._newest = torch.empty(0)  # (rows of the cache, V), the logits after its last column
        self._num_cached = 0  # levels in the cache
        self._rows: NDArray[np.int64] = np.arange(len(input_ids))[:, None]  # (B, K): row of the cache to continue
        self._tokens = np.empty((len(input_ids), 1, 0), dtype=np.int64)  # (B, K, levels), -1 where a beam had ended

    def follow(self, parents: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """See `Engine.follow`."""
        parents = parents.clip(min=0)
        self._rows = np.take_along_axis(self._rows, parents, axis=1)
        earlier = np.take_along_axis(self._tokens, parents[..., None], axis=1)
        self._tokens = np.concatenate([earlier, tokens[..., None]], axis=2)

    def logits(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """See `Engine.logits`."""
        if self._cache is None:
            self._newest = self._forward(self._ids, self._mask)
        if self._num_cached < self._tokens.shape[2]:
            self._newest = self._advance()
        return self._newest[torch.from_numpy(wanted.ravel()).to(self._newest.device), self._columns]

    def confidence(self, wanted: NDArray[np.bool_], vocabulary: SidVocabulary) -> torch.Tensor:
        """See `Engine.confidence`."""
        suffix = np.broadcast_to(vocabulary.suffix, (*wanted.shape, len(vocabulary.suffix)))
        self._tokens = np.concatenate([self._tokens, suffix], axis=2)
        self._columns = slice(None)
        logits = self.logits(wanted) if (self._tokens[wanted] >= 0).all() else self._from_the_start(wanted)
        return logits[:, vocabulary.positive] - logits[:, vocabulary.negative]

    def states(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """Refuse: a model's own forward ends in logits."""
        raise ValueError("`readout` and `states` need the model's states, which engine='tree' has and 'rows' has not")

    def _advance(self) -> torch.Tensor:
        """Run the levels that are not in the cache yet: logits (B·K, V) after the last one."""
        tokens = torch.from_numpy(self._tokens).to(self._ids.device).flatten(0, 1)  # (B·K, levels)
        self._cache.reorder_cache(torch.from_numpy(self._rows.ravel()).to(self._ids.device))
        num_beams = self._tokens.shape[1]
        self._rows = np.arange(len(tokens)).reshape(-1, num_beams)
        mask = torch.cat([self._mask.repeat_interleave(num_beams, dim=0), tokens >= 0], dim=1)
        chunk = tokens[:, self._num_cached :].clamp(min=0)
        self._num_cached = tokens.shape[1]
        return self._forward(chunk, mask)

    def _from_the_start(self, wanted: NDArray[np.bool_]) -> torch.Tensor:
        """Run whole sequences again: an ended beam's masked columns would count in a window that slides over them."""
        rows = torch.from_numpy(np.nonzero(wanted)[0]).to(self._ids.device)
        tokens = torch.from_numpy(self._tokens[wanted]).to(self._ids.device)  # (n, levels)
        ids = torch.cat([self._ids[rows], tokens], dim=1)
        mask = torch.cat([self._mask[rows], tokens >= 0], dim=1)
        return RowEngine(self._model, ids, mask, None).logits(np.ones((len(ids), 1), dtype=np.bool_))

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run new tokens (rows, Q) under a mask (rows, all columns): logits (rows, V) after the last one."""
        name = cache_argument(self._model)
        settings: dict[str, Any] = {} if self._cache is None else {name: self._cache}  # the model makes its own kind
        if "position_ids" in self._accepted:
            settings["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if "logits_to_keep" in self._accepted:
            settings["logits_to_keep"] = 1
        output = self._model(input_ids=tokens, attention_mask=mask.long(), use_cache=True, **settings)
        self._cache = getattr(output, name)
        return output.logits[:, -1]  # type: ignore[no-any-return]


def left_aligned(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the padding of rows (B, P) to their left and drop what all rows have of it.

    Example:
        >>> ids = torch.tensor([[7, 8, 0, 0], [0, 9, 0, 0]])
        >>> left_aligned(ids, ids > 0)[0]
        tensor([[7, 8],
                [0, 9]])
    """
    order = mask.long().argsort(dim=1, stable=True)  # padding first, tokens in their order
    width = int(mask.sum(1).max())
    mask = mask.gather(1, order)[:, -width:]
    return ids.gather(1, order)[:, -width:].masked_fill(~mask, 0), mask
