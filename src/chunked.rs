//! A growing array in chunks: growth copies nothing and leaves at most one chunk unused.

/// An array indexed by `u32` that grows a chunk of so many at a time, a power of two, and never moves its elements. Some caller waits
/// while the kernel makes a chunk's pages: 64 KiB take it a tenth of a millisecond.
pub(crate) struct Chunked<T, const CHUNK: usize = 1024> {
    chunks: Vec<Box<[T; CHUNK]>>,
}

impl<T, const CHUNK: usize> Chunked<T, CHUNK> {
    pub(crate) fn new() -> Self {
        Chunked { chunks: Vec::new() }
    }

    /// Makes `index` valid; new places hold what `fill` gives.
    pub(crate) fn reach(&mut self, index: u32, fill: impl Fn() -> T) {
        while self.chunks.len() <= index as usize / CHUNK {
            let chunk: Box<[T]> = std::iter::repeat_with(&fill).take(CHUNK).collect();
            self.chunks.extend(chunk.try_into().ok());
        }
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        Some(&self.chunks.get(index as usize / CHUNK)?[index as usize % CHUNK])
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Box<[T; CHUNK]>>() + self.chunks.len() * CHUNK * size_of::<T>()
    }
}

impl<T, const CHUNK: usize> std::ops::Index<u32> for Chunked<T, CHUNK> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}

impl<T, const CHUNK: usize> std::ops::IndexMut<u32> for Chunked<T, CHUNK> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}
