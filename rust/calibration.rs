//! Calibration bins, equal width and equal mass.
//!
//! One pass over the samples adds up, per bin, eight integers. Integers do not depend on the order of the
//! samples nor on how they are cut into parts, so bins of parts, merged in any order, are the bins of the whole
//! bit for bit; and a small addend is never lost to a large total.
//!
//! ```text
//! sums     n, then in units of 2^-64:  w  w^2  wc  wy  wc^2  wcy  wy^2      128 bytes a bin
//! bins     [e0, e1) [e1, e2) ... [e(B-1), last]       or, closed on the right, [e0, e1] (e1, e2] ...
//! width    e_k = k / B, correctly rounded in the type of the confidences; last = 1
//! mass     e_k = the value at rank floor(k n / B), or the next one up where that would split a run of ties
//! ```
//!
//! A sample without a weight weighs 1 and adds multiples of 2^-52, rounded once each: to within 2^-53. A weight
//! rounds its products in `f64`, then to 2^-64. Both are functions of the sample alone.
//!
//! The equal-width bin of `c` is the integer nearest to `c * B`, or one less, as its edge says: truncating the
//! product is wrong at some edges for most `B`.
//!
//! Equal mass counts the samples per bucket of like leading bits, and sorts only those in a bucket that holds
//! a cut: a few percent, all of them at worst (12 to 16 bytes each).
//!
//! Dropped: several copies of each bin, so that neighbours do not wait for each other's store: no faster than
//! the two that a hard outcome keeps anyway, one for each outcome. Taking the exponent off at every sample: 1.4 times
//! slower. Sorting all samples for equal mass: 8 times slower.
//!
//! Source: Guo et al. (arXiv 1706.04599) §2; Naeini et al. (AAAI 2015).

use crate::float::Float;
use crate::{Error, Result};

/// Most bins: more would cost more to clear than to fill.
pub const MAX_BINS: usize = 1 << 16;

/// Largest weight: its square, 2^32 times over, still fits the sums.
pub const MAX_WEIGHT: f64 = 65536.0;

/// Samples per block: that many units of at most 2^52 fit a `u64`.
const BLOCK: usize = 2048;

/// The integers of a bin, in the order of the module's page.
pub type Sums = [u128; 8];

/// The end of a bin that belongs to it; the outermost two always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// `[a, b)`
    Left,
    /// `(a, b]`
    Right,
}

/// Bins of equal mass, lowest first, none empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Mass {
    /// Smallest confidence of each.
    pub lower: Vec<f64>,
    /// Largest confidence of all.
    pub last: f64,
    /// What they hold.
    pub sums: Vec<Sums>,
}

/// A kind of outcome, and how a block of samples adds it up.
pub trait Outcome: Copy + Into<f64> {
    /// Sums over at most [`BLOCK`] samples of a bin, in units of 2^-52.
    type Cell: Copy + Default;
    /// Whether the outcome lies in `[0, 1]`.
    fn is_valid(self) -> bool;
    /// Adds a sample.
    fn add(self, cell: &mut Self::Cell, confidence: f64);
    /// n, c, y, c^2, cy, y^2.
    fn totals(cell: &Self::Cell) -> [u64; 6];
}

/// A miss or a hit. The sums are of the bits of `1 + c`, modulo 2^64; the exponents are taken off at the end, once.
impl Outcome for u8 {
    type Cell = [[u64; 4]; 2]; // the fourth makes an address a shift

    fn is_valid(self) -> bool {
        self <= 1
    }

    fn add(self, cell: &mut Self::Cell, confidence: f64) {
        let [n, c, cc, _] = &mut cell[usize::from(self & 1)];
        *n += 1;
        *c = c.wrapping_add((1.0 + confidence).to_bits());
        *cc = cc.wrapping_add((1.0 + confidence * confidence).to_bits());
    }

    fn totals(cell: &Self::Cell) -> [u64; 6] {
        let [misses, hits] = cell.map(|[n, c, cc, _]| {
            let exponents = n.wrapping_mul(1.0_f64.to_bits());
            [n, c.wrapping_sub(exponents), cc.wrapping_sub(exponents)]
        });
        let y = hits[0] * units(1.0);
        let [n, c, cc] = [0, 1, 2].map(|i| misses[i] + hits[i]);
        [n, c, y, cc, hits[1], y]
    }
}

/// A probability or a share of hits.
impl Outcome for f64 {
    type Cell = [u64; 6];

    fn is_valid(self) -> bool {
        (0.0..=1.0).contains(&self)
    }

    fn add(self, cell: &mut Self::Cell, confidence: f64) {
        let (c, y) = (confidence, self);
        let terms = [c, y, c * c, c * y, y * y].map(units);
        cell[0] += 1;
        for (sum, term) in cell[1..].iter_mut().zip(terms) {
            *sum += term;
        }
    }

    fn totals(cell: &Self::Cell) -> [u64; 6] {
        *cell
    }
}

/// Adds samples to bins of equal width: as many as there are `sums`, with edges `k / bins`.
///
/// # Errors
///
/// [`Error::Value`] for a confidence or outcome outside `[0, 1]` or a weight outside `[0, MAX_WEIGHT]`,
/// [`Error::Length`] if there are not as many of each, [`Error::TooLarge`] or [`Error::Value`] for a bad number
/// of bins. The sums are then of no use.
pub fn add_width<C: Float, Y: Outcome>(
    sums: &mut [Sums],
    confidence: &[C],
    correct: &[Y],
    weight: Option<&[f64]>,
    closed: Closed,
) -> Result<()> {
    let bins = sums.len();
    check(confidence.len(), correct.len(), bins)?;
    let edges = width_edges::<C>(bins, closed);
    let scale = bins as f64;
    let bin = |c: f64| {
        let guess = nearest(c * scale);
        guess - usize::from(c < edges[guess])
    };
    match weight {
        Some(weight) => add_weighted(sums, confidence, correct, weight, bin),
        None => accumulate(sums, confidence, correct, |c, _| Some(bin(c))),
    }
}

/// Bins of equal mass: at most `bins` of them, a run of equal confidences never split.
///
/// # Errors
///
/// As [`add_width`].
pub fn equal_mass<C: Float, Y: Outcome>(
    confidence: &[C],
    correct: &[Y],
    bins: usize,
) -> Result<Mass> {
    check(confidence.len(), correct.len(), bins)?;
    check_unit("confidence", confidence, 0)?;
    let plan = Plan::new(confidence, bins);
    let mut lower = vec![f64::INFINITY; bins];
    let mut sums = vec![Sums::default(); bins];
    let mut aside = Vec::with_capacity(plan.aside);
    accumulate(&mut sums, confidence, correct, |c, y| {
        let home = plan.home[bucket(c)];
        if home == ASIDE {
            aside.push((c + 0.0, y));
            return None;
        }
        let low = &mut lower[home as usize];
        *low = low.min(c + 0.0);
        Some(home as usize)
    })?;
    let cuts = plan.cuts(&aside);
    let (cs, ys): (Vec<f64>, Vec<Y>) = aside.into_iter().unzip();
    accumulate(&mut sums, &cs, &ys, |c, _| {
        let bin = cuts.partition_point(|&cut| cut < c);
        lower[bin] = lower[bin].min(c);
        Some(bin)
    })?;
    lower.retain(|low| low.is_finite());
    sums.retain(|sums| sums[0] > 0);
    let last = confidence
        .iter()
        .fold(0.0, |last: f64, &c| last.max(c.into()));
    Ok(Mass { lower, last, sums })
}

/// Adds the sums of other bins with the same edges.
///
/// # Errors
///
/// [`Error::Length`] for another number of bins.
pub fn merge(sums: &mut [Sums], other: &[Sums]) -> Result<()> {
    Error::check_length("other", sums.len(), other.len())?;
    for (sum, &term) in sums.as_flattened_mut().iter_mut().zip(other.as_flattened()) {
        *sum += term;
    }
    Ok(())
}

/// Sums as numbers, a row each, and the difference of those of `wc` and `wy`, rounded once.
#[must_use]
pub fn totals(sums: &[Sums]) -> [Vec<f64>; 8] {
    let number = |total: u128| total as f64 * 2_f64.powi(-64);
    let column = |i: usize| sums.iter().map(|bin| number(bin[i])).collect();
    let gap = |&[_, _, _, wc, wy, ..]: &Sums| {
        number(wc.abs_diff(wy)).copysign(if wc < wy { -1.0 } else { 1.0 })
    };
    let [w, ww, wc, wy, wcc, wcy, wyy] = [1, 2, 3, 4, 5, 6, 7].map(column);
    [w, ww, wc, wy, wcc, wcy, wyy, sums.iter().map(gap).collect()]
}

/// Mean of -y ln c - (1 - y) ln(1 - c), where `c` is a confidence or the logit of one; infinite for a certainty
/// that is wrong, NaN without samples.
///
/// # Errors
///
/// As [`add_width`]; logits may be any finite number.
pub fn log_loss<C: Float, Y: Outcome>(
    confidence: &[C],
    correct: &[Y],
    from_logits: bool,
) -> Result<f64> {
    check(confidence.len(), correct.len(), 1)?;
    check_outcomes(correct, 0)?;
    if from_logits {
        Error::check_all("logits", confidence, 0, "must be finite", |z| {
            z.into().is_finite()
        })?;
        Ok(mean_loss(confidence, correct, |z, y| {
            z.max(0.0) - z * y + (-z.abs()).exp().ln_1p()
        }))
    } else {
        check_unit("confidence", confidence, 0)?;
        let part = |share: f64, log: f64| if share == 0.0 { 0.0 } else { -share * log };
        Ok(mean_loss(confidence, correct, |c, y| {
            part(y, c.ln()) + part(1.0 - y, (-c).ln_1p())
        }))
    }
}

/// In blocks, so that rounding does not grow with their number.
fn mean_loss<C: Float, Y: Outcome>(
    confidence: &[C],
    correct: &[Y],
    loss: impl Fn(f64, f64) -> f64,
) -> f64 {
    let terms = |(cs, ys): (&[C], &[Y])| -> f64 {
        let pairs = cs.iter().zip(ys);
        pairs.map(|(&c, &y)| loss(c.into(), y.into())).sum()
    };
    let blocks = confidence.chunks(BLOCK).zip(correct.chunks(BLOCK));
    blocks.map(terms).sum::<f64>() / confidence.len() as f64
}

/// Lower edges, each in its bin, and infinity.
fn width_edges<C: Float>(bins: usize, closed: Closed) -> Vec<f64> {
    let edge = |k: usize| -> f64 {
        let edge: f64 = C::nearest(k as f64 / bins as f64).into();
        match closed {
            Closed::Right if k > 0 => edge.next_up(),
            _ => edge,
        }
    };
    (0..bins).map(edge).chain([f64::INFINITY]).collect()
}

/// The integer nearest to `0 <= x < 2^32`: adding 2^52 rounds it into the low bits. (A saturating `as` costs more.)
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
fn nearest(x: f64) -> usize {
    (x + (1_u64 << 52) as f64).to_bits() as u32 as usize
}

// ---- equal mass

/// Bits of a bucket that are alike in `f32`: sign, exponent and nine of the fraction.
const BUCKET_SHIFT: u32 = 14;

/// The home of a bucket that holds a cut.
const ASIDE: u32 = u32::MAX;

/// Buckets in the order of their confidences; `f64` is rounded to `f32`, which keeps the order.
#[allow(clippy::cast_possible_truncation)]
fn bucket(c: f64) -> usize {
    ((c as f32 + 0.0).to_bits() >> BUCKET_SHIFT) as usize
}

/// Where the samples of each bucket go, before any bin is known exactly.
struct Plan {
    /// The bin of a bucket's samples, or [`ASIDE`].
    home: Vec<u32>,
    /// For each cut the place among the sorted samples set aside of the last one below it.
    places: Vec<usize>,
    /// Samples set aside.
    aside: usize,
}

impl Plan {
    #[allow(clippy::cast_possible_truncation, reason = "at most MAX_BINS")]
    fn new<C: Float>(confidence: &[C], bins: usize) -> Self {
        let mut counts = vec![0; bucket(1.0) + 1];
        for &c in confidence {
            counts[bucket(c.into())] += 1_usize;
        }
        let rank = |k: usize| k * confidence.len() / bins;
        let (mut places, mut aside, mut start) = (Vec::new(), 0, 0);
        let mut k = (1..bins).take_while(|&k| rank(k) == 0).count() + 1;
        let empty = k - 1; // cuts below every sample
        let mut home = Vec::with_capacity(counts.len());
        for count in counts {
            let end = start + count;
            let first = k;
            while k < bins && rank(k) <= end && count > 0 {
                places.push(aside + rank(k) - 1 - start);
                k += 1;
            }
            home.push(if k > first {
                ASIDE
            } else {
                (k - 1 - empty) as u32
            });
            aside += if k > first { count } else { 0 };
            start = end;
        }
        Self {
            home,
            places,
            aside,
        }
    }

    /// The largest confidence below each cut.
    fn cuts<Y>(&self, aside: &[(f64, Y)]) -> Vec<f64> {
        let mut sorted: Vec<u64> = aside.iter().map(|sample| sample.0.to_bits()).collect();
        sorted.sort_unstable();
        let cut = |&place: &usize| f64::from_bits(sorted[place]);
        self.places.iter().map(cut).collect()
    }
}

// ---- adding up

fn accumulate<C: Float, Y: Outcome>(
    sums: &mut [Sums],
    confidence: &[C],
    correct: &[Y],
    mut bin: impl FnMut(f64, Y) -> Option<usize>,
) -> Result<()> {
    let mut cells = vec![Y::Cell::default(); sums.len()];
    let blocks = confidence.chunks(BLOCK).zip(correct.chunks(BLOCK));
    for (block, (cs, ys)) in blocks.enumerate() {
        check_unit("confidence", cs, block * BLOCK)?;
        check_outcomes(ys, block * BLOCK)?;
        for (&c, &y) in cs.iter().zip(ys) {
            let c = c.into();
            if let Some(bin) = bin(c, y) {
                y.add(&mut cells[bin], c);
            }
        }
        for (sums, cell) in sums.iter_mut().zip(&mut cells) {
            absorb(sums, Y::totals(cell));
            *cell = Y::Cell::default();
        }
    }
    Ok(())
}

/// Adds a block of samples that weigh 1.
fn absorb(sums: &mut Sums, [n, c, y, cc, cy, yy]: [u64; 6]) {
    let one = u128::from(n) << 64;
    let [c, y, cc, cy, yy] = [c, y, cc, cy, yy].map(|sum| u128::from(sum) << 12);
    for (sum, term) in sums.iter_mut().zip([n.into(), one, one, c, y, cc, cy, yy]) {
        *sum += term;
    }
}

fn add_weighted<C: Float, Y: Outcome>(
    sums: &mut [Sums],
    confidence: &[C],
    correct: &[Y],
    weight: &[f64],
    bin: impl Fn(f64) -> usize,
) -> Result<()> {
    Error::check_length("weight", confidence.len(), weight.len())?;
    check_unit("confidence", confidence, 0)?;
    check_outcomes(correct, 0)?;
    check_weights(weight)?;
    for ((&c, &y), &w) in confidence.iter().zip(correct).zip(weight) {
        let (c, y): (f64, f64) = (c.into(), y.into());
        let sums = &mut sums[bin(c)];
        sums[0] += u128::from(fixed(w) > 0);
        let terms = [
            w,
            w * w,
            w * c,
            w * y,
            w * (c * c),
            w * (c * y),
            w * (y * y),
        ];
        for (sum, term) in sums[1..].iter_mut().zip(terms) {
            *sum += fixed(term);
        }
    }
    Ok(())
}

/// `x` in `[0, 1]` as a multiple of 2^-52, to the nearest: the mantissa of `1 + x`.
fn units(x: f64) -> u64 {
    (1.0 + x).to_bits() - 1.0_f64.to_bits()
}

/// `x >= 0` as a multiple of 2^-64, to the nearest.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn fixed(x: f64) -> u128 {
    (x * 2_f64.powi(64)).round() as u128
}

// ---- checks

fn check(confidences: usize, outcomes: usize, bins: usize) -> Result<()> {
    if bins == 0 {
        return Err(Error::value("bins", 0, "must be at least 1", 0));
    }
    Error::check_limit("bins", MAX_BINS, bins)?;
    Error::check_length("correct", confidences, outcomes)
}

fn check_unit<T: Copy + Into<f64>>(name: &'static str, values: &[T], start: usize) -> Result<()> {
    Error::check_all(name, values, start, "must lie in [0, 1]", |value| {
        (0.0..=1.0).contains(&value.into())
    })
}

fn check_outcomes<Y: Outcome>(outcomes: &[Y], start: usize) -> Result<()> {
    Error::check_all(
        "correct",
        outcomes,
        start,
        "must lie in [0, 1]",
        Y::is_valid,
    )
}

fn check_weights(weights: &[f64]) -> Result<()> {
    let rule = "must lie in [0, 65536]: only ratios count, so divide all by the largest";
    Error::check_all("weight", weights, 0, rule, |w| {
        (0.0..=MAX_WEIGHT).contains(&w)
    })
}
