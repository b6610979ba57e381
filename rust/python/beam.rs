//! `_core.beam_step_f32` and `_core.beam_step_f64`.

use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::trie::PySidTrie;
use crate::beam::{Beams, Over, Score, step};

type Table<'py, T> = Bound<'py, PyArray2<T>>;

/// Parents, tokens, nodes, scores, log-probabilities and whether live, each `(batch, num_beams)`.
type Level<'py, S> = (
    Table<'py, i64>,
    Table<'py, i64>,
    Table<'py, i64>,
    Table<'py, S>,
    Table<'py, S>,
    Table<'py, bool>,
);

/// One step in float32; see `ugr_fast.BeamSearch.step`.
#[pyfunction]
pub fn beam_step_f32<'py>(
    py: Python<'py>,
    trie: &PySidTrie,
    nodes: PyReadonlyArray2<'py, i64>,
    totals: PyReadonlyArray2<'py, f32>,
    scores: PyReadonlyArray2<'py, f32>,
    num_beams: usize,
    over_candidates: bool,
) -> PyResult<Level<'py, f32>> {
    beam_step(py, trie, nodes, totals, scores, num_beams, over_candidates)
}

/// One step in float64; see `ugr_fast.BeamSearch.step`.
#[pyfunction]
pub fn beam_step_f64<'py>(
    py: Python<'py>,
    trie: &PySidTrie,
    nodes: PyReadonlyArray2<'py, i64>,
    totals: PyReadonlyArray2<'py, f64>,
    scores: PyReadonlyArray2<'py, f64>,
    num_beams: usize,
    over_candidates: bool,
) -> PyResult<Level<'py, f64>> {
    beam_step(py, trie, nodes, totals, scores, num_beams, over_candidates)
}

fn beam_step<'py, S: Score + Element + Send + Sync>(
    py: Python<'py>,
    trie: &PySidTrie,
    nodes: PyReadonlyArray2<'py, i64>,
    totals: PyReadonlyArray2<'py, S>,
    scores: PyReadonlyArray2<'py, S>,
    num_beams: usize,
    over_candidates: bool,
) -> PyResult<Level<'py, S>> {
    let (batch, columns) = (nodes.shape()[0], scores.shape()[1]);
    let over = if over_candidates {
        Over::Candidates
    } else {
        Over::Vocabulary
    };
    let beams = Beams {
        nodes: nodes.as_slice()?,
        scores: totals.as_slice()?,
        width: nodes.shape()[1],
    };
    let scores = scores.as_slice()?;
    let level = py.detach(|| step(&trie.0, beams, scores, columns, over, num_beams))?;
    let shape = [batch, num_beams];
    Ok((
        PyArray1::from_vec(py, level.parents).reshape(shape)?,
        PyArray1::from_vec(py, level.tokens).reshape(shape)?,
        PyArray1::from_vec(py, level.nodes).reshape(shape)?,
        PyArray1::from_vec(py, level.scores).reshape(shape)?,
        PyArray1::from_vec(py, level.logprobs).reshape(shape)?,
        PyArray1::from_vec(py, level.live).reshape(shape)?,
    ))
}
