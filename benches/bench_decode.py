"""Constrained decoding of a model beside `model.generate`: time, and the memory that each needs at its peak.

    python benches/bench_decode.py                                    # both models, one thread and two: five minutes
    python benches/bench_decode.py --models 4x256 --prompt 50 --batch 1
    python benches/bench_decode.py --words 151669                     # behind a language model's vocabulary

Both search for the best G semantic IDs of B prompts, and must find the same ones before anything is timed. The usual
way is `generate(num_beams=G, prefix_allowed_tokens_fn=...)` over a dict, which repeats every prompt G times; ours,
`ugr_fast.decode.beam_search`, holds each prompt once. Models are Qwen3 with random weights.

Time is the median of runs taken in turns. Memory is by how much a fresh process grows at its highest during the call,
after a call on a short prompt: keys and values, logits, masks and temporaries, without the weights; the median of as
many processes, since what the allocator gives back in time differs from one to the next by a quarter. "x": so many
times slower, or larger, than this package.

With `--words`, the semantic IDs stand behind so many other tokens, and the table says what each normalisation costs:
over the whole vocabulary, as `generate` does it, over the semantic-ID tokens, or over the children alone.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import transformers
from models import (
    add_model_options,
    children_table,
    describe,
    make_catalogue,
    make_model,
    make_prompts,
    usual_rollout,
)
from timing import fresh, medians_in_turns, memory_of, ratio, say, table_head, table_row
from ugr_fast.decode import beam_search

COLUMNS = ("model", "threads", "ours, s", "generate, s", "x", "ours, peak MB", "generate, peak MB", "x")
WAYS = ("model", '"full", s', '"sid", s', '"allowed", s', "generate, s", "x", "x", "x")
OURS, USUAL = 0, 1


def searches(name, options):
    """Two functions of (ids, mask) that return (B, G, L) tokens, ours and the usual one; and the prompts for them."""
    transformers.logging.set_verbosity_error()
    catalogue = make_catalogue(options.num_items, options.codes, options.words)
    model = make_model(name, catalogue.vocabulary)
    table = children_table(catalogue)
    _, *prompts = make_prompts(catalogue, options.batch, options.prompt)

    def ours(ids, mask, normalize="full"):
        return beam_search(
            model,
            ids,
            mask,
            catalogue.trie,
            num_beams=options.group,
            normalize=normalize,
            vocabulary=catalogue.vocabulary,
        ).tokens

    def usual(ids, mask):
        return usual_rollout(model, ids, mask, options.group, table)

    return (ours, usual), prompts


def peak_megabytes(which, name, threads, options):
    """Memory of one search, OURS or USUAL; to be run in a fresh process."""
    torch.set_num_threads(threads)
    both, prompts = searches(name, options)
    search = both[which]
    search(*(tensor[:1, :2] for tensor in prompts))  # what only the first call allocates or imports
    return memory_of(lambda: search(*prompts))[1]


def median_peak(*arguments):
    options = arguments[-1]
    return statistics.median(fresh(peak_megabytes, *arguments) for _ in range(options.repeats))


def measure(name, options):
    """Rows of the table: one for each number of threads."""
    (ours, usual), prompts = searches(name, options)
    for threads in options.threads:
        say(f"{name}, {threads} thread(s) ...")
        torch.set_num_threads(threads)
        if not torch.equal(ours(*prompts), usual(*prompts)):
            raise SystemExit(f"{name}: the beams differ; nothing is timed")
        fast, slow = medians_in_turns(options.repeats, lambda: ours(*prompts), lambda: usual(*prompts))
        small, large = (median_peak(which, name, threads, options) for which in (OURS, USUAL))
        yield table_row(name, str(threads), fast, slow, ratio(slow, fast), small, large, ratio(large, small))


def normalisations(name, options):
    """Rows of the table with `--words`."""
    (ours, usual), prompts = searches(name, options)
    torch.set_num_threads(1)
    say(f"{name}, {options.words} words ...")
    if not torch.equal(ours(*prompts), usual(*prompts)):
        raise SystemExit(f"{name}: the beams differ; nothing is timed")
    ways = [lambda way=way: ours(*prompts, way) for way in ("full", "sid", "allowed")]
    *spent, slow = medians_in_turns(options.repeats, *ways, lambda: usual(*prompts))
    yield table_row(name, *spent, slow, *(ratio(slow, fast) for fast in spent))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of torch (default: 1 2)")
    parser.add_argument("--words", type=int, default=0, help="tokens of a language model before the codes (default: 0)")
    options = parser.parse_args()
    head, rows = (WAYS, normalisations) if options.words else (COLUMNS, measure)
    print(f"{describe(options)}\n\n{table_head(*head)}", flush=True)
    for name in options.models:
        for row in rows(name, options):
            print(row, flush=True)


if __name__ == "__main__":
    main()
