//! What a running producer or consumer hears besides what it came for: blocking, closing.
//!
//! Owns the first error until its thread takes it. What methods mean is the link's business.

use super::board::Board;
use super::link::{Notice, PerfError};

/// One worker's ears.
pub(crate) struct Ears<'a> {
    board: &'a Board,
    name: &'a str,
    /// The first error.
    pub(crate) error: Option<PerfError>,
    /// Whether the broker has answered our `connection.close`.
    pub(crate) is_closed: bool,
}

impl<'a> Ears<'a> {
    /// The ears of the worker called `name`.
    pub(crate) fn new(board: &'a Board, name: &'a str) -> Self {
        Self { board, name, error: None, is_closed: false }
    }

    /// Hears a method.
    pub(crate) fn hear(&mut self, payload: &[u8]) {
        let notice = Notice::of(payload);
        self.is_closed |= matches!(notice, Notice::CloseOk);
        let error = self.board.notice(self.name, notice).err();
        self.error = self.error.take().or(error);
    }
}
