//! Group-relative advantages.
//!
//! ```text
//! rewards  [ 1  0  0  0 | 0  NaN  1 | 1  1 ]      offsets  [0, 4, 7, 9]
//! ```
//!
//! Every group is centred on its first scorable value before anything is summed, in `f64`. So a constant group
//! is exactly zero (no rounded mean to subtract), a large common offset costs no digits, and the sums never see
//! the unscorable (NaN) rows: the others come out as if those rows were not there, bit for bit.
//!
//! Costs about four passes over a group that stays in the L1 cache, and one output. The sums run in four fixed
//! lanes: with one, which waits for its own latency, the whole call took 1.5 times as long; eight gained nothing.
//!
//! Source: `DeepSeekMath` (arXiv 2402.03300) eq. 4; Dr. GRPO (2503.20783); RLOO (2402.14740).

use crate::float::Float;
use crate::{Error, Result};
use std::str::FromStr;

/// Independent partial sums; fixed, so that a result never depends on the machine.
const LANES: usize = 4;

/// The largest reward: differences of rewards this large still fit an `f32`.
const LARGEST: f64 = 1e37;

/// What a centred reward is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// The group's standard deviation plus `eps` (GRPO).
    Std,
    /// Nothing (Dr. GRPO).
    None,
    /// `(n - 1) / n`, which subtracts the mean of the others (RLOO).
    LeaveOneOut,
    /// The standard deviation of the whole batch plus `eps`.
    Batch,
}

impl FromStr for Scale {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "std" => Ok(Self::Std),
            "none" => Ok(Self::None),
            "leave_one_out" => Ok(Self::LeaveOneOut),
            "batch" => Ok(Self::Batch),
            _ => Err(Error::Value {
                name: "scale",
                index: 0,
                rule: "must be \"std\", \"none\", \"leave_one_out\" or \"batch\"",
                got: format!("{name:?}"),
            }),
        }
    }
}

/// `(reward - mean) / scale` in every group `offsets[g]..offsets[g + 1]`.
///
/// NaN rewards are left out and get 0; a group of one, or of equal rewards, gets exactly `+0.0`.
///
/// # Errors
///
/// [`Error::Value`] for an infinite or huge reward, malformed `offsets`, an `eps` that is negative or not finite.
pub fn group_advantages<T: Float>(
    rewards: &[T],
    offsets: &[i64],
    scale: Scale,
    eps: f64,
    ddof: i64,
) -> Result<Vec<T>> {
    check(rewards, eps, ddof)?;
    let bounds = bounds(offsets, rewards.len())?;
    let mut values = Vec::new();
    let batch = if scale == Scale::Batch {
        centre(rewards, &mut values);
        deviation(&values, mean(&values), ddof)
    } else {
        0.0
    };
    let mut advantages = vec![T::nearest(0.0); rewards.len()];
    for pair in bounds.windows(2) {
        let group = &rewards[pair[0]..pair[1]];
        centre(group, &mut values);
        if values.iter().all(|&value| value == 0.0) {
            continue;
        }
        let (n, mean) = (values.len() as f64, mean(&values));
        let divisor = match scale {
            Scale::Std => deviation(&values, mean, ddof) + eps,
            Scale::None => 1.0,
            Scale::LeaveOneOut => (n - 1.0) / n,
            Scale::Batch => batch + eps,
        };
        let scaled = values
            .iter()
            .map(|value| T::nearest((value - mean) / divisor));
        scatter(scaled, group, &mut advantages[pair[0]..pair[1]]);
    }
    Ok(advantages)
}

/// The scorable rewards of a group, less the first of them.
fn centre<T: Float>(group: &[T], values: &mut Vec<f64>) {
    values.clear();
    if let Some(&first) = group.iter().find(|reward| !is_nan(**reward)) {
        values.extend(group.iter().map(|&reward| reward.into() - first.into()));
        values.retain(|value| !value.is_nan());
    }
}

/// Writes the values of the scorable rewards to their places.
fn scatter<T: Float>(mut scaled: impl ExactSizeIterator<Item = T>, group: &[T], out: &mut [T]) {
    if scaled.len() == group.len() {
        return out
            .iter_mut()
            .zip(scaled)
            .for_each(|(slot, value)| *slot = value);
    }
    for (slot, _) in out
        .iter_mut()
        .zip(group)
        .filter(|(_, reward)| !is_nan(**reward))
    {
        *slot = scaled.next().unwrap_or(*slot);
    }
}

fn is_nan<T: Float>(reward: T) -> bool {
    reward.into().is_nan()
}

fn mean(values: &[f64]) -> f64 {
    sum(values, |value| value) / values.len() as f64
}

/// Standard deviation, 0 if there are fewer than two values.
fn deviation(values: &[f64], mean: f64, ddof: i64) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let root = |unit: f64| {
        let squares = sum(values, |value| ((value - mean) / unit).powi(2));
        unit * (squares / (values.len() as f64 - ddof as f64)).sqrt()
    };
    let deviation = root(1.0);
    if deviation > 1e-140 {
        return deviation;
    }
    // Squares of tiny differences underflow: measure them in units of the largest.
    let largest = values.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    if largest > 0.0 { root(largest) } else { 0.0 }
}

fn sum(values: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += term(value);
    }
    lanes.iter().sum()
}

fn check<T: Float>(rewards: &[T], eps: f64, ddof: i64) -> Result<()> {
    let value = |name, index, rule, got: String| {
        Err(Error::Value {
            name,
            index,
            rule,
            got,
        })
    };
    if !(eps.is_finite() && eps >= 0.0) {
        return value("eps", 0, "must be finite and >= 0", eps.to_string());
    }
    if !(0..=1).contains(&ddof) {
        return value("ddof", 0, "must be 0 or 1", ddof.to_string());
    }
    let refused = |&reward: &T| reward.into().abs() > LARGEST;
    if !rewards
        .iter()
        .fold(false, |any, reward| any | refused(reward))
    {
        return Ok(()); // no early exit, so that it vectorises
    }
    let index = rewards.iter().position(refused).unwrap_or(0);
    let rule = "must be finite, at most 1e37 in size, or NaN for a candidate that cannot be scored";
    value("rewards", index, rule, rewards[index].into().to_string())
}

fn bounds(offsets: &[i64], len: usize) -> Result<Vec<usize>> {
    let bounds: Vec<usize> = offsets
        .iter()
        .map(|&offset| usize::try_from(offset).unwrap_or(usize::MAX))
        .collect();
    let ends = bounds.first() == Some(&0) && bounds.last() == Some(&len);
    if ends && bounds.is_sorted() {
        return Ok(bounds);
    }
    Err(Error::Value {
        name: "offsets",
        index: 0,
        rule: "must start at 0, never fall and end at the number of rewards",
        got: format!("{:?}", &offsets[..offsets.len().min(8)]),
    })
}
