//! TLS on a client's socket, whose reader and writer are different threads.
//!
//! Owns the session and what is encrypted but not yet written. Neither lock is held while a read
//! of the socket waits, and the session's not while a write does, so that each thread waits only
//! for its own direction.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::link::is_timeout;

/// Bytes per read of the socket, several records.
const RAW_BYTES: usize = 64 << 10;

/// What makes a broker's certificate good.
#[derive(Clone, Debug)]
pub(crate) enum Trust<'a> {
    /// It is signed by an authority that this machine trusts.
    System,
    /// It is signed by an authority in this file of PEM certificates.
    Authorities(&'a Path),
    /// It exists.
    Anything,
}

/// How to set sessions up; the error is for the user.
pub(crate) fn config(trust: Trust<'_>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let mut config = match trust {
        Trust::Anything => {
            let verifier = Arc::new(AnyCertificate(algorithms));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        Trust::System => builder.with_root_certificates(system_roots()?).with_no_client_auth(),
        Trust::Authorities(file) => {
            builder.with_root_certificates(roots_of(file)?).with_no_client_auth()
        }
    };
    // Each connection pays for its handshake, as that of a client that has just started.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this machine trusts no authority: give one with --tls-ca".into());
    }
    Ok(roots)
}

fn roots_of(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let failed = |error: &dyn std::fmt::Display| format!("--tls-ca {}: {error}", file.display());
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))? {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() { Err(failed(&"no certificate in it")) } else { Ok(roots) }
}

/// One session.
pub(crate) struct Tls {
    stream: TcpStream,
    session: Mutex<ClientConnection>,
    incoming: Mutex<Incoming>,
    /// Encrypted bytes that the socket did not take yet. Whoever holds it may write.
    outgoing: Mutex<Vec<u8>>,
}

/// What was read from the socket, and is not decrypted yet.
struct Incoming {
    raw: Vec<u8>,
    at: usize,
    end: usize,
    /// The last read filled its buffer: there may be more that needs no socket.
    has_more: bool,
}

impl Tls {
    /// Makes the handshake with a broker of this name; the socket's timeouts are its limits.
    pub(crate) fn connect(
        stream: TcpStream,
        config: Arc<ClientConfig>,
        host: &str,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let invalid = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let name = name.map_err(|error| invalid(Error::General(error.to_string())))?;
        let mut session = ClientConnection::new(config, name).map_err(invalid)?;
        while session.is_handshaking() {
            session.complete_io(&mut &stream).map_err(explained)?;
        }
        let incoming = Incoming { raw: vec![0; RAW_BYTES], at: 0, end: 0, has_more: true };
        Ok(Self {
            stream,
            session: Mutex::new(session),
            incoming: Mutex::new(incoming),
            outgoing: Mutex::new(Vec::new()),
        })
    }

    /// The socket below.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether a read may succeed without the socket.
    pub(crate) fn has_more(&self) -> bool {
        lock(&self.incoming).has_more
    }

    /// Reads what has come, decrypted; 0 bytes at the end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            let (filled, is_over) = self.decrypt(&mut incoming, buffer)?;
            incoming.has_more = filled == buffer.len();
            if filled > 0 || is_over {
                return Ok(filled);
            }
            (incoming.at, incoming.end) = (0, 0);
            match (&self.stream).read(&mut incoming.raw)? {
                0 => return Ok(0),
                count => incoming.end = count,
            }
        }
    }

    /// Decrypts what was read, as much as there is room for; returns how much that was, and
    /// whether the broker has said that this is all.
    fn decrypt(&self, incoming: &mut Incoming, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let invalid = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut session = lock(&self.session);
        let mut filled = 0;
        loop {
            // The session takes more in only when this has been taken out.
            while filled < buffer.len() {
                match session.reader().read(&mut buffer[filled..]) {
                    Ok(0) => return Ok((filled, true)),
                    Ok(count) => filled += count,
                    Err(error) if is_timeout(&error) => break,
                    Err(error) => return Err(error),
                }
            }
            if filled == buffer.len() || incoming.at == incoming.end {
                break;
            }
            let mut rest = &incoming.raw[incoming.at..incoming.end];
            incoming.at += session.read_tls(&mut rest)?;
            session.process_new_packets().map_err(invalid)?;
        }
        if session.wants_write() {
            self.answer(session)?;
        }
        Ok((filled, false))
    }

    /// Writes what the session itself has to say, such as to a change of keys. Where the writer is
    /// busy, it will.
    fn answer(&self, mut session: MutexGuard<'_, ClientConnection>) -> io::Result<()> {
        let mut outgoing = match self.outgoing.try_lock() {
            Ok(outgoing) => outgoing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        session.write_tls(&mut *outgoing)?;
        drop(session);
        match self.write_out(&mut outgoing) {
            Err(error) if is_timeout(&error) => Ok(()),
            done => done,
        }
    }

    /// Encrypts bytes and begins to write them; returns how many. They are not on their way before
    /// [`Tls::flush`] has succeeded, or another write.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        self.write_out(&mut outgoing)?;
        let mut session = lock(&self.session);
        let count = session.writer().write(bytes)?;
        while session.wants_write() {
            session.write_tls(&mut *outgoing)?;
        }
        drop(session);
        match self.write_out(&mut outgoing) {
            Err(error) if !is_timeout(&error) => Err(error),
            _ => Ok(count),
        }
    }

    /// Writes what is encrypted.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.write_out(&mut lock(&self.outgoing))
    }

    fn write_out(&self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        let mut written = 0;
        let done = loop {
            if written == outgoing.len() {
                break Ok(());
            }
            match (&self.stream).write(&outgoing[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) => break Err(error),
            }
        };
        outgoing.drain(..written);
        done
    }
}

/// Names what the user can do about a failed handshake.
fn explained(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let hint = match inner {
        Some(Error::InvalidMessage(_)) => "does this port speak TLS?",
        Some(Error::InvalidCertificate(_)) => "see --tls-ca and --tls-insecure",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error} ({hint})"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes every certificate, but proves that the broker has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
