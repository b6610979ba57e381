"""vLLM that answers with semantic IDs alone: a tiny random model, a catalogue of 64 items, beams and draws.

The items found are printed, best first. Without an accelerator it needs a vLLM that was built for the CPU.
"""

import os
from tempfile import TemporaryDirectory

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
import tokenizers
import transformers
from ugr_fast import SidTrie
from vllm import LLM, SamplingParams
from vllm.sampling_params import BeamSearchParams

END, SEPARATOR = 1, 2
words = {word: token for token, word in enumerate(["<pad>", "<end>", "<sep>", *(f"<{at}>" for at in range(16))])}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
config = transformers.Qwen3Config(vocab_size=len(words), num_key_value_heads=2, eos_token_id=END, **sizes)
trie = SidTrie.build([[3 + item // 8, 11 + item % 8] for item in range(64)])
with TemporaryDirectory() as model, TemporaryDirectory() as other:
    transformers.Qwen3ForCausalLM(config).save_pretrained(model)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(model)
    trie.save(f"{other}/items.safetensors")
    settings = {"trie": f"{other}/items.safetensors", "end": END, "separator": SEPARATOR}
    options = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True, "max_logprobs": 64}
    llm = LLM(
        model,
        **options,
        logits_processors=["ugr_fast.integrations.vllm:SidLogitsProcessor"],
        additional_config={"ugr_fast": settings},
        logprobs_mode="processed_logprobs",
    )
    prompt = {"prompt_token_ids": [3, 11, 3, 12, SEPARATOR]}
    beams = llm.beam_search([prompt], BeamSearchParams(beam_width=5, max_tokens=2, length_penalty=0.0))[0].sequences
    print("beams:", trie.lookup([beam.tokens[-2:] for beam in beams]).tolist())
    drawn = llm.generate([prompt], SamplingParams(n=5, max_tokens=2), use_tqdm=False)[0].outputs
    print("draws:", trie.lookup([list(sample.token_ids) for sample in drawn]).tolist())
