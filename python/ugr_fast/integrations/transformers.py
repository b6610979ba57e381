"""Semantic IDs inside `model.generate` of transformers: a logits processor, a prefix function, a whole beam search.

    generate(..., prefix_allowed_tokens_fn=prefix_allowed_tokens_fn(trie, P))     a Python call per beam and step
    generate(..., logits_processor=[SidLogitsProcessor(trie, P)])                 one kernel call per step
    generate(..., custom_generate=beam_generate, trie=trie)                       one prefill per prompt, no mask

The first two leave the search to `generate`. What may come next they read off the token ids alone, so it does not
matter how beams were reordered between two steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import EosTokenCriteria, LogitsProcessor, LogitsProcessorList, MaxLengthCriteria
from transformers.generation import GenerateBeamDecoderOnlyOutput

from ugr_fast.decode import beam_search, check_tokens, logprobs_of
from ugr_fast.model import head_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ugr_fast.decode import Beams
    from ugr_fast.model import Normalize, SidVocabulary
    from ugr_fast.trie import Filter, SidTrie

__all__ = ["SidBeamOutput", "SidLogitsProcessor", "beam_generate", "prefix_allowed_tokens_fn"]

_SAMPLING = {
    "TemperatureLogitsWarper": "temperature=1.0",
    "TopKLogitsWarper": "top_k=0",
    "TopPLogitsWarper": "top_p=1.0",
    "TopHLogitsWarper": "top_h=None",
    "MinPLogitsWarper": "min_p=None",
    "TypicalLogitsWarper": "typical_p=1.0",
    "EpsilonLogitsWarper": "epsilon_cutoff=0.0",
    "EtaLogitsWarper": "eta_cutoff=0.0",
}
"""What `generate` runs behind every other processor under `do_sample=True`, and the argument that turns it off."""
_ALWAYS = {
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty=1.0",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size=0",
    "PrefixConstrainedLogitsProcessor": "prefix_allowed_tokens_fn=None",
    "NoBadWordsLogitsProcessor": "bad_words_ids=None",
    "SuppressTokensLogitsProcessor": "suppress_tokens=None",
    "MinLengthLogitsProcessor": "min_length=0",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens=None",
    "LogitNormalization": "renormalize_logits=False",
}
"""The commonest of those that `generate` runs under beam search too."""
_KNOWN = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache", "past_key_values"}
"""Arguments of a model's forward that `generate` makes by itself."""
_REMEMBERED = 2**14  # prefixes: beams share them, and a lookup costs a tenth of a call of the kernel
_UNSEEN = ("output_logits", "output_attentions", "output_hidden_states")


class SidLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Keep `generate` inside a trie: the scores of tokens that may come next stay, all others become -inf.

    Right for greedy and beam search, for draws and for `num_return_sequences`; prompts are padded on the left, as
    `generate` wants them. Behind a whole semantic ID only `eos_token_id` may come, and behind that only padding.

    The processor must be the only one. A `generation_config` may bring others: a repetition penalty that shifts the
    scores, or, under `do_sample=True`, the temperature, top-k (50 unless told otherwise) and top-p that run *after* it
    and would cut semantic IDs off silently. It refuses to run beside them, and names the arguments of `generate` that
    turn them off. Under `do_sample=False` transformers itself leaves sampling settings out.

    Args:
        trie: semantic IDs that may be answered; none may be a prefix of another.
        prompt_length: columns of `input_ids` before the answer: `input_ids.shape[1]` as `generate` gets it, padding
            included.
        separator: instead of it, the token or tokens whose last occurrence in a row stands before the answer. The last
            of them must occur in no semantic ID.
        normalize: "full" leaves scores as they come: log-probs over the vocabulary under beam search, logits under
            draws; "sid" and "allowed" give log-probs over the tokens of `vocabulary`'s semantic IDs, or over those that
            may come next.
        temperature: 1e-30 .. 1e30; scores are divided by it before they are normalised.
        vocabulary: needed for "sid".
        filter: what each prompt may not be answered with, from `trie.filter`; one row, or one for every prompt.
        eos_token_id: what ends an answer. Needed where semantic IDs differ in length or `generate` goes on behind them;
            its own log-prob counts under "full" alone. A trie built with `end=` has it as the last token.
        pad_token_id: what follows the end; `eos_token_id` by default.
        alone: False to let other processors of `generate` change the scores too.

    Raises:
        ValueError: arguments that exclude one another; and when called, a row whose tokens are the start of no semantic
            ID, that `filter` leaves nothing, or whose allowed tokens have no finite score; and other processors.

    Example:
        >>> from ugr_fast import SidTrie
        >>> processor = SidLogitsProcessor(SidTrie.build([[1, 3], [2, 3]]), prompt_length=1)
        >>> processor(torch.tensor([[0], [0]]), torch.zeros(2, 4))
        tensor([[-inf, 0., 0., -inf],
                [-inf, 0., 0., -inf]])

    Source: the interface is that of transformers' `PrefixConstrainedLogitsProcessor`.
    """

    def __init__(
        self,
        trie: SidTrie,
        prompt_length: int | None = None,
        *,
        separator: int | Sequence[int] | None = None,
        normalize: Normalize = "full",
        temperature: float = 1.0,
        vocabulary: SidVocabulary | None = None,
        filter: Filter | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        alone: bool = True,
    ) -> None:
        if not 1e-30 <= temperature <= 1e30:
            raise ValueError(f"`temperature` must lie in 1e-30 .. 1e30, got {temperature}")
        self._answers = _Answers(trie, prompt_length, separator, filter, eos_token_id, pad_token_id)
        self._columns = head_columns(normalize, vocabulary, trie)
        check_tokens(trie, normalize, self._columns)
        self._normalize, self._temperature, self._alone = normalize, temperature, alone

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores (R, V) of rows of tokens (R, T), with -inf where the trie does not go on."""
        if self._alone:
            _refuse_company(self._company())
        if self._answers.max_token >= scores.shape[1]:
            raise ValueError(
                f"`trie` must hold tokens of the model's vocabulary, below {scores.shape[1]}, got "
                f"{self._answers.max_token}"
            )
        tokens, forced = self._answers.next_tokens(input_ids.cpu().numpy())
        padding = torch.from_numpy(tokens < 0).to(scores.device)
        index = torch.from_numpy(np.where(tokens < 0, tokens[:, :1], tokens)).to(scores.device)  # padding: the first
        chosen = scores.gather(1, index)  # (R, C)
        self._refuse_odd(chosen, input_ids)
        chosen = self._normalized(chosen, padding, torch.from_numpy(forced).to(scores.device), scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, index, chosen)

    def _normalized(
        self, chosen: torch.Tensor, padding: torch.Tensor, forced: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        """Return the scores to give, (R, C), from those of the tokens that may come next."""
        if self._normalize == "allowed":
            chosen = chosen / self._temperature
            return chosen - chosen.masked_fill(padding, -torch.inf).logsumexp(1, keepdim=True)
        if self._normalize == "full" and self._temperature == 1:
            return chosen
        low, high = self._columns or (0, scores.shape[1])
        chosen = logprobs_of(chosen, scores[:, low:high], self._temperature)
        return chosen if self._normalize == "full" else chosen.masked_fill(forced[:, None], 0)

    def _company(self) -> list[Any]:
        """Return the other processors of the list that is calling.

        A processor is told nothing of the generation configuration, and this list is the only place that shows what
        `generate` does to the scores before and after it.
        """
        caller = sys._getframe(2).f_locals.get("self")
        return [other for other in caller if other is not self] if isinstance(caller, LogitsProcessorList) else []

    @staticmethod
    def _refuse_odd(chosen: torch.Tensor, input_ids: torch.Tensor) -> None:
        best = chosen.amax(1)
        if not bool(best.isfinite().all()):
            row = int((~best.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"`scores` must be finite for a token that may come next, got {best[row].item()} as the best of row "
                f"{row}, which ends in {input_ids[row, -5:].tolist()}; the model or another processor forbids them "
                "all: say what may not be answered with `filter`"
            )


def prefix_allowed_tokens_fn(
    trie: SidTrie,
    prompt_length: int | None = None,
    *,
    separator: int | Sequence[int] | None = None,
    filter: Filter | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> Callable[[int, torch.Tensor], list[int]]:
    """Return what `generate` takes under this name: a function of a prompt's number and one row of tokens.

    For code that has a place for such a function and for nothing else. `SidLogitsProcessor` does the same many times
    faster; and this function cannot see what else changes the scores, so pass `do_sample=False`.

    Args:
        trie: as for `SidLogitsProcessor`, and so the other arguments.
        prompt_length: columns of `input_ids` before the answer.
        separator: instead of it, what stands before the answer.
        filter: what each prompt may not be answered with.
        eos_token_id: what ends an answer.
        pad_token_id: what follows the end.

    Returns:
        fn(batch_id, input_ids (T,)) -> tokens, ascending and never empty; it raises ValueError where a row is not the
        start of a semantic ID.

    Raises:
        ValueError: arguments that exclude one another.

    Example:
        >>> from ugr_fast import SidTrie
        >>> allowed = prefix_allowed_tokens_fn(SidTrie.build([[4, 7], [6, 7]]), prompt_length=2)
        >>> allowed(0, torch.tensor([1, 1])), allowed(0, torch.tensor([1, 1, 6]))
        ([4, 6], [7])

    Source: `generate` of transformers; De Cao et al., Autoregressive Entity Retrieval (arXiv 2010.00904).
    """
    answers = _Answers(trie, prompt_length, separator, filter, eos_token_id, pad_token_id)

    @lru_cache(maxsize=_REMEMBERED)
    def behind(prompt: int, length: int, tail: tuple[int, ...]) -> NDArray[np.int64]:
        row = np.array([(0,) * (length - len(tail)) + tail], np.int64)  # what the prompt was does not matter
        tokens, _ = answers.next_tokens(row, prompt)
        return tokens[tokens >= 0]

    def allowed(batch_id: int, input_ids: torch.Tensor) -> list[int]:
        prompt = 0 if filter is None or filter.num_rows == 1 else batch_id
        tail = tuple(input_ids[prompt_length:].tolist())
        tokens: list[int] = behind(prompt, len(input_ids), tail).tolist()
        return tokens

    return allowed


class _Answers:
    """What may come next in rows of tokens, each a prompt and the beginning of its answer."""

    def __init__(
        self,
        trie: SidTrie,
        prompt_length: int | None,
        separator: int | Sequence[int] | None,
        filter: Filter | None,
        eos_token_id: int | None,
        pad_token_id: int | None,
    ) -> None:
        self._trie, self._filter = trie, filter
        self._prompt_length = prompt_length
        self._separator = None if separator is None else np.atleast_1d(np.asarray(separator, np.int64))
        pad = eos_token_id if pad_token_id is None else pad_token_id
        self._end = None if eos_token_id is None or pad is None else (eos_token_id, pad)
        self._check()
        self.max_token = max(trie.max_token, *(self._end or (0,)))

    def _check(self) -> None:
        if not self._trie.prefix_free:
            raise ValueError("`trie` must have no SID that is a prefix of another; build it with `end=`")
        if self._filter is not None and self._filter.trie is not self._trie:
            raise ValueError("`filter` must be made by the trie that is searched; call `filter` of that one")
        if (self._prompt_length is None) == (self._separator is None):
            raise ValueError("`prompt_length` or `separator` must say where an answer starts; give one of the two")
        if self._prompt_length is not None and self._prompt_length < 0:
            raise ValueError(f"`prompt_length` must be at least 0, got {self._prompt_length}")
        if self._separator is not None:
            self._check_separator(self._separator)

    def _check_separator(self, separator: NDArray[np.int64]) -> None:
        if not len(separator):
            raise ValueError("`separator` must be a token or several, got none")
        last = int(separator[-1])
        if last in (self._end or ()) or np.isin(last, self._trie.arrays()["tokens"][1:]):  # 0 is the root
            raise ValueError(f"`separator` must end with a token that no SID, end or padding holds, got {last}")

    def next_tokens(
        self, rows: NDArray[np.int64], prompt: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the tokens that may come next (R, C), right-padded with -1, and which rows (R,) are over.

        Args:
            rows: (R, T) tokens; as many for every prompt, one prompt after the other.
            prompt: the one that all rows belong to, where it is only one.
        """
        answers = _behind(rows, self._starts(rows))
        ended = self._cut_at_end(answers)
        nodes = self._trie.walk(answers)
        self._refuse(nodes < 0, answers, "which starts no SID of `trie`")
        tokens = self._of_filter(self._trie._inner.allowed, nodes, prompt)
        whole = self._of_filter(self._trie._inner.lowest_items, nodes, prompt)[:, 0] >= 0
        over = tokens[:, 0] < 0
        self._refuse(over & ~whole, answers, "behind which `filter` leaves nothing")
        if self._end is None:
            self._refuse(over, answers, "a whole SID, and `eos_token_id` does not say what ends it")
            return tokens, over
        eos, pad = self._end
        self._refuse(ended & ~whole & ~(tokens == eos).any(1), answers, "which ends before a whole SID")
        tokens = np.where((over | ended)[:, None], -1, tokens)
        tokens[over, 0] = eos
        tokens[ended, 0] = pad
        return tokens, over | ended

    def _starts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the column (R,) where the answer of each row starts."""
        length = rows.shape[1]
        if self._separator is None:
            start = self._prompt_length or 0
            if length < start:
                raise ValueError(f"`prompt_length` must be at most the length of `input_ids`, {length}, got {start}")
            return np.full(len(rows), start)
        size = len(self._separator)
        found = np.zeros((len(rows), max(length, 1)), np.bool_)  # where a separator starts
        if length >= size:
            windows = np.lib.stride_tricks.sliding_window_view(rows, size, axis=1)
            found[:, : length - size + 1] = (windows == self._separator).all(2)
        if not found.any(1).all():
            row = int(found.any(1).argmin())
            raise ValueError(
                f"`separator` must stand in every row of `input_ids`, got none of {self._separator.tolist()} in row "
                f"{row}, which ends in {rows[row, -5:].tolist()}"
            )
        starts: NDArray[np.int64] = found.shape[1] - found[:, ::-1].argmax(1) - 1 + size
        return starts

    def _cut_at_end(self, answers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Blank the end token and all behind it; return which rows (R,) had one."""
        if self._end is None:
            return np.zeros(len(answers), np.bool_)
        past = np.logical_or.accumulate(answers == self._end[0], axis=1)
        answers[past] = -1
        return np.asarray(past.any(1))

    def _of_filter(
        self, kernel: Callable[..., NDArray[np.int64]], nodes: NDArray[np.int64], prompt: int | None
    ) -> NDArray[np.int64]:
        """Ask the trie about nodes (R,) under each one's row of the filter: (R, C)."""
        if self._filter is None or self._filter.num_rows == 1:
            found = kernel(nodes[None], None if self._filter is None else self._filter._inner)
            return found.reshape(len(nodes), -1)
        num_prompts = self._filter.num_rows
        if prompt is not None and prompt < num_prompts:
            grid = np.full((num_prompts, 1), -1)
            grid[prompt] = nodes
            return kernel(grid, self._filter._inner).reshape(num_prompts, -1)[[prompt]]
        if prompt is not None or len(nodes) % num_prompts:
            asked = f"{len(nodes)} rows" if prompt is None else f"prompt {prompt}"
            raise ValueError(f"`filter` must have 1 row or one for every prompt, got {num_prompts} for {asked}")
        return kernel(nodes.reshape(num_prompts, -1), self._filter._inner).reshape(len(nodes), -1)

    def _refuse(self, wrong: NDArray[np.bool_], answers: NDArray[np.int64], why: str) -> None:
        """Raise if any row is `wrong`, and name the first."""
        if not wrong.any():
            return
        row = int(wrong.argmax())
        answer = answers[row][answers[row] >= 0].tolist()
        where = f"`prompt_length` {self._prompt_length}" if self._separator is None else "`separator`"
        raise ValueError(
            f"`input_ids` must go on, behind {where}, with the start of a SID, got {answer} in row {row}, {why}; "
            "give `prompt_length=input_ids.shape[1]` of the padded prompts, `max_new_tokens` of the longest SID and "
            "its end, and `do_sample=False` with beams, which draw outside the trie where it has too few SIDs"
        )


def _behind(rows: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what stands in each row from its start on: (R, D), right-padded with -1."""
    columns = starts[:, None] + np.arange(rows.shape[1] - starts.min(initial=rows.shape[1]))
    past = columns >= rows.shape[1]
    answers: NDArray[np.int64] = np.take_along_axis(rows, np.where(past, 0, columns), axis=1)
    answers[past] = -1
    return answers


def _refuse_company(others: Sequence[Any]) -> None:
    """Raise if other processors run too, and say what turns them off."""
    if not others:
        return
    names = [type(other).__name__ for other in others]
    settings = [setting for name, setting in (_SAMPLING | _ALWAYS).items() if name in names]
    remedy = f"pass {', '.join(settings)} to `generate`" if settings else "leave them out"
    if any(name in _SAMPLING for name in names):
        remedy += ", or do_sample=False, which turns off all that is for sampling"
    raise ValueError(
        f"`logits_processor` must be the only one that changes scores, got also {', '.join(names)}, perhaps from the "
        f"model's generation_config; {remedy}"
    )


@dataclass
class SidBeamOutput(GenerateBeamDecoderOnlyOutput):  # type: ignore[misc]
    """What `beam_generate` returns: the usual output of a beam search, and what only this package knows.

    Of the usual fields `sequences` (B * N, P + L) and `sequences_scores` (B * N,) are there, the others are None.

    Attributes:
        logprobs: (B * N, L) log-prob of each token of an answer, 0 behind its end; what `compute_transition_scores`
            would give.
        items: (B * N,) lowest item id of each answer, -1 where there are fewer answers than beams.
    """

    logprobs: torch.Tensor | None = None
    items: torch.Tensor | None = None


def beam_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    *,
    trie: SidTrie,
    normalize: Normalize = "full",
    vocabulary: SidVocabulary | None = None,
    filter: Filter | None = None,
    **model_kwargs: Any,
) -> SidBeamOutput | torch.Tensor:
    """Search a trie inside `model.generate`, each prompt computed once; to be given as `custom_generate`.

    `model.generate(**inputs, num_beams=K, num_return_sequences=N, max_new_tokens=L, custom_generate=beam_generate,
    trie=trie)`; before transformers 4.57, and in any release, `custom_generate=partial(beam_generate, trie=trie)`.

    It is `ugr_fast.decode.beam_search` with the `num_beams`, `num_return_sequences` and `length_penalty` of the call,
    exhaustive like `early_stopping="never"`. Settings for sampling, `do_sample` included, play no part in it, whoever
    has set them; what would change the scores of a beam search is refused. Answers are what the trie holds: build it
    with `end=` for an EOS behind each, whose log-prob then counts.

    Args:
        model: causal language model, as `generate` hands it on; and so the next six arguments.
        input_ids: (B * max(K, N), P), every prompt repeated; only the first of each is looked at.
        logits_processor: nothing but what is for sampling.
        stopping_criteria: a length, at least the depth of the trie, and EOS.
        generation_config: the settings of the call.
        synced_gpus: not used.
        streamer: must be None, as in any beam search.
        trie: semantic IDs that may be answered.
        normalize: as in `ugr_fast.decode.beam_search`.
        vocabulary: needed for "sid".
        filter: what each prompt may not be answered with, from `trie.filter`.
        model_kwargs: what else `generate` made of its arguments.

    Returns:
        (B * N, P + L) prompts and answers, best first, padded with `pad_token_id` where an answer is shorter or, with
        score -inf, absent; under `return_dict_in_generate=True` a `SidBeamOutput` around them.

    Raises:
        ValueError: what it cannot give or do: `output_logits`, `output_attentions`, `output_hidden_states`, other
            processors or stopping criteria, arguments of the model's own, a filled cache, an encoder, fewer new tokens
            than the trie is deep.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from ugr_fast import SidTrie
        >>> config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None)
        >>> trie = SidTrie.build([[4, 7], [6, 7], [6, 8]])
        >>> with torch.no_grad():
        ...     model = LlamaForCausalLM(config).eval()
        >>> from functools import partial
        >>> found = model.generate(torch.tensor([[1, 2]]), num_beams=2, num_return_sequences=2, max_new_tokens=2,
        ...     custom_generate=partial(beam_generate, trie=trie))
        >>> found.shape, bool((trie.lookup(found[:, 2:]) >= 0).all())
        (torch.Size([2, 4]), True)

    Source: `GenerationMixin.generate` of transformers.
    """
    config, copies = generation_config, max(generation_config.num_beams, generation_config.num_return_sequences)
    _refuse_unable(model, config, streamer, trie.depth, input_ids.shape[1])
    _refuse_company([other for other in logits_processor if type(other).__name__ not in _SAMPLING])
    _refuse_criteria(stopping_criteria)
    prompts = input_ids[::copies]  # (B, P): `generate` has repeated what is to be computed once
    mask = _mask_of(prompts, copies, model_kwargs)
    found = beam_search(
        model,
        prompts,
        mask,
        trie,
        num_beams=config.num_beams,
        normalize=normalize,
        vocabulary=vocabulary,
        filter=filter,
        length_penalty=config.length_penalty,
    )
    output = _output(prompts, found, config.num_return_sequences, _padding(config))
    return output if config.return_dict_in_generate else output.sequences


def _refuse_unable(model: Any, config: Any, streamer: Any, depth: int, length: int) -> None:
    """Refuse settings of `generate` that the search cannot serve."""
    room = config.max_length - length
    rules = [
        ("model", "be a decoder without an encoder", not model.config.is_encoder_decoder, model.config.model_type),
        ("streamer", "be None for beams", streamer is None, type(streamer).__name__),
        ("max_new_tokens", f"be at least the depth of `trie`, {depth}", room >= depth, room),
        (
            "num_return_sequences",
            f"be at most `num_beams` {config.num_beams}",
            config.num_return_sequences <= config.num_beams,
            config.num_return_sequences,
        ),
        *((name, "be off, since no such table is ever made", not getattr(config, name), True) for name in _UNSEEN),
    ]
    for name, rule, holds, value in rules:
        if not holds:
            raise ValueError(f"`{name}` must {rule} in `beam_generate`, got {value}")


def _refuse_criteria(criteria: Sequence[Any]) -> None:
    """Refuse to stop for any other reason than length or EOS: the search always ends with whole SIDs."""
    others = [type(one).__name__ for one in criteria if not isinstance(one, MaxLengthCriteria | EosTokenCriteria)]
    if others:
        raise ValueError(
            f"`stopping_criteria` must be length and EOS alone in `beam_generate`, got {', '.join(others)}; leave out "
            "`stop_strings`, `max_time` and criteria of your own"
        )


def _mask_of(prompts: torch.Tensor, copies: int, model_kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the attention mask (B, P), having refused what else is meant for the model's forward."""
    given = {name: value for name, value in model_kwargs.items() if value is not None}
    others = sorted(given.keys() - _KNOWN)
    if others:
        raise ValueError(
            f"`generate` must hand on no arguments of the model's own to `beam_generate`, got {', '.join(others)}; "
            "leave them out"
        )
    cache = given.get("cache", given.get("past_key_values"))
    if cache is not None and cache.get_seq_length():
        raise ValueError(f"`past_key_values` must be empty in `beam_generate`, got {cache.get_seq_length()} tokens")
    mask = given["attention_mask"][::copies] if "attention_mask" in given else torch.ones_like(prompts)
    positions = given["position_ids"][::copies] if "position_ids" in given else mask.cumsum(1) - 1
    if positions.shape != mask.shape or bool(((positions != mask.cumsum(1) - 1) & mask.bool()).any()):
        raise ValueError("`position_ids` must count the tokens of `attention_mask` in `beam_generate`; leave them out")
    return mask


def _padding(config: Any) -> int:
    """Return what `generate` pads with: padding, else EOS, else -1."""
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    return -1


def _output(prompts: torch.Tensor, found: Beams, num_sequences: int, padding: int) -> SidBeamOutput:
    """Lay the best beams of every prompt behind it."""
    tokens, logprobs = (table[:, :num_sequences].flatten(0, 1) for table in (found.tokens, found.logprobs))
    longest = int((tokens >= 0).sum(1).max())
    answers = tokens[:, :longest].masked_fill(tokens[:, :longest] < 0, padding).to(prompts.device)
    return SidBeamOutput(
        sequences=torch.cat([prompts.repeat_interleave(num_sequences, 0), answers], dim=1),
        sequences_scores=found.scores[:, :num_sequences].flatten().to(prompts.device),
        logprobs=logprobs[:, :longest].to(prompts.device),
        items=found.items[:, :num_sequences].flatten().to(prompts.device),
    )
