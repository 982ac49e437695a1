//! Requests as a test writes them: sent, and awaited.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::object_header::Header;
use super::{Backend, Change, Found, LoadRequest, LoadSink, LookupRequest, Reply, StoreRequest, Stored};
use crate::arena::Buffer;
use crate::error::Result;
use crate::key::{Key, ObjectKey, SpaceTag};

/// Long enough for any machine; only a hang meets it.
const WATCHDOG: Duration = Duration::from_secs(60);
pub(crate) const LAYOUT: [u8; 16] = [7; 16];

pub(crate) type Loaded = (u32, Buffer, Result<Header>);

struct Sink(Sender<Loaded>);

impl LoadSink for Sink {
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>) {
        self.0.send((index, buffer, result)).unwrap();
    }
}

pub(crate) fn key(number: u32) -> ObjectKey {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    hash[28..].copy_from_slice(&number.to_be_bytes());
    ObjectKey { space: SpaceTag([1; 16]), key: Key { hash, rank: 0, group: 0 } }
}

/// Bytes that no other number has, none of them zero.
pub(crate) fn payload(number: u32, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u32 * 31 + number * 7) as u8 | 1).collect()
}

pub(crate) fn buffer(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::heap(bytes.len()).unwrap();
    buffer.bytes_mut().copy_from_slice(bytes);
    buffer
}

pub(crate) fn answer<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(WATCHDOG).unwrap()
}

fn reply<T: Send + 'static>() -> (Reply<T>, Receiver<Result<T>>) {
    let (sender, receiver) = channel();
    (Reply::new(move |result| sender.send(result).unwrap()), receiver)
}

pub(crate) fn send_store(backend: &dyn Backend, number: u32, length: usize) -> Receiver<Result<Stored>> {
    let bytes = payload(number, length);
    let (reply, receiver) = reply();
    let header = Header::new(&key(number), &LAYOUT, &bytes, true).into();
    let deadline = Instant::now() + WATCHDOG;
    backend.store(vec![StoreRequest { key: key(number), header, buffer: buffer(&bytes), deadline, reply }]);
    receiver
}

pub(crate) fn store(backend: &dyn Backend, number: u32, length: usize) -> Result<Stored> {
    answer(&send_store(backend, number, length))
}

pub(crate) fn send_lookup(backend: &dyn Backend, numbers: &[u32], in_order: bool) -> Receiver<Result<Vec<Found>>> {
    let (reply, receiver) = reply();
    let keys = numbers.iter().map(|&number| key(number)).collect();
    backend.lookup(LookupRequest { keys, in_order, deadline: Instant::now() + WATCHDOG, reply });
    receiver
}

pub(crate) fn lookup(backend: &dyn Backend, numbers: &[u32], in_order: bool) -> Result<Vec<Found>> {
    answer(&send_lookup(backend, numbers, in_order))
}

pub(crate) fn send_loads(backend: &dyn Backend, numbers: &[u32], length: usize) -> Receiver<Loaded> {
    let (sender, receiver) = channel();
    let sink = Arc::new(Sink(sender));
    let load = |(index, &number)| LoadRequest {
        key: key(number),
        buffer: Buffer::heap(length).unwrap(),
        checksum: true,
        deadline: Instant::now() + WATCHDOG,
        sink: sink.clone(),
        index: index as u32,
    };
    backend.load(numbers.iter().enumerate().map(load).collect());
    receiver
}

pub(crate) fn load(backend: &dyn Backend, number: u32, length: usize) -> (Result<Header>, Buffer) {
    let (_, buffer, result) = answer(&send_loads(backend, &[number], length));
    (result, buffer)
}

pub(crate) fn delete(backend: &dyn Backend, numbers: &[u32]) -> u64 {
    let (reply, receiver) = reply();
    backend.delete(numbers.iter().map(|&number| key(number)).collect(), reply);
    answer(&receiver).unwrap()
}

/// What changes in `backend` from now on.
pub(crate) fn watch(backend: &dyn Backend) -> Receiver<(Change, ObjectKey)> {
    let (sender, receiver) = channel();
    backend.set_observer(Arc::new(move |change, key: &ObjectKey, _| sender.send((change, *key)).unwrap()));
    receiver
}

pub(crate) fn params(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
