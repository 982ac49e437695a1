//! A growing array in chunks: growth copies nothing and leaves at most one chunk unused.

/// Chunks so small that the kernel makes the pages of one in a tenth of a millisecond: some caller waits for them.
const SHIFT: u32 = 10;
const CHUNK: usize = 1 << SHIFT;

/// An array indexed by `u32` that grows a chunk at a time and never moves what it holds.
pub(crate) struct Chunked<T> {
    chunks: Vec<Box<[T; CHUNK]>>,
}

impl<T> Chunked<T> {
    pub(crate) fn new() -> Chunked<T> {
        Chunked { chunks: Vec::new() }
    }

    /// Makes `index` valid; new places hold what `fill` gives.
    pub(crate) fn reach(&mut self, index: u32, fill: impl Fn() -> T) {
        while self.chunks.len() <= (index >> SHIFT) as usize {
            let chunk: Box<[T]> = std::iter::repeat_with(&fill).take(CHUNK).collect();
            self.chunks.extend(chunk.try_into().ok());
        }
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        Some(&self.chunks.get((index >> SHIFT) as usize)?[index as usize % CHUNK])
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Box<[T; CHUNK]>>() + self.chunks.len() * CHUNK * size_of::<T>()
    }
}

impl<T> std::ops::Index<u32> for Chunked<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.chunks[(index >> SHIFT) as usize][index as usize % CHUNK]
    }
}

impl<T> std::ops::IndexMut<u32> for Chunked<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[(index >> SHIFT) as usize][index as usize % CHUNK]
    }
}
