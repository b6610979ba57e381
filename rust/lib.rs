//! Kernels of `ugr-fast`: slices in, `Vec`s out; no Python, no I/O, no unsafe code.
//!
//! | module | what it does |
//! |---|---|
//! | [`trie`] | the catalogue of semantic IDs as flat arrays |
//! | [`filter`] | items that a request may not be answered with |
//! | [`beam`] | one step of a constrained search: exact, stochastic or sampled |
//! | [`logsumexp`] | the normaliser of scores, in one pass |
//! | [`random`] | noise that is a function of where it is used |
//! | [`packing`] | a prompt and its candidates as one depth-first row |
//! | [`advantage`] | group statistics and group-relative advantages |
//! | [`reward`] | UGR's rewards and weights, alone or in one call with the advantages |
//! | [`calibration`] | calibration bins, equal width and equal mass |
//! | [`ranks`] | AUROC, average precision and risk-coverage from one sort |
//! | [`isotonic`] | the map from confidence to accuracy that never falls |
//! | [`simd`] | the vector instructions they use here |
//! | [`float`] | `f32` and `f64`, for the kernels that take both |
//! | [`ints`] | whole numbers in the narrower of two types |
//! | [`error`] | what they refuse |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod advantage;
pub mod beam;
pub mod calibration;
pub mod error;
pub mod filter;
pub mod float;
pub mod ints;
pub mod isotonic;
pub mod logsumexp;
pub mod packing;
mod parallel;
#[cfg(feature = "python")]
mod python;
pub mod random;
pub mod ranks;
pub mod reward;
pub mod simd;
pub mod trie;

pub use error::{Error, Result};
