//! Calibration bins, equal width and equal mass.
//!
//! One pass over the samples fills, per bin, a count, a sum of confidences and a sum of outcomes. The sums are
//! integers (units of 2^-52), so they do not depend on the order of the samples, and a small addend is never
//! lost to a large total.
//!
//! ```text
//! bins     [e0, e1) [e1, e2) ... [e(B-1), last]
//! width    e_k = k / B, correctly rounded in the type of the confidences; last = 1
//! mass     e_k = the value at rank floor(k n / B), or the next one up where that would split a run of ties
//! ```
//!
//! The bin of `c` is the integer nearest to `c * B`, or one less, as its edge says: truncating the product is
//! wrong at some edges for most `B`. Equal mass sorts a copy (8 bytes per sample) to find its edges.
//!
//! Dropped: several copies of each bin, so that neighbours do not wait for each other's store: no faster.
//!
//! Source: Guo et al. (arXiv 1706.04599) §2; Naeini et al. (AAAI 2015).

use crate::float::Float;
use crate::{Error, Result};

/// Most bins: more would cost more to clear than to fill.
pub const MAX_BINS: usize = 1 << 16;

/// Samples per block: that many units of at most 2^52 fit a `u64`.
const BLOCK: usize = 2048;

/// The bins, lowest first. Empty bins have a count of 0 and means of NaN.
#[derive(Debug, Clone, PartialEq)]
pub struct Bins {
    /// Lower edge, inside the bin.
    pub lower: Vec<f64>,
    /// Upper edge, outside the bin, except for the last one.
    pub upper: Vec<f64>,
    /// Samples.
    pub count: Vec<u64>,
    /// Mean confidence.
    pub confidence: Vec<f64>,
    /// Mean outcome.
    pub accuracy: Vec<f64>,
    /// Mean squared difference of confidence and outcome, over all samples.
    pub brier: f64,
}

/// Bins of equal width: `bins` edges `k / bins`.
///
/// # Errors
///
/// [`Error::Value`] for a confidence or outcome outside `[0, 1]`, [`Error::Length`] if there are not as many of
/// both, [`Error::TooLarge`] or [`Error::Value`] for a bad number of bins.
pub fn equal_width<C: Float, Y: Copy + Into<f64>>(
    confidence: &[C],
    correct: &[Y],
    bins: usize,
) -> Result<Bins> {
    check(confidence.len(), correct.len(), bins)?;
    let mut edges: Vec<f64> = (0..bins)
        .map(|k| C::nearest(k as f64 / bins as f64).into())
        .collect();
    edges.push(f64::INFINITY);
    let scale = bins as f64;
    let bin = |c: f64| {
        let guess = nearest(c * scale);
        guess - usize::from(c < edges[guess])
    };
    let totals = accumulate(confidence, correct, bins, bin)?;
    Ok(totals.finish(&edges[..bins], 1.0, confidence.len()))
}

/// Bins of equal mass: at most `bins` of them, a run of equal confidences never split, none empty.
///
/// # Errors
///
/// As [`equal_width`].
pub fn equal_mass<C: Float, Y: Copy + Into<f64>>(
    confidence: &[C],
    correct: &[Y],
    bins: usize,
) -> Result<Bins> {
    check(confidence.len(), correct.len(), bins)?;
    check_unit("confidence", confidence, 0)?;
    let mut sorted: Vec<u64> = confidence.iter().map(|&c| key(c.into())).collect();
    sorted.sort_unstable();
    let edges = mass_edges(&sorted, bins);
    let bin = |c: f64| edges.partition_point(|&edge| edge <= c) - 1;
    let totals = accumulate(confidence, correct, edges.len(), bin)?;
    let last = sorted.last().map_or(1.0, |&key| f64::from_bits(key));
    Ok(totals.finish(&edges, last, confidence.len()))
}

/// Bits that order like the confidence: it is not negative, once -0.0 is +0.0.
fn key(confidence: f64) -> u64 {
    (confidence + 0.0).to_bits()
}

fn mass_edges(sorted: &[u64], bins: usize) -> Vec<f64> {
    let mut edges: Vec<u64> = sorted.first().copied().into_iter().collect();
    for rank in (1..bins)
        .map(|k| k * sorted.len() / bins)
        .filter(|&rank| rank > 0)
    {
        let next = sorted.partition_point(|&key| key <= sorted[rank - 1]);
        if next < sorted.len() && edges.last() < Some(&sorted[next]) {
            edges.push(sorted[next]);
        }
    }
    edges.into_iter().map(f64::from_bits).collect()
}

/// The integer nearest to `0 <= x < 2^32`: adding 2^52 rounds it into the low bits. (A saturating `as` costs more.)
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
fn nearest(x: f64) -> usize {
    (x + (1_u64 << 52) as f64).to_bits() as u32 as usize
}

/// Count and sums of one bin within a block.
#[derive(Clone, Copy, Default)]
struct Cell {
    count: u64,
    confidence: u64,
    correct: u64,
}

/// Count and sums of one bin, and the squared error of all.
struct Totals {
    bins: Vec<(u64, u128, u128)>,
    squared_error: u128,
}

fn accumulate<C: Float, Y: Copy + Into<f64>>(
    confidence: &[C],
    correct: &[Y],
    bins: usize,
    bin: impl Fn(f64) -> usize,
) -> Result<Totals> {
    let mut totals = Totals {
        bins: vec![(0, 0, 0); bins],
        squared_error: 0,
    };
    let mut cells = vec![Cell::default(); bins];
    for (block, (cs, ys)) in confidence
        .chunks(BLOCK)
        .zip(correct.chunks(BLOCK))
        .enumerate()
    {
        check_unit("confidence", cs, block * BLOCK)?;
        check_unit("correct", ys, block * BLOCK)?;
        let mut squared_error = 0;
        for (&c, &y) in cs.iter().zip(ys) {
            let (c, y): (f64, f64) = (c.into(), y.into());
            let cell = &mut cells[bin(c)];
            cell.count += 1;
            cell.confidence += units(c);
            cell.correct += units(y);
            squared_error += units((c - y) * (c - y));
        }
        totals.squared_error += u128::from(squared_error);
        totals.absorb(&mut cells);
    }
    Ok(totals)
}

impl Totals {
    fn absorb(&mut self, cells: &mut [Cell]) {
        for (total, cell) in self.bins.iter_mut().zip(cells) {
            total.0 += cell.count;
            total.1 += u128::from(cell.confidence);
            total.2 += u128::from(cell.correct);
            *cell = Cell::default();
        }
    }

    fn finish(&self, lower: &[f64], last: f64, n: usize) -> Bins {
        let mean = |total: u128, count: u64| total as f64 / units(1.0) as f64 / count as f64;
        Bins {
            lower: lower.to_vec(),
            upper: lower
                .iter()
                .skip(1)
                .copied()
                .chain((!lower.is_empty()).then_some(last))
                .collect(),
            count: self.bins.iter().map(|bin| bin.0).collect(),
            confidence: self.bins.iter().map(|bin| mean(bin.1, bin.0)).collect(),
            accuracy: self.bins.iter().map(|bin| mean(bin.2, bin.0)).collect(),
            brier: mean(self.squared_error, n as u64),
        }
    }
}

/// `x` in `[0, 1]` as a multiple of 2^-52, to the nearest: the mantissa of `1 + x`.
fn units(x: f64) -> u64 {
    (1.0 + x).to_bits() - 1.0_f64.to_bits()
}

fn check(confidences: usize, outcomes: usize, bins: usize) -> Result<()> {
    if bins == 0 {
        return Err(Error::Value {
            name: "bins",
            index: 0,
            rule: "must be at least 1",
            got: "0".into(),
        });
    }
    if bins > MAX_BINS {
        return Err(Error::TooLarge {
            name: "bins",
            limit: MAX_BINS,
            got: bins,
        });
    }
    if confidences != outcomes {
        return Err(Error::Length {
            name: "correct",
            expected: confidences,
            got: outcomes,
        });
    }
    Ok(())
}

fn check_unit<T: Copy + Into<f64>>(name: &'static str, values: &[T], start: usize) -> Result<()> {
    let outside = |&value: &T| !(0.0..=1.0).contains(&value.into());
    if !values.iter().fold(false, |any, value| any | outside(value)) {
        return Ok(()); // without an early exit this is SIMD
    }
    let index = values.iter().position(outside).unwrap_or(0);
    Err(Error::Value {
        name,
        index: start + index,
        rule: "must lie in [0, 1]",
        got: values[index].into().to_string(),
    })
}
