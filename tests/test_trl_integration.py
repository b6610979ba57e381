"""UGR inside TRL's own trainer: what it earns, finds, loses and learns equals what the package does by itself."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ugr_fast import SidTrie, rewards, rl
from ugr_fast.configs import RlConfig
from ugr_fast.decode import beam_search
from ugr_fast.lora import Reference
from ugr_fast.model import pad_left
from ugr_fast.run import Learner

trl = pytest.importorskip("trl", minversion="1.8", reason="trl is not installed")
datasets, tokenizers, transformers = map(pytest.importorskip, ("datasets", "tokenizers", "transformers"))

from ugr_fast.integrations.trl import UGRConfig, UGRTrainer, make_reward, make_rollout  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
]

CATALOGUE = tiny.catalogue()
GROUP = 6
HISTORIES = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11, 12]]


def tokenizer(size):
    """Token i is the word w<i>; token 0 pads."""
    words = tokenizers.models.WordLevel({f"w{token}": token for token in range(size)}, unk_token="w0")
    words_only = tokenizers.Tokenizer(words)
    words_only.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="w0")


def text(tokens):
    return " ".join(f"w{token}" for token in tokens)


def table(catalogue, items, histories=HISTORIES):
    prompts = [text(catalogue.prompt(history)) for history in histories]
    return {"prompt": prompts, "target": [catalogue.item_tokens[item].tolist() for item in items]}


def make(kind, folder, catalogue, model, items=(13, 14, 15, 16, 17), histories=HISTORIES, **options):
    """A trainer of TRL's or ours, ready as if `train` had begun."""
    ours = kind is UGRTrainer
    arguments = {name: options.pop(name) for name in ("reward_funcs", "rollout_func", "peft_config") if name in options}
    arguments |= {"trie": catalogue.trie, "vocabulary": catalogue.vocabulary} if ours else {}
    plain = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
    defaults = {"num_generations": GROUP, "per_device_train_batch_size": len(histories) * GROUP, **plain}
    made = kind(
        model=model,
        args=(UGRConfig if ours else trl.GRPOConfig)(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=datasets.Dataset.from_dict(table(catalogue, items, histories)),
        processing_class=tokenizer(catalogue.vocabulary.size),
        **arguments,
    )
    made.current_gradient_accumulation_steps = 1  # what `train` would set
    made.model.train()
    return made


def rows_of(catalogue, items, group=GROUP, histories=HISTORIES):
    """What TRL's data loader gives: every row of the data set `group` times."""
    columns = table(catalogue, items, histories)
    return [
        {"prompt": prompt, "target": target}
        for prompt, target in zip(columns["prompt"], columns["target"], strict=True)
        for _ in range(group)
    ]


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def moved(model, seed=0):
    """Shift the weights in place, so that ratios to the policy of the rollout are not 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.std(correction=0))


# ---- rewards

SIDS = [[1, 2, 3], [1, 2, 4], [1, 5], [6, 2, 3], [6, 7, 8]]  # ragged
TRIE = SidTrie.build(SIDS)
WIDE = np.array([row + [-1] * (3 - len(row)) for row in SIDS])


@st.composite
def groups_in_any_order(draw):
    """Groups of candidates with scores, some absent, a target for each, and an order in which rows are handed over."""
    num_groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = (num_groups, size)
    candidates = np.array(draw(st.lists(st.integers(0, 4), min_size=num_groups * size, max_size=num_groups * size)))
    scores = np.array(draw(st.lists(st.integers(-4, -1), min_size=candidates.size, max_size=candidates.size)), float)
    absent = np.array(draw(st.lists(st.booleans(), min_size=candidates.size, max_size=candidates.size)))
    scores[absent] = -np.inf
    targets = draw(st.lists(st.integers(0, 4), min_size=num_groups, max_size=num_groups))
    groups = draw(st.permutations(np.repeat(np.arange(num_groups), size).tolist()))
    return candidates.reshape(shape), scores.reshape(shape), targets, groups


def reward_of_beams(name, beams, target, scores, there):
    """The reward of a group in beam order, straight from `ugr_fast.rewards`."""
    if name == "match":
        return rewards.match(beams, target)
    if name == "prefix_match":
        return rewards.prefix_match(beams, target)
    hits = rewards.match(beams, target)
    if name != "uncertainty_weighted":
        return getattr(rewards, name)(hits, mask=there)
    lengths = np.maximum((beams >= 0).sum(2), 1)
    return rewards.uncertainty_weighted(hits, scores, lengths=lengths, temperature=0.5, mask=there)


@pytest.mark.parametrize("name", ["match", "prefix_match", "ndcg", "ranking", "uncertainty_weighted"])
@given(case=groups_in_any_order())
@settings(max_examples=40)
def test_rewards_are_those_of_groups_in_beam_order_wherever_their_rows_stand(name, case):
    candidates, scores, targets, groups = case
    tokens, target = WIDE[candidates], WIDE[targets]
    tokens = np.where(np.isneginf(scores)[..., None], -1, tokens)
    expected = np.empty(scores.shape)
    for row in range(len(tokens)):
        order = np.argsort(-scores[row], kind="stable")
        there = (scores[row] > -np.inf)[order][None]
        beams = tokens[row, order][None]
        found = reward_of_beams(name, beams, target[row][None], scores[row, order][None], there)
        expected[row, order] = np.where(there, found, np.nan)[0]
    seen = {group: iter(range(scores.shape[1])) for group in range(len(tokens))}
    places = [(group, next(seen[group])) for group in groups]  # rows of several groups may alternate
    endings = [[9], [], [9, 9]]  # what comes after a semantic ID is not read
    got = make_reward(name, TRIE, temperature=0.5)(
        prompts=None,
        completions=None,
        completion_ids=[
            ([int(t) for t in tokens[place] if t >= 0] or [0]) + endings[number % 3]
            for number, place in enumerate(places)
        ],
        target=[[int(t) for t in target[group] if t >= 0] for group in groups],
        sid_group=groups,
        sid_score=[scores[place] for place in places],
        trainer_state=None,
    )
    np.testing.assert_array_equal(
        np.array(got, dtype=float), np.array([expected[place] for place in places]).astype(float)
    )


def test_rewards_of_one_completion_need_no_rollout_of_ours():
    completions = [[1, 2, 3], [1, 2, 9], [9], [1, 5, 7, 7], [1, 2]]
    columns = {"next": [[1, 2, 3]] * 3 + [[1, 5, -1], [1, 2, 4]]}
    assert make_reward("match", TRIE, target="next")(completion_ids=completions, **columns) == [1, 0, 0, 1, 0]
    found = make_reward("prefix_match", TRIE, target="next")(completion_ids=completions, **columns)
    assert found == pytest.approx([1, 2 / 3, 0, 1, 2 / 3])


def test_rewards_say_what_they_miss():
    with pytest.raises(ValueError, match="`name` must be one of match"):
        make_reward("hits", TRIE)
    reward, one = make_reward("uncertainty_weighted", TRIE), [[1, 5]]
    assert reward.__name__ == "uncertainty_weighted"
    with pytest.raises(ValueError, match="`sid_group` must come with the rollout"):
        reward(completion_ids=one, target=one)
    with pytest.raises(ValueError, match="`sid_score` must come with the rollout"):
        reward(completion_ids=one, target=one, sid_group=[0])
    with pytest.raises(ValueError, match=r"groups of one size, got sizes \[2, 1\]"):
        reward(completion_ids=one * 3, target=one * 3, sid_group=[0, 0, 1], sid_score=[-1.0] * 3)
    with pytest.raises(ValueError, match="'target' is none; there are"):
        reward(completion_ids=one, next=one)
    with pytest.raises(ValueError, match=r"semantic IDs of `trie`, got \[1, 2\]"):
        reward(completion_ids=one, target=[[1, 2]])


# ---- the rollout in an unmodified trainer


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """TRL's own trainer with our rollout and two of our rewards."""
    funcs = [make_reward(name, CATALOGUE.trie) for name in ("uncertainty_weighted", "match")]
    rollout = make_rollout(CATALOGUE.trie)
    options = {"reward_funcs": funcs, "rollout_func": rollout, "reward_weights": [1.0, 0.0]}
    return make(
        trl.GRPOTrainer, tmp_path_factory.mktemp("stock"), CATALOGUE, tiny.model(CATALOGUE.vocabulary), **options
    )


def test_the_rollout_searches_once_per_prompt_and_answers_every_row(stock, monkeypatch):
    asked = []

    def watched(model, input_ids, *given, **options):
        asked.append((len(input_ids), model.training))
        return beam_search(model, input_ids, *given, **options)

    monkeypatch.setattr("ugr_fast.integrations.trl.beam_search", watched)
    prompts = [CATALOGUE.prompt(history) for history in HISTORIES]
    chats = [[{"role": "user", "content": text(prompt)}] for prompt in prompts]
    stock.processing_class.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    beams = beam_search(stock.model, *pad_left(prompts, 0), CATALOGUE.trie, num_beams=GROUP)
    for form in ([text(prompt) for prompt in prompts], prompts, chats):
        found = stock.rollout_func([prompt for prompt in form for _ in range(GROUP)], stock)
        assert found["prompt_ids"] == [prompt for prompt in prompts for _ in range(GROUP)]
        assert found["completion_ids"] == beams.tokens.flatten(0, 1).tolist()
        assert found["logprobs"] == beams.logprobs.flatten(0, 1).tolist()
        assert found["sid_score"] == beams.scores.flatten().tolist()
        assert found["sid_item"] == beams.items.flatten().tolist()
        assert found["sid_group"] == np.repeat(np.arange(5), GROUP).tolist()
        assert "env_mask" not in found
    assert asked == [(5, False)] * 3
    assert stock.model.training


def test_log_probs_of_the_rollout_are_those_of_trl(stock):
    scored = stock._generate_and_score_completions(rows_of(CATALOGUE, range(13, 18)))
    ids, mask = (torch.cat([scored[f"prompt_{x}"], scored[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    with torch.no_grad():
        theirs = stock._get_per_token_logps_and_entropies(stock.model, ids, mask, 3)[0]
    torch.testing.assert_close(scored["sampling_per_token_logps"].double(), theirs.double(), rtol=1e-5, atol=1e-5)


def test_rewards_and_advantages_in_an_unmodified_trainer_are_ours(stock):
    job = job_of(CATALOGUE, stock.model.eval())
    batch = rolled_out(job)
    items = liked(batch, CATALOGUE)
    batch = rolled_out(job, items)
    stock.model.train()
    scored = stock._generate_and_score_completions(rows_of(CATALOGUE, items))
    assert batch.hits.any()
    torch.testing.assert_close(scored["advantages"].reshape(5, GROUP).double(), batch.advantages, rtol=1e-4, atol=1e-5)


def test_absent_candidates_are_masked_in_an_unmodified_trainer(tmp_path):
    few = tiny.catalogue(4)
    model = tiny.model(few.vocabulary)
    options = {"reward_funcs": make_reward("match", few.trie), "rollout_func": make_rollout(few.trie), "beta": 0.0}
    histories, items = [[1, 2, 3], [0]], [2, 3]
    trainer = make(trl.GRPOTrainer, tmp_path, few, model, items, histories, loss_type="dapo", **options)
    scored = trainer._generate_and_score_completions(rows_of(few, items, GROUP, histories))
    there = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2).flatten().bool()
    assert scored["tool_mask"][:, 0].bool().tolist() == there.tolist()
    assert (scored["advantages"][~there] == 0).all()
    assert scored["advantages"].reshape(2, -1).std(1).min() > 0
    expected = rl.group_advantages(rewards.match(scored["completion_ids"].reshape(2, 6, 3)[:, :4], targets(few, items)))
    torch.testing.assert_close(scored["advantages"].reshape(2, 6)[:, :4], expected, rtol=1e-5, atol=1e-5)
    assert scored["num_items_in_batch"] == 2 * 4 * 3
    trainer._compute_loss(trainer.model, scored).backward()
    before = gradients_of(model)
    model.zero_grad()
    scored["completion_ids"][~there] = 3  # whatever stands there
    trainer._compute_loss(trainer.model, scored).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, before[name], rtol=0, atol=0)


def targets(catalogue, items):
    return torch.from_numpy(catalogue.item_tokens[list(items)])


def test_the_rollout_refuses_what_it_would_get_wrong(stock, tmp_path):
    prompts = ["w1 w9"] * 4 + ["w1 w8"] * 8
    with pytest.raises(ValueError, match="whole groups of 6, got 12 in other order"):
        stock.rollout_func(prompts, stock)
    with pytest.raises(ValueError, match="whole groups of 6, got 4"):
        stock.rollout_func(prompts[:4], stock)
    with pytest.raises(ValueError, match="`trie` must not begin with the padding token, 0"):
        make_rollout(SidTrie.build([[0, 1], [3, 4]]))(["w1"] * GROUP, stock)
    options = {"reward_funcs": make_reward("match", CATALOGUE.trie), "mask_truncated_completions": True}
    masked = make(trl.GRPOTrainer, tmp_path, CATALOGUE, stock.model, rollout_func=stock.rollout_func, **options)
    with pytest.raises(ValueError, match="`mask_truncated_completions` must be False"):
        masked.rollout_func(["w1"] * GROUP, masked)
    stock.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="without DeepSpeed and FSDP"):
        stock.rollout_func(["w1"] * GROUP, stock)
    stock.is_fsdp_enabled = False


def test_draws_follow_torch_and_come_with_inclusion(stock):
    rollout = make_rollout(CATALOGUE.trie, method="stochastic", normalize="allowed")
    prompts = [prompt for prompt in ("w1 w9", "w1 w8") for _ in range(GROUP)]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(rollout(prompts, stock))
    assert found[0] == found[1]
    assert found[0]["completion_ids"] != found[2]["completion_ids"]
    assert all(0 < chance <= 1 for chance in found[0]["sid_inclusion"])
    state = torch.get_rng_state()
    stock.rollout_func(prompts, stock)
    assert torch.equal(torch.get_rng_state(), state)  # a beam search draws nothing


# ---- our trainer

CONFIG = RlConfig(run=Path("run"), data=Path("data"), out=Path("out"), group=GROUP, micro_batch_size=0)


def job_of(catalogue, model, config=CONFIG, reference=None):
    return rl.Job(config, Learner.make(model, config.lr, config.weight_decay), catalogue, reference)


def rolled_out(job, items=(13, 14, 15, 16, 17), histories=HISTORIES):
    prompts = [job.catalogue.prompt(history) for history in histories]
    return rl.appraise(job, prompts, rl.roll_out(job, prompts, np.array(items)))


def liked(batch, catalogue):
    """Targets at ranks 0, 1 and 3 of the model's own beams, and two that it does not find, if there are any."""
    found = [int(catalogue.trie.lookup(batch.tokens[row, beam][None].numpy())[0]) for row, beam in enumerate((0, 1, 3))]
    missed = [
        i for i, sid in enumerate(catalogue.item_tokens.tolist()) if sid not in batch.tokens[3:].flatten(0, 1).tolist()
    ]
    return found + [*missed, 0, 1][: len(batch) - 3]


CASES = {  # the catalogue, TRL's settings beside those that the two share, rl's in their terms, those shared
    "released": ({}, {}, {}, {}),
    "ragged": ({"ragged": True}, {}, {}, {"normalize": "sid", "lambda_partial": 0.3}),
    "brier": ({}, {}, {}, {"confidence": "brier", "lambda_brier": 0.7, "difficulty": "none", "normalize": "allowed"}),
    "logit": ({}, {"epsilon_high": 0.3}, {"clip_high": 0.3}, {"confidence": "logit", "difficulty": "probability"}),
    "no confidence": ({}, {"scale_rewards": "batch"}, {"scale": "batch"}, {"confidence": "none", "alpha_min": 0.5}),
    "dapo": ({"ragged": True}, {"loss_type": "dapo"}, {"loss": "dapo"}, {"gamma": 0.9, "confidence": "brier"}),
    "dr_grpo": ({}, {"loss_type": "dr_grpo", "max_completion_length": 3}, {"loss": "dr_grpo"}, {}),
    "gspo": ({}, {"importance_sampling_level": "sequence"}, {"loss": "gspo"}, {"difficulty": "discount"}),
    "cispo": ({}, {"loss_type": "cispo", "epsilon_high": 2.0}, {"loss": "cispo", "clip_high": 2.0}, {}),
    "kl": ({}, {"beta": 0.2, "use_bias_correction_kl": False}, {"beta": 0.2}, {"normalize": "sid"}),
    "few items": ({"num_items": 4}, {}, {}, {"alpha_min": 0.2}),
    "few items, dr_grpo": (
        {"num_items": 4},
        {"loss_type": "dr_grpo", "max_completion_length": 3},
        {"loss": "dr_grpo"},
        {"confidence": "brier"},
    ),
    "few items, dapo": ({"num_items": 4}, {"loss_type": "dapo"}, {"loss": "dapo"}, {"alpha_min": 0.2}),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_those_of_our_own_trainer(tmp_path, case):
    """On TRL's rollout, advantages and forward, with weights that have moved since; in float64."""
    chosen, theirs, ours, shared = CASES[case]
    catalogue = tiny.catalogue(**chosen)
    model = tiny.model(catalogue.vocabulary, spread=2.0)
    model.save_pretrained(tmp_path / "start")  # where TRL looks for the reference of the KL
    model.config._name_or_path = str(tmp_path / "start")
    histories = [[item % len(catalogue.item_tokens) for item in history] for history in HISTORIES]
    job = job_of(
        catalogue, model, dataclasses.replace(CONFIG, **ours, **shared), Reference(model) if "beta" in ours else None
    )
    items = liked(rolled_out(job, [0] * 5, histories), catalogue)
    batch = rolled_out(job, items, histories)
    options = {"num_iterations": 2, "per_device_train_batch_size": 5 * GROUP, **theirs, **shared}
    trainer = make(UGRTrainer, tmp_path, catalogue, model, items, histories, **options)
    if "beta" in ours:
        trainer.ref_model = copy.deepcopy(model)  # TRL's own has transformers' norms, which round to float32
    scored = trainer._generate_and_score_completions(rows_of(catalogue, items, GROUP, histories))
    advantages = torch.tensor([*trainer._logs["advantages"]], dtype=torch.float64).reshape(5, GROUP)
    torch.testing.assert_close(advantages, batch.advantages, rtol=1e-4, atol=1e-5)  # TRL's are in float32
    batch = dataclasses.replace(batch, advantages=advantages)
    moved(model)
    loss = trainer._compute_loss(trainer.model, scored)
    loss.backward()
    found = gradients_of(model)
    model.zero_grad()
    parts = rl.backward(job, batch)
    assert batch.hits.any(1).sum() >= 3
    assert loss.item() == pytest.approx(parts["loss"], rel=1e-9, abs=1e-12)
    expected = gradients_of(model)
    assert found.keys() == expected.keys()
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


def test_importance_weights_are_those_of_our_own_trainer(tmp_path):
    model = tiny.model(CATALOGUE.vocabulary, spread=2.0)
    items = liked(rolled_out(job_of(CATALOGUE, model)), CATALOGUE)
    shared = {"normalize": "allowed", "rollout": "stochastic"}
    options = {"reward_funcs": make_reward("prefix_match", CATALOGUE.trie), "importance_weights": True, **shared}
    trainer = make(UGRTrainer, tmp_path, CATALOGUE, model, items, **options)
    inputs = rows_of(CATALOGUE, items)
    scored = trainer._generate_and_score_completions(inputs)
    columns = {
        name: torch.tensor([row[name] for row in inputs]).reshape(5, GROUP) for name in inputs[0] if "sid_" in name
    }
    drawn = rl.Candidates(
        target=targets(CATALOGUE, items),
        target_item=torch.tensor(items),
        tokens=scored["completion_ids"],
        items=columns["sid_item"],
        logprobs=scored["sampling_per_token_logps"].double(),
        scores=columns["sid_score"].double(),
        inclusion=columns["sid_inclusion"],
    )
    config = dataclasses.replace(CONFIG, reward="prefix_match", scale="importance", **shared)
    job = job_of(CATALOGUE, model, config)
    batch = rl.appraise(job, [CATALOGUE.prompt(history) for history in HISTORIES], drawn)
    assert batch.advantages.abs().max() > 0.1
    loss = trainer._compute_loss(trainer.model, scored)
    assert loss.item() == pytest.approx(rl.backward(job, batch)["loss"], rel=1e-5)


@pytest.mark.parametrize("loss_type", ["bnpo", "sapo", "luspo", "vespo"])
def test_losses_of_trl_that_we_do_not_have_are_linear_in_advantages(tmp_path, loss_type):
    model = tiny.model(CATALOGUE.vocabulary, spread=2.0)
    items = liked(rolled_out(job_of(CATALOGUE, model)), CATALOGUE)
    settings = {"loss_type": loss_type, "num_iterations": 2, "confidence": "none", "difficulty": "none"}
    trainer = make(UGRTrainer, tmp_path, CATALOGUE, model, items, **settings)
    scored = trainer._generate_and_score_completions(rows_of(CATALOGUE, items))
    moved(model)
    whole = trainer._compute_loss(model, scored).item()
    part = trainer._compute_loss(model, {**scored, "advantages": 0.25 * scored["advantages"]}).item()
    assert abs(whole) > 1e-4
    assert part == pytest.approx(0.25 * whole, rel=1e-9)


def test_groups_stay_whole_through_shuffles_and_micro_batches(tmp_path):
    """Two micro-batches of two groups: their losses add up to that of all four."""
    model = tiny.model(CATALOGUE.vocabulary, spread=2.0)
    items = liked(rolled_out(job_of(CATALOGUE, model)), CATALOGUE)[:4]
    options = {"per_device_train_batch_size": 2 * GROUP, "gradient_accumulation_steps": 2, "confidence": "brier"}
    trainer = make(UGRTrainer, tmp_path, CATALOGUE, model, items, HISTORIES[:4], **options)
    trainer.current_gradient_accumulation_steps = 2
    assert trainer.args.steps_per_generation == 2
    losses = []
    for _ in range(2):
        inputs = trainer._prepare_inputs(rows_of(CATALOGUE, items, GROUP, HISTORIES[:4]))
        assert inputs["completion_ids"].shape == (2, GROUP, 3)
        assert (inputs["prompt_ids"] == inputs["prompt_ids"][:, :1]).all()
        losses.append(trainer._compute_loss(trainer.model, inputs).item())
        trainer._step += 1
    job = job_of(CATALOGUE, model, dataclasses.replace(CONFIG, confidence="brier"))
    assert sum(losses) == pytest.approx(rl.backward(job, rolled_out(job, items, HISTORIES[:4]))["loss"], rel=1e-5)
    assert losses[0] != losses[1]


SMALL = tiny.catalogue(24, sizes=(6, 6))


def learned(kind, tmp_path, steps, **options):
    """A trainer whose model, of random weights at first, has been rewarded for knowing which item follows which."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=SMALL.vocabulary.size, **sizes))
    histories, items = [[item] for item in range(24)], [(item + 1) % 24 for item in range(24)]
    settings = {"learning_rate": 1e-3, "max_steps": steps, "logging_steps": 10, "lr_scheduler_type": "constant"}
    trainer = make(kind, tmp_path, SMALL, model, items, histories, num_generations=12, **settings, **options)
    trainer.train()
    return trainer


BATCHES = {"per_device_train_batch_size": 12 * 12, "gradient_accumulation_steps": 2}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_our_trainer_finds_the_next_item_more_and_more_often(tmp_path):
    trainer = learned(UGRTrainer, tmp_path, 60, per_device_eval_batch_size=5 * 12, **BATCHES)
    rates = [log["hit_rate@1"] for log in trainer.state.log_history if "hit_rate" in log]
    found = [log["hit_rate"] for log in trainer.state.log_history if "hit_rate" in log]
    assert found[0] < 0.75  # 0.5 by chance
    assert found[-1] > 0.9
    assert rates[-1] > rates[0] + 0.1
    before = copy.deepcopy(trainer.model.state_dict())
    evaluated = trainer.evaluate(trainer.train_dataset)
    assert evaluated["eval_hit_rate"] > 0.9
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_an_unmodified_trainer_learns_from_rollout_and_rewards(tmp_path):
    funcs = [make_reward(name, SMALL.trie) for name in ("uncertainty_weighted", "match")]
    options = {"reward_funcs": funcs, "rollout_func": make_rollout(SMALL.trie), "reward_weights": [1.0, 0.0]}
    trainer = learned(trl.GRPOTrainer, tmp_path, 60, **options, **BATCHES)
    rates = [12 * log["rewards/match/mean"] for log in trainer.state.log_history if "rewards/match/mean" in log]
    assert rates[0] < 0.75  # 0.5 by chance
    assert rates[-1] > 0.9


def test_adapters_train(tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = learned(UGRTrainer, tmp_path, 2, peft_config=adapters, beta=0.1, confidence="brier", **BATCHES)
    moved_rows = [p.abs().max() > 0 for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert moved_rows
    assert all(moved_rows)


REFUSED = {
    "use_liger_kernel": True,
    "temperature": 0.7,
    "entropy_coef": 0.1,
    "use_adaptive_entropy": True,
    "top_entropy_quantile": 0.5,
    "per_device_train_batch_size": 9,
    "importance_weights": True,
    "rollout_func": lambda prompts, trainer: {},
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_go_with_trees_are_refused(tmp_path, name):
    model = tiny.model(CATALOGUE.vocabulary)
    options = {"gradient_accumulation_steps": 4} if name == "per_device_train_batch_size" else {}
    with pytest.raises(ValueError, match=f"`{name}` must "):
        make(UGRTrainer, tmp_path, CATALOGUE, model, **options, **{name: REFUSED[name]})


@pytest.mark.parametrize("name", ["use_vllm", "deepspeed", "fsdp", "world_size"])
def test_backends_that_cannot_run_packed_trees_are_refused(tmp_path, name, monkeypatch):
    args = UGRConfig(str(tmp_path), use_cpu=True, bf16=False)
    monkeypatch.setattr(UGRConfig, name, 2, raising=False)
    args.__dict__.pop(name, None)
    with pytest.raises(ValueError, match=f"`{name}` must "):
        UGRTrainer(None, args=args, trie=TRIE, vocabulary=None)


def test_models_and_configs_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`model` must be a dense one"):
        make(UGRTrainer, tmp_path, CATALOGUE, tiny.model(CATALOGUE.vocabulary, "mistral"))
    with pytest.raises(TypeError, match="`args` must be a UGRConfig, got GRPOConfig"):
        UGRTrainer(None, args=trl.GRPOConfig(str(tmp_path), use_cpu=True, bf16=False), trie=TRIE, vocabulary=None)
