//! How full a server is, as it says itself.

use std::time::Instant;

use super::redis_connection::RedisConnection;
use super::resp::RespValue;
use crate::error::Result;
use crate::l2::Usage;

/// The numbers that a server gave; those that it did not give, or does not let us ask for, are absent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ServerUsage {
    objects: Option<u64>,
    bytes: Option<u64>,
    capacity: Option<u64>,
    evicted: Option<u64>,
}

/// Asks a server. Fails when the connection is of no use any more.
pub fn ask_usage(connection: &mut RedisConnection, until: Instant) -> Result<ServerUsage> {
    connection.outbox.command(&[b"DBSIZE"]);
    connection.outbox.command(&[b"INFO", b"memory"]);
    connection.outbox.command(&[b"INFO", b"stats"]);
    let replies = connection.call(3, until)?;
    let number = |text: Option<&RespValue>, name| text.and_then(RespValue::as_text).and_then(|text| field(text, name));
    Ok(ServerUsage {
        objects: replies.first().and_then(RespValue::as_number).and_then(|count| u64::try_from(count).ok()),
        bytes: number(replies.get(1), "used_memory:"),
        capacity: number(replies.get(1), "maxmemory:"),
        evicted: number(replies.get(2), "evicted_keys:"),
    })
}

/// The number of a line `name:number`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

impl ServerUsage {
    /// Keeps what is known, also of evictions: those before the first answer are not counted.
    pub fn write_to(&self, usage: &mut Usage, evicted_before: &mut Option<u64>) {
        usage.objects = self.objects.unwrap_or(usage.objects);
        usage.bytes = self.bytes.unwrap_or(usage.bytes);
        usage.capacity = self.capacity.unwrap_or(usage.capacity);
        if let Some(evicted) = self.evicted {
            // A server that was restarted counts from 0 again.
            let before = evicted_before.replace(evicted).unwrap_or(evicted);
            usage.evicted += if evicted < before { evicted } else { evicted - before };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let text = "# Memory\r\nused_memory:123\r\nused_memory_rss:7\r\nmaxmemory:0\r\n";
        assert_eq!(
            (field(text, "used_memory:"), field(text, "maxmemory:"), field(text, "x:")),
            (Some(123), Some(0), None)
        );
    }

    #[test]
    fn evictions_are_counted_from_the_first_answer_and_over_a_restart() {
        let (mut usage, mut before) = (Usage::default(), None);
        for (evicted, counted) in [(Some(100), 0), (Some(103), 3), (None, 3), (Some(2), 5)] {
            ServerUsage { evicted, ..ServerUsage::default() }.write_to(&mut usage, &mut before);
            assert_eq!(usage.evicted, counted);
        }
    }
}
