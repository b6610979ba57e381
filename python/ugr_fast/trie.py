"""The catalogue of semantic IDs: which tokens may follow a prefix, and which items a semantic ID names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugr_fast import _core
from ugr_fast.files import new_file

_FORMAT = "ugr-fast.sid-trie"
_VERSION = "1"
_DTYPES: dict[str, type[np.integer[Any]]] = {
    "tokens": np.uint32,
    "first_child": np.uint32,
    "terminals": np.uint32,
    "item_offsets": np.uint32,
    "items": np.int64,
}
_FILE_DTYPES = {
    "tokens": "U32",
    "first_child": "U32",
    "terminals": "U32",
    "item_offsets": "U32",
    "items": "I64",
}
_MAX_TOKEN = 2**32 - 2

Rows: TypeAlias = NDArray[np.integer[Any]] | Sequence[Sequence[int] | NDArray[np.integer[Any]]]
"""A table of ints, right-padded with -1, or a list of sequences of ints."""


class SidTrie:
    """The semantic IDs (SIDs) of all items as an immutable trie of flat arrays.

    Nodes are numbered breadth-first from the root, 0, and siblings are sorted by token, so that the
    children of node n are the nodes `first_child[n] .. first_child[n + 1]`. A node takes 8 bytes.

    Example:
        >>> trie = SidTrie.build([[4, 7], [4, 9], [6, 7]], items=[30, 10, 20])
        >>> trie.children([4])
        array([7, 9])
        >>> trie.items_at([6, 7])
        array([20])

    Source: the trie of constrained decoding in STATIC (arXiv 2602.22647), with implicit child pointers.
    """

    __slots__ = ("_inner",)

    _inner: _core.SidTrie

    def __init__(self) -> None:
        raise TypeError("`SidTrie` has no constructor; use SidTrie.build, .from_arrays or .load")

    @classmethod
    def build(cls, sids: Rows, items: ArrayLike | None = None, *, end: int | None = None) -> SidTrie:
        """Build the trie of a catalogue.

        Args:
            sids: (N, L) ints, right-padded with -1 where SIDs differ in length, or a list of N sequences;
                tokens in 0 .. 2**32 - 2. Several items may share a SID.
            items: (N,) unique item ids >= 0; by default 0 .. N - 1.
            end: a token that occurs in no SID, appended to every SID so that none is a prefix of another.

        Returns:
            The trie.

        Raises:
            ValueError: no SIDs, an empty or overlong SID, a token or item out of range, a repeated item.
            TypeError: tokens or items that are not integers.

        Example:
            >>> SidTrie.build([[1], [1, 2]], end=9).sids()[0]
            array([[ 1,  9, -1],
                   [ 1,  2,  9]])

        Source: DESIGN "one trie layout for CPU, GPU and disk"; the arrays are drawn in rust/trie.rs.
        """
        table = _table(sids, "sids")
        item_ids = np.arange(len(table)) if items is None else _integers(np.asarray(items), "items", ndim=1)
        if end is not None and not 0 <= end <= _MAX_TOKEN:
            raise ValueError(f"`end` must be a token in 0 .. 2**32 - 2, got {end}")
        if len(item_ids) != len(table):
            raise ValueError(f"`items` must have one id per SID, {len(table)}, got {len(item_ids)}")
        return cls._wrap(_core.SidTrie.build(table, item_ids, end))

    @classmethod
    def from_arrays(
        cls,
        tokens: ArrayLike,
        first_child: ArrayLike,
        terminals: ArrayLike,
        item_offsets: ArrayLike,
        items: ArrayLike,
    ) -> SidTrie:
        """Rebuild a trie from its `arrays()`, trusting none of them.

        Args:
            tokens: (num_nodes,) token of the edge into each node, 0 for the root.
            first_child: (num_nodes + 1,) first child of each node, then num_nodes.
            terminals: (num_sids,) nodes that end a SID, ascending.
            item_offsets: (num_sids + 1,) where the items of each terminal start, then num_items.
            items: (num_items,) item ids, ascending per terminal.

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
        given = (tokens, first_child, terminals, item_offsets, items)
        arrays = [_exact(array, name) for array, name in zip(given, _DTYPES, strict=True)]
        return cls._wrap(_core.SidTrie.from_arrays(*arrays))

    @classmethod
    def _wrap(cls, inner: _core.SidTrie) -> SidTrie:
        trie = object.__new__(cls)
        object.__setattr__(trie, "_inner", inner)
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
        """The number of nodes, root included."""
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
    def max_token(self) -> int:
        """The largest token of any SID."""
        return self._inner.max_token

    @property
    def prefix_free(self) -> bool:
        """Whether no SID is a proper prefix of another, as beam search needs it."""
        return self._inner.prefix_free

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the five arrays that the trie is made of, as `from_arrays` takes them.

        Returns:
            tokens (num_nodes,), first_child (num_nodes + 1,), terminals (num_sids,), item_offsets
            (num_sids + 1,), all uint32, and items (num_items,) int64.

        Example:
            >>> SidTrie.build([[4, 7], [6, 7]]).arrays()["first_child"].tolist()
            [1, 3, 4, 5, 5, 5]

        Source: drawn in rust/trie.rs.
        """
        return dict(zip(_DTYPES, self._inner.arrays(), strict=True))

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

        Source: DESIGN "item" and "sid": several items may share a SID.
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

        Source: DESIGN "the lowest item id of each SID".
        """
        return self._inner.lowest_items(self._inner.walk(_table(sids, "sids")))

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

        Source: DESIGN "only look at what is allowed".
        """
        return self._inner.allowed(_integers(np.asarray(nodes), "nodes", ndim=1))

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
    def load(cls, path: str | os.PathLike[str]) -> SidTrie:
        """Read a trie that `save` wrote, and check all of it.

        Args:
            path: the file.

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
            return cls.from_arrays(**_read(Path(path)))
        except ValueError as error:
            where, remedy = os.fspath(path), "build the trie from the SIDs and save it again"
            raise ValueError(f"`path` must be a whole trie file, got {where}: {error}; {remedy}") from None


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


def _exact(values: ArrayLike, name: str) -> NDArray[Any]:
    """Convert one of the five arrays to its type, refusing what the type cannot hold."""
    dtype = _DTYPES[name]
    array = _integers(np.asarray(values), name, ndim=1)
    bounds = np.iinfo(dtype)
    if array.size and not bounds.min <= array.min() <= array.max() <= bounds.max:
        raise ValueError(f"`{name}` must fit in {bounds.dtype}, got {array.min()} .. {array.max()}")
    return array.astype(dtype)


def _checksum(arrays: dict[str, NDArray[Any]]) -> str:
    """Digest the arrays: a flipped bit can make another valid trie, which structure alone cannot tell."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _DTYPES:
        digest.update(arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # a missing or unreadable file is an OSError, not a malformed one
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
                raise ValueError(f"its metadata must say {_FORMAT} version {_VERSION}, got {metadata}")
            kinds = {name: file.get_slice(name).get_dtype() for name in sorted(file.keys())}
            if kinds != _FILE_DTYPES:
                raise ValueError(f"it must hold {_FILE_DTYPES}, got {kinds}")
            arrays = {name: file.get_tensor(name) for name in _DTYPES}
    except (SafetensorError, MemoryError) as error:
        raise ValueError(f"not a whole safetensors file ({error})") from None
    if metadata.get("checksum") != _checksum(arrays):
        raise ValueError("its content does not match its checksum")
    return arrays
