from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from ugr_fast.losses import token_logprobs
from ugr_fast.model import (
    Catalogue,
    SidVocabulary,
    confidence_logit,
    flex_available,
    head_columns,
    head_logits,
    hidden_states,
    packed_hidden_states,
    recomputed,
    takes_pattern,
)
from ugr_fast.packing import pack_prefixes
from ugr_fast.trie import SidTrie

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


def test_only_models_that_attend_as_told_take_a_pattern():
    vocabulary = tiny.catalogue().vocabulary
    tokens = torch.tensor([[1, 2]])
    allowed = torch.ones(1, 2, 2, dtype=torch.bool).tril()
    for name in tiny.EVERY:
        model = tiny.model(vocabulary, name)
        assert takes_pattern(model) == (name not in tiny.ROWS_ONLY)
        if name in ("gemma2", "mistral"):
            with pytest.raises(ValueError, match="`model` must attend to its whole context"):
                hidden_states(model, tokens, allowed, torch.tensor([[0, 1]]))
    whole = tiny.EVERY["mistral"](vocabulary.size)
    whole.sliding_window = None
    model = transformers.AutoModelForCausalLM.from_config(whole)
    assert takes_pattern(model)
    assert hidden_states(model, tokens, allowed, torch.tensor([[0, 1]])).shape == (1, 2, 32)


ENDS = {"bos_token_id": None, "eos_token_id": None}
OTHERS = {
    "local": transformers.GPTNeoConfig(
        vocab_size=20, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], **ENDS
    ),
    "alibi": transformers.FalconConfig(vocab_size=20, alibi=True, **tiny.COMMON, **ENDS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_local_attention_and_alibi_take_no_pattern(name):
    assert not takes_pattern(transformers.AutoModelForCausalLM.from_config(OTHERS[name]))


def test_flash_attention_takes_no_pattern():
    model = tiny.model(tiny.catalogue().vocabulary)
    model.config._attn_implementation = "flash_attention_2"
    assert not takes_pattern(model)


def trees(lengths, group=4, seed=0):
    """Packed prompts of random tokens, so long, each with `group` candidates of three tokens that share some."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 20, size=length) for length in lengths]
    return pack_prefixes(prompts, rng.integers(5, 8, size=(len(lengths), group, 3)), suffix=[2])


SHAPES = [(1,), (5, 2), (128,), (150, 3, 119), (300, 299)]  # below, at and above one block of 128
UNCOMPILED = "ignore:flex_attention called without torch.compile"


@pytest.mark.filterwarnings(UNCOMPILED)
@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "granite"])
def test_flex_attention_equals_sdpa(name):
    model = tiny.model(tiny.catalogue().vocabulary, name)  # float64; two query heads for each key
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for lengths in SHAPES:
            packed = trees(lengths)
            ours, theirs = (packed_hidden_states(model, packed, way) for way in ("flex", "sdpa"))
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
            assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_compiled_flex_attention_equals_sdpa(name):
    model = tiny.model(tiny.catalogue().vocabulary, name).float()
    with torch.no_grad():
        for lengths in SHAPES:
            packed = trees(lengths)
            ours, theirs = (packed_hidden_states(model, packed, way) for way in ("flex", "sdpa"))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not flex_available("cuda") or not torch.cuda.is_available(), reason="needs an accelerator")
def test_gradients_through_flex_attention_equal_those_through_sdpa():
    config = tiny.ARCHITECTURES["qwen3"](20)
    config.head_dim = 16  # the least that its kernels take
    model = transformers.AutoModelForCausalLM.from_config(config).cuda()
    for lengths in SHAPES:
        gradients = []
        for way in ("flex", "sdpa"):
            model.zero_grad()
            packed_hidden_states(model, trees(lengths), way).square().mean().backward()
            gradients.append([weight.grad for weight in model.model.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_flex_attention_is_refused_where_it_cannot_run():
    vocabulary = tiny.catalogue().vocabulary
    packed = trees((5, 2))
    with pytest.raises(ValueError, match="`attention` must be 'sdpa' or 'flex', got 'flash'"):
        packed_hidden_states(tiny.model(vocabulary), packed, "flash")
    with pytest.raises(ValueError, match=r"'sdpa' on cpu unless under torch.no_grad\(\)"):
        packed_hidden_states(tiny.model(vocabulary), packed, "flex")
    saving = tiny.model(vocabulary)
    saving.model.layers[0].gradient_checkpointing = True
    for model, message in (
        (tiny.model(vocabulary, "gpt2"), "'sdpa' for gpt2, which transformers does not run"),
        (saving, "'sdpa' with gradient checkpointing"),
        (tiny.model(vocabulary, "mistral"), "`model` must attend to its whole context"),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            packed_hidden_states(model, packed, "flex")
        assert model.config._attn_implementation == "sdpa"


TOKENS = torch.tensor([[1, 5, 10, 14], [1, 6, 11, 17]])


@pytest.mark.parametrize("name", tiny.EVERY)
def test_head_logits_end_as_the_model_does(name):
    vocabulary = tiny.catalogue().vocabulary
    model = tiny.model(vocabulary, name).double()
    with torch.no_grad():
        theirs = model(TOKENS).logits  # (B, T, V)
        hidden = model.base_model(TOKENS).last_hidden_state
        assert torch.equal(head_logits(model, hidden), theirs)
        for low, high in ((0, vocabulary.size), vocabulary.sid_range, (3, 4)):
            ours = head_logits(model, hidden, (low, high))
            torch.testing.assert_close(ours, theirs[..., low:high], rtol=1e-12, atol=1e-15)
        margin = theirs[..., vocabulary.positive] - theirs[..., vocabulary.negative]
        torch.testing.assert_close(confidence_logit(model, hidden, vocabulary), margin, rtol=1e-12, atol=1e-15)


class Doubled(torch.nn.Linear):
    """A head that does more than multiply, as adapters do."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


@pytest.mark.parametrize("kind", [torch.nn.Linear, Doubled])
def test_head_logits_with_a_bias_and_with_a_wrapped_head(kind):
    vocabulary = tiny.catalogue().vocabulary
    model = tiny.model(vocabulary, "llama")
    model.lm_head = kind(32, vocabulary.size, dtype=torch.float64)
    with torch.no_grad():
        theirs = model(TOKENS).logits
        hidden = model.base_model(TOKENS).last_hidden_state
        for columns in (None, (3, 9)):
            expected = theirs if columns is None else theirs[..., 3:9]
            torch.testing.assert_close(head_logits(model, hidden, columns), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("columns", [None, (3, 9)])
def test_head_logits_of_half_precision_are_float32(columns):
    model = tiny.model(tiny.catalogue().vocabulary).bfloat16()
    hidden = torch.ones(2, 32, dtype=torch.bfloat16)
    assert head_logits(model, hidden, columns).dtype == torch.float32


def test_head_columns(catalogue):
    low, high = head_columns("sid", catalogue.vocabulary, None)
    assert (low, high) == catalogue.vocabulary.sid_range
    tokens = catalogue.item_tokens[catalogue.item_tokens >= 0]
    assert head_columns("allowed", None, catalogue.trie) == (tokens.min(), tokens.max() + 1)
    assert head_columns("full", None, None) is None
    assert SidTrie.build([[7, 9, 8], [3]]).token_span == (3, 10)
    with pytest.raises(ValueError, match="`normalize` must be 'full', 'sid' or 'allowed', got 'some'"):
        head_columns("some", None, None)
    for normalize, missing in (("sid", "vocabulary"), ("allowed", "trie")):
        with pytest.raises(ValueError, match=f"`{missing}` must be given for normalize='{normalize}'"):
            head_columns(normalize, None, None)


def test_a_candidate_outside_of_what_is_counted_has_no_log_prob():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    hidden, index = torch.zeros(1, 2, 32, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.long)
    for normalize in ("sid", "allowed"):
        with pytest.raises(ValueError, match=f"`tokens` must lie in .* for normalize='{normalize}', got 4 to 4"):
            token_logprobs(
                model,
                hidden,
                index,
                index + 4,
                normalize=normalize,
                vocabulary=catalogue.vocabulary,
                trie=catalogue.trie,
            )


def test_a_semantic_id_that_begins_another_is_refused():
    with pytest.raises(ValueError, match="must not hold the semantic ID of one item as the beginning of another's"):
        Catalogue.build(SidVocabulary.from_scratch((2, 2)), [[1, -1], [1, 0]])


@pytest.mark.parametrize("name", ["OPT", "Falcon", "GPT2"])
def test_recomputed_layers_drop_nothing_out(name):
    """OPT and Falcon drop out in their layers' own forward, by the layer's mode."""
    settings = {
        "OPT": {"dropout": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "Falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        "GPT2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5},
    }[name]
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 20}
    made = getattr(transformers, f"{name}Config")(**common, **settings)
    model = transformers.AutoModelForCausalLM.from_config(made)
    model.eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    found = []
    for when in (False, True):
        model.zero_grad()
        with recomputed(model, when=when):
            model(tokens, use_cache=False).logits.square().mean().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_confidence_under_autocast_is_not_rounded_to_bfloat16():
    """Its difference of two logits is taken in the precision of the head: many users, as many confidences."""
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary).float()
    hidden = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = confidence_logit(model, hidden.bfloat16(), catalogue.vocabulary)
    assert found.dtype == torch.float32
    assert len(found.unique()) > 1900
    assert torch.equal(found, confidence_logit(model, hidden.bfloat16().float(), catalogue.vocabulary))
