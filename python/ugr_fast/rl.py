"""Reinforcement learning with UGR: rollout by constrained beam search, one packed forward and backward per update.

For a batch of prompts with known next items::

    rollout   G candidates a prompt, exact beam search over the trie, no gradient
    reward    hit test on tokens → reward → group-relative advantage, difficulty weight
    update    prompt + prefix tree of the candidates + confidence suffix in one packed row: log-probs of every candidate
              and its confidence from one forward; loss = mean over groups of w · L_clip + β · KL + L_confidence

Baselines are settings: reward="match", difficulty=False, confidence="none" is GRPO with 0/1 reward; reward="ranking" is
the ranking reward of MiniOneRec.

Departures from UGR's released code: many prompts per micro-batch, so L_confidence is averaged over all groups, those
without a hit included; padding is never attended to; the model runs without dropout, so rollout and update see the same
policy; prompts are those of fine-tuning and evaluation.

The best checkpoint is the one with the highest validation NDCG@10 among those that RL has trained: update 0, the
fine-tuned model itself, is validated to compare with, but has no confidence yet.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ugr_fast import data, losses, metrics, rewards
from ugr_fast.advantages import group_advantages
from ugr_fast.configs import check
from ugr_fast.decode import beam_search
from ugr_fast.model import Catalogue, confidence_logit, packed_hidden_states, pad_left
from ugr_fast.packing import pack_prefixes
from ugr_fast.progress import bar, say
from ugr_fast.recommend import sample_rows, validation_metrics
from ugr_fast.run import Learner, Run, choose_device, seed_everything, set_threads

if TYPE_CHECKING:
    from ugr_fast.configs import RlConfig


@dataclass(frozen=True)
class Rollout:
    """The candidates of a batch of B prompts and what they earned.

    Attributes:
        prompts: B lists of tokens.
        tokens: (B, G, L) candidates in beam order, −1 where absent.
        logprobs: (B, G, L) under the policy that made them.
        hits: (B, G) bool, the candidate is the target.
        partial: (B, G) bool, a miss whose first token is the target's.
        rewards: (B, G), NaN where absent.
        advantages: (B, G), 0 where absent.
        weight: (B,) difficulty weight.
    """

    prompts: list[list[int]]
    tokens: torch.Tensor
    logprobs: torch.Tensor
    hits: torch.Tensor
    partial: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    weight: torch.Tensor

    def take(self, index: list[int]) -> Rollout:
        """Return the groups at `index`."""
        tensors = {name: value[index] for name, value in vars(self).items() if name != "prompts"}
        return Rollout(prompts=[self.prompts[row] for row in index], **tensors)


def train(config: RlConfig) -> dict[str, Any]:
    """Train as `config` says and return the best validation metrics.

    Raises:
        ValueError: settings, data and fine-tuned run that do not fit together.
        FileExistsError: `out` holds another run.
    """
    check(config)
    set_threads(config.threads)
    device = choose_device(config.device)
    start = Run.open(config.run)
    dataset = data.load(config.data)
    catalogue = start.load_catalogue()
    history = _check(config, start, dataset.ids)
    config = replace(config, history=history)
    train_rows, valid_rows = dataset.train.latest(history), dataset.valid.latest(history)
    seed_everything(config.seed)
    model = start.load_model(device)
    run = Run.create(config.out, "rl", config, device)
    run.save_catalogue(catalogue.vocabulary, start.load_codes(), *start.load_items())
    reference = copy.deepcopy(model).requires_grad_(False) if config.beta else None
    learner = Learner.make(model, config.lr, config.weight_decay)
    valid = sample_rows(valid_rows, config.valid_rows, config.seed)
    state = run.resume(learner)
    if state is None:
        state = _validate(config, run, learner, catalogue, valid, {"update": 0, "seconds": 0.0})
    with bar("rl", config.updates, done=state["update"]) as advance:
        while state["update"] < config.updates:
            rows = train_rows.take(batch_of(state["update"], len(train_rows), config.batch_size, config.seed))
            found = update(config, learner, reference, catalogue, rows, state["update"])
            state = {"update": state["update"] + 1, "seconds": state["seconds"] + found["seconds"]}
            run.log(step=state["update"], **{**found, "seconds": state["seconds"]})
            advance(1, note=f"reward {found['reward']:.3f} hit rate {found['hit_rate']:.2f}")
            if state["update"] % config.eval_every == 0 or state["update"] == config.updates:
                state = _validate(config, run, learner, catalogue, valid, state)
    return run.best() or {}


def _check(config: RlConfig, start: Run, ids: list[str]) -> int:
    """Return the longest history of the fine-tuned run, which must know the same items."""
    start.check_items(ids)
    history: int = start.config["settings"]["history"]
    if config.history not in (None, history):
        raise ValueError(f"`history` must be that of the fine-tuned run, {history}, got {config.history}")
    return history


def batch_of(update: int, num_rows: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the rows of one update: consecutive stretches of a shuffle drawn anew each epoch, none dropped.

    Example:
        >>> sorted(int(i) for update in range(3) for i in batch_of(update, 6, 2, seed=0))
        [0, 1, 2, 3, 4, 5]
    """
    wanted = np.arange(update * batch_size, (update + 1) * batch_size)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(wanted // num_rows):
        inside = wanted // num_rows == epoch
        rows[inside] = np.random.default_rng([seed, int(epoch)]).permutation(num_rows)[wanted[inside] % num_rows]
    return rows


def update(
    config: RlConfig,
    learner: Learner,
    reference: Any,
    catalogue: Catalogue,
    rows: data.Rows,
    number: int,
) -> dict[str, float]:
    """Do one rollout and `inner_updates` optimiser steps; return what to log."""
    started = time.monotonic()
    learner.schedule(number / config.updates)
    batch = roll_out(config, learner.model, catalogue, rows, number)
    rolled = time.monotonic()
    for _ in range(config.inner_updates):
        parts = backward(config, learner.model, reference, catalogue, batch)
        norm = learner.descend(config.clip_grad)
    done = time.monotonic()
    return {
        **parts,
        **_rollout_metrics(batch),
        "grad_norm": norm,
        "seconds_rollout": rolled - started,
        "seconds_update": done - rolled,
        "seconds": done - started,
    }


def roll_out(config: RlConfig, model: Any, catalogue: Catalogue, rows: data.Rows, number: int = 0) -> Rollout:
    """Generate `group` candidates for every row and score them against the row's target.

    Draws depend on the seed and on the `number` of the update, so that a resumed run draws what it would have drawn.
    """
    prompts = [catalogue.prompt(rows.history(row)) for row in range(len(rows))]
    beams = beam_search(
        model,
        *pad_left(prompts, catalogue.vocabulary.pad),
        catalogue.trie,
        num_beams=config.group,
        normalize=config.normalize,
        method=config.rollout,
        seed=(config.seed << 32) + number,
        vocabulary=catalogue.vocabulary,
    )
    target = torch.from_numpy(catalogue.item_tokens[rows.item])  # (B, L)
    present = beams.items >= 0  # (B, G)
    hits = rewards.match(beams.tokens, target).bool()
    earned = _reward(config, hits, beams.scores, (beams.tokens >= 0).sum(2), present)
    if config.difficulty:
        weight = rewards.difficulty_weight(hits, beams.scores, alpha_min=config.alpha_min, mask=present)
    else:
        weight = torch.ones(len(hits), dtype=beams.scores.dtype)
    return Rollout(
        prompts=prompts,
        tokens=beams.tokens,
        logprobs=beams.logprobs,
        hits=hits,
        partial=~hits & present & (beams.tokens[..., 0] == target[:, :1]),
        rewards=earned,
        advantages=group_advantages(earned, scale=config.scale),
        weight=weight,
    )


def _reward(
    config: RlConfig, hits: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    if config.reward == "match":
        return torch.where(present, hits.to(scores.dtype), torch.nan)
    if config.reward == "ranking":
        return rewards.ranking(hits, mask=present)
    return rewards.uncertainty_weighted(
        hits,
        scores,
        score=config.reward_score,
        lengths=lengths,
        temperature=config.reward_temperature,
        mask=present,
    )


def backward(config: RlConfig, model: Any, reference: Any, catalogue: Catalogue, batch: Rollout) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over all groups, micro-batch by micro-batch; return the loss's parts."""
    order = sorted(range(len(batch.prompts)), key=lambda row: len(batch.prompts[row]))  # like lengths, less padding
    parts: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(order), config.micro_batch_size):
        some = batch.take(order[start : start + config.micro_batch_size])
        found = group_losses(config, model, reference, catalogue, some)
        (found["loss"].sum() / len(order)).backward()  # type: ignore[no-untyped-call]
        parts.append({name: value.detach() for name, value in found.items()})
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    confidence, hits, there = (
        joined.pop("confidence"),
        joined.pop("hits").bool(),
        joined.pop("present").bool(),
    )
    means = {name: value.mean().item() for name, value in joined.items()}
    return {**means, **_confidence_metrics(confidence, hits, there)}


def group_losses(
    config: RlConfig, model: Any, reference: Any, catalogue: Catalogue, batch: Rollout
) -> dict[str, torch.Tensor]:
    """Run the packed forward and return the loss of every group, its parts, and the confidences.

    Returns:
        "loss", "policy_loss", "kl", "confidence_loss", "clip_share", each (B,); "confidence", "hits", "present",
        each (B, G).
    """
    device = next(model.parameters()).device
    tokens, old, hits, partial, advantages, weight = (
        value.to(device)
        for value in (batch.tokens, batch.logprobs, batch.hits, batch.partial, batch.advantages, batch.weight)
    )
    there = tokens >= 0  # (B, G, L)
    packed = pack_prefixes(batch.prompts, batch.tokens.numpy(), suffix=catalogue.vocabulary.suffix)
    where = torch.from_numpy(packed.logit_index).to(device)
    vocabulary = catalogue.vocabulary
    settings: dict[str, Any] = {"normalize": config.normalize, "vocabulary": vocabulary, "trie": catalogue.trie}
    hidden = packed_hidden_states(model, packed)
    logprobs = losses.token_logprobs(model, hidden, where, tokens, **settings)
    policy_loss = losses.policy(logprobs, old, advantages, there, clip=config.clip)
    at_end = torch.from_numpy(packed.suffix_index).to(device).clamp(min=0)  # (B, G)
    ends = hidden.gather(1, at_end[..., None].expand(-1, -1, hidden.shape[2]))  # (B, G, D)
    logits = confidence_logit(model, ends, catalogue.vocabulary)
    confidence_loss = _confidence_loss(config, logits, hits, there.any(2), partial)
    divergence = torch.zeros_like(policy_loss)
    if reference is not None:
        with torch.no_grad():
            expected = losses.token_logprobs(
                reference, packed_hidden_states(reference, packed), where, tokens, **settings
            )
        divergence = losses.kl(logprobs, expected, there)
    ratio = torch.exp(logprobs.detach() - old)
    clipped = ((ratio - 1).abs() > config.clip) & there
    return {
        "loss": weight * policy_loss + config.beta * divergence + confidence_loss,
        "policy_loss": policy_loss,
        "kl": divergence,
        "confidence_loss": confidence_loss,
        "clip_share": clipped.sum((1, 2)) / there.sum((1, 2)).clamp(min=1),
        "confidence": torch.sigmoid(logits),
        "hits": hits,
        "present": there.any(2),
    }


def _confidence_loss(
    config: RlConfig, logits: torch.Tensor, hits: torch.Tensor, present: torch.Tensor, partial: torch.Tensor
) -> torch.Tensor:
    if config.confidence == "none":
        return torch.zeros(len(hits), dtype=logits.dtype, device=logits.device)
    loss = losses.confidence_alignment(
        logits,
        hits,
        present=present,
        partial=partial,
        objective=config.confidence,
        lambda_wrong=config.lambda_wrong,
        lambda_partial=config.lambda_partial,
        gamma=config.gamma,
    )
    return config.lambda_brier * loss if config.confidence == "brier" else loss


def _rollout_metrics(batch: Rollout) -> dict[str, float]:
    rank = np.where(batch.hits.numpy(), 0, 1)  # (B, G): a target id of 0 is a hit
    nothing = np.zeros(len(rank), dtype=np.int64)
    return {
        "reward": batch.rewards.nanmean().item(),
        "hit_rate": batch.hits.any(1).double().mean().item(),
        "hit_rate@1": batch.hits[:, 0].double().mean().item(),
        "rollout_ndcg": float(metrics.ndcg_at(rank, nothing, rank.shape[1]).mean()),
        "zero_advantage_groups": (batch.advantages == 0).all(1).double().mean().item(),
        "difficulty_weight": batch.weight.mean().item(),
    }


def _confidence_metrics(confidence: torch.Tensor, hits: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
    """Return the mean confidence of hits, of misses beside a hit, and of groups without one; their AUROC."""
    with_hit = hits.any(1, keepdim=True)
    chosen = {
        "confidence_hits": hits,
        "confidence_misses": present & ~hits & with_hit,
        "confidence_no_hit": present & ~with_hit,
    }
    values = {name: confidence[mask].mean().item() for name, mask in chosen.items() if bool(mask.any())}
    scored = metrics.auroc(confidence[present].cpu().numpy(), hits[present].cpu().numpy())
    return values if np.isnan(scored) else {**values, "confidence_auroc": scored}


def _validate(
    config: RlConfig,
    run: Run,
    learner: Learner,
    catalogue: Catalogue,
    valid: data.Rows,
    state: dict[str, Any],
) -> dict[str, Any]:
    found = validation_metrics(learner.model, catalogue, valid, config.num_beams, config.normalize)
    run.log(step=state["update"], seconds=state["seconds"], valid=found)
    best = run.best() or {"step": 0}
    better = best["step"] == 0 or found["ndcg@10"] > best["ndcg@10"]  # the start is there to compare, not to win
    if better:
        best = {"step": state["update"], **found}
    run.save_checkpoint(state["update"], learner, state, best)
    say(
        f"rl update {state['update']}: valid HR@1 {found['hr@1']:.4f} HR@10 {found['hr@10']:.4f} "
        f"NDCG@10 {found['ndcg@10']:.4f}, AUROC of confidence {found['confidence_auroc']:.3f}"
        f"{'  (best so far)' if better else ''}"
    )
    return state
