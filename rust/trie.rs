//! The catalogue of semantic IDs as a trie of flat arrays.
//!
//! Answers "which tokens may follow this prefix", "which items does this SID name" and, through
//! [`crate::beam`], one step of constrained beam search. Immutable once built. Not for prefixes of
//! free text: a SID has at most [`MAX_DEPTH`] tokens.
//!
//! Cost: building sorts the rows (`O(N log N)` comparisons of packed 64-bit keys) and then makes one
//! pass per level. Memory is 8 bytes per node, and 16 bytes per item when every item has its own SID.
//! A look-up is one binary search among siblings per token.
//!
//! STATIC keeps `[token, next]` pairs; with breadth-first numbers the child pointer is implicit.

mod build;
mod check;

use std::ops::Range;

use check::{check_table, trim};

use crate::{Error, Result};

/// The largest token that a SID may hold; one more is the mark of padding inside the kernels.
pub const MAX_TOKEN: u32 = u32::MAX - 1;

/// The longest SID. It bounds what a hostile file can make [`SidTrie::sids`] allocate per item.
pub const MAX_DEPTH: usize = 1024;

/// Right padding of token rows, and the node of a prefix outside the trie.
pub const NONE: i64 = -1;

/// A trie over semantic IDs, its nodes numbered breadth-first and siblings sorted by token.
///
/// ```text
/// SIDs (4,7) (4,9) (6,7)          node          0  1  2  3  4  5
///                                 tokens        ·  4  6  7  9  7     (of the edge into the node)
///           0                     first_child   1  3  5  6  6  6  6  (one more entry than nodes)
///        4 / \ 6
///         1   2                   children of n: first_child[n] .. first_child[n + 1]
///      7 / \9  \ 7                terminals     3  4  5              (nodes that end a SID)
///       3   4   5                 item_offsets  0  1  2  3           (items of terminal t:
///                                 items         …                     items[offsets[t] .. offsets[t + 1]])
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SidTrie {
    tokens: Vec<u32>,
    first_child: Vec<u32>,
    terminals: Vec<u32>,
    item_offsets: Vec<u32>,
    items: Vec<i64>,
    depth: usize,
    max_token: u32,
    prefix_free: bool,
}

impl SidTrie {
    /// Rebuilds a trie from the five arrays that [`SidTrie`] is made of, trusting none of them.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Value`] or [`Error::TooLarge`] if they are not exactly the arrays of
    /// some trie.
    pub fn from_arrays(
        tokens: Vec<u32>,
        first_child: Vec<u32>,
        terminals: Vec<u32>,
        item_offsets: Vec<u32>,
        items: Vec<i64>,
    ) -> Result<Self> {
        let trie = Self {
            tokens,
            first_child,
            terminals,
            item_offsets,
            items,
            ..Self::default()
        };
        trie.check()?;
        let trie = trie.summarized();
        Error::check_limit("depth", MAX_DEPTH, trie.depth)?;
        Ok(trie)
    }

    /// The token of the edge into every node; entry 0, the root's, is unused and 0.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The first child of every node, and the number of nodes as the last entry.
    #[must_use]
    pub fn first_child(&self) -> &[u32] {
        &self.first_child
    }

    /// The nodes that end a SID, ascending.
    #[must_use]
    pub fn terminals(&self) -> &[u32] {
        &self.terminals
    }

    /// Where the items of each terminal start in [`SidTrie::items`], and their number as the last entry.
    #[must_use]
    pub fn item_offsets(&self) -> &[u32] {
        &self.item_offsets
    }

    /// The items, grouped by terminal and ascending within one.
    #[must_use]
    pub fn items(&self) -> &[i64] {
        &self.items
    }

    /// The number of nodes, root included.
    #[must_use]
    pub fn num_nodes(&self) -> usize {
        self.tokens.len()
    }

    /// The length of the longest SID.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The largest token of any SID.
    #[must_use]
    pub fn max_token(&self) -> u32 {
        self.max_token
    }

    /// Whether no SID is a proper prefix of another.
    #[must_use]
    pub fn prefix_free(&self) -> bool {
        self.prefix_free
    }

    /// The children of `node`, as a range of nodes.
    ///
    /// # Panics
    ///
    /// If `node` is not in the trie.
    #[must_use]
    pub fn children(&self, node: u32) -> Range<u32> {
        self.first_child[node as usize]..self.first_child[node as usize + 1]
    }

    /// The tokens that may follow `node`, ascending: one for each of its children, in their order.
    ///
    /// # Panics
    ///
    /// If `node` is not in the trie.
    #[must_use]
    pub fn child_tokens(&self, node: u32) -> &[u32] {
        let children = self.children(node);
        &self.tokens[children.start as usize..children.end as usize]
    }

    /// The items of the SID that ends at `node`, ascending; empty if none does.
    #[must_use]
    pub fn items_at(&self, node: u32) -> &[i64] {
        match self.terminals.binary_search(&node) {
            Ok(t) => &self.items[self.item_offsets[t] as usize..self.item_offsets[t + 1] as usize],
            Err(_) => &[],
        }
    }

    /// The node that each row of `prefixes`, `num_rows` rows of `width` tokens right-padded with [`NONE`],
    /// leads to from the root; [`NONE`] if it leaves the trie.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the table has another size, [`Error::Value`] for a token below -1 or after
    /// padding.
    pub fn walk(&self, prefixes: &[i64], width: usize, num_rows: usize) -> Result<Vec<i64>> {
        check_table("prefixes", prefixes, width, num_rows)?;
        (0..num_rows)
            .map(|row| {
                let prefix = trim("prefixes", &prefixes[row * width..][..width], row * width)?;
                Ok(self.descend(prefix).map_or(NONE, i64::from))
            })
            .collect()
    }

    /// The lowest item of the SID that ends at each of `nodes`, [`NONE`] where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for a node that is neither -1 nor in the trie.
    pub fn lowest_items(&self, nodes: &[i64]) -> Result<Vec<i64>> {
        self.check_nodes(nodes)?;
        let lowest = |&node: &i64| {
            let items = u32::try_from(node).map_or(&[][..], |node| self.items_at(node));
            items.first().copied().unwrap_or(NONE)
        };
        Ok(nodes.iter().map(lowest).collect())
    }

    /// The tokens that may follow each of `nodes`: rows of `width` tokens, right-padded with [`NONE`],
    /// and `width`, the largest number of children among the nodes (at least 1).
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for a node that is neither -1 nor in the trie, [`Error::Memory`] if the table does
    /// not fit.
    pub fn allowed(&self, nodes: &[i64]) -> Result<(Vec<i64>, usize)> {
        self.check_nodes(nodes)?;
        let tokens =
            |&node: &i64| u32::try_from(node).map_or(&[][..], |node| self.child_tokens(node));
        let branches = nodes.iter().map(|node| tokens(node).len());
        let width = branches.fold(1, usize::max);
        let mut table = filled(NONE, nodes.len().checked_mul(width))?; // (N, C)
        for (row, node) in table.chunks_exact_mut(width).zip(nodes) {
            write_tokens(row, tokens(node));
        }
        Ok((table, width))
    }

    /// Every item with its SID, by ascending item: a row-major `(items, depth)` table of tokens,
    /// right-padded with [`NONE`], and the items.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if the table does not fit.
    pub fn sids(&self) -> Result<(Vec<i64>, Vec<i64>)> {
        let parents = self.parents();
        let mut ends = self.items_with_nodes();
        ends.sort_unstable();
        let mut table = filled(NONE, ends.len().checked_mul(self.depth))?; // (N, L)
        let mut path = Vec::with_capacity(self.depth);
        for (row, &(_, end)) in table.chunks_exact_mut(self.depth).zip(&ends) {
            path.clear();
            let mut node = end as usize;
            while node != 0 {
                path.push(self.tokens[node]);
                node = parents[node] as usize;
            }
            path.reverse();
            write_tokens(row, &path);
        }
        Ok((table, ends.into_iter().map(|(item, _)| item).collect()))
    }

    fn descend(&self, prefix: &[i64]) -> Option<u32> {
        prefix.iter().try_fold(0, |node, &token| {
            let token = u32::try_from(token).ok()?;
            let child = self.child_tokens(node).binary_search(&token).ok()?;
            self.children(node).nth(child)
        })
    }

    fn parents(&self) -> Vec<u32> {
        let mut parents = vec![0; self.num_nodes()];
        for node in 0..len_u32(&self.tokens) {
            let children = self.children(node);
            parents[children.start as usize..children.end as usize].fill(node);
        }
        parents
    }

    fn items_with_nodes(&self) -> Vec<(i64, u32)> {
        let groups = self.item_offsets.windows(2).zip(&self.terminals);
        let items = groups.flat_map(|(ends, &node)| (ends[0]..ends[1]).map(move |i| (i, node)));
        items
            .map(|(i, node)| (self.items[i as usize], node))
            .collect()
    }

    /// Fills in what follows from the arrays.
    fn summarized(mut self) -> Self {
        let mut level = 0..1;
        while !level.is_empty() {
            level = level.end..self.first_child[level.end] as usize;
            self.depth += usize::from(!level.is_empty());
        }
        self.max_token = self.tokens.iter().copied().max().unwrap_or(0);
        self.prefix_free = self
            .terminals
            .iter()
            .all(|&node| self.children(node).is_empty());
        self
    }
}

fn write_tokens(row: &mut [i64], tokens: &[u32]) {
    for (cell, &token) in row.iter_mut().zip(tokens) {
        *cell = token.into();
    }
}

/// A vector of `len` times `value`, or an error rather than an abort when there is no room for it.
pub(crate) fn filled<T: Clone>(value: T, len: Option<usize>) -> Result<Vec<T>> {
    let memory = Error::Memory {
        bytes: len.and_then(|len| len.checked_mul(size_of::<T>())),
    };
    let len = len.ok_or_else(|| memory.clone())?;
    let mut vector = Vec::new();
    vector.try_reserve_exact(len).map_err(|_| memory)?;
    vector.resize(len, value);
    Ok(vector)
}

/// The length of an array of nodes, rows or items.
#[expect(
    clippy::cast_possible_truncation,
    reason = "checked to be below 2**32 when the arrays came in"
)]
fn len_u32<T>(values: &[T]) -> u32 {
    debug_assert!(u32::try_from(values.len()).is_ok());
    values.len() as u32
}
