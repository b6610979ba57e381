//! [`crate::packing`] for Python.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::packing::{Batch, pack};

type Column<'py> = Bound<'py, PyArray1<i64>>;

/// Flat tokens, position, exit, length, `logit_index` and `suffix_index`, and the width of a row.
#[pyfunction]
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
pub fn pack_prefixes<'py>(
    py: Python<'py>,
    prompts: PyReadonlyArray1<'py, i64>,
    offsets: PyReadonlyArray1<'py, i64>,
    completions: PyReadonlyArray1<'py, i64>,
    group: usize,
    depth: usize,
    suffix: PyReadonlyArray1<'py, i64>,
    pad_token: i64,
) -> PyResult<(
    Column<'py>,
    Column<'py>,
    Column<'py>,
    Column<'py>,
    Column<'py>,
    Column<'py>,
    usize,
)> {
    let batch = Batch {
        prompts: prompts.as_slice()?,
        offsets: offsets.as_slice()?,
        completions: completions.as_slice()?,
        group,
        depth,
        suffix: suffix.as_slice()?,
    };
    let packed = py.detach(|| pack(batch, pad_token))?;
    Ok((
        packed.tokens.into_pyarray(py),
        packed.position.into_pyarray(py),
        packed.exit.into_pyarray(py),
        packed.length.into_pyarray(py),
        packed.logit_index.into_pyarray(py),
        packed.suffix_index.into_pyarray(py),
        packed.width,
    ))
}
