from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast.model import Catalogue, SidVocabulary

histories = st.lists(st.integers(0, 29), min_size=1, max_size=8)


@pytest.fixture(scope="module", params=["scratch", "text"])
def catalogue(request):
    """A ragged catalogue, with and without separators between items."""
    made = tiny.catalogue(ragged=True)
    if request.param == "scratch":
        return made
    vocabulary = SidVocabulary(
        level_sizes=made.vocabulary.level_sizes,
        base=100,
        prefix=(90, 91, 92),
        separator=(93, 94),
        suffix=(95, 96),
        positive=97,
        negative=98,
        pad=0,
        size=200,
    )
    codes = np.where(
        made.item_tokens < 0, -1, made.item_tokens - made.vocabulary.encode(np.zeros((1, 3), dtype=np.int64))
    )
    return Catalogue.build(vocabulary, codes)


@given(history=histories)
def test_a_sequence_starts_with_the_prompt_of_every_part_of_it(catalogue, history):
    whole = catalogue.prompt(history)
    for length in range(1, len(history) + 1):
        prompt = catalogue.prompt(history[:length])
        assert whole[: len(prompt)] == prompt


@given(history=histories, first=st.integers(0, 7))
def test_target_positions_hold_the_tokens_of_the_items(catalogue, history, first):
    first = min(first, len(history) - 1)
    whole = np.asarray(catalogue.prompt(history))
    tokens = catalogue.item_tokens[history[first:]]
    positions = catalogue.target_positions(np.asarray(history), first)
    assert whole[positions].tolist() == tokens[tokens >= 0].tolist()
    start = len(catalogue.prompt(history[:first])) if first else len(catalogue.vocabulary.prefix)
    assert positions[0] == start


def test_levels_never_share_a_token_and_none_is_reserved():
    vocabulary = SidVocabulary.from_scratch((3, 2, 4))
    tokens = vocabulary.encode([[a, b, c] for a in range(3) for b in range(2) for c in range(4)])
    levels = [set(tokens[:, level].tolist()) for level in range(3)]
    assert sorted(set.union(*levels)) == list(range(*vocabulary.sid_range))
    assert sum(map(len, levels)) == 9
    reserved = {vocabulary.pad, *vocabulary.prefix, *vocabulary.suffix, vocabulary.positive, vocabulary.negative}
    assert len(reserved) == 5
    assert not reserved & set.union(*levels)


def test_vocabulary_round_trip(tmp_path, catalogue):
    catalogue.vocabulary.save(tmp_path / "vocabulary.json")
    assert SidVocabulary.load(tmp_path / "vocabulary.json") == catalogue.vocabulary


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 0]], r"`codes` must have shape \(N, 3\), got \(1, 2\)"),
        ([[0, 0, 0], [0, 4, 0]], r"`codes` of level 1 must be in \[0, 4\).* got 4 for item 1"),
        ([[0, -2, 0]], "got -2 for item 0"),
    ],
)
def test_bad_codes(codes, message):
    with pytest.raises(ValueError, match=message):
        SidVocabulary.from_scratch((5, 4, 6)).encode(codes)


@pytest.mark.parametrize(
    ("history", "message"),
    [([], "at least one item"), ([30], r"in \[0, 30\), got 30"), ([-1], "got -1")],
)
def test_bad_history(catalogue, history, message):
    with pytest.raises(ValueError, match=message):
        catalogue.prompt(history)


def test_sliding_windows_are_refused():
    import torch
    import transformers
    from ugr_fast.model import hidden_states

    settings = {"vocab_size": 10, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, **tiny.COMMON}
    windowed = transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=4, **settings))
    tokens = torch.tensor([[1, 2]])
    allowed = torch.ones(1, 2, 2, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="`model` must attend to its whole context"):
        hidden_states(windowed, tokens, allowed, torch.tensor([[0, 1]]))
    whole = transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=None, **settings))
    assert hidden_states(whole, tokens, allowed, torch.tensor([[0, 1]])).shape == (1, 2, 32)


def test_a_semantic_id_that_begins_another_is_refused():
    with pytest.raises(ValueError, match="must not hold the semantic ID of one item as the beginning of another's"):
        Catalogue.build(SidVocabulary.from_scratch((2, 2)), [[1, -1], [1, 0]])
