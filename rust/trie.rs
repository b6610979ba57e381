//! The catalogue of semantic IDs as a trie of flat arrays.
//!
//! Answers "which tokens may follow this prefix", "which items does this SID name" and, through
//! [`crate::beam`], one step of constrained beam search. Not for prefixes of free text: a SID has at most
//! [`MAX_DEPTH`] tokens.
//!
//! Cost: building sorts the rows (`O(N log N)` comparisons of packed 64-bit keys) and then makes one
//! pass per level. A node takes 2 bytes (4 if some token needs more than 16 bits), and 4 more unless it
//! is on the last level; an item takes 4 bytes (8 if some id needs more than 32 bits). What is the same
//! for every catalogue is not stored: see [`Arrays`]. A look-up is one binary search among siblings per
//! token.
//!
//! A trie is immutable. [`changes`] lays added and removed items over one that stays as it is.
//!
//! STATIC keeps `[token, next]` pairs; with breadth-first numbers the child pointer is implicit.

mod build;
pub mod changes;
mod check;
pub mod index;

use std::ops::Range;

pub use build::parse;
use changes::Changes;
pub(crate) use check::check_nodes;
use check::{check_table, trim};

use crate::ints::{IntVec, Ints};
use crate::{Error, Result};

/// The largest token that a SID may hold.
pub const MAX_TOKEN: u32 = u32::MAX - 1;

/// The longest SID. It bounds what a hostile file can make [`SidTrie::sids`] allocate per item, and the stack that
/// [`changes`] take: some 300 bytes per token.
pub const MAX_DEPTH: usize = 1024;

/// Right padding of token rows, and the node of a prefix outside the trie.
pub const NONE: i64 = -1;

/// Tokens, 16 bits each where that is enough.
pub type Tokens<'a> = Ints<'a, u16, u32>;

/// Item ids, 32 bits each where that is enough.
pub type Items<'a> = Ints<'a, u32, i64>;

/// A trie over semantic IDs, its nodes numbered breadth-first and siblings sorted by token.
///
/// ```text
/// SIDs (4,7) (4,9) (6,7)          node          0  1  2  3  4  5
///                                 tokens        ·  4  6  7  9  7   of the edge into the node
///           0                     first_child   1  3  5  6         of the nodes above the last level, and the end
///        4 / \ 6
///         1   2                   children of n: first_child[n] .. first_child[n + 1]
///      7 / \9  \ 7
///       3   4   5                 items         …  …  …            by SID, lexicographically
/// ```
///
/// The other three arrays are empty if all SIDs are equally long and none names two items. Otherwise
/// `ends` holds the nodes above the last level at which a SID ends, `ranks` the place of every SID in
/// lexicographic order (first those of `ends`, then the nodes of the last level), and `item_offsets`
/// where the items of the SID at each place start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrays<'a> {
    /// The token of the edge into every node; entry 0, the root's, is unused and 0.
    pub tokens: Tokens<'a>,
    /// The first child of every node above the last level, then the number of nodes.
    pub first_child: &'a [u32],
    /// The nodes above the last level at which a SID ends, ascending.
    pub ends: &'a [u32],
    /// The lexicographic place of every SID; empty if `ends` is.
    pub ranks: &'a [u32],
    /// The first item of the SID at every place, then the number of items; empty if each has one.
    pub item_offsets: &'a [u32],
    /// The items by SID, ascending within one.
    pub items: Items<'a>,
    /// No part of the trie: what an [`index::Index`] knows of it.
    pub known: Known<'a>,
}

/// What would take a while to find in the arrays, if somebody has looked it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known<'a> {
    /// Where the items of the first nodes start; it takes a descent otherwise, the longest for the upper nodes.
    pub starts: &'a [u32],
    /// The number of SIDs that are proper prefixes of others.
    pub num_prefixes: Option<usize>,
}

/// The arrays of a trie that was built here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// See [`Arrays::tokens`].
    pub tokens: IntVec<u16, u32>,
    /// See [`Arrays::first_child`].
    pub first_child: Vec<u32>,
    /// See [`Arrays::ends`].
    pub ends: Vec<u32>,
    /// See [`Arrays::ranks`].
    pub ranks: Vec<u32>,
    /// See [`Arrays::item_offsets`].
    pub item_offsets: Vec<u32>,
    /// See [`Arrays::items`].
    pub items: IntVec<u32, i64>,
}

impl Built {
    /// Borrows the arrays.
    #[must_use]
    pub fn view(&self) -> Arrays<'_> {
        Arrays {
            tokens: self.tokens.view(),
            first_child: &self.first_child,
            ends: &self.ends,
            ranks: &self.ranks,
            item_offsets: &self.item_offsets,
            items: self.items.view(),
            known: Known::default(),
        }
    }
}

/// Every method is total: arrays that nobody checked give wrong answers, never a panic or a loop without end.
impl<'a> Arrays<'a> {
    /// The number of nodes, root included.
    #[must_use]
    pub fn num_nodes(&self) -> u32 {
        len_u32(self.tokens.len())
    }

    /// The first node of the last level.
    #[must_use]
    pub fn last_level(&self) -> u32 {
        len_u32(self.first_child.len().saturating_sub(1)).min(self.num_nodes())
    }

    /// The number of distinct SIDs.
    #[must_use]
    pub fn num_sids(&self) -> usize {
        self.ends.len() + (self.num_nodes() - self.last_level()) as usize
    }

    /// The children of `node`, as a range of nodes.
    #[must_use]
    #[inline]
    pub fn children(&self, node: u32) -> Range<u32> {
        let num_nodes = self.num_nodes();
        let ends = self.first_child.get(node as usize..).unwrap_or_default();
        match *ends {
            // Behind their parent, whatever the arrays say: no cycles.
            [first, end, ..] => first.max(node + 1).min(end.min(num_nodes))..end.min(num_nodes),
            _ => num_nodes..num_nodes,
        }
    }

    fn child_tokens(&self, node: u32) -> Tokens<'a> {
        let children = self.children(node);
        self.tokens
            .slice(children.start as usize..children.end as usize)
    }

    /// The place of the SID that ends at `node` in lexicographic order, if one does.
    fn rank(&self, node: u32) -> Option<usize> {
        let last_level = self.last_level();
        let sid = match node.checked_sub(last_level) {
            Some(leaf) => self.ends.len() + leaf as usize,
            None => self.ends.binary_search(&node).ok()?,
        };
        Some(self.ranks.get(sid).map_or(sid, |&rank| rank as usize))
    }

    /// Where the items of the SID at place `rank` stand in `items`.
    fn slots(&self, rank: usize) -> Range<u32> {
        let num_items = self.items.len();
        let offset = |rank: usize| match self.item_offsets {
            [] => rank,
            offsets => offsets.get(rank).map_or(num_items, |&start| start as usize),
        };
        len_u32(offset(rank).min(num_items))..len_u32(offset(rank + 1).min(num_items))
    }

    fn slots_at(&self, node: u32) -> Range<u32> {
        self.rank(node).map_or(0..0, |rank| self.slots(rank))
    }

    /// Where the items below `node` stand in `items`: its SIDs are neighbours in lexicographic order.
    pub(crate) fn span(&self, node: u32) -> Range<u32> {
        let last = self.descend(node, |children| children.end - 1, false);
        self.span_start(node)..self.slots_at(last).end
    }

    /// The start of [`Arrays::span`].
    pub(crate) fn span_start(&self, node: u32) -> u32 {
        if let Some(&start) = self.known.starts.get(node as usize) {
            return start;
        }
        let first = self.descend(node, |children| children.start, !self.ends.is_empty());
        self.slots_at(first).start
    }

    /// The end of a path down from `node`; with `stop`, the first SID on it.
    fn descend(&self, node: u32, choose: impl Fn(Range<u32>) -> u32, stop: bool) -> u32 {
        let mut node = node;
        for _ in 0..MAX_DEPTH {
            let children = self.children(node);
            if children.is_empty() || (stop && self.ends.binary_search(&node).is_ok()) {
                break;
            }
            node = choose(children);
        }
        node
    }

    /// How many SIDs there are of every length, from 0 to the longest.
    #[must_use]
    pub fn sids_per_depth(&self) -> Vec<u32> {
        let mut counts = Vec::new();
        let mut level = 0..1.min(self.num_nodes());
        while !level.is_empty() && counts.len() <= MAX_DEPTH {
            let inner = |limit| self.ends.partition_point(|&node| node < limit);
            let leaves = level.end.saturating_sub(level.start.max(self.last_level()));
            counts.push(len_u32(inner(level.end) - inner(level.start)) + leaves);
            level = level.end..self.children(level.end - 1).end.max(level.end);
        }
        counts
    }

    /// The number of SIDs that are proper prefixes of others.
    #[must_use]
    pub fn num_prefixes(&self) -> usize {
        let extended = |&&node: &&u32| !self.children(node).is_empty();
        let count = || self.ends.iter().filter(extended).count();
        self.known.num_prefixes.unwrap_or_else(count)
    }
}

/// The children of a node: their tokens, ascending, and their node numbers.
#[derive(Debug, Clone, Copy)]
pub struct Children<'a> {
    /// One for each child.
    pub tokens: Tokens<'a>,
    nodes: Nodes<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Nodes<'a> {
    From(u32),
    Listed(&'a [u32]),
}

impl Children<'_> {
    /// The node of the child at position `j`.
    #[must_use]
    pub fn node(&self, j: usize) -> u32 {
        match self.nodes {
            Nodes::From(first) => first.saturating_add(len_u32(j)),
            Nodes::Listed(nodes) => nodes.get(j).copied().unwrap_or(0),
        }
    }

    fn find(&self, token: u32) -> Option<u32> {
        let found = match self.tokens {
            Tokens::Narrow(tokens) => tokens.binary_search(&u16::try_from(token).ok()?),
            Tokens::Wide(tokens) => tokens.binary_search(&token),
        };
        found.ok().map(|j| self.node(j))
    }
}

/// A catalogue: a trie and, if there are any, the changes laid over it. The root is node 0.
#[derive(Debug, Clone, Copy)]
pub struct SidTrie<'a> {
    /// The trie below.
    pub base: Arrays<'a>,
    /// Items added and removed since.
    pub changes: Option<&'a Changes>,
}

impl<'a> From<Arrays<'a>> for SidTrie<'a> {
    fn from(base: Arrays<'a>) -> Self {
        let changes = None;
        Self { base, changes }
    }
}

impl<'a> SidTrie<'a> {
    /// One more than the largest node number.
    #[must_use]
    pub fn num_nodes(&self) -> usize {
        self.base.tokens.len() + self.changes.map_or(0, Changes::num_nodes)
    }

    /// The number of items.
    #[must_use]
    pub fn num_items(&self) -> usize {
        self.changes
            .map_or(self.base.items.len(), Changes::num_items)
    }

    /// The number of distinct SIDs.
    #[must_use]
    pub fn num_sids(&self) -> usize {
        self.changes
            .map_or_else(|| self.base.num_sids(), Changes::num_sids)
    }

    /// The length of the longest SID.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self.changes {
            Some(changes) => changes.depth(),
            None => self.base.sids_per_depth().len().saturating_sub(1),
        }
    }

    /// The number of SIDs that are proper prefixes of others.
    #[must_use]
    pub fn num_prefixes(&self) -> usize {
        self.changes
            .map_or_else(|| self.base.num_prefixes(), Changes::num_prefixes)
    }

    /// The smallest and the largest token of any SID; after changes, at most as small and at least as large.
    #[must_use]
    pub fn token_span(&self) -> (u32, u32) {
        let base = self.base.tokens.slice(1..self.base.tokens.len());
        let (low, high) = match base {
            Tokens::Narrow(tokens) => span_of(tokens),
            Tokens::Wide(tokens) => span_of(tokens),
        };
        let (low_changed, high_changed) = self.changes.map_or((low, high), |c| span_of(c.tokens()));
        (low.min(low_changed), high.max(high_changed))
    }

    /// The children of `node`.
    #[must_use]
    #[inline]
    pub fn children(&self, node: u32) -> Children<'a> {
        match self.changes.and_then(|changes| changes.children(node)) {
            Some((tokens, nodes)) => Children {
                tokens: Tokens::Wide(tokens),
                nodes: Nodes::Listed(nodes),
            },
            None => Children {
                tokens: self.base.child_tokens(node),
                nodes: Nodes::From(self.base.children(node).start),
            },
        }
    }

    /// The slots of the items of the SID that ends at `node`; empty if none does. A slot numbers an item
    /// within the trie: those of the base first, as [`Arrays::items`] lists them, then those of the changes.
    pub(crate) fn slots_at(&self, node: u32) -> Range<u32> {
        match self.changes.and_then(|changes| changes.slots_at(node)) {
            Some(slots) => slots,
            None => self.base.slots_at(node),
        }
    }

    /// The number of slots.
    pub(crate) fn num_slots(&self) -> u32 {
        len_u32(self.base.items.len() + self.changes.map_or(0, |changes| changes.items().len()))
    }

    /// The item in `slot`.
    pub(crate) fn item(&self, slot: u32) -> Option<i64> {
        let slot = slot as usize;
        match slot.checked_sub(self.base.items.len()) {
            None => self.base.items.get(slot),
            Some(added) => self.changes?.items().get(added).copied(),
        }
    }

    /// The items of the SID that ends at `node`, ascending; empty if none does.
    #[must_use]
    pub fn items_at(&self, node: u32) -> Vec<i64> {
        self.slots_at(node)
            .filter_map(|slot| self.item(slot))
            .collect()
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

    fn descend(&self, prefix: &[i64]) -> Option<u32> {
        prefix.iter().try_fold(0, |node, &token| {
            self.children(node).find(u32::try_from(token).ok()?)
        })
    }

    /// The tokens that may follow each of `nodes`: rows of `width` tokens, right-padded with [`NONE`],
    /// and `width`, the largest number of children among the nodes (at least 1).
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for a node that is neither -1 nor in the trie, [`Error::Memory`] if the table does
    /// not fit.
    pub fn allowed(&self, nodes: &[i64]) -> Result<(Vec<i64>, usize)> {
        check_nodes(self, nodes)?;
        let none = Tokens::Narrow(&[]);
        let tokens = |&node: &i64| u32::try_from(node).map_or(none, |n| self.children(n).tokens);
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
        let depth = self.depth();
        let mut found = Vec::with_capacity(self.num_items());
        self.visit(&mut |_, slots| found.extend(slots));
        let by_item = |&slot: &u32| self.item(slot);
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by_key(|&i| by_item(&found[i]));
        let mut places = vec![0; found.len()];
        for (place, &i) in order.iter().enumerate() {
            places[i] = place;
        }
        let mut table = filled(NONE, found.len().checked_mul(depth))?; // (N, L)
        let mut next = places.iter();
        self.visit(&mut |path, slots| {
            for &place in next.by_ref().take(slots.len()) {
                let row = &mut table[place * depth..][..depth];
                for (cell, &token) in row.iter_mut().zip(path) {
                    *cell = token.into();
                }
            }
        });
        let items = order.iter().filter_map(|&i| by_item(&found[i])).collect();
        Ok((table, items))
    }

    /// Shows every SID and the slots of its items, in lexicographic order.
    fn visit(&self, show: &mut impl FnMut(&[u32], Range<u32>)) {
        let mut path = Vec::new();
        let mut open = vec![(0, 0)]; // a node and the position of its next child
        let mut left = self.num_nodes() + self.num_slots() as usize; // to show: more only in arrays nobody checked
        while let Some((node, j)) = open.pop() {
            if j == 0 {
                let slots = self.slots_at(node);
                let Some(rest) = left.checked_sub(1 + slots.len()) else {
                    break;
                };
                left = rest;
                show(&path, slots);
            }
            let children = self.children(node);
            match children.tokens.get(j) {
                Some(token) if path.len() < MAX_DEPTH => {
                    path.push(token);
                    open.extend([(node, j + 1), (children.node(j), 0)]);
                }
                _ => {
                    path.pop();
                }
            }
        }
    }
}

/// The smallest and the largest of some tokens; the wrong way round if there are none.
fn span_of<T: Copy + Into<u32>>(tokens: &[T]) -> (u32, u32) {
    tokens
        .iter()
        .map(|&token| token.into())
        .fold((u32::MAX, 0), |(low, high), token| {
            (token.min(low), token.max(high))
        })
}

pub(crate) fn write_tokens(row: &mut [i64], tokens: Tokens<'_>) {
    for (cell, token) in row.iter_mut().zip(tokens.iter()) {
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

/// A number of nodes, rows or items.
#[expect(
    clippy::cast_possible_truncation,
    reason = "checked to be below 2**32 when the arrays came in"
)]
pub(crate) fn len_u32(len: usize) -> u32 {
    debug_assert!(u32::try_from(len).is_ok());
    len as u32
}
