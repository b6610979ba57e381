//! `_core.SidTrie`.

use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::trie::SidTrie;

type Column<'py, T> = Bound<'py, PyArray1<T>>;
type Table<'py, T> = Bound<'py, PyArray2<T>>;

/// See `ugr_fast.SidTrie`, the facade with checks of types and the documentation.
#[pyclass(name = "SidTrie", module = "ugr_fast._core", frozen)]
pub struct PySidTrie(pub(super) SidTrie);

#[pymethods]
impl PySidTrie {
    #[staticmethod]
    fn build(
        py: Python<'_>,
        sids: PyReadonlyArray2<'_, i64>,
        items: PyReadonlyArray1<'_, i64>,
        end: Option<u32>,
    ) -> PyResult<Self> {
        let width = sids.shape()[1];
        let (sids, items) = (sids.as_slice()?, items.as_slice()?);
        Ok(Self(py.detach(|| SidTrie::build(sids, width, items, end))?))
    }

    #[staticmethod]
    fn from_arrays(
        py: Python<'_>,
        tokens: PyReadonlyArray1<'_, u32>,
        first_child: PyReadonlyArray1<'_, u32>,
        terminals: PyReadonlyArray1<'_, u32>,
        item_offsets: PyReadonlyArray1<'_, u32>,
        items: PyReadonlyArray1<'_, i64>,
    ) -> PyResult<Self> {
        let (tokens, first_child) = (tokens.to_vec()?, first_child.to_vec()?);
        let (terminals, item_offsets) = (terminals.to_vec()?, item_offsets.to_vec()?);
        let items = items.to_vec()?;
        let build = || SidTrie::from_arrays(tokens, first_child, terminals, item_offsets, items);
        Ok(Self(py.detach(build)?))
    }

    #[expect(clippy::type_complexity, reason = "one array each")]
    fn arrays<'py>(
        &self,
        py: Python<'py>,
    ) -> (
        Column<'py, u32>,
        Column<'py, u32>,
        Column<'py, u32>,
        Column<'py, u32>,
        Column<'py, i64>,
    ) {
        (
            PyArray1::from_slice(py, self.0.tokens()),
            PyArray1::from_slice(py, self.0.first_child()),
            PyArray1::from_slice(py, self.0.terminals()),
            PyArray1::from_slice(py, self.0.item_offsets()),
            PyArray1::from_slice(py, self.0.items()),
        )
    }

    #[getter]
    fn num_nodes(&self) -> usize {
        self.0.num_nodes()
    }

    #[getter]
    fn num_items(&self) -> usize {
        self.0.items().len()
    }

    #[getter]
    fn num_sids(&self) -> usize {
        self.0.terminals().len()
    }

    #[getter]
    fn depth(&self) -> usize {
        self.0.depth()
    }

    #[getter]
    fn max_token(&self) -> u32 {
        self.0.max_token()
    }

    #[getter]
    fn prefix_free(&self) -> bool {
        self.0.prefix_free()
    }

    fn walk<'py>(
        &self,
        py: Python<'py>,
        prefixes: PyReadonlyArray2<'py, i64>,
    ) -> PyResult<Column<'py, i64>> {
        let (num_rows, width) = (prefixes.shape()[0], prefixes.shape()[1]);
        let prefixes = prefixes.as_slice()?;
        let nodes = py.detach(|| self.0.walk(prefixes, width, num_rows))?;
        Ok(PyArray1::from_vec(py, nodes))
    }

    fn allowed<'py>(
        &self,
        py: Python<'py>,
        nodes: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Table<'py, i64>> {
        let nodes = nodes.as_slice()?;
        let (table, width) = py.detach(|| self.0.allowed(nodes))?;
        PyArray1::from_vec(py, table).reshape([nodes.len(), width])
    }

    fn items_at<'py>(&self, py: Python<'py>, node: u32) -> Column<'py, i64> {
        PyArray1::from_slice(py, self.0.items_at(node))
    }

    fn lowest_items<'py>(
        &self,
        py: Python<'py>,
        nodes: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Column<'py, i64>> {
        let nodes = nodes.as_slice()?;
        Ok(PyArray1::from_vec(
            py,
            py.detach(|| self.0.lowest_items(nodes))?,
        ))
    }

    fn sids<'py>(&self, py: Python<'py>) -> PyResult<(Table<'py, i64>, Column<'py, i64>)> {
        let (table, items) = py.detach(|| self.0.sids())?;
        let shape = [items.len(), self.0.depth()];
        Ok((
            PyArray1::from_vec(py, table).reshape(shape)?,
            PyArray1::from_vec(py, items),
        ))
    }
}
