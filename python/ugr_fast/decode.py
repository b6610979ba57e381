"""Constrained beam search with a causal language model, as one tree per prompt.

Each prompt is prefilled once. At every level the K live beams are K query tokens of one row that attend to the
shared prompt and to their own ancestors::

    keys     | prompt (P) | level 0: K slots | level 1: K slots | ...
    query k  |  its mask  | slot path[k, 0]  | slot path[k, 1]  | itself

so no key or value is ever copied or reordered. Cost per prompt: P + K·(L − 1) token forwards, against the
K·(P + L − 1) of a search over expanded rows. A model's `generation_config` is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from ugr_fast.beam import BeamSearch
from ugr_fast.model import confidence_logit, hidden_states

if TYPE_CHECKING:
    from ugr_fast.model import SidVocabulary
    from ugr_fast.trie import SidTrie

Normalize = Literal["full", "sid", "allowed"]


@dataclass(frozen=True)
class Beams:
    """What `beam_search` found: K beams per prompt, best first.

    Attributes:
        tokens: (B, K, L) int64, −1 where a beam is shorter or absent.
        scores: (B, K) sums of token log-probs, −inf for an absent beam.
        logprobs: (B, K, L) token log-probs, 0 past the end of a beam.
        items: (B, K) int64, the lowest item id of each semantic ID, −1 for an absent beam.
        confidence: (B, K) in [0, 1], NaN for an absent beam; None if it was not asked for.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    logprobs: torch.Tensor
    items: torch.Tensor
    confidence: torch.Tensor | None = None

    def expand_items(self, trie: SidTrie, num_items: int) -> torch.Tensor:
        """Rank items: all items of a semantic ID, ascending id, at the rank of their SID.

        Args:
            trie: the trie that was searched.
            num_items: M, items per prompt.

        Returns:
            (B, M) int64 item ids, −1 where fewer than M were found.
        """
        ranked = np.full((len(self.items), num_items), -1, dtype=np.int64)
        for row, beams in enumerate(self.tokens.cpu().numpy()):
            found = [trie.items_at(sid[sid >= 0]) for sid in beams if sid[0] >= 0]
            items = np.concatenate(found)[:num_items] if found else np.empty(0, dtype=np.int64)
            ranked[row, : len(items)] = items
        return torch.from_numpy(ranked)


class _Tree:
    """The growing tree of one search: which cached slot holds which node of which beam."""

    def __init__(self, attention_mask: torch.Tensor, num_beams: int) -> None:
        self.prompt = attention_mask.bool()  # (B, P)
        self.length = self.prompt.sum(1)  # (B,)
        self.num_beams = num_beams
        self.path = torch.empty(
            (len(self.prompt), num_beams, 0), dtype=torch.long, device=attention_mask.device
        )  # (B, K, levels): slot of each ancestor, -1 where the beam had ended

    def follow(self, parents: torch.Tensor) -> None:
        """Let every beam inherit the ancestors of its parent."""
        index = parents.clamp(min=0)[:, :, None].expand(-1, -1, self.path.shape[2])
        self.path = torch.gather(self.path, 1, index)

    def grow(self, live: torch.Tensor) -> None:
        """Give every live beam (B, K) its own slot in a new level."""
        slots = torch.arange(self.num_beams, device=live.device).expand_as(live)
        self.path = torch.cat([self.path, torch.where(live, slots, -1)[:, :, None]], dim=2)

    def keys(self) -> torch.Tensor:
        """Return (B, K, P + levels·K) bool: what each beam may attend to in the cache."""
        batch, beams, levels = self.path.shape
        slots = torch.arange(beams, device=self.path.device)
        tree = (self.path[..., None] == slots).reshape(batch, beams, levels * beams)
        return torch.cat([self.prompt[:, None, :].expand(-1, beams, -1), tree], dim=2)


def beam_search(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SidTrie,
    *,
    num_beams: int,
    normalize: Normalize = "full",
    vocabulary: SidVocabulary | None = None,
    confidence: bool = False,
) -> Beams:
    """Find the `num_beams` best semantic IDs for every prompt, exactly as a beam search over `trie` defines them.

    score(sid) = Σ_l log p(token_l | prompt, earlier tokens); ties by (score descending, parent beam ascending,
    token ascending).

    Args:
        model: causal language model in eval mode, decoder reachable through `base_model_prefix`.
        input_ids: (B, P) prompt tokens, padded on either side.
        attention_mask: (B, P), 1 for a token and 0 for padding.
        trie: semantic IDs that may be answered.
        num_beams: K ≥ 1.
        normalize: log-probs over the whole vocabulary ("full"), over the tokens of `vocabulary`'s semantic IDs
            ("sid"), or over the children of each node ("allowed").
        vocabulary: needed for "sid" and for `confidence`.
        confidence: also run the confidence suffix on every beam.

    Returns:
        The beams, on the CPU.

    Raises:
        ValueError: on shapes that disagree, an empty prompt, or a missing `vocabulary`.

    Source:
        Equal, beam for beam, to `transformers.generate` with a prefix function where the trie holds at least K
        semantic IDs; the tree form is docs/trie.md.
    """
    _check(input_ids, attention_mask, normalize, vocabulary, confidence)
    device = next(model.parameters()).device
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    search = BeamSearch(trie, len(input_ids), num_beams)
    tree = _Tree(attention_mask, num_beams)
    cache = DynamicCache()
    with torch.no_grad():
        hidden = _prefill(model, input_ids, attention_mask, cache)  # (B, D)
        while True:
            search.step(_logprobs(model, hidden, search, normalize, vocabulary), over="candidates")
            tree.follow(torch.from_numpy(search.parents).to(device))
            if search.done:
                break
            hidden = _extend(model, search, tree, cache)  # (B * K, D)
        beams = search.result()
        scored = _confidence(model, beams.tokens, tree, cache, vocabulary) if confidence and vocabulary else None
    return Beams(
        tokens=torch.from_numpy(beams.tokens),
        scores=torch.from_numpy(beams.scores),
        logprobs=torch.from_numpy(beams.logprobs),
        items=torch.from_numpy(beams.items),
        confidence=scored,
    )


def _check(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    normalize: str,
    vocabulary: SidVocabulary | None,
    confidence: bool,
) -> None:
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            "`input_ids` and `attention_mask` must share one shape (B, P), got "
            f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        )
    if len(input_ids) == 0 or not bool(attention_mask.bool().any(dim=1).all()):
        raise ValueError("`attention_mask` must leave at least one token in every row; a prompt is empty")
    if normalize not in ("full", "sid", "allowed"):
        raise ValueError(f"`normalize` must be 'full', 'sid' or 'allowed', got {normalize!r}")
    if vocabulary is None and (confidence or normalize == "sid"):
        raise ValueError("`vocabulary` must be given for `confidence=True` and `normalize='sid'`")


def _prefill(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, cache: Any) -> torch.Tensor:
    """Return the hidden state (B, D) of every prompt's last token."""
    keep = attention_mask.bool()
    width = input_ids.shape[1]
    causal = torch.ones((width, width), dtype=torch.bool, device=input_ids.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=input_ids.device)
    allowed = (causal & keep[:, None, :]) | itself  # padding attends to itself alone, so no softmax is empty
    positions = (keep.long().cumsum(1) - 1).clamp(min=0)
    hidden = hidden_states(model, input_ids, allowed, positions, cache)
    last = width - 1 - keep.flip(1).long().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _extend(model: Any, search: BeamSearch, tree: _Tree, cache: Any) -> torch.Tensor:
    """Run every beam's newest token: hidden states (B·K, D)."""
    device = tree.prompt.device
    live = torch.from_numpy(search.live).to(device)
    tokens = torch.from_numpy(search.last_tokens).to(device).clamp(min=0)
    positions = (tree.length + search.depth - 1)[:, None].expand_as(tokens)
    tree.grow(live)
    allowed = tree.keys()
    own = torch.eye(tree.num_beams, dtype=torch.bool, device=device)
    allowed[:, :, -tree.num_beams :] |= own  # a beam that has ended attends to itself, so no softmax is empty
    return hidden_states(model, tokens, allowed, positions, cache).flatten(0, 1)


def _logprobs(
    model: Any,
    hidden: torch.Tensor,
    search: BeamSearch,
    normalize: Normalize,
    vocabulary: SidVocabulary | None,
) -> np.ndarray:
    """Return the log-probs (rows, C) of `search.candidates`, −inf where padded."""
    candidates = torch.from_numpy(search.candidates).to(hidden.device)
    logits = model.get_output_embeddings()(hidden)  # (rows, V)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    chosen = logits.gather(1, candidates.clamp(min=0)).masked_fill_(candidates < 0, -torch.inf)
    if normalize == "allowed":
        total = chosen.logsumexp(1, keepdim=True)
    elif normalize == "sid" and vocabulary is not None:
        low, high = vocabulary.sid_range
        total = logits[:, low:high].logsumexp(1, keepdim=True)
    else:
        total = logits.logsumexp(1, keepdim=True)
    logprobs: np.ndarray = (chosen - total).cpu().numpy()
    return logprobs


def _confidence(model: Any, tokens: np.ndarray, tree: _Tree, cache: Any, vocabulary: SidVocabulary) -> torch.Tensor:
    """Return the confidence (B, K) of every beam: its last token and the suffix, one chain a beam."""
    device = tree.prompt.device
    sids = torch.from_numpy(tokens).to(device)  # (B, K, L)
    batch, beams, _ = sids.shape
    length = (sids >= 0).sum(2)  # (B, K)
    last = sids.gather(2, (length - 1).clamp(min=0)[..., None]).clamp(min=0)  # (B, K, 1)
    suffix = torch.tensor(vocabulary.suffix, device=device).expand(batch, beams, -1)
    chain = torch.cat([last, suffix], dim=2)  # (B, K, S)
    steps = torch.arange(chain.shape[2], device=device)
    positions = tree.length[:, None, None] + (length - 1).clamp(min=0)[..., None] + steps
    own = torch.eye(beams, dtype=torch.bool, device=device)[:, None, :, None]  # beam sees its own chain ...
    earlier = (steps[:, None] >= steps)[None, :, None, :]  # ... up to itself
    inside = (own & earlier).reshape(1, chain[0].numel(), chain[0].numel()).expand(batch, -1, -1)
    outside = tree.keys().repeat_interleave(chain.shape[2], dim=1)
    hidden = hidden_states(model, chain.flatten(1), torch.cat([outside, inside], dim=2), positions.flatten(1), cache)
    at_end = hidden.view(batch, beams, chain.shape[2], -1)[:, :, -1]  # (B, K, D)
    values = torch.sigmoid(confidence_logit(model, at_end, vocabulary))
    return values.masked_fill(length == 0, torch.nan).cpu()
