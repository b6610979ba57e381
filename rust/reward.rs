//! UGR's signal: the reward of every candidate of a group, and the weight of the group.
//!
//! ```text
//! hits     [  .   x   .   . |  .   .   . ]     two groups, each in beam order
//! scores   [ -1  -2  -2  -9 | -1  -3  -3 ]     log-probabilities
//! rewards  [-.7   1 -.3  -0 |  0   0   0 ]     misses share a penalty of 1; no hit, no signal
//! weight   [        1/3     |      1     ]     how far down the hit stands
//! ```
//!
//! [`signal`] does all of it from token ids, and the advantages: one look at the tokens, and a group without a
//! hit costs hardly more. Everything is computed in `f64`, sums in fixed lanes; only results are rounded to the
//! type of the scores. Costs a read of the tokens, which are most of the memory, and 3 ns for each candidate of
//! a group with a hit. Nothing is allocated for a group.
//!
//! Dropped: counting the tokens of every candidate beside the comparison. At three tokens the compiler's vectors
//! of both were twice as slow; now they are counted only where a candidate is padded.
//!
//! Scores are below +inf and not NaN where a candidate is present: the caller has seen to that.
//!
//! Source: UGR (arXiv 2602.11719) §3; the split of exp is Cody and Waite's (1980).

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the vector instructions of its caller"
)]

use std::ops::Range;
use std::str::FromStr;

use pulp::{Arch, Simd, WithSimd};

use crate::advantage::{self, Rule, any, fold};
use crate::float::Float;
use crate::trie::filled;
use crate::{Error, Result};

/// What the weight of a group follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difficulty {
    /// The rank of the hit.
    Rank,
    /// How far the logarithmic discount falls down to that rank.
    Discount,
    /// How little of the candidates' probability the hit has.
    Probability,
}

impl FromStr for Difficulty {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "rank" => Ok(Self::Rank),
            "discount" => Ok(Self::Discount),
            "probability" => Ok(Self::Probability),
            _ => Err(Error::value(
                "kind",
                0,
                "must be \"rank\", \"discount\" or \"probability\"",
                format!("{name:?}"),
            )),
        }
    }
}

/// Groups of equally many candidates, row by row.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a, T> {
    /// Groups, and candidates of each.
    pub shape: [usize; 2],
    /// Log-probabilities.
    pub scores: &'a [T],
    /// Which candidates are the target; none that is absent.
    pub hits: &'a [bool],
    /// What a softmax divides scores by; `None` for 1.
    pub lengths: Option<&'a [f64]>,
    /// Which candidates there are; `None` for all.
    pub present: Option<&'a [bool]>,
}

/// One group.
#[derive(Clone, Copy)]
struct Group<'a, T> {
    scores: &'a [T],
    hits: &'a [bool],
    lengths: &'a [f64],
    present: &'a [bool],
}

/// Lengths and presence of the candidates of one group.
struct Row {
    lengths: Vec<f64>,
    present: Vec<bool>,
}

impl Row {
    /// What stands for lengths and a mask that were not given.
    fn full(size: usize) -> Self {
        let (lengths, present) = (vec![1.0; size], vec![true; size]);
        Self { lengths, present }
    }
}

impl<'a, T> Groups<'a, T> {
    fn check(&self) -> Result<()> {
        let [rows, size] = self.shape;
        let area = rows.saturating_mul(size);
        Error::check_length("scores", area, self.scores.len())?;
        Error::check_length("hits", area, self.hits.len())?;
        Error::check_length("lengths", area, self.lengths.map_or(area, <[_]>::len))?;
        Error::check_length("mask", area, self.present.map_or(area, <[_]>::len))
    }

    #[inline(always)]
    fn at(&self, row: usize, full: &'a Row) -> Group<'a, T> {
        let range = range(row, self.shape[1]);
        Group {
            scores: &self.scores[range.clone()],
            hits: &self.hits[range.clone()],
            lengths: self.lengths.map_or(&full.lengths, |n| &n[range.clone()]),
            present: self.present.map_or(&full.present, |p| &p[range]),
        }
    }
}

#[inline(always)]
fn range(row: usize, size: usize) -> Range<usize> {
    row * size..(row + 1) * size
}

/// +1 for a hit, minus the softmax over the misses of `score / length / temperature` for a miss, NaN where
/// absent; 0 in a group without a hit.
///
/// # Errors
///
/// [`Error::Length`] for slices that do not fit the shape.
pub fn uncertainty_weighted<T: Float>(groups: Groups<'_, T>, temperature: f64) -> Result<Vec<T>> {
    groups.check()?;
    Ok(Arch::new().dispatch(Rewards {
        groups,
        temperature,
    }))
}

struct Rewards<'a, T> {
    groups: Groups<'a, T>,
    temperature: f64,
}

impl<T: Float> WithSimd for Rewards<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<T> {
        let [rows, size] = self.groups.shape;
        let mut rewards = vec![T::nearest(0.0); self.groups.scores.len()];
        let width = size.min(rewards.len()); // there may be no row, of any size
        let (full, mut shares) = (Row::full(width), vec![0.0; width]);
        for row in 0..rows {
            let group = self.groups.at(row, &full);
            let out = &mut rewards[range(row, size)];
            group.reward(self.temperature, &mut shares, out);
        }
        rewards
    }
}

impl<T: Float> Group<'_, T> {
    /// Rewards, written over zeros.
    #[inline(always)]
    fn reward(self, temperature: f64, shares: &mut [f64], out: &mut [T]) {
        if any(self.hits, |hit| hit) {
            let unit = 1.0 / self.soften(|hit| !hit, temperature, shares);
            for ((slot, &share), &hit) in out.iter_mut().zip(&*shares).zip(self.hits) {
                let penalty = 0.0 - share * unit; // 0 - 0 is +0; -0 would print as such
                *slot = T::nearest(if hit { 1.0 } else { penalty });
            }
        }
        for (slot, &present) in out.iter_mut().zip(self.present) {
            *slot = if present { *slot } else { T::nearest(f64::NAN) };
        }
    }

    /// exp(score / length / temperature) of the candidates that count, in units of the largest, and 0 for the
    /// others. Returns their sum, or 1 if all are 0.
    #[inline(always)]
    fn soften(self, counts: impl Fn(bool) -> bool, temperature: f64, shares: &mut [f64]) -> f64 {
        let scores = self.scores.iter().zip(self.lengths);
        let kept = self.hits.iter().zip(self.present);
        for ((share, (&score, length)), (&hit, &present)) in shares.iter_mut().zip(scores).zip(kept)
        {
            let score = score.into() / length;
            let counts = present & counts(hit);
            *share = if counts { score } else { f64::NEG_INFINITY };
        }
        let (top, sharpness) = (largest(shares), (1.0 / temperature).min(f64::MAX));
        for share in &mut *shares {
            *share = exp((*share - top) * sharpness);
        }
        let total = sum(shares);
        if total > 0.0 { total } else { 1.0 }
    }
}

/// 0 if there is nothing above -inf.
#[inline(always)]
fn largest(values: &[f64]) -> f64 {
    let larger = |a: f64, b: f64| if b > a { b } else { a };
    let tops = fold(values, f64::NEG_INFINITY, larger);
    let top = tops.into_iter().fold(f64::NEG_INFINITY, larger);
    if top == f64::NEG_INFINITY { 0.0 } else { top }
}

#[inline(always)]
fn sum(values: &[f64]) -> f64 {
    fold(values, 0.0, |sum, value| sum + value)
        .into_iter()
        .sum()
}

/// exp of a number that is at most 0, within 1e-15 of it; 0 below -708, near the smallest normal number.
#[inline(always)]
fn exp(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
    const FACTORIALS: [f64; 13] = [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ];
    let raised = if x < -708.0 { -708.0 } else { x }; // keeps NaN
    let shifted = raised * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (raised - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10; // ln 2 in two parts
    let mut p = 0.0;
    for factorial in FACTORIALS {
        p = p * r + 1.0 / factorial;
    }
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    if x < -708.0 { 0.0 } else { power * p }
}

/// `alpha_min` and more for a harder group, up to 1; 1 for a group without a hit.
///
/// # Errors
///
/// [`Error::Length`] for slices that do not fit the shape, [`Error::Memory`] if the weights do not fit.
pub fn difficulty_weight<T: Float>(
    groups: Groups<'_, T>,
    kind: Difficulty,
    alpha_min: f64,
) -> Result<Vec<T>> {
    groups.check()?;
    Arch::new().dispatch(Weights {
        groups,
        kind,
        alpha_min,
    })
}

struct Weights<'a, T> {
    groups: Groups<'a, T>,
    kind: Difficulty,
    alpha_min: f64,
}

impl<T: Float> WithSimd for Weights<'_, T> {
    type Output = Result<Vec<T>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Result<Vec<T>> {
        let [rows, size] = self.groups.shape;
        let mut weights = filled(T::nearest(1.0), Some(rows))?;
        let width = size.min(self.groups.scores.len());
        let (full, mut shares) = (Row::full(width), vec![0.0; width]);
        for (row, weight) in weights.iter_mut().enumerate() {
            let group = self.groups.at(row, &full);
            *weight = group.weight(self.kind, self.alpha_min, &mut shares);
        }
        Ok(weights)
    }
}

impl<T: Float> Group<'_, T> {
    #[inline(always)]
    fn weight(self, kind: Difficulty, alpha_min: f64, shares: &mut [f64]) -> T {
        T::nearest(alpha_min + (1.0 - alpha_min) * self.difficulty(kind, shares))
    }

    /// From 0, for a hit that is first or certain, to 1; 1 without a hit.
    #[inline(always)]
    fn difficulty(self, kind: Difficulty, shares: &mut [f64]) -> f64 {
        if !any(self.hits, |hit| hit) {
            return 1.0;
        }
        let count = self.present.iter().filter(|&&present| present).count();
        let last = count.saturating_sub(1);
        let drop = |rank: usize| 1.0 - 1.0 / (rank as f64 + 2.0).log2();
        match kind {
            Difficulty::Probability => self.improbability(shares),
            _ if last == 0 => 0.0,
            Difficulty::Rank => self.rank() as f64 / last as f64,
            Difficulty::Discount => drop(self.rank()) / drop(last),
        }
    }

    /// How many candidates stand before the best hit, in descending order of scores, ties by index.
    #[inline(always)]
    fn rank(self) -> usize {
        let candidates = || self.scores.iter().map(|&score| score.into()).enumerate();
        let hits = candidates().zip(self.hits).filter(|&(_, &hit)| hit);
        let best = hits
            .map(|(candidate, _)| candidate)
            .reduce(|best, next| if next.1 > best.1 { next } else { best });
        let (first, score): (usize, f64) = best.unwrap_or((0, f64::INFINITY));
        let ahead = |(i, other)| {
            if i < first {
                other >= score
            } else {
                other > score
            }
        };
        candidates()
            .zip(self.present)
            .filter(|&(candidate, &present)| present & ahead(candidate))
            .count()
    }

    /// What the softmax over the group does not give to hits; 1 if all scores are -inf.
    #[inline(always)]
    fn improbability(self, shares: &mut [f64]) -> f64 {
        let total = self.soften(|_| true, 1.0, shares);
        for (share, &hit) in shares.iter_mut().zip(self.hits) {
            *share = if hit { *share } else { 0.0 };
        }
        1.0 - sum(shares) / total
    }
}

/// Candidates as rows of token ids, right-padded with -1.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// Groups, candidates of each, and tokens of each candidate.
    pub shape: [usize; 3],
    /// Of the candidates.
    pub tokens: &'a [i64],
    /// Of one target for each group.
    pub target: &'a [i64],
    /// Which candidates count, if not all; absent ones (all -1) never do.
    pub mask: Option<&'a [bool]>,
}

/// How [`signal`] computes its parts.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Divide a score by the number of its tokens.
    pub by_length: bool,
    /// Of the softmax over misses.
    pub temperature: f64,
    /// What the weight follows.
    pub kind: Difficulty,
    /// The smallest weight.
    pub alpha_min: f64,
    /// How rewards become advantages.
    pub rule: Rule,
}

/// What a group is to be learned from.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal<T> {
    /// Which candidates are the target.
    pub hits: Vec<bool>,
    /// As [`uncertainty_weighted`].
    pub rewards: Vec<T>,
    /// As [`difficulty_weight`].
    pub weight: Vec<T>,
    /// As [`advantage::group_advantages`].
    pub advantages: Vec<T>,
}

/// Hit test, reward, weight and advantage in one call, bit for bit what the separate calls give.
///
/// # Errors
///
/// [`Error::Length`] for slices that do not fit the shape, [`Error::Value`] for a bad `eps` or `ddof`,
/// [`Error::Memory`] if the weights do not fit.
pub fn signal<T: Float>(
    candidates: Candidates<'_>,
    scores: &[T],
    settings: Settings,
) -> Result<Signal<T>> {
    candidates.check(scores.len())?;
    settings.rule.check()?;
    let [rows, size, _] = candidates.shape;
    let mut signal = Arch::new().dispatch(Parts {
        candidates,
        scores,
        settings,
    })?;
    let groups = (0..rows).map(|row| range(row, size));
    signal.advantages = advantage::of_groups(&signal.rewards, groups, settings.rule)?;
    Ok(signal)
}

/// All of [`signal`] but the advantages.
struct Parts<'a, T> {
    candidates: Candidates<'a>,
    scores: &'a [T],
    settings: Settings,
}

impl<T: Float> WithSimd for Parts<'_, T> {
    type Output = Result<Signal<T>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Result<Signal<T>> {
        let [rows, size, _] = self.candidates.shape;
        let mut signal = Signal {
            hits: vec![false; self.scores.len()],
            rewards: vec![T::nearest(0.0); self.scores.len()],
            weight: filled(T::nearest(1.0), Some(rows))?,
            advantages: Vec::new(),
        };
        let width = size.min(self.scores.len());
        let (full, mut own) = (Row::full(width), Row::full(width));
        let mut shares = vec![0.0; width];
        for row in 0..rows {
            let range = range(row, size);
            let hits = &mut signal.hits[range.clone()];
            self.candidates.compare(row, hits, &mut own);
            let group = Group {
                scores: &self.scores[range.clone()],
                hits,
                lengths: &full.lengths,
                present: &own.present,
            };
            let lengths = if self.settings.by_length {
                &own.lengths
            } else {
                group.lengths
            };
            let rewards = &mut signal.rewards[range];
            Group { lengths, ..group }.reward(self.settings.temperature, &mut shares, rewards);
            signal.weight[row] =
                group.weight(self.settings.kind, self.settings.alpha_min, &mut shares);
        }
        Ok(signal)
    }
}

impl Candidates<'_> {
    fn check(&self, num_scores: usize) -> Result<()> {
        let [rows, size, depth] = self.shape;
        let area = rows.saturating_mul(size);
        Error::check_length("tokens", area.saturating_mul(depth), self.tokens.len())?;
        Error::check_length("target", rows.saturating_mul(depth), self.target.len())?;
        Error::check_length("scores", area, num_scores)?;
        Error::check_length("mask", area, self.mask.map_or(area, <[_]>::len))
    }

    /// Which candidates of a group are its target, how many tokens they have, and which of them there are.
    #[inline(always)]
    fn compare(&self, row: usize, hits: &mut [bool], own: &mut Row) {
        let [_, size, depth] = self.shape;
        let tokens = &self.tokens[range(row, size * depth)];
        let target = &self.target[range(row, depth)];
        match depth {
            2 => equal::<2>(tokens, target, hits),
            3 => equal::<3>(tokens, target, hits),
            4 => equal::<4>(tokens, target, hits),
            5 => equal::<5>(tokens, target, hits),
            _ => equal_any(tokens, target, hits),
        }
        own.lengths.fill(depth as f64);
        if any(tokens, |token| token < 0) {
            count(tokens, depth, &mut own.lengths);
        }
        for (present, &length) in own.present.iter_mut().zip(&own.lengths) {
            *present = length > 0.0;
        }
        if let Some(mask) = self.mask {
            for (present, &counts) in own.present.iter_mut().zip(&mask[range(row, size)]) {
                *present &= counts;
            }
        }
        for (hit, &present) in hits.iter_mut().zip(&own.present) {
            *hit &= present;
        }
    }
}

/// Whether each candidate is the target; loops of a known length become vectors.
#[inline(always)]
fn equal<const DEPTH: usize>(tokens: &[i64], target: &[i64], hits: &mut [bool]) {
    let (candidates, _) = tokens.as_chunks::<DEPTH>();
    for (candidate, hit) in candidates.iter().zip(hits) {
        *hit = is_same(candidate, target);
    }
}

#[inline(always)]
fn equal_any(tokens: &[i64], target: &[i64], hits: &mut [bool]) {
    let candidates = tokens.chunks_exact(target.len().max(1));
    for (candidate, hit) in candidates.zip(hits) {
        *hit = is_same(candidate, target);
    }
}

#[inline(always)]
fn is_same(candidate: &[i64], target: &[i64]) -> bool {
    let mut difference = 0;
    for (token, wanted) in candidate.iter().zip(target) {
        difference |= token ^ wanted;
    }
    difference == 0
}

/// How many tokens each candidate has.
#[inline(always)]
fn count(tokens: &[i64], depth: usize, lengths: &mut [f64]) {
    for (candidate, length) in tokens.chunks_exact(depth).zip(lengths) {
        *length = candidate.iter().filter(|&&token| token >= 0).count() as f64;
    }
}
