//! `_core.SidTrie` and `_core.Filter`.

use std::sync::{Arc, OnceLock};

use numpy::{
    Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::filter::{Filter, Lists};
use crate::ints::{IntVec, Ints};
use crate::trie::changes::Changes;
use crate::trie::index::Index;
use crate::trie::{Arrays, Built, Known, SidTrie, parse};

type Column<'py, T> = Bound<'py, PyArray1<T>>;
type Table<'py, T> = Bound<'py, PyArray2<T>>;
type Input<'py, T> = PyReadonlyArray1<'py, T>;

/// An array of numbers in the narrower of two types.
#[derive(FromPyObject, IntoPyObjectRef)]
enum Numbers<N: Element, W: Element> {
    Narrow(Py<PyArray1<N>>),
    Wide(Py<PyArray1<W>>),
}

impl<N: Element, W: Element> Numbers<N, W> {
    fn of(py: Python<'_>, values: IntVec<N, W>) -> Self {
        match values {
            IntVec::Narrow(values) => Self::Narrow(PyArray1::from_vec(py, values).unbind()),
            IntVec::Wide(values) => Self::Wide(PyArray1::from_vec(py, values).unbind()),
        }
    }

    fn read<'py>(&self, py: Python<'py>) -> PyResult<Reading<'py, N, W>> {
        Ok(match self {
            Self::Narrow(array) => Reading::Narrow(array.bind(py).try_readonly()?),
            Self::Wide(array) => Reading::Wide(array.bind(py).try_readonly()?),
        })
    }
}

/// [`Numbers`] borrowed for a call.
enum Reading<'py, N: Element, W: Element> {
    Narrow(Input<'py, N>),
    Wide(Input<'py, W>),
}

impl<N: Element, W: Element> Reading<'_, N, W> {
    fn view(&self) -> PyResult<Ints<'_, N, W>> {
        Ok(match self {
            Self::Narrow(array) => Ints::Narrow(array.as_slice()?),
            Self::Wide(array) => Ints::Wide(array.as_slice()?),
        })
    }
}

/// The arrays of a trie where Python and the kernels both read them; a file may be mapped behind them.
struct Stored {
    tokens: Numbers<u16, u32>,
    first_child: Py<PyArray1<u32>>,
    ends: Py<PyArray1<u32>>,
    ranks: Py<PyArray1<u32>>,
    item_offsets: Py<PyArray1<u32>>,
    items: Numbers<u32, i64>,
    index: OnceLock<Index>,
}

/// See `ugr_fast.SidTrie`, the facade with checks of types and the documentation.
#[pyclass(name = "SidTrie", module = "ugr_fast._core", frozen)]
pub struct PySidTrie {
    stored: Arc<Stored>,
    changes: Option<Arc<Changes>>,
}

impl Stored {
    fn of(py: Python<'_>, built: Built) -> Self {
        let column = |values| PyArray1::from_vec(py, values).unbind();
        Self {
            tokens: Numbers::of(py, built.tokens),
            first_child: column(built.first_child),
            ends: column(built.ends),
            ranks: column(built.ranks),
            item_offsets: column(built.item_offsets),
            items: Numbers::of(py, built.items),
            index: OnceLock::new(),
        }
    }

    /// Borrows the arrays, lets go of the interpreter, and works on them.
    fn read<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(Arrays<'_>) -> R + Send,
    ) -> PyResult<R> {
        let column = |array: &Py<PyArray1<u32>>| array.bind(py).try_readonly();
        let (tokens, items) = (self.tokens.read(py)?, self.items.read(py)?);
        let (first_child, ends) = (column(&self.first_child)?, column(&self.ends)?);
        let (ranks, item_offsets) = (column(&self.ranks)?, column(&self.item_offsets)?);
        let arrays = Arrays {
            tokens: tokens.view()?,
            first_child: first_child.as_slice()?,
            ends: ends.as_slice()?,
            ranks: ranks.as_slice()?,
            item_offsets: item_offsets.as_slice()?,
            items: items.view()?,
            known: self.index.get().map_or_else(Known::default, Index::known),
        };
        Ok(py.detach(|| work(arrays)))
    }

    /// The index of the items, made by whoever needs it first.
    fn index(&self, py: Python<'_>) -> PyResult<&Index> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let made = self.read(py, Index::new)?; // of several threads that make one, the first is kept
        // Kept while we hold the interpreter: a child forked in between would wait for a thread that it does not have.
        Ok(self.index.get_or_init(|| made))
    }
}

impl PySidTrie {
    /// Borrows the catalogue, lets go of the interpreter, and works on it.
    pub(super) fn read<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(SidTrie<'_>) -> R + Send,
    ) -> PyResult<R> {
        let changes = self.changes.as_deref();
        self.stored.read(py, |base| work(SidTrie { base, changes }))
    }

    /// As [`PySidTrie::read`], with the function that finds the slot of an item in the base.
    fn read_indexed<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(SidTrie<'_>, &(dyn Fn(i64) -> Option<u32> + Sync)) -> R + Send,
    ) -> PyResult<R> {
        let (index, changes) = (self.stored.index(py)?, self.changes.as_deref());
        self.stored.read(py, |base| {
            work(SidTrie { base, changes }, &|item| {
                index.slot(item, base.items)
            })
        })
    }

    fn changed(&self, changes: Changes) -> Self {
        let stored = Arc::clone(&self.stored);
        let changes = Some(Arc::new(changes));
        Self { stored, changes }
    }
}

impl From<Stored> for PySidTrie {
    fn from(stored: Stored) -> Self {
        let stored = Arc::new(stored);
        let changes = None;
        Self { stored, changes }
    }
}

#[pymethods]
impl PySidTrie {
    #[staticmethod]
    fn build(
        py: Python<'_>,
        sids: PyReadonlyArray2<'_, i64>,
        items: Input<'_, i64>,
        end: Option<u32>,
        num_threads: usize,
    ) -> PyResult<Self> {
        let width = sids.shape()[1];
        let (sids, items) = (sids.as_slice()?, items.as_slice()?);
        let built = py.detach(|| Built::build(sids, width, items, end, num_threads))?;
        Ok(Stored::of(py, built).into())
    }

    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "one array each")]
    fn from_arrays(
        py: Python<'_>,
        tokens: Numbers<u16, u32>,
        first_child: Py<PyArray1<u32>>,
        ends: Py<PyArray1<u32>>,
        ranks: Py<PyArray1<u32>>,
        item_offsets: Py<PyArray1<u32>>,
        items: Numbers<u32, i64>,
        check: bool,
    ) -> PyResult<Self> {
        let stored = Stored {
            tokens,
            first_child,
            ends,
            ranks,
            item_offsets,
            items,
            index: OnceLock::new(),
        };
        stored.read(py, |arrays| if check { arrays.check() } else { Ok(()) })??;
        Ok(stored.into())
    }

    #[expect(clippy::type_complexity, reason = "one array each")]
    fn arrays(
        &self,
    ) -> (
        &Numbers<u16, u32>,
        &Py<PyArray1<u32>>,
        &Py<PyArray1<u32>>,
        &Py<PyArray1<u32>>,
        &Py<PyArray1<u32>>,
        &Numbers<u32, i64>,
    ) {
        let stored = &self.stored;
        (
            &stored.tokens,
            &stored.first_child,
            &stored.ends,
            &stored.ranks,
            &stored.item_offsets,
            &stored.items,
        )
    }

    fn add(
        &self,
        py: Python<'_>,
        sids: PyReadonlyArray2<'_, i64>,
        items: Input<'_, i64>,
        end: Option<u32>,
    ) -> PyResult<Self> {
        let width = sids.shape()[1];
        let (sids, items) = (sids.as_slice()?, items.as_slice()?);
        let changes = self.read_indexed(py, |trie, slot| {
            let sids = parse(sids, width, items.len(), end)?;
            Changes::add(&trie, sids.into_iter().zip(items.iter().copied()), slot)
        })??;
        Ok(self.changed(changes))
    }

    fn remove(&self, py: Python<'_>, items: Input<'_, i64>) -> PyResult<Self> {
        let items = items.as_slice()?;
        let changes = self.read_indexed(py, |trie, slot| Changes::remove(&trie, items, slot))??;
        Ok(self.changed(changes))
    }

    #[getter]
    fn changed_nodes(&self) -> usize {
        self.changes
            .as_ref()
            .map_or(0, |changes| changes.num_nodes())
    }

    fn filter(
        &self,
        py: Python<'_>,
        allow: Option<(Input<'_, i64>, Input<'_, i64>)>,
        deny: Option<(Input<'_, i64>, Input<'_, i64>)>,
    ) -> PyResult<PyFilter> {
        let (allow, deny) = (lists(allow.as_ref())?, lists(deny.as_ref())?);
        let filter = self.read_indexed(py, |trie, base_slot| {
            let slot = |item| match trie.changes {
                Some(changes) => changes.slot(item, base_slot(item)),
                None => base_slot(item),
            };
            Filter::new(&trie, allow, deny, slot)
        })??;
        Ok(PyFilter(filter))
    }

    #[getter]
    fn num_nodes(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |trie| trie.num_nodes())
    }

    #[getter]
    fn num_items(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |trie| trie.num_items())
    }

    #[getter]
    fn num_sids(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |trie| trie.num_sids())
    }

    #[getter]
    fn depth(&self, py: Python<'_>) -> PyResult<usize> {
        self.read(py, |trie| trie.depth())
    }

    #[getter]
    fn token_span(&self, py: Python<'_>) -> PyResult<(u32, u32)> {
        self.read(py, |trie| trie.token_span())
    }

    #[getter]
    fn prefix_free(&self, py: Python<'_>) -> PyResult<bool> {
        self.read(py, |trie| trie.num_prefixes() == 0)
    }

    fn walk<'py>(
        &self,
        py: Python<'py>,
        prefixes: PyReadonlyArray2<'py, i64>,
    ) -> PyResult<Column<'py, i64>> {
        let (num_rows, width) = (prefixes.shape()[0], prefixes.shape()[1]);
        let prefixes = prefixes.as_slice()?;
        let nodes = self.read(py, |trie| trie.walk(prefixes, width, num_rows))??;
        Ok(PyArray1::from_vec(py, nodes))
    }

    fn allowed<'py>(
        &self,
        py: Python<'py>,
        nodes: PyReadonlyArray2<'py, i64>,
        filter: Option<&PyFilter>,
    ) -> PyResult<Table<'py, i64>> {
        let width = nodes.shape()[1];
        let nodes = nodes.as_slice()?;
        let (table, columns) = self.read(py, |trie| match filter {
            Some(filter) => trie.allowed_by(nodes, width, &filter.0),
            None => trie.allowed(nodes),
        })??;
        PyArray1::from_vec(py, table).reshape([nodes.len(), columns])
    }

    fn items_at<'py>(&self, py: Python<'py>, node: u32) -> PyResult<Column<'py, i64>> {
        let items = self.read(py, |trie| trie.items_at(node))?;
        Ok(PyArray1::from_vec(py, items))
    }

    fn lowest_items<'py>(
        &self,
        py: Python<'py>,
        nodes: PyReadonlyArray2<'py, i64>,
        filter: Option<&PyFilter>,
    ) -> PyResult<Table<'py, i64>> {
        let shape = [nodes.shape()[0], nodes.shape()[1]];
        let nodes = nodes.as_slice()?;
        let items = self.read(py, |trie| {
            trie.lowest_items(nodes, shape[1], filter.map(|filter| &filter.0))
        })??;
        PyArray1::from_vec(py, items).reshape(shape)
    }

    fn expand<'py>(
        &self,
        py: Python<'py>,
        nodes: PyReadonlyArray2<'py, i64>,
        num_items: usize,
        filter: Option<&PyFilter>,
    ) -> PyResult<Table<'py, i64>> {
        let shape = [nodes.shape()[0], num_items];
        let width = nodes.shape()[1];
        let nodes = nodes.as_slice()?;
        let items = self.read(py, |trie| {
            trie.expand(nodes, width, num_items, filter.map(|filter| &filter.0))
        })??;
        PyArray1::from_vec(py, items).reshape(shape)
    }

    fn sids<'py>(&self, py: Python<'py>) -> PyResult<(Table<'py, i64>, Column<'py, i64>)> {
        let (sids, depth) = self.read(py, |trie| (trie.sids(), trie.depth()))?;
        let (table, items) = sids?;
        let shape = [items.len(), depth];
        Ok((
            PyArray1::from_vec(py, table).reshape(shape)?,
            PyArray1::from_vec(py, items),
        ))
    }
}

/// See `ugr_fast.Filter`.
#[pyclass(name = "Filter", module = "ugr_fast._core", frozen)]
pub struct PyFilter(pub(super) Filter);

#[pymethods]
impl PyFilter {
    #[getter]
    fn num_rows(&self) -> usize {
        self.0.num_rows()
    }
}

fn lists<'a>(given: Option<&'a (Input<'_, i64>, Input<'_, i64>)>) -> PyResult<Option<Lists<'a>>> {
    let Some((items, ends)) = given else {
        return Ok(None);
    };
    let (items, ends) = (items.as_slice()?, ends.as_slice()?);
    Ok(Some(Lists { items, ends }))
}
