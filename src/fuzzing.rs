//! What reads bytes that others wrote, for `fuzz/` and for the random bytes of `cargo test`. No part of the API.
//!
//! Each function panics where a property fails that holds for all bytes.

use crate::daemon::client::ClientConfig;
use crate::daemon::wire::frame::Inbox;
use crate::daemon::wire::{Frame, Request, Welcome};
use crate::key::{Key, ObjectKey, SpaceTag};
use crate::l2::fs::{FsOptions, path};
use crate::l2::object_header::{HEADER_BYTES, Header};
use crate::l2::redis::RedisOptions;
use crate::l2::redis::resp::{ReplyHead, RespValue};
use crate::l2::url::{Url, boolean, size};

const FRAME_BYTES_MAX: u32 = 1 << 20;

/// What a peer sends: a frame is refused, or says the same when it is written and read again.
pub fn wire(bytes: &[u8]) {
    let (mut inbox, mut rest) = (Inbox::default(), bytes);
    let Ok(Some(head)) = inbox.receive(&mut rest, FRAME_BYTES_MAX, false) else { return };
    assert!(head.bytes <= FRAME_BYTES_MAX);
    let _ = inbox.fields().take::<Welcome>();
    let Ok(request) = Request::decode(head.kind, inbox.fields()) else { return };
    let mut first = Frame::default();
    request.encode(&mut first);
    let sent = first.finish();
    let mut inbox = Inbox::default();
    let read = inbox.receive(&mut &sent[..], u32::MAX, false);
    assert!(matches!(read, Ok(Some(again)) if again.kind == head.kind), "a request that was written is not read");
    let again = Request::decode(head.kind, inbox.fields());
    assert!(again.is_ok(), "a request that was written is refused");
    let mut second = Frame::default();
    again.into_iter().for_each(|request| request.encode(&mut second));
    assert!(second.finish() == sent, "a request is another one when it was written and read");
}

/// A header that a store gives back: it is refused, or says what the header of such an object says. And of an object whose payload
/// are these bytes, a changed byte is found.
pub fn object_header(bytes: &[u8]) {
    if let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let header = Header(*header);
        if let Ok((key, length)) = header.open()
            && header.verify(&key, None, payload, true).is_ok()
        {
            assert_eq!(length, payload.len() as u64);
            assert!(header.known(&key, length).is_none_or(|known| known.fits(payload)));
        }
    }
    let key = ObjectKey { space: SpaceTag([1; 16]), key: Key { hash: [2; 32], rank: 3, group: 4 } };
    let (Header(whole), layout) = (Header::new(&key, &[5; 16], bytes, true), [5; 16]);
    assert!(Header(whole).verify(&key, Some(&layout), bytes, true).is_ok());
    let Some((&at, &bits)) = bytes.first().zip(bytes.last()) else { return };
    let mut header = whole;
    header[usize::from(at) % HEADER_BYTES] ^= bits.max(1);
    assert!(Header(header).verify(&key, Some(&layout), bytes, true).is_err(), "a changed header passes");
    let mut payload = bytes.to_vec();
    payload[usize::from(at) % bytes.len()] ^= bits.max(1);
    assert!(Header(whole).verify(&key, Some(&layout), &payload, true).is_err(), "changed bytes pass");
}

/// The names of files in a directory of the `fs` backend: one is foreign, or the one that its object gets.
pub fn file_name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (directory, name) = text.rsplit_once('/').unwrap_or(("", text));
    let (space, shard) = directory.split_once('/').unwrap_or((directory, name.get(..2).unwrap_or_default()));
    let tag = path::parse_space(space);
    if let Some(key) = path::parse_object(tag.unwrap_or(SpaceTag([0; 16])), shard, name)
        && tag.is_some()
        && path::is_shard(shard)
    {
        assert_eq!(path::object(&key), format!("{space}/{shard}/{name}"));
    }
    if let Some(key) = path::parse_quarantined(name) {
        assert_eq!(path::quarantined(&key), format!("{}/{name}", path::QUARANTINE));
    }
    let _ = (path::parse_temporary(name), path::parse_writer(name));
}

/// What a Redis server sends: a reply is refused, or is whole at its last byte and not before.
pub fn resp(bytes: &[u8]) {
    const BULK_MAX: usize = 100;
    let whole = RespValue::parse(bytes, BULK_MAX);
    if let Ok(Some((value, length))) = &whole {
        assert!(*length <= bytes.len());
        for end in [0, 1, length / 2, length - 1] {
            let part = RespValue::parse(&bytes[..end.min(length - 1)], BULK_MAX);
            assert!(matches!(part, Ok(None)), "part of a reply is taken for the whole");
        }
        let alone = RespValue::parse(&bytes[..*length], BULK_MAX);
        assert!(matches!(alone, Ok(Some((again, at))) if again == *value && at == *length));
    }
    if let Ok(Some(ReplyHead::Bulk { length, head })) = ReplyHead::parse(bytes) {
        assert!(head <= bytes.len() && bytes[..head].ends_with(b"\r\n"));
        if let Ok(Some((value, whole))) = whole {
            assert!(value.as_text().is_none_or(|text| text.len() == length) && whole == head + length + 2);
        }
    }
}

/// What a user writes: URLs of backends and of daemons, sizes, choices. A refusal says why.
pub fn url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = (boolean(text), ClientConfig::new(text));
    if let Ok(bytes) = size(text) {
        assert_eq!(size(&bytes.to_string()).ok(), Some(bytes));
    }
    match Url::parse(text) {
        Ok(url) => {
            assert!(!url.scheme.is_empty() && url.scheme == url.scheme.to_ascii_lowercase());
            if let Err(error) = FsOptions::from_url(&url.path, &url.params) {
                assert!(!error.message.is_empty());
            }
            if let Err(error) = RedisOptions::from_url(&url) {
                assert!(!error.message.is_empty());
            }
        }
        Err(error) => assert!(!error.message.is_empty()),
    }
}
