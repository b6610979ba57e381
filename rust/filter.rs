//! Items that a request may not, or may only, be answered with; different for each row of a batch.
//!
//! The items of a node are neighbours among the slots of the trie, so a set of denied items is a sorted list of
//! *runs* of slots, and a node is dead exactly when its span lies inside one run. Nothing is stored per node:
//!
//! ```text
//! slots      0 1 2 3 4 5 6 7        denied 2, 3, 4 and 7: runs [2, 5) [7, 8)
//! node       [a  ][b ][c   ]        spans a [0, 3), b [3, 5), c [5, 8): only b is dead
//! ```
//!
//! An allow list denies the gaps between its items. Cost: one look-up per listed item and a sort, about
//! 30 ns each; a step then finds the dead children of its beams by binary search from whichever are fewer, runs
//! or children.

use std::ops::Range;

use crate::trie::changes::Changes;
use crate::trie::{Arrays, NONE, SidTrie, check_nodes, filled};
use crate::{Error, Result};

/// Lists of item ids, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a> {
    /// The ids of all lists; negative ones are padding, unknown ones name nothing.
    pub items: &'a [i64],
    /// The end of each list in `items`.
    pub ends: &'a [i64],
}

/// What is denied to every row of a batch; one row serves all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    runs: Vec<(u32, u32)>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    end: usize,
    longest: u32,
}

/// The runs of denied slots of one row.
#[derive(Debug, Clone, Copy)]
pub struct Denied<'a> {
    runs: &'a [(u32, u32)],
    longest: u32,
}

impl Filter {
    /// Denies every row all that its list in `allow`, if given, does not hold, and all that its list in
    /// `deny`, if given, holds. `slot` finds the items of `trie`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if a SID is a prefix of another or the ends do not ascend within the items,
    /// [`Error::Length`] if `allow` and `deny` have different numbers of lists.
    pub fn new(
        trie: &SidTrie<'_>,
        allow: Option<Lists<'_>>,
        deny: Option<Lists<'_>>,
        slot: impl Fn(i64) -> Option<u32>,
    ) -> Result<Self> {
        if trie.num_prefixes() > 0 {
            let rule = "must have no SID that is a prefix of another; build it with `end=`";
            return Err(Error::value("trie", 0, rule, trie.num_prefixes()));
        }
        let given = |lists: Option<Lists<'_>>| lists.map(|lists| lists.ends.len());
        let num_rows = given(deny).or(given(allow)).unwrap_or(1);
        Error::check_length("allow", num_rows, given(allow).unwrap_or(num_rows))?;
        let mut filter = Self::default();
        let replaced = trie.changes.map_or(&[][..], Changes::replaced);
        let unreachable: Vec<(u32, u32)> = replaced.iter().map(|&slot| (slot, slot + 1)).collect();
        for row in 0..num_rows {
            let mut denied = match allow {
                Some(lists) => gaps(&lists.runs("allow", row, &slot)?, trie.num_slots()),
                None => Vec::new(),
            };
            if let Some(lists) = deny {
                denied.extend(lists.runs("deny", row, &slot)?);
            }
            denied.extend(unreachable.iter().copied());
            filter.push(joined(denied));
        }
        Ok(filter)
    }

    fn push(&mut self, runs: Vec<(u32, u32)>) {
        let longest = runs.iter().map(|run| run.1 - run.0).max().unwrap_or(0);
        self.runs.extend(runs);
        let end = self.runs.len();
        self.rows.push(Row { end, longest });
    }

    /// The number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// What is denied to a row.
    #[must_use]
    pub fn row(&self, row: usize) -> Denied<'_> {
        let row = if self.rows.len() == 1 { 0 } else { row };
        let start = row.checked_sub(1).map_or(0, |above| self.rows[above].end);
        Denied {
            runs: &self.runs[start..self.rows[row].end],
            longest: self.rows[row].longest,
        }
    }
}

impl Lists<'_> {
    fn runs(
        &self,
        name: &'static str,
        row: usize,
        slot: impl Fn(i64) -> Option<u32>,
    ) -> Result<Vec<(u32, u32)>> {
        let end = |row: usize| usize::try_from(self.ends[row]).unwrap_or(usize::MAX);
        let start = row.checked_sub(1).map_or(0, end);
        let Some(items) = self.items.get(start..end(row)) else {
            let rule = "must have ends that ascend up to the number of items";
            return Err(Error::value(name, row, rule, self.ends[row]));
        };
        let mut slots: Vec<u32> = items.iter().filter_map(|&item| slot(item)).collect();
        slots.sort_unstable();
        Ok(joined(
            slots.into_iter().map(|slot| (slot, slot + 1)).collect(),
        ))
    }
}

/// Sorted runs with those that touch or overlap made one.
fn joined(mut runs: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    runs.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(runs.len());
    for (start, end) in runs {
        match joined.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// What is left of `0..num_slots` between runs.
fn gaps(runs: &[(u32, u32)], num_slots: u32) -> Vec<(u32, u32)> {
    let starts = std::iter::once(0).chain(runs.iter().map(|run| run.1));
    let ends = runs.iter().map(|run| run.0).chain([num_slots]);
    starts.zip(ends).filter(|gap| gap.0 < gap.1).collect()
}

impl Denied<'_> {
    /// Whether a slot is denied.
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        self.covers(slot..slot + 1)
    }

    fn covers(&self, slots: Range<u32>) -> bool {
        let at = self.runs.partition_point(|run| run.0 <= slots.start);
        slots.is_empty() || at > 0 && self.runs[at - 1].1 >= slots.end
    }

    /// The positions of the children of `node` that keep no item, as ascending ranges. An only child lives
    /// if its parent does, which is taken for granted below the root.
    pub(crate) fn dead_children(&self, trie: &SidTrie<'_>, node: u32) -> Vec<Range<usize>> {
        let num_children = trie.children(node).tokens.len();
        if self.runs.is_empty() || num_children == 0 || (num_children == 1 && node != 0) {
            return Vec::new();
        }
        if trie.changes.is_some_and(|changes| changes.holds(node)) {
            let children = trie.children(node);
            return ranges((0..num_children).filter(|&j| self.is_dead(trie, children.node(j))));
        }
        let siblings = Siblings::new(&trie.base, node);
        let runs = self.runs_within(&siblings.span);
        let descents = 2 * (num_children.ilog2() as usize + 1); // two binary searches, of one child each time
        if runs.len().saturating_mul(descents) < num_children {
            let inside = runs.iter().map(|&run| siblings.inside(run));
            return inside.filter(|range| !range.is_empty()).collect();
        }
        siblings.dead(runs)
    }

    fn runs_within(&self, span: &Range<u32>) -> &[(u32, u32)] {
        let from = self.runs.partition_point(|run| run.1 <= span.start);
        let to = self.runs.partition_point(|run| run.0 < span.end);
        &self.runs[from..to.max(from)]
    }

    /// Whether all items below a node are denied.
    fn is_dead(&self, trie: &SidTrie<'_>, node: u32) -> bool {
        if let Some((twin, added)) = trie.changes.and_then(|changes| changes.stands_for(node)) {
            let kept = twin.map_or(0..0, |twin| trie.base.span(twin)); // what was replaced there is denied as well
            return self.covers(added) && self.covers(kept);
        }
        // A node with more children than the longest run has slots lives: the usual case costs no descent.
        trie.base.children(node).len() <= self.longest as usize && self.covers(trie.base.span(node))
    }
}

/// The children of a node of the base; where one's items end, those of the next start.
struct Siblings<'a> {
    trie: &'a Arrays<'a>,
    nodes: Range<u32>,
    span: Range<u32>,
}

impl<'a> Siblings<'a> {
    fn new(trie: &'a Arrays<'a>, parent: u32) -> Self {
        Self {
            trie,
            nodes: trie.children(parent),
            span: trie.span(parent),
        }
    }

    /// Where the items of the child at position `j` start; behind the last child, where they end.
    fn start(&self, j: usize) -> u32 {
        match self.nodes.clone().nth(j) {
            Some(node) => self.trie.span_start(node),
            None => self.span.end,
        }
    }

    /// The first position whose items start at `slot` or behind.
    fn first_from(&self, slot: u32) -> usize {
        let (mut low, mut high) = (0, self.nodes.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.start(middle) < slot {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The positions of the children inside a run, by binary search.
    fn inside(&self, run: (u32, u32)) -> Range<usize> {
        let first = self.first_from(run.0);
        // The last child to start no later than the run ends reaches beyond it, unless the run holds the end of all.
        let last = if run.1 >= self.span.end {
            self.nodes.len()
        } else {
            self.first_from(run.1 + 1).saturating_sub(1)
        };
        first..last.max(first)
    }

    /// The positions of the children inside some run of `runs`, in one pass over both.
    fn dead(&self, runs: &[(u32, u32)]) -> Vec<Range<usize>> {
        let (mut rest, mut start) = (runs.iter().peekable(), self.span.start);
        ranges((0..self.nodes.len()).filter(|j| {
            let items = start..self.start(j + 1);
            start = items.end;
            while rest.next_if(|run| run.1 <= items.start).is_some() {}
            rest.peek()
                .is_some_and(|run| run.0 <= items.start && items.end <= run.1)
        }))
    }
}

/// Ascending positions as ranges of neighbours.
fn ranges(positions: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for j in positions {
        match ranges.last_mut() {
            Some(last) if last.end == j => last.end += 1,
            _ => ranges.push(j..j + 1),
        }
    }
    ranges
}

impl SidTrie<'_> {
    /// The tokens of the children of each of `nodes`, `width` nodes a row, that keep an item: rows of tokens
    /// right-padded with -1, and their width. What [`SidTrie::allowed`] lists, less what is denied; so none
    /// for a node that keeps no item itself, which no search enters.
    ///
    /// # Errors
    ///
    /// Those of [`SidTrie::allowed`], and [`Error::Length`] for a filter of another number of rows.
    pub fn allowed_by(
        &self,
        nodes: &[i64],
        width: usize,
        filter: &Filter,
    ) -> Result<(Vec<i64>, usize)> {
        let num_rows = nodes.len() / width.max(1);
        check_rows(filter, num_rows)?;
        check_nodes(self, nodes)?;
        let live = |(beam, &node): (usize, &i64)| match u32::try_from(node) {
            Ok(node) => live_tokens(self, filter.row(beam / width), node),
            Err(_) => Vec::new(),
        };
        let tokens: Vec<Vec<i64>> = nodes.iter().enumerate().map(live).collect();
        let columns = tokens.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut table = filled(NONE, nodes.len().checked_mul(columns))?;
        for (row, tokens) in table.chunks_exact_mut(columns).zip(&tokens) {
            row[..tokens.len()].copy_from_slice(tokens);
        }
        Ok((table, columns))
    }

    /// The first `num_items` items that the SIDs at each row of `width` nodes name and `filter` leaves,
    /// right-padded with -1.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for a filter of another number of rows, [`Error::Value`] for an unknown node,
    /// [`Error::Memory`] if the result does not fit.
    pub fn expand(
        &self,
        nodes: &[i64],
        width: usize,
        num_items: usize,
        filter: Option<&Filter>,
    ) -> Result<Vec<i64>> {
        let num_rows = nodes.len() / width.max(1);
        filter.map_or(Ok(()), |filter| check_rows(filter, num_rows))?;
        check_nodes(self, nodes)?;
        let mut table = filled(NONE, num_rows.checked_mul(num_items))?;
        let rows = nodes
            .chunks_exact(width.max(1))
            .zip(table.chunks_exact_mut(num_items.max(1)));
        for (row, (nodes, found)) in rows.enumerate() {
            let live = nodes
                .iter()
                .flat_map(|&node| self.live_items(node, row, filter));
            for (cell, item) in found.iter_mut().zip(live) {
                *cell = item;
            }
        }
        Ok(table)
    }

    /// The lowest item of the SID at each of `nodes`, rows of `width`, that `filter` leaves; -1 where there is none.
    ///
    /// # Errors
    ///
    /// Those of [`SidTrie::expand`].
    pub fn lowest_items(
        &self,
        nodes: &[i64],
        width: usize,
        filter: Option<&Filter>,
    ) -> Result<Vec<i64>> {
        filter.map_or(Ok(()), |filter| {
            check_rows(filter, nodes.len() / width.max(1))
        })?;
        check_nodes(self, nodes)?;
        let lowest = |(beam, &node): (usize, &i64)| {
            let mut items = self.live_items(node, beam / width.max(1), filter);
            items.next().unwrap_or(NONE)
        };
        Ok(nodes.iter().enumerate().map(lowest).collect())
    }

    /// The items at `node` that `filter` leaves to a row, ascending.
    fn live_items(
        &self,
        node: i64,
        row: usize,
        filter: Option<&Filter>,
    ) -> impl Iterator<Item = i64> {
        let slots = u32::try_from(node).map_or(0..0, |node| self.slots_at(node));
        let denied = filter.map(|filter| filter.row(row));
        let live = slots.filter(move |&slot| denied.is_none_or(|denied| !denied.contains(slot)));
        live.filter_map(|slot| self.item(slot))
    }
}

/// Refuses a filter of neither one row nor `num_rows`.
pub(crate) fn check_rows(filter: &Filter, num_rows: usize) -> Result<()> {
    match filter.num_rows() {
        1 => Ok(()),
        got => Error::check_length("filter", num_rows, got),
    }
}

fn live_tokens(trie: &SidTrie<'_>, denied: Denied<'_>, node: u32) -> Vec<i64> {
    if denied.is_dead(trie, node) {
        return Vec::new(); // an only child would pass for alive
    }
    let tokens = trie.children(node).tokens;
    let live = live_ranges(tokens.len(), denied.dead_children(trie, node));
    live.flat_map(|range| {
        tokens
            .slice(range)
            .iter()
            .map(i64::from)
            .collect::<Vec<_>>()
    })
    .collect()
}

/// The ranges of `0..len` that ascending `dead` ranges leave.
pub(crate) fn live_ranges(
    len: usize,
    dead: Vec<Range<usize>>,
) -> impl Iterator<Item = Range<usize>> {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(dead.iter().map(|range| range.end))
        .collect();
    let ends = dead.into_iter().map(|range| range.start).chain([len]);
    starts
        .into_iter()
        .zip(ends)
        .filter(|range| range.0 < range.1)
        .map(|(start, end)| start..end)
}
