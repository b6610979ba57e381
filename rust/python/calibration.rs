//! [`crate::calibration`] for Python.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray3,
};
use pyo3::prelude::*;

use crate::calibration::{self, Closed, Mass, Sums};

/// Confidences, in the type that their edges follow.
#[derive(FromPyObject)]
pub enum Confidence<'py> {
    /// Single precision.
    Single(PyReadonlyArray1<'py, f32>),
    /// Double precision.
    Double(PyReadonlyArray1<'py, f64>),
}

/// Outcomes: 0 or 1, or soft labels between.
#[derive(FromPyObject)]
pub enum Correct<'py> {
    /// 0 or 1.
    Hard(PyReadonlyArray1<'py, u8>),
    /// In `[0, 1]`.
    Soft(PyReadonlyArray1<'py, f64>),
}

type Column<'py, T> = Bound<'py, PyArray1<T>>;
type State<'py> = PyReadonlyArray3<'py, u64>;

/// Words of 64 bits in the sums of a bin, the low half of each number first.
const WORDS: usize = 16;

/// A call of `$run` with the slices, whatever their types.
macro_rules! with_slices {
    ($py:ident, $confidence:ident, $correct:ident, |$c:ident, $y:ident| $run:expr) => {{
        use {Confidence::*, Correct::*};
        macro_rules! call {
            ($cs:ident, $ys:ident) => {{
                let ($c, $y) = ($cs.as_slice()?, $ys.as_slice()?);
                $py.detach(|| $run)
            }};
        }
        match (&$confidence, &$correct) {
            (Single(cs), Hard(ys)) => call!(cs, ys),
            (Single(cs), Soft(ys)) => call!(cs, ys),
            (Double(cs), Hard(ys)) => call!(cs, ys),
            (Double(cs), Soft(ys)) => call!(cs, ys),
        }
    }};
}

/// The sums, and those of more samples.
#[pyfunction]
pub fn calibration_add<'py>(
    py: Python<'py>,
    sums: State<'py>,
    confidence: Confidence<'py>,
    correct: Correct<'py>,
    weight: Option<PyReadonlyArray1<'py, f64>>,
    closed_right: bool,
) -> PyResult<Bound<'py, PyArray3<u64>>> {
    let closed = if closed_right {
        Closed::Right
    } else {
        Closed::Left
    };
    let weight = weight
        .as_ref()
        .map(|weight| weight.as_slice())
        .transpose()?;
    let mut sums = read(&sums)?;
    with_slices!(py, confidence, correct, |c, y| {
        calibration::add_width(&mut sums, c, y, weight, closed)
    })?;
    write(py, &sums)
}

/// The sums of all samples of both.
#[pyfunction]
pub fn calibration_merge<'py>(
    py: Python<'py>,
    sums: State<'py>,
    other: State<'py>,
) -> PyResult<Bound<'py, PyArray3<u64>>> {
    let mut sums = read(&sums)?;
    calibration::merge(&mut sums, &read(&other)?)?;
    write(py, &sums)
}

/// Lower edges, the last upper edge, and the sums of bins of equal mass.
#[pyfunction]
pub fn calibration_mass<'py>(
    py: Python<'py>,
    confidence: Confidence<'py>,
    correct: Correct<'py>,
    bins: usize,
) -> PyResult<(Column<'py, f64>, f64, Bound<'py, PyArray3<u64>>)> {
    let Mass { lower, last, sums } = with_slices!(py, confidence, correct, |c, y| {
        calibration::equal_mass(c, y, bins)
    })?;
    Ok((lower.into_pyarray(py), last, write(py, &sums)?))
}

/// Samples of each bin, and a row of numbers for each of the other sums and for the gap.
#[pyfunction]
#[allow(clippy::cast_possible_truncation, reason = "samples are counted")]
pub fn calibration_totals<'py>(
    py: Python<'py>,
    sums: State<'py>,
) -> PyResult<(Column<'py, u64>, Bound<'py, PyArray2<f64>>)> {
    let sums = read(&sums)?;
    let count: Vec<u64> = sums.iter().map(|bin| bin[0] as u64).collect();
    let rows = calibration::totals(&sums).concat();
    let rows = PyArray1::from_vec(py, rows).reshape([8, sums.len()])?;
    Ok((count.into_pyarray(py), rows))
}

/// Mean negative log-likelihood of the outcomes.
#[pyfunction]
pub fn log_loss<'py>(
    py: Python<'py>,
    confidence: Confidence<'py>,
    correct: Correct<'py>,
    from_logits: bool,
) -> PyResult<f64> {
    let loss = with_slices!(py, confidence, correct, |c, y| {
        calibration::log_loss(c, y, from_logits)
    })?;
    Ok(loss)
}

fn read(sums: &State<'_>) -> PyResult<Vec<Sums>> {
    let number = |words: &[u64]| u128::from(words[1]) << 64 | u128::from(words[0]);
    let bin = |words: &[u64]| std::array::from_fn(|i| number(&words[2 * i..]));
    Ok(sums.as_slice()?.chunks_exact(WORDS).map(bin).collect())
}

#[allow(clippy::cast_possible_truncation, reason = "halves are wanted")]
fn write<'py>(py: Python<'py>, sums: &[Sums]) -> PyResult<Bound<'py, PyArray3<u64>>> {
    let numbers = sums.as_flattened().iter();
    let words = numbers.flat_map(|&number| [number as u64, (number >> 64) as u64]);
    PyArray1::from_vec(py, words.collect()).reshape([sums.len(), WORDS / 2, 2])
}
