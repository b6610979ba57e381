from __future__ import annotations

import contextlib
import copy
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from ugr_fast import losses
from ugr_fast.model import Catalogue, confidence_logit, head_logits, packed_hidden_states
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


# ---- log-probs in chunks, in half precision, and the entropy beside them


def scored_nodes(model, catalogue, normalize="full", group=5, **options):
    """The log-probs (and entropies) of a packed pass, and the number of tree nodes behind them."""
    tokens = candidates_of(catalogue, group)
    prompts = [catalogue.prompt(history) for history in HISTORIES]
    packed = pack_prefixes(prompts, tokens.numpy(), suffix=catalogue.vocabulary.suffix)
    where = torch.from_numpy(packed.logit_index)
    found = losses.token_logprobs(
        model,
        packed_hidden_states(model, packed),
        where,
        tokens,
        normalize=normalize,
        vocabulary=catalogue.vocabulary,
        trie=catalogue.trie,
        **options,
    )
    return found, sum(len(row[row >= 0].unique()) for row in where)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_change_neither_values_nor_gradients(architecture, normalize, chunk_size):
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    found = []
    for size in (None, chunk_size):
        model.zero_grad()
        (logprobs, entropy), nodes = scored_nodes(model, catalogue, normalize, chunk_size=size, entropy=True)
        assert nodes % 3  # the last chunk is a short one
        weights = torch.linspace(-1, 2, logprobs.numel(), dtype=torch.float64).reshape(logprobs.shape)
        (weights * logprobs).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((logprobs.detach(), entropy, gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


class MostLogits(TorchDispatchMode):
    """The most rows of any tensor with a column per token of the vocabulary: made, and kept for the gradient."""

    def __init__(self, width):
        super().__init__()
        self.width, self.made, self.kept = width, 0, 0

    def rows(self, tensor):
        return tensor.numel() // self.width if tensor.shape[-1:] == (self.width,) else 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.made = max([self.made, *map(self.rows, tensors)])
        return result

    def keep(self, tensor):
        self.kept = max(self.kept, self.rows(tensor))
        return tensor


def test_no_more_logits_than_a_chunk_stand_at_once_forward_or_backward():
    catalogue = tiny.catalogue(num_items=100)
    model = tiny.model(catalogue.vocabulary)
    for chunk_size in (None, 40):  # above the 32 rows of the head, transposed
        seen = MostLogits(catalogue.vocabulary.size)
        with seen, saved_tensors_hooks(seen.keep, lambda tensor: tensor):
            logprobs, nodes = scored_nodes(model, catalogue, group=40, chunk_size=chunk_size)
            logprobs.sum().backward()
        assert nodes > 40
        assert seen.made == (chunk_size or nodes)
        assert seen.kept == (0 if chunk_size else nodes)


def test_chunks_are_sized_by_the_vocabulary(monkeypatch):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda head, given, made: rows.append(len(made)))
    _, nodes = scored_nodes(model, catalogue)
    for enough in (None, nodes):
        rows.clear()
        scored_nodes(model, catalogue, chunk_size=enough)[0].sum().backward()
        assert rows == [nodes]  # all fit one chunk, and nothing is computed twice
    rows.clear()
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 10 * catalogue.vocabulary.size + 1)
    scored_nodes(model, catalogue)[0].sum().backward()
    chunks = [10] * (nodes // 10) + [nodes % 10]
    assert rows == chunks + chunks[::-1]  # the backward pass goes through them from the end
    rows.clear()
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 1)  # less than one row of logits: node by node
    scored_nodes(model, catalogue)
    assert rows == [1] * nodes


def test_a_wrapped_head_computes_every_column_and_is_counted_so(monkeypatch):
    class Wrapped(torch.nn.Linear):
        pass

    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    low, high = catalogue.vocabulary.sid_range
    monkeypatch.setattr(losses, "LOGITS_PER_CHUNK", 10 * (high - low))
    rows = []
    monkeypatch.setattr(losses, "head_logits", lambda *given: rows.append(len(given[1])) or head_logits(*given))
    for kind, size in ((torch.nn.Linear, 10), (Wrapped, 7)):  # 15 of the 20 tokens are of semantic IDs
        model.get_output_embeddings().__class__ = kind
        rows.clear()
        scored_nodes(model, catalogue, "sid")
        assert rows[0] == size


def test_without_any_candidate_there_is_nothing_to_score():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    nothing = torch.full((2, 3, 3), -1)
    logprobs, entropy = losses.token_logprobs(
        model, torch.zeros(2, 4, 32).double(), nothing, nothing, trie=catalogue.trie, entropy=True, chunk_size=1
    )
    assert logprobs.tolist() == torch.zeros(2, 3, 3).tolist()
    assert entropy.tolist() == [0, 0]


@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_entropy_is_that_over_the_branches_of_the_trie(normalize, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    (_, entropy), _ = scored_nodes(model, catalogue, normalize, entropy=True)
    assert not entropy.requires_grad
    sids = tiny.sids_of(catalogue)
    for row, tokens in enumerate(candidates_of(catalogue, 5).tolist()):
        candidates = [tuple(token for token in sid if token >= 0) for sid in tokens]
        slow = reference.branching_entropy(model, catalogue.prompt(HISTORIES[row]), candidates, sids)
        assert entropy[row].item() == pytest.approx(slow, rel=1e-10)
        assert slow > 0


def test_a_path_without_branches_has_no_entropy():
    catalogue = Catalogue.build(tiny.SidVocabulary.from_scratch((2, 3)), [[0, 1]])
    model = tiny.model(catalogue.vocabulary)
    tokens = torch.from_numpy(catalogue.item_tokens)[None]
    hidden, where = torch.zeros(1, 2, 32).double(), torch.tensor([[[0, 1]]])
    logprobs, entropy = losses.token_logprobs(
        model, hidden, where, tokens, trie=catalogue.trie, normalize="allowed", entropy=True
    )
    assert entropy.item() == 0
    assert (logprobs == 0).all()  # the only way is certain


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("normalize", ["full", "allowed"])
def test_half_precision_ends_in_float32(normalize, chunk_size):
    catalogue = tiny.catalogue()
    exact = tiny.model(catalogue.vocabulary, "gpt2").float()
    with torch.no_grad():
        expected = scored_nodes(exact, catalogue, normalize)[0]
    half = copy.deepcopy(exact).bfloat16()
    cast = torch.autocast("cpu", dtype=torch.bfloat16)
    for model, context in ((half, contextlib.nullcontext()), (exact, cast)):
        with context:
            (logprobs, entropy), _ = scored_nodes(model, catalogue, normalize, chunk_size=chunk_size, entropy=True)
        logprobs.sum().backward()
        assert logprobs.dtype == entropy.dtype == torch.float32
        assert 0 < (logprobs - expected).abs().max() < 0.2
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_token_logprobs_refuses_what_cannot_be():
    catalogue, small = tiny.catalogue(), tiny.catalogue(num_items=4, sizes=(2, 2, 2))
    model = tiny.model(small.vocabulary)
    hidden, where = torch.zeros(1, 3, 32).double(), torch.tensor([[[0, 1, 2]]])
    tokens = torch.from_numpy(small.item_tokens)[None, :1]
    with pytest.raises(ValueError, match="`trie` must be given for entropy"):
        losses.token_logprobs(model, hidden, where, tokens, entropy=True)
    with pytest.raises(ValueError, match=r"`chunk_size` must be at least 1, got 0"):
        losses.token_logprobs(model, hidden, where, tokens, chunk_size=0)
    with pytest.raises(ValueError, match=r"`trie` must hold tokens in \[0, 11\), got \[5, 20\)"):
        losses.token_logprobs(model, hidden, where, tokens, trie=catalogue.trie, entropy=True)
    with pytest.raises(ValueError, match=r"`tokens` must lie in \[0, 11\).* got 5 to 11"):
        losses.token_logprobs(model, hidden, where, torch.tensor([[[5, 7, 11]]]))


# ---- policy

VARIANTS = {  # settings of `losses.policy`, and the clip bounds that they mean
    "grpo": ({"loss": "grpo"}, 0.8, 1.2),
    "grpo, clip higher": ({"loss": "grpo", "clip": 0.1, "clip_high": 0.28}, 0.9, 1.28),
    "grpo, two sides": ({"loss": "grpo", "delta": 1.5}, 0.8, 1.2),
    "dr_grpo": ({"loss": "dr_grpo"}, 0.8, 1.2),
    "dapo": ({"loss": "dapo", "clip_high": 0.28}, 0.8, 1.28),
    "gspo": ({"loss": "gspo", "clip": 0.05, "clip_high": 0.1}, 0.95, 1.1),
    "gspo, two sides": ({"loss": "gspo", "delta": 1.3}, 0.8, 1.2),
    "cispo": ({"loss": "cispo", "clip_high": 1.5}, 0.0, 1.5),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@dataclass
class Batch:
    """Random groups with clipped and unclipped ratios, absent candidates and tokens among them."""

    logprobs: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    present: torch.Tensor

    @classmethod
    def make(cls, seed, groups=3, group=4, length=3, spread=0.4):
        torch.manual_seed(seed)
        old = -3 * torch.rand(groups, group, length, dtype=torch.float64)
        moved = old + spread * torch.randn_like(old)
        lengths = torch.randint(0, length + 1, (groups, group))
        present = torch.arange(length) < lengths[..., None]
        return cls(moved, old, torch.randn(groups, group, dtype=torch.float64), present)

    def take(self, index):
        return Batch(*(value[index] for value in vars(self).values()))

    def policy(self, logprobs=None, **settings):
        logprobs = self.logprobs if logprobs is None else logprobs
        return losses.policy(logprobs, self.old, self.advantages, self.present, **settings)

    def lists(self):
        """The batch as the slow reference takes it."""
        pairs = torch.stack([self.logprobs, self.old], -1)  # (B, G, L, 2)
        return [
            [
                (advantage.item(), row[there].tolist())
                for advantage, row, there in zip(*group, strict=True)
                if there.any()
            ]
            for group in zip(self.advantages, pairs, self.present, strict=True)
        ]


seeds = st.integers(0, 10**6)


@each_variant
@given(seed=seeds)
def test_policy_and_clip_share_equal_the_loops(variant, seed):
    batch, (settings, low, high) = Batch.make(seed), VARIANTS[variant]
    delta = settings.get("delta", math.inf)
    slow = reference.policy_loss(batch.lists(), settings["loss"], 3, low, high, delta)
    assert batch.policy(**settings).mean().item() == pytest.approx(slow, rel=1e-12, abs=1e-14)
    settings = {name: value for name, value in settings.items() if name != "delta"}
    shares = losses.clip_share(batch.logprobs, batch.old, batch.advantages, batch.present, **settings)
    expected = [reference.clip_share(group, settings["loss"], low, high) for group in batch.lists()]
    assert shares.tolist() == pytest.approx(expected, rel=1e-12)


def test_policy_loss_by_hand():
    logprobs = torch.tensor([[[0.3, 0.0], [-0.5, 0.0]]], dtype=torch.float64)
    there = torch.tensor([[[True, False], [True, True]]])
    advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    old = torch.zeros_like(logprobs)
    first = -1.2 * 2.0  # the ratio e^0.3 is clipped at 1.2
    moved, still = max(math.exp(-0.5), 0.8), 1.0  # A < 0: the larger of ratio and bound counts
    even = max(math.exp(-0.25), 0.8)  # the candidate's ratio
    expected = {
        "grpo": (first + (moved + still) / 2) / 2,
        "dr_grpo": (first / 2 + (moved + still) / 2) / 2,  # divides by the longest length
        "dapo": (first + moved + still) / 3,
        "gspo": (first + even) / 2,
        "cispo": (-1.3 * 2.0 * 0.3 + math.exp(-0.5) * -0.5 + 0.0) / 3,  # e^0.3 is above the cap of 1.3
    }
    for loss, value in expected.items():
        high = 1.3 if loss == "cispo" else None
        found = losses.policy(logprobs, old, advantages, there, loss=loss, clip_high=high)
        assert found.item() == pytest.approx(value, rel=1e-12), loss


def test_two_sided_clipping_bounds_what_one_side_does_not():
    far, ones = torch.full((1, 1, 1), 3.0), torch.ones(1, 1, 1, dtype=torch.bool)
    for advantage, free, bounded in ((-1.0, math.exp(3.0), 4.0), (1.0, -1.2, -1.2)):
        for delta, value in ((None, free), (4.0, bounded)):
            found = losses.policy(far, torch.zeros(1, 1, 1), torch.tensor([[advantage]]), ones, delta=delta)
            assert found.item() == pytest.approx(value, rel=1e-6)


@each_variant
@given(seed=seeds)
def test_on_policy_gradient_is_the_policy_gradient(variant, seed):
    batch, (settings, _, _) = Batch.make(seed), VARIANTS[variant]
    batch.old = batch.logprobs.clone()
    logprobs = batch.logprobs.clone().requires_grad_()
    batch.policy(logprobs, **settings).mean().backward()
    lengths = batch.present.sum(2, keepdim=True)
    candidates = 3 * (lengths > 0).sum(1, keepdim=True).clamp(min=1)
    divisor = {"dr_grpo": 3 * candidates, "dapo": lengths.sum(), "cispo": lengths.sum()}.get(
        settings["loss"], lengths * candidates
    )
    expected = torch.where(batch.present, -batch.advantages[..., None] / divisor.clamp(min=1), 0)
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=1e-15)


@each_variant
@given(seed=seeds, cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_split_of_a_batch_adds_up_to_it(variant, seed, cuts):
    batch, (settings, _, _) = Batch.make(seed, groups=5), VARIANTS[variant]
    tokens = batch.present.sum().item() / 5 or 1.0
    whole = batch.policy(**settings)
    edges = sorted({0, *cuts, 5})
    parts = [batch.take(slice(*ends)).policy(**settings, tokens_per_group=tokens) for ends in itertools.pairwise(edges)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-15)


@each_variant
@given(seed=seeds)
def test_groups_do_not_see_each_other_in_any_loss(variant, seed):
    batch, (settings, _, _) = Batch.make(seed), VARIANTS[variant]
    other = Batch.make(seed + 1)
    for value, strange in zip(vars(batch).values(), vars(other).values(), strict=True):
        strange[1] = value[1]
    tokens = {"tokens_per_group": 5.0}
    assert torch.equal(batch.policy(**settings, **tokens)[1], other.policy(**settings, **tokens)[1])
    logprobs = batch.logprobs.clone().requires_grad_()
    batch.policy(logprobs, **settings, **tokens)[1].backward()
    assert (logprobs.grad[[0, 2]] == 0).all()


@each_variant
@given(seed=seeds)
def test_absent_candidates_change_nothing(variant, seed):
    """Whatever stands where there is no token, NaN as well; it gets no gradient either."""
    batch, (settings, _, _) = Batch.make(seed), VARIANTS[variant]
    share = {name: value for name, value in settings.items() if name != "delta"}
    wider = Batch(
        *(
            torch.cat([value, torch.full_like(value[:, :1], fill)], 1)
            for value, fill in zip(vars(batch).values(), (torch.nan, 0.0, torch.nan, False), strict=True)
        )
    )
    logprobs = wider.logprobs.masked_fill(~wider.present, torch.nan).requires_grad_()
    found = wider.policy(logprobs, **settings)
    torch.testing.assert_close(found, batch.policy(**settings), rtol=1e-12, atol=1e-15)
    kl = losses.kl(logprobs, wider.old, wider.present)
    torch.testing.assert_close(kl, losses.kl(batch.logprobs, batch.old, batch.present), rtol=1e-12, atol=1e-15)
    (found + kl).sum().backward()
    assert (logprobs.grad[~wider.present] == 0).all()
    assert logprobs.grad.isfinite().all()
    pair = [losses.clip_share(one.logprobs, one.old, one.advantages, one.present, **share) for one in (wider, batch)]
    assert torch.equal(*pair)


@each_variant
@pytest.mark.parametrize("distance", [-1e30, -95.0, 95.0, 1e30])
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 2.0])
def test_exploded_ratios_stay_finite(variant, distance, advantage):
    settings, _, _ = VARIANTS[variant]
    logprobs = torch.full((1, 2, 2), distance).requires_grad_()  # float32: e^95 overflows
    old, there = torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    advantages = torch.full((1, 2), advantage)
    found = losses.policy(logprobs, old, advantages, there, **settings)
    found.sum().backward()
    assert found.isfinite().all()
    assert logprobs.grad.isfinite().all()
    if advantage == 0:
        assert found.item() == 0
        assert (logprobs.grad == 0).all()


def test_an_empty_batch_loses_nothing():
    batch = Batch.make(0)
    batch.present[:] = False
    for settings, _, _ in VARIANTS.values():
        assert batch.policy(**settings).tolist() == [0, 0, 0]
        assert batch.take(slice(0)).policy(**settings).shape == (0,)
    assert losses.clip_share(batch.logprobs, batch.old, batch.advantages, batch.present).tolist() == [0, 0, 0]
    assert losses.kl(batch.logprobs, batch.old, batch.present).tolist() == [0, 0, 0]


def test_clip_share_counts_only_what_the_clipping_holds():
    logprobs = torch.tensor([[[0.5, -0.5], [0.5, -0.5], [0.5, -0.5]]])
    there = torch.ones(1, 3, 2, dtype=torch.bool)
    old, advantages = torch.zeros(1, 3, 2), torch.tensor([[1.0, -1.0, 0.0]])
    assert losses.clip_share(logprobs, old, advantages, there).item() == pytest.approx(2 / 6)
    assert losses.clip_share(logprobs, old, advantages, there, clip_high=0.9).item() == pytest.approx(1 / 6)
    assert losses.clip_share(logprobs, old, advantages, there, loss="gspo").item() == 0  # the moves cancel
    cap = losses.clip_share(logprobs, old, advantages, there, loss="cispo", clip_high=1.5)
    assert cap.item() == pytest.approx(1 / 6)


# ---- kl


@given(seed=seeds)
def test_kl_equals_the_loops(seed):
    batch = Batch.make(seed)
    expected = [reference.kl(group) for group in batch.lists()]
    assert losses.kl(batch.logprobs, batch.old, batch.present).tolist() == pytest.approx(expected, rel=1e-12)


def test_kl_is_zero_at_the_reference_and_positive_elsewhere():
    values, there = torch.randn(3, 4, 2).double(), torch.ones(3, 4, 2, dtype=torch.bool)
    assert (losses.kl(values, values, there) == 0).all()
    assert (losses.kl(values, values + 0.1, there) > 0).all()
    assert (losses.kl(values, values - 0.1, there) > 0).all()


def test_kl_is_never_negative_even_where_float32_ends():
    distance = torch.logspace(-9, 0, 4000).reshape(-1, 1, 1)
    there = torch.ones_like(distance, dtype=torch.bool)
    for sign in (-1, 1):
        found = losses.kl(torch.zeros_like(distance), sign * distance, there)
        assert (found >= 0).all()
        exact = torch.expm1(sign * distance.double()) - sign * distance.double()
        torch.testing.assert_close(found.double(), exact[:, 0, 0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("distance", [-1e30, -200.0, 19.9, 20.1, 200.0, 1e30])
def test_kl_is_finite_at_any_distance(distance):
    logprobs, there = torch.zeros(1, 1, 1, requires_grad=True), torch.ones(1, 1, 1, dtype=torch.bool)
    found = losses.kl(logprobs, torch.full((1, 1, 1), distance), there)
    found.sum().backward()
    nearest = min(distance, 20.0)
    assert found.item() == pytest.approx(math.expm1(nearest) - nearest, rel=1e-6)
    slope = 0.0 if distance > 20 else 1 - math.exp(distance)
    assert logprobs.grad.item() == pytest.approx(slope, rel=1e-5)


# ---- gradients


@each_variant
def test_policy_gradients_are_right(variant):
    """Finite differences; for CISPO those of the loss whose ratio is a constant."""
    batch, (settings, _, _) = Batch.make(7, spread=0.3), VARIANTS[variant]
    logprobs = batch.logprobs.clone().requires_grad_()
    if settings["loss"] != "cispo":
        assert torch.autograd.gradcheck(lambda x: batch.policy(x, **settings), logprobs)
        return
    ratio = torch.exp(batch.logprobs - batch.old).clamp(max=settings["clip_high"])

    def frozen(x):
        gain = ratio * batch.advantages[..., None] * x
        return -torch.where(batch.present, gain, 0).sum((1, 2)) * 3 / batch.present.sum()

    assert torch.autograd.gradcheck(frozen, logprobs)
    (slope,) = torch.autograd.grad(batch.policy(logprobs, **settings).sum(), logprobs)
    (expected,) = torch.autograd.grad(frozen(logprobs).sum(), logprobs)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)


def test_other_gradients_are_right():
    batch, hits = Batch.make(1), torch.tensor([[True, False, False], [False, False, False]])
    logprobs = batch.logprobs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.kl(x, batch.old, batch.present), logprobs)
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


@given(groups, st.sampled_from(["released", "logit"]))
def test_a_margin_falls_with_the_hit_and_rises_with_the_misses(group, objective):
    logits, hits, partial = group
    values, hit = torch.tensor([logits], dtype=torch.float64, requires_grad=True), torch.tensor([hits])
    losses.confidence_alignment(
        values, hit, partial=torch.tensor([partial]) & ~hit, objective=objective, lambda_partial=0.3
    ).sum().backward()
    assert (values.grad[hit] <= 0).all()
    assert (values.grad[~hit] >= 0).all()
    if not 0 < sum(hits) < len(hits):  # no pair, no gradient
        assert (values.grad == 0).all()


def test_equal_confidences_cost_ln_2_for_each_kind_of_miss():
    hits, partial = torch.tensor([[True, False, False, False]]), torch.tensor([[False, True, False, False]])
    for objective in ("released", "logit"):
        found = losses.confidence_alignment(
            torch.full((1, 4), 1.7, dtype=torch.float64),
            hits,
            partial=partial,
            objective=objective,
            lambda_wrong=0.5,
            lambda_partial=0.3,
        )
        assert found.item() == pytest.approx(0.8 * math.log(2), rel=1e-12)


def test_partial_misses_cost_nothing_as_released():
    logits, hits = torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[True, False, False]])
    partial = torch.tensor([[False, True, False]])
    found = losses.confidence_alignment(logits, hits, partial=partial)
    assert found.item() == losses.confidence_alignment(logits[:, [0, 2]], hits[:, [0, 2]]).item()


@pytest.mark.parametrize("objective", ["released", "logit", "brier"])
def test_absent_candidates_have_no_confidence(objective):
    torch.manual_seed(3)
    logits, hits = torch.randn(2, 4).double(), torch.tensor([[True, False, False, False], [False] * 4])
    present = torch.tensor([[True, True, True, False], [True, True, False, False]])
    alone = [
        losses.confidence_alignment(logits[row : row + 1, :count], hits[row : row + 1, :count], objective=objective)
        for row, count in enumerate((3, 2))
    ]
    for fill in (-50.0, 50.0):
        values = logits.masked_fill(~present, fill).requires_grad_()
        found = losses.confidence_alignment(
            values, hits | ~present, present=present, partial=~present, objective=objective, lambda_partial=0.3
        )
        torch.testing.assert_close(found, torch.cat(alone), rtol=1e-12, atol=1e-15)
        found.sum().backward()
        assert (values.grad[~present] == 0).all()
    nothing = losses.confidence_alignment(logits, hits, present=torch.zeros_like(hits), objective=objective)
    assert nothing.tolist() == [0, 0]


@pytest.mark.parametrize("objective", ["released", "logit", "brier"])
def test_certain_confidences_are_no_trouble(objective):
    values = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)  # float32
    found = losses.confidence_alignment(values, torch.tensor([[True, False, False]]), objective=objective)
    found.sum().backward()
    assert found.isfinite().all()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])  # up to logits far beyond where a confidence rounds to 0 or 1
def test_confidence_is_the_softmax_of_two_logits(size):
    vocabulary = tiny.catalogue().vocabulary
    model = tiny.model(vocabulary)
    torch.manual_seed(0)
    hidden = size * torch.randn(50, 32, dtype=torch.float64)
    pair = head_logits(model, hidden)[:, [vocabulary.positive, vocabulary.negative]]
    logit = confidence_logit(model, hidden, vocabulary)
    torch.testing.assert_close(torch.sigmoid(logit), pair.softmax(1)[:, 0], rtol=1e-9, atol=1e-15)
    swapped = replace(vocabulary, positive=vocabulary.negative, negative=vocabulary.positive)
    both = torch.sigmoid(logit) + torch.sigmoid(confidence_logit(model, hidden, swapped))
    torch.testing.assert_close(both, torch.ones_like(both), rtol=1e-15, atol=0)


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
    with pytest.raises(ValueError, match=r"`clip_high` must be the largest ratio itself for loss='cispo', got None"):
        losses.policy(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2), there, loss="cispo")
    with pytest.raises(ValueError, match=r"`delta` must be above the upper clip bound, 1.2, got 1.1"):
        losses.policy(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2), there, delta=1.1)
    with pytest.raises(ValueError, match=r"`tokens_per_group` must be above 0, got 0"):
        losses.policy(
            torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2), there, loss="dapo", tokens_per_group=0
        )
    with pytest.raises(ValueError, match=r"`loss` must be .* got 'ppo'"):
        losses.clip_share(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2), there, loss="ppo")
    with pytest.raises(ValueError, match=r"`normalize` must be .* got 'all'"):
        losses.token_logprobs(None, torch.zeros(1, 1, 1), there.long(), there.long(), normalize="all")
