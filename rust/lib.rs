//! Kernels of `ugr-fast`: slices in, `Vec`s out; no Python, no I/O, no unsafe code.
//!
//! | module | what it does |
//! |---|---|
//! | [`trie`] | the catalogue of semantic IDs as flat arrays |
//! | [`beam`] | one exact step of constrained beam search |
//! | [`packing`] | a prompt and its candidates as one depth-first row |
//! | [`advantage`] | group statistics and group-relative advantages |
//! | [`calibration`] | calibration bins, equal width and equal mass |
//! | [`float`] | `f32` and `f64`, for the kernels that take both |
//! | [`error`] | what they refuse |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod advantage;
pub mod beam;
pub mod calibration;
pub mod error;
pub mod float;
pub mod packing;
#[cfg(feature = "python")]
mod python;
pub mod trie;

pub use error::{Error, Result};
