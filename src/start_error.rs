//! Why the broker does not start, in words that say what to do about it.
//!
//! Owns the texts and the exit codes of a failed start. It must not print or exit: that is
//! `main`'s.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::ConfigError;
use crate::data_dir::DataDirError;

/// Why the broker does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The filter in the environment is wrong.
    #[error(
        "LEVERET_LOG={filter}: {reason}. It must be off, error, warn, info or debug, or \
         levels by module such as info,leveret::net=debug"
    )]
    LogFilter {
        /// The variable's value.
        filter: String,
        /// Why it does not parse.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen for AMQP on {address}: {source}. {hint}", hint = bind_hint(.source))]
    Bind {
        /// The address as it was asked for.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// Definitions cannot be imported.
    #[error(
        "cannot import definitions from {path}: {reason}. Nothing of the file was taken: mend it, \
         or start without it",
        path = .path.display()
    )]
    Definitions {
        /// The file as it was named.
        path: PathBuf,
        /// What is wrong with it, and with which object.
        reason: String,
    },
    /// A policy of the configuration file is refused.
    #[error("the policy '{name}' of the configuration file is refused: {reason}")]
    Policy {
        /// The policy's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store cannot be opened, read or written.
    #[error(
        "{reason}. The log may say more; without the data directory's store, start on another \
         directory with --data-dir, or restore a backup"
    )]
    Store {
        /// What is wrong with it.
        reason: String,
    },
    /// The ready file cannot be written.
    #[error(
        "cannot write the ready file {path}: {source}. Its directory must exist and be writable",
        path = .path.display()
    )]
    ReadyFile {
        /// The file as it was named.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The operating system refuses what every program needs: threads, timers, signals.
    #[error(
        "the operating system refuses to {action}: {source}. Check the limits of this user's \
         threads and open files (ulimit -a)"
    )]
    System {
        /// What was tried.
        action: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
}

impl StartError {
    /// The process's exit code: 2 for what the user wrote, 1 for what the machine refuses.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::LogFilter { .. } | Self::Policy { .. } => 2,
            Self::Bind { .. }
            | Self::Definitions { .. }
            | Self::DataDir(_)
            | Self::ReadyFile { .. }
            | Self::Store { .. }
            | Self::System { .. } => 1,
        }
    }
}

fn bind_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "Another program, perhaps another broker, has the port: stop it, or choose another \
             with --amqp-listen ADDR:PORT (port 0 picks a free one)"
        }
        io::ErrorKind::PermissionDenied => {
            "Ports below 1024 need privileges: choose another with --amqp-listen ADDR:PORT"
        }
        io::ErrorKind::AddrNotAvailable => {
            "This machine has no such address: choose one of its own with --amqp-listen ADDR:PORT"
        }
        _ => "Choose another address with --amqp-listen ADDR:PORT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_way_out() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound");
        let source = std::net::TcpListener::bind(address).expect_err("taken");
        let error = StartError::Bind { address, source };
        let text = error.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(text.contains("--amqp-listen ADDR:PORT"), "{text}");
        assert!(text.contains("Another program"), "{text}");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn what_the_user_wrote_exits_with_2() {
        let config = crate::config::Config::parse("limits.frame_max = 1").expect_err("too small");
        assert_eq!(StartError::from(config).exit_code(), 2);
    }
}
