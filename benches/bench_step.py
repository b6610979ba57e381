"""One training step on trees beside the usual way and the released form: rollout, then forward and backward.

    python benches/bench_step.py                              # both models at P 150, G 16: a quarter of an hour
    python benches/bench_step.py --models 4x256 --prompt 50 150 500 --group 4 16 64
    python benches/bench_step.py --models 4x256 --prompt 50 --group 4 --batch 1 --repeats 1

*Usual* is made competent: `transformers.generate` once for the unique prompts, with a prefix function over a dict; one
padded policy forward and one padded confidence forward over B·G rows, logits only where they are used, a backward
after each, and no more prompts at a time than `--tokens` allows. *Released* does what the code published with UGR
does, written anew: the same two passes, each with the logits of every position. It generates in the usual way, so
its rollout is that one. A step is the sum of both parts. Where the padded rows of a single prompt would need more than
`--memory`, the update of that form is left out, and its cells are empty.

Time is the median of runs taken in turns, after one run of each whose outputs are compared: the same beams; log-probs,
confidences and the embedding's gradient alike up to float32 rounding, 1e-4 of the largest of each.

Memory is by how much a fresh process grows at its highest during the call (Linux's VmHWM, set back just before it,
less VmRSS then), after a call on a prompt of two tokens: without the weights and their gradient; the median of
`--peaks` processes. Ratios: so many times slower, or larger, than on trees.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import torch
import transformers
from models import (
    DEPTH,
    MODELS,
    add_model_options,
    children_table,
    describe_catalogue,
    make_catalogue,
    make_model,
    make_prompts,
    usual_rollout,
)
from timing import fresh, medians_in_turns, memory_of, ratio, say, table_head, table_row
from ugr_fast import losses
from ugr_fast.decode import beam_search
from ugr_fast.model import confidence_logit, packed_hidden_states, pad_left
from ugr_fast.packing import pack_prefixes

TIME = ("on trees, s", "usual, s", "released, s", "to usual", "to released", "equal outputs")
MEMORY = ("on trees, MB", "usual, MB", "released, MB", "to usual", "to released", "prompts at a time")
CASE = ("model", "P", "G", "part")


# ---- the update


def targets(tokens):
    """Advantages and hits (B, G) for the losses."""
    shape = tokens.shape[:2]
    hits = torch.zeros(shape, dtype=torch.bool)
    hits[:, 2] = True
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), hits


def policy_loss(logprobs, advantages):
    return losses.policy(logprobs, logprobs.detach(), advantages, torch.ones_like(logprobs, dtype=torch.bool))


def results(model, logprobs, confidence):
    return logprobs.detach(), confidence.detach(), model.get_input_embeddings().weight.grad.clone()


def update_trees(model, catalogue, prompts, tokens):
    """One pass over packed trees."""
    advantages, hits = targets(tokens)
    packed = pack_prefixes(prompts, tokens.numpy(), suffix=catalogue.vocabulary.suffix)
    hidden = packed_hidden_states(model, packed)
    logprobs = losses.token_logprobs(model, hidden, torch.from_numpy(packed.logit_index), tokens)
    ends = torch.from_numpy(packed.suffix_index)[..., None].expand(-1, -1, hidden.shape[2])
    confidence = confidence_logit(model, hidden.gather(1, ends), catalogue.vocabulary)
    model.zero_grad(set_to_none=False)  # memory stays where it is
    (policy_loss(logprobs, advantages) + losses.confidence_alignment(confidence, hits)).mean().backward()
    return results(model, logprobs, confidence)


def padded_rows(prompts, tokens, suffix=()):
    """Left-padded rows of prompt, candidate and suffix, as a model takes them."""
    rows = [[*prompt, *sid, *suffix] for prompt, sids in zip(prompts, tokens.tolist(), strict=True) for sid in sids]
    ids, mask = pad_left(rows, 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}


def padded_logprobs(model, prompts, tokens, released):
    """Log-probs (B, G, L) of a pass over B·G rows."""
    rows = padded_rows(prompts, tokens)
    if released:
        logits = model(**rows).logits[:, -DEPTH - 1 : -1]  # of (B * G, P + L, V)
    else:
        logits = model.lm_head(model.model(**rows).last_hidden_state[:, -DEPTH - 1 : -1])  # (B * G, L, V)
    chosen = logits.gather(2, tokens.flatten(0, 1)[..., None])[..., 0]
    return (chosen - logits.logsumexp(2)).view(tokens.shape)


def padded_confidence(model, vocabulary, prompts, tokens, released):
    """Confidence logits (B, G) of another pass over B·G rows."""
    rows = padded_rows(prompts, tokens, vocabulary.suffix)
    if released:
        logits = model(**rows).logits[:, -1]  # of (B * G, P + L + 1, V)
        margin = logits[:, vocabulary.positive] - logits[:, vocabulary.negative]
    else:
        margin = confidence_logit(model, model.model(**rows).last_hidden_state[:, -1], vocabulary)
    return margin.view(tokens.shape[:2])


def update_padded(model, catalogue, prompts, tokens, at_a_time, released):
    """Two passes over padded rows and a backward after each, for some prompts at a time."""
    model.zero_grad(set_to_none=False)  # memory stays where it is
    parts = []
    for first in range(0, len(prompts), at_a_time):
        part = slice(first, first + at_a_time)
        advantages, hits = (each[part] for each in targets(tokens))
        logprobs = padded_logprobs(model, prompts[part], tokens[part], released)
        (policy_loss(logprobs, advantages).sum() / len(prompts)).backward()
        confidence = padded_confidence(model, catalogue.vocabulary, prompts[part], tokens[part], released)
        (losses.confidence_alignment(confidence, hits).sum() / len(prompts)).backward()
        parts.append((logprobs.detach(), confidence.detach()))
    return results(model, *map(torch.cat, zip(*parts, strict=True)))


# ---- the measurement


def make_ways(name, options):
    """Functions of (prompts, candidates) for each part: on trees, usual, released."""
    transformers.logging.set_verbosity_error()
    catalogue = make_catalogue(options.num_items, options.codes)
    model = make_model(name, catalogue.vocabulary)
    table = children_table(catalogue)
    settings = {"num_beams": options.group, "vocabulary": catalogue.vocabulary}
    at_a_time = prompts_at_a_time(options)
    updates = [lambda *what: update_trees(model, catalogue, *what)]
    for released in (False, True):
        if gigabytes(name, options, released) <= options.memory:
            updates.append(lambda *what, form=released: update_padded(model, catalogue, *what, at_a_time, form))
    return {
        "rollout": [
            lambda prompts, _: beam_search(model, *pad_left(prompts, 0), catalogue.trie, **settings).tokens,
            lambda prompts, _: usual_rollout(model, *pad_left(prompts, 0), options.group, table),
        ],
        "update": updates,
    }


def make_inputs(options):
    return make_prompts(make_catalogue(options.num_items, options.codes), options.batch, options.prompt)[0]


def padded_tokens(options):
    """Tokens in the padded rows of one prompt."""
    return options.group * (options.prompt + DEPTH + 1)


def prompts_at_a_time(options):
    """Prompts whose padded rows hold no more than `--tokens` tokens together; at least one."""
    return min(options.batch, max(1, options.tokens // padded_tokens(options)))


def gigabytes(name, options, released):
    """About what one prompt's padded rows need: 150 bytes a layer and unit of width, found by measuring, and logits."""
    layers, width, _ = MODELS[name]
    logits = 3 * 4 * DEPTH * options.codes if released else 0  # their gradient as well, and that of the cut
    return padded_tokens(options) * (150 * layers * width + logits) / 1e9


def equal(ours, theirs):
    """Whether tokens are the same, and numbers alike up to 1e-4 of the largest."""
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def seconds_and_equality(runs, options):
    """Median seconds of each run, and whether the outputs of all equal those of the first: "yes", "no" or no answer."""
    first, *others = (run() for run in runs)
    same = all(equal(*pair) for other in others for pair in zip(first, other, strict=True))
    return medians_in_turns(options.repeats, *runs), ("yes" if same else "no") if others else None


def time_rows(name, options):
    """Rows of the table of times: rollout, update and their sum."""
    prompts, ways = make_inputs(options), make_ways(name, options)
    tokens = ways["rollout"][0](prompts, None)
    spent = {}
    for part, runs in ways.items():
        calls = [lambda run=run: run(prompts, tokens) for run in runs]
        times, same = seconds_and_equality(calls, options)
        spent[part] = columns(part, times)
        yield row(name, options, part, spent[part], same)
    step = [None if None in both else sum(both) for both in zip(*spent.values(), strict=True)]
    yield row(name, options, "step", step, None)


def peak_megabytes(part, which, tokens, name, options):
    """Memory of one call; to be run in a fresh process."""
    torch.set_num_threads(options.threads)
    prompts, run = make_inputs(options), make_ways(name, options)[part][which]
    run([prompts[0][:2]], tokens[:1])  # what only the first call allocates or imports
    return memory_of(lambda: run(prompts, tokens))[1]


def memory_rows(name, options):
    """Rows of the table of memory: rollout and update."""
    ways = make_ways(name, options)
    tokens = ways["rollout"][0](make_inputs(options), None)
    for part, runs in ways.items():
        peaks = [
            statistics.median(fresh(peak_megabytes, part, which, tokens, name, options) for _ in range(options.peaks))
            for which in range(len(runs))
        ]
        at_a_time = str(prompts_at_a_time(options)) if part == "update" else None
        yield row(name, options, part, columns(part, peaks), at_a_time)


def columns(part, numbers):
    """On trees, usual, released: the released rollout is the usual one, and what was left out is None."""
    rest = numbers[-1] if part == "rollout" else None
    return [*numbers, rest, rest][:3]


def row(name, options, part, numbers, last):
    ours, *theirs = numbers
    ratios = (ratio(other, ours) for other in theirs)
    return table_row(name, str(options.prompt), str(options.group), part, *numbers, *ratios, last)


def print_table(columns, rows_of, options):
    print(f"\n{table_head(*CASE, *columns)}", flush=True)
    for name, prompt, group in itertools.product(options.models, options.prompt, options.group):
        say(f"{name}, P {prompt}, G {group} ...")
        case = argparse.Namespace(**{**vars(options), "prompt": prompt, "group": group})
        for line in rows_of(name, case):
            print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    add_model_options(parser)
    parser.add_argument("--prompt", type=int, nargs="+", default=[150], help="prompt tokens P (default: 150)")
    parser.add_argument("--group", type=int, nargs="+", default=[16], help="candidates G, at least 3 (default: 16)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--tokens", type=int, default=10_000, help="padded tokens at a time (default: 10000)")
    parser.add_argument("--memory", type=float, default=20, help="GB that an update may need (default: 20)")
    parser.add_argument("--peaks", type=int, default=1, help="processes per peak; 0 leaves memory out (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"L {DEPTH}, {describe_catalogue(options)}, {options.threads} thread(s)")
    print_table(TIME, time_rows, options)
    if options.peaks:
        print_table(MEMORY, memory_rows, options)


if __name__ == "__main__":
    main()
