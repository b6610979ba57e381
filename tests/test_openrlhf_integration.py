"""OpenRLHF, as installed: its agents with our reward function and executor, around a real vLLM where there is one."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import served
import torch
from ugr_fast import SidTrie, rewards
from ugr_fast.advantages import group_advantages

if find_spec("openrlhf") is None:
    pytest.skip("OpenRLHF is not installed", allow_module_level=True)
served.prepare()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from openrlhf.utils.agent import AgentExecutorBase, SingleTurnAgentExecutor
    from ugr_fast.integrations.openrlhf import SidAgentExecutor, make_reward_func

pytestmark = pytest.mark.filterwarnings("ignore")
TRIE = served.catalogue()
TARGET = TRIE.sids()[0][7].tolist()
LABEL = " ".join(served.WORDS[token] for token in TARGET)
AGENT = """
from ugr_fast import SidTrie
from ugr_fast.integrations.openrlhf import SidAgentExecutor

class AgentExecutor(SidAgentExecutor):
    def __init__(self):
        super().__init__(SidTrie.load({path!r}), reward={reward!r})
"""


def tokenizer(text, **options):
    """Plays a tokenizer that has a word for every token."""
    tokens = [served.WORDS.index(word) for word in text.split()]
    return {"input_ids": torch.tensor([tokens]) if options.get("return_tensors") else tokens}


tokenizer.decode = lambda tokens, **options: " ".join(served.WORDS[token] for token in tokens)


def sampling_params(**changes):
    """Plays vLLM's parameters as OpenRLHF makes them."""
    return SimpleNamespace(**{"max_tokens": 8, "min_tokens": 1, "logprobs": None, "allowed_token_ids": None} | changes)


class Engine:
    """Plays OpenRLHF's engine: every allowed token of an even temper, and log-probs as `logits` has them."""

    def __init__(self, fail_at=None, obey=True):
        self.asked, self.fail_at, self.obey = [], fail_at, obey
        self.rng = np.random.default_rng(0)

    async def generate(self, prompt_token_ids, params, **media):
        self.asked.append((prompt_token_ids, params))
        if len(self.asked) == self.fail_at:
            raise RuntimeError("the engine is gone")
        if self.fail_at is None and len(self.asked) % 3:
            await asyncio.sleep(0)  # some answers come at once, others later
        allowed = params.allowed_token_ids or TARGET
        token = int(self.rng.choice(allowed)) if self.obey else 63
        logprobs = [{token: SimpleNamespace(logprob=-0.1 * token)}]
        drawn = SimpleNamespace(token_ids=[token], logprobs=logprobs, text=served.WORDS[token], finish_reason="length")
        return SimpleNamespace(outputs=[drawn])


def samples(agent, engine, number=8, prompt="t40 <sep>", label=LABEL, params=None, **settings):
    """`number` samples of one prompt, called as OpenRLHF's `RolloutRayActor.generate_responses` calls its executor."""
    params = params or sampling_params()
    settings = {"max_length": 32, "hf_tokenizer": tokenizer, "llm_engine": engine} | settings

    async def run():
        calls = [agent.execute(prompt=prompt, label=label, sampling_params=params, **settings) for _ in range(number)]
        return await asyncio.gather(*calls)

    return asyncio.run(run())


# ---- the reward function


def test_the_single_turn_agent_takes_the_reward_function(tmp_path):
    source = (
        "from ugr_fast.integrations.openrlhf import make_reward_func\nreward_func = make_reward_func(end='<end>')\n"
    )
    (tmp_path / "reward.py").write_text(source)
    agent = SingleTurnAgentExecutor(str(tmp_path / "reward.py"))

    class Whole:
        async def generate(self, prompt_token_ids, params, **media):
            wanted = [*TARGET, served.END] if self.hit else [*TARGET[:2], 63, served.END]
            return SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=wanted, logprobs=None, finish_reason="stop", text="")]
            )

    for hit in (True, False):
        Whole.hit = hit
        found = samples(agent, Whole(), number=1)[0]
        assert float(found["reward"]) == float(found["scores"]) == float(hit)


def test_a_query_that_does_not_start_with_its_prompt_is_refused():
    with pytest.raises(ValueError, match="`queries` must start with their `prompts`"):
        make_reward_func()(["b c"], ["a "], ["c"])


# ---- the agent


def expected(tokens, scores, reward):
    """What each sample earns, from our own functions on the group in beam order."""
    order = sorted(range(len(tokens)), key=lambda at: (-scores[at], at))
    table, s = np.array([[tokens[at] for at in order]]), np.array([[scores[at] for at in order]])
    hits = rewards.match(table, np.array([TARGET]))
    earned = {
        "match": lambda: hits,
        "ranking": lambda: rewards.ranking(hits),
        "uncertainty_weighted": lambda: rewards.uncertainty_weighted(hits, s, lengths=np.full(hits.shape, 3)),
    }
    weight = rewards.difficulty_weight(hits, s)[:, None]
    earned["ugr"] = lambda: weight * group_advantages(earned["uncertainty_weighted"]())
    found = np.empty(len(tokens))
    found[order] = earned[reward]()[0]
    return found


@pytest.mark.parametrize("reward", ["match", "ranking", "uncertainty_weighted", "ugr"])
@pytest.mark.parametrize("number", [1, 2, 120])
def test_samples_are_scored_beside_the_others_of_their_prompt(reward, number):
    agent = SidAgentExecutor(TRIE, reward=reward)
    found = samples(agent, Engine(), number)
    tokens = [sample["observation_tokens"][2:] for sample in found]
    assert (TRIE.lookup(tokens) >= 0).all()
    assert [sample["scores"] for sample in found] == [float(sid == TARGET) for sid in tokens]
    scores = [sum(-0.1 * token for token in sid) for sid in tokens]
    given = [sample["reward"] for sample in found]
    np.testing.assert_allclose(given, expected(tokens, scores, reward), rtol=0, atol=1e-12)
    assert number < 120 or any(given)
    assert not agent._groups


def test_prompts_that_are_drawn_at_the_same_time_are_groups_of_their_own():
    agent, engine = SidAgentExecutor(TRIE, reward="ugr"), Engine()
    settings = {"max_length": 32, "hf_tokenizer": tokenizer, "llm_engine": engine}

    async def responses():  # what a call of `generate_responses` does
        params = sampling_params()
        calls = [agent.execute(prompt="t40 <sep>", label=LABEL, sampling_params=params, **settings) for _ in range(16)]
        return await asyncio.gather(*calls)

    async def run():
        return await asyncio.gather(responses(), responses())

    for found in asyncio.run(run()):
        assert sum(sample["reward"] for sample in found) == pytest.approx(0, abs=1e-9)  # the mean of each group is 0
    assert not agent._groups


def test_an_answer_is_what_openrlhf_reads():
    sample = samples(SidAgentExecutor(TRIE), Engine(), params=sampling_params(logprobs=1))[0]
    tokens = sample["observation_tokens"][2:]
    assert sample["action_ranges"] == [(2, 5)]
    assert sample["rollout_log_probs"] == pytest.approx([0.0, 0.0, *(-0.1 * token for token in tokens)])
    assert sample["prompt"] == "t40 <sep>"
    assert sample["label"] == LABEL
    assert samples(SidAgentExecutor(TRIE), Engine())[0]["rollout_log_probs"] is None


def test_tokens_are_asked_for_one_by_one_and_forced_ones_only_under_full():
    chain = SidTrie.build([[3, 12, 20], [4, 12, 20]])
    for normalize, asked in (("full", 3), ("allowed", 1)):
        engine = Engine()
        label = " ".join(served.WORDS[token] for token in (3, 12, 20))
        sample = samples(SidAgentExecutor(chain, normalize=normalize), engine, number=1, label=label)[0]
        assert chain.lookup([sample["observation_tokens"][2:]])[0] >= 0
        assert len(engine.asked) == asked
        assert {(params.max_tokens, params.min_tokens) for _, params in engine.asked} == {(1, 0)}


def test_a_long_prompt_loses_its_beginning():
    prompt = " ".join(["t41"] * 40 + ["t42"])
    sample = samples(SidAgentExecutor(TRIE), Engine(), number=1, prompt=prompt, max_length=8)[0]
    assert sample["observation_tokens"][:5] == [41] * 4 + [42]
    assert len(sample["observation_tokens"]) == 8


def test_one_failure_fails_the_group_and_leaves_nobody_waiting():
    agent, engine = SidAgentExecutor(TRIE), Engine(fail_at=5)
    params = sampling_params()
    settings = {"max_length": 32, "hf_tokenizer": tokenizer, "llm_engine": engine}

    async def run():
        calls = [agent.execute(prompt="t40", label=LABEL, sampling_params=params, **settings) for _ in range(4)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)

    outcomes = asyncio.run(run())
    assert sum("the engine is gone" in str(outcome) for outcome in outcomes) == 4
    assert sum("another sample of the prompt failed" in str(outcome) for outcome in outcomes) == 3
    assert not agent._groups


REFUSED = {
    "label": ({"label": "t3 t63 t20"}, "`label` must be the text of a semantic ID"),
    "images": ({"images": ["a.png"]}, "`images` must be empty"),
    "room": ({"max_length": 3}, "`max_length` must leave room"),
    "engine": ({"llm_engine": Engine(obey=False)}, "must draw one of `allowed_token_ids`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_do_not_fit_are_refused(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        samples(SidAgentExecutor(TRIE), Engine(), number=1, **changes)


def test_settings_that_do_not_fit_are_refused():
    for arguments, message in (
        ({"trie": TRIE, "reward": "grpo"}, "`reward` must be one of"),
        ({"trie": TRIE, "normalize": "sid"}, "`normalize` must be"),
        ({"trie": SidTrie.build([[3], [3, 4]])}, "prefix of another"),
    ):
        with pytest.raises(ValueError, match=message):
            SidAgentExecutor(**arguments)


def test_the_executor_takes_what_openrlhf_passes():
    theirs, ours = (inspect.signature(kind.execute).parameters for kind in (AgentExecutorBase, SidAgentExecutor))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert set(ours) - set(theirs) <= {"images"}  # of later versions


# ---- OpenRLHF's own actor around a real engine


@pytest.mark.skipif(find_spec("vllm") is None or find_spec("ray") is None, reason="vLLM or Ray is not installed")
def test_the_actor_of_openrlhf_rolls_out_with_a_real_engine(tmp_path):
    import vllm
    from openrlhf.trainer.ray import vllm_engine

    served.save_model(tmp_path)
    (tmp_path / "catalogue").mkdir()
    TRIE.save(tmp_path / "catalogue" / "items.safetensors")
    path = tmp_path / "agent.py"
    path.write_text(AGENT.format(path=str(tmp_path / "catalogue" / "items.safetensors"), reward="ugr"))
    remote = getattr(vllm_engine, "RolloutRayActor", None) or vllm_engine.LLMRayActor  # its name before 0.9.2
    actor = object.__new__(remote.__ray_metadata__.modified_class)
    actor.executor, actor._mm_pad_token_ids = vllm_engine._load_agent_executor(str(path)), set()
    params = vllm.SamplingParams(temperature=1.0, max_tokens=8, min_tokens=1, logprobs=1)

    async def run():
        arguments = vllm.AsyncEngineArgs(model=str(tmp_path), enforce_eager=True, dtype="float32", max_model_len=64)
        actor.llm = vllm.AsyncLLMEngine.from_engine_args(arguments)
        settings = {"max_length": 32, "hf_tokenizer": tokenizer, "num_samples": 64}
        try:
            return await actor.generate_responses("t40 t41 <sep>", LABEL, params, **settings)
        finally:
            actor.llm.shutdown()

    found = asyncio.run(run())
    tokens = [sample["observation_tokens"][3:] for sample in found]
    assert (TRIE.lookup(tokens) >= 0).all()
    assert len({tuple(sid) for sid in tokens}) > 5
    scores = [sum(sample["rollout_log_probs"]) for sample in found]
    assert max(scores) < 0
    given = [sample["reward"] for sample in found]
    np.testing.assert_allclose(given, expected(tokens, scores, "ugr"), rtol=0, atol=1e-9)
