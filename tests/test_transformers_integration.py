"""Inside `generate` of the installed transformers: beside a prefix function over dicts, which it must equal."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import reference
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import SidTrie
from ugr_fast.decode import beam_search
from ugr_fast.integrations.transformers import (
    SidBeamOutput,
    SidLogitsProcessor,
    beam_generate,
    prefix_allowed_tokens_fn,
)
from ugr_fast.model import pad_left

HISTORIES = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]
PAD, EOS, SEPARATOR = 0, 4, 3
CHAT = {"do_sample": True, "temperature": 0.7, "top_k": 2, "top_p": 0.5}  # as the configuration of a chat model may say


@pytest.fixture(scope="module")
def catalogue():
    return tiny.catalogue()


@pytest.fixture(scope="module")
def model(catalogue):
    return tiny.model(catalogue.vocabulary)


def inputs_of(catalogue, end=()):
    ids, mask = pad_left([[*catalogue.prompt(history), *end] for history in HISTORIES], PAD)
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, num_beams=1, new_tokens=3, **arguments):
    """Canonical beam search, or whatever else `arguments` say."""
    beams = {"length_penalty": 0.0, "early_stopping": "never"} if num_beams > 1 else {}
    usual = {
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": PAD,
        "eos_token_id": None,
        "return_dict_in_generate": True,
        "output_scores": True,
        **beams,
    }
    return model.generate(**inputs, **(usual | arguments))


def dict_function(sids, width, eos=None):
    """What users write: the allowed tokens of every prefix in a dict, padding behind the end."""
    table = {}
    for sid in sids:
        path = (*sid, eos, PAD) if eos is not None else tuple(sid)
        for level, token in enumerate(path):
            table.setdefault(path[:level], set()).add(token)

    def allowed(_row, tokens):
        prefix = tokens[width:].tolist()
        while prefix[-1:] == [PAD]:
            prefix.pop()
        return sorted(table[tuple(prefix)])

    return allowed


def assert_same(found, expected):
    """Sequences and scores to the last bit, and the scores of every step."""
    assert torch.equal(found.sequences, expected.sequences)
    if "sequences_scores" in expected:
        assert torch.equal(found.sequences_scores, expected.sequences_scores)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0, equal_nan=True)


# ---- the processor and the prefix function


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.ROWS_ONLY])
@pytest.mark.parametrize("num_beams", [1, 3, 16])
def test_equals_a_dict_prefix_function(catalogue, architecture, num_beams):
    model = tiny.model(catalogue.vocabulary, architecture)
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    theirs = dict_function(tiny.sids_of(catalogue), width)
    expected = generate(model, inputs, num_beams, prefix_allowed_tokens_fn=theirs)
    processor = SidLogitsProcessor(catalogue.trie, width)
    assert_same(generate(model, inputs, num_beams, logits_processor=[processor]), expected)
    ours = prefix_allowed_tokens_fn(catalogue.trie, width)
    assert_same(generate(model, inputs, num_beams, prefix_allowed_tokens_fn=ours), expected)


@pytest.mark.parametrize("num_beams", [1, 4, 16])
@pytest.mark.parametrize("end", ["argument", "trie"])
def test_a_whole_sid_leads_to_eos_and_padding(num_beams, end):
    """SIDs of two and three tokens: some beams end before others."""
    catalogue = tiny.catalogue(ragged=True)
    model = tiny.model(catalogue.vocabulary)
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    sids = tiny.sids_of(catalogue)
    assert {len(sid) for sid in sids} == {2, 3}
    trie = catalogue.trie if end == "argument" else SidTrie.build(sids, end=EOS)
    settings = {"new_tokens": 6, "eos_token_id": EOS}
    expected = generate(model, inputs, num_beams, prefix_allowed_tokens_fn=dict_function(sids, width, EOS), **settings)
    ends = {"eos_token_id": EOS, "pad_token_id": PAD}
    found = generate(model, inputs, num_beams, logits_processor=[SidLogitsProcessor(trie, width, **ends)], **settings)
    assert_same(found, expected)
    function = prefix_allowed_tokens_fn(trie, width, **ends)
    assert_same(generate(model, inputs, num_beams, prefix_allowed_tokens_fn=function, **settings), expected)
    answers = {tuple(token for token in row if token not in (EOS, PAD)) for row in found.sequences[:, width:].tolist()}
    assert answers <= set(sids)


def test_ties_fall_as_with_a_dict(catalogue, model):
    flat = tiny.model(catalogue.vocabulary, spread=0.0)  # every token as likely as any other
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    function = dict_function(tiny.sids_of(catalogue), width)
    expected = generate(flat, inputs, 8, prefix_allowed_tokens_fn=function)
    assert len(expected.sequences_scores.unique()) == 1
    assert_same(generate(flat, inputs, 8, logits_processor=[SidLogitsProcessor(catalogue.trie, width)]), expected)


def test_fewer_sids_than_beams(model):
    inputs = inputs_of(tiny.catalogue())
    catalogue = tiny.catalogue(num_items=3)
    width = inputs["input_ids"].shape[1]
    function = dict_function(tiny.sids_of(catalogue), width)
    expected = generate(model, inputs, 8, prefix_allowed_tokens_fn=function)
    assert_same(generate(model, inputs, 8, logits_processor=[SidLogitsProcessor(catalogue.trie, width)]), expected)


@pytest.mark.parametrize("separator", [SEPARATOR, (2, SEPARATOR)])
def test_an_answer_may_start_behind_a_separator(catalogue, model, separator):
    inputs = inputs_of(catalogue, np.atleast_1d(separator).tolist())
    processors = [
        SidLogitsProcessor(catalogue.trie, inputs["input_ids"].shape[1]),
        SidLogitsProcessor(catalogue.trie, separator=separator),
    ]
    first, second = (generate(model, inputs, 4, logits_processor=[processor]) for processor in processors)
    assert_same(second, first)


def test_rows_may_start_at_different_columns():
    trie = SidTrie.build([[5, 7], [6, 8]])
    rows = torch.tensor([[1, SEPARATOR, 5, SEPARATOR], [SEPARATOR, 1, SEPARATOR, 6], [0, 0, SEPARATOR, 5]])
    scores = SidLogitsProcessor(trie, separator=SEPARATOR)(rows, torch.zeros(3, 9))
    assert [row.isfinite().nonzero().flatten().tolist() for row in scores] == [[5, 6], [8], [7]]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_draws_equal_those_under_a_dict(catalogue, model, num_beams):
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    drawn = {"do_sample": True, "top_k": 0, "num_return_sequences": 5 if num_beams == 1 else num_beams}
    constraints = [
        {"prefix_allowed_tokens_fn": dict_function(tiny.sids_of(catalogue), width)},
        {"logits_processor": [SidLogitsProcessor(catalogue.trie, width)]},
    ]
    found = []
    for constraint in constraints:
        torch.manual_seed(0)
        found.append(generate(model, inputs, num_beams, **drawn, **constraint))
    assert_same(*found)
    answers = found[1].sequences[:, width:]
    assert (catalogue.trie.lookup(answers.numpy()) >= 0).all()
    assert len({tuple(row) for row in answers.tolist()}) > len(HISTORIES)


def test_beams_that_draw_outside_the_trie_are_refused(catalogue, model):
    """With more candidates to draw than the trie has, `generate` draws tokens of probability 0."""
    inputs = inputs_of(catalogue)
    processor = SidLogitsProcessor(catalogue.trie, inputs["input_ids"].shape[1])
    with pytest.raises(ValueError, match=r"in row \d+, which starts no SID.*`do_sample=False` with beams"):
        generate(model, inputs, 16, do_sample=True, top_k=0, logits_processor=[processor])


def test_temperature_draws_from_the_tempered_softmax():
    trie = SidTrie.build([[1], [2], [3]])
    scores = torch.tensor([[9.0, 1.0, 2.0, 4.0]], dtype=torch.float64)
    found = SidLogitsProcessor(trie, 1, normalize="allowed", temperature=0.5)(torch.tensor([[0]]), scores)
    expected = torch.log_softmax(scores[:, 1:] / 0.5, dim=1)
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-12, atol=0)
    assert found[0, 0] == -torch.inf


@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
@pytest.mark.parametrize("end", [None, EOS])
@given(data=st.data())
@settings(max_examples=25)
def test_scores_equal_the_slow_reference(normalize, end, data):
    """In float64, for rows in any order, of any depth and past their end, under a filter of one row per prompt."""
    seed = data.draw(st.integers(0, 1000))
    temperature = data.draw(st.sampled_from([0.3, 1.0, 2.5]))
    made = tiny.catalogue(num_items=8, seed=seed)
    rng = np.random.default_rng(seed)
    denied = [rng.choice(8, size=rng.integers(0, 4), replace=False).tolist() for _ in range(2)]
    depth = data.draw(st.integers(0, 2 if end is None else 5))
    rows, prefixes, left = [], [], []
    for prompt in range(2):
        sids = [sid for item, sid in enumerate(tiny.sids_of(made)) if item not in denied[prompt]]
        for _ in range(3):
            answer = [*sids[rng.integers(len(sids))], EOS, PAD][:depth]
            rows.append([*rng.integers(0, 5, size=2), *(answer + [PAD] * (depth - len(answer)))])
            prefixes.append(answer)
            left.append(sids)
    scores = torch.from_numpy(rng.normal(size=(6, made.vocabulary.size)))
    low, high = made.vocabulary.sid_range
    columns = {"full": range(made.vocabulary.size), "sid": range(low, high), "allowed": None}[normalize]
    expected = reference.constrained_scores(
        scores.tolist(), prefixes, left, columns, temperature, EOS, PAD, raw=normalize == "full" and temperature == 1
    )
    processor = SidLogitsProcessor(
        made.trie,
        2,
        normalize=normalize,
        temperature=temperature,
        vocabulary=made.vocabulary,
        filter=made.trie.filter(deny=denied),
        eos_token_id=end,
        pad_token_id=None if end is None else PAD,
    )
    ids = torch.tensor(np.array(rows))
    found = processor(ids, scores)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    function = prefix_allowed_tokens_fn(
        made.trie, 2, filter=made.trie.filter(deny=denied), eos_token_id=end, pad_token_id=None if end is None else PAD
    )
    for row in range(6):
        assert function(row // 3, ids[row]) == found[row].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize("normalize", ["full", "sid", "allowed"])
def test_normalize_means_what_it_means_in_decode(catalogue, model, normalize):
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    processor = SidLogitsProcessor(catalogue.trie, width, normalize=normalize, vocabulary=catalogue.vocabulary)
    found = generate(model, inputs, 6, logits_processor=[processor])
    ours = beam_search(
        model, *inputs.values(), catalogue.trie, num_beams=6, normalize=normalize, vocabulary=catalogue.vocabulary
    )
    assert torch.equal(found.sequences[:, width:], ours.tokens.flatten(0, 1))
    torch.testing.assert_close(found.sequences_scores, ours.scores.flatten().float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 4])
def test_a_filter_holds_for_each_prompt(catalogue, model, num_rows):
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    seen = catalogue.trie.filter(deny=HISTORIES if num_rows == 4 else [1, 2, 3])
    processor = SidLogitsProcessor(catalogue.trie, width, filter=seen)
    ours = beam_search(model, *inputs.values(), catalogue.trie, num_beams=6, filter=seen)
    expected = torch.cat([inputs["input_ids"].repeat_interleave(6, 0), ours.tokens.flatten(0, 1)], dim=1)
    assert torch.equal(generate(model, inputs, 6, logits_processor=[processor]).sequences, expected)
    function = prefix_allowed_tokens_fn(catalogue.trie, width, filter=seen)
    assert torch.equal(generate(model, inputs, 6, prefix_allowed_tokens_fn=function).sequences, expected)
    searched = generate(model, inputs, 6, custom_generate=partial(beam_generate, trie=catalogue.trie, filter=seen))
    assert torch.equal(searched.sequences, expected)


# ---- a generation configuration that was made for chat


@contextmanager
def configured(model, **settings):
    """Let the model carry such a `generation_config` for a while."""
    before = model.generation_config
    model.generation_config = transformers.GenerationConfig(**settings)
    try:
        yield
    finally:
        model.generation_config = before


def test_sampling_settings_change_nothing_without_sampling(catalogue, model):
    inputs = inputs_of(catalogue)
    processor = SidLogitsProcessor(catalogue.trie, inputs["input_ids"].shape[1])
    expected = generate(model, inputs, 16, logits_processor=[processor])
    with configured(model, **CHAT):
        assert_same(generate(model, inputs, 16, logits_processor=[processor]), expected)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (CHAT, r"temperature=1.0, top_k=0, top_p=1.0 to `generate`, or do_sample=False"),
        ({"do_sample": True}, r"TopKLogitsWarper.*top_k=0 to `generate`, or do_sample=False"),  # 50 by default
        ({"do_sample": True, "top_k": 0, "min_p": 0.1}, r"min_p=None to `generate`"),
        ({"repetition_penalty": 1.1}, r"RepetitionPenalty.*pass repetition_penalty=1.0 to `generate`$"),
        ({"renormalize_logits": True}, r"pass renormalize_logits=False to `generate`$"),
        ({"remove_invalid_values": True}, r"InfNanRemoveLogitsProcessor.*leave them out$"),
    ],
)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_what_would_cut_or_shift_scores_is_refused(catalogue, model, settings, remedy, num_beams):
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    call = {"num_beams": num_beams, "max_new_tokens": 3, "pad_token_id": PAD, "eos_token_id": None}
    with configured(model, **settings):
        with pytest.raises(ValueError, match=r"`logits_processor` must be the only one.*" + remedy):
            model.generate(**inputs, **call, logits_processor=[SidLogitsProcessor(catalogue.trie, width)])
        if num_beams > 1 and settings is CHAT:
            return  # two tokens a beam are too few for four beams to stay inside the trie
        allowed = SidLogitsProcessor(catalogue.trie, width, alone=False)
        found = model.generate(**inputs, **call, logits_processor=[allowed])
    assert (catalogue.trie.lookup(found[:, width:].numpy()) >= 0).all()


def test_the_search_of_our_own_does_not_listen_to_them(catalogue, model):
    inputs = inputs_of(catalogue)
    ours = {"custom_generate": partial(beam_generate, trie=catalogue.trie)}
    expected = generate(model, inputs, 16, **ours)
    with configured(model, **CHAT):
        for settings in ({}, {"do_sample": True}):
            found = generate(model, inputs, 16, **ours, **settings)
            assert torch.equal(found.sequences, expected.sequences)
            assert torch.equal(found.sequences_scores, expected.sequences_scores)


# ---- what is outside the trie, and other mistakes


TRIE = SidTrie.build([[5, 7], [6, 8]])


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        (
            {"prompt_length": 1},
            [[1, 5], [1, 7]],
            r"behind `prompt_length` 1, .*got \[7\] in row 1, which starts no SID",
        ),
        ({"prompt_length": 2}, [[1, 1, 5, 8]], r"got \[5, 8\] in row 0, which starts no SID"),
        ({"prompt_length": 3}, [[1, 5]], r"`prompt_length` must be at most the length of `input_ids`, 2, got 3"),
        ({"prompt_length": 1}, [[1, 5, 7]], r"got \[5, 7\] in row 0, a whole SID, and `eos_token_id`"),
        ({"prompt_length": 1, "eos_token_id": 2}, [[1, 5, 2]], r"got \[5\] in row 0, which ends before a whole SID"),
        ({"prompt_length": 1, "eos_token_id": 2}, [[1, 2, 2]], r"got \[\] in row 0, which ends before a whole SID"),
        (
            {"separator": 3},
            [[1, 3, 5], [1, 1, 5]],
            r"`separator` must stand in every row .* row 1, which ends in \[1, 1, 5",
        ),
        ({"separator": [3, 4]}, [[1]], r"`separator` must stand in every row"),
        ({"separator": 3}, [[3, 7]], r"behind `separator`, .* got \[7\] in row 0"),
        ({"prompt_length": 1, "filter": TRIE.filter(deny=[0])}, [[1, 5]], r"got \[5\] in row 0, behind which `filter`"),
        ({"prompt_length": 0, "filter": TRIE.filter(deny=[[0], [1]])}, [[]], "one for every prompt, got 2 for 1 rows"),
    ],
)
def test_a_prefix_outside_the_trie_is_an_error(settings, rows, message):
    rows = torch.tensor(rows, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        SidLogitsProcessor(TRIE, **settings)(rows, torch.zeros(len(rows), 9))
    if "one for every prompt" not in message:  # a function is told which prompt it is
        function = prefix_allowed_tokens_fn(TRIE, **settings)
        with pytest.raises(ValueError, match=message.replace("row 1", "row 0")):
            [function(0, row) for row in rows]


def test_a_function_refuses_a_prompt_that_its_filter_does_not_know():
    function = prefix_allowed_tokens_fn(TRIE, 0, filter=TRIE.filter(deny=[[0], [1]]))
    assert [function(prompt, torch.tensor([], dtype=torch.long)) for prompt in (0, 1)] == [[6], [5]]
    with pytest.raises(ValueError, match="`filter` must have 1 row or one for every prompt, got 2 for prompt 2"):
        function(2, torch.tensor([], dtype=torch.long))


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_scores_must_be_finite_where_a_row_can_go(value):
    scores = torch.zeros(2, 9)
    scores[1, 5:7] = value
    with pytest.raises(ValueError, match=r"`scores` must be finite .* of row 1, which ends in \[1\]"):
        SidLogitsProcessor(TRIE, 1)(torch.tensor([[1], [1]]), scores)


def test_some_forbidden_tokens_are_no_mistake():
    scores = torch.zeros(1, 9)
    scores[0, 5] = -np.inf
    found = SidLogitsProcessor(TRIE, 1, normalize="allowed")(torch.tensor([[1]]), scores)
    assert found.isfinite().nonzero().tolist() == [[0, 6]]
    assert found[0, 6] == 0


@pytest.mark.parametrize(
    ("trie", "settings", "message"),
    [
        (TRIE, {}, "`prompt_length` or `separator` must say where"),
        (TRIE, {"prompt_length": 1, "separator": 3}, "`prompt_length` or `separator` must say where"),
        (TRIE, {"prompt_length": -1}, "`prompt_length` must be at least 0, got -1"),
        (TRIE, {"separator": []}, "`separator` must be a token or several, got none"),
        (TRIE, {"separator": [3, 7]}, "`separator` must end with a token that no SID, end or padding holds, got 7"),
        (TRIE, {"separator": 2, "eos_token_id": 2}, "`separator` must end with a token that no SID"),
        (TRIE, {"prompt_length": 1, "normalize": "half"}, "`normalize` must be 'full', 'sid' or 'allowed', got 'half'"),
        (TRIE, {"prompt_length": 1, "normalize": "sid"}, "`vocabulary` must be given"),
        (TRIE, {"prompt_length": 1, "temperature": 0.0}, "`temperature` must lie in"),
        (TRIE, {"prompt_length": 1, "filter": SidTrie.build([[5]]).filter(deny=[0])}, "`filter` must be made by"),
        (SidTrie.build([[5], [5, 6]]), {"prompt_length": 1}, "`trie` must have no SID that is a prefix of another"),
    ],
)
def test_wrong_settings_are_refused(trie, settings, message):
    with pytest.raises(ValueError, match=message):
        SidLogitsProcessor(trie, **settings)


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": 9}])
def test_tokens_outside_the_vocabulary_are_refused(settings):
    with pytest.raises(ValueError, match=r"`trie` must hold tokens of the model's vocabulary, below 8, got [89]"):
        SidLogitsProcessor(TRIE, 1, **settings)(torch.tensor([[1]]), torch.zeros(1, 8))


# ---- the search of our own


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.ROWS_ONLY])
@pytest.mark.parametrize("num_beams", [1, 3, 16])
def test_beam_generate_equals_generate(catalogue, architecture, num_beams):
    model = tiny.model(catalogue.vocabulary, architecture)
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    function = dict_function(tiny.sids_of(catalogue), width)
    expected = generate(model, inputs, num_beams, prefix_allowed_tokens_fn=function)
    found = generate(model, inputs, num_beams, custom_generate=partial(beam_generate, trie=catalogue.trie))
    assert isinstance(found, transformers.generation.GenerateBeamDecoderOnlyOutput)
    assert torch.equal(found.sequences, expected.sequences)
    if num_beams > 1:
        torch.testing.assert_close(found.sequences_scores.float(), expected.sequences_scores, rtol=1e-5, atol=1e-5)
        transitions = model.compute_transition_scores(expected.sequences, expected.scores, expected.beam_indices)
        torch.testing.assert_close(found.logprobs.float(), transitions, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.items, catalogue.trie.lookup(found.sequences[:, width:].numpy()))


def test_beam_generate_ends_with_eos_where_the_trie_does(catalogue, model):
    inputs = inputs_of(catalogue)
    sids = tiny.sids_of(catalogue)
    function = dict_function(sids, inputs["input_ids"].shape[1], EOS)
    settings = {"new_tokens": 5, "eos_token_id": EOS, "length_penalty": 1.0}  # 1, as `generate` has it by default
    expected = generate(model, inputs, 8, prefix_allowed_tokens_fn=function, **settings)
    trie = SidTrie.build(sids, end=EOS)
    found = generate(model, inputs, 8, custom_generate=partial(beam_generate, trie=trie), **settings)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores.float(), expected.sequences_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    not hasattr(transformers.GenerationMixin, "_extract_generation_mode_kwargs"),
    reason="transformers before 4.57 hands no argument on to a callable",
)
def test_the_trie_may_be_an_argument_of_generate(catalogue, model):
    inputs = inputs_of(catalogue)
    expected = generate(model, inputs, 4, custom_generate=partial(beam_generate, trie=catalogue.trie))
    found = generate(model, inputs, 4, custom_generate=beam_generate, trie=catalogue.trie)
    assert torch.equal(found.sequences, expected.sequences)


def test_some_of_the_beams_and_the_bare_tensor(catalogue, model):
    inputs = inputs_of(catalogue)
    ours = {"custom_generate": partial(beam_generate, trie=catalogue.trie)}
    every = generate(model, inputs, 5, **ours)
    best = generate(model, inputs, 5, num_return_sequences=2, return_dict_in_generate=False, **ours)
    assert torch.equal(best, every.sequences.reshape(4, 5, -1)[:, :2].flatten(0, 1))
    assert isinstance(every, SidBeamOutput)
    assert every.scores is None


def test_each_prompt_is_computed_once(catalogue, model):
    inputs = inputs_of(catalogue)
    shapes = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _module, given: shapes.append(given[0].shape))
    generate(model, inputs, 8, custom_generate=partial(beam_generate, trie=catalogue.trie))
    hook.remove()
    assert shapes[0] == inputs["input_ids"].shape


@pytest.mark.parametrize(("padding", "eos", "fill"), [(PAD, None, PAD), (None, EOS, EOS), (None, [EOS, 3], EOS)])
def test_short_and_absent_answers_are_padded(model, padding, eos, fill):
    catalogue = tiny.catalogue(num_items=12, ragged=True)
    inputs = inputs_of(catalogue)
    width = inputs["input_ids"].shape[1]
    settings = {"pad_token_id": padding, "eos_token_id": eos}
    with configured(model):
        found = generate(model, inputs, 16, custom_generate=partial(beam_generate, trie=catalogue.trie), **settings)
    ours = beam_search(model, *inputs.values(), catalogue.trie, num_beams=16)
    assert (ours.items < 0).any()
    expected = torch.where(ours.tokens < 0, fill, ours.tokens).flatten(0, 1)
    assert torch.equal(found.sequences[:, width:], expected)
    assert torch.equal(found.sequences_scores, ours.scores.flatten())
    assert torch.equal(found.items, ours.items.flatten())


class Stop(transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **_settings):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_logits": True}, "`output_logits` must be off"),
        ({"output_hidden_states": True}, "`output_hidden_states` must be off"),
        ({"max_new_tokens": 2}, "`max_new_tokens` must be at least the depth of `trie`, 3 in `beam_generate`, got 2"),
        ({"stopping_criteria": [Stop()]}, "`stopping_criteria` must be length and EOS alone .* got Stop"),
        ({"repetition_penalty": 1.1}, "pass repetition_penalty=1.0 to `generate`$"),
        ({"prefix_allowed_tokens_fn": lambda _row, _tokens: [1]}, "prefix_allowed_tokens_fn=None"),
        ({"logits_processor": [SidLogitsProcessor(TRIE, 1)]}, "got also SidLogitsProcessor"),
        ({"position_ids": torch.arange(16).expand(4, 16)}, "`position_ids` must count the tokens"),
    ],
)
def test_beam_generate_refuses_what_it_cannot_do(catalogue, model, settings, message):
    inputs = inputs_of(catalogue)
    assert inputs["input_ids"].shape == (4, 16)
    with pytest.raises(ValueError, match=message):
        generate(model, inputs, 4, custom_generate=partial(beam_generate, trie=catalogue.trie), **settings)


def test_beam_generate_refuses_a_filled_cache_and_an_encoder(catalogue, model):
    inputs = inputs_of(catalogue)
    config = transformers.GenerationConfig(num_beams=1, num_return_sequences=1, max_length=20, pad_token_id=PAD)
    call = partial(beam_generate, model, inputs["input_ids"], [], [], config, trie=catalogue.trie)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="`past_key_values` must be empty in `beam_generate`, got 16 tokens"):
        call(past_key_values=cache)
    with pytest.raises(ValueError, match=r"must hand on no arguments of the model's own .* got token_type_ids"):
        call(token_type_ids=torch.zeros_like(inputs["input_ids"]), attention_mask=None)
    with pytest.raises(ValueError, match="`streamer` must be None for beams"):
        call(streamer=object())
    config.num_return_sequences = 2
    with pytest.raises(ValueError, match=r"`num_return_sequences` must be at most `num_beams` 1 in .* got 2"):
        call()
    encoder = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=40)
    with pytest.raises(ValueError, match=r"`model` must be a decoder without an encoder .* got t5"):
        beam_generate(
            transformers.T5ForConditionalGeneration(encoder), inputs["input_ids"], [], [], config, trie=catalogue.trie
        )
