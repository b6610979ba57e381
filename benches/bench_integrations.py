"""What the parts for other people's loops take, beside what their hosts run otherwise: transformers.

    python benches/bench_integrations.py                     # a few minutes
    python benches/bench_integrations.py --batch 1 --repeats 5

One call: the same log-probs and prefixes through transformers' `PrefixConstrainedLogitsProcessor` over nested dicts,
and through `SidLogitsProcessor`; both must return the same scores. Catalogues are those of bench_trie.py: 2048 tokens,
and eight codebooks behind a language model's vocabulary.

A whole search: `generate(num_beams=G)` of a Qwen3 with random weights, with a prefix function over a dict, with
`SidLogitsProcessor`, and as `beam_generate`; all must find the same semantic IDs. Times are medians of runs taken in
turns, on one thread of torch. "x": so many times slower than the last column of times.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
import transformers
from bench_trie import DictPeer, own_trie
from catalogues import Catalogue
from models import (
    MODELS,
    add_model_options,
    children_table,
    describe,
    make_catalogue,
    make_model,
    make_prompts,
)
from searches import Size, depths_of, walk
from timing import median_ms, medians_in_turns, ratio, say, table_head, table_row
from ugr_fast.integrations.transformers import SidLogitsProcessor, beam_generate

CALLS = ("one call", "dict trie, ms", "SidLogitsProcessor, ms", "x")
SEARCHES = ("generate", "dict, s", "SidLogitsProcessor, s", "beam_generate, s", "dict, x", "SidLogitsProcessor, x")
KINDS = ("uniform", "codebooks")
WORDS = (0, 151_669)


def calls(kind, options):
    """Rows of the first table: a catalogue at several depths."""
    catalogue = Catalogue(kind, 100_000)
    sids = catalogue.sids()
    vocabulary = catalogue.vocabulary(sids)
    trie, size = own_trie(sids, 1), Size(14, 10)
    theirs = DictPeer(sids).allowed
    for level in walk(trie, vocabulary, size, np.random.default_rng(0)):
        if level.depth not in depths_of(trie):
            continue
        prefixes, scores = torch.from_numpy(level.prefixes), torch.from_numpy(level.logprobs)
        usual = transformers.PrefixConstrainedLogitsProcessor(theirs, len(prefixes) // size.batch)
        ours = SidLogitsProcessor(trie, prompt_length=0)
        if not torch.equal(ours(prefixes, scores), usual(prefixes, scores)):
            raise SystemExit(f"{kind}: the scores differ at depth {level.depth}; nothing is timed")
        slow, fast = (median_ms(partial(call, prefixes, scores), options.repeats) for call in (usual, ours))
        yield table_row(f"{catalogue.name(vocabulary)}, depth {level.depth}", slow, fast, ratio(slow, fast))


def searches(name, words, options):
    """Row of the second table: a model and its vocabulary."""
    catalogue = make_catalogue(options.num_items, options.codes, words)
    model = make_model(name, catalogue.vocabulary)
    _, ids, mask = make_prompts(catalogue, options.batch, options.prompt)
    table, width, depth = children_table(catalogue), ids.shape[1], catalogue.trie.depth

    def search(**constraint):
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=options.group,
            num_return_sequences=options.group,
            max_new_tokens=depth,
            do_sample=False,
            length_penalty=0.0,
            early_stopping="never",
            **constraint,
        )

    ways = [
        partial(search, prefix_allowed_tokens_fn=lambda _row, tokens: table[tuple(tokens[width:].tolist())]),
        partial(search, logits_processor=[SidLogitsProcessor(catalogue.trie, width)]),
        partial(search, custom_generate=partial(beam_generate, trie=catalogue.trie)),
    ]
    first, *others = (way() for way in ways)
    if not all(torch.equal(first, other) for other in others):
        raise SystemExit(f"{name}: the beams differ; nothing is timed")
    usual, masked, own = medians_in_turns(options.repeats, *ways)
    label = f"{name}, V {catalogue.vocabulary.size}"
    return table_row(label, usual, masked, own, ratio(usual, own), ratio(masked, own))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.set_defaults(models=list(MODELS)[:1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"14 prompts of 10 beams, median of {options.repeats}\n\n{table_head(*CALLS)}", flush=True)
    with torch.inference_mode():
        for kind in KINDS:
            for row in calls(kind, options):
                print(row, flush=True)
    print(f"\n{describe(options)}\n\n{table_head(*SEARCHES)}", flush=True)
    for name in options.models:
        for words in WORDS:
            say(f"{name}, {words} words ...")
            print(searches(name, words, options), flush=True)


if __name__ == "__main__":
    main()
