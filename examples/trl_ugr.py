"""UGR inside TRL's GRPO on a toy catalogue; under a minute on one core.

64 items with semantic IDs of two tokens; the next item is always the one after the last. It prints how often the target
is among the 16 candidates, and how often it is the first of them. With GRPOTrainer in place of UGRTrainer it would be
reward_funcs=make_reward("uncertainty_weighted", trie) and rollout_func=make_rollout(trie).
"""

import tempfile

import datasets
import tokenizers
import torch
import transformers
from ugr_fast import SidTrie
from ugr_fast.integrations.trl import UGRConfig, UGRTrainer
from ugr_fast.model import SidVocabulary

torch.manual_seed(0)
torch.set_num_threads(1)
vocabulary = SidVocabulary.from_scratch([8, 8])
sids = vocabulary.encode([divmod(item, 8) for item in range(64)]).tolist()
words = ["<pad>", "<s>", "<confidence>", "<positive>", "<negative>", *(f"<{x}_{i}>" for x in "ab" for i in range(8))]
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: token for token, word in enumerate(words)}))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
prompts = [" ".join(["<s>", *(words[token] for token in sid)]) for sid in sids]
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
settings = {"learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "bf16": False, "logging_steps": 20}
folder = tempfile.TemporaryDirectory()  # gone when this ends
trainer = UGRTrainer(
    model=transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(words), **sizes)),
    args=UGRConfig(folder.name, num_generations=16, per_device_train_batch_size=512, max_steps=80, **settings),
    trie=SidTrie.build(sids),
    vocabulary=vocabulary,
    train_dataset=datasets.Dataset.from_dict({"prompt": prompts, "target": sids[1:] + sids[:1]}),
    processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"),
)
trainer.train()
for log in trainer.state.log_history[:-1]:
    print(f"step {log['step']}: target among 16 {log['hit_rate']:.2f}, first {log['hit_rate@1']:.2f}")
