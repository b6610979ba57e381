"""Constrained search with a causal language model: beams, stochastic beams, samples, groups.

`beam.BeamSearch` selects, an engine (`engines`) runs the model, and this module stands between them: it asks the engine
for the logits of those beams that have something to decide, and hands on those of their candidates. Under
`normalize="allowed"` an only child has log-prob 0, so its parent has nothing to decide: the token waits until a later
decision of its beam needs it, and is never run if there is none. A model's `generation_config` is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ugr_fast import _core
from ugr_fast.beam import BeamResult, BeamSearch, Method
from ugr_fast.engines import RowEngine, TreeEngine
from ugr_fast.model import Normalize, head_columns, state_size, takes_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ugr_fast.engines import Engine
    from ugr_fast.model import SidVocabulary
    from ugr_fast.readout import Readout
    from ugr_fast.trie import Filter, SidTrie

__all__ = ["Beams", "Normalize", "beam_search"]


@dataclass(frozen=True)
class Beams:
    """What `beam_search` found: K beams per prompt, best first.

    Attributes:
        tokens: (B, K, L) int64, −1 where a beam is shorter or absent.
        scores: (B, K) sums of token log-probs, over length ** length_penalty; −inf for an absent beam.
        logprobs: (B, K, L) token log-probs, 0 past the end of a beam.
        items: (B, K) int64, the lowest item id of each semantic ID that the filter leaves, −1 for an absent beam.
        confidence: (B, K) in [0, 1], NaN for an absent beam; None if it was not asked for.
        states: (B, K, D) of the model at the last token of each beam, NaN for an absent one; None likewise.
        perturbed: (B, K) perturbed log-probs of a stochastic search, else None.
        threshold: (B,) what they had to exceed, −inf if everything was found; None but for a stochastic search.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    logprobs: torch.Tensor
    items: torch.Tensor
    confidence: torch.Tensor | None = None
    states: torch.Tensor | None = None
    perturbed: torch.Tensor | None = None
    threshold: torch.Tensor | None = None
    _found: BeamResult | None = field(default=None, repr=False)

    @property
    def inclusion(self) -> torch.Tensor | None:
        """Probability (B, K) of each beam to be found, given the threshold; see `BeamResult.inclusion`."""
        inclusion = self._found and self._found.inclusion
        return None if inclusion is None else torch.from_numpy(inclusion)

    def expand_items(self, num_items: int) -> torch.Tensor:
        """Rank items: all items of a semantic ID that the filter leaves, ascending id, at the rank of their SID.

        Args:
            num_items: M, items per prompt.

        Returns:
            (B, M) int64 item ids, −1 where fewer than M were found.
        """
        if self._found is None:
            raise RuntimeError("`expand_items` needs beams that a search has found")
        return torch.from_numpy(self._found.expand_items(num_items))


def beam_search(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    trie: SidTrie,
    *,
    num_beams: int,
    normalize: Normalize = "full",
    temperature: float = 1.0,
    length_penalty: float = 0.0,
    filter: Filter | None = None,
    method: Method = "beam",
    num_groups: int = 1,
    diversity: float = 0.0,
    seed: int = 0,
    first_row: int = 0,
    vocabulary: SidVocabulary | None = None,
    confidence: bool = False,
    readout: Readout | None = None,
    states: bool = False,
    engine: Literal["auto", "tree", "rows"] = "auto",
) -> Beams:
    """Find the `num_beams` best semantic IDs for every prompt, exactly as a beam search over `trie` defines them.

    score(sid) = Σ_l log p(token_l | prompt, earlier tokens); ties by (score descending, parent beam ascending,
    token ascending).

    Args:
        model: causal language model in eval mode.
        input_ids: (B, P) prompt tokens, padded on either side.
        attention_mask: (B, P), 1 for a token and 0 for padding; None for prompts without padding.
        trie: semantic IDs that may be answered.
        num_beams: K ≥ 1.
        normalize: log-probs over the whole vocabulary ("full"), over the tokens of `vocabulary`'s semantic IDs
            ("sid"), or over the children of each node that the filter leaves ("allowed").
        temperature: 1e-30 .. 1e30; logits are divided by it before they are normalised.
        length_penalty: beams are ranked by score / length ** length_penalty.
        filter: what each prompt may not be answered with, from `trie.filter`.
        method: "beam", the best; "stochastic", K different semantic IDs drawn without replacement; "sample", K
            independent draws. Draws need `normalize="allowed"`.
        num_groups: groups of beams that choose one after the other, see `BeamSearch`.
        diversity: what keeps the groups apart, see `BeamSearch`.
        seed: of the draws.
        first_row: where the prompts stand in a larger batch; they draw what they would draw there.
        vocabulary: needed for "sid" and for `confidence`.
        confidence: also say how sure the model is of every beam.
        readout: what reads the confidence off each beam's state and log-prob, with engine "tree"; no suffix is run
            then. If None, the two tokens of `vocabulary` after the suffix.
        states: also return the state at the end of each beam, with engine "tree".
        engine: "tree" computes each prompt and its beams as one tree, for models that attend to their whole context
            and take 4-D masks and `position_ids`; "rows" gives every beam a row and works for any causal language
            model, several times slower; "auto" is "tree" where the model allows it.

    Returns:
        The beams, on the CPU.

    Raises:
        ValueError: on shapes that disagree, an empty prompt, a missing `vocabulary`, a token of `trie` that
            `normalize` leaves out, an `engine` that the model does not allow, or what `BeamSearch` refuses.

    Source:
        Equal, beam for beam, to `transformers.generate` with a prefix function where the trie holds at least K
        semantic IDs; the tree form is docs/trie.md. Draws: Kool et al. (arXiv 1903.06059).
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    _check(input_ids, attention_mask, vocabulary, confidence, readout, temperature)
    columns = head_columns(normalize, vocabulary, trie)
    check_tokens(trie, normalize, columns)
    _check_vocabulary(model, input_ids, trie)
    if method != "beam" and normalize != "allowed":
        raise ValueError(f"`normalize` must be 'allowed' to draw with {method=}, got {normalize!r}")
    search = BeamSearch(
        trie,
        len(input_ids),
        num_beams,
        filter=filter,
        method=method,
        normalize="allowed" if normalize == "allowed" else None,
        temperature=temperature if normalize == "allowed" else 1.0,
        length_penalty=length_penalty,
        num_groups=num_groups,
        diversity=diversity,
        seed=seed,
        first_row=first_row,
    )
    parameter = next(model.parameters())
    runner = _engine(engine, model, input_ids.to(parameter.device), attention_mask.to(parameter.device), columns)
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    low = 0 if columns is None else columns[0]
    with torch.no_grad():
        while not search.done:
            candidates = search.candidates  # (rows, C)
            scores = torch.zeros(candidates.shape, dtype=dtype)  # a forced token's
            asked = (candidates >= 0).sum(1) > (1 if normalize == "allowed" else 0)
            if asked.any():
                logits = runner.logits(asked.reshape(search.batch_size, search.width)).to(dtype)
                chosen = _chosen(logits, candidates[asked], low)
                if normalize != "allowed":
                    chosen = logprobs_of(chosen, logits, temperature)
                scores[torch.from_numpy(asked)] = chosen.cpu()
            search.step(scores.numpy(), over="candidates")
            runner.follow(search.parents, search.last_tokens)
        found = search.result()
        ends = _Ends(runner, found, search.width, dtype)
        reached = ends.states(state_size(model)) if states or readout else None
        scored = None
        if readout and reached is not None:
            scored = readout(reached, torch.from_numpy(found.logprobs.sum(2))).sigmoid().to(dtype)
        elif confidence and vocabulary:
            scored = ends.confidence(vocabulary)
    return Beams(
        tokens=torch.from_numpy(found.tokens),
        scores=torch.from_numpy(found.scores),
        logprobs=torch.from_numpy(found.logprobs),
        items=torch.from_numpy(found.items),
        confidence=scored,
        states=reached if states else None,
        perturbed=None if found.perturbed is None else torch.from_numpy(found.perturbed),
        threshold=None if found.threshold is None else torch.from_numpy(found.threshold),
        _found=found,
    )


def _check(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    vocabulary: SidVocabulary | None,
    confidence: bool,
    readout: Readout | None,
    temperature: float,
) -> None:
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            "`input_ids` and `attention_mask` must share one shape (B, P), got "
            f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        )
    if len(input_ids) == 0 or not bool(attention_mask.bool().any(dim=1).all()):
        raise ValueError("`attention_mask` must leave at least one token in every row; a prompt is empty")
    if vocabulary is None and confidence:
        raise ValueError("`vocabulary` must be given for `confidence=True`")
    if readout is not None and not confidence:
        raise ValueError("`confidence` must be True for a `readout`, got False")
    if readout is not None and readout.evidence is not None:
        raise ValueError("`readout` must weigh states alone, got one with evidence of histories; use `recommend.rank`")
    if not 1e-30 <= temperature <= 1e30:
        raise ValueError(f"`temperature` must lie in 1e-30 .. 1e30, got {temperature}")


def check_tokens(trie: SidTrie, normalize: Normalize, columns: tuple[int, int] | None) -> None:
    """Refuse a trie with tokens outside the columns that scores are normalised over.

    Args:
        trie: the semantic IDs that may be answered.
        normalize: for the message.
        columns: first token and one past the last; None for no limit.

    Raises:
        ValueError: there are such tokens.
    """
    low, high = trie.token_span
    if columns is not None and not columns[0] <= low < high <= columns[1]:
        raise ValueError(
            f"`trie` must hold tokens in [{columns[0]}, {columns[1]}) alone for {normalize=}, got {low} to {high - 1}; "
            "build it from `vocabulary.encode`, or normalise over 'allowed' or 'full'"
        )


def _check_vocabulary(model: Any, input_ids: torch.Tensor, trie: SidTrie) -> None:
    """Refuse tokens for which the model has no embedding, before it is asked for them."""
    size = len(model.get_input_embeddings().weight)
    for name, largest in (("input_ids", int(input_ids.max())), ("trie", trie.max_token)):
        if largest >= size:
            raise ValueError(f"`{name}` must hold tokens of the model's vocabulary, below {size}, got {largest}")


def _engine(
    name: str, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, columns: tuple[int, int] | None
) -> Engine:
    if name not in ("auto", "tree", "rows"):
        raise ValueError(f"`engine` must be 'auto', 'tree' or 'rows', got {name!r}")
    if name == "tree" or (name == "auto" and takes_pattern(model)):
        return TreeEngine(model, input_ids, attention_mask, columns)
    return RowEngine(model, input_ids, attention_mask, columns)


def _chosen(logits: torch.Tensor, candidates: NDArray[np.int64], low: int) -> torch.Tensor:
    """Return the logits of `candidates` (n, C), -inf where padded, out of logits (n, columns) of token `low` on."""
    index = torch.from_numpy(candidates).to(logits.device)
    return logits.gather(1, (index - low).clamp(min=0)).masked_fill_(index < 0, -torch.inf)


def logprobs_of(chosen: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-probs of the chosen logits among all, in one pass where torch makes several.

    Args:
        chosen: (n, C) logits.
        logits: (n, columns) all that they are normalised over.
        temperature: both are divided by it first.

    Returns:
        (n, C).
    """
    if temperature != 1:
        chosen, logits = chosen / temperature, logits / temperature
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        totals = _core.log_sum_exp(logits.contiguous().numpy(), torch.get_num_threads())
        return chosen - torch.from_numpy(totals).to(chosen.dtype)[:, None]
    return chosen - logits.logsumexp(1, keepdim=True)


class _Ends:
    """The ends of the beams of a search, which a runner holds in its own order."""

    def __init__(self, runner: Engine, found: BeamResult, width: int, dtype: torch.dtype) -> None:
        self._runner, self._dtype = runner, dtype
        self._at = np.arange(len(found.items))[:, None], found.order
        self._wanted = np.zeros((len(found.items), width), np.bool_)
        self._wanted[self._at] = found.items >= 0

    def states(self, size: int) -> torch.Tensor:
        """Return the states (B, K, D) of this D, NaN where no beam is."""
        return self._placed(self._runner.states, size)

    def confidence(self, vocabulary: SidVocabulary) -> torch.Tensor:
        """Return the confidence (B, K) by the two tokens, NaN where no beam is; call it last."""
        return self._placed(lambda wanted: self._runner.confidence(wanted, vocabulary)).sigmoid()

    def _placed(self, ask: Callable[[NDArray[np.bool_]], torch.Tensor], *shape: int) -> torch.Tensor:
        """Ask for a value of this shape of each beam, and put it where the result has that beam."""
        values = torch.full((*self._wanted.shape, *shape), torch.nan, dtype=self._dtype)
        if self._wanted.any():
            values[torch.from_numpy(self._wanted)] = ask(self._wanted).to(self._dtype).cpu()
        return values[torch.from_numpy(self._at[0]), torch.from_numpy(self._at[1])]
