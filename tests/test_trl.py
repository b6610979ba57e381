"""Advantages and losses equal those of TRL's own trainers on the same tensors; where they differ, it is shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import ugr_fast as uf
from ugr_fast import losses
from ugr_fast.model import packed_hidden_states
from ugr_fast.packing import pack_prefixes

trl = pytest.importorskip("trl", minversion="1.16")
datasets, tokenizers, transformers = map(pytest.importorskip, ("datasets", "tokenizers", "transformers"))

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

PROMPTS = ["a b c", "d"]
GROUP, LENGTH = 4, 3


class Numbers:
    """A reward function that gives out numbers prepared beforehand; NaN stands for no reward."""

    __name__ = "numbers"

    def __init__(self):
        self.values = []

    def __call__(self, completions, **columns):
        return [None if math.isnan(value) else value for value in self.values[: len(completions)]]


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory):
    """A real trainer of TRL around a tiny model with random weights, and the reward function that it calls."""
    folder = tmp_path_factory.mktemp("trl")
    words = {word: number for number, word in enumerate([*"abcdefgh", "<pad>", "<end>"])}
    words_only = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    words_only.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(vocab_size=len(words), **sizes, **heads))
    model.save_pretrained(folder / "model")  # where TRL finds the reference of the KL

    def make(kind="GRPO", group=GROUP, **settings):
        rewards = Numbers()
        made = getattr(trl, f"{kind}Trainer")(
            model=transformers.AutoModelForCausalLM.from_pretrained(folder / "model"),
            reward_funcs=rewards,
            args=getattr(trl, f"{kind}Config")(
                output_dir=str(folder),
                report_to="none",
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=len(PROMPTS) * group,
                num_generations=group,
                max_completion_length=LENGTH,
                **settings,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=transformers.PreTrainedTokenizerFast(
                tokenizer_object=words_only, pad_token="<pad>", eos_token="<end>"
            ),
        )
        made.current_gradient_accumulation_steps = 1  # what `train` would set
        made.model.train()
        return made, rewards

    return make


def generate(trainer, group=GROUP):
    """TRL's own rollout: completions of the tiny model, rewards, advantages."""
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(group)])


# ---- advantages


def scored(make_trainer, rewards, scale):
    """The advantages (B, G) of TRL."""
    rewards = torch.as_tensor(rewards)
    trainer, given = (
        make_trainer("RLOO", beta=0.0, normalize_advantages=False)
        if scale == "leave_one_out"
        else make_trainer(scale_rewards={"std": "group"}.get(scale, scale))
    )
    given.values = rewards.flatten().tolist()
    return generate(trainer)["advantages"].reshape(rewards.shape)


SCALES = ["std", "batch", "none", "leave_one_out"]
TABLES = {
    "0 and 1": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]],
    "uncertainty weighted": [[-0.2, 1.0, -0.5, -0.3], [1.0, -0.7, -0.25, -0.05]],
    "unscorable": [[1.0, math.nan, 0.0, 0.5], [0.25, math.nan, math.nan, -0.5]],
    "one scorable": [[1.0, 0.0, 0.5, 0.0], [math.nan, math.nan, 3.0, math.nan]],
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES)
def test_advantages_equal_trl(make_trainer, scale, table):
    rewards = np.array(TABLES[table], dtype=np.float32)
    assert min(np.nanstd(row[~np.isnan(row)]) for row in rewards) >= 1e-2 or table == "one scorable"
    expected = scored(make_trainer, rewards, scale)
    ours = torch.from_numpy(uf.group_advantages(rewards, scale=scale))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_a_group_of_equal_rewards_teaches_nothing_here_and_a_little_there(make_trainer):
    """TRL's float32 mean of equal numbers is off by a rounding, which its division by 1e-4 enlarges."""
    rewards = np.full((2, 8), 0.7, dtype=np.float32)
    trainer, given = make_trainer(group=8)
    given.values = rewards.ravel().tolist()
    theirs = generate(trainer, group=8)["advantages"]
    assert 0 < theirs.abs().max() < 2e-3
    assert (uf.group_advantages(rewards) == 0).all()


# ---- losses

LOSSES = {  # TRL's settings, ours
    "grpo": ({"loss_type": "grpo"}, {"loss": "grpo"}),
    "grpo, clip higher": (
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.28},
        {"loss": "grpo", "clip": 0.1, "clip_high": 0.28},
    ),
    "grpo, two sides": ({"loss_type": "grpo", "delta": 1.4}, {"loss": "grpo", "delta": 1.4}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"loss": "dr_grpo"}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"loss": "dapo", "clip_high": 0.28}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1},
        {"loss": "gspo", "clip": 0.1},
    ),
    "gspo, two sides": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 1.3},
        {"loss": "gspo", "delta": 1.3},
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.1}, {"loss": "cispo", "clip_high": 1.1}),
}


def random_batch(full=False):
    """Two groups of tensors (B, G, L) in float64: log-probs, those of the rollout and the reference, mask; (B, G) A."""
    torch.manual_seed(5)
    shape = (2, GROUP, LENGTH)
    old = -2 * torch.rand(shape, dtype=torch.float64)
    logprobs = (old + 0.4 * torch.randn_like(old)).requires_grad_()
    lengths = torch.full(shape[:2], LENGTH) if full else torch.tensor([[1, 3, 2, 3], [3, 1, 2, 1]])
    advantages = torch.randn(shape[:2], dtype=torch.float64)
    present = torch.arange(LENGTH) < lengths[..., None]
    return logprobs, old, old + 0.5 * torch.randn_like(old), advantages, present


def loss_of_trl(trainer, logprobs, old, reference, advantages, present):
    """What TRL's own loss makes of log-probs that are given instead of computed."""
    rows = logprobs.flatten(0, 1)
    trainer._get_per_token_logps_and_entropies = lambda *given, **options: (rows, torch.zeros_like(rows), None)
    ones = torch.ones(len(rows), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": torch.ones(rows.shape, dtype=torch.long),
        "completion_mask": present.flatten(0, 1).long(),
        "advantages": advantages.flatten(),
        "old_per_token_logps": old.flatten(0, 1),
        "ref_per_token_logps": reference.flatten(0, 1),
        "num_items_in_batch": present.sum(),
    }
    return trainer._compute_loss(trainer.model, inputs)


def assert_equal_with_gradient(ours, theirs, logprobs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    slopes = [torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (ours, theirs)]
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_clip_shares_equal_trl(make_trainer, name):
    theirs, ours = LOSSES[name]
    trainer, _ = make_trainer(**theirs)
    logprobs, old, reference, advantages, present = random_batch()
    expected = loss_of_trl(trainer, logprobs, old, reference, advantages, present)
    found = losses.policy(logprobs, old, advantages, present, **ours)
    assert_equal_with_gradient(found.mean(), expected, logprobs)
    settings = {key: value for key, value in ours.items() if key != "delta"}
    shares = losses.clip_share(logprobs, old, advantages, present, **settings)
    weights = (present.any(2) if ours["loss"] == "gspo" else present).flatten(1).sum(1)
    logged = trainer._metrics["train"]["cispo_clip_ratio" if name == "cispo" else "clip_ratio/region_mean"]
    assert 0 < logged[0] < 1
    assert ((shares * weights).sum() / weights.sum()).item() == pytest.approx(logged[0], rel=1e-6)


@pytest.mark.parametrize("name", ["grpo", "gspo", "dr_grpo", "dapo"])
def test_losses_with_kl_equal_trl(make_trainer, name):
    """TRL averages its KL as the loss beside it, ours as "grpo": the same where candidates are equally long."""
    theirs, ours = LOSSES[name]
    trainer, _ = make_trainer(beta=0.1, use_bias_correction_kl=False, **theirs)
    logprobs, old, reference, advantages, present = random_batch(full=name in ("dr_grpo", "dapo"))
    expected = loss_of_trl(trainer, logprobs, old, reference, advantages, present)
    found = losses.policy(logprobs, old, advantages, present, **ours) + 0.1 * losses.kl(logprobs, reference, present)
    assert_equal_with_gradient(found.mean(), expected, logprobs)


def test_trl_weights_its_kl_by_the_ratio_unless_told_not_to(make_trainer):
    trainer, _ = make_trainer(beta=0.1, loss_type="grpo")
    logprobs, _, reference, advantages, present = random_batch(full=True)
    old = logprobs.detach()
    theirs = loss_of_trl(trainer, logprobs, old, reference, advantages, present)
    policy = losses.policy(logprobs, old, advantages, present)
    ours = (policy + 0.1 * losses.kl(logprobs, reference, present)).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)  # the ratio is 1, but it has a gradient
    slopes = [torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (ours, theirs)]
    assert (slopes[0] - slopes[1]).abs().max() > 1e-3


def test_trl_lets_a_distant_reference_overflow(make_trainer):
    trainer, _ = make_trainer(beta=0.1, use_bias_correction_kl=False, loss_type="grpo")
    logprobs, _, _, advantages, present = (value.detach() for value in random_batch())
    logprobs, reference = logprobs.float() - 100, logprobs.float()
    assert not loss_of_trl(trainer, logprobs, logprobs, reference, advantages, present).isfinite()
    assert losses.kl(logprobs, reference, present).isfinite().all()


def test_a_training_step_on_packed_trees_equals_trl_on_its_own_rollout(make_trainer):
    """Not only the formulas: TRL's completions and its forward, against one packed row per prompt, to every weight."""
    trainer, given = make_trainer(loss_type="grpo", beta=0.0)
    given.values = np.random.default_rng(0).normal(size=2 * GROUP).tolist()
    batch = generate(trainer)
    trainer._compute_loss(trainer.model, batch).backward()
    model = trainer.model
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    tokens = batch["completion_ids"].masked_fill(batch["completion_mask"] == 0, -1).reshape(2, GROUP, -1)
    prompts = [batch["prompt_ids"][row][batch["prompt_mask"][row] == 1].tolist() for row in (0, GROUP)]
    packed = pack_prefixes(prompts, tokens.numpy())
    where = torch.from_numpy(packed.logit_index)
    logprobs = losses.token_logprobs(model, packed_hidden_states(model, packed), where, tokens)
    advantages = batch["advantages"].reshape(2, GROUP)
    losses.policy(logprobs, logprobs.detach(), advantages, tokens >= 0).mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
