"""Tiny random models and catalogues for the tests."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from ugr_fast.model import Catalogue, SidVocabulary

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

COMMON = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
ARCHITECTURES = {
    "qwen3": lambda size: transformers.Qwen3Config(
        vocab_size=size,
        intermediate_size=48,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        **COMMON,
    ),
    "qwen2": lambda size: transformers.Qwen2Config(
        vocab_size=size, intermediate_size=48, num_key_value_heads=2, **COMMON
    ),
    "llama": lambda size: transformers.LlamaConfig(
        vocab_size=size, intermediate_size=48, num_key_value_heads=2, **COMMON
    ),
    "gpt2": lambda size: transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}

SCALED = {  # models that scale or cap their logits after the head
    "gemma2": lambda size: transformers.Gemma2Config(
        vocab_size=size,
        intermediate_size=48,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=3.0,
        sliding_window=5,
        **COMMON,
    ),
    "cohere": lambda size: transformers.CohereConfig(
        vocab_size=size, intermediate_size=48, num_key_value_heads=2, logit_scale=0.25, pad_token_id=0, **COMMON
    ),
    "granite": lambda size: transformers.GraniteConfig(
        vocab_size=size, intermediate_size=48, num_key_value_heads=2, logits_scaling=3.0, **COMMON
    ),
}
ROWS_ONLY = {  # models that make their own mask: a window, or positions that they count themselves
    "gemma2": SCALED["gemma2"],
    "mistral": lambda size: transformers.MistralConfig(
        vocab_size=size, intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=4, **COMMON
    ),
    "bloom": lambda size: transformers.BloomConfig(
        vocab_size=size, hidden_size=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None, pad_token_id=0
    ),
}
EAGER = {"gemma2", "bloom"}  # their softmax is float32 whatever the model is: float64's lowest number overflows in it
EVERY = ARCHITECTURES | SCALED | ROWS_ONLY


def catalogue(num_items=30, sizes=(5, 4, 6), seed=0, ragged=False):
    """Random distinct codes; with `ragged`, the last level is missing where its siblings allow it."""
    rng = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(*[np.arange(size) for size in sizes], indexing="ij"), -1).reshape(-1, len(sizes))
    codes = every[rng.permutation(len(every))[:num_items]]
    if ragged:
        _, inverse, counts = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
        codes[counts[inverse] == 1, -1] = -1
    return Catalogue.build(SidVocabulary.from_scratch(sizes), codes)


def model(vocabulary, architecture="qwen3", seed=0, spread=4.0):
    """A model whose weights are spread enough for log-probs to differ clearly; float64 where it can be."""
    torch.manual_seed(seed)
    config = EVERY[architecture](vocabulary.size)
    made = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    keep_float64(made)
    return made.float() if architecture in EAGER else made


def keep_float64(made):
    """Swap in torch's RMSNorm: transformers' rounds to float32 inside, which would hide errors below 1e-7."""
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):  # not Gemma's kind
                exact = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                exact.weight = child.weight
                setattr(parent, name, exact)
    return made


def language_model(folder):
    """Save a tiny language model and its tokenizer into `folder`; return the model and its words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "correct", "wrong", "Items", "a", "user", "chose", ",", "oldest", "first", ":", "scores"]
    words += ["Confidence", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", unk_token="<unk>"
    )
    made = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES["qwen3"](len(words)))
    made.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return made, words


def columns_of(normalize, made_catalogue):
    """What log-probs are normalised over after a prefix, for the reference."""
    low, high = made_catalogue.vocabulary.sid_range
    return {
        "full": lambda prefix: None,
        "sid": lambda prefix: range(low, high),
        "allowed": lambda prefix: made_catalogue.trie.children(list(prefix)).tolist(),
    }[normalize]


def sids_of(made_catalogue):
    return [tuple(row[row >= 0].tolist()) for row in made_catalogue.item_tokens]
