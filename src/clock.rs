//! Time as a number that is passed in.
//!
//! Owns the [`Millis`] newtype. Only `net` reads a clock; everything else takes the time as an
//! argument, so that it can be tested without waiting.

/// Milliseconds since 1970, counted monotonically from the start of the process: later changes of
/// the system's clock do not show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// How long ago `earlier` was; zero when it is in the future.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
