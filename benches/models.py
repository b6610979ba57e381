"""Small Qwen3 models with random weights, catalogues and prompts for them, and the usual constrained rollout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import transformers
from ugr_fast.model import Catalogue, SidVocabulary, pad_left

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


def make_catalogue(num_items, codes, words=0):
    """Random SIDs; with `words`, behind as many other tokens of a language model."""
    rng = np.random.default_rng(0)
    sids = np.unique(rng.integers(0, codes, size=(num_items, DEPTH)), axis=0)
    vocabulary = SidVocabulary.from_scratch([codes] * DEPTH)
    if words:
        vocabulary = replace(vocabulary, base=words, size=words + codes * DEPTH)
    return Catalogue.build(vocabulary, sids)


def make_prompts(catalogue, batch, length):
    """Random histories behind the first token, as lists and as the padded tensors that a search takes."""
    rng = np.random.default_rng(1)
    bodies = rng.integers(*catalogue.vocabulary.sid_range, size=(batch, length - 1))
    prompts = [[1, *body] for body in bodies.tolist()]
    return prompts, *pad_left(prompts, 0)


def children_table(catalogue):
    """Allowed tokens of every prefix, in the dict that a prefix function looks them up in."""
    table = {}
    for sid in catalogue.item_tokens.tolist():
        for level, token in enumerate(sid):
            table.setdefault(tuple(sid[:level]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in table.items()}


def usual_rollout(model, ids, mask, num_beams, table):
    """What a user of transformers runs: (B, K, L) tokens of the best beams."""
    width = ids.shape[1]
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=DEPTH,
        prefix_allowed_tokens_fn=lambda _row, tokens: table[tuple(tokens[width:].tolist())],
        do_sample=False,
        length_penalty=0.0,
        early_stopping="never",
    )
    return found[:, width:].reshape(len(ids), num_beams, DEPTH)


def add_model_options(parser):
    """Options that name a model, a catalogue and prompts."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="layers x width")
    parser.add_argument("--prompt", type=int, default=150, help="prompt tokens P (default: 150)")
    parser.add_argument("--batch", type=int, default=4, help="prompts B (default: 4)")
    parser.add_argument("--group", type=int, default=16, help="candidates G, the beam width (default: 16)")
    parser.add_argument("--num-items", type=int, default=10_000, help="items of the catalogue (default: 10000)")
    parser.add_argument("--codes", type=int, default=512, help="codes per level; 4 levels (default: 512)")
    parser.add_argument("--repeats", type=int, default=3, help="runs that the median is over (default: 3)")


def describe(options):
    return f"P {options.prompt}, G {options.group}, L {DEPTH}, {describe_catalogue(options)}"


def describe_catalogue(options):
    return f"B {options.batch}, {options.num_items} items, {options.codes} codes per level, median of {options.repeats}"
