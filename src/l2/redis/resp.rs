//! Replies of a Redis server, in either version of its protocol (RESP2 and RESP3), read from bytes that may end anywhere.

use crate::error::{Error, KVKEEP_ERR_IO, Result};

/// Most bytes of a line: of a status, an error, or the length of another reply.
const LINE_MAX: usize = 64 << 10;
/// Most values of one list.
const LIST_MAX: u64 = 1 << 20;
/// How deep lists may stand in lists.
const DEPTH_MAX: u32 = 8;
/// Bytes of a reply that an error shows.
const SHOWN: usize = 24;

/// A reply, or a value in one.
#[derive(Clone, PartialEq, Debug)]
pub enum RespValue {
    /// A status, or a number that is no integer.
    Text(String),
    /// An error: a code in capitals, then a sentence.
    Failure(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    /// A list or a set; of a map, the keys and values in turn.
    List(Vec<RespValue>),
    /// Sent unasked.
    Push(Vec<RespValue>),
}

/// The beginning of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyHead {
    /// Bytes of the length `length`, and two more, after `head` bytes.
    Bulk { length: usize, head: usize },
    /// Another reply.
    Other,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    bulk_max: usize,
}

fn broken(what: &str, bytes: &[u8]) -> Error {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    let message =
        format!("the peer does not speak the Redis protocol: {what} {shown:?}; name a Redis or Valkey server");
    Error::new(KVKEEP_ERR_IO, message)
}

fn number(text: &[u8]) -> Result<i64> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| broken("it sent the number", text))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl<'a> Reader<'a> {
    /// The next line without its end; none if it has not ended yet.
    fn line(&mut self) -> Result<Option<&'a [u8]>> {
        let rest = &self.bytes[self.at..];
        match rest.iter().take(LINE_MAX).position(|&byte| byte == b'\n') {
            Some(end) if end > 0 && rest[end - 1] == b'\r' => {
                self.at += end + 1;
                Ok(Some(&rest[..end - 1]))
            }
            None if rest.len() < LINE_MAX => Ok(None),
            _ => Err(broken("it sent the line", rest)),
        }
    }

    /// So many bytes and the end of the line behind them.
    fn bytes(&mut self, length: usize) -> Result<Option<&'a [u8]>> {
        let Some(rest) = self.bytes.get(self.at..self.at + length + 2) else { return Ok(None) };
        let (bytes, end) = rest.split_at(length);
        if end != b"\r\n" {
            return Err(broken("after a value it sent", end));
        }
        self.at += length + 2;
        Ok(Some(bytes))
    }

    fn values(&mut self, count: u64, depth: u32) -> Result<Option<Vec<RespValue>>> {
        if count > LIST_MAX || depth >= DEPTH_MAX {
            return Err(broken("it sent a list too long or too deep:", self.bytes));
        }
        let mut values = Vec::with_capacity(count.min(64) as usize);
        for _ in 0..count {
            let Some(value) = self.value(depth + 1)? else { return Ok(None) };
            values.push(value);
        }
        Ok(Some(values))
    }

    /// Fails on the first byte of what is no reply: more of it may never come.
    fn check_kind(&self) -> Result<()> {
        match self.bytes.get(self.at) {
            None | Some(b'+' | b'-' | b':' | b'$' | b'*' | b'_' | b',' | b'#' | b'(' | b'=' | b'!') => Ok(()),
            Some(b'%' | b'~' | b'>' | b'|') => Ok(()),
            // An alert or a handshake.
            Some(0x15 | 0x16) => Err(broken("it speaks TLS:", &self.bytes[self.at..])),
            Some(_) => Err(broken("it sent", self.bytes[self.at..].split(|&byte| byte == b'\r').next().unwrap_or(&[]))),
        }
    }

    fn value(&mut self, depth: u32) -> Result<Option<RespValue>> {
        self.check_kind()?;
        let Some(line) = self.line()? else { return Ok(None) };
        let Some((&kind, rest)) = line.split_first() else { return Err(broken("it sent an empty line", line)) };
        let value = match kind {
            b'+' | b',' | b'(' => RespValue::Text(text(rest)),
            b'-' => RespValue::Failure(text(rest)),
            b':' => RespValue::Integer(number(rest)?),
            b'#' if rest == b"t" || rest == b"f" => RespValue::Integer(i64::from(rest == b"t")),
            b'_' if rest.is_empty() => RespValue::Nil,
            b'$' | b'=' | b'!' => match number(rest)? {
                -1 => RespValue::Nil,
                length => {
                    let fits = usize::try_from(length).ok().filter(|&length| length <= self.bulk_max);
                    let length = fits.ok_or_else(|| broken("it sent a value of the length", rest))?;
                    let Some(bytes) = self.bytes(length)? else { return Ok(None) };
                    match kind {
                        b'$' => RespValue::Bulk(bytes.to_vec()),
                        b'!' => RespValue::Failure(text(bytes)),
                        // Its kind stands before it, three letters and a colon.
                        _ => RespValue::Text(text(bytes.get(4..).unwrap_or_default())),
                    }
                }
            },
            b'*' | b'~' | b'>' | b'%' | b'|' => match number(rest)? {
                -1 => RespValue::Nil,
                count => {
                    let pairs = u64::from(kind == b'%' || kind == b'|') + 1;
                    let count = u64::try_from(count).ok().and_then(|count| count.checked_mul(pairs));
                    let count = count.ok_or_else(|| broken("it sent a list of the length", rest))?;
                    let Some(values) = self.values(count, depth)? else { return Ok(None) };
                    match kind {
                        b'>' => RespValue::Push(values),
                        // Attributes are notes about the reply behind them, which none of our commands asks for.
                        b'|' if depth < DEPTH_MAX => return self.value(depth + 1),
                        b'|' => return Err(broken("it sent attributes too deep:", self.bytes)),
                        _ => RespValue::List(values),
                    }
                }
            },
            _ => return Err(broken("it sent the line", line)),
        };
        Ok(Some(value))
    }
}

impl RespValue {
    /// The reply at the beginning of `bytes` and its length; none if it is not whole yet. Values of more than `bulk_max` bytes are
    /// refused.
    pub fn parse(bytes: &[u8], bulk_max: usize) -> Result<Option<(RespValue, usize)>> {
        let mut reader = Reader { bytes, at: 0, bulk_max };
        Ok(reader.value(0)?.map(|value| (value, reader.at)))
    }

    /// The text of a status or of bytes that are text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            RespValue::Text(text) => Some(text),
            RespValue::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The number that an integer is, or that bytes are the text of.
    pub fn as_number(&self) -> Option<i64> {
        match self {
            RespValue::Integer(number) => Some(*number),
            other => other.as_text()?.parse().ok(),
        }
    }

    /// The values of a list.
    pub fn as_list(&self) -> Option<&[RespValue]> {
        match self {
            RespValue::List(values) => Some(values),
            _ => None,
        }
    }
}

impl ReplyHead {
    /// Which kind of reply `bytes` begin with, so that a value can be received elsewhere; none if that is not known yet.
    pub fn parse(bytes: &[u8]) -> Result<Option<ReplyHead>> {
        match bytes {
            [] => Ok(None),
            [b'$', ..] => {
                let mut reader = Reader { bytes, at: 0, bulk_max: 0 };
                let Some(line) = reader.line()? else { return Ok(None) };
                match number(&line[1..])? {
                    -1 => Ok(Some(ReplyHead::Other)),
                    length => match usize::try_from(length) {
                        Ok(length) => Ok(Some(ReplyHead::Bulk { length, head: reader.at })),
                        Err(_) => Err(broken("it sent a value of the length", line)),
                    },
                }
            }
            _ => Reader { bytes, at: 0, bulk_max: 0 }.check_kind().map(|()| Some(ReplyHead::Other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(bytes: &[u8]) -> RespValue {
        let (value, length) = RespValue::parse(bytes, 1 << 20).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        value
    }

    fn bulk(text: &str) -> RespValue {
        RespValue::Bulk(text.as_bytes().to_vec())
    }

    #[test]
    fn each_kind_of_reply_is_read() {
        let text = |text: &str| RespValue::Text(text.to_owned());
        assert_eq!(parsed(b"+OK\r\n"), text("OK"));
        assert_eq!(parsed(b"-LOADING wait\r\n"), RespValue::Failure("LOADING wait".to_owned()));
        assert_eq!(parsed(b":-7\r\n"), RespValue::Integer(-7));
        assert_eq!(parsed(b"$3\r\na\r\n\r\n"), bulk("a\r\n"));
        assert_eq!(parsed(b"$0\r\n\r\n"), bulk(""));
        for nil in [&b"$-1\r\n"[..], b"*-1\r\n", b"_\r\n"] {
            assert_eq!(parsed(nil), RespValue::Nil);
        }
        let list = RespValue::List(vec![RespValue::Integer(1), bulk("b")]);
        assert_eq!(parsed(b"*2\r\n:1\r\n$1\r\nb\r\n"), list);
        assert_eq!(parsed(b"%1\r\n:1\r\n$1\r\nb\r\n"), list);
        assert_eq!(parsed(b">1\r\n#t\r\n"), RespValue::Push(vec![RespValue::Integer(1)]));
        assert_eq!(parsed(b",1.5\r\n"), text("1.5"));
        assert_eq!(parsed(b"=6\r\ntxt:hi\r\n"), text("hi"));
        assert_eq!(parsed(b"!5\r\nERR x\r\n"), RespValue::Failure("ERR x".to_owned()));
        assert_eq!(parsed(b"|1\r\n+a\r\n+b\r\n:3\r\n"), RespValue::Integer(3));
    }

    #[test]
    fn what_is_no_reply_is_refused_with_its_beginning() {
        let html = RespValue::parse(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n", 9).unwrap_err().message;
        assert!(html.contains("\"HTTP/1.1 400 Bad Request\"") && html.contains("name a Redis"), "{html}");
        let long = "x".repeat(LINE_MAX);
        let deep = "*1\r\n".repeat(20);
        let bad = ["\r\n", "$9\r\n", "$-2\r\n", "$x\r\n", "*-2\r\n", "*9999999\r\n", "$1\r\nabc", "+a\n", &long, &deep];
        for bytes in bad {
            assert!(RespValue::parse(bytes.as_bytes(), 8).is_err(), "{bytes:?}");
        }
        assert!(ReplyHead::parse(b"$-5\r\n").is_err() && ReplyHead::parse(long.replace('x', "$").as_bytes()).is_err());
    }

    #[test]
    fn the_head_of_a_value_is_known_before_the_value() {
        assert_eq!(ReplyHead::parse(b"$1048576\r\nabc").unwrap(), Some(ReplyHead::Bulk { length: 1 << 20, head: 10 }));
        for (bytes, head) in [(&b""[..], None), (b"$12", None), (b"$-1\r\n", Some(ReplyHead::Other))] {
            assert_eq!(ReplyHead::parse(bytes).unwrap(), head);
        }
        assert_eq!(ReplyHead::parse(b"-").unwrap(), Some(ReplyHead::Other));
    }

    fn written(value: &RespValue) -> Vec<u8> {
        let list = |kind: char, values: &[RespValue]| {
            let head = format!("{kind}{}\r\n", values.len()).into_bytes();
            values.iter().fold(head, |bytes, value| [bytes, written(value)].concat())
        };
        match value {
            RespValue::Text(text) => format!("+{text}\r\n").into_bytes(),
            RespValue::Failure(text) => format!("-{text}\r\n").into_bytes(),
            RespValue::Integer(number) => format!(":{number}\r\n").into_bytes(),
            RespValue::Bulk(bytes) => [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat(),
            RespValue::Nil => b"_\r\n".to_vec(),
            RespValue::List(values) => list('*', values),
            RespValue::Push(values) => list('>', values),
        }
    }

    fn values() -> impl Strategy<Value = RespValue> {
        let leaf = prop_oneof![
            "[ -~]{0,40}".prop_map(RespValue::Text),
            "[ -~]{0,40}".prop_map(RespValue::Failure),
            any::<i64>().prop_map(RespValue::Integer),
            prop::collection::vec(any::<u8>(), 0..60).prop_map(RespValue::Bulk),
            Just(RespValue::Nil),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let list = prop::collection::vec(inner, 0..6);
            prop_oneof![list.clone().prop_map(RespValue::List), list.prop_map(RespValue::Push)]
        })
    }

    proptest! {
        #[test]
        fn a_reply_reads_back_and_is_not_whole_before_its_last_byte(value in values()) {
            let bytes = written(&value);
            prop_assert_eq!(RespValue::parse(&bytes, 60).unwrap(), Some((value, bytes.len())));
            for end in 0..bytes.len() {
                prop_assert_eq!(RespValue::parse(&bytes[..end], 60).unwrap(), None);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            crate::fuzzing::resp(&bytes);
        }
    }
}
