//! What `make fuzz` tries with coverage, here with random bytes and with changed ones of what is right.
//!
//! `KVKEEP_FUZZ_ROUNDS` says how often.

use kvkeep::daemon::wire::{Frame, Request};
use kvkeep::fuzzing;
use kvkeep::key::{Key, ObjectKey, SpaceTag};
use kvkeep::l2::object_header::Header;

use crate::support::random::{Random, rounds, seed};

const KEY: Key = Key { hash: [0xa1; 32], rank: 7, group: 2 };

/// Tries each of `right`, then random bytes and changes of `right` in turn.
fn tried(right: &[Vec<u8>], target: fn(&[u8])) {
    right.iter().for_each(|bytes| target(bytes));
    let mut random = Random(seed("KVKEEP_FUZZ_SEED"));
    for _ in 0..rounds("KVKEEP_FUZZ_ROUNDS", 20_000) {
        let mut bytes = match random.below(4) {
            0 => (0..random.below(400)).map(|_| random.next() as u8).collect(),
            _ => right[random.below(right.len() as u64) as usize].clone(),
        };
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len() as u64 + 1) as usize;
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.next() as u8),
                2 => bytes.extend_from_within(at / 2..at),
                _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                _ => {}
            }
        }
        target(&bytes);
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn no_frame_does_harm() {
    let keys = [KEY; 3];
    let requests = [
        Request::Hello { version: 1, read_only: true, observer: false },
        Request::AddBackend { url: "memory:" },
        Request::AppendTokens { session: 1, tokens: &[1, 2, 3] },
        Request::ReserveWrite { session: 1, keys: &keys, sizes: &[4096; 3], temporary: false },
        Request::FinishRead { session: 1, keys: &keys, extra: kvkeep::daemon::wire::request::Extra(3), statuses: true },
        Request::SubmitPrefetch { session: 1, keys: &keys, request: Default::default(), ticket: 9 },
        Request::DeclareShapes { space: 1, shapes: &[] },
    ];
    let frames: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| {
            let mut frame = Frame::default();
            request.encode(&mut frame);
            frame.finish().to_vec()
        })
        .collect();
    tried(&frames, fuzzing::wire);
}

#[test]
fn no_changed_object_passes() {
    let key = ObjectKey { space: SpaceTag([3; 16]), key: KEY };
    let object = |payload: &[u8], checksum| [&Header::new(&key, &[9; 16], payload, checksum).0, payload].concat();
    tried(&[object(b"", true), object(&[7; 100], true), object(&[7; 100], false)], fuzzing::object_header);
}

#[test]
fn a_file_name_is_foreign_or_that_of_its_object() {
    let (space, hash) = ("a1".repeat(16), "a1".repeat(32));
    let names = [
        format!("{space}/a1/{hash}-7-2"),
        format!("{space}-{hash}-7-2"),
        ".tmp-0123456701234567-1-77-0.5".to_owned(),
        "0123456701234567-1-77-0".to_owned(),
    ];
    tried(&names.map(String::into_bytes), fuzzing::file_name);
}

#[test]
fn a_reply_is_read_when_it_is_whole() {
    let replies = [
        "+OK\r\n",
        "-LOADING Redis is loading the dataset in memory\r\n",
        "$5\r\nab\r\nc\r\n",
        "*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        "%2\r\n+mode\r\n+standalone\r\n+proto\r\n:3\r\n",
        ">2\r\n+a\r\n_\r\n",
        "|1\r\n+a\r\n,1.5\r\n=7\r\ntxt:abc\r\n",
    ];
    tried(&texts(&replies), fuzzing::resp);
}

#[test]
fn a_url_is_read_or_refused() {
    let urls = [
        "fs:///var/cache/kv?capacity=200GiB&engine=uring&min_free=5%&policy=lru",
        "fs://relative/%C3%A9?direct=off&count_directories=no",
        "fault:memory:?capacity=1MiB&fault.delay=0.5",
        "redis://me:p%40ss@[::1]:7000/3?prefix=kv:&ttl=12h&connections=8&part=8MiB",
        "redis+unix:///run/redis.sock?db=2&timeout_ms=500",
        "unix:///run/kvkeep.sock?wait_ms=100&patience_ms=5&spin_us=3",
        "64MiB",
        "true",
    ];
    tried(&texts(&urls), fuzzing::url);
}
