//! `_core.Ranks`.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use super::calibration::Confidence;
use crate::ranks::Ranks;

enum Sorted {
    Single(Ranks<u32>),
    Double(Ranks<u64>),
}

/// See `ugr_fast.metrics.Ranks`.
#[pyclass(name = "Ranks", module = "ugr_fast._core", frozen)]
pub struct PyRanks(Sorted);

type Column<'py, T> = Bound<'py, PyArray1<T>>;

/// A scan of the samples, whatever their type.
macro_rules! scan {
    ($self:ident, $py:ident, $method:ident) => {
        $py.detach(|| match &$self.0 {
            Sorted::Single(ranks) => ranks.$method(),
            Sorted::Double(ranks) => ranks.$method(),
        })
    };
}

#[pymethods]
impl PyRanks {
    #[new]
    fn new<'py>(
        py: Python<'py>,
        scores: Confidence<'py>,
        correct: PyReadonlyArray1<'py, bool>,
    ) -> PyResult<Self> {
        let correct = correct.as_slice()?;
        Ok(Self(match scores {
            Confidence::Single(scores) => {
                let scores = scores.as_slice()?;
                Sorted::Single(py.detach(|| Ranks::new(scores, correct))?)
            }
            Confidence::Double(scores) => {
                let scores = scores.as_slice()?;
                Sorted::Double(py.detach(|| Ranks::new(scores, correct))?)
            }
        }))
    }

    #[getter]
    fn num_samples(&self, py: Python<'_>) -> u64 {
        scan!(self, py, len)
    }

    #[getter]
    fn num_errors(&self, py: Python<'_>) -> u64 {
        scan!(self, py, errors)
    }

    fn auroc(&self, py: Python<'_>) -> f64 {
        scan!(self, py, auroc)
    }

    fn average_precision(&self, py: Python<'_>) -> f64 {
        scan!(self, py, average_precision)
    }

    fn aurc(&self, py: Python<'_>) -> f64 {
        scan!(self, py, aurc)
    }

    fn best_aurc(&self, py: Python<'_>) -> f64 {
        scan!(self, py, best_aurc)
    }

    fn augrc(&self, py: Python<'_>) -> f64 {
        scan!(self, py, augrc)
    }

    fn curve<'py>(
        &self,
        py: Python<'py>,
    ) -> (Column<'py, u64>, Column<'py, u64>, Column<'py, f64>) {
        let curve = scan!(self, py, curve);
        (
            curve.kept.into_pyarray(py),
            curve.errors.into_pyarray(py),
            curve.threshold.into_pyarray(py),
        )
    }
}
