//! What arrays from outside must be before a trie is made of them: a file may hold anything.

use std::fmt::Display;

use super::{Arrays, MAX_DEPTH, MAX_TOKEN, NONE, SidTrie};
use crate::{Error, Result};

impl Arrays<'_> {
    /// Refuses arrays that are not exactly those of some trie.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Value`] or [`Error::TooLarge`].
    pub fn check(&self) -> Result<()> {
        self.check_tree()?;
        self.check_siblings()?;
        self.check_ends()?;
        self.check_ranks()?;
        self.check_offsets()?;
        check_items(&self.items.iter().collect::<Vec<_>>())?;
        self.check_groups()
    }

    /// The children of all nodes partition the nodes after the root, each behind its parent: then every
    /// node has one parent and a lower number leads to the root, so there is no cycle. Nodes without an
    /// entry in `first_child` are the last level.
    fn check_tree(&self) -> Result<()> {
        let (first_child, num_nodes) = (self.first_child, self.tokens.len());
        if num_nodes < 2 {
            let rule = "must hold the root and at least one more node";
            return Err(Error::value("tokens", 0, rule, num_nodes));
        }
        Error::check_limit("tokens", MAX_TOKEN as usize, num_nodes)?;
        let Some(last_level) = first_child.len().checked_sub(1).filter(|&n| n > 0) else {
            return Err(Error::value(
                "first_child",
                0,
                "must not be empty",
                "nothing",
            ));
        };
        Error::check_limit("first_child", num_nodes, first_child.len())?;
        check_at("first_child", first_child, 0, 1, "must start with 1")?;
        let rule = "must end with the number of nodes";
        check_at(
            "first_child",
            first_child,
            last_level,
            self.num_nodes(),
            rule,
        )?;
        let rule = "must never decrease";
        check_order("first_child", first_child, 0, rule, |a, b| a <= b)?;
        let inner = (0..).zip(&first_child[..last_level]);
        for (node, &first) in inner {
            if first as usize <= node {
                let rule = "must lie behind its node";
                return Err(Error::value("first_child", node, rule, first));
            }
        }
        self.check_levels()
    }

    /// The levels follow one another up to the last, which begins where `first_child` says.
    fn check_levels(&self) -> Result<()> {
        let mut level = 0..1;
        for _ in 0..=MAX_DEPTH {
            if level.end == self.num_nodes() {
                let rule = "must hold an entry for every node above the last level, and the end";
                let expected = level.start as usize + 1;
                let got = self.first_child.len();
                return if got == expected {
                    Ok(())
                } else {
                    Err(Error::value(
                        "first_child",
                        expected,
                        rule,
                        format!("{got} entries"),
                    ))
                };
            }
            level = level.end..self.children(level.end - 1).end;
        }
        Err(Error::TooLarge {
            name: "depth",
            limit: MAX_DEPTH,
            got: MAX_DEPTH + 1,
        })
    }

    fn check_siblings(&self) -> Result<()> {
        if let Some(root) = self.tokens.get(0).filter(|&token| token != 0) {
            return Err(Error::value("tokens", 0, "must be 0 at the root", root));
        }
        if let Some(node) = self.tokens.iter().position(|token| token > MAX_TOKEN) {
            let rule = "must be at most 2**32 - 2";
            return Err(Error::value("tokens", node, rule, u32::MAX));
        }
        for node in 0..self.last_level() {
            let tokens = self.child_tokens(node);
            if !tokens.iter().is_sorted_by(|a, b| a < b) {
                let rule = "must be strictly ascending among siblings";
                let got = format!("{:?}", tokens.iter().collect::<Vec<_>>());
                let start = self.children(node).start as usize;
                return Err(Error::value("tokens", start, rule, got));
            }
        }
        Ok(())
    }

    /// `ends` ascend, lie between the root and the last level, and hold every node there without children.
    fn check_ends(&self) -> Result<()> {
        let (ends, last_level) = (self.ends, self.last_level());
        let inside = |node: &u32| (1..last_level).contains(node);
        let rule = "must be nodes after the root and above the last level";
        check_all("ends", ends, rule, inside)?;
        check_order("ends", ends, 0, "must be strictly ascending", |a, b| a < b)?;
        let mut rest = ends.iter().copied().peekable();
        let mut open_leaf =
            |&node: &u32| rest.next_if_eq(&node).is_none() && self.children(node).is_empty();
        match (0..last_level).find(|node| open_leaf(node)) {
            None => Ok(()),
            Some(node) => {
                let rule = "must contain every node without children above the last level";
                Err(Error::value("ends", ends.len(), rule, format!("no {node}")))
            }
        }
    }

    /// `ranks` are what a walk through the trie in lexicographic order counts.
    fn check_ranks(&self) -> Result<()> {
        let expected = if self.ends.is_empty() {
            0
        } else {
            self.num_sids()
        };
        Error::check_length("ranks", expected, self.ranks.len())?;
        if expected == 0 {
            return Ok(());
        }
        let bare = Self {
            ranks: &[],
            ..*self
        };
        let mut expected = 0;
        let mut open = vec![0];
        while let Some(node) = open.pop() {
            if let Some(sid) = bare.rank(node) {
                let rule = "must be the place of each SID in lexicographic order";
                check_at("ranks", self.ranks, sid, expected, rule)?;
                expected += 1;
            }
            open.extend(self.children(node).rev());
        }
        Ok(())
    }

    fn check_offsets(&self) -> Result<()> {
        let (offsets, num_sids) = (self.item_offsets, self.num_sids());
        if offsets.is_empty() {
            return Error::check_length("items", num_sids, self.items.len());
        }
        Error::check_length("item_offsets", num_sids + 1, offsets.len())?;
        if num_sids == self.items.len() {
            let rule = "must be empty if every SID has one item";
            return Err(Error::value("item_offsets", 0, rule, offsets[0]));
        }
        check_at("item_offsets", offsets, 0, 0, "must start with 0")?;
        let rule = "must be strictly ascending";
        check_order("item_offsets", offsets, 0, rule, |a, b| a < b)?;
        Error::check_length("items", offsets[num_sids] as usize, self.items.len())
    }

    fn check_groups(&self) -> Result<()> {
        for rank in 0..self.num_sids() {
            let slots = self.slots(rank);
            let items = self.items.slice(slots.start as usize..slots.end as usize);
            if !items.iter().is_sorted_by(|a, b| a < b) {
                let rule = "must be ascending within a SID";
                let got = format!("{:?}", items.iter().collect::<Vec<_>>());
                return Err(Error::value("items", slots.start as usize, rule, got));
            }
        }
        Ok(())
    }
}

/// Refuses nodes that are neither -1 nor in the trie.
pub(crate) fn check_nodes(trie: &SidTrie<'_>, nodes: &[i64]) -> Result<()> {
    let num_nodes = trie.num_nodes();
    let inside = |&node: &i64| node == NONE || usize::try_from(node).is_ok_and(|n| n < num_nodes);
    check_all("nodes", nodes, "must be -1 or a node of the trie", inside)
}

/// Refuses items that are negative or come twice.
pub(super) fn check_items(items: &[i64]) -> Result<()> {
    check_all("items", items, "must be >= 0", |&item| item >= 0)?;
    if items.is_sorted_by(|a, b| a < b) {
        return Ok(()); // the usual case needs no copy
    }
    let mut sorted = items.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let index = items.iter().rposition(|&item| item == pair[0]).unwrap_or(0);
            let rule = "must be unique, one SID per item; drop the repeated row";
            Err(Error::value("items", index, rule, pair[0]))
        }
    }
}

/// Refuses a row-major table of another size than `num_rows` rows of `width`.
pub(super) fn check_table(
    name: &'static str,
    table: &[i64],
    width: usize,
    num_rows: usize,
) -> Result<()> {
    Error::check_length(name, num_rows.saturating_mul(width), table.len())
}

/// The tokens of `row` before its right padding; `start` is where the row begins in its table.
pub(super) fn trim<'a>(name: &'static str, row: &'a [i64], start: usize) -> Result<&'a [i64]> {
    let length = row.iter().position(|&token| token < 0).unwrap_or(row.len());
    match row[length..].iter().position(|&token| token != NONE) {
        None => Ok(&row[..length]),
        Some(i) => {
            let rule = "must be tokens >= 0, right-padded with -1";
            Err(Error::value(
                name,
                start + length + i,
                rule,
                row[length + i],
            ))
        }
    }
}

/// Refuses another value than `expected` at `index`.
fn check_at(
    name: &'static str,
    values: &[u32],
    index: usize,
    expected: u32,
    rule: &'static str,
) -> Result<()> {
    match values[index] {
        got if got == expected => Ok(()),
        got => Err(Error::value(name, index, rule, got)),
    }
}

/// Refuses the first value that breaks `keeps`.
fn check_all<T: Display>(
    name: &'static str,
    values: &[T],
    rule: &'static str,
    keeps: impl Fn(&T) -> bool,
) -> Result<()> {
    match values.iter().position(|value| !keeps(value)) {
        None => Ok(()),
        Some(index) => Err(Error::value(name, index, rule, &values[index])),
    }
}

/// Refuses neighbours that break `keeps`; `start` is where `values` begin in the whole array.
fn check_order<T: Display>(
    name: &'static str,
    values: &[T],
    start: usize,
    rule: &'static str,
    keeps: impl Fn(&T, &T) -> bool,
) -> Result<()> {
    match values
        .windows(2)
        .position(|pair| !keeps(&pair[0], &pair[1]))
    {
        None => Ok(()),
        Some(i) => Err(Error::value(name, start + i + 1, rule, &values[i + 1])),
    }
}
