"""The differentiable part of UGR: log-probs on packed trees, the policy loss, the confidence objectives.

All losses take a mask of present candidates (B, G) and return one value per group (B,), so that a trainer can weight
groups and average them over any split of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import softplus

from ugr_fast.model import head_columns, head_logits
from ugr_fast.rewards import difficulty_weight

if TYPE_CHECKING:
    from ugr_fast.model import Normalize, SidVocabulary
    from ugr_fast.trie import SidTrie

LARGEST_LOG_RATIO = 20.0  # e^20 is far outside any clip range, and 0 times it is still 0

__all__ = ["confidence_alignment", "difficulty_weight", "policy", "token_logprobs"]


def token_logprobs(
    model: Any,
    hidden: torch.Tensor,
    logit_index: torch.Tensor,
    tokens: torch.Tensor,
    *,
    normalize: Normalize = "full",
    vocabulary: SidVocabulary | None = None,
    trie: SidTrie | None = None,
) -> torch.Tensor:
    """Return log p of every candidate token from the hidden states of packed trees.

    The language-model head runs once per tree node that predicts something, not once per candidate.

    Args:
        model: causal language model, for its head.
        hidden: (B, T, D) from `model.packed_hidden_states`.
        logit_index: (B, G, L) from `pack_prefixes`, −1 where absent.
        tokens: (B, G, L) the candidates, −1 where absent.
        normalize: "full", "sid" or "allowed", with the meaning that it has in `decode.beam_search`.
        vocabulary: needed for "sid".
        trie: needed for "allowed".

    Returns:
        (B, G, L), exactly 0 where absent.

    Raises:
        ValueError: an unknown `normalize`, `vocabulary` or `trie` is missing where it needs one, or a token lies
            outside of what `normalize` counts.
    """
    columns = head_columns(normalize, vocabulary, trie)
    present = logit_index >= 0
    width = hidden.shape[1]
    rows = torch.arange(len(hidden), device=hidden.device)[:, None, None] * width
    flat = (logit_index + rows)[present]  # (M,)
    nodes, inverse = torch.unique(flat, return_inverse=True)
    logits = head_logits(model, hidden.flatten(0, 1)[nodes], columns)  # (nodes, V) or the columns' part of it
    low, high = columns or (0, logits.shape[1])
    wanted = tokens[present]
    if bool(((wanted < low) | (wanted >= high)).any()):
        raise ValueError(
            f"`tokens` must lie in [{low}, {high}) for {normalize=}, got {int(wanted.min())} to {int(wanted.max())}; "
            "score candidates that the decoder may answer"
        )
    if normalize == "allowed" and trie is not None:
        children = _children(trie, tokens, present, inverse, len(nodes)).to(logits.device)
        allowed = logits.gather(1, (children - low).clamp(min=0)).masked_fill(children < 0, -torch.inf)
        total = allowed.logsumexp(1)
    else:
        total = logits.logsumexp(1)
    chosen = logits[inverse, wanted - low] - total[inverse]
    return torch.zeros(tokens.shape, dtype=chosen.dtype, device=chosen.device).masked_scatter(present, chosen)


def _children(
    trie: SidTrie, tokens: torch.Tensor, present: torch.Tensor, inverse: torch.Tensor, num_nodes: int
) -> torch.Tensor:
    """Return the allowed next tokens (nodes, C) at every node that predicts a candidate token, −1 padded."""
    length = tokens.shape[2]
    prefixes = tokens[:, :, None, :].expand(-1, -1, length, -1)  # (B, G, L, L): row l is for token l ...
    earlier = torch.ones((length, length), dtype=torch.bool, device=tokens.device).tril(-1)  # ... after l tokens
    at_slots = torch.where(earlier, prefixes, -1)[present]  # (M, L)
    at_nodes = torch.empty((num_nodes, length), dtype=torch.long, device=tokens.device)
    at_nodes[inverse] = at_slots  # slots of one node agree
    return torch.from_numpy(trie.allowed(trie.walk(at_nodes.cpu().numpy())))


def policy(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    present: torch.Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    loss: Literal["grpo", "dr_grpo"] = "grpo",
) -> torch.Tensor:
    r"""Clipped policy-gradient loss of each group.

    −mean_i mean_l min(ρ A, clamp(ρ, 1 − ε, 1 + ε_high) A) with ρ = exp(log π − log π_old); "dr_grpo" divides by the
    longest candidate instead of each candidate's own length. Absent candidates count nowhere.

    Args:
        logprobs: (B, G, L), with gradient.
        old_logprobs: (B, G, L) of the policy that made the candidates.
        advantages: (B, G).
        present: (B, G, L) bool, True for a real token.
        clip: ε.
        clip_high: ε_high, ε if None.
        loss: how tokens are averaged.

    Returns:
        (B,), 0 for a group without candidates.

    Raises:
        ValueError: an unknown `loss`.

    Example:
        >>> zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool)
        >>> policy(zeros, zeros, torch.tensor([[1.0, -3.0]]), ones).item()
        1.0

    Source:
        GRPO, arXiv 2402.03300, eq. 3; Dr. GRPO, arXiv 2503.20783.
    """
    if loss not in ("grpo", "dr_grpo"):
        raise ValueError(f"`loss` must be 'grpo' or 'dr_grpo', got {loss!r}")
    ratio = torch.exp((logprobs - old_logprobs).clamp(max=LARGEST_LOG_RATIO))
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    weight = advantages[..., None]
    per_token = -torch.minimum(ratio * weight, clipped * weight).masked_fill(~present, 0)  # (B, G, L)
    lengths = present.sum(2)  # (B, G)
    divisor = lengths if loss == "grpo" else torch.full_like(lengths, present.shape[2])
    per_candidate = per_token.sum(2) / divisor.clamp(min=1)
    return per_candidate.sum(1) / (lengths > 0).sum(1).clamp(min=1)


def kl(logprobs: torch.Tensor, reference: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """k3 estimate of KL(π ‖ reference) of each group: mean over candidates and tokens of exp(d) − d − 1.

    Args:
        logprobs: (B, G, L), with gradient.
        reference: (B, G, L) of the frozen reference; d = reference − logprobs.
        present: (B, G, L) bool.

    Returns:
        (B,) ≥ 0.

    Source:
        GRPO, arXiv 2402.03300, eq. 4.
    """
    difference = reference - logprobs
    per_token = (torch.exp(difference) - difference - 1).masked_fill(~present, 0)
    lengths = present.sum(2)
    return (per_token.sum(2) / lengths.clamp(min=1)).sum(1) / (lengths > 0).sum(1).clamp(min=1)


def confidence_alignment(
    logits: torch.Tensor,
    hits: torch.Tensor,
    *,
    present: torch.Tensor | None = None,
    partial: torch.Tensor | None = None,
    objective: Literal["released", "logit", "brier"] = "released",
    lambda_wrong: float = 0.5,
    lambda_partial: float = 0.0,
    gamma: float = 0.5,
) -> torch.Tensor:
    """Teach the confidence c = σ(logit) to tell hits from misses.

    released: λ_partial · mean over misses that share the target's first token, plus λ_wrong · mean over the other
    misses, of softplus(c_miss − c_hit); 0 for a group without a hit.
    logit: the same with the logits in place of the confidences, an unbounded margin.
    brier: mean over candidates of (c − (γ · hit + (1 − γ) · mean(hit)))², in every group, hit or not.

    Args:
        logits: (B, G) z_positive − z_negative, with gradient.
        hits: (B, G) bool.
        present: (B, G) bool, all if None.
        partial: (B, G) bool, a miss whose first token is the target's; none if None.
        objective: "released", "logit" or "brier".
        lambda_wrong: weight of the other misses.
        lambda_partial: weight of partial misses.
        gamma: γ, share of the candidate's own outcome in the Brier target.

    Returns:
        (B,); average it over all groups of the batch.

    Raises:
        ValueError: an unknown `objective`.

    Example:
        >>> hit = torch.tensor([[True, False]])
        >>> confidence_alignment(torch.zeros(1, 2), hit).item()  # 0.5 · ln 2
        0.3465735912322998

    Source:
        UGR, arXiv 2602.11719, confidence alignment, as its released code computes it; "logit" and "brier" are ours.
    """
    present = torch.ones_like(hits) if present is None else present
    partial = torch.zeros_like(hits) if partial is None else partial
    hits = hits & present
    if objective not in ("released", "logit", "brier"):
        raise ValueError(f"`objective` must be 'released', 'logit' or 'brier', got {objective!r}")
    if objective == "brier":
        return _brier(torch.sigmoid(logits), hits, present, gamma)
    values = torch.sigmoid(logits) if objective == "released" else logits
    best = torch.where(hits, values, 0).sum(1) / hits.sum(1).clamp(min=1)  # duplicates of the hit share one value
    margin = softplus(values - best[:, None])  # (B, G)
    misses = present & ~hits
    total = lambda_wrong * _mean(margin, misses & ~partial) + lambda_partial * _mean(margin, misses & partial)
    return torch.where(hits.any(1), total, 0)


def _brier(confidence: torch.Tensor, hits: torch.Tensor, present: torch.Tensor, gamma: float) -> torch.Tensor:
    correct = hits.to(confidence.dtype)
    target = gamma * correct + (1 - gamma) * _mean(correct, present)[:, None]
    return _mean((confidence - target) ** 2, present)


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the masked entries of each row; an empty mean is 0."""
    return values.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
