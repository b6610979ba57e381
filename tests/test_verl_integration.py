"""verl, as installed: its own functions with our estimators, score function and agent loop; its servers are played."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import served
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import rewards
from ugr_fast.advantages import group_advantages

if find_spec("verl") is None:
    pytest.skip("verl is not installed", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from omegaconf import OmegaConf
    from ugr_fast.integrations.verl import SidAgentLoop, advantage_estimator, compute_score
    from verl import DataProto
    from verl.experimental.agent_loop import agent_loop
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.workers.reward_manager.naive import NaiveRewardManager
    from verl.workers.rollout.replica import TokenOutput

pytestmark = pytest.mark.filterwarnings("ignore")
VARIANTS = ["ugr", "ugr_uncertainty", "ugr_difficulty", "ugr_ranking"]


# ---- estimators


def batch_of(groups, width=5, seed=0, shuffle=True):
    """verl's batch of samples (group, hit, s, length), scored by `compute_score`, its rows in any order."""
    rows = [(name, *sample) for name, samples in groups.items() for sample in samples]
    if shuffle:
        rows = [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]
    mask, token_rewards = torch.zeros(len(rows), width), torch.zeros(len(rows), width, dtype=torch.float64)
    for row, (_, hit, s, length) in enumerate(rows):
        mask[row, :length] = 1
        token_rewards[row, length - 1] = compute_score("", "a" if hit else "b", "a", {"logprob": s})["score"]
    tensors = {"token_level_rewards": token_rewards, "response_mask": mask}
    data = DataProto.from_dict(tensors, non_tensors={"uid": np.array([row[0] for row in rows], object)})
    return data, rows


def advantages_by_verl(data, estimator, **config):
    """The advantages (N, L) that verl's own `compute_advantage` gets."""
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": True} | config)
    return compute_advantage(data, adv_estimator=estimator, config=config).batch["advantages"]


def expected(samples, variant, scale="std"):
    """The advantage of each sample of one group, in the order given, from our own functions on one group in a table."""
    order = sorted(range(len(samples)), key=lambda at: (-samples[at][1], at))
    hit, s, n = (np.array([[samples[at][part] for at in order]]) for part in range(3))
    s = s.astype(np.float64)
    earned = {
        "ugr_difficulty": lambda: hit.astype(np.float64),
        "ugr_ranking": lambda: rewards.ranking(hit),
    }.get(variant, lambda: rewards.uncertainty_weighted(hit, s, lengths=n))()
    weight = rewards.difficulty_weight(hit, s) if variant in ("ugr", "ugr_difficulty") else np.ones(1)
    found = np.empty(len(samples))
    found[order] = (weight[:, None] * group_advantages(earned, scale=scale))[0]
    return found


logprobs = st.floats(-50, -(2.0**-100)) | st.sampled_from([-1.0, -2.0])  # ties too
samples = st.tuples(st.booleans(), logprobs, st.integers(1, 5))
some_groups = st.dictionaries(st.sampled_from("abcdef"), st.lists(samples, min_size=1, max_size=6), min_size=1)


@pytest.mark.parametrize("variant", VARIANTS)
@given(groups=some_groups, by_std=st.booleans())
@settings(max_examples=40, deadline=None)
def test_advantages_are_those_of_our_functions_group_by_group(variant, groups, by_std):
    data, _ = batch_of(groups, shuffle=False)
    found = advantages_by_verl(data, variant, norm_adv_by_std_in_grpo=by_std)
    scale = "std" if by_std else "none"
    wanted = np.concatenate([expected(members, variant, scale) for members in groups.values()])
    mask = data.batch["response_mask"]
    torch.testing.assert_close(found, torch.from_numpy(wanted)[:, None] * mask, rtol=1e-6, atol=1e-7)
    assert (data.batch["returns"] == found).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_rows_does_not_matter(variant):
    """verl reorders rows to balance its workers before it asks for advantages."""
    rng = np.random.default_rng(3)
    groups = {
        name: [(at == hit, -rng.exponential(3), 4) for at in range(size)]
        for name, size, hit in (("u", 8, 2), ("v", 5, 0), ("w", 8, 9), ("x", 1, 0))
    }
    by_sample = {}
    for seed in range(3):
        data, rows = batch_of(groups, seed=seed)
        for row, advantage in zip(rows, advantages_by_verl(data, variant)[:, 0].tolist(), strict=True):
            assert by_sample.setdefault(row, advantage) == advantage
    assert any(by_sample.values())


def test_advantages_are_those_of_grpo_where_misses_are_equally_likely():
    """UGR reduces to GRPO on rewards of 0 and 1 there, and verl has that: the same but for its smaller epsilon."""
    groups = {"u": [(at == 3, -2.0, 3) for at in range(16)]}
    data, _ = batch_of(groups, shuffle=False)
    ours = advantages_by_verl(data, "ugr_uncertainty")
    data.batch["token_level_rewards"] = (data.batch["token_level_rewards"] > 0).double()
    theirs = advantages_by_verl(data, core_algos.AdvantageEstimator.GRPO)
    torch.testing.assert_close(ours, theirs, rtol=5e-4, atol=0)
    assert ours[3, 0].item() == pytest.approx(3.749, abs=1e-3)


def test_a_weight_on_advantages_is_a_weight_on_verls_loss():
    torch.manual_seed(0)
    old, new, advantages = (torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(6, 4, dtype=torch.float64)

    def loss(scaled):
        return core_algos.compute_policy_loss(old, new, scaled, mask, cliprange=0.2)[0]

    torch.testing.assert_close(loss(0.3 * advantages), 0.3 * loss(advantages), rtol=1e-12, atol=0)


def test_estimators_of_ones_own_can_be_registered():
    mine = core_algos.register_adv_est("mine")(advantage_estimator("match", alpha_min=0.5))
    assert core_algos.get_adv_estimator_fn("mine") is mine
    groups = {"u": [(True, -1.0, 2), (False, -2.0, 2)]}
    weighed, plain = (advantages_by_verl(batch_of(groups)[0], name) for name in ("mine", "ugr_difficulty"))
    assert (plain == 0).all()  # the target is first already
    assert (weighed.abs() > 0.3).any()


REFUSED = {
    "a penalty on every token": ([[-0.5, 0.0, 2.5], [0.1, 0.1, -1.0]], "use_kl_in_reward=False"),
    "infinity": ([[0.0, 0.0, 1.5], [0.0, 0.0, -np.inf]], "signed scores"),
    "NaN": ([[0.0, 0.0, np.nan], [0.0, 0.0, -1.0]], "signed scores"),
    "no log-probs": ([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], "`extra_info"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rewards_that_are_no_signed_scores_are_refused(variant, name):
    table, message = REFUSED[name]
    estimator = core_algos.get_adv_estimator_fn(variant)
    with pytest.raises(ValueError, match=message):
        estimator(torch.tensor(table), torch.ones(2, 3), np.array(["u", "u"]))


def test_an_unknown_reward_is_refused():
    with pytest.raises(ValueError, match="`reward` must be one of"):
        advantage_estimator("matches")


def test_the_multi_trajectory_trainer_asks_the_same():
    utils = pytest.importorskip("verl.trainer.ppo.v1.utils", reason="this verl has no V1 trainer")
    groups = {"u": [(True, -1.0, 2), (False, -2.0, 2), (False, -3.0, 3)]}
    data, _ = batch_of(groups, shuffle=False)
    keys = [f"u_{session}_0" for session in range(3)]
    found = utils.compute_advantage_for_multi_trajectories(data, keys, "ugr", config=OmegaConf.create({}))
    again, _ = batch_of(groups, shuffle=False)
    assert (found.batch["advantages"] == advantages_by_verl(again, "ugr")).all()


def test_one_variable_of_the_environment_registers_them():
    code = "from verl.trainer.ppo.core_algos import get_adv_estimator_fn as get; print(get('ugr').__module__)"
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "ugr_fast.integrations.verl"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["ugr_fast.integrations.verl"], done.stderr


# ---- the score of one sample


def test_a_score_says_hit_and_log_prob():
    assert compute_score("", "<a> <b>", "<a><b> ", {"logprob": -2.0}) == {"score": 2.0, "acc": 1.0}
    assert compute_score("", "<a>", "<a><b>", {"logprob": -2.0}) == {"score": -2.0, "acc": 0.0}
    assert compute_score("", "<a>", "<a>", None, more=1) == {"score": 1.0, "acc": 1.0}
    assert compute_score("", "<b>", "<a>", {"other": 1}) == {"score": 0.0, "acc": 0.0}


def test_a_certain_answer_has_a_sign_in_float32_too():
    for logprob in (0.0, 1e-9):
        hit, miss = (compute_score("", text, "a", {"logprob": logprob})["score"] for text in "ab")
        assert np.float32(miss) < 0 < np.float32(hit)


@pytest.mark.parametrize("logprob", [0.5, np.nan, -np.inf])
def test_a_log_prob_that_is_none_is_refused(logprob):
    with pytest.raises(ValueError, match=r"`extra_info\['logprob'\]` must be finite and at most 0"):
        compute_score("", "a", "a", {"logprob": logprob})


def test_a_target_without_text_is_refused():
    with pytest.raises(ValueError, match="`ground_truth` must be the text"):
        compute_score("", "a", " ", {"logprob": -1.0})


def words():
    """A tokenizer with a word for every token, and a chat template of nothing but the messages."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: token for token, word in enumerate(served.WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return wrapped


def test_the_reward_manager_of_verl_takes_the_score_function(tmp_path):
    (tmp_path / "reward.py").write_text("from ugr_fast.integrations.verl import compute_score\n")
    chosen = {"custom_reward_function": {"path": str(tmp_path / "reward.py"), "name": "compute_score"}}
    score_function = get_custom_reward_fn(OmegaConf.create(chosen | {"reward": chosen}))
    answers, targets, logprob = ["t3 t12", "t3 t13", "t4 t12"], ["t3 t12"] * 3, [-1.0, -0.5, -2.0]
    tokenizer = words()
    prompts, responses = torch.tensor([[40, 41]] * 3), torch.tensor([tokenizer(text).input_ids for text in answers])
    data = DataProto.from_dict(
        {"prompts": prompts, "responses": responses, "attention_mask": torch.ones(3, 4, dtype=torch.long)},
        non_tensors={
            "reward_model": np.array([{"ground_truth": target} for target in targets], object),
            "data_source": np.array(["toy"] * 3, object),
            "extra_info": np.array([{"logprob": value} for value in logprob], object),
        },
    )
    manager = NaiveRewardManager(tokenizer, num_examine=0, compute_score=score_function)
    scored = manager(data, return_dict=True)
    assert scored["reward_tensor"].tolist() == [[0.0, 1.0], [0.0, -0.5], [0.0, -2.0]]
    assert scored["reward_extra_info"]["acc"] == [1.0, 0.0, 0.0]


# ---- the agent loop


class Server:
    """Plays verl's client of a vLLM server that runs our logits processor: draws from the trie, evenly."""

    def __init__(self, trie, logprobs=True):
        self.trie, self.logprobs, self.asked = trie, logprobs, []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **media):
        self.asked.append((prompt_ids, sampling_params))
        rng, tokens, logprobs = np.random.default_rng(len(self.asked)), [], []
        while len(children := self.trie.children(tokens)):
            tokens.append(int(rng.choice(children)))
            logprobs.append(-float(np.log(len(children))))
        return TokenOutput(token_ids=[*tokens, served.END], log_probs=[*logprobs, 0.0] if self.logprobs else None)


def rollouts(server, target, number, tokenizer=None):
    """What the agent loop answers, made as verl's worker makes it and run `number` times."""
    rollout = {"prompt_length": 8, "response_length": 4}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    wrap = getattr(agent_loop, "DictConfigWrap", getattr(agent_loop, "_DummyConfig", None))
    fields = {
        "raw_prompt": [{"role": "user", "content": "t40 t41"}],
        "data_source": "toy",
        "reward_model": {"ground_truth": target},
    }

    async def run():
        loop = SidAgentLoop(
            trainer_config=wrap(config),
            server_manager=server,
            tokenizer=tokenizer or words(),
            processor=None,
            dataset_cls=SimpleNamespace,
            data_config=wrap(config.data),
        )
        params = {"temperature": 1.0, "top_p": 1.0, "logprobs": False, "extra_args": {"other": 1}}
        return [await loop.run(params, **fields) for _ in range(number)]

    return asyncio.run(run())


def test_rollouts_are_scored_where_they_are_drawn():
    trie = served.catalogue()
    target = trie.sids()[0][7].tolist()
    server = Server(trie)
    outputs = rollouts(server, " ".join(served.WORDS[token] for token in target), 300)
    for output in outputs:
        assert output.prompt_ids == [40, 41]
        assert trie.lookup([output.response_ids[:3]])[0] >= 0
        s, hit = sum(output.response_logprobs), output.response_ids[:3] == target
        assert output.reward_score == (-s if hit else s)
        assert output.extra_fields["reward_extra_info"] == {"score": output.reward_score, "acc": float(hit)}
    assert any(output.reward_score > 0 for output in outputs)
    prompt, params = server.asked[0]
    assert prompt == [40, 41]
    assert params["extra_args"] == {"other": 1, "sid_start": "output"}
    assert params["logprobs"] is True


def test_verl_finds_the_agent_loop_by_its_name():
    registered = agent_loop._agent_loop_registry["ugr"]
    assert registered == {"_target_": "ugr_fast.integrations.verl.SidAgentLoop"}


def test_a_server_without_log_probs_is_refused():
    with pytest.raises(ValueError, match="must come with log-probs"):
        rollouts(Server(served.catalogue(), logprobs=False), "t3", 1)


def test_semantic_ids_of_special_tokens_are_refused():
    tokenizer = words()
    tokenizer.add_special_tokens({"additional_special_tokens": served.WORDS[3:30]})
    with pytest.raises(ValueError, match="as ordinary ones, not as special ones"):
        rollouts(Server(served.catalogue()), "t3", 1, tokenizer)
