"""A tiny random model in a folder, its catalogue, and vLLM around them, for the tests of hosts that serve models."""

from __future__ import annotations

import os

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from ugr_fast import SidTrie

SIZE, END, SEPARATOR = 64, 1, 2
WORDS = ["<pad>", "<end>", "<sep>", *(f"t{token}" for token in range(3, SIZE))]
SETTINGS = {  # of an engine for which a few seconds on one core are enough
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def catalogue(num_items=40, seed=0, ragged=False):
    """A trie of up to `num_items` random semantic IDs of three tokens; with `ragged`, some of two."""
    rng = np.random.default_rng(seed)
    sids = rng.integers([3, 10, 20], [10, 20, 30], (num_items, 3))
    sids = np.unique(sids, axis=0)
    if ragged:
        sids[sids[:, 1] % 2 == 0, 2] = -1
        sids = np.unique(sids, axis=0)
    return SidTrie.build(sids)


def save_model(folder, seed=0):
    """Save a model whose next tokens differ clearly in log-prob, and its tokenizer; return both."""
    words = Tokenizer(models.WordLevel({word: token for token, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    config = transformers.Qwen3Config(vocab_size=SIZE, eos_token_id=END, pad_token_id=0, **heads, **sizes)
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def prepare():
    """Set what vLLM reads from the environment when it is imported; return whether it will run Model Runner V2.

    That takes VLLM_USE_V2_MODEL_RUNNER=1 and, without an accelerator, TRITON_INTERPRET=1 from the start: the runner
    wants a Triton that knows the CPU, and the interpreter knows every device.
    """
    os.environ.update(SETTINGS)
    runner_v2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
    if runner_v2 and os.environ.get("TRITON_INTERPRET") == "1":
        from triton.backends import backends

        backends["cpu"] = type("Interpreter", (), {"driver": type("Driver", (), {"is_active": lambda: True})})
    return runner_v2


def arguments(folder, trie, processor, **settings):
    """Arguments of an engine for the model in `folder`, with a logits processor and its catalogue."""
    path = folder / "catalogue" / "items.safetensors"  # beside the weights, vLLM would take it for some of them
    path.parent.mkdir()
    trie.save(path)
    settings = {"trie": str(path), "end": END, "separator": SEPARATOR} | settings
    return {
        "model": str(folder),
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 64,
        "max_logprobs": SIZE,
        "logprobs_mode": "processed_logprobs",
        "logits_processors": [f"ugr_fast.integrations.vllm:{processor}"],
        "additional_config": {"ugr_fast": settings},
    }
