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
from ugr_fast.advantages import importance_weighted_advantages
from ugr_fast.configs import REWARDS, RlConfig
from ugr_fast.data import Rows
from ugr_fast.lora import Reference, with_lora
from ugr_fast.model import recomputed
from ugr_fast.run import Learner

CONFIG = RlConfig(run=Path("run"), data=Path("data"), out=Path("out"), group=6, batch_size=5, micro_batch_size=5)
ROWS = Rows.of([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11, 12]], targets=[13, 14, 15, 16, 17])


def make_job(config, model, catalogue, **more):
    return rl.Job(config, Learner.make(model, config.lr, config.weight_decay), catalogue, **more)


def roll_out(job, rows=ROWS, number=0):
    prompts = [job.catalogue.prompt(rows.history(row)) for row in range(len(rows))]
    return rl.appraise(job, prompts, rl.roll_out(job, prompts, rows.item, number))


def batch_with_hits(config, model, catalogue, **more):
    """A rollout whose targets are set to what the model itself likes: ranks 0, 1, 4, and two that it does not find."""
    job = make_job(config, model, catalogue, **more)
    first = roll_out(job)
    targets = ROWS.item.copy()
    for row, beam in ((0, 0), (1, 1), (2, 4)):
        targets[row] = catalogue.trie.lookup(first.tokens[row, beam][None].numpy())[0]
    found = {tuple(sid) for sid in first.tokens[3:].flatten(0, 1).tolist()}
    missed = [item for item, sid in enumerate(catalogue.item_tokens.tolist()) if tuple(sid) not in found]
    targets[3:] = missed[:2]
    return roll_out(job, dataclasses.replace(ROWS, item=targets))


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
        weight = hits.index(True) / (len(sids) - 1) if config.difficulty == "rank" and any(hits) else 1.0
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
        {"reward": "match", "difficulty": "none", "confidence": "brier", "normalize": "allowed"},
        {"rollout": "stochastic", "normalize": "allowed"},
        {"rollout": "sample", "reward": "match", "difficulty": "none", "confidence": "brier", "normalize": "allowed"},
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
    found = rl.backward(make_job(config, shifted, catalogue), batch)
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
    reference = Reference(tiny.model(catalogue.vocabulary, seed=1, spread=2.0))
    batch = batch_with_hits(config, model, catalogue)
    whole = rl.backward(make_job(config, model, catalogue, reference=reference), batch)
    expected = gradients_of(model)
    model.zero_grad()
    config = dataclasses.replace(config, micro_batch_size=size)
    split = rl.backward(make_job(config, model, catalogue, reference=reference), batch)
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
    job = make_job(config, model, catalogue)
    first, again, later = (roll_out(job, number=number) for number in (3, 3, 4))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, later.tokens)
    other = roll_out(make_job(dataclasses.replace(config, seed=8), model, catalogue), number=3)
    assert not torch.equal(first.tokens, other.tokens)
    distinct = [len(set(map(tuple, group))) for group in first.tokens.tolist()]
    assert (min(distinct) == CONFIG.group) == (rollout == "stochastic")
    scores = first.logprobs.sum(2)
    assert (scores.diff(dim=1) <= 1e-12).all()  # beam order is descending score, for draws too


def test_absent_candidates_earn_nothing():
    catalogue = tiny.catalogue(num_items=4)
    model = tiny.model(catalogue.vocabulary)
    rows = Rows.of([[1, 2], [0]], targets=[3, 2])
    job = make_job(CONFIG, model, catalogue)
    batch = roll_out(job, rows)
    absent = batch.tokens[..., 0] < 0
    assert absent.sum(1).tolist() == [2, 2]
    assert batch.rewards[absent].isnan().all()
    assert (batch.advantages[absent] == 0).all()
    found = rl.backward(job, batch)
    assert all(np.isfinite(value) for value in found.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("adapted", [False, True])
def test_recomputing_layers_changes_no_gradient(architecture, adapted):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    model = with_lora(model, 2, 4) if adapted else model
    batch = batch_with_hits(CONFIG, model, catalogue)
    found, modes = [], [module.training for module in model.modules()]
    for recompute in (False, True):
        model.zero_grad()
        rl.backward(make_job(dataclasses.replace(CONFIG, recompute=recompute), model, catalogue), batch)
        found.append(gradients_of(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert [module.training for module in model.modules()] == modes


def test_recomputing_keeps_less():
    """What the forward pass saves for the backward pass, counted by torch's own hooks."""
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    job = make_job(CONFIG, model, catalogue)
    batch = batch_with_hits(CONFIG, model, catalogue)
    saved = {}
    for when in (False, True):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.numel()) or t, lambda t: t)
        with hooks, recomputed(model, when=when):
            rl.group_losses(job, batch)
        saved[when] = sum(sizes)
    assert saved[True] < 0.5 * saved[False]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # of the tests' own RMSNorm
def test_bfloat16_is_near_and_its_gradients_are_float32():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=1.0).float()
    batch = batch_with_hits(CONFIG, model, catalogue)
    found = {}
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        job = make_job(dataclasses.replace(CONFIG, precision=precision, beta=0.1), model, catalogue)
        job = dataclasses.replace(job, reference=Reference(model))
        parts = rl.group_losses(job, batch)
        assert parts["loss"].dtype == parts["confidence"].dtype == torch.float32
        found[precision] = rl.backward(job, batch)["loss"], gradients_of(model)
    (loss, gradients), (rough_loss, rough_gradients) = found["float32"], found["bfloat16"]
    assert rough_loss != loss
    assert rough_loss == pytest.approx(loss, abs=0.02)
    flat, rough = (torch.cat([g.flatten() for g in some.values()]) for some in (gradients, rough_gradients))
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(flat, rough, dim=0) > 0.99


def test_adapters_reach_the_gradient_of_the_whole_model():
    """LoRA's gradient is that of the full weights, seen through the factors; the embeddings' is the same."""
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    batch = batch_with_hits(CONFIG, model, catalogue)
    rl.backward(make_job(CONFIG, model, catalogue), batch)
    whole = gradients_of(model)
    adapted = with_lora(tiny.model(catalogue.vocabulary, spread=2.0), rank=2, alpha=4)
    rl.backward(make_job(CONFIG, adapted, catalogue), batch)
    layer = adapted.get_base_model().model.layers[1].self_attn.q_proj
    full = whole["model.layers.1.self_attn.q_proj.weight"]  # B is 0, so its gradient is (α / r) G Aᵀ
    expected = 2 * full @ layer.lora_A["default"].weight.T
    torch.testing.assert_close(layer.lora_B["default"].weight.grad, expected, rtol=1e-9, atol=1e-12)
    embeddings = adapted.get_input_embeddings().weight.grad
    torch.testing.assert_close(embeddings, whole["model.embed_tokens.weight"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_every_policy_loss_is_split_exactly(loss):
    """Also where candidates have different lengths, and their normaliser is that of the whole batch."""
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    config = dataclasses.replace(CONFIG, loss=loss, clip_high=5.0 if loss == "cispo" else 0.28, delta=None)
    batch = batch_with_hits(config, model, catalogue)
    found = []
    for size in (0, 2):
        model.zero_grad()
        job = make_job(dataclasses.replace(config, micro_batch_size=size), model, catalogue)
        found.append((rl.backward(job, batch)["loss"], gradients_of(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    for name in found[0][1]:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], rtol=1e-9, atol=1e-12, msg=name)


def test_constant_groups_are_dropped_from_the_mean():
    config = dataclasses.replace(CONFIG, confidence="none", lr=1e-2, updates=10)
    catalogue = tiny.catalogue()
    found = {}
    for drop in (False, True):
        model = tiny.model(catalogue.vocabulary, spread=2.0)
        job = make_job(dataclasses.replace(config, drop_constant_groups=drop), model, catalogue)
        batch = batch_with_hits(config, model, catalogue)
        items = [int(catalogue.trie.lookup(sid[None].numpy())[0]) for sid in batch.tokens[:3, 2]]
        rows = dataclasses.replace(ROWS, item=np.array([*items, *batch_targets_missed(batch, catalogue)]))
        found[drop] = rl.update(job, rows, 0)
    assert found[True]["zero_advantage_groups"] == found[False]["zero_advantage_groups"] == pytest.approx(0.4)
    assert found[True]["policy_loss"] == pytest.approx(
        found[False]["policy_loss"] * 5 / 3
    )  # three groups of five learn
    assert found[True]["hit_rate"] == found[False]["hit_rate"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "tells"),
    [
        ({}, False),
        ({"reward": "0.5*uncertainty_weighted", "reward_score": "sum"}, False),
        ({"rollout": "stochastic", "normalize": "allowed"}, False),
        ({"group": 1}, True),
        ({"rollout": "sample", "normalize": "allowed"}, True),  # may hit twice
        ({"reward": "ranking"}, True),
        ({"reward": "uncertainty_weighted + match"}, True),
    ],
)
def test_a_reward_that_is_0_whatever_happens_is_not_logged(changes, tells):
    config = dataclasses.replace(CONFIG, **changes)
    catalogue = tiny.catalogue(num_items=13)
    rows = dataclasses.replace(ROWS, item=ROWS.item % 13)
    found = rl.update(make_job(config, tiny.model(catalogue.vocabulary, spread=2.0), catalogue), rows, 0)
    assert found["hit_rate"] > 0
    assert abs(found.get("reward", 0.0)) > 1e-3 if tells else "reward" not in found
    shown = ["reward", "hit_rate"] if tells else ["hit_rate", "hit_rate@1"]
    assert rl._step(found).curves == {name.replace("_", " "): found[name] for name in shown}


def batch_targets_missed(batch, catalogue):
    known = {tuple(sid) for sid in batch.tokens[3:].flatten(0, 1).tolist()}
    return [item for item, sid in enumerate(catalogue.item_tokens.tolist()) if tuple(sid) not in known][:2]


def test_an_update_without_a_group_to_learn_from_moves_nothing():
    config = dataclasses.replace(CONFIG, drop_constant_groups=True, lr=1.0)
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    job = make_job(config, model, catalogue)
    batch = roll_out(job)
    everything = {tuple(sid) for sid in batch.tokens.flatten(0, 1).tolist()}
    missed = [i for i, sid in enumerate(catalogue.item_tokens.tolist()) if tuple(sid) not in everything]
    before = copy.deepcopy(model.state_dict())
    found = rl.update(job, dataclasses.replace(ROWS, item=np.resize(missed, 5)), 0)
    assert found["grad_norm"] == 0
    assert found["zero_advantage_groups"] == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------- rewards


def shortness(candidates):
    """A reward as a user would write it."""
    return -candidates.lengths.double()


def test_rewards_are_sums_of_terms_and_functions_of_ones_own():
    catalogue = tiny.catalogue(ragged=True)
    embeddings = np.random.default_rng(0).normal(size=(len(catalogue.item_tokens), 4))
    prompts = [catalogue.prompt(ROWS.history(row)) for row in range(len(ROWS))]
    terms = {}
    for reward in (*REWARDS, "test_rl:shortness"):
        job = make_job(
            dataclasses.replace(CONFIG, reward=reward),
            tiny.model(catalogue.vocabulary),
            catalogue,
            embeddings=embeddings,
        )
        candidates = rl.roll_out(job, prompts, ROWS.item)
        terms[reward] = rl.reward(job, candidates)
        assert terms[reward].dtype == candidates.scores.dtype
    first = int(candidates.items[0, 0])
    cosine = embeddings[first] @ embeddings[ROWS.item[0]]
    cosine /= np.linalg.norm(embeddings[first]) * np.linalg.norm(embeddings[ROWS.item[0]])
    assert terms["similarity"][0, 0].item() == pytest.approx(cosine)
    job = dataclasses.replace(job, config=dataclasses.replace(CONFIG, reward="match + 0.25*test_rl:shortness"))
    expected = terms["match"] + 0.25 * terms["test_rl:shortness"]
    torch.testing.assert_close(rl.reward(job, candidates), expected)


def test_a_reward_of_ones_own_must_fit():
    catalogue = tiny.catalogue()
    job = make_job(dataclasses.replace(CONFIG, reward="test_rl:roll_out"), tiny.model(catalogue.vocabulary), catalogue)
    for name, text in (
        ("test_rl:missing", "must name a function in a module on Python's path"),
        ("no_such_module:f", "must name a function in a module on Python's path"),
        ("test_rl:CONFIG", "must name a function, got RlConfig"),
        ("test_rl:nothing", r"must return shape \(5, 6\), got \(\), NoneType"),
        ("test_rl:words", r"must return numbers of shape \(5, 6\), got str"),
        ("test_rl:infinite", "must return finite numbers"),
    ):
        wrong = dataclasses.replace(job, config=dataclasses.replace(CONFIG, reward=name))
        with pytest.raises(ValueError, match=text):
            roll_out(wrong)
    wrong = dataclasses.replace(job, config=dataclasses.replace(CONFIG, reward="builtins:len"))
    with pytest.raises(TypeError):
        roll_out(wrong)
    wrong = dataclasses.replace(job, config=dataclasses.replace(CONFIG, reward="test_rl:one_number"))
    with pytest.raises(ValueError, match=r"`reward` test_rl:one_number must return shape \(5, 6\), got \(\)"):
        roll_out(wrong)


def one_number(_candidates):
    return 1.0


def nothing(_candidates):
    return None


def words(_candidates):
    return "good"


def infinite(candidates):
    return candidates.scores * -torch.inf


def half_known(candidates):
    """Cannot tell the first candidate, and spoils what it was given."""
    found = candidates.hits.float().numpy().astype(">f8")
    found[:, 0] = np.nan
    candidates.tokens.fill_(-1)
    candidates.logprobs.exp_()
    return found


def test_a_reward_that_cannot_be_told_leaves_the_sum_untold_and_gets_a_copy():
    catalogue = tiny.catalogue()
    config = dataclasses.replace(CONFIG, reward="match + 0.5*test_rl:half_known")
    job = make_job(config, tiny.model(catalogue.vocabulary), catalogue)
    batch = roll_out(job)
    assert batch.rewards[:, 0].isnan().all()
    assert (batch.advantages[:, 0] == 0).all()
    assert not batch.rewards[:, 1:].isnan().any()
    assert (batch.tokens >= 0).all()
    assert (batch.logprobs <= 0).all()


def test_importance_weights_make_a_sum_over_candidates():
    config = dataclasses.replace(
        CONFIG, scale="importance", rollout="stochastic", normalize="allowed", reward="match", group=3, loss="dr_grpo"
    )
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, spread=1.0)
    job = make_job(config, model, catalogue)
    prompts = [catalogue.prompt(ROWS.history(row)) for row in range(len(ROWS))]
    candidates = rl.roll_out(job, prompts, ROWS.item)
    assert (candidates.inclusion < 1).all()
    batch = rl.appraise(job, prompts, candidates)
    alone = importance_weighted_advantages(batch.rewards, candidates.scores, candidates.inclusion)
    torch.testing.assert_close(batch.advantages, 3 * alone)


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
        {"reward": "match", "difficulty": "none"},
        {"reward_score": "sum"},
        {"rollout": "sample", "normalize": "allowed", "reward": "match", "difficulty": "none"},
        {"rollout": "stochastic", "normalize": "allowed"},
    ],
)
def test_updates_raise_the_reward(changes):
    """A few updates on fixed prompts make the policy answer their targets."""
    config = dataclasses.replace(CONFIG, updates=30, lr=1e-2, inner_updates=2, group=8, confidence="brier", **changes)
    catalogue = tiny.catalogue(num_items=12)
    rows = Rows.of([[1, 2, 3], [4], [5, 6], [7, 8]], targets=[9, 10, 11, 0])
    model = tiny.model(catalogue.vocabulary, spread=1.0)
    job = make_job(config, model, catalogue)
    found = [rl.update(job, rows, number) for number in range(30)]
    assert found[-1]["hit_rate@1"] == 1.0
    assert found[-1]["rollout_ndcg"] > found[0]["rollout_ndcg"]
    misses = found[-1].get("confidence_misses", 0.0)  # absent where every draw hits
    assert found[-1]["confidence_hits"] > misses
