"""Muon against torch's, whose steps it takes in another precision."""

import pytest
import tiny
import torch
from ugr_fast.muon import Muon, orthogonalize

QUINTIC = (3.4445, -4.7750, 2.0315)
SHAPES = [(8, 8), (24, 8), (8, 24), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_singular_values_go_through_the_polynomial(shape):
    torch.manual_seed(0)
    matrix = torch.randn(*shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    x = values / values.norm()
    for _ in range(5):
        x = QUINTIC[0] * x + QUINTIC[1] * x**3 + QUINTIC[2] * x**5
    torch.testing.assert_close(orthogonalize(matrix, QUINTIC, 5), left * x @ right)


def test_a_matrix_of_zeros_moves_nothing():
    assert torch.equal(orthogonalize(torch.zeros(3, 4), QUINTIC, 5), torch.zeros(3, 4))


def stepped(optimizer_of, shape, steps=4, **settings):
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(*shape))
    optimizer = optimizer_of([weight], lr=0.02, **settings)
    for _ in range(steps):
        weight.grad = torch.randn(*shape)
        optimizer.step()
    return weight, optimizer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"nesterov": False, "momentum": 0.5, "weight_decay": 0.3}])
def test_steps_are_torchs_but_for_the_precision(shape, settings):
    ours, optimizer = stepped(Muon, shape, **settings)
    theirs, other = stepped(torch.optim.Muon, shape, **settings)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * 4 * 0.03 * max(1, shape[0] / shape[1]) ** 0.5)
    mine, torchs = optimizer.state_dict(), other.state_dict()
    assert mine["param_groups"] == torchs["param_groups"]
    assert torch.equal(mine["state"][0]["momentum_buffer"], torchs["state"][0]["momentum_buffer"])


@pytest.mark.parametrize("rule", ["match_rms_adamw"])
def test_another_rule_for_step_sizes_is_torchs_own(rule):
    ours, theirs = (stepped(kind, (6, 3), adjust_lr_fn=rule)[0] for kind in (Muon, torch.optim.Muon))
    assert torch.equal(ours, theirs)


def test_a_closure_is_run_with_gradients_and_a_parameter_without_one_stays():
    weight, idle = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight, idle], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert not torch.equal(weight, torch.ones(2, 2))
    assert torch.equal(idle, torch.ones(2, 2))


def test_a_learner_of_a_small_decoder_steps_in_float32():
    from ugr_fast.run import Learner

    learner = Learner.make(tiny.model(tiny.catalogue().vocabulary), 1e-3, 0.0, muon_lr=0.02)
    assert [type(optimizer) for optimizer in learner.optimizers] == [torch.optim.AdamW, Muon]
