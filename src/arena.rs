//! Host memory handed out by address: the mapping behind L1, and buffers that keep their bytes alive.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Alignment of the mapping and of every payload whose size is a multiple of it, as direct I/O wants.
pub const PAGE: usize = 4096;
/// Size of a huge page, and the alignment of a mapping that is as large.
pub const HUGE_PAGE: usize = 2 << 20;
/// Bytes made present at a time.
const PREFAULT_BYTES: u64 = 8 << 20;

/// How the mapping is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapOptions {
    /// Back it with reserved huge pages; fails where the administrator reserved too few.
    pub huge_pages: bool,
    /// Bind it to this NUMA node.
    pub numa_node: Option<u32>,
    /// Its name in the system's lists of mappings; L1's if none is given.
    pub name: Option<&'static CStr>,
}

/// Arenas of closed caches whose bytes are still in use: a view or a hung backend may look at them until the process exits.
static STILL_MAPPED: Mutex<Vec<Arc<Arena>>> = Mutex::new(Vec::new());

/// One shared, page-aligned mapping of a memfd.
pub struct Arena {
    base: *mut u8,
    bytes: usize,
    fd: OwnedFd,
    writable: bool,
    /// Whether its pages are ours to join: not where they are huge already, nor where another process made them.
    joins: bool,
    /// The kernel refused to join some.
    refused: AtomicBool,
}

// SAFETY: the mapping is plain memory; L1 decides under its lock which code may touch which part of it.
unsafe impl Send for Arena {}
// SAFETY: as above; the struct itself is immutable.
unsafe impl Sync for Arena {}

fn last_error(what: &str) -> io::Error {
    let error = io::Error::last_os_error();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Maps `bytes` of `fd`, at a multiple of a huge page if they fill one. Of huge pages there must be enough now (`reserve`): one that
/// is not there when it is first touched ends the process.
fn map_aligned(bytes: usize, fd: &OwnedFd, access: libc::c_int, reserve: bool) -> io::Result<*mut u8> {
    let spare = if bytes < HUGE_PAGE { 0 } else { HUGE_PAGE };
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address the kernel picks; the result is checked.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), bytes + spare, libc::PROT_NONE, kind, -1, 0) };
    if place == libc::MAP_FAILED {
        return Err(last_error("finding addresses for the arena"));
    }
    let place = place.cast::<u8>();
    let before = if spare > 0 { place.align_offset(HUGE_PAGE) } else { 0 };
    let (base, end) = (place.wrapping_add(before), place.wrapping_add(bytes + spare));
    let kind = libc::MAP_SHARED | libc::MAP_FIXED | if reserve { 0 } else { libc::MAP_NORESERVE };
    // SAFETY: replaces a part of the mapping just made, which no other code knows of yet; the result is checked.
    let mapped = unsafe { libc::mmap(base.cast(), bytes, access, kind, fd.as_raw_fd(), 0) };
    let error = (mapped == libc::MAP_FAILED).then(|| last_error("mapping the arena"));
    let keep = if error.is_none() { bytes } else { 0 };
    for (from, to) in [(place, base), (base.wrapping_add(keep), end)] {
        let surplus = to as usize - from as usize;
        if surplus > 0 {
            // SAFETY: a part of the mapping made above that is not the arena.
            unsafe { libc::munmap(from.cast(), surplus) };
        }
    }
    error.map_or(Ok(base), Err)
}

impl Arena {
    /// Keeps a mapping until the process exits.
    pub fn keep_mapped(arena: Arc<Arena>) {
        STILL_MAPPED.lock().push(arena);
    }

    /// Maps `bytes` (rounded up to whole pages) of fresh zeroed memory, without touching it.
    pub fn map(bytes: usize, options: MapOptions) -> io::Result<Arena> {
        let unit = if options.huge_pages { HUGE_PAGE } else { PAGE };
        let bytes = bytes
            .checked_next_multiple_of(unit)
            .filter(|&bytes| bytes > 0 && isize::try_from(bytes).is_ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "arena size out of range"))?;
        let huge = if options.huge_pages { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
        let name = options.name.unwrap_or(c"kvkeep-l1");
        // SAFETY: the name is NUL-terminated; the descriptor is checked before it is owned.
        let fd = unsafe {
            let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge);
            if fd < 0 {
                return Err(last_error("memfd_create"));
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: plain calls on a descriptor we own.
        unsafe {
            if libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) != 0 {
                return Err(last_error("sizing the arena"));
            }
            let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
            if libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) != 0 {
                return Err(last_error("sealing the arena"));
            }
        }
        let base = map_aligned(bytes, &fd, libc::PROT_READ | libc::PROT_WRITE, options.huge_pages)?;
        let arena =
            Arena { base, bytes, fd, writable: true, joins: !options.huge_pages, refused: AtomicBool::new(false) };
        arena.keep_to_owner()?;
        if let Some(node) = options.numa_node {
            arena.bind(node)?;
        }
        Ok(arena)
    }

    /// Restricts the mode of the descriptor: a process that was given it to read must not be able to open it anew to write.
    fn keep_to_owner(&self) -> io::Result<()> {
        // SAFETY: a plain call on a descriptor we own.
        if unsafe { libc::fchmod(self.fd.as_raw_fd(), 0o600) } != 0 {
            return Err(last_error("setting the arena's mode"));
        }
        Ok(())
    }

    /// Maps an arena that another process made. One that could shrink is refused: it would take pages away from under us.
    pub fn attach(fd: OwnedFd, bytes: usize, writable: bool) -> io::Result<Arena> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        // SAFETY: a plain call on a descriptor we own.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(invalid("the arena is not sealed against shrinking"));
        }
        if std::fs::File::from(fd.try_clone()?).metadata()?.len() < bytes as u64 || bytes == 0 {
            return Err(invalid("the arena is smaller than was said"));
        }
        let access = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let base = map_aligned(bytes, &fd, access, false)?;
        Ok(Arena { base, bytes, fd, writable, joins: false, refused: AtomicBool::new(false) })
    }

    /// Another descriptor of it, through which it cannot be written.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        Ok(std::fs::File::open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?.into())
    }

    fn bind(&self, node: u32) -> io::Result<()> {
        const MPOL_BIND: libc::c_int = 2;
        let mut mask = [0u64; 16];
        let word = mask
            .get_mut(node as usize / 64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("NUMA node {node} out of range")))?;
        *word |= 1 << (node % 64);
        // SAFETY: the range is our own mapping and the mask is as long as we say.
        let result = unsafe {
            libc::syscall(libc::SYS_mbind, self.base, self.bytes, MPOL_BIND, mask.as_ptr(), mask.len() * 64, 0)
        };
        if result != 0 { Err(last_error(&format!("binding to NUMA node {node}"))) } else { Ok(()) }
    }

    /// Size of the mapping in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it may be written through this mapping.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The descriptor behind it, for a peer to map.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Address of the byte at `offset`.
    pub fn at(&self, offset: u64) -> *mut u8 {
        assert!(offset <= self.bytes as u64, "offset {offset} outside the arena");
        self.base.wrapping_add(offset as usize)
    }

    /// Whether all of a range lies inside.
    pub fn holds(&self, data: *const u8, len: u64) -> bool {
        let at = (data as usize).checked_sub(self.base as usize);
        at.and_then(|at| (at as u64).checked_add(len)).is_some_and(|end| end <= self.bytes as u64)
    }

    /// The words and the odd bytes behind them of a range at `data`, if all of it lies inside and begins at a whole word.
    fn cells(&self, data: *const u8, len: usize) -> Option<(&[AtomicU64], &[AtomicU8])> {
        let at = (data as usize).checked_sub(self.base as usize)?;
        if at.checked_add(len)? > self.bytes || !at.is_multiple_of(size_of::<AtomicU64>()) {
            return None;
        }
        let words = len / size_of::<AtomicU64>();
        // SAFETY: inside our mapping, which outlives the borrow of `self`; the base is a page's, so that words are aligned.
        unsafe {
            let first = self.base.add(at);
            let rest = first.add(words * size_of::<AtomicU64>());
            let odd = std::slice::from_raw_parts(rest.cast(), len % size_of::<AtomicU64>());
            Some((std::slice::from_raw_parts(first.cast(), words), odd))
        }
    }

    /// Copies the bytes at `data` out. False, and nothing done, if they do not all lie inside.
    ///
    /// Safe although others may write them meanwhile: a caller that holds no share gets the bytes that happen to be there.
    pub fn copy_out(&self, data: *const u8, into: &mut [u8]) -> bool {
        let Some((words, odd)) = self.cells(data, into.len()) else { return false };
        let (places, rest) = into.as_chunks_mut();
        places.iter_mut().zip(words).for_each(|(place, word)| *place = word.load(Ordering::Relaxed).to_ne_bytes());
        rest.iter_mut().zip(odd).for_each(|(place, byte)| *place = byte.load(Ordering::Relaxed));
        true
    }

    /// Copies bytes in to `data`. False, and nothing done, if they do not all fit inside or it may only be read.
    ///
    /// The caller must know whose bytes they replace.
    pub fn copy_in(&self, data: *mut u8, from: &[u8]) -> bool {
        let Some((words, odd)) = self.cells(data, from.len()).filter(|_| self.writable) else { return false };
        let (values, rest) = from.as_chunks();
        words.iter().zip(values).for_each(|(word, value)| word.store(u64::from_ne_bytes(*value), Ordering::Relaxed));
        odd.iter().zip(rest).for_each(|(byte, value)| byte.store(*value, Ordering::Relaxed));
        true
    }

    /// Lends `len` bytes at `offset` out. They stay valid, and no other code writes them, until `hold` is notified that the buffer
    /// made with `token` is gone: `hold` sees to that.
    pub fn lend(&self, offset: u64, len: u64, hold: Arc<dyn Hold>, token: u64) -> Buffer {
        assert!(offset + len <= self.bytes as u64, "range outside the arena");
        Buffer { data: self.at(offset), len: len as usize, token, hold: Some(hold) }
    }

    /// Makes all pages present, a part at a time, until `stop` is set. Where the kernel cannot, the first use of a page pays for it.
    pub fn prefault(&self, stop: &AtomicBool) {
        let bytes = self.bytes as u64;
        let mut at = 0;
        while at < bytes && !stop.load(Ordering::Acquire) {
            let part = PREFAULT_BYTES.min(bytes - at);
            if self.populate(at, part).is_err() {
                return;
            }
            at += part;
        }
    }

    /// Makes the pages of a range present without changing their contents, joined to huge pages as far as the kernel can.
    /// Fails on kernels before 5.14.
    ///
    /// A disk moves scattered pages at little more than half the speed of joined ones. The kernel joins on request whatever is
    /// its setting for doing so by itself (from 6.1 on), but not where no page is yet, nor one under a transfer.
    pub fn populate(&self, offset: u64, bytes: u64) -> io::Result<()> {
        assert!(offset + bytes <= self.bytes as u64, "range outside the arena");
        let how = if self.writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        let (unit, end) = (HUGE_PAGE as u64, offset + bytes);
        let mut at = if self.joins { offset.next_multiple_of(unit) } else { end };
        while at + unit <= end {
            self.advise(at, PAGE as u64, how)?;
            // Where it cannot, the pages stay single.
            if self.advise(at, unit, libc::MADV_COLLAPSE).is_err() {
                self.refused.store(true, Ordering::Relaxed);
            }
            at += unit;
        }
        self.advise(offset, bytes, how)
    }

    /// Whether the kernel refused to join pages to huge ones.
    pub fn joining_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Gives the kernel advice on a range, of a kind that changes no contents.
    fn advise(&self, offset: u64, bytes: u64, advice: libc::c_int) -> io::Result<()> {
        debug_assert!(
            [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE, libc::MADV_COLLAPSE].contains(&advice),
            "advice that may change contents"
        );
        // SAFETY: inside our mapping; populating and joining change no contents.
        let result = unsafe { libc::madvise(self.at(offset).cast(), bytes as usize, advice) };
        if result != 0 { Err(last_error("populating the arena")) } else { Ok(()) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; nothing refers to it, since buffers hold the arena alive.
        unsafe {
            libc::munmap(self.base.cast(), self.bytes);
        }
    }
}

/// Keeps the memory of [`Buffer`]s from being reused; notified once per buffer when that is dropped.
pub trait Hold: Send + Sync {
    /// The buffer made with `token` is gone.
    fn release(&self, token: u64);
}

/// A stretch of memory under a transfer. While it lives, its bytes are not reused (P2).
pub struct Buffer {
    data: *mut u8,
    len: usize,
    token: u64,
    hold: Option<Arc<dyn Hold>>,
}

// SAFETY: the owner of the buffer has the right to its bytes, which its hold keeps for it.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

struct HeapBlock {
    data: *mut u8,
    layout: Layout,
}

// SAFETY: only ever used to free the block.
unsafe impl Send for HeapBlock {}
// SAFETY: as above.
unsafe impl Sync for HeapBlock {}

impl Hold for HeapBlock {
    fn release(&self, _token: u64) {}
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `Buffer::heap` with this layout, freed once.
        unsafe { std::alloc::dealloc(self.data, self.layout) }
    }
}

impl Buffer {
    /// A buffer over `len` bytes at `data`, kept from reuse by `hold` until `hold.release(token)`.
    ///
    /// # Safety
    /// The bytes stay valid, and no other code writes them, until then.
    pub unsafe fn from_raw(data: *mut u8, len: usize, hold: Arc<dyn Hold>, token: u64) -> Buffer {
        Buffer { data, len, token, hold: Some(hold) }
    }

    /// A zeroed, page-aligned buffer of its own.
    pub fn heap(len: usize) -> io::Result<Buffer> {
        let layout = Layout::from_size_align(len.max(1), PAGE).map_err(io::Error::other)?;
        // SAFETY: the size is not zero.
        let data = unsafe { std::alloc::alloc_zeroed(layout) };
        if data.is_null() {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        Ok(Buffer { data, len, token: 0, hold: Some(Arc::new(HeapBlock { data, layout })) })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address, for the kernel to read from or write to.
    pub fn as_ptr(&self) -> *mut u8 {
        self.data
    }

    /// Its bytes, to read.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: valid for `len` bytes while `hold` lives, and no one writes while we are borrowed.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    /// Its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: valid for `len` bytes while `hold` lives, and we are the only owner.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.release(self.token);
        }
    }
}

/// Has the core's cache fetch the bytes at `place`, to be looked at soon.
#[inline]
pub fn prefetch<T>(place: &T) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing as far as the program can tell, and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(place).cast());
    }
}

/// As [`prefetch`], to be changed soon: no other core keeps it.
#[inline]
pub fn prefetch_to_change<T>(place: &T) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(std::ptr::from_ref(place).cast());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_is_zeroed_and_page_aligned() {
        let arena = Arena::map(10_000, MapOptions::default()).unwrap();
        assert_eq!(arena.bytes(), 12_288);
        assert_eq!(arena.at(0) as usize % PAGE, 0);
        arena.populate(0, 12_288).unwrap();
    }

    /// Whether the pages behind an address and the next are neighbours in memory; `None` if the kernel does not tell us.
    fn neighbours(address: usize) -> Option<bool> {
        use std::os::unix::fs::FileExt;
        let pagemap = std::fs::File::open("/proc/self/pagemap").ok()?;
        let frame = |address: usize| {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, (address / PAGE * 8) as u64).ok()?;
            Some(u64::from_ne_bytes(entry) & ((1 << 55) - 1)).filter(|&frame| frame != 0)
        };
        Some(frame(address)? + 1 == frame(address + PAGE)?)
    }

    #[test]
    fn a_populated_arena_is_of_joined_pages_and_keeps_its_bytes() {
        let arena = Arena::map(3 * HUGE_PAGE + PAGE, MapOptions::default()).unwrap();
        assert_eq!(arena.at(0) as usize % HUGE_PAGE, 0);
        let bytes: Vec<u8> = (0..HUGE_PAGE).map(|at| (at >> 7) as u8).collect();
        assert!(arena.copy_in(arena.at(PAGE as u64), &bytes));
        arena.populate(0, arena.bytes() as u64).unwrap();
        let mut back = vec![0; HUGE_PAGE];
        assert!(arena.copy_out(arena.at(PAGE as u64), &mut back));
        assert!(back == bytes);
        // What the kernel can, said by itself.
        if arena.advise(HUGE_PAGE as u64, HUGE_PAGE as u64, libc::MADV_COLLAPSE).is_err() {
            let test = "a_populated_arena_is_of_joined_pages_and_keeps_its_bytes";
            return crate::skip::skipped(test, "this kernel does not join pages, or has no memory for it");
        }
        let pages = (HUGE_PAGE..2 * HUGE_PAGE - PAGE).step_by(PAGE);
        assert!(pages.map(|at| neighbours(arena.at(at as u64) as usize)).all(|joined| joined != Some(false)));
    }

    #[test]
    fn what_is_copied_in_is_copied_out_and_nothing_outside_is_reached() {
        let arena = Arena::map(4096, MapOptions::default()).unwrap();
        let bytes: Vec<u8> = (0..83).collect();
        assert!(arena.copy_in(arena.at(64), &bytes));
        let mut back = vec![9; 100];
        assert!(arena.copy_out(arena.at(64), &mut back));
        assert_eq!((&back[..83], &back[83..]), (&bytes[..], &[0; 17][..]));
        let (mut page, before) = ([0; 4096], arena.at(0).wrapping_sub(64));
        assert!(arena.copy_out(arena.at(0), &mut page));
        for (data, len) in [(arena.at(64), 4096), (before, 8), (arena.at(1), 8), (std::ptr::null_mut(), 1)] {
            assert!(!arena.copy_out(data, &mut page[..len]), "{len} bytes");
            assert!(!arena.copy_in(data, &page[..len]), "{len} bytes");
        }
    }

    #[test]
    fn heap_buffers_are_aligned() {
        let mut buffer = Buffer::heap(5000).unwrap();
        assert_eq!(buffer.as_ptr() as usize % PAGE, 0);
        buffer.bytes_mut()[4999] = 1;
        assert_eq!(buffer.bytes().iter().filter(|&&byte| byte != 0).count(), 1);
    }
}
