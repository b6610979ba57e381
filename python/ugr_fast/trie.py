"""The catalogue of semantic IDs: which tokens may follow a prefix, and which items a semantic ID names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugr_fast import _core
from ugr_fast.arrays import at_least
from ugr_fast.files import new_file

_FORMAT = "ugr-fast.sid-trie"
_VERSION = "2"
_DTYPES: dict[str, tuple[type[np.integer[Any]], ...]] = {
    "tokens": (np.uint16, np.uint32),
    "first_child": (np.uint32,),
    "ends": (np.uint32,),
    "ranks": (np.uint32,),
    "item_offsets": (np.uint32,),
    "items": (np.uint32, np.int64),
}
"""The arrays of a trie, each with the types that it may have, the narrowest first."""
_FILE_DTYPES = {"U16": np.uint16, "U32": np.uint32, "I64": np.int64}
_MAX_TOKEN = 2**32 - 2
_MAX_HEADER = 100_000  # bytes; six arrays need less than a thousand

Rows: TypeAlias = NDArray[np.integer[Any]] | Sequence[Sequence[int] | NDArray[np.integer[Any]]]
"""A table of ints, right-padded with -1, or a list of sequences of ints."""

Lists: TypeAlias = Rows | Sequence[int]
"""Item ids for all rows of a batch, or a list or table row of them for each; negative ids are padding."""


class SidTrie:
    """The semantic IDs (SIDs) of all items as an immutable trie of flat arrays.

    Nodes are numbered breadth-first from the root, 0, and siblings are sorted by token, so that the
    children of node n are the nodes `first_child[n] .. first_child[n + 1]`. A node takes 2 to 8 bytes.
    `add` and `remove` give another trie that shares what did not change; `filter` narrows one request.

    Example:
        >>> trie = SidTrie.build([[4, 7], [4, 9], [6, 7]], items=[30, 10, 20])
        >>> trie.children([4])
        array([7, 9])
        >>> trie.items_at([6, 7])
        array([20])

    Source: the trie of constrained decoding in STATIC (arXiv 2602.22647), with implicit child pointers.
    """

    __slots__ = ("_inner", "_prefix_free", "_span")

    _inner: _core.SidTrie
    _prefix_free: bool | None
    _span: tuple[int, int] | None

    def __init__(self) -> None:
        raise TypeError("`SidTrie` has no constructor; use SidTrie.build, .from_arrays or .load")

    @classmethod
    def build(
        cls, sids: Rows, items: ArrayLike | None = None, *, end: int | None = None, num_threads: int = 1
    ) -> SidTrie:
        """Build the trie of a catalogue.

        Args:
            sids: (N, L) ints, right-padded with -1 where SIDs differ in length, or a list of N sequences;
                tokens in 0 .. 2**32 - 2. Several items may share a SID.
            items: (N,) unique item ids >= 0; by default 0 .. N - 1.
            end: a token that occurs in no SID, appended to every SID so that none is a prefix of another.
            num_threads: threads that sort the SIDs, at least 1; the trie does not depend on it.

        Returns:
            The trie.

        Raises:
            ValueError: no SIDs, an empty or overlong SID, a token or item out of range, a repeated item.
            TypeError: tokens or items that are not integers.

        Example:
            >>> SidTrie.build([[1], [1, 2]], end=9).sids()[0]
            array([[ 1,  9, -1],
                   [ 1,  2,  9]])

        Source: docs/trie.md; the arrays are drawn in rust/trie.rs.
        """
        table = _table(sids, "sids")
        item_ids = np.arange(len(table)) if items is None else items
        return cls._wrap(_core.SidTrie.build(*_rows(table, item_ids, end), at_least(num_threads, "num_threads", 1)))

    @classmethod
    def from_arrays(
        cls,
        tokens: ArrayLike,
        first_child: ArrayLike,
        ends: ArrayLike,
        ranks: ArrayLike,
        item_offsets: ArrayLike,
        items: ArrayLike,
    ) -> SidTrie:
        """Rebuild a trie from its `arrays()`, trusting none of them.

        Args:
            tokens: (num_nodes,) token of the edge into each node, 0 for the root.
            first_child: (last_level + 1,) first child of each node above the last level, then num_nodes.
            ends: nodes above the last level that end a SID, ascending.
            ranks: (num_sids,) place of each SID, those of `ends` first, in lexicographic order; empty if
                `ends` is.
            item_offsets: (num_sids + 1,) where the items of the SID at each place start, then num_items;
                empty if every SID has one item.
            items: (num_items,) item ids by place, ascending per SID.

        Returns:
            The trie.

        Raises:
            ValueError: if they are not exactly the arrays of some trie.

        Example:
            >>> trie = SidTrie.build([[4, 7], [6, 7]])
            >>> SidTrie.from_arrays(**trie.arrays())
            SidTrie(num_items=2, num_sids=2, depth=2, num_nodes=5)

        Source: the invariants are those of rust/trie.rs.
        """
        given = (tokens, first_child, ends, ranks, item_offsets, items)
        return cls._of((_narrowed(array, name) for array, name in zip(given, _DTYPES, strict=True)), check=True)

    @classmethod
    def _of(cls, arrays: Iterable[NDArray[Any]], check: bool) -> SidTrie:
        tokens, first_child, ends, ranks, item_offsets, items = _frozen(arrays)
        return cls._wrap(_core.SidTrie.from_arrays(tokens, first_child, ends, ranks, item_offsets, items, check))

    @classmethod
    def _wrap(cls, inner: _core.SidTrie) -> SidTrie:
        trie = object.__new__(cls)
        object.__setattr__(trie, "_inner", inner)
        object.__setattr__(trie, "_prefix_free", None)  # looked up when first asked for, as is the span of tokens
        object.__setattr__(trie, "_span", None)
        return trie

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("`SidTrie` is immutable; build another one")

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return SidTrie.from_arrays, tuple(self.arrays().values())

    def __repr__(self) -> str:
        return (
            f"SidTrie(num_items={self.num_items}, num_sids={self.num_sids}, "
            f"depth={self.depth}, num_nodes={self.num_nodes})"
        )

    @property
    def num_nodes(self) -> int:
        """The number of nodes, root included; after changes, of the old trie and the copied nodes."""
        return self._inner.num_nodes

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self._inner.num_items

    @property
    def num_sids(self) -> int:
        """The number of distinct SIDs."""
        return self._inner.num_sids

    @property
    def depth(self) -> int:
        """The length of the longest SID."""
        return self._inner.depth

    @property
    def token_span(self) -> tuple[int, int]:
        """The smallest token of any SID, and one past the largest; after changes, wide enough for both tries."""
        if self._span is None:
            low, high = self._inner.token_span
            object.__setattr__(self, "_span", (low, high + 1))
        assert self._span is not None
        return self._span

    @property
    def max_token(self) -> int:
        """The largest token of any SID; see `token_span`."""
        return self.token_span[1] - 1

    @property
    def prefix_free(self) -> bool:
        """Whether no SID is a proper prefix of another, as beam search needs it."""
        if self._prefix_free is None:
            object.__setattr__(self, "_prefix_free", self._inner.prefix_free)
        return bool(self._prefix_free)

    @property
    def num_changed_nodes(self) -> int:
        """The nodes that `add` and `remove` have copied, 0 after `build`, `load` and `compact`."""
        return self._inner.changed_nodes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the six arrays that the trie is made of, as `from_arrays` takes them; of `compact()` after changes.

        Returns:
            Read-only arrays, not copies: tokens (num_nodes,), uint16 if all fit, else uint32; first_child
            (last_level + 1,), ends, ranks and item_offsets, all uint32; items (num_items,), uint32 if all
            fit, else int64.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).arrays()["first_child"].tolist()
            [1, 3, 4, 5]

        Source: drawn in rust/trie.rs.
        """
        return dict(zip(_DTYPES, _frozen(self.compact()._inner.arrays()), strict=True))

    def add(self, sids: Rows, items: ArrayLike, *, end: int | None = None) -> SidTrie:
        """Return the catalogue with more items; this one stays as it is, also for threads that search it.

        The new trie shares all nodes but those on a path to a change. Searching it costs the same. Every
        further `add` or `remove` lays all changes since `compact` anew: about a microsecond each.

        Args:
            sids: (N, L) ints, right-padded with -1, or a list of N sequences.
            items: (N,) unique ids >= 0 of items that are not there.
            end: the token given to `build`, if any; the trie does not remember it.

        Returns:
            Another trie; this one if there is nothing to add. A SID that is a prefix of another, or extends one, makes
            it no longer `prefix_free`.

        Raises:
            ValueError: as `build`, and an item that is there already.

        Example:
            >>> trie = SidTrie.build([[4, 7], [6, 7]]).add([[4, 8], [6, 7]], items=[5, 9])
            >>> trie.children([4]), trie.items_at([6, 7])
            (array([7, 8]), array([1, 9]))

        Source: path copying (Driscoll et al. 1989); drawn in rust/trie/changes.rs.
        """
        table, item_ids, end = _rows(_table(sids, "sids"), items, end)
        return self._wrap(self._inner.add(table, item_ids, end)) if len(table) else self

    def remove(self, items: ArrayLike) -> SidTrie:
        """Return the catalogue without some items; no prefix that only they had is left.

        Args:
            items: (N,) ids of items that are there, each once.

        Returns:
            Another trie, see `add`; this one if there is nothing to remove.

        Raises:
            ValueError: an item that is not there, or none would be left.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).remove([0]).children([])
            array([6])

        Source: path copying (Driscoll et al. 1989); drawn in rust/trie/changes.rs.
        """
        item_ids = _integers(np.asarray(items), "items", ndim=1)
        return self._wrap(self._inner.remove(item_ids)) if len(item_ids) else self

    def compact(self) -> SidTrie:
        """Return the same catalogue without traces of changes, built anew; itself if there are none.

        Returns:
            The trie that `build` makes of `sids()`, at that cost.

        Example:
            >>> trie = SidTrie.build([[4, 7], [6, 7]]).remove([0])
            >>> trie.num_nodes, trie.compact().num_nodes
            (6, 3)

        Source: docs/trie.md.
        """
        return SidTrie.build(*self.sids()) if self.num_changed_nodes else self

    def filter(self, allow: Lists | None = None, deny: Lists | None = None) -> Filter:
        """Prepare what a request may, or may not, be answered with; no search enters a prefix that this empties.

        Args:
            allow: item ids, everything else is out; one list for all rows of a batch, or one list per row,
                or a (B, M) table. Negative ids are padding; ids that are not in the catalogue name nothing.
            deny: item ids that are out, in the same forms.

        Returns:
            A filter for searches of this trie.

        Raises:
            ValueError: `allow` and `deny` have different numbers of rows, or the trie is not prefix-free.
            TypeError: ids that are not integers.

        Example:
            >>> from ugr_fast import BeamSearch
            >>> trie = SidTrie.build([[4, 7], [4, 9], [6, 7]])
            >>> seen = trie.filter(deny=[[0, 1], []])
            >>> BeamSearch(trie, batch_size=2, num_beams=1, filter=seen).candidates
            array([[ 6, -1],
                   [ 4,  6]])

        Source: docs/trie.md; rust/filter.rs.
        """
        allowed, denied = _lists(allow, "allow"), _lists(deny, "deny")
        if allowed and denied and len(allowed[1]) != len(denied[1]):  # one list serves every row of the other
            allowed, denied = _stretched(allowed, len(denied[1])), _stretched(denied, len(allowed[1]))
        return Filter(self, self._inner.filter(allowed, denied))

    def children(self, prefix: ArrayLike) -> NDArray[np.int64]:
        """Return the tokens that may follow a prefix, ascending.

        Args:
            prefix: (d,) tokens; empty for the root.

        Returns:
            (C,) tokens, none after a SID that nothing extends.

        Raises:
            ValueError: if no SID starts with the prefix.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).children([])
            array([4, 6])

        Source: `fn(prefix) -> allowed tokens` of transformers' constrained decoding.
        """
        path = _sequence(prefix, "prefix")
        node = self.walk(path[None])
        if node[0] < 0:
            raise ValueError(f"`prefix` must be the start of a SID, got {path.tolist()}; see `walk`")
        tokens: NDArray[np.int64] = self.allowed(node)[0]
        return tokens[:0] if tokens[0] < 0 else tokens  # one node, so padding or children, never both

    def items_at(self, sid: ArrayLike) -> NDArray[np.int64]:
        """Return the items that share a SID, ascending; none if there is no such SID.

        Args:
            sid: (d,) tokens.

        Returns:
            (M,) item ids.

        Example:
            >>> SidTrie.build([[4], [4], [6]], items=[8, 2, 5]).items_at([4])
            array([2, 8])

        Source: docs/trie.md.
        """
        node = int(self.walk(_sequence(sid, "sid")[None])[0])
        return np.empty(0, np.int64) if node < 0 else self._inner.items_at(node)

    def lookup(self, sids: Rows) -> NDArray[np.int64]:
        """Return the lowest item id of each SID, -1 where there is no such SID.

        Args:
            sids: (N, L) ints, right-padded with -1, or a list of N sequences.

        Returns:
            (N,) item ids.

        Raises:
            ValueError: a negative token other than padding.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).lookup([[6, 7], [7, 7], [4]])
            array([ 1, -1, -1])

        Source: docs/trie.md.
        """
        return self._inner.lowest_items(self._inner.walk(_table(sids, "sids"))[:, None], None)[:, 0]

    def walk(self, prefixes: Rows) -> NDArray[np.int64]:
        """Return the node that each prefix leads to, -1 where it leaves the trie; the root is 0.

        Args:
            prefixes: (N, d) ints, right-padded with -1, or a list of N sequences.

        Returns:
            (N,) nodes.

        Raises:
            ValueError: a negative token other than padding.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).walk([[], [6], [7]])
            array([ 0,  2, -1])

        Source: rust/trie.rs.
        """
        return self._inner.walk(_table(prefixes, "prefixes"))

    def allowed(self, nodes: ArrayLike) -> NDArray[np.int64]:
        """Return the tokens that may follow each node.

        Args:
            nodes: (N,) nodes, -1 for none.

        Returns:
            (N, C) ascending tokens, right-padded with -1; C is the largest number of children among the
            nodes, at least 1.

        Raises:
            ValueError: a node outside the trie.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).allowed([0, 1, -1])
            array([[ 4,  6],
                   [ 7, -1],
                   [-1, -1]])

        Source: docs/trie.md.
        """
        return self._inner.allowed(_integers(np.asarray(nodes), "nodes", ndim=1)[None], None)

    def sids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return every item with its SID, by ascending item.

        Returns:
            tokens (num_items, depth), right-padded with -1, and items (num_items,).

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]], items=[5, 3]).sids()
            (array([[6, 7],
                   [4, 7]]), array([3, 5]))

        Source: the inverse of `build`.
        """
        return self._inner.sids()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trie to a `.safetensors` file, all of it or nothing.

        Args:
            path: the file; an existing one is replaced.

        Raises:
            OSError: if it cannot be written; nothing is left behind, and an old file stays as it was.

        Example:
            >>> import tempfile, pathlib
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     SidTrie.build([[4, 7], [6, 7]]).save(pathlib.Path(folder, "items.safetensors"))

        Source: https://github.com/huggingface/safetensors, the format.
        """
        from safetensors.numpy import save

        arrays = self.arrays()
        metadata = {"format": _FORMAT, "version": _VERSION, "checksum": _checksum(arrays)}
        with new_file(path) as unfinished:
            unfinished.write_bytes(save(arrays, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, check: bool = True, mmap: bool = False) -> SidTrie:
        """Read a trie that `save` wrote.

        Args:
            path: the file.
            check: verify checksum and structure. Without it the file is trusted: one that lies gives wrong
                answers, though neither a crash nor a read outside it.
            mmap: leave the arrays in the file and let the system read what is used, shared between processes. The
                file must then stay as it is while the trie lives: to truncate or overwrite it in place ends every
                process that maps it, or gives wrong answers. `save` replaces files, as `mv` does; `cp` does not.

        Returns:
            The trie.

        Raises:
            ValueError: a file that is truncated, altered or of another kind.
            OSError: a file that cannot be read.

        Example:
            >>> import tempfile, pathlib
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "items.safetensors")
            ...     SidTrie.build([[4, 7], [6, 7]]).save(path)
            ...     SidTrie.load(path)
            SidTrie(num_items=2, num_sids=2, depth=2, num_nodes=5)

        Source: https://github.com/huggingface/safetensors, the format.
        """
        try:
            arrays, checksum = _read(Path(path), mmap)
            if check and checksum != _checksum(arrays):
                raise ValueError("its content does not match its checksum")
            return cls._of(arrays.values(), check)
        except ValueError as error:
            where, remedy = os.fspath(path), "build the trie from the SIDs and save it again"
            raise ValueError(f"`path` must be a whole trie file, got {where}: {error}; {remedy}") from None


class Filter:
    """Items that each row of a batch may not be answered with; made by `SidTrie.filter`.

    Attributes:
        trie: the catalogue that it narrows.
        num_rows: the rows that it was made for; 1 serves a batch of any size.
    """

    __slots__ = ("_inner", "trie")

    def __init__(self, trie: SidTrie, inner: _core.Filter) -> None:
        self.trie = trie
        self._inner = inner

    @property
    def num_rows(self) -> int:
        """The rows that the filter was made for."""
        return self._inner.num_rows

    def __repr__(self) -> str:
        return f"Filter(num_rows={self.num_rows}, trie={self.trie!r})"


def _rows(
    table: NDArray[np.int64], items: ArrayLike, end: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
    """Check SIDs, their items and the end token against one another."""
    item_ids = _integers(np.asarray(items), "items", ndim=1)
    if end is not None and not 0 <= end <= _MAX_TOKEN:
        raise ValueError(f"`end` must be a token in 0 .. 2**32 - 2, got {end}")
    if len(item_ids) != len(table):
        raise ValueError(f"`items` must have one id per SID, {len(table)}, got {len(item_ids)}")
    return table, item_ids, end


def _lists(rows: Lists | None, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Turn lists of ids into the ids of all lists and the end of each."""
    if rows is None:
        return None
    if hasattr(rows, "__array__"):
        table = np.asarray(rows)
        if table.ndim == 1:
            table = table[None]
        flat = _integers(table, name, ndim=2).ravel()
        return flat, np.arange(1, len(table) + 1, dtype=np.int64) * table.shape[1]
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise TypeError(f"`{name}` must be item ids or lists of them, got {type(rows).__name__}")
    flat_list = all(isinstance(row, int | np.integer) for row in rows)
    lists = [_sequence(row, name) for row in ([rows] if flat_list else rows)]
    flat = np.concatenate(lists) if lists else np.empty(0, np.int64)
    return flat, np.cumsum([len(row) for row in lists], dtype=np.int64)


def _stretched(
    lists: tuple[NDArray[np.int64], NDArray[np.int64]], num_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Repeat a single list for every row; several lists stay as they are."""
    items, ends = lists
    if len(ends) != 1 or num_rows == 1:
        return lists
    return np.tile(items, num_rows), np.arange(1, num_rows + 1, dtype=np.int64) * ends[0]


def _table(rows: Rows, name: str) -> NDArray[np.int64]:
    """Turn rows of ints into a contiguous (N, L) int64 table, right-padded with -1."""
    if hasattr(rows, "__array__"):
        return _integers(np.asarray(rows), name, ndim=2)
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise TypeError(f"`{name}` must be a 2-d array or a list of sequences, got {type(rows).__name__}")
    sequences = [row if isinstance(row, list | tuple) else _sequence(row, name) for row in rows]
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    table = np.full((len(lengths), int(lengths.max(initial=0))), -1)  # (N, L)
    filled = np.arange(table.shape[1]) < lengths[:, None]
    flat = np.array(list(chain.from_iterable(sequences)))
    table[filled] = _integers(flat, name, ndim=1) if flat.size else 0
    return table


def _sequence(row: Any, name: str) -> NDArray[np.int64]:
    if isinstance(row, str) or not (hasattr(row, "__array__") or isinstance(row, Sequence)):
        raise TypeError(f"`{name}` must hold sequences of ints, got {type(row).__name__}")
    array = np.asarray(row)
    return _integers(array, name, ndim=1) if array.size else np.empty(0, np.int64)


def _integers(array: NDArray[Any], name: str, ndim: int) -> NDArray[np.int64]:
    """Check the type and rank of an array; a no-op for contiguous int64."""
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"`{name}` must hold integers, got {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} dimension{'s'[: ndim - 1]}, got shape {array.shape}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"`{name}` must fit in int64, got {array.max()}")
    return np.ascontiguousarray(array, np.int64)


def _narrowed(values: ArrayLike, name: str) -> NDArray[Any]:
    """Copy one of the arrays into the narrowest of its types, refusing what none can hold."""
    array = _integers(np.asarray(values), name, ndim=1)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    for dtype in _DTYPES[name]:
        bounds = np.iinfo(dtype)
        if bounds.min <= low and high <= bounds.max:
            return array.astype(dtype)
    raise ValueError(f"`{name}` must fit in {bounds.dtype}, got {low} .. {high}")


def _frozen(arrays: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    """Make arrays read-only: a trie and those who ask for its arrays share them."""
    frozen = list(arrays)
    for array in frozen:
        array.flags.writeable = False
    return frozen


def _checksum(arrays: dict[str, NDArray[Any]]) -> str:
    """Digest the arrays: a flipped bit can make another valid trie, which structure alone cannot tell."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _DTYPES:
        digest.update(arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _read(path: Path, mmap: bool) -> tuple[dict[str, NDArray[Any]], str | None]:
    """Return the arrays of a file in order, and its checksum."""
    data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if mmap else np.fromfile(path, np.uint8)
    start, header = _header(data)
    metadata = header.pop("__metadata__", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
        raise ValueError(f"its metadata must say {_FORMAT} version {_VERSION}, got {metadata}")
    if sorted(header) != sorted(_DTYPES):
        raise ValueError(f"it must hold {sorted(_DTYPES)}, got {sorted(header)}")
    arrays = {name: _view(data[start:], header[name], name) for name in _DTYPES}
    size = sum(array.nbytes for array in arrays.values())
    if size != len(data) - start:
        raise ValueError(f"it must end with its arrays, {size} bytes, got {len(data) - start}")
    return arrays, metadata.get("checksum")


def _header(data: NDArray[np.uint8]) -> tuple[int, dict[str, Any]]:
    """Return where the arrays start, and what the header says of them."""
    size = int.from_bytes(data[:8].tobytes(), "little")
    if not 8 < size + 8 <= min(len(data), _MAX_HEADER):
        raise ValueError(f"not a whole safetensors file (a header of {size} bytes in {len(data)})")
    try:
        header = json.loads(data[8 : 8 + size].tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a safetensors file (its header is no JSON: {error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"not a safetensors file (its header is a {type(header).__name__})")
    return 8 + size, header


def _view(data: NDArray[np.uint8], entry: Any, name: str) -> NDArray[Any]:
    """Return one array of the file, without a copy if it is aligned."""
    try:
        kind, (length,), (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = np.dtype(_FILE_DTYPES[kind])
        whole = 0 <= start <= end <= len(data) and (end - start) == length * dtype.itemsize
        whole = whole and all(type(number) is int for number in (length, start, end))  # JSON has floats and booleans
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the header must give type, length and place of `{name}`, got {entry}") from None
    if dtype not in _DTYPES[name] or not whole:
        raise ValueError(f"`{name}` must be a whole array of {_DTYPES[name][-1].__name__} or narrower, got {entry}")
    array = np.asarray(data[start:end]).view(dtype.newbyteorder("<"))
    return np.require(array, dtype, ["ALIGNED"])
