//! The wire: every message survives the way, and no bytes from a peer do harm.

use std::time::Duration;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::config::{GroupRule, Mode, Policy, PrefetchRequest, SpaceSpec};
use crate::daemon::wire::frame::Inbox;
use crate::daemon::wire::request::Extra;
use crate::daemon::wire::{FRAME_BYTES_MAX, Fields, Frame, FrameHead, Request, Welcome};
use crate::key::Key;
use crate::shape::{Piece, Shape};

/// What requests are made from.
#[derive(Clone, Debug)]
struct Parts {
    number: u64,
    other: u64,
    small: u32,
    flag: bool,
    text: String,
    keys: Vec<Key>,
    numbers: Vec<u64>,
    tokens: Vec<u32>,
    shapes: Vec<Shape>,
}

fn parts() -> impl Strategy<Value = Parts> {
    let key = (any::<[u8; 32]>(), any::<u32>(), any::<u32>()).prop_map(|(hash, rank, group)| Key { hash, rank, group });
    let shape =
        (any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(rank, group, block_bytes, layer)| {
            Shape::new(rank, group, layer / 2, [Piece { layer, part: group, block_bytes }].into_iter())
        });
    (
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
        any::<bool>(),
        "\\PC{1,20}",
        prop::collection::vec(key, 1..9),
        prop::collection::vec(any::<u64>(), 0..9),
        prop::collection::vec(any::<u32>(), 0..9),
        prop::collection::vec(shape, 0..9),
    )
        .prop_map(|(number, other, small, flag, text, keys, numbers, tokens, shapes)| Parts {
            number,
            other,
            small,
            flag,
            text,
            keys,
            numbers,
            tokens,
            shapes,
        })
}

fn prefetch(parts: &Parts) -> PrefetchRequest {
    let mode = [Mode::Prefix, Mode::Window(1 + parts.small % 1000), Mode::Any][parts.small as usize % 3];
    let rule = |group: &u32| GroupRule {
        group: *group,
        mode: if group.is_multiple_of(2) { Mode::Prefix } else { Mode::Window(*group) },
    };
    PrefetchRequest {
        extra_count: parts.small % 128,
        objects_per_chunk: 1 + parts.small % 100,
        mode,
        group_rules: if mode == Mode::Any { Vec::new() } else { parts.tokens.iter().map(rule).collect() },
        policy: [Policy::BestEffort, Policy::Wait, Policy::Deadline][parts.number as usize % 3],
        deadline: parts.flag.then(|| Duration::from_millis(1 + parts.other % 100_000)),
        lookup_timeout: Duration::from_millis(parts.number % 100_000),
        lookup_interval: Duration::from_millis(1 + parts.other % 100_000),
        temporary: parts.flag,
        priority: parts.small as i32,
        pause_after_lookup: !parts.flag,
        ..PrefetchRequest::default()
    }
}

/// The request of a kind, of all that there are.
fn request(kind: u32, parts: &Parts) -> Request<'_> {
    let Parts { number, other, small, flag, text, keys, numbers, tokens, shapes } = parts;
    let (session, space, job) = (*number, *number, *number);
    let (statuses, temporary, timeout_ms, count) = (*flag, *flag, *small, *other);
    let (keys, text, extra) = (keys.as_slice(), text.as_str(), Extra(small % 128));
    let ranks = (*small, small / 2, small / 3);
    match kind {
        1 => Request::Hello { version: *small, read_only: *flag, observer: !*flag },
        2 => Request::Attach { version: *small, client: *number, secret: *other, spin_us: small / 2 },
        3 => Request::Bye {},
        4 => Request::OpenSpace {
            spec: SpaceSpec {
                generation: 0,
                model: text.to_owned(),
                layout: text.repeat(2),
                tenant: String::new(),
                chunk_tokens: (*small).max(1),
                quota_bytes: *other,
            },
        },
        5 => Request::AddBackend { url: text },
        6 => Request::RemoveBackend { backend: *number },
        7 => Request::Flush { timeout_ms },
        8 => Request::BeginSession { space, request_id: text, timeout_ms },
        9 => Request::EndSession { session },
        10 => Request::AbortSession { session },
        11 => Request::AppendTokens { session, tokens },
        12 => Request::SessionKeys { session, first_chunk: *other, ranks, count },
        13 => Request::ReserveWrite { session, keys, sizes: numbers, temporary },
        14 => Request::FinishWrite { session, keys, statuses },
        15 => Request::AbortWrite { session, keys, statuses },
        16 => Request::FinishWriteAndReserveRead { session, keys, extra },
        17 => Request::ReserveRead { session, keys, extra },
        18 => Request::FinishRead { session, keys, extra, statuses },
        19 => Request::FinishReadTokens { session, first_token: *other, last_token: *number, ranks, extra },
        20 => Request::GetViews { session, keys },
        21 => Request::Touch { space, keys, statuses },
        22 => Request::Retain { space, keys, priority: *small, ttl_ms: small / 2, statuses },
        23 => Request::Delete { space, keys, statuses },
        24 => Request::Clear { space, force: *flag },
        25 => Request::SubmitPrefetch { session, keys, request: prefetch(parts), ticket: *other },
        26 => Request::QueryLookupHits { job },
        27 => Request::QueryJob { job },
        28 => Request::QueryBitmap { job, bytes: *other },
        29 => Request::Wait { job, timeout_ms },
        30 => Request::Cancel { job },
        31 => Request::ReleaseJob { job },
        32 => Request::GetStats {},
        33 => Request::Metrics {},
        34 => Request::ExplainKey { space, key: keys[0] },
        35 => Request::ExplainSession { session },
        36 => Request::ReadEvents { next: *number, count },
        37 => Request::BeginCopy { session, space: *other, shapes },
        38 => Request::Evict { space, keys, statuses },
        39 => Request::QueryKeys { space, keys },
        40 => Request::QuerySpace { space },
        41 => Request::ForgetSpace { space },
        42 => Request::DeclareShapes { space, shapes },
        43 => Request::Ping {},
        44 => Request::NoteUnregistered { memlock: *flag },
        45 => Request::ReserveWaiting { session, keys, sizes: numbers, wait_ms: timeout_ms },
        46 => Request::ExplainRefusal { session, of_space: *flag },
        47 => Request::RenewSession { session },
        48 => Request::SetQuota { space, quota_bytes: *other },
        49 => Request::QuerySession { session },
        50 => Request::QueryBackends {},
        51 => Request::QueryPrefixLengths { job },
        52 => Request::CloseSpace { space },
        53 => Request::Resume { job },
        54 => Request::TailKeys { session, tail_tokens: *small, ranks, count },
        55 => Request::ExplainHolders { most: *small },
        56 => Request::QueryMisses { space },
        57 => Request::ExplainMisses {},
        _ => Request::ListSpaces {},
    }
}

fn encoded(request: &Request<'_>) -> Vec<u8> {
    let mut frame = Frame::default();
    request.encode(&mut frame);
    frame.finish().to_vec()
}

/// Reads a frame as a daemon does, and does what `then` says with what it is.
fn receive<R>(bytes: &[u8], then: impl FnOnce(Option<Request<'_>>) -> R) -> R {
    let mut inbox = Inbox::default();
    match inbox.receive(&mut &bytes[..], FRAME_BYTES_MAX, false) {
        Ok(Some(head)) => then(Request::decode(head.kind, inbox.fields()).ok()),
        _ => then(None),
    }
}

proptest! {
    #[test]
    fn every_request_arrives_as_it_was_sent(kind in 1..=Request::KINDS, parts in parts()) {
        let sent = encoded(&request(kind, &parts));
        prop_assert_eq!(u32::from_le_bytes(sent[..4].try_into().unwrap()), kind);
        let arrived = receive(&sent, |request| request.map(|request| encoded(&request)));
        prop_assert_eq!(arrived, Some(sent));
    }

    #[test]
    fn a_cut_request_is_refused(kind in 1..=Request::KINDS, parts in parts(), at in any::<prop::sample::Index>()) {
        let mut sent = encoded(&request(kind, &parts));
        let cut = at.index(sent.len());
        // The end of the stream.
        prop_assert!(receive(&sent[..cut], |request| request.is_none()));
        // A frame that says of itself how short it is.
        if cut >= size_of::<FrameHead>() {
            sent.truncate(cut);
            let bytes = (cut - size_of::<FrameHead>()) as u32;
            sent[4..8].copy_from_slice(&bytes.to_le_bytes());
            prop_assert!(receive(&sent, |request| request.is_none()));
        }
    }

    #[test]
    fn a_changed_request_is_refused_or_another_one(
        kind in 1..=Request::KINDS,
        parts in parts(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut sent = encoded(&request(kind, &parts));
        for (at, byte) in changes {
            let at = at.index(sent.len());
            sent[at] = byte;
        }
        // A request that was read can be written again.
        receive(&sent, |request| request.map(|request| encoded(&request).len()));
    }

    #[test]
    fn noise_is_no_request(kind in any::<u32>(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let head = FrameHead { kind, bytes: noise.len() as u32 };
        let sent = [head.as_bytes(), &noise].concat();
        receive(&sent, |_| ());
        let _ = Fields::new(&noise).take::<Welcome>();
    }
}
