from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast import rl
from ugr_fast.configs import RlConfig
from ugr_fast.data import Rows

CONFIG = RlConfig(run=Path("run"), data=Path("data"), out=Path("out"), group=6, batch_size=5, micro_batch_size=5)
ROWS = Rows.of([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11, 12]], targets=[13, 14, 15, 16, 17])


def batch_with_hits(config, model, catalogue):
    """A rollout whose targets are set to what the model itself likes: ranks 0, 1, 4, and two that it does not find."""
    first = rl.roll_out(config, model, catalogue, ROWS)
    targets = ROWS.item.copy()
    for row, beam in ((0, 0), (1, 1), (2, 4)):
        targets[row] = catalogue.trie.lookup(first.tokens[row, beam][None].numpy())[0]
    found = {tuple(sid) for sid in first.tokens[3:].flatten(0, 1).tolist()}
    missed = [item for item, sid in enumerate(catalogue.item_tokens.tolist()) if tuple(sid) not in found]
    targets[3:] = missed[:2]
    return rl.roll_out(config, model, catalogue, dataclasses.replace(ROWS, item=targets))


def slow_loss(config, model, catalogue, batch):
    """UGR's loss with one full sequence per candidate and plain loops, in float64."""
    columns = tiny.columns_of(config.normalize, catalogue)
    total = torch.zeros((), dtype=torch.float64)
    for row, prompt in enumerate(batch.prompts):
        sids = [tuple(t for t in sid if t >= 0) for sid in batch.tokens[row].tolist()]
        hits = batch.hits[row].tolist()
        rewards = [float(hit) for hit in hits]
        means = [batch.logprobs[row, i, : len(sid)].mean().item() for i, sid in enumerate(sids)]
        if config.reward == "uncertainty_weighted":
            rewards = reference.uncertainty_weighted(hits, means)
        advantages = reference.advantages(rewards)
        surrogate = torch.zeros((), dtype=torch.float64)
        confidences = []
        for i, sid in enumerate(sids):
            logprobs = reference.sid_logprobs(model, prompt, sid, columns)
            ratio = torch.exp(logprobs - batch.logprobs[row, i, : len(sid)])
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            surrogate = surrogate - torch.minimum(ratio * advantages[i], clipped * advantages[i]).mean() / len(sids)
            confidences.append(torch.sigmoid(reference.confidence_logit(model, prompt, sid, catalogue.vocabulary)))
        weight = hits.index(True) / (len(sids) - 1) if config.difficulty and any(hits) else 1.0
        total = total + weight * surrogate + slow_confidence_loss(config, hits, confidences)
    return total / len(batch.prompts)


def slow_confidence_loss(config, hits, confidences):
    if config.confidence == "brier":
        rate = sum(hits) / len(hits)
        wanted = [config.gamma * hit + (1 - config.gamma) * rate for hit in hits]
        return sum((c - w) ** 2 for c, w in zip(confidences, wanted, strict=True)) / len(hits)
    if not any(hits):
        return 0.0
    best = confidences[hits.index(True)]
    misses = [torch.nn.functional.softplus(c - best) for c, hit in zip(confidences, hits, strict=True) if not hit]
    return config.lambda_wrong * sum(misses) / len(misses)


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reward": "match", "difficulty": False, "confidence": "brier", "normalize": "allowed"},
        {"rollout": "stochastic", "normalize": "allowed"},
        {"rollout": "sample", "reward": "match", "difficulty": False, "confidence": "brier", "normalize": "allowed"},
    ],
)
def test_step_equals_the_unpacked_loops_in_loss_and_gradient(architecture, changes):
    config = dataclasses.replace(CONFIG, **changes)
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    batch = batch_with_hits(config, model, catalogue)
    batch = dataclasses.replace(batch, partial=torch.zeros_like(batch.partial))  # test_losses has partial misses
    shifted = copy.deepcopy(model)  # the policy has moved since the rollout, so ratios are not 1
    with torch.no_grad():
        for parameter in shifted.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.std(correction=0))
    found = rl.backward(config, shifted, None, catalogue, batch)
    ours = gradients_of(shifted)
    shifted.zero_grad()
    slow = slow_loss(config, shifted, catalogue, batch)
    slow.backward()
    theirs = gradients_of(shifted)
    assert found["loss"] == pytest.approx(slow.item(), rel=1e-9)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_split_into_micro_batches_gives_the_same_gradient(size):
    config = dataclasses.replace(CONFIG, beta=0.1)
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    frozen = tiny.model(catalogue.vocabulary, seed=1, spread=2.0)
    batch = batch_with_hits(config, model, catalogue)
    whole = rl.backward(config, model, frozen, catalogue, batch)
    expected = gradients_of(model)
    model.zero_grad()
    split = rl.backward(dataclasses.replace(config, micro_batch_size=size), model, frozen, catalogue, batch)
    for name, value in gradients_of(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert split == pytest.approx(whole, rel=1e-9)
    assert whole["kl"] > 0


def test_rollout_follows_the_definitions():
    catalogue = tiny.catalogue()
    batch = batch_with_hits(CONFIG, tiny.model(catalogue.vocabulary), catalogue)
    assert batch.hits.nonzero().tolist() == [[0, 0], [1, 1], [2, 4]]
    assert batch.weight.tolist() == pytest.approx([0.0, 0.2, 0.8, 1.0, 1.0])
    assert batch.rewards[:3].sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert (batch.rewards[3:] == 0).all()
    assert (batch.advantages[3:] == 0).all()
    assert not (batch.partial & batch.hits).any()
    first = batch.tokens[..., 0]
    assert torch.equal(batch.partial[0], (first[0] == first[0, 0]) & ~batch.hits[0])


@pytest.mark.parametrize("rollout", ["stochastic", "sample"])
def test_draws_depend_on_the_seed_and_the_update_alone(rollout):
    config = dataclasses.replace(CONFIG, rollout=rollout, normalize="allowed", seed=7)
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=1.0)
    first, again, later = (rl.roll_out(config, model, catalogue, ROWS, number) for number in (3, 3, 4))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, later.tokens)
    other = rl.roll_out(dataclasses.replace(config, seed=8), model, catalogue, ROWS, 3)
    assert not torch.equal(first.tokens, other.tokens)
    distinct = [len(set(map(tuple, group))) for group in first.tokens.tolist()]
    assert (min(distinct) == CONFIG.group) == (rollout == "stochastic")
    scores = first.logprobs.sum(2)
    assert (scores.diff(dim=1) <= 1e-12).all()  # beam order is descending score, for draws too


def test_absent_candidates_earn_nothing():
    catalogue = tiny.catalogue(num_items=4)
    model = tiny.model(catalogue.vocabulary)
    rows = Rows.of([[1, 2], [0]], targets=[3, 2])
    batch = rl.roll_out(CONFIG, model, catalogue, rows)
    absent = batch.tokens[..., 0] < 0
    assert absent.sum(1).tolist() == [2, 2]
    assert batch.rewards[absent].isnan().all()
    assert (batch.advantages[absent] == 0).all()
    found = rl.backward(CONFIG, model, None, catalogue, batch)
    assert all(np.isfinite(value) for value in found.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_batches_go_through_all_rows_before_any_comes_again(num_rows, batch_size, seed):
    updates = -(-3 * num_rows // batch_size)
    order = np.concatenate([rl.batch_of(update, num_rows, batch_size, seed) for update in range(updates)])
    for epoch in range(3):
        assert sorted(order[epoch * num_rows : (epoch + 1) * num_rows].tolist()) == list(range(num_rows))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reward": "ranking"},
        {"reward": "match", "difficulty": False},
        {"reward_score": "sum"},
        {"rollout": "sample", "normalize": "allowed", "reward": "match", "difficulty": False},
        {"rollout": "stochastic", "normalize": "allowed"},
    ],
)
def test_updates_raise_the_reward(changes):
    """A few updates on fixed prompts make the policy answer their targets."""
    from ugr_fast.run import Learner

    config = dataclasses.replace(CONFIG, updates=30, inner_updates=2, group=8, confidence="brier", **changes)
    catalogue = tiny.catalogue(num_items=12)
    rows = Rows.of([[1, 2, 3], [4], [5, 6], [7, 8]], targets=[9, 10, 11, 0])
    model = tiny.model(catalogue.vocabulary, spread=1.0)
    learner = Learner.make(model, 1e-2, 0.0)
    found = [rl.update(config, learner, None, catalogue, rows, number) for number in range(30)]
    assert found[-1]["hit_rate@1"] == 1.0
    assert found[-1]["rollout_ndcg"] > found[0]["rollout_ndcg"]
    misses = found[-1].get("confidence_misses", 0.0)  # absent where every draw hits
    assert found[-1]["confidence_hits"] > misses
