from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast import losses
from ugr_fast.model import confidence_logit, packed_hidden_states
from ugr_fast.packing import pack_prefixes

HISTORIES = [[1, 2, 3], [4], [5, 6]]


def candidates_of(catalogue, group, seed=0):
    """(B, G, L) random items of the catalogue, one absent and one repeated."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(len(catalogue.item_tokens))[:group] for _ in HISTORIES])
    items[0, 1] = items[0, 0]
    tokens = catalogue.item_tokens[items]
    tokens[1, 2] = -1
    return torch.from_numpy(tokens)


def packed_pass(model, catalogue, tokens, normalize):
    prompts = [catalogue.prompt(history) for history in HISTORIES]
    packed = pack_prefixes(prompts, tokens.numpy(), suffix=catalogue.vocabulary.suffix)
    hidden = packed_hidden_states(model, packed)
    logprobs = losses.token_logprobs(
        model,
        hidden,
        torch.from_numpy(packed.logit_index),
        tokens,
        normalize=normalize,
        vocabulary=catalogue.vocabulary,
        trie=catalogue.trie,
    )
    ends = torch.from_numpy(packed.suffix_index).clamp(min=0)[..., None].expand(-1, -1, hidden.shape[2])
    return logprobs, confidence_logit(model, hidden.gather(1, ends), catalogue.vocabulary)


def unpacked_pass(model, catalogue, tokens, normalize):
    columns = tiny.columns_of(normalize, catalogue)
    logprobs = torch.zeros(tokens.shape, dtype=torch.float64)
    logits = torch.zeros(tokens.shape[:2], dtype=torch.float64)
    for row, history in enumerate(HISTORIES):
        prompt = catalogue.prompt(history)
        for beam, sid in enumerate(tokens[row].tolist()):
            real = tuple(token for token in sid if token >= 0)
            if real:
                logprobs[row, beam, : len(real)] = reference.sid_logprobs(model, prompt, real, columns)
                logits[row, beam] = reference.confidence_logit(model, prompt, real, catalogue.vocabulary)
    return logprobs, logits


def total_loss(logprobs, logits, tokens, objective):
    """A UGR loss with every part at work, from log-probs and confidence logits."""
    there = tokens >= 0
    present = there.any(2)
    hits = torch.zeros(present.shape, dtype=torch.bool)
    hits[:2, 0] = True
    advantages = torch.linspace(-1, 1, present.numel(), dtype=torch.float64).reshape(present.shape)
    old = logprobs.detach() * 1.1
    policy = losses.policy(logprobs, old, advantages, there)
    divergence = losses.kl(logprobs, old, there)
    confidence = losses.confidence_alignment(
        logits,
        hits,
        present=present,
        partial=~hits & (tokens[..., 0] % 2 == 0),
        objective=objective,
        lambda_partial=0.3,
    )
    return (torch.tensor([0.2, 1.0, 0.7]) * policy + 0.1 * divergence + confidence).mean()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_packed_equals_unpacked_in_loss_and_every_gradient(architecture, normalize, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    tokens = candidates_of(catalogue, group=5)
    objective = {"full": "released", "sid": "logit", "allowed": "brier"}[normalize]
    found = []
    for run in (packed_pass, unpacked_pass):
        model.zero_grad()
        logprobs, logits = run(model, catalogue, tokens, normalize)
        present = (tokens >= 0).any(2)
        loss = total_loss(logprobs, logits.masked_fill(~present, 0), tokens, objective)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), logprobs.detach(), logits.detach()[present], gradients))
    (loss, logprobs, logits, gradients), (slow_loss, slow_logprobs, slow_logits, slow_gradients) = found
    torch.testing.assert_close(loss, slow_loss, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(logprobs, slow_logprobs, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(logits, slow_logits, rtol=1e-9, atol=1e-11)
    assert gradients.keys() == slow_gradients.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], slow_gradients[name], rtol=1e-8, atol=1e-11, msg=name)


def test_token_logprobs_needs_what_its_normalisation_needs():
    with pytest.raises(ValueError, match="`trie` must be given"):
        losses.token_logprobs(
            None, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), normalize="allowed"
        )


# ---- policy


def test_policy_loss_by_hand():
    logprobs = torch.tensor([[[0.3, 0.0], [-0.5, 0.0]]], dtype=torch.float64)
    there = torch.tensor([[[True, False], [True, True]]])
    advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    old = torch.zeros_like(logprobs)
    first = -1.2 * 2.0  # the ratio e^0.3 is clipped at 1.2
    second = (max(math.exp(-0.5), 0.8) + 1.0) / 2  # A < 0: the larger of ratio and bound counts
    expected = (first + second) / 2
    assert losses.policy(logprobs, old, advantages, there).item() == pytest.approx(expected, rel=1e-12)
    shared = (first / 2 + second) / 2  # dr_grpo divides by the longest length
    assert losses.policy(logprobs, old, advantages, there, loss="dr_grpo").item() == pytest.approx(shared, rel=1e-12)


def test_on_policy_gradient_is_the_policy_gradient():
    logprobs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(2, 3, dtype=torch.float64)
    there = torch.ones(2, 3, 4, dtype=torch.bool)
    losses.policy(logprobs, logprobs.detach(), advantages, there).sum().backward()
    torch.testing.assert_close(logprobs.grad, (-advantages / 12)[..., None].expand(2, 3, 4))


def test_absent_candidates_change_nothing():
    torch.manual_seed(0)
    logprobs, old = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    advantages, there = torch.randn(2, 3).double(), torch.rand(2, 3, 4) < 0.7
    there[..., 0] = True

    def grown(values, fill):
        return torch.cat([values, torch.full_like(values[:, :1], fill)], dim=1)

    for loss in (
        lambda new, o, a, t: losses.policy(new, o, a, t),
        lambda new, o, a, t: losses.kl(new, o, t),
    ):
        before = loss(logprobs, old, advantages, there)
        after = loss(grown(logprobs, 0.0), grown(old, 0.0), grown(advantages, 0.0), grown(there, False))
        torch.testing.assert_close(before, after)
    assert (losses.policy(logprobs, old, advantages, torch.zeros_like(there)) == 0).all()


def test_kl_is_zero_at_the_reference_and_positive_elsewhere():
    values, there = torch.randn(3, 4, 2).double(), torch.ones(3, 4, 2, dtype=torch.bool)
    assert (losses.kl(values, values, there) == 0).all()
    assert (losses.kl(values, values + 0.1, there) > 0).all()


def test_gradients_are_right():
    torch.manual_seed(1)
    old, advantages = torch.randn(2, 3, 2).double(), torch.randn(2, 3).double()
    there, hits = torch.rand(2, 3, 2) < 0.8, torch.tensor([[True, False, False], [False, False, False]])
    logprobs = (old + 0.05 * torch.randn_like(old)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.policy(x, old, advantages, there), logprobs)
    assert torch.autograd.gradcheck(lambda x: losses.kl(x, old, there), logprobs)
    logits = torch.randn(2, 3).double().requires_grad_()
    for objective in ("released", "logit", "brier"):
        assert torch.autograd.gradcheck(
            lambda x, objective=objective: losses.confidence_alignment(x, hits, objective=objective), logits
        )


# ---- confidence


groups = st.integers(1, 6).flatmap(
    lambda size: st.tuples(
        st.lists(st.floats(-20, 20), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size, max_size=size),
    )
)


def slow_alignment(logits, hits, partial, objective, wrong=0.5, shared=0.25, gamma=0.5):
    """The formulas of the docstring as loops."""
    confidences = [1 / (1 + math.exp(-z)) for z in logits]
    if objective == "brier":
        rate = sum(hits) / len(hits)
        return sum((c - (gamma * h + (1 - gamma) * rate)) ** 2 for c, h in zip(confidences, hits, strict=True)) / len(
            hits
        )
    values = confidences if objective == "released" else logits
    found = [value for value, hit in zip(values, hits, strict=True) if hit]
    if not found:
        return 0.0
    best = sum(found) / len(found)
    total = 0.0
    for weight, kind in ((wrong, False), (shared, True)):
        chosen = [v for v, h, p in zip(values, hits, partial, strict=True) if not h and p == kind]
        total += weight * sum(math.log1p(math.exp(v - best)) for v in chosen) / max(len(chosen), 1)
    return total


@given(groups, st.sampled_from(["released", "logit", "brier"]))
def test_confidence_alignment_equals_the_loops(group, objective):
    logits, hits, partial = group
    found = losses.confidence_alignment(
        torch.tensor([logits], dtype=torch.float64),
        torch.tensor([hits]),
        partial=torch.tensor([partial]) & ~torch.tensor([hits]),
        objective=objective,
        lambda_partial=0.25,
    )
    assert found.item() == pytest.approx(slow_alignment(logits, hits, partial, objective), rel=1e-9, abs=1e-12)


@given(groups)
def test_released_objective_is_bounded_and_silent_without_a_hit(group):
    logits, hits, _ = group
    found = losses.confidence_alignment(torch.tensor([logits], dtype=torch.float64), torch.tensor([hits]))
    if any(hits) and not all(hits):
        assert 0.5 * math.log1p(math.exp(-1)) <= found.item() <= 0.5 * math.log1p(math.exp(1))
    else:
        assert found.item() == 0


@given(groups, st.sampled_from(["released", "logit"]))
def test_margin_gradients_sum_to_zero(group, objective):
    logits, hits, _ = group
    values = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    losses.confidence_alignment(values, torch.tensor([hits]), objective=objective).sum().backward()
    slope = values.grad
    if objective == "released":  # by confidence, so undo dc/dz
        confidence = torch.sigmoid(values.detach())
        slope = slope / (confidence * (1 - confidence)).clamp(min=1e-300)
    assert abs(slope.sum().item()) <= 1e-6 * max(1.0, slope.abs().max().item())


def test_groups_do_not_see_their_neighbours():
    torch.manual_seed(2)
    logits, hits = torch.randn(4, 5).double(), torch.rand(4, 5) < 0.3
    for objective in ("released", "logit", "brier"):
        together = losses.confidence_alignment(logits, hits, objective=objective)
        alone = [losses.confidence_alignment(logits[i : i + 1], hits[i : i + 1], objective=objective) for i in range(4)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_unknown_choices_are_refused():
    hit, there = torch.tensor([[True, False]]), torch.ones(1, 2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`objective` must be .* got 'Brier'"):
        losses.confidence_alignment(torch.zeros(1, 2), hit, objective="Brier")
    with pytest.raises(ValueError, match=r"`loss` must be .* got 'drgrpo'"):
        losses.policy(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2), there, loss="drgrpo")
    with pytest.raises(ValueError, match=r"`normalize` must be .* got 'all'"):
        losses.token_logprobs(None, torch.zeros(1, 1, 1), there.long(), there.long(), normalize="all")


def test_an_exploded_ratio_stays_finite():
    far = torch.full((1, 1, 1), -95.0)
    found = losses.policy(torch.zeros(1, 1, 1), far, torch.zeros(1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
    assert found.item() == 0
