"""UGR inside TRL's GRPO: rewards, a constrained rollout, and a trainer with the whole objective.

| piece | goes into | gives |
|---|---|---|
| `make_reward` | `GRPOTrainer(reward_funcs=...)` | rewards of groups of semantic IDs |
| `make_rollout` | `GRPOTrainer(rollout_func=...)` | one constrained search per prompt, not a generation per row |
| `UGRTrainer` | in place of `GRPOTrainer` | both, difficulty weights, confidence alignment, packed log-probs |

`UGRTrainer` changes what goes into TRL's loss and leaves the loss itself alone: log-probs come from one packed row per
prompt, advantages are multiplied by their group's difficulty weight (TRL's losses are linear in the size of advantages,
so w · L(A) = L(w · A)), and the confidence loss of the same forward pass is added. A group travels through TRL's
shuffling and splitting as one row.

Beams are not independent samples. docs/integrations.md says what that does to baselines and importance ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from trl import GRPOConfig, GRPOTrainer

from ugr_fast import losses, rewards
from ugr_fast.advantages import importance_weighted_advantages
from ugr_fast.decode import Beams, beam_search
from ugr_fast.model import (
    Normalize,
    check_attention,
    confidence_logits,
    packed_hidden_states,
    pad_left,
    takes_pattern,
)
from ugr_fast.packing import pack_prefixes
from ugr_fast.trie import SidTrie

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ugr_fast.beam import Method
    from ugr_fast.model import SidVocabulary

ALONE = ("match", "prefix_match")  # rewards of a completion that do not look at the rest of its group
TOGETHER = ("ndcg", "ranking", "uncertainty_weighted")
OWN = ("rollout_func", "tools", "environment_factory")  # arguments of TRL's that the trainer has answers of its own to
MEAN_OF_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")  # TRL's losses that count absent candidates in a mean


def make_reward(
    name: str,
    trie: SidTrie,
    *,
    target: str = "target",
    score: Literal["mean", "sum"] = "mean",
    temperature: float = 1.0,
) -> Callable[..., list[float | None]]:
    """Return a reward function for `GRPOTrainer`, the one of this name in `ugr_fast.rewards`.

    "match" and "prefix_match" look at one completion at a time and work with any rollout, TRL's own too. "ndcg",
    "ranking" and "uncertainty_weighted" need to know which completions stand beside each other and how likely the
    policy finds them: in the columns `sid_group` and `sid_score`, which `make_rollout` adds, or a `rollout_func` of
    your own (any number per group, all groups equally large; the sum of a completion's token log-probs, -inf for one
    that is not there). Ranks are by falling score, equal ones in the order given. An absent candidate gets None, which
    TRL leaves out of means and deviations.

    Args:
        name: "match", "prefix_match", "ndcg", "ranking" or "uncertainty_weighted".
        trie: the semantic IDs that there are. A completion counts as the one that it begins with; what follows, such
            as an end-of-sequence token, is not read.
        target: the column of the dataset with the tokens of the item that came next.
        score: of "uncertainty_weighted", see `rewards.uncertainty_weighted`.
        temperature: of "uncertainty_weighted".

    Returns:
        A function of TRL's keyword arguments; its name, under which TRL logs it, is `name`.

    Raises:
        ValueError: an unknown `name`. The function itself raises it for a target that is not in `trie`, and for a
            missing column.

    Example:
        >>> reward = make_reward("ranking", SidTrie.build([[1, 2], [1, 3], [4, 5]]))
        >>> columns = {"target": [[1, 3]] * 3, "sid_group": [0, 0, 0], "sid_score": [-1.0, -2.0, -3.0]}
        >>> [round(value, 3) for value in reward(completion_ids=[[1, 2], [1, 3], [4, 5]], **columns)]
        [-0.469, 1.0, -0.235]

    Source: TRL's custom reward functions; the rewards are those of UGR (arXiv 2602.11719) and MiniOneRec (2510.24431).
    """
    if name not in ALONE + TOGETHER:
        raise ValueError(f"`name` must be one of {', '.join(ALONE + TOGETHER)}, got {name!r}")

    def reward(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        tokens, targets = _sids(completion_ids, trie), _targets(columns, target, trie)  # (N, L) both
        hits = rewards.match(tokens[:, None], targets)[:, 0]
        if name in TOGETHER:
            lengths = (tokens >= 0).sum(1)
            earned = _of_groups(name, hits, columns, lengths=lengths, score=score, temperature=temperature)
        else:
            earned = hits if name == "match" else rewards.prefix_match(tokens[:, None], targets)[:, 0]
            earned = np.where(np.asarray(columns.get("sid_score", 0.0)) == -np.inf, np.nan, earned)
        return [None if np.isnan(value) else float(value) for value in earned]

    reward.__name__ = name
    return reward


def _sids(completion_ids: Sequence[Sequence[int]], trie: SidTrie) -> np.ndarray:
    """Return the semantic ID (N, L) that each completion begins with; its first L tokens where it begins with none."""
    table = np.full((len(completion_ids), trie.depth), -1)
    for row, tokens in zip(table, completion_ids, strict=True):
        row[: len(tokens)] = tokens[: len(row)]
    for length in range(1, trie.depth):
        table[trie.lookup(table[:, :length]) >= 0, length:] = -1
    return table


def _targets(columns: dict[str, Any], name: str, trie: SidTrie) -> np.ndarray:
    """Return the tokens (N, L) of the items that came next."""
    if name not in columns:
        raise ValueError(f"`target` must name a column of the dataset, and {name!r} is none; there are {[*columns]}")
    known = trie.lookup([[token for token in row if token != -1] for row in columns[name]]) >= 0
    if not known.all():
        row = list(columns[name][int(np.argmin(known))])
        raise ValueError(f"`target` must hold the tokens of semantic IDs of `trie`, got {row}; see vocabulary.encode")
    return _sids(columns[name], trie)


def _of_groups(
    name: str,
    hits: np.ndarray,
    columns: dict[str, Any],
    *,
    lengths: np.ndarray,
    score: Literal["mean", "sum"],
    temperature: float,
) -> np.ndarray:
    """Return the rewards (N,) of candidates that are judged beside each other, NaN for absent ones."""
    for column in ("sid_group", "sid_score"):
        if columns.get(column) is None:
            raise ValueError(
                f"`{column}` must come with the rollout for {name!r}; pass make_rollout(trie) as rollout_func"
            )
    groups, scores = np.asarray(columns["sid_group"]), np.asarray(columns["sid_score"], np.float64)
    sizes = np.unique(groups, return_counts=True)[1]
    if (sizes != sizes[0]).any():
        raise ValueError(f"`sid_group` must number groups of one size, got sizes {sizes.tolist()}")
    order = np.lexsort((-scores, groups)).reshape(len(sizes), -1)  # (B, G) rows in beam order
    hits, scores, lengths = hits[order], scores[order], lengths[order]
    present = scores != -np.inf
    earned = np.empty(len(groups))
    if name == "uncertainty_weighted":
        settings: Any = {"score": score, "temperature": temperature, "lengths": lengths}
        earned[order] = rewards.uncertainty_weighted(hits, scores, mask=present, **settings)
    else:
        earned[order] = getattr(rewards, name)(hits, mask=present)
    return earned


def make_rollout(
    trie: SidTrie,
    *,
    normalize: Normalize = "full",
    method: Method = "beam",
    vocabulary: SidVocabulary | None = None,
) -> Callable[[list[Any], Any], dict[str, Any]]:
    """Return a `rollout_func` for `GRPOTrainer`: one constrained search per prompt, as wide as its group.

    TRL hands over every prompt `num_generations` times; the search runs once for each and finds that many different
    semantic IDs, best first, in a model that is in eval mode meanwhile. A completion is a semantic ID and no more, so
    TRL counts all as clipped. Prompts are text or messages, which are tokenised as TRL does it, or lists of tokens.

    Where a prompt has fewer semantic IDs to find than `num_generations`, the rest of its rows are absent: one padding
    token that `env_mask` takes out of the loss, with the score -inf.

    Args:
        trie: the semantic IDs that may be answered.
        normalize: as in `decode.beam_search`. `GRPOTrainer` itself computes log-probs over the whole vocabulary, so
            only "full" agrees with its loss; `UGRTrainer` computes all three.
        method: "beam", "stochastic" or "sample", as in `decode.beam_search`; the latter two need normalize="allowed".
        vocabulary: needed for normalize="sid".

    Returns:
        A function of prompts and trainer. To what TRL asks for it adds columns for reward functions: `sid_group`,
        the number of the prompt; `sid_score`, the sum of log-probs; `sid_item`, the lowest item of the semantic ID or
        -1; and after a stochastic search `sid_inclusion`, the probability to be drawn.

    Raises:
        ValueError: by the function, for groups that are split between processes, for weights that are (DeepSpeed,
            FSDP), for `mask_truncated_completions`, and for a padding token that semantic IDs begin with.

    Source: TRL's `rollout_func`; the search is `decode.beam_search`.
    """

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        group, pad = _group_size(trainer), trainer.processing_class.pad_token_id
        _check_rollout(trainer, trie, pad)
        prompt_ids = [_tokenized(prompt, trainer) for prompt in _one_of_each(prompts, group)]
        seed = 0 if method == "beam" else int(torch.randint(2**62, ()))  # TRL seeds each process apart
        with _evaluated(trainer) as model:
            beams = beam_search(
                model,
                *pad_left(prompt_ids, pad),
                trie,
                num_beams=group,
                normalize=normalize,
                temperature=trainer.temperature,
                method=method,
                vocabulary=vocabulary,
                seed=seed,
            )
        return _rows([ids for ids in prompt_ids for _ in range(group)], beams, pad)

    return rollout


def _group_size(trainer: Any) -> int:
    size: int = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    return size


def _check_rollout(trainer: Any, trie: SidTrie, pad: int) -> None:
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError("`rollout_func` must find whole weights in every process; train without DeepSpeed and FSDP")
    if trainer.mask_truncated_completions:
        raise ValueError(
            "`mask_truncated_completions` must be False: semantic IDs end without an end-of-sequence token"
        )
    if pad in trie.children([]):
        raise ValueError(f"`trie` must not begin with the padding token, {pad}; set another pad_token in the tokenizer")


def _one_of_each(prompts: list[Any], group: int) -> list[Any]:
    """Return one prompt of every group, or refuse prompts that do not come in whole groups."""
    unique = prompts[::group]
    if len(prompts) % group or prompts != [prompt for prompt in unique for _ in range(group)]:
        raise ValueError(
            f"`prompts` must come in whole groups of {group}, got {len(prompts)} in other order; let "
            "per_device_train_batch_size * steps_per_generation, or per_device_eval_batch_size, be a multiple of it"
        )
    return unique


def _tokenized(prompt: Any, trainer: Any) -> list[int]:
    tokenizer = trainer.processing_class
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    if prompt and isinstance(prompt[0], dict):
        settings = {**trainer.chat_template_kwargs, "add_generation_prompt": True, "return_dict": True}
        return list(tokenizer.apply_chat_template(prompt, tokenize=True, **settings)["input_ids"])
    return list(prompt)


@contextmanager
def _evaluated(trainer: Any) -> Iterator[Any]:
    """Give the trainer's model without wraps, in eval mode: no dropout, and a cache in spite of checkpointing."""
    training = trainer.model.training
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    try:
        with trainer.accelerator.autocast():
            yield model
    finally:
        model.train(training)


def _rows(prompt_ids: list[list[int]], beams: Beams, pad: int) -> dict[str, Any]:
    """Return the beams (B, K) as B · K rows of lists."""
    items, scores = beams.items.flatten().tolist(), beams.scores.flatten().tolist()
    completions = [[token for token in row if token >= 0] or [pad] for row in beams.tokens.flatten(0, 1).tolist()]
    logprobs = beams.logprobs.flatten(0, 1).tolist()
    rows = {
        "prompt_ids": prompt_ids,
        "completion_ids": completions,
        "logprobs": [row[: len(ids)] for row, ids in zip(logprobs, completions, strict=True)],
        "sid_group": [row // beams.items.shape[1] for row in range(len(items))],
        "sid_score": scores,
        "sid_item": items,
    }
    if beams.inclusion is not None:
        rows["sid_inclusion"] = beams.inclusion.flatten().tolist()
    if min(items) < 0:
        rows["env_mask"] = [[int(item >= 0)] * len(ids) for item, ids in zip(items, completions, strict=True)]
    return rows


@dataclass
class UGRConfig(GRPOConfig):  # type: ignore[misc]
    """`GRPOConfig` with the settings of UGR, named and meant as those of `ugr-fast rl`."""

    loss_type: str = "grpo"
    """TRL's loss; as released. TRL's own default is dapo."""
    target: str = "target"
    """Column of the dataset with the tokens of the item that came next."""
    normalize: Literal["full", "sid", "allowed"] = "full"
    """What token log-probs are normalised over, in rollout and update."""
    rollout: Literal["beam", "stochastic", "sample"] = "beam"
    """The best candidates, as released, or draws from the policy; draws need `normalize` allowed."""
    importance_weights: bool = False
    """Weigh candidates of a stochastic rollout by inclusion, in place of TRL's group-relative advantages."""
    difficulty: Literal["rank", "discount", "probability", "none"] = "rank"
    """Weight groups by difficulty."""
    alpha_min: float = 0.0
    """Weight of a group whose target ranks first (or is certain)."""
    confidence: Literal["released", "logit", "brier", "none"] = "released"
    """Objective of the confidence tokens."""
    lambda_wrong: float = 0.5
    """Weight of misses in the released and logit objectives."""
    lambda_partial: float = 0.0
    """Weight of misses that share the target's first token, in the released and logit objectives."""
    lambda_brier: float = 1.0
    """Weight of the brier objective."""
    gamma: float = 0.5
    """Share of a candidate's own outcome in the brier target; the rest is its group's hit rate."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """How packed trees attend in updates: torch's SDPA with a mask, or FlexAttention without one (CUDA)."""


class UGRTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` that trains with UGR: constrained rollout, packed log-probs, difficulty, confidence.

    loss = TRL's loss of (w · A, log-probs of the packed trees) + mean over groups of L_confidence

    What is TRL's stays TRL's: rewards and their weights, scaling of advantages, kinds of loss, KL, clipping, data,
    schedules, logs, checkpoints, LoRA. TRL's mean over candidates counts absent ones; their group's advantages are
    scaled so that the policy loss is the mean over those present, but the KL is not.

    Args:
        model: as for `GRPOTrainer`, a model that attends to its whole context and takes 4-D masks.
        reward_funcs: as for `GRPOTrainer`; None is `make_reward("uncertainty_weighted", trie)`.
        args: the settings; the default config of TRL's trainer will not do.
        trie: the semantic IDs that may be answered.
        vocabulary: suffix and tokens of the confidence, and what normalize="sid" needs.
        others: the other arguments of `GRPOTrainer`: train_dataset, processing_class, peft_config, callbacks, ...

    Raises:
        TypeError: `args` is no `UGRConfig`.
        ValueError: what it cannot do: vLLM, more than one process, DeepSpeed, FSDP, Liger kernels, tools, environments,
            a rollout of your own, a temperature other than 1, TRL's entropy terms, auxiliary losses of mixtures of
            experts, micro-batches that split groups, and models that make their own mask.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: UGRConfig | None = None,
        *,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        **others: Any,
    ) -> None:
        if not isinstance(args, UGRConfig):
            raise TypeError(f"`args` must be a UGRConfig, got {type(args).__name__}")
        _refuse(args, others)
        funcs = make_reward("uncertainty_weighted", trie, target=args.target) if reward_funcs is None else reward_funcs
        super().__init__(model, funcs, args, **others)
        causal = self.accelerator.unwrap_model(self.model)
        if self.aux_loss_enabled or not takes_pattern(causal):
            raise ValueError("`model` must be a dense one that attends to its whole context as a 4-D mask says")
        check_attention(causal, args.attention)
        self.trie, self.vocabulary = trie, vocabulary
        self.rollout_func = make_rollout(trie, normalize=args.normalize, method=args.rollout, vocabulary=vocabulary)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Do what TRL does, weigh the advantages, and return groups as rows (B, G, ...), which TRL may shuffle."""
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        found = {name: x.unflatten(0, (-1, _group_size(self))) if x.ndim else x for name, x in scored.items()}
        columns = {name: [row[name] for row in inputs] for name in inputs[0]}
        tokens = self._candidates(found["completion_ids"], found["completion_mask"])  # (B, G, T)
        tokens = torch.nn.functional.pad(tokens, (0, self.trie.depth - tokens.shape[2]), value=-1)  # (B, G, L)
        target = torch.from_numpy(_targets(columns, self.args.target, self.trie)).to(tokens)[:: tokens.shape[1]]
        present, hits = (tokens >= 0).any(2), rewards.match(tokens, target).bool()
        weight = self._weight(hits, self._column(columns, "sid_score"), present)
        if self.args.importance_weights:
            found["advantages"] = self._importance_weighted(columns, present)
        if self.loss_type in MEAN_OF_ROWS:
            weight = weight * present.shape[1] / present.sum(1)
        found["advantages"] = (found["advantages"] * weight[:, None]).to(self._dtype)
        partial = ~hits & present & (tokens[..., 0] == target[:, :1])
        return {**found, "hits": hits, "present": present, "partial": partial}

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.model.dtype, torch.float32)

    def _column(self, columns: dict[str, list[Any]], name: str) -> torch.Tensor:
        """Return what the rollout says of every candidate (B, G)."""
        return torch.tensor(columns[name], dtype=torch.float64).reshape(-1, _group_size(self))

    def _weight(self, hits: torch.Tensor, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the difficulty weights (B,), and log them and how often the target was found."""
        settings: Any = {"kind": self.args.difficulty, "alpha_min": self.args.alpha_min, "mask": present}
        plain = self.args.difficulty == "none"
        weight = torch.ones(len(hits)) if plain else rewards.difficulty_weight(hits, scores, **settings)
        self._record("hit_rate", hits.any(1))
        self._record("hit_rate@1", hits[:, 0])
        self._record("difficulty_weight", weight)
        return weight.to(hits.device, self._dtype)

    def _record(self, name: str, values: torch.Tensor) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(values.double().mean().item())

    def _calculate_rewards(self, *given: Any) -> torch.Tensor:
        earned: torch.Tensor = super()._calculate_rewards(*given)  # (N, functions), NaN for none
        self._earned = earned
        return earned

    def _importance_weighted(self, columns: dict[str, list[Any]], present: torch.Tensor) -> torch.Tensor:
        """Return advantages (B, G) for draws without replacement; losses average over candidates, these add up."""
        weights = self.reward_weights.to(self._earned)
        earned = (self._earned * weights).nansum(1).masked_fill(self._earned.isnan().all(1), torch.nan)
        scores, inclusion = self._column(columns, "sid_score"), self._column(columns, "sid_inclusion")
        earned = earned.reshape(present.shape)
        found: torch.Tensor = importance_weighted_advantages(earned, scores, inclusion, mask=present)
        return found * present.sum(1, keepdim=True)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return TRL's loss of the groups' rows, plus that of their confidences."""
        groups = {name: inputs[name] for name in ("hits", "present", "partial")}
        rows = {name: x.flatten(0, 1) if x.ndim else x for name, x in inputs.items()}
        loss: torch.Tensor = super()._compute_loss(model, rows)
        args = self.args
        if args.confidence == "none":
            return loss
        settings = {name: getattr(args, name) for name in ("lambda_wrong", "lambda_partial", "gamma")}
        found = losses.confidence_alignment(self._logits, **groups, objective=args.confidence, **settings).mean()
        found = args.lambda_brier * found if args.confidence == "brier" else found
        self._record("confidence_loss", found.detach())
        return loss + found / (self.current_gradient_accumulation_steps if self.model.training else 1)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return log-probs (N, T) from packed trees, and their groups' entropies between allowed tokens, as (N, T).

        The logits of the confidences (B, G) stay in `_logits`, for the loss that asks.
        """
        group = _group_size(self)
        ids, mask = (x.reshape(-1, group, x.shape[1]) for x in (input_ids, attention_mask))  # (B, G, P + T)
        tokens = self._candidates(ids[..., -logits_to_keep:], mask[..., -logits_to_keep:])
        prompt, there = ids[:, 0, :-logits_to_keep], mask[:, 0, :-logits_to_keep].bool()  # (B, P)
        prompts = [row[real].tolist() for row, real in zip(prompt, there, strict=True)]
        size = max(1, (batch_size or len(input_ids)) // group)
        parts = [
            self._packed(model, prompts[at : at + size], tokens[at : at + size]) for at in range(0, len(ids), size)
        ]
        logprobs, entropy, self._logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return logprobs.flatten(0, 1), entropy[:, None, None].expand_as(logprobs).flatten(0, 1), None

    def _candidates(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the candidates' tokens (B, G, T), -1 past their ends and where absent."""
        return ids.masked_fill((mask == 0) | (ids[..., :1] == self.processing_class.pad_token_id), -1)

    def _packed(
        self, model: Any, prompts: list[list[int]], tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probs (B, G, T), entropies (B,) and logits of confidences (B, G) from one forward pass."""
        causal, args, vocabulary = self.accelerator.unwrap_model(model), self.args, self.vocabulary
        packed = pack_prefixes(prompts, tokens, suffix=vocabulary.suffix)
        where = torch.from_numpy(packed.logit_index).to(tokens.device)
        settings: dict[str, Any] = {"normalize": args.normalize, "vocabulary": vocabulary, "trie": self.trie}
        with self.accelerator.autocast():
            hidden = packed_hidden_states(causal, packed, args.attention)  # (B, nodes, D)
            logprobs, entropy = losses.token_logprobs(causal, hidden, where, tokens, entropy=True, **settings)
            return logprobs, entropy, confidence_logits(causal, hidden, packed, vocabulary)


def _refuse(args: UGRConfig, others: dict[str, Any]) -> None:
    """Refuse settings that do not go with packed trees, before a model is loaded."""
    group = args.num_generations
    rules = [
        ("use_vllm", args.use_vllm, not args.use_vllm, "be False: candidates come from ugr_fast's own search"),
        ("world_size", args.world_size, args.world_size == 1, "be 1; `ugr-fast rl` trains on several processes"),
        ("deepspeed", args.deepspeed, not args.deepspeed, "be None: packed passes need whole weights"),
        ("fsdp", args.fsdp, not args.fsdp, "be unset: packed passes need whole weights"),
        ("use_liger_kernel", args.use_liger_kernel, not args.use_liger_kernel, "be False"),
        ("temperature", args.temperature, args.temperature == 1, "be 1: log-probs are the model's own"),
        ("entropy_coef", args.entropy_coef, args.entropy_coef == 0, "be 0: entropies of trees have no gradient"),
        ("use_adaptive_entropy", args.use_adaptive_entropy, not args.use_adaptive_entropy, "be False, as above"),
        (
            "top_entropy_quantile",
            args.top_entropy_quantile,
            args.top_entropy_quantile == 1,
            "be 1: entropies are groups'",
        ),
        (
            "per_device_train_batch_size",
            args.per_device_train_batch_size,
            args.per_device_train_batch_size % group == 0,
            f"be a multiple of num_generations, {group}: groups are packed whole",
        ),
        (
            "importance_weights",
            args.importance_weights,
            args.rollout == "stochastic" or not args.importance_weights,
            "be False but for rollout='stochastic'",
        ),
        *((name, others[name], not others[name], "not be given") for name in OWN if name in others),
    ]
    for name, value, holds, rule in rules:
        if not holds:
            raise ValueError(f"`{name}` must {rule}, got {value!r}")
