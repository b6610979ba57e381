"""vLLM, as installed: the interfaces of both model runners, and an engine that answers with semantic IDs alone.

With VLLM_USE_V2_MODEL_RUNNER=1, and TRITON_INTERPRET=1 on a CPU, the engine is that of Model Runner V2.
"""

from __future__ import annotations

import inspect
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import served
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import SidTrie
from ugr_fast.decode import beam_search

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
RUNNER_V2 = served.prepare()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ugr_fast.integrations.vllm import SidLogitsProcessor, SidLogitsProcessorV2
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import BeamSearchParams
    from vllm.v1.sample import logits_processor as runner_v1
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    try:
        from vllm.v1.worker.gpu.sample.logits_processor import interface as runner_v2
    except ImportError:
        runner_v2 = None

pytestmark = pytest.mark.filterwarnings("ignore")
needs_v2 = pytest.mark.skipif(runner_v2 is None, reason="this vLLM has no interface of Model Runner V2")
END, SEPARATOR, SIZE = served.END, served.SEPARATOR, served.SIZE
TRIES = {"equal": served.catalogue(), "ragged": served.catalogue(ragged=True)}


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A function that returns the part of vLLM's configuration that the processors read."""
    folder = tmp_path_factory.mktemp("items")

    def make(catalogue=TRIES["equal"], **changes):
        catalogue.save(folder / "items.safetensors")
        settings = {"trie": str(folder / "items.safetensors"), "end": END, "separator": [60, SEPARATOR]} | changes
        return SimpleNamespace(
            additional_config={"ugr_fast": {name: value for name, value in settings.items() if value is not None}},
            model_config=SimpleNamespace(get_vocab_size=lambda: SIZE),
            speculative_config=None,
        )

    return make


# ---- the mask


def expected_row(trie, row, tokens, prompt_length, start):
    """The logits (V,) of one request, said slowly."""
    if start == "off":
        return row
    separator, places = [60, SEPARATOR], range(len(tokens) - 1)
    ends = [at + 2 for at in places if tokens[at : at + 2] == separator]
    first = {"separator": ends[-1] if ends else len(tokens) + 1, "output": prompt_length}.get(start, start)
    known = first <= len(tokens) and trie.walk([tokens[first:]])[0] >= 0
    allowed = trie.children(tokens[first:]).tolist() if known else []
    masked = torch.full_like(row, -torch.inf)
    masked[END] = -torch.inf if allowed else 0.0
    masked[allowed] = row[allowed]
    return masked


@st.composite
def requests(draw, trie):
    """Prompt, output and start of one request; most hold the beginning of a semantic ID where it is looked for."""
    sids = [sid[sid >= 0].tolist() for sid in trie.sids()[0]]
    sid = draw(st.sampled_from(sids))
    sid = sid[: draw(st.integers(0, len(sid)))] + draw(st.sampled_from([[], [], [END], [40], [3]]))
    prompt = draw(st.lists(st.sampled_from([3, 40, 41, 60, SEPARATOR]), max_size=12))
    start = draw(st.sampled_from(["separator", "output", "off", "place", "other"]))
    if start == "separator":
        prompt = [*prompt, 60, SEPARATOR]
    cut = 0 if start == "output" else draw(st.integers(0, len(sid)))  # what a beam search puts in the prompt
    place = {"place": len(prompt), "other": draw(st.integers(0, 20))}.get(start, start)
    return prompt + sid[:cut], sid[cut:], place


def params(start):
    return SimpleNamespace(extra_args=None if start == "separator" else {"sid_start": start})


def masked_by_v1(config, batch, logits):
    processor = SidLogitsProcessor(config, torch.device("cpu"), False)
    added = [(row, params(start), prompt, output) for row, (prompt, output, start) in enumerate(batch)]
    processor.update_state(runner_v1.BatchUpdate(batch_size=len(batch), removed=[], added=added, moved=[]))
    return processor.apply(logits.clone())


def masked_by_v2(config, batch, logits, seed=0):
    """As the runner does it: requests in slots of any order, tokens of former occupants behind those of a request."""
    num_slots, room = len(batch) + 3, 64
    slots = np.random.default_rng(seed).permutation(num_slots)[: len(batch)].astype(np.int32)
    tokens = torch.randint(0, SIZE, (num_slots, room), dtype=torch.int32)
    prompt_length, length = np.zeros(num_slots, np.int32), np.zeros(len(batch), np.int32)
    for row, (slot, (prompt, output, _)) in enumerate(zip(slots, batch, strict=True)):
        length[row], prompt_length[slot] = len(prompt) + len(output), len(prompt)
        tokens[slot, : length[row]] = torch.tensor(prompt + output, dtype=torch.int32)
    states = runner_v2.LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=num_slots,
        vocab_size=SIZE,
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=SimpleNamespace(np=prompt_length),
        prefill_len=None,
        total_len=None,
    )
    processor = SidLogitsProcessorV2(config, states)
    wanted = [processor.add_request(int(slot), params(start)) for slot, (*_, start) in zip(slots, batch, strict=True)]
    assert wanted == [start != "off" for *_, start in batch]
    processor.apply_staged_writes()
    mapping = torch.from_numpy(slots)
    context = runner_v2.LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=slots,
        expanded_local_pos=torch.zeros_like(mapping),
        input_ids=None,
        pos=torch.from_numpy(length - 1),
        seq_lens_upper_bound_np=length,
    )
    return processor.apply(logits.clone(), context)


RUNNERS = [masked_by_v1, pytest.param(masked_by_v2, marks=needs_v2)]


@pytest.mark.parametrize("masked", RUNNERS)
@pytest.mark.parametrize("kind", TRIES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_only_what_the_trie_goes_on_with_is_left(configured, masked, kind, data):
    batch = data.draw(st.lists(requests(TRIES[kind]), min_size=1, max_size=6))
    logits = torch.randn(len(batch), SIZE)
    found = masked(configured(TRIES[kind]), batch, logits)
    for row, (prompt, output, start) in enumerate(batch):
        expected = expected_row(TRIES[kind], logits[row], prompt + output, len(prompt), start)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=0)


@pytest.mark.parametrize("masked", RUNNERS)
def test_without_a_separator_a_request_must_say_where_it_starts(configured, masked):
    found = masked(configured(separator=None), [([40, 60, SEPARATOR], [], "separator")], torch.zeros(1, SIZE))
    assert found.isfinite().nonzero().tolist() == [[0, END]]


@pytest.mark.parametrize("masked", RUNNERS)
def test_an_end_that_another_processor_forbids_is_still_the_end(configured, masked):
    logits = torch.full((1, SIZE), -torch.inf)  # as `min_tokens` does it to the end
    found = masked(configured(), [([40], [40], "output")], logits)
    assert found[0, END] == 0


def test_a_token_still_to_come_is_the_start_of_nothing(configured):
    found = masked_by_v1(configured(), [([40], [-1], "output")], torch.zeros(1, SIZE))
    assert found.isfinite().nonzero().tolist() == [[0, END]]


# ---- requests that come, go and move


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_requests_are_followed_as_vllm_follows_its_own(configured, data):
    """Against vLLM's own bookkeeping for its processors, over several steps of its builder of updates."""
    processor = SidLogitsProcessor(configured(), torch.device("cpu"), False)
    reference, rows = {}, st.integers(0, 5)
    for step in range(4):
        builder = runner_v1.BatchUpdateBuilder()
        for row in data.draw(st.sets(rows)):
            builder.removed_append(row)
        taken = data.draw(st.sets(rows))
        for row in taken - set(builder.removed):
            start = data.draw(st.sampled_from(["output", "off", 1]))
            builder.added.append((row, params(start), [step, row], [row]))
        for one, other in data.draw(st.lists(st.tuples(rows, rows), max_size=2)):
            if one != other:
                builder.moved.append((one, other, data.draw(st.sampled_from(list(runner_v1.MoveDirectionality)))))
        update = builder.get_and_reset(6)
        processor.update_state(update)
        process_dict_updates(reference, update, _kept)
        assert processor._requests == reference


def _kept(request, prompt, output):
    start = request.extra_args["sid_start"]
    return None if start == "off" else (prompt, output, len(prompt) if start == "output" else start)


# ---- what is refused, and what vLLM accepts


@pytest.mark.parametrize("start", ["", "prompt", -1, 1.0, True, None, [2]])
@pytest.mark.parametrize("processor", [SidLogitsProcessor, SidLogitsProcessorV2])
def test_a_start_that_says_nothing_is_refused(processor, start):
    with pytest.raises(ValueError, match=r"`extra_args\['sid_start'\]` must be"):
        processor.validate_params(SamplingParams(extra_args={"sid_start": start}))


def test_starts_that_say_something_are_not():
    for extra in (None, {}, {"other": 1}, *({"sid_start": start} for start in ("separator", "output", "off", 0, 7))):
        SidLogitsProcessor.validate_params(SamplingParams(extra_args=extra))


REFUSED = {
    "no trie": ({"trie": None}, "`additional_config` must hold"),
    "no end": ({"end": None}, "`additional_config` must hold"),
    "unknown": ({"ends": 1}, "`additional_config` must hold"),
    "end outside": ({"end": SIZE}, "tokens of the model's vocabulary"),
    "separator outside": ({"separator": -3}, "tokens of the model's vocabulary"),
    "separator in a SID": ({"separator": [60, 12]}, "must end with a token"),
    "separator is the end": ({"separator": [60, END]}, "must end with a token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_fit_are_refused(configured, name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        SidLogitsProcessor(configured(**changes), torch.device("cpu"), False)


def test_tries_that_do_not_fit_are_refused(configured):
    for sids, message in (([[3], [3, 4]], "prefix of another"), ([[3, SIZE]], "tokens of the model's vocabulary")):
        with pytest.raises(ValueError, match=message):
            SidLogitsProcessor(configured(SidTrie.build(sids)), torch.device("cpu"), False)


def test_an_engine_without_settings_is_refused(configured):
    config = configured()
    config.additional_config = {}
    with pytest.raises(ValueError, match="`additional_config` must hold"):
        SidLogitsProcessor(config, torch.device("cpu"), False)


@needs_v2
def test_speculative_decoding_is_refused(configured):
    config = configured()
    config.speculative_config = object()
    with pytest.raises(ValueError, match="`speculative_config` must be None"):
        SidLogitsProcessorV2(config, None)


INTERFACES = [
    (SidLogitsProcessor, runner_v1.LogitsProcessor),
    pytest.param(SidLogitsProcessorV2, getattr(runner_v2, "LogitsProcessor", None), marks=needs_v2),
]


@pytest.mark.parametrize(("ours", "theirs"), INTERFACES)
def test_methods_have_the_arguments_of_the_interface(ours, theirs):
    assert issubclass(ours, theirs)
    assert not inspect.isabstract(ours)
    for name, method in vars(ours).items():
        if hasattr(theirs, name) and callable(getattr(theirs, name)) and not name.startswith("_abc"):
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(
                inspect.signature(getattr(theirs, name)).parameters
            ), (name, method)


def test_the_loaders_of_vllm_find_them():
    name = "ugr_fast.integrations.vllm:SidLogitsProcessor"
    assert runner_v1._load_logitsprocs_by_fqcns([name]) == [SidLogitsProcessor]
    if runner_v2 is not None:
        from vllm.v1.worker.gpu.sample.logits_processor import loader

        assert loader._load_v2_logitsprocs_by_fqcns([name + "V2"]) == [SidLogitsProcessorV2]
        with pytest.raises(ValueError, match="not a subclass"):
            loader._load_v2_logitsprocs_by_fqcns([name])


# ---- an engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    model, _ = served.save_model(folder)
    processor = "SidLogitsProcessor" + ("V2" if RUNNER_V2 else "")
    return LLM(**served.arguments(folder, TRIES["equal"], processor)), model


def answers(engine, prompts, *given, **settings):
    """The tokens that the engine answers prompts with."""
    start = [{"extra_args": {"sid_start": value}} if value else {} for value in given or [None] * len(prompts)]
    wanted = [SamplingParams(**({"temperature": 0.0, "max_tokens": 6} | settings | extra)) for extra in start]
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], wanted, use_tqdm=False)
    return [[list(sample.token_ids) for sample in output.outputs] for output in outputs]


def test_the_engine_is_the_one_that_was_asked_for(engine):
    assert getattr(engine[0].llm_engine.vllm_config, "use_v2_model_runner", False) == RUNNER_V2


def test_the_beam_search_of_vllm_finds_the_beams_of_ours(engine):
    llm, model = engine
    trie, prompts = TRIES["equal"], [[40, 41, SEPARATOR], [50, SEPARATOR, 51, SEPARATOR]]
    asked = BeamSearchParams(beam_width=8, max_tokens=3, length_penalty=0.0, ignore_eos=True)
    found = llm.beam_search([{"prompt_token_ids": prompt} for prompt in prompts], asked)
    for prompt, output in zip(prompts, found, strict=True):
        ours = beam_search(model, torch.tensor([prompt]), None, trie, num_beams=8, normalize="allowed")
        assert [beam.tokens[-3:] for beam in output.sequences] == ours.tokens[0].tolist()
        scores = torch.tensor([beam.cum_logprob for beam in output.sequences])
        torch.testing.assert_close(scores, ours.scores[0], rtol=0, atol=1e-4)


def test_beams_behind_the_last_semantic_id_are_impossible_and_not_invented(engine):
    """More beams than semantic IDs: vLLM goes on with what is forbidden, at -inf, and the engine lives."""
    asked = BeamSearchParams(beam_width=30, max_tokens=3, length_penalty=0.0, ignore_eos=True)
    output = engine[0].beam_search([{"prompt_token_ids": [40, SEPARATOR]}], asked)[0]
    found = [beam.tokens[-3:] for beam in output.sequences if np.isfinite(beam.cum_logprob)]
    assert (TRIES["equal"].lookup(found) >= 0).all()
    assert len({tuple(sid) for sid in found}) == len(found)


def test_greedy_answers_are_those_of_a_walk_with_the_model(engine):
    llm, model = engine
    prompts = [[40, 41, SEPARATOR], [40, 41], [45, SEPARATOR, 9, 3]]
    starts = [None, "output", 4]
    for prompt, found in zip(prompts, answers(llm, prompts, *starts), strict=True):
        sid = []
        while len(children := TRIES["equal"].children(sid)):
            logits = model(torch.tensor([prompt + sid])).logits[0, -1]
            sid.append(int(children[logits[children].argmax()]))
        assert found == [[*sid, END]]


def test_draws_stay_in_the_catalogue(engine):
    found = answers(engine[0], [[40, 41, SEPARATOR]], temperature=1.5, n=50, max_tokens=3, seed=0)[0]
    assert (TRIES["equal"].lookup(found) >= 0).all()
    assert len({tuple(sid) for sid in found}) > 5


def test_what_starts_no_semantic_id_ends_at_once_and_what_is_off_goes_free(engine):
    llm, model = engine
    prompts = [[40, SEPARATOR, 63], [40, 41], [40, 41]]
    unknown, unmarked, free = answers(llm, prompts, None, None, "off", max_tokens=3, ignore_eos=True)
    assert unknown == unmarked == [[END] * 3]
    tokens = [40, 41]
    for _ in range(3):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert free == [tokens[2:]]


def test_a_bad_request_fails_alone(engine):
    with pytest.raises(Exception, match=r"`extra_args\['sid_start'\]` must be"):
        answers(engine[0], [[40, SEPARATOR]], "nowhere")
    assert answers(engine[0], [[40, SEPARATOR]], max_tokens=3)
