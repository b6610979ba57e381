from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import reference
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import SidTrie
from ugr_fast import beam_search as uf_beam_search
from ugr_fast.decode import beam_search
from ugr_fast.engines import RowEngine, TreeEngine
from ugr_fast.model import Catalogue, SidVocabulary, head_logits, pad_left
from ugr_fast.readout import Readout

HISTORIES = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]
ENGINES = [(name, engine) for name in tiny.ARCHITECTURES for engine in ("tree", "rows")]
ENGINES.append(("mistral", "rows"))


def prompts_of(catalogue):
    return [catalogue.prompt(history) for history in HISTORIES]


def search(model, catalogue, **settings):
    ids, mask = pad_left(prompts_of(catalogue), catalogue.vocabulary.pad)
    return beam_search(model, ids, mask, catalogue.trie, vocabulary=catalogue.vocabulary, **settings)


def assert_equals_reference(model, catalogue, num_beams, normalize, temperature=1.0, **settings):
    """The beams of every prompt against one unpacked forward per prefix."""
    found = search(model, catalogue, num_beams=num_beams, normalize=normalize, temperature=temperature, **settings)
    columns = tiny.columns_of(normalize, catalogue)
    sids = tiny.sids_of(catalogue)
    with torch.no_grad():
        for row, prompt in enumerate(prompts_of(catalogue)):
            slow = reference.model_beam_search(model, prompt, sids, num_beams, columns, temperature)
            tokens = [tuple(t for t in sid if t >= 0) for sid in found.tokens[row].tolist()]
            assert tokens == [sid for _, sid in slow]
            np.testing.assert_allclose(found.scores[row], [score for score, _ in slow], rtol=1e-12)
    np.testing.assert_allclose(found.logprobs.sum(2), found.scores, rtol=1e-12)
    return found


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.ROWS_ONLY])
@pytest.mark.parametrize("num_beams", [1, 3, 16])
def test_equals_generate_with_a_prefix_function(architecture, num_beams):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary, architecture)
    ids, mask = pad_left(prompts_of(catalogue), catalogue.vocabulary.pad)
    width = ids.shape[1]

    def allowed(_row, tokens):
        return catalogue.trie.children(tokens[width:].tolist()).tolist()

    beams = {} if num_beams == 1 else {"length_penalty": 0.0, "early_stopping": "never"}
    theirs = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=3,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **beams,
    )
    ours = search(model, catalogue, num_beams=num_beams)
    assert torch.equal(ours.tokens, theirs[:, width:].reshape(len(ids), num_beams, 3))


@pytest.mark.parametrize(("architecture", "engine"), ENGINES)
@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_the_slow_reference(architecture, engine, normalize, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, architecture)
    assert_equals_reference(model, catalogue, 8, normalize, engine=engine)


@pytest.mark.parametrize(("architecture", "engine"), ENGINES)
@pytest.mark.parametrize("normalize", ["full", "allowed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_confidence_equals_the_unpacked_forward(architecture, engine, normalize, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    ours = search(model, catalogue, num_beams=6, normalize=normalize, confidence=True, engine=engine)
    with torch.no_grad():
        for row, prompt in enumerate(prompts_of(catalogue)):
            for beam, sid in enumerate(ours.tokens[row].tolist()):
                real = [token for token in sid if token >= 0]
                logit = reference.confidence_logit(model, prompt, real, catalogue.vocabulary)
                torch.testing.assert_close(ours.confidence[row, beam], torch.sigmoid(logit), rtol=1e-10, atol=0)
    assert ours.confidence.std() > 1e-3


def read_off(model, catalogue, found, readout):
    """What `readout` says of the last states of unpacked forwards, NaN where no beam is."""
    states = last_states(model, catalogue, found)
    return torch.sigmoid(readout(states, found.logprobs.sum(2)))


def last_states(model, catalogue, found):
    """The states (B, K, D) at the last tokens of beams, each run by itself, NaN where no beam is."""
    states = torch.full((*found.items.shape, model.get_input_embeddings().weight.shape[1]), torch.nan).double()
    for row, prompt in enumerate(prompts_of(catalogue)):
        for beam, tokens in enumerate(found.tokens[row].tolist()):
            if found.items[row, beam] >= 0:
                whole = torch.tensor([[*prompt, *(token for token in tokens if token >= 0)]])
                with torch.no_grad():
                    states[row, beam] = model.base_model(whole).last_hidden_state[0, -1]
    return states


def some_readout(model, slope=0.7):
    """Not one that was fitted, but one that both its parts matter to."""
    width = model.get_output_embeddings().weight.shape[1]
    weight = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Readout(weight / width**0.5, slope, bias=0.3)


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "cohere", "granite"])
@pytest.mark.parametrize("normalize", ["full", "allowed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_readout_reads_the_last_states_of_unpacked_forwards(architecture, normalize, ragged):
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary, architecture, spread=2.0)
    readout = some_readout(model)
    settings = {"num_beams": 6, "normalize": normalize, "confidence": True}
    found, plain = (search(model, catalogue, readout=which, **settings) for which in (readout, None))
    torch.testing.assert_close(found.confidence, read_off(model, catalogue, found, readout), rtol=1e-9, atol=1e-12)
    assert found.confidence.logit().std() > 0.1
    kept = search(model, catalogue, states=True, **{**settings, "confidence": False})
    torch.testing.assert_close(kept.states, last_states(model, catalogue, kept), rtol=1e-9, atol=1e-12)
    assert kept.confidence is None
    assert found.states is None
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.scores, plain.scores)
    likelihood = search(model, catalogue, readout=Readout(0 * readout.weight, 1.0, 0.0), **settings)
    wanted = found.scores.exp().clamp(1e-7, 1 - 1e-7)
    torch.testing.assert_close(likelihood.confidence, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"engine": "rows"},
            "need the model's states, which engine='tree' has and 'rows' has not",
        ),
        ({"confidence": False}, "`confidence` must be True for a `readout`, got False"),
        ({"readout": Readout(torch.zeros(31), 1.0, 0.0)}, r"`states` must be \(..., 31\), .* got \(4, 6, 32\)"),
    ],
)
def test_a_readout_that_cannot_be_used_is_refused(change, message):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    with pytest.raises(ValueError, match=message):
        search(model, catalogue, **{"num_beams": 6, "confidence": True, "readout": some_readout(model)} | change)


@pytest.mark.parametrize("engine", ["tree", "rows"])
@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_temperature_divides_the_logits(engine, normalize, temperature):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    assert_equals_reference(model, catalogue, 6, normalize, temperature, engine=engine)


@pytest.fixture(scope="module")
def small_model():
    return tiny.model(tiny.catalogue().vocabulary)


@given(
    num_items=st.integers(1, 14),
    seed=st.integers(0, 1000),
    ragged=st.booleans(),
    num_beams=st.integers(1, 6),
    engine=st.sampled_from(["tree", "rows"]),
)
@settings(max_examples=25)
def test_forced_tokens_change_nothing(small_model, num_items, seed, ragged, num_beams, engine):
    """Small catalogues force most tokens, in any place, and differently for the beams of one level."""
    catalogue = tiny.catalogue(num_items=num_items, seed=seed, ragged=ragged)
    ids, mask = pad_left([[1, 6, 11], [1, 5, 12, 17, 9]], catalogue.vocabulary.pad)
    found = beam_search(small_model, ids, mask, catalogue.trie, num_beams=num_beams, normalize="allowed", engine=engine)
    columns = tiny.columns_of("allowed", catalogue)
    with torch.no_grad():
        for row in range(2):
            prompt = ids[row][mask[row] == 1].tolist()
            slow = reference.model_beam_search(small_model, prompt, tiny.sids_of(catalogue), num_beams, columns)
            tokens = [tuple(t for t in sid if t >= 0) for sid in found.tokens[row].tolist() if sid[0] >= 0]
            assert tokens == [sid for _, sid in slow]
            np.testing.assert_allclose(found.scores[row, : len(slow)], [s for s, _ in slow], rtol=1e-12)


@contextmanager
def watched_forwards(model):
    """The tokens per prompt of each forward pass of the decoder, as they come."""
    widths = []
    hook = model.model.register_forward_hook(
        lambda _module, _args, named, _output: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    yield widths
    hook.remove()


GRID = np.stack(np.meshgrid(np.arange(5), np.arange(4), indexing="ij"), -1).reshape(-1, 2)  # (20, 2)
SHAPES = {  # where decisions fall, and how many tokens of a prompt of 16 run in each forward: "allowed" and "full"
    "forced tail": ([0, 1, None, None], [16, 5], [16, 5, 8, 8]),
    "forced head": ([None, None, 0, 1], [16 + 2, 5], [16, 1, 1, 5]),
    "forced between": ([0, None, None, 1], [16, 5 * 3], [16, 5, 5, 5]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_forced_tokens_ride_with_the_next_decision_or_not_at_all(shape):
    levels, allowed, full = SHAPES[shape]
    codes = np.stack([np.zeros(len(GRID), int) if at is None else GRID[:, at] for at in levels], 1)
    catalogue = Catalogue.build(SidVocabulary.from_scratch((5, 5, 5, 5)), codes)
    model = tiny.model(catalogue.vocabulary)
    longest = max(len(prompt) for prompt in prompts_of(catalogue))
    for normalize, widths in (("allowed", allowed), ("full", full), ("sid", full)):
        with watched_forwards(model) as run:
            found = search(model, catalogue, num_beams=8, normalize=normalize)
        assert run == [longest - 16 + widths[0], *widths[1:]]
        assert torch.equal(found.scores, assert_equals_reference(model, catalogue, 8, normalize).scores)


def test_a_search_without_a_choice_runs_the_model_for_its_confidence_alone():
    catalogue = Catalogue.build(SidVocabulary.from_scratch((2, 2, 2)), [[1, 0, 1]])
    model = tiny.model(catalogue.vocabulary)
    ids, mask = pad_left([[1, 5, 8], [1, 6]], 0)
    settings = {"num_beams": 2, "normalize": "allowed", "vocabulary": catalogue.vocabulary}
    for confidence, expected in ((False, []), (True, [3 + 3 + 1])):  # prompt, semantic ID, suffix
        with watched_forwards(model) as run:
            found = beam_search(model, ids, mask, catalogue.trie, confidence=confidence, **settings)
        assert run == expected
        assert found.scores.tolist() == [[0, -np.inf]] * 2
        assert found.scores.dtype == torch.float64
        assert found.items.tolist() == [[0, -1]] * 2


@pytest.mark.parametrize("engine", [TreeEngine, RowEngine])
def test_engines_follow_any_parents_at_any_width(small_model, engine):
    """Parents chosen twice, beams that end or are left out, a number of beams that changes."""
    rng = np.random.default_rng(0)
    ids, mask = pad_left([[1, 6, 11], [1, 5, 12, 17, 9]], 0)
    runner = engine(small_model, ids, mask, (5, 20))
    prefixes = [[row[keep == 1].tolist()] for row, keep in zip(ids, mask, strict=True)]
    with torch.no_grad():
        for width in (1, 3, 5, 2, 4):
            wanted = rng.random((2, len(prefixes[0]))) < 0.6
            wanted[:, 0] = True
            tokens = [prefixes[row][beam] for row, beam in zip(*np.nonzero(wanted), strict=True)]
            alone = torch.stack([small_model(torch.tensor([prefix])).logits[0, -1, 5:20] for prefix in tokens])
            torch.testing.assert_close(runner.logits(wanted), alone, rtol=1e-12, atol=1e-14)
            parents = rng.integers(0, len(prefixes[0]), (2, width))
            added = rng.integers(5, 20, (2, width))
            runner.follow(parents, added)
            prefixes = [
                [
                    [*prefixes[row][parent], token]
                    for parent, token in zip(parents[row], added[row].tolist(), strict=True)
                ]
                for row in range(2)
            ]


def test_the_head_runs_on_deciding_rows_and_needed_columns_only(monkeypatch):
    from ugr_fast import engines

    catalogue = tiny.catalogue(num_items=12)
    model = tiny.model(catalogue.vocabulary)
    shapes = []

    def watched(*arguments):
        logits = head_logits(*arguments)
        shapes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(engines, "head_logits", watched)
    search(model, catalogue, num_beams=20, normalize="sid")
    low, high = catalogue.vocabulary.sid_range
    tokens = catalogue.item_tokens
    beams = [len(np.unique(tokens[:, :depth], axis=0)) for depth in range(3)]
    assert shapes == [(len(HISTORIES) * count, high - low) for count in beams]


def logits_of(model, prompts, found):
    """A step function for `BeamSearch`: the logits after every prefix, each from an unpacked forward."""

    def step_fn(tokens):
        width = len(tokens) // len(prompts)
        rows = []
        for row, prefix in enumerate(tokens.tolist()):
            ids = [*prompts[row // width], *(t for t in prefix if t >= 0)]
            rows.append(model(torch.tensor([ids])).logits[0, -1].double().numpy())
        return np.stack(rows)

    return step_fn


MODES = {
    "filtered": {"normalize": "allowed"},
    "stochastic": {"method": "stochastic", "normalize": "allowed", "seed": 3},
    "sample": {"method": "sample", "normalize": "allowed", "seed": 4, "temperature": 0.7},
    "groups": {"num_groups": 3, "diversity": 2.0, "normalize": "allowed"},
    "penalty": {"length_penalty": 1.5, "normalize": "full", "temperature": 2.0},
}


@pytest.mark.parametrize("engine", ["tree", "rows"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_search_over_unpacked_logits(mode, ragged, engine):
    """`BeamSearch` itself is held to the slow reference elsewhere; here its scores come from a model."""
    catalogue = tiny.catalogue(ragged=ragged)
    model = tiny.model(catalogue.vocabulary)
    prompts = prompts_of(catalogue)
    rng = np.random.default_rng(0)
    denied = catalogue.trie.filter(deny=[rng.permutation(30)[: 9 * row] for row in range(len(prompts))])
    settings = {**MODES[mode], "num_beams": 6, "filter": denied}
    ours = search(model, catalogue, engine=engine, confidence=True, **settings)
    with torch.no_grad():
        truth = uf_beam_search(catalogue.trie, logits_of(model, prompts, ours), batch_size=len(prompts), **settings)
        np.testing.assert_array_equal(ours.tokens, truth.tokens)
        np.testing.assert_array_equal(ours.items, truth.items)
        np.testing.assert_allclose(ours.scores, truth.scores, rtol=1e-11)
        np.testing.assert_allclose(ours.logprobs, truth.logprobs, rtol=1e-11, atol=1e-13)
        if mode == "stochastic":
            np.testing.assert_allclose(ours.perturbed, truth.perturbed, rtol=1e-11)
            np.testing.assert_allclose(ours.threshold, truth.threshold, rtol=1e-11)
            np.testing.assert_allclose(ours.inclusion, truth.inclusion, rtol=1e-9)
        for row, prompt in enumerate(prompts):
            for beam, sid in enumerate(ours.tokens[row].tolist()):
                real = [token for token in sid if token >= 0]
                if real:
                    logit = reference.confidence_logit(model, prompt, real, catalogue.vocabulary)
                    torch.testing.assert_close(ours.confidence[row, beam], torch.sigmoid(logit), rtol=1e-9, atol=0)
                else:
                    assert ours.confidence[row, beam].isnan()


@pytest.mark.parametrize("mode", MODES)
def test_a_readout_says_its_own_of_every_beam_in_every_mode(mode):
    """Filters leave some prompts few beams or none; groups search in another order than the result's."""
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    kept = catalogue.trie.filter(allow=[range(30), [3, 4], [], range(0, 30, 2)])
    readout, settings = some_readout(model), {**MODES[mode], "num_beams": 6, "filter": kept}
    found = search(model, catalogue, readout=readout, confidence=True, **settings)
    wanted = read_off(model, catalogue, found, readout)
    torch.testing.assert_close(found.confidence, wanted, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert torch.equal(found.confidence.isnan(), found.items < 0)
    assert found.confidence.isnan().any()
    if mode == "groups":
        assert (found._found.order != np.arange(6)).any()


@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
def test_denied_items_are_as_if_they_were_not_there(normalize):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    ids, mask = pad_left(prompts_of(catalogue)[:1], catalogue.vocabulary.pad)
    denied = list(range(0, 30, 2))
    found = search_rows(model, catalogue, ids, mask, catalogue.trie, normalize, catalogue.trie.filter(deny=denied))
    gone = search_rows(model, catalogue, ids, mask, catalogue.trie.remove(denied), normalize, None)
    assert torch.equal(found.tokens, gone.tokens)
    assert torch.equal(found.items, gone.items)
    assert torch.equal(found.expand_items(20), gone.expand_items(20))
    torch.testing.assert_close(found.scores, gone.scores, rtol=1e-12, atol=0)
    assert not set(found.items.flatten().tolist()) & set(denied)


def search_rows(model, catalogue, ids, mask, trie, normalize, denied):
    return beam_search(
        model, ids, mask, trie, num_beams=8, normalize=normalize, filter=denied, vocabulary=catalogue.vocabulary
    )


def test_a_prompt_without_an_allowed_item_gets_padding():
    catalogue = tiny.catalogue()
    denied = catalogue.trie.filter(allow=[[], [3], [4, 5], list(range(30))])
    found = search(tiny.model(catalogue.vocabulary), catalogue, num_beams=3, filter=denied, confidence=True)
    assert found.items[0].tolist() == [-1, -1, -1]
    assert found.confidence[0].isnan().all()
    assert found.items[1].tolist() == [3, -1, -1]
    assert sorted(found.items[2].tolist()) == [-1, 4, 5]
    assert (found.items[3] >= 0).all()


def test_a_trie_of_other_tokens_than_the_model_knows_is_refused():
    catalogue = tiny.catalogue()
    with pytest.raises(ValueError, match="`trie` must hold tokens of the model's vocabulary, below 20, got 20"):
        beam_search(
            tiny.model(catalogue.vocabulary), torch.tensor([[1]]), None, SidTrie.build([[20], [3]]), num_beams=1
        )


@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_models_whose_cached_rows_would_be_wrong_are_refused(engine):
    size = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1}
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(state_size=4, **size))
    bert = transformers.BertLMHeadModel(
        transformers.BertConfig(num_attention_heads=2, intermediate_size=16, is_decoder=True, **size)
    )
    for model, message in ((mamba, "must have attention layers"), (bert, "must be a decoder by design, got bert")):
        with pytest.raises(ValueError, match=message):
            beam_search(model.eval(), torch.tensor([[1, 2]]), None, SidTrie.build([[3]]), num_beams=1, engine=engine)


def test_padding_need_not_be_a_token():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    ids, mask = pad_left(prompts_of(catalogue), 0)
    odd = ids.masked_fill(mask == 0, -100)
    plain, strange = (beam_search(model, i, mask, catalogue.trie, num_beams=4) for i in (ids, odd))
    assert torch.equal(plain.scores, strange.scores)


def test_a_hook_on_the_head_is_obeyed():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    model.lm_head.register_forward_hook(lambda _head, _inputs, output: output * 3)
    both = [search(model, catalogue, num_beams=4, normalize="allowed", engine=name) for name in ("tree", "rows")]
    torch.testing.assert_close(both[0].scores, both[1].scores, rtol=1e-12, atol=0)


def test_without_a_mask_nothing_is_padding():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    ids, mask = pad_left(prompts_of(catalogue)[:1], 0)
    with_mask, without = (beam_search(model, ids, m, catalogue.trie, num_beams=4) for m in (mask, None))
    assert torch.equal(with_mask.scores, without.scores)


def test_the_one_pass_normaliser_equals_torch_in_float32():
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary).float()
    exact = tiny.model(catalogue.vocabulary)
    ours, truth = (search(m, catalogue, num_beams=6) for m in (model, exact))
    assert ours.scores.dtype == torch.float32
    assert torch.equal(ours.tokens, truth.tokens)
    torch.testing.assert_close(ours.scores.double(), truth.scores, rtol=1e-4, atol=1e-4)


def test_a_model_that_makes_its_own_mask_gets_rows():
    catalogue = tiny.catalogue()
    for name, message in (("mistral", "attend to its whole context"), ("bloom", "take 4-D masks and `position_ids`")):
        model = tiny.model(catalogue.vocabulary, name)
        found, rows = (search(model, catalogue, num_beams=4, engine=engine) for engine in ("auto", "rows"))
        assert torch.equal(found.scores, rows.scores)
        with pytest.raises(ValueError, match=message):
            search(model, catalogue, num_beams=4, engine="tree")


@pytest.mark.parametrize("engine", ["tree", "rows"])
def test_padding_side_and_batch_do_not_matter(engine):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    together = search(model, catalogue, num_beams=5, confidence=True, engine=engine)
    for row, prompt in enumerate(prompts_of(catalogue)):
        ids = torch.tensor([prompt + [0] * 7])
        mask = torch.tensor([[1] * len(prompt) + [0] * 7])
        alone = beam_search(
            model,
            ids,
            mask,
            catalogue.trie,
            num_beams=5,
            vocabulary=catalogue.vocabulary,
            confidence=True,
            engine=engine,
        )
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.confidence[0], together.confidence[row], rtol=1e-12, atol=0)


def test_fewer_items_than_beams_gives_padding_and_never_a_duplicate():
    catalogue = tiny.catalogue(num_items=6)
    model = tiny.model(catalogue.vocabulary)
    ids, mask = pad_left([catalogue.prompt([1, 2])], 0)
    found = beam_search(
        model, ids, mask, catalogue.trie, num_beams=10, vocabulary=catalogue.vocabulary, confidence=True
    )
    assert sorted(found.items[0, :6].tolist()) == list(range(6))
    assert (found.items[0, 6:] == -1).all()
    assert (found.tokens[0, 6:] == -1).all()
    assert torch.isneginf(found.scores[0, 6:]).all()
    assert found.confidence[0, :6].isfinite().all()
    assert found.confidence[0, 6:].isnan().all()


def test_every_beam_is_an_item_of_the_catalogue():
    catalogue = tiny.catalogue(num_items=50)
    found = search(tiny.model(catalogue.vocabulary), catalogue, num_beams=50)
    for beams in found.tokens.tolist():
        assert len({tuple(sid) for sid in beams}) == 50
        assert {tuple(sid) for sid in beams} == set(tiny.sids_of(catalogue))


@pytest.mark.parametrize("engine", ["tree", "rows"])
def test_generation_config_has_no_influence(engine):
    catalogue = tiny.catalogue()
    model = tiny.model(catalogue.vocabulary)
    before = search(model, catalogue, num_beams=8, engine=engine)
    model.generation_config.update(do_sample=True, top_k=1, top_p=0.1, temperature=9.0, num_beams=3)
    after = search(model, catalogue, num_beams=8, engine=engine)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.scores, after.scores)


def test_expand_items_lists_all_items_of_a_sid_by_ascending_id():
    codes = [[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]]
    catalogue = Catalogue.build(SidVocabulary.from_scratch((2, 2)), codes)
    ids, mask = pad_left([catalogue.prompt([1])], 0)
    found = beam_search(tiny.model(catalogue.vocabulary), ids, mask, catalogue.trie, num_beams=3)
    ranked = found.expand_items(6)[0].tolist()
    place = ranked.index(0)
    assert ranked[place : place + 3] == [0, 2, 4]
    assert sorted(ranked) == [-1, 0, 1, 2, 3, 4]
    assert found.expand_items(2).shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.zeros(1, 3, dtype=torch.long)}, "`attention_mask` must leave"),
        ({"attention_mask": torch.ones(1, 2, dtype=torch.long)}, "must share one shape"),
        ({"normalize": "some"}, "`normalize` must be"),
        ({"normalize": "sid", "vocabulary": None}, "`vocabulary` must be given"),
        ({"confidence": True, "vocabulary": None}, "`vocabulary` must be given"),
        ({"normalize": "sid", "vocabulary": SidVocabulary.from_scratch((5, 4))}, r"tokens in \[5, 14\) alone"),
        ({"temperature": 0.0}, "`temperature` must lie in 1e-30 .. 1e30, got 0.0"),
        ({"temperature": float("inf")}, "`temperature` must lie in 1e-30 .. 1e30"),
        ({"temperature": float("nan")}, "`temperature` must lie in 1e-30 .. 1e30"),
        ({"engine": "fast"}, "`engine` must be 'auto', 'tree' or 'rows', got 'fast'"),
        ({"num_beams": 0}, "`num_beams`"),
        (
            {"input_ids": torch.tensor([[1, 999, 2]])},
            "`input_ids` must hold tokens of the model's vocabulary",
        ),
        ({"method": "sample"}, "`normalize` must be 'allowed' to draw"),
        ({"num_groups": 3}, "`num_groups` must divide"),
    ],
)
def test_bad_input_says_what_is_wrong(change, message):
    catalogue = tiny.catalogue()
    settings = {
        "input_ids": torch.tensor([[1, 5, 10]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "num_beams": 2,
        "vocabulary": catalogue.vocabulary,
    } | change
    with pytest.raises(ValueError, match=message):
        beam_search(tiny.model(catalogue.vocabulary), trie=catalogue.trie, **settings)
