//! Listening, and the life of the server.
//!
//! Owns the listening sockets, accepting (with a pause when the system has no more descriptors),
//! and the graceful stop. It must not know what happens on a connection.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};

use super::control::Control;
use super::disk_space::DiskSpace;
use super::login::LoginLine;
use super::registry::Registry;
use super::{housekeeping, loader, memory_limit, notice, socket, timer, worker};
use crate::StartError;
use crate::broker::{Broker, Drive};
use crate::config::Config;
use crate::connection::Connection;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// The pause after accepting failed, as when all descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long clients have to answer connection.close when the broker stops.
const CLOSE_GRACE: Duration = Duration::from_secs(3);

/// How long connections have to end after that.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// The broker with its listening sockets, ready to serve.
#[derive(Debug)]
pub struct Server {
    broker: Arc<Broker>,
    listeners: Vec<TcpListener>,
    registry: Arc<Registry>,
    control: Option<Control>,
    disk: Option<DiskSpace>,
}

impl Server {
    /// A server for a broker with its defaults and nothing else; see [`Server::bind_filled`].
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn bind(config: Arc<Config>) -> Result<Self, StartError> {
        Self::bind_filled(config, None, |broker, _| {
            broker.add_defaults();
            Ok(())
        })
        .await
    }

    /// Makes a broker, with a store in this directory if it is given, lets `fill` put in what it
    /// begins with, and binds all addresses of the configuration. Clients can connect from then on;
    /// they are served by [`Server::run`].
    ///
    /// # Errors
    /// When the store cannot be opened, `fill` fails, or an address cannot be listened on.
    pub async fn bind_filled(
        config: Arc<Config>,
        store_dir: Option<&Path>,
        fill: impl FnOnce(&Broker, &mut Drive) -> Result<(), StartError>,
    ) -> Result<Self, StartError> {
        let limit_bytes = memory_limit::limit_bytes(config.limits.memory_high_watermark);
        tracing::info!(limit_bytes, "memory limit: above it publishers are blocked");
        let broker = Broker::open(config.clone(), limit_bytes, store_dir);
        let broker = Arc::new(broker.map_err(|reason| StartError::Store { reason })?);
        worker::with(|lent| fill(&broker, &mut lent.worker.drive))?;
        let mut listeners = Vec::new();
        for address in &config.listeners.amqp {
            listeners.push(listen(*address)?);
        }
        Ok(Self { broker, listeners, registry: Arc::default(), control: None, disk: None })
    }

    /// Serves this machine's operators, too.
    pub fn with_control(self, control: Control) -> Self {
        Self { control: Some(control), ..self }
    }

    /// Blocks publishers while the file system of `data_dir` has less room than the limit, or
    /// none that the store could use.
    pub fn watching_disk(self, data_dir: &Path) -> Self {
        let limit_bytes = self.broker.config().store.disk_free_limit_bytes;
        let disk = DiskSpace::new(data_dir, limit_bytes, &self.broker);
        Self { disk: Some(disk), ..self }
    }

    /// The shared state, for those who bring users, vhosts and what is in them.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// The addresses that are listened on, with the ports that the system has picked.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `shutdown` is ready, then asks the clients to go and returns when they have,
    /// or after a few seconds.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { broker, listeners, registry, control, disk } = self;
        let mut tasks = tokio::task::JoinSet::new();
        let logins = Arc::new(LoginLine::default());
        for listener in listeners {
            tasks.spawn(accept(listener, broker.clone(), registry.clone(), logins.clone()));
        }
        tasks.spawn(housekeeping::run(registry.clone(), broker.clone()));
        tasks.spawn(notice::run(broker.clone(), registry.clone()));
        if let Some(control) = control {
            tasks.spawn(control.run(broker.clone()));
        }
        if let Some(disk) = disk {
            tasks.spawn(disk.run(broker.clone()));
        }
        tasks.spawn(timer::run(broker.clone()));
        let loader = loader::start(&broker);
        shutdown.await;
        tasks.shutdown().await;
        let (connections, at_most_s) = (registry.count(), CLOSE_GRACE.as_secs());
        tracing::info!(connections, at_most_s, "stopping: waiting for clients to close");
        worker::with(|lent| {
            let wakes = lent.worker.drive.wakes();
            registry.for_each(|entry| Connection::request_close(&entry.outbox, wakes));
        });
        if tokio::time::timeout(CLOSE_GRACE, registry.until_empty()).await.is_err() {
            registry.for_each(|entry| {
                tracing::warn!(connection = &*entry.name, "closed without the client's answer");
                entry.outbox.abort();
                entry.stop.ask();
            });
            let _ = tokio::time::timeout(STOP_GRACE, registry.until_empty()).await;
        }
        broker.end_loads();
        drop(loader);
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = |address: SocketAddr| {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        // A restarted broker gets its port back at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let opened = open(address).or_else(|error| {
        // Where IPv6 is switched off, all addresses means all IPv4 addresses.
        if address.is_ipv6() && address.ip().is_unspecified() && !is_in_use(&error) {
            return open(SocketAddr::from(([0, 0, 0, 0], address.port())));
        }
        Err(error)
    });
    opened.map_err(|source| StartError::Bind { address, source })
}

fn is_in_use(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

async fn accept(
    listener: TcpListener,
    broker: Arc<Broker>,
    registry: Arc<Registry>,
    logins: Arc<LoginLine>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => socket::start(stream, peer, &broker, &registry, &logins),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
