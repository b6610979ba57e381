//! `_core.StepRule` and `_core.log_sum_exp`.

use numpy::ndarray::Array2;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::trie::{PyFilter, PySidTrie};
use crate::beam::{Beams, Draw, Normalize, Over, Rule, Score, Seed, step};

type Table<'py, T> = Bound<'py, PyArray2<T>>;
type Input<'py, T> = PyReadonlyArray2<'py, T>;

/// Parents, tokens, nodes, totals, keys, log-probabilities and whether live, each `(batch, num_beams)`; and
/// whether any is.
type Level<'py, S> = (
    Table<'py, i64>,
    Table<'py, i64>,
    Table<'py, i64>,
    Table<'py, S>,
    Table<'py, S>,
    Table<'py, S>,
    Table<'py, bool>,
    bool,
);

/// What all steps of a search have in common; see `ugr_fast.BeamSearch`.
#[pyclass(name = "StepRule", module = "ugr_fast._core", frozen)]
pub struct StepRule {
    num_beams: usize,
    normalize: Normalize,
    sharpness: f64,
    draw: Draw,
    groups: usize,
    diversity: f64,
    num_threads: usize,
}

#[pymethods]
impl StepRule {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "the settings of a search")]
    fn new(
        num_beams: usize,
        columns: Option<(usize, usize)>,
        live: bool,
        sharpness: f64,
        seed: Option<(u64, u64)>,
        perturb: bool,
        groups: usize,
        diversity: f64,
        num_threads: usize,
    ) -> Self {
        let normalize = match columns {
            Some((low, high)) => Normalize::Columns(low, high),
            None if live => Normalize::Live,
            None => Normalize::Given,
        };
        let draw = match seed {
            None => Draw::Best,
            Some((seed, first_row)) if perturb => Draw::Perturbed(Seed { seed, first_row }),
            Some((seed, first_row)) => Draw::Sampled(Seed { seed, first_row }),
        };
        Self {
            num_beams,
            normalize,
            sharpness,
            draw,
            groups,
            diversity,
            num_threads,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of a search")]
    fn step_f32<'py>(
        &self,
        py: Python<'py>,
        trie: &PySidTrie,
        filter: Option<&PyFilter>,
        nodes: Input<'py, i64>,
        totals: Input<'py, f32>,
        keys: Input<'py, f32>,
        scores: Input<'py, f32>,
        depth: usize,
        over_candidates: bool,
        weight: f64,
    ) -> PyResult<Level<'py, f32>> {
        let state = (nodes, totals, keys, scores);
        self.step(py, trie, filter, state, depth, over_candidates, weight)
    }

    #[expect(clippy::too_many_arguments, reason = "the state of a search")]
    fn step_f64<'py>(
        &self,
        py: Python<'py>,
        trie: &PySidTrie,
        filter: Option<&PyFilter>,
        nodes: Input<'py, i64>,
        totals: Input<'py, f64>,
        keys: Input<'py, f64>,
        scores: Input<'py, f64>,
        depth: usize,
        over_candidates: bool,
        weight: f64,
    ) -> PyResult<Level<'py, f64>> {
        let state = (nodes, totals, keys, scores);
        self.step(py, trie, filter, state, depth, over_candidates, weight)
    }
}

type State<'py, S> = (Input<'py, i64>, Input<'py, S>, Input<'py, S>, Input<'py, S>);

impl StepRule {
    #[expect(clippy::too_many_arguments, reason = "the state of a search")]
    fn step<'py, S: Score + Element>(
        &self,
        py: Python<'py>,
        trie: &PySidTrie,
        filter: Option<&PyFilter>,
        state: State<'py, S>,
        depth: usize,
        over_candidates: bool,
        weight: f64,
    ) -> PyResult<Level<'py, S>> {
        let (nodes, totals, keys, scores) = state;
        let (batch, columns) = (nodes.shape()[0], scores.shape()[1]);
        let beams = Beams {
            nodes: nodes.as_slice()?,
            totals: totals.as_slice()?,
            keys: keys.as_slice()?,
            width: nodes.shape()[1],
            depth,
        };
        let scores = scores.as_slice()?;
        let level = trie.read(py, |trie| {
            let rule = Rule {
                trie,
                filter: filter.map(|filter| &filter.0),
                num_beams: self.num_beams,
                over: if over_candidates {
                    Over::Candidates
                } else {
                    Over::Vocabulary
                },
                normalize: self.normalize,
                sharpness: S::nearest(self.sharpness),
                weight: S::nearest(weight),
                draw: self.draw,
                groups: self.groups,
                diversity: S::nearest(self.diversity),
                num_threads: self.num_threads,
            };
            step(&rule, beams, scores, columns)
        })??;
        let live = level.live.iter().any(|&live| live);
        let table = Shape(batch, self.num_beams);
        Ok((
            table.of(py, level.parents)?,
            table.of(py, level.tokens)?,
            table.of(py, level.nodes)?,
            table.of(py, level.totals)?,
            table.of(py, level.keys)?,
            table.of(py, level.logprobs)?,
            table.of(py, level.live)?,
            live,
        ))
    }
}

/// The shape of a result.
#[derive(Clone, Copy)]
struct Shape(usize, usize);

impl Shape {
    fn of<T: Element>(self, py: Python<'_>, values: Vec<T>) -> PyResult<Table<'_, T>> {
        let array = Array2::from_shape_vec((self.0, self.1), values);
        let array = array.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(array.into_pyarray(py))
    }
}

/// log Σ exp of every row, in float64.
#[pyfunction]
pub fn log_sum_exp<'py>(
    py: Python<'py>,
    scores: Input<'py, f32>,
    num_threads: usize,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let columns = scores.shape()[1];
    let scores = scores.as_slice()?;
    let sums = py.detach(|| crate::logsumexp::rows(scores, columns, num_threads));
    Ok(PyArray1::from_vec(py, sums))
}
