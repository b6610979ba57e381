"""Vocabulary, the one prompt builder, and the model's forward pass on packed trees.

A history becomes tokens in one way for fine-tuning, reinforcement learning, evaluation and `recommend`::

    prompt(history) = prefix · (sid · separator) for every item, oldest first
    answer          = sid
    confidence      = answer · suffix, read at the last suffix token: σ(z_positive − z_negative)

so a fine-tuning row `prefix · (sid · separator)…` holds the exact prompt of every one of its items.
"""

from __future__ import annotations

import inspect
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ugr_fast.files import parse_json
from ugr_fast.trie import SidTrie

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ugr_fast.packing import Packed

Normalize = Literal["full", "sid", "allowed"]
Attention = Literal["sdpa", "flex"]

CONFIDENCE_SUFFIX = " Confidence scores:"  # the text of UGR's released code
POSITIVE, NEGATIVE = " correct", " wrong"
NUM_RESERVED = 5  # pad, start, confidence, positive, negative of a vocabulary made from scratch


@dataclass(frozen=True)
class SidVocabulary:
    """Where semantic IDs and the fixed texts live among a model's tokens.

    Args:
        level_sizes: codes per level.
        base: token of code 0 of level 0; levels follow one another.
        prefix: tokens before a history.
        separator: tokens after every item of a history.
        suffix: tokens between an answer and its confidence; at least one.
        positive: token whose logit says *correct*.
        negative: token whose logit says *wrong*.
        pad: token that fills rows; never attended.
        size: rows of the embedding table.

    Example:
        >>> vocabulary = SidVocabulary.from_scratch((2, 3))
        >>> vocabulary.encode([[1, 2]]).tolist()
        [[6, 9]]
        >>> vocabulary.sid_range, vocabulary.size
        ((5, 10), 10)
    """

    level_sizes: tuple[int, ...]
    base: int
    prefix: tuple[int, ...]
    separator: tuple[int, ...]
    suffix: tuple[int, ...]
    positive: int
    negative: int
    pad: int
    size: int

    @classmethod
    def from_scratch(cls, level_sizes: Sequence[int]) -> SidVocabulary:
        """Return the vocabulary of a model that knows semantic IDs and nothing else."""
        sizes = tuple(int(size) for size in level_sizes)
        return cls(
            level_sizes=sizes,
            base=NUM_RESERVED,
            prefix=(1,),
            separator=(),
            suffix=(2,),
            positive=3,
            negative=4,
            pad=0,
            size=NUM_RESERVED + sum(sizes),
        )

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, level_sizes: Sequence[int]) -> SidVocabulary:
        """Add semantic-ID and confidence tokens to a language model's `tokenizer`, in place.

        Args:
            tokenizer: a transformers tokenizer; it gains `<a_0>`, `<a_1>`, …, `<b_0>`, …, `<positive>`, `<negative>`.
            level_sizes: codes per level.

        Returns:
            The vocabulary; `size` counts the added tokens.
        """
        sizes = tuple(int(size) for size in level_sizes)
        base = len(tokenizer)
        names = [f"<{chr(97 + level)}_{code}>" for level, size in enumerate(sizes) for code in range(size)]
        added = tokenizer.add_tokens([*names, "<positive>", "<negative>"])
        if added != len(names) + 2:
            raise ValueError(
                f"`tokenizer` must not hold semantic-ID tokens yet; {len(names) + 2 - added} of them are there "
                "already. Start from the language model's own tokenizer"
            )

        def text(words: str) -> tuple[int, ...]:
            return tuple(tokenizer(words, add_special_tokens=False)["input_ids"])

        start = (tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None else ()
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return cls(
            level_sizes=sizes,
            base=base,
            prefix=start + text("Items a user chose, oldest first:"),
            separator=text(","),
            suffix=text(CONFIDENCE_SUFFIX),
            positive=base + len(names),
            negative=base + len(names) + 1,
            pad=pad if pad is not None else 0,
            size=len(tokenizer),
        )

    @property
    def sid_range(self) -> tuple[int, int]:
        """First semantic-ID token and one past the last."""
        return self.base, self.base + sum(self.level_sizes)

    def encode(self, codes: Any) -> np.ndarray:
        """Return the tokens (N, L) of `codes` (N, L); each level has its own tokens, −1 (no such level) stays −1."""
        codes = np.asarray(codes, dtype=np.int64)
        sizes = np.asarray(self.level_sizes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise ValueError(f"`codes` must have shape (N, {len(sizes)}), got {codes.shape}")
        if (codes < -1).any() or (codes >= sizes).any():
            row, level = np.argwhere((codes < -1) | (codes >= sizes))[0]
            raise ValueError(
                f"`codes` of level {level} must be in [0, {sizes[level]}), or −1 for none, "
                f"got {codes[row, level]} for item {row}"
            )
        firsts = self.base + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return np.where(codes < 0, -1, codes + firsts)

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> SidVocabulary:
        """Read what `save` wrote.

        Raises:
            TypeError: other fields.
            ValueError: not JSON, or a field that is no token, or not as many as there must be.
        """
        fields: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        named: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        read = cls(**named)
        read.check()
        return read

    def check(self) -> None:
        """Refuse what is no vocabulary.

        Raises:
            ValueError: a field is of another type, or a token is none of the `size`.
        """
        lists = {name: getattr(self, name) for name in ("level_sizes", "prefix", "separator", "suffix")}
        numbers = {name: getattr(self, name) for name in ("base", "positive", "negative", "pad", "size")}
        for name, values in (lists | {name: (value,) for name, value in numbers.items()}).items():
            if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 2**32 for value in values):
                raise ValueError(f"`{name}` must hold whole numbers in 0 .. 2**32 - 1, got {str(values)[:60]}")
        last = max(self.positive, self.negative, self.pad, *self.prefix, *self.separator, *self.suffix)
        if max(last, self.sid_range[1] - 1) >= self.size or not (self.level_sizes and self.suffix):
            raise ValueError(
                f"`size` must be above every token, and levels and suffix must not be empty, got {self.size}, "
                f"{last}, {self.sid_range}, {self.suffix}"
            )


@dataclass(frozen=True)
class Catalogue:
    """Items as tokens: the prompt builder and the trie that recommendations come from.

    Args:
        vocabulary: where tokens live.
        item_tokens: (num_items, L), row i is item i, right-padded with −1.
        trie: the semantic IDs of all items.

    Example:
        >>> catalogue = Catalogue.build(SidVocabulary.from_scratch((2, 3)), [[0, 1], [1, 2]])
        >>> catalogue.prompt([1, 0])
        [1, 6, 9, 5, 8]
    """

    vocabulary: SidVocabulary
    item_tokens: np.ndarray
    trie: SidTrie

    @classmethod
    def build(cls, vocabulary: SidVocabulary, codes: Any) -> Catalogue:
        """Return the catalogue of items whose codes are the rows of `codes` (num_items, L)."""
        tokens = vocabulary.encode(codes)
        trie = SidTrie.build(tokens)
        if not trie.prefix_free:
            raise ValueError(
                "`codes` must not hold the semantic ID of one item as the beginning of another's; "
                "give the shorter ones a code more, or make them again with `ugr-fast sids`"
            )
        return cls(vocabulary, tokens, trie)

    @property
    def depth(self) -> int:
        """Tokens per semantic ID."""
        return int(self.item_tokens.shape[1])

    def prompt(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """Return the tokens that stand for `history`, item numbers from oldest to newest."""
        items = np.asarray(history, dtype=np.int64)
        num_items = len(self.item_tokens)
        if items.ndim != 1 or len(items) == 0:
            raise ValueError(f"`history` must name at least one item, got shape {items.shape}")
        if (items < 0).any() or (items >= num_items).any():
            bad = items[(items < 0) | (items >= num_items)][0]
            raise ValueError(f"`history` must hold item numbers in [0, {num_items}), got {bad}")
        separator = np.broadcast_to(
            np.asarray(self.vocabulary.separator, dtype=np.int64),
            (len(items), len(self.vocabulary.separator)),
        )
        body = np.concatenate([self.item_tokens[items], separator], axis=1)  # (n, L + S)
        return [*self.vocabulary.prefix, *body[body >= 0].tolist()]

    def target_positions(self, history: np.ndarray, first: int) -> np.ndarray:
        """Return where, in `prompt(history)`, the tokens of the items from number `first` on stand."""
        lengths = (self.item_tokens[history] >= 0).sum(1)  # (n,)
        starts = len(self.vocabulary.prefix) + np.concatenate(
            [[0], np.cumsum(lengths + len(self.vocabulary.separator))[:-1]]
        )
        within = np.arange(self.depth)
        positions = starts[first:, None] + within  # (n - first, L)
        real: np.ndarray = positions[within < lengths[first:, None]]
        return real


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rows` as one left-padded tensor (B, P) and its attention mask (B, P) of 0 and 1.

    Example:
        >>> ids, mask = pad_left([[7], [8, 9]], pad=0)
        >>> ids.tolist(), mask.tolist()
        ([[0, 7], [8, 9]], [[0, 1], [1, 1]])
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the (B, 1, Q, K) float mask that every attention path of transformers understands.

    Args:
        allowed: (B, Q, K) bool, True where query q may attend to key k; every query needs one True.
        dtype: dtype of the hidden states.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def hidden_states(
    model: Any, tokens: torch.Tensor, allowed: torch.Tensor | BlockMask, positions: torch.Tensor, cache: Any = None
) -> torch.Tensor:
    """Run the decoder under an explicit attention pattern and return its last hidden states.

    Args:
        model: a causal language model of transformers (or peft around one) that takes 4-D masks.
        tokens: (B, Q) new tokens.
        allowed: (B, Q, K) bool over cached and new tokens; or a block mask, for a model under FlexAttention.
        positions: (B, Q).
        cache: a transformers cache, extended in place; None for a pass without one.

    Returns:
        (B, Q, D), before the language-model head.

    Raises:
        ValueError: a model that does not take its attention pattern from outside, see `takes_pattern`.
    """
    causal = unwrapped(model)
    refuse_windows(causal.config)
    decoder = getattr(causal, causal.base_model_prefix)
    if isinstance(allowed, torch.Tensor):
        allowed = additive_mask(allowed, next(decoder.parameters()).dtype)
    output = decoder(
        input_ids=tokens,
        attention_mask=allowed,
        position_ids=positions,
        use_cache=cache is not None,
        **({} if cache is None else {cache_argument(decoder): cache}),
    )
    return output.last_hidden_state  # type: ignore[no-any-return]


def unwrapped(model: Any) -> Any:
    """Return the causal language model itself, out of peft's hull if it is in one; adapters stay at work."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_tables(model: Any) -> list[torch.nn.Parameter]:
    """Return the weights that have a row for every token: the embeddings and, unless it is tied to them, the head."""
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return list({id(table): table for table in tables}.values())


def state_size(model: Any) -> int:
    """Return D, of the states that the head reads."""
    size: int = model.get_input_embeddings().weight.shape[1]
    return size


def takes_pattern(model: Any) -> bool:
    """Whether `model` attends as an explicit 4-D mask says, at the positions that it is given.

    Args:
        model: a causal language model of transformers, or peft around one.

    Returns:
        False for sliding windows, recurrent layers, flash attention, and positions that the model counts itself.
    """
    causal = unwrapped(model)
    flash = "flash" in str(getattr(causal.config, "_attn_implementation", ""))
    told_positions = "position_ids" in forward_arguments(causal) and not getattr(causal.config, "alibi", False)
    return _whole_context(causal.config) and told_positions and not flash


def refuse_strangers(config: Any) -> None:
    """Refuse models whose cached or padded rows do not equal a plain pass, so that a search would be wrong silently.

    Args:
        config: the configuration of a transformers model.

    Raises:
        ValueError: a model without attention, as Mamba is, or the decoder half of an encoder family, as in BERT and
            BART.
    """
    if not hasattr(config.get_text_config(decoder=True), "num_attention_heads"):
        raise ValueError(f"`model` must have attention layers, and {config.model_type} has none; use another")
    if getattr(config, "is_decoder", False):
        raise ValueError(f"`model` must be a decoder by design, got {config.model_type} with is_decoder; use another")


def refuse_windows(config: Any) -> None:
    """Refuse models that narrow their own mask: an explicit one would widen it again, silently.

    Args:
        config: the configuration of a transformers model.

    Raises:
        ValueError: some layer has sliding-window attention, or is no attention at all.
    """
    if not _whole_context(config):
        raise ValueError(
            "`model` must attend to its whole context, and this one has sliding windows or layers without attention; "
            "use another"
        )


def _whole_context(config: Any) -> bool:
    """Whether every layer attends to all that came before."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)
    if kinds is None:
        return not getattr(text, "sliding_window", None)
    return set(kinds) <= {"full_attention", "global"}


def forward_arguments(module: Any) -> Mapping[str, Any]:
    """Return the arguments that `module.forward` takes, by name."""
    return inspect.signature(module.forward).parameters


def cache_argument(module: Any) -> str:
    """Return the name under which `module` takes and returns a cache: transformers 5.24 renamed `past_key_values`."""
    return "cache" if "cache" in forward_arguments(module) else "past_key_values"


def packed_hidden_states(model: Any, packed: Packed, attention: Attention = "sdpa") -> torch.Tensor:
    """Run `model` once over packed trees, token j attending to i exactly when i <= j < exit[i].

    Args:
        model: a causal language model of transformers (or peft around one) that takes 4-D masks.
        packed: B trees of at most T nodes.
        attention: "sdpa" hands the pattern to the attention that the model was loaded with, as a (B, 1, T, T) float
            mask; "flex" to torch's FlexAttention, as a block mask: it skips every block of 128 x 128 pairs where no
            token attends, is compiled at its first use and for the first few new shapes, and on CPU has no backward.

    Returns:
        (B, T, D), before the language-model head.

    Raises:
        ValueError: an unknown `attention`, or "flex" where the model, the device or gradient checkpointing bars it.
    """
    device = next(model.parameters()).device
    tokens, positions, exits = (
        torch.from_numpy(array).to(device) for array in (packed.tokens, packed.position, packed.exit)
    )
    if attention == "flex":
        with _flex_attention(unwrapped(model), device):
            return hidden_states(model, tokens, _block_mask(exits), positions)
    if attention != "sdpa":
        raise ValueError(f"`attention` must be 'sdpa' or 'flex', got {attention!r}")
    index = torch.arange(tokens.shape[1], device=device)
    allowed = (index[:, None] >= index) & (index[:, None] < exits[:, None, :])  # (B, T, T)
    return hidden_states(model, tokens, allowed, positions)


def flex_available(device: torch.device | str) -> bool:
    """Whether FlexAttention can train on `device`: on CUDA beside Triton; on CPU it has no backward.

    Example:
        >>> flex_available("cpu")
        False
    """
    return torch.device(device).type == "cuda" and find_spec("triton") is not None


def check_attention(model: Any, attention: Attention) -> None:
    """Refuse an attention path that `model` cannot be trained on where it is.

    Args:
        model: a causal language model of transformers, or peft around one.
        attention: that of `packed_hidden_states`.

    Raises:
        ValueError: "flex" for a model that transformers does not run on it, off CUDA, or with gradient checkpointing.
    """
    if attention == "flex":
        _check_flex(unwrapped(model), next(model.parameters()).device)


def _check_flex(causal: Any, device: torch.device) -> None:
    rule = "`attention` must be 'sdpa'"
    if not causal._supports_flex_attn:
        raise ValueError(f"{rule} for {causal.config.model_type}, which transformers does not run on FlexAttention")
    if torch.is_grad_enabled() and not flex_available(device):
        raise ValueError(f"{rule} on {device} unless under torch.no_grad(): FlexAttention has a backward on CUDA alone")
    layers = [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)]
    if any(layer.gradient_checkpointing or "forward" in vars(layer) for layer in layers):
        raise ValueError(f"{rule} with gradient checkpointing, which repeats a forward later; or turn that off")


@contextmanager
def _flex_attention(causal: Any, device: torch.device) -> Iterator[None]:
    """Let `causal` attend through FlexAttention for a while, or refuse where it cannot."""
    _check_flex(causal, device)
    before = causal.config._attn_implementation
    causal.set_attn_implementation("flex_attention")
    try:
        yield
    finally:
        causal.set_attn_implementation(before)


def _block_mask(exits: torch.Tensor) -> BlockMask:
    """Return the block mask of trees whose subtrees end before `exits` (B, T)."""
    batch, length = exits.shape

    def sees(row: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < exits[row, key])

    return create_block_mask(sees, B=batch, H=None, Q_LEN=length, KV_LEN=length, device=exits.device)


@contextmanager
def recomputed(model: Any, *, when: bool = True) -> Iterator[None]:
    """Recompute what the layers of `model` find in the backward pass, inside the block, instead of keeping it.

    Also called gradient checkpointing. The model stays in eval mode, so nothing is dropped out.

    Args:
        model: a causal language model of transformers, or peft around one.
        when: False for a block that changes nothing.

    Raises:
        ValueError: the model has no layers that know how.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)] if when else []
    if when and not layers:
        raise ValueError(f"`recompute` must be off for {type(model).__name__}, whose layers cannot do it")
    for layer in layers:  # transformers' own switch wants training mode, in which some layers drop out
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of forward passes in `precision`: "float32", as the weights are, or "bfloat16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def head_logits(model: Any, hidden: torch.Tensor, columns: tuple[int, int] | None = None) -> torch.Tensor:
    """Return the logits of hidden states, as the model's own forward ends: head, scale, cap.

    Args:
        model: causal language model of transformers.
        hidden: (..., D), the decoder's last hidden states.
        columns: first token and one past the last that are wanted; the whole vocabulary if None.

    Returns:
        (..., V), or (..., high - low); float32 for a model in half precision.
    """
    head = model.get_output_embeddings()
    low, high = columns or (0, None)
    if columns is not None and is_sliceable(head):
        bias = None if head.bias is None else head.bias[low:high]
        logits = torch.nn.functional.linear(hidden, head.weight[low:high], bias)
    else:
        logits = head(hidden)[..., low:high]  # a wrapped head does more than multiply
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return _scaled(logits, unwrapped(model).config.get_text_config(decoder=True))


def is_sliceable(head: Any) -> bool:
    """Whether some columns of a language-model head cost less than all: it is a matrix and no more."""
    return type(head) is torch.nn.Linear and not (
        head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    )


def _scaled(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Do what some models of transformers do after their head."""
    divisor = getattr(config, "logits_scaling", 1.0)  # Granite and MiniCPM3 divide, HyperCLOVAX multiplies
    factor = getattr(config, "logit_scale", None)  # Cohere multiplies
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    if divisor != 1.0:
        logits = logits * divisor if config.model_type == "hyperclovax" else logits / divisor
    if factor is not None:
        logits = logits * factor
    return logits if cap is None else torch.tanh(logits / cap) * cap


def head_columns(
    normalize: Normalize, vocabulary: SidVocabulary | None, trie: SidTrie | None
) -> tuple[int, int] | None:
    """Return the vocabulary columns that log-probs under `normalize` depend on, in the form of `head_logits`.

    Args:
        normalize: "full", "sid" or "allowed", with the meaning that it has in `decode.beam_search`.
        vocabulary: needed for "sid".
        trie: needed for "allowed".

    Raises:
        ValueError: an unknown `normalize`, or `vocabulary` or `trie` is missing where it needs one.

    Example:
        >>> head_columns("allowed", None, SidTrie.build([[7, 9], [4, 9]]))
        (4, 10)
    """
    if normalize not in ("full", "sid", "allowed"):
        raise ValueError(f"`normalize` must be 'full', 'sid' or 'allowed', got {normalize!r}")
    if normalize == "full":
        return None
    if normalize == "sid" and vocabulary is not None:
        return vocabulary.sid_range
    if normalize == "allowed" and trie is not None:
        return trie.token_span
    raise ValueError(f"`{'vocabulary' if normalize == 'sid' else 'trie'}` must be given for {normalize=}")


def confidence_logit(model: Any, hidden: torch.Tensor, vocabulary: SidVocabulary) -> torch.Tensor:
    """Return z_positive - z_negative of hidden states (..., D): the logit of the confidence."""
    low, high = sorted((vocabulary.positive, vocabulary.negative))
    with torch.autocast(hidden.device.type, enabled=False):  # a difference of bfloat16 logits has a few values only
        dtype = next(model.get_output_embeddings().parameters()).dtype
        logits = head_logits(model, hidden.to(dtype), (low, high + 1))
    return logits[..., vocabulary.positive - low] - logits[..., vocabulary.negative - low]


def confidence_logits(model: Any, hidden: torch.Tensor, packed: Packed, vocabulary: SidVocabulary) -> torch.Tensor:
    """Return the logits of the confidences of packed candidates, read at the end of each one's suffix.

    Args:
        model: causal language model of transformers.
        hidden: (B, nodes, D), from `packed_hidden_states`.
        packed: prompts and candidates with `vocabulary.suffix`.
        vocabulary: the two tokens of the confidence.

    Returns:
        (B, G), of no meaning where a candidate is absent.
    """
    at_end = torch.from_numpy(packed.suffix_index).to(hidden.device).clamp(min=0)  # (B, G)
    ends = hidden.gather(1, at_end[..., None].expand(-1, -1, hidden.shape[2]))  # (B, G, D)
    return confidence_logit(model, ends, vocabulary)
