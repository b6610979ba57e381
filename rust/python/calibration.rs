//! [`crate::calibration`] for Python.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::Result;
use crate::calibration::{Bins, equal_mass, equal_width};
use crate::float::Float;

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

/// Lower and upper edges, counts, mean confidence and accuracy of each bin, and the Brier score.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn calibration_bins<'py>(
    py: Python<'py>,
    confidence: Confidence<'py>,
    correct: Correct<'py>,
    bins: usize,
    mass: bool,
) -> PyResult<(
    Column<'py, f64>,
    Column<'py, f64>,
    Column<'py, u64>,
    Column<'py, f64>,
    Column<'py, f64>,
    f64,
)> {
    let bins = match (&confidence, &correct) {
        (Confidence::Single(c), Correct::Hard(y)) => {
            run(py, c.as_slice()?, y.as_slice()?, bins, mass)
        }
        (Confidence::Single(c), Correct::Soft(y)) => {
            run(py, c.as_slice()?, y.as_slice()?, bins, mass)
        }
        (Confidence::Double(c), Correct::Hard(y)) => {
            run(py, c.as_slice()?, y.as_slice()?, bins, mass)
        }
        (Confidence::Double(c), Correct::Soft(y)) => {
            run(py, c.as_slice()?, y.as_slice()?, bins, mass)
        }
    }?;
    Ok((
        bins.lower.into_pyarray(py),
        bins.upper.into_pyarray(py),
        bins.count.into_pyarray(py),
        bins.confidence.into_pyarray(py),
        bins.accuracy.into_pyarray(py),
        bins.brier,
    ))
}

fn run<C: Float + Sync, Y: Copy + Into<f64> + Sync>(
    py: Python<'_>,
    confidence: &[C],
    correct: &[Y],
    bins: usize,
    mass: bool,
) -> Result<Bins> {
    let kernel = if mass { equal_mass } else { equal_width };
    py.detach(|| kernel(confidence, correct, bins))
}
