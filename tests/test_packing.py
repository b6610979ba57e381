"""`pack_prefixes` against a set of paths: every node is what it should be, and sees what it should see."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast import pack_prefixes

TOKENS = st.integers(0, 3)  # few, so that prefixes are shared


@st.composite
def batches(draw):
    """Prompts, ragged candidates (some absent, some equal, some a prefix of another), a suffix."""
    group, depth = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    prompts = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=5), max_size=3))
    candidate = st.lists(TOKENS, max_size=depth)
    candidates = [draw(st.lists(candidate, min_size=group, max_size=group)) for _ in prompts]
    completions = np.full((len(prompts), group, depth), -1)
    for b, g in np.ndindex(len(prompts), group):
        completions[b, g, : len(candidates[b][g])] = candidates[b][g]
    return prompts, candidates, completions, draw(st.lists(TOKENS, max_size=3))


@given(batches())
def test_every_node_spells_its_path(batch):
    prompts, candidates, completions, suffix = batch
    packed = pack_prefixes(prompts, completions, suffix)
    mask = packed.attention_mask()
    for b, prompt in enumerate(prompts):
        n = packed.length[b]
        paths = reference.paths(packed.tokens[b, :n], packed.position[b, :n], mask[b, :n, :n])
        assert n == len(reference.tree(prompt, candidates[b], suffix))
        assert not mask[b, :n, n:].any()
        for g, candidate in enumerate(candidates[b]):
            for length, index in enumerate(packed.logit_index[b, g]):
                assert (index >= 0) == (length < len(candidate))
                if index >= 0:
                    assert paths[index] == [*prompt, *candidate[:length]]
            assert (packed.suffix_index[b, g] >= 0) == bool(suffix and candidate)
            if suffix and candidate:
                assert paths[packed.suffix_index[b, g]] == [*prompt, *candidate, *suffix]


@given(batches())
def test_the_mask_is_the_ancestor_relation(batch):
    prompts, _, completions, suffix = batch
    packed = pack_prefixes(prompts, completions, suffix)
    mask = packed.attention_mask()
    for b in range(len(prompts)):
        parent = []  # the last earlier node one level up: that is what depth-first order means
        for j in range(packed.length[b]):
            above = [i for i in range(j) if packed.position[b, i] == packed.position[b, j] - 1]
            parent.append(above[-1] if above else None)
            ancestors, i = {j}, j
            while (i := parent[i]) is not None:
                ancestors.add(i)
            assert set(np.flatnonzero(mask[b, j])) == ancestors


@given(batches())
def test_siblings_ascend_and_padding_sees_itself(batch):
    prompts, _, completions, suffix = batch
    packed = pack_prefixes(prompts, completions, suffix, pad_token=9)
    width = packed.tokens.shape[1]
    assert width == packed.length.max(initial=0)
    for b, n in enumerate(packed.length):
        assert (packed.tokens[b, n:] == 9).all()
        assert (packed.position[b, n:] == 0).all()
        np.testing.assert_array_equal(packed.exit[b, n:], np.arange(n, width) + 1)
        ends = [end for end in packed.suffix_index[b] if end >= 0]
        chains = {i for end in ends for i in range(end - len(suffix) + 1, end + 1)}
        for i in set(range(n)) - chains:
            below = range(i + 1, packed.exit[b, i])
            children = [j for j in below if packed.position[b, j] == packed.position[b, i] + 1]
            keys = [(j not in chains, packed.tokens[b, j]) for j in children]  # a suffix comes first
            assert keys == sorted(set(keys))


@given(batches(), st.randoms(use_true_random=False))
def test_order_of_candidates_only_permutes_the_indices(batch, random):
    prompts, _, completions, suffix = batch
    order = list(range(completions.shape[1]))
    random.shuffle(order)
    a, b = pack_prefixes(prompts, completions, suffix), pack_prefixes(prompts, completions[:, order], suffix)
    for name in ("tokens", "position", "exit", "length"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.logit_index[:, order], b.logit_index)
    np.testing.assert_array_equal(a.suffix_index[:, order], b.suffix_index)


@given(batches())
def test_a_row_does_not_depend_on_the_others(batch):
    prompts, _, completions, suffix = batch
    packed = pack_prefixes(prompts, completions, suffix)
    for b, n in enumerate(packed.length):
        alone = pack_prefixes(prompts[b : b + 1], completions[b : b + 1], suffix)
        for name in ("tokens", "position", "exit"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(packed, name)[b, :n])
        np.testing.assert_array_equal(alone.logit_index[0], packed.logit_index[b])


def test_the_picture_in_the_docs():
    packed = pack_prefixes([[7, 8]], np.array([[[1, 2, 3], [1, 2, 4], [5, 6, 3]]]), [9])
    assert packed.tokens.tolist() == [[7, 8, 1, 2, 3, 9, 4, 9, 5, 6, 3, 9]]
    assert packed.position.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 2, 3, 4, 5]]
    assert packed.exit.tolist() == [[12, 12, 8, 8, 6, 6, 8, 8, 12, 12, 12, 12]]


def test_tensors_and_arrays_are_accepted():
    torch = pytest.importorskip("torch")
    expected = pack_prefixes([[7, 8]], np.array([[[1, 2]]]), [9])
    got = pack_prefixes([torch.tensor([7, 8])], torch.tensor([[[1, 2]]]), np.array([9], np.int32))
    np.testing.assert_array_equal(expected.tokens, got.tokens)


ONE = np.array([[[1, 2]]])


@pytest.mark.parametrize(
    ("prompts", "completions", "suffix", "pad_token", "error", "text"),
    [
        ([[]], ONE, None, 0, ValueError, "`prompts` must hold at least one token"),
        ([[-1]], ONE, None, 0, ValueError, "`prompts` must hold tokens >= 0"),
        ([[1.5]], ONE, None, 0, TypeError, "`prompts` must hold integers"),
        ([[1]], ONE * 0.5, None, 0, TypeError, "`completions` must hold integers"),
        ([[1]], ONE[0], None, 0, ValueError, "`completions` must have 3"),
        ([[1], [2]], ONE, None, 0, ValueError, "`completions` must have a row per prompt"),
        ([[1]], np.array([[[-1, 2]]]), None, 0, ValueError, "then -1 up to the end"),
        ([[1]], np.array([[[1, -2]]]), None, 0, ValueError, "got -2 at index 1"),
        ([[1]], np.empty((1, 1, 0), int), None, 0, ValueError, "completions"),
        ([[1]], ONE, [-3], 0, ValueError, "`suffix` must hold tokens >= 0"),
        ([[1]], ONE, None, -1, ValueError, "`pad_token`"),
    ],
)
def test_bad_input(prompts, completions, suffix, pad_token, error, text):
    with pytest.raises(error, match=text):
        pack_prefixes(prompts, completions, suffix, pad_token)
