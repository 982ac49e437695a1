//! Frames being written and read.

use std::io::{self, Read};
use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{JobResult, KVKEEP_KEYS_MAX, SessionState, SpaceUsage, Stats};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::misses::miss_report::MissReport;
use crate::shape::Shape;

const WORD: usize = size_of::<u64>();
/// Buffers that grew beyond this for one message are not kept for the next.
pub const KEPT_BYTES: usize = 4 << 20;
/// Most bytes taken into a buffer before they have arrived: a head alone must not make the reader allocate.
const AHEAD_BYTES: usize = 1 << 20;
/// Bytes that every inbox has: a batch of some hundred keys comes in one read.
const FIRST_BYTES: usize = 16 << 10;

/// Most bytes of one frame: a batch of the most keys with a number and a view for each fits.
pub const FRAME_BYTES_MAX: u32 = 80 << 20;

/// The first bytes of a frame, before its fields.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FrameHead {
    /// The number of a request or a push, or the status of an answer.
    pub kind: u32,
    /// Bytes of the fields.
    pub bytes: u32,
}

/// The error of a message that its reader cannot make sense of.
pub fn malformed(what: &str) -> Error {
    Error::invalid(format!("malformed message: {what}; client and daemon must be of one build"))
}

/// A frame being written.
#[derive(Default)]
pub struct Frame {
    bytes: Vec<u8>,
}

impl Frame {
    /// Begins a frame, in the memory of the one before.
    pub fn begin(&mut self, kind: u32) -> &mut Frame {
        self.bytes.clear();
        self.bytes.extend_from_slice(FrameHead { kind, bytes: 0 }.as_bytes());
        self
    }

    /// Adds a field behind the others.
    pub fn put<'a>(&mut self, field: &impl Field<'a>) -> &mut Frame {
        field.put(self);
        self
    }

    /// Lets go of memory that only a rare frame needs.
    pub fn trim(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// Adds an array with its count.
    pub fn array<T: IntoBytes + Immutable>(&mut self, array: &[T]) -> &mut Frame {
        self.number(array.len() as u64);
        self.bytes.extend_from_slice(array.as_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(WORD), 0);
        self
    }

    /// Adds an array made on the way.
    pub fn array_of<T: IntoBytes + Immutable>(&mut self, items: impl ExactSizeIterator<Item = T>) -> &mut Frame {
        self.number(items.len() as u64);
        items.for_each(|item| self.bytes.extend_from_slice(item.as_bytes()));
        self.bytes.resize(self.bytes.len().next_multiple_of(WORD), 0);
        self
    }

    /// The whole frame, to be sent.
    pub fn finish(&mut self) -> &[u8] {
        let length = (self.bytes.len() - size_of::<FrameHead>()) as u32;
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        &self.bytes
    }
}

/// The fields of a received frame that are not taken yet.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// All fields of a frame.
    pub fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes }
    }

    /// Takes the next field, and checks it.
    pub fn take<T: Field<'a>>(&mut self) -> Result<T> {
        T::take(self)
    }

    fn number(&mut self) -> Result<u64> {
        let (number, rest) = self.rest.split_first_chunk().ok_or_else(|| malformed("it ends early"))?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*number))
    }

    /// Takes the next array, where it lies.
    pub fn array<T: FromBytes + Immutable + KnownLayout>(&mut self) -> Result<&'a [T]> {
        let count = usize::try_from(self.number()?).map_err(|_| malformed("an array is too long"))?;
        let (array, _) = <[T]>::ref_from_prefix_with_elems(self.rest, count)
            .map_err(|_| malformed("an array is longer than its message"))?;
        let padded = size_of_val(array).next_multiple_of(WORD);
        self.rest = self.rest.get(padded..).ok_or_else(|| malformed("an array is not padded"))?;
        Ok(array)
    }

    /// Takes all fields that are left, unread.
    pub fn skip(&mut self) {
        self.rest = &[];
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(malformed("it has bytes behind its last field")) }
    }
}

/// A value that can stand in a frame.
pub trait Field<'a>: Sized {
    /// Adds the value to a frame.
    fn put(&self, frame: &mut Frame);
    /// Takes the value from a frame, and checks it.
    fn take(fields: &mut Fields<'a>) -> Result<Self>;
}

impl Field<'_> for u64 {
    fn put(&self, frame: &mut Frame) {
        frame.number(*self);
    }

    fn take(fields: &mut Fields<'_>) -> Result<u64> {
        fields.number()
    }
}

impl Field<'_> for u32 {
    fn put(&self, frame: &mut Frame) {
        frame.number(u64::from(*self));
    }

    fn take(fields: &mut Fields<'_>) -> Result<u32> {
        u32::try_from(fields.number()?).map_err(|_| malformed("a number is out of range"))
    }
}

impl Field<'_> for bool {
    fn put(&self, frame: &mut Frame) {
        frame.number(u64::from(*self));
    }

    fn take(fields: &mut Fields<'_>) -> Result<bool> {
        match fields.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(malformed("a choice is neither 0 nor 1")),
        }
    }
}

impl<'a> Field<'a> for &'a str {
    fn put(&self, frame: &mut Frame) {
        frame.array(self.as_bytes());
    }

    fn take(fields: &mut Fields<'a>) -> Result<&'a str> {
        std::str::from_utf8(fields.array()?).map_err(|_| malformed("a text is not UTF-8"))
    }
}

impl<'a> Field<'a> for &'a [Key] {
    fn put(&self, frame: &mut Frame) {
        frame.array(self);
    }

    fn take(fields: &mut Fields<'a>) -> Result<&'a [Key]> {
        let keys: &[Key] = fields.array()?;
        let fits = (1..=KVKEEP_KEYS_MAX).contains(&keys.len());
        fits.then_some(keys).ok_or_else(|| malformed("a batch has no keys or too many"))
    }
}

macro_rules! arrays {
    ($($item:ty),*) => {$(
        impl<'a> Field<'a> for &'a [$item] {
            fn put(&self, frame: &mut Frame) {
                frame.array(self);
            }

            fn take(fields: &mut Fields<'a>) -> Result<&'a [$item]> {
                fields.array()
            }
        }
    )*};
}

arrays!(u8, u32, i32, u64, Shape);

macro_rules! records {
    ($($record:ty),*) => {$(
        impl<'a> Field<'a> for $record {
            fn put(&self, frame: &mut Frame) {
                frame.array(std::slice::from_ref(self));
            }

            fn take(fields: &mut Fields<'a>) -> Result<$record> {
                match fields.array()? {
                    [record] => Ok(*record),
                    _ => Err(malformed("a record is not one")),
                }
            }
        }
    )*};
}

records!(JobResult, SessionState, SpaceUsage, Stats, MissReport, Key);

/// Where frames are received: whole words, so that arrays lie aligned.
#[derive(Default)]
pub struct Inbox {
    words: Vec<u64>,
    /// Where in it the fields lie, in bytes.
    fields: Range<usize>,
}

impl Inbox {
    /// Lets go of memory that only a rare frame needs.
    pub fn trim(&mut self) {
        if self.words.capacity() > KEPT_BYTES / WORD {
            *self = Inbox::default();
        }
    }

    /// Reads a whole frame, from a peer that sends the next one only when it was answered: head and fields come in one read
    /// where they fit. None if it has more than `bytes_max`. A frame must come within the stream's time from its first byte on,
    /// and if not `patient`, from now on.
    pub fn receive(&mut self, from: &mut impl Read, bytes_max: u32, patient: bool) -> io::Result<Option<FrameHead>> {
        let (mut got, mut wanted) = (0, size_of::<FrameHead>());
        let mut head = None;
        self.reach(FIRST_BYTES);
        while got < wanted {
            // Beyond the frame there is nothing to read, so it does not matter that more is asked for.
            let upto = self.reach(wanted.min(got + AHEAD_BYTES));
            match from.read(&mut self.words.as_mut_bytes()[got..upto]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(more) => got += more,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if patient && got == 0 => {}
                    _ => return Err(error),
                },
            }
            if head.is_none() && got >= size_of::<FrameHead>() {
                let (kind, bytes) = (self.words[0] as u32, (self.words[0] >> 32) as u32);
                if bytes > bytes_max {
                    return Ok(None);
                }
                head = Some(FrameHead { kind, bytes });
                wanted += bytes as usize;
            }
        }
        if got > wanted {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        self.fields = size_of::<FrameHead>()..wanted;
        Ok(head)
    }

    /// Reads the fields of a frame, `bytes` by its head, and nothing beyond.
    pub fn fill(&mut self, from: &mut impl Read, bytes: usize) -> io::Result<()> {
        let mut got = 0;
        while got < bytes {
            let upto = bytes.min(got + AHEAD_BYTES);
            self.reach(upto);
            from.read_exact(&mut self.words.as_mut_bytes()[got..upto])?;
            got = upto;
        }
        self.fields = 0..bytes;
        Ok(())
    }

    /// Makes the buffer at least `bytes` long. Returns its length.
    fn reach(&mut self, bytes: usize) -> usize {
        if self.words.len() * WORD < bytes {
            self.words.resize(bytes.div_ceil(WORD), 0);
        }
        self.words.len() * WORD
    }

    /// The fields read last.
    pub fn fields(&self) -> Fields<'_> {
        Fields::new(&self.words.as_bytes()[self.fields.clone()])
    }
}
