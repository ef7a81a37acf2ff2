//! The wire format of AMQP 0-9-1.
//!
//! Owns every byte that is read from or written to a client's socket after the protocol header.
//! The hot part (`frame`, `hot`, `encode`, `properties`, `table`) is ours: it borrows, does not
//! allocate and leaves message properties raw. The cold part (`method`) goes through
//! amq-protocol, which is also what the tests hold the hot part against.
//!
//! It must not know about channels' states, queues or sockets: it turns bytes into values and
//! back, and says which error a malformed frame is.

pub mod encode;
pub mod frame;
pub mod hot;
pub mod method;
pub mod properties;
pub mod table;
pub(crate) mod value;
