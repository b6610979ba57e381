//! A beam about to be extended: its live children, their log-probabilities, and what of them is offered.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::top::{Candidate, FINISHED, Top};
use super::{Beams, Level, Normalize, Over, Rule, Score, Seed, is_valid};
use crate::filter::live_ranges;
use crate::random::Stream;
use crate::trie::{Children, NONE, Tokens};
use crate::{Error, Result};

/// Scores that are compared with the floor at once.
const CHUNK: usize = 16;

/// What earlier groups chose in a step.
#[derive(Default)]
pub(super) struct Taken {
    tokens: HashMap<i64, u32>,
    finished: HashSet<i64>,
}

impl Taken {
    pub fn add<S: Score>(&mut self, level: &Level<S>, i: usize) {
        *self.tokens.entry(level.tokens[i]).or_default() += 1;
        if !level.live[i] {
            self.finished.insert(level.nodes[i]);
        }
    }
}

/// The live children of a beam: their positions among all children, and their scores.
#[derive(Default)]
pub(super) struct Live<S> {
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
pub(super) struct Origin<'a, S> {
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
    pub beam: usize,
}

impl<'a, S: Score> Origin<'a, S> {
    pub fn new(
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
    pub fn expand(
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
        S::nearest((bar - total + normalizer - rounding) / self.rule.sharpness.into()).below()
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
    pub fn perturb(
        &self,
        entries: &[S],
        live: &mut Live<S>,
        seed: Seed,
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
    pub fn sample(
        &self,
        entries: &[S],
        live: &mut Live<S>,
        seed: Seed,
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

    fn noise(&self, seed: Seed) -> Stream {
        let row = seed.first_row.wrapping_add(self.row as u64);
        Stream::new(seed.seed).at(row).at(self.depth as u64)
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
