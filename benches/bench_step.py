"""One training step on trees beside the usual way, in one process: rollout, then forward and backward.

The usual way is made competent: `transformers.generate` once for the unique prompts, with a prefix function over a
dict; one padded policy forward and one padded confidence forward over B·G rows, logits only where they are used.
Outputs are checked for equality before anything is timed.

    python benches/bench_step.py                              # both models, minutes
    python benches/bench_step.py --models 4x256 --prompt 50
"""

from __future__ import annotations

import argparse

import torch
import transformers
from models import (
    DEPTH,
    add_model_options,
    children_table,
    describe,
    make_catalogue,
    make_model,
    make_prompts,
    usual_rollout,
)
from timing import medians_in_turns, ratio, table_head, table_row
from ugr_fast import losses
from ugr_fast.decode import beam_search
from ugr_fast.model import confidence_logit, packed_hidden_states, pad_left
from ugr_fast.packing import pack_prefixes

COLUMNS = ("model", "part", "on trees, s", "usual way, s", "ratio", "equal outputs")


def usual_rows(prompts, tokens, suffix):
    """Left-padded rows of prompt, candidate and suffix, and their masks and positions."""
    rows = [[*prompt, *sid, *suffix] for prompt, sids in zip(prompts, tokens.tolist(), strict=True) for sid in sids]
    ids, mask = pad_left(rows, 0)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def update_usual(model, catalogue, prompts, tokens, advantages, hits):
    """Two padded passes over B·G rows, logits where they are used."""
    vocabulary = catalogue.vocabulary
    head, decoder = model.get_output_embeddings(), model.model
    flat = tokens.flatten(0, 1)
    ids, mask, positions = usual_rows(prompts, tokens, ())
    hidden = decoder(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    logits = head(hidden[:, -DEPTH - 1 : -1])  # (B * G, L, V)
    logprobs = logits.gather(2, flat[..., None])[..., 0] - logits.logsumexp(2)
    ids, mask, positions = usual_rows(prompts, tokens, vocabulary.suffix)
    hidden = decoder(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    confidence = confidence_logit(model, hidden[:, -1], vocabulary)
    return finish(model, logprobs.view(tokens.shape), confidence.view(tokens.shape[:2]), advantages, hits, tokens)


def update_tree(model, catalogue, prompts, tokens, advantages, hits):
    """One pass over packed trees."""
    packed = pack_prefixes(prompts, tokens.numpy(), suffix=catalogue.vocabulary.suffix)
    hidden = packed_hidden_states(model, packed)
    logprobs = losses.token_logprobs(model, hidden, torch.from_numpy(packed.logit_index), tokens)
    ends = torch.from_numpy(packed.suffix_index)[..., None].expand(-1, -1, hidden.shape[2])
    confidence = confidence_logit(model, hidden.gather(1, ends), catalogue.vocabulary)
    return finish(model, logprobs, confidence, advantages, hits, tokens)


def finish(model, logprobs, confidence, advantages, hits, tokens):
    loss = losses.policy(logprobs, logprobs.detach(), advantages, tokens >= 0)
    loss = (loss + losses.confidence_alignment(confidence, hits)).mean()
    model.zero_grad()
    loss.backward()
    return logprobs.detach(), confidence.detach(), model.get_input_embeddings().weight.grad.clone()


def measure(name, options):
    catalogue = make_catalogue(options.num_items, options.codes)
    model = make_model(name, catalogue.vocabulary)
    table = children_table(catalogue)
    prompts, ids, mask = make_prompts(catalogue, options.batch, options.prompt)
    settings = {"num_beams": options.group, "vocabulary": catalogue.vocabulary}
    with torch.no_grad():
        tokens = beam_search(model, ids, mask, catalogue.trie, **settings).tokens
        same = torch.equal(tokens, usual_rollout(model, ids, mask, options.group, table))
    rollout = medians_in_turns(
        options.repeats,
        lambda: beam_search(model, ids, mask, catalogue.trie, **settings),
        lambda: usual_rollout(model, ids, mask, options.group, table),
    )
    hits = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    hits[:, 2] = True
    advantages = torch.randn(tokens.shape[:2])
    arguments = (model, catalogue, prompts, tokens, advantages, hits)
    for ours, theirs in zip(update_tree(*arguments), update_usual(*arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    update = medians_in_turns(options.repeats, lambda: update_tree(*arguments), lambda: update_usual(*arguments))
    return same, rollout, update


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    print(f"{describe(options)}, {options.threads} thread(s)\n\n{table_head(*COLUMNS)}", flush=True)
    for name in options.models:
        same, rollout, update = measure(name, options)
        for part, (ours, theirs), equal in (("rollout", rollout, same), ("update", update, True)):
            equality = "yes" if equal else "no"
            print(table_row(name, part, ours, theirs, ratio(theirs, ours), equality), flush=True)
        both = [ours + theirs for ours, theirs in zip(rollout, update, strict=True)]
        print(table_row(name, "step", *both, ratio(both[1], both[0]), None), flush=True)


if __name__ == "__main__":
    main()
