//! log Σ exp in one pass, for the normalisation of scores.
//!
//! Blocks that fit the first-level cache are read twice there and once from memory: their maximum, then
//! the sum of exponentials below it, in lanes that the compiler turns into vectors. In `f32`, exp is 2^n
//! times a polynomial (relative error below 3e-7); blocks are added up in `f64`.
//!
//! Source: Cody and Waite (1980), the split of exp; Milakov and Gimelshein (arXiv 1805.02867), the running
//! maximum.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the vector instructions of its caller"
)]

use pulp::{Arch, Simd, WithSimd};

use crate::parallel::over_ranges;

const BLOCK: usize = 1024;
const LANES: usize = 16;

/// log Σ exp(scale · x); -inf if there is nothing above -inf, NaN or +inf if one of the scores is.
#[must_use]
pub fn f32(scores: &[f32], scale: f32) -> f64 {
    Arch::new().dispatch(F32 { scores, scale })
}

/// log Σ exp(scale · x) in `f64`, with the library's exp.
#[must_use]
pub fn f64(scores: &[f64], scale: f64) -> f64 {
    let mut running = Running::default();
    for block in scores.chunks(BLOCK) {
        let scaled = block.iter().map(|&x| x * scale);
        let top = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
        if top > f64::NEG_INFINITY {
            running.add(top, scaled.map(|x| (x - top).exp()).sum());
        } else if block.iter().any(|x| x.is_nan()) {
            running.sum = f64::NAN;
        }
    }
    running.log()
}

/// log Σ exp of every row of `columns` scores.
#[must_use]
pub fn rows(scores: &[f32], columns: usize, num_threads: usize) -> Vec<f64> {
    let num_rows = scores.len() / columns.max(1);
    let parts = over_ranges(num_rows, num_threads, |rows| {
        let rows = scores[rows.start * columns..rows.end * columns].chunks(columns.max(1));
        rows.map(|row| f32(row, 1.0)).collect::<Vec<_>>()
    });
    parts.concat()
}

/// The work of [`f32`], compiled once for every set of vector instructions and chosen when it runs. Lanes and
/// order are written out and nothing is fused, so that all of them give the same bits.
struct F32<'a> {
    scores: &'a [f32],
    scale: f32,
}

impl WithSimd for F32<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut running = Running::default();
        for block in self.scores.chunks(BLOCK) {
            let top = largest(block, self.scale);
            if top > f32::NEG_INFINITY {
                running.add(top.into(), sum_exp(block, self.scale, top));
            } else if block.iter().any(|x| x.is_nan()) {
                running.sum = f64::NAN;
            }
        }
        running.log()
    }
}

/// The largest score so far, and the sum of exponentials below it.
struct Running {
    top: f64,
    sum: f64,
}

impl Default for Running {
    fn default() -> Self {
        let (top, sum) = (f64::NEG_INFINITY, 0.0);
        Self { top, sum }
    }
}

impl Running {
    /// Adds a block whose largest score is above -inf.
    #[inline(always)]
    fn add(&mut self, top: f64, sum: f64) {
        if top > self.top {
            if self.sum != 0.0 {
                self.sum *= (self.top - top).exp();
            }
            self.sum += sum;
            self.top = top;
        } else {
            self.sum += sum * (top - self.top).exp();
        }
    }

    #[inline(always)]
    fn log(&self) -> f64 {
        self.top + self.sum.ln()
    }
}

/// The largest scaled score; NaN does not count.
#[inline(always)]
fn largest(block: &[f32], scale: f32) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let mut chunks = block.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            tops[lane] = larger(tops[lane], chunk[lane] * scale);
        }
    }
    let mut top = f32::NEG_INFINITY;
    for &x in chunks.remainder() {
        top = larger(top, x * scale);
    }
    for other in tops {
        top = larger(top, other);
    }
    top
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Σ exp(scale · x - top); NaN if a score or `top` is not finite.
#[inline(always)]
fn sum_exp(block: &[f32], scale: f32, top: f32) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let mut chunks = block.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            sums[lane] += exp(chunk[lane] * scale - top);
        }
    }
    let mut sum = 0.0;
    for &x in chunks.remainder() {
        sum += f64::from(exp(x * scale - top));
    }
    for part in sums {
        sum += f64::from(part);
    }
    sum
}

/// exp of a number that is at most 0, or NaN. Below -87 it stays at exp(-87), next to nothing beside a maximum of 1.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = if x < -87.0 { -87.0 } else { x }; // keeps NaN
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4; // ln 2 in two parts
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r + 1.0) * r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    power * p
}
