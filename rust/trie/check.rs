//! What arrays from outside must be before a trie is made of them: a file may hold anything.

use std::fmt::Display;

use super::{MAX_TOKEN, NONE, SidTrie, len_u32};
use crate::{Error, Result};

impl SidTrie {
    /// Refuses arrays that are not exactly those of some trie.
    pub(super) fn check(&self) -> Result<()> {
        self.check_tree()?;
        self.check_siblings()?;
        self.check_terminals()?;
        self.check_offsets()?;
        check_items(&self.items)?;
        self.check_groups()
    }

    /// Refuses nodes that are neither -1 nor in the trie.
    pub(crate) fn check_nodes(&self, nodes: &[i64]) -> Result<()> {
        let num_nodes = self.num_nodes();
        let inside =
            |&node: &i64| node == NONE || usize::try_from(node).is_ok_and(|n| n < num_nodes);
        check_all("nodes", nodes, "must be -1 or a node of the trie", inside)
    }

    /// The children of all nodes partition the nodes after the root, each behind its parent: then every
    /// node has one parent and a lower number leads to the root, so there is no cycle.
    fn check_tree(&self) -> Result<()> {
        let (first_child, num_nodes) = (&self.first_child, self.num_nodes());
        if num_nodes < 2 {
            let rule = "must hold the root and at least one more node";
            return Err(Error::value("tokens", 0, rule, num_nodes));
        }
        Error::check_limit("tokens", MAX_TOKEN as usize, num_nodes)?;
        Error::check_length("first_child", num_nodes + 1, first_child.len())?;
        check_at("first_child", first_child, 0, 1, "must start with 1")?;
        let (last, rule) = (len_u32(&self.tokens), "must end with the number of nodes");
        check_at("first_child", first_child, num_nodes, last, rule)?;
        let rule = "must never decrease";
        check_order("first_child", first_child, 0, rule, |a, b| a <= b)?;
        match (0..num_nodes).find(|&node| first_child[node] as usize <= node) {
            None => Ok(()),
            Some(node) => {
                let rule = "must lie behind its node";
                Err(Error::value("first_child", node, rule, first_child[node]))
            }
        }
    }

    fn check_siblings(&self) -> Result<()> {
        check_at("tokens", &self.tokens, 0, 0, "must be 0 at the root")?;
        let rule = "must be at most 2**32 - 2";
        check_all("tokens", &self.tokens, rule, |&token| token <= MAX_TOKEN)?;
        let rule = "must be strictly ascending among siblings";
        (0..len_u32(&self.tokens)).try_for_each(|node| {
            let start = self.children(node).start as usize;
            check_order("tokens", self.child_tokens(node), start, rule, |a, b| a < b)
        })
    }

    /// Terminals ascend, lie behind the root, and every node without children is one.
    fn check_terminals(&self) -> Result<()> {
        let (terminals, num_nodes) = (&self.terminals, len_u32(&self.tokens));
        let inside = |node: &u32| (1..num_nodes).contains(node);
        check_all(
            "terminals",
            terminals,
            "must be nodes after the root",
            inside,
        )?;
        let rule = "must be strictly ascending";
        check_order("terminals", terminals, 0, rule, |a, b| a < b)?;
        let mut ends = terminals.iter().copied().peekable();
        let mut open_leaf =
            |&node: &u32| ends.next_if_eq(&node).is_none() && self.children(node).is_empty();
        match (0..num_nodes).find(|node| open_leaf(node)) {
            None => Ok(()),
            Some(node) => {
                let rule = "must contain every node without children";
                let got = format!("no {node}");
                Err(Error::value("terminals", terminals.len(), rule, got))
            }
        }
    }

    fn check_offsets(&self) -> Result<()> {
        let (offsets, num_sids) = (&self.item_offsets, self.terminals.len());
        Error::check_length("item_offsets", num_sids + 1, offsets.len())?;
        check_at("item_offsets", offsets, 0, 0, "must start with 0")?;
        let rule = "must be strictly ascending";
        check_order("item_offsets", offsets, 0, rule, |a, b| a < b)?;
        Error::check_length("items", offsets[num_sids] as usize, self.items.len())
    }

    fn check_groups(&self) -> Result<()> {
        let rule = "must be ascending within a terminal";
        self.item_offsets.windows(2).try_for_each(|ends| {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            check_order("items", &self.items[start..end], start, rule, |a, b| a < b)
        })
    }
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
