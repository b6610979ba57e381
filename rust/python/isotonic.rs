//! [`crate::isotonic`] for Python.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use super::calibration::Confidence;
use crate::isotonic;
use crate::isotonic::Knots;

type Columns<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>);

/// Confidences and values at the knots, of outcomes that are 0 or 1.
#[pyfunction]
pub fn isotonic_hard<'py>(
    py: Python<'py>,
    confidence: Confidence<'py>,
    correct: PyReadonlyArray1<'py, u8>,
) -> PyResult<Columns<'py>> {
    let y = correct.as_slice()?;
    let knots = match &confidence {
        Confidence::Single(c) => {
            let c = c.as_slice()?;
            py.detach(|| isotonic::isotonic(c, y))
        }
        Confidence::Double(c) => {
            let c = c.as_slice()?;
            py.detach(|| isotonic::isotonic(c, y))
        }
    }?;
    Ok(columns(py, knots))
}

/// Confidences and values at the knots, of outcomes in `[0, 1]` with weights.
#[pyfunction]
pub fn isotonic_weighted<'py>(
    py: Python<'py>,
    confidence: PyReadonlyArray1<'py, f64>,
    correct: PyReadonlyArray1<'py, f64>,
    weight: PyReadonlyArray1<'py, f64>,
) -> PyResult<Columns<'py>> {
    let (c, y, w) = (
        confidence.as_slice()?,
        correct.as_slice()?,
        weight.as_slice()?,
    );
    let knots = py.detach(|| isotonic::isotonic_weighted(c, y, w))?;
    Ok(columns(py, knots))
}

fn columns(py: Python<'_>, knots: Knots) -> Columns<'_> {
    (
        knots.confidence.into_pyarray(py),
        knots.value.into_pyarray(py),
    )
}
