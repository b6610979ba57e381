//! [`crate::reward`] for Python.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2, PyReadonlyArray3};
use pyo3::prelude::*;

use crate::advantage::Rule;
use crate::float::Float;
use crate::reward::{self, Candidates, Groups, Settings};

type Mask<'py> = Option<PyReadonlyArray2<'py, bool>>;
type Column<'py, T> = Bound<'py, PyArray1<T>>;

fn groups<'a, T: Float + numpy::Element>(
    scores: &'a PyReadonlyArray2<'_, T>,
    hits: &'a PyReadonlyArray2<'_, bool>,
    lengths: Option<&'a PyReadonlyArray2<'_, f64>>,
    mask: Option<&'a PyReadonlyArray2<'_, bool>>,
) -> PyResult<Groups<'a, T>> {
    Ok(Groups {
        shape: scores.as_array().dim().into(),
        scores: scores.as_slice()?,
        hits: hits.as_slice()?,
        lengths: lengths.map(|lengths| lengths.as_slice()).transpose()?,
        present: mask.map(|mask| mask.as_slice()).transpose()?,
    })
}

macro_rules! bindings {
    ($reward:ident, $weight:ident, $signal:ident, $float:ty) => {
        /// Rewards of all candidates.
        #[pyfunction]
        pub fn $reward<'py>(
            py: Python<'py>,
            hits: PyReadonlyArray2<'py, bool>,
            scores: PyReadonlyArray2<'py, $float>,
            lengths: Option<PyReadonlyArray2<'py, f64>>,
            temperature: f64,
            mask: Mask<'py>,
        ) -> PyResult<Column<'py, $float>> {
            let groups = groups(&scores, &hits, lengths.as_ref(), mask.as_ref())?;
            let rewards = py.detach(|| reward::uncertainty_weighted(groups, temperature))?;
            Ok(rewards.into_pyarray(py))
        }

        /// Weights of all groups.
        #[pyfunction]
        pub fn $weight<'py>(
            py: Python<'py>,
            hits: PyReadonlyArray2<'py, bool>,
            scores: PyReadonlyArray2<'py, $float>,
            kind: &str,
            alpha_min: f64,
            mask: Mask<'py>,
        ) -> PyResult<Column<'py, $float>> {
            let groups = groups(&scores, &hits, None, mask.as_ref())?;
            let kind = kind.parse()?;
            let weight = py.detach(|| reward::difficulty_weight(groups, kind, alpha_min))?;
            Ok(weight.into_pyarray(py))
        }

        /// Hits, rewards, weights and advantages.
        #[pyfunction]
        #[allow(clippy::too_many_arguments, clippy::type_complexity)]
        pub fn $signal<'py>(
            py: Python<'py>,
            tokens: PyReadonlyArray3<'py, i64>,
            target: PyReadonlyArray2<'py, i64>,
            scores: PyReadonlyArray2<'py, $float>,
            mask: Mask<'py>,
            by_length: bool,
            temperature: f64,
            kind: &str,
            alpha_min: f64,
            scale: &str,
            eps: f64,
        ) -> PyResult<(
            Column<'py, bool>,
            Column<'py, $float>,
            Column<'py, $float>,
            Column<'py, $float>,
        )> {
            let candidates = Candidates {
                shape: tokens.as_array().dim().into(),
                tokens: tokens.as_slice()?,
                target: target.as_slice()?,
                mask: mask.as_ref().map(|mask| mask.as_slice()).transpose()?,
            };
            let (scale, ddof) = (scale.parse()?, 1);
            let settings = Settings {
                by_length,
                temperature,
                kind: kind.parse()?,
                alpha_min,
                rule: Rule { scale, eps, ddof },
            };
            let scores = scores.as_slice()?;
            let signal = py.detach(|| reward::signal(candidates, scores, settings))?;
            Ok((
                signal.hits.into_pyarray(py),
                signal.rewards.into_pyarray(py),
                signal.weight.into_pyarray(py),
                signal.advantages.into_pyarray(py),
            ))
        }
    };
}

bindings!(
    uncertainty_weighted_f32,
    difficulty_weight_f32,
    ugr_signal_f32,
    f32
);
bindings!(
    uncertainty_weighted_f64,
    difficulty_weight_f64,
    ugr_signal_f64,
    f64
);
