"""The differentiable part of UGR: log-probs on packed trees, the policy loss, the confidence objectives.

All losses take a mask of present candidates (B, G) or tokens (B, G, L) and return one value per group (B,), so that a
trainer can weight groups. The loss of a batch is the mean over its groups, whatever its split into micro-batches and
processes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from ugr_fast.model import head_columns, head_logits, is_sliceable, unwrapped
from ugr_fast.rewards import difficulty_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from ugr_fast.model import Normalize, SidVocabulary
    from ugr_fast.trie import SidTrie

    Score = Callable[..., tuple[torch.Tensor, torch.Tensor]]

PolicyLoss = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]

LARGEST_LOG_RATIO = 20.0  # e^20 is far outside any clip range, and 0 times it is still 0
LOGITS_PER_CHUNK = 2**26  # 256 MB in float32

__all__ = ["clip_share", "confidence_alignment", "difficulty_weight", "kl", "policy", "token_logprobs"]


def token_logprobs(
    model: Any,
    hidden: torch.Tensor,
    logit_index: torch.Tensor,
    tokens: torch.Tensor,
    *,
    normalize: Normalize = "full",
    vocabulary: SidVocabulary | None = None,
    trie: SidTrie | None = None,
    chunk_size: int | None = None,
    entropy: bool = False,
) -> Any:
    """Return log p of every candidate token from the hidden states of packed trees.

    The language-model head runs once per tree node that predicts something, not once per candidate. Where the nodes do
    not fit one chunk, no logits are kept from one chunk to the next: the gradient computes them again, chunk by chunk.

    Args:
        model: causal language model, for its head.
        hidden: (B, T, D) from `model.packed_hidden_states`.
        logit_index: (B, G, L) from `pack_prefixes`, −1 where absent.
        tokens: (B, G, L) the candidates, −1 where absent.
        normalize: "full", "sid" or "allowed", with the meaning that it has in `decode.beam_search`.
        vocabulary: needed for "sid".
        trie: needed for "allowed", and for `entropy`.
        chunk_size: nodes whose logits are held at once, at least 1; as many as make 2^26 logits (256 MB, and for a
            moment of the backward pass four times that) if None.
        entropy: also return how undecided the model is between the allowed tokens.

    Returns:
        (B, G, L), exactly 0 where absent; float32 for a model in half precision. With `entropy` a pair of it and (B,),
        without gradient: the mean, over a group's nodes with more than one allowed child, of the entropy in nats of
        the model's distribution over these children; 0 for a group without such a node.

    Raises:
        ValueError: an unknown `normalize`, `vocabulary` or `trie` is missing where it is needed, a `chunk_size` below
            1, or tokens, candidates' or the trie's, outside of what `normalize` counts.
    """
    columns = head_columns(normalize, vocabulary, trie)
    if entropy and trie is None:
        raise ValueError("`trie` must be given for entropy=True")
    num_tokens = unwrapped(model).config.get_text_config(decoder=True).vocab_size
    low, high = columns or (0, num_tokens)
    present = logit_index >= 0
    wanted = tokens[present]  # (M,)
    if bool(((wanted < low) | (wanted >= high)).any()):
        raise ValueError(
            f"`tokens` must lie in [{low}, {high}) for {normalize=}, got {int(wanted.min())} to {int(wanted.max())}; "
            "score candidates that the decoder may answer"
        )
    rows = torch.arange(len(hidden), device=hidden.device)[:, None, None] * hidden.shape[1]
    nodes, slots = torch.unique((logit_index + rows)[present], return_inverse=True)  # (N,), (M,)
    children = None
    if trie is not None and (entropy or normalize == "allowed"):
        children = _children(trie, tokens, present, slots, len(nodes), (low, high))
    score = partial(_score, model, columns, normalize == "allowed")
    states = hidden.flatten(0, 1)[nodes]  # (N, D)
    size = _chunk_size(chunk_size, high - low if is_sliceable(model.get_output_embeddings()) else num_tokens)
    chosen, spread = _in_chunks(score, size, states, slots, wanted - low, children)
    logprobs = torch.zeros(tokens.shape, dtype=chosen.dtype, device=chosen.device).masked_scatter(present, chosen)
    if children is None or not entropy:
        return logprobs
    inside = nodes // hidden.shape[1] == torch.arange(len(hidden), device=nodes.device)[:, None]  # (B, N)
    return logprobs, _mean(spread.expand(inside.shape), inside & ((children >= 0).sum(1) > 1))


def _chunk_size(chunk_size: int | None, num_columns: int) -> int:
    if chunk_size is None:
        return max(1, LOGITS_PER_CHUNK // num_columns)
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}; None sizes chunks by memory")
    return chunk_size


def _in_chunks(
    score: Score,
    size: int,
    states: torch.Tensor,
    slots: torch.Tensor,
    wanted: torch.Tensor,
    children: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `score` does of all nodes, from `size` of them at a time."""
    if len(states) <= size:
        return score(states, slots, wanted, children)
    order = slots.argsort()
    members = torch.split(order, torch.bincount(slots // size).tolist())  # a chunk's slots; every node has some
    choices = [None] * len(members) if children is None else torch.split(children, size)
    parts = [
        checkpoint(score, some, slots[mine] - number * size, wanted[mine], allowed, use_reentrant=False)
        for number, (some, mine, allowed) in enumerate(zip(torch.split(states, size), members, choices, strict=True))
    ]
    chosen, spread = (torch.cat(part) for part in zip(*parts, strict=True))
    return chosen[order.argsort()], spread


def _score(
    model: Any,
    columns: tuple[int, int] | None,
    allowed_only: bool,
    states: torch.Tensor,
    slots: torch.Tensor,
    wanted: torch.Tensor,
    children: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p (m,) of columns `wanted` at nodes `slots` of `states` (n, D), and the nodes' entropies (n,)."""
    logits = head_logits(model, states, columns)  # (n, V) or the columns' part of it
    spread, counted = logits.new_zeros(len(states)), logits
    if children is not None:
        allowed = logits.gather(1, children.clamp(min=0)).masked_fill(children < 0, -torch.inf)  # (n, C)
        spread = torch.special.entr(allowed.detach().softmax(1)).sum(1)
        counted = allowed if allowed_only else logits
    return logits[slots, wanted] - counted.logsumexp(1)[slots], spread


def _children(
    trie: SidTrie,
    tokens: torch.Tensor,
    present: torch.Tensor,
    slots: torch.Tensor,
    num_nodes: int,
    columns: tuple[int, int],
) -> torch.Tensor:
    """Return the columns (N, C) of the allowed next tokens at every node that predicts a candidate token, −1 padded."""
    low, high = trie.token_span
    if low < columns[0] or high > columns[1]:
        raise ValueError(f"`trie` must hold tokens in [{columns[0]}, {columns[1]}), got [{low}, {high})")
    length = tokens.shape[2]
    prefixes = tokens[:, :, None, :].expand(-1, -1, length, -1)  # (B, G, L, L): row l is for token l ...
    earlier = torch.ones((length, length), dtype=torch.bool, device=tokens.device).tril(-1)  # ... after l tokens
    at_slots = torch.where(earlier, prefixes, -1)[present]  # (M, L)
    at_nodes = torch.empty((num_nodes, length), dtype=torch.long, device=tokens.device)
    at_nodes[slots] = at_slots  # slots of one node agree
    allowed = torch.from_numpy(trie.allowed(trie.walk(at_nodes.cpu().numpy()))).to(tokens.device)
    return torch.where(allowed < 0, -1, allowed - columns[0])


def policy(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    present: torch.Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    delta: float | None = None,
    loss: PolicyLoss = "grpo",
    tokens_per_group: float | None = None,
) -> torch.Tensor:
    r"""Clipped policy-gradient loss of each group; the mean over the groups of a batch is the loss of the batch.

    A token's loss is −min(min(ρ, δ) A, clamp(ρ, 1 − ε, 1 + ε_high) A) with ρ = exp(log π − log π_old), and

    | loss | a token's loss | a group's loss |
    |---|---|---|
    | `"grpo"` | as above | mean over candidates of the mean over tokens |
    | `"dr_grpo"` | as above | mean over candidates of the sum over tokens / L |
    | `"dapo"` | as above | sum over tokens / `tokens_per_group` |
    | `"gspo"` | with ρ = exp(mean over the candidate's tokens of log π − log π_old) | as grpo |
    | `"cispo"` | −sg(min(ρ, ε_high)) A log π, sg without gradient | as dapo |

    Absent candidates count nowhere. log ρ is cut at 20, so a ratio above e^20 stays finite and has no gradient.

    The mean over groups equals TRL's loss on the same tensors: always for "dapo" and "cispo"; for the others, which
    TRL averages over the sequences of a batch, where groups hold equally many candidates. TRL's max_completion_length
    is our L. Its GSPO is loss_type="grpo" with importance_sampling_level="sequence".

    Args:
        logprobs: (B, G, L), with gradient.
        old_logprobs: (B, G, L) of the policy that made the candidates.
        advantages: (B, G).
        present: (B, G, L) bool, True for a real token.
        clip: ε.
        clip_high: ε_high, ε if None. For "cispo" it must be given and is the largest ratio itself, about 5, as in TRL;
            verl's CISPO clamps to [1 − ε, 1 + ε_high] instead.
        delta: δ, bounds the ratio of a candidate with A < 0 (two-sided clipping); above the upper clip bound, no bound
            if None. Without effect on "cispo".
        loss: how tokens are clipped and averaged.
        tokens_per_group: for "dapo" and "cispo", the mean number of tokens of a group over the whole batch, so that
            its micro-batches add up to it; that of `present` if None. The others do not look at it.

    Returns:
        (B,), 0 for a group without candidates.

    Raises:
        ValueError: an unknown `loss`, shapes that do not fit, a clip range that is none, "cispo" without a `clip_high`
            of 1 or more, a `delta` inside the clip range, or `tokens_per_group` that is not positive.
        TypeError: `present` is not bool.

    Example:
        >>> zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool)
        >>> policy(zeros, zeros, torch.tensor([[1.0, -3.0]]), ones).item()
        1.0

    Source:
        GRPO, arXiv 2402.03300, eq. 3; Dr. GRPO, arXiv 2503.20783; DAPO, arXiv 2503.14476; GSPO, arXiv 2507.18071;
        CISPO, arXiv 2506.13585; two-sided clipping, arXiv 2505.07291.
    """
    low, high = _bounds(loss, clip, clip_high)
    _check_shapes(logprobs, old_logprobs, advantages, present)
    if delta is not None and not delta > high:
        raise ValueError(f"`delta` must be above the upper clip bound, {high}, got {delta}; None is no bound")
    if tokens_per_group is not None and not tokens_per_group > 0:
        raise ValueError(f"`tokens_per_group` must be above 0, got {tokens_per_group}; None counts those of `present`")
    ratio = _ratio(logprobs, old_logprobs, present, loss)
    weight, clipped = advantages[..., None], ratio.clamp(low, high)
    if loss == "cispo":
        gain = clipped.detach() * weight * logprobs.masked_fill(~present, 0)
    else:
        bounded = ratio if delta is None else ratio.clamp(max=delta)
        gain = torch.minimum(bounded * weight, clipped * weight)
    return _average(-gain, present, loss, tokens_per_group)


def clip_share(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    present: torch.Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    loss: PolicyLoss = "grpo",
) -> torch.Tensor:
    """Share of each group's tokens that the clipping holds: ρ < 1 − ε with A < 0, or ρ > 1 + ε_high with A > 0.

    For "gspo" it is the share of the candidates; for "cispo" that of the tokens with ρ > ε_high and A > 0. TRL logs
    the share among all tokens of a batch, as clip_ratio/region_mean and cispo_clip_ratio.

    Args:
        logprobs: (B, G, L).
        old_logprobs: (B, G, L) of the policy that made the candidates.
        advantages: (B, G).
        present: (B, G, L) bool, True for a real token.
        clip: ε.
        clip_high: ε_high, with the meaning that it has in `policy`.
        loss: that of `policy`.

    Returns:
        (B,) in [0, 1], without gradient; 0 for a group without candidates.

    Raises:
        ValueError: an unknown `loss`, or "cispo" without `clip_high`.

    Example:
        >>> there = torch.ones(1, 2, 2, dtype=torch.bool)
        >>> moved = torch.tensor([[[0.5, 0.0], [0.5, 0.0]]])
        >>> clip_share(moved, torch.zeros(1, 2, 2), torch.tensor([[1.0, -1.0]]), there).item()
        0.25
    """
    low, high = _bounds(loss, clip, clip_high)
    _check_shapes(logprobs, old_logprobs, advantages, present)
    ratio = _ratio(logprobs.detach(), old_logprobs, present, loss)
    weight = advantages[..., None]
    held = ((ratio < low) & (weight < 0)) | ((ratio > high) & (weight > 0))
    counted = present.any(2, keepdim=True) if loss == "gspo" else present
    return _mean(held.flatten(1).to(ratio.dtype), counted.flatten(1))


def kl(logprobs: torch.Tensor, reference: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """k3 estimate of KL(π ‖ reference) of each group: mean over candidates and tokens of exp(d) − d − 1.

    d is cut at 20: a token that the reference finds e^20 times as likely as the policy costs e^20 − 21 and has no
    gradient, where TRL's estimate overflows in the end.

    Args:
        logprobs: (B, G, L), with gradient.
        reference: (B, G, L) of the frozen reference; d = reference − logprobs.
        present: (B, G, L) bool.

    Returns:
        (B,) ≥ 0.

    Source:
        GRPO, arXiv 2402.03300, eq. 4. TRL multiplies it by ρ unless use_bias_correction_kl=False.
    """
    difference = (reference - logprobs).masked_fill(~present, 0).clamp(max=LARGEST_LOG_RATIO)
    return _average(torch.expm1(difference) - difference, present, "grpo", None)


def _bounds(loss: str, clip: float, clip_high: float | None) -> tuple[float, float]:
    """Return the lowest and the highest ratio that is not clipped."""
    if loss not in get_args(PolicyLoss):
        raise ValueError(f"`loss` must be one of {', '.join(map(repr, get_args(PolicyLoss)))}, got {loss!r}")
    for name, value in (("clip", clip), ("clip_high", clip if clip_high is None else clip_high)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"`{name}` must be a finite number, 0 or more, got {value}")
    if loss != "cispo":
        return 1 - clip, 1 + (clip if clip_high is None else clip_high)
    if clip_high is None or clip_high < 1:
        raise ValueError(f"`clip_high` must be the largest ratio itself for loss='cispo', got {clip_high}; try 5")
    return 0.0, clip_high


def _check_shapes(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, present: torch.Tensor
) -> None:
    shape = logprobs.shape
    shapes = {"old_logprobs": old_logprobs.shape, "advantages": advantages.shape, "present": present.shape}
    for name, found in shapes.items():
        wanted = shape[:2] if name == "advantages" else shape
        if len(shape) != 3 or found != wanted:
            raise ValueError(
                f"`{name}` must have shape {tuple(wanted)} beside `logprobs` (B, G, L), got {tuple(found)} and "
                f"{tuple(shape)}"
            )
    if present.dtype != torch.bool:
        raise TypeError(f"`present` must be bool, got {present.dtype}; pass tokens >= 0")


def _ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor, present: torch.Tensor, loss: str) -> torch.Tensor:
    """Return π / π_old of every token (B, G, L), or for "gspo" its geometric mean over each candidate (B, G, 1)."""
    log_ratio = (logprobs - old_logprobs).masked_fill(~present, 0)
    if loss == "gspo":
        log_ratio = log_ratio.sum(2, keepdim=True) / present.sum(2, keepdim=True).clamp(min=1)
    return torch.exp(log_ratio.clamp(max=LARGEST_LOG_RATIO))


def _average(per_token: torch.Tensor, present: torch.Tensor, loss: str, tokens_per_group: float | None) -> torch.Tensor:
    """Return the loss of each group (B,) from that of its tokens (B, G, L), or of its candidates (B, G, 1)."""
    per_candidate = torch.where(present, per_token, 0).sum(2)  # (B, G)
    lengths = present.sum(2)
    if loss in ("dapo", "cispo"):
        total = per_candidate.sum(1)
        return total / tokens_per_group if tokens_per_group else total * len(total) / lengths.sum().clamp(min=1)
    divisor = present.shape[2] if loss == "dr_grpo" else lengths.clamp(min=1)
    return _mean(per_candidate / divisor, lengths > 0)


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
    hits = hits.bool()
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
