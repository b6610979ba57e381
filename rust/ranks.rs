//! What the order of scores says about the outcomes: one sort, then every metric is a scan.
//!
//! ```text
//! packed    | magnitude of the score, as bits | hit |      32 bits for f32, 64 for f64
//! order     positive scores by magnitude from the top, then negative ones from zero down
//! block     a run of equal scores: its size and its errors are all that a metric reads
//! ```
//!
//! A radix sort over the bits in which the scores differ, in digits of at most 11: three passes for `f32`
//! confidences, six for `f64`. The outcome travels in the key. Memory: two keys a sample.
//!
//! A block counts as its expectation over all orders of its samples, so ties change nothing with the order of
//! the input. Sums of risks are integers in units of 2^-52: no term is lost, however many there are.
//!
//! Source: Mann and Whitney (1947); Geifman, Uziel and El-Yaniv (arXiv 1805.08206); Traub et al. (arXiv 2407.01032).

use crate::float::Float;
use crate::{Error, Result};

/// Bits of a digit: its counters fit the L1 cache.
const DIGIT: u32 = 11;

/// Below this many keys, clearing the counters would cost more than comparing.
const FEW: usize = 1024;

/// A score that can be packed with its outcome.
pub trait Score: Float {
    /// As many bits as the score: the outcome takes the place of the sign.
    type Key: Key;
    /// Magnitude and outcome.
    fn pack(self, hit: bool) -> Self::Key;
}

/// A packed score.
pub trait Key: Copy + Default + Ord + Into<u64> {
    /// The score without its sign.
    fn magnitude(self) -> f64;
}

impl Score for f32 {
    type Key = u32;

    fn pack(self, hit: bool) -> u32 {
        self.to_bits() << 1 | u32::from(hit)
    }
}

impl Score for f64 {
    type Key = u64;

    fn pack(self, hit: bool) -> u64 {
        self.to_bits() << 1 | u64::from(hit)
    }
}

impl Key for u32 {
    fn magnitude(self) -> f64 {
        f32::from_bits(self >> 1).into()
    }
}

impl Key for u64 {
    fn magnitude(self) -> f64 {
        f64::from_bits(self >> 1)
    }
}

/// Samples in the order of their scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks<K> {
    positive: Vec<K>, // ascending
    negative: Vec<K>, // ascending magnitude
    hits: u64,
}

/// A run of samples with equal scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    size: u64,
    errors: u64,
}

/// Where a threshold can be set, from the highest score down.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Samples at or above it.
    pub kept: Vec<u64>,
    /// Errors among them.
    pub errors: Vec<u64>,
    /// The threshold: a score.
    pub threshold: Vec<f64>,
}

impl<K: Key> Ranks<K> {
    /// Sorts samples.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if there are not as many scores as outcomes, [`Error::Value`] for a NaN.
    pub fn new<S: Score<Key = K>>(scores: &[S], correct: &[bool]) -> Result<Self> {
        Error::check_length("correct", scores.len(), correct.len())?;
        let is_nan = |score: &S| (*score).into().is_nan();
        if scores.iter().fold(false, |any, score| any | is_nan(score)) {
            let index = scores.iter().position(is_nan).unwrap_or(0);
            return Err(Error::value("confidence", index, "must not be NaN", "NaN"));
        }
        let is_negative = |score: &S| (*score).into() < 0.0;
        let pack = |(&score, &hit): (&S, &bool)| score.pack(hit);
        let samples = || scores.iter().zip(correct);
        let any_negative = scores
            .iter()
            .fold(false, |any, score| any | is_negative(score));
        let (negative, positive) = if any_negative {
            let part = |sign: bool| samples().filter(move |sample| is_negative(sample.0) == sign);
            (
                part(true).map(pack).collect(),
                part(false).map(pack).collect(),
            )
        } else {
            (Vec::new(), samples().map(pack).collect())
        };
        Ok(Self {
            positive: sorted(positive),
            negative: sorted(negative),
            hits: correct.iter().map(|&hit| u64::from(hit)).sum(),
        })
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.positive.len() + self.negative.len()) as u64
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many samples are wrong.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.len() - self.hits
    }

    /// P(score of a hit > score of an error), ties counting half; NaN with one class only.
    #[must_use]
    pub fn auroc(&self) -> f64 {
        let (mut below, mut wins) = (self.errors(), 0_u128); // in halves
        self.scan(|block| {
            below -= block.errors;
            let hits = block.size - block.errors;
            wins += u128::from(hits) * u128::from(2 * below + block.errors);
        });
        wins as f64 / (2 * u128::from(self.hits) * u128::from(self.errors())) as f64
    }

    /// Sum over thresholds of the recall gained times the precision there; NaN without a hit.
    #[must_use]
    pub fn average_precision(&self) -> f64 {
        let (mut kept, mut found, mut sum) = (0, 0, Sum::default());
        self.scan(|block| {
            let hits = block.size - block.errors;
            kept += block.size;
            found += hits;
            sum.add(hits as f64 * (found as f64 / kept as f64)); // 0 without a hit: no branch to mispredict
        });
        sum.over(self.hits)
    }

    /// Mean over j = 1..n of the risk of the j highest samples; NaN without samples.
    #[must_use]
    pub fn aurc(&self) -> f64 {
        let (mut kept, mut wrong, mut sum) = (0, 0, Sum::default());
        self.scan(|block| {
            sum.add(risks(kept, wrong, block));
            kept += block.size;
            wrong += block.errors;
        });
        sum.over(self.len())
    }

    /// [`Self::aurc`] of the best order: all hits above all errors.
    #[must_use]
    pub fn best_aurc(&self) -> f64 {
        let mut sum = Sum::default();
        for j in 1..=self.errors() {
            sum.add(j as f64 / (self.hits + j) as f64);
        }
        sum.over(self.len())
    }

    /// Mean over j = 1..n of the errors among the j highest samples, over n; NaN without samples.
    #[must_use]
    pub fn augrc(&self) -> f64 {
        let (mut wrong, mut twice) = (0, 0_u128);
        self.scan(|block| {
            let (size, errors) = (u128::from(block.size), u128::from(block.errors));
            twice += 2 * size * wrong + errors * (size + 1);
            wrong += errors;
        });
        let n = self.len() as f64;
        twice as f64 / 2.0 / (n * n)
    }

    /// Every threshold that tells samples apart.
    #[must_use]
    pub fn curve(&self) -> Curve {
        let (mut kept, mut errors) = (Vec::new(), Vec::new());
        let (mut size, mut wrong) = (0, 0);
        self.scan(|block| {
            size += block.size;
            wrong += block.errors;
            kept.push(size);
            errors.push(wrong);
        });
        let top = self
            .positive
            .chunk_by(tied)
            .rev()
            .map(|run| run[0].magnitude());
        let rest = self.negative.chunk_by(tied).map(|run| -run[0].magnitude());
        let threshold = top.chain(rest).collect();
        Curve {
            kept,
            errors,
            threshold,
        }
    }

    /// Shows every block, from the highest score down.
    fn scan(&self, mut see: impl FnMut(Block)) {
        runs(self.positive.iter().rev(), &mut see);
        runs(self.negative.iter(), &mut see);
    }
}

fn runs<'a, K: Key + 'a>(mut keys: impl Iterator<Item = &'a K>, see: &mut impl FnMut(Block)) {
    let error = |key: u64| 1 - (key & 1);
    let Some(&first) = keys.next() else { return };
    let mut last: u64 = first.into();
    let (mut size, mut errors) = (1, error(last));
    for &key in keys {
        let key = key.into();
        if key >> 1 != last >> 1 {
            see(Block { size, errors });
            (size, errors) = (0, 0);
        }
        size += 1;
        errors += error(key);
        last = key;
    }
    see(Block { size, errors });
}

fn tied<K: Key>(&a: &K, &b: &K) -> bool {
    a.into() >> 1 == b.into() >> 1
}

/// Sum of the expected risks of the samples of a block, one by one, below `kept` samples with `wrong` errors.
fn risks(kept: u64, wrong: u64, block: Block) -> f64 {
    if block.size == 1 {
        return (wrong + block.errors) as f64 / (kept + 1) as f64;
    }
    let harmonic: f64 = (kept + 1..=kept + block.size)
        .rev()
        .map(|j| 1.0 / j as f64)
        .sum();
    let rate = block.errors as f64 / block.size as f64;
    (wrong as f64 - rate * kept as f64) * harmonic + block.errors as f64
}

/// A sum of numbers >= 0 in units of 2^-52.
#[derive(Default)]
struct Sum(u128);

impl Sum {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn add(&mut self, term: f64) {
        self.0 += if term <= 1.0 {
            u128::from((1.0 + term).to_bits() - 1.0_f64.to_bits())
        } else {
            (term * (1_u64 << 52) as f64) as u128
        };
    }

    fn over(self, n: u64) -> f64 {
        self.0 as f64 / (1_u64 << 52) as f64 / n as f64
    }
}

/// Keys in ascending order of magnitude.
fn sorted<K: Key>(mut keys: Vec<K>) -> Vec<K> {
    if keys.len() < FEW {
        keys.sort_unstable();
        return keys;
    }
    let first = keys[0].into();
    let varying = keys.iter().fold(0, |any, &key| any | (key.into() ^ first)) >> 1;
    let bits = u64::BITS - varying.leading_zeros();
    let passes = bits.div_ceil(DIGIT);
    let width = bits.div_ceil(passes.max(1));
    let mut spare = vec![K::default(); keys.len()];
    for (pass, counts) in (0..passes).zip(histograms(&keys, passes, width)) {
        scatter(&keys, &mut spare, counts, 1 + pass * width);
        std::mem::swap(&mut keys, &mut spare);
    }
    keys
}

/// How often each value of each digit occurs.
fn histograms<K: Key>(keys: &[K], passes: u32, width: u32) -> Vec<Vec<usize>> {
    let mut counts = vec![vec![0; 1 << width]; passes as usize];
    let mask = (1 << width) - 1;
    for &key in keys {
        for (pass, counts) in (0..passes).zip(&mut counts) {
            counts[digit(key, 1 + pass * width, mask)] += 1;
        }
    }
    counts
}

/// One pass of a stable radix sort.
fn scatter<K: Key>(keys: &[K], sorted: &mut [K], mut counts: Vec<usize>, shift: u32) {
    let (mask, mut start) = (counts.len() - 1, 0);
    for count in &mut counts {
        start += std::mem::replace(count, start);
    }
    for &key in keys {
        let place = &mut counts[digit(key, shift, mask)];
        sorted[*place] = key;
        *place += 1;
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a digit is small")]
fn digit<K: Key>(key: K, shift: u32, mask: usize) -> usize {
    (key.into() >> shift) as usize & mask
}
