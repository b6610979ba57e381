"""UGR inside verl: advantages of groups, a score of one sample, and rollouts that stay in a catalogue.

    export VERL_USE_EXTERNAL_MODULES=ugr_fast.integrations.verl  # registers what stands below
    python -m verl.trainer.main_ppo algorithm.adv_estimator=ugr algorithm.use_kl_in_reward=False ...

verl scores one sample at a time, and hands estimators one number per sample. UGR's rewards need two: whether a sample
hits, and how likely the policy finds it. So the score of a sample is *signed*. With s the sum of its token log-probs,
which is below 0:

    score = -s    for a hit, above 0
             s    for a miss, below 0

The estimators take it apart again and do the rest for whole groups:

| `algorithm.adv_estimator` | reward | advantages are multiplied by |
|---|---|---|
| `ugr` | `rewards.uncertainty_weighted` | `rewards.difficulty_weight` of the group |
| `ugr_uncertainty` | `rewards.uncertainty_weighted` | – |
| `ugr_difficulty` | 1 for a hit, 0 for a miss | `rewards.difficulty_weight` of the group |
| `ugr_ranking` | `rewards.ranking`, ranks by falling s | – |

verl's policy losses are linear in the size of advantages, so a weight on these is a weight on the loss of the group.

`SidAgentLoop` makes signed scores and keeps answers in the catalogue. It samples: verl starts an agent loop for every
sample, in any of several processes, so no loop sees its group and none can run a beam search for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.core_algos import register_adv_est

from ugr_fast import rewards
from ugr_fast.advantages import group_advantages

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

__all__ = ["SidAgentLoop", "advantage_estimator", "compute_score"]

Reward: TypeAlias = Literal["match", "ranking", "uncertainty_weighted"]
Estimator: TypeAlias = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_REWARDS = ("match", "ranking", "uncertainty_weighted")
_LEAST = 2.0**-100  # of a log-prob's size: float32 holds it, and it has a sign


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **settings: Any
) -> dict[str, float]:
    """Score one sample, for `custom_reward_function` of verl: the signed score, see above, and "acc", 1 for a hit.

    verl validates by "acc" where a score function gives one. Without a log-prob the score is 1 for a hit and 0 for a
    miss: good for verl's own estimators, which want plain rewards, and refused by those above.

    Args:
        data_source: not used.
        solution_str: the text of the answer, without special tokens; so the tokens of semantic IDs must not be special.
        ground_truth: the text of the target's semantic ID. White space between tokens does not count.
        extra_info: may hold "logprob", the sum of the answer's token log-probs; at most 0.
        settings: what `custom_reward_function.reward_kwargs` adds; not used.

    Returns:
        "score" and "acc".

    Raises:
        ValueError: an empty `ground_truth`, a log-prob that is none.

    Example:
        >>> compute_score("beauty", "<a_1><b_2>", "<a_1><b_2>", {"logprob": -1.5})
        {'score': 1.5, 'acc': 1.0}
        >>> compute_score("beauty", "<a_1><b_3>", "<a_1><b_2>", {"logprob": -1.5})
        {'score': -1.5, 'acc': 0.0}

    Source: `verl.trainer.ppo.reward.get_custom_reward_fn`.
    """
    target = "".join(ground_truth.split())
    if not target:
        raise ValueError(f"`ground_truth` must be the text of a semantic ID, got {ground_truth!r}")
    hit = "".join(solution_str.split()) == target
    if "logprob" not in (extra_info or {}):
        return {"score": float(hit), "acc": float(hit)}
    logprob = float(extra_info["logprob"])
    if not -np.inf < logprob <= 1e-3:  # a sum of roundings may lie a little above 0
        raise ValueError(
            f"`extra_info['logprob']` must be finite and at most 0, got {logprob}; sum log-probs, not logits"
        )
    s = min(logprob, -_LEAST)
    return {"score": -s if hit else s, "acc": float(hit)}


def advantage_estimator(
    reward: Reward = "uncertainty_weighted",
    *,
    difficulty: bool = True,
    score: Literal["mean", "sum"] = "mean",
    temperature: float = 1.0,
    alpha_min: float = 0.0,
    kind: rewards.Kind = "rank",
    eps: float = 1e-4,
) -> Estimator:
    """Return an estimator for `register_adv_est` of verl, as those above with other settings.

    Advantages are divided by the standard deviation of their group unless `algorithm.norm_adv_by_std_in_grpo` is false.
    Groups are the rows of one uid, however the batch is ordered, and may differ in size.

    Args:
        reward: what a sample earns.
        difficulty: whether advantages are multiplied by `rewards.difficulty_weight` of their group.
        score: of `rewards.uncertainty_weighted`; lengths are the tokens that the response mask counts.
        temperature: of the same.
        alpha_min: of `rewards.difficulty_weight`.
        kind: of the same.
        eps: of `group_advantages`.

    Returns:
        fn(token_level_rewards (N, L), response_mask (N, L), index (N,), config) -> advantages and returns, both (N, L).
        It raises ValueError for rewards that are no signed scores.

    Raises:
        ValueError: an unknown `reward`.

    Example:
        >>> softer = register_adv_est("ugr_soft")(advantage_estimator(score="sum", temperature=4.0, alpha_min=0.2))
        >>> signed = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, -4.0]])  # a hit of s -2, misses of -1 and -4
        >>> advantages, _ = softer(signed, torch.ones(3, 2), np.array(["u", "u", "u"]))
        >>> [[round(value, 3) for value in row] for row in advantages.tolist()]
        [[0.678, 0.678], [-0.461, -0.461], [-0.218, -0.218]]

    Source: UGR (arXiv 2602.11719) §3; `verl.trainer.ppo.core_algos.register_adv_est`.
    """
    if reward not in _REWARDS:
        raise ValueError(f"`reward` must be one of {', '.join(_REWARDS)}, got {reward!r}")

    def estimate(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: NDArray[Any],
        config: Any = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hits, scores = _unsigned(token_level_rewards)
        groups, places = _in_beam_order(index, scores)
        lengths = response_mask.sum(1).cpu().numpy()
        present = np.ones(len(hits), np.bool_)
        hit, s, n, mask = (_table(groups, places, values) for values in (hits, scores, lengths, present))  # (B, G)
        if reward == "uncertainty_weighted":
            earned = rewards.uncertainty_weighted(hit, s, score=score, lengths=n, temperature=temperature, mask=mask)
        else:
            earned = rewards.ranking(hit, mask=mask) if reward == "ranking" else hit.astype(np.float64)
        by_std = config is None or config.get("norm_adv_by_std_in_grpo", True)
        table = group_advantages(earned, scale="std" if by_std else "none", eps=eps, mask=mask)
        if difficulty:
            table = table * rewards.difficulty_weight(hit, s, alpha_min=alpha_min, kind=kind, mask=mask)[:, None]
        advantages = torch.from_numpy(table[groups, places]).to(token_level_rewards)[:, None] * response_mask
        return advantages, advantages

    return estimate


register_adv_est("ugr")(advantage_estimator())
register_adv_est("ugr_uncertainty")(advantage_estimator(difficulty=False))
register_adv_est("ugr_difficulty")(advantage_estimator("match"))
register_adv_est("ugr_ranking")(advantage_estimator("ranking", difficulty=False))


@register("ugr")
class SidAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's single-turn agent loop with answers that are semantic IDs, and with signed scores.

    The constraint is that of `ugr_fast.integrations.vllm` inside verl's vLLM servers. verl passes on what stands under
    `actor_rollout_ref.rollout.engine_kwargs.vllm`: `logits_processors` and `additional_config`; `separator` is not
    needed. Worker processes find this class through a file named by `agent_loop_config_path`:

        - name: ugr
          _target_: ugr_fast.integrations.verl.SidAgentLoop

    A rollout is scored right away, by `compute_score`; verl's reward manager then leaves it alone. Log-probs are those
    of the server: over the allowed tokens with `logprobs_mode=processed_logprobs`, else over the vocabulary.

    Raises:
        ValueError: when run, a server that answers without log-probs, or tokens that make no text.

    Source: `verl.experimental.agent_loop.single_turn_agent_loop`.
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Draw one semantic ID behind the prompt and score it; verl's signature and answer."""
        extra = {**(sampling_params.get("extra_args") or {}), "sid_start": "output"}
        output = await super().run({**sampling_params, "logprobs": True, "extra_args": extra}, **kwargs)
        text = self.tokenizer.decode(output.response_ids, skip_special_tokens=True)
        if not output.response_logprobs or not text:
            raise ValueError(
                "`response_ids` must come with log-probs and make a text, got "
                f"{output.response_logprobs} and {text!r} for {output.response_ids}; add the tokens of semantic IDs to "
                "the tokenizer as ordinary ones, not as special ones"
            )
        scored = compute_score(
            kwargs["data_source"],
            text,
            kwargs["reward_model"]["ground_truth"],
            {"logprob": sum(output.response_logprobs)},
        )
        output.reward_score = scored["score"]
        output.extra_fields["reward_extra_info"] = scored
        return output


def _unsigned(token_level_rewards: torch.Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the hits (N,) and log-probs (N,) of signed scores (N, L)."""
    table = token_level_rewards.detach().cpu().double().numpy()
    signed = table.sum(1)
    crowded = (table != 0).sum(1) > 1
    if crowded.any():
        row = int(crowded.argmax())
        raise ValueError(
            f"`token_level_rewards` must hold one score per sample, got {table[row].tolist()} in row {row}; set "
            "algorithm.use_kl_in_reward=False"
        )
    odd = (signed == 0) | ~np.isfinite(signed)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(
            "`token_level_rewards` must hold signed scores, above 0 for a hit and below 0 for a miss, got "
            f"{signed[row]} in row {row}; roll out with `SidAgentLoop`, or pass `compute_score` the sum of the "
            "answer's log-probs as `extra_info['logprob']`"
        )
    return signed > 0, -np.abs(signed)


def _in_beam_order(index: NDArray[Any], scores: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the group of each row, and its place there by falling score, equal ones in the order given."""
    groups = np.unique(np.asarray(index).astype(str), return_inverse=True)[1]
    order = np.lexsort((-scores, groups))  # stable
    starts = np.searchsorted(groups[order], np.arange(groups.max(initial=-1) + 1))
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - starts[groups[order]]
    return groups, places


def _table(groups: NDArray[np.intp], places: NDArray[np.intp], values: NDArray[Any]) -> NDArray[Any]:
    """Return values (N,) as a table (B, G), 0 or false where a group is smaller than others."""
    table = np.zeros((groups.max(initial=-1) + 1, places.max(initial=-1) + 1), values.dtype)
    table[groups, places] = values
    return table
