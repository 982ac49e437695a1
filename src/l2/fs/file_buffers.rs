//! The memory from which one object's file is written, or into which it is read: a header block, the payload, and what direct I/O needs
//! around it.
//!
//! The header of a small object may be known: then only the payload is read, and its checksum has to be the known one.
//!
//! Direct I/O wants addresses, offsets and lengths in whole blocks. A payload in whole blocks travels from and to its own
//! buffer; the tail of another goes through a block of ours; one at an unaligned address through a copy.

use std::io::{self, IoSlice, IoSliceMut};

use crate::arena::Buffer;
use crate::key::ObjectKey;
use crate::l2::fs::file_format::BLOCK;
use crate::l2::object_header::{HEADER_BYTES, Header, HeaderDetails};

/// Blocks for a header and a tail, which the next object uses again.
pub type Spare = Vec<Buffer>;

/// The buffers of one object's file.
pub struct FileBuffers {
    /// The caller's buffer, for the payload.
    buffer: Buffer,
    scratch: Buffer,
    /// Stands in for `buffer` when its address is unaligned.
    bounce: Option<Buffer>,
    /// Bytes of header block, body and tail block.
    lens: [usize; 3],
    /// The known fields of the header, which is not read then.
    known: Option<HeaderDetails>,
}

impl FileBuffers {
    /// Buffers around `buffer`; hands it back if there is no memory.
    pub fn new(buffer: Buffer, spare: &mut Spare, direct: bool) -> Result<FileBuffers, (Buffer, io::Error)> {
        let len = buffer.len();
        let scratch = match spare.pop().map_or_else(|| Buffer::heap(2 * BLOCK), Ok) {
            Ok(scratch) => scratch,
            Err(error) => return Err((buffer, error)),
        };
        let mut buffers = FileBuffers { buffer, scratch, bounce: None, lens: [BLOCK, len, 0], known: None };
        if direct && !(buffers.buffer.as_ptr() as usize).is_multiple_of(BLOCK) && len > 0 {
            match Buffer::heap(len.next_multiple_of(BLOCK)) {
                Ok(bounce) => {
                    buffers.lens[1] = bounce.len();
                    buffers.bounce = Some(bounce);
                }
                Err(error) => return Err((buffers.buffer, error)),
            }
        } else if direct && !len.is_multiple_of(BLOCK) {
            buffers.lens = [BLOCK, len - len % BLOCK, BLOCK];
        }
        Ok(buffers)
    }

    /// Where the transfer ends: the file, up to the end of its last block when direct.
    pub fn span(&self) -> u64 {
        self.lens.iter().sum::<usize>() as u64
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        (BLOCK + self.buffer.len()) as u64
    }

    /// Fills in the header and the tail, so that the file can be written.
    pub fn set_header(&mut self, header: &Header) {
        let (head, tail) = self.scratch.bytes_mut().split_at_mut(BLOCK);
        head[..HEADER_BYTES].copy_from_slice(&header.0);
        head[HEADER_BYTES..].fill(0);
        let payload = self.buffer.bytes();
        if let Some(bounce) = &mut self.bounce {
            bounce.bytes_mut()[..payload.len()].copy_from_slice(payload);
        } else if self.lens[2] > 0 {
            let rest = &payload[self.lens[1]..];
            tail[..rest.len()].copy_from_slice(rest);
            tail[rest.len()..].fill(0);
        }
    }

    /// Has only the payload read, of the object `key` whose header has these fields.
    pub fn know(&mut self, key: &ObjectKey, known: HeaderDetails) {
        let header = Header::again(key, self.buffer.len() as u64, &known);
        self.scratch.bytes_mut()[..HEADER_BYTES].copy_from_slice(&header.0);
        self.known = Some(known);
    }

    /// Where the transfer begins.
    pub fn start(&self) -> u64 {
        if self.known.is_some() { BLOCK as u64 } else { 0 }
    }

    /// Whether the payload, if it was read in full (`whole`), lacks the known checksum. Then the caller reads the whole file.
    pub fn mistaken(&mut self, whole: bool) -> bool {
        let Some(known) = self.known else { return false };
        if whole {
            self.gather();
        }
        let mistaken = !whole || !known.fits(self.buffer.bytes());
        if mistaken {
            self.known = None;
        }
        mistaken
    }

    /// Gives the header and the payload that were read.
    pub fn opened(mut self, spare: &mut Spare) -> (Header, Buffer) {
        let mut header = Header([0; HEADER_BYTES]);
        header.0.copy_from_slice(&self.scratch.bytes()[..HEADER_BYTES]);
        if self.known.is_none() {
            self.gather();
        }
        (header, self.abandoned(spare))
    }

    /// Copies into the buffer what was read around it.
    fn gather(&mut self) {
        let len = self.buffer.len();
        if let Some(bounce) = &self.bounce {
            self.buffer.bytes_mut().copy_from_slice(&bounce.bytes()[..len]);
        } else if self.lens[2] > 0 {
            let at = self.lens[1];
            let rest = &self.scratch.bytes()[BLOCK..BLOCK + len - at];
            self.buffer.bytes_mut()[at..].copy_from_slice(rest);
        }
    }

    /// Gives back the caller's buffer, whatever is in it.
    pub fn abandoned(self, spare: &mut Spare) -> Buffer {
        spare.push(self.scratch);
        self.buffer
    }

    /// Address and length of each part that the file range `from..to` covers, in order, and how many there are.
    pub fn pointers(&self, from: u64, to: u64) -> ([(*mut u8, usize); 3], usize) {
        let body = self.bounce.as_ref().unwrap_or(&self.buffer).as_ptr();
        let bases = [self.scratch.as_ptr(), body, self.scratch.as_ptr().wrapping_add(BLOCK)];
        let mut parts = [(std::ptr::null_mut(), 0); 3];
        let mut count = 0;
        for (base, (start, end)) in bases.into_iter().zip(cut(self.lens, from, to)) {
            if start < end {
                parts[count] = (base.wrapping_add(start), end - start);
                count += 1;
            }
        }
        (parts, count)
    }

    /// The parts that the file range `from..to` covers, to read from.
    pub fn slices(&self, from: u64, to: u64) -> [IoSlice<'_>; 3] {
        let body = self.bounce.as_ref().unwrap_or(&self.buffer).bytes();
        let (head, tail) = self.scratch.bytes().split_at(BLOCK);
        let [a, b, c] = cut(self.lens, from, to);
        [IoSlice::new(&head[a.0..a.1]), IoSlice::new(&body[b.0..b.1]), IoSlice::new(&tail[c.0..c.1])]
    }

    /// The parts that the file range `from..to` covers, to read into.
    pub fn slices_mut(&mut self, from: u64, to: u64) -> [IoSliceMut<'_>; 3] {
        let body = self.bounce.as_mut().unwrap_or(&mut self.buffer).bytes_mut();
        let (head, tail) = self.scratch.bytes_mut().split_at_mut(BLOCK);
        let [a, b, c] = cut(self.lens, from, to);
        [
            IoSliceMut::new(&mut head[a.0..a.1]),
            IoSliceMut::new(&mut body[b.0..b.1]),
            IoSliceMut::new(&mut tail[c.0..c.1]),
        ]
    }
}

/// Where `from..to` falls in each of three parts of these lengths that follow one another.
fn cut(lens: [usize; 3], from: u64, to: u64) -> [(usize, usize); 3] {
    let (from, to) = (from as usize, to as usize);
    let mut at = 0;
    lens.map(|len| {
        let range = (from.clamp(at, at + len) - at, to.clamp(at, at + len) - at);
        at += len;
        range
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::fs::file_format::disk_bytes;

    #[test]
    fn a_range_is_cut_at_the_parts() {
        assert_eq!(cut([4096, 8192, 4096], 0, 16384), [(0, 4096), (0, 8192), (0, 4096)]);
        assert_eq!(cut([4096, 8192, 4096], 4096, 8192), [(4096, 4096), (0, 4096), (0, 0)]);
        assert_eq!(cut([4096, 8192, 0], 1024, 12288), [(1024, 4096), (0, 8192), (0, 0)]);
    }

    #[test]
    fn a_file_that_was_written_is_read_back() {
        for (len, direct) in [(1, true), (1, false), (4096, true), (10_000, true), (10_000, false), (0, true)] {
            let mut buffer = Buffer::heap(len).unwrap();
            buffer.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
            let mut buffers = FileBuffers::new(buffer, &mut Spare::new(), direct).ok().unwrap();
            buffers.set_header(&Header([5; HEADER_BYTES]));
            let bytes: Vec<u8> = buffers.slices(0, buffers.span()).iter().flat_map(|part| part.to_vec()).collect();
            assert_eq!(bytes.len() as u64, buffers.span());
            assert_eq!(buffers.file_bytes(), (BLOCK + len) as u64);
            assert!(if direct {
                buffers.span() == disk_bytes(len as u64)
            } else {
                buffers.span() == buffers.file_bytes()
            });
            let mut back = FileBuffers::new(Buffer::heap(len).unwrap(), &mut Spare::new(), direct).ok().unwrap();
            let mut at = 0;
            for mut part in back.slices_mut(0, bytes.len() as u64) {
                let end = at + part.len();
                part.copy_from_slice(&bytes[at..end]);
                at = end;
            }
            let (header, buffer) = back.opened(&mut Spare::new());
            assert_eq!(header, Header([5; HEADER_BYTES]));
            assert!(buffer.bytes().iter().enumerate().all(|(i, byte)| *byte == i as u8));
        }
    }
}
