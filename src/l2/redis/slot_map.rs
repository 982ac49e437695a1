//! Which server of a cluster has which keys: the 16,384 slots, and the errors by which a server names another one.

use std::ops::RangeInclusive;

use super::redis_options::ServerAddress;
use super::resp::RespValue;

/// Slots of a cluster.
pub const SLOTS: usize = 16_384;

/// Another server that has a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirect {
    pub slot: u16,
    pub server: ServerAddress,
    /// Only for this request, which is to ask there: the slot is on its way to that server.
    pub ask: bool,
}

/// Slots that one master has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotRange {
    pub slots: RangeInclusive<u16>,
    pub master: ServerAddress,
    pub replicas: Vec<ServerAddress>,
}

/// CRC-16 of the XMODEM kind, by which Redis distributes keys.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0u16, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

/// The slot of a key: that of the part between its first braces, if there is one.
pub fn slot_of(name: &str) -> u16 {
    let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(name).as_bytes()) % SLOTS as u16
}

/// The address that a server gave for one of its cluster; without a host it is where the server is that was asked.
fn address(host: &str, port: i64, asked: &ServerAddress) -> Option<ServerAddress> {
    let port = u16::try_from(port).ok().filter(|&port| port > 0)?;
    let host = match (host, asked) {
        ("" | "?", ServerAddress::Tcp { host, .. }) => host.clone(),
        ("" | "?", ServerAddress::Unix(_)) => return None,
        (host, _) => host.to_owned(),
    };
    Some(ServerAddress::Tcp { host, port })
}

/// The server that a MOVED or ASK error names.
pub fn parse_redirect(text: &str, asked: &ServerAddress) -> Option<Redirect> {
    let mut words = text.split_ascii_whitespace();
    let ask = match words.next()? {
        "MOVED" => false,
        "ASK" => true,
        _ => return None,
    };
    let slot = words.next()?.parse().ok().filter(|&slot: &u16| usize::from(slot) < SLOTS)?;
    // An IPv6 address comes without brackets.
    let (host, port) = words.next()?.rsplit_once(':')?;
    Some(Redirect { slot, server: address(host, port.parse().ok()?, asked)?, ask })
}

/// The slots of a cluster by their masters, as CLUSTER SLOTS answers.
pub fn parse_slots(reply: &RespValue, asked: &ServerAddress) -> Vec<SlotRange> {
    let server = |server: &RespValue| match server.as_list()? {
        [host, port, ..] => address(host.as_text().unwrap_or_default(), port.as_number()?, asked),
        [] | [_] => None,
    };
    let range = |range: &RespValue| {
        let [first, last, master, replicas @ ..] = range.as_list()? else { return None };
        let slot = |value: &RespValue| value.as_number().and_then(|slot| u16::try_from(slot).ok());
        let (first, last) = (slot(first)?, slot(last).filter(|&last| usize::from(last) < SLOTS)?);
        let replicas = replicas.iter().filter_map(server).collect();
        Some(SlotRange { slots: first..=last, master: server(master)?, replicas })
    };
    reply.as_list().unwrap_or_default().iter().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> ServerAddress {
        ServerAddress::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (name, slot) in [("foo", 12_182), ("a{foo}b", 12_182), ("{}foo", crc16(b"{}foo") % 16_384), ("", 0)] {
            assert_eq!(slot_of(name), slot, "{name}");
        }
    }

    #[test]
    fn a_redirect_names_a_server() {
        let asked = tcp("here", 1);
        let moved = |server, ask| Some(Redirect { slot: 3999, server, ask });
        assert_eq!(parse_redirect("MOVED 3999 127.0.0.1:6381", &asked), moved(tcp("127.0.0.1", 6381), false));
        assert_eq!(parse_redirect("ASK 3999 ::1:6381", &asked), moved(tcp("::1", 6381), true));
        assert_eq!(parse_redirect("MOVED 3999 :6381", &asked), moved(tcp("here", 6381), false));
        for text in ["MOVED", "MOVED 3999", "MOVED 20000 a:1", "MOVED 1 a:x", "MOVED 1 a:0", "ERR 1 a:1"] {
            assert_eq!(parse_redirect(text, &asked), None, "{text}");
        }
    }

    #[test]
    fn slots_are_read_and_nonsense_is_left_out() {
        let text = b"*3\r\n*3\r\n:0\r\n:5460\r\n*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n\
                     *4\r\n:5461\r\n:16383\r\n*2\r\n$-1\r\n:7001\r\n*2\r\n$1\r\nb\r\n:7002\r\n*1\r\n:7\r\n";
        let (reply, _) = RespValue::parse(text, 100).unwrap().unwrap();
        let slots = parse_slots(&reply, &tcp("here", 1));
        let range = |slots, master, replicas| SlotRange { slots, master, replicas };
        let second = range(5461..=16_383, tcp("here", 7001), vec![tcp("b", 7002)]);
        assert_eq!(slots, [range(0..=5460, tcp("127.0.0.1", 7000), vec![]), second]);
        assert_eq!(parse_slots(&RespValue::Nil, &tcp("here", 1)), []);
    }
}
