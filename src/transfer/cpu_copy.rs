//! The copy itself: stretches of bytes between L1 and an engine's pages, on the CPU.
//!
//! `unsafe` lives here because pages are bare addresses that their owner vouches for, and because stores that go past the caches
//! exist only as intrinsics. The C library's copy takes that way only for stretches of many megabytes on machines with a large
//! last cache, so that a page of 16 KiB to 8 MiB is first read into the cache that it is about to overwrite; and one page after
//! another keeps few reads under way at once. Here four pages are copied side by side, two lines each.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use super::cpu_copy_x86 as x86;
use crate::ablation::{self, Optimization};
use crate::arena::Arena;

/// The promise of the engine that registered pages: they are there, to read and to write, until the pool is closed, and nothing else
/// touches those of a transfer before it is done.
#[derive(Clone, Copy)]
pub struct Promise(());

impl Promise {
    /// The engine has given its promise.
    ///
    /// # Safety
    /// It is kept, for every block of every segment of the pool that is opened with it.
    pub const unsafe fn given() -> Promise {
        Promise(())
    }
}

#[cfg(test)]
impl Promise {
    /// The promise of a test, whose pages outlive its pools.
    pub const fn of_a_test() -> Promise {
        Promise(())
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From pages to L1.
    Gather,
    /// From L1 to pages.
    Scatter,
}

/// A stretch of bytes that is whole on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    l1: usize,
    page: usize,
    bytes: usize,
}

impl Fragment {
    /// `bytes` bytes at the address `page`, which a pool vouches for, and at `data` in `arena`.
    pub fn new(_: &Promise, page: u64, arena: &Arena, data: u64, bytes: u64) -> Fragment {
        let inside = arena.holds(std::ptr::without_provenance(data as usize), bytes);
        assert!(inside, "{bytes} bytes at {data:#x} are not in L1");
        Fragment { l1: data as usize, page: page as usize, bytes: bytes as usize }
    }

    /// Takes in the fragment that goes on where this one ends, if that one does on both sides.
    pub fn join(&mut self, next: &Fragment) -> bool {
        let goes_on = self.l1 + self.bytes == next.l1 && self.page + self.bytes == next.page;
        if goes_on {
            self.bytes += next.bytes;
        }
        goes_on
    }

    /// The number of its bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Its address in L1.
    pub fn l1(&self) -> u64 {
        self.l1 as u64
    }

    /// Its address among the pages.
    pub fn page(&self) -> u64 {
        self.page as u64
    }
}

/// Copies fragments. `cold`: they are not in the caches and need not be there afterwards.
///
/// The caller holds what of L1 they name for the length of the call: staged by a session of its own, or shared by one.
pub fn run(fragments: &[Fragment], way: Way, cold: bool) {
    let stream = if cold { stream() } else { None };
    for fragment in fragments {
        let (l1, page) = (fragment.l1, fragment.page);
        let (from, to) = match way {
            Way::Gather => (std::ptr::with_exposed_provenance(page), std::ptr::with_exposed_provenance_mut(l1)),
            Way::Scatter => (std::ptr::with_exposed_provenance(l1), std::ptr::with_exposed_provenance_mut(page)),
        };
        // SAFETY: the side of L1 is inside its mapping and held by the caller; the other side was promised when its pool was
        // opened. They cannot overlap, since pages inside L1 would be another's staging or a share, which no pool may hold.
        unsafe {
            match stream {
                Some(stream) if fragment.bytes >= STREAM_BYTES_MIN => stream(from, to, fragment.bytes),
                _ => std::ptr::copy(from, to, fragment.bytes),
            }
        }
    }
    if stream.is_some() {
        fence();
    }
}

/// Makes what went past the caches visible before anything that comes after.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Shorter stretches are copied through the caches: too much of them is no whole line.
const STREAM_BYTES_MIN: usize = 512;

/// Copies a stretch; a fence must follow.
type Stream = unsafe fn(*const u8, *mut u8, usize);

/// How this CPU copies past its caches, if it can.
fn stream() -> Option<Stream> {
    if ablation::is_off(Optimization::StreamingCopies) {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            return Some(x86::avx2);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::MapOptions;

    fn ways() -> Vec<Stream> {
        #[cfg(target_arch = "x86_64")]
        {
            let mut ways: Vec<Stream> = Vec::new();
            if is_x86_feature_detected!("avx2") {
                ways.push(x86::avx2);
            }
            ways
        }
        #[cfg(not(target_arch = "x86_64"))]
        Vec::new()
    }

    #[test]
    fn a_streaming_copy_copies_every_byte_and_no_other() {
        const ROOM: usize = 80_000;
        let from: Vec<u8> = (0..ROOM).map(|at| ((at * 31) >> 3) as u8 ^ at as u8).collect();
        for stream in ways() {
            for bytes in [0, 1, 63, 64, 65, 4096, 16_383, 16_384, 16_385, 20_000, 32_768, 65_536 + 77] {
                for (skip_from, skip_to) in [(0, 0), (1, 0), (0, 1), (4, 60), (63, 2)] {
                    let mut to = vec![0xee; ROOM];
                    // SAFETY: both vectors are longer than what is skipped and copied; the CPU was asked.
                    unsafe { stream(from.as_ptr().add(skip_from), to.as_mut_ptr().add(skip_to), bytes) };
                    fence();
                    let end = skip_to + bytes;
                    assert!(to[skip_to..end] == from[skip_from..skip_from + bytes], "{bytes} {skip_from} {skip_to}");
                    assert!(to[..skip_to].iter().chain(&to[end..]).all(|&byte| byte == 0xee), "{bytes} {skip_to}");
                }
            }
        }
    }

    #[test]
    fn fragments_go_both_ways_and_stay_inside_the_arena() {
        let arena = Arena::map(65_536, MapOptions::default()).unwrap();
        let mut page: Vec<u8> = (0..40_000).map(|at| (at >> 4) as u8).collect();
        let base = arena.at(0).expose_provenance() as u64;
        let address = page.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the vector outlives the copies and no other code has it.
        let promise = unsafe { Promise::given() };
        let part = |at: u64, bytes: u64| Fragment::new(&promise, address + at, &arena, base + 4096 + at, bytes);
        let mut first = part(0, 30_000);
        assert!(first.join(&part(30_000, 10_000)) && !first.join(&part(0, 4)));
        assert_eq!(first.bytes(), 40_000);
        let before = page.clone();
        run(&[first], Way::Gather, true);
        page.fill(0);
        run(&[part(0, 20_000), part(20_000, 20_000)], Way::Scatter, false);
        assert!(page == before);
        for outside in [base + 65_530, base - 1] {
            let made = std::panic::catch_unwind(|| Fragment::new(&promise, address, &arena, outside, 8));
            assert!(made.is_err(), "{outside:#x}");
        }
    }
}
