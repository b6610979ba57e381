"""Supervised fine-tuning on whole user sequences.

Every item of a sequence but its first is a target, and a history is computed once for all its targets, not once for
each: a window of n items costs one row where the usual (history → target) rows cost n − 1. Windows hold at most
`history + 1` items, so no target sees more than evaluation shows it; their cuts are drawn anew each epoch.

Departures from UGR's released code: it fine-tunes one row per target, pads to the longest, and pairs semantic IDs with
item texts in extra tasks; ours trains on sequences of semantic IDs alone.
"""

from __future__ import annotations

import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from ugr_fast import data, sids
from ugr_fast.configs import check
from ugr_fast.lora import with_lora
from ugr_fast.model import (
    Catalogue,
    SidVocabulary,
    autocast,
    head_logits,
    recomputed,
    refuse_windows,
    unwrapped,
)
from ugr_fast.progress import Advance, Step, Validation, Watch, bar, say
from ugr_fast.recommend import sample_rows, validation_metrics
from ugr_fast.run import Learner, Run, choose_device, describe, load_model, seed_everything, set_threads
from ugr_fast.team import Team

if TYPE_CHECKING:
    from pathlib import Path

    from ugr_fast.configs import SftConfig

IGNORE = -100  # the target that cross_entropy leaves out


def train(config: SftConfig) -> dict[str, Any]:
    """Fine-tune as `config` says and return the best validation metrics.

    Raises:
        ValueError: settings, data or codes that do not fit together.
        FileExistsError: `out` holds another run.
    """
    check(config)
    set_threads(config.threads)
    device = choose_device(config.device)
    team = Team.join(device)
    dataset = data.load(config.data)
    codes = sids.load_codes(config.sids)
    if len(codes) != dataset.num_items:
        raise ValueError(
            f"`sids` has codes for {len(codes)} items, and `data` has {dataset.num_items}; make them again"
        )
    seed_everything(config.seed)
    model, vocabulary = start_model(config, codes)
    if config.model is None and config.run is None and config.warm_start:
        warm_start(model, vocabulary, sids.load_code_vectors(config.sids), config.warm_start)
    model.to(device)
    if config.lora:
        model = with_lora(model, config.lora, config.lora_alpha)
    if not team.is_main:
        torch.manual_seed(config.seed + team.rank)  # no two processes drop out the same
    start = config.model if config.run is None else Run.open(config.run).model_folder()
    run = Run.create(config.out, "sft", config, device, start=start, team=team)
    run.save_catalogue(vocabulary, codes, dataset.titles, dataset.ids)
    catalogue = Catalogue.build(vocabulary, codes)
    learner = make_learner(config, model, team)
    state = run.resume(learner) or {"epoch": 0, "step": 0, "seconds": 0.0, "stale": 0}
    valid = sample_rows(dataset.valid, config.valid_rows, config.seed).latest(config.history)
    sequences = data.sequences(dataset.train)
    say(f"sft: {describe(model, team)}, {len(sequences)} sequences")
    watch = Watch("epoch", config.patience)
    if best := run.best():
        watch.valid = Validation(best["epoch"], best["ndcg@10"], state["stale"])
    with bar("sft", config.epochs, done=state["epoch"], watch=watch) as advance:
        while state["epoch"] < config.epochs and not (config.patience and state["stale"] >= config.patience):
            state = _epoch(config, run, learner, catalogue, sequences, state, watch, advance)
            if state["epoch"] % config.eval_every == 0 or state["epoch"] == config.epochs:
                state = _validate(config, run, learner, catalogue, valid, state, watch)
    if state["epoch"] < config.epochs:
        say(f"sft: stopped after epoch {state['epoch']}, {state['stale']} validations without a better NDCG@10")
    best = run.best() or {}
    if config.epochs > config.eval_every and best.get("epoch") == config.epochs:
        say(f"sft: validation was still improving; a new run with --epochs {2 * config.epochs} may help")
    return best


def start_model(config: SftConfig, codes: np.ndarray) -> tuple[Any, SidVocabulary]:
    """Return the model to train and its vocabulary: a small decoder, or `config.model` with tokens added."""
    if config.run is not None:
        return _continued(config.run, codes, config.dropout)
    sizes = [int(size) for size in codes.max(0) + 1]
    if config.model is None:
        vocabulary = SidVocabulary.from_scratch(sizes)
        model = small_decoder(config, vocabulary)
        add_dropout(model, config.dropout)
        return model, vocabulary
    model = load_model(config.model, torch.device("cpu")).float()  # small steps would round away in bfloat16
    refuse_windows(model.config)
    vocabulary = SidVocabulary.from_tokenizer(_load_tokenizer(config.model), sizes)
    add_tokens(model, vocabulary, config.model)
    return model, vocabulary


def _continued(folder: Path, codes: np.ndarray, rate: float) -> tuple[Any, SidVocabulary]:
    """Return the small decoder of a run, and its vocabulary."""
    run = Run.open(folder)
    if run.config["settings"].get("model") is not None:
        raise ValueError(f"`run` must have trained a small decoder, and {folder} began with a model; use `model`")
    if not np.array_equal(run.load_codes(), codes):
        raise ValueError(f"`run` must have the semantic IDs of `sids`, and {folder} has others")
    model = run.load_model(torch.device("cpu"))
    add_dropout(model, rate)
    return model, run.load_catalogue().vocabulary


def small_decoder(config: SftConfig, vocabulary: SidVocabulary) -> Any:
    """Return a decoder of the Qwen3 architecture with random weights, made for `vocabulary`."""
    stride = len(vocabulary.level_sizes) + len(vocabulary.separator)
    settings = transformers.Qwen3Config(
        vocab_size=vocabulary.size,
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden // config.heads,
        max_position_embeddings=max(512, (config.history + 2) * stride),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=vocabulary.pad,
        dtype="float32",
    )
    return transformers.Qwen3ForCausalLM(settings)


def warm_start(model: Any, vocabulary: SidVocabulary, vectors: list[np.ndarray], scale: float) -> None:
    """Start the embeddings of semantic-ID tokens from the vectors of their codes, so that like items begin alike.

    The vectors are centred by level and projected on the principal axes that the model has room for; each level then
    has `scale` times the standard deviation of a random start, and a quarter of the random start is kept.

    Args:
        model: a decoder fresh from its random start.
        vocabulary: where the tokens are.
        vectors: from `sids.load_code_vectors`, (codes, dim) by level; deeper levels keep their random start.
        scale: of the vectors.
    """
    if not vectors:
        return
    rows = tuple(len(level) for level in vectors)
    if rows != vocabulary.level_sizes[: len(rows)]:
        raise ValueError(
            f"`vectors` must be one for each of {vocabulary.level_sizes} codes, got {rows}; make the semantic IDs again"
        )
    table = model.get_input_embeddings().weight
    deviation = table.detach().std()
    centred = [torch.from_numpy(level - level.mean(0)) for level in vectors]
    axes = torch.linalg.svd(torch.cat(centred), full_matrices=False).Vh[: table.shape[1]]  # (room, dim)
    first = vocabulary.base
    with torch.no_grad():
        for size, level in zip(vocabulary.level_sizes, centred, strict=False):
            rows = table[first : first + size]
            placed = level @ axes.T  # (size, room)
            rows.mul_(0.25)
            rows[:, : placed.shape[1]] += placed * (scale * deviation / placed.std().clamp(min=1e-12))
            first += size


def add_dropout(model: Any, rate: float) -> None:
    """Drop out embeddings and what every attention and MLP adds to the residual stream, in train mode only."""

    def hook(module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return dropout(output, rate, module.training)

    decoder = getattr(model, model.base_model_prefix)
    decoder.embed_tokens.register_forward_hook(hook)
    for layer in decoder.layers:
        layer.self_attn.o_proj.register_forward_hook(hook)
        layer.mlp.register_forward_hook(hook)


def add_tokens(model: Any, vocabulary: SidVocabulary, folder: Path) -> None:
    """Grow a language model's embeddings for `vocabulary`; the confidence rows start from " correct" and " wrong"."""
    spare = model.get_input_embeddings().weight.shape[0]  # may be more rows than the tokenizer has tokens
    model.resize_token_embeddings(vocabulary.size, mean_resizing=True)
    tokenizer = _load_tokenizer(folder)
    tables = {id(table): table for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for table in tables.values():
            known, unused = table.weight[: vocabulary.base], table.weight[vocabulary.base : spare]
            unused.copy_(known.mean(0) + 0.1 * known.std(0) * torch.randn_like(unused))
        for token, words in ((vocabulary.positive, " correct"), (vocabulary.negative, " wrong")):
            ids = tokenizer(words, add_special_tokens=False)["input_ids"]
            for table in tables.values() if ids else ():
                table.weight[token] = table.weight[ids].mean(0)


def _load_tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model` {folder} must hold a tokenizer ({str(error).splitlines()[0]})") from error


def make_learner(config: SftConfig, model: Any, team: Team) -> Learner:
    """Return the learner of `model`; a given model gets gentler learning rates than one from scratch."""
    small = config.model is None
    lr = (2e-3 if small else 2e-4) if config.lr is None else config.lr
    muon_lr = (0.02 if small else 0.0) if config.muon_lr is None else config.muon_lr
    average = (0.995 if small else 0.0) if config.average is None else config.average
    return Learner.make(model, lr, config.weight_decay, muon_lr=muon_lr, average=average, team=team)


def smoothing_of(config: SftConfig) -> float:
    """Return the label smoothing: a given model's would go to words that are no part of a semantic ID."""
    return (0.1 if config.model is None else 0.0) if config.label_smoothing is None else config.label_smoothing


def collate(catalogue: Catalogue, windows: data.Windows, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded tokens (B, T) of the windows at `rows`, and targets (B, T): IGNORE where there is no loss.

    Position t of the targets is the token after position t.
    """
    histories = [windows.items[windows.offsets[row] : windows.offsets[row + 1]] for row in rows]
    prompts = [catalogue.prompt(history) for history in histories]
    width = max(len(prompt) for prompt in prompts)
    tokens = np.full((len(rows), width), catalogue.vocabulary.pad, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORE, dtype=np.int64)
    for index, (row, prompt, history) in enumerate(zip(rows, prompts, histories, strict=True)):
        tokens[index, : len(prompt)] = prompt
        positions = catalogue.target_positions(history, int(windows.first_target[row]))
        targets[index, positions - 1] = tokens[index, positions]
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def batches(windows: data.Windows, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return a random order of all windows in batches of like length (less padding), the batches in random order."""
    order = rng.permutation(len(windows))
    lengths = np.diff(windows.offsets)[order]
    stretch = 16 * batch_size
    sorted_within = [
        order[start : start + stretch][np.argsort(lengths[start : start + stretch], kind="stable")]
        for start in range(0, len(order), stretch)
    ]
    flat = np.concatenate(sorted_within)
    cut = [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    return [cut[index] for index in rng.permutation(len(cut))]


def loss_of(model: Any, tokens: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy over the targets; the head runs only where there is one.

    Rows are padded on the right, where a causal model does not look.
    """
    causal = unwrapped(model)
    decoder = getattr(causal, causal.base_model_prefix)
    hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state  # (B, T, D)
    wanted = targets != IGNORE
    logits = head_logits(model, hidden[wanted])
    return cross_entropy(logits, targets[wanted], label_smoothing=label_smoothing)


def backward(config: SftConfig, learner: Learner, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    """Accumulate the gradient of the mean loss over all targets, micro-batch by micro-batch; return that mean.

    Of several processes each takes a share of the rows.

    Args:
        config: the settings.
        learner: the model in training.
        tokens: (B, T) of all processes.
        targets: (B, T).
    """
    device = next(learner.model.parameters()).device
    share = learner.team.share(len(tokens))
    size = config.micro_batch_size or len(tokens)
    count, mean = (targets != IGNORE).sum().item(), 0.0
    for start in range(share.start, share.stop, size):
        some = slice(start, min(start + size, share.stop))
        part = (targets[some] != IGNORE).sum().item() / count
        with recomputed(learner.model, when=config.recompute):
            with autocast(device, config.precision):
                loss = loss_of(learner.model, tokens[some].to(device), targets[some].to(device), smoothing_of(config))
            (loss * part).backward()  # type: ignore[no-untyped-call]
        mean += loss.item() * part
    return learner.team.total(mean)


def _epoch(
    config: SftConfig,
    run: Run,
    learner: Learner,
    catalogue: Catalogue,
    sequences: data.Sequences,
    state: dict[str, Any],
    watch: Watch,
    advance: Advance,
) -> dict[str, Any]:
    rng = np.random.default_rng([config.seed, state["epoch"]])
    windows = data.windows(sequences, config.history + 1, rng)
    order = batches(windows, config.batch_size, rng)
    learner.model.train()
    losses, norms, started = [], [], time.monotonic()
    for index, rows in enumerate(order):
        begun = time.monotonic()
        learner.schedule((state["epoch"] + index / len(order)) / config.epochs, config.schedule)
        losses.append(backward(config, learner, *collate(catalogue, windows, rows)))
        norms.append(learner.descend(config.clip_grad))
        watch.step(Step({"loss": losses[-1]}, ("rows/s", len(rows) / (time.monotonic() - begun))))
        advance(Fraction(1, len(order)))
    state = {
        **state,
        "epoch": state["epoch"] + 1,
        "step": state["step"] + len(order),
        "seconds": state["seconds"] + time.monotonic() - started,
    }
    run.log(
        step=state["step"],
        epoch=state["epoch"],
        loss=float(np.mean(losses)),
        grad_norm=float(np.mean(norms)),
        seconds=state["seconds"],
    )
    return state


def _validate(
    config: SftConfig,
    run: Run,
    learner: Learner,
    catalogue: Catalogue,
    valid: data.Rows,
    state: dict[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    with autocast(next(learner.model.parameters()).device, config.precision):
        found = validation_metrics(learner.used.eval(), catalogue, valid, config.num_beams, team=run.team)
    run.log(step=state["step"], epoch=state["epoch"], seconds=state["seconds"], valid=found)
    best = run.best() or {"ndcg@10": -1.0}
    better = found["ndcg@10"] > best["ndcg@10"]
    if better:
        best = {"step": state["step"], "epoch": state["epoch"], **found}
    state = {**state, "stale": 0 if better else state["stale"] + 1}
    run.save_checkpoint(state["step"], learner, state, best)
    watch.valid = Validation(best["epoch"], best["ndcg@10"], state["stale"], state["epoch"], found["ndcg@10"])
    say(
        f"sft epoch {state['epoch']}: valid HR@1 {found['hr@1']:.4f} HR@10 {found['hr@10']:.4f} "
        f"NDCG@10 {found['ndcg@10']:.4f}{'  (best so far)' if better else ''}"
    )
    return state
