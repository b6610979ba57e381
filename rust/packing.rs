//! A prompt and its candidates as one depth-first row.
//!
//! ```text
//! prompt 7 8 · candidates (1 2 3), (1 2 4), (5 6 3) · suffix 9
//!
//!   index     0  1  2  3  4  5  6  7  8  9 10 11
//!   token     7  8  1  2  3  9  4  9  5  6  3  9
//!   position  0  1  2  3  4  5  4  5  2  3  4  5      depth in the tree
//!   exit     12 12  8  8  6  6  8  8 12 12 12 12      first index after the subtree
//! ```
//!
//! Token `j` sees `i` exactly when `i <= j < exit[i]`: those are its ancestors and itself. Candidates that share
//! a prefix share its nodes; equal candidates share everything, the suffix included. Without a suffix nothing
//! is predicted from the last token of a candidate, so it has no node.
//!
//! Costs `O(tokens)` time after sorting each group's candidates, and writes the padded `(B, T)` arrays once.
//! Not worth it for one candidate per prompt: the row is then the sequence itself.

#![allow(
    clippy::cast_possible_wrap,
    reason = "an index into a `Vec` is below `isize::MAX`"
)]

use crate::trie::filled;
use crate::{Error, Result};

/// Marks an absent token, node or candidate.
const ABSENT: i64 = -1;

/// `B` rows of `width` nodes, row-major; padding is a node that sees only itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Longest row, `T`.
    pub width: usize,
    /// `(B, T)` token of each node.
    pub tokens: Vec<i64>,
    /// `(B, T)` depth of each node.
    pub position: Vec<i64>,
    /// `(B, T)` first index after each node's subtree.
    pub exit: Vec<i64>,
    /// `(B,)` nodes in each row.
    pub length: Vec<i64>,
    /// `(B, G, L)` node whose logits predict each completion token, -1 where there is none.
    pub logit_index: Vec<i64>,
    /// `(B, G)` last suffix node of each candidate, -1 where there is none.
    pub suffix_index: Vec<i64>,
}

/// What to pack: `B` prompts, `B * group` candidates of at most `depth` tokens, one suffix.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// All prompts, one after the other.
    pub prompts: &'a [i64],
    /// `(B + 1,)` where each prompt starts; the last entry is the length of `prompts`.
    pub offsets: &'a [i64],
    /// `(B, group, depth)`, right-padded with -1.
    pub completions: &'a [i64],
    /// Candidates per prompt.
    pub group: usize,
    /// Token columns of `completions`.
    pub depth: usize,
    /// Tokens that follow every candidate.
    pub suffix: &'a [i64],
}

/// A candidate in sorted order, with the number of leading tokens that it shares with the one before it.
struct Step {
    candidate: usize,
    len: usize,
    shared: usize,
}

/// Packs every prompt with its candidates into one row.
///
/// # Errors
///
/// [`Error::Length`] if the offsets or `completions` do not fit the other arguments, [`Error::Value`] for an
/// empty prompt, a negative token or a token after padding, [`Error::Memory`] if the rows do not fit.
pub fn pack(batch: Batch<'_>, pad_token: i64) -> Result<Packed> {
    check(batch, pad_token)?;
    let rows = batch.offsets.len() - 1;
    let mut steps = Vec::with_capacity(rows * batch.group);
    let mut starts = vec![0];
    let mut length = Vec::with_capacity(rows);
    for row in 0..rows {
        length.push((batch.prompt(row).len() + plan(batch, row, &mut steps)) as i64);
        starts.push(steps.len());
    }
    let width = usize::try_from(length.iter().copied().max().unwrap_or(0)).unwrap_or(0);
    let table = |columns: usize, value: i64| filled(value, rows.checked_mul(columns));
    let mut packed = Packed {
        width,
        tokens: table(width, pad_token)?,
        position: table(width, 0)?,
        exit: table(width, 0)?,
        length,
        logit_index: filled(ABSENT, Some(batch.completions.len()))?,
        suffix_index: table(batch.group, ABSENT)?,
    };
    for row in 0..rows {
        write(
            batch,
            row,
            &steps[starts[row]..starts[row + 1]],
            &mut packed,
        );
    }
    Ok(packed)
}

impl<'a> Batch<'a> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked offsets"
    )]
    fn prompt(self, row: usize) -> &'a [i64] {
        &self.prompts[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    fn candidate(self, row: usize, candidate: usize) -> &'a [i64] {
        let tokens = &self.completions[(row * self.group + candidate) * self.depth..][..self.depth];
        &tokens[..tokens
            .iter()
            .position(|&t| t == ABSENT)
            .unwrap_or(self.depth)]
    }

    /// Nodes that a candidate of `len` tokens needs, its suffix aside.
    fn nodes(self, len: usize) -> usize {
        len - usize::from(self.suffix.is_empty())
    }
}

/// Sorts the candidates of a row; returns the number of nodes that they need beside the prompt.
fn plan(batch: Batch<'_>, row: usize, steps: &mut Vec<Step>) -> usize {
    let mut order: Vec<(&[i64], usize)> = (0..batch.group)
        .map(|candidate| (batch.candidate(row, candidate), candidate))
        .filter(|(tokens, _)| !tokens.is_empty())
        .collect();
    order.sort_unstable();
    let (mut nodes, mut open, mut last): (usize, usize, &[i64]) = (0, 0, &[]);
    for (tokens, candidate) in order {
        let shared = last.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        steps.push(Step {
            candidate,
            len: tokens.len(),
            shared,
        });
        if shared < tokens.len() {
            nodes += batch.nodes(tokens.len()) - shared.min(open) + batch.suffix.len();
            open = batch.nodes(tokens.len());
        }
        last = tokens;
    }
    nodes
}

/// One row being written, front to back.
struct Row<'a> {
    tokens: &'a mut [i64],
    position: &'a mut [i64],
    exit: &'a mut [i64],
    len: usize,
}

impl Row<'_> {
    fn push(&mut self, token: i64, position: usize) -> usize {
        self.tokens[self.len] = token;
        self.position[self.len] = position as i64;
        self.len += 1;
        self.len - 1
    }

    fn close(&mut self, nodes: impl IntoIterator<Item = usize>) {
        for node in nodes {
            self.exit[node] = self.len as i64;
        }
    }
}

fn write(batch: Batch<'_>, row: usize, steps: &[Step], out: &mut Packed) {
    let span = row * out.width..(row + 1) * out.width;
    let mut nodes = Row {
        tokens: &mut out.tokens[span.clone()],
        position: &mut out.position[span.clone()],
        exit: &mut out.exit[span],
        len: 0,
    };
    let logits =
        &mut out.logit_index[row * batch.group * batch.depth..][..batch.group * batch.depth];
    let suffixes = &mut out.suffix_index[row * batch.group..][..batch.group];
    let prompt = batch.prompt(row);
    for (position, &token) in prompt.iter().enumerate() {
        nodes.push(token, position);
    }
    let mut path = vec![prompt.len() - 1]; // open nodes: the prompt's last, then the candidate's
    let mut last = 0;
    for step in steps {
        let at = step.candidate * batch.depth;
        if step.shared == step.len {
            logits.copy_within(last * batch.depth..(last + 1) * batch.depth, at);
            suffixes[step.candidate] = suffixes[last];
        } else {
            let tokens = batch.candidate(row, step.candidate);
            let kept = (1 + step.shared).min(path.len());
            nodes.close(path.drain(kept..));
            for &token in &tokens[kept - 1..batch.nodes(step.len)] {
                path.push(nodes.push(token, prompt.len() + path.len() - 1));
            }
            for (index, &node) in logits[at..].iter_mut().zip(&path[..step.len]) {
                *index = node as i64;
            }
            suffixes[step.candidate] = hang(batch.suffix, prompt.len() + step.len, &mut nodes);
        }
        last = step.candidate;
    }
    nodes.close(path.drain(1..));
    nodes.close(0..prompt.len());
    for (index, exit) in nodes.exit.iter_mut().enumerate().skip(nodes.len) {
        *exit = index as i64 + 1;
    }
}

/// Appends the suffix as a chain; returns its last node, or -1 if it has none.
fn hang(suffix: &[i64], position: usize, nodes: &mut Row<'_>) -> i64 {
    let first = nodes.len;
    for (offset, &token) in suffix.iter().enumerate() {
        nodes.push(token, position + offset);
    }
    nodes.close(first..nodes.len);
    if suffix.is_empty() {
        ABSENT
    } else {
        nodes.len as i64 - 1
    }
}

fn check(batch: Batch<'_>, pad_token: i64) -> Result<()> {
    let rows = batch.offsets.len().checked_sub(1).ok_or(Error::Length {
        name: "offsets",
        expected: 1,
        got: 0,
    })?;
    if batch.depth == 0 {
        return Err(Error::Length {
            name: "completions.shape[-1]",
            expected: 1,
            got: 0,
        });
    }
    let expected = rows.saturating_mul(batch.group).saturating_mul(batch.depth);
    if batch.completions.len() != expected {
        return Err(Error::Length {
            name: "completions",
            expected,
            got: batch.completions.len(),
        });
    }
    check_offsets(batch.offsets, batch.prompts.len())?;
    check_tokens("prompts", batch.prompts)?;
    check_tokens("suffix", batch.suffix)?;
    check_tokens("pad_token", &[pad_token])?;
    check_padding(batch.completions, batch.depth)
}

fn check_offsets(offsets: &[i64], num_tokens: usize) -> Result<()> {
    let rule =
        "must start at 0, grow by at least one token per prompt and end at the number of tokens";
    let ends = offsets[0] == 0 && offsets[offsets.len() - 1] == num_tokens as i64;
    let bad = offsets.windows(2).position(|pair| pair[0] >= pair[1]);
    match bad.or((!ends).then_some(0)) {
        Some(index) => Err(Error::Value {
            name: "offsets",
            index,
            rule,
            got: offsets[index].to_string(),
        }),
        None => Ok(()),
    }
}

fn check_tokens(name: &'static str, tokens: &[i64]) -> Result<()> {
    match tokens.iter().position(|&token| token < 0) {
        Some(index) => Err(Error::Value {
            name,
            index,
            rule: "must hold tokens >= 0",
            got: tokens[index].to_string(),
        }),
        None => Ok(()),
    }
}

fn check_padding(completions: &[i64], depth: usize) -> Result<()> {
    let rule = "must hold tokens >= 0, then -1 up to the end of each candidate";
    let after = |index: usize| !index.is_multiple_of(depth) && completions[index - 1] == ABSENT;
    let bad = (0..completions.len())
        .find(|&i| completions[i] < ABSENT || (completions[i] >= 0 && after(i)));
    match bad {
        Some(index) => Err(Error::Value {
            name: "completions",
            index,
            rule,
            got: completions[index].to_string(),
        }),
        None => Ok(()),
    }
}
