//! The two float types that cross the boundary; arithmetic is in `f64`.

/// `f32` or `f64`.
pub trait Float: Copy + Into<f64> {
    /// The nearest value of this type.
    fn nearest(value: f64) -> Self;
}

impl Float for f32 {
    #[allow(clippy::cast_possible_truncation)]
    fn nearest(value: f64) -> Self {
        value as Self
    }
}

impl Float for f64 {
    fn nearest(value: f64) -> Self {
        value
    }
}
