//! What stands for TLS in a build without it: nothing can be opened.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::path::Path;

use crate::error::{Error, KVKEEP_ERR_UNSUPPORTED, Result};

/// There is none.
pub enum NoTls {}

pub type TlsSettings = NoTls;
pub type TlsStream = NoTls;

/// Fails: this build has no TLS.
pub fn tls_settings(_: Option<&Path>, _: Option<(&Path, &Path)>) -> Result<TlsSettings> {
    let message = "redis: this build has no TLS; build kvkeep with the feature tls, or write redis://";
    Err(Error::new(KVKEEP_ERR_UNSUPPORTED, message))
}

impl NoTls {
    pub fn new(_: TcpStream, settings: &TlsSettings, _: &str) -> io::Result<TlsStream> {
        match *settings {}
    }

    pub fn socket(&self) -> &TcpStream {
        match *self {}
    }

    pub fn wants_write(&self) -> bool {
        match *self {}
    }

    pub fn flush(&mut self) -> io::Result<()> {
        match *self {}
    }

    pub fn read(&mut self, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match *self {}
    }

    pub fn write(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        match *self {}
    }
}
