//! Whole numbers in the narrower of two types: half the bytes wherever all of them fit.

use std::ops::Range;

/// Borrowed numbers of type `N` or, if one of them does not fit, `W`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ints<'a, N, W> {
    /// All fit into `N`.
    Narrow(&'a [N]),
    /// Some may not.
    Wide(&'a [W]),
}

/// Numbers of type `N` or, if one of them does not fit, `W`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntVec<N, W> {
    /// All fit into `N`.
    Narrow(Vec<N>),
    /// Some do not.
    Wide(Vec<W>),
}

impl<N, W> IntVec<N, W> {
    /// Borrows the numbers.
    #[must_use]
    pub fn view(&self) -> Ints<'_, N, W> {
        match self {
            Self::Narrow(values) => Ints::Narrow(values),
            Self::Wide(values) => Ints::Wide(values),
        }
    }
}

impl<N: TryFrom<W>, W: Copy> From<Vec<W>> for IntVec<N, W> {
    fn from(values: Vec<W>) -> Self {
        let narrow = values.iter().map(|&value| N::try_from(value).ok());
        match narrow.collect() {
            Some(narrow) => Self::Narrow(narrow),
            None => Self::Wide(values),
        }
    }
}

impl<N: Copy + Into<W>, W: Copy> Ints<'_, N, W> {
    /// How many numbers there are.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Self::Narrow(values) => values.len(),
            Self::Wide(values) => values.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The number at `index`, if there is one.
    #[must_use]
    pub fn get(self, index: usize) -> Option<W> {
        match self {
            Self::Narrow(values) => values.get(index).map(|&value| value.into()),
            Self::Wide(values) => values.get(index).copied(),
        }
    }

    /// The numbers at `range`; none if it lies outside.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::Narrow(values) => Self::Narrow(values.get(range).unwrap_or_default()),
            Self::Wide(values) => Self::Wide(values.get(range).unwrap_or_default()),
        }
    }

    /// All numbers in order.
    pub fn iter(self) -> impl Iterator<Item = W> {
        (0..self.len()).filter_map(move |index| self.get(index))
    }

    /// The index of the first number for which `before` is false, if all before it make it true.
    #[must_use]
    pub fn partition_point(self, before: impl Fn(W) -> bool) -> usize {
        match self {
            Self::Narrow(values) => values.partition_point(|&value| before(value.into())),
            Self::Wide(values) => values.partition_point(|&value| before(value)),
        }
    }
}
