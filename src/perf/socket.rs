//! A client's socket, plain or with TLS, which several threads may hold.
//!
//! Owns the difference between the two, and where the broker is. What the bytes mean is others'
//! business.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use amq_protocol::uri::{AMQPScheme, AMQPUri};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConfig;

use super::link::{ANSWER_TIMEOUT, POLL, PerfError};
use super::tls::{self, Tls, Trust};

/// How long the broker may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A broker's address and how to reach it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Host, port, user and virtual host.
    pub(crate) uri: AMQPUri,
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    /// The broker of a URI, with TLS if it says so; the error is for the user.
    pub(crate) fn new(uri: AMQPUri, trust: Trust<'_>) -> Result<Self, String> {
        let has_tls = uri.scheme == AMQPScheme::AMQPS;
        let tls = has_tls.then(|| tls::config(trust)).transpose()?;
        Ok(Self { uri, tls })
    }

    /// Connects, without AMQP as yet.
    pub(crate) fn connect(&self) -> Result<Socket, PerfError> {
        let place = format!("{}:{}", self.uri.authority.host, self.uri.authority.port);
        self.connect_to(&place).map_err(|error| PerfError::Connect(place, error))
    }

    fn connect_to(&self, place: &str) -> io::Result<Socket> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in place.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => return self.secure(stream),
                Err(error) => last = error,
            }
        }
        if last.kind() == io::ErrorKind::AddrNotAvailable {
            let text = "no local port is free: those of closed connections stay taken for a minute";
            last = io::Error::new(last.kind(), text);
        }
        Err(last)
    }

    fn secure(&self, stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let socket = match &self.tls {
            None => Socket::Plain(Arc::new(stream)),
            Some(config) => {
                let host = &self.uri.authority.host;
                Socket::Tls(Arc::new(Tls::connect(stream, Arc::clone(config), host)?))
            }
        };
        socket.stream().set_read_timeout(Some(POLL))?;
        Ok(socket)
    }
}

/// One connection's socket; its clones are the same socket.
#[derive(Clone)]
pub(crate) enum Socket {
    /// As it is.
    Plain(Arc<TcpStream>),
    /// Encrypted.
    Tls(Arc<Tls>),
}

impl Socket {
    fn stream(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => tls.stream(),
        }
    }

    /// Reads what there is, at least a byte but at the end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => (&**stream).read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Takes as many bytes as there is room for; all that was taken is on its way once
    /// [`Socket::flush`] has succeeded.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => (&**stream).write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// Sends what was taken.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Sends all bytes; an error within the write timeout leaves open how many.
    pub(crate) fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.flush()
    }

    /// Waits until there is something to read, at most for `timeout`, which is kept more exactly
    /// than the socket's own: the kernel counts that in ticks. Returns whether there is.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        if let Self::Tls(tls) = self
            && tls.has_more()
        {
            return true;
        }
        let timeout = Timespec::try_from(timeout).ok();
        // What is wrong with the socket, the next read will tell.
        poll(&mut [PollFd::new(self.stream(), PollFlags::IN)], timeout.as_ref()) != Ok(0)
    }

    /// Sets how long a write may wait.
    pub(crate) fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream().set_write_timeout(Some(timeout))
    }

    /// Ends it for all its holders.
    pub(crate) fn shut_down(&self) {
        // What is broken already needs no end.
        let _ = self.stream().shutdown(Shutdown::Both);
    }
}
