"""Reinforcement learning with UGR: rollout by constrained beam search, one packed forward and backward per update.

For a batch of prompts with known next items::

    roll_out    G candidates a prompt, exact beam search over the trie, no gradient
    appraise    hit test on tokens → reward → group-relative advantage, difficulty weight
    backward    prompt + prefix tree of the candidates + confidence suffix in one packed row: log-probs and confidences
                of all from one forward; loss = mean over groups of w · L_clip + β · KL + L_confidence

Baselines are settings: reward="match", difficulty="none", confidence="none" is GRPO with 0/1 reward; reward="ranking"
is the ranking reward of MiniOneRec.

Departures from UGR's released code: many prompts per micro-batch, so L_confidence is averaged over all groups, those
without a hit included; padding is never attended to; the model runs without dropout, so rollout and update see the same
policy; prompts are those of fine-tuning and evaluation.

The best checkpoint is the one with the highest validation NDCG@10 among those that RL has trained: update 0, the
fine-tuned model itself, is validated to compare with, but has no confidence yet.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ugr_fast import data, losses, metrics, rewards, sids
from ugr_fast.advantages import group_advantages, importance_weighted_advantages
from ugr_fast.configs import check, reward_terms
from ugr_fast.decode import beam_search
from ugr_fast.lora import Reference, with_lora
from ugr_fast.model import (
    Catalogue,
    autocast,
    check_attention,
    confidence_logits,
    packed_hidden_states,
    pad_left,
    recomputed,
)
from ugr_fast.packing import pack_prefixes
from ugr_fast.progress import Step, Validation, Watch, bar, say
from ugr_fast.recommend import sample_rows, validation_metrics
from ugr_fast.run import Learner, Run, choose_device, describe, seed_everything, set_threads
from ugr_fast.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable

    from ugr_fast.configs import RlConfig

LARGEST_REWARD = 1e37  # float32 still holds differences of these


@dataclass(frozen=True)
class Job:
    """What all updates share.

    Attributes:
        config: the settings.
        learner: the model in training.
        catalogue: items, tokens and trie.
        reference: the model at the start, for the KL term; None without one.
        embeddings: (num_items, dim) for the reward similarity; None without it.
    """

    config: RlConfig
    learner: Learner
    catalogue: Catalogue
    reference: Reference | None = None
    embeddings: np.ndarray | None = None

    @property
    def model(self) -> Any:
        """The model in training."""
        return self.learner.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device


@dataclass(frozen=True)
class Candidates:
    """What a rollout found for B prompts, in beam order; what a reward of your own is given.

    Attributes:
        target: (B, L) tokens of the item that came next, −1 past its end.
        target_item: (B,) its number.
        tokens: (B, G, L) candidates, −1 past their ends and where absent.
        items: (B, G) the lowest item number of each candidate, −1 where absent.
        logprobs: (B, G, L) under the policy that made them.
        scores: (B, G) their sums, −inf where absent.
        inclusion: (B, G) probability to be drawn, for draws without replacement; else 1.
    """

    target: torch.Tensor
    target_item: torch.Tensor
    tokens: torch.Tensor
    items: torch.Tensor
    logprobs: torch.Tensor
    scores: torch.Tensor
    inclusion: torch.Tensor

    @property
    def present(self) -> torch.Tensor:
        """(B, G) bool, the candidate exists."""
        return self.items >= 0

    @property
    def hits(self) -> torch.Tensor:
        """(B, G) bool, the candidate is the target."""
        return rewards.match(self.tokens, self.target).bool()

    @property
    def lengths(self) -> torch.Tensor:
        """(B, G) tokens of each candidate."""
        return (self.tokens >= 0).sum(2)


@dataclass(frozen=True)
class Batch:
    """The candidates of B prompts and what they earned.

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

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def present(self) -> torch.Tensor:
        """(B, G) bool, the candidate exists."""
        return (self.tokens >= 0).any(2)

    @property
    def constant(self) -> torch.Tensor:
        """(B,) bool, all advantages of the group are 0."""
        return (self.advantages == 0).all(1)

    def take(self, index: list[int]) -> Batch:
        """Return the groups at `index`."""
        tensors = {name: value[index] for name, value in vars(self).items() if name != "prompts"}
        return Batch(prompts=[self.prompts[row] for row in index], **tensors)


def train(config: RlConfig) -> dict[str, Any]:
    """Train as `config` says and return the best validation metrics.

    Raises:
        ValueError: settings, data and fine-tuned run that do not fit together.
        FileExistsError: `out` holds another run.
    """
    check(config)
    set_threads(config.threads)
    device = choose_device(config.device)
    team = Team.join(device)
    start = Run.open(config.run)
    dataset = data.load(config.data)
    catalogue = start.load_catalogue()
    history = _check(config, start, dataset.ids)
    config = replace(config, history=history)
    train_rows, valid_rows = dataset.train.latest(history), dataset.valid.latest(history)
    seed_everything(config.seed)
    job = prepare(config, start.load_model(device), catalogue, team)
    run = Run.create(config.out, "rl", config, device, start=start.model_folder(), team=team)
    run.save_catalogue(catalogue.vocabulary, start.load_codes(), *start.load_items())
    valid = sample_rows(valid_rows, config.valid_rows, config.seed)
    say(f"rl: {describe(job.model, team)}, {len(train_rows)} prompts")
    watch = Watch("update", config.patience)
    state = run.resume(job.learner)
    if state and (best := run.best()):
        watch.valid = Validation(best["step"], best["ndcg@10"], state["stale"])
    with bar("rl", config.updates, done=state["update"] if state else 0, watch=watch) as advance:
        state = state or _validate(job, run, valid, {"update": 0, "seconds": 0.0, "stale": 0}, watch)
        while state["update"] < config.updates and not (config.patience and state["stale"] >= config.patience):
            rows = train_rows.take(batch_of(state["update"], len(train_rows), config.batch_size, config.seed))
            found = update(job, rows, state["update"])
            state = {**state, "update": state["update"] + 1, "seconds": state["seconds"] + found["seconds"]}
            run.log(step=state["update"], **{**found, "seconds": state["seconds"]})
            watch.step(_step(found))
            advance(1)
            if state["update"] % config.eval_every == 0 or state["update"] == config.updates:
                state = _validate(job, run, valid, state, watch)
    if state["update"] < config.updates:
        say(f"rl: stopped after update {state['update']}, {state['stale']} validations without a better NDCG@10")
    if team.is_main:
        _compare_with_start(config, run)
    return run.best() or {}


def _compare_with_start(config: RlConfig, run: Run) -> None:
    """Say so where no checkpoint was as good on valid as the model that training began with."""
    best = run.best() or {"step": 0}
    begun = next((line["valid"]["ndcg@10"] for line in run.metrics() if line["step"] == 0 and "valid" in line), 0.0)
    if best["step"] and best["ndcg@10"] < begun:
        say(
            f"rl: none was as good on valid as the model it began with, whose NDCG@10 is {begun:.4f} (the best "
            f"that was trained has {best['ndcg@10']:.4f}); {config.run} ranks better, so far as these rows tell"
        )


def prepare(config: RlConfig, model: Any, catalogue: Catalogue, team: Team) -> Job:
    """Return the job of training `model`, with the adapters, reference and embeddings that `config` asks for."""
    check_attention(model, config.attention)
    if config.lora:
        model = with_lora(model, config.lora, config.lora_alpha)
    return Job(
        config=config,
        learner=Learner.make(model, config.lr, config.weight_decay, team=team),
        catalogue=catalogue,
        reference=Reference(model) if config.beta else None,
        embeddings=sids.load_embeddings(config.embeddings, len(catalogue.item_tokens)) if config.embeddings else None,
    )


def _check(config: RlConfig, start: Run, ids: list[str]) -> int:
    """Return the longest history of the fine-tuned run, which must know the same items."""
    start.check_items(ids)
    history = start.history
    if config.history not in (None, history):
        raise ValueError(f"`history` must be that of the fine-tuned run, {history}, got {config.history}")
    for name in reward_terms(config.reward):
        if ":" in name:
            _function(name)
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


def update(job: Job, rows: data.Rows, number: int) -> dict[str, float]:
    """Do one rollout and `inner_updates` optimiser steps; return what to log."""
    config, started = job.config, time.monotonic()
    job.learner.schedule(number / config.updates, config.schedule)
    prompts = [job.catalogue.prompt(rows.history(row)) for row in range(len(rows))]
    candidates = roll_out(job, prompts, rows.item, number)
    rolled = time.monotonic()
    batch = appraise(job, prompts, candidates)
    kept = batch.take((~batch.constant).nonzero()[:, 0].tolist()) if config.drop_constant_groups else batch
    judged = time.monotonic()
    parts, norm = {}, 0.0
    for _ in range(config.inner_updates if len(kept) else 0):
        parts = backward(job, kept)
        norm = job.learner.descend(config.clip_grad)
    done = time.monotonic()
    return {
        **parts,
        **_batch_metrics(config, batch),
        "grad_norm": norm,
        "seconds_rollout": rolled - started,
        "seconds_reward": judged - rolled,
        "seconds_update": done - judged,
        "seconds": done - started,
        "prompts_per_second": len(rows) / (done - started),
    }


def roll_out(job: Job, prompts: list[list[int]], target_item: np.ndarray, number: int = 0) -> Candidates:
    """Generate `group` candidates for every prompt, each process for its share of them.

    Draws depend on the seed, on the `number` of the update and on a prompt's place in the batch, so that a resumed run
    and any number of processes draw the same.

    Args:
        job: model, trie and settings.
        prompts: B lists of tokens.
        target_item: (B,) the items that came next.
        number: of the update.

    Returns:
        The candidates of all B prompts, on the CPU.
    """
    config, team = job.config, job.learner.team
    target = torch.from_numpy(job.catalogue.item_tokens[target_item])  # (B, L)
    mine = team.share(len(prompts))
    shape = (len(mine), config.group)
    found = {
        "tokens": torch.full((*shape, target.shape[1]), -1),
        "items": torch.full(shape, -1),
        "logprobs": torch.zeros((*shape, target.shape[1])),
        "scores": torch.zeros(shape),
        "inclusion": torch.ones(shape, dtype=torch.float64),
    }
    if mine:
        found |= _search(job, prompts[mine.start : mine.stop], mine.start, number)
    whole = {name: team.whole(values, len(prompts)) for name, values in found.items()}
    return Candidates(target=target, target_item=torch.from_numpy(target_item), **whole)


def _search(job: Job, prompts: list[list[int]], first_row: int, number: int) -> dict[str, torch.Tensor]:
    config = job.config
    with autocast(job.device, config.precision):
        beams = beam_search(
            job.model,
            *pad_left(prompts, job.catalogue.vocabulary.pad),
            job.catalogue.trie,
            num_beams=config.group,
            normalize=config.normalize,
            method=config.rollout,
            seed=(config.seed << 32) + number,
            first_row=first_row,
            vocabulary=job.catalogue.vocabulary,
        )
    found = {name: getattr(beams, name) for name in ("tokens", "items", "logprobs", "scores")}
    return found if beams.inclusion is None else {**found, "inclusion": beams.inclusion}


def appraise(job: Job, prompts: list[list[int]], candidates: Candidates) -> Batch:
    """Give candidates their rewards, advantages and weights."""
    config, hits, present = job.config, candidates.hits, candidates.present
    earned = reward(job, candidates)
    weight = torch.ones(len(hits), dtype=candidates.scores.dtype)
    if config.difficulty != "none":
        weight = rewards.difficulty_weight(
            hits, candidates.scores, kind=config.difficulty, alpha_min=config.alpha_min, mask=present
        )
    same_start = candidates.tokens[..., 0] == candidates.target[:, :1]
    return Batch(
        prompts=prompts,
        tokens=candidates.tokens,
        logprobs=candidates.logprobs,
        hits=hits,
        partial=~hits & present & same_start,
        rewards=earned,
        advantages=_advantages(config, earned, candidates),
        weight=weight,
    )


def reward(job: Job, candidates: Candidates) -> torch.Tensor:
    """Return the rewards (B, G) of candidates, NaN where absent: the weighted sum that `config.reward` names."""
    terms = reward_terms(job.config.reward)
    found = [_reward(job, name, candidates).to(candidates.scores.dtype) for name in terms]
    earned = found[0] if [*terms.values()] == [1.0] else rewards.weighted_sum(found, [*terms.values()])
    unscorable = torch.stack(found).isnan().any(0)  # one term that cannot be told leaves the sum untold
    return earned.masked_fill(unscorable | ~candidates.present, torch.nan)


def _reward(job: Job, name: str, candidates: Candidates) -> torch.Tensor:
    """Return one term of the sum: of `rewards`, given what its parameters are named after, or of the user's own."""
    if ":" in name:
        team = job.learner.team  # one process asks, so that all learn from the same
        nothing = torch.zeros(candidates.items.shape, dtype=torch.float64)
        return team.of_main(_own_reward(name, candidates) if team.is_main else nothing)
    function: Callable[..., torch.Tensor] = getattr(rewards, name)
    known = {
        **vars(candidates),
        "hits": candidates.hits,
        "lengths": candidates.lengths,
        "mask": candidates.present,
        "target_items": candidates.target_item,
        "embeddings": job.embeddings,
        "score": job.config.reward_score,
        "temperature": job.config.reward_temperature,
    }
    return function(**{parameter: known[parameter] for parameter in signature(function).parameters})


def _own_reward(name: str, candidates: Candidates) -> torch.Tensor:
    """Return what a function of the user's makes of a copy of the candidates, in float64."""
    found = _function(name)(Candidates(**{key: value.clone() for key, value in vars(candidates).items()}))
    kind, shape = type(found).__name__, tuple(candidates.items.shape)
    found = found.detach().cpu().double().numpy() if isinstance(found, torch.Tensor) else found
    try:
        values = torch.from_numpy(np.array(found, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`reward` {name} must return numbers of shape {shape}, got {kind} ({error})") from error
    if values.shape != shape:
        raise ValueError(f"`reward` {name} must return shape {shape}, got {tuple(values.shape)}, {kind}")
    if bool((values.abs() > LARGEST_REWARD).any()):
        raise ValueError(f"`reward` {name} must return finite numbers, or NaN for what cannot be told, got {values}")
    return values


def _function(name: str) -> Callable[[Candidates], Any]:
    """Return the function that `module:function` names."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`reward` {name} must name a function in a module on Python's path ({error})") from error
    if not callable(found):
        raise ValueError(f"`reward` {name} must name a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _advantages(config: RlConfig, earned: torch.Tensor, candidates: Candidates) -> torch.Tensor:
    if config.scale != "importance":
        return group_advantages(earned, scale=config.scale)
    found: torch.Tensor = importance_weighted_advantages(
        earned, candidates.scores, candidates.inclusion, mask=candidates.present
    )
    return found * candidates.present.sum(1, keepdim=True)  # losses average over candidates, the estimate is a sum


MEANS = ("loss", "policy_loss", "kl", "confidence_loss", "clip_share", "entropy")


def backward(job: Job, batch: Batch) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over all groups, micro-batch by micro-batch; return the loss's parts.

    Of several processes each takes a share of the groups; the gradient of the whole is the sum of theirs.
    """
    config, team = job.config, job.learner.team
    mine = team.share(len(batch))
    order = sorted(mine, key=lambda row: len(batch.prompts[row]))  # like lengths, less padding
    size = config.micro_batch_size or len(batch)
    found = {name: torch.zeros(len(mine), dtype=batch.logprobs.dtype) for name in MEANS}
    found["confidence"] = torch.zeros((len(mine), batch.hits.shape[1]), dtype=batch.logprobs.dtype)
    tokens_per_group = (batch.tokens >= 0).sum().item() / len(batch)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        with recomputed(job.model, when=config.recompute):
            parts = group_losses(job, batch.take(rows), tokens_per_group)
            (parts["loss"].sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        for name, values in parts.items():
            found[name][[row - mine.start for row in rows]] = values.detach().cpu().to(batch.logprobs.dtype)
    whole = {name: team.whole(values, len(batch)) for name, values in found.items()}
    confidence = whole.pop("confidence")
    means = {name: values.mean().item() for name, values in whole.items()}
    return {**means, **_confidence_metrics(confidence, batch.hits, batch.present)}


def group_losses(job: Job, batch: Batch, tokens_per_group: float | None = None) -> dict[str, torch.Tensor]:
    """Run the packed forward and return the loss of every group, its parts, and the confidences.

    Args:
        job: model, trie and settings.
        batch: the groups.
        tokens_per_group: mean number of tokens of a group in the whole batch, by default in `batch`.

    Returns:
        "loss", "policy_loss", "kl", "confidence_loss", "clip_share", "entropy", each (B,); "confidence" (B, G).
    """
    config, vocabulary, model = job.config, job.catalogue.vocabulary, job.model
    on = {name: value.to(job.device) for name, value in vars(batch).items() if name != "prompts"}
    there = on["tokens"] >= 0  # (B, G, L)
    packed = pack_prefixes(batch.prompts, batch.tokens.numpy(), suffix=vocabulary.suffix)
    settings: dict[str, Any] = {"normalize": config.normalize, "vocabulary": vocabulary, "trie": job.catalogue.trie}
    where = torch.from_numpy(packed.logit_index).to(job.device)
    with autocast(job.device, config.precision):
        hidden = packed_hidden_states(model, packed, config.attention)
        logprobs, entropy = losses.token_logprobs(model, hidden, where, on["tokens"], entropy=True, **settings)
        logits = confidence_logits(model, hidden, packed, vocabulary)
    clipping: dict[str, Any] = {"loss": config.loss, "clip": config.clip, "clip_high": config.clip_high}
    ratios = (logprobs, on["logprobs"], on["advantages"], there)
    policy_loss = losses.policy(*ratios, delta=config.delta, tokens_per_group=tokens_per_group, **clipping)
    confidence_loss = _confidence_loss(config, logits, on["hits"], there.any(2), on["partial"])
    divergence = torch.zeros_like(policy_loss)
    if job.reference is not None:
        with job.reference.of(model) as frozen, autocast(job.device, config.precision):
            expected = losses.token_logprobs(
                frozen, packed_hidden_states(frozen, packed, config.attention), where, on["tokens"], **settings
            )
        divergence = losses.kl(logprobs, expected, there)
    return {
        "loss": on["weight"] * policy_loss + config.beta * divergence + confidence_loss,
        "policy_loss": policy_loss,
        "kl": divergence,
        "confidence_loss": confidence_loss,
        "clip_share": losses.clip_share(*ratios, **clipping),
        "entropy": entropy,
        "confidence": torch.sigmoid(logits),
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


def _batch_metrics(config: RlConfig, batch: Batch) -> dict[str, float]:
    rank = np.where(batch.hits.numpy(), 0, 1)  # (B, G): a target id of 0 is a hit
    nothing = np.zeros(len(rank), dtype=np.int64)
    earned = {} if _balanced(config) else {"reward": batch.rewards.nanmean().item()}
    return {
        **earned,
        "hit_rate": batch.hits.any(1).double().mean().item(),
        "hit_rate@1": batch.hits[:, 0].double().mean().item(),
        "rollout_ndcg": float(metrics.ndcg_at(rank, nothing, rank.shape[1]).mean()),
        "zero_advantage_groups": batch.constant.double().mean().item(),
        "difficulty_weight": batch.weight.mean().item(),
    }


def _balanced(config: RlConfig) -> bool:
    """Whether a group earns 0 in all, whatever it holds: its only hit as much as the misses beside it lose."""
    one_hit = config.rollout != "sample" and config.group > 1  # and a miss beside it
    return one_hit and reward_terms(config.reward).keys() == {"uncertainty_weighted"}


def _confidence_metrics(confidence: torch.Tensor, hits: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
    """Return the mean confidence of hits, of misses beside a hit, and of groups without one; their AUROC."""
    with_hit = hits.any(1, keepdim=True)
    chosen = {
        "confidence_hits": hits,
        "confidence_misses": present & ~hits & with_hit,
        "confidence_no_hit": present & ~with_hit,
    }
    values = {name: confidence[mask].mean().item() for name, mask in chosen.items() if bool(mask.any())}
    scored = metrics.auroc(confidence[present].numpy(), hits[present].numpy())
    return values if np.isnan(scored) else {**values, "confidence_auroc": scored}


def _step(found: dict[str, float]) -> Step:
    """Return what the live view shows of an update."""
    shown = ("reward", "hit_rate") if "reward" in found else ("hit_rate", "hit_rate@1")
    return Step(
        curves={name.replace("_", " "): found[name] for name in shown},
        rate=("prompts/s", found["prompts_per_second"]),
        shares={part: found[f"seconds_{part}"] / found["seconds"] for part in ("rollout", "update")},
    )


def _validate(job: Job, run: Run, valid: data.Rows, state: dict[str, Any], watch: Watch) -> dict[str, Any]:
    config = job.config
    with autocast(job.device, config.precision):
        found = validation_metrics(job.model, job.catalogue, valid, config.num_beams, config.normalize, run.team)
    run.log(step=state["update"], seconds=state["seconds"], valid=found)
    best = run.best() or {"step": 0}
    better = best["step"] == 0 or found["ndcg@10"] > best["ndcg@10"]  # the start is there to compare, not to win
    if better:
        best = {"step": state["update"], **found}
    state = {**state, "stale": 0 if better else state["stale"] + 1}
    run.save_checkpoint(state["update"], job.learner, state, best)
    auroc = {name: found[f"{name}_auroc"] for name in ("confidence", "likelihood")}
    watch.valid = Validation(best["step"], best["ndcg@10"], state["stale"], state["update"], found["ndcg@10"], auroc)
    say(
        f"rl update {state['update']}: valid HR@1 {found['hr@1']:.4f} HR@10 {found['hr@10']:.4f} "
        f"NDCG@10 {found['ndcg@10']:.4f}, AUROC of confidence {found['confidence_auroc']:.3f}"
        f"{'  (best so far)' if best['step'] and better else ''}"
    )
    return state
