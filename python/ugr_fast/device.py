"""The trie and its beam search as torch tensors, for an accelerator: no step waits for an answer of the device.

What depends on the data never decides a shape, so the host only queues work. One step::

    beams (B, W)     node         1        2      finished      W = 1, then K
                     total       s1       s2         s3
                      |   children of n: nodes first_child[n] .. first_child[n + 1]
    cells (B, W, C)  token     7  9  .   7  .  .   .  .  .      C: the widest branch of the level, known in advance
                     score     a  b  .   c  .  .  s3  .  .      total + log-prob; . is -inf; a finished beam is a cell
                      |   the best K of the W * C cells of each row, of equal ones the first
    beams (B, K)     parent = cell // C, node = first child + cell % C

When to use it: log-probs that are on an accelerator and would have to be copied to the host at every step. Not on the
CPU: `beam.BeamSearch` looks at real children only and is 10 to 140 times faster there. Cost of a step: about 50 calls
over at most B * W * C cells, padding included, so one node with many children makes its whole level wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ugr_fast.arrays import at_least
from ugr_fast.beam import BUSY, check_filter, check_over, is_normalizer
from ugr_fast.trie import SidTrie, _lists

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ugr_fast.beam import Normalizer
    from ugr_fast.trie import Lists

DeviceLists: TypeAlias = "Lists | Tensor"
"""Item ids as `SidTrie.filter` takes them, or a tensor of them, right-padded with -1: (M,) for all rows or (B, M)."""


class DeviceTrie:
    """The arrays of a trie as tensors, int32 where their numbers allow it.

    Memory: 4 bytes a node, 4 more above the last level, 4 to 8 an item; and, from the first filter on, 4 more a node
    and 8 to 12 an item.

    Args:
        trie: the catalogue; no SID may be a prefix of another. Changes are compacted.
        device: where the tensors go.

    Raises:
        ValueError: a trie that is not prefix-free.

    Attributes:
        depth: the length of the longest SID, so the number of steps of a search.
        branches: the largest number of children of a node, for every level above the last.
        level_starts: the first node of every level, then the number of nodes.
        max_token: the largest token.
        max_items: the largest number of items of a SID.

    Example:
        >>> trie = DeviceTrie(SidTrie.build([[4, 7], [4, 9], [6, 7]]), "cpu")
        >>> trie.depth, trie.branches, trie.level_starts
        (2, (2, 2), (0, 1, 3, 6))

    Source: the arrays are drawn in rust/trie.rs.
    """

    def __init__(self, trie: SidTrie, device: torch.device | str) -> None:
        if not trie.prefix_free:
            raise ValueError("`trie` must have no SID that is a prefix of another; build it with `end=`")
        arrays = trie.arrays()
        first_child, offsets = arrays["first_child"].astype(np.int64), arrays["item_offsets"]
        self.level_starts = _level_starts(first_child)
        self.depth = len(self.level_starts) - 2
        levels = pairwise(self.level_starts[:-1])
        self.branches = tuple(int(np.diff(first_child[start : end + 1]).max()) for start, end in levels)
        self.max_token = int(arrays["tokens"].max())
        self.max_items = int(np.diff(offsets).max()) if len(offsets) else 1
        self._max_item = int(arrays["items"].max())
        # The cells of a beam reach up to C nodes behind its first child: padding at the end saves every step a clamp.
        self._tokens = _tensor(np.pad(arrays["tokens"], (0, max(self.branches) + 1)), device)
        self._first_child, self._ends, self._ranks, self._offsets, self._items = (
            _tensor(arrays[name], device) for name in ("first_child", "ends", "ranks", "item_offsets", "items")
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._tokens.device

    @property
    def num_items(self) -> int:
        """The number of items."""
        return len(self._items)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first child of each node and the number of its children.

        Args:
            nodes: int64 of any shape, -1 for none.

        Returns:
            Two int64 tensors of the same shape; a node without children has 0 of them and any first child.
        """
        last_level = len(self._first_child) - 1
        first = self._first_child[nodes.clamp(0, last_level)].long()
        return first, self._first_child[(nodes + 1).clamp(0, last_level)] - first  # of -1, twice the same entry

    def tokens(self, nodes: Tensor) -> Tensor:
        """Return the token of the edge into each node, int64; up to the widest branch behind the last node, 0."""
        return self._tokens[nodes].long()

    def slots(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the items of the SID at each of `nodes` start and end among all; nonsense where none ends."""
        last_level = len(self._first_child) - 1
        place = len(self._ends) + nodes - last_level
        if len(self._ends):
            inner = torch.searchsorted(self._ends, nodes.to(self._ends.dtype))
            place = self._ranks[torch.where(nodes < last_level, inner, place).clamp(0, len(self._ranks) - 1)].long()
        if not len(self._offsets):
            return place, place + 1
        place = place.clamp(0, len(self._offsets) - 2)
        return self._offsets[place].long(), self._offsets[place + 1].long()

    def items(self, slots: Tensor) -> Tensor:
        """Return the item id in each slot, int64; slots outside the trie count as those at its ends."""
        return self._items[slots.clamp(0, len(self._items) - 1)].long()

    @cached_property
    def _span_start(self) -> Tensor:
        """Where the items below each node start among all, padded as the tokens are.

        The items of siblings follow one another, so the start of one is the end of the one before.
        """
        start = torch.zeros(len(self._tokens), dtype=_narrow(self.num_items), device=self.device)
        for low, high in reversed(list(pairwise(self.level_starts))):
            nodes = torch.arange(low, high, device=self.device)
            first, count = self.children(nodes)
            start[low:high] = torch.where(count > 0, start[first].long(), self.slots(nodes)[0])
        return start

    @cached_property
    def _by_id(self) -> tuple[Tensor, Tensor]:
        """The items by ascending id, and their slots."""
        items, slots = self._items.sort()
        return items, slots.to(_narrow(self.num_items))

    def filter(self, allow: DeviceLists | None = None, deny: DeviceLists | None = None) -> DeviceFilter:
        """Prepare what a request may, or may not, be answered with, as `SidTrie.filter` does.

        Lists that are tensors on the device are not read by the host.

        Args:
            allow: item ids, everything else is out; one list for all rows of a batch, or one list per row, or a
                (B, M) table. Negative ids are padding; ids that are not in the catalogue name nothing.
            deny: item ids that are out, in the same forms.

        Returns:
            A filter for searches of this trie.

        Raises:
            ValueError: `allow` and `deny` have different numbers of rows.
            TypeError: ids that are not integers.

        Example:
            >>> trie = DeviceTrie(SidTrie.build([[4, 7], [4, 9], [6, 7]]), "cpu")
            >>> DeviceSearch(trie, 2, 1, filter=trie.filter(deny=[[0, 1], []])).candidates
            tensor([[-1,  6],
                    [ 4,  6]])

        Source: docs/trie.md.
        """
        allowed = None if allow is None else self._listed(allow, "allow")
        denied = self._listed([[]] if deny is None else deny, "deny")
        if allowed is None:
            return DeviceFilter(self, denied, allows=False)
        if len(allowed) != len(denied) and 1 not in (len(allowed), len(denied)):
            raise ValueError(
                f"`allow` must have as many rows as `deny`, {len(denied)}, or one of them 1, got {len(allowed)}"
            )
        rows = max(len(allowed), len(denied))
        allowed, denied = (slots.expand(rows, -1).contiguous() for slots in (allowed, denied))
        both = DeviceFilter(self, denied, allows=False).lists(allowed)
        return DeviceFilter(self, _sorted(allowed.masked_fill(both, self.num_items)), allows=True)

    def _listed(self, lists: DeviceLists, name: str) -> Tensor:
        """The slots of listed items, ascending, each once, then at least one padding, the number of items: (R, M)."""
        ids, (known, slots) = _table(lists, name, self.device), self._by_id
        # What no item has, -1, stands for all that is above the largest id and might not fit in its type.
        ids = ids.masked_fill((ids < 0) | (ids > self._max_item), -1).to(known.dtype)
        place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        found = slots[place].masked_fill(known[place] != ids, self.num_items)
        found = _sorted(pad(found, (0, 1), value=self.num_items))
        again = pad(found[:, 1:] == found[:, :-1], (1, 0))
        return _sorted(found.masked_fill(again, self.num_items))

    def __repr__(self) -> str:
        return f"DeviceTrie(num_items={self.num_items}, depth={self.depth}, branches={self.branches}, {self.device})"


class DeviceFilter:
    """Items that each row of a batch may not be answered with; made by `DeviceTrie.filter`.

    A node is dead exactly if as many denied items lie in its span as the span is long, or no allowed one does. Two
    binary searches in the list tell, so nothing is stored per node.

    Attributes:
        trie: the catalogue that it narrows.
        num_rows: the rows that it was made for; 1 serves a batch of any size.
    """

    def __init__(self, trie: DeviceTrie, slots: Tensor, *, allows: bool) -> None:
        self.trie = trie
        self.num_rows = len(slots)
        self._slots = slots  # (R, M) ascending
        self._allows = allows

    def _before(self, slots: Tensor) -> Tensor:
        """How many listed slots lie before each of `slots` (B, ...)."""
        slots = slots.to(self._slots.dtype)
        if self.num_rows == 1:
            return torch.searchsorted(self._slots[0], slots)
        return torch.searchsorted(self._slots, slots.flatten(1)).view_as(slots)

    def lists(self, slots: Tensor) -> Tensor:
        """Return which of `slots` (B, ...) are on the list of their row."""
        return self._before(slots + 1) > self._before(slots)

    def keeps(self, bounds: Tensor) -> Tensor:
        """Return which spans keep an item.

        Args:
            bounds: (B, ..., n + 1) slots, ascending along the last dimension: where spans start and the last one ends.

        Returns:
            (B, ..., n) bool.
        """
        listed = self._before(bounds).diff(dim=-1)
        return listed > 0 if self._allows else listed < bounds.diff(dim=-1)

    def keeps_slots(self, slots: Tensor) -> Tensor:
        """Return which of `slots` (B, ...) may be answered with."""
        return self.lists(slots) == self._allows


@dataclass(frozen=True)
class DeviceResult:
    """The semantic IDs found for each row of a batch, best first, on the device; see `beam.BeamResult`.

    Attributes:
        tokens: (B, K, L) int64, right-padded with -1; L is the depth of the trie.
        scores: (B, K) sums of log-probabilities; -inf for padding.
        logprobs: (B, K, L) log-probability of each token; 0 beside padding.
        items: (B, K) int64, the lowest item id of each SID that the filter leaves; -1 for padding.
    """

    tokens: Tensor
    scores: Tensor
    logprobs: Tensor
    items: Tensor
    _nodes: Tensor = field(repr=False)
    _trie: DeviceTrie = field(repr=False)
    _filter: DeviceFilter | None = field(repr=False)

    def expand_items(self, num_items: int) -> Tensor:
        """Rank items: all items of a SID that the filter leaves, ascending, at the rank of their SID.

        Takes B * K * `DeviceTrie.max_items` numbers for a while.

        Args:
            num_items: M, items per row.

        Returns:
            (B, M) int64 item ids, -1 where fewer than M were found.

        Example:
            >>> search = DeviceSearch(DeviceTrie(SidTrie.build([[3], [5], [3]]), "cpu"), 1, 2)
            >>> search.step(torch.full((1, 6), 0.5).log())
            >>> search.result().expand_items(4)
            tensor([[ 0,  2,  1, -1]])

        Source: docs/trie.md.
        """
        at_least(num_items, "num_items", 1)
        items = _items_at(self._trie, self._filter, self._nodes, self._trie.max_items).flatten(1)
        order = (items < 0).byte().sort(dim=1, stable=True).indices[:, :num_items]
        return pad(items.gather(1, order), (0, num_items - order.shape[1]), value=-1)


@dataclass(frozen=True)
class _Level:
    """Beams (B, W) and the cells that the next step chooses from."""

    nodes: Tensor  # (B, W), -1 for a dead beam
    totals: Tensor  # (B, W)
    first: Tensor  # (B, W) first child
    count: Tensor  # (B, W) number of children
    cells: Tensor  # (B, W, C) child nodes, what lies behind them included
    allowed: Tensor  # (B, W, C) which cells are children that the filter leaves
    bounds: Tensor | None  # (B, W, C + 1) with a filter: where the items of the cells start, and the last ones end


@dataclass(frozen=True)
class _Move:
    """How beams (B, K) came from those of the level before."""

    parents: Tensor
    tokens: Tensor
    logprobs: Tensor
    odd: Tensor  # (B,) whether a score was NaN or +inf


class DeviceSearch:
    """The search of `beam.BeamSearch` with tensors in and out: given the same log-probs, the same beams.

    It works the same way, but for two things, both so that the host need not wait for the device. `done` comes after
    as many steps as the longest SID has tokens, even if all beams end before. And NaN or +inf among the scores is
    noted, taken for -inf, and refused by `result`, which waits anyway.

    Args:
        trie: the catalogue.
        batch_size: B, the number of independent searches.
        num_beams: K, the number of prefixes kept by each.
        filter: what each row may not be answered with, from `trie.filter`.
        normalize: None if the scores are log-probabilities, else what makes them so: "full", a softmax over
            all columns; (low, high), over these columns; "allowed", over the children that the filter leaves.
        temperature: scores are divided by it before they are normalised, > 0.

    Raises:
        ValueError: a filter of another trie or batch, or a setting out of range.

    Example:
        >>> trie = DeviceTrie(SidTrie.build([[0, 1], [1, 0], [1, 1]]), "cpu")
        >>> search = DeviceSearch(trie, batch_size=1, num_beams=2)
        >>> while not search.done:
        ...     search.step(torch.full((search.num_rows, 2), 0.5).log())
        >>> search.result().items
        tensor([[0, 1]])

    Source: docs/trie.md.
    """

    def __init__(
        self,
        trie: DeviceTrie,
        batch_size: int,
        num_beams: int,
        *,
        filter: DeviceFilter | None = None,
        normalize: Normalizer | None = None,
        temperature: float = 1.0,
    ) -> None:
        at_least(batch_size, "batch_size", 1)
        at_least(num_beams, "num_beams", 1)
        self.trie, self.batch_size, self.num_beams = trie, batch_size, num_beams
        self.filter, self.normalize, self.temperature = filter, normalize, temperature
        self._check_settings()
        self._turn = RLock()
        self._moves: list[_Move] = []
        roots = torch.zeros((batch_size, 1), dtype=torch.int64, device=trie.device)
        self._level = self._enter(roots, roots.float(), roots + trie.num_items)

    def _check_settings(self) -> None:
        if not is_normalizer(self.normalize):
            raise ValueError(
                '`normalize` must be None, "full", "allowed" or (low, high) with 0 <= low < high, '
                f"got {self.normalize!r}"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be finite and above 0, got {self.temperature}")
        if self.normalize is None and self.temperature != 1:
            raise ValueError(
                f"`temperature` must be 1 for log-probabilities; give `normalize` as well, got {self.temperature}"
            )
        check_filter(self.filter, self.trie, self.batch_size)

    @property
    def width(self) -> int:
        """Beams per row of the batch: 1 before the first step, then K."""
        return self._level.nodes.shape[1]

    @property
    def num_rows(self) -> int:
        """Rows of `scores` that the next step takes: batch_size * width."""
        return self._level.nodes.numel()

    @property
    def depth(self) -> int:
        """The number of steps taken."""
        return len(self._moves)

    @property
    def done(self) -> bool:
        """Whether there have been as many steps as the longest SID has tokens."""
        return self.depth == self.trie.depth

    @property
    def nodes(self) -> Tensor:
        """The node that each beam has reached, -1 for a dead one: (B, width)."""
        return self._level.nodes

    @property
    def live(self) -> Tensor:
        """The beams that still have tokens to choose: (B, width)."""
        return self._level.count > 0

    @property
    def parents(self) -> Tensor:
        """The beam of the previous level that each one extends, -1 for a dead one: (B, width)."""
        return self._moves[-1].parents if self._moves else torch.zeros_like(self.nodes)

    @property
    def last_tokens(self) -> Tensor:
        """The token chosen last, -1 for a dead or finished beam and before the first step: (B, width)."""
        return self._moves[-1].tokens if self._moves else torch.full_like(self.nodes, -1)

    @property
    def tokens(self) -> Tensor:
        """The tokens chosen so far, right-padded with -1: (B, width, depth)."""
        return self._trace("tokens", -1)

    @property
    def candidates(self) -> Tensor:
        """The tokens that each beam may choose from, -1 in cells without one: (num_rows, C).

        C is the widest branch of the level. What the filter empties leaves a hole; `BeamSearch` moves up there.
        """
        return torch.where(self._level.allowed, self.trie.tokens(self._level.cells), -1).flatten(0, 1)

    def step(self, scores: Tensor, over: Literal["vocabulary", "candidates"] = "vocabulary") -> None:
        """Extend every beam by one token.

        Args:
            scores: float32 or float64 on the device of the trie, (num_rows, V) with a column per token, or
                (num_rows, C) beside `candidates`: log-probabilities or, with `normalize`, logits. -inf forbids. Rows
                of dead beams do not matter, nor columns of tokens that are neither allowed nor normalised over.
            over: what the columns stand for.

        Raises:
            ValueError: a wrong shape or device, or no column for some token of the trie.
            TypeError: another dtype.
            RuntimeError: if the search is done, or another thread is at a step of it.

        Example:
            >>> search = DeviceSearch(DeviceTrie(SidTrie.build([[3], [5]]), "cpu"), 1, 2)
            >>> search.step(torch.tensor([[-2.0, -1.0]]), over="candidates")
            >>> search.tokens
            tensor([[[5],
                     [3]]])

        Source: docs/trie.md.
        """
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(BUSY)
        try:
            self._step(scores, over)
        finally:
            self._turn.release()

    def _step(self, scores: Tensor, over: str) -> None:
        self._check_scores(scores, over)
        level = self._level
        columns = scores.detach().reshape(*level.nodes.shape, scores.shape[1])  # (B, W, V or C)
        logprobs = self._logprobs(columns, over)  # (B, W, C)
        # The first sum is 0 + x, so no sum is ever -0, which some devices sort below 0.
        before = level.totals.to(scores.dtype)[..., None]
        totals = before + logprobs
        usable = level.allowed & (totals < torch.inf)  # NaN is not below it either
        odd = (usable != level.allowed).flatten(1).any(1)  # (B,)
        totals.masked_fill_(~usable, -torch.inf)
        totals[..., 0] = torch.where(level.count > 0, totals[..., 0], before[..., 0])  # of a dead beam -inf
        self._follow(*_best(totals.flatten(1), self.num_beams), logprobs, odd)

    def _logprobs(self, columns: Tensor, over: str) -> Tensor:
        """The log-probs of the cells: anything where none is allowed, NaN where a normaliser is no number."""
        chosen = columns if over == "candidates" else columns.gather(2, self.trie.tokens(self._level.cells))
        if self.normalize is None:
            return chosen
        sharpness = 1 / self.temperature
        chosen = chosen * sharpness
        if self.normalize == "allowed":
            normalizer = chosen.masked_fill(~self._level.allowed, -torch.inf).logsumexp(2, keepdim=True)
        else:
            low, high = (0, columns.shape[2]) if self.normalize == "full" else self.normalize
            normalizer = (columns[..., low:high] * sharpness).logsumexp(2, keepdim=True)
        # With nothing to normalise over, nothing follows; a normaliser of +inf comes from a score that is refused.
        normalizer = torch.where(normalizer == torch.inf, torch.nan, normalizer)
        return chosen - torch.where(normalizer == -torch.inf, torch.inf, normalizer)

    def _follow(self, totals: Tensor, cell: Tensor, logprobs: Tensor, odd: Tensor) -> None:
        """Make the chosen cells (B, K) of the level the beams of the next one."""
        level, num_cells = self._level, self._level.cells.shape[2]
        parents = cell // num_cells
        dead = totals == -torch.inf
        ended = dead | (level.count.gather(1, parents) == 0)
        child = level.first.gather(1, parents) + cell % num_cells
        nodes = torch.where(ended, level.nodes.gather(1, parents), child).masked_fill(dead, -1)
        tokens = self.trie.tokens(child).masked_fill(ended, -1)
        chosen = logprobs.flatten(1).gather(1, cell).masked_fill(ended, 0)
        ends = None  # where the items of each beam end: in `bounds`, one place behind their start
        if level.bounds is not None:
            ends = level.bounds.flatten(1).gather(1, cell + parents + 1)
        self._moves.append(_Move(parents.masked_fill(dead, -1), tokens, chosen, odd))
        self._level = self._enter(nodes, totals, ends)

    def _enter(self, nodes: Tensor, totals: Tensor, ends: Tensor | None) -> _Level:
        """Look up the children of beams (B, W), the items of which end at `ends`."""
        first, count = self.trie.children(nodes)
        num_cells = 1 if self.done else self.trie.branches[self.depth]
        place = torch.arange(num_cells + 1, device=nodes.device)
        cells = first[..., None] + place  # (B, W, C + 1)
        allowed = place[:-1] < count[..., None]
        bounds = None
        if self.filter is not None and ends is not None:
            starts = self.trie._span_start[cells]
            bounds = torch.where(place < count[..., None], starts, ends.to(starts.dtype)[..., None])
            allowed &= self.filter.keeps(bounds)
        return _Level(nodes, totals, first, count, cells[..., :-1], allowed, bounds)

    def result(self) -> DeviceResult:
        """Return the finished beams; waits for the device.

        Returns:
            The tokens, scores and items of the K SIDs of each row of the batch, by descending score.

        Raises:
            RuntimeError: if the search is not done.
            ValueError: NaN or +inf in what a step has read.

        Example:
            >>> search = DeviceSearch(DeviceTrie(SidTrie.build([[3], [5]]), "cpu"), 1, 3)
            >>> search.step(torch.full((1, 6), 0.5).log())
            >>> search.result().items
            tensor([[ 0,  1, -1]])

        Source: docs/trie.md.
        """
        if not self.done:
            raise RuntimeError("`result` needs a search that is done; call `step` until `done`")
        odd = torch.stack([move.odd for move in self._moves]).nonzero().tolist()  # [step, row]
        if odd:
            raise ValueError(
                "`scores` must be finite or -inf wherever a token is allowed or normalised over, got NaN or +inf "
                f"in step {odd[0][0]} for row {odd[0][1]} of the batch"
            )
        nodes = self.nodes
        most = 1 if self.filter is None else self.trie.max_items
        items = _items_at(self.trie, self.filter, nodes, most)  # (B, K, most)
        lowest = (items >= 0).byte().argmax(2, keepdim=True)  # the first of those that are left
        return DeviceResult(
            tokens=self._trace("tokens", -1),
            scores=self._level.totals,
            logprobs=self._trace("logprobs", 0),
            items=items.gather(2, lowest)[..., 0],
            _nodes=nodes,
            _trie=self.trie,
            _filter=self.filter,
        )

    def _check_scores(self, scores: Tensor, over: str) -> None:
        if self.done:
            raise RuntimeError("`step` has nothing left to extend; the search is done, call `result`")
        check_over(over, self.normalize)
        expected = (self._level.totals.dtype,) if self._moves else (torch.float32, torch.float64)
        if scores.dtype not in expected:
            allowed = " or ".join(str(dtype) for dtype in expected)
            raise TypeError(f"`scores` must be {allowed}, got {scores.dtype}; convert with .to")
        if scores.device != self.trie.device:
            raise ValueError(f"`scores` must be on the device of the trie, {self.trie.device}, got {scores.device}")
        if scores.ndim != 2 or len(scores) != self.num_rows:
            raise ValueError(f"`scores` must have shape ({self.num_rows}, columns), got {tuple(scores.shape)}")
        self._check_columns(scores.shape[1], over)

    def _check_columns(self, num_columns: int, over: str) -> None:
        cells = self._level.cells.shape[2]
        if over == "candidates" and num_columns != cells:
            raise ValueError(f"`scores` must have {cells} columns, as `candidates` has, got {num_columns}")
        if over == "vocabulary" and num_columns <= self.trie.max_token:
            raise ValueError(
                f"`scores` must have at least {self.trie.max_token + 1} columns for the tokens of the trie, "
                f"got {num_columns}"
            )
        if isinstance(self.normalize, tuple) and not 0 <= self.normalize[0] < self.normalize[1] <= num_columns:
            raise ValueError(f"`normalize` must be a range of the {num_columns} columns, got {self.normalize}")

    def _trace(self, name: Literal["tokens", "logprobs"], padding: int) -> Tensor:
        """Follow every beam back to the root and collect a field of its moves: (B, width, depth)."""
        beams = torch.arange(self.width, device=self.trie.device).expand_as(self.nodes)
        path = []
        for move in reversed(self._moves):
            path.append(getattr(move, name).gather(1, beams))
            beams = move.parents.gather(1, beams).clamp(min=0)  # that of a dead beam leads to a neighbour's path
        if not path:
            return self.nodes.new_empty((*self.nodes.shape, 0))
        return torch.stack(path[::-1], 2).masked_fill(self.nodes[..., None] < 0, padding)


def _best(keys: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """The best of every row of keys (B, N), of equal ones the first: values, best first, and columns (B, num_best).

    `topk` says which value comes last, though not which of the columns that equal it. So the columns are numbered:
    those above that value highest, then those that equal it, each from the left. The numbers differ, so `topk` of
    them is exact, and leaves the chosen ones in an order that a stable sort of few makes final.

    Milliseconds on one core, float32, for (14, 10 * 434) and (4, 16 * 512): this 0.34 and 0.21, `topk` alone 0.10 and
    0.06. Tried and dropped: a stable sort of everything, 3.7 and 2.2; the places of the kept ones by a running count
    and a scatter, 0.47 and 0.29; `topk` of value and column packed into 64 bits, 0.17 and 0.11, but not for float64.
    """
    num_keys = keys.shape[1]
    num_kept = min(num_best, num_keys)
    last = keys.topk(num_kept, 1).values[:, -1:]
    countdown = torch.arange(num_keys, 0, -1, dtype=_narrow(2 * num_keys), device=keys.device)
    number = torch.where(keys > last, countdown + num_keys, countdown).masked_fill_(keys < last, 0)
    columns = number.topk(num_kept, 1).indices
    values, order = keys.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns, missing = columns.gather(1, order), num_best - num_kept
    return (pad(values, (0, missing), value=-torch.inf), pad(columns, (0, missing))) if missing else (values, columns)


def _items_at(trie: DeviceTrie, filter: DeviceFilter | None, nodes: Tensor, most: int) -> Tensor:
    """The first `most` items of the SIDs at nodes (B, K), -1 for none and for what the filter denies: (B, K, most)."""
    start, end = trie.slots(nodes)
    slots = start[..., None] + torch.arange(most, device=nodes.device)
    kept = (slots < end[..., None]) & (nodes >= 0)[..., None]
    if filter is not None:
        kept &= filter.keeps_slots(slots)
    return torch.where(kept, trie.items(slots), -1)


def _level_starts(first_child: NDArray[np.int64]) -> tuple[int, ...]:
    """The first node of every level, then the number of nodes."""
    starts = [0, 1]
    while starts[-1] < len(first_child):
        starts.append(int(first_child[starts[-1]]))
    return tuple(starts)


def _table(lists: DeviceLists, name: str, device: torch.device) -> Tensor:
    """Lists of item ids as an int64 table (R, M), right-padded with -1."""
    if isinstance(lists, Tensor):
        if lists.is_floating_point() or lists.ndim not in (1, 2):
            raise TypeError(f"`{name}` must hold integers in 1 or 2 dimensions, got {lists.dtype}, {lists.ndim}")
        return (lists if lists.ndim == 2 else lists[None]).to(device, torch.int64)
    flat, ends = _lists(lists, name) or (np.empty(0, np.int64), np.zeros(1, np.int64))
    lengths = np.diff(ends, prepend=0)
    table = np.full((len(ends), lengths.max(initial=0)), -1)
    table[np.arange(table.shape[1]) < lengths[:, None]] = flat
    return torch.from_numpy(table).to(device)


def _sorted(table: Tensor) -> Tensor:
    return table.sort(dim=1).values


def _narrow(largest: int) -> torch.dtype:
    """The type for numbers up to `largest`."""
    return torch.int32 if largest < 2**31 - 1 else torch.int64


def _tensor(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """A copy of an array of numbers from 0 on."""
    fits = int(array.max(initial=0)) < 2**31 - 1
    return torch.from_numpy(array.astype(np.int32 if fits else np.int64)).to(device)
