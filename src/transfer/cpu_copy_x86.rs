//! Copies that go past the caches, for the instruction sets of x86-64 that have them.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
};

/// Pages that are copied at the same time.
const SIDE_BY_SIDE: usize = 4;
const PAGE: usize = 4096;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Lines of a page that go together.
const LINES: usize = 2;

/// Walks a stretch four pages at a time, then its rest, and calls `$line` for each line; what is no whole line at either end
/// is copied plainly.
macro_rules! side_by_side {
    ($from:ident, $to:ident, $bytes:ident, $load:expr, $store:expr, $line:ty) => {{
        let head = $to.align_offset(LINE).min($bytes);
        std::ptr::copy($from, $to, head);
        let (from, to, bytes) = ($from.add(head), $to.add(head), $bytes - head);
        let mut at = 0;
        while at + SIDE_BY_SIDE * PAGE <= bytes {
            for line in (0..PAGE).step_by(LINES * LINE) {
                let place = |i: usize| at + i / LINES * PAGE + line + i % LINES * LINE;
                let lines: [$line; SIDE_BY_SIDE * LINES] = std::array::from_fn(|i| $load(from.add(place(i))));
                for (i, bytes) in lines.into_iter().enumerate() {
                    $store(to.add(place(i)), bytes);
                }
            }
            at += SIDE_BY_SIDE * PAGE;
        }
        while at + LINE <= bytes {
            $store(to.add(at), $load(from.add(at)));
            at += LINE;
        }
        std::ptr::copy(from.add(at), to.add(at), bytes - at);
    }};
}

/// # Safety
/// The CPU has AVX-512F, and `bytes` bytes may be read at `from` and written at `to`.
#[target_feature(enable = "avx512f")]
pub unsafe fn avx512(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: every line and rest is inside the `bytes` bytes of both sides; lines are stored aligned, since `head` made `to` so.
    unsafe {
        side_by_side!(
            from,
            to,
            bytes,
            |from: *const u8| _mm512_loadu_si512(from.cast()),
            |to: *mut u8, line| _mm512_stream_si512(to.cast(), line),
            __m512i
        );
    }
}

/// # Safety
/// The CPU has AVX2, and `bytes` bytes may be read at `from` and written at `to`.
#[target_feature(enable = "avx2")]
pub unsafe fn avx2(from: *const u8, to: *mut u8, bytes: usize) {
    const HALF: usize = LINE / 2;
    // SAFETY: as for `avx512`; a line is two halves.
    unsafe {
        side_by_side!(
            from,
            to,
            bytes,
            |from: *const u8| (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(HALF).cast())),
            |to: *mut u8, (low, high)| {
                _mm256_stream_si256(to.cast(), low);
                _mm256_stream_si256(to.add(HALF).cast(), high);
            },
            (__m256i, __m256i)
        );
    }
}
