"""The readout: a convex fit that has one answer, folds that know no user twice, a file that is whole or refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from safetensors.numpy import save_file  # noqa: E402
from test_cli import damage  # noqa: E402
from ugr_fast.data import Sequences  # noqa: E402
from ugr_fast.evidence import Evidence  # noqa: E402
from ugr_fast.readout import (  # noqa: E402
    FOLDS,
    LIKELIHOOD_ALONE,
    SLIGHT,
    STRENGTHS,
    Readout,
    _folds,
    fit,
    likelihood_logit,
    read_readout,
    write_readout,
)
from ugr_fast.recalibration import Recalibrator  # noqa: E402

HOW = {"step": 3, "model": "0123456789abcdef", "normalize": "full", "precision": "float32"}


def world(n=300, width=4, seed=0, per=5):
    """Candidates of users with `per` each; states in units of their own, of which the first two tell something."""
    rng = np.random.default_rng(seed)
    states = rng.normal(rng.normal(0, 3, width), rng.uniform(0.1, 9, width), (n, width))
    logprobs = np.log(rng.random(n) ** 2)
    telling = ((states - states.mean(0)) / states.std(0))[:, :2].sum(1)
    chance = 1 / (1 + np.exp(1 - 0.7 * likelihood_logit(torch.from_numpy(logprobs)).numpy() - telling))
    hits = rng.random(n) < chance
    return torch.from_numpy(states), torch.from_numpy(logprobs), torch.from_numpy(hits), np.arange(n) // per


def as_numbers(readout):
    return np.array([*readout.weight.tolist(), readout.slope, readout.bias])


# ---- the fit


@pytest.mark.parametrize("width", [1, 4, 9])
@pytest.mark.parametrize("strength", [LIKELIHOOD_ALONE, 0.3, 0.01, 1e-5])
def test_the_fit_equals_plain_newton_steps(width, strength):
    states, logprobs, hits, users = world(width=width, seed=width)
    found = fit(states, logprobs, hits, users, [strength]).readout
    weight, slope, bias = reference.readout(states.numpy(), logprobs.tolist(), hits.tolist(), strength)
    np.testing.assert_allclose(as_numbers(found), [*weight, slope, bias], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_gradient_is_zero_at_what_it_finds(strength):
    """Of the loss that the docstring states, by autograd; at infinite strength the weight is no choice."""
    states, logprobs, hits, users = world()
    found = fit(states, logprobs, hits, users, [strength]).readout
    values = [torch.tensor(value, dtype=torch.float64) for value in (found.slope, found.bias)]
    weight, slope, bias = (value.clone().requires_grad_() for value in (found.weight, *values))
    logits = slope * likelihood_logit(logprobs) + states @ weight + bias
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, hits.double())
    centre = bias + states.mean(0) @ weight  # the bias of states around their mean
    loss = loss + SLIGHT * ((slope - 1) ** 2 + centre**2)
    if strength < LIKELIHOOD_ALONE:
        loss = loss + strength * (weight * states.std(0, correction=0)).square().sum()
    loss.backward()
    of = [slope, bias] if strength == LIKELIHOOD_ALONE else [slope, bias, weight]
    assert max(value.grad.abs().max().item() for value in of) < 1e-8


def test_an_infinite_penalty_is_platt_scaling():
    states, logprobs, hits, users = world(n=1000)
    found = fit(states, logprobs, hits, users, [LIKELIHOOD_ALONE])
    assert found.readout.weight.tolist() == [0.0] * 4
    platt = Recalibrator("platt").fit(logprobs.exp().numpy(), hits.numpy())
    ours = torch.sigmoid(found.readout(states, logprobs)).numpy()
    np.testing.assert_allclose(ours, platt(logprobs.exp().numpy()), atol=2e-5)  # but for the slight pull


def test_what_the_state_knows_is_found():
    states, logprobs, hits, users = world(n=4000)
    found = fit(states, logprobs, hits, users)
    assert found.strength < LIKELIHOOD_ALONE
    assert found.log_loss[found.strength] < found.log_loss[LIKELIHOOD_ALONE] - 0.02
    weight = found.readout.weight * states.std(0)
    assert weight.tolist() == pytest.approx([1, 1, 0, 0], abs=0.15)
    assert found.readout.slope == pytest.approx(0.7, abs=0.1)


def test_states_that_know_nothing_leave_the_likelihood():
    states, logprobs, hits, users = world(n=4000)
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=states.shape))
    assert fit(noise, logprobs, hits, users).strength > 0.03


# ---- cross-validation


def test_the_losses_are_those_of_users_left_out():
    states, logprobs, hits, users = world()
    strengths = [0.01, LIKELIHOOD_ALONE, 0.1]
    found, fold = fit(states, logprobs, hits, users, strengths), _folds(users, hits.numpy())
    assert [*found.log_loss] == [LIKELIHOOD_ALONE, 0.1, 0.01]
    for strength, loss in found.log_loss.items():
        said = np.empty(len(users))
        for part in range(FOLDS):
            fitted = reference.readout(states.numpy(), logprobs.tolist(), hits.tolist(), strength, fold != part)
            weight, slope, bias = fitted
            logits = slope * likelihood_logit(logprobs).numpy() + states.numpy() @ weight + bias
            said[fold == part] = (1 / (1 + np.exp(-logits)))[fold == part]
        assert loss == pytest.approx(reference.log_loss(said, hits.tolist(), [1] * len(said)), abs=1e-9)
        if strength == found.strength:
            np.testing.assert_allclose(found.held_out, said, atol=1e-9)
    assert found.strength == min(found.log_loss, key=found.log_loss.get)
    alone = fit(states, logprobs, hits, users, [found.strength]).readout
    np.testing.assert_allclose(as_numbers(found.readout), as_numbers(alone), rtol=1e-7, atol=1e-9)


def test_of_equal_losses_the_stronger_penalty_is_taken():
    _, logprobs, hits, users = world()
    nothing = torch.full((300, 2), 0.1, dtype=torch.float64)
    found = fit(nothing, logprobs, hits, users, [0.001, 0.3, 0.01])
    assert len({*found.log_loss.values()}) == 1
    assert found.strength == 0.3


@given(st.lists(st.tuples(st.integers(-3, 12), st.booleans()), min_size=1, max_size=60))
def test_no_user_is_in_two_folds_and_hits_are_spread(rows):
    users, hits = (np.array(column) for column in zip(*rows, strict=True))
    fold = _folds(users, hits)
    of = {user: {*fold[users == user].tolist()} for user in users.tolist()}
    assert {len(parts) for parts in of.values()} == {1}
    for some in ({*users.tolist()}, {*users[hits].tolist()}):
        count = np.bincount([min(of[user]) for user in some], minlength=FOLDS)
        assert len(count) == FOLDS
        assert count.max() - count.min() <= 1


@pytest.mark.parametrize("strength", [LIKELIHOOD_ALONE, 0.01])
def test_what_is_said_of_a_user_does_not_depend_on_what_came_true_of_them(strength):
    states, logprobs, hits, users = world()
    own = np.flatnonzero(users == next(user for user in users if 0 < hits[users == user].sum() < 5))
    other = hits.clone()
    other[own] = hits[own].roll(1)
    fold = _folds(users, hits.numpy())
    assert np.array_equal(fold, _folds(users, other.numpy()))
    before, after = (fit(states, logprobs, told, users, [strength]).held_out for told in (hits, other))
    same = fold == fold[own[0]]
    assert torch.equal(before[same], after[same])
    assert (before[~same] != after[~same]).all()


# ---- what does not matter


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_the_order_of_rows_does_not_matter(seed):
    states, logprobs, hits, users = world()
    order = np.random.default_rng(seed).permutation(len(users))
    one, two = fit(states, logprobs, hits, users), fit(states[order], logprobs[order], hits[order], users[order])
    np.testing.assert_allclose(as_numbers(one.readout), as_numbers(two.readout), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(one.held_out[order], two.held_out, atol=1e-9)


@given(st.lists(st.floats(1e-4, 1e4), min_size=4, max_size=4), st.floats(-100, 100))
@settings(max_examples=10)
def test_units_and_origins_of_states_do_not_matter(units, origin):
    states, logprobs, hits, users = world()
    one = fit(states, logprobs, hits, users)
    units = torch.tensor(units, dtype=torch.float64)
    two = fit(states * units + origin * units, logprobs, hits, users)
    np.testing.assert_allclose(one.held_out, two.held_out, atol=1e-9)
    np.testing.assert_allclose(two.readout.weight * units, one.readout.weight, rtol=1e-6, atol=1e-9)


def test_powers_of_two_change_no_bit():
    states, logprobs, hits, users = world()
    other = fit(states * torch.tensor([2.0, 0.25, 1024.0, 1.0]), logprobs, hits, users)
    assert torch.equal(other.held_out, fit(states, logprobs, hits, users).held_out)


# ---- the edges


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-300])
def test_a_state_that_does_not_vary_has_no_weight(value):
    states, logprobs, hits, users = world()
    still = torch.full((300,), value, dtype=torch.float64)
    jittered = still * (1 + 1e-8 * torch.arange(300) / 300)  # float32 could not tell
    found = fit(torch.column_stack([states, still, jittered]), logprobs, hits, users)
    assert found.readout.weight[4:].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(found.held_out, fit(states, logprobs, hits, users).held_out, atol=1e-12)


@pytest.mark.parametrize("strengths", [STRENGTHS, [1e-9]])
def test_what_parts_hits_from_misses_stays_finite(strengths):
    _, logprobs, _, users = world()
    hits = logprobs > math.log(0.3)
    states = torch.column_stack([hits.double(), hits.double(), torch.arange(300.0)])  # twice the same, too
    found = fit(states, logprobs, hits, users, strengths)
    assert np.isfinite(as_numbers(found.readout)).all()
    assert torch.equal(found.held_out > 0.5, hits)
    alone = fit(states, logprobs, hits, users, [LIKELIHOOD_ALONE]).readout
    assert 1 < alone.slope < 1e4


def test_likelihoods_at_both_ends():
    ends = torch.tensor([-math.inf, -1e30, -200.0, -1e-30, 0.0, 1e-6])
    logits = likelihood_logit(ends)
    assert logits.dtype == torch.float64
    assert logits.tolist() == pytest.approx([-16.118] * 3 + [16.118] * 3, abs=1e-3)
    states, logprobs, hits, users = world()
    logprobs[:100] = ends[[1, 2, 4, 5]].repeat(25)
    assert np.isfinite(as_numbers(fit(states, logprobs, hits, users).readout)).all()


def test_single_precision_is_fitted_in_double():
    states, logprobs, hits, users = world()
    one, two = (fit(values, logprobs, hits, users) for values in (states.float(), states.float().double()))
    assert torch.equal(one.held_out, two.held_out)
    assert one.readout.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(300)}, r"must be \(n, D\), \(n,\), \(n,\), \(n,\), got \[\(300,\)"),
        ({"logprobs": torch.zeros(299)}, r"must be \(n, D\).*\(299,\)"),
        ({"users": np.zeros((300, 1), int)}, r"must be \(n, D\).*\(300, 1\)"),
        ({"states": torch.full((300, 2), math.nan)}, "`states` must be finite; leave out absent"),
        ({"logprobs": torch.full((300,), -math.inf)}, "`logprobs` must be finite; leave out absent"),
        ({"hits": torch.zeros(300, dtype=torch.bool)}, "5 users or more, and not all, got 0 of 300 .* of 0 users"),
        ({"hits": torch.ones(300, dtype=torch.bool)}, "`hits` must be of 5 users or more, and not all, got 300 of 300"),
        ({"hits": torch.arange(300) < 20}, "`hits` must be of 5 .* got 20 of 300 candidates, of 4 users; take more"),
        ({"strengths": []}, r"`strengths` must be 1e-09 or more, got \[\]"),
        ({"strengths": [0.1, 0.0]}, "`strengths` must be 1e-09 or more"),
        ({"strengths": [-0.1]}, "`strengths` must be 1e-09 or more"),
        ({"strengths": [math.nan]}, "`strengths` must be 1e-09 or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    given = dict(zip(("states", "logprobs", "hits", "users"), world(), strict=True))
    with pytest.raises(ValueError, match=message):
        fit(**given | change)


# ---- to say


def test_it_says_what_the_formula_says():
    readout = Readout(torch.tensor([0.5, -2.0], dtype=torch.float64), slope=0.8, bias=-0.25)
    states, logprobs = torch.tensor([[[1.0, 2.0], [3.0, 0.5]]]), torch.tensor([[0.9, 0.01]]).log()
    said = readout(states, logprobs)
    wanted = [0.8 * math.log(9) + 0.5 - 4 - 0.25, 0.8 * math.log(1 / 99) + 1.5 - 1 - 0.25]
    assert said.dtype == torch.float64
    assert said.tolist() == [pytest.approx(wanted, abs=1e-6)]
    with pytest.raises(ValueError, match=r"`states` must be \(..., 2\), as those .* got \(4, 3\); fit it anew"):
        readout(torch.zeros(4, 3), torch.zeros(4))


@pytest.mark.parametrize("strengths", [STRENGTHS, (LIKELIHOOD_ALONE,), (0.01,)])
def test_users_that_it_was_fitted_to_can_be_read_by_the_fit_that_left_them_out(strengths):
    states, logprobs, hits, users = world(per=5)
    fitted = fit(states, logprobs, hits, users, strengths)
    readout, lists = fitted.readout, (60, 5)
    fold = readout.left_out.fold_of(np.arange(60))
    assert sorted(set(fold.tolist())) == [*range(FOLDS)]
    said = readout(states.reshape(*lists, -1), logprobs.reshape(lists), fold).sigmoid()
    torch.testing.assert_close(said.flatten(), fitted.held_out, atol=1e-12, rtol=1e-9)
    for nobody in (readout.left_out.fold_of(np.arange(60) + 1000), None):
        own = readout(states.reshape(*lists, -1), logprobs.reshape(lists), nobody)
        torch.testing.assert_close(own.flatten(), readout(states, logprobs), atol=1e-12, rtol=1e-9)


def test_a_user_is_found_whatever_their_number():
    *given, users = world(per=5)
    left_out = fit(*given, users * 7 - 100).readout.left_out
    plain = fit(*given, users).readout.left_out
    np.testing.assert_array_equal(left_out.users, np.arange(60) * 7 - 100)
    np.testing.assert_array_equal(
        left_out.fold_of([-100, -99, 7 * 59 - 100, 10**9]), [plain.fold[0], -1, plain.fold[59], -1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": None}, r"must hold users, fold, weight, slope and bias, got \["),
        ({"weight": np.zeros((FOLDS, 3))}, "`arrays` must be finite, of .*'weight': .5, 4"),
        ({"slope": np.full(FOLDS, np.nan)}, "`arrays` must be finite"),
        ({"bias": np.zeros(FOLDS - 1)}, "`arrays` must be finite"),
        ({"fold": np.zeros(59, np.int64)}, "`users` and `fold` must be rows of int64"),
        ({"fold": np.zeros(60)}, "`users` and `fold` must be rows of int64, got .* float64"),
        ({"users": np.zeros(0, np.int64), "fold": np.zeros(0, np.int64)}, "must be rows of int64"),
        ({"users": np.zeros(60, np.int64)}, "`users` must ascend"),
        ({"fold": np.full(60, FOLDS)}, r"`fold` lie in 0\.\.4"),
        ({"fold": np.full(60, -1)}, r"`fold` lie in 0\.\.4"),
    ],
)
def test_fits_of_nobody_are_refused(change, message):
    arrays = fit(*world(per=5)).readout.to_arrays() | {f"left_out.{name}": array for name, array in change.items()}
    with pytest.raises(ValueError, match=message):
        Readout.from_arrays({name: array for name, array in arrays.items() if array is not None})


def test_autocast_does_not_round_it():
    states, logprobs, hits, users = world()
    readout = fit(states, logprobs, hits, users).readout
    for kind in (torch.float32, torch.bfloat16):
        alone = readout(states.to(kind), logprobs)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(readout(states.to(kind), logprobs), alone)


# ---- files


@pytest.fixture
def saved(tmp_path):
    readout = fit(*world()).readout
    write_readout(tmp_path / "readout.safetensors", readout, HOW)
    return tmp_path / "readout.safetensors", readout


def test_arrays_and_files_come_back(saved):
    path, readout = saved
    again = Readout.from_arrays(readout.to_arrays())
    how, read = read_readout(path)
    assert how == {**HOW, "readout": readout.digest}
    for other in (again, read):
        assert torch.equal(other.weight, readout.weight)
        assert (other.slope, other.bias, other.digest) == (readout.slope, readout.bias, readout.digest)
        for name, array in readout.left_out.to_arrays().items():
            np.testing.assert_array_equal(other.left_out.to_arrays()[name], array)
    before = path.read_bytes()
    write_readout(path, read, dict(reversed(HOW.items())))
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_digests_tell_readouts_apart():
    weight = torch.tensor([0.0, 1.0], dtype=torch.float64)
    several = [Readout(weight, 1, 0), Readout(weight, 0, 1), Readout(weight.flip(0), 1, 0), Readout(weight[:1], 1, 0)]
    assert len({readout.digest for readout in several}) == 4
    assert all(len(readout.digest) == 16 for readout in several)


def test_evidence_comes_back_and_is_part_of_the_digest(tmp_path):
    train = Sequences(np.array([0, 3]), np.array([0, 1, 2]), np.array([0]))
    weight = torch.arange(5, dtype=torch.float64)
    several = [Readout(weight, 1.0, 0.5), *(Readout(weight, 1.0, 0.5, Evidence.build(train, n)) for n in (3, 4))]
    assert len({readout.digest for readout in several}) == 3
    for readout in several:
        write_readout(tmp_path / "readout.safetensors", readout, HOW)
        again = read_readout(tmp_path / "readout.safetensors")[1]
        assert again.digest == readout.digest
        assert again.to_arrays().keys() == readout.to_arrays().keys()
    with pytest.raises(ValueError, match="`arrays` must weigh followed, popular, repeated, got a weight of 2"):
        Readout.from_arrays(several[1].to_arrays() | {"weight": np.zeros(2)})
    with pytest.raises(
        ValueError, match="`arrays` must hold followers, counts, offsets, popularity, same, got no counts"
    ):
        Readout.from_arrays({n: a for n, a in several[1].to_arrays().items() if n != "evidence.counts"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((2, 1))}, r"finite, of shapes \(D,\), \(\) and \(\), got \[\(2, 1\)"),
        ({"slope": np.ones(1)}, r"finite, of shapes .* \(1,\)"),
        ({"bias": np.nan}, "`arrays` must be finite"),
        ({"weight": [np.inf]}, "`arrays` must be finite"),
    ],
)
def test_arrays_of_no_readout_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Readout.from_arrays({"weight": [1.0], "slope": 1.0, "bias": 0.0} | change)
    with pytest.raises(ValueError, match=r"`arrays` must hold weight, slope and bias, got \['slope'\]"):
        Readout.from_arrays({"slope": 1.0})


REMEDY = r"readout.safetensors is truncated or altered .*; make it again with `ugr-fast confide`"


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_refused_by_name(saved, how):
    path, _ = saved
    damage(path, how)
    with pytest.raises(ValueError, match=REMEDY):
        read_readout(path)


@pytest.mark.parametrize("how", [None, "{", "[]", "3", "null", "{}", '{"readout": "0"}'])
def test_a_foreign_file_is_refused_by_name(saved, how):
    path, readout = saved
    save_file(readout.to_arrays(), path, metadata=None if how is None else {"how": how})
    with pytest.raises(ValueError, match=REMEDY):
        read_readout(path)
    save_file({"weights": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=REMEDY):
        read_readout(path)


@pytest.mark.parametrize(
    "change",
    [{"normalize": None}, {"precision": None}, {"normalize": "most"}, {"precision": "int4"}, {"precision": [1]}],
)
def test_a_search_that_there_is_not_is_refused_by_name(saved, change):
    path, readout = saved
    how = {**HOW, **change}
    write_readout(path, readout, {name: value for name, value in how.items() if value is not None})
    with pytest.raises(ValueError, match=r"readout.safetensors is altered .*; make it again with `ugr-fast confide`"):
        read_readout(path)


def test_a_file_that_is_not_there_names_its_maker(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors does not exist; `ugr-fast confide` makes it"):
        read_readout(tmp_path / "a.safetensors")
