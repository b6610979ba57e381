//! Isotonic regression of outcomes on confidences: the non-decreasing map with the least squared error.
//!
//! Equal confidences are one point, and only equal ones. Neighbours whose means fall or stay level are pooled, again
//! and again, until the means rise. What is left are blocks, each a constant between its two ends; the ends are the
//! knots that a caller interpolates between.
//!
//! ```text
//! confidence  .1 .2 .3 .4 .5        blocks  [.1] [.2 .3 .4] [.5]
//! outcome      0  1  0  0  1        values   0      1/3      1
//!                                   knots   .1   .2    .4   .5
//! ```
//!
//! Hard outcomes are counted and compared in integers, so that every comparison is exact. A confidence in `[0, 1]` has
//! bits that order like it, with room for the outcome below: one key, sorted 11 bits at a time from the low end,
//! skipping digits in which no two keys differ. Hits come before misses of the same confidence, so each stretch of
//! hits, then misses, falls or stays level and is one block from the start: a third of the branches that no processor
//! predicts. Two buffers of keys, 8 bytes a sample for `f32` and 16 for `f64`: most of the time goes into the first
//! touch of their pages, which is why `f32` has keys of its own. Soft or weighted outcomes cost a comparison sort of 24
//! bytes a sample, and their sums are kept to twice the digits of an `f64`: the mean of equal values is that value,
//! whatever the order.
//!
//! Source: Ayer et al. (Ann. Math. Stat. 1955); Zadrozny and Elkan (KDD 2002).

use crate::float::Float;
use crate::{Error, Result};

/// Largest weight, and the inverse of the smallest above 0: their sums do not overflow.
pub const MAX_WEIGHT: f64 = 1e100;

/// Where the map bends: confidences that rise, and values that do not fall.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knots {
    /// Both ends of every block, or its one point.
    pub confidence: Vec<f64>,
    /// The mean outcome of the block.
    pub value: Vec<f64>,
}

/// The map of outcomes that are 0 or 1.
///
/// # Errors
///
/// [`Error::Value`] for a confidence outside `[0, 1]` or an outcome above 1, [`Error::Length`] if there are not as
/// many of both.
pub fn isotonic<C: Keyed>(confidence: &[C], correct: &[u8]) -> Result<Knots> {
    Error::check_length("correct", confidence.len(), correct.len())?;
    Error::check_all("confidence", confidence, 0, UNIT, |c| {
        (0.0..=1.0).contains(&c.into())
    })?;
    Error::check_all("correct", correct, 0, UNIT, |y| y <= 1)?;
    let sorted = radix_sort(keys(confidence, correct), C::DIGITS);
    let miss = |key: &C::Key| (*key).into() & 1;
    let falls = sorted.chunk_by(|a, b| miss(a) <= miss(b));
    Ok(pool(falls.map(|fall| {
        let all = fall.len() as u64;
        let hits = all - fall.iter().map(miss).sum::<u64>();
        Block {
            first: C::confidence(fall[0]),
            last: C::confidence(fall[fall.len() - 1]),
            mass: Counts { hits, all },
        }
    })))
}

/// The map of outcomes in `[0, 1]` that count as much as their weights; a weight of 0 is left out.
///
/// # Errors
///
/// As [`isotonic`], and [`Error::Value`] for a weight that is neither 0 nor within [`MAX_WEIGHT`] of 1.
pub fn isotonic_weighted(confidence: &[f64], correct: &[f64], weight: &[f64]) -> Result<Knots> {
    Error::check_length("correct", confidence.len(), correct.len())?;
    Error::check_length("weight", confidence.len(), weight.len())?;
    Error::check_all("confidence", confidence, 0, UNIT, |c| {
        (0.0..=1.0).contains(&c)
    })?;
    Error::check_all("correct", correct, 0, UNIT, |y| (0.0..=1.0).contains(&y))?;
    Error::check_all("weight", weight, 0, WEIGHT, |w| {
        w == 0.0 || (MAX_WEIGHT.recip()..=MAX_WEIGHT).contains(&w)
    })?;
    let samples = confidence.iter().zip(correct).zip(weight);
    let mut rows: Vec<[u64; 3]> = samples
        .filter(|&(_, &w)| w > 0.0)
        .map(|((&c, &y), &w)| [c, y, w].map(bits))
        .collect();
    rows.sort_unstable();
    let ties = rows.chunk_by(|a, b| a[0] == b[0]);
    Ok(pool(ties.map(|tie| Block {
        first: f64::from_bits(tie[0][0]),
        last: f64::from_bits(tie[0][0]),
        mass: Weighted::of(tie),
    })))
}

const UNIT: &str = "must lie in [0, 1]";
const WEIGHT: &str = "must be 0 or lie in [1e-100, 1e100]";

/// Bits that order like the number: it is not negative, once -0.0 is +0.0.
fn bits(x: f64) -> u64 {
    (x + 0.0).to_bits()
}

// ---- sorting

const BUCKETS: usize = 1 << 11;

/// A confidence that fits into a whole number together with its outcome.
pub trait Keyed: Float {
    /// The bits of a number in `[0, 1]`, and one more.
    type Key: Copy + Default + Into<u64>;
    /// Where the digits of a key begin. The lowest two overlap.
    const DIGITS: &[u32];
    /// Orders like the confidence, then hits before misses.
    fn key(self, miss: u8) -> Self::Key;
    /// The confidence of a key.
    fn confidence(key: Self::Key) -> f64;
}

impl Keyed for f32 {
    type Key = u32;
    const DIGITS: &[u32] = &[1, 10, 21];

    fn key(self, miss: u8) -> u32 {
        (self + 0.0).to_bits() << 1 | u32::from(miss)
    }

    fn confidence(key: u32) -> f64 {
        Self::from_bits(key >> 1).into()
    }
}

impl Keyed for f64 {
    type Key = u64;
    const DIGITS: &[u32] = &[1, 8, 19, 30, 41, 52];

    fn key(self, miss: u8) -> u64 {
        bits(self) << 1 | u64::from(miss)
    }

    fn confidence(key: u64) -> f64 {
        Self::from_bits(key >> 1)
    }
}

/// The keys of the hits, then those of the misses.
fn keys<C: Keyed>(confidence: &[C], correct: &[u8]) -> Vec<C::Key> {
    let hits: usize = correct.iter().map(|&y| usize::from(y)).sum();
    let mut keys = vec![C::Key::default(); confidence.len()];
    let mut next = [hits, 0];
    for (&c, &y) in confidence.iter().zip(correct) {
        let place = &mut next[usize::from(y)];
        keys[*place] = c.key(1 - y);
        *place += 1;
    }
    keys
}

/// Sorts by all bits but the lowest, and leaves keys that differ in that one as they are.
fn radix_sort<K: Copy + Default + Into<u64>>(mut keys: Vec<K>, digits: &[u32]) -> Vec<K> {
    let varying = keys
        .iter()
        .fold(0, |any, &key| any | (key.into() ^ keys[0].into()));
    let mut spare = vec![K::default(); keys.len()];
    for &shift in digits {
        if digit(varying, shift) != 0 {
            scatter(&keys, &mut spare, shift);
            std::mem::swap(&mut keys, &mut spare);
        }
    }
    keys
}

/// Writes the keys in the order of one digit, those that share it in the order they come in.
fn scatter<K: Copy + Into<u64>>(keys: &[K], sorted: &mut [K], shift: u32) {
    let mut next = [0; BUCKETS];
    for &key in keys {
        next[digit(key.into(), shift)] += 1;
    }
    let mut start = 0;
    for place in &mut next {
        start += std::mem::replace(place, start);
    }
    for &key in keys {
        let place = &mut next[digit(key.into(), shift)];
        sorted[*place] = key;
        *place += 1;
    }
}

#[allow(clippy::cast_possible_truncation, reason = "masked")]
fn digit(key: u64, shift: u32) -> usize {
    (key >> shift) as usize & (BUCKETS - 1)
}

// ---- pooling

/// What a block holds.
trait Mass: Copy {
    /// Both together.
    fn plus(self, other: Self) -> Self;
    /// Whether the mean is at least the other's.
    fn at_least(self, other: Self) -> bool;
    /// The mean outcome.
    fn mean(self) -> f64;
}

/// The confidences from `first` to `last`, which share a value.
struct Block<M> {
    first: f64,
    last: f64,
    mass: M,
}

/// Pools neighbours that are out of order, from the lowest confidence up.
fn pool<M: Mass>(blocks: impl Iterator<Item = Block<M>>) -> Knots {
    let mut pooled: Vec<Block<M>> = Vec::new();
    for mut block in blocks {
        while let Some(before) = pooled.pop_if(|before| before.mass.at_least(block.mass)) {
            block.first = before.first;
            block.mass = before.mass.plus(block.mass);
        }
        pooled.push(block);
    }
    let mut knots = Knots::default();
    for block in &pooled {
        let ends = [block.first, block.last];
        let ends = &ends[..=usize::from(block.first < block.last)];
        knots.confidence.extend(ends);
        knots.value.extend(ends.iter().map(|_| block.mass.mean()));
    }
    knots
}

/// Samples and how many of them are 1.
#[derive(Clone, Copy)]
struct Counts {
    hits: u64,
    all: u64,
}

impl Mass for Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            all: self.all + other.all,
        }
    }

    fn at_least(self, other: Self) -> bool {
        let times = |a: u64, b: u64| u128::from(a) * u128::from(b);
        times(self.hits, other.all) >= times(other.hits, self.all)
    }

    fn mean(self) -> f64 {
        self.hits as f64 / self.all as f64
    }
}

/// Sums of weights and of weighted outcomes, and their quotient.
#[derive(Clone, Copy)]
struct Weighted {
    outcome: Sum,
    weight: Sum,
    mean: f64,
}

impl Weighted {
    fn of(run: &[[u64; 3]]) -> Self {
        let (mut outcome, mut weight) = (Sum::default(), Sum::default());
        for row in run {
            let [_, y, w] = row.map(f64::from_bits);
            let product = w * y;
            outcome = outcome.plus(product).plus(w.mul_add(y, -product));
            weight = weight.plus(w);
        }
        let mean = outcome.over(weight);
        Self {
            outcome,
            weight,
            mean,
        }
    }
}

impl Mass for Weighted {
    fn plus(self, other: Self) -> Self {
        let outcome = self.outcome.plus(other.outcome.high);
        let outcome = outcome.plus(other.outcome.low);
        let weight = self.weight.plus(other.weight.high).plus(other.weight.low);
        let mean = outcome.over(weight);
        Self {
            outcome,
            weight,
            mean,
        }
    }

    fn at_least(self, other: Self) -> bool {
        self.mean >= other.mean
    }

    fn mean(self) -> f64 {
        self.mean
    }
}

/// An unevaluated sum of two numbers: 106 bits.
#[derive(Clone, Copy, Default)]
struct Sum {
    high: f64,
    low: f64,
}

impl Sum {
    fn plus(self, x: f64) -> Self {
        let (high, error) = two_sum(self.high, x);
        let (high, low) = two_sum(high, self.low + error);
        Self { high, low }
    }

    fn over(self, divisor: Self) -> f64 {
        let quotient = self.high / divisor.high;
        let rest = (-quotient).mul_add(divisor.high, self.high);
        quotient + (rest + (self.low - quotient * divisor.low)) / divisor.high
    }
}

/// The rounded sum and its error (Knuth).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let of_b = sum - a;
    (sum, (a - (sum - of_b)) + (b - of_b))
}
