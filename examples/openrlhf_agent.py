"""An agent file for OpenRLHF, and one rollout of it with a toy engine: `--train.agent_func_path openrlhf_agent.py`.

16 items with semantic IDs of two tokens; in earnest, the trie comes from a file that `SidTrie.save` wrote. The engine
plays vLLM's: it draws evenly among the allowed tokens. Prints what each of 16 samples of a prompt earns.
"""

import asyncio
import random
from types import SimpleNamespace

from ugr_fast import SidTrie
from ugr_fast.integrations.openrlhf import SidAgentExecutor


class AgentExecutor(SidAgentExecutor):
    """What OpenRLHF looks for; with `--algo.advantage.estimator dr_grpo`, the advantages of UGR."""

    def __init__(self):
        super().__init__(SidTrie.build([[item // 4, 4 + item % 4] for item in range(16)]), reward="ugr")


class _Engine:
    async def generate(self, prompt_token_ids, params):
        token = random.choice(params.allowed_token_ids)
        logprobs = [{token: SimpleNamespace(logprob=-0.1 * token)}]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token], logprobs=logprobs)])


async def _main():
    params, settings = SimpleNamespace(max_tokens=2, min_tokens=1, logprobs=None), {"max_length": 64}
    settings["hf_tokenizer"] = lambda text, **options: {"input_ids": [int(word) for word in text.split()]}
    agent, engine = AgentExecutor(), _Engine()
    calls = [agent.execute("3 5", "2 5", params, llm_engine=engine, **settings) for _ in range(16)]
    for sample in await asyncio.gather(*calls):
        print(sample["observation_tokens"][2:], f"{sample['reward']:6.3f}", "hit" if sample["scores"] else "miss")


if __name__ == "__main__":
    random.seed(0)
    asyncio.run(_main())
