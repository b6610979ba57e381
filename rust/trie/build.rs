//! From rows of tokens to the trie: sort the rows, then lay out one level after the other.

use std::ops::Range;

use super::check::{check_items, check_table, trim};
use super::{Built, MAX_DEPTH, MAX_TOKEN, len_u32};
use crate::ints::IntVec;
use crate::parallel::in_chunks;
use crate::{Error, Result};

/// Rows that take longer to sort than a thread takes to start.
const WORTH_A_THREAD: usize = 1 << 15;

impl Built {
    /// Builds the trie from `sids`, a row-major `(items.len(), width)` table of tokens, right-padded
    /// with -1; row `i` is the SID of `items[i]`, and several items may share a SID. `end`, if any, is
    /// appended to every SID, so that none is a prefix of another. `num_threads` sort the rows.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the table is not `items.len()` rows, [`Error::TooLarge`] if a SID is longer
    /// than [`MAX_DEPTH`], and [`Error::Value`] for an empty table or SID, a token out of range or after
    /// padding, an `end` inside a SID, a negative item or an item that comes twice.
    pub fn build(
        sids: &[i64],
        width: usize,
        items: &[i64],
        end: Option<u32>,
        num_threads: usize,
    ) -> Result<Self> {
        let rows = Rows::parse(sids, width, items.len(), end)?;
        check_items(items)?;
        let order = rows.sorted(num_threads);
        if rows.largest <= u16::MAX.into() {
            let (tokens, built) = Layout::<u16>::new(&rows, &order).build(items);
            Ok(built.with(IntVec::Narrow(tokens)))
        } else {
            let (tokens, built) = Layout::<u32>::new(&rows, &order).build(items);
            Ok(built.with(IntVec::Wide(tokens)))
        }
    }

    fn with(self, tokens: IntVec<u16, u32>) -> Self {
        Self { tokens, ..self }
    }
}

/// The SIDs of a table like that of [`Built::build`], row by row.
///
/// # Errors
///
/// Those of [`Built::build`] that concern `sids`.
pub fn parse(
    sids: &[i64],
    width: usize,
    num_rows: usize,
    end: Option<u32>,
) -> Result<Vec<Vec<u32>>> {
    let rows = Rows::parse(sids, width, num_rows, end)?;
    Ok((0..len_u32(num_rows))
        .map(|row| rows.tokens(row).collect())
        .collect())
}

/// The rows as they came in, checked.
struct Rows<'a> {
    sids: &'a [i64],
    width: usize,
    end: Option<u32>,
    /// Tokens per row, `end` included.
    lengths: Vec<u16>,
    smallest: u32,
    largest: u32,
}

impl<'a> Rows<'a> {
    fn parse(sids: &'a [i64], width: usize, num_rows: usize, end: Option<u32>) -> Result<Self> {
        check_table("sids", sids, width, num_rows)?;
        if num_rows == 0 {
            let rule = "must hold at least one SID";
            return Err(Error::value("sids", 0, rule, "none"));
        }
        let full = width + usize::from(end.is_some());
        Error::check_limit("depth", MAX_DEPTH, full)?;
        Error::check_limit("sids", MAX_TOKEN as usize, num_rows.saturating_mul(full))?;
        let mut rows = Self {
            sids,
            width,
            end,
            lengths: Vec::with_capacity(num_rows),
            smallest: end.unwrap_or(u32::MAX),
            largest: end.unwrap_or(0),
        };
        (0..num_rows).try_for_each(|row| rows.check(row))?;
        Ok(rows)
    }

    fn check(&mut self, row: usize) -> Result<()> {
        let start = row * self.width;
        let sid = trim("sids", &self.sids[start..start + self.width], start)?;
        if sid.is_empty() {
            let rule = "must have at least one token per SID";
            return Err(Error::value("sids", row, rule, "an empty row"));
        }
        for (i, &token) in sid.iter().enumerate() {
            let token = token_of(token, self.end, start + i)?;
            self.smallest = self.smallest.min(token);
            self.largest = self.largest.max(token);
        }
        self.lengths
            .push(short(sid.len() + usize::from(self.end.is_some())));
        Ok(())
    }

    fn length(&self, row: u32) -> usize {
        self.lengths[row as usize].into()
    }

    fn depth(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0).into()
    }

    /// The tokens of a row.
    fn tokens(&self, row: u32) -> impl Iterator<Item = u32> {
        let written = self.length(row) - usize::from(self.end.is_some());
        let sid = &self.sids[row as usize * self.width..][..written];
        let checked = |&token: &i64| u32::try_from(token).unwrap_or(MAX_TOKEN);
        sid.iter().map(checked).chain(self.end)
    }

    /// The row numbers in lexicographic order of their SIDs, a prefix before what extends it.
    ///
    /// As many tokens as fit are packed into a 64-bit key, most significant first, and the rows sorted by
    /// key; only runs of rows with equal keys go on to the next tokens.
    fn sorted(&self, num_threads: usize) -> Vec<u32> {
        let bits = u64::from(self.largest - self.smallest + 1).ilog2() + 1;
        let tokens_per_key = (u64::BITS / bits) as usize;
        let key = |row: u32, level: usize| {
            let digits = self.tokens(row).skip(level);
            let digits = digits.map(|token| u64::from(token - self.smallest) + 1);
            let append = |key, digit| (key << bits) | digit;
            digits
                .chain(std::iter::repeat(0))
                .take(tokens_per_key)
                .fold(0, append)
        };
        let mut rows: Vec<(u64, u32)> = (0..len_u32(self.lengths.len()))
            .map(|row| (0, row))
            .collect();
        let mut runs: Vec<_> = std::iter::once(0..rows.len()).collect();
        for level in (0..self.depth()).step_by(tokens_per_key) {
            let mut ties = Vec::new();
            for run in runs {
                let start = run.start;
                let rows = &mut rows[run];
                sort_by_key(rows, |row| key(row, level), num_threads);
                ties.extend(ties_of(rows, start));
            }
            runs = ties;
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// Writes the key of every row, and sorts by key and row number.
fn sort_by_key(rows: &mut [(u64, u32)], key: impl Fn(u32) -> u64 + Sync, num_threads: usize) {
    let num_threads = if rows.len() < WORTH_A_THREAD {
        1
    } else {
        num_threads
    };
    in_chunks(rows, num_threads, |chunk| {
        for (digits, row) in &mut *chunk {
            *digits = key(*row);
        }
        chunk.sort_unstable();
    });
    if num_threads > 1 {
        #[expect(
            clippy::stable_sort_primitive,
            reason = "it finds the sorted chunks and merges them"
        )]
        rows.sort();
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

/// A type of tokens in memory.
trait Token: Copy + Default + PartialEq {
    fn cut(token: u32) -> Self;
}

impl Token for u32 {
    fn cut(token: u32) -> Self {
        token
    }
}

impl Token for u16 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "chosen where all tokens fit"
    )]
    fn cut(token: u32) -> Self {
        token as Self
    }
}

/// The rows in order, and the trie as far as it is laid out.
struct Layout<'a, T> {
    order: &'a [u32],
    depth: usize,
    /// The sorted table, row by row.
    table: Vec<T>,
    lengths: Vec<u16>,
    /// For every row the first depth, from 1, at which it departs from the row above it; 0 for the first
    /// row, which opens the root as well.
    departs: Vec<u16>,
    tokens: Vec<T>,
}

impl<'a, T: Token> Layout<'a, T> {
    fn new(rows: &Rows<'_>, order: &'a [u32]) -> Self {
        let depth = rows.depth();
        let mut table = Vec::with_capacity(order.len() * depth);
        for (i, &row) in order.iter().enumerate() {
            table.extend(rows.tokens(row).map(T::cut));
            table.resize((i + 1) * depth, T::default());
        }
        let mut layout = Self {
            order,
            depth,
            table,
            lengths: order
                .iter()
                .map(|&row| rows.lengths[row as usize])
                .collect(),
            departs: Vec::new(),
            tokens: Vec::new(),
        };
        layout.departs = (0..order.len()).map(|row| layout.departure(row)).collect();
        layout
    }

    fn row(&self, row: usize) -> &[T] {
        &self.table[row * self.depth..][..self.lengths[row].into()]
    }

    fn departure(&self, row: usize) -> u16 {
        let Some(above) = row.checked_sub(1) else {
            return 0;
        };
        let pairs = self.row(above).iter().zip(self.row(row));
        short(pairs.take_while(|(a, b)| a == b).count() + 1)
    }

    /// Whether a row repeats the SID above it.
    fn repeats(&self, row: usize) -> bool {
        self.departs[row] > self.lengths[row]
    }

    /// The tokens, and the trie without them.
    fn build(mut self, items: &[i64]) -> (Vec<T>, Built) {
        let (items, item_offsets) = self.items(items);
        let (first_child, ends) = self.lay_out();
        let ranks = if ends.is_empty() {
            Vec::new()
        } else {
            self.ranks()
        };
        let built = Built {
            tokens: IntVec::Narrow(Vec::new()),
            first_child,
            ends,
            ranks,
            item_offsets,
            items: items.into(),
        };
        (self.tokens, built)
    }

    /// The items in order, and where those of every SID start if some SID has several.
    fn items(&self, items: &[i64]) -> (Vec<i64>, Vec<u32>) {
        let mut items: Vec<i64> = self.order.iter().map(|&row| items[row as usize]).collect();
        let num_rows = self.order.len();
        if !(0..num_rows).any(|row| self.repeats(row)) {
            return (items, Vec::new());
        }
        let starts = (0..num_rows).filter(|&row| !self.repeats(row));
        let offsets: Vec<u32> = starts.chain([num_rows]).map(len_u32).collect();
        for ends in offsets.windows(2) {
            items[ends[0] as usize..ends[1] as usize].sort_unstable();
        }
        (items, offsets)
    }

    /// Lays out the nodes in one pass per level over the rows that reach it: the first children, and the
    /// nodes above the last level at which a SID ends.
    fn lay_out(&mut self) -> (Vec<u32>, Vec<u32>) {
        let added = |row: usize| usize::from(self.lengths[row] + 1 - self.departs[row].max(1));
        let num_nodes = 1 + (0..self.order.len()).map(added).sum::<usize>();
        self.tokens = Vec::with_capacity(num_nodes);
        self.tokens.push(T::default());
        let (mut first_child, mut ends) = (Vec::new(), Vec::new());
        for level in 0..self.depth {
            self.push_level(level, &mut first_child, &mut ends);
        }
        first_child.push(len_u32(self.tokens.len()));
        first_child.shrink_to_fit();
        (first_child, ends)
    }

    /// Closes the nodes at depth `level` and opens their children. A row starts a new node at a depth
    /// exactly when it departs from the row above it no deeper than that.
    fn push_level(&mut self, level: usize, first_child: &mut Vec<u32>, ends: &mut Vec<u32>) {
        for row in 0..self.order.len() {
            let departs = usize::from(self.departs[row]);
            let length = usize::from(self.lengths[row]);
            if departs <= level && length >= level {
                first_child.push(len_u32(self.tokens.len()));
            }
            if departs <= level + 1 && length > level {
                self.tokens.push(self.table[row * self.depth + level]);
                if length == level + 1 && length < self.depth {
                    ends.push(len_u32(self.tokens.len() - 1));
                }
            }
        }
    }

    /// The place of every SID in lexicographic order, shorter SIDs first.
    fn ranks(&self) -> Vec<u32> {
        let distinct = (0..self.order.len()).filter(|&row| !self.repeats(row));
        let mut sids: Vec<(u16, u32)> = (0..)
            .zip(distinct)
            .map(|(rank, row)| (self.lengths[row], rank))
            .collect();
        sids.sort_unstable();
        sids.into_iter().map(|(_, rank)| rank).collect()
    }
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
