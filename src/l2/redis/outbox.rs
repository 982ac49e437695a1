//! Commands on their way to a server: short bytes of our own, and payloads that are sent from where they lie.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;

use super::transport::Transport;

/// Most places that one system call sends from.
const PIECES_MAX: usize = 64;

enum OutPiece {
    /// So many bytes of `bytes`, after those of the pieces before.
    Own(usize),
    /// Part of the payload of a request.
    Payload { request: u64, part: Range<usize> },
}

/// Bytes to send, in their order.
#[derive(Default)]
pub struct Outbox {
    bytes: VecDeque<u8>,
    pieces: VecDeque<OutPiece>,
    /// Bytes of all pieces.
    length: usize,
    /// Each command comes after ASKING, which has a reply of its own.
    pub asking: bool,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes that are not sent.
    pub fn len(&self) -> usize {
        self.length
    }

    fn own(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        self.bytes.extend(bytes);
        match self.pieces.back_mut() {
            Some(OutPiece::Own(length)) => *length += bytes.len(),
            _ => self.pieces.push_back(OutPiece::Own(bytes.len())),
        }
    }

    fn head(&mut self, kind: char, length: usize) {
        self.own(format!("{kind}{length}\r\n").as_bytes());
    }

    fn ask(&mut self) {
        if self.asking {
            self.own(b"*1\r\n$6\r\nASKING\r\n");
        }
    }

    fn argument(&mut self, bytes: &[u8]) {
        self.head('$', bytes.len());
        self.own(bytes);
        self.own(b"\r\n");
    }

    /// Adds a command.
    pub fn command(&mut self, arguments: &[&[u8]]) {
        self.ask();
        self.head('*', arguments.len());
        arguments.iter().for_each(|argument| self.argument(argument));
    }

    /// Adds `SET key value…`: the value is `head` and then part of a request's payload.
    pub fn set(&mut self, key: &[u8], head: &[u8], request: u64, part: Range<usize>, options: &[&[u8]]) {
        self.ask();
        self.head('*', 3 + options.len());
        self.argument(b"SET");
        self.argument(key);
        self.head('$', head.len() + part.len());
        self.own(head);
        if part.start < part.end {
            self.length += part.len();
            self.pieces.push_back(OutPiece::Payload { request, part });
        }
        self.own(b"\r\n");
        options.iter().for_each(|option| self.argument(option));
    }

    /// Sends as much as the socket takes. `payload` gives the payload of a request; one that is gone is an error.
    pub fn send<'a>(&mut self, to: &mut Transport, payload: impl Fn(u64) -> Option<&'a [u8]>) -> io::Result<()> {
        while !self.pieces.is_empty() {
            let (wanted, sent) = {
                let mut slices = Vec::with_capacity(self.pieces.len().min(PIECES_MAX) + 1);
                let (front, back) = self.bytes.as_slices();
                let mut own = 0;
                for piece in &self.pieces {
                    // A piece of our own may lie at the end and the beginning of the ring.
                    if slices.len() + 2 > PIECES_MAX {
                        break;
                    }
                    match piece {
                        OutPiece::Own(length) => {
                            let (from, to) = (own, own + length);
                            if from < front.len() {
                                slices.push(IoSlice::new(&front[from..to.min(front.len())]));
                            }
                            if to > front.len() {
                                slices.push(IoSlice::new(&back[from.max(front.len()) - front.len()..to - front.len()]));
                            }
                            own = to;
                        }
                        OutPiece::Payload { request, part } => {
                            let bytes = payload(*request).and_then(|bytes| bytes.get(part.clone()));
                            let early = || io::Error::other("it answered a request before it had all of it");
                            slices.push(IoSlice::new(bytes.ok_or_else(early)?));
                        }
                    }
                }
                let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
                match to.write(&slices) {
                    Ok(sent) => (wanted, sent),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            };
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent(sent);
            if sent < wanted {
                // The socket is full; asking again would only say so.
                return Ok(());
            }
        }
        Ok(())
    }

    fn sent(&mut self, mut count: usize) {
        self.length -= count;
        while count > 0 {
            match self.pieces.front_mut() {
                Some(OutPiece::Own(length)) => {
                    let now = count.min(*length);
                    self.bytes.drain(..now);
                    count -= now;
                    *length -= now;
                    if *length > 0 {
                        return;
                    }
                }
                Some(OutPiece::Payload { part, .. }) => {
                    let now = count.min(part.len());
                    count -= now;
                    part.start += now;
                    if part.start < part.end {
                        return;
                    }
                }
                None => return,
            }
            self.pieces.pop_front();
        }
    }
}
