"""Semantic IDs inside vLLM: logits processors that keep requests in a catalogue.

    LLM(
        model,
        logits_processors=["ugr_fast.integrations.vllm:SidLogitsProcessor"],
        additional_config={"ugr_fast": {"trie": "items.safetensors", "end": 151645, "separator": [77091, 198]}},
        logprobs_mode="processed_logprobs",
    )

`SidLogitsProcessor` is for the V1 model runner, `SidLogitsProcessorV2` for Model Runner V2; vLLM says which one it runs
and refuses the other. The settings are those of the engine:

| setting | |
|---|---|
| `trie` | the file of a `SidTrie`; not in the folder of the model, where vLLM takes every `.safetensors` for weights |
| `end` | the token that may follow a whole semantic ID, as a rule the model's end-of-sequence token |
| `separator` | the token or tokens behind which a semantic ID starts; the last of them must occur in none |

What may come next is read off a request's token ids, so it does not matter which of them came in the prompt. vLLM's own
beam search hands every beam in as the prompt of a new request, without `extra_args`; it needs `separator`.

| `SamplingParams(extra_args={"sid_start": ...})` | the semantic ID starts |
|---|---|
| absent, or `"separator"` | behind the last occurrence of `separator` |
| `"output"` | with the first generated token |
| `P` | at token P of the request, 0 being the first of its prompt |
| `"off"` | nowhere: the request is left alone |

Tokens that are the start of no semantic ID cannot be refused here: an exception ends vLLM's engine and with it every
request. They are answered with `end`, and so is a request whose start is unknown: never with anything that is allowed
to all. `validate_params`, which vLLM turns into an error of the one request, refuses any other `sid_start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from ugr_fast.trie import SidTrie

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorOfRunnerV2
except ImportError:  # a vLLM that has no such interface yet, and refuses the class below
    LogitsProcessorOfRunnerV2 = object

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

__all__ = ["SidLogitsProcessor", "SidLogitsProcessorV2"]

_WORDS = ("separator", "output", "off")
_SETTINGS = {"trie", "end", "separator"}


class _Catalogue:
    """The trie of an engine, and the masking of logits by it."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        settings = _settings(vllm_config.additional_config)
        self._trie = SidTrie.load(settings["trie"])
        self._end = int(settings["end"])
        separator = settings.get("separator")
        self._separator = [] if separator is None else [int(token) for token in np.atleast_1d(separator)]
        self._check(vllm_config.model_config.get_vocab_size())
        self.window = self._trie.depth + len(self._separator)
        """How many of the last tokens of a request decide what may come next."""

    def _check(self, size: int) -> None:
        if not self._trie.prefix_free:
            raise ValueError("`trie` must have no SID that is a prefix of another; build it with `end=`")
        largest = max(self._trie.max_token, self._end, *self._separator)
        if min(self._end, *self._separator, 0) < 0 or largest >= size:
            raise ValueError(
                f"`trie`, `end` and `separator` must hold tokens of the model's vocabulary, 0 .. {size - 1}, got "
                f"{largest} as the largest, `end` {self._end} and `separator` {self._separator}"
            )
        last = self._separator[-1:]
        if last == [self._end] or np.isin(last, self._trie.arrays()["tokens"][1:]).any():  # 0 is the root
            raise ValueError(f"`separator` must end with a token that is neither `end` nor in any SID, got {last[0]}")

    def prefix(self, tail: Sequence[int], length: int, start: int | None) -> list[int] | None:
        """Return what a request holds of its semantic ID.

        Args:
            tail: its last tokens, `window` of them if there are as many.
            length: the number of all of its tokens.
            start: where the semantic ID starts; None for behind the separator.

        Returns:
            At most `depth` tokens; None where they cannot be the start of a semantic ID.
        """
        known = self._since_separator(tail) if start is None else length - start
        if known is None or not 0 <= known <= self._trie.depth:
            return None
        found = list(tail[len(tail) - known :])
        return None if min(found, default=0) < 0 else found  # a place that vLLM keeps for a token still to come

    def _since_separator(self, tail: Sequence[int]) -> int | None:
        """Return how many tokens follow the last separator; its last token tells, as no semantic ID holds that."""
        separator, size = self._separator, len(self._separator)
        for end in range(len(tail), size - 1 if size else len(tail), -1):
            if tail[end - 1] == separator[-1]:
                return len(tail) - end if list(tail[end - size : end]) == separator else None
        return None

    def mask(self, logits: torch.Tensor, rows: list[int], prefixes: list[list[int] | None]) -> torch.Tensor:
        """Set all but the tokens that may come next to -inf, in place, in these rows of the logits (R, V)."""
        nodes = self._trie.walk([prefix or [] for prefix in prefixes])
        nodes[[prefix is None for prefix in prefixes]] = -1
        allowed = self._trie.allowed(nodes)  # (N, C)
        ended = torch.from_numpy(allowed[:, 0] < 0)
        allowed[ended.numpy(), 0] = self._end
        index = torch.from_numpy(np.where(allowed < 0, allowed[:, :1], allowed)).to(logits.device)  # padding: the first
        chosen = logits[rows].gather(1, index)
        chosen[ended] = 0.0  # whatever another processor made of `end`: it is all there is
        logits[rows] = torch.full_like(logits[rows], -torch.inf).scatter_(1, index, chosen)
        return logits


class SidLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Keep requests of a vLLM engine in its catalogue, on the V1 model runner.

    A step costs one walk of the trie for all requests and a pass over their logits. vLLM reports the log-probs that
    this leaves only with `logprobs_mode="processed_logprobs"`, normalised over the tokens that may come next and after
    temperature, top-k and top-p; its beam search ranks beams by what it reports.

    Args:
        vllm_config: the engine's, with `additional_config["ugr_fast"]`.
        device: not used; masks go where the logits are.
        is_pin_memory: not used.

    Raises:
        ValueError: settings that are missing, unknown or no tokens of the model, when the engine starts.

    Example:
        >>> from types import SimpleNamespace
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     SidTrie.build([[1, 3], [2, 3]]).save(Path(folder, "items.safetensors"))
        ...     settings = {"trie": f"{folder}/items.safetensors", "end": 4}
        ...     model = SimpleNamespace(get_vocab_size=lambda: 5)
        ...     config = SimpleNamespace(additional_config={"ugr_fast": settings}, model_config=model)
        ...     processor = SidLogitsProcessor(config, torch.device("cpu"), False)
        >>> params = SimpleNamespace(extra_args={"sid_start": "output"})
        >>> added = [(0, params, [9, 9], [2])]  # row, parameters, prompt, output so far
        >>> processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
        >>> processor.apply(torch.zeros(1, 5))
        tensor([[-inf, -inf, -inf, 0., -inf]])

    Source: vLLM's interface for custom logits processors, `vllm.v1.sample.logits_processor`.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._catalogue = _Catalogue(vllm_config)
        self._requests: dict[int, tuple[list[int], list[int], int | None]] = {}  # by row: prompt, output, start

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a `sid_start` that says nothing, with a ValueError that vLLM answers the request with."""
        _sid_start(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Return False: greedy requests need the mask too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, go, and move between rows; their lists of output tokens grow by themselves."""
        if batch_update is None:
            return
        requests = self._requests
        for row in batch_update.removed:
            requests.pop(row, None)
        for row, params, prompt, output in batch_update.added:
            requests.pop(row, None)
            if (start := _sid_start(params)) != "off":
                requests[row] = prompt or [], output, _first(start, len(prompt or []))
        for one, other, way in batch_update.moved:
            here, there = requests.pop(one, None), requests.pop(other, None)
            if here is not None:
                requests[other] = here
            if there is not None and way == MoveDirectionality.SWAP:
                requests[one] = there

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (R, V), changed in place."""
        if not self._requests:
            return logits
        window, prefixes = self._catalogue.window, []
        for prompt, output, start in self._requests.values():
            tail = (prompt[max(0, len(prompt) + len(output) - window) :] + output)[-window:]
            prefixes.append(self._catalogue.prefix(tail, len(prompt) + len(output), start))
        return self._catalogue.mask(logits, list(self._requests), prefixes)


class SidLogitsProcessorV2(LogitsProcessorOfRunnerV2):  # type: ignore[misc]
    """Keep requests of a vLLM engine in its catalogue, on Model Runner V2.

    As `SidLogitsProcessor`. The runner keeps token ids on the device, so every step waits for it once, to read the
    last few of each request.

    Args:
        vllm_config: the engine's, with `additional_config["ugr_fast"]`.
        req_states: the runner's token ids and lengths, by slot.

    Raises:
        ValueError: settings that are missing, unknown or no tokens of the model, and speculative decoding, when the
            engine starts.

    Source: vLLM's interface of Model Runner V2, `vllm.v1.worker.gpu.sample.logits_processor`.
    """

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError(
                "`speculative_config` must be None: draft tokens are not walked through the trie; turn it off, or take "
                "this processor out"
            )
        self._catalogue = _Catalogue(vllm_config)
        self._states = req_states
        self._starts: dict[int, int | str] = {}  # by slot

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a `sid_start` that says nothing, with a ValueError that vLLM answers the request with."""
        _sid_start(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Note where the semantic ID of the request in this slot starts; return whether it is constrained."""
        self._starts[req_idx] = _sid_start(sampling_params)
        return self._starts[req_idx] != "off"

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Return the logits (R, V), changed in place."""
        slots, lengths = ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np  # a row for each request, and exact, undrafted
        rows = [row for row, slot in enumerate(slots) if self._starts.get(int(slot), "off") != "off"]
        if not rows:
            return logits
        tails, prefixes = self._tails(slots[rows], lengths[rows]), []
        for slot, length, tail in zip(slots[rows].tolist(), lengths[rows].tolist(), tails, strict=True):
            start = _first(self._starts[slot], int(self._states.prompt_len.np[slot]))
            prefixes.append(self._catalogue.prefix(tail[max(0, len(tail) - length) :], length, start))
        return self._catalogue.mask(logits, rows, prefixes)

    def _tails(self, slots: Any, lengths: Any) -> list[list[int]]:
        """Return the last tokens of the requests in these slots, `window` of them, what comes before the first too."""
        tokens = self._states.all_token_ids.gpu
        places = np.maximum(lengths[:, None] - self._catalogue.window + np.arange(self._catalogue.window), 0)
        rows, columns = (torch.from_numpy(np.asarray(at, np.int64)).to(tokens.device) for at in (slots, places))
        return tokens[rows[:, None], columns].tolist()  # type: ignore[no-any-return]


def _settings(additional_config: Any) -> dict[str, Any]:
    """Return the settings that the engine was given."""
    found = additional_config.get("ugr_fast") if isinstance(additional_config, dict) else None
    if not isinstance(found, dict) or not {"trie", "end"} <= found.keys() <= _SETTINGS:
        raise ValueError(
            "`additional_config` must hold {'ugr_fast': {'trie': path, 'end': token}}, and 'separator' beside them if "
            f"one marks where semantic IDs start; got {found!r} as 'ugr_fast'"
        )
    return found


def _sid_start(params: SamplingParams) -> int | str:
    """Return where the semantic ID of a request starts."""
    start: Any = (params.extra_args or {}).get("sid_start", "separator")
    if start in _WORDS or (isinstance(start, int) and not isinstance(start, bool) and start >= 0):
        return start  # type: ignore[no-any-return]
    raise ValueError(
        "`extra_args['sid_start']` must be 'separator', 'output', 'off' or the place of a token, 0 or more; got "
        f"{start!r}"
    )


def _first(start: int | str, prompt_length: int) -> int | None:
    """Return the place of the first token, None for behind the separator."""
    return prompt_length if start == "output" else start if isinstance(start, int) else None
