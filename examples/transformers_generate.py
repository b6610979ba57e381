"""Semantic IDs out of `model.generate`: free, masked by a logits processor, and searched by `beam_generate`.

A decoder with random weights and 200 items of three tokens each; a few seconds on one core. Free beams name items that
do not exist; the other two ways give the same beams, all of them items, whatever the model's generation_config says.
"""

from __future__ import annotations

from functools import partial

import torch
import transformers
from ugr_fast import SidTrie
from ugr_fast.integrations.transformers import SidLogitsProcessor, beam_generate

torch.manual_seed(0)
torch.set_num_threads(1)
sids = torch.randint(5, 105, (200, 3)).unique(dim=0)  # tokens 5 .. 104 name items
trie = SidTrie.build(sids)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = transformers.LlamaConfig(vocab_size=105, bos_token_id=None, eos_token_id=None, pad_token_id=0, **shape)
model = transformers.LlamaForCausalLM(config).eval()
model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.8)  # as chat models have it

prompts = sids[torch.randint(len(sids), (4, 5))].flatten(1)  # four histories of five items
call = {"inputs": prompts, "num_beams": 16, "num_return_sequences": 16, "max_new_tokens": 3}
masked = {"logits_processor": [SidLogitsProcessor(trie, prompts.shape[1])]}
try:
    model.generate(**call, **masked)
except ValueError as error:
    print(f"refused: {error}\n")
free = model.generate(**call, do_sample=False)
processed = model.generate(**call, **masked, do_sample=False)
searched = model.generate(**call, custom_generate=partial(beam_generate, trie=trie))
for name, found in {"free": free, "processor": processed, "beam_generate": searched}.items():
    real = trie.lookup(found[:, prompts.shape[1] :].numpy()) >= 0
    print(f"{name}: {real.sum()} of {len(real)} answers are items")
print(f"the same beams: {torch.equal(processed, searched)}")
