//! Leveret: a message broker that speaks AMQP 0-9-1 and behaves as RabbitMQ does.
//!
//! Bytes from a client's socket go through these layers, each of which knows only those before it:
//!
//! - [`codec`] turns bytes into frames and methods, and back;
//! - `queue` holds one queue's messages and decides who gets which, as a pure state machine;
//! - [`routing`] leads from an exchange and a routing key to queues;
//! - [`broker`] is the state that connections share, with all the locks;
//! - [`connection`] is the protocol of one client, without IO;
//! - [`net`] moves bytes between sockets and connections, and is all that waits.
//!
//! The library exists for the `leveret` program and its tests; it is not published. ARCHITECTURE.md
//! tells the rest.

pub(crate) mod atomic_file;
#[doc(hidden)]
pub mod bench_api;
pub mod broker;
pub mod clock;
pub mod codec;
pub mod config;
pub mod connection;
pub mod data_dir;
pub mod definitions_command;
pub mod error;
pub mod net;
pub mod perf;
pub mod provision;
pub(crate) mod queue;
pub mod ready_file;
pub mod routing;
pub mod start_error;
pub(crate) mod store;
pub mod store_command;

pub use start_error::StartError;
