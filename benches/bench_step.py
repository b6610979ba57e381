"""One training step on trees beside the usual way, in one process: rollout, then forward and backward.

The usual way is made competent: `transformers.generate` once for the unique prompts, with a prefix function over a
dict; one padded policy forward and one padded confidence forward over B·G rows, logits only where they are used.
Outputs are checked for equality before anything is timed.

    python benches/bench_step.py --help
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import transformers
from ugr_fast import losses
from ugr_fast.decode import beam_search
from ugr_fast.model import Catalogue, SidVocabulary, confidence_logit, packed_hidden_states, pad_left
from ugr_fast.packing import pack_prefixes

DEPTH = 4
MODELS = {"4x256": (4, 256, 4), "8x512": (8, 512, 8)}


def make_model(name, vocabulary):
    layers, width, heads = MODELS[name]
    config = transformers.Qwen3Config(
        vocab_size=vocabulary.size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5)  # log-probs far enough apart for equal beams in float32
    return model


def make_catalogue(num_items, codes):
    rng = np.random.default_rng(0)
    sids = np.unique(rng.integers(0, codes, size=(num_items, DEPTH)), axis=0)
    return Catalogue.build(SidVocabulary.from_scratch([codes] * DEPTH), sids)


def rollout_usual(model, catalogue, ids, mask, group, table):
    width = ids.shape[1]
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=group,
        num_return_sequences=group,
        max_new_tokens=DEPTH,
        prefix_allowed_tokens_fn=lambda _row, tokens: table[tuple(tokens[width:].tolist())],
        do_sample=False,
        length_penalty=0.0,
        early_stopping="never",
    )
    return found[:, width:].reshape(len(ids), group, DEPTH)


def children_table(catalogue):
    table = {}
    for sid in catalogue.item_tokens.tolist():
        for level, token in enumerate(sid):
            table.setdefault(tuple(sid[:level]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in table.items()}


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


def median_of(repeats, *functions):
    """Median seconds of each function, taken in turns so that noise hits all alike."""
    times = [[] for _ in functions]
    for _ in range(repeats):
        for spent, function in zip(times, functions, strict=True):
            started = time.perf_counter()
            function()
            spent.append(time.perf_counter() - started)
    return [statistics.median(spent) for spent in times]


def measure(name, options):
    catalogue = make_catalogue(options.num_items, options.codes)
    model = make_model(name, catalogue.vocabulary)
    table = children_table(catalogue)
    rng = np.random.default_rng(1)
    bodies = rng.integers(*catalogue.vocabulary.sid_range, size=(options.batch, options.prompt - 1))
    prompts = [[1, *body] for body in bodies.tolist()]
    ids, mask = pad_left(prompts, 0)
    settings = {"num_beams": options.group, "vocabulary": catalogue.vocabulary}
    with torch.no_grad():
        tokens = beam_search(model, ids, mask, catalogue.trie, **settings).tokens
        same = torch.equal(tokens, rollout_usual(model, catalogue, ids, mask, options.group, table))
    rollout = median_of(
        options.repeats,
        lambda: beam_search(model, ids, mask, catalogue.trie, **settings),
        lambda: rollout_usual(model, catalogue, ids, mask, options.group, table),
    )
    hits = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    hits[:, 2] = True
    advantages = torch.randn(tokens.shape[:2])
    arguments = (model, catalogue, prompts, tokens, advantages, hits)
    for ours, theirs in zip(update_tree(*arguments), update_usual(*arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    update = median_of(options.repeats, lambda: update_tree(*arguments), lambda: update_usual(*arguments))
    return same, rollout, update


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="layers x width")
    parser.add_argument("--prompt", type=int, default=150, help="prompt tokens P")
    parser.add_argument("--batch", type=int, default=4, help="prompts B")
    parser.add_argument("--group", type=int, default=16, help="candidates G, the beam width")
    parser.add_argument("--num-items", type=int, default=10_000, help="items of the catalogue")
    parser.add_argument("--codes", type=int, default=512, help="codes per level; 4 levels")
    parser.add_argument("--repeats", type=int, default=3, help="runs that the median is over")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    print(
        f"P {options.prompt}, G {options.group}, L {DEPTH}, B {options.batch}, {options.num_items} items, "
        f"{options.codes} codes per level, {options.threads} thread(s), median of {options.repeats}\n"
    )
    print("| model | part | on trees, s | usual way, s | ratio | equal outputs |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        same, rollout, update = measure(name, options)
        for part, (ours, theirs), equal in (("rollout", rollout, same), ("update", update, True)):
            shown = "yes" if equal else "no"
            print(f"| {name} | {part} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.1f} | {shown} |", flush=True)
        both = [ours + theirs for ours, theirs in zip(rollout, update, strict=True)]
        print(f"| {name} | step | {both[0]:.3f} | {both[1]:.3f} | {both[1] / both[0]:.1f} | |", flush=True)


if __name__ == "__main__":
    main()
