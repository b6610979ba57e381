//! [`crate::advantage`] for Python.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::advantage::group_advantages;

macro_rules! binding {
    ($name:ident, $float:ty) => {
        /// Advantages of the groups `offsets[g]..offsets[g + 1]`.
        #[pyfunction]
        pub fn $name<'py>(
            py: Python<'py>,
            rewards: PyReadonlyArray1<'py, $float>,
            offsets: PyReadonlyArray1<'py, i64>,
            scale: &str,
            eps: f64,
            ddof: i64,
        ) -> PyResult<Bound<'py, PyArray1<$float>>> {
            let (rewards, offsets, scale) =
                (rewards.as_slice()?, offsets.as_slice()?, scale.parse()?);
            let advantages = py.detach(|| group_advantages(rewards, offsets, scale, eps, ddof))?;
            Ok(advantages.into_pyarray(py))
        }
    };
}

binding!(group_advantages_f32, f32);
binding!(group_advantages_f64, f64);
