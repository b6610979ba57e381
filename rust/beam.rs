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
//! compiler does not gather, and a scalar test that is never taken is already free); the buffer for few beams too, 1.3 times
//! slower (its bar is stale between two selections).
//!
//! Not for a device: there the same arrays serve one gather and one top-k.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::ops::{Add, Mul, Range, Sub};

use crate::filter::{Filter, check_rows, live_ranges};
use crate::float::Float;
use crate::parallel::over_ranges;
use crate::random::Stream;
use crate::trie::{Children, NONE, SidTrie, Tokens, check_nodes, filled};
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

    /// log Σ exp(scale · x).
    fn log_sum_exp(scores: &[Self], scale: Self) -> f64;
}

impl Score for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const EPSILON: f64 = f32::EPSILON as f64;
    const INFINITY: Self = f32::INFINITY;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

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

/// How expansions are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The best by score.
    Best,
    /// The best by Gumbel-perturbed log-probability, conditioned on that of the parent.
    Perturbed(u64),
    /// One random child per beam.
    Sampled(u64),
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

/// What earlier groups chose in a step.
#[derive(Default)]
struct Taken {
    tokens: HashMap<i64, u32>,
    finished: HashSet<i64>,
}

impl Taken {
    fn add<S: Score>(&mut self, level: &Level<S>, i: usize) {
        *self.tokens.entry(level.tokens[i]).or_default() += 1;
        if !level.live[i] {
            self.finished.insert(level.nodes[i]);
        }
    }
}

/// The live children of a beam: their positions among all children, and their scores.
#[derive(Default)]
struct Live<S> {
    positions: Vec<Range<usize>>,
    scores: Vec<S>,
}

impl<S: Score> Live<S> {
    fn iter(&self) -> impl Iterator<Item = (usize, S)> {
        let positions = self.positions.iter().cloned().flatten();
        positions.zip(self.scores.iter().copied())
    }
}

/// A live beam about to be extended.
struct Origin<'a, S> {
    rule: &'a Rule<'a, S>,
    children: Children<'a>,
    node: u32,
    total: S,
    key: S,
    depth: usize,
    width: usize,
    /// The row of the batch, the beam in it, and the beam in the batch.
    row: usize,
    parent: usize,
    beam: usize,
}

impl<'a, S: Score> Origin<'a, S> {
    fn new(
        rule: &'a Rule<'a, S>,
        beams: &Beams<'_, S>,
        row: usize,
        parent: usize,
        node: u32,
    ) -> Self {
        let beam = row * beams.width + parent;
        Self {
            rule,
            children: rule.trie.children(node),
            node,
            total: beams.totals[beam],
            key: beams.keys[beam],
            depth: beams.depth,
            width: beams.width,
            row,
            parent,
            beam,
        }
    }

    /// Offers every allowed expansion.
    fn expand(
        &self,
        entries: &[S],
        taken: &Taken,
        live: &mut Live<S>,
        top: &mut Top<S>,
    ) -> Result<()> {
        let (rule, weight) = (self.rule, self.rule.weight);
        if self.children.tokens.is_empty() {
            let key = self.key - self.penalty(NONE, taken);
            let carried = self.carried();
            top.offer(key, || Candidate { key, ..carried });
            return Ok(());
        }
        let given = rule.normalize == Normalize::Given;
        let plain = rule.filter.is_none()
            && rule.groups == 1
            && weight == S::ONE
            && rule.sharpness == S::ONE;
        if given && plain && rule.over == Over::Vocabulary {
            return self.expand_plain(entries, top);
        }
        if self.only_falls() && top.excludes(self.total * weight) {
            return Ok(());
        }
        self.gather(entries, live)?;
        let Some(normalizer) = self.normalizer(entries, live)? else {
            return Ok(());
        };
        let mut rest = live.scores.as_slice();
        for range in live.positions.iter().cloned() {
            let (scores, after) = rest.split_at(range.len());
            rest = after;
            if !self.offer(range.start, scores, normalizer, taken, top) {
                return Err(self.offence(live));
            }
        }
        Ok(())
    }

    /// Offers neighbouring children, the first at position `start`; false if a score is NaN or +inf.
    ///
    /// One vector comparison turns away a whole chunk of scores that are too low by more than rounding can change.
    fn offer(
        &self,
        start: usize,
        scores: &[S],
        normalizer: S,
        taken: &Taken,
        top: &mut Top<S>,
    ) -> bool {
        let mut floor = self.floor(normalizer, top.bar);
        for (chunk, start) in scores.chunks(CHUNK).zip((start..).step_by(CHUNK)) {
            let low = |low, score: &S| if *score <= floor { low } else { false };
            if chunk.iter().fold(true, low) {
                continue;
            }
            let bar = top.bar;
            for (j, &score) in (start..).zip(chunk) {
                if !self.offer_one(j, score, normalizer, taken, top) {
                    return false;
                }
            }
            if top.bar > bar {
                floor = self.floor(normalizer, top.bar);
            }
        }
        true
    }

    fn offer_one(
        &self,
        j: usize,
        score: S,
        normalizer: S,
        taken: &Taken,
        top: &mut Top<S>,
    ) -> bool {
        let logprob = score * self.rule.sharpness - normalizer;
        let total = self.total + logprob;
        if total * self.rule.weight <= top.bar {
            return true; // diversity only lowers it
        }
        match self.key(j, total * self.rule.weight, taken) {
            Some(key) => top.offer(key, || self.candidate(j, key, total, logprob)),
            None => true,
        }
    }

    /// A score up to which no child can enter; NaN, which is above nothing, if that cannot be told.
    fn floor(&self, normalizer: S, bar: S) -> S {
        let (normalizer, total): (f64, f64) = (normalizer.into(), self.total.into());
        let bar = bar.into() / self.rule.weight.into();
        let rounding = 16.0 * S::EPSILON * (bar.abs() + total.abs() + normalizer.abs());
        S::nearest((bar - total + normalizer - rounding) / self.rule.sharpness.into())
    }

    /// Whether no child can have a positive log-probability: all of them are normalised over.
    fn only_falls(&self) -> bool {
        let tokens = self.children.tokens;
        let column = |j: usize| tokens.get(j).map_or(0, |token| token as usize);
        match self.rule.normalize {
            Normalize::Given => false,
            Normalize::Live => true,
            Normalize::Columns(low, high) => low <= column(0) && column(tokens.len() - 1) < high,
        }
    }

    /// What the child at position `j` is ranked by in view of the earlier groups; none for a SID that one of them has.
    fn key(&self, j: usize, key: S, taken: &Taken) -> Option<S> {
        if self.rule.groups == 1 {
            return Some(key);
        }
        let child = i64::from(self.children.node(j));
        let chosen = self.children.tokens.get(j).map_or(NONE, i64::from);
        let free = !taken.finished.contains(&child);
        free.then(|| key - self.penalty(chosen, taken))
    }

    /// What a `choice` of token ranks lower for the beams of earlier groups that chose it too.
    fn penalty(&self, choice: i64, taken: &Taken) -> S {
        let times = taken.tokens.get(&choice).copied().unwrap_or(0);
        self.rule.diversity * S::nearest(times.into())
    }

    /// The usual case, without a buffer: log-probabilities of a whole vocabulary, ranked by their sums.
    fn expand_plain(&self, entries: &[S], top: &mut Top<S>) -> Result<()> {
        let entries = self.reach(entries)?;
        let valid = match self.children.tokens {
            Tokens::Narrow(tokens) => self.scan(tokens, entries, top),
            Tokens::Wide(tokens) => self.scan(tokens, entries, top),
        };
        if valid {
            return Ok(());
        }
        let mut live = Live::default();
        self.gather(entries, &mut live)?;
        Err(self.offence(&live))
    }

    /// Offers the children with these tokens. The bar is kept in a register: it moves only when one enters.
    fn scan<T: Copy + Into<u32>>(&self, tokens: &[T], entries: &[S], top: &mut Top<S>) -> bool {
        let (total, mut bar) = (self.total, top.bar);
        for (j, &token) in tokens.iter().enumerate() {
            let Some(&logprob) = entries.get(token.into() as usize) else {
                return false; // only in arrays that nobody checked: see `read`
            };
            let key = total + logprob;
            if key <= bar {
                continue;
            }
            if !top.enter(self.candidate(j, key, key, logprob)) {
                return false;
            }
            bar = top.bar;
        }
        true
    }

    /// Offers every allowed expansion by its perturbed log-probability: Gumbel noise around the expansion's own
    /// sum, conditioned on the largest of the siblings being what the parent was ranked by.
    fn perturb(
        &self,
        entries: &[S],
        live: &mut Live<S>,
        seed: u64,
        top: &mut Top<S>,
    ) -> Result<()> {
        if self.children.tokens.is_empty() {
            top.offer(self.key, || self.carried());
            return Ok(());
        }
        self.gather(entries, live)?;
        let Some(normalizer) = self.normalizer(entries, live)? else {
            return Ok(());
        };
        let noise = self.noise(seed).at(self.parent as u64);
        let perturbed: Vec<(usize, S, f64)> = (0..)
            .zip(live.iter())
            .map(|(i, (j, score))| {
                let logprob = score * self.rule.sharpness - normalizer;
                let total: f64 = (self.total + logprob).into();
                (j, logprob, total + noise.gumbel(i))
            })
            .collect();
        let largest = perturbed
            .iter()
            .map(|child| child.2)
            .fold(f64::NEG_INFINITY, f64::max);
        let parent: f64 = self.key.into();
        for &(j, logprob, perturbed) in &perturbed {
            let key = S::nearest(conditioned(perturbed, largest, parent));
            top.offer(key, || {
                self.candidate(j, key, self.total + logprob, logprob)
            });
        }
        Ok(())
    }

    /// One random child for each draw that this beam stands for: all of them at the root, then its own.
    fn sample(
        &self,
        entries: &[S],
        live: &mut Live<S>,
        seed: u64,
    ) -> Result<Vec<(usize, Candidate<S>)>> {
        let draws = if self.width == 1 {
            0..self.rule.num_beams
        } else {
            self.parent..self.parent + 1
        };
        if self.children.tokens.is_empty() {
            return Ok(draws.map(|draw| (draw, self.carried())).collect());
        }
        self.gather(entries, live)?;
        let Some(normalizer) = self.normalizer(entries, live)? else {
            return Ok(Vec::new());
        };
        let chosen = draws.filter_map(|draw| {
            let noise = self.noise(seed).at(draw as u64);
            let keys = (0..).zip(live.iter()).map(|(i, (j, score))| {
                let logprob = score * self.rule.sharpness - normalizer;
                (j, logprob, logprob.into() + noise.gumbel(i))
            });
            let (j, logprob, _) = keys.max_by(|a, b| a.2.total_cmp(&b.2))?;
            let total = self.total + logprob;
            Some((draw, self.candidate(j, total, total, logprob)))
        });
        Ok(chosen.collect())
    }

    fn noise(&self, seed: u64) -> Stream {
        Stream::new(seed).at(self.row as u64).at(self.depth as u64)
    }

    /// Collects the live children and their scores.
    fn gather(&self, entries: &[S], live: &mut Live<S>) -> Result<()> {
        let tokens = self.children.tokens;
        let dead = match self.rule.filter {
            Some(filter) => filter
                .row(self.row)
                .dead_children(&self.rule.trie, self.node),
            None => Vec::new(),
        };
        live.positions.clear();
        live.positions.extend(live_ranges(tokens.len(), dead));
        live.scores.clear();
        match self.rule.over {
            Over::Vocabulary => {
                let entries = self.reach(entries)?;
                for range in live.positions.iter().cloned() {
                    match tokens.slice(range) {
                        Tokens::Narrow(tokens) => read(tokens, entries, &mut live.scores),
                        Tokens::Wide(tokens) => read(tokens, entries, &mut live.scores),
                    }
                }
            }
            Over::Candidates => {
                let needed = live.positions.iter().map(Range::len).sum();
                let got = entries.len();
                let entries = entries
                    .get(..needed)
                    .ok_or(Error::Columns { needed, got })?;
                live.scores.extend_from_slice(entries);
            }
        }
        Ok(())
    }

    /// The columns up to the largest allowed token.
    fn reach<'b>(&self, entries: &'b [S]) -> Result<&'b [S]> {
        let largest = self.children.tokens.get(self.children.tokens.len() - 1);
        let needed = largest.map_or(0, |token| token as usize + 1);
        let got = entries.len();
        entries.get(..needed).ok_or(Error::Columns { needed, got })
    }

    /// What turns scores into log-probabilities when subtracted; none if no score is above -inf.
    fn normalizer(&self, entries: &[S], live: &Live<S>) -> Result<Option<S>> {
        let sharpness = self.rule.sharpness;
        let scores = match self.rule.normalize {
            Normalize::Given => return Ok(Some(S::ZERO)),
            Normalize::Columns(low, high) => &entries[low..high],
            Normalize::Live => &live.scores,
        };
        let normalizer = match *scores {
            [only] => only * sharpness,
            _ => S::nearest(S::log_sum_exp(scores, sharpness)),
        };
        if normalizer > S::NEG_INFINITY && is_valid(normalizer) {
            return Ok(Some(normalizer));
        }
        let finite = |score: S| is_valid(score) && score > S::NEG_INFINITY;
        let offends = |&score: &S| score != S::NEG_INFINITY && !finite(score * sharpness);
        match scores.iter().position(offends) {
            None => Ok(None),
            Some(i) => Err(self.unnormalized(i, scores[i], live)),
        }
    }

    /// The error for a score that cannot be normalised, the `i`-th of those that are.
    fn unnormalized(&self, i: usize, score: S, live: &Live<S>) -> Error {
        let column = match (self.rule.normalize, self.rule.over) {
            (Normalize::Columns(low, _), _) => low + i,
            (_, Over::Candidates) => i,
            _ => {
                let child = live.iter().nth(i).map_or(0, |(j, _)| j);
                self.children.tokens.get(child).map_or(0, |t| t as usize)
            }
        };
        let rule =
            "must be finite or -inf wherever they are normalised over, also after `temperature`";
        let got = format!("{score} in row {}, column {column},", self.beam);
        Error::value("scores", column, rule, got)
    }

    fn carried(&self) -> Candidate<S> {
        self.candidate(FINISHED, self.key, self.total, S::ZERO)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "beams and children are below 2**32"
    )]
    fn candidate(&self, j: usize, key: S, total: S, logprob: S) -> Candidate<S> {
        Candidate {
            key,
            total,
            logprob,
            parent: self.parent as u32,
            j: j as u32,
        }
    }

    /// The error for a beam with a score that is NaN or +inf.
    fn offence(&self, live: &Live<S>) -> Error {
        let column = |(i, (j, score)): (usize, (usize, S))| match self.rule.over {
            Over::Vocabulary => (
                self.children
                    .tokens
                    .get(j)
                    .map_or(0, |token| token as usize),
                score,
            ),
            Over::Candidates => (i, score),
        };
        let mut columns = live.iter().enumerate().map(column);
        let (column, score) = columns
            .find(|&(_, score)| !is_valid(self.total + score))
            .unwrap_or((0, S::INFINITY));
        let rule = "must be finite or -inf wherever a token is allowed; pass log-probabilities";
        let got = format!("{score} in row {}, column {column},", self.beam);
        Error::value("scores", column, rule, got)
    }
}

/// Appends the entries of tokens. None lies beyond that of the last sibling, but in arrays that nobody checked: there
/// it reads another's.
fn read<S: Score, T: Copy + Into<u32>>(tokens: &[T], entries: &[S], scores: &mut Vec<S>) {
    let last = entries.len() - 1;
    scores.extend(
        tokens
            .iter()
            .map(|&token| entries[last.min(token.into() as usize)]),
    );
}

/// A Gumbel variable given that the largest of its siblings, which came out as `largest`, is `bound`.
///
/// Source: Kool, van Hoof and Welling (2019), appendix B.3, the form that does not overflow.
fn conditioned(perturbed: f64, largest: f64, bound: f64) -> f64 {
    if perturbed == f64::NEG_INFINITY {
        return perturbed;
    }
    let below = bound - perturbed + log1m_exp(perturbed - largest);
    bound - below.max(0.0) - (-below.abs()).exp().ln_1p()
}

/// log(1 - exp(x)) for x <= 0.
fn log1m_exp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 {
        (-x.exp_m1()).ln()
    } else {
        (-x.exp()).ln_1p()
    }
}

/// Scores that are compared with the floor at once.
const CHUNK: usize = 16;

/// In place of a child: the beam was finished before.
const FINISHED: usize = u32::MAX as usize;

/// An expansion of beam `parent` by its child at position `j`.
#[derive(Clone, Copy)]
struct Candidate<S> {
    key: S,
    total: S,
    logprob: S,
    parent: u32,
    j: u32,
}

impl<S: Score> Candidate<S> {
    /// Best first. Siblings ascend by token as by position; keys are never NaN here.
    fn rank(&self, other: &Self) -> Ordering {
        let by_key = other.key.partial_cmp(&self.key).unwrap_or(Ordering::Equal);
        by_key.then((self.parent, self.j).cmp(&(other.parent, other.j)))
    }
}

/// Up to this many kept candidates are in order at all times; more are a buffer of twice their number.
const FEW: usize = 128;

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

    /// Lets a candidate in if it may be among the best; false if its key is NaN or +inf.
    ///
    /// One comparison turns away all that cannot enter and lets NaN and +inf through to `enter`, which
    /// refuses them: checking every candidate costs nothing.
    #[inline]
    fn offer(&mut self, key: S, candidate: impl FnOnce() -> Candidate<S>) -> bool {
        key <= self.bar || self.enter(candidate())
    }

    #[inline(never)]
    fn enter(&mut self, candidate: Candidate<S>) -> bool {
        if !is_valid(candidate.key) {
            return false;
        }
        if self.size > FEW {
            self.kept.push(candidate);
            if self.kept.len() >= self.size.saturating_mul(2) {
                self.halve();
            }
            return true;
        }
        if self.kept.len() < self.size {
            self.kept.push(candidate);
        }
        // Worse ones make room, the last of too many falls off. What equals the candidate came before it, and stays.
        let mut place = self.kept.len() - 1;
        while place > 0 && self.kept[place - 1].key < candidate.key {
            self.kept[place] = self.kept[place - 1];
            place -= 1;
        }
        self.kept[place] = candidate;
        if self.kept.len() == self.size {
            self.bar = self.kept[self.size - 1].key;
        }
        true
    }

    fn halve(&mut self) {
        self.kept
            .select_nth_unstable_by(self.size - 1, Candidate::rank);
        self.kept.truncate(self.size);
        self.bar = self.kept[self.size - 1].key;
    }

    /// Whether no candidate with a key of at most `limit` that comes after all so far can enter.
    fn excludes(&mut self, limit: S) -> bool {
        if self.kept.len() > self.size
            || (self.kept.len() == self.size && self.bar == S::NEG_INFINITY)
        {
            self.halve();
        }
        limit <= self.bar
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
