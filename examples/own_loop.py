"""A GRPO loop of your own around the parts of ugr-fast, on a toy catalogue; a few seconds on one core.

64 items with semantic IDs of two tokens; the next item is always the one after the last. A decoder with random weights
has to find that out from rewards alone. It prints how often the target is among the 16 candidates, and how often it is
the first of them. What stays missing is what the first rollouts never showed: finding that is what fine-tuning is for.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers
from ugr_fast import SidTrie, group_advantages, losses, pack_prefixes, rewards
from ugr_fast.decode import beam_search
from ugr_fast.model import SidVocabulary, confidence_logits, packed_hidden_states, pad_left

NUM_ITEMS, NUM_PROMPTS, GROUP, NUM_UPDATES = 64, 32, 16, 81
torch.manual_seed(0)
torch.set_num_threads(1)
rng = np.random.default_rng(0)

vocabulary = SidVocabulary.from_scratch([8, 8])
sids = vocabulary.encode([divmod(item, 8) for item in range(NUM_ITEMS)])  # (N, L)
trie = SidTrie.build(sids)
config = transformers.Qwen3Config(
    vocab_size=vocabulary.size,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
)
model = transformers.Qwen3ForCausalLM(config).eval()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for update in range(NUM_UPDATES):
    last = rng.integers(NUM_ITEMS, size=NUM_PROMPTS)
    prompts = [[*vocabulary.prefix, *sids[item]] for item in last]
    target = torch.from_numpy(sids[(last + 1) % NUM_ITEMS])  # (B, L)

    beams = beam_search(model, *pad_left(prompts, vocabulary.pad), trie, num_beams=GROUP)  # no gradient
    hits = rewards.match(beams.tokens, target).bool()  # (B, G)
    reward = rewards.uncertainty_weighted(hits, beams.scores, score="sum")
    advantages = group_advantages(reward)

    packed = pack_prefixes(prompts, beams.tokens, suffix=vocabulary.suffix)
    hidden = packed_hidden_states(model, packed)  # (B, T, D), the one forward pass
    logprobs = losses.token_logprobs(model, hidden, torch.from_numpy(packed.logit_index), beams.tokens)
    confidence = confidence_logits(model, hidden, packed, vocabulary)  # (B, G)
    loss = losses.policy(logprobs, beams.logprobs, advantages, beams.tokens >= 0)
    loss = (loss + losses.confidence_alignment(confidence, hits, objective="brier")).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if update % 20 == 0:
        found, first = hits.any(1).float().mean(), hits[:, 0].float().mean()
        print(f"update {update:2d}: target among {GROUP} {found:.2f}, first {first:.2f}")
