"""verl's advantages and policy loss around our rollouts, on a toy catalogue; twenty seconds on one core.

64 items with semantic IDs of two tokens; the next item is always the one after the last. Prints how often the target is
among 16 draws. With verl's own trainer there is nothing to write, only to configure: see docs/integrations.md.
"""

import numpy as np
import torch
import transformers
from omegaconf import OmegaConf
from ugr_fast import SidTrie, losses, pack_prefixes
from ugr_fast.decode import beam_search
from ugr_fast.integrations.verl import compute_score
from ugr_fast.model import SidVocabulary, packed_hidden_states, pad_left
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer

torch.manual_seed(0)
torch.set_num_threads(1)
vocabulary = SidVocabulary.from_scratch([8, 8])
sids = vocabulary.encode([divmod(item, 8) for item in range(64)]).tolist()
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary.size, **sizes)).eval()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
prompts, uid = [[*vocabulary.prefix, *sid] for sid in sids], np.arange(64).repeat(16).astype(str)
mask, draws = torch.ones(1024, 2), {"num_beams": 16, "normalize": "allowed", "method": "sample"}
for update in range(61):
    found = beam_search(model, *pad_left(prompts, vocabulary.pad), SidTrie.build(sids), seed=update, **draws)
    drawn = zip(found.tokens.flatten(0, 1).tolist(), found.scores.flatten().tolist(), range(1024), strict=True)
    scores = [compute_score("", str(sid), str(sids[(row // 16 + 1) % 64]), {"logprob": s}) for sid, s, row in drawn]
    tensors = {"token_level_rewards": torch.tensor([[0.0, score["score"]] for score in scores]), "response_mask": mask}
    data = ray_trainer.compute_advantage(DataProto.from_dict(tensors, {"uid": uid}), "ugr", config=OmegaConf.create())
    packed = pack_prefixes(prompts, found.tokens)
    hidden, index = packed_hidden_states(model, packed), torch.from_numpy(packed.logit_index)
    new = losses.token_logprobs(model, hidden, index, found.tokens).flatten(0, 1)
    core_algos.compute_policy_loss(new.detach(), new, data.batch["advantages"], mask, cliprange=0.2)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    if update % 20 == 0:
        print(f"update {update}: {np.reshape([score['acc'] for score in scores], (64, 16)).any(1).mean():.2f}")
