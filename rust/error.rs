//! The one error type of the kernels.
//!
//! Every message names the argument, the rule, the value seen and, where it is not obvious, the remedy.

use std::fmt;

/// What a kernel refuses. The Python layer turns each variant into a built-in exception.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A slice has the wrong length.
    Length {
        /// The argument.
        name: &'static str,
        /// The length that the other arguments imply.
        expected: usize,
        /// The length seen.
        got: usize,
    },
    /// A value breaks the rule of its argument.
    Value {
        /// The argument.
        name: &'static str,
        /// The flat index of the first offender.
        index: usize,
        /// The rule, and the remedy where there is one.
        rule: &'static str,
        /// The value seen, printed.
        got: String,
    },
    /// More than a type can count.
    TooLarge {
        /// The argument.
        name: &'static str,
        /// The largest value that works.
        limit: usize,
        /// The value seen.
        got: usize,
    },
    /// Scores of a beam step that do not reach all allowed tokens.
    Columns {
        /// The largest allowed token + 1, or the number of candidates.
        needed: usize,
        /// The columns seen.
        got: usize,
    },
    /// A result that does not fit in memory.
    Memory {
        /// Its size, if a `usize` holds it.
        bytes: Option<usize>,
    },
}

/// The result of a kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn value(
        name: &'static str,
        index: usize,
        rule: &'static str,
        got: impl fmt::Display,
    ) -> Self {
        let got = got.to_string();
        Self::Value {
            name,
            index,
            rule,
            got,
        }
    }

    /// Refuses a `got` above `limit`.
    pub(crate) fn check_limit(name: &'static str, limit: usize, got: usize) -> Result<()> {
        let too_large = Self::TooLarge { name, limit, got };
        if got > limit { Err(too_large) } else { Ok(()) }
    }

    /// Refuses a length other than `expected`.
    pub(crate) fn check_length(name: &'static str, expected: usize, got: usize) -> Result<()> {
        let wrong = Self::Length {
            name,
            expected,
            got,
        };
        if got == expected { Ok(()) } else { Err(wrong) }
    }

    /// Refuses the first value that is not valid, by its index from `start` on.
    pub(crate) fn check_all<T: Copy + Into<f64>>(
        name: &'static str,
        values: &[T],
        start: usize,
        rule: &'static str,
        is_valid: impl Fn(T) -> bool,
    ) -> Result<()> {
        if values
            .iter()
            .fold(true, |all, &value| all & is_valid(value))
        {
            return Ok(()); // without an early exit this is SIMD
        }
        let index = values
            .iter()
            .position(|&value| !is_valid(value))
            .unwrap_or(0);
        Err(Self::value(name, start + index, rule, values[index].into()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length {
                name,
                expected,
                got,
            } => {
                write!(f, "`{name}` must have length {expected}, got {got}")
            }
            Self::Value {
                name,
                index,
                rule,
                got,
            } => {
                write!(f, "`{name}` {rule}; got {got} at index {index}")
            }
            Self::TooLarge { name, limit, got } => {
                write!(f, "`{name}` must be at most {limit}, got {got}")
            }
            Self::Columns { needed, got } => {
                write!(
                    f,
                    "`scores` must have at least {needed} columns for the allowed tokens, got {got}"
                )
            }
            Self::Memory { bytes: Some(bytes) } => {
                write!(f, "no memory for a result of {bytes} bytes")
            }
            Self::Memory { bytes: None } => {
                write!(f, "no memory for the result: its size overflows")
            }
        }
    }
}

impl std::error::Error for Error {}
