//! The stream of events: one JSON object a line, for as long as its reader takes them.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::events::{EMPTY, Event, EventKind};
use crate::node::Node;

/// Between two looks at the log when it had nothing new.
const LOOK: Duration = Duration::from_millis(50);
/// After so long without an event a line is sent, so that a reader that has gone is noticed.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Most events of one piece.
const PIECE: usize = 256;

/// The body of an answer.
pub enum Answer {
    /// A body that is whole.
    Whole(Bytes),
    /// Events as they come.
    Follow(Box<Follow>),
}

/// One reader's place in the events.
pub struct Follow {
    node: Arc<Node>,
    next: u64,
    /// The number that comes next if none is lost; none yet for a reader that takes what there is.
    expected: Option<u64>,
    some: Vec<Event>,
    looks: Interval,
    last_line: Instant,
    closing: watch::Receiver<bool>,
    /// When the reader last took something. Readers that take nothing are cut off.
    progress: Arc<Mutex<Instant>>,
    _place: OwnedSemaphorePermit,
}

impl Follow {
    /// From number `from` on, or from the oldest that is kept for 0.
    pub fn new(
        node: Arc<Node>,
        from: u64,
        closing: watch::Receiver<bool>,
        progress: Arc<Mutex<Instant>>,
        place: OwnedSemaphorePermit,
    ) -> Follow {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (next, expected) = (from, (from != 0).then_some(from));
        let (some, last_line) = (vec![EMPTY; PIECE], Instant::now());
        Follow { node, next, expected, some, looks, last_line, closing, progress, _place: place }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            *self.progress.lock() = Instant::now();
            if *self.closing.borrow() {
                return Poll::Ready(None);
            }
            let Ok(count) = self.node.l1.read_events(&mut self.next, &mut self.some) else {
                return Poll::Ready(None);
            };
            let mut lines = String::new();
            for event in &self.some[..count] {
                gap(&mut lines, self.expected, event.sequence);
                line(&mut lines, event);
                self.expected = Some(event.sequence + 1);
            }
            gap(&mut lines, self.expected, self.next);
            self.expected = Some(self.next);
            if lines.is_empty() && self.last_line.elapsed() >= HEARTBEAT {
                let _ = writeln!(lines, "{{\"next\":{}}}", self.next);
            }
            if !lines.is_empty() {
                self.last_line = Instant::now();
                return Poll::Ready(Some(lines));
            }
            ready!(self.looks.poll_tick(context));
        }
    }
}

/// Writes which events were lost before number `found`, if any. Writing to a string cannot fail.
fn gap(lines: &mut String, expected: Option<u64>, found: u64) {
    if let Some(first) = expected.filter(|&first| first < found) {
        let _ = writeln!(lines, "{{\"lost\":{{\"first\":{first},\"last\":{}}}}}", found - 1);
    }
}

fn line(lines: &mut String, event: &Event) {
    let Event { sequence, time_us, space, backend, size, key, kind, tier, reserved: _ } = event;
    let kind = if *kind == EventKind::Stored as u32 { "stored" } else { "removed" };
    let _ = writeln!(
        lines,
        "{{\"sequence\":{sequence},\"time_us\":{time_us},\"kind\":\"{kind}\",\"tier\":{tier},\"backend\":{backend},\
         \"space\":{space},\"key\":\"{key}\",\"size\":{size}}}"
    );
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Answer::Whole(bytes) => (!bytes.is_empty()).then(|| std::mem::take(bytes)),
            Answer::Follow(follow) => ready!(follow.poll(context)).map(Bytes::from),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Answer::Follow(_) => SizeHint::default(),
        }
    }
}
