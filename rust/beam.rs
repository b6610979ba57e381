//! One step of a constrained search: exact beams, stochastic beams or plain samples.
//!
//! From the live prefixes of every row of a batch, the best `num_beams` expansions that the trie and a
//! filter allow: by key descending, then parent ascending, then token ascending. Only the scores of allowed
//! children are read, about 1 ns each; there is no mask of the vocabulary's width and no sort of the
//! candidates. A candidate that cannot enter costs one comparison, since candidates come in tie order: what
//! equals the worst of the kept ones comes after it. Few kept ones are held in order; many are a buffer of up
//! to `2 * num_beams`, halved by a selection when it is full. Where the step normalises over all children,
//! log-probabilities are at most 0, so a beam that is itself no better than the worst kept candidate is not looked
//! at, nor normalised.
//!
//! Tried and dropped: eight or sixteen candidates at a time with one test for all, 1.2 to 1.6 times slower (the
//! compiler does not gather, and a scalar test that is never taken is already free); the buffer for few beams too,
//! 1.3 times slower (its bar is stale between two selections).
//!
//! Not for a device: there the same arrays serve one gather and one top-k.

mod origin;
mod top;

use std::fmt::Display;
use std::ops::{Add, Mul, Range, Sub};

use origin::{Live, Origin, Taken};
use top::{Candidate, Top};

use crate::filter::{Filter, check_rows};
use crate::float::Float;
use crate::parallel::over_ranges;
use crate::trie::{NONE, SidTrie, check_nodes, filled};
use crate::{Error, Result, logsumexp};

/// A floating-point type of scores: `f32` or `f64`. Sums are made in the type itself.
pub trait Score:
    Float
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Display
    + Sync
    + Send
{
    /// 0, the log-probability of a finished beam's non-move.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The distance from 1 to the next number.
    const EPSILON: f64;
    /// Not finite above: refused.
    const INFINITY: Self;
    /// Forbidden: never selected. Also the score of padding.
    const NEG_INFINITY: Self;

    /// The next smaller number.
    #[must_use]
    fn below(self) -> Self;

    /// log Σ exp(scale · x).
    fn log_sum_exp(scores: &[Self], scale: Self) -> f64;
}

impl Score for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const EPSILON: f64 = f32::EPSILON as f64;
    const INFINITY: Self = f32::INFINITY;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    fn below(self) -> Self {
        self.next_down()
    }

    fn log_sum_exp(scores: &[Self], scale: Self) -> f64 {
        logsumexp::f32(scores, scale)
    }
}

impl Score for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const EPSILON: f64 = f64::EPSILON;
    const INFINITY: Self = f64::INFINITY;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    fn below(self) -> Self {
        self.next_down()
    }

    fn log_sum_exp(scores: &[Self], scale: Self) -> f64 {
        logsumexp::f64(scores, scale)
    }
}

/// What a column of the step's scores stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Column `t` is token `t`.
    Vocabulary,
    /// Column `j` is the `j`-th live child of the row's node, as [`SidTrie::allowed`] or
    /// [`SidTrie::allowed_by`] list them.
    Candidates,
}

/// What makes log-probabilities of the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalize {
    /// Nothing: they are log-probabilities.
    Given,
    /// The columns of this range; all of them make it the whole vocabulary.
    Columns(usize, usize),
    /// The live children.
    Live,
}

/// What random numbers are drawn from: row `i` of the batch draws as row `first_row + i` of a whole does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    /// The seed.
    pub seed: u64,
    /// Where the rows stand in the batch that they are a part of.
    pub first_row: u64,
}

/// How expansions are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The best by score.
    Best,
    /// The best by Gumbel-perturbed log-probability, conditioned on that of the parent.
    Perturbed(Seed),
    /// One random child per beam.
    Sampled(Seed),
}

/// The beams of a batch, row-major `(batch, width)`.
#[derive(Debug, Clone, Copy)]
pub struct Beams<'a, S> {
    /// The node that each beam has reached, [`NONE`] for a dead one.
    pub nodes: &'a [i64],
    /// The sum of log-probabilities of each beam so far.
    pub totals: &'a [S],
    /// What each beam was ranked by.
    pub keys: &'a [S],
    /// Beams per row of the batch.
    pub width: usize,
    /// Tokens chosen so far.
    pub depth: usize,
}

/// The rule of a step.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a, S> {
    /// The catalogue.
    pub trie: SidTrie<'a>,
    /// Items that a row may not be answered with.
    pub filter: Option<&'a Filter>,
    /// Beams to keep per row of the batch.
    pub num_beams: usize,
    /// What a column of the scores stands for.
    pub over: Over,
    /// What makes log-probabilities of the scores.
    pub normalize: Normalize,
    /// What scores are multiplied by first: 1 / temperature.
    pub sharpness: S,
    /// What the sum of an expansion is multiplied by to rank it.
    pub weight: S,
    /// How expansions are chosen.
    pub draw: Draw,
    /// Groups of beams that search one after the other, each beam ranked lower by `diversity` for every beam
    /// of an earlier group that chose the same token in this step; it divides `num_beams`.
    pub groups: usize,
    /// See `groups`.
    pub diversity: S,
    /// Threads that share the rows of the batch.
    pub num_threads: usize,
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
    /// The parent's sum plus the token's log-probability; -inf for padding.
    pub totals: Vec<S>,
    /// What the beam is ranked by; -inf for padding.
    pub keys: Vec<S>,
    /// The token's log-probability; 0 for padding and for a beam that was finished before.
    pub logprobs: Vec<S>,
    /// Whether the node reached has children.
    pub live: Vec<bool>,
}

/// Extends `beams` by one token: the best `num_beams` of all allowed expansions, per row of the batch.
///
/// `scores` holds `columns` entries per beam. Entries of dead beams and of tokens that are not allowed are
/// not read, unless the scores are normalised over them. A beam at a node without children is carried on
/// unchanged and competes with its key.
///
/// # Errors
///
/// [`Error::Length`] if the sizes do not fit together or a row has too few columns, [`Error::Value`] for
/// an unknown node, no beams, or a score that is NaN or +inf; [`Error::Memory`] if the result does not fit.
pub fn step<S: Score>(
    rule: &Rule<'_, S>,
    beams: Beams<'_, S>,
    scores: &[S],
    columns: usize,
) -> Result<Level<S>> {
    check(rule, &beams, scores.len(), columns)?;
    let num_rows = beams.nodes.len() / beams.width;
    let parts = over_ranges(num_rows, rule.num_threads, |rows| {
        rule.extend(&beams, scores, columns, rows)
    });
    let joined = parts.into_iter().reduce(|all, part| Ok(all?.join(part?)));
    joined.unwrap_or_else(|| Level::padding(Some(0)))
}

fn check<S: Score>(
    rule: &Rule<'_, S>,
    beams: &Beams<'_, S>,
    got: usize,
    columns: usize,
) -> Result<()> {
    for size in [rule.num_beams, beams.width] {
        if size == 0 {
            return Err(Error::value("num_beams", 0, "must be at least 1", 0));
        }
        Error::check_limit("num_beams", u32::MAX as usize, size)?;
    }
    let rows = beams.nodes.len();
    Error::check_length("nodes", rows / beams.width * beams.width, rows)?;
    Error::check_length("totals", rows, beams.totals.len())?;
    Error::check_length("keys", rows, beams.keys.len())?;
    Error::check_length("scores", rows.saturating_mul(columns), got)?;
    if let Some(filter) = rule.filter {
        check_rows(filter, rows / beams.width)?;
    }
    if rule.groups == 0 || !rule.num_beams.is_multiple_of(rule.groups) {
        let must = "must divide `num_beams`";
        return Err(Error::value("num_groups", 0, must, rule.groups));
    }
    if rule.groups > 1 || matches!(rule.draw, Draw::Sampled(_)) {
        let expected = if beams.width == 1 { 1 } else { rule.num_beams };
        Error::check_length("beams", expected, beams.width)?;
    }
    if let Normalize::Columns(low, high) = rule.normalize
        && !(low < high && high <= columns)
    {
        let got = format!("{low} .. {high} of {columns}");
        return Err(Error::value(
            "normalize",
            0,
            "must be a range of columns",
            got,
        ));
    }
    check_nodes(&rule.trie, beams.nodes)?;
    for (beam, &node) in beams.nodes.iter().enumerate() {
        let valid = is_valid(beams.totals[beam]) && is_valid(beams.keys[beam]);
        if node != NONE && !valid {
            let rule = "must be finite or -inf for live beams";
            return Err(Error::value("totals", beam, rule, beams.totals[beam]));
        }
    }
    Ok(())
}

/// Neither NaN nor +inf.
fn is_valid<S: Score>(score: S) -> bool {
    score < S::INFINITY
}

impl<S: Score> Rule<'_, S> {
    /// A step of the `rows` of the batch.
    fn extend(
        &self,
        beams: &Beams<'_, S>,
        scores: &[S],
        columns: usize,
        rows: Range<usize>,
    ) -> Result<Level<S>> {
        let mut level = Level::padding(rows.len().checked_mul(self.num_beams))?;
        let mut top = Top::new(self.num_beams / self.groups);
        let mut live = Live::default();
        let size = self.num_beams / self.groups; // of a group
        for row in rows.clone() {
            let start = (row - rows.start) * self.num_beams;
            let nodes = &beams.nodes[row * beams.width..][..beams.width];
            let mut taken = Taken::default();
            for group in 0..self.groups {
                let (first, last) = if self.groups == 1 || beams.width == 1 {
                    (0, beams.width)
                } else {
                    (group * size, (group + 1) * size)
                };
                for (parent, &node) in nodes.iter().enumerate().take(last).skip(first) {
                    let Ok(node) = u32::try_from(node) else {
                        continue; // dead
                    };
                    let origin = Origin::new(self, beams, row, parent, node);
                    let entries = &scores[origin.beam * columns..][..columns];
                    match self.draw {
                        Draw::Best => {
                            origin.expand(entries, &taken, &mut live, &mut top)?;
                        }
                        Draw::Perturbed(seed) => {
                            origin.perturb(entries, &mut live, seed, &mut top)?;
                        }
                        Draw::Sampled(seed) => {
                            for (draw, chosen) in origin.sample(entries, &mut live, seed)? {
                                level.set(&self.trie, nodes, &chosen, start + draw);
                            }
                        }
                    }
                }
                for (i, chosen) in (start + group * size..).zip(top.drain()) {
                    level.set(&self.trie, nodes, &chosen, i);
                    if self.groups > 1 {
                        taken.add(&level, i);
                        let parent = row * beams.width + chosen.parent as usize;
                        let carried = level.tokens[i] == NONE;
                        let score = chosen.total * self.weight; // without diversity, for the next step
                        level.keys[i] = if carried { beams.keys[parent] } else { score };
                    }
                }
            }
        }
        Ok(level)
    }
}

impl<S: Score> Level<S> {
    fn padding(len: Option<usize>) -> Result<Self> {
        Ok(Self {
            parents: filled(NONE, len)?,
            tokens: filled(NONE, len)?,
            nodes: filled(NONE, len)?,
            totals: filled(S::NEG_INFINITY, len)?,
            keys: filled(S::NEG_INFINITY, len)?,
            logprobs: filled(S::ZERO, len)?,
            live: filled(false, len)?,
        })
    }

    /// Writes a candidate of a row of the batch, the beams of which are at `nodes`, as beam `i`.
    fn set(&mut self, trie: &SidTrie<'_>, nodes: &[i64], chosen: &Candidate<S>, i: usize) {
        let origin = nodes[chosen.parent as usize];
        let child = u32::try_from(origin).ok().and_then(|node| {
            let children = trie.children(node);
            let token = children.tokens.get(chosen.j as usize)?;
            Some((token, children.node(chosen.j as usize)))
        });
        self.parents[i] = chosen.parent.into();
        self.tokens[i] = child.map_or(NONE, |(token, _)| token.into());
        self.nodes[i] = child.map_or(origin, |(_, node)| node.into());
        self.totals[i] = chosen.total;
        self.keys[i] = chosen.key;
        self.logprobs[i] = chosen.logprob;
        self.live[i] = child.is_some_and(|(_, node)| !trie.children(node).tokens.is_empty());
    }

    /// Joins the rows of another part of the batch; the first part moves.
    fn join(mut self, other: Self) -> Self {
        self.parents.extend(other.parents);
        self.tokens.extend(other.tokens);
        self.nodes.extend(other.nodes);
        self.totals.extend(other.totals);
        self.keys.extend(other.keys);
        self.logprobs.extend(other.logprobs);
        self.live.extend(other.live);
        self
    }
}
