//! Relays between the program and the broker: one that stalls, and one that speaks TLS.
//!
//! Owns the threads that copy bytes; they end with their connections. It must not look at what it
//! copies.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};

/// Relays connections to the broker at `target`; once a client has sent `stall_after` bytes on
/// one, nothing of that comes through for `stall`. Returns the relay's address.
pub fn stalling(target: &str, stall_after: usize, stall: Duration) -> SocketAddr {
    listen(target, move |client, server| {
        let to = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || copy(server, client, usize::MAX, stall));
        copy(to.0, to.1, stall_after, stall);
    })
}

/// Listens on a free port; each connection has a thread, and a connection to the broker.
fn listen(
    target: &str,
    relay: impl Fn(TcpStream, TcpStream) + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (target, relay) = (target.to_owned(), Arc::new(relay));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&target).expect("the broker listens");
            let relay = Arc::clone(&relay);
            thread::spawn(move || relay(client, server));
        }
    });
    address
}

fn copy(mut from: TcpStream, mut to: TcpStream, stall_after: usize, stall: Duration) {
    let (mut buffer, mut passed, mut has_stalled) = ([0; 4096], 0, false);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        passed += count;
        if passed > stall_after && !has_stalled {
            has_stalled = true;
            thread::sleep(stall);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A relay that speaks TLS with clients and plain AMQP with the broker.
pub struct Tls {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate that its own is signed by, as PEM.
    pub authority: tempfile::NamedTempFile,
}

impl Tls {
    /// To the broker at `target`, with a certificate that nobody else trusts.
    pub fn new(target: &str) -> Tls {
        let names = vec!["127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key is that of the certificate");
        let config = Arc::new(config);
        let address = listen(target, move |client, server| {
            let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
            // An error is the end of one of the two, which the other end must hear of.
            let _ = relay(session, &client, &server);
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        });
        let mut authority = tempfile::NamedTempFile::new().expect("a temporary file");
        authority.write_all(made.cert.pem().as_bytes()).expect("it can be written");
        Tls { address, authority }
    }
}

fn relay(
    mut session: ServerConnection,
    mut client: &TcpStream,
    mut server: &TcpStream,
) -> std::io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let mut both = [PollFd::new(client, PollFlags::IN), PollFd::new(server, PollFlags::IN)];
        poll(&mut both, None)?;
        let is_readable = both.map(|socket| !socket.revents().is_empty());
        if is_readable[0] {
            if session.read_tls(&mut client)? == 0 {
                return Ok(());
            }
            let processed = session.process_new_packets();
            // The alert that tells the client what is wrong.
            while session.wants_write() {
                session.write_tls(&mut client)?;
            }
            processed.map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))?;
            loop {
                match session.reader().read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => server.write_all(&buffer[..count])?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        if is_readable[1] {
            let count = server.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            session.writer().write_all(&buffer[..count])?;
        }
        while session.wants_write() {
            session.write_tls(&mut client)?;
        }
    }
}
