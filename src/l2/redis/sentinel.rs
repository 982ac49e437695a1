//! Servers that Sentinels watch: each new connection asks one of them which server is the master now.

use std::time::Instant;

use super::redis_connection::{RedisConnection, ServerKind};
use super::redis_options::{RedisOptions, ServerAddress};
use super::resp::RespValue;
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, Result};

/// A connection to the server at `address` or, where the URL names Sentinels, to the first master named by one of them that takes
/// it. Blocks for at most about the connect timeout, and twice as long for each Sentinel.
pub fn open_connection(options: &RedisOptions, address: &ServerAddress) -> Result<RedisConnection> {
    let Some(master) = &options.master else {
        let kind = if options.cluster { ServerKind::Member } else { ServerKind::Single };
        return RedisConnection::open(options, address, kind);
    };
    let mut refusal = Error::new(KVKEEP_ERR_IO, "the URL names no Sentinel");
    let mut tried = Vec::new();
    for sentinel in &options.servers {
        // One that the others have lost may name the master of before.
        let opened = match ask_sentinel(options, sentinel, master) {
            Ok(found) if tried.contains(&found) => continue,
            Ok(found) => {
                let opened = RedisConnection::open(options, &found, ServerKind::Master);
                tried.push(found);
                opened
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok(connection) => return Ok(connection),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn ask_sentinel(options: &RedisOptions, sentinel: &ServerAddress, master: &str) -> Result<ServerAddress> {
    let mut connection = RedisConnection::open(options, sentinel, ServerKind::Sentinel)?;
    connection.outbox.command(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", master.as_bytes()]);
    let replies = connection.call(1, Instant::now() + options.connect_timeout)?;
    let pair = replies.first().and_then(RespValue::as_list).unwrap_or_default();
    let parts = match pair {
        [host, port] => host.as_text().zip(port.as_number().and_then(|port| u16::try_from(port).ok())),
        _ => None,
    };
    let (host, port) = parts.ok_or_else(|| {
        let message = format!("the Sentinel at {sentinel} knows no master {master:?}: write its name behind the hosts");
        Error::new(KVKEEP_ERR_NOT_FOUND, message)
    })?;
    Ok(ServerAddress::Tcp { host: host.to_owned(), port })
}
