//! The other comparator of the `fs` backend: one io_uring and nothing else, reading whole files into as much memory, of the same
//! kind, as a job of ours fills. fio reads into a few buffers again and again, which some machines serve faster, and takes
//! its memory as it comes, which a disk may serve far slower than joined pages.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use kvkeep::arena::{Arena, Buffer, Hold, MapOptions};

use crate::RUN_TIME;
use crate::random::Random;

const DEPTHS: [usize; 4] = [4, 8, 16, 32];

/// Keeps the arena mapped.
struct Mapped(#[expect(dead_code, reason = "held for its life only")] Arc<Arena>);

impl Hold for Mapped {
    fn release(&self, _token: u64) {}
}

/// Files, a buffer for each, and a ring.
pub struct Bare {
    ring: IoUring,
    files: Vec<File>,
    buffers: Vec<Buffer>,
    order: Vec<usize>,
    depth: usize,
}

impl Bare {
    /// Over the files `fio.0`, `fio.1`… of `dir`, `size` bytes each, at the depth that is fastest; `None` where io_uring
    /// cannot be used.
    pub fn over(dir: &Path, size: u64, count: usize, random: &mut Random) -> Option<Bare> {
        let ring = IoUring::new(64).ok()?;
        let direct = |i| {
            let path = dir.join(format!("fio.{i}"));
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("a file to read")
        };
        let arena = Arc::new(Arena::map(count * size as usize, MapOptions::default()).expect("memory"));
        arena.populate(0, arena.bytes() as u64).expect("pages");
        let lend = |i| arena.lend(i as u64 * size, size, Arc::new(Mapped(arena.clone())), 0);
        let (files, buffers) = ((0..count).map(direct).collect(), (0..count).map(lend).collect());
        let mut bare = Bare { ring, files, buffers, order: (0..count).collect(), depth: 0 };
        let mut best = (0.0, 0);
        for depth in DEPTHS {
            bare.depth = depth;
            let rate = bare.run(random) + bare.run(random);
            if rate > best.0 {
                best = (rate, depth);
            }
        }
        bare.depth = best.1;
        Some(bare)
    }

    /// GB/s of reading every file once, again and again.
    pub fn run(&mut self, random: &mut Random) -> f64 {
        let (mut spent, mut bytes) = (Duration::ZERO, 0);
        while spent < RUN_TIME {
            random.shuffle(&mut self.order);
            let began = Instant::now();
            bytes += self.read_all();
            spent += began.elapsed();
        }
        bytes as f64 / spent.as_secs_f64() / 1e9
    }

    fn read_all(&mut self) -> usize {
        let (mut next, mut live, mut bytes) = (0, 0, 0);
        while next < self.order.len() || live > 0 {
            while live < self.depth && next < self.order.len() {
                let file = types::Fd(self.files[self.order[next]].as_raw_fd());
                let buffer = &self.buffers[next];
                let read = opcode::Read::new(file, buffer.as_ptr(), buffer.len() as u32).build();
                // SAFETY: the buffer and the file live as long as `self`, and every read is awaited below.
                unsafe { self.ring.submission().push(&read) }.expect("a place in the ring");
                (next, live) = (next + 1, live + 1);
            }
            self.ring.submit_and_wait(1).expect("a completion");
            while let Some(entry) = { self.ring.completion().next() } {
                assert_eq!(entry.result() as usize, self.buffers[0].len(), "a read that is not whole");
                (live, bytes) = (live - 1, bytes + entry.result() as usize);
            }
        }
        bytes
    }
}
