//! Random numbers by counting: each is a hash of a seed and of where it is used, so that neither the order of
//! work nor the number of threads can change it.
//!
//! Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011), the idea; the mixing function of
//! `SplitMix64` (Steele, Lea and Flood, 2014).

/// A stream of random numbers with an address.
#[derive(Debug, Clone, Copy)]
pub struct Stream(u64);

impl Stream {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The stream at `place` below this one.
    #[must_use]
    pub fn at(self, place: u64) -> Self {
        Self(mix(self.0 ^ mix(place.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// A standard Gumbel variable, the `i`-th of this stream.
    #[must_use]
    pub fn gumbel(self, i: u64) -> f64 {
        -(-self.unit(i).ln()).ln()
    }

    /// Uniform in the open interval (0, 1).
    fn unit(self, i: u64) -> f64 {
        ((self.at(i).0 >> 12) as f64 + 0.5) / (1_u64 << 52) as f64 // all of it exact
    }
}

/// A bijection that looks random.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
