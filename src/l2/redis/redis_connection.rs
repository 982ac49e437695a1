//! One connection to a server: connecting, logging in, sending commands and reading replies.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::outbox::Outbox;
use super::redis_options::{RedisOptions, Secret, ServerAddress};
use super::resp::{ReplyHead, RespValue};
use super::server_error::shown;
use super::transport::Transport;
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION, KVKEEP_ERR_TIMEOUT, KVKEEP_ERR_UNSUPPORTED, Result};

/// Bytes received at a time, beside a value that goes elsewhere.
const INBOX_BYTES: usize = 64 << 10;
/// Most bytes of a reply that is not received elsewhere.
const REPLY_MAX: usize = 16 << 20;

const ENDED: &str = "the server closed the connection";

/// The kind of server that is expected to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerKind {
    /// One that has all keys.
    Single,
    /// As `Single`, and it takes writes.
    Master,
    /// One of a cluster.
    Member,
    /// A replica, of a master of a cluster if the options name one.
    Replica,
    Sentinel,
}

/// A connection that has logged in.
pub struct RedisConnection {
    transport: Transport,
    pub outbox: Outbox,
    inbox: Vec<u8>,
    /// The part of the inbox that is received and not read.
    start: usize,
    end: usize,
    /// The last receive took all that was there.
    drained: bool,
}

/// A connection broke while doing `what`.
fn broken(what: &str, server: &ServerAddress, error: &io::Error) -> Error {
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("{what} {server}: the server closed the connection"),
        io::ErrorKind::TimedOut => format!("{what} {server}: the server does not answer"),
        _ => format!("{what} {server}: {error}"),
    };
    Error::new(KVKEEP_ERR_IO, message)
}

impl RedisConnection {
    /// Connects to `server` and logs in. Blocks for at most about the connect timeout.
    pub fn open(options: &RedisOptions, server: &ServerAddress, kind: ServerKind) -> Result<RedisConnection> {
        let until = Instant::now() + options.connect_timeout;
        let transport = Transport::connect(server, options.tls.as_ref(), until).map_err(|error| {
            let error = broken("connecting to", server, &error);
            Error { message: format!("{}; is a Redis or Valkey server there, and reachable?", error.message), ..error }
        })?;
        let (inbox, outbox) = (vec![0; INBOX_BYTES], Outbox::default());
        let mut connection = RedisConnection { transport, outbox, inbox, start: 0, end: 0, drained: false };
        connection.log_in(options, server, kind, until).map_err(|error| {
            // Some servers repeat the arguments of a command that they do not know.
            let secret = options.password.as_ref().map_or("", |Secret(password)| password);
            let message = if secret.is_empty() { error.message } else { error.message.replace(secret, "…") };
            Error { message: format!("{message} ({server})"), ..error }
        })?;
        Ok(connection)
    }

    fn log_in(
        &mut self,
        options: &RedisOptions,
        server: &ServerAddress,
        kind: ServerKind,
        until: Instant,
    ) -> Result<()> {
        let mut hello: Vec<&[u8]> = vec![b"HELLO", b"3"];
        // Most Sentinels want no password, and refuse one.
        if kind == ServerKind::Sentinel {
            self.outbox.command(&hello);
            match self.one(server, until)? {
                RespValue::Failure(text) if text.starts_with("NOAUTH") => {}
                RespValue::Failure(text) => return Err(refused(&text)),
                RespValue::List(facts) => return check_kind(&facts, kind),
                _ => return Ok(()),
            }
        }
        let user = if options.user.is_empty() { "default" } else { &options.user };
        if let Some(Secret(password)) = &options.password {
            hello.extend([b"AUTH", user.as_bytes(), password.as_bytes()]);
        }
        self.outbox.command(&hello);
        let mut reply = self.one(server, until)?;
        if matches!(&reply, RespValue::Failure(text) if text.starts_with("ERR") || text.starts_with("NOPROTO")) {
            // Before Redis 6 there is no HELLO, and no user. Whether a password is wanted, any command tells.
            let login: Vec<&[u8]> = match &options.password {
                Some(Secret(password)) => vec![b"AUTH", options.user.as_bytes(), password.as_bytes()],
                None => vec![b"PING"],
            };
            let login: Vec<&[u8]> = login.into_iter().filter(|part| !part.is_empty()).collect();
            self.outbox.command(&login);
            reply = self.one(server, until)?;
        }
        match &reply {
            RespValue::Failure(text) => return Err(refused(text)),
            RespValue::List(facts) => check_kind(facts, kind)?,
            _ => {}
        }
        if options.database != 0 && kind != ServerKind::Sentinel {
            let number = options.database.to_string();
            self.outbox.command(&[b"SELECT", number.as_bytes()]);
            if let RespValue::Failure(text) = self.one(server, until)? {
                return Err(Error::invalid(format!("there is no database {number}: {}", shown(&text))));
            }
        }
        if options.cluster && kind == ServerKind::Replica {
            // Else it names its master for every key.
            self.outbox.command(&[b"READONLY"]);
            if let RespValue::Failure(text) = self.one(server, until)? {
                return Err(refused(&text));
            }
        }
        Ok(())
    }

    fn one(&mut self, server: &ServerAddress, until: Instant) -> Result<RespValue> {
        let mut replies = self.call(1, until).map_err(|error| {
            let late = error.status == KVKEEP_ERR_TIMEOUT;
            let remedy = match late {
                true => "; does a Redis server listen there?",
                false if error.message == ENDED => "; does it want TLS (rediss://), or refuse this host?",
                false => "",
            };
            Error { message: format!("logging in at {server}: {}{remedy}", error.message), ..error }
        })?;
        Ok(replies.pop().unwrap_or(RespValue::Nil))
    }

    /// Sends what the outbox has and waits for `count` replies. After an error the connection is of no use.
    pub fn call(&mut self, count: usize, until: Instant) -> Result<Vec<RespValue>> {
        let mut replies = Vec::with_capacity(count);
        while replies.len() < count {
            self.send(|_| None)?;
            while let Some(reply) = self.reply()? {
                replies.push(reply);
            }
            if replies.len() >= count || self.receive(&mut [], usize::MAX)? > 0 {
                continue;
            }
            if Instant::now() >= until {
                return Err(Error::new(KVKEEP_ERR_TIMEOUT, "the server does not answer"));
            }
            self.wait(None, until)?;
        }
        if replies.len() > count { Err(unasked()) } else { Ok(replies) }
    }

    /// Fails if the server has ended the connection, or has sent a reply although it owes none.
    pub fn check_quiet(&mut self) -> Result<()> {
        self.receive(&mut [], usize::MAX)?;
        self.reply()?.map_or(Ok(()), |_| Err(unasked()))
    }

    /// Sends as much of the outbox as the socket takes. `payload` gives the payloads of requests.
    pub fn send<'a>(&mut self, payload: impl Fn(u64) -> Option<&'a [u8]>) -> Result<()> {
        self.transport.flush().map_err(|error| lost(&error))?;
        self.outbox.send(&mut self.transport, payload).map_err(|error| lost(&error))
    }

    /// The next reply, if all of it is received.
    pub fn reply(&mut self) -> Result<Option<RespValue>> {
        loop {
            match RespValue::parse(&self.inbox[self.start..self.end], REPLY_MAX)? {
                Some((RespValue::Push(_), length)) => self.start += length,
                Some((value, length)) => {
                    self.start += length;
                    return Ok(Some(value));
                }
                None => return Ok(None),
            }
        }
    }

    /// The beginning of the next reply, which stays in the inbox.
    pub fn head(&self) -> Result<Option<ReplyHead>> {
        ReplyHead::parse(&self.inbox[self.start..self.end])
    }

    /// Takes at most `most` received bytes out of the inbox.
    pub fn take(&mut self, most: usize) -> &[u8] {
        let from = self.start;
        self.start += most.min(self.end - self.start);
        &self.inbox[from..self.start]
    }

    /// Takes the end of a line, if it is received.
    pub fn take_line_end(&mut self) -> Result<bool> {
        match self.inbox[self.start..self.end] {
            [b'\r', b'\n', ..] => {
                self.start += 2;
                Ok(true)
            }
            [] | [b'\r'] => Ok(false),
            _ => Err(Error::new(KVKEEP_ERR_IO, "the server sent a value that is longer than it said")),
        }
    }

    /// Receives into `places`, and at most `most` bytes of what comes after them into the inbox. Returns how many bytes came, 0 if none are there. The
    /// caller has taken all out of the inbox if there are places.
    pub fn receive(&mut self, places: &mut [&mut [u8]], most: usize) -> Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.inbox.len() > INBOX_BYTES {
                self.inbox = vec![0; INBOX_BYTES];
            }
        } else if self.end == self.inbox.len() {
            self.inbox.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end * 2 > self.inbox.len() {
                if self.inbox.len() > REPLY_MAX {
                    return Err(Error::new(KVKEEP_ERR_IO, "the server sent a reply that is too long"));
                }
                self.inbox.resize(self.inbox.len() * 2, 0);
            }
        }
        let first: usize = places.iter().map(|place| place.len()).sum();
        let mut slices: Vec<IoSliceMut<'_>> = places.iter_mut().map(|place| IoSliceMut::new(place)).collect();
        let room = most.min(self.inbox.len() - self.end);
        slices.push(IoSliceMut::new(&mut self.inbox[self.end..self.end + room]));
        self.drained = false;
        loop {
            match self.transport.read(&mut slices) {
                Ok(0) => return Err(lost(&io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.end += count.saturating_sub(first);
                    self.drained = count < first + room && self.transport.reads_whole();
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Whether the last receive took all that was there, so that the next one would find something only after a wait.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Sleeps until there is something to do on the socket, `bell` rings, or `until`. True if the bell has rung.
    pub fn wait(&mut self, bell: Option<BorrowedFd<'_>>, until: Instant) -> Result<bool> {
        self.drained = false;
        self.transport.wait(bell, !self.outbox.is_empty(), until).map_err(|error| lost(&error))
    }
}

fn lost(error: &io::Error) -> Error {
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ENDED.to_owned(),
        io::ErrorKind::InvalidData => {
            format!("TLS fails: {error}; does the server speak TLS there, and does ca= name who certifies it?")
        }
        _ => format!("the connection broke: {error}"),
    };
    Error::new(KVKEEP_ERR_IO, message)
}

fn unasked() -> Error {
    Error::new(KVKEEP_ERR_IO, "the server sent a reply that nobody asked for")
}

/// The server does not let us in.
fn refused(text: &str) -> Error {
    let (status, remedy) = match text.split_ascii_whitespace().next() {
        Some("WRONGPASS") => (KVKEEP_ERR_PERMISSION, "check the user and the password of the URL"),
        Some("NOAUTH") => (KVKEEP_ERR_PERMISSION, "write redis://user:password@host, or password_file="),
        Some("NOPERM") => (KVKEEP_ERR_PERMISSION, "allow the user +hello, and +readonly with read_from=replica"),
        _ if text.contains("password") => (KVKEEP_ERR_PERMISSION, "check the user and the password of the URL"),
        _ => (KVKEEP_ERR_IO, "look into the server's log"),
    };
    Error::new(status, format!("the server refuses to let us in: {}; {remedy}", shown(text)))
}

/// Fails if the server is of another kind than the URL says.
fn check_kind(facts: &[RespValue], kind: ServerKind) -> Result<()> {
    let fact = |name| {
        let mut pairs = facts.chunks_exact(2);
        pairs.find(|pair| pair[0].as_text() == Some(name)).and_then(|pair| pair[1].as_text())
    };
    let unsupported = |what: &str| Err(Error::new(KVKEEP_ERR_UNSUPPORTED, what));
    match (fact("mode"), kind) {
        (Some("cluster"), ServerKind::Single | ServerKind::Master) => {
            unsupported("the server is one of a cluster and holds only part of the keys; write redis+cluster://")
        }
        (Some("standalone"), ServerKind::Member) => unsupported("the server is none of a cluster; write redis://"),
        (Some("cluster" | "standalone"), ServerKind::Sentinel) => {
            unsupported("the server is no Sentinel; write redis:// or redis+cluster://")
        }
        (Some("sentinel"), ServerKind::Single | ServerKind::Master | ServerKind::Member) => {
            unsupported("the server is a Sentinel, which holds no keys; write redis+sentinel://host/master")
        }
        (_, ServerKind::Master) if fact("role") == Some("replica") => {
            Err(Error::new(KVKEEP_ERR_IO, "the Sentinel named a replica: wait until the failover is over"))
        }
        _ => Ok(()),
    }
}
