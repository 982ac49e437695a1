//! Copies that go past the caches, on x86-64.
#![allow(unsafe_code)]

use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_stream_si256};

/// Pages that are copied at the same time.
const SIDE_BY_SIDE: usize = 4;
const PAGE: usize = 4096;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Lines of a page that go together.
const LINES: usize = 2;

/// Copies a stretch four pages at a time, then its rest; what is no whole line at either end is copied plainly.
///
/// # Safety
/// The CPU has AVX2, and `bytes` bytes may be read at `from` and written at `to`.
#[target_feature(enable = "avx2")]
pub unsafe fn avx2(from: *const u8, to: *mut u8, bytes: usize) {
    let head = to.align_offset(LINE).min(bytes);
    // SAFETY: every line and rest is inside the `bytes` bytes of both sides; lines are stored aligned, since `head` made `to` so.
    unsafe {
        std::ptr::copy(from, to, head);
        let (from, to, bytes) = (from.add(head), to.add(head), bytes - head);
        let mut at = 0;
        while at + SIDE_BY_SIDE * PAGE <= bytes {
            for line in (0..PAGE).step_by(LINES * LINE) {
                let place = |i: usize| at + i / LINES * PAGE + line + i % LINES * LINE;
                let lines: [Line; SIDE_BY_SIDE * LINES] = std::array::from_fn(|i| load(from.add(place(i))));
                for (i, line) in lines.into_iter().enumerate() {
                    store(to.add(place(i)), line);
                }
            }
            at += SIDE_BY_SIDE * PAGE;
        }
        while at + LINE <= bytes {
            store(to.add(at), load(from.add(at)));
            at += LINE;
        }
        std::ptr::copy(from.add(at), to.add(at), bytes - at);
    }
}

/// A line is two halves.
type Line = (__m256i, __m256i);

/// # Safety
/// A line may be read at `from`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(from: *const u8) -> Line {
    // SAFETY: as the caller promised.
    unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(LINE / 2).cast())) }
}

/// # Safety
/// A line may be written at `to`, which is aligned to one.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(to: *mut u8, (low, high): Line) {
    // SAFETY: as the caller promised.
    unsafe {
        _mm256_stream_si256(to.cast(), low);
        _mm256_stream_si256(to.add(LINE / 2).cast(), high);
    }
}
