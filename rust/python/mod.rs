//! The only modules that know Python: borrow, detach, convert.

mod advantage;
mod beam;
mod calibration;
mod isotonic;
mod packing;
mod ranks;
mod reward;
mod trie;

use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use crate::Error;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Memory { .. } => PyMemoryError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// Name of the vector instructions that the kernels use here.
#[pyfunction]
fn simd() -> String {
    crate::simd::name()
}

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::advantage::{group_advantages_f32, group_advantages_f64};
    #[pymodule_export]
    use super::beam::{StepRule, log_sum_exp};
    #[pymodule_export]
    use super::calibration::{calibration_add, calibration_mass, calibration_merge};
    #[pymodule_export]
    use super::calibration::{calibration_totals, log_loss};
    #[pymodule_export]
    use super::isotonic::{isotonic_hard, isotonic_weighted};
    #[pymodule_export]
    use super::packing::pack_prefixes;
    #[pymodule_export]
    use super::ranks::PyRanks;
    #[pymodule_export]
    use super::reward::{difficulty_weight_f32, difficulty_weight_f64};
    #[pymodule_export]
    use super::reward::{ugr_signal_f32, ugr_signal_f64};
    #[pymodule_export]
    use super::reward::{uncertainty_weighted_f32, uncertainty_weighted_f64};
    #[pymodule_export]
    use super::simd;
    #[pymodule_export]
    use super::trie::{PyFilter, PySidTrie};
}
