//! TLS over the socket of a connection.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::error::{Error, Result};

/// Where systems keep the certificates that they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A connection under TLS.
pub struct TlsStream {
    session: ClientConnection,
    socket: TcpStream,
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::invalid(format!("redis: no certificate can be read from {}: {error}; name a PEM file", path.display()))
    };
    let found: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?.collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(&"there is none in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(&error)),
    }
}

/// The settings of all connections of a backend.
pub type TlsSettings = Arc<ClientConfig>;

/// The settings of all connections: which servers are trusted (`ca`, or the system's roots without it), and the certificate and the
/// key that we show if the server asks for them.
pub fn tls_settings(ca: Option<&Path>, own: Option<(&Path, &Path)>) -> Result<TlsSettings> {
    let system = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let system = system.or_else(|| SYSTEM_ROOTS.iter().map(Into::into).find(|path: &std::path::PathBuf| path.exists()));
    let file = ca.map(Path::to_path_buf).or(system);
    let file =
        file.ok_or_else(|| Error::invalid("redis: this system has no file of trusted certificates; write ca="))?;
    let mut roots = RootCertStore::empty();
    // A system's file may have some that rustls does not take.
    if roots.add_parsable_certificates(certificates(&file)?).0 == 0 {
        return Err(Error::invalid(format!("redis: no certificate of {} can be trusted", file.display())));
    }
    let wrong = |error: rustls::Error| Error::invalid(format!("redis: TLS cannot be set up: {error}"));
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                Error::invalid(format!("redis: no key can be read from {}: {error}; name a PEM file", key.display()))
            })?;
            builder.with_client_auth_cert(certificates(certificate)?, private).map_err(wrong)?
        }
    };
    Ok(Arc::new(config))
}

impl TlsStream {
    /// Begins TLS on a socket that does not block; the first reads and writes shake hands.
    pub fn new(socket: TcpStream, settings: &TlsSettings, host: &str) -> io::Result<TlsStream> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(TlsStream { session: ClientConnection::new(settings.clone(), name).map_err(io::Error::other)?, socket })
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// Sends what is encrypted, as far as the socket takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn read(&mut self, places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut count = 0;
        for place in places {
            let mut at = 0;
            while at < place.len() {
                match self.session.reader().read(&mut place[at..]) {
                    Ok(0) if count == 0 => return Ok(0),
                    Ok(0) => return Ok(count),
                    Ok(more) => (at, count) = (at + more, count + more),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if !self.receive(count > 0)? {
                            return if count > 0 { Ok(count) } else { Err(io::ErrorKind::WouldBlock.into()) };
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(count)
    }

    /// Receives and decrypts a little more. False if nothing is there. `some` of what was asked for is there already: an end of the
    /// connection is noticed by the next read.
    fn receive(&mut self, some: bool) -> io::Result<bool> {
        match self.session.read_tls(&mut self.socket) {
            Ok(0) if some => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        let processed = self.session.process_new_packets().map(drop);
        // An alert, which tells the peer why, or the next step of the handshake.
        self.flush()?;
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(true)
    }

    pub fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush()?;
        let count = self.session.writer().write_vectored(pieces)?;
        self.flush()?;
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }
}
