//! The vector instructions of this processor that the kernels use; they are found out when first asked for.

use std::any::type_name;

use pulp::{Arch, Simd, WithSimd};

/// Name of the set: `v3` (AVX2 and FMA), `neon`, `scalar` where there is none that the kernels know.
#[must_use]
pub fn name() -> String {
    Arch::new().dispatch(Name).to_lowercase()
}

struct Name;

impl WithSimd for Name {
    type Output = &'static str;

    fn with_simd<S: Simd>(self, _: S) -> &'static str {
        let path = type_name::<S>(); // such as pulp::x86::v3::V3
        path.rsplit("::").next().unwrap_or(path)
    }
}
