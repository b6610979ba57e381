//! One exact step of constrained beam search.
//!
//! From the live prefixes of every row of a batch, the best `num_beams` expansions that the trie allows:
//! by score descending, then parent ascending, then token ascending. Only the scores of allowed children
//! are read, about 1 ns each; there is no mask of the vocabulary's width and no sort of the candidates.
//! A candidate that cannot enter costs one comparison, since candidates come in tie order: what equals
//! the worst of the kept ones comes after it. The kept ones are a buffer of up to `2 * num_beams`, halved
//! by a selection when it is full.
//!
//! Tried and dropped: eight candidates at a time with one test for all, 1.6 times slower (the compiler
//! does not gather, and a scalar test that is never taken is already free).
//!
//! Not for a device: there the same arrays serve one gather and one top-k.

use std::cmp::Ordering;
use std::fmt::Display;
use std::ops::Add;

use crate::trie::{NONE, SidTrie, filled};
use crate::{Error, Result};

/// A floating-point type of scores: `f32` or `f64`. Sums are made in the type itself.
pub trait Score: Copy + PartialOrd + Add<Output = Self> + Display {
    /// 0, the log-probability of a finished beam's non-move.
    const ZERO: Self;
    /// Not finite above: refused.
    const INFINITY: Self;
    /// Forbidden: never selected. Also the score of padding.
    const NEG_INFINITY: Self;
}

impl Score for f32 {
    const ZERO: Self = 0.0;
    const INFINITY: Self = f32::INFINITY;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
}

impl Score for f64 {
    const ZERO: Self = 0.0;
    const INFINITY: Self = f64::INFINITY;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
}

/// What a column of the step's log-probabilities stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Column `t` is token `t`.
    Vocabulary,
    /// Column `j` is the `j`-th child of the row's node, as [`SidTrie::allowed`] lists them.
    Candidates,
}

/// The beams of a batch, row-major `(batch, width)`.
#[derive(Debug, Clone, Copy)]
pub struct Beams<'a, S> {
    /// The node that each beam has reached, [`NONE`] for a dead one.
    pub nodes: &'a [i64],
    /// The score of each beam so far.
    pub scores: &'a [S],
    /// Beams per row of the batch.
    pub width: usize,
}

/// The beams after a step, row-major `(batch, num_beams)` and best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Level<S> {
    /// The beam, in its row of the batch, that each one extends; [`NONE`] for padding.
    pub parents: Vec<i64>,
    /// The token chosen; [`NONE`] for padding and for a beam that was finished before.
    pub tokens: Vec<i64>,
    /// The node reached; [`NONE`] for padding.
    pub nodes: Vec<i64>,
    /// The parent's score plus the token's log-probability; -inf for padding.
    pub scores: Vec<S>,
    /// The token's log-probability; 0 for padding and for a beam that was finished before.
    pub logprobs: Vec<S>,
    /// Whether the node reached has children.
    pub live: Vec<bool>,
}

/// Extends `beams` by one token: the best `num_beams` of all allowed expansions, per row of the batch.
///
/// `logprobs` holds `columns` entries per beam; what they stand for says `over`. Entries of dead beams
/// and of tokens that the trie does not allow are not read. A beam at a node without children is carried
/// on unchanged and competes with its score.
///
/// # Errors
///
/// [`Error::Length`] if the sizes do not fit together or a row has too few columns, [`Error::Value`] for
/// an unknown node, no beams, or a score that is NaN or +inf; [`Error::Memory`] if the result does not fit.
pub fn step<S: Score>(
    trie: &SidTrie,
    beams: Beams<'_, S>,
    logprobs: &[S],
    columns: usize,
    over: Over,
    num_beams: usize,
) -> Result<Level<S>> {
    check(trie, &beams, logprobs.len(), columns, num_beams)?;
    let mut level = Level::padding((beams.nodes.len() / beams.width).checked_mul(num_beams))?;
    let mut top = Top::new(num_beams);
    for (row, nodes) in beams.nodes.chunks_exact(beams.width).enumerate() {
        for (parent, &node) in (0..).zip(nodes) {
            let Ok(node) = u32::try_from(node) else {
                continue; // dead
            };
            let beam = row * beams.width + parent as usize;
            let score = beams.scores[beam];
            let entries = &logprobs[beam * columns..][..columns];
            let origin = Origin {
                parent,
                node,
                score,
            };
            if !origin.expand(trie, entries, over, &mut top)? {
                return Err(origin.offence(trie, entries, over, beam));
            }
        }
        level.write(trie, nodes, top.drain(), row * num_beams);
    }
    Ok(level)
}

fn check<S: Score>(
    trie: &SidTrie,
    beams: &Beams<'_, S>,
    got: usize,
    columns: usize,
    num_beams: usize,
) -> Result<()> {
    for size in [num_beams, beams.width] {
        if size == 0 {
            return Err(Error::value("num_beams", 0, "must be at least 1", 0));
        }
        Error::check_limit("num_beams", u32::MAX as usize, size)?;
    }
    let rows = beams.nodes.len();
    Error::check_length("nodes", rows / beams.width * beams.width, rows)?;
    Error::check_length("totals", rows, beams.scores.len())?;
    Error::check_length("scores", rows.saturating_mul(columns), got)?;
    trie.check_nodes(beams.nodes)?;
    let dead_or_valid = |(&node, &score): (&i64, &S)| node == NONE || is_valid(score);
    match beams
        .nodes
        .iter()
        .zip(beams.scores)
        .position(|beam| !dead_or_valid(beam))
    {
        None => Ok(()),
        Some(beam) => {
            let rule = "must be finite or -inf for live beams";
            Err(Error::value("totals", beam, rule, beams.scores[beam]))
        }
    }
}

/// Neither NaN nor +inf.
fn is_valid<S: Score>(score: S) -> bool {
    score < S::INFINITY
}

/// A live beam about to be extended.
struct Origin<S> {
    parent: u32,
    node: u32,
    score: S,
}

impl<S: Score> Origin<S> {
    /// Offers every allowed expansion; false if one of them has a score that is NaN or +inf.
    fn expand(&self, trie: &SidTrie, entries: &[S], over: Over, top: &mut Top<S>) -> Result<bool> {
        let tokens = trie.child_tokens(self.node);
        let Some(&largest) = tokens.last() else {
            return Ok(top.offer(self.candidate(self.node, S::ZERO)));
        };
        let needed = match over {
            Over::Vocabulary => largest as usize + 1,
            Over::Candidates => tokens.len(),
        };
        let Some(entries) = entries.get(..needed) else {
            let got = entries.len();
            return Err(Error::Columns { needed, got });
        };
        let children = trie.children(self.node);
        Ok(match over {
            Over::Vocabulary => self.offer_all(
                children.zip(tokens.iter().map(|&t| entries[t as usize])),
                top,
            ),
            Over::Candidates => self.offer_all(children.zip(entries.iter().copied()), top),
        })
    }

    fn offer_all(&self, mut expansions: impl Iterator<Item = (u32, S)>, top: &mut Top<S>) -> bool {
        expansions.all(|(child, logprob)| top.offer(self.candidate(child, logprob)))
    }

    fn candidate(&self, node: u32, logprob: S) -> Candidate<S> {
        Candidate {
            score: self.score + logprob,
            logprob,
            parent: self.parent,
            node,
        }
    }

    /// The error for a row in which [`Origin::expand`] met a score that is NaN or +inf.
    fn offence(&self, trie: &SidTrie, entries: &[S], over: Over, row: usize) -> Error {
        let column = |(j, &token): (usize, &u32)| match over {
            Over::Vocabulary => token as usize,
            Over::Candidates => j,
        };
        let invalid = |&column: &usize| !is_valid(self.score + entries[column]);
        let tokens = trie.child_tokens(self.node).iter().enumerate();
        let column = tokens.map(column).find(invalid).unwrap_or(0);
        let rule = "must be finite or -inf wherever a token is allowed; pass log-probabilities";
        let got = format!("{} in row {row}, column {column},", entries[column]);
        Error::value("scores", row * entries.len() + column, rule, got)
    }
}

/// An expansion: `node` is the child, or the beam's own node if it was finished before.
#[derive(Clone, Copy)]
struct Candidate<S> {
    score: S,
    logprob: S,
    parent: u32,
    node: u32,
}

impl<S: Score> Candidate<S> {
    /// Best first. Siblings ascend by token as by node; scores are never NaN here.
    fn rank(&self, other: &Self) -> Ordering {
        let by_score = other
            .score
            .partial_cmp(&self.score)
            .unwrap_or(Ordering::Equal);
        by_score
            .then(self.parent.cmp(&other.parent))
            .then(self.node.cmp(&other.node))
    }
}

/// The best `size` candidates of those offered, which must come by ascending parent and token.
struct Top<S> {
    size: usize,
    kept: Vec<Candidate<S>>,
    /// Only what is better than this can enter.
    bar: S,
}

impl<S: Score> Top<S> {
    fn new(size: usize) -> Self {
        Self {
            size,
            kept: Vec::new(),
            bar: S::NEG_INFINITY,
        }
    }

    /// Lets the candidate in if it may be among the best; false if its score is NaN or +inf.
    ///
    /// One comparison turns away all that cannot enter and lets NaN and +inf through to `enter`, which
    /// refuses them: checking every candidate costs nothing.
    #[inline]
    fn offer(&mut self, candidate: Candidate<S>) -> bool {
        candidate.score <= self.bar || self.enter(candidate)
    }

    #[inline(never)]
    fn enter(&mut self, candidate: Candidate<S>) -> bool {
        if !is_valid(candidate.score) {
            return false;
        }
        self.kept.push(candidate);
        if self.kept.len() >= self.size.saturating_mul(2) {
            self.kept
                .select_nth_unstable_by(self.size - 1, Candidate::rank);
            self.kept.truncate(self.size);
            self.bar = self.kept[self.size - 1].score;
        }
        true
    }

    /// The best ones in order; leaves this empty, for the next row.
    fn drain(&mut self) -> impl Iterator<Item = Candidate<S>> {
        self.kept.sort_unstable_by(Candidate::rank);
        self.kept.truncate(self.size);
        self.bar = S::NEG_INFINITY;
        self.kept.drain(..)
    }
}

impl<S: Score> Level<S> {
    fn padding(len: Option<usize>) -> Result<Self> {
        Ok(Self {
            parents: filled(NONE, len)?,
            tokens: filled(NONE, len)?,
            nodes: filled(NONE, len)?,
            scores: filled(S::NEG_INFINITY, len)?,
            logprobs: filled(S::ZERO, len)?,
            live: filled(false, len)?,
        })
    }

    /// Writes the candidates of a row of the batch from `start` on; `nodes` are those of its beams.
    fn write(
        &mut self,
        trie: &SidTrie,
        nodes: &[i64],
        best: impl Iterator<Item = Candidate<S>>,
        start: usize,
    ) {
        for (i, candidate) in (start..).zip(best) {
            let moved = nodes[candidate.parent as usize] != i64::from(candidate.node);
            self.parents[i] = candidate.parent.into();
            self.tokens[i] = if moved {
                trie.tokens()[candidate.node as usize].into()
            } else {
                NONE
            };
            self.nodes[i] = candidate.node.into();
            self.scores[i] = candidate.score;
            self.logprobs[i] = candidate.logprob;
            self.live[i] = !trie.children(candidate.node).is_empty();
        }
    }
}
