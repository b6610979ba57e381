//! From rows of tokens to the trie: sort the rows, then lay out one level after the other.

use std::ops::Range;

use super::check::{check_items, check_table, trim};
use super::{MAX_DEPTH, MAX_TOKEN, SidTrie, len_u32};
use crate::{Error, Result};

/// Padding inside a [`Table`]; never a token.
const PAD: u32 = u32::MAX;

impl SidTrie {
    /// Builds the trie from `sids`, a row-major `(items.len(), width)` table of tokens, right-padded
    /// with -1; row `i` is the SID of `items[i]`, and several items may share a SID. `end`, if any, is
    /// appended to every SID, so that none is a prefix of another.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the table is not `items.len()` rows, [`Error::TooLarge`] if a SID is longer
    /// than [`MAX_DEPTH`], and [`Error::Value`] for an empty table or SID, a token out of range or after
    /// padding, an `end` inside a SID, a negative item or an item that comes twice.
    pub fn build(sids: &[i64], width: usize, items: &[i64], end: Option<u32>) -> Result<Self> {
        let table = Table::parse(sids, width, items.len(), end)?;
        check_items(items)?;
        let order = table.sorted_rows();
        let items: Vec<i64> = order.iter().map(|&row| items[row as usize]).collect();
        Ok(Self::from_sorted(&table.permuted(&order), &items))
    }

    /// Lays out the trie of a sorted `table`, in one pass per level over the rows that reach it.
    fn from_sorted(table: &Table, items: &[i64]) -> Self {
        let fresh = table.fresh_levels();
        let mut trie = Self::root(table.num_nodes(&fresh), items.len());
        let mut rows: Vec<u32> = (0..table.num_rows()).collect();
        let mut level = 0;
        while !rows.is_empty() {
            trie.push_level(table, &fresh, items, &rows, level);
            rows.retain(|&row| table.length(row) > level);
            level += 1;
        }
        trie.first_child.push(len_u32(&trie.tokens));
        trie.item_offsets.push(len_u32(&trie.items));
        trie.sort_items();
        trie.summarized()
    }

    fn root(num_nodes: usize, num_items: usize) -> Self {
        let mut tokens = Vec::with_capacity(num_nodes);
        tokens.push(0);
        Self {
            tokens,
            first_child: Vec::with_capacity(num_nodes + 1),
            items: Vec::with_capacity(num_items),
            ..Self::default()
        }
    }

    /// Closes the nodes at depth `level` and opens their children. A row starts a new node at a depth
    /// exactly when it departs from the row above it no deeper than that.
    fn push_level(
        &mut self,
        table: &Table,
        fresh: &[u16],
        items: &[i64],
        rows: &[u32],
        level: usize,
    ) {
        for &row in rows {
            let (departs, length) = (usize::from(fresh[row as usize]), table.length(row));
            if departs <= level {
                self.first_child.push(len_u32(&self.tokens));
            }
            if departs <= level + 1 && level < length {
                self.tokens.push(table.row(row)[level]);
            }
            if length == level + 1 {
                self.push_item(items[row as usize]);
            }
        }
    }

    /// Adds an item to the newest node.
    fn push_item(&mut self, item: i64) {
        let node = len_u32(&self.tokens) - 1;
        if self.terminals.last() != Some(&node) {
            self.terminals.push(node);
            self.item_offsets.push(len_u32(&self.items));
        }
        self.items.push(item);
    }

    fn sort_items(&mut self) {
        for ends in self.item_offsets.windows(2) {
            self.items[ends[0] as usize..ends[1] as usize].sort_unstable();
        }
    }
}

/// SIDs as a row-major table of `u32`, right-padded with [`PAD`]: half the bytes of the input.
struct Table {
    tokens: Vec<u32>,
    width: usize,
    lengths: Vec<u16>,
}

impl Table {
    fn parse(sids: &[i64], width: usize, num_rows: usize, end: Option<u32>) -> Result<Self> {
        check_table("sids", sids, width, num_rows)?;
        if num_rows == 0 {
            let rule = "must hold at least one SID";
            return Err(Error::value("sids", 0, rule, "none"));
        }
        let full = width + usize::from(end.is_some());
        Error::check_limit("depth", MAX_DEPTH, full)?;
        Error::check_limit("sids", MAX_TOKEN as usize, num_rows.saturating_mul(full))?;
        let mut table = Self::with_capacity(num_rows, full);
        for row in 0..num_rows {
            table.push(&sids[row * width..][..width], row, end)?;
        }
        Ok(table)
    }

    fn with_capacity(num_rows: usize, width: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(num_rows * width),
            width,
            lengths: Vec::with_capacity(num_rows),
        }
    }

    /// Checks and appends a padded row of the input.
    fn push(&mut self, padded: &[i64], row: usize, end: Option<u32>) -> Result<()> {
        let start = row * padded.len();
        let sid = trim("sids", padded, start)?;
        if sid.is_empty() {
            let rule = "must have at least one token per SID";
            return Err(Error::value("sids", row, rule, "an empty row"));
        }
        for (i, &token) in sid.iter().enumerate() {
            self.tokens.push(token_of(token, end, start + i)?);
        }
        self.tokens.extend(end);
        self.lengths
            .push(short(self.tokens.len() - row * self.width));
        self.tokens.resize((row + 1) * self.width, PAD);
        Ok(())
    }

    fn num_rows(&self) -> u32 {
        len_u32(&self.lengths)
    }

    fn length(&self, row: u32) -> usize {
        self.lengths[row as usize].into()
    }

    fn row(&self, row: u32) -> &[u32] {
        &self.tokens[row as usize * self.width..][..self.width]
    }

    fn permuted(&self, order: &[u32]) -> Self {
        let mut table = Self::with_capacity(order.len(), self.width);
        for &row in order {
            table.tokens.extend_from_slice(self.row(row));
            table.lengths.push(self.lengths[row as usize]);
        }
        table
    }

    /// The row numbers in lexicographic order of their SIDs, a prefix before what extends it.
    ///
    /// As many tokens as fit are packed into a 64-bit key, most significant first, and the rows sorted by
    /// key; only runs of rows with equal keys go on to the next tokens.
    fn sorted_rows(&self) -> Vec<u32> {
        let packing = Packing::of(&self.tokens);
        let mut rows: Vec<(u64, u32)> = (0..self.num_rows()).map(|row| (0, row)).collect();
        let mut runs: Vec<_> = std::iter::once(0..rows.len()).collect();
        for level in (0..self.width).step_by(packing.tokens_per_key) {
            let mut ties = Vec::new();
            for run in runs {
                let start = run.start;
                let rows = &mut rows[run];
                for (key, row) in &mut *rows {
                    *key = packing.key(&self.row(*row)[level..]);
                }
                rows.sort_unstable();
                ties.extend(ties_of(rows, start));
            }
            runs = ties;
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    /// For every row of a sorted table, the first depth (from 1) at which it departs from the row above
    /// it; 0 for the first row, which opens the root as well.
    fn fresh_levels(&self) -> Vec<u16> {
        let departs = |(above, row): (&[u32], &[u32])| {
            let shared = |&(a, b): &(&u32, &u32)| a == b && *a != PAD;
            short(above.iter().zip(row).take_while(shared).count() + 1)
        };
        let rows = || self.tokens.chunks_exact(self.width);
        std::iter::once(0)
            .chain(rows().zip(rows().skip(1)).map(departs))
            .collect()
    }

    /// The number of nodes of the trie, root included: a row adds one per depth from where it departs.
    fn num_nodes(&self, fresh: &[u16]) -> usize {
        let added = |(&length, &departs): (&u16, &u16)| usize::from(length + 1 - departs.max(1));
        1 + self.lengths.iter().zip(fresh).map(added).sum::<usize>()
    }
}

/// How tokens become digits of a 64-bit key: 0 is padding, then the tokens from the smallest on.
struct Packing {
    smallest: u32,
    bits: u32,
    tokens_per_key: usize,
}

impl Packing {
    fn of(tokens: &[u32]) -> Self {
        let present = || tokens.iter().copied().filter(|&token| token != PAD);
        let smallest = present().min().unwrap_or(0);
        let largest = present().max().unwrap_or(0);
        let bits = u64::from(largest - smallest + 1).ilog2() + 1;
        Self {
            smallest,
            bits,
            tokens_per_key: (u64::BITS / bits) as usize,
        }
    }

    fn key(&self, tokens: &[u32]) -> u64 {
        let digit = |&token: &u32| match token {
            PAD => 0,
            _ => u64::from(token - self.smallest) + 1,
        };
        let digits = tokens.iter().map(digit).chain(std::iter::repeat(0));
        let append = |key, digit| (key << self.bits) | digit;
        digits.take(self.tokens_per_key).fold(0, append)
    }
}

/// The runs of at least two rows with equal keys, as ranges shifted by `start`.
fn ties_of(rows: &[(u64, u32)], start: usize) -> impl Iterator<Item = Range<usize>> {
    let mut end = start;
    rows.chunk_by(|a, b| a.0 == b.0).filter_map(move |run| {
        end += run.len();
        (run.len() > 1).then(|| end - run.len()..end)
    })
}

fn token_of(token: i64, end: Option<u32>, index: usize) -> Result<u32> {
    match u32::try_from(token) {
        Ok(token) if Some(token) == end => {
            let rule = "must not contain the token `end`; choose an unused one";
            Err(Error::value("sids", index, rule, token))
        }
        Ok(token) if token <= MAX_TOKEN => Ok(token),
        _ => {
            let rule = "must be tokens in 0 .. 2**32 - 2";
            Err(Error::value("sids", index, rule, token))
        }
    }
}

/// A number that [`MAX_DEPTH`] keeps small.
fn short(number: usize) -> u16 {
    u16::try_from(number).expect("at most MAX_DEPTH + 1")
}
